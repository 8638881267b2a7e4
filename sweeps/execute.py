"""Train a plan's cells on Ray, dearest first, each in its own folder, each once. The only file that imports ray."""

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.config import SweepConfig
from sweeps.errors import first_line
from sweeps.folders import Folders
from sweeps.grid import Cell, Plan
from trainer.config import ExecutionConfig, RunSpec
from trainer.journal import read_journal
from trainer.result import RunResult, read_result

POLL_SECONDS = 0.5
STOP_POLL_SECONDS = 1.0
STOP_GRACE_SECONDS = 60.0
BUSY_POLL_SECONDS = 2.0
RESTARTS = 3
MOST_SUBMITTED = 10_000
CONNECT_SECONDS = 5.0


class Progress:
    """What a watcher is told. The default says nothing; the command line shows a bar."""

    def share_done(self, share: float) -> None:
        """`share` of the sweep's FLOPs, 0 to 1, is trained."""

    def run_ended(self, cell: Cell, result: RunResult | None, reason: str | None) -> None:
        """A run has a result, or failed for `reason`."""


@dataclass
class Outcome:
    """How the plan's runs ended: results by run id, and reasons by run id where a run failed."""

    results: dict[str, RunResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def finished_results(plan: Plan, folders: Folders) -> dict[str, RunResult]:
    """Results that are there already, by run id."""
    found = {cell.run_id: read_result(folders.run(cell.run_id)) for cell in plan.cells}
    return {run_id: result for run_id, result in found.items() if result is not None}


def saved_states(plan: Plan, folders: Folders) -> int:
    """How many runs without a result have a checkpoint to go on from."""
    unfinished = [cell for cell in plan.cells if not (folders.run(cell.run_id) / "result.json").exists()]
    return sum(any((folders.run(cell.run_id) / "checkpoints").glob("[0-9]*")) for cell in unfinished)


def execute(
    plan: Plan,
    folders: Folders,
    *,
    corpus: Path | None,
    address: str | None = None,
    progress: Progress | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run what has no result yet, on a local Ray or on the cluster at `address`.

    This process and every worker must share the output folder. A run that raises is reported and the others go on; a
    worker that dies is started again by Ray and goes on from its last checkpoint. On KeyboardInterrupt the runs save
    their state and end, and the interrupt is raised again; `outcome`, if given, then holds what is known until there.

    Raises:
        ValueError: no Ray answers at `address`, or it can't give one run its resources.
    """
    progress = progress or Progress()
    outcome = outcome or Outcome()
    outcome.results |= finished_results(plan, folders)
    waiting = [cell for cell in plan.cells if cell.run_id not in outcome.results]
    for cell in plan.cells:
        if cell.run_id in outcome.results:
            progress.run_ended(cell, outcome.results[cell.run_id], None)
    if not waiting:
        progress.share_done(1.0)
        return outcome
    folders.stop_file.unlink(missing_ok=True)
    with _Cluster(plan.sweep, address) as cluster:
        tasks: dict[Any, Cell] = {}
        meter = _Meter(plan, folders)
        try:
            while tasks or waiting:
                while waiting and len(tasks) < cluster.at_once:
                    cell = waiting.pop(0)
                    tasks[cluster.submit(cell, plan.sweep, folders, corpus)] = cell
                for task in cluster.ended(list(tasks)):
                    cell = tasks.pop(task)
                    reason = cluster.reason_of_failure(task)
                    result = read_result(folders.run(cell.run_id))
                    if result is not None:
                        outcome.results[cell.run_id] = result
                    else:
                        outcome.failed[cell.run_id] = reason or "ended without a result"
                    progress.run_ended(cell, result, outcome.failed.get(cell.run_id))
                progress.share_done(meter.share_done(outcome))
        except KeyboardInterrupt:
            folders.stop_file.touch()
            cluster.stop(list(tasks))
            raise
        finally:
            folders.stop_file.unlink(missing_ok=True)
    return outcome


class _Meter:
    """How much of the plan's compute is done, read from the runs' journals."""

    def __init__(self, plan: Plan, folders: Folders) -> None:
        self.plan, self.folders = plan, folders
        self.offset = {cell.run_id: 0 for cell in plan.cells}
        self.step = {cell.run_id: 0 for cell in plan.cells}

    def share_done(self, outcome: Outcome) -> float:
        """Share of the sweep's FLOPs, 0 to 1."""
        done = 0.0
        for cell in self.plan.cells:
            over = cell.run_id in outcome.results or cell.run_id in outcome.failed
            done += cell.flops * (1.0 if over else self._latest_step(cell) / cell.spec.steps)
        return done / self.plan.flops

    def _latest_step(self, cell: Cell) -> int:
        run_id = cell.run_id
        journal = self.folders.run(run_id) / "journal.jsonl"
        records, self.offset[run_id] = read_journal(journal, self.offset[run_id])
        for record in records:
            self.step[run_id] = max(self.step[run_id], record.get("step", 0))
        return self.step[run_id]


class _Cluster:
    """A Ray to submit to, for as long as the `with` block lasts."""

    def __init__(self, sweep: SweepConfig, address: str | None) -> None:
        if address is not None:
            _check_reachable(address)
            if (Path.home() / ".ray" / "auth_token").exists():
                os.environ.setdefault("RAY_AUTH_MODE", "token")  # what `ray start` asks for; a driver doesn't offer it
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray = ray
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if address else ""
            raise ValueError(f"no Ray could be used at '{address or 'local'}': {first_line(error)}{hint}") from error
        resources = sweep.resources
        needs = {"CPU": resources.cpus, "GPU": resources.gpus}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fitting = sum(
            min(int(node.get(name, 0) / need + 1e-9) for name, need in needs.items() if need > 0) for node in nodes
        )
        if fitting < resources.processes:
            self.__exit__()
            has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
            raise ValueError(
                f"a run must fit the cluster, but its resources ask for {resources.processes} process(es) of "
                f"{needs['CPU']} CPU, {needs['GPU']:g} GPU, each on one node, and the nodes have {has}; ask for less, "
                "or give the address of a larger cluster"
            )
        # A process that has used a GPU ends with its run, so that its memory is free for the next one.
        self.task = (ray.remote(max_calls=1) if resources.gpus else ray.remote)(_run_cell)
        self.needs = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        self.at_once = MOST_SUBMITTED
        if resources.processes > 1:  # the task only starts the processes and waits: Ray must not count it
            self.needs, self.at_once = {"num_cpus": 0, "num_gpus": 0}, fitting // resources.processes

    def __enter__(self) -> "_Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        session = getattr(getattr(self.ray, "_private", None), "worker", None)
        node = getattr(session, "_global_node", None)
        folder = node.get_session_dir_path() if node is not None and node.is_head() else None
        self.ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)  # Ray never cleans its sessions up

    def submit(self, cell: Cell, sweep: SweepConfig, folders: Folders, corpus: Path | None) -> Any:
        return self.task.options(name=f"isoloop {cell.run_id}", **self.needs).remote(
            cell.spec.model_dump_json(),
            cell.run_id,
            sweep.model_dump_json(),
            str(folders.run(cell.run_id).resolve()),
            str(folders.stop_file.resolve()),
            None if corpus is None else str(corpus.resolve()),
        )

    def ended(self, tasks: list[Any]) -> list[Any]:
        done, _ = self.ray.wait(tasks, num_returns=1, timeout=POLL_SECONDS)
        return done

    def reason_of_failure(self, task: Any) -> str | None:
        """First line of why the task failed, or None if it didn't."""
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            return first_line(error.cause if error.cause is not None else error)
        except self.ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    def stop(self, tasks: list[Any]) -> None:
        """Give running tasks time to see the stop file, save and end; those that begin now end at once."""
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=STOP_GRACE_SECONDS)


def _run_cell(
    spec_json: str, run_id: str, sweep_json: str, folder: str, stop_file: str, corpus_folder: str | None
) -> None:
    """One run, in a Ray worker. Its outcome is the result file in `folder`."""
    from trainer.lock import FolderBusyError

    spec, sweep, stop = (
        RunSpec.model_validate_json(spec_json),
        SweepConfig.model_validate_json(sweep_json),
        Path(stop_file),
    )
    while not stop.exists():
        try:
            _train_or_simulate(spec, sweep, run_id, Path(folder), stop, corpus_folder)
        except FolderBusyError:  # another sweep of this output folder is at the same run: share its result
            time.sleep(BUSY_POLL_SECONDS)
        else:
            return


def _train_or_simulate(
    spec: RunSpec, sweep: SweepConfig, run_id: str, folder: Path, stop: Path, corpus_folder: str | None
) -> None:
    if sweep.simulation is not None:
        from sweeps.simulated import simulate_run

        simulate_run(spec, sweep.simulation, run_id, folder)
        return
    assert corpus_folder is not None, "a run that trains has a corpus"
    share = {
        "spec": spec.model_dump_json(),
        "execution": sweep.resources.execution.model_dump_json(),
        "folder": str(folder),
        "stop": str(stop),
        "corpus": corpus_folder,
    }
    if sweep.resources.processes == 1:
        _train_share(share)
    else:
        _train_in_processes(share, sweep, folder)


def _train_share(share: dict[str, str]) -> None:
    """What each process of a run does: all of it, or its part where Ray Train has set up a process group."""
    import torch
    import torch.distributed

    from trainer.data import Corpus
    from trainer.loop import train

    execution = ExecutionConfig.model_validate_json(share["execution"])
    if execution.device == "cuda" and torch.distributed.is_initialized():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
        execution = execution.model_copy(update={"device": str(get_device())})
    train(
        RunSpec.model_validate_json(share["spec"]),
        Corpus(Path(share["corpus"])),
        Path(share["folder"]),
        execution=execution,
        should_stop=_stop_signal(Path(share["stop"])),
    )


def _train_in_processes(share: dict[str, str], sweep: SweepConfig, folder: Path) -> None:
    """Train one run in several processes through Ray Train; when one dies, all go on from the last checkpoint.

    Raises:
        ValueError: what a process raised for a broken rule.
        ray.train.WorkerGroupError: processes died more than `RESTARTS` times.
    """
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    resources, notes = sweep.resources, folder / "ray-train"
    scaling = ScalingConfig(
        num_workers=resources.processes,
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus, "GPU": resources.gpus},
    )
    for attempt in range(RESTARTS + 1):
        try:
            TorchTrainer(
                _train_share,
                train_loop_config=share,
                scaling_config=scaling,
                run_config=RunConfig(name=folder.name, storage_path=str(notes)),
            ).fit()
        except WorkerGroupError as error:
            for _, failure in sorted(error.worker_failures.items()):
                if isinstance(failure, ValueError):
                    raise failure from error
            if attempt == RESTARTS:
                raise
        else:
            return
        finally:
            shutil.rmtree(notes, ignore_errors=True)


def _stop_signal(stop_file: Path) -> Callable[[], bool]:
    """True once `stop_file` is there; looks at most once a second."""
    looked, stopped = time.monotonic(), False

    def should_stop() -> bool:
        nonlocal looked, stopped
        if time.monotonic() - looked >= STOP_POLL_SECONDS:
            looked, stopped = time.monotonic(), stop_file.exists()
        return stopped

    return should_stop


def _check_reachable(address: str) -> None:
    """Fail in seconds where Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"--address must read host:port or ray://host:port, but got '{address}'")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"a Ray cluster must answer at --address, but {address} does not ({error}); start one with 'ray start "
            "--head', or leave --address out for a local Ray"
        ) from error
