"""The state of a sweep or a tuning, read from its folder: in any terminal, on any machine that shares the folder."""

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

from isoloop.sweeps.execution.presence import Driver, last_driver
from isoloop.sweeps.execution.speed import SPEED_WINDOW_SECONDS, JournalReader, Work
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.result import read_result

STATES = ("done", "diverged", "pruned", "failed", "running", "again", "waiting")
FETCH_SECONDS = 10.0
_LEAST_SPEED_SECONDS = 5.0
_COLUMNS = "columns"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of one run.

    Attributes:
        run_id: its identity; `label` describes it.
        state: `done`, `diverged`, `pruned`, `failed`, `running`, `again` (waits for a retry), `waiting`.
        step: steps done, of `steps`.
        loss: validation loss of a run that is done, the last training loss of one that is running; nats per token.
        seconds: time left of a running run, at its recent speed; time taken by a run that is done.
        reason: why it failed, diverged, is retried or waits.
        flops_per_second: recent speed of a running run.
        node: the machine of a running run.
        losses: the training losses of a running run, from its journal.
        start: the first steps, which its trunk trains.
    """

    run_id: str
    label: str
    state: str
    step: int
    steps: int
    loss: float | None = None
    seconds: float | None = None
    reason: str | None = None
    flops_per_second: float | None = None
    node: str | None = None
    losses: tuple[float, ...] = ()
    start: int = 0

    def share_at(self, step: float) -> float:
        """Return the share of the run's own steps that are done after `step` of all its steps."""
        return min(1.0, max(0.0, (step - self.start) / (self.steps - self.start)))


@dataclass(frozen=True, kw_only=True)
class TrialCounts:
    """The trials of a tuning.

    Attributes:
        trials: number that is wanted.
        ended: number that has ended, without those that failed.
        best: the best trial so far in words; None if none has finished.
        runs_to_come: runs that aren't proposed yet: trials, and runs of the check.
        flops_to_come: their FLOPs, about.
    """

    trials: int
    ended: int
    best: str | None
    runs_to_come: int
    flops_to_come: float


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """The state of a sweep.

    Attributes:
        name: the sweep's name.
        time: the time when it was read, in seconds since 1970.
        driver: the driver that is at work, or the last one.
        flops: the FLOPs of all runs.
        share: the share of them, 0 to 1, that is trained.
        flops_per_second: the speed of the whole sweep over the last `speed_seconds`; None if it isn't known.
        seconds_left: time left at that speed, and at least that of each running run; None if it isn't known.
        note: what waits in Ray and for what.
        trials: of a tuning, None for a sweep.
        runs: all runs.
    """

    name: str
    time: float
    driver: Driver | None
    flops: float
    share: float
    flops_per_second: float | None
    speed_seconds: float
    seconds_left: float | None
    note: str | None
    trials: TrialCounts | None
    runs: tuple[RunStatus, ...]

    @property
    def at_work(self) -> bool:
        """True while a driver is running."""
        return self.driver is not None and self.driver.at_work

    @property
    def is_complete(self) -> bool:
        """True if every run has a result; trials of a tuning may also be pruned or fail."""
        if self.trials is None:
            return all(run.state in ("done", "diverged") for run in self.runs)
        open_states = ("running", "again", "waiting")
        return not self.trials.runs_to_come and all(run.state not in open_states for run in self.runs)

    def counts(self) -> dict[str, int]:
        """Return the numbers of runs by state."""
        counts = Counter(run.state for run in self.runs)
        counts["waiting"] += self.trials.runs_to_come if self.trials else 0
        return {state: counts[state] for state in STATES if counts[state]}

    def to_json(self, *, so_far: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Return everything as JSON, for programs; a number that isn't finite is null.

        `so_far` are the answers before the end, if they are wanted.
        """
        runs = [_finite(vars(run)) for run in self.runs]
        parts = {"driver": self.driver and vars(self.driver), "trials": self.trials and vars(self.trials)}
        return json.dumps(
            {**_finite(vars(self)), "at_work": self.at_work, **parts, "runs": runs}
            | ({} if so_far is None else {"so_far": list(so_far)}),
            indent=1,
            allow_nan=False,
        )


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def write_manifest(
    cells: Iterable[Cell],
    folders: Folders,
    *,
    trials: TrialCounts | None = None,
    known: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    columns: Callable[[Cell], Mapping[str, Any]] | None = None,
) -> None:
    """Write the list of the runs, before they start.

    Args:
        cells: the runs.
        folders: the sweep's folders.
        trials: the trials of a tuning.
        known: fields of a run's status that only the tuning knows, by run id.
        columns: columns of a run's row of the run table that its folder doesn't tell, for an answer before the end.
    """
    entries = [
        {"run_id": cell.run_id, "label": cell.label, "steps": cell.spec.steps, "flops": cell.trained_flops}
        | ({"start": cell.origin.step} if cell.origin.step else {})
        | dict(known.get(cell.run_id, {}))
        | ({} if columns is None else {_COLUMNS: dict(columns(cell))})
        for cell in cells
    ]
    folders.sweep.mkdir(parents=True, exist_ok=True)
    write_atomically(folders.manifest, json.dumps({"trials": trials and vars(trials), "cells": entries}))


def planned_rows(folders: Folders) -> dict[str, dict[str, Any]]:
    """Return the columns of each run's row that the manifest holds, by run id; none if it was written without."""
    cells = json.loads(folders.manifest.read_text(encoding="utf-8"))
    cells = cells if isinstance(cells, list) else cells["cells"]
    return {cell["run_id"]: cell[_COLUMNS] for cell in cells if _COLUMNS in cell}


def read_status(folders: Folders) -> SweepStatus:
    """Read the state of a sweep once.

    Raises:
        ValueError: it was never started.
    """
    return StatusReader(folders).read()


class StatusReader:
    """A reader of a sweep's state that reads again only what may have changed: not the runs that have ended.

    Args:
        folders: the sweep's folders.
        store: the sweep's storage, from which they are filled on a machine that doesn't see the driver's disk.

    Raises:
        ValueError: the sweep was never started.
    """

    def __init__(self, folders: Folders, store: RunStore | None = None) -> None:
        self.folders, self.store, self._last_fetch = folders, store, -math.inf
        if store is not None:
            store.fetch_status(folders.name, folders.sweep)
        if not folders.manifest.exists():
            raise ValueError(
                f"a sweep must have been started to have a status, but {folders.sweep} has no {folders.manifest.name}; "
                f"start it with 'isoloop run {folders.name}'"
            )
        self._manifest_version: tuple[int, int] | None = None
        self._trials: TrialCounts | None = None
        self._flops: dict[str, float] = {}
        self._runs: dict[str, RunStatus] = {}
        self._open: dict[str, RunStatus] = {}  # runs without a result, as they are planned
        self._journals: dict[str, JournalReader] = {}
        self._recent: list[Work] = []  # the work of runs that ended within the window
        self._named: set[str] = set()  # runs of which the driver's last state said something
        self._total_flops = self._ended_flops = 0.0

    def read(self, now: float | None = None) -> SweepStatus:
        """Return the state at the time `now`, in seconds since 1970."""
        now = time.time() if now is None else now
        # What the driver has written.
        if self.store is not None and time.monotonic() - self._last_fetch >= FETCH_SECONDS:
            self.store.fetch_status(self.folders.name, self.folders.sweep)
            self._read_manifest()
            self.store.fetch_updates(self._open, self.folders.out)
            self._last_fetch = time.monotonic()
        self._read_manifest()
        driver = last_driver(self.folders)
        at_work = driver is not None and driver.at_work
        state: dict[str, Any] = {"running": {}, "queued": [], "held": {}, "again": {}, "failed": {}, "note": None}
        with suppress(FileNotFoundError):  # a driver that has just started has none
            state |= json.loads(self.folders.state.read_text(encoding="utf-8"))
        if not at_work:
            state |= {"running": {}, "queued": [], "held": {}, "again": {}, "note": None}
        # The runs without a result that may have changed. Most of a large sweep's runs have no folder yet.
        runs_folder = self.folders.out / "runs"
        present = self._open.keys() & os.listdir(runs_folder) if runs_folder.is_dir() else set()
        queued = set(state["queued"])
        named = queued.union(state["running"], state["held"], state["again"], state["failed"])
        begun = {run_id for run_id in present if not self._has_ended(run_id, now)}
        changed = begun | self._open.keys() & (named | self._named)
        self._named = named
        done, left = self._ended_flops, self._total_flops - self._ended_flops
        for run_id in changed:
            journal = self._read_journal(run_id, now) if run_id in begun else None
            flops = self._flops[run_id]
            run = _unfinished(self._open[run_id], flops, journal, state, run_id in queued, now)
            self._runs[run_id] = run
            trained = flops * run.share_at(run.step)
            done += trained
            left -= flops if run.state == "failed" else trained
        # The whole.
        runs = tuple(self._runs.values())
        to_come = self._trials.flops_to_come if self._trials else 0.0
        start = max(now - SPEED_WINDOW_SECONDS, self._first_record(driver.started, now)) if at_work and driver else now
        speed = self._flops_per_second(start, now, running=set(state["running"]))
        longest = max((run.seconds or 0.0 for run in runs if run.state == "running"), default=0.0)
        total = self._total_flops + to_come
        return SweepStatus(
            name=self.folders.name,
            time=now,
            driver=driver,
            flops=total,
            share=done / total,
            flops_per_second=speed,
            speed_seconds=now - start,
            seconds_left=max((left + to_come) / speed, longest) if speed else None,
            note=state["note"],
            trials=self._trials,
            runs=runs,
        )

    def _read_manifest(self) -> None:
        """Read the manifest if it was written anew: by the sweep's next driver, or because a tuning goes on."""
        info = self.folders.manifest.stat()
        version = (info.st_mtime_ns, info.st_ino)
        if version == self._manifest_version:
            return
        self._manifest_version = version
        content = json.loads(self.folders.manifest.read_text(encoding="utf-8"))
        content = {"trials": None, "cells": content} if isinstance(content, list) else content  # of earlier versions
        self._trials = TrialCounts(**content["trials"]) if content["trials"] else None
        self._flops = {cell["run_id"]: cell.pop("flops") for cell in content["cells"]}
        self._total_flops, self._ended_flops = sum(self._flops.values()), 0.0
        before, self._runs, self._open = self._runs, {}, {}
        for cell in content["cells"]:
            run_id = cell["run_id"]
            cell.pop(_COLUMNS, None)
            run = RunStatus(**{"state": "waiting", "step": 0, **cell})
            if run_id in before and before[run_id].state in ("done", "diverged"):
                run = replace(before[run_id], label=run.label)
            self._runs[run_id] = run
            if run.state == "waiting":
                self._open[run_id] = run
            else:
                self._ended_flops += self._flops[run_id]
        self._journals = {run_id: journal for run_id, journal in self._journals.items() if run_id in self._runs}

    def _has_ended(self, run_id: str, now: float) -> bool:
        """Return whether a run has a result, and take that into the state."""
        folder = self.folders.run(run_id)
        result = read_result(folder)
        if result is None:
            return False
        planned, flops_per_step = self._open.pop(run_id), self._flops_per_step(run_id)
        self._runs[run_id] = replace(
            planned, state="done" if result.status == "finished" else "diverged",
            step=result.steps, loss=result.loss, seconds=result.seconds, reason=result.reason,
        )  # fmt: skip
        self._ended_flops += self._flops[run_id]
        if (journal := self._journals.pop(run_id, None)) is not None:
            journal.read(now)
            self._recent.append(Work(journal.points, flops_per_step))
        elif (end := (folder / "result.json").stat().st_mtime) > now - SPEED_WINDOW_SECONDS:
            own_seconds = result.seconds * (1 - result.trunk_steps / result.steps)
            points = deque([(end - own_seconds, result.trunk_steps), (end, result.steps)])
            self._recent.append(Work(points, flops_per_step))
        return True

    def _read_journal(self, run_id: str, now: float) -> JournalReader:
        if run_id not in self._journals:
            self._journals[run_id] = JournalReader(self.folders.run(run_id) / "journal.jsonl")
        self._journals[run_id].read(now)
        return self._journals[run_id]

    def _first_record(self, started: float, now: float) -> float:
        """Return the time of the first record since a driver's start, as a cluster may be slow to start; else `now`."""
        points = [entry.points for entry in self._recent] + [journal.points for journal in self._journals.values()]
        return min((time for time, _ in chain.from_iterable(points) if time >= started), default=now)

    def _flops_per_second(self, start: float, end: float, running: set[str]) -> float | None:
        """Return the FLOPs per second of all runs from `start` to `end`, by the steps in their journals."""
        if end - start < _LEAST_SPEED_SECONDS:
            return None
        self._recent = [work for work in self._recent if work.end > end - SPEED_WINDOW_SECONDS]
        flops = sum(work.flops_between(start, end) for work in self._recent)
        for run_id, journal in self._journals.items():
            flops_per_step = self._flops_per_step(run_id)
            flops += Work(journal.points, flops_per_step).flops_between(start, end)
            if run_id in running:
                flops += journal.unrecorded_steps(start, end) * flops_per_step
        return flops / (end - start) if flops else None

    def _flops_per_step(self, run_id: str) -> float:
        run = self._runs[run_id]
        return self._flops[run_id] / (run.steps - run.start)


def _unfinished(
    planned: RunStatus,
    flops: float,
    journal: JournalReader | None,
    state: Mapping[str, Any],
    is_queued: bool,
    now: float,
) -> RunStatus:
    """Return the status of a run without a result: by its journal, and by what the driver has written about it."""
    run_id = planned.run_id
    status = planned
    if run_id in state["failed"]:
        status = replace(planned, state="failed", reason=state["failed"][run_id])
    elif run_id in state["running"]:
        status = replace(planned, state="running", node=state["running"][run_id].get("node"))
    elif run_id in state["again"]:
        status = replace(planned, state="again", reason=state["again"][run_id])
    elif is_queued:
        status = replace(planned, reason="in Ray's queue")
    elif run_id in state["held"]:
        status = replace(planned, reason=state["held"][run_id])
    if journal is None:
        return status
    status = replace(status, step=journal.step, loss=journal.losses[-1] if journal.losses else None)
    if status.state != "running":
        return status
    status = replace(status, losses=tuple(filter(math.isfinite, journal.losses)))
    if (speed := journal.steps_per_second) is None:
        return status
    left = max(0.0, planned.steps - journal.step - journal.unrecorded_steps(0.0, now))
    flops_per_second = speed * flops / (planned.steps - planned.start)
    return replace(status, flops_per_second=flops_per_second, seconds=left / speed)
