"""Simulated sweeps with benchmark scores of a known truth, for the tests of quality."""

import numpy as np
import pandas as pd

CHANCE, CEILING, STEEPNESS, MIDDLE = 0.25, 0.85, 5.0, 1.05
CORE_STEEPNESS, CORE_MIDDLE = 1.6, 1.85
BUDGETS = 6


def task_loss(loss):
    return 0.2 + 0.08 * np.asarray(loss) ** 2.2


def accuracy(task_loss, ceiling=CEILING, chance=CHANCE):
    return chance + (ceiling - chance) / (1 + np.exp(STEEPNESS * (task_loss - MIDDLE)))


def core(loss):
    return 100 / (1 + np.exp(CORE_STEEPNESS * (np.asarray(loss) - CORE_MIDDLE)))


def scored(table, rng, items=1000, core_error=0.5):
    """The table with a task's measured accuracies, losses and errors, and with Core."""
    losses = table["loss"].to_numpy()
    measured = task_loss(losses) * np.exp(rng.normal(0, 0.01, len(losses)))
    right = rng.binomial(items, accuracy(measured)) / items
    return table.assign(
        task_loss=measured,
        task_accuracy=right,
        task_accuracy_se=np.sqrt(right * (1 - right) / items),
        task_chance=CHANCE,
        core=core(losses) + rng.normal(0, core_error, len(losses)),
        core_se=core_error,
        core_baselines="v1",
    )


def sweep(rng, largest_loss=3.6, smallest_loss=2.9, runs_per_budget=4, **kind):
    """A table of 6 budgets, whose runs lie a little above the least loss of their budget."""
    least = np.repeat(np.linspace(largest_loss, smallest_loss, BUDGETS), runs_per_budget)
    table = pd.DataFrame(
        {
            "run_id": [f"run {i}" for i in range(len(least))],
            "loss": least + np.abs(rng.normal(0, 0.05, len(least))),
            "budget": np.repeat(10.0 ** np.arange(18, 18 + BUDGETS), runs_per_budget),
        }
    )
    return scored(table, rng, **kind)
