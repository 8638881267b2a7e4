"""One score against the loss: the fitted steps, their held-out errors, and predictions with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.bootstrap import LEVEL, interval
from isoloop.fitting.quality.chance import Status
from isoloop.fitting.selection.mixture import LawMixture

Interval = tuple[float, float]
_DRAWS = 4000
"""Draws of a predicted score: each takes one of the refits and new noise."""
_SEED = 0
_LEAST_VARIANCE = 0.005
"""Variance of an item that is taken where nearly all or no answers are right."""
_HALF_WIDTH = float(stats.norm.ppf(0.5 + LEVEL / 2))
"""Half of a 95% interval in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class ScorePrediction:
    """A predicted score in its `unit`, with the 95% interval of one model's measured score.

    `task_loss` is the task's, None where the score follows from the validation loss directly. `note` says how far the
    loss is beyond those of the runs; empty within them.
    """

    name: str
    label: str
    unit: str
    value: float
    interval: Interval
    task_loss: float | None = None
    task_loss_interval: Interval | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """The score of a held-out run and its prediction from the run's validation `loss`, measured or itself predicted."""

    run_id: str
    loss: float
    measured: float
    predicted: float
    interval: Interval

    @property
    def error(self) -> float:
        """Predicted - measured, in the score's unit."""
        return self.predicted - self.measured

    @property
    def inside(self) -> bool:
        """True if the measured score is inside the prediction's 95% interval."""
        return self.interval[0] <= self.measured <= self.interval[1]


@dataclass(frozen=True, kw_only=True)
class ScoreFit:
    """One score of a sweep's runs against their validation losses.

    If `status` is not "fitted", nothing can be predicted and `reason` says why. `task_loss` is the first step, task
    loss against validation loss, and `wrong` the second, the share of wrong answers against task loss; without a first
    step it is against the validation loss. `losses` (nats per token) and `scores` are the ranges of the `runs` runs.

    `held_out` are predictions of the largest budget's runs from the others, at their measured losses;
    `held_out_with_loss` those at the losses that the laws predict, where the whole fit was made without that budget.
    Scores are in the `unit`, of which `perfect` is the best and `chance` that of guessing. The scatter of an accuracy
    grows as that of a share of items, `binomial_scatter`, which is `typical_scatter` at the runs; that of a suite's
    mean is the same at every score, and `typical_scatter` None.
    """

    name: str
    label: str
    unit: str
    perfect: float
    chance: float
    status: Status
    reason: str
    runs: int
    losses: Interval | None = None
    scores: Interval | None = None
    task_loss: LawMixture | None = None
    wrong: LawMixture | None = None
    typical_scatter: float | None = None
    held_out: tuple[HeldOutScore, ...] = ()
    why_not_held_out: str = ""
    held_out_with_loss: tuple[HeldOutScore, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def column(self) -> str:
        """The column of the run table that holds the score."""
        return self.name if self.unit == "points" else f"{self.name}_accuracy"

    @property
    def mean_error(self) -> float | None:
        """Mean absolute error of the held-out runs, in the unit; None if there are none."""
        return float(np.mean([abs(row.error) for row in self.held_out])) if self.held_out else None

    def score(self, losses: np.ndarray) -> np.ndarray:
        """Return the predicted score at validation losses (n,), nats per token: (n,), in the unit."""
        task_losses = self.task_losses(losses)
        return self._score_of(self._wrong.loss(self._columns(losses if task_losses is None else task_losses)))

    def task_losses(self, losses: np.ndarray) -> np.ndarray | None:
        """Return the predicted task loss at validation losses (n,), None where the score has no first step."""
        return None if self.task_loss is None else self.task_loss.loss({"at": losses})

    def predict(self, loss: float, loss_interval: Interval | None = None) -> ScorePrediction:
        """Predict the score of one model from its validation loss, or from a predicted loss with its 95% interval.

        The interval holds the uncertainty of the loss, of each step's parameters and form, and the scatter of one run
        about each step. A drawn loss is normal in its logarithm on each side of `loss`, with the interval's width
        there.
        """
        assert self.losses is not None, self.status
        rng = np.random.default_rng(_SEED)
        low, high = loss_interval or (loss, loss)
        deviations = rng.standard_normal(_DRAWS)
        below, above = math.log(loss / low) / _HALF_WIDTH, math.log(high / loss) / _HALF_WIDTH
        drawn = loss * np.exp(np.where(deviations < 0, below, above) * deviations)
        # Step by step: what one step draws is what the next starts from.
        task_loss = self.task_losses(np.array([loss]))
        if self.task_loss is not None:
            drawn = _drawn(self.task_loss, {"at": drawn}, rng)
        drawn_scores = self._score_of(_drawn(self._wrong, self._columns(drawn), rng, self.typical_scatter))
        return ScorePrediction(
            name=self.name,
            label=self.label,
            unit=self.unit,
            value=float(self.score(np.array([loss]))[0]),
            interval=interval(drawn_scores),
            task_loss=None if task_loss is None else float(task_loss[0]),
            task_loss_interval=None if task_loss is None else interval(drawn),
            note=self._beyond(loss),
        )

    def held_out_row(
        self, run_id: str, measured: float, loss: float, loss_interval: Interval | None = None
    ) -> HeldOutScore:
        """Return the prediction of a held-out run's `measured` score from its loss, or a predicted one's interval."""
        prediction = self.predict(loss, loss_interval)
        return HeldOutScore(
            run_id=run_id, loss=loss, measured=measured, predicted=prediction.value, interval=prediction.interval
        )

    @property
    def _wrong(self) -> LawMixture:
        assert self.wrong is not None, self.status
        return self.wrong

    def _columns(self, at: np.ndarray) -> dict[str, np.ndarray]:
        return {"at": at, "chance": np.full_like(at, self.chance / self.perfect)}

    def _score_of(self, wrong: np.ndarray) -> np.ndarray:
        scores = self.perfect * (1 - wrong)
        return np.minimum(scores, self.perfect) if self.chance == 0 else np.clip(scores, 0.0, self.perfect)

    def _beyond(self, loss: float) -> str:
        assert self.losses is not None
        low, high = self.losses
        if low <= loss <= high:
            return ""
        side, end = ("below the smallest", low) if loss < low else ("above the largest", high)
        share = abs(loss - end) / (high - low)
        return f"the loss is {abs(loss - end):.3g} nats {side} of the runs, {share:.0%} of their range"


def binomial_scatter(wrong: np.ndarray) -> np.ndarray:
    """Return the standard deviation of one item, right or wrong, at shares of wrong answers: of their shape."""
    return np.asarray(np.sqrt(np.maximum(wrong * (1 - wrong), _LEAST_VARIANCE)))


def _drawn(
    mixture: LawMixture, data: dict[str, np.ndarray], rng: np.random.Generator, typical_scatter: float | None = None
) -> np.ndarray:
    """Return one value (n,) for each row of `data` (n,): by a refit of a law, both drawn by weight, with its noise.

    The noise is that of a share of items where its `typical_scatter` is given.
    """
    count = len(data["at"])
    chosen = rng.choice(len(mixture.laws), p=mixture.weights, size=count)
    values = np.empty(count)
    for place, law in enumerate(mixture.laws):
        rows = np.flatnonzero(chosen == place)
        vectors = law.draw_matrix[rng.integers(len(law.draws), size=len(rows))]
        columns = {name: data[name][rows, None] for name in law.form.columns}
        noise = law.noise * np.sqrt(law.noise_dof / rng.chisquare(law.noise_dof, size=len(rows)))
        noise = noise * rng.standard_normal(len(rows))
        fitted = law.form.loss(vectors, columns)[:, 0]
        if typical_scatter is not None:
            noise = noise * binomial_scatter(fitted) / typical_scatter
        values[rows] = fitted * np.exp(noise) if law.on == "log loss" else fitted + noise
    return values
