"""Losses that rise with the loops T run at test time (overthinking): detection, and the T of the least loss."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

from isoloop.fitting.estimation.bootstrap import noise_scale
from isoloop.fitting.estimation.objective import HUBER
from isoloop.fitting.estimation.point_estimate import point_estimate
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.test_time import JointOverthinkingLaw, OverthinkingLaw

RISES = "loss rises with T"
"""Start of the reason that a law has for being unable to follow rising losses."""
_NOISES = 3.0
"""Rise, in noises of one evaluation, from which a model counts where all models together rise."""
_SMALLEST_RISE = 1e-3
"""Relative rise below which none counts."""
_MODELS_FOR_NOISE = 1000
"""Models from which the noise of an evaluation is taken; of more, some that are spread evenly over the table."""
_FALSE_ALARMS = 0.005
"""Chance, for each test, that losses of a table which don't rise count as rising."""
_FALSE_ALARMS_TOGETHER = 1e-4
_USUAL_NOISE = 0.02
"""Relative noise of one evaluation that is assumed where the losses don't tell it; real ones are smaller."""
_KNOWN_DOF = 10
"""Degrees of freedom from which the noise that the losses tell is the only one."""


@dataclass(frozen=True, kw_only=True)
class LeastLoss:
    """The measured T at which one model that overthinks has its least loss, between the measured T beside it.

    `cost` is how far the loss at the largest T, `largest`, lies above it, in nats per token.
    """

    run_id: str
    mean_recurrence: float | None
    recurrence: float
    between: tuple[float, float]
    loss: float
    largest: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class LossRise:
    """Losses that rise with T: the least loss of each model where they do, out of `models` with several T.

    `noise` is the relative standard deviation of one evaluation, None if the losses don't tell it.
    """

    least: tuple[LeastLoss, ...]
    models: int
    noise: float | None

    @property
    def runs(self) -> tuple[str, ...]:
        """Run ids of the models whose losses rise."""
        return tuple(model.run_id for model in self.least)

    @property
    def turn(self) -> float:
        """The median T of the least loss."""
        return _lower_median([model.recurrence for model in self.least])

    @property
    def turn_ratio(self) -> float | None:
        """The median T / mu of the least loss; None if mu isn't known."""
        ratios = [model.recurrence / model.mean_recurrence for model in self.least if model.mean_recurrence]
        return _lower_median(ratios) if ratios else None

    @property
    def largest(self) -> float:
        """The largest relative rise above the least loss."""
        return max(model.cost / model.loss for model in self.least)

    @property
    def reason(self) -> str:
        """The reason why a law that saturates in T can't follow the losses."""
        share = "1 model" if self.models == 1 else f"{len(self.least)} of {self.models} models"
        return f"the {RISES} in {share}, {self._place}, {self._size}, which it can't follow"

    @property
    def caveat(self) -> str:
        """The rise as a sentence of a fit's caveats."""
        if self.models == 1:
            return f"The {RISES}, {self._place}, {self._size}: this model overthinks."
        share = f"{len(self.least)} of {self.models} models"
        return f"The {RISES} in {share}, {self._place}, {self._size}: these models overthink."

    @property
    def _place(self) -> str:
        median = " at the median" if len(self.least) > 1 else ""
        if self.turn_ratio is None:
            return f"beyond T = {self.turn:g}{median}"
        times = "mu" if self.turn_ratio == 1 else f"{self.turn_ratio:.3g} mu"
        return f"beyond T = {times} (T = {self.turn:g}{median})"

    @property
    def _size(self) -> str:
        most = max(self.least, key=lambda model: model.cost)
        return f"by up to {100 * self.largest:.2g}% ({most.cost:.3g} nats at T = {most.largest:g})"


def loss_rise(data: Data) -> LossRise | None:
    """Return how losses rise with T, from one entry per run and T (see `test_time_law_data`); None if they don't.

    A model's rise is that of the loss at its largest T above the least one at a smaller T. It counts where it exceeds
    what noise explains, by one of three tests that each have a false alarm in up to 1% of tables:

    - the rise is improbably large for the noise of one evaluation, which is the scatter about a law that may rise (one
      for all models together); where that leaves fewer than 10 degrees of freedom, a rise counts too that is
      improbable for a noise of 2%;
    - the last losses ascend in T, and are too many for that to be chance (5 for a single model): at any noise;
    - from the first T >= mu to the largest T, the losses of all models rise on average, beyond their scatter between
      models. Each model with a rise of 3 noises counts then.

    Columns `run_id` and `mean_recurrence` may be missing: the losses are then those of one model, or mu isn't known.
    """
    frame = _frame(data)
    by_run = frame.groupby("run_id", sort=False)
    frame["least"] = by_run["loss"].cummin()
    before = by_run["least"].shift()  # the least loss at a smaller T
    last = frame.assign(rise=np.log(frame["loss"] / before)).groupby("run_id", sort=False).last()
    sizes = by_run.size()
    last = last[sizes > 1]
    if last.empty or not (last["rise"] > _SMALLEST_RISE).any():
        return None
    # The rise that noise explains, in one model and in all together
    several = frame[frame["run_id"].isin(last.index)]
    some = last.index[:: -(-len(last) // _MODELS_FOR_NOISE)]
    noise, dof = evaluation_noise(several if len(some) == len(last) else several[several["run_id"].isin(some)])
    comparisons = len(several) - len(last)
    limits = [] if noise is None else [float(student_t.isf(_FALSE_ALARMS / comparisons, dof)) * noise]
    if dof < _KNOWN_DOF:
        limits.append(float(norm.isf(_FALSE_ALARMS / comparisons)) * _USUAL_NOISE)
    limit = np.sqrt(2) * min(limits)
    ascending = several.groupby("run_id", sort=False)["loss"].agg(_ascending)
    too_many = next(k for k in range(2, 100) if len(last) <= 0.01 * factorial(k))
    counts = (last["rise"] > limit) | (ascending >= too_many)
    if _rise_together(several):
        counts |= last["rise"] > _NOISES * (noise or 0.0)
    counts &= last["rise"] > _SMALLEST_RISE
    if not counts.any():
        return None
    return LossRise(
        least=tuple(
            _least_loss(str(name), rows) for name, rows in several.groupby("run_id", sort=False) if counts[name]
        ),
        models=len(last),
        noise=noise,
    )


def evaluation_noise(frame: pd.DataFrame) -> tuple[float | None, int]:
    """Return the relative standard deviation of one evaluation, and its degrees of freedom; None and 0 if unknown.

    It is the scatter about a law that may rise with T: of one model's own law, or of the law of all models
    together given their losses at T = mu.
    """
    data = {name: frame[name].to_numpy() for name in frame}
    law: OverthinkingLaw | JointOverthinkingLaw = OverthinkingLaw()
    shared = 1.0
    if frame["run_id"].nunique() > 1 and "loss_at_mean" in frame:
        law, shared = JointOverthinkingLaw(), np.sqrt(2)  # its residuals hold the noise of the given loss, too
        data = {name: values[data["recurrence"] != data["mean_recurrence"]] for name, values in data.items()}
    dof = len(data["loss"]) - len(law.parameters)
    if dof < 1:
        return None, 0
    try:
        scale, _ = noise_scale(point_estimate(law, data, HUBER))
    except ValueError:  # T doesn't vary
        return None, 0
    return float(scale / shared), dof


def _frame(data: Data) -> pd.DataFrame:
    """Return the losses by run and T, sorted by T."""
    names = ("run_id", "mean_recurrence", "recurrence", "loss", "loss_at_mean")
    frame = pd.DataFrame({name: data[name] for name in names if name in data})
    if "run_id" not in frame:
        frame["run_id"] = ""
    return frame.sort_values("recurrence", kind="stable")


def _ascending(losses: pd.Series) -> int:
    """Return how many of the last losses ascend strictly."""
    falls = np.flatnonzero(np.diff(losses.to_numpy()) <= 0)
    return len(losses) - (int(falls[-1]) + 1 if len(falls) else 0)


def _rise_together(frame: pd.DataFrame) -> bool:
    """Return whether losses rise from the first T >= mu to the largest T, on average over models."""
    if "mean_recurrence" not in frame:
        return False
    beyond = frame[frame["recurrence"] >= frame["mean_recurrence"]].groupby("run_id")["loss"]
    change = np.log(beyond.last() / beyond.first())[beyond.size() > 1].to_numpy(dtype=float)
    if len(change) < 2:
        return False
    error = float(np.std(change, ddof=1)) / np.sqrt(len(change))
    quantile = float(student_t.isf(_FALSE_ALARMS_TOGETHER, len(change) - 1))
    return bool(np.mean(change) > max(_SMALLEST_RISE, quantile * error))


def _least_loss(name: str, rows: pd.DataFrame) -> LeastLoss:
    recurrences, losses = rows["recurrence"].to_numpy(dtype=float), rows["loss"].to_numpy(dtype=float)
    place = len(losses) - 1 - int(np.argmin(losses[::-1]))
    neighbours = recurrences[max(place - 1, 0)], recurrences[min(place + 1, len(losses) - 1)]
    return LeastLoss(
        run_id=name,
        mean_recurrence=float(rows["mean_recurrence"].iloc[0]) if "mean_recurrence" in rows else None,
        recurrence=float(recurrences[place]),
        between=(float(neighbours[0]), float(neighbours[1])),
        loss=float(losses[place]),
        largest=float(recurrences[-1]),
        cost=float(losses[-1] - losses[place]),
    )


def _lower_median(values: list[float]) -> float:
    return float(np.quantile(values, 0.5, method="lower"))
