"""isoFLOP curves: the best configuration at each budget, and the growth of it, its tokens and its loss with compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from isoloop.fitting.cost import Cost
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import BootstrapKind
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.isoflop.parabola import (
    POINTS_NEEDED,
    CurveNoise,
    IsoflopCurve,
    Redraws,
    clearly_curved,
    may_have_minimum,
    pooled_noise,
    redraw,
)
from isoloop.fitting.isoflop.power_law import (
    BUDGETS_NEEDED,
    FLOOR_BUDGETS,
    MinimalLossLaw,
    PowerLaw,
    fit_minimal_loss,
    fit_power_law,
    lines,
    scattered,
)
from isoloop.fitting.tables.best_loss import with_best_losses
from isoloop.fitting.tables.budgets import why_no_budgets
from isoloop.fitting.tables.runs import implausible_rows

HARDLY_DETERMINED = "the minima are hardly determined"
"""Words in the note of a fit whose curves are hidden in the noise; see `IsoflopFit.notes`."""
PURE_POWER_LAW = "The least losses scatter about a pure power law"
"""Words with which a note says that L* = k C^-g describes the minima, and predicts none; see `IsoflopFit.notes`."""
_SCATTER = "scatter of the minima about the power law"
_MANY_REJECTED = 0.05
_UNLIKELY_SCATTER = 0.01
_LARGEST_LOG = 300.0


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The parabola of one budget (FLOPs): loss = a log(v)^2 + b log(v) + c in nats per token, and its vertex.

    v is the mean recurrence, or for dense models the parameter count; the other of the two is None. `log_error` is the
    standard error of log(v*), `loss_error` that of the least loss. A budget that is left out of the power laws has
    `included` False and a `reason`; its vertex is None if the curve has none. `noise_scale` is the noise of this
    budget's losses relative to the table's.
    """

    budget: float
    points: int
    included: bool
    reason: str | None = None
    curve: tuple[float, float, float] | None = None
    mean_recurrence: float | None = None
    params: float | None = None
    log_error: float | None = None
    tokens: float | None = None
    loss: float | None = None
    loss_error: float | None = None
    noise_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """The contradiction between parabolas in log(v) and separately fitted ones in log(tokens), if both have a minimum.

    `overspent` has, for each of `budgets` (FLOPs), how many percent more than the budget the two minima together would
    spend. `tokens_exponent` is that of the parabolas in log(tokens), `implied_tokens_exponent` that implied by the
    parabolas in log(v) at the same budgets, and `spent_exponent` the power of C that the two minima together spend: 1
    if they agreed. The exponents are None with fewer than 2 budgets.
    """

    budgets: tuple[float, ...]
    overspent: tuple[float, ...]
    tokens_exponent: float | None
    implied_tokens_exponent: float | None
    spent_exponent: float | None


@dataclass(frozen=True, kw_only=True)
class IndependentTokens:
    """Parabolas in log(tokens), fitted separately as is common; `tokens_law` is theirs, without the FLOP model."""

    minima: tuple[Minimum, ...]
    tokens_law: PowerLaw | None
    interval_method: str


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """Minima by growing budget and the power laws of the included ones; `reason` explains what of them is missing.

    `axis` is the column along which the curves run; `mean_recurrence_law` or `params_law` belongs to it, and the other
    is None. `loss_law` and `loss_floor_law` describe the least loss, `curvature_law` the parabolas' a. `noise` is the
    standard deviation of one loss about its curve (nats), with `noise_dof` degrees of freedom; where budgets differ in
    noise it is that of a budget whose `noise_scale` is 1. `redraws_without_minimum` is the share of the redraws behind
    the intervals in which a curve lost its minimum and was drawn again. `notes` are caveats about the intervals.
    """

    axis: str
    minima: tuple[Minimum, ...]
    mean_recurrence_law: PowerLaw | None
    params_law: PowerLaw | None
    tokens_law: PowerLaw | None
    curvature_law: PowerLaw | None
    loss_law: MinimalLossLaw | None
    loss_floor_law: MinimalLossLaw | None
    disagreement: Disagreement | None
    independent: IndependentTokens | None
    noise: float | None
    noise_dof: int
    interval_method: str
    redraws_without_minimum: float = 0.0
    notes: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def axis_law(self) -> PowerLaw | None:
        """The power law of the best value along the axis."""
        return self.mean_recurrence_law if self.axis == "mean_recurrence" else self.params_law

    @property
    def included(self) -> tuple[Minimum, ...]:
        """The minima that the power laws are fitted to."""
        return tuple(minimum for minimum in self.minima if minimum.included)


def fit_isoflop(
    table: pd.DataFrame,
    cost_model: Cost,
    *,
    draws: int = 200,
    seed: int = 0,
    independent: bool = False,
    noise: NoiseModel | None = None,
    kind: BootstrapKind = "parametric",
) -> IsoflopFit:
    """Fit parabolas to the finished runs of each budget, and power laws to their minima.

    The parabolas are in the log of the cost model's axis: the mean recurrence, or `params` for dense models, whose
    table needs only the columns params, tokens, budget and loss. D* follows from the cost model, so that the two spend
    exactly the budget. How far a parabola in log(tokens) would contradict it is always computed; with `independent`,
    those parabolas and their power law are part of the result. The intervals include each minimum's own uncertainty
    (see `redraw`). They are intervals of what the same parabolas give without noise, which is not the optimum of the
    law behind skewed curves: see `parabola_bias`.

    Where `noise` says that noise differs between budgets, each curve is redrawn with its own, and the minima
    weigh in the power laws by the inverse of its standard deviation. (The inverse variance would trust the least noisy
    minima too much: since a minimum counts only inside the grid, the noisiest scatter less than their errors say.) Luck
    that the runs of a budget share moves its curve up or down, not its vertex.

    With the `kind` "budgets" the power laws of the minima have intervals from the scatter of the minima about them, for
    whatever tilts all losses of a budget; they need 3 budgets. "rows" makes no difference, since a budget has too few
    rows to resample them. Raises ValueError if the table has no budgets.
    """
    # Curves and their minima
    rows = _rows_with_budget(table, cost_model.axis)
    curves, token_curves = (_curves(rows, axis, noise) for axis in (cost_model.axis, "tokens"))
    curve_noise, token_noise = pooled_noise(curves), pooled_noise(token_curves)
    minima = tuple(_fit_minimum(curve, curve_noise, cost_model.axis, cost_model) for curve in curves)
    token_minima = tuple(_fit_minimum(curve, token_noise, "tokens", cost_model) for curve in token_curves)
    # Power laws, and redraws for their intervals
    used, hidden, redraws = _included_curves(curves, minima, curve_noise, draws, seed)
    by_scatter = kind == "budgets" and redraws is not None and len(used) > BUDGETS_NEEDED
    if redraws is not None and by_scatter:
        hidden = []
        redraws = replace(redraws, vertices=scattered(_curve_budgets(used), _vertices(used), draws, seed))
    reason = None
    if len(used) < BUDGETS_NEEDED:
        reason = f"power laws need {BUDGETS_NEEDED} budgets with a minimum inside the grid, but {_have_one(len(used))}"
    elif redraws is None and draws and len(used) < 3:
        reason = "intervals need 3 budgets, or more than 3 points per budget"
    laws: dict[str, PowerLaw] = (
        _fit_power_laws(used, hidden, cost_model, redraws) if len(used) >= BUDGETS_NEEDED else {}
    )
    separate = None
    if independent:
        token_used, token_hidden, token_redraws = _included_curves(token_curves, token_minima, token_noise, draws, seed)
        enough = len(token_used) >= BUDGETS_NEEDED
        separate = IndependentTokens(
            minima=token_minima,
            tokens_law=_vertex_law("tokens", token_used, token_hidden, token_redraws) if enough else None,
            interval_method=_interval_method(token_used, token_noise, token_redraws),
        )
    return IsoflopFit(
        axis=cost_model.axis,
        minima=minima,
        mean_recurrence_law=laws.get("mean_recurrence"),
        params_law=laws.get("params"),
        tokens_law=laws.get("tokens"),
        curvature_law=laws.get("curvature"),
        loss_law=_loss_law(used, redraws, floor=False),
        loss_floor_law=_loss_law(used, redraws, floor=True),
        disagreement=_disagreement(minima, token_minima, cost_model),
        independent=separate,
        noise=None if curve_noise is None else float(np.sqrt(curve_noise.variance)),
        noise_dof=0 if curve_noise is None else curve_noise.dof,
        interval_method=_SCATTER if by_scatter else _interval_method(used, curve_noise, redraws, hidden),
        redraws_without_minimum=redraws.rejected if redraws else 0.0,
        notes=_notes(used, hidden, curve_noise, redraws, by_scatter=by_scatter),
        reason=reason,
    )


def predict_from_minima(fit: IsoflopFit, budget: ArrayLike, axis_value: ArrayLike, *, floor: bool) -> np.ndarray:
    """Predict the loss (nats per token) of runs that spend `budget` FLOPs at `axis_value`, from the minima alone.

    The least loss at C is that of `loss_floor_law` if `floor`, else of `loss_law`; off the optimum x*(C) of the axis's
    power law it rises as a(C) log(x / x*)^2. log a is extrapolated linearly in log C, because the parabolas of a law
    L = E + X N^-x + Y D^-y have a curvature that falls as its reducible loss does, which is a power of C; an average
    over the budgets would hold it constant. Raises ValueError if the fit has too few minima.
    """
    law = fit.loss_floor_law if floor else fit.loss_law
    if law is None or fit.axis_law is None or fit.curvature_law is None:
        needed = FLOOR_BUDGETS if floor else BUDGETS_NEEDED
        raise ValueError(
            f"a prediction from minima {'with' if floor else 'without'} a floor needs {needed} budgets with a minimum "
            f"inside the grid, but {_have_one(len(fit.included))}; add budgets, or widen the grid"
        )
    offset = np.log(axis_value) - fit.axis_law.log_at(budget)
    return np.asarray(law.at(budget) + np.exp(fit.curvature_law.log_at(budget)) * offset**2)


def isoflop_curves(table: pd.DataFrame, axis: str, noise_model: NoiseModel | None = None) -> list[IsoflopCurve]:
    """Return the curve of each budget along `axis`, by growing budget. Raises ValueError without budgets."""
    return _curves(_rows_with_budget(table, axis), axis, noise_model)


def log_tokens(budgets: np.ndarray, log_axis: np.ndarray, cost_model: Cost) -> np.ndarray:
    """Return the log of the tokens that spend exactly the budgets (budgets,) at `log_axis` (..., budgets)."""
    return np.asarray(np.log(cost_model.tokens_for(budgets, np.exp(log_axis))))


def _rows_with_budget(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Return the rows that have a budget; the loss is missing if the run did not finish or its loss is implausible."""
    if "budget" not in table or table["budget"].isna().all():
        raise ValueError(why_no_budgets(table))
    missing = [name for name in (axis, "tokens", "loss") if name not in table]
    if missing:
        raise ValueError(
            f"isoFLOP curves along `{axis}` need the columns {', '.join(missing)}, but they are missing; add them"
        )
    rows = with_best_losses(table[table["budget"].notna()])
    usable = np.isfinite(rows["loss"].to_numpy(dtype=float))
    if "status" in rows:
        usable &= (rows["status"] == "finished").to_numpy() & ~implausible_rows(rows)
    return rows.assign(loss=rows["loss"].where(usable))


def _curves(rows: pd.DataFrame, axis: str, noise_model: NoiseModel | None) -> list[IsoflopCurve]:
    """Return one curve per budget, by growing budget, with sorted points so that the order of rows does not matter."""
    budgets, values, losses = (rows[name].to_numpy(dtype=float) for name in ("budget", axis, "loss"))
    order = np.lexsort((losses, values))
    curves = []
    distinct = np.unique(budgets)
    scales = (
        noise_model.scales(distinct) if noise_model is not None and noise_model.exponent else np.ones(len(distinct))
    )
    for budget, scale in zip(distinct, scales, strict=True):
        runs = order[budgets[order] == budget]
        points = runs[np.isfinite(losses[runs]) & (values[runs] > 0)]
        log_axis = np.log(values[points])
        curve = IsoflopCurve(
            budget=float(budget), log_axis=log_axis, loss=losses[points], runs=len(runs), scale=float(scale)
        )
        curves.append(curve)
    return curves


def _fit_minimum(curve: IsoflopCurve, noise: CurveNoise | None, axis: str, cost_model: Cost) -> Minimum:
    minimum = Minimum(budget=curve.budget, points=len(curve.loss), included=False, noise_scale=curve.scale)
    if curve.distinct_values < POINTS_NEEDED:
        lost = curve.runs - minimum.points
        without = f" ({lost} of its {curve.runs} runs have no loss)" if lost else ""
        reason = f"a parabola needs {POINTS_NEEDED} {AXES[axis].name}s, but there are {curve.distinct_values}{without}"
        return replace(minimum, reason=reason)
    # The parabola about log(v) = 0 instead of the grid's centre
    a, b, c = (float(value) for value in curve.coefficients)
    m = curve.centre
    minimum = replace(minimum, curve=(a, b - 2 * a * m, c - b * m + a * m**2))
    vertex = float(curve.vertex(curve.coefficients))
    if np.isnan(vertex):
        return replace(minimum, reason="the curve opens downwards or is flat, so it has no minimum")
    # The vertex, its tokens and loss, and their errors
    log_error = loss_error = None
    if noise is not None:
        log_error, loss_error = (float(np.sqrt(noise.variance * _variances([curve], of)[0])) for of in (0, 1))
    low, high = curve.grid
    loss = float(curve.minimal_loss(curve.coefficients))
    if not loss > 0:
        return replace(minimum, reason=f"the curve's minimum would be a loss of {loss:.3g}, which none can have")
    # A vertex far outside is no estimate, and its exponential may overflow.
    best = float(np.exp(vertex)) if low - 50 < vertex < high + 50 and abs(vertex) < _LARGEST_LOG else None
    tokens = best if axis == "tokens" or best is None else float(cost_model.tokens_for(curve.budget, best))
    at_edge = None
    if not low < vertex < high:
        side, edge, end = ("below", low, "smallest") if vertex <= low else ("above", high, "largest")
        best_value = f"the best {AXES[axis].name} is {side} {np.exp(edge):.3g}, the grid's {end}"
        at_edge = f"the minimum is at the grid's edge: {best_value}"
    return replace(
        minimum,
        included=at_edge is None,
        reason=at_edge,
        mean_recurrence=best if axis == "mean_recurrence" else None,
        params=best if axis == "params" else None,
        log_error=log_error,
        tokens=tokens,
        loss=loss,
        loss_error=loss_error,
    )


def _included_curves(
    curves: list[IsoflopCurve], minima: tuple[Minimum, ...], noise: CurveNoise | None, draws: int, seed: int
) -> tuple[list[IsoflopCurve], list[IsoflopCurve], Redraws | None]:
    """Return the curves of the included minima; those that are left out because noise hides their minimum; and redraws
    of both, if the noise is known and enough are included.
    """
    pairs = list(zip(curves, minima, strict=True))
    used = [curve for curve, minimum in pairs if minimum.included]
    if noise is None:
        return used, [], None
    left_out = [curve for curve, minimum in pairs if not minimum.included and curve.distinct_values >= POINTS_NEEDED]
    hidden = [curve for curve in left_out if may_have_minimum(curve, noise)]
    enough = draws and len(used) >= BUDGETS_NEEDED
    return used, hidden, redraw(used, noise, draws, seed, hidden=hidden) if enough else None


def _fit_power_laws(
    curves: list[IsoflopCurve], hidden: list[IsoflopCurve], cost_model: Cost, redraws: Redraws | None
) -> dict[str, PowerLaw]:
    """Fit the power laws of the curves' vertices, tokens and curvature; return them by name."""
    every = [*curves, *hidden]
    vertices, drawn = _vertices(curves), _enough_minima(redraws.vertices if redraws else None, every)
    curvatures = np.log([curve.coefficients[0] for curve in curves])
    drawn_curvatures = _enough_minima(redraws.log_curvatures[:, : len(curves)] if redraws else None, curves)
    tokens = log_tokens(_curve_budgets(curves), vertices, cost_model)
    drawn_tokens = log_tokens(_curve_budgets(every), drawn, cost_model)
    return {
        cost_model.axis: _vertex_law(AXES[cost_model.axis].name, curves, hidden, redraws),
        "tokens": _power_law("tokens", curves, hidden, tokens, drawn_tokens),
        # A shallow curve says little about its own depth, so here the minima have different weights.
        "curvature": fit_power_law(
            "curvature", _curve_budgets(curves), curvatures, drawn_curvatures, 1 / _variances(curves, 2)
        ),
    }


def _vertex_law(
    quantity: str, curves: list[IsoflopCurve], hidden: list[IsoflopCurve], redraws: Redraws | None
) -> PowerLaw:
    drawn = _enough_minima(redraws.vertices if redraws else None, [*curves, *hidden])
    return _power_law(quantity, curves, hidden, _vertices(curves), drawn)


def _power_law(
    quantity: str, curves: list[IsoflopCurve], hidden: list[IsoflopCurve], logs: np.ndarray, drawn: np.ndarray
) -> PowerLaw:
    """Return the power law through the `logs` (curves,), and its draws from `drawn` (draws, curves and hidden ones)."""
    every = [*curves, *hidden]
    logs = np.concatenate([logs, np.full(len(hidden), np.nan)])
    return fit_power_law(quantity, _curve_budgets(every), logs, drawn, minima_weights(every))


def minima_weights(minima: Iterable[IsoflopCurve | Minimum]) -> np.ndarray:
    """Return the weights (budgets,) of minima in the power laws: equal ones, where every budget is as noisy."""
    return np.array([1 / (one.scale if isinstance(one, IsoflopCurve) else one.noise_scale) for one in minima])


def _loss_law(curves: list[IsoflopCurve], redraws: Redraws | None, *, floor: bool) -> MinimalLossLaw | None:
    needed = FLOOR_BUDGETS if floor else BUDGETS_NEEDED
    if len(curves) < needed:
        return None
    drawn = _enough_minima(redraws.losses[:, : len(curves)] if redraws else None, curves, needed)
    return fit_minimal_loss(
        _curve_budgets(curves), _minimal_losses(curves), drawn, 1 / _variances(curves, 1), floor=floor
    )


def _curve_budgets(curves: list[IsoflopCurve]) -> np.ndarray:
    return np.array([curve.budget for curve in curves])


def _vertices(curves: list[IsoflopCurve]) -> np.ndarray:
    return np.array([float(curve.vertex(curve.coefficients)) for curve in curves])


def _minimal_losses(curves: list[IsoflopCurve]) -> np.ndarray:
    return np.array([float(curve.minimal_loss(curve.coefficients)) for curve in curves])


def _variances(curves: list[IsoflopCurve], of: int) -> np.ndarray:
    """Return the variance of each vertex (0), minimal loss (1) or log curvature (2), where the table's noise is 1."""
    return np.array([curve.scale**2 * (curve.sensitivities()[of] ** 2).sum() for curve in curves])


def _enough_minima(drawn: np.ndarray | None, curves: list[IsoflopCurve], needed: int = BUDGETS_NEEDED) -> np.ndarray:
    """Return the rows of `drawn` (draws, budgets) that have a minimum at enough budgets; no rows for None."""
    drawn = np.empty((0, len(curves))) if drawn is None else drawn
    return drawn[(~np.isnan(drawn)).sum(axis=1) >= needed]


def _disagreement(
    minima: tuple[Minimum, ...], token_minima: tuple[Minimum, ...], cost_model: Cost
) -> Disagreement | None:
    pairs = [pair for pair in zip(minima, token_minima, strict=True) if pair[0].included and pair[1].included]
    if not pairs:
        return None
    budgets = np.array([minimum.budget for minimum, _ in pairs])
    best = np.array([getattr(minimum, cost_model.axis) for minimum, _ in pairs])
    implied = np.array([minimum.tokens for minimum, _ in pairs], dtype=float)
    tokens = np.array([token_minimum.tokens for _, token_minimum in pairs], dtype=float)
    spent = cost_model.flops_for(tokens, best)
    exponents: list[float] | list[None] = [None] * 3
    if len(pairs) >= BUDGETS_NEEDED:
        exponents = [float(line[0]) for line in lines(np.log(budgets), np.log([tokens, implied, spent]))]
    return Disagreement(
        budgets=tuple(float(budget) for budget in budgets),
        overspent=tuple(float(percent) for percent in 100 * (spent / budgets - 1)),
        tokens_exponent=exponents[0],
        implied_tokens_exponent=exponents[1],
        spent_exponent=exponents[2],
    )


def _interval_method(
    used: list[IsoflopCurve], noise: CurveNoise | None, redraws: Redraws | None, hidden: Sequence[IsoflopCurve] = ()
) -> str:
    if redraws is not None and noise is not None:
        own = ", each budget's its own" if any(curve.scale != 1 for curve in used) else ""
        method = (
            f"curves redrawn with the noise about {noise.about} ({noise.dof} degrees of freedom{own}); one without a "
            "minimum within a grid's width of the grid is drawn again"
        )
        if hidden:
            method += f"; {len(hidden)} that noise left out count in the redraws in which they have a minimum"
        return method
    return _SCATTER if len(used) >= 3 else "none"


def _notes(
    used: list[IsoflopCurve],
    hidden: list[IsoflopCurve],
    noise: CurveNoise | None,
    redraws: Redraws | None,
    *,
    by_scatter: bool,
) -> tuple[str, ...]:
    """Return caveats about the intervals, as sentences."""
    if len(used) < BUDGETS_NEEDED:
        return ()
    notes = []
    if len(used) == BUDGETS_NEEDED:
        notes.append("Two budgets give a line, but cannot show whether the minima follow a power law.")
    if noise is not None and noise.variance > 0:
        unclear = len(hidden) + sum(not clearly_curved(curve, noise) for curve in used)
        if unclear:
            notes.append(
                f"At {unclear} of {len(used) + len(hidden)} budgets the curve is not clearly deeper than the noise "
                f"(curvature below 2 standard errors), so {HARDLY_DETERMINED} there; run more seeds, or a wider grid."
            )
    if redraws is not None and redraws.rejected > _MANY_REJECTED:
        notes.append(
            f"In {redraws.rejected:.0%} of the redraws, noise took a budget's minimum away: the curves are hardly "
            "deeper than the noise, and the intervals assume that the minima are near the grid."
        )
    if redraws is not None and noise is not None and not noise.shape_removed:
        notes.append(
            "With so few points, a curve's departure from a parabola counts as noise: if the losses are measured well, "
            "the intervals are wider than they need be."
        )
    if noise is not None and noise.variance > 0 and len(used) > BUDGETS_NEEDED:
        losses = _minimal_losses(used)
        vertex_excess = _excess_scatter(used, _vertices(used), noise.variance * _variances(used, 0), noise)
        loss_excess = _excess_scatter(used, np.log(losses), noise.variance * _variances(used, 1) / losses**2, noise)
        omission = "include" if by_scatter else "leave out (with --bootstrap budgets they include it)"
        if vertex_excess is not None:
            notes.append(
                f"The minima scatter about the power law {vertex_excess:.1f} times as much as their errors explain: "
                f"they do not quite follow one, which the intervals {omission}."
            )
        if loss_excess is not None:
            notes.append(
                f"{PURE_POWER_LAW} {loss_excess:.1f} times as much as their errors "
                "explain: it describes these budgets and extrapolates badly."
            )
    return tuple(notes)


def _excess_scatter(
    curves: list[IsoflopCurve], logs: np.ndarray, variances: np.ndarray, noise: CurveNoise
) -> float | None:
    """Return the scatter of `logs` (curves,) about a line in log C, in units of their errors; None if chance explains
    it.
    """
    log_budget = np.log(_curve_budgets(curves))
    slope, intercept = lines(log_budget, logs[None], 1 / variances)[0]
    dof = len(curves) - 2
    excess = float(np.sum((logs - intercept - slope * log_budget) ** 2 / variances)) / dof
    return float(np.sqrt(excess)) if stats.f.sf(excess, dof, noise.dof) < _UNLIKELY_SCATTER else None


def _have_one(count: int) -> str:
    """Return how many budgets have a minimum inside the grid, as the end of a sentence."""
    return "none has one" if count == 0 else "only 1 has one" if count == 1 else f"{count} have one"
