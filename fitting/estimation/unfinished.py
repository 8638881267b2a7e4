"""The losses that running runs will end with, by their learning curves and those of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

EARLIEST = 0.1
"""Share of its training from which a run's curve says where it will end."""
_FEWEST_CURVES = 4
_CURVES_TO_REGRESS = 8


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """The smoothed training loss of one run (nats per token) against training tokens, and its place in the grid.

    `planned_tokens` is where the training ends; `final` is the validation loss there, None while the run trains.
    """

    run_id: str
    tokens: np.ndarray
    losses: np.ndarray
    planned_tokens: float
    mean_recurrence: float
    final: float | None = None

    @property
    def share(self) -> float:
        """Share of the training that the curve covers."""
        return float(self.tokens[-1] / self.planned_tokens)

    def log_loss_at(self, share: float) -> float:
        """Return the log of the training loss at a share of the training."""
        at = np.log(max(share * self.planned_tokens, self.tokens[0]))
        return float(np.interp(at, np.log(self.tokens), np.log(self.losses)))


@dataclass(frozen=True, kw_only=True)
class ExtrapolatedLoss:
    """The validation loss that a running run will end with (nats per token), from its first `share` of training.

    `error` is the standard deviation of its logarithm about the truth, as it was for the finished runs, the noise of
    one run included.
    """

    run_id: str
    share: float
    loss: float
    error: float


def extrapolated_losses(running: Sequence[TrainingCurve], finished: Sequence[TrainingCurve]) -> list[ExtrapolatedLoss]:
    """Return the losses that running runs will end with, of those whose curves allow it.

    From the loss that the finished runs had at the same share of their training, each fell by a factor to its final
    one. The running run is taken to fall by as much: by their mean in logs, or from 8 finished runs on by a line in log
    tokens and log mean recurrence. A decay of the rate at the end is in that factor, so all runs must have the same
    schedule. The error is that of predicting one more run, with Student's factor for few; where the line goes beyond
    the finished runs, half of what it adds is error, too. There must be 4 finished runs, and a tenth of the training.
    """
    ended = [(curve, curve.final) for curve in finished if curve.final is not None]
    losses = []
    for curve in running:
        # The curve of a run that branched off another begins late, and says nothing of earlier shares.
        known = [(other, final) for other, final in ended if other.tokens[0] <= curve.share * other.planned_tokens]
        if EARLIEST <= curve.share < 1 and len(known) >= _FEWEST_CURVES:
            losses.append(_extrapolated(curve, known))
    return losses


def _extrapolated(curve: TrainingCurve, ended: Sequence[tuple[TrainingCurve, float]]) -> ExtrapolatedLoss:
    share = curve.share
    falls = np.array([np.log(final) - other.log_loss_at(share) for other, final in ended])

    # The fall as a mean, or a line where there are enough runs and they differ
    def place(each: TrainingCurve) -> list[float]:
        return [1.0, float(np.log(each.planned_tokens)), float(np.log(each.mean_recurrence))]

    design, at = np.array([place(other) for other, _ in ended]), np.array(place(curve))
    used = [0]
    if len(ended) >= _CURVES_TO_REGRESS:
        used += [column for column in (1, 2) if np.ptp(design[:, column]) > 0]
    design, at = design[:, used], at[used]
    coefficients, *_ = np.linalg.lstsq(design, falls, rcond=None)
    residuals = falls - design @ coefficients
    dof = len(ended) - np.linalg.matrix_rank(design)
    variance = float(residuals @ residuals) / dof * (1 + float(at @ np.linalg.pinv(design.T @ design) @ at))
    # Beyond the finished runs the line may bend: half of what it adds there counts as error.
    beyond = float((at - np.clip(at, design.min(axis=0), design.max(axis=0))) @ coefficients)
    variance += (beyond / 2) ** 2
    student = stats.t.ppf(0.975, dof) / stats.norm.ppf(0.975)
    return ExtrapolatedLoss(
        run_id=curve.run_id,
        share=share,
        loss=float(np.exp(curve.log_loss_at(share) + at @ coefficients)),
        error=float(np.sqrt(variance) * student),
    )
