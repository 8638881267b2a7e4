"""Tuning with runs that diverge: reported to Optuna as failed trials, or as a loss above all others.

Random proposals are the baseline. The losses are synthetic: a parabola in the logarithms of two learning rates, tilted,
whose minimum and edge, beyond which runs diverge, are drawn for each study, and small effects of decay and batch.
"""

from __future__ import annotations

import hashlib
import math
from statistics import mean, median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from benchmarks.results import table

METHODS = {
    "random": "random proposals",
    "failed": "TPE, diverged runs reported as failed",
    "beyond": "TPE, diverged runs reported as a loss above all others (isoloop)",
}
TRIALS = (16, 24, 48)
BEYOND = 20.0
DECAYS, BATCHES = (0.0, 0.1, 0.2, 0.4), (2, 4, 8)
SPACE = {
    "learning_rate": FloatDistribution(1e-3, 0.064, log=True),
    "muon_learning_rate": FloatDistribution(1e-3, 0.064, log=True),
    "decay": CategoricalDistribution(DECAYS),
    "batch": CategoricalDistribution(BATCHES),
}


def run(*, studies: int) -> str:
    """Return the section of RESULTS.md."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    for trials in TRIALS:
        for method, label in METHODS.items():
            ended = [_study(method, seed, trials) for seed in range(studies)]
            above = [best for best, _ in ended]
            diverged = mean(count for _, count in ended)
            rows.append([trials, label, f"{mean(above):.4f}", f"{median(above):.4f}", f"{diverged:.1f}"])
    head = ["trials", "method", "best loss over the rates' minimum, mean of the studies", "median", "diverged runs"]
    return f"{studies} studies each, one trial at a time, losses in nats.\n\n{table(head, rows)}"


def _study(method: str, seed: int, trials: int) -> tuple[float, int]:
    """Return the best loss of a study, and the number of diverged runs."""
    loss_of = _problem(seed)
    study = optuna.create_study()
    losses = []
    for number in range(trials):
        own = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "little")
        startup = min(10, max(3, trials // 3))
        study.sampler = (
            optuna.samplers.RandomSampler(seed=own)
            if method == "random"
            else optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=True, seed=own)
        )
        trial = study.ask(fixed_distributions=SPACE)
        loss = loss_of(trial.params)
        if loss is None and method == "failed":
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, BEYOND if loss is None else loss)
        losses.append(loss)
    finished = [loss for loss in losses if loss is not None]
    return min(finished, default=1.0), losses.count(None)


def _problem(seed: int):
    rng = np.random.default_rng(seed)
    rate, muon_rate = 10 ** rng.uniform(-2.5, -1.5, 2)
    of_decay, of_batch = rng.uniform(-1, 1, 2)
    edge = rng.uniform(1, 3)

    def loss_of(values: dict[str, Any]) -> float | None:
        x, y = math.log2(values["learning_rate"] / rate), math.log2(values["muon_learning_rate"] / muon_rate)
        if x + y > edge:
            return None
        small = 0.02 * DECAYS.index(values["decay"]) * of_decay
        small += 0.05 * abs(math.log2(values["batch"] / 4) - of_batch)
        return 0.05 * (x * x + y * y + 0.8 * x * y) + small

    return loss_of
