"""Ratios of time and peak memory of two functions, measured side by side in one process."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results import processor

_MMAP_THRESHOLD = -3  # of glibc's mallopt


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the results: the comparison, its outcome, and its target, if there is one."""

    name: str
    result: str
    wanted: str = ""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Time of `slow` over that of `fast`: median, minimum and maximum over the pairs."""

    median: float
    minimum: float
    maximum: float
    slow_seconds: float
    fast_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.median:.2f}x ({self.minimum:.2f} to {self.maximum:.2f}; {1e3 * self.slow_seconds:.0f} ms against "
            f"{1e3 * self.fast_seconds:.0f} ms)"
        )


def side_by_side(
    slow: Callable[[int], object],
    fast: Callable[[int], object],
    *,
    pairs: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time both functions in turns; each call gets the number of its pair, so that both do the same work.

    On one thread of a CPU that others use, too, a `clock` of the thread's own time is less disturbed.
    """
    times: list[tuple[float, float]] = []
    for pair in range(-warm_up, pairs):
        seconds = seconds_of(slow, max(pair, 0), clock), seconds_of(fast, max(pair, 0), clock)
        if pair >= 0:
            times.append(seconds)
    ratios = [a / b for a, b in times]
    return Ratio(
        median=statistics.median(ratios),
        minimum=min(ratios),
        maximum=max(ratios),
        slow_seconds=statistics.median(a for a, _ in times),
        fast_seconds=statistics.median(b for _, b in times),
    )


def seconds_of(function: Callable[[int], object], number: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the time of one call, by default on the wall, including the GPU's work."""
    _wait()
    start = clock()
    function(number)
    _wait()
    return clock() - start


def peak_bytes(function: Callable[[], object]) -> int:
    """Measure the additional peak memory of a call: of the GPU if there is one, else resident (Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**16)  # every tensor gets pages of its own, which are freed with it
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    function()
    peak = _status("VmHWM")
    libc.mallopt(_MMAP_THRESHOLD, 2**25)
    return peak - before


def machine() -> str:
    """Describe the machine of the measurements."""
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"CPU, {processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def device() -> str:
    """Return the device to measure."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
