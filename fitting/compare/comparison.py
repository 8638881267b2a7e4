"""A comparison of two sweeps as readable text."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from isoloop.fitting.compare.caveats import OTHER_TEXT, OTHER_TOKENS, comparison_caveats
from isoloop.fitting.compare.difference import Difference, Quantity, difference
from isoloop.fitting.compare.equal_flops import (
    BEST_RUNS,
    LEAST_LOSSES,
    best_runs,
    compare_best_runs,
    compare_least_losses,
    shared_budgets,
)
from isoloop.fitting.compare.side import (
    BEST_MODEL,
    SECTIONS,
    ComparedSweep,
    Missing,
    OneSide,
    absent_sections,
    quantities,
)
from isoloop.fitting.result import SweepFit

_WIDTH = 100
_HEADINGS = ("", "A", "B", "change")


def comparison_text(
    first: OneSide,
    second: OneSide,
    accounting: str,
    differences: Sequence[Difference],
    missing: Sequence[Missing],
    verdicts: Sequence[str],
    caveats: Sequence[str],
) -> str:
    """Both sweeps, every number that both have, what is missing, which is better, and what to doubt."""
    head = [
        "Two sweeps compared",
        *(_side_text(letter, side) for letter, side in (("A", first), ("B", second))),
        f"  Compute is counted by `{accounting}` in both. A change is B - A, or B / A where it begins with x.",
        "  Brackets are 95% intervals; * marks a change whose interval excludes that there is none.",
    ]
    parts = ["\n".join(head)]
    for section in dict.fromkeys(one.section for one in differences):
        parts.append(_section(section, [one for one in differences if one.section == section]))
    if missing:
        lacking = dict.fromkeys(one.section for one in missing)
        parts.append("\n".join(["Not compared", *(_missing(section, missing) for section in lacking)]))
    parts.append(_list("Which is better at equal FLOPs", verdicts or ["Nothing here tells."]))
    parts.append(_list("What to doubt", caveats))
    return "\n\n".join(parts) + "\n"


def _side_text(letter: str, side: OneSide) -> str:
    low, high = side.computes
    simulated = ", simulated" if side.simulated else ""
    return f"  {letter}  {side.name}: {side.runs} runs, {low:.3g} to {high:.3g} FLOPs{simulated}"


def _section(section: str, differences: Sequence[Difference]) -> str:
    rows = [_HEADINGS, *(_row(one) for one in differences)]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = [
        "  ".join(["", *(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    ]
    why = {f"  no interval: {one.why_not}" for one in differences if one.change is not None and one.interval is None}
    return "\n".join([section, *lines, *sorted(why)])


def _row(one: Difference) -> tuple[str, str, str, str]:
    at = "" if one.flops is None else f" at {one.flops:.3g} FLOPs"
    unit = "" if one.unit == "1" else f", {one.unit}"
    name = f"{one.name}{at}{unit}"
    a = _value(one, one.first, one.first_interval, one.first_note)
    b = _value(one, one.second, one.second_interval, one.second_note)
    if one.change is None:
        return name, a, b, f"not compared: {one.why_not}"
    change = f"x {one.change:.4g}" if one.kind == "ratio" else f"{one.change:+.4f}"
    if one.interval is None:
        change += " (no interval)"
    elif one.kind == "ratio":
        change += f" ({one.interval[0]:.4g} to {one.interval[1]:.4g})"
    else:
        change += f" ({one.interval[0]:+.4f} to {one.interval[1]:+.4f})"
    return name, a, b, f"{change}{' *' if one.differs else ''}"


def _value(one: Difference, value: float, bounds: tuple[float, float] | None, note: str) -> str:
    form = ".4f" if one.kind == "difference" and one.unit == "nats per token" else ".4g"
    said = f"{value:{form}}" + (f" ({bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else "")
    return f"{said}, {note}" if note else said


def _missing(section: str, missing: Sequence[Missing]) -> str:
    mine = [one for one in missing if one.section == section]
    reasons = "; ".join(f"{one.side} has none: {one.reason}" for one in mine)
    return textwrap.fill(f"{section}: {reasons}", _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _list(title: str, sentences: Sequence[str]) -> str:
    lines = [textwrap.fill(one, _WIDTH, initial_indent="  - ", subsequent_indent="    ") for one in sentences]
    return "\n".join([title, *lines])


# MERGED sweep_comparison
COMPARISON_FORMAT = "isoloop-comparison/2"
_BEYOND = 4.0


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """Sweep A (`first`) beside sweep B (`second`): every number that both have, with what changes from A to B.

    `computes` are the FLOPs at which optima are compared. `missing` says what one of them lacks, `verdicts` which of
    them is the better one at equal FLOPs, and `caveats` what makes the comparison wrong or weak.
    """

    first: OneSide
    second: OneSide
    accounting: str
    computes: tuple[float, ...]
    differences: tuple[Difference, ...]
    missing: tuple[Missing, ...]
    verdicts: tuple[str, ...]
    caveats: tuple[str, ...]
    refused: dict[str, str]

    def of(self, section: str) -> tuple[Difference, ...]:
        """The numbers of one section, by its title in the report."""
        return tuple(one for one in self.differences if one.section == section)

    def report(self) -> str:
        """The whole comparison as readable text."""
        return comparison_text(
            self.first, self.second, self.accounting, self.differences, self.missing, self.verdicts, self.caveats
        )

    def to_json(self) -> str:
        """The comparison as JSON text, with `differs` of each number; no number in it is not finite."""
        content = {"format": COMPARISON_FORMAT, **dataclasses.asdict(self)}
        for entry, one in zip(content["differences"], self.differences, strict=True):
            entry["differs"] = one.differs
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def compare_sweeps(
    first: ComparedSweep | SweepFit, second: ComparedSweep | SweepFit, *, flops: float | None = None
) -> SweepComparison:
    """Compare two sweeps, or two groups of one: laws, optima at `flops`, and losses at equal FLOPs.

    Without `flops`, optima are those at the largest compute that both measured, and at 4 times the largest of all. The
    interval of a change takes the refits of both fits as independent. Numbers that count losses are not compared where
    the two have other tokenizers or were validated on other text; of other tokenizers, nor are token counts.

    Raises:
        ValueError: the two count FLOPs differently, `flops` is not positive, or a sweep has no finished run.
    """
    a, b = (one if isinstance(one, ComparedSweep) else ComparedSweep(name=one.name, fit=one) for one in (first, second))
    if a.accounting != b.accounting:
        raise ValueError(
            f"sweeps to compare must count FLOPs alike, but {a.name!r} has accounting {a.accounting!r} and {b.name!r} "
            f"{b.accounting!r}: exponents depend on it; refit both under the same accounting"
        )
    if flops is not None and not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"flops must be positive and finite, but got {flops}; name a compute in FLOPs")
    low, high = max(a.computes[0], b.computes[0]), min(a.computes[1], b.computes[1])
    beyond = _BEYOND * max(a.computes[1], b.computes[1])
    computes = (high, beyond) if flops is None else (float(flops),)
    middle = float(f"{math.sqrt(low * high):.3g}")
    refused = _not_comparable(a, b)
    differences = _differences(a, b, middle, computes, refused)
    missing = [
        Missing(section=section, side=side, reason=reason)
        for side, one in (("A", a), ("B", b))
        for section, reason in absent_sections(one.fit, one.why_no_fit).items()
    ]
    missing += _missing_runs(a, b)
    if "losses" in refused:
        missing = [one for one in missing if one.section not in (LEAST_LOSSES, BEST_RUNS)]
        missing += [Missing(section=one, side="B", reason=refused["losses"]) for one in (LEAST_LOSSES, BEST_RUNS)]
    return SweepComparison(
        first=_side(a),
        second=_side(b),
        accounting=a.accounting,
        computes=computes,
        differences=tuple(differences),
        missing=tuple(sorted(missing, key=lambda one: (_place(one.section), one.side))),
        verdicts=tuple(_verdicts(differences)),
        caveats=tuple(comparison_caveats(a, b, computes, refused, differences)),
        refused=refused,
    )


def _side(sweep: ComparedSweep) -> OneSide:
    names = [field.name for field in dataclasses.fields(OneSide)]
    return OneSide(**{name: getattr(sweep, name) for name in names})


def _differences(
    a: ComparedSweep, b: ComparedSweep, middle: float, computes: tuple[float, ...], refused: dict[str, str]
) -> list[Difference]:
    found = []
    if a.fit is not None and b.fit is not None:
        of_b = {one.key: one for one in quantities(b.fit, middle, computes)}
        for one in quantities(a.fit, middle, computes):
            if one.key in of_b:
                found.append(difference(one, of_b[one.key], _why_refused(one, refused)))
        if a.fit.isoflop is not None and b.fit.isoflop is not None and "losses" not in refused:
            found += compare_least_losses(a.fit.isoflop, b.fit.isoflop)
    if a.table is not None and b.table is not None and "losses" not in refused:
        found += compare_best_runs(best_runs(a.table), best_runs(b.table))
    return found


def _why_refused(one: Quantity, refused: dict[str, str]) -> str | None:
    return next((why for what, why in refused.items() if what in one.counts), None)


def _not_comparable(a: ComparedSweep, b: ComparedSweep) -> dict[str, str]:
    """What the two count differently ("losses", "tokens"), and why."""
    found = {}
    if a.validation is not None and b.validation is not None and a.validation != b.validation:
        found["losses"] = OTHER_TEXT
    if a.tokenizer is not None and b.tokenizer is not None and a.tokenizer != b.tokenizer:
        found |= dict.fromkeys(("losses", "tokens"), OTHER_TOKENS)
    return found


def _missing_runs(a: ComparedSweep, b: ComparedSweep) -> list[Missing]:
    found = []
    for side, one in (("A", a), ("B", b)):
        if one.table is None:
            found.append(Missing(section=BEST_RUNS, side=side, reason="only its fit was given, no run table"))
        elif not best_runs(one.table):
            found.append(Missing(section=BEST_RUNS, side=side, reason="its runs have no FLOP budgets"))
    if found or a.table is None or b.table is None:
        return found
    if not shared_budgets(best_runs(a.table), best_runs(b.table)):
        found.append(Missing(section=BEST_RUNS, side="B", reason="it shares no budget with A (within 1%)"))
    return found


def _place(section: str) -> int:
    return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)


def _verdicts(differences: list[Difference]) -> list[str]:
    """Which sweep's model is the better one at equal FLOPs, by each way that tells it."""
    losses = [one for one in differences if one.kind == "difference" and one.change is not None]
    said = [_verdict(one) for one in losses if one.section == BEST_MODEL]
    for section, how in ((LEAST_LOSSES, "the isoFLOP curves' least losses"), (BEST_RUNS, "the best runs measured")):
        mine = [one for one in losses if one.section == section]
        if mine:
            said.append(_budget_by_budget(mine, how))
    return said


def _verdict(one: Difference) -> str:
    assert one.change is not None
    at = f"At {one.flops:.3g} FLOPs, by the training laws,"
    better = "B" if one.change < 0 else "A"
    if one.interval is None:
        return f"{at} the best loss of {better} is {abs(one.change):.4f} nats lower; no interval: {one.why_not}."
    low, high = sorted(abs(end) for end in one.interval)
    if one.differs:
        return f"{at} the best loss of {better} is lower by {abs(one.change):.4f} nats ({low:.4f} to {high:.4f})."
    return (
        f"{at} neither is shown to be better: B - A = {one.change:+.4f} nats ({one.interval[0]:+.4f} to "
        f"{one.interval[1]:+.4f})."
    )


def _budget_by_budget(differences: list[Difference], how: str) -> str:
    """At which budgets which of the two is shown to lose less, and at which neither is; unshown ones by their sign."""
    told = []
    for side, sign in (("A", 1), ("B", -1)):
        lower = [one for one in differences if one.change is not None and one.change * sign > 0]
        for shown, words in ((True, "is lower at"), (False, "is lower in the runs, but not shown to be, at")):
            budgets = [f"{one.flops:.3g}" for one in lower if bool(one.differs) is shown]
            if budgets:
                told.append(f"{side} {words} {', '.join(budgets)}")
    if all(one.interval is None for one in differences):
        told.append(f"there are no intervals: {differences[0].why_not}")
    return f"By {how}: {'; '.join(told) or 'a tie everywhere'}."
