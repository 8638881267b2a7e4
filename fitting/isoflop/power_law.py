"""Power laws in compute: of the best configuration, and of the least loss with and without a floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from isoloop.fitting.estimation.bootstrap import LEVEL, interval

_EXPONENTS = (0.005, 1.5)
"""Where the exponent of a minimal loss above its floor is searched."""
_EXPONENTS_TRIED = 40
_REFINEMENTS = 32
FLOOR_BUDGETS = 3


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """quantity = exp(log_coefficient) C^exponent, C in FLOPs.

    `draws` are the (log_coefficient, exponent) of the same fit to simulated noise; `interval` is 95% on the exponent.
    """

    quantity: str
    exponent: float
    log_coefficient: float
    interval: tuple[float, float] | None
    draws: tuple[tuple[float, float], ...] = ()

    def at(self, budget: float) -> float:
        """The quantity at `budget` FLOPs."""
        return float(np.exp(self.log_at(budget)))

    def log_at(self, budget: ArrayLike) -> np.ndarray:
        """The log of the quantity at `budget` FLOPs, of the shape of `budget`."""
        return np.asarray(self.log_coefficient + self.exponent * np.log(budget))

    def interval_at(self, budget: float) -> tuple[float, float] | None:
        """The 95% interval of the quantity at `budget` FLOPs, None without draws."""
        if not self.draws:
            return None
        draws = np.array(self.draws)
        low, high = interval(draws[:, 0] + draws[:, 1] * np.log(budget))
        return float(np.exp(low)), float(np.exp(high))


@dataclass(frozen=True, kw_only=True)
class MinimalLossLaw:
    """Least loss of a budget (nats per token) = floor + coefficient (C / reference)^-exponent, C in FLOPs.

    The `reference` is the geometric mean of the budgets, so that `coefficient` is the loss above the floor there. The
    floor is 0 where `has_floor` is False. `draws` are (floor, coefficient, exponent) refitted to redrawn minima;
    intervals are 95%. `at_bound` says that the floor is held at 0, or the exponent at an end of its search.
    """

    has_floor: bool
    floor: float
    coefficient: float
    exponent: float
    reference: float
    floor_interval: tuple[float, float] | None
    interval: tuple[float, float] | None
    at_bound: bool
    draws: tuple[tuple[float, float, float], ...] = ()

    def at(self, budget: ArrayLike) -> np.ndarray:
        """The least loss at `budget` FLOPs, of the shape of `budget`."""
        ratio = np.asarray(budget, dtype=float) / self.reference
        return np.asarray(self.floor + self.coefficient * ratio**-self.exponent)

    def interval_at(self, budget: float) -> tuple[float, float] | None:
        """The 95% interval of the least loss at `budget` FLOPs, None without draws."""
        if not self.draws:
            return None
        floor, coefficient, exponent = np.array(self.draws).T
        return interval(floor + coefficient * (budget / self.reference) ** -exponent)


def fit_power_law(
    quantity: str, budgets: np.ndarray, logs: np.ndarray, drawn: np.ndarray, weights: np.ndarray | None = None
) -> PowerLaw:
    """The line through `logs` (budgets,) of a quantity in log C, and through each row of `drawn` (draws, budgets).

    Budgets weigh the same unless `weights` (budgets,) say otherwise; NaN is left out. Without draws, the interval is
    the t interval of the scatter about the line, and None with fewer than 3 budgets.
    """
    log_budget = np.log(budgets)
    exponent, intercept = lines(log_budget, logs[None], weights)[0]
    refits = lines(log_budget, drawn, weights) if len(drawn) else np.empty((0, 2))
    return PowerLaw(
        quantity=quantity,
        exponent=float(exponent),
        log_coefficient=float(intercept),
        interval=interval(refits[:, 0]) if len(refits) else _scatter_interval(log_budget, logs),
        draws=tuple((float(intercept), float(exponent)) for exponent, intercept in refits),
    )


def fit_minimal_loss(
    budgets: np.ndarray, losses: np.ndarray, drawn: np.ndarray, weights: np.ndarray, *, floor: bool
) -> MinimalLossLaw:
    """Fit the minima's `losses` (budgets,), and again each row of `drawn` (draws, budgets), NaN left out.

    With a floor: least squares in loss, floor and coefficient at least 0, minima weighing by `weights` (budgets,), the
    inverse variances up to a factor. Without one: a line in log loss, and all weigh the same; losses do have a floor,
    so that this line fits none too well, and weights that differ from sample to sample would move it further than its
    interval says. Raises ValueError for a floor on fewer than 3 budgets.
    """
    if floor and len(budgets) < FLOOR_BUDGETS:
        raise ValueError(f"a floor needs {FLOOR_BUDGETS} budgets with a minimum, but there are {len(budgets)}; add one")
    reference = float(np.exp(np.mean(np.log(budgets))))
    x = np.log(budgets / reference)
    rows = np.vstack([losses[None], drawn])
    if floor:
        fitted = _with_floor(x, rows, weights)
    else:
        line = lines(x, np.log(rows))
        fitted = np.column_stack([np.zeros(len(line)), np.exp(line[:, 1]), -line[:, 0]])
    best, refits = fitted[0], fitted[1:]
    stuck = floor and (best[0] <= 0 or not _EXPONENTS[0] * 1.001 < best[2] < _EXPONENTS[1] * 0.999)
    return MinimalLossLaw(
        has_floor=floor,
        floor=float(best[0]),
        coefficient=float(best[1]),
        exponent=float(best[2]),
        reference=reference,
        floor_interval=interval(refits[:, 0]) if floor and len(refits) else None,
        interval=interval(refits[:, 2]) if len(refits) else None,
        at_bound=bool(stuck),
        draws=tuple((float(one[0]), float(one[1]), float(one[2])) for one in refits),
    )


def lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Least-squares (slope, intercept) of each row of y (rows, points) on x (points,), NaN left out: (rows, 2)."""
    weights = np.where(np.isnan(y), 0.0, np.ones_like(x) if weights is None else weights)
    y = np.where(np.isnan(y), 0.0, y)
    total = weights.sum(axis=1, keepdims=True)
    mean_x = (weights * x).sum(axis=1, keepdims=True) / total
    mean_y = (weights * y).sum(axis=1, keepdims=True) / total
    centred = x - mean_x
    slope = (weights * centred * y).sum(axis=1, keepdims=True) / (weights * centred**2).sum(axis=1, keepdims=True)
    return np.hstack([slope, mean_y - slope * mean_x])


def _with_floor(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(floor, coefficient, exponent) of each row of y (rows, points) on x = log C, NaN left out: (rows, 3).

    For a given exponent the rest is linear, so only the exponent is searched: on a grid, then by golden section.
    """
    weights = np.where(np.isnan(y), 0.0, weights)
    y = np.where(np.isnan(y), 0.0, y)
    grid = np.geomspace(*_EXPONENTS, _EXPONENTS_TRIED)
    best = _linear_part(x, y[:, None], weights[:, None], grid[None, :])[2].argmin(axis=1)
    left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    inverse_golden = (np.sqrt(5) - 1) / 2
    for _ in range(_REFINEMENTS):
        pair = np.stack([right - inverse_golden * (right - left), left + inverse_golden * (right - left)], axis=-1)
        errors = _linear_part(x, y[:, None], weights[:, None], pair)[2]
        lower = errors[:, 0] < errors[:, 1]
        left, right = np.where(lower, left, pair[:, 0]), np.where(lower, pair[:, 1], right)
    exponent = (left + right) / 2
    floor, coefficient, _ = _linear_part(x, y, weights, exponent)
    return np.column_stack([floor, coefficient, exponent])


def _linear_part(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, exponent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor and coefficient of least squared error, both at least 0, and that error, for each exponent (...).

    y and weights (..., points) broadcast against the exponents.
    """
    u = np.exp(-exponent[..., None] * x)
    total = weights.sum(axis=-1)
    mean_u, mean_y = (weights * u).sum(axis=-1) / total, (weights * y).sum(axis=-1) / total
    spread_u, spread_y = u - mean_u[..., None], y - mean_y[..., None]
    coefficient = (weights * spread_u * spread_y).sum(axis=-1) / (weights * spread_u**2).sum(axis=-1)
    coefficient = np.maximum(coefficient, 0.0)
    floor = mean_y - coefficient * mean_u
    without = (weights * u * y).sum(axis=-1) / (weights * u**2).sum(axis=-1)
    coefficient, floor = np.where(floor < 0, without, coefficient), np.maximum(floor, 0.0)
    error = (weights * (y - floor[..., None] - coefficient[..., None] * u) ** 2).sum(axis=-1)
    return floor, coefficient, error


def _scatter_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """The t interval of the slope of y on x, both (points,); None with fewer than 3 points."""
    if len(x) < 3:
        return None
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr)
    return float(fit.slope) - half, float(fit.slope) + half
