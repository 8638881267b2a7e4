"""The engine that runs cells: longest first onto free resources, each once, again where a failure may be temporary.

No ray is imported here: any `Cluster` that starts, waits for and kills attempts will do.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.execution.worker import AttemptEnd, Task
from isoloop.sweeps.messages import Progress, format_duration
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.plan.packing import ORDERS, Job, Needs, Node, Pool, Queue, Slot, best_order
from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE, RunStore
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import RunResult, read_result

POLL_SECONDS = 0.5
RUN_CHECK_SECONDS = 1.0
NODE_SCAN_SECONDS = 5.0
NODE_GRACE_SECONDS = 300.0
STOP_GRACE_SECONDS = 120.0
BUSY_SECONDS = 2.0
START_SECONDS = 900.0  # from the first heartbeat to the second: imports, compilation, the run's other processes
STORAGE_DELAY_SECONDS = 60.0
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 120.0


class Cluster(Protocol):
    """Machines on which attempts at runs are started."""

    def nodes(self) -> list[Node]:
        """Return the machines with all their resources, free or not."""

    def start(self, task: Task, needs: Needs, slots: Sequence[Slot]) -> Any:
        """Start an attempt on its slots and return its handle."""

    def wait(self, handles: Sequence[Any], timeout: float) -> list[tuple[Any, AttemptEnd]]:
        """Return the attempts that have ended, after waiting up to `timeout` seconds for the first."""

    def kill(self, handle: Any) -> None:
        """End an attempt at once."""


@dataclass
class SweepOutcome:
    """Results by run id, and the reasons of failures by run id."""

    results: dict[str, RunResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _RunState:
    """A cell that waits or runs: its attempts and its progress.

    `attempts` counts those since the run last got further; `heartbeats` those seen of the present attempt.
    """

    cell: Cell
    index: int
    priority: tuple[float, ...] = ()
    attempts: int = 0
    handle: Any = None
    slots: tuple[Slot, ...] = ()
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

    @property
    def needs(self) -> Needs:
        return allocation.needs(self.cell.resources)


class Engine:
    """The scheduler: starts, watches, restarts and ends the runs of added cells, in one `poll` after another.

    Leaving its `with` block asks the running runs to save and end, and waits for them.

    Args:
        cluster: the machines.
        sweep: the configuration.
        folders: the places of the results; every worker must see them, unless there is a run store.
        corpora: folders of the prepared corpora, by fingerprint.
        run_store: the sweep's storage, where driver and workers share no disk.
        progress: the watcher of events; `run_plan` reports the share that is done.
        outcome: filled in as runs end.
        on_start: called with the run id of each attempt that starts.
    """

    def __init__(
        self,
        cluster: Cluster,
        sweep: SweepConfig,
        folders: Folders,
        corpora: Mapping[str, Path],
        *,
        run_store: RunStore | None = None,
        progress: Progress | None = None,
        outcome: SweepOutcome | None = None,
        on_start: Callable[[str], None] = lambda run_id: None,
    ) -> None:
        self.cluster, self.sweep, self.folders, self.corpora = cluster, sweep, folders, corpora
        self.progress, self.outcome, self.on_start = progress or Progress(), outcome or SweepOutcome(), on_start
        self.run_store, self.owner = run_store, _lease_owner(folders)
        self.elastic = sweep.cluster.elastic
        self.pool = Pool(self._nodes(), spread=run_store is None)
        self.queue = Queue()
        self.runs: dict[int, _RunState] = {}
        self.running: dict[Any, _RunState] = {}
        self.retry_queue: list[_RunState] = []
        self.cancelled: list[Cell] = []
        self.last_check = self.last_node_scan = time.monotonic()
        self.starving_since: float | None = None
        folders.sweep.mkdir(parents=True, exist_ok=True)
        folders.stop_file.unlink(missing_ok=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.running:
                with contextlib.suppress(OSError):  # a full disk: Ray ends the runs, which resume from a checkpoint
                    self.folders.stop_file.touch()
                self._request_stop(list(self.running.values()))
                self._wait_for_all(time.monotonic() + STOP_GRACE_SECONDS)
        finally:
            self.folders.stop_file.unlink(missing_ok=True)
            self._write_state()

    @property
    def busy(self) -> bool:
        """True while a run waits or runs, or an end isn't reported yet."""
        return bool(self.running or self.retry_queue or self.cancelled or len(self.queue))

    def add(self, cells: Sequence[Cell]) -> None:
        """Queue more cells.

        Raises:
            ValueError: a cell needs more than the whole cluster has.
        """
        self._check_feasible(cells)
        jobs = [Job(cell.seconds, allocation.needs(cell.resources)) for cell in cells]
        order = ORDERS[best_order(jobs, self._nodes())[0]]
        for cell, job in zip(cells, jobs, strict=True):
            run = _RunState(cell=cell, index=len(self.runs), priority=order(job))
            self.runs[run.index] = run
            self._enqueue(run)

    def stop_run(self, run_id: str) -> None:
        """Ask one run to save and end; it isn't started again, and ends without a result."""
        for run in [run for run in self.runs.values() if run.cell.run_id == run_id]:
            if run.handle is not None:
                run.stop_requested = True
                (self.folders.run(run_id) / STOP_FILE).touch()
                self._request_stop([run])
            elif run in self.retry_queue:
                self.retry_queue.remove(run)
                self.cancelled.append(run.cell)
            elif self.queue.remove(run.index, run.needs):
                self.cancelled.append(run.cell)

    def flops_in_progress(self) -> float:
        """Return the FLOPs that the running runs have spent, by their journals."""
        return sum(run.cell.flops * min(1.0, run.step / run.cell.spec.steps) for run in self.running.values())

    def poll(self) -> list[Cell]:
        """Start what fits, wait a moment, and return the cells that have ended; `outcome` has their results."""
        # Start runs.
        now = time.monotonic()
        for run in [run for run in self.retry_queue if run.not_before <= now]:
            self.retry_queue.remove(run)
            self._enqueue(run)
        self._start_fitting_runs()
        # Wait for attempts to end.
        if not self.running:
            time.sleep(POLL_SECONDS if self.retry_queue or len(self.queue) else 0.0)
        ended, self.cancelled = self.cancelled, []
        attempts = self.cluster.wait(list(self.running), POLL_SECONDS) if self.running else []
        for handle, end in attempts:
            run = self._release(handle)
            self._fetch_updates([run])
            if self._has_ended(run, end):
                ended.append(run.cell)
        if attempts:
            self._write_state()
        # Watch the other runs, and the machines.
        now = time.monotonic()
        if now - self.last_check >= RUN_CHECK_SECONDS:
            self.last_check = now
            self._check_heartbeats(now)
        lost = any(end.status == "failed" and end.retryable for _, end in attempts)
        if not self.elastic and (lost or now - self.last_node_scan >= NODE_SCAN_SECONDS):
            self.last_node_scan = now
            self._scan_nodes()
        return ended

    def _nodes(self) -> list[Node]:
        return allocation.planned_nodes(self.sweep.cluster) if self.elastic else self.cluster.nodes()

    def _check_feasible(self, cells: Sequence[Cell]) -> None:
        empty = Pool(self._nodes(), spread=self.run_store is None)
        for needs in dict.fromkeys(allocation.needs(cell.resources) for cell in cells):
            if not empty.fits(needs):
                nodes = "; ".join(f"{node.cpus:g} CPU, {sum(node.gpus):g} GPU" for node in empty.nodes.values())
                raise ValueError(
                    f"a run must fit the cluster, but its resources ask for {needs.processes} process(es) of "
                    f"{needs.cpus:g} CPU, {needs.gpus:g} GPU, each on one node, and the nodes have {nodes}; ask for "
                    "less, give the address of a larger cluster, or set cluster.elastic where nodes start on demand"
                )

    def _enqueue(self, run: _RunState) -> None:
        self.queue.add(run.index, run.priority, run.needs)

    def _start_fitting_runs(self) -> None:
        before = len(self.running)
        while (placed := self.queue.next(self.pool)) is not None:
            index, needs, slots = placed
            run = self.runs[index]
            folder = self.folders.run(run.cell.run_id)
            (folder / STOP_FILE).unlink(missing_ok=True)
            run.slots, run.killed_as_hung = slots, False
            run.heartbeats, run.heartbeat_time, run.last_heartbeat = 0, _heartbeat_time(folder), time.monotonic()
            run.step = run.step_at_start = self._latest_step(run)
            run.handle = self.cluster.start(self._task(run.cell), needs, () if self.elastic else slots)
            self.running[run.handle] = run
            self.on_start(run.cell.run_id)
        if len(self.running) > before:
            self._write_state()

    def _task(self, cell: Cell) -> Task:
        corpus = self.corpora.get(cell.spec.data_fingerprint)
        return Task(
            spec=cell.spec,
            run_id=cell.run_id,
            folder=self.folders.run(cell.run_id).resolve(),
            stop_file=self.folders.stop_file.resolve(),
            resources=cell.resources,
            corpus=None if corpus is None else corpus.resolve(),
            simulation=self.sweep.simulation,
            storage=None if self.run_store is None else self.run_store.uri,
            owner=self.owner,
        )

    def _release(self, handle: Any) -> _RunState:
        run = self.running.pop(handle)
        self.pool.release(run.needs, run.slots)
        run.handle, run.slots = None, ()
        return run

    def _has_ended(self, run: _RunState, end: AttemptEnd) -> bool:
        """Return whether a run has ended with its attempt; otherwise queue its next attempt."""
        if self._has_result(run):
            return True
        if run.stop_requested and (end.status != "failed" or end.retryable):
            return True
        if end.status == "failed":
            return not self._retries(run, end)
        # Busy, stopped by another process, or a result that the storage doesn't show yet: wait a moment.
        run.not_before = time.monotonic() + (0.0 if end.status == "preempted" else BUSY_SECONDS)
        self.retry_queue.append(run)
        return False

    def _has_result(self, run: _RunState) -> bool:
        result = read_result(self.folders.run(run.cell.run_id))
        if result is None:
            return False
        self.outcome.results[run.cell.run_id] = result
        self.progress.event(_result_line(run.cell, result))
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
        self.outcome.failed[run.cell.run_id] = reason
        self.progress.event(f"{label}  failed: {reason}")
        return False

    def _check_heartbeats(self, now: float) -> None:
        """Read how far the running runs are, and kill those that hang."""
        unseen = not self._fetch_updates(list(self.running.values()))
        for run in self.running.values():
            run.step = self._latest_step(run)
            heartbeat = _heartbeat_time(self.folders.run(run.cell.run_id))
            if heartbeat != run.heartbeat_time or unseen:
                run.heartbeats += heartbeat != run.heartbeat_time
                run.heartbeat_time, run.last_heartbeat = heartbeat, now
            elif self._hangs(run, now - run.last_heartbeat):
                run.killed_as_hung = True
                self.cluster.kill(run.handle)

    def _hangs(self, run: _RunState, no_progress: float) -> bool:
        """Return whether a run without a heartbeat for `no_progress` seconds hangs.

        The first heartbeat of an attempt says that it has begun: before it, it waits in Ray for resources that others
        use. The second, or a step in its journal, says that it has made a step.
        """
        if run.killed_as_hung or not run.heartbeats:
            return False
        has_stepped = run.heartbeats > 1 or run.step > run.step_at_start
        allowed = run.cell.resources.hang_seconds + (0.0 if has_stepped else START_SECONDS)
        return no_progress > allowed + (0.0 if self.run_store is None else STORAGE_DELAY_SECONDS)

    def _scan_nodes(self) -> None:
        """Add new machines to the pool, drop lost ones, and give up when the queued runs have had none for long."""
        nodes = {node.name: node for node in self._nodes()}
        for name in set(self.pool.nodes) - set(nodes):
            self.pool.remove(name)
        for name in set(nodes) - set(self.pool.nodes):
            self.pool.add(nodes[name])
        starving = bool(len(self.queue)) and not self.running
        self.starving_since = (self.starving_since or self.last_node_scan) if starving else None
        if self.starving_since is not None and self.last_node_scan - self.starving_since > NODE_GRACE_SECONDS:
            raise ValueError(
                f"a run must fit the cluster, but for {NODE_GRACE_SECONDS:.0f} s its {len(nodes)} machines could hold "
                f"none of the {len(self.queue)} waiting runs; bring the machines back and rerun the command"
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

    def _wait_for_all(self, deadline: float) -> None:
        """Wait for the running runs to save and end."""
        while self.running and time.monotonic() < deadline:
            for handle, _ in self.cluster.wait(list(self.running), POLL_SECONDS):
                run = self._release(handle)
                self._fetch_updates([run])
                self._has_result(run)

    def _write_state(self) -> None:
        """Write what is running, for `isoloop status` in another terminal."""
        running = {run.cell.run_id: {"attempt": run.attempts + 1} for run in self.running.values()}
        again = {run.cell.run_id: run.reason for run in self.retry_queue if run.reason}
        state = {"running": running, "again": again, "failed": self.outcome.failed}
        with contextlib.suppress(OSError):  # a full disk: the runs report it, and wait for room
            write_atomically(self.folders.state, json.dumps(state))


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
) -> SweepOutcome:
    """Run the cells of `plan` that have no result yet.

    A run that fails is reported and the others go on. On KeyboardInterrupt the runs save their state and end, and the
    interrupt is raised again; `outcome`, if given, then holds everything known so far.

    Args:
        plan: the cells.
        folders: as for `Engine`, and so are `corpora`, `run_store`, `outcome` and `on_start`.
        open_cluster: returns the cluster as a context manager; not called where nothing is missing.
        progress: the watcher of events and of the share of FLOPs that is done.

    Raises:
        ValueError: there is no such cluster, or it can't give a run its resources.
    """
    progress, outcome = progress or Progress(), outcome or SweepOutcome()

    def report(running_flops: float = 0.0) -> None:
        ended = [cell for cell in plan.cells if cell.run_id in outcome.results or cell.run_id in outcome.failed]
        progress.update(
            f"{len(ended)}/{len(plan.cells)} runs", sum(cell.flops for cell in ended) + running_flops, plan.flops
        )

    # Report what is done.
    outcome.results |= finished_results(plan.cells, folders)
    for cell in plan.cells:
        if cell.run_id in outcome.results:
            progress.event(_result_line(cell, outcome.results[cell.run_id]))
    missing = [cell for cell in plan.cells if cell.run_id not in outcome.results]
    if not missing:
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
            progress=progress,
            outcome=outcome,
            on_start=on_start,
        ) as engine,
    ):
        engine.add(missing)
        progress.begin("Training")
        report()
        while engine.busy:
            engine.poll()
            report(engine.flops_in_progress())
    return outcome


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
