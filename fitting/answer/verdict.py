"""The verdict on a fit: what its runs do not determine, for which reason, and what to run next."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoloop.fitting.answer.constrained import Limited
from isoloop.fitting.answer.recommendation import (
    ANSWER_MULTIPLE,
    BUDGET_ROUNDING,
    Recommendation,
    axis_bounds,
    recommendation,
    why_no_recommendation,
)
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import EXACT
from isoloop.fitting.estimation.rise import RISES
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.isoflop.rates import TUNED_RATES
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.misfit import Misfit
from isoloop.fitting.tables.mixed_losses import TWO_UNITS

NOT_DETERMINED = "not determined by these runs"
"""Words that take the place of a number that the runs do not determine."""
FEWEST_DOF = 3
"""Degrees of freedom below which a fit is no evidence: runs minus parameters, or budgets minus the two of a line."""
_LINE = 2
_MOST_OF_GRID = 0.9
"""Width of an interval as a share of the grid's, both in logs, above which it says nothing."""
_FARTHEST = 4
"""Multiple of the largest measured loops up to which a grid is widened at once."""
_ROUNDING = math.log(BUDGET_ROUNDING)


@dataclass(frozen=True, kw_only=True)
class Undetermined:
    """A `subject` that the runs do not determine, the `reason`, and the `advice`: the runs to make next.

    With `of_table`, the table seems to be wrong, and the advice mends it.
    """

    subject: str
    reason: str
    advice: str
    of_table: bool = False

    @property
    def next_step(self) -> str:
        """The advice as a sentence."""
        return f"If so, {self.advice}, and fit again." if self.of_table else f"Run next: {self.advice}."

    def __str__(self) -> str:
        """Return it as a sentence that begins with `NOT_DETERMINED`."""
        return f"{NOT_DETERMINED.capitalize()}: {self.subject}, because {self.reason}. {self.next_step}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The unknowns that the runs of a fit leave.

    Those of `answer` take the place of the best model for the budget, and those of `exponents` that of the exponents of
    the power laws. `caveats` are sentences that stand beside a number, which they leave in place.
    """

    answer: tuple[Undetermined, ...] = ()
    exponents: tuple[Undetermined, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it as sentences, the most important first."""
        return (*map(str, self.answer), *map(str, self.exponents), *self.caveats)


Reason = tuple[str, str]
"""A reason and the advice that goes with it."""


def verdict(fit: SweepFit, flops: float | None = None) -> Verdict:
    """Return what the runs of a fit do not determine, of its best model for `flops` and of its exponents.

    By default the budget is twice the largest fitted compute, as on a page. Raises ValueError as `recommendation` does
    for a budget that is none.
    """
    flops = ANSWER_MULTIPLE * fit.fitted.flops[1] if flops is None else flops
    why_none = why_no_recommendation(fit)
    if why_none is not None:
        missing = Undetermined(subject="the best model for a budget", reason=why_none, advice=_wider_grid(fit))
        return Verdict(answer=(missing,), caveats=_caveats(fit))
    return verdict_on(fit, recommendation(fit, flops))


def verdict_under(fit: SweepFit, limited: Limited) -> Verdict:
    """Return what the runs of a fit do not determine of its best model under limits.

    Limits may pin a model down where the budget alone does not: one inside the grid does not need the minima of isoFLOP
    curves there.
    """
    found = limited.best
    assert fit.laws_after_training is not None, "limits are those of a loss surface"
    best = Recommendation(
        method=fit.laws_after_training.name,
        value=found.model.of_axis(fit.axis),
        value_interval=found.spans[fit.axis],
        tokens=found.model.tokens,
        tokens_interval=found.spans["tokens"],
        loss=found.loss.value,
        loss_interval=found.loss.interval,
        extra_loss=limited.costs["all"].value,
        at_bound=fit.axis in found.at_bound,
        flops=found.model.flops,
        reason="",
        others=(),
    )
    return verdict_on(fit, best, limits=limited.limits.words)


def verdict_on(fit: SweepFit, best: Recommendation, *, limits: str = "") -> Verdict:
    """Return what the runs of a fit do not determine, where `best` is its recommendation for a budget.

    `limits` are those of the recommendation in words, if it has any.
    """
    units = _unit_reasons(fit)
    low, high = fit.fitted.of_axis(fit.axis)
    is_pinned = bool(limits) and low / BUDGET_ROUNDING <= best.value <= high * BUDGET_ROUNDING
    reasons = units or [
        *_few_reasons(fit),
        *([] if is_pinned else _edge_reasons(fit, best)),
        *_bound_reasons(fit, best),
        *_width_reasons(fit, best),
    ]
    name = AXES[fit.axis].name
    subject = f"the best {name} at {best.flops:.3g} {'training FLOPs ' if limits else 'FLOPs'}{limits}"
    return Verdict(
        answer=tuple(
            Undetermined(subject=subject, reason=reason, advice=advice, of_table=bool(units))
            for reason, advice in reasons
        ),
        exponents=_undetermined_exponents(fit),
        caveats=_caveats(fit),
    )


def _unit_reasons(fit: SweepFit) -> list[Reason]:
    """Return the reason if losses seem to be in two units, which explains whatever else is wrong."""
    mixed = [caveat for caveat in fit.caveats if caveat.startswith(TWO_UNITS)]
    parts = (caveat.removesuffix(".").partition(": if so, ") for caveat in mixed)
    return [(f"{reason[0].lower()}{reason[1:]}", advice) for reason, _, advice in parts]


def _few_reasons(fit: SweepFit) -> list[Reason]:
    """Return the reasons of too few runs or budgets, each with the runs that would help."""
    reasons = []
    low, high = fit.fitted.flops
    looped = fit.axis == "mean_recurrence"
    laws = fit.laws_after_training
    if laws is not None:
        law = laws.best
        rows, parameters = law.rows, len(law.parameters)
        if rows - parameters < FEWEST_DOF:
            runs = f"{rows} run{'' if rows == 1 else 's'}"
            missing = FEWEST_DOF + parameters - rows
            reasons.append(
                (
                    f"{runs} for the {parameters} parameters of the {law.form.name} law leave "
                    f"{_degrees(rows - parameters)}, where {FEWEST_DOF} are needed",
                    f"at least {missing} more run{'' if missing == 1 else 's'}, at another budget and another "
                    f"{AXES[fit.axis].name} each",
                )
            )
    elif fit.isoflop is not None and _few_minima(fit.isoflop):
        reasons.append(_few_budgets(fit.isoflop, fit))
    if high < BUDGET_ROUNDING**2 * low and (looped or fit.fitted.tokens[1] <= BUDGET_ROUNDING * fit.fitted.tokens[0]):
        reasons.append(
            (
                f"all runs spent {high:.3g} FLOPs, so nothing shows how the best model changes with compute",
                f"the same grid at {high / 4:.2g} and {high * 4:.2g} FLOPs",
            )
        )
    return reasons


def _few_minima(isoflop: IsoflopFit) -> bool:
    """Return True if a line through the minima has too few degrees of freedom.

    Where the curves themselves show the noise, their degrees of freedom count too, but two budgets give any line.
    """
    own = len(isoflop.included) - _LINE
    return own < 1 or own + isoflop.noise_dof < FEWEST_DOF


def _few_budgets(isoflop: IsoflopFit, fit: SweepFit) -> Reason:
    own = len(isoflop.included) - _LINE
    missing = FEWEST_DOF - own
    noise = "" if own < 1 or not isoflop.noise_dof else f" beside {_degrees(isoflop.noise_dof)} of the curves' noise"
    return (
        f"a line through the minima of {own + _LINE} budgets leaves {_degrees(own)}{noise}",
        f"{missing} more budget{'' if missing == 1 else 's'} inside or beyond {fit.fitted.flops[0]:.3g} to "
        f"{fit.fitted.flops[1]:.3g} FLOPs, each with its minimum inside the grid",
    )


def _degrees(count: int) -> str:
    return "no degree of freedom" if count <= 0 else f"{count} degree{'' if count == 1 else 's'} of freedom"


def _edge_reasons(fit: SweepFit, best: Recommendation) -> list[Reason]:
    """Return the reason if most isoFLOP curves have no minimum inside the grid."""
    if fit.isoflop is None:
        return []
    curves = [minimum for minimum in fit.isoflop.minima if minimum.curve is not None]
    outside = [minimum for minimum in curves if not minimum.included]
    if len(outside) <= len(curves) / 2:
        return []
    which = "the only isoFLOP curve has" if len(curves) == 1 else f"{len(outside)} of {len(curves)} isoFLOP curves have"
    reason = f"{which} no minimum inside the grid of {AXES[fit.axis].name}s"
    return [(f"{reason} (at {outside[0].budget:.3g} FLOPs, {outside[0].reason})", _wider_grid(fit, best))]


def _bound_reasons(fit: SweepFit, best: Recommendation) -> list[Reason]:
    """Return the reason if parameters of the law are at their bounds."""
    laws = fit.laws_after_training
    if laws is None:
        return []
    law = laws.best
    names = [parameter.name for parameter in law.parameters if parameter.at_bound]
    if not names:
        return []
    what = f"{names[0]} is at its bound" if len(names) == 1 else f"{', '.join(names)} are at their bounds"
    return [(f"in the {law.form.name} law {what}", _wider_grid(fit, best))]


def _width_reasons(fit: SweepFit, best: Recommendation) -> list[Reason]:
    """Return the reason if the best value is at the upper end of its search, or its interval wider than the grid."""
    name, unit = AXES[fit.axis].name, "loops" if fit.axis == "mean_recurrence" else "parameters"
    low, high = fit.fitted.of_axis(fit.axis)
    bounds = axis_bounds(fit)
    if not math.isfinite(best.value) or best.value <= 0:
        return [
            (
                f"no model has the {name} of {best.value:.3g} that follows from the {best.method}",
                _nearer_budget(fit, best),
            )
        ]
    # A loop runs at least once, so one loop is an answer and not the end of a search.
    one_loop = fit.axis == "mean_recurrence" and best.value <= bounds[0] * BUDGET_ROUNDING
    if best.at_bound and not one_loop:
        reason = f"it is at the end of the search from {bounds[0]:.4g} to {bounds[1]:.4g} {unit}"
        return [(reason, _nearer_budget(fit, best))]
    if best.value_interval is None:
        return []
    least, most = best.value_interval
    if least > 0 and math.isfinite(most) and math.log(most / least) <= _MOST_OF_GRID * math.log(high / low) + _ROUNDING:
        return []
    return [
        (
            f"its 95% interval is {least:.3g} to {most:.3g} {unit}, where {low:.3g} to {high:.3g} were measured",
            _nearer_budget(fit, best),
        )
    ]


def _undetermined_exponents(fit: SweepFit) -> tuple[Undetermined, ...]:
    """Return the exponents of the isoFLOP power laws if too few budgets have a minimum."""
    isoflop = fit.isoflop
    if isoflop is None or isoflop.axis_law is None or not _few_minima(isoflop):
        return ()
    reason, advice = _few_budgets(isoflop, fit)
    return (Undetermined(subject="the exponents of the isoFLOP power laws", reason=reason, advice=advice),)


def _caveats(fit: SweepFit) -> tuple[str, ...]:
    """Return what leaves a number in place, and should stand beside it."""
    laws = [law for law in (fit.unified, fit.joint_test_time) if law is not None]
    rising = next((reason for law in laws for reason in law.reasons if RISES in reason), None)
    caveats = [misfit.sentence for misfit in _misfits(fit)]
    if fit.overthinking is not None and fit.overthinking.used:
        caveats += [fit.overthinking.rise.caveat, fit.overthinking.sentence]
        rising = None
    if rising is not None:
        caveats.append(f"Do not use the laws of test-time loops beyond the best T: {rising}.")
    after_training = fit.laws_after_training
    if after_training is not None and after_training.best.exact and after_training.best.draws:
        caveats.append(f"{EXACT.capitalize()}.")
    caveats += [caveat for caveat in fit.caveats if caveat.startswith(TUNED_RATES)]
    return tuple(caveats)


def _misfits(fit: SweepFit) -> list[Misfit]:
    """Return the misfits of the law that was asked for, and of the one that carries the answer, where it is wrong."""
    laws = fit.laws_after_training
    names = set() if laws is None else {laws.laws[0].form.name, laws.best.form.name}
    return [misfit for misfit in fit.misfits if misfit.significant and misfit.law in names]


def _wider_grid(fit: SweepFit, best: Recommendation | None = None) -> str:
    """Return the runs that widen the grid in the axis and in the budget, so that `best` lies well inside it."""
    low, high = fit.fitted.of_axis(fit.axis)
    most = fit.fitted.flops[1]
    widest = 2 * high
    if best is not None and not best.at_bound and high < best.value < _FARTHEST * high:
        widest = max(widest, float(math.ceil(2 * best.value)))
    values = f"mean recurrences from 1 to {widest:g}"
    if fit.axis == "params":
        values = f"sizes from {low / 4:.2g} to {4 * high:.2g} parameters"
    return f"{values}, at the measured budgets and at {4 * most:.2g} FLOPs"


def _nearer_budget(fit: SweepFit, best: Recommendation) -> str:
    """Return a budget that would bring the answer nearer to what was measured."""
    low, high = fit.fitted.flops
    spread = "with the grid as it is, and further seeds"
    if best.flops > BUDGET_ROUNDING * high:
        return f"a budget between {high:.3g} and {best.flops:.3g} FLOPs, such as {math.sqrt(high * best.flops):.2g}"
    if best.flops < low / BUDGET_ROUNDING:
        return f"a budget between {best.flops:.3g} and {low:.3g} FLOPs, such as {math.sqrt(low * best.flops):.2g}"
    return f"more runs at budgets about {best.flops:.3g} FLOPs, {spread}"
