"""Two ways side by side in one process: time and peak memory, as ratios."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_MMAP_THRESHOLD = -3  # of glibc's mallopt


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the results: what was compared, what came out, and what was wanted of it (or nothing)."""

    name: str
    result: str
    wanted: str = ""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times longer `slow` takes than `fast`: median, and the least and the most of the pairs."""

    median: float
    least: float
    most: float
    slow_seconds: float
    fast_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.median:.2f}x ({self.least:.2f} to {self.most:.2f}; {1e3 * self.slow_seconds:.0f} ms against "
            f"{1e3 * self.fast_seconds:.0f} ms)"
        )


def side_by_side(
    slow: Callable[[int], object], fast: Callable[[int], object], *, pairs: int, warm_up: int = 1
) -> Ratio:
    """Time both in turns, each call given the number of its pair, so that both do the same work."""
    times: list[tuple[float, float]] = []
    for pair in range(-warm_up, pairs):
        measured = tuple(seconds_of(way, max(pair, 0)) for way in (slow, fast))
        if pair >= 0:
            times.append((measured[0], measured[1]))
    ratios = [a / b for a, b in times]
    return Ratio(
        median=statistics.median(ratios),
        least=min(ratios),
        most=max(ratios),
        slow_seconds=statistics.median(a for a, _ in times),
        fast_seconds=statistics.median(b for _, b in times),
    )


def seconds_of(way: Callable[[int], object], number: int) -> float:
    """Wall time of one call, GPU included."""
    _wait()
    began = time.perf_counter()
    way(number)
    _wait()
    return time.perf_counter() - began


def peak_bytes(way: Callable[[], object]) -> int:
    """Most memory that `way` takes beyond what was there before: of the GPU if there is one, else resident (Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**16)  # every tensor in pages of its own, given back when it goes
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    way()
    most = _status("VmHWM")
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    return most - before


def machine() -> str:
    """What the numbers were made on."""
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = model[0].partition(":")[2].strip() if model else platform.processor()
        where = f"CPU, {os.cpu_count()} cores ({name}), {torch.get_num_threads()} threads"
    return f"{where}; torch {torch.__version__}, Python {platform.python_version()}"


def device() -> str:
    """Where to measure."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
