"""Power laws in compute: of the best configuration, and of the least loss with and without a floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from isoloop.fitting.estimation.bootstrap import interval, t_quantile
from isoloop.fitting.laws.base import minimise_on_grid

POWER_LAWS = "isoFLOP power laws"
"""Name of the power laws through the minima of isoFLOP curves, as a method."""
WITHOUT_BIAS = "without the parabola's bias"
"""Words after that name where the bias of the parabolas is taken away."""
BUDGETS_NEEDED = 2
FLOOR_BUDGETS = 3
"""Budgets that a power law with a floor needs."""
_EXPONENT_BOUNDS = (0.005, 1.5)
"""Range in which the exponent of a minimal loss above its floor is searched for."""
_EXPONENT_GRID = 40


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A power law quantity = exp(log_coefficient) C^exponent, C in FLOPs.

    `draws` are the (log_coefficient, exponent) of refits to simulated noise; `interval` is the 95% of the exponent.
    """

    quantity: str
    exponent: float
    log_coefficient: float
    interval: tuple[float, float] | None
    draws: tuple[tuple[float, float], ...] = ()

    def at(self, budget: float) -> float:
        """Return the quantity at `budget` FLOPs, infinite where it exceeds the largest float."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.log_at(budget)))

    def log_at(self, budget: ArrayLike) -> np.ndarray:
        """Return the log of the quantity at `budget` FLOPs, in the shape of `budget`."""
        return np.asarray(self.log_coefficient + self.exponent * np.log(budget))

    def interval_at(self, budget: float) -> tuple[float, float] | None:
        """Return the 95% interval of the quantity at `budget` FLOPs, None without draws."""
        if not self.draws:
            return None
        low, high = interval(self.log_draws_at(budget))
        with np.errstate(over="ignore"):
            return float(np.exp(low)), float(np.exp(high))

    def log_draws_at(self, budget: float) -> np.ndarray:
        """Return the log of the quantity at `budget` FLOPs by each draw: (draws,)."""
        log_coefficient, exponent = np.array(self.draws).T
        return np.asarray(log_coefficient + exponent * np.log(budget))


@dataclass(frozen=True, kw_only=True)
class MinimalLossLaw:
    """A law of the least loss (nats per token) of a budget: floor + coefficient (C / reference)^-exponent, C in FLOPs.

    The `reference` is the geometric mean of the budgets, so that `coefficient` is the loss above the floor there. The
    floor is 0 if `has_floor` is False; such a law is wrong in form and has neither draws nor intervals. `draws` are
    (floor, coefficient, exponent) of refits to redrawn minima; intervals are 95%. `at_bound` is True if the floor is
    held at 0, or the exponent at an end of its search.
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
        """Return the least loss at `budget` FLOPs, in the shape of `budget`."""
        ratio = np.asarray(budget, dtype=float) / self.reference
        return np.asarray(self.floor + self.coefficient * ratio**-self.exponent)

    def interval_at(self, budget: float) -> tuple[float, float] | None:
        """Return the 95% interval of the least loss at `budget` FLOPs, None without draws."""
        if not self.draws:
            return None
        floor, coefficient, exponent = np.array(self.draws).T
        return interval(floor + coefficient * (budget / self.reference) ** -exponent)


def fit_power_law(
    quantity: str, budgets: np.ndarray, logs: np.ndarray, drawn: np.ndarray, weights: np.ndarray | None = None
) -> PowerLaw:
    """Fit a line in log C through `logs` (budgets,) of a quantity, and through each row of `drawn` (draws, budgets).

    Budgets have equal weights unless `weights` (budgets,) are given; NaN is left out. Without draws, the interval is
    the t interval from the scatter about the line, and None with fewer than 3 budgets.
    """
    log_budget = np.log(budgets)
    exponent, intercept = lines(log_budget, logs[None], weights)[0]
    refits = lines(log_budget, drawn, weights) if len(drawn) else np.empty((0, 2))
    known = ~np.isnan(logs)
    return PowerLaw(
        quantity=quantity,
        exponent=float(exponent),
        log_coefficient=float(intercept),
        interval=interval(refits[:, 0]) if len(refits) else _scatter_interval(log_budget[known], logs[known]),
        draws=tuple((float(intercept), float(exponent)) for exponent, intercept in refits),
    )


def fit_minimal_loss(
    budgets: np.ndarray, losses: np.ndarray, drawn: np.ndarray, weights: np.ndarray, *, floor: bool
) -> MinimalLossLaw:
    """Fit the minima's `losses` (budgets,), and each row of `drawn` (draws, budgets), with NaN left out.

    With a floor: least squares in the loss, with floor and coefficient at least 0 and `weights` (budgets,), the inverse
    variances up to a factor. Without one: a line in log loss with equal weights, which has no interval. Real losses
    have a floor, so this line describes the measured budgets and is wrong beyond them, however little the minima
    scatter. Raises ValueError for a floor with fewer than 3 budgets.
    """
    if floor and len(budgets) < FLOOR_BUDGETS:
        raise ValueError(
            f"a floor needs {FLOOR_BUDGETS} budgets with a minimum, but there are {len(budgets)}; add budgets"
        )
    reference = float(np.exp(np.mean(np.log(budgets))))
    x = np.log(budgets / reference)
    rows = np.vstack([losses[None], drawn if floor else drawn[:0]])
    if floor:
        fitted = _with_floor(x, rows, weights)
    else:
        line = lines(x, np.log(np.where(rows > 0, rows, np.nan)))
        fitted = np.column_stack([np.zeros(len(line)), np.exp(line[:, 1]), -line[:, 0]])
    best, refits = fitted[0], fitted[1:]
    lowest, highest = _EXPONENT_BOUNDS
    at_bound = floor and (best[0] <= 0 or not lowest * 1.001 < best[2] < highest * 0.999)
    return MinimalLossLaw(
        has_floor=floor,
        floor=float(best[0]),
        coefficient=float(best[1]),
        exponent=float(best[2]),
        reference=reference,
        floor_interval=interval(refits[:, 0]) if floor and len(refits) else None,
        interval=interval(refits[:, 2]) if len(refits) else None,
        at_bound=bool(at_bound),
        draws=tuple((float(level), float(scale), float(exponent)) for level, scale, exponent in refits),
    )


def scattered(budgets: np.ndarray, logs: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return redrawn logs (draws, budgets) that scatter about their power law as `logs` (budgets,) do.

    Whatever moves a minimum is in that scatter, also what all runs of a budget share. Its variance has 2 degrees of
    freedom less than there are budgets and is itself drawn, so that refitted exponents have the tails of a t
    distribution.
    """
    log_budget = np.log(budgets)
    slope, intercept = lines(log_budget, logs[None])[0]
    fitted, dof = intercept + slope * log_budget, len(budgets) - 2
    assert dof > 0
    rng = np.random.default_rng(seed)
    scale = np.sqrt(np.sum((logs - fitted) ** 2) / rng.chisquare(dof, size=draws))
    return np.asarray(fitted + scale[:, None] * rng.standard_normal((draws, len(budgets))))


def lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Fit least-squares (slope, intercept) to each row of y (rows, points) on x (points,), NaN left out: (rows, 2)."""
    weights = np.where(np.isnan(y), 0.0, np.ones_like(x) if weights is None else weights)
    y = np.where(np.isnan(y), 0.0, y)
    total = weights.sum(axis=1, keepdims=True)
    mean_x = (weights * x).sum(axis=1, keepdims=True) / total
    mean_y = (weights * y).sum(axis=1, keepdims=True) / total
    centred = x - mean_x
    slope = (weights * centred * y).sum(axis=1, keepdims=True) / (weights * centred**2).sum(axis=1, keepdims=True)
    return np.hstack([slope, mean_y - slope * mean_x])


def _with_floor(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit (floor, coefficient, exponent) to each row of y (rows, points) on x = log C, NaN left out: (rows, 3).

    For a given exponent the rest is linear, so only the exponent is searched for: on a grid, then near its best point.
    """
    weights = np.where(np.isnan(y), 0.0, weights)
    y = np.where(np.isnan(y), 0.0, y)
    grid = np.geomspace(*_EXPONENT_BOUNDS, _EXPONENT_GRID)
    _, exponent = minimise_on_grid(lambda exponents: _linear_part(x, y[:, None], weights[:, None], exponents)[2], grid)
    floor, coefficient, _ = _linear_part(x, y, weights, exponent)
    return np.column_stack([floor, coefficient, exponent])


def _linear_part(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, exponent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the floor and coefficient of least squared error, both at least 0, and that error, per exponent (...).

    y and weights (..., points) broadcast against the exponents.
    """
    u = np.exp(-exponent[..., None] * x)
    total = weights.sum(axis=-1)
    mean_u, mean_y = (weights * u).sum(axis=-1) / total, (weights * y).sum(axis=-1) / total
    spread_u, spread_y = u - mean_u[..., None], y - mean_y[..., None]
    coefficient = (weights * spread_u * spread_y).sum(axis=-1) / (weights * spread_u**2).sum(axis=-1)
    coefficient = np.maximum(coefficient, 0.0)
    floor = mean_y - coefficient * mean_u
    without_floor = (weights * u * y).sum(axis=-1) / (weights * u**2).sum(axis=-1)
    coefficient, floor = np.where(floor < 0, without_floor, coefficient), np.maximum(floor, 0.0)
    error = (weights * (y - floor[..., None] - coefficient[..., None] * u) ** 2).sum(axis=-1)
    return floor, coefficient, error


def _scatter_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Return the t interval of the slope of y on x, both (points,); None with fewer than 3 points."""
    if len(x) < 3:
        return None
    fit = stats.linregress(x, y)
    half = float(t_quantile(len(x) - 2) * fit.stderr)
    return float(fit.slope) - half, float(fit.slope) + half
