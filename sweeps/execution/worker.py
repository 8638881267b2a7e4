"""The worker: one attempt at a run, trained, simulated or evaluated, in a process started by the cluster.

Nothing is raised through Ray: the end of an attempt comes back as data.
"""

import errno
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from isoloop.sweeps.config.resources import Resources
from isoloop.sweeps.config.schema import Simulation
from isoloop.sweeps.messages import first_line
from isoloop.sweeps.plan.quality import QualityTask, result_digest, write_summary
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE, RunStore
from isoloop.sweeps.storage.sync import RunSync
from isoloop.trainer.config import Config, ExecutionConfig, RunSpec
from isoloop.trainer.files import FolderBusyError
from isoloop.trainer.run.branch import Branching
from isoloop.trainer.run.checkpoint import checkpoints

SCRATCH_VARIABLE = "ISOLOOP_SCRATCH"
STOP_CHECK_SECONDS = 1.0

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_PERMANENT = (
    ValueError, TypeError, LookupError, AttributeError, NameError, ArithmeticError, AssertionError, ImportError,
    SyntaxError, NotImplementedError,
)  # fmt: skip
_MEMORY_MESSAGES = ("out of memory", "outofmemory", "cannot allocate memory", "can't allocate memory")


class Task(Config):
    """One attempt at a run, as it is sent to a worker.

    Attributes:
        spec: everything that determines the result.
        run_id: the run's identity.
        folder: the run's folder, on a disk that the worker sees.
        stop_file: the file that stops the whole sweep; a file in the run's folder stops the run alone.
        resources: the resources that the run is given.
        corpus: folder of the prepared corpus, None where losses are simulated.
        simulation: the law from which losses are drawn, None where the run trains.
        storage: URI of the storage that holds runs and corpora where the driver's disk isn't shared; `folder`,
            `stop_file` and `corpus` are then paths of the driver's machine, and unused here.
        owner: the driver's id in leases on runs in the storage.
        branching: the state of another run that this one starts from, and what it saves for others.
        quality: the suites that the finished run is evaluated on; None: the run is trained.
    """

    spec: RunSpec
    run_id: str
    folder: Path
    stop_file: Path
    resources: Resources
    corpus: Path | None
    simulation: Simulation | None
    storage: str | None = None
    owner: str | None = None
    branching: Branching = Branching()
    quality: QualityTask | None = None


class AttemptEnd(Config):
    """The end of an attempt.

    `status` is `done` (there is a result), `stopped` (on request, state saved), `preempted` (by SIGTERM, state saved),
    `busy` (another process trains this run), or `failed` for `reason`, which is worth a retry or not.
    """

    status: Literal["done", "stopped", "preempted", "busy", "failed"]
    reason: str | None = None
    retryable: bool = False


def run_attempt(task_json: str, board: Any = None, name: str = "") -> str:
    """Run one attempt; takes a `Task` and returns an `AttemptEnd`, both as JSON.

    The actor `board`, if there is one, is told first that the attempt `name` has begun.
    """
    if board is not None:
        board.report.remote(name, socket.gethostname())
    try:
        with preemption() as preempted, _stage_in(Task.model_validate_json(task_json)) as (task, finished):
            task.folder.mkdir(parents=True, exist_ok=True)
            signals = Signals(task, preempted)
            if task.quality is not None:
                evaluate_task(task, task.quality, signals)
            elif not finished and not signals.should_stop():
                if task.simulation is not None:
                    _simulate(task, task.simulation, signals)
                elif task.resources.processes > 1:
                    from isoloop.sweeps.execution.process_group import train_in_processes

                    train_in_processes(task, preempted)
                else:
                    train_task(task, signals, task.resources.execution)
            is_done = finished or (task.folder / "result.json").exists()
        end = AttemptEnd(status="done" if is_done else "preempted" if preempted.is_set() else "stopped")
    except FolderBusyError:
        end = AttemptEnd(status="busy")
    except _StoppedError:
        end = AttemptEnd(status="preempted" if preempted.is_set() else "stopped")
    except Exception as error:  # noqa: BLE001  the driver decides about any failure
        end = classify_error(error)
    return end.model_dump_json()


@contextmanager
def _stage_in(task: Task) -> Iterator[tuple[Task, bool]]:
    """Yield the task with folders that this machine sees, and whether the run has a published result.

    Where runs lie in a storage, the run's folder and its corpus are fetched to this machine's disk, and what the
    attempt writes is published meanwhile.
    """
    if task.storage is None:
        yield task, False
        return
    local, store = _scratch_folder(), RunStore(task.storage)
    corpus = None
    if task.corpus is not None:
        corpus = store.pull_corpus(task.spec.data_fingerprint, local / "corpora")
    folder = local / "runs" / task.run_id
    staged = task.model_copy(update={"folder": folder, "stop_file": folder / STOP_FILE, "corpus": corpus})
    with RunSync(store, task.run_id, folder, owner=task.owner) as sync:
        if task.branching.start is not None and not sync.finished:
            staged = staged.model_copy(update={"branching": _fetch_trunk(store, task.branching, folder)})
        yield staged, sync.finished
    if (folder / "result.json").exists():  # all of it is published
        shutil.rmtree(folder)


def _fetch_trunk(store: RunStore, branching: Branching, folder: Path) -> Branching:
    """Fetch the state that a run starts from, unless it is further itself, and return what names its place here."""
    start = branching.start
    assert start is not None, "only a branch has a trunk"
    newest = max((int(path.name) for path in checkpoints(folder / "checkpoints")), default=0)
    place = folder / "trunk" / f"{start.step:08d}"
    if newest < start.step and not place.exists():  # it is made whole or not at all
        store.pull_branch(start.run_id, start.step, place)
    return branching.model_copy(update={"start": start.model_copy(update={"folder": place})})


def _scratch_folder() -> Path:
    """Return this user's folder on this machine for copies of what a storage holds.

    Raises:
        PermissionError: the folder belongs to another user.
    """
    folder = Path(os.environ.get(SCRATCH_VARIABLE) or Path(tempfile.gettempdir()) / f"isoloop-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(
            f"the folder {folder} must belong to this user, but doesn't; name another one in {SCRATCH_VARIABLE}"
        )
    return folder


@contextmanager
def preemption() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, as when the machine is taken back; the run saves at its next step."""
    preempted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield preempted
        return
    before = signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    try:
        yield preempted
    finally:
        signal.signal(signal.SIGTERM, before)


class Signals:
    """Files that carry a run's stop requests and its heartbeat, checked and touched at most once a second."""

    def __init__(self, task: Task, preempted: threading.Event) -> None:
        self.heartbeat_file, self.preempted = task.folder / HEARTBEAT_FILE, preempted
        self.stop_files = (task.folder / STOP_FILE, task.stop_file)
        self.last_check, self.last_beat, self.stop_requested = 0.0, 0.0, False

    def should_stop(self) -> bool:
        """Return whether the run should save its state and end; called in every step."""
        if time.monotonic() - self.last_check >= STOP_CHECK_SECONDS:
            self.last_check = time.monotonic()
            self.stop_requested = self.stop_requested or any(file.exists() for file in self.stop_files)
        return self.stop_requested or self.preempted.is_set()

    def heartbeat(self) -> None:
        """Touch the file that tells the driver that the run makes steps."""
        if time.monotonic() - self.last_beat >= STOP_CHECK_SECONDS:
            self.last_beat = time.monotonic()
            self.heartbeat_file.touch()


def _simulate(task: Task, simulation: Simulation, signals: Signals) -> None:
    from isoloop.sweeps.execution.simulated import simulate_run

    def should_stop() -> bool:
        signals.heartbeat()
        return signals.should_stop()

    simulate_run(task.spec, simulation, task.run_id, task.folder, branching=task.branching, should_stop=should_stop)


def train_task(task: Task, signals: Signals, execution: ExecutionConfig) -> None:
    """Train a run in its folder, or one process's part of it within a process group."""
    from isoloop.trainer.data.corpus import Corpus
    from isoloop.trainer.loop import train

    assert task.corpus is not None, "a run that trains has a corpus"
    train(
        task.spec,
        Corpus(task.corpus),
        task.folder,
        execution=execution,
        branching=task.branching,
        should_stop=signals.should_stop,
        heartbeat=signals.heartbeat,
    )


class _StoppedError(Exception):
    """Error raised where an evaluation is asked to end; what it has stored stays."""


def evaluate_task(task: Task, quality: QualityTask, signals: Signals) -> None:
    """Evaluate a finished run on suites; what is stored already isn't computed again."""
    import torch

    from isoloop.trainer.quality.suites.bundle import find_suite
    from isoloop.trainer.quality.suites.evaluation import Subject, evaluate_suite
    from isoloop.trainer.quality.trained_model import load_trained

    def watch(label: str, done: float, total: float) -> None:
        signals.heartbeat()
        if signals.should_stop():
            raise _StoppedError

    execution, result = task.resources.execution, result_digest(task.folder)
    torch.set_num_threads(execution.cpu_threads)
    trained = load_trained(task.folder, weights=quality.weights, own_classes=True)
    subject = Subject.of(
        trained.model.to(execution.device),
        trained.require_tokenizer(),
        name=quality.folder.name,
        precision=quality.precision,
    )
    watch("", 0, 1)
    for given, source in quality.suites.items():
        suite, bundle = find_suite(given, source)
        summary = evaluate_suite(
            subject, suite, bundle, quality.folder, recurrences=quality.recurrences, seeds=quality.seeds, progress=watch
        )
        write_summary(quality.folder, summary, result)


def classify_error(error: BaseException) -> AttemptEnd:
    """Return the end of an attempt that raised `error`: the reason in one line, with advice, and whether to retry.

    A temporary cause is worth a retry: a lost worker, a network, a full disk that is cleared. A permanent one is
    reported at once: a broken rule, a bug, too little memory.
    """
    message = f"{type(error).__name__}: {first_line(error)}"
    if type(error).__module__.startswith("ray."):
        return _classify_loss(error, message)
    if _is_out_of_memory(error):
        advice = (
            "the run needs more memory than it is given: set resources.micro_batch lower, "
            "resources.activation_checkpointing to true or, on a GPU, resources.gpus to a larger share"
        )
        return AttemptEnd(status="failed", reason=f"{message}; {advice}", retryable=False)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        advice = "the disk is full: make room; the run is tried again, and after its last try rerun the command"
        return AttemptEnd(status="failed", reason=f"{message}; {advice}", retryable=True)
    is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    if is_read_only or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        advice = "every worker must be able to read the corpus and write to --out"
        return AttemptEnd(status="failed", reason=f"{message}; {advice}", retryable=False)
    if isinstance(error, _PERMANENT):
        reason = first_line(error) if isinstance(error, ValueError) else message
        return AttemptEnd(status="failed", reason=reason, retryable=False)
    return AttemptEnd(status="failed", reason=message, retryable=True)


def _classify_loss(error: BaseException, message: str) -> AttemptEnd:
    """Return the end of an attempt whose process Ray has lost or ended."""
    reason = f"the worker was lost ({message})"
    if type(error).__name__ == "OutOfMemoryError":
        # When a machine's memory is nearly used up, Ray ends a task there, whoever uses the memory. The next attempt
        # may have other neighbours, so it is worth a retry.
        reason = (
            "the memory of its machine was used up, so Ray ended the run; raise resources.cpus, so that fewer runs "
            "share a machine, set resources.micro_batch lower or resources.activation_checkpointing to true, or use "
            "machines with more memory"
        )
    return AttemptEnd(status="failed", reason=reason, retryable=True)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, a GPU's, or a CPU's, which torch reports in its message alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _MEMORY_MESSAGES)
