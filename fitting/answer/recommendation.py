"""The best model for a budget: one recommended value with one interval, and those of the other methods beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.isoflop.power_law import POWER_LAWS, WITHOUT_BIAS, PowerLaw
from isoloop.fitting.laws.base import search_bounds
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.mixture import NAMED_WEIGHT, LawMixture, law_mixture

Interval = tuple[float, float]

ANSWER_MULTIPLE = 2.0
"""Budget of the first answer of a report or a page, as a multiple of the largest fitted compute."""
BUDGET_ROUNDING = 1.02
"""Budgets are met within 1%, so a value less than 2% outside a range counts as inside."""
_LOG_ROUNDING = 1e-9
_BY_LAW = (
    "laws of the loss are fitted to every run and not to minima alone, and in simulated sweeps they missed the best "
    "{name} least"
)


@dataclass(frozen=True, kw_only=True)
class BestModel:
    """The best model for a budget by one `method`: `value` on the fit's axis, tokens, and loss (nats per token).

    Intervals are 95%, and None where there are no draws or where simulated sweeps showed that they would not be 95%.
    `extra_loss` is what choosing this model costs (nats per token) by the recommended method's law; None without a law.
    `at_bound` is True if the model is at an end of the search, so that a better one may lie outside.
    """

    method: str
    value: float
    value_interval: Interval | None
    tokens: float
    tokens_interval: Interval | None
    loss: float
    loss_interval: Interval | None
    extra_loss: float | None
    at_bound: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recommendation(BestModel):
    """The model to train with `flops`, the `reason` for its method, and the models that `others` would choose."""

    flops: float
    reason: str
    others: tuple[BestModel, ...]


def recommendation(fit: SweepFit, flops: float) -> Recommendation:
    """Return the best model for `flops` by the method that simulated sweeps showed to be nearest to the truth.

    That is the mixture of the laws of the loss after training, where one was fitted, else the power law of the minima
    of isoFLOP curves. docs/fitting.md has the simulations. Raises ValueError for a budget that is not positive and
    finite, and for a fit that has neither a law nor a power law.
    """
    if not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"flops must be positive and finite, but got {flops}; give a positive number")
    why_none = why_no_recommendation(fit)
    if why_none is not None:
        raise ValueError(f"the best model for a budget needs a law or a power law, but {why_none}; add runs")
    by_power_law = [_by_power_law(fit, name, law, flops) for name, law in named_power_laws(fit)]
    laws = fit.laws_after_training
    if laws is not None:
        best, others = _by_laws(fit, laws, flops), [*_by_each_law(fit, laws, flops), *by_power_law]
        reason = f"{_BY_LAW.format(name=AXES[fit.axis].name)}; {laws.reason}"
    else:
        best, *others = by_power_law
        reason = f"there is no law of the loss to use instead: {fit.why_missing('training')}"
    return Recommendation(
        **{field: getattr(best, field) for field in BestModel.__dataclass_fields__},
        flops=flops,
        reason=reason,
        others=tuple(_with_extra_loss(fit, other, best) for other in others),
    )


def why_no_recommendation(fit: SweepFit) -> str | None:
    """Return the reason why a fit has no best model for a budget, None if it has one."""
    if fit.laws_after_training is not None or named_power_laws(fit):
        return None
    curves = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
    law = "law of the loss" if fit.axis == "params" else "training law"
    return (
        f"there is no {law} ({fit.why_missing('training')}) and no power law of {AXES[fit.axis].plain_symbol}* "
        f"({curves})"
    )


def named_power_laws(fit: SweepFit) -> list[tuple[str, PowerLaw]]:
    """Return the isoFLOP power laws of the best value on the axis, by name: as fitted, and without parabolas' bias."""
    fitted = fit.isoflop.axis_law if fit.isoflop else None
    corrected = fit.parabola_bias.axis_exponent.corrected if fit.parabola_bias else None
    named = ((POWER_LAWS, fitted), (f"{POWER_LAWS} {WITHOUT_BIAS}", corrected))
    return [(name, law) for name, law in named if law is not None]


def axis_bounds(fit: SweepFit) -> Interval:
    """Return the mean recurrences (loops), or parameters, between which the best model is searched for."""
    return search_bounds(fit.axis, *fit.fitted.of_axis(fit.axis))


def _by_laws(fit: SweepFit, laws: LawMixture, flops: float) -> BestModel:
    """Return the best model by the laws of the loss; the interval of its loss is that of one measured run."""
    bounds = axis_bounds(fit)
    optimum = laws.optimum(fit.cost_model, flops, bounds)
    value, tokens = float(optimum.best.at), float(optimum.best.tokens)
    data = fit.cost_model.model_columns([value], [tokens])
    spans = laws.loss_interval(data)
    at_bound = bool(optimum.best.at_bound)
    name, form = AXES[fit.axis].name, "g" if fit.axis == "mean_recurrence" else ".3g"
    search = f"the end of the search from {bounds[0]:{form}} to {bounds[1]:{form}}"
    notes = [f"the best {name} is at {search}"] if at_bound else []
    span = optimum.interval_of("at")
    # The search is in logs, so an end of it comes back with a rounding error.
    if span and (span[0] <= bounds[0] * (1 + _LOG_ROUNDING) or span[1] >= bounds[1] * (1 - _LOG_ROUNDING)):
        notes.append(f"the 95% interval of the {name} ends at {search}, so it may be wider")
    return BestModel(
        method=laws.name,
        value=value,
        value_interval=span,
        tokens=tokens,
        tokens_interval=optimum.interval_of("tokens"),
        loss=float(laws.loss(data)[0]),
        loss_interval=(float(spans[0][0]), float(spans[1][0])) if spans else None,
        extra_loss=0.0,
        at_bound=at_bound,
        notes=tuple(notes),
    )


def _by_each_law(fit: SweepFit, laws: LawMixture, flops: float) -> list[BestModel]:
    """Return the best model by each of several laws alone, without intervals."""
    named = [law for law, weight in zip(laws.laws, laws.weights, strict=True) if weight >= NAMED_WEIGHT]
    if len(named) < 2:
        return []
    alone = [law_mixture([replace(law, draws=())]) for law in named]
    return [replace(model, method=f"{model.method} alone") for model in (_by_laws(fit, each, flops) for each in alone)]


def _by_power_law(fit: SweepFit, name: str, law: PowerLaw, flops: float) -> BestModel:
    """Return the best model by a power law of the minima; its loss is that of the minima.

    The value has no interval: a power law of the best value is wrong in form, and parabolas are biased, so the 95%
    intervals of redrawn curves held the true optimum in 0 to 100% of simulated sweeps.
    """
    value = law.at(flops)
    minimal = fit.isoflop and (fit.isoflop.loss_floor_law or fit.isoflop.loss_law)
    assert minimal  # wherever minima have power laws, their losses have one
    notes = [f"the {name} ask for a mean recurrence of {value:.3g}, but a loop runs at least once"]
    # A power law gone astray may ask for no tokens, or infinitely many.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        tokens = float(fit.cost_model.tokens_for(flops, value))
    return BestModel(
        method=name,
        value=value,
        value_interval=None,
        tokens=tokens,
        tokens_interval=None,
        loss=float(minimal.at(flops)),
        loss_interval=minimal.interval_at(flops),
        extra_loss=None,
        notes=tuple(notes) if fit.axis == "mean_recurrence" and value < 1 else (),
    )


def _with_extra_loss(fit: SweepFit, other: BestModel, best: BestModel) -> BestModel:
    """Return another method's model with the loss that the recommended laws give it."""
    laws = fit.laws_after_training
    if laws is None:
        return other
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        loss = float(laws.loss(fit.cost_model.model_columns([other.value], [other.tokens]))[0])
    extra = loss - best.loss
    extra = 0.0 if abs(extra) < _LOG_ROUNDING else extra
    return replace(other, loss=loss, loss_interval=None, extra_loss=extra)
