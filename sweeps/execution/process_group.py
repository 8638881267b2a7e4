"""One run in several processes, which Ray starts in the placement group that was reserved for the run.

Ray Train isn't used: it reserves a placement group of its own, so a run that has one already could wait for ever.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from threading import Event
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from isoloop.sweeps.execution.worker import STOP_CHECK_SECONDS, Signals, Task, classify_error, preemption, train_task
from isoloop.sweeps.storage.run_store import STOP_FILE

CONNECT_TIME = timedelta(minutes=15)  # for all processes to start and find each other
BLAME_SECONDS = 5.0  # between the first failure and the one that caused it: a process may notice a lost peer earlier


def train_in_processes(task: Task, preempted: Event) -> None:
    """Train one run in the bundles of the placement group that this task is in, a process in each.

    When one process fails or dies, the others are ended, and the run's next attempt resumes. `preempted` is set here
    where one of the processes was told to end.

    Raises:
        Exception: raised by a process; one that isn't worth a retry rather than those that it caused in others.
        ray.exceptions.RayError: a process died.
    """
    # Start the processes, which meet at a store on this machine.
    group, size = ray.util.get_current_placement_group(), task.resources.processes
    host, port, _store = _open_store()
    remote = ray.remote(max_calls=1, max_retries=0)(_train_rank)
    processes = [
        remote.options(
            name=f"isoloop {task.run_id}",
            num_cpus=task.resources.cpus,
            num_gpus=task.resources.gpu_share,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank),
        ).remote(task.model_dump_json(), rank, host, port)
        for rank in range(size)
    ]
    # Wait for all of them, or for the failure that decides.
    failures: list[BaseException] = []
    waiting, deadline = processes, float("inf")
    try:
        with _forwarded(preempted, task) as forward:
            while waiting and time.monotonic() < deadline:
                forward()
                done, waiting = ray.wait(waiting, timeout=STOP_CHECK_SECONDS)
                for process in done:
                    try:
                        if ray.get(process):
                            preempted.set()
                    except ray.exceptions.RayError as error:
                        failures.append(getattr(error, "cause", None) or error)
                        deadline = min(deadline, time.monotonic() + BLAME_SECONDS)
                permanent = [failure for failure in failures if not classify_error(failure).retryable]
                if permanent:
                    raise permanent[0]
        if failures:
            raise failures[0]
    finally:
        for process in waiting:
            ray.cancel(process, force=True)


@contextlib.contextmanager
def _forwarded(preempted: Event, task: Task) -> Iterator[Any]:
    """Yield a function that passes this task's SIGTERM on to the processes, as a stop request."""
    stop_file = task.folder / STOP_FILE
    try:
        yield lambda: stop_file.touch() if preempted.is_set() else None
    finally:
        if preempted.is_set():
            stop_file.unlink(missing_ok=True)


def _open_store() -> tuple[str, int, TCPStore]:
    """Return a store and its address; it listens where this Ray does, so a local one isn't open to others."""
    host = ray.util.get_node_ip_address()
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=CONNECT_TIME, master_listen_fd=listener.detach()
    )
    return host, port, store


def _train_rank(task_json: str, rank: int, host: str, port: int) -> bool:
    """Train in one of a run's processes, and return whether it was told to end by SIGTERM."""
    task = Task.model_validate_json(task_json)
    execution, size = task.resources.execution, task.resources.processes
    with preemption() as preempted:
        store = TCPStore(host, port, is_master=False, timeout=CONNECT_TIME)
        if execution.device == "cuda":
            device = share_devices(store, rank, size)
            torch.cuda.set_device(device)
            execution = execution.model_copy(update={"device": device})
        backend = "nccl" if task.resources.gpu_share else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        train_task(task, Signals(task, preempted), execution)
        dist.destroy_process_group()
    return preempted.is_set()


def share_devices(store: Store, rank: int, size: int) -> str:
    """Let this process see the GPUs of all that share its machine, and return its own.

    NCCL copies directly between two GPUs only if both processes see both. CUDA must not have been used before.
    """
    own, machine = os.environ["CUDA_VISIBLE_DEVICES"], _machine_id()
    store.set(f"GPU of {rank}", f"{machine} {own}")
    places = [store.get(f"GPU of {other}").decode().split() for other in range(size)]
    shared = sorted(gpu for place, gpu in places if place == machine)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(shared)
    return f"cuda:{shared.index(own)}"


def _machine_id() -> str:
    return ray.get_runtime_context().get_node_id()
