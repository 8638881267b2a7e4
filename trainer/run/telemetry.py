"""What a run tells of itself while it trains: speed, utilisation, memory, norms."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from isoloop.trainer.accounting import LoopCost
from isoloop.trainer.config import ExecutionConfig, RunSpec

_TRIALS = 5
_SIZE = {"cuda": 8192, "cpu": 768}


@cache
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Measured FLOPs per second of a large square matrix product: the best of five, once per process."""
    kind = torch.device(device).type
    size = _SIZE.get(kind, 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(_TRIALS + 1):  # the first one warms up
        _wait_for(device)
        began = time.perf_counter()
        a @ a
        _wait_for(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


class SpeedMeter:
    """Speed since the last reading, over all processes of the run."""

    def __init__(self, spec: RunSpec, cost: LoopCost, execution: ExecutionConfig, processes: int) -> None:
        self.context, self.cost, self.execution = spec.model.context, cost, execution
        self.processes = processes
        dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
        self.peak = processes * (execution.peak_flops or matrix_rate(execution.device, dtype))
        self._restart()

    def _restart(self) -> None:
        self.began = time.monotonic()
        self.sequences = self.forward_loops = self.backward_loops = 0.0

    def count(self, sequences: int, forward_loops: float, backward_loops: float) -> None:
        """Add one step: its sequences and the loops they ran, summed over the batch."""
        self.sequences += sequences
        self.forward_loops += forward_loops
        self.backward_loops += backward_loops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that passes within the `with` block: it isn't training."""
        stopped = time.monotonic()
        yield
        self.began += time.monotonic() - stopped

    def read(self) -> dict[str, float]:
        """Tokens per second, the model's FLOPs per second over the peak's, and peak memory in bytes."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        tokens = self.sequences * self.context
        per_token = self.cost.flops_per_token(self.forward_loops / self.sequences, self.backward_loops / self.sequences)
        self._restart()
        return {
            "tokens_per_second": tokens / seconds,
            "model_flop_utilisation": tokens * per_token / seconds / self.peak,
            "peak_memory": peak_memory(self.execution.device),
        }


class SystemMeter:
    """What the run's first process asks of its machine, under the names that MLflow has for its own system metrics."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self.execution = execution
        self.wall, self.busy = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Processor since the last reading, resident memory, memory in use on the GPU if it runs on one.

        Of the processor, 100% is all the threads that the run is given.
        """
        wall, busy = time.monotonic(), time.process_time()
        share = (busy - self.busy) / max(wall - self.wall, 1e-9) / self.execution.cpu_threads
        self.wall, self.busy = wall, busy
        told = {
            "system/cpu_utilization_percentage": 100 * share,
            "system/system_memory_usage_megabytes": resident_memory() / 1e6,
        }
        if torch.device(self.execution.device).type == "cuda":
            free, total = torch.cuda.mem_get_info(self.execution.device)
            told["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
            told["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        return told


def resident_memory() -> float:
    """Bytes of this process that are in RAM; where there is no /proc, the most that ever were."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return float(int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return peak_memory("cpu")


def peak_memory(device: str) -> float:
    """Most bytes that this process has held: on the GPU where `device` is one, else resident in RAM."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _wait_for(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
