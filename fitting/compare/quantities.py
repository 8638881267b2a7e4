"""The numbers of a fit that can be compared with those of another one, and the sections of a comparison they are in."""

from __future__ import annotations

from typing import cast

import numpy as np

from isoloop.fitting.answer.recommendation import BUDGET_ROUNDING, axis_bounds
from isoloop.fitting.compare.difference import ChangeKind, CountedIn, Quantity, widened
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import POWER_LAWS, WITHOUT_BIAS, PowerLaw
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.sizes.frontier import growth_exponents
from isoloop.fitting.sizes.result import SizesFit
from isoloop.fitting.surface.surface import SurfaceOptimum

BEST_MODEL = "Best models by the laws after training"
GROWTH = "Growth of the best models of any size over the compute of both"
LAW_SECTIONS = {
    "training": "Training law",
    "sizes": "Law over sizes",
    "unified": "Unified law",
    "joint-test-time": "Joint test-time law",
}
LOOPED_SECTIONS = (LAW_SECTIONS["unified"], LAW_SECTIONS["joint-test-time"])
"""Sections that dense models can't have."""
SIZES_SECTIONS = (LAW_SECTIONS["sizes"], GROWTH)
"""Sections of joint fits alone."""
SECTIONS = (POWER_LAWS, *LAW_SECTIONS.values(), GROWTH, BEST_MODEL)
LEAST_LOSS = "least loss"
_ALSO_IN_TRAINING = {"E", "X", "Y", "x", "y"}
_GROWING = {"params": "N*", "mean_recurrence": "mu*", "tokens": "D*"}
"""The best model's numbers that grow with compute, by their column."""
_GROWTH_POINTS = 5
"""Budgets over the shared range between which the growth of the best model is fitted."""


def quantities(fit: AnyFit, shared: tuple[float, float], flops: tuple[float, ...]) -> list[Quantity]:
    """Return the comparable numbers of a fit: its parameters, optima at `flops`, and what `shared` compute gives.

    In the middle of that, isoFLOP power laws have their level; over it, best models of any size their growth.
    """
    if isinstance(fit, SizesFit):
        return _joint_quantities(fit, shared, flops)
    middle = float(f"{np.sqrt(shared[0] * shared[1]):.3g}")
    numbers = _power_law_quantities(fit, middle, flops)
    for name, law in fit.laws.items():
        if law is not None:
            skip = set() if name == "training" else _ALSO_IN_TRAINING
            numbers += _parameter_quantities(law, LAW_SECTIONS[name], skip=skip)
    if fit.laws_after_training is not None:
        for budget in flops:
            numbers += _optimum_quantities(fit, fit.laws_after_training, budget)
    return numbers


def missing_sections(fit: AnyFit | None, why_no_fit: str) -> dict[str, str]:
    """Return the sections for which this sweep has no numbers, and the reasons."""
    if fit is None:
        return dict.fromkeys(SECTIONS, why_no_fit)
    if isinstance(fit, SizesFit):
        of_one = (POWER_LAWS, LAW_SECTIONS["training"], LAW_SECTIONS["unified"])
        missing = dict.fromkeys(of_one, "its fit is of several sizes together; compare groups of one size for it")
        return missing | {
            LAW_SECTIONS[each.name]: each.reason for each in fit.missing_fits if each.name in LAW_SECTIONS
        }
    missing = dict.fromkeys(SIZES_SECTIONS, "its fit is not over sizes")
    if fit.isoflop is None or fit.isoflop.axis_law is None:
        missing[POWER_LAWS] = (fit.isoflop.reason if fit.isoflop else None) or fit.why_missing("isoflop")
    missing |= {LAW_SECTIONS[name]: fit.why_missing(name) for name, law in fit.laws.items() if law is None}
    if fit.training is None:
        missing[BEST_MODEL] = fit.why_missing("training")
    return missing


def _power_law_quantities(fit: SweepFit, middle: float, flops: tuple[float, ...]) -> list[Quantity]:
    if fit.isoflop is None:
        return []
    numbers = []
    # The power laws, and their exponents
    laws: list[tuple[str, str, CountedIn, PowerLaw]] = []
    best = f"{AXES[fit.axis].plain_symbol}*"
    if fit.isoflop.axis_law is not None:
        laws.append((best, AXES[fit.axis].unit, "nothing", fit.isoflop.axis_law))
    if fit.isoflop.tokens_law is not None:
        laws.append(("D*", "tokens", "tokens", fit.isoflop.tokens_law))
    exponents = [(f"exponent of {symbol}", law) for symbol, _, _, law in laws]
    if fit.parabola_bias is not None:
        for symbol, bias in ((best, fit.parabola_bias.axis_exponent), ("D*", fit.parabola_bias.tokens_exponent)):
            exponents.append((f"exponent of {symbol}, {WITHOUT_BIAS}", bias.corrected))
    for name, law in exponents:
        numbers.append(
            Quantity(
                section=POWER_LAWS,
                name=name,
                unit="1",
                change="difference",
                counted_in="nothing",
                value=law.exponent,
                interval=law.interval,
                draws=np.array(law.draws)[:, 1] if law.draws else None,
            )
        )
    # Their levels
    for symbol, unit, counted_in, law in laws:
        for budget in dict.fromkeys((middle, *flops)):
            numbers.append(
                Quantity(
                    section=POWER_LAWS,
                    name=symbol,
                    unit=unit,
                    change="ratio",
                    counted_in=counted_in,
                    value=law.at(budget),
                    interval=law.interval_at(budget),
                    draws=np.exp(law.log_draws_at(budget)) if law.draws else None,
                    flops=budget,
                )
            )
    return numbers


def _parameter_quantities(law: LawFit, section: str, *, skip: set[str]) -> list[Quantity]:
    numbers = []
    values = {parameter.name: parameter.value for parameter in law.parameters}
    in_tokens = law.form.rescaled(np.ones(len(values)), {"tokens": 2.0}) != 1
    for place, (parameter, bounds) in enumerate(zip(law.parameters, law.form.parameters, strict=True)):
        name = parameter.name
        if name in skip:
            continue
        # Parameters that the loss is linear in have its unit; the law says which depend on that of tokens.
        linear = place < law.form.linear_count
        amplitude = linear and name != "E"
        units = [unit for unit, used in (("losses", linear), ("tokens", in_tokens[place])) if used]
        draws, reason = (law.draw_matrix[:, place], "") if law.draws else (None, "no refits")
        if draws is not None:
            # A ratio to a term that is zero means nothing, and neither does the exponent of one.
            if amplitude and (parameter.value <= 0 or bool((draws <= 0).any())):
                reason = f"refits reach {name} = 0"
            elif name.islower() and values.get(name[0].upper(), 1.0) <= 0:
                reason = f"{name} means nothing, {name[0].upper()} being 0,"
            in_logs = parameter.value > 0 and bool((draws > 0).all())
            draws = widened(parameter.value, draws, law.widening, in_logs=in_logs)
            draws = None if reason else np.clip(draws, bounds.lower, bounds.upper)
        numbers.append(
            Quantity(
                section=section,
                name=name,
                unit=parameter.unit,
                change="ratio" if amplitude else "difference",
                counted_in=cast(CountedIn, " and ".join(units) or "nothing"),
                value=parameter.value,
                interval=parameter.interval,
                draws=draws,
                no_draws_reason=reason,
                note=f"{name} is at its bound" if parameter.at_bound else "",
            )
        )
    return numbers


def _joint_quantities(fit: SizesFit, shared: tuple[float, float], flops: tuple[float, ...]) -> list[Quantity]:
    """Return the numbers of a joint fit: its law's, the best models of any size at `flops`, and their growth."""
    first = fit.laws.laws[0]
    numbers = _parameter_quantities(first, LAW_SECTIONS["sizes"], skip=set())
    if fit.joint_test_time is not None:
        numbers += _parameter_quantities(fit.joint_test_time, LAW_SECTIONS["joint-test-time"], skip=_ALSO_IN_TRAINING)
    numbers += _growth_quantities(fit, shared)
    for budget in flops:
        best, drawn = fit.surface.best_for(budget)
        notes = {"mean_recurrence": _bound_note(best, "mean_recurrence"), "params": _size_note(fit, best)}
        numbers += [
            _optimum_quantity(
                symbol,
                AXES[column].unit,
                "tokens" if column == "tokens" else "nothing",
                float(getattr(best, column)),
                None if drawn is None else getattr(drawn, column),
                budget,
                note=notes.get(column, ""),
            )
            for column, symbol in _GROWING.items()
        ]
        numbers += _loss_quantities(float(best.loss), None if drawn is None else drawn.loss, budget)
    return numbers


def _growth_quantities(fit: SizesFit, shared: tuple[float, float]) -> list[Quantity]:
    """Return the exponents with which the best size, loops and tokens grow over the shared compute, if there is one."""
    if not shared[0] < shared[1]:
        return []
    budgets = np.geomspace(*shared, _GROWTH_POINTS)
    optima = [fit.surface.best_for(float(budget)) for budget in budgets]
    numbers = []
    for column, (value, draws) in growth_exponents(budgets, optima).items():
        numbers.append(
            Quantity(
                section=GROWTH,
                name=f"exponent of {_GROWING[column]}",
                unit="1",
                change="difference",
                counted_in="nothing",
                value=value,
                interval=None if draws is None else interval(draws),
                draws=draws,
            )
        )
    return numbers


def _bound_note(best: SurfaceOptimum, column: str) -> str:
    at_bound = bool(best.at_bound.get(column, np.array(False)))
    return f"the best {AXES[column].name} is at the end of the search" if at_bound else ""


def _size_note(fit: SizesFit, best: SurfaceOptimum) -> str:
    """Return that the best size is at the end of the search, or outside the measured ones, if it is."""
    low, high = fit.family.sizes[0], fit.family.sizes[-1]
    size = float(best.params)
    outside = (
        f"the best size is extrapolated, {size / high:.2g}x beyond the largest"
        if size > high * BUDGET_ROUNDING
        else f"the best size is extrapolated, {low / size:.2g}x below the smallest"
        if size < low / BUDGET_ROUNDING
        else ""
    )
    return _bound_note(best, "params") or outside


def _optimum_quantities(fit: SweepFit, laws: LawMixture, flops: float) -> list[Quantity]:
    """Return the numbers of the best model for `flops` by the laws after training.

    The loss is the laws' own, without the noise of one more run.
    """
    axis = AXES[fit.axis]
    optimum = laws.optimum(fit.cost_model, flops, axis_bounds(fit))
    best, drawn = optimum.best, optimum.draws
    note = f"the best {axis.name} is at the end of the search" if bool(best.at_bound) else ""
    at, tokens, loss = (None, None, None) if drawn is None else (drawn.at, drawn.tokens, drawn.loss)
    return [
        _optimum_quantity(f"{axis.plain_symbol}*", axis.unit, "nothing", float(best.at), at, flops, note=note),
        _optimum_quantity("D*", "tokens", "tokens", float(best.tokens), tokens, flops, note=note),
        *_loss_quantities(float(best.loss), loss, flops, note=note),
    ]


def _loss_quantities(value: float, draws: np.ndarray | None, flops: float, *, note: str = "") -> list[Quantity]:
    """Return the loss of the best model, to be compared by its difference and by its ratio."""
    changes: tuple[ChangeKind, ...] = ("difference", "ratio")
    unit = "nats per token"
    return [
        _optimum_quantity(LEAST_LOSS, unit, "losses", value, draws, flops, note=note, change=change)
        for change in changes
    ]


def _optimum_quantity(
    name: str,
    unit: str,
    counted_in: CountedIn,
    value: float,
    draws: np.ndarray | None,
    flops: float,
    *,
    note: str,
    change: ChangeKind = "ratio",
) -> Quantity:
    return Quantity(
        section=BEST_MODEL,
        name=name,
        unit=unit,
        change=change,
        counted_in=counted_in,
        value=value,
        interval=None if draws is None else interval(draws),
        draws=draws,
        flops=flops,
        note=note,
    )
