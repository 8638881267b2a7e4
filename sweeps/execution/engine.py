"""Runs cells to their end: longest first onto what is free, each once, again when the cause of a failure may pass.

Imports no ray: whatever can start, end and kill attempts can be the cluster.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.execution.failures import hung
from isoloop.sweeps.execution.worker import HEARTBEAT, STOP, Ended, Task
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan import resources as cost
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.plan.packing import ORDERS, Job, Needs, Node, Pool, Queue, Slot, best_order
from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.run_store import Storage
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import RunResult, read_result

POLL_SECONDS = 0.5
LOOK_SECONDS = 1.0
NODES_SECONDS = 5.0
NODE_GRACE_SECONDS = 300.0
STOP_GRACE_SECONDS = 120.0
BUSY_SECONDS = 2.0
START_SECONDS = 900.0
PULSE_SECONDS = 60.0
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 120.0


class Cluster(Protocol):
    """What attempts are started on."""

    def nodes(self) -> list[Node]:
        """The machines that are there, with all that they have."""

    def start(self, task: Task, needs: Needs, slots: Sequence[Slot]) -> Any:
        """Start an attempt where its slots are; returns its handle."""

    def ended(self, handles: Sequence[Any], timeout: float) -> list[tuple[Any, Ended]]:
        """Attempts that have ended, waiting up to `timeout` seconds for the first."""

    def kill(self, handle: Any) -> None:
        """End an attempt at once."""


class Progress:
    """What a watcher is told. The default says nothing; the command line shows a bar."""

    def share_done(self, share: float) -> None:
        """`share` of the sweep's FLOPs, 0 to 1, is trained."""

    def run_started(self, cell: Cell) -> None:
        """An attempt at a run was given out."""

    def run_ended(self, cell: Cell, result: RunResult | None, reason: str | None) -> None:
        """A run has a result, or failed for `reason`."""

    def run_retried(self, cell: Cell, reason: str) -> None:
        """An attempt ended for `reason`, and there will be another."""


@dataclass
class Outcome:
    """How the plan's runs ended: results by run id, and reasons by run id where a run failed."""

    results: dict[str, RunResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Run:
    """A cell on its way: what was tried, and how far it got."""

    cell: Cell
    index: int
    priority: tuple[float, ...] = ()
    attempts: int = 0
    handle: Any = None
    slots: tuple[Slot, ...] = ()
    started: float = 0.0
    beaten: float = 0.0
    heartbeat: float | None = None
    offset: int = 0
    step: int = 0
    step_at_start: int = -1
    not_before: float = 0.0
    beats: int = 0
    hung: bool = False
    stopping: bool = False
    reason: str | None = None

    @property
    def needs(self) -> Needs:
        return cost.needs(self.cell.resources)


class Engine:
    """Starts, watches, restarts and ends the runs of cells that are added to it. One `poll` after the other.

    Leaving its `with` block asks the runs under way to save and end, and waits for them.
    """

    def __init__(
        self,
        cluster: Cluster,
        sweep: SweepConfig,
        folders: Folders,
        corpora: Mapping[str, Path],
        *,
        storage: Storage | None = None,
        progress: Progress | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        self.cluster, self.sweep, self.folders, self.corpora = cluster, sweep, folders, corpora
        self.progress, self.outcome = progress or Progress(), outcome or Outcome()
        self.storage, self.owner = storage, _owner(folders)
        self.elastic = sweep.cluster.elastic
        self.pool = Pool(self._nodes(), spread=storage is None)
        self.queue = Queue()
        self.runs: dict[int, _Run] = {}
        self.under_way: dict[Any, _Run] = {}
        self.later: list[_Run] = []
        self.dropped: list[Cell] = []
        self.looked = self.counted = time.monotonic()
        self.starved: float | None = None
        folders.sweep.mkdir(parents=True, exist_ok=True)
        folders.stop_file.unlink(missing_ok=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.under_way:
                with contextlib.suppress(OSError):  # a full disk: Ray ends them, and they go on from a checkpoint
                    self.folders.stop_file.touch()
                self._ask_to_stop(list(self.under_way.values()))
                self._drain(time.monotonic() + STOP_GRACE_SECONDS)
        finally:
            self.folders.stop_file.unlink(missing_ok=True)
            self._tell_state()

    @property
    def busy(self) -> bool:
        """Whether a run is under way or waits."""
        return bool(self.under_way or self.later or self.dropped or len(self.queue))

    def add(self, cells: Sequence[Cell]) -> None:
        """Let more cells wait for their turn.

        Raises:
            ValueError: a cell asks for more than the whole cluster has.
        """
        self._check_feasible(cells)
        waiting = [Job(cell.seconds, cost.needs(cell.resources)) for cell in cells]
        order = ORDERS[best_order(waiting, self._nodes())[0]]
        for cell, job in zip(cells, waiting, strict=True):
            run = _Run(cell=cell, index=len(self.runs), priority=order(job))
            self.runs[run.index] = run
            self._wait(run)

    def stop_run(self, run_id: str) -> None:
        """Ask one run to save and end; it is not started again, and ends without a result."""
        for run in self.under_way.values():
            if run.cell.run_id == run_id:
                run.stopping = True
                (self.folders.run(run_id) / STOP).touch()
                self._ask_to_stop([run])
        for run in [run for run in self.later if run.cell.run_id == run_id]:
            self.later.remove(run)
            self.dropped.append(run.cell)
        for run in self.runs.values():
            if run.cell.run_id == run_id and self.queue.remove(run.index, run.needs):
                self.dropped.append(run.cell)

    def flops_under_way(self) -> float:
        """FLOPs that the runs under way have spent, by their journals."""
        return sum(run.cell.flops * min(1.0, run.step / run.cell.spec.steps) for run in self.under_way.values())

    def poll(self) -> list[Cell]:
        """Start what fits, wait a moment, and return the cells that have ended; `outcome` says how."""
        now = time.monotonic()
        for run in [run for run in self.later if run.not_before <= now]:
            self.later.remove(run)
            self._wait(run)
        self._start_what_fits()
        if not self.under_way:
            time.sleep(POLL_SECONDS if self.later or len(self.queue) else 0.0)
        over, self.dropped = self.dropped, []
        ends = self.cluster.ended(list(self.under_way), POLL_SECONDS) if self.under_way else []
        for handle, end in ends:
            run = self._free(handle)
            self._fetch_news([run])
            if self._judge(run, end):
                over.append(run.cell)
        if ends:
            self._tell_state()
        self._look(lost=any(end.how == "failed" and end.may_pass for _, end in ends))
        return over

    def _nodes(self) -> list[Node]:
        return cost.planned_nodes(self.sweep.cluster) if self.elastic else self.cluster.nodes()

    def _check_feasible(self, cells: Sequence[Cell]) -> None:
        empty = Pool(self._nodes(), spread=self.storage is None)
        for needs in dict.fromkeys(cost.needs(cell.resources) for cell in cells):
            if not empty.fits(needs):
                has = "; ".join(f"{node.cpus:g} CPU, {sum(node.gpus):g} GPU" for node in empty.nodes.values())
                raise ValueError(
                    f"a run must fit the cluster, but its resources ask for {needs.processes} process(es) of "
                    f"{needs.cpus:g} CPU, {needs.gpus:g} GPU, each on one node, and the nodes have {has}; ask for "
                    "less, give the address of a larger cluster, or set cluster.elastic where nodes come when asked for"
                )

    def _wait(self, run: _Run) -> None:
        self.queue.add(run.index, run.priority, run.needs)

    def _start_what_fits(self) -> None:
        under_way = len(self.under_way)
        while (found := self.queue.next(self.pool)) is not None:
            index, needs, slots = found
            run = self.runs[index]
            folder = self.folders.run(run.cell.run_id)
            (folder / STOP).unlink(missing_ok=True)
            run.slots, run.hung, run.beats, run.heartbeat = slots, False, 0, _heartbeat(folder)
            run.started = run.beaten = time.monotonic()
            run.step = self._latest_step(run)
            run.step_at_start = run.step
            run.handle = self.cluster.start(self._task(run.cell), needs, () if self.elastic else slots)
            self.under_way[run.handle] = run
            self.progress.run_started(run.cell)
        if len(self.under_way) > under_way:
            self._tell_state()

    def _task(self, cell: Cell) -> Task:
        corpus = self.corpora.get(cell.spec.data_fingerprint)
        return Task(
            spec=cell.spec,
            run_id=cell.run_id,
            folder=str(self.folders.run(cell.run_id).resolve()),
            stop_file=str(self.folders.stop_file.resolve()),
            resources=cell.resources,
            corpus=None if corpus is None else str(corpus.resolve()),
            simulation=self.sweep.simulation,
            storage=None if self.storage is None else self.storage.uri,
            owner=self.owner,
        )

    def _free(self, handle: Any) -> _Run:
        run = self.under_way.pop(handle)
        self.pool.release(run.needs, run.slots)
        run.handle, run.slots = None, ()
        return run

    def _judge(self, run: _Run, end: Ended) -> bool:
        """What becomes of a run whose attempt has ended: whether it is over, or there will be another one."""
        if self._has_result(run):
            return True
        if run.stopping and (end.how != "failed" or end.may_pass):
            return True
        if end.how == "failed":
            return self._failed(run, end)
        # Busy, or stopped by somebody else, or with a result that a storage doesn't show yet: no reason to try at once.
        run.not_before = time.monotonic() + (0.0 if end.how == "preempted" else BUSY_SECONDS)
        self.later.append(run)
        return False

    def _has_result(self, run: _Run) -> bool:
        """Note the run's result, if it has one."""
        result = read_result(self.folders.run(run.cell.run_id))
        if result is None:
            return False
        self.outcome.results[run.cell.run_id] = result
        self.progress.run_ended(run.cell, result, None)
        return True

    def _failed(self, run: _Run, end: Ended) -> bool:
        """Try again where the cause may pass: at once where the run got further, later and later where it didn't."""
        reason = hung(run.cell.resources.hang_seconds).reason if run.hung else end.reason or "ended without a result"
        run.step = self._latest_step(run)
        further = run.step > run.step_at_start
        run.attempts = 1 if further else run.attempts + 1
        if end.may_pass and run.attempts <= run.cell.resources.retries:
            pause = 0.0 if further else min(RETRY_SECONDS * 2 ** (run.attempts - 1), LONGEST_RETRY_SECONDS)
            run.not_before, run.reason = time.monotonic() + pause, reason
            self.later.append(run)
            self.progress.run_retried(run.cell, reason)
            return False
        tried = f" (tried {run.attempts} times without getting further)" if end.may_pass and run.attempts > 1 else ""
        self.outcome.failed[run.cell.run_id] = reason + tried
        self.progress.run_ended(run.cell, None, reason + tried)
        return True

    def _look(self, *, lost: bool) -> None:
        """Once in a while: who gets on, who hangs, which machines are there; the machines also if a worker was lost."""
        now = time.monotonic()
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            blind = not self._fetch_news(list(self.under_way.values()))
            for run in self.under_way.values():
                run.step = self._latest_step(run)
                beat = _heartbeat(self.folders.run(run.cell.run_id))
                if beat != run.heartbeat or blind:
                    run.beats += beat != run.heartbeat
                    run.heartbeat, run.beaten = beat, now
                elif self._hangs(run, now - run.beaten):
                    run.hung = True
                    self.cluster.kill(run.handle)
        if not self.elastic and (lost or now - self.counted >= NODES_SECONDS):
            self.counted = now
            self._recount()

    def _hangs(self, run: _Run, silent: float) -> bool:
        """Whether a run silent for so many seconds hangs.

        The first beat says that its attempt has begun: before it, it waits in Ray for what others use. The second says
        that it has made a step: until then it imports, compiles, and waits for its other processes.
        """
        if run.hung or not run.beats:
            return False
        allowed = run.cell.resources.hang_seconds + (START_SECONDS if run.beats == 1 else 0.0)
        return silent > allowed + (0.0 if self.storage is None else PULSE_SECONDS)

    def _recount(self) -> None:
        """Take up machines that have come and forget those that have gone."""
        there = {node.name: node for node in self._nodes()}
        for name in set(self.pool.nodes) - set(there):
            self.pool.remove(name)
        for name in set(there) - set(self.pool.nodes):
            self.pool.add(there[name])
        starving = bool(len(self.queue)) and not self.under_way
        self.starved = (self.starved or self.counted) if starving else None
        if self.starved is not None and self.counted - self.starved > NODE_GRACE_SECONDS:
            raise ValueError(
                f"a run must fit the cluster, but for {NODE_GRACE_SECONDS:.0f} s its {len(there)} machines could hold "
                f"none of the {len(self.queue)} that wait; bring the machines back and give the same command again"
            )

    def _latest_step(self, run: _Run) -> int:
        records, run.offset = read_journal(self.folders.run(run.cell.run_id) / "journal.jsonl", run.offset)
        return max([run.step, *(record.get("step", 0) for record in records)])

    def _fetch_news(self, runs: Sequence[_Run]) -> bool:
        """Bring what the workers have published to this disk; whether that could be done.

        It can't while the storage is away, or this disk is full.
        """
        if self.storage is not None and runs:
            try:
                self.storage.fetch_news([run.cell.run_id for run in runs], self.folders.out)
            except OSError:
                return False
        return True

    def _ask_to_stop(self, runs: Sequence[_Run]) -> None:
        if self.storage is not None:
            with contextlib.suppress(StorageError):  # they go on, then, until the cluster ends them
                self.storage.ask_to_stop([run.cell.run_id for run in runs])

    def _drain(self, deadline: float) -> None:
        """Wait for the runs under way to save and end."""
        while self.under_way and time.monotonic() < deadline:
            for handle, _ in self.cluster.ended(list(self.under_way), POLL_SECONDS):
                run = self._free(handle)
                self._fetch_news([run])
                self._has_result(run)

    def _tell_state(self) -> None:
        """Leave a note of what is under way, for `isoloop status` in another terminal."""
        running = {run.cell.run_id: {"attempt": run.attempts + 1} for run in self.under_way.values()}
        again = {run.cell.run_id: run.reason for run in self.later if run.reason}
        state = {"running": running, "again": again, "failed": self.outcome.failed}
        with contextlib.suppress(OSError):  # a full disk is the runs' trouble; they say so, and wait for room
            write_atomically(self.folders.state, json.dumps(state))


def _owner(folders: Folders) -> str:
    """Whom leases on runs are for: this folder's sweep, so that its next driver needn't wait for those of the last."""
    path = folders.sweep / "owner"
    if not path.exists():
        folders.sweep.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text()


def _heartbeat(folder: Path) -> float | None:
    try:
        return (folder / HEARTBEAT).stat().st_mtime
    except FileNotFoundError:
        return None


# MERGED execute
def finished_results(cells: Iterable[Cell], folders: Folders) -> dict[str, RunResult]:
    """Results that are there already, by run id."""
    found = {cell.run_id: read_result(folders.run(cell.run_id)) for cell in cells}
    return {run_id: result for run_id, result in found.items() if result is not None}


def saved_states(plan: Plan, folders: Folders) -> int:
    """How many runs without a result have a state to go on from: a checkpoint here, or one that a storage has."""
    unfinished = [folders.run(cell.run_id) for cell in plan.cells]
    return sum(_has_saved(folder) for folder in unfinished if not (folder / "result.json").exists())


def _has_saved(folder: Path) -> bool:
    if any((folder / "checkpoints").glob("[0-9]*")):
        return True
    events = [record["name"] for record in read_journal(folder / "journal.jsonl")[0] if record["kind"] == "event"]
    return events[-1:] == ["stopped"]


def execute(
    plan: Plan,
    folders: Folders,
    cluster: Callable[[], Any],
    *,
    corpora: Mapping[str, Path],
    storage: Storage | None = None,
    progress: Progress | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run what has no result yet.

    A run that raises is reported and the others go on; where the cause may pass, as with a lost worker, it goes on
    from its last checkpoint. On KeyboardInterrupt the runs save their state and end, and the interrupt is raised again;
    `outcome`, if given, then holds what is known until there.

    Args:
        plan: what to run.
        folders: where; every worker must see them, unless the sweep has a storage.
        cluster: makes what the attempts are started on: a context manager; not asked where nothing is missing.
        corpora: folders of the prepared corpora, by fingerprint.
        storage: the sweep's, where workers and driver share no disk; the corpora are in it.
        progress: is told how far it is.
        outcome: is filled in.

    Raises:
        ValueError: there is no such cluster, or it can't give a run its resources.
    """
    progress, outcome = progress or Progress(), outcome or Outcome()
    outcome.results |= finished_results(plan.cells, folders)
    waiting = []
    for cell in plan.cells:
        if cell.run_id in outcome.results:
            progress.run_ended(cell, outcome.results[cell.run_id], None)
        else:
            waiting.append(cell)
    if not waiting:
        progress.share_done(1.0)
        return outcome
    with (
        cluster() as started,
        Engine(started, plan.sweep, folders, corpora, storage=storage, progress=progress, outcome=outcome) as engine,
    ):
        engine.add(waiting)
        done = plan.flops - sum(cell.flops for cell in waiting)
        while engine.busy:
            done += sum(cell.flops for cell in engine.poll())
            progress.share_done((done + engine.flops_under_way()) / plan.flops)
    return outcome
