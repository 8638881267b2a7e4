"""Scores at chance: whether a sweep's models have learned anything of a task, and get better at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.bootstrap import LEVEL, t_quantile

Status = Literal["fitted", "at chance", "no trend", "not usable"]


@dataclass(frozen=True, kw_only=True)
class NoPrediction:
    """The status of a score that can't be predicted, and the reason."""

    status: Status
    reason: str


def why_at_chance(
    losses: np.ndarray, scores: np.ndarray, errors: np.ndarray | None, chance: float
) -> NoPrediction | None:
    """Return why scores (runs,) say nothing about those at smaller losses (runs,); None if they do.

    - At chance: no run's interval lies above `chance`. The intervals are 95% for all runs together (Bonferroni): of 36
      models that guess, one or more would otherwise seem to know something in 60% of sweeps. Without standard
      `errors`, scores are at chance if they don't rise as losses fall and the interval of their mean holds chance.
    - No trend: scores don't rise as losses fall, by Kendall's rank correlation at the 5% level.
    """
    trend = float(stats.kendalltau(losses, scores, alternative="less").pvalue) if np.ptp(scores) else 1.0
    count = len(scores)
    if errors is not None:
        above = scores - chance > stats.norm.ppf(1 - (1 - LEVEL) / 2 / count) * errors
        if not above.any():
            reason = f"no run's score is above chance ({chance:.4g}) by more than its error over the items"
            return NoPrediction(status="at chance", reason=reason)
    if trend <= 1 - LEVEL:
        return None
    if errors is None:
        half = t_quantile(count - 1) * float(np.std(scores, ddof=1)) / np.sqrt(count)
        if float(scores.mean()) - half <= chance:
            reason = f"scores don't rise as losses fall, and their mean can't be told from chance ({chance:.4g})"
            return NoPrediction(status="at chance", reason=reason)
    reason = (
        "scores don't rise as losses fall (Kendall's rank correlation at the 5% level), so nothing says what a "
        "smaller loss brings"
    )
    return NoPrediction(status="no trend", reason=reason)
