"""Simulated sweeps with benchmark scores: how often intervals of a predicted score hold that of a new model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.fitting.results import table
from isoloop.fitting import fit_quality

LOSSES = (3.6, 2.9)
"""Least loss of the smallest and of the largest budget, nats per token."""
NEW = (3.1, 2.75, 2.5)
"""Losses of the new models: within the runs, and beyond them by a fifth and by more than half of their range."""
BUDGETS, RUNS_PER_BUDGET = 6, 4
_RUN_SCATTER = 0.05
_TASK_LOSS_NOISE = 0.01
_ITEM_SHARE = 0.5
"""Share of the variance of a latent answer that is the item's, where models answer the same items."""
_TASKS = 22
_WANTED = 0.90


@dataclass(frozen=True, kw_only=True)
class QualityWorld:
    """A truth from loss to accuracy, with the items that it is measured by.

    The accuracy is a sigmoid of a task loss that is a power of the validation loss above a floor. With `same_items`,
    all models answer the same ones. Without `two_steps` the table has no task loss, without `errors` no standard
    errors.
    """

    name: str
    chance: float = 0.25
    ceiling: float = 1.0
    steepness: float = 4.0
    middle: float = 1.0
    items: int = 1000
    runs_per_budget: int = RUNS_PER_BUDGET
    same_items: bool = False
    two_steps: bool = True
    errors: bool = True

    def columns(self, losses: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the columns of quality of models with these losses (models,)."""
        task_losses = (0.2 + 0.08 * losses**2.2) * np.exp(rng.normal(0, _TASK_LOSS_NOISE, len(losses)))
        rise = 1 / (1 + np.exp(self.steepness * (task_losses - self.middle)))
        right = self._right(self.chance + (self.ceiling - self.chance) * rise, rng)
        columns = {"task_accuracy": right, "task_chance": np.full_like(right, self.chance)}
        columns |= {"task_loss": task_losses} if self.two_steps else {}
        return columns | ({"task_accuracy_se": np.sqrt(right * (1 - right) / self.items)} if self.errors else {})

    def _right(self, accuracy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.same_items:
            return rng.binomial(self.items, accuracy) / self.items
        item = np.sqrt(_ITEM_SHARE) * rng.standard_normal(self.items)
        latent = item + np.sqrt(1 - _ITEM_SHARE) * rng.standard_normal((len(accuracy), self.items))
        return np.asarray((latent < stats.norm.ppf(accuracy)[:, None]).mean(axis=1))


@dataclass(frozen=True, kw_only=True)
class CoreWorld:
    """A mean of 22 centred accuracies whose sigmoids differ, so that it is no sigmoid itself."""

    name: str
    runs_per_budget: int = RUNS_PER_BUDGET

    def columns(self, losses: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return Core in points, and its error, of models with these losses (models,)."""
        tasks = np.random.default_rng(22)  # the same tasks in every sweep
        middle, steepness = tasks.uniform(1.2, 3.4, _TASKS), tasks.uniform(1.5, 6.0, _TASKS)
        chance, items = tasks.choice([0.0, 0.25, 0.5], _TASKS), tasks.choice([200, 1000, 2000, 10_000], _TASKS)
        accuracy = chance + (1 - chance) / (1 + np.exp(steepness * (losses[:, None] - middle)))
        right = rng.binomial(items, accuracy) / items
        variance = (right * (1 - right) / items / (1 - chance) ** 2).sum(axis=1)
        centred = (right - chance) / (1 - chance)
        return {"core": 100 * centred.mean(axis=1), "core_se": 100 * np.sqrt(variance) / _TASKS}


WORLDS: tuple[QualityWorld | CoreWorld, ...] = (
    QualityWorld(name="task, ceiling 1"),
    QualityWorld(name="task, ceiling .85", ceiling=0.85, steepness=5.0, middle=1.05),
    QualityWorld(name="steep task, ceiling .6, 2,000 items", ceiling=0.6, steepness=12.0, middle=1.2, items=2000),
    QualityWorld(name="free answers, ceiling .7, 5,000 items", chance=0.0, ceiling=0.7, steepness=6.0, items=5000),
    QualityWorld(name="task, 200 items", items=200),
    QualityWorld(name="task, 2 runs per budget", runs_per_budget=2),
    QualityWorld(name="task, all models answer the same items", same_items=True),
    QualityWorld(name="task, no task loss", two_steps=False),
    QualityWorld(name="task, no standard errors", errors=False),
    CoreWorld(name="mean of 22 tasks"),
    CoreWorld(name="mean of 22 tasks, 2 runs per budget", runs_per_budget=2),
)


def run(*, sweeps: int, draws: int) -> str:
    """Return the section of RESULTS.md."""
    began = time.process_time()
    rows = [_row(world, sweeps, draws) for world in WORLDS]
    guesses = [(name, *_guessed(change, sweeps)) for name, change in _GUESSES.items()]
    seconds = time.process_time() - began
    return (
        f"In how many percent of {sweeps} simulated sweeps ({BUDGETS} budgets of {RUNS_PER_BUDGET} runs unless said, "
        f"least losses {LOSSES[0]:g} to {LOSSES[1]:g}) the 95% interval of `QualityFit.predict` holds the measured "
        f"score of a new model of loss {NEW[0]:g}, {NEW[1]:g} and {NEW[2]:g}, from {draws} draws per law, at its "
        "measured loss; in brackets the mean error, in percent of the score's range. Bold: under 90%. "
        f"{seconds / 60:.1f} CPU-minutes.\n\n"
        f"{table(('world', 'fitted', *(f'loss {loss:g}' for loss in NEW), 'held out, inside'), rows)}\n"
        "Models that guess (chance .25, 24 runs, 230 items): in how many percent of sweeps the score is refused.\n\n"
        f"{table(('table', 'at chance', 'no trend', 'fitted all the same'), guesses)}"
    )


def simulated(world: QualityWorld | CoreWorld, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of one sweep, and the new models with their scores."""
    least = np.repeat(np.linspace(*LOSSES, BUDGETS), world.runs_per_budget)
    losses = np.concatenate([least + np.abs(rng.normal(0, _RUN_SCATTER, len(least))), NEW])
    frame = pd.DataFrame({"loss": losses} | world.columns(losses, rng))
    runs = len(least)
    budgets = np.repeat(10.0 ** np.arange(18, 18 + BUDGETS), world.runs_per_budget)
    return frame[:runs].assign(budget=budgets), frame[runs:]


def _row(world: QualityWorld | CoreWorld, sweeps: int, draws: int) -> tuple[str, ...]:
    inside: list[list[bool]] = []
    errors: list[list[float]] = []
    held_out: list[bool] = []
    for number in range(sweeps):
        runs, new = simulated(world, np.random.default_rng(number))
        fit = fit_quality(runs, draws=draws, seed=number)
        if not fit.fitted:
            continue
        (score,) = fit.fitted
        predictions = [score.predict(float(loss)) for loss in new["loss"]]
        measured = new[score.column].tolist()
        pairs = list(zip(predictions, measured, strict=True))
        inside.append([each.interval[0] <= value <= each.interval[1] for each, value in pairs])
        errors.append([100 * (each.value - value) / score.perfect for each, value in pairs])
        held_out += [row.inside for row in score.held_out]
    cells = [
        f"{_percent(share)} ({error:+.1f})" for share, error in zip(np.mean(inside, 0), np.mean(errors, 0), strict=True)
    ]
    return world.name, f"{100 * len(inside) / sweeps:.0f}", *cells, _percent(float(np.mean(held_out)))


def _percent(share: float) -> str:
    text = f"{100 * share:.1f}"
    return text if share >= _WANTED else f"**{text}**"


_GUESSES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "with standard errors": lambda frame: frame,
    "without": lambda frame: frame.drop(columns="task_accuracy_se"),
}


def _guessed(change: Callable[[pd.DataFrame], pd.DataFrame], sweeps: int) -> tuple[str, ...]:
    world = QualityWorld(name="guesses", ceiling=0.25, items=230)
    statuses = []
    for number in range(sweeps):
        runs, _ = simulated(world, np.random.default_rng(number))
        (score,) = fit_quality(change(runs), draws=20, hold_out=False).scores
        statuses.append(score.status)
    return tuple(f"{100 * statuses.count(status) / sweeps:.1f}" for status in ("at chance", "no trend", "fitted"))
