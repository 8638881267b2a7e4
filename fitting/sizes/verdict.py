"""Unknowns that the runs of several sizes leave of the best model for a budget, and what to run next."""

from __future__ import annotations

import math

from isoloop.fitting.answer.constrained import Limited
from isoloop.fitting.answer.recommendation import BUDGET_ROUNDING
from isoloop.fitting.answer.verdict import FEWEST_DOF, Undetermined, Verdict
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.sizes.result import FrontierPoint, SizesFit
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.surface.surface import Range

_MOST_OF_RANGE = 0.9
"""Width of an interval as a share of the measured range, both in logs, above which it says nothing."""
_FARTHEST = 3.0
"""Multiple of the largest measured size above which a best size rests on the law's form alone."""


def verdict_under(fit: SizesFit, limited: Limited) -> Verdict:
    """Return what the runs do not determine of the best model under limits, which may pin it down."""
    found = limited.best
    params, loops, tokens = (
        Quantity(value=found.model.of_axis(name), interval=found.spans[name])
        for name in ("params", "mean_recurrence", "tokens")
    )
    point = FrontierPoint(
        budget=found.model.flops,
        params=params,
        mean_recurrence=loops,
        tokens=tokens,
        loss=found.loss,
        at_bound=found.at_bound,
        sizes=(),
    )
    return verdict_on(fit, point, limits=limited.limits.words)


def verdict_on(fit: SizesFit, point: FrontierPoint, *, limits: str = "") -> Verdict:
    """Return what the runs do not determine of the best model at a point of the frontier, or under `limits` (words)."""
    budget = f"{point.budget:.3g} {'training FLOPs ' if limits else 'FLOPs'}{limits}"
    subject = f"the best size and mean recurrence at {budget}"
    reasons = [*_few_reasons(fit), *_bound_reasons(fit, point), *_width_reasons(fit, point)]
    return Verdict(
        answer=tuple(Undetermined(subject=subject, reason=reason, advice=advice) for reason, advice in reasons),
        caveats=tuple(_caveats(fit, point)),
    )


def _few_reasons(fit: SizesFit) -> list[tuple[str, str]]:
    law = fit.laws.best
    dof = law.rows - len(law.parameters)
    reasons = []
    if dof < FEWEST_DOF:
        reasons.append(
            (
                f"{law.rows} runs for the {len(law.parameters)} parameters of the {law.form.name} law leave {dof} "
                f"degrees of freedom, where {FEWEST_DOF} are needed",
                f"{FEWEST_DOF - dof} more runs or more, of another size, budget or mean recurrence each",
            )
        )
    low, high = fit.fitted.flops
    if high < BUDGET_ROUNDING**2 * low:
        reasons.append(
            (
                f"all runs spent {high:.3g} FLOPs, so nothing shows how the best model changes with compute",
                f"the same grid at {high / 4:.2g} and {high * 4:.2g} FLOPs",
            )
        )
    return reasons


def _bound_reasons(fit: SizesFit, point: FrontierPoint) -> list[tuple[str, str]]:
    """Return a reason for each axis whose best value is an end of the search; a single loop is an answer."""
    reasons = []
    if "params" in point.at_bound:
        direction = "larger" if point.params.value > fit.sizes[-1].params else "smaller"
        reasons.append(
            (
                f"the best size is at the end of the search, {short_count(point.params.value)} parameters, far from "
                "the measured ones",
                f"a {direction} size at the measured budgets",
            )
        )
    if "mean_recurrence" in point.at_bound and point.mean_recurrence.value > 1:
        reasons.append(
            (
                f"the best mean recurrence is at the end of the search, {point.mean_recurrence.value:g} loops",
                "more loops at the measured budgets",
            )
        )
    return reasons


def _width_reasons(fit: SizesFit, point: FrontierPoint) -> list[tuple[str, str]]:
    """Return a reason for each axis whose interval is nearly as wide as the measured range."""
    reasons = []
    axes: tuple[tuple[str, Quantity, Range | None], ...] = (
        ("size", point.params, fit.fitted.params),
        ("mean recurrence", point.mean_recurrence, fit.fitted.mean_recurrence),
    )
    for name, best, measured in axes:
        if best.interval is None or measured is None:
            continue
        width, grid = (math.log(span[1] / span[0]) for span in (best.interval, measured))
        if width > max(_MOST_OF_RANGE * grid, math.log(BUDGET_ROUNDING)):
            low, high = (short_count(end) if name == "size" else f"{end:.3g}" for end in best.interval)
            reasons.append(
                (
                    f"the 95% interval of the best {name}, {low} to {high}, is nearly as wide as the measured range",
                    "more seeds, or another budget, of the sizes and recurrences that were measured",
                )
            )
    return reasons


def _caveats(fit: SizesFit, point: FrontierPoint) -> list[str]:
    """Return what stands beside the answer: how far beyond the measured sizes and loops it is."""
    caveats = []
    low, high = fit.sizes[0].params, fit.sizes[-1].params
    best = point.params.value
    if best > high * BUDGET_ROUNDING or best < low / BUDGET_ROUNDING:
        times = best / high if best > high else low / best
        where = f"{times:.1f}x {'above the largest' if best > high else 'below the smallest'} measured one"
        rests = ", so far that it rests on the law's form alone" if times > _FARTHEST else ""
        caveats.append(f"The best size, {short_count(best)}, is {where}{rests}.")
    measured = fit.fitted.mean_recurrence
    if measured is not None and point.mean_recurrence.value > measured[1] * BUDGET_ROUNDING:
        caveats.append(
            f"The best mean recurrence, {point.mean_recurrence.value:.3g}, is beyond the measured {measured[1]:g}."
        )
    return caveats
