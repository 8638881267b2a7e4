"""isoFLOP curves: the best mean recurrence at each budget, and how it and its tokens grow with compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fitting.cost import CostModel
from fitting.table import finished_rows
from fitting.uncertainty import LEVEL, interval

_POINTS_NEEDED = 3
_BUDGETS_NEEDED = 2


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The parabola of one budget (FLOPs): loss = a log(mu)^2 + b log(mu) + c in nats per token, and its vertex.

    `log_mean_recurrence_error` is the standard error of log(mu*). A budget that does not count has `included` False and
    a `reason`; its vertex is None where the curve has none.
    """

    budget: float
    points: int
    included: bool
    reason: str | None = None
    curve: tuple[float, float, float] | None = None
    mean_recurrence: float | None = None
    log_mean_recurrence_error: float | None = None
    tokens: float | None = None
    loss: float | None = None


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
        return float(np.exp(self.log_coefficient + self.exponent * np.log(budget)))

    def interval_at(self, budget: float) -> tuple[float, float] | None:
        """The 95% interval of the quantity at `budget` FLOPs, None without draws."""
        if not self.draws:
            return None
        draws = np.array(self.draws)
        low, high = interval(draws[:, 0] + draws[:, 1] * np.log(budget))
        return float(np.exp(low)), float(np.exp(high))


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """Minima by growing budget, and the power laws of the included ones; `reason` says what is missing of them.

    `redraws_without_minimum` is the share of the redraws behind the intervals in which a curve opened downwards
    and was left out of the line, as it would be in the data.
    """

    minima: tuple[Minimum, ...]
    mean_recurrence_law: PowerLaw | None
    tokens_law: PowerLaw | None
    interval_method: str
    redraws_without_minimum: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """One budget's points: log mu and loss, each (points,)."""

    budget: float
    log_mu: np.ndarray
    loss: np.ndarray

    @property
    def solver(self) -> np.ndarray:
        """Losses (points,) to parabola coefficients: (3, points)."""
        return np.linalg.pinv(np.vander(self.log_mu, 3))

    @property
    def freedom(self) -> int:
        return len(self.loss) - 3


def fit_isoflop(table: pd.DataFrame, cost_model: CostModel, *, draws: int = 200, seed: int = 0) -> IsoflopFit:
    """Fit parabolas in log(mu) to the finished runs of each budget, and power laws to their minima.

    D* follows from mu* and the cost model, so that the two spend exactly the budget. The intervals carry each minimum's
    own uncertainty: losses are redrawn around the parabolas with their pooled residual variance and everything is
    refitted; that they cover the truth as often as they say is not proven. Raises ValueError where the table has no
    budgets.
    """
    runs = finished_rows(table)
    if "budget" not in runs or runs["budget"].isna().all():
        raise ValueError("isoFLOP curves need the column `budget`, but no run has one; sweep over compute budgets")
    curves = []
    for budget, group in runs[runs["budget"].notna()].groupby("budget"):
        curve = _Curve(
            budget=float(budget),
            log_mu=np.log(group["mean_recurrence"].to_numpy(dtype=float)),
            loss=group["loss"].to_numpy(dtype=float),
        )
        curves.append(curve)
    variance, freedom = _pooled_variance(curves)
    minima = [_minimum(curve, cost_model, variance) for curve in curves]
    included = [curve for curve, minimum in zip(curves, minima, strict=True) if minimum.included]
    if len(included) < _BUDGETS_NEEDED:
        reason = (
            f"power laws need {_BUDGETS_NEEDED} budgets with a minimum inside the grid, but {len(included)} have one"
        )
        return IsoflopFit(
            minima=tuple(minima), mean_recurrence_law=None, tokens_law=None, interval_method="none", reason=reason
        )
    mean_recurrence_law, tokens_law, method, lost = _power_laws(included, cost_model, variance, freedom, draws, seed)
    return IsoflopFit(
        minima=tuple(minima),
        mean_recurrence_law=mean_recurrence_law,
        tokens_law=tokens_law,
        interval_method=method,
        redraws_without_minimum=lost,
        reason=None if mean_recurrence_law.interval else "intervals need 3 budgets, or more points than 3 per budget",
    )


def _pooled_variance(curves: list[_Curve]) -> tuple[float | None, int]:
    """Residual variance over all parabolas (nats squared) and its degrees of freedom."""
    total, freedom = 0.0, 0
    for curve in curves:
        if _distinct(curve) >= _POINTS_NEEDED:
            residuals = curve.loss - np.vander(curve.log_mu, 3) @ (curve.solver @ curve.loss)
            total, freedom = total + float(residuals @ residuals), freedom + curve.freedom
    return (total / freedom if freedom else None), freedom


def _distinct(curve: _Curve) -> int:
    return len(np.unique(curve.log_mu))


def _minimum(curve: _Curve, cost_model: CostModel, variance: float | None) -> Minimum:
    points = len(curve.loss)
    if _distinct(curve) < _POINTS_NEEDED:
        reason = f"a parabola needs {_POINTS_NEEDED} mean recurrences, but there are {_distinct(curve)}"
        return Minimum(budget=curve.budget, points=points, included=False, reason=reason)
    a, b, c = (float(value) for value in curve.solver @ curve.loss)
    if a <= 0:
        reason = "the curve opens downwards, so it has no minimum"
        return Minimum(budget=curve.budget, points=points, included=False, reason=reason, curve=(a, b, c))
    vertex = -b / (2 * a)
    low, high = float(curve.log_mu.min()), float(curve.log_mu.max())
    reason_at_edge = None
    if not low < vertex < high:
        side, edge = ("below", low) if vertex <= low else ("above", high)
        reason_at_edge = (
            f"the minimum is at the grid's edge: the best mean recurrence is {side} {np.exp(edge):.3g}, the grid's "
            f"{'smallest' if side == 'below' else 'largest'}"
        )
    error = None
    if variance is not None:
        # d vertex / d loss, from vertex = -b / 2a.
        slope = -curve.solver[1] / (2 * a) - vertex * curve.solver[0] / a
        error = float(np.sqrt(variance * (slope @ slope)))
    # A vertex far outside is no estimate, and its exponential may overflow.
    mu = float(np.exp(vertex)) if abs(vertex) < 50 else None
    return Minimum(
        budget=curve.budget,
        points=points,
        included=reason_at_edge is None,
        reason=reason_at_edge,
        curve=(a, b, c),
        mean_recurrence=mu,
        log_mean_recurrence_error=error,
        tokens=None if mu is None else float(cost_model.tokens_for(curve.budget, mu)),
        loss=c - b**2 / (4 * a),
    )


def _vertices(curves: list[_Curve], losses: list[np.ndarray]) -> np.ndarray:
    """log mu* of each curve for losses (draws, points): (draws, curves), NaN where a curve opens downwards."""
    columns = []
    for curve, values in zip(curves, losses, strict=True):
        a, b, _ = np.moveaxis(values @ curve.solver.T, -1, 0)
        columns.append(np.where(a > 0, -b / (2 * np.where(a > 0, a, 1.0)), np.nan))
    return np.clip(np.stack(columns, axis=-1), -50, 50)


def _power_laws(
    curves: list[_Curve], cost_model: CostModel, variance: float | None, freedom: int, draws: int, seed: int
) -> tuple[PowerLaw, PowerLaw, str, float]:
    """Both power laws, how their intervals came about, and in which share of redraws a curve had no minimum."""
    log_budget = np.log([curve.budget for curve in curves])
    vertices = _vertices(curves, [curve.loss[None] for curve in curves])
    drawn = np.empty((0, len(curves)))
    method = "none: no freedom left"
    if variance is not None and draws > 0:
        method = "losses redrawn around the parabolas"
        rng = np.random.default_rng(seed)
        # The variance is itself an estimate: its own uncertainty gives the draws the tails of a t distribution.
        scale = np.sqrt(variance * freedom / rng.chisquare(freedom, size=draws))
        losses = []
        for curve in curves:
            smooth = np.vander(curve.log_mu, 3) @ (curve.solver @ curve.loss)
            losses.append(smooth + scale[:, None] * rng.standard_normal((draws, len(smooth))))
        drawn = _vertices(curves, losses)
        drawn = drawn[(~np.isnan(drawn)).sum(axis=1) >= _BUDGETS_NEEDED]
    lost = float(np.isnan(drawn).any(axis=1).mean()) if len(drawn) else 0.0
    laws = []
    for quantity, of_vertex in (("mean recurrence", np.asarray), ("tokens", _log_tokens(log_budget, cost_model))):
        exponent, intercept = _line(log_budget, of_vertex(vertices))[0]
        lines = _line(log_budget, of_vertex(drawn)) if len(drawn) else np.empty((0, 2))
        bounds = interval(lines[:, 0]) if len(lines) else _scatter_interval(log_budget, of_vertex(vertices)[0])
        if bounds is not None and not len(lines):
            method = "scatter of the minima about the power law"
        law = PowerLaw(
            quantity=quantity,
            exponent=float(exponent),
            log_coefficient=float(intercept),
            interval=bounds,
            draws=tuple((float(line[1]), float(line[0])) for line in lines),
        )
        laws.append(law)
    return laws[0], laws[1], method, lost


def _log_tokens(log_budget: np.ndarray, cost_model: CostModel) -> Callable[[np.ndarray], np.ndarray]:
    def log_tokens(vertices: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(cost_model.tokens_for(np.exp(log_budget), np.exp(vertices))))

    return log_tokens


def _line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares (slope, intercept) of each row of y (rows, points) on x (points,), NaN left out: (rows, 2)."""
    there = ~np.isnan(y)
    y = np.where(there, y, 0.0)
    count = there.sum(axis=1, keepdims=True)
    mean_x = (there * x).sum(axis=1, keepdims=True) / count
    mean_y = y.sum(axis=1, keepdims=True) / count
    centred = there * (x - mean_x)
    slope = (centred * y).sum(axis=1, keepdims=True) / (centred**2).sum(axis=1, keepdims=True)
    return np.hstack([slope, mean_y - slope * mean_x])


def _scatter_interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """The t interval of the slope of y on x, both (points,); None with fewer than 3 points."""
    if len(x) < 3:
        return None
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr)
    return float(fit.slope) - half, float(fit.slope) + half
