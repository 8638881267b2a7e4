"""The engine that runs cells: handed to Ray in order, each once, again where a failure may be temporary.

The cluster decides where an attempt runs. The engine decides which comes next and how many wait there at a time: enough
to occupy whatever becomes free, and few enough that the order is kept and other jobs get their turn. No ray is imported
here: any `Cluster` that queues, watches and kills attempts will do.
"""

import contextlib
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from isoloop.sweeps.config.resources import Resources
from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.execution.room import Room, describe_waiting, has_room
from isoloop.sweeps.execution.trunks import Trunks
from isoloop.sweeps.execution.worker import AttemptEnd, Task
from isoloop.sweeps.messages import Progress, format_duration
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.grid import Cell, Plan, jobs_of
from isoloop.sweeps.plan.packing import ORDERS, Needs, Node, Queue, best_order
from isoloop.sweeps.plan.quality import QualityPlan
from isoloop.sweeps.plan.trunks import FROM_SCRATCH, Origin
from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE, RunStore
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.branch import Branching
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import RunResult, read_result

WINDOW = 1.25  # attempts in Ray, begun or waiting, in units of the whole cluster
POLL_SECONDS = 0.5
RUN_CHECK_SECONDS = 1.0
NODE_SCAN_SECONDS = 5.0
NODE_GRACE_SECONDS = 300.0
STOP_GRACE_SECONDS = 120.0
CANCEL_SECONDS = 10.0
BEGUN_SECONDS = 5.0
BUSY_SECONDS = 2.0
START_SECONDS = 900.0  # from an attempt's begin to its first step: data from a storage, imports, compilation
UNUSED_ROOM_SECONDS = 1.0  # free room that a waiting attempt hasn't taken for so long is left to others
UNUSABLE_ROOM_SECONDS = 15.0  # and after so long it is of no use to runs as large
WAIT_EVENT_SECONDS = 30.0  # so long may everything wait before it is said
STORAGE_DELAY_SECONDS = 60.0
LOOKS_APART = 20  # pause between two looks at the trunks' folders, in units of the time that a look takes
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 120.0
MOST_LISTED = 60  # runs done by an earlier driver; more are only counted
_WHY_NOT_EVALUATED = {
    "done": AttemptEnd(
        status="failed",
        reason="the data of the suites changed while the sweep ran; rerun the command",
        retryable=False,
    ),
    "busy": AttemptEnd(
        status="failed",
        reason="another process evaluates this run; rerun the command when it has ended",
        retryable=True,
    ),
    "stopped": AttemptEnd(
        status="failed", reason="another process stopped the evaluation; rerun the command", retryable=True
    ),
}  # ends of an evaluation that hasn't left what the sweep asks for


class Cluster(Protocol):
    """Machines on which attempts at runs begin as soon as the cluster has room for them."""

    def nodes(self) -> list[Node]:
        """Return the machines that are up, with all their resources, free or not."""

    def free(self) -> list[Node]:
        """Return the machines that are up, with what no job uses now."""

    def start(self, task: Task, needs: Needs, *, one_machine: bool) -> Any:
        """Queue an attempt and return its handle; `one_machine` keeps its processes together."""

    def begun(self, handles: Sequence[Any], timeout: float) -> dict[Any, str]:
        """Return those of the attempts that have begun, with the name of their (first) machine.

        With a `timeout` those that have begun by now; otherwise it may be those of a moment ago.
        """

    def wait(self, handles: Sequence[Any], timeout: float) -> list[tuple[Any, AttemptEnd]]:
        """Return the attempts that have ended, after waiting up to `timeout` seconds for the first."""

    def kill(self, handle: Any) -> None:
        """End an attempt at once, or take it out of the cluster's queue."""


@dataclass
class SweepOutcome:
    """Results by run id, and the reasons of failures by run id: of runs, and of evaluations by suites."""

    results: dict[str, RunResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unevaluated: dict[str, str] = field(default_factory=dict)


@dataclass
class _RunState:
    """A cell that waits or runs, or a finished one whose evaluation does (`evaluates`): its attempts and its progress.

    `attempts` counts those since the run last got further. The present attempt has a `handle` from when the cluster has
    it, and `has_begun` from when it runs; `fits_since` is when the cluster first had room for it. Its first of the
    `heartbeats` seen is at the begin of its first step, the second after it.
    """

    cell: Cell
    index: int
    priority: tuple[float, ...] = ()
    origin: Origin = FROM_SCRATCH
    attempts: int = 0
    handle: Any = None
    has_begun: bool = False
    node: str | None = None
    fits_since: float | None = None
    heartbeat_time: float | None = None
    heartbeats: int = 0
    last_heartbeat: float = 0.0
    journal_offset: int = 0
    step: int = 0
    step_at_start: int = -1
    not_before: float = 0.0
    killed_as_hung: bool = False
    stop_requested: bool = False
    reason: str | None = None
    evaluates: bool = False

    @property
    def resources(self) -> Resources:
        """Those of the cell; an evaluation is one process."""
        return self.cell.resources.model_copy(update={"processes": 1}) if self.evaluates else self.cell.resources

    @property
    def needs(self) -> Needs:
        return allocation.needs(self.resources)


class Engine:
    """The scheduler: hands in, watches, restarts and ends the runs of added cells, in one `poll` after another.

    Leaving its `with` block takes back the attempts that have not begun, asks the others to save and end, and waits for
    them.

    Args:
        cluster: the machines.
        sweep: the configuration.
        folders: the places of the results; every worker must see them, unless there is a run store.
        corpora: folders of the prepared corpora, by fingerprint.
        run_store: the sweep's storage, where driver and workers share no disk.
        trunks: the runs that share their first steps; None if each trains alone.
        progress: the watcher of events; `run_plan` reports the share that is done.
        outcome: filled in as runs end.
        on_start: called with the run id of each attempt that begins.
        quality: the suites that finished runs are evaluated on, if there are any.
    """

    def __init__(
        self,
        cluster: Cluster,
        sweep: SweepConfig,
        folders: Folders,
        corpora: Mapping[str, Path],
        *,
        run_store: RunStore | None = None,
        trunks: Trunks | None = None,
        progress: Progress | None = None,
        outcome: SweepOutcome | None = None,
        on_start: Callable[[str], None] = lambda run_id: None,
        quality: QualityPlan | None = None,
    ) -> None:
        self.quality, self.to_evaluate, self.evaluated = quality, 0, list[Cell]()
        self.cluster, self.sweep, self.folders, self.corpora = cluster, sweep, folders, corpora
        self.progress, self.outcome, self.on_start = progress or Progress(), outcome or SweepOutcome(), on_start
        self.run_store, self.owner = run_store, _lease_owner(folders)
        self.trunks = trunks or Trunks((), folders)
        self.one_machine = run_store is not None  # the files to publish are on one machine's disk
        self.room = Room(sweep.cluster, one_machine=self.one_machine)
        self.queue = Queue()
        self.runs: dict[int, _RunState] = {}
        self.attempts: dict[Any, _RunState] = {}
        self.retry_queue: list[_RunState] = []
        self.held: dict[int, _RunState] = {}  # runs whose trunk has not reached the place where they leave it
        self.cancelled: list[Cell] = []
        self.last_check = self.last_backfill = self.last_node_scan = time.monotonic()
        self.next_look = 0.0
        self.none_begun_since: float | None = None
        self.starving_since: float | None = None
        self.note: str | None = None
        self.written_state: str | None = None
        folders.sweep.mkdir(parents=True, exist_ok=True)
        folders.stop_file.unlink(missing_ok=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._note_begun(BEGUN_SECONDS)
            if self.attempts:
                with contextlib.suppress(OSError):  # a full disk: Ray ends the runs, which resume from a checkpoint
                    self.folders.stop_file.touch()
                self._request_stop(self.running)
                self.progress.begin("Stopping")
                if self.running:
                    runs = "1 run saves its" if len(self.running) == 1 else f"{len(self.running)} runs save their"
                    self.progress.event(
                        f"Stopping: {runs} state, which takes {STOP_GRACE_SECONDS:.0f} s at most. Ctrl-C again ends "
                        "that at once."
                    )
                self._wait_for_all()
        except KeyboardInterrupt:
            self.progress.event("Ended at once: the runs go on from their last checkpoint when the command is rerun.")
            raise
        finally:
            self.folders.stop_file.unlink(missing_ok=True)
            self.note = None
            self._write_state()

    @property
    def busy(self) -> bool:
        """True while a run waits or runs, or an end isn't reported yet."""
        return bool(self.attempts or self.retry_queue or self.held or self.cancelled or len(self.queue))

    @property
    def trains(self) -> bool:
        """True while a run waits or trains; evaluations alone don't count."""
        evaluations = self.to_evaluate - len(self.evaluated)
        waiting = len(self.attempts) + len(self.retry_queue) + len(self.held) + len(self.queue)
        return waiting > evaluations

    @property
    def running(self) -> list[_RunState]:
        """The runs whose attempts have begun."""
        return [run for run in self.attempts.values() if run.has_begun]

    def add(self, cells: Sequence[Cell]) -> None:
        """Queue more cells.

        Raises:
            ValueError: a cell needs more than the whole cluster has.
        """
        jobs = jobs_of(cells)
        nodes = self.room.measure(self.cluster.nodes(), [job.needs for job in jobs])
        self.room.check((job.needs for job in jobs), nodes)
        order = ORDERS[best_order(jobs, nodes)[0] if has_room(nodes) else next(iter(ORDERS))]
        for cell, job in zip(cells, jobs, strict=True):
            run = _RunState(cell=cell, index=len(self.runs), priority=order(job))
            self.runs[run.index] = self.held[run.index] = run
        self._release_held()

    def evaluate(self, cells: Iterable[Cell]) -> None:
        """Queue the evaluations of those of these cells that have finished and weren't evaluated, behind all runs."""
        wanted = [] if self.quality is None else missing_evaluations(cells, self.outcome, self.quality)
        for cell in wanted:
            run = _RunState(cell=cell, index=len(self.runs), priority=(math.inf,), evaluates=True)
            self.runs[run.index] = run
            self._enqueue(run)
        self.to_evaluate += len(wanted)
        if wanted and not self.room.cores:  # no run has been added
            self.room.measure(self.cluster.nodes(), self.queue.needs())

    def stop_run(self, run_id: str) -> None:
        """Ask one run to save and end; it isn't started again, and ends without a result."""
        self._note_begun(BEGUN_SECONDS)
        for run in [run for run in self.runs.values() if run.cell.run_id == run_id]:
            if run.handle is not None:
                run.stop_requested = True
                self.folders.run(run_id).mkdir(parents=True, exist_ok=True)
                (self.folders.run(run_id) / STOP_FILE).touch()
                self._request_stop([run])
                if not run.has_begun:
                    self.cluster.kill(run.handle)
            elif run in self.retry_queue:
                self.retry_queue.remove(run)
                self.cancelled.append(run.cell)
            elif self.held.pop(run.index, None) or self.queue.remove(run.index, run.needs):
                self.cancelled.append(run.cell)

    def flops_in_progress(self) -> list[float]:
        """Return the FLOPs that each run under way has spent, by its journal."""
        return [run.cell.trained_flops_at(run.step) for run in self.attempts.values() if not run.evaluates]

    def poll(self) -> list[Cell]:
        """Hand in what comes next, wait a moment, and return the cells that have ended; `outcome` has their results."""
        # Hand in attempts.
        now = time.monotonic()
        for run in [run for run in self.retry_queue if run.not_before <= now]:
            self.retry_queue.remove(run)
            self._enqueue(run)
        self._fill_window()
        if len(self.queue) and now - self.last_backfill >= RUN_CHECK_SECONDS:
            self.last_backfill = now
            self._fill_free_room(now)
        # Wait for attempts to end.
        if not self.attempts:
            time.sleep(POLL_SECONDS if self.retry_queue or self.held else 0.0)
        ended, self.cancelled = self.cancelled, []
        attempts = self.cluster.wait(list(self.attempts), POLL_SECONDS) if self.attempts else []
        self._note_begun()
        for handle, end in attempts:
            run = self.attempts[handle]
            if not run.has_begun and end.status != "failed":  # it was so quick that it wasn't seen
                self._begin(run, None)
            self._release(handle)
            self._fetch_updates([run])
            if self._has_ended(run, end):
                (self.evaluated if run.evaluates else ended).append(run.cell)
        self.trunks.clean(ended)
        # Watch the other runs, and the machines.
        now = time.monotonic()
        if now - self.last_check >= RUN_CHECK_SECONDS:
            self.last_check = now
            self._check_heartbeats(now)
            if now >= self.next_look:
                self._release_held()
        if now - self.last_node_scan >= NODE_SCAN_SECONDS:
            self.last_node_scan = now
            self._scan_nodes(now)
        self._write_state()
        return ended

    def _waiting(self) -> list[_RunState]:
        """Return the runs whose attempts wait in the cluster."""
        return [run for run in self.attempts.values() if not run.has_begun]

    def _release_held(self) -> None:
        """Queue the runs whose trunk has saved the state that they start from, or won't do so any more."""
        began = time.monotonic()
        origins = self.trunks.origins([run.cell for run in self.held.values()], self.outcome.failed)
        self.next_look = time.monotonic() + LOOKS_APART * (time.monotonic() - began)
        for run in self.held.values():
            run.origin = origins[run.cell.run_id]
        released = [run for run in self.held.values() if not run.origin.waits]
        for run in released:
            self._enqueue(self.held.pop(run.index))
        self.trunks.clean([run.cell for run in released])

    def _enqueue(self, run: _RunState) -> None:
        self.queue.add(run.index, run.priority, run.needs)

    def _fill_window(self) -> None:
        """Hand in the next runs in their order, while the attempts in the cluster are within the window.

        One waits there in any case, so that it begins as soon as it can, and an autoscaler sees it.
        """
        load, waits = sum(self.room.share(run.needs) for run in self.attempts.values()), bool(self._waiting())
        while (first := self.queue.first()) is not None:
            index, needs = first
            load += self.room.share(needs)
            if waits and load > WINDOW:
                break
            self.queue.pop(needs)
            self._start(self.runs[index])
            waits = True

    def _fill_free_room(self, now: float) -> None:
        """Hand in runs beyond the window that fit where there is room now, unless an attempt that waits can take it.

        The cluster's queue has no order: a narrow run that waited there, too, would take what a wide one waits for.
        Room that an attempt doesn't take is left to others: it may be starting elsewhere, its process not up yet. If it
        never takes it, as when the free shares of GPUs are on several GPUs, only smaller runs are handed in for it.
        """
        free, unusable = self.room.pool(self.cluster.free()), []
        for run in sorted(self._waiting(), key=lambda run: run.priority):
            slots = free.place(run.needs)
            run.fits_since = None if slots is None else run.fits_since or now
            if slots is None or run.fits_since is None:
                continue
            if now - run.fits_since > UNUSED_ROOM_SECONDS:
                free.release(run.needs, slots)
            if now - run.fits_since > UNUSABLE_ROOM_SECONDS:
                unusable.append(run.needs)
        free.reject(unusable)
        while (placed := self.queue.next(free)) is not None:
            self._start(self.runs[placed[0]])

    def _start(self, run: _RunState) -> None:
        folder = self.folders.run(run.cell.run_id)
        (folder / STOP_FILE).unlink(missing_ok=True)
        run.has_begun, run.node, run.fits_since = False, None, None
        run.killed_as_hung, run.heartbeats, run.heartbeat_time = False, 0, _heartbeat_time(folder)
        task = self._task(run)
        branched = task.branching.start.step if task.branching.start else 0
        run.step = run.step_at_start = max(self._latest_step(run), branched)
        run.handle = self.cluster.start(task, run.needs, one_machine=self.one_machine)
        self.attempts[run.handle] = run

    def _note_begun(self, timeout: float = 0.0) -> None:
        """Note which attempts have begun; what is known at the moment, unless `timeout` allows to ask anew."""
        waiting = [run.handle for run in self._waiting()]
        begun = self.cluster.begun(waiting, timeout) if waiting else {}
        for handle, node in begun.items():
            self._begin(self.attempts[handle], node)

    def _begin(self, run: _RunState, node: str | None) -> None:
        run.has_begun, run.node, run.last_heartbeat = True, node, time.monotonic()
        self.on_start(run.cell.run_id)

    def _task(self, run: _RunState) -> Task:
        cell = run.cell
        corpus = self.corpora.get(cell.spec.data_fingerprint)
        return Task(
            spec=cell.spec,
            run_id=cell.run_id,
            folder=self.folders.run(cell.run_id).resolve(),
            stop_file=self.folders.stop_file.resolve(),
            resources=run.resources,
            corpus=None if corpus is None else corpus.resolve(),
            simulation=self.sweep.simulation,
            storage=None if self.run_store is None else self.run_store.uri,
            owner=self.owner,
            branching=Branching() if run.evaluates else self.trunks.branching(cell, self.outcome.failed),
            quality=self.quality.task(cell) if run.evaluates and self.quality is not None else None,
        )

    def _release(self, handle: Any) -> _RunState:
        run = self.attempts.pop(handle)
        run.handle, run.has_begun = None, False
        return run

    def _has_ended(self, run: _RunState, end: AttemptEnd) -> bool:
        """Return whether a run has ended with its attempt; otherwise queue its next attempt."""
        if self._has_result(run):
            return True
        if run.stop_requested and (end.status != "failed" or end.retryable):
            return True
        if run.evaluates and end.status in _WHY_NOT_EVALUATED:
            # Nothing that is waited for here is sure to come: it counts as a failure, so it ends.
            end = _WHY_NOT_EVALUATED[end.status]
        if end.status == "failed":
            return not self._retries(run, end)
        # Busy, stopped by another process, or a result that the storage doesn't show yet: wait a moment.
        run.not_before = time.monotonic() + (0.0 if end.status == "preempted" else BUSY_SECONDS)
        self.retry_queue.append(run)
        return False

    def _has_result(self, run: _RunState) -> bool:
        if run.evaluates:
            return self.quality is not None and self.quality.is_done(run.cell)
        result = read_result(self.folders.run(run.cell.run_id))
        if result is None:
            return False
        self.outcome.results[run.cell.run_id] = result
        return True

    def _retries(self, run: _RunState, end: AttemptEnd) -> bool:
        """Return whether a failed run gets another attempt: at once if it got further, after growing pauses if not."""
        resources, label = run.cell.resources, f"  {run.cell.run_id}  {run.cell.label}"
        reason = end.reason or "ended without a result"
        if run.killed_as_hung:
            limit = f"no step for {resources.hang_seconds:.0f} s (resources.hang_seconds)"
            reason = f"{limit}, so it was killed; if its steps take that long, raise it"
        run.step = self._latest_step(run)
        further = run.step > run.step_at_start
        run.attempts = 1 if further else run.attempts + 1
        if end.retryable and run.attempts <= resources.retries:
            pause = 0.0 if further else min(RETRY_SECONDS * 2 ** (run.attempts - 1), LONGEST_RETRY_SECONDS)
            run.not_before, run.reason = time.monotonic() + pause, reason
            self.retry_queue.append(run)
            self.progress.event(f"{label}  starts again: {reason}")
            return True
        if end.retryable and run.attempts > 1:
            reason += f" (tried {run.attempts} times without getting further)"
        (self.outcome.unevaluated if run.evaluates else self.outcome.failed)[run.cell.run_id] = reason
        self.progress.event(f"{label}  {'evaluation ' if run.evaluates else ''}failed: {reason}")
        return False

    def _check_heartbeats(self, now: float) -> None:
        """Read how far the running runs are, and kill those that hang."""
        unseen = not self._fetch_updates(self.running)
        for run in self.running:
            run.step = self._latest_step(run)
            heartbeat = _heartbeat_time(self.folders.run(run.cell.run_id))
            run.heartbeats += heartbeat != run.heartbeat_time
            if heartbeat != run.heartbeat_time or unseen:
                run.heartbeat_time, run.last_heartbeat = heartbeat, now
            elif self._hangs(run, now - run.last_heartbeat):
                run.killed_as_hung = True
                self.cluster.kill(run.handle)

    def _hangs(self, run: _RunState, no_progress: float) -> bool:
        """Return whether a run without a step for `no_progress` seconds hangs: its first step may take longer."""
        has_stepped = run.heartbeats > 1 or run.step > run.step_at_start
        allowed = run.cell.resources.hang_seconds + (0.0 if has_stepped else START_SECONDS)
        return no_progress > allowed + (0.0 if self.run_store is None else STORAGE_DELAY_SECONDS)

    def _scan_nodes(self, now: float) -> None:
        """Measure the cluster anew, say what waits there, and give up when no machine is left that could hold it."""
        waiting = Counter(run.needs for run in self._waiting())
        needs = [*waiting, *self.queue.needs()]
        nodes = self.cluster.nodes()
        self.room.measure(nodes, needs)
        # Say what waits, and for what.
        self.note = describe_waiting(waiting, nodes, self.cluster.free()) if waiting else None
        none_begun = bool(waiting) and not self.running
        self.none_begun_since = (self.none_begun_since or now) if none_begun else None
        if self.none_begun_since is not None and now - self.none_begun_since >= WAIT_EVENT_SECONDS:
            self.none_begun_since = math.inf  # it is said once
            self.progress.event(f"  {self.note}")
        # Give up.
        could_begin = self.sweep.cluster.elastic or any(map(self.room.pool(nodes).fits, needs))
        starving = bool(needs) and not self.running and not could_begin
        self.starving_since = (self.starving_since or now) if starving else None
        if self.starving_since is not None and now - self.starving_since > NODE_GRACE_SECONDS:
            raise ValueError(
                f"a run must fit the cluster, but for {NODE_GRACE_SECONDS:.0f} s its {len(nodes)} machines could hold "
                f"none of the {waiting.total() + len(self.queue)} waiting runs; bring the machines back and rerun the "
                "command"
            )

    def _latest_step(self, run: _RunState) -> int:
        journal = self.folders.run(run.cell.run_id) / "journal.jsonl"
        records, run.journal_offset = read_journal(journal, run.journal_offset)
        return max([run.step, *(record.get("step", 0) for record in records)])

    def _fetch_updates(self, runs: Sequence[_RunState]) -> bool:
        """Fetch what the workers have published; return False while the storage is away or this disk is full."""
        if self.run_store is not None and runs:
            try:
                self.run_store.fetch_updates([run.cell.run_id for run in runs], self.folders.out)
            except OSError:
                return False
        return True

    def _request_stop(self, runs: Sequence[_RunState]) -> None:
        if self.run_store is not None:
            with contextlib.suppress(StorageError):  # they go on, then, until the cluster ends them
                self.run_store.request_stop([run.cell.run_id for run in runs])

    def _wait_for_all(self) -> None:
        """Take back the attempts that have not begun, and wait for the others to save and end."""
        start = time.monotonic()
        while self.attempts and time.monotonic() - start < (STOP_GRACE_SECONDS if self.running else CANCEL_SECONDS):
            for run in self._waiting():  # again and again: one that is just beginning may miss it
                self.cluster.kill(run.handle)
            for handle, _ in self.cluster.wait(list(self.attempts), POLL_SECONDS):
                run = self._release(handle)
                self._fetch_updates([run])
                self._has_result(run)

    def _evaluation_note(self) -> str | None:
        """Return how far the evaluations are, once no run waits or trains."""
        if not self.to_evaluate or self.trains:
            return None
        return f"{len(self.evaluated)} of {self.to_evaluate} finished runs are evaluated on suites"

    def _write_state(self) -> None:
        """Write what runs and what waits, where it has changed, for `isoloop status` in another terminal."""
        state = {
            "running": {
                run.cell.run_id: {"attempt": run.attempts + 1, "node": run.node}
                for run in self.running
                if not run.evaluates
            },
            "queued": [run.cell.run_id for run in self._waiting() if not run.evaluates],
            "held": {
                run.cell.run_id: f"waits until {run.origin.trunk} has done {run.origin.step} steps, and branches off"
                for run in self.held.values()
            },
            "again": {run.cell.run_id: run.reason for run in self.retry_queue if run.reason and not run.evaluates},
            "failed": self.outcome.failed,
            "note": self.note or self._evaluation_note(),
        }
        text = json.dumps(state)
        if text != self.written_state:
            with contextlib.suppress(OSError):  # a full disk: the runs report it, and wait for room
                write_atomically(self.folders.state, text)
                self.written_state = text


def run_plan(
    plan: Plan,
    folders: Folders,
    open_cluster: Callable[[], AbstractContextManager[Cluster]],
    *,
    corpora: Mapping[str, Path],
    run_store: RunStore | None = None,
    progress: Progress | None = None,
    outcome: SweepOutcome | None = None,
    on_start: Callable[[str], None] = lambda run_id: None,
    on_evaluated: Callable[[str], None] = lambda run_id: None,
    quality: QualityPlan | None = None,
) -> SweepOutcome:
    """Run the cells of `plan` that have no result yet, and evaluate those that have finished on suites.

    A run that fails is reported and the others go on. On KeyboardInterrupt the runs save their state and end, and the
    interrupt is raised again; `outcome`, if given, then holds everything known so far.

    Args:
        plan: the cells.
        folders: as for `Engine`, and so are `corpora`, `run_store`, `outcome`, `on_start` and `quality`.
        open_cluster: returns the cluster as a context manager; not called where nothing is missing.
        progress: the watcher of events and of the share of FLOPs that is done.
        on_evaluated: called with the run id of each run whose evaluation has ended.

    Raises:
        ValueError: there is no such cluster, or it can't give a run its resources.
    """
    progress, outcome = progress or Progress(), outcome or SweepOutcome()

    # Report what is done.
    outcome.results |= finished_results(plan.cells, folders)
    done = [cell for cell in plan.cells if cell.run_id in outcome.results]
    if len(done) > MOST_LISTED:
        progress.event(f"  {len(done)} runs are done already")
    else:
        for cell in done:
            progress.event(_result_line(cell, outcome.results[cell.run_id]))
    trunks = Trunks(plan.cells if plan.sweep.trunk else (), folders, run_store)
    trunks.clean(plan.cells)  # what the last driver left
    missing = [cell for cell in plan.cells if cell.run_id not in outcome.results]
    unevaluated = [] if quality is None else missing_evaluations(done, outcome, quality)
    if not missing and not unevaluated:
        return outcome
    # Run what is missing.
    progress.begin("Starting Ray")
    with (
        open_cluster() as cluster,
        Engine(
            cluster,
            plan.sweep,
            folders,
            corpora,
            run_store=run_store,
            trunks=trunks,
            progress=progress,
            outcome=outcome,
            on_start=on_start,
            quality=quality,
        ) as engine,
    ):
        if missing:
            engine.add(missing)
            progress.begin("Training")
        engine.evaluate(unevaluated)
        # FLOPs spent by the runs that have ended, whose sum is exact, so that it never falls when a run ends.
        flops, evaluates = [cell.trained_flops for cell in done], False

        def report() -> None:
            nonlocal evaluates
            if missing and not evaluates:  # also a last time, when all have ended
                share = math.fsum([*flops, *engine.flops_in_progress()])
                progress.update(f"{len(flops)}/{len(plan.cells)} runs", share, plan.trained_flops)
            if engine.to_evaluate and not engine.trains:
                if not evaluates:
                    progress.begin("Evaluating")
                    evaluates = True
                done_so_far = len(engine.evaluated)
                progress.update(f"{done_so_far}/{engine.to_evaluate} runs", done_so_far, engine.to_evaluate)

        report()
        evaluated = 0
        while engine.busy:
            ended = engine.poll()
            for cell in ended:
                flops.append(cell.trained_flops)
                if cell.run_id in outcome.results:
                    progress.event(_result_line(cell, outcome.results[cell.run_id]))
            engine.evaluate(ended)
            for cell in engine.evaluated[evaluated:]:
                on_evaluated(cell.run_id)
            evaluated = len(engine.evaluated)
            report()
    return outcome


def missing_evaluations(cells: Iterable[Cell], outcome: SweepOutcome, quality: QualityPlan) -> list[Cell]:
    """Return those of the cells that have finished and weren't evaluated on all suites."""
    results = {cell.run_id: outcome.results.get(cell.run_id) for cell in cells}
    return [
        cell
        for cell in cells
        if (result := results[cell.run_id]) is not None and result.status == "finished" and not quality.is_done(cell)
    ]


def finished_results(cells: Iterable[Cell], folders: Folders) -> dict[str, RunResult]:
    """Return the results that exist, by run id."""
    results = {cell.run_id: read_result(folders.run(cell.run_id)) for cell in cells}
    return {run_id: result for run_id, result in results.items() if result is not None}


def count_saved_runs(plan: Plan, folders: Folders) -> int:
    """Return how many runs without a result have a state to resume from: a checkpoint here or in a storage."""
    unfinished = [folders.run(cell.run_id) for cell in plan.cells]
    return sum(_has_saved_state(folder) for folder in unfinished if not (folder / "result.json").exists())


def _has_saved_state(folder: Path) -> bool:
    if checkpoints(folder / "checkpoints"):
        return True
    events = [record["name"] for record in read_journal(folder / "journal.jsonl")[0] if record["kind"] == "event"]
    return events[-1:] == ["stopped"]


def _result_line(cell: Cell, result: RunResult) -> str:
    if result.loss is None:
        ending = f"diverged: {result.reason}"
    else:
        ending = f"loss {result.loss:.4f}" + (
            " (simulated)" if result.simulated else f" in {format_duration(result.seconds)}"
        )
        if result.compared_loss != result.loss:
            ending += f", lowest {result.best_loss:.4f} after step {result.best_step}"
    return f"  {cell.run_id}  {cell.label}  {ending}"


def _lease_owner(folders: Folders) -> str:
    """Return the id under which this sweep's drivers take leases: the next one needn't wait for the last one's."""
    path = folders.sweep / "owner"
    if not path.exists():
        folders.sweep.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def _heartbeat_time(folder: Path) -> float | None:
    try:
        return (folder / HEARTBEAT_FILE).stat().st_mtime
    except FileNotFoundError:
        return None
