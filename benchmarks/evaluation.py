"""Benchmark of the loss at T = 1..24: one pass over the loops, against a pass for each T."""

import numpy as np

from benchmarks.measure import Row, device, side_by_side
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.model.parcae import Parcae

RECURRENCES = range(1, 25)


def run() -> list[Row]:
    """Measure one batch of 16 sequences."""
    config = ModelConfig(width=128, heads=1, prelude_layers=2, core_layers=2, coda_layers=2, context=64)
    model = Parcae(config)
    model.initialise(0)
    model.to(device())
    windows = np.random.default_rng(0).integers(0, 256, (16, config.context + 1))
    ratio = side_by_side(
        lambda _: [evaluate(model, windows, [recurrence]) for recurrence in RECURRENCES],
        lambda _: evaluate(model, windows, RECURRENCES),
        pairs=5,
    )
    loops = f"{sum(RECURRENCES)} loops and 24 preludes against {max(RECURRENCES)} and 1; 24 codas and heads both"
    return [Row(name=f"each T apart / one pass, T = 1..24; {loops}", result=str(ratio))]
