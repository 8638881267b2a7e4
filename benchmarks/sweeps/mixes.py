"""Mixes of runs to be scheduled: widths from an eighth of a GPU to eight, durations in seconds. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from isoloop.sweeps.plan.packing import Job, Needs, Node

WIDTHS = {
    **{share: Needs(cpus=1, gpus=share) for share in (0.125, 0.25, 0.5, 1.0)},
    **{float(gpus): Needs(cpus=1, gpus=1.0, processes=gpus) for gpus in (2, 4, 8)},
}
"""Resources of a run by its GPUs: above one GPU, a process for each."""
SPREAD = 20.0
"""Ratio of the longest duration to the shortest."""
CLUSTERS = {
    "8 nodes of 8 GPUs": [Node(f"node {i}", 96, [1.0] * 8) for i in range(8)],
    "one node of 8 GPUs": [Node("node", 96, [1.0] * 8)],
}
Mix = Callable[[random.Random], list[Job]]


def mixed(
    rng: random.Random,
    runs: int,
    widths: dict[float, float] | None = None,
    *,
    spread: float = SPREAD,
    longer: float = 0.0,
) -> list[Job]:
    """Return runs with log-uniform durations, and widths drawn with these weights (by default equal ones).

    A duration is multiplied by its width to the power `longer`.
    """
    weights = widths or dict.fromkeys(WIDTHS, 1.0)
    drawn = rng.choices(list(weights), list(weights.values()), k=runs)
    return [Job(math.exp(rng.uniform(0, math.log(spread))) * width**longer, WIDTHS[width]) for width in drawn]


MIXES: dict[str, Mix] = {
    "all widths, durations 1:20": lambda rng: mixed(rng, 500),
    "the same, 100 runs": lambda rng: mixed(rng, 100),
    "the same, 10,000 runs": lambda rng: mixed(rng, 10_000),
    "mostly small": lambda rng: mixed(rng, 500, {0.125: 4, 0.25: 4, 0.5: 4, 1: 4, 2: 2, 4: 1, 8: 1}),
    "wider takes longer": lambda rng: mixed(rng, 500, longer=0.5),
    "wider takes less": lambda rng: mixed(rng, 500, longer=-0.5),
    "all alike, 1 GPU": lambda rng: [Job(10.0, WIDTHS[1.0])] * 512,
    "1 GPU each": lambda rng: mixed(rng, 500, {1: 1}),
    "10 of 8 GPUs among 490 of 1": lambda rng: mixed(rng, 490, {1: 1}) + mixed(rng, 10, {8: 1}),
    "6 long ones of 8 GPUs among 490 of 1": lambda rng: mixed(rng, 490, {1: 1}) + [Job(SPREAD, WIDTHS[8.0])] * 6,
    "mostly 8 GPUs": lambda rng: mixed(rng, 200, {8: 4, 4: 1, 1: 1}),
    "8 GPUs and 1/8": lambda rng: mixed(rng, 100, {8: 1}) + mixed(rng, 400, {0.125: 1}),
    "fractions only": lambda rng: mixed(rng, 2000, {0.125: 1, 0.25: 1, 0.5: 1}),
    "fractions and whole GPUs": lambda rng: mixed(rng, 1000, {0.125: 1, 0.25: 1, 0.5: 1, 1: 1}),
    "heavy tail (Pareto, 1.1)": lambda rng: [
        Job(rng.paretovariate(1.1), WIDTHS[rng.choice([0.25, 0.5, 1.0, 2.0, 4.0])]) for _ in range(500)
    ],
}
