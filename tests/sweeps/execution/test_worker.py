"""The end of an attempt that raised, and the GPUs that processes of one machine share."""

import os

import pytest
import ray.exceptions
import torch
from torch.distributed import HashStore

from isoloop.sweeps.execution import process_group
from isoloop.sweeps.execution.worker import classify_error


def test_ray_ends_a_run_whose_machine_has_no_memory_left():
    """It may have been a neighbour, so the run is tried again, and the advice is about machines."""
    end = classify_error(ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert end.retryable
    assert end.reason.startswith("the memory of its machine was used up, so Ray ended the run; raise resources.cpus")
    assert "resources.gpus" not in end.reason


def test_a_gpu_without_memory_left_is_not_tried_again():
    end = classify_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not end.retryable
    assert "resources.gpus to a larger share" in end.reason


@pytest.mark.parametrize("error", [ray.exceptions.WorkerCrashedError(), ray.exceptions.NodeDiedError("gone")])
def test_a_lost_process_is_worth_another_attempt(error):
    end = classify_error(error)
    assert end.retryable
    assert end.reason.startswith(f"the worker was lost ({type(error).__name__}: ")


def test_processes_see_the_gpus_of_their_machine(monkeypatch):
    """Three processes on machine a with GPUs 1, 10 and 2, and one on b with GPU 1."""
    machines, store = ["a", "a", "b", "a"], HashStore()
    own = ["1", "10", "1", "2"]
    for rank in (3, 2, 1, 0):  # the others have said it already
        store.set(f"GPU of {rank}", f"{machines[rank]} {own[rank]}")
    seen = []
    for rank, machine in enumerate(machines):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own[rank])
        monkeypatch.setattr(process_group, "_machine_id", lambda machine=machine: machine)
        device = process_group.share_devices(store, rank, 4)
        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        assert visible[int(device.removeprefix("cuda:"))] == own[rank]
        seen.append(sorted(visible))
    assert seen == [["1", "10", "2"], ["1", "10", "2"], ["1"], ["1", "10", "2"]]
