"""isoFLOP curves: the best configuration at each budget, and how it, its tokens and its loss go with compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from isoloop.fitting.cost import AnyCost
from isoloop.fitting.isoflop.parabola import POINTS_NEEDED, Curve, Noise, Redraws, pooled_noise, redraw
from isoloop.fitting.isoflop.power_law import (
    FLOOR_BUDGETS,
    MinimalLossLaw,
    PowerLaw,
    fit_minimal_loss,
    fit_power_law,
    lines,
)
from isoloop.fitting.tables.runs import implausible_rows

AXIS_NAMES = {"mean_recurrence": "mean recurrence", "params": "parameter count", "tokens": "token count"}
"""What the columns that a curve may run along are called in sentences."""

_BUDGETS_NEEDED = 2
_MANY_REJECTED = 0.05
_UNLIKELY_SCATTER = 0.01
_LARGEST_LOG = 300.0


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The parabola of one budget (FLOPs): loss = a log(v)^2 + b log(v) + c in nats per token, and its vertex.

    v is the mean recurrence, for dense models the parameter count; the other of the two is None. `log_error` is the
    standard error of log(v*), `loss_error` that of the least loss. A budget that does not count has `included` False
    and a `reason`; its vertex is None where the curve has none.
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


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """How far parabolas in log(v) and in log(tokens), fitted apart, contradict each other where both have a minimum.

    `overspent` is, per budget of `budgets` (FLOPs), how many percent more than the budget the two minima would spend
    together. `tokens_exponent` is that of the parabolas in log(tokens), `implied_tokens_exponent` what the parabolas in
    log(v) imply at the same budgets, and `spent_exponent` says that the two minima together spend C to this power: 1 if
    they agreed. The exponents are None with fewer than 2 budgets.
    """

    budgets: tuple[float, ...]
    overspent: tuple[float, ...]
    tokens_exponent: float | None
    implied_tokens_exponent: float | None
    spent_exponent: float | None


@dataclass(frozen=True, kw_only=True)
class IndependentTokens:
    """Parabolas in log(tokens), fitted apart as is common: what `tokens_law` would be without the FLOP model."""

    minima: tuple[Minimum, ...]
    tokens_law: PowerLaw | None
    interval_method: str


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """Minima by growing budget, and the power laws of the included ones; `reason` says what is missing of them.

    `axis` is the column along which the curves run: of `mean_recurrence_law` and `params_law` the other is None.
    `loss_law` and `loss_floor_law` are of the least loss, `curvature_law` is of the parabolas' a. `noise` is the
    standard deviation of one loss about its curve (nats), with `noise_dof` degrees of freedom.
    `redraws_without_minimum` is the share of the redraws behind the intervals in which a curve lost its minimum and was
    drawn again. `notes` say what to know about the intervals.
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
        """The minima that the power laws rest on."""
        return tuple(minimum for minimum in self.minima if minimum.included)


def fit_isoflop(
    table: pd.DataFrame, cost_model: AnyCost, *, draws: int = 200, seed: int = 0, independent: bool = False
) -> IsoflopFit:
    """Fit parabolas to the finished runs of each budget, and power laws to their minima.

    The parabolas are in the log of the cost model's axis: the mean recurrence, or `params` for dense models, whose
    table needs only the columns params, tokens, budget and loss. D* follows from the cost model, so that the two spend
    exactly the budget. How far a parabola in log(tokens) would contradict it is always computed; with `independent`,
    those parabolas and their power law are a part of the result. The intervals carry each minimum's own uncertainty
    (see `redraw`). They are about what the same parabolas give without noise, which is not the optimum of the law
    behind skewed curves: see `parabola_bias`. Raises ValueError where the table has no budgets.
    """
    rows = _rows(table, cost_model.axis)
    curves = _curves(rows, cost_model.axis)
    noise = pooled_noise(curves)
    minima = tuple(_minimum(curve, noise, cost_model.axis, cost_model) for curve in curves)
    apart_curves = _curves(rows, "tokens")
    apart_noise = pooled_noise(apart_curves)
    apart = tuple(_minimum(curve, apart_noise, "tokens", cost_model) for curve in apart_curves)
    used = [curve for curve, minimum in zip(curves, minima, strict=True) if minimum.included]
    redraws = redraw(used, noise, draws, seed) if noise and draws and len(used) >= _BUDGETS_NEEDED else None
    reason = None
    if len(used) < _BUDGETS_NEEDED:
        reason = f"power laws need {_BUDGETS_NEEDED} budgets with a minimum inside the grid, but {len(used)} have one"
    elif redraws is None and draws and len(used) < 3:
        reason = "intervals need 3 budgets, or more points than 3 per budget"
    laws: dict[str, PowerLaw | None] = _power_laws(used, cost_model, redraws) if len(used) >= _BUDGETS_NEEDED else {}
    return IsoflopFit(
        axis=cost_model.axis,
        minima=minima,
        mean_recurrence_law=laws.get("mean_recurrence"),
        params_law=laws.get("params"),
        tokens_law=laws.get("tokens"),
        curvature_law=laws.get("curvature"),
        loss_law=_loss_law(used, redraws, floor=False),
        loss_floor_law=_loss_law(used, redraws, floor=True),
        disagreement=_disagreement(minima, apart, cost_model),
        independent=_independent(apart_curves, apart, apart_noise, draws, seed) if independent else None,
        noise=None if noise is None else float(np.sqrt(noise.variance)),
        noise_dof=0 if noise is None else noise.freedom,
        interval_method=_method(used, noise, redraws),
        redraws_without_minimum=redraws.rejected if redraws else 0.0,
        notes=_notes(used, noise, redraws),
        reason=reason,
    )


def predict_from_minima(fit: IsoflopFit, budget: ArrayLike, axis_value: ArrayLike, *, floor: bool) -> np.ndarray:
    """Loss (nats per token) of runs that spend `budget` FLOPs at `axis_value`, from the minima's power laws alone.

    The least loss at C comes from `loss_floor_law` if `floor`, else from `loss_law`; off the optimum x*(C) of the
    axis's power law it rises as a(C) log(x / x*)^2. log a is extrapolated linearly in log C, because a law
    L = E + X N^-x + Y D^-y gives parabolas whose curvature falls as its reducible loss does, which is a power of C; an
    average over the budgets would hold it constant. Raises ValueError where the fit has too few minima.
    """
    law = fit.loss_floor_law if floor else fit.loss_law
    if law is None or fit.axis_law is None or fit.curvature_law is None:
        needed = FLOOR_BUDGETS if floor else _BUDGETS_NEEDED
        raise ValueError(
            f"a prediction from minima {'with' if floor else 'without'} a floor needs {needed} budgets with a minimum "
            f"inside the grid, but {len(fit.included)} have one; add budgets, or widen the grid"
        )
    offset = np.log(axis_value) - fit.axis_law.log_at(budget)
    return np.asarray(law.at(budget) + np.exp(fit.curvature_law.log_at(budget)) * offset**2)


def isoflop_curves(table: pd.DataFrame, axis: str) -> list[Curve]:
    """The points of each budget's curve along `axis`, by growing budget; raises ValueError without budgets."""
    return _curves(_rows(table, axis), axis)


def _rows(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The rows that have a budget; the loss is missing where the run did not finish."""
    if "budget" not in table or table["budget"].isna().all():
        raise ValueError("isoFLOP curves need the column `budget`, but no run has one; sweep over compute budgets")
    missing = [name for name in (axis, "tokens", "loss") if name not in table]
    if missing:
        raise ValueError(f"isoFLOP curves along `{axis}` need the columns {', '.join(missing)}, but they are missing")
    rows = table[table["budget"].notna()]
    usable = np.isfinite(rows["loss"].to_numpy(dtype=float))
    if "status" in rows:
        usable &= (rows["status"] == "finished").to_numpy() & ~implausible_rows(rows)
    return rows.assign(loss=rows["loss"].where(usable))


def _curves(rows: pd.DataFrame, axis: str) -> list[Curve]:
    """One curve per budget, by growing budget, its points sorted so that the order of rows does not matter."""
    budgets, values, losses = (rows[name].to_numpy(dtype=float) for name in ("budget", axis, "loss"))
    order = np.lexsort((losses, values))
    curves = []
    for budget in np.unique(budgets):
        mine = order[budgets[order] == budget]
        there = mine[np.isfinite(losses[mine]) & (values[mine] > 0)]
        curve = Curve(budget=float(budget), log_axis=np.log(values[there]), loss=losses[there], runs=len(mine))
        curves.append(curve)
    return curves


def _minimum(curve: Curve, noise: Noise | None, axis: str, cost_model: AnyCost) -> Minimum:
    points = len(curve.loss)
    if curve.distinct < POINTS_NEEDED:
        lost = curve.runs - points
        without = f" ({lost} of its {curve.runs} runs have no loss)" if lost else ""
        reason = f"a parabola needs {POINTS_NEEDED} {AXIS_NAMES[axis]}s, but there are {curve.distinct}{without}"
        return Minimum(budget=curve.budget, points=points, included=False, reason=reason)
    a, b, c = (float(value) for value in curve.coefficients)
    m = curve.centre
    raw = (a, b - 2 * a * m, c - b * m + a * m**2)
    vertex = float(curve.vertex(curve.coefficients))
    if np.isnan(vertex):
        reason = "the curve opens downwards or is flat, so it has no minimum"
        return Minimum(budget=curve.budget, points=points, included=False, reason=reason, curve=raw)
    log_error = loss_error = None
    if noise is not None:
        log_error, loss_error = (float(np.sqrt(noise.variance * _variances([curve], of)[0])) for of in (0, 1))
    # A vertex far outside is no estimate, and its exponential may overflow.
    low, high = curve.grid
    best = float(np.exp(vertex)) if low - 50 < vertex < high + 50 and abs(vertex) < _LARGEST_LOG else None
    along_tokens = axis == "tokens"
    tokens = best if along_tokens or best is None else float(cost_model.tokens_for(curve.budget, best))
    return Minimum(
        budget=curve.budget,
        points=points,
        included=low < vertex < high,
        reason=_at_edge(curve, vertex, axis),
        curve=raw,
        mean_recurrence=best if axis == "mean_recurrence" else None,
        params=best if axis == "params" else None,
        log_error=log_error,
        tokens=tokens,
        loss=float(curve.minimal_loss(curve.coefficients)),
        loss_error=loss_error,
    )


def _at_edge(curve: Curve, vertex: float, axis: str) -> str | None:
    low, high = curve.grid
    if low < vertex < high:
        return None
    side, edge, end = ("below", low, "smallest") if vertex <= low else ("above", high, "largest")
    return (
        f"the minimum is at the grid's edge: the best {AXIS_NAMES[axis]} is {side} {np.exp(edge):.3g}, the grid's {end}"
    )


def _power_laws(curves: list[Curve], cost_model: AnyCost, redraws: Redraws | None) -> dict[str, PowerLaw | None]:
    """The power laws of the curves' vertices, tokens and curvature, by name."""
    budgets = np.array([curve.budget for curve in curves])
    vertices = _vertices(curves)
    drawn = _enough(redraws.vertices if redraws else np.empty((0, len(curves))), _BUDGETS_NEEDED)
    curvatures = np.log([curve.coefficients[0] for curve in curves])
    drawn_curvatures = _enough(redraws.log_curvatures if redraws else drawn, _BUDGETS_NEEDED)
    axis = cost_model.axis
    return {
        axis: fit_power_law(AXIS_NAMES[axis], budgets, vertices, drawn),
        "tokens": fit_power_law(
            "tokens", budgets, log_tokens(budgets, vertices, cost_model), log_tokens(budgets, drawn, cost_model)
        ),
        # A shallow curve says little about its own depth, so here the minima's weights differ.
        "curvature": fit_power_law("curvature", budgets, curvatures, drawn_curvatures, 1 / _variances(curves, 2)),
    }


def log_tokens(budgets: np.ndarray, log_axis: np.ndarray, cost_model: AnyCost) -> np.ndarray:
    """Log of the tokens that spend exactly the budgets (budgets,) at each vertex: log_axis (..., budgets) to same."""
    return np.asarray(np.log(cost_model.tokens_for(budgets, np.exp(log_axis))))


def _vertices(curves: list[Curve]) -> np.ndarray:
    return np.array([float(curve.vertex(curve.coefficients)) for curve in curves])


def _variances(curves: list[Curve], of: int) -> np.ndarray:
    """For losses of unit noise, the variance of each curve's vertex (0), minimal loss (1) or log curvature (2)."""
    return np.array([(curve.slopes()[of] ** 2).sum() for curve in curves])


def _enough(drawn: np.ndarray, needed: int) -> np.ndarray:
    """The rows of `drawn` (draws, budgets) that have a minimum at so many budgets."""
    return drawn[(~np.isnan(drawn)).sum(axis=1) >= needed]


def _loss_law(curves: list[Curve], redraws: Redraws | None, *, floor: bool) -> MinimalLossLaw | None:
    needed = FLOOR_BUDGETS if floor else _BUDGETS_NEEDED
    if len(curves) < needed:
        return None
    budgets = np.array([curve.budget for curve in curves])
    losses = np.array([float(curve.minimal_loss(curve.coefficients)) for curve in curves])
    drawn = _enough(redraws.losses if redraws else np.empty((0, len(curves))), needed)
    # The noise is common to all budgets, so what a minimum weighs follows from its curve alone.
    return fit_minimal_loss(budgets, losses, drawn, 1 / _variances(curves, 1), floor=floor)


def _disagreement(minima: tuple[Minimum, ...], apart: tuple[Minimum, ...], cost_model: AnyCost) -> Disagreement | None:
    both = [(one, other) for one, other in zip(minima, apart, strict=True) if one.included and other.included]
    if not both:
        return None
    budgets = np.array([one.budget for one, _ in both])
    best = np.array([getattr(one, cost_model.axis) for one, _ in both])
    implied = np.array([one.tokens for one, _ in both], dtype=float)
    tokens = np.array([other.tokens for _, other in both], dtype=float)
    spent = cost_model.flops_for(tokens, best)
    exponents: list[float] | None = None
    if len(both) >= _BUDGETS_NEEDED:
        exponents = [float(line[0]) for line in lines(np.log(budgets), np.log([tokens, implied, spent]))]
    return Disagreement(
        budgets=tuple(float(budget) for budget in budgets),
        overspent=tuple(float(percent) for percent in 100 * (spent / budgets - 1)),
        tokens_exponent=exponents[0] if exponents else None,
        implied_tokens_exponent=exponents[1] if exponents else None,
        spent_exponent=exponents[2] if exponents else None,
    )


def _independent(
    curves: list[Curve], minima: tuple[Minimum, ...], noise: Noise | None, draws: int, seed: int
) -> IndependentTokens:
    used = [curve for curve, minimum in zip(curves, minima, strict=True) if minimum.included]
    redraws, law = None, None
    if len(used) >= _BUDGETS_NEEDED:
        redraws = redraw(used, noise, draws, seed) if noise and draws else None
        drawn = _enough(redraws.vertices if redraws else np.empty((0, len(used))), _BUDGETS_NEEDED)
        law = fit_power_law("tokens", np.array([curve.budget for curve in used]), _vertices(used), drawn)
    return IndependentTokens(minima=minima, tokens_law=law, interval_method=_method(used, noise, redraws))


def _method(used: list[Curve], noise: Noise | None, redraws: Redraws | None) -> str:
    if redraws is not None and noise is not None:
        return (
            f"curves redrawn with the noise about {noise.about} ({noise.freedom} degrees of freedom); one without a "
            "minimum within a grid's width of the grid is drawn again"
        )
    return "scatter of the minima about the power law" if len(used) >= 3 else "none"


def _notes(used: list[Curve], noise: Noise | None, redraws: Redraws | None) -> tuple[str, ...]:
    """What to know about the intervals, as sentences."""
    if len(used) < _BUDGETS_NEEDED:
        return ()
    said = []
    if len(used) == _BUDGETS_NEEDED:
        said.append("Two budgets give a line, and nothing tests whether the minima follow a power law.")
    if redraws is not None and redraws.rejected > _MANY_REJECTED:
        said.append(
            f"In {redraws.rejected:.0%} of the redraws, noise took a budget's minimum away: the curves are hardly "
            "deeper than the noise, and the intervals rest on the minima being near the grid."
        )
    if redraws is not None and noise is not None and not noise.shape_taken_out:
        said.append(
            "With so few points, what a parabola cannot follow counts as noise: where curves are measured well, the "
            "intervals are wider than they need be."
        )
    if noise is not None and noise.variance > 0 and len(used) > _BUDGETS_NEEDED:
        losses = np.array([float(curve.minimal_loss(curve.coefficients)) for curve in used])
        vertex_excess = _excess_scatter(used, _vertices(used), noise.variance * _variances(used, 0), noise)
        loss_excess = _excess_scatter(used, np.log(losses), noise.variance * _variances(used, 1) / losses**2, noise)
        if vertex_excess is not None:
            said.append(
                f"The minima scatter about the power law {vertex_excess:.1f} times as much as their errors explain: "
                "they do not quite follow one, which the intervals do not hold."
            )
        if loss_excess is not None:
            said.append(
                f"The least losses scatter about a pure power law {loss_excess:.1f} times as much as their errors "
                "explain: it describes these budgets and extrapolates badly."
            )
    return tuple(said)


def _excess_scatter(curves: list[Curve], logs: np.ndarray, variances: np.ndarray, noise: Noise) -> float | None:
    """How many times their errors `logs` (curves,) are off a line in log C, None where chance may have done it."""
    log_budget = np.log([curve.budget for curve in curves])
    slope, intercept = lines(log_budget, logs[None], 1 / variances)[0]
    freedom = len(curves) - 2
    excess = float(np.sum((logs - intercept - slope * log_budget) ** 2 / variances)) / freedom
    return float(np.sqrt(excess)) if stats.f.sf(excess, freedom, noise.freedom) < _UNLIKELY_SCATTER else None
