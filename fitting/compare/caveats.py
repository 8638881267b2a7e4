"""What makes a comparison of two sweeps wrong or weak, as plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isoloop.fitting.compare.difference import Difference
from isoloop.fitting.compare.equal_flops import BEST_RUNS, SAME_BUDGET
from isoloop.fitting.compare.side import SECTIONS, ComparedSweep
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows

OTHER_TEXT, OTHER_TOKENS = "measured on other text", "counted in other tokens"
_ROUNDING = 1.02
"""Budgets are met within 1%, so what is less than 2% beyond is not beyond."""


def comparison_caveats(
    a: ComparedSweep,
    b: ComparedSweep,
    computes: Sequence[float],
    refused: Mapping[str, str],
    differences: Sequence[Difference],
) -> list[str]:
    """All there is to doubt; `refused` is what the two count differently, and why."""
    said = []
    if a.simulated or b.simulated:
        which = "Both sweeps are" if a.simulated and b.simulated else f"Sweep {'A' if a.simulated else 'B'} is"
        said.append(f"{which} simulated: drawn from a law, not trained.")
    said += _shared_runs(a, b)
    said += _counting(a, b, refused)
    said += _ranges(a, b, [flops for flops in computes if any(one.flops == flops for one in differences)])
    if a.fit is not None and b.fit is not None:
        said += _fits(a.fit, b.fit)
    of_fits = [one for one in differences if one.section in SECTIONS]
    for side, notes in (
        ("A", [(one, one.first_note) for one in of_fits]),
        ("B", [(one, one.second_note) for one in of_fits]),
    ):
        said += dict.fromkeys(f"{side}: {note}{_at(one)}." for one, note in notes if note)
    judged = [one for one in differences if one.differs is not None]
    if judged:
        said.append(
            f"{len(judged)} changes are judged at 95%, each by itself: where nothing changes, one in twenty is marked "
            "all the same."
        )
    if any(one.section == BEST_RUNS for one in differences):
        said.append(
            "The best of several runs is lucky: of two sweeps alike, the one with more cells has the lower best."
        )
    return said


def _shared_runs(a: ComparedSweep, b: ComparedSweep) -> list[str]:
    if a.table is None or b.table is None:
        return ["Whether the two share runs isn't known without both run tables; intervals take them as independent."]
    one, other = (finished_rows(side.table)[["run_id", "loss"]] for side in (a, b))
    same = len(one.merge(other, on=["run_id", "loss"]))
    if not same:
        return []
    which = "The same runs are" if same == len(one) == len(other) else f"{same} {'run is' if same == 1 else 'runs are'}"
    return [f"{which} in both sweeps, so their fits are not independent, and the intervals of changes are wrong there."]


def _counting(a: ComparedSweep, b: ComparedSweep, refused: Mapping[str, str]) -> list[str]:
    said = []
    if "tokens" in refused:
        said.append(
            f"A's losses are per token of {a.tokenizer!r}, B's of {b.tokenizer!r}: neither losses nor token counts can "
            "be compared; exponents can, and mu*."
        )
    elif a.tokenizer is None or b.tokenizer is None:
        said.append("Whether both count losses in the same tokens isn't known: a run table's column `tokenizer` says.")
    if refused.get("losses") == OTHER_TEXT:
        said.append(
            f"A's losses were measured on {a.validation}, B's on {b.validation}: losses can't be compared; exponents "
            "can, and mu* and D*."
        )
    elif (a.validation is None or b.validation is None) and not (a.simulated and b.simulated):
        said.append("Whether both were validated on the same text isn't known; if not, don't read the losses.")
    return said


def _ranges(a: ComparedSweep, b: ComparedSweep, computes: Sequence[float]) -> list[str]:
    said = []
    if max(a.computes[0], b.computes[0]) > min(a.computes[1], b.computes[1]):
        said.append(
            f"The two share no compute: A spent {a.computes[0]:.3g} to {a.computes[1]:.3g} FLOPs, B "
            f"{b.computes[0]:.3g} to {b.computes[1]:.3g}. Wherever they are compared, one of them is extrapolated."
        )
    for flops in computes:
        for side, one in (("A", a), ("B", b)):
            low, high = one.computes
            if flops > high * _ROUNDING:
                said.append(f"At {flops:.3g} FLOPs {side} is extrapolated {flops / high:.1f}x beyond its largest.")
            elif flops < low / _ROUNDING:
                said.append(f"At {flops:.3g} FLOPs {side} is extrapolated {low / flops:.1f}x below its least.")
    return said


def _fits(a: SweepFit, b: SweepFit) -> list[str]:
    said = [
        f"Fit {side} leaves out the largest {fit.held_out.column}, {fit.held_out.value:.3g}."
        for side, fit in (("A", a), ("B", b))
        if fit.held_out is not None
    ]
    for of in ("effective_params_fixed", "effective_params_per_loop", "flops_per_token_fixed"):
        one, other = getattr(a.cost_model, of), getattr(b.cost_model, of)
        if not np.isclose(one, other, rtol=1e-6):
            said.append(
                "The two have other architectures, so that a loop costs and counts differently: mu* of one is no mu* "
                "of the other."
            )
            break
    budgets = [[minimum.budget for minimum in fit.isoflop.included] if fit.isoflop else [] for fit in (a, b)]
    if all(budgets) and not (
        len(budgets[0]) == len(budgets[1]) and np.allclose(budgets[0], budgets[1], rtol=SAME_BUDGET)
    ):
        counted = [f"{len(of_fit)} budgets, {of_fit[0]:.3g} to {of_fit[-1]:.3g}" for of_fit in budgets]
        said.append(
            f"The power laws rest on other budgets (A: {counted[0]}; B: {counted[1]}): minima follow a power law only "
            "nearly, so the exponents of two ranges differ without any noise, which no interval here holds."
        )
    if a.cost_model.mean_recurrences != b.cost_model.mean_recurrences:
        grids = [", ".join(f"{mu:g}" for mu in fit.cost_model.mean_recurrences) for fit in (a, b)]
        said.append(
            f"The grids differ (A: mu = {grids[0]}; B: {grids[1]}), and with them the bias of the parabolas: compare "
            "the exponents without it."
        )
    ways = [(law.kind, law.on, law.bootstrap) if (law := fit.training) else None for fit in (a, b)]
    if None not in ways and ways[0] != ways[1]:
        said.append(
            f"The training laws were fitted in two ways: A by {' '.join(ways[0] or ())}, B by "
            f"{' '.join(ways[1] or ())}."
        )
    if a.caveats or b.caveats:
        said.append(f"Each fit has caveats of its own (A: {len(a.caveats)}, B: {len(b.caveats)}): read its report.")
    return said


def _at(one: Difference) -> str:
    return "" if one.flops is None else f" at {one.flops:.3g} FLOPs"
