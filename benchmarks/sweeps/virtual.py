"""Makespans in virtual time of the scheduler's orders and of grid order, over the lower bound."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from statistics import mean

from benchmarks.results import table
from benchmarks.sweeps.mixes import CLUSTERS, MIXES
from isoloop.sweeps.plan.packing import ORDERS, Job, Node, best_order, lower_bound, makespan

_MANY = 5_000
WANTED = 1.10


def run(*, seeds: int) -> str:
    """Return the section of RESULTS.md."""
    parts, worst = [], 0.0
    for cluster, nodes in CLUSTERS.items():
        rows = []
        for name, mix in MIXES.items():
            count = seeds if len(mix(random.Random(0))) < _MANY else max(1, seeds // 10)
            found = [_ratios(mix(random.Random(seed)), nodes) for seed in range(count)]
            worst = max([worst, *(ratios[-1] for ratios in found)])
            rows.append([name, count, *(_shown(column) for column in zip(*found, strict=True))])
        header = ["runs", "seeds", "grid order", *ORDERS, "chosen"]
        parts.append(f"### {cluster}\n\n{table(header, rows)}")
    head = (
        "Makespan over the lower bound (total work over GPUs, or the longest run), the mean of the seeds and the "
        "worst. Each run starts as soon as it fits; what doesn't fit is passed over. `chosen` is what `best_order` "
        f"takes. Wanted of it: at most {WANTED:.2f} where there are many runs for each GPU. Worst: {worst:.3f}."
    )
    return "\n".join([f"{head}\n", *parts])


def _ratios(jobs: Sequence[Job], nodes: Sequence[Node]) -> list[float]:
    """Return makespans over the lower bound: of grid order, of each order, of the chosen one."""
    bound, number = lower_bound(jobs, nodes), itertools.count()
    spans = [makespan(jobs, nodes, lambda _: (float(next(number)),))]
    spans += [makespan(jobs, nodes, order) for order in ORDERS.values()]
    return [span / bound for span in [*spans, best_order(jobs, nodes)[1]]]


def _shown(ratios: Sequence[float]) -> str:
    return f"{mean(ratios):.3f} ({max(ratios):.3f})"
