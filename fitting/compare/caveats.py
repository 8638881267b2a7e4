"""Caveats of a comparison of two sweeps, as plain sentences: what makes it wrong or weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isoloop.fitting.answer.recommendation import BUDGET_ROUNDING
from isoloop.fitting.compare.difference import BEST_RUNS, Difference
from isoloop.fitting.compare.quantities import SECTIONS
from isoloop.fitting.compare.side import ComparedSweep
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.result import SweepFit
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.sizes.result import SizesFit
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.contract import OWN_ACCOUNTING
from isoloop.fitting.tables.runs import finished_rows

_COMPARED_LOOPS = (1.0, 4.0, 16.0)
"""Mean recurrences at which the costs of two families are compared."""
OTHER_TEXT, OTHER_TOKENS = "measured on other text", "counted in other tokens"


def comparison_caveats(
    a: ComparedSweep,
    b: ComparedSweep,
    optima_flops: Sequence[float],
    incomparable: Mapping[str, str],
    differences: Sequence[Difference],
) -> list[str]:
    """Return every caveat; `incomparable` is what the two count differently, with the reasons."""
    # The two sweeps
    caveats = []
    if a.simulated or b.simulated:
        which = "Both sweeps are" if a.simulated and b.simulated else f"Sweep {'A' if a.simulated else 'B'} is"
        caveats.append(f"{which} simulated: drawn from a law, not trained.")
    caveats += _kinds(a, b)
    caveats += _accountings(a, b)
    caveats += _shared_runs(a, b)
    caveats += _units(a, b, incomparable)
    caveats += _ranges(a, b, [flops for flops in optima_flops if any(number.flops == flops for number in differences)])
    if a.fit is not None and b.fit is not None:
        caveats += _held_out(a.fit, b.fit)
    if a.single is not None and b.single is not None:
        caveats += _single_fits(a.single, b.single)
    if a.joint is not None and b.joint is not None:
        caveats += _joint_fits(a.joint, b.joint)
    if a.law is not None and b.law is not None:
        caveats += _methods(a.law, b.law)
    if a.fit is not None and b.fit is not None and (a.fit.caveats or b.fit.caveats):
        caveats.append(
            f"Each fit has caveats of its own (A: {len(a.fit.caveats)}, B: {len(b.fit.caveats)}): read its report."
        )
    # Their numbers
    for side in ("A", "B"):
        for number in differences:
            note = number.first_note if side == "A" else number.second_note
            at = "" if number.flops is None else f" at {number.flops:.3g} FLOPs"
            caveat = f"{side}: {note}{at}."
            if number.section in SECTIONS and note and caveat not in caveats:
                caveats.append(caveat)
    tested = sum(number.differs is not None for number in differences)
    if tested:
        caveats.append(
            f"{tested} changes are tested at the 95% level, each by itself: one in twenty is marked even if nothing "
            "changes."
        )
    if any(number.section == BEST_RUNS for number in differences):
        caveats.append(
            "The best of several runs is favoured by chance: of two equal sweeps, the one with more cells has the "
            "lower best loss."
        )
    return caveats


def _kinds(a: ComparedSweep, b: ComparedSweep) -> list[str]:
    """Return caveats if the models of the two differ in kind: looped or dense, of one size or of several."""
    caveats = []
    joint = [bool(sweep.joint) for sweep in (a, b)]
    if a.axis != b.axis:
        kinds = {"mean_recurrence": "looped", "params": "dense"}
        unlike = "N* counts a looped block once" if any(joint) else "mu* and N* mean different things"
        caveats.append(
            f"A's models are {kinds[a.axis]}, B's {kinds[b.axis]}: {unlike}, so what both have is compared: losses at "
            f"equal FLOPs, and {'N* and ' if any(joint) else ''}D*."
        )
    elif joint[0] != joint[1]:
        side, other = ("A", "B") if joint[0] else ("B", "A")
        caveats.append(
            f"{side}'s best models are of any size, {other}'s of its one size: what both have is compared, but a "
            "change of mu*, D* or the loss may come from the size alone."
        )
    return caveats


def _accountings(a: ComparedSweep, b: ComparedSweep) -> list[str]:
    """Return a caveat unless both sweeps are known to count FLOPs alike."""
    if a.accounting != b.accounting:
        return [
            f"A counts FLOPs by `{a.accounting}`, B by `{b.accounting}`: equal numbers of FLOPs may not be equal "
            "compute, and exponents depend on how it is counted."
        ]
    if a.accounting == OWN_ACCOUNTING:
        return [
            "The FLOPs of A and B are their tables' own, perhaps counted in two ways: if so, neither exponents nor "
            "losses at equal FLOPs can be compared."
        ]
    return []


def _best_symbols(a: ComparedSweep, b: ComparedSweep) -> str:
    """Return the symbols of the optima that can be compared whatever losses and tokens are counted in."""
    if a.joint and b.joint:
        return "exponents, N* and mu*"
    return f"exponents and {AXES[a.axis].plain_symbol}*" if a.axis == b.axis else "exponents"


def _shared_runs(a: ComparedSweep, b: ComparedSweep) -> list[str]:
    if a.table is None or b.table is None:
        return [
            "Without both run tables it isn't known whether the two share runs; the intervals assume that they don't."
        ]
    runs_a, runs_b = (finished_rows(side.table)[["run_id", "loss"]] for side in (a, b))
    same = len(runs_a.merge(runs_b, on=["run_id", "loss"]))
    if not same:
        return []
    which = (
        "The same runs are" if same == len(runs_a) == len(runs_b) else f"{same} {'run is' if same == 1 else 'runs are'}"
    )
    return [f"{which} in both sweeps, so their fits are not independent, and the intervals of the changes are wrong."]


def _units(a: ComparedSweep, b: ComparedSweep, incomparable: Mapping[str, str]) -> list[str]:
    """Return caveats about the tokens and the text that losses are counted in."""
    caveats = []
    if "tokens" in incomparable:
        caveats.append(
            f"A's losses are per token of {a.tokenizer!r}, B's of {b.tokenizer!r}: neither losses nor token counts can "
            f"be compared; {_best_symbols(a, b)} can."
        )
    elif a.tokenizer is None or b.tokenizer is None:
        caveats.append(
            "It isn't known whether both count losses in the same tokens: a run table has that in the column "
            "`tokenizer`."
        )
    if incomparable.get("losses") == OTHER_TEXT:
        caveats.append(
            f"A's losses were measured on {a.validation}, B's on {b.validation}: losses can't be compared; "
            f"{_best_symbols(a, b).replace(' and', ',')} and D* can."
        )
    elif (a.validation is None or b.validation is None) and not (a.simulated and b.simulated):
        caveats.append(
            "It isn't known whether both were validated on the same text; if not, don't compare their losses."
        )
    return caveats


def _ranges(a: ComparedSweep, b: ComparedSweep, optima_flops: Sequence[float]) -> list[str]:
    caveats = []
    (low_a, high_a), (low_b, high_b) = a.flops_range, b.flops_range
    if max(low_a, low_b) > min(high_a, high_b):
        caveats.append(
            f"The two share no compute: A spent {low_a:.3g} to {high_a:.3g} FLOPs, B {low_b:.3g} to {high_b:.3g}. "
            "Wherever they are compared, one of them is extrapolated."
        )
    for flops in optima_flops:
        for side, (low, high) in (("A", a.flops_range), ("B", b.flops_range)):
            if flops > high * BUDGET_ROUNDING:
                caveats.append(f"At {flops:.3g} FLOPs {side} is extrapolated {flops / high:.1f}x beyond its largest.")
            elif flops < low / BUDGET_ROUNDING:
                caveats.append(f"At {flops:.3g} FLOPs {side} is extrapolated {low / flops:.1f}x below its smallest.")
    return caveats


def _held_out(a: AnyFit, b: AnyFit) -> list[str]:
    return [
        f"Fit {side} leaves out the largest {fit.held_out.quantity}, {fit.held_out.value:.3g}."
        for side, fit in (("A", a), ("B", b))
        if fit.held_out is not None
    ]


def _methods(a: LawFit, b: LawFit) -> list[str]:
    methods = [f"{law.method}, {law.bootstrap}" for law in (a, b)]
    if methods[0] == methods[1]:
        return []
    return [f"The laws after training were fitted by different methods: A by {methods[0]}, B by {methods[1]}."]


def _joint_fits(a: SizesFit, b: SizesFit) -> list[str]:
    """Return a caveat about two joint fits whose measured models differ."""
    sizes = a.family.sizes
    if len(sizes) != len(b.family.sizes) or not np.allclose(sizes, b.family.sizes, rtol=1e-6):
        labels = [", ".join(size.label for size in fit.sizes) for fit in (a, b)]
        return [
            f"The sizes differ (A: {labels[0]}; B: {labels[1]}): between and beyond them each side's cost and shape "
            "are interpolated, so a change of N* may come from that."
        ]
    at = np.array([[size, loops] for size in sizes for loops in _COMPARED_LOOPS]).T
    if not np.allclose(a.family.flops_per_token(*at), b.family.flops_per_token(*at), rtol=SAME_BUDGET):
        return [
            "The two have different architectures, so a loop has another cost and size in each, and their mu* mean "
            "different things."
        ]
    return []


def _single_fits(a: SweepFit, b: SweepFit) -> list[str]:
    """Return caveats about two fits that differ in more than their losses."""
    caveats = []
    looped = a.axis == b.axis == "mean_recurrence"
    shape = ("effective_params_fixed", "effective_params_per_loop", "flops_per_token_fixed")
    shapes = [[getattr(fit.cost_model, name, None) for name in shape] for fit in (a, b)]
    known = [pair for pair in zip(*shapes, strict=True) if None not in pair]
    if looped and not known:
        caveats.append(
            "It isn't known whether the two have the same architecture: without effective parameters (params_once, "
            "params_recurrent) their mu* may mean different things."
        )
    if looped and not all(x == y or np.isclose(x, y, rtol=1e-6) for x, y in known):
        caveats.append(
            "The two have different architectures, so a loop has another cost and size in each, and their mu* mean "
            "different things."
        )
    budgets = [[minimum.budget for minimum in fit.isoflop.included] if fit.isoflop else [] for fit in (a, b)]
    same = len(budgets[0]) == len(budgets[1]) and np.allclose(budgets[0], budgets[1], rtol=SAME_BUDGET)
    if all(budgets) and not same:
        ranges = [f"{len(of_fit)} budgets, {of_fit[0]:.3g} to {of_fit[-1]:.3g}" for of_fit in budgets]
        caveats.append(
            f"The power laws are fitted to different budgets (A: {ranges[0]}; B: {ranges[1]}): minima follow a power "
            "law only nearly, so exponents of two ranges differ even without noise, which no interval here includes."
        )
    recurrences = [getattr(fit.cost_model, "mean_recurrences", ()) for fit in (a, b)]
    if looped and recurrences[0] != recurrences[1]:
        grids = [", ".join(f"{mu:g}" for mu in each) for each in recurrences]
        caveats.append(
            f"The grids differ (A: mu = {grids[0]}; B: {grids[1]}), and so does the bias of the parabolas: compare "
            "the exponents without it."
        )
    return caveats
