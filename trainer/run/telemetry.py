"""Telemetry of a run: speed, utilisation, memory, processor."""

import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from isoloop.trainer.accounting import LoopCost
from isoloop.trainer.config import ExecutionConfig, RunSpec

_RATE_TRIALS = 3
_RATE_MATRIX_SIZE = {"cuda": 8192, "cpu": 768}


@cache
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of a large square matrix product: the best of three, once per process."""
    size = _RATE_MATRIX_SIZE.get(torch.device(device).type, 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(1).median for _ in range(_RATE_TRIALS))


class SpeedMeter:
    """Training speed since the last reading, over all processes of the run."""

    def __init__(self, spec: RunSpec, cost: LoopCost, execution: ExecutionConfig, processes: int) -> None:
        self.context, self.cost, self.execution = spec.model.context, cost, execution
        dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
        self.peak = processes * (execution.peak_flops or matrix_rate(execution.device, dtype))
        self._restart()

    def _restart(self) -> None:
        self.start = time.monotonic()
        self.sequences = self.forward_loops = self.backward_loops = 0.0

    def count(self, sequences: int, forward_loops: float, backward_loops: float) -> None:
        """Count one step: its sequences and the loops they ran, summed over the batch."""
        self.sequences += sequences
        self.forward_loops += forward_loops
        self.backward_loops += backward_loops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time within the `with` block, which isn't training."""
        pause = time.monotonic()
        yield
        self.start += time.monotonic() - pause

    def read(self) -> dict[str, float]:
        """Return tokens per second, the model's FLOPs per second over the peak's, and peak memory in bytes."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        tokens = self.sequences * self.context
        per_token = self.cost.flops_per_token(self.forward_loops / self.sequences, self.backward_loops / self.sequences)
        self._restart()
        return {
            "tokens_per_second": tokens / seconds,
            "model_flop_utilisation": tokens * per_token / seconds / self.peak,
            "peak_memory": peak_memory(self.execution.device),
        }


class SystemMeter:
    """Load of the machine by the run's first process, under MLflow's names of system metrics."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self.execution = execution
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return processor use since the last reading, resident memory, and on a GPU its memory in use.

        Processor use of 100% means all threads of the run.
        """
        wall, cpu = time.monotonic(), time.process_time()
        utilisation = (cpu - self.cpu) / max(wall - self.wall, 1e-9) / self.execution.cpu_threads
        self.wall, self.cpu = wall, cpu
        metrics = {
            "system/cpu_utilization_percentage": 100 * utilisation,
            "system/system_memory_usage_megabytes": resident_memory() / 1e6,
        }
        if torch.device(self.execution.device).type == "cuda":
            free, total = torch.cuda.mem_get_info(self.execution.device)
            metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
            metrics["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        return metrics


def free_memory(device: str) -> float:
    """Return the bytes of memory that are free, of the GPU if `device` is one, else of RAM; infinite if unknown.

    Of RAM it is what the machine has, or what a container may still take.
    """
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    facts = Path("/proc/meminfo")
    for line in facts.read_text(encoding="utf-8").splitlines() if facts.exists() else ():
        if line.startswith("MemAvailable:"):
            return min(1024.0 * int(line.split()[1]), _container_memory())
    return _container_memory()


def _container_memory(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes below the limit of a container (cgroup v2); infinite if there is none.

    Files that are only kept in memory don't count: they give way.
    """
    if not (group / "memory.max").is_file():
        return math.inf
    limit, used = ((group / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
    if limit == "max":
        return math.inf
    counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    return float(int(limit) - int(used) + int(counts.get("inactive_file", 0)))


def resident_memory() -> float:
    """Return the bytes of this process in RAM, or their peak where there is no /proc."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return float(int(pages.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return peak_memory("cpu")


def peak_memory(device: str) -> float:
    """Return the peak bytes of this process: allocated on the GPU if `device` is one, else resident in RAM."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
