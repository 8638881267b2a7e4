"""The bias of parabolas: their minima against the optima of the law behind the losses, and power laws without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoloop.fitting.cost import Cost
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.isoflop.minima import IsoflopFit, log_tokens, minima_weights
from isoloop.fitting.isoflop.parabola import POINTS_NEEDED, IsoflopCurve
from isoloop.fitting.isoflop.power_law import BUDGETS_NEEDED, PowerLaw, lines
from isoloop.fitting.laws.base import Law, search_bounds
from isoloop.fitting.tables.runs import finished_rows, law_data

_FEWEST_DRAWS, _ELEMENTS_AT_MOST = 100, 10_000_000
"""Draws of the law that are always followed, and draws times rows up to which all are."""


@dataclass(frozen=True, kw_only=True)
class BudgetBias:
    """The minimum of a parabola through the law's own losses at one budget (FLOPs), and the law's exact optimum.

    `log_bias` is log(parabola / exact), with its 95% interval over the law's draws. `at_bound` is True if the law's
    optimum is at an end of the search.
    """

    budget: float
    parabola: float
    exact: float
    log_bias: float
    log_bias_interval: tuple[float, float] | None
    at_bound: bool


@dataclass(frozen=True, kw_only=True)
class ExponentBias:
    """The exponent that parabolas give on the law's losses, that of the law's exact optima, and their difference.

    `bias` = `parabola` - `exact`. `corrected` is the fitted power law without that bias; its interval includes the
    uncertainty of the minima and of the law. Intervals are 95% and None without draws.
    """

    quantity: str
    parabola: float
    exact: float
    bias: float
    bias_interval: tuple[float, float] | None
    corrected: PowerLaw


@dataclass(frozen=True, kw_only=True)
class ParabolaBias:
    """The bias of the parabolas of one fit at its included budgets, if the losses follow `law`.

    `notes` are caveats about the intervals.
    """

    law: str
    budgets: tuple[BudgetBias, ...]
    axis_exponent: ExponentBias
    tokens_exponent: ExponentBias
    notes: tuple[str, ...] = ()


def parabola_bias(
    fit: IsoflopFit,
    table: pd.DataFrame,
    law: Law,
    parameters: np.ndarray,
    cost_model: Cost,
    draws: np.ndarray | None = None,
    *,
    widening: float = 1.0,
) -> ParabolaBias:
    """Estimate how far parabolas miss the optima of `law` at `parameters` (p,) on the very grid of `table`.

    An isoFLOP curve is steeper on the side of few loops, which pulls the minimum of a parabola through it to one side.
    The pull differs between small and large budgets, so the exponents are biased. Here the law takes the place of the
    runs, without noise: the same parabolas are fitted to its losses at the fitted rows, and their minima compared with
    the law's exact optima at the same budgets. With `draws` (d, p) of the law's parameters the same is done for each of
    them; the scatter of the bias is widened by `widening`, as the law's intervals are, and its draws are paired with
    those of `fit` as if independent. Raises ValueError if `fit` has no power law, or if fewer than two budgets have a
    minimum near the grid on the law's losses.
    """
    if fit.axis_law is None or fit.tokens_law is None:
        raise ValueError(f"the bias of parabolas needs power laws, but there are none: {fit.reason}; add budgets")
    vectors = np.asarray(parameters, dtype=float)[None]
    if draws is not None:
        vectors = np.vstack([vectors, draws[: max(_FEWEST_DRAWS, _ELEMENTS_AT_MOST // len(table))]])
    # Log optima by parabola and exactly, each (1 + draws, budgets)
    curves, losses = _law_curves(fit, table, law, vectors, cost_model)
    budgets = np.array([curve.budget for curve in curves])
    parabola = np.stack([_log_vertices(curve, values) for curve, values in zip(curves, losses, strict=True)], axis=-1)
    optima = [law.optimum(vectors, cost_model, float(budget), _search_bounds(curves, cost_model)) for budget in budgets]
    exact = np.log(np.stack([optimum.at for optimum in optima], axis=-1))
    has_minimum = ~np.isnan(parabola[0])
    if has_minimum.sum() < BUDGETS_NEEDED:
        raise ValueError(
            f"the bias of parabolas needs {BUDGETS_NEEDED} budgets where the {law.name} law's own losses have a "
            f"minimum near the grid, but {has_minimum.sum()} have one; widen the grid"
        )
    usable = (~np.isnan(parabola)).sum(axis=1) >= BUDGETS_NEEDED
    parabola, exact = parabola[usable], np.where(np.isnan(parabola), np.nan, exact)[usable]
    parabola, exact = (logs[0] + widening * (logs - logs[0]) for logs in (parabola, exact))
    # The bias at each budget, and that of the exponents
    biases = []
    for i in np.flatnonzero(has_minimum):
        log_bias = parabola[:, i] - exact[:, i]
        bias = BudgetBias(
            budget=float(budgets[i]),
            parabola=float(np.exp(parabola[0, i])),
            exact=float(np.exp(exact[0, i])),
            log_bias=float(log_bias[0]),
            log_bias_interval=interval(log_bias[1:]) if (~np.isnan(log_bias[1:])).any() else None,
            at_bound=bool(np.ravel(optima[i].at_bound)[0]),
        )
        biases.append(bias)
    tokens = log_tokens(budgets, parabola, cost_model), log_tokens(budgets, exact, cost_model)
    weights = minima_weights(fit.included)
    return ParabolaBias(
        law=law.name,
        budgets=tuple(biases),
        axis_exponent=_exponent_bias(fit.axis_law, AXES[fit.axis].name, budgets, (parabola, exact), weights),
        tokens_exponent=_exponent_bias(fit.tokens_law, "tokens", budgets, tokens, weights),
        notes=_bias_notes(biases),
    )


def _bias_notes(biases: list[BudgetBias]) -> tuple[str, ...]:
    notes = []
    if len(biases) == BUDGETS_NEEDED:
        # Simulated sweeps of the published grid's two smallest budgets, 200 each at .05, .1 and .2% noise.
        notes.append(
            "Two budgets hardly determine the law: corrected intervals hold the truth in 88 to 92 of 100 cases."
        )
    if any(bias.at_bound for bias in biases):
        notes.append("At some budgets the law's optimum is at the end of the search, so the bias there is not known.")
    return tuple(notes)


def _law_curves(
    fit: IsoflopFit, table: pd.DataFrame, law: Law, vectors: np.ndarray, cost_model: Cost
) -> tuple[list[IsoflopCurve], list[np.ndarray]]:
    """Return the curves of the included budgets with the law's losses in the place of the measured ones, and the losses
    (draws, points) of every parameter vector.
    """
    rows, data = finished_rows(table), law_data(table)
    log_axis = np.log(rows[cost_model.axis].to_numpy(dtype=float))
    law_losses = law.loss(vectors, data)
    curves, losses = [], []
    for minimum in fit.included:
        points = np.flatnonzero(rows["budget"].to_numpy(dtype=float) == minimum.budget)
        points = points[np.argsort(log_axis[points], kind="stable")]
        curve = IsoflopCurve(
            budget=minimum.budget, log_axis=log_axis[points], loss=law_losses[0, points], runs=len(points)
        )
        if curve.distinct_values < POINTS_NEEDED:
            raise ValueError(
                f"the table must be the one that was fitted, but its budget of {minimum.budget:.3g} FLOPs has "
                f"{curve.distinct_values} finished points where the fit has {minimum.points}; give the fitted table"
            )
        curves.append(curve)
        losses.append(law_losses[:, points])
    return curves, losses


def _log_vertices(curve: IsoflopCurve, losses: np.ndarray) -> np.ndarray:
    """Return log vertices (draws,) of losses (draws, points); NaN if none is within a grid's width of the grid."""
    vertices = curve.vertex(losses @ curve.solver.T)
    low, high = curve.grid
    return np.where((vertices > 2 * low - high) & (vertices < 2 * high - low), vertices, np.nan)


def _search_bounds(curves: list[IsoflopCurve], cost_model: Cost) -> tuple[float, float]:
    low, high = min(curve.grid[0] for curve in curves), max(curve.grid[1] for curve in curves)
    return search_bounds(cost_model.axis, float(np.exp(low)), float(np.exp(high)))


def _exponent_bias(
    fitted: PowerLaw, quantity: str, budgets: np.ndarray, logs: tuple[np.ndarray, np.ndarray], weights: np.ndarray
) -> ExponentBias:
    """Return the bias of one power law from `logs` by parabola and exactly, each (1 + draws, budgets), and the weights
    (budgets,) of the minima.

    The first row is that of the fitted law, the others those of its draws.
    """
    log_budget = np.log(budgets)
    by_parabola, by_law = (lines(log_budget, rows, weights) for rows in logs)
    bias = by_parabola - by_law
    own, drawn = bias[0], bias[1:]
    corrected = np.empty((0, 2))
    if fitted.draws:
        fit_draws = np.array(fitted.draws)[:, ::-1]
        # Both lines are least squares at the same budgets, so the line through unbiased minima is their difference.
        # The shorter set of draws is repeated to the length of the longer one.
        place = np.arange(max(len(fit_draws), len(drawn)))
        law_draws = drawn if len(drawn) else own[None]
        corrected = fit_draws[place % len(fit_draws)] - law_draws[place % len(law_draws)]
    return ExponentBias(
        quantity=quantity,
        parabola=float(by_parabola[0, 0]),
        exact=float(by_law[0, 0]),
        bias=float(own[0]),
        bias_interval=interval(drawn[:, 0]) if len(drawn) else None,
        corrected=PowerLaw(
            quantity=quantity,
            exponent=fitted.exponent - float(own[0]),
            log_coefficient=fitted.log_coefficient - float(own[1]),
            interval=interval(corrected[:, 0]) if len(corrected) else None,
            draws=tuple((float(intercept), float(exponent)) for exponent, intercept in corrected),
        ),
    )
