"""What a worker does for one run: train or simulate it in its folder, obey stops, say how it ended.

Started by the cluster, in a process of Ray's. Nothing is raised through Ray: how an attempt ended comes back as data.
"""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from isoloop.sweeps.config.resources import Resources
from isoloop.sweeps.config.schema import Simulation
from isoloop.sweeps.execution.failures import judge
from isoloop.trainer.config import Config, ExecutionConfig, RunSpec
from isoloop.trainer.files import FolderBusyError

HEARTBEAT = "heartbeat"
STOP = "stop"
SCRATCH = "ISOLOOP_SCRATCH"
LOOK_SECONDS = 1.0


class Task(Config):
    """One attempt at a run, as it is sent to a worker.

    Attributes:
        spec: what determines the result.
        run_id: its identity.
        folder: the run's folder, on a disk that the worker sees.
        stop_file: of the whole sweep; the run's own is `stop` in its folder.
        resources: what it is given.
        corpus: folder of the prepared corpus, None where losses are simulated.
        simulation: the law to draw the losses from, None where the run trains.
        storage: URI of the storage that holds runs and corpora where the driver's disk isn't shared; `folder`,
            `stop_file` and `corpus` are the driver's then, and of no use here.
        owner: the driver, as leases on runs in the storage name it.
    """

    spec: RunSpec
    run_id: str
    folder: str
    stop_file: str
    resources: Resources
    corpus: str | None
    simulation: Simulation | None
    storage: str | None = None
    owner: str | None = None


class Ended(Config):
    """How an attempt ended.

    `how`: `done` (there is a result), `stopped` (asked to, state saved), `preempted` (SIGTERM, state saved), `busy`
    (another process is at this run), or `failed` for `reason`, whose cause may pass or not.
    """

    how: Literal["done", "stopped", "preempted", "busy", "failed"]
    reason: str | None = None
    may_pass: bool = False


def run_attempt(task_json: str) -> str:
    """Run one attempt; takes a `Task` and returns an `Ended`, both as JSON."""
    task = Task.model_validate_json(task_json)
    try:
        with _preemption() as preempted, _within_reach(task) as (near, finished):
            folder = Path(near.folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / HEARTBEAT).touch()  # an attempt has begun; the next beat is its first step
            stop = _StopSignal(folder, Path(near.stop_file), preempted)
            done = finished or _run(near, folder, stop)
        how: Literal["done", "preempted", "stopped"]
        how = "done" if done else "preempted" if preempted.is_set() else "stopped"
        return Ended(how=how).model_dump_json()
    except FolderBusyError:
        return Ended(how="busy").model_dump_json()
    except Exception as error:  # noqa: BLE001  whatever it is, the driver decides what to make of it
        failure = judge(error)
        return Ended(how="failed", reason=failure.reason, may_pass=failure.may_pass).model_dump_json()


@contextmanager
def _within_reach(task: Task) -> Iterator[tuple[Task, bool]]:
    """The task with folders that this machine sees, and whether the run has a result already.

    Where runs lie in a storage, its folder and its corpus are fetched to this machine's disk, and what is made here is
    published meanwhile.
    """
    if task.storage is None:
        yield task, False
        return
    from isoloop.sweeps.storage.run_store import Storage
    from isoloop.sweeps.storage.sync import Mirror

    here = scratch()
    storage = Storage(task.storage)
    corpus = None
    if task.corpus is not None:
        corpus = str(storage.pull_corpus(task.spec.data_fingerprint, here / "corpora"))
    folder = here / "runs" / task.run_id
    near = task.model_copy(update={"folder": str(folder), "stop_file": str(folder / STOP), "corpus": corpus})
    with Mirror(storage, task.run_id, folder, owner=task.owner) as mirror:
        yield near, mirror.finished
    if (folder / "result.json").exists():  # all of it is published
        shutil.rmtree(folder)


def scratch() -> Path:
    """This machine's own folder for what lies in a storage, for nobody else's eyes.

    Raises:
        PermissionError: somebody else has made a folder of that name.
    """
    folder = Path(os.environ.get(SCRATCH) or Path(tempfile.gettempdir()) / f"isoloop-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"the folder {folder} must be this user's, but isn't; name another one in {SCRATCH}")
    return folder


@contextmanager
def _preemption() -> Iterator[threading.Event]:
    """Set once the process is told to end (SIGTERM), as when its machine is taken back; a step later it saves."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


class _StopSignal:
    """Whether to save and end; asked in every step, it looks at the disk at most once a second."""

    def __init__(self, folder: Path, sweep_stop: Path, preempted: threading.Event) -> None:
        self.heartbeat, self.preempted = folder / HEARTBEAT, preempted
        self.files = (folder / STOP, sweep_stop)
        self.looked, self.beaten, self.stopped = 0.0, 0.0, False

    def __call__(self) -> bool:
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            self.stopped = self.stopped or any(file.exists() for file in self.files)
        return self.stopped or self.preempted.is_set()

    def alive(self) -> None:
        """Touch the file by which the driver sees that the run gets on, at most once a second."""
        if time.monotonic() - self.beaten >= LOOK_SECONDS:
            self.beaten = time.monotonic()
            self.heartbeat.touch()


def _run(task: Task, folder: Path, stop: _StopSignal) -> bool:
    """Train or simulate; returns whether there is a result now."""
    if stop():
        return False
    if task.simulation is not None:
        from isoloop.sweeps.execution.simulated import simulate_run

        def stop_or_beat() -> bool:
            stop.alive()
            return stop()

        result = simulate_run(task.spec, task.simulation, task.run_id, folder, should_stop=stop_or_beat)
        return result is not None
    assert task.corpus is not None, "a run that trains has a corpus"
    if task.resources.processes > 1:
        _train_in_processes(task, folder)
        return (folder / "result.json").exists()
    return _train(task, folder, stop)


def _train(task: Task, folder: Path, stop: _StopSignal, execution: ExecutionConfig | None = None) -> bool:
    from isoloop.trainer.data.corpus import Corpus
    from isoloop.trainer.loop import train

    assert task.corpus is not None, "a run that trains has a corpus"
    result = train(
        task.spec,
        Corpus(Path(task.corpus)),
        folder,
        execution=execution or task.resources.execution,
        should_stop=stop,
        heartbeat=stop.alive,
    )
    return result is not None


def _train_share(config: dict[str, str]) -> None:
    """What each process of a run does in the process group that Ray Train has set up."""
    import torch

    task = Task.model_validate_json(config["task"])
    execution = task.resources.execution
    if execution.device == "cuda":
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
        execution = execution.model_copy(update={"device": str(get_device())})
    folder = Path(task.folder)
    _train(task, folder, _StopSignal(folder, Path(task.stop_file), threading.Event()), execution)


def _train_in_processes(task: Task, folder: Path) -> None:
    """Train one run in several processes through Ray Train. When one dies, all end: the run's next attempt goes on.

    Where runs lie in a storage, all processes are on this machine.

    Raises:
        Exception: what a process raised.
        ray.train.WorkerGroupError: a process died.
    """
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.util import get_node_ip_address

    resources, notes = task.resources, folder / "ray-train"
    each = {"CPU": float(resources.cpus), "GPU": resources.gpu_share}
    if task.storage is not None:  # what is published lies on this machine's disk
        each |= {f"node:{get_node_ip_address()}": 0.001}
    scaling = ScalingConfig(num_workers=resources.processes, use_gpu=resources.gpu_share > 0, resources_per_worker=each)
    try:
        TorchTrainer(
            _train_share,
            train_loop_config={"task": task.model_dump_json()},
            scaling_config=scaling,
            run_config=RunConfig(name=folder.name, storage_path=str(notes)),
        ).fit()
    except WorkerGroupError as error:
        raised = [failure for _, failure in sorted(error.worker_failures.items())]
        for failure in raised:
            if not judge(failure).may_pass:
                raise failure from error
        raise
    finally:
        shutil.rmtree(notes, ignore_errors=True)
