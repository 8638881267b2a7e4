"""CPU time of a call, over several repetitions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CpuTime:
    """CPU seconds of one call: median, least and most of `repeats`."""

    median: float
    least: float
    most: float
    repeats: int

    def shown(self, factor: float = 1.0) -> str:
        """Return the time as text, multiplied by `factor`."""
        median, least, most = (f"{factor * seconds:.3g}" for seconds in (self.median, self.least, self.most))
        return f"{median} ({least} to {most})" if self.repeats > 1 else median


def cpu_time(way: Callable[[], object], repeats: int, warm_up: int = 1) -> CpuTime:
    """Time `way` in CPU seconds of this process, after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        way()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        way()
        seconds.append(time.process_time() - began)
    return CpuTime(median=statistics.median(seconds), least=min(seconds), most=max(seconds), repeats=repeats)
