"""Two sweeps compared: laws, optima, losses at equal FLOPs, and the caveats of the comparison."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from isoloop.fitting.compare.caveats import OTHER_TEXT, OTHER_TOKENS, comparison_caveats
from isoloop.fitting.compare.difference import (
    BEST_RUNS,
    LEAST_LOSSES,
    Difference,
    best_runs,
    compare_best_runs,
    compare_least_losses,
    difference,
    shared_budgets,
)
from isoloop.fitting.compare.multiplier import MULTIPLIER, ComputeMultiplier, Multiplier, compute_multiplier
from isoloop.fitting.compare.quantities import (
    BEST_MODEL,
    LAW_SECTIONS,
    LOOPED_SECTIONS,
    SECTIONS,
    SIZES_SECTIONS,
    missing_sections,
    quantities,
)
from isoloop.fitting.compare.side import ComparedSweep, SweepSummary
from isoloop.fitting.report.full import REPORT_WIDTH
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.tables.contract import ACCOUNTINGS

COMPARISON_FORMAT = "isoloop-comparison/2"
_EXTRAPOLATED = 4.0


@dataclass(frozen=True, kw_only=True)
class MissingSection:
    """A section of the comparison that could not be made, because of `side` (A or B), and the reason."""

    section: str
    side: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """Sweep A (`first`) and sweep B (`second`): every number that both have, and its change from A to B.

    `accounting` is that of both, None if they have two. `optima_flops` are the FLOPs at which optima are compared.
    `missing_sections` says what one of them lacks, `verdicts` which of them is better at equal FLOPs, and `caveats`
    what makes the comparison wrong or weak. `incomparable` holds the reasons, by "losses" and "tokens", why the two
    can't be compared in these. `multiplier` is how many times the FLOPs of B sweep A needs for B's losses, None where
    one has no law or their losses or FLOPs can't be compared.
    """

    first: SweepSummary
    second: SweepSummary
    accounting: str | None
    optima_flops: tuple[float, ...]
    differences: tuple[Difference, ...]
    missing_sections: tuple[MissingSection, ...]
    verdicts: tuple[str, ...]
    caveats: tuple[str, ...]
    incomparable: dict[str, str]
    multiplier: ComputeMultiplier | None = None

    def of(self, section: str) -> tuple[Difference, ...]:
        """Return the numbers of one section, by its title in the report."""
        return tuple(number for number in self.differences if number.section == section)

    def report(self) -> str:
        """Return the whole comparison as text."""
        lines = ["Two sweeps compared"]
        for letter, sweep in (("A", self.first), ("B", self.second)):
            low, high = sweep.flops_range
            simulated = ", simulated" if sweep.simulated else ""
            sizes = f" of {len(sweep.sizes)} sizes ({', '.join(sweep.sizes)})" if sweep.sizes else ""
            lines.append(
                f"  {letter}  {sweep.name}: {sweep.runs} runs{sizes}, {low:.3g} to {high:.3g} FLOPs{simulated}"
            )
        counted = f"`{self.accounting}` in both"
        if self.accounting is None:
            counted = f"`{self.first.accounting}` in A and `{self.second.accounting}` in B"
        lines += [
            f"  Compute is counted by {counted}. A change is B - A, or B / A where it begins with x.",
            "  Brackets are 95% intervals; * marks a significant change: its interval leaves out 0 (1 for a ratio).",
        ]
        parts = ["\n".join(lines)]
        if self.multiplier is not None:
            parts.append(_multiplier_text(self.multiplier))
        parts += [_section_text(title, self.of(title)) for title in dict.fromkeys(d.section for d in self.differences)]
        if self.missing_sections:
            parts.append("\n".join(["Not compared", *_missing_lines(self.missing_sections)]))
        for title, sentences in (
            ("Which is better at equal FLOPs", self.verdicts or ["These sweeps can't tell."]),
            ("Caveats", self.caveats),
        ):
            parts.append("\n".join([title, *(_wrap(sentence, "  - ") for sentence in sentences)]))
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """Return the comparison as JSON text, with `differs` of each number; every number in it is finite."""
        content = {"format": COMPARISON_FORMAT, **dataclasses.asdict(self)}
        for entry, number in zip(content["differences"], self.differences, strict=True):
            entry["differs"] = number.differs
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def compare_sweeps(
    first: ComparedSweep | AnyFit, second: ComparedSweep | AnyFit, *, flops: float | None = None
) -> SweepComparison:
    """Compare two sweeps, or two groups of one: laws, optima at `flops`, and losses at equal FLOPs.

    Without `flops`, optima are compared at the largest compute that both measured, and at 4 times the largest of all.
    The interval of a change treats the refits of both fits as independent. Losses are not compared if the two have
    different tokenizers or were validated on different texts; nor are token counts of different tokenizers.

    Raises:
        ValueError: the two count FLOPs by different accountings of a cost model, `flops` is not positive, or a sweep
            has no finished run.
    """
    # Arguments
    a, b = (s if isinstance(s, ComparedSweep) else ComparedSweep(name=s.name, fit=s) for s in (first, second))
    if a.accounting != b.accounting and {a.accounting, b.accounting} <= set(ACCOUNTINGS):
        raise ValueError(
            f"sweeps to compare must count FLOPs alike, but {a.name!r} has accounting {a.accounting!r} and {b.name!r} "
            f"{b.accounting!r}: exponents depend on it; refit both under the same accounting"
        )
    if flops is not None and not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"flops must be positive and finite, but got {flops}; give a compute in FLOPs")
    # Where to compare, and what
    low, high = max(a.flops_range[0], b.flops_range[0]), min(a.flops_range[1], b.flops_range[1])
    beyond = _EXTRAPOLATED * max(a.flops_range[1], b.flops_range[1])
    optima_flops = (high, beyond) if flops is None else (float(flops),)
    incomparable = _incomparable(a, b)
    differences = _differences(a, b, (low, high), optima_flops, incomparable)
    # What is missing
    missing = [
        MissingSection(section=section, side=side, reason=reason)
        for side, sweep in (("A", a), ("B", b))
        for section, reason in missing_sections(sweep.fit, sweep.why_no_fit).items()
        if _may_have(a, section) or _may_have(b, section)
    ]
    if "losses" in incomparable:
        reason = incomparable["losses"]
        missing += [MissingSection(section=title, side="B", reason=reason) for title in (LEAST_LOSSES, BEST_RUNS)]
    else:
        missing += _missing_runs(a, b)
    if _laws_differ(a, b):
        reason = "it is fitted by another law than A"
        missing.append(MissingSection(section=_section_of_law(b), side="B", reason=reason))
    multiplier, without_multiplier = _multiplier(a, b, optima_flops, incomparable)
    missing += without_multiplier
    order = [MULTIPLIER, *SECTIONS, BEST_RUNS, LEAST_LOSSES]
    names = [field.name for field in dataclasses.fields(SweepSummary)]
    summaries = [SweepSummary(**{name: getattr(sweep, name) for name in names}) for sweep in (a, b)]
    return SweepComparison(
        first=summaries[0],
        second=summaries[1],
        accounting=a.accounting if a.accounting == b.accounting else None,
        optima_flops=optima_flops,
        differences=tuple(differences),
        missing_sections=tuple(sorted(missing, key=lambda part: (order.index(part.section), part.side))),
        verdicts=(*(multiplier.sentences if multiplier else ()), *_verdicts(differences)),
        caveats=tuple(comparison_caveats(a, b, optima_flops, incomparable, differences)),
        incomparable=incomparable,
        multiplier=multiplier,
    )


def _multiplier(
    a: ComparedSweep, b: ComparedSweep, flops: tuple[float, ...], incomparable: dict[str, str]
) -> tuple[ComputeMultiplier | None, list[MissingSection]]:
    """Return the compute multiplier, or the reasons why there is none."""
    reasons = {}
    for side, sweep in (("A", a), ("B", b)):
        if sweep.surface is None:
            reasons[side] = missing_sections(sweep.fit, sweep.why_no_fit)[BEST_MODEL]
    if "losses" in incomparable:
        reasons["B"] = incomparable["losses"]
    elif a.accounting != b.accounting:
        reasons["B"] = f"its FLOPs are counted by `{b.accounting}`, those of A by `{a.accounting}`"
    if reasons:
        return None, [MissingSection(section=MULTIPLIER, side=side, reason=why) for side, why in reasons.items()]
    assert a.surface is not None
    assert b.surface is not None
    return compute_multiplier(a.surface, b.surface, (a.flops_range, b.flops_range), flops), []


def _incomparable(a: ComparedSweep, b: ComparedSweep) -> dict[str, str]:
    """Return what the two count differently ("losses", "tokens"), with the reason."""
    reasons = {}
    if a.validation is not None and b.validation is not None and a.validation != b.validation:
        reasons["losses"] = OTHER_TEXT
    if a.tokenizer is not None and b.tokenizer is not None and a.tokenizer != b.tokenizer:
        reasons |= dict.fromkeys(("losses", "tokens"), OTHER_TOKENS)
    return reasons


def _differences(
    a: ComparedSweep,
    b: ComparedSweep,
    shared: tuple[float, float],
    optima_flops: tuple[float, ...],
    incomparable: dict[str, str],
) -> list[Difference]:
    differences = []
    if a.fit is not None and b.fit is not None:
        numbers_of_b = {number.key: number for number in quantities(b.fit, shared, optima_flops)}
        if _laws_differ(a, b):
            section = _section_of_law(b)
            numbers_of_b = {key: number for key, number in numbers_of_b.items() if number.section != section}
        for number in quantities(a.fit, shared, optima_flops):
            if number.key in numbers_of_b:
                reason = next((why for what, why in incomparable.items() if what in number.counted_in), None)
                differences.append(difference(number, numbers_of_b[number.key], reason))
        curves = [sweep.single.isoflop if sweep.single else None for sweep in (a, b)]
        if curves[0] is not None and curves[1] is not None and "losses" not in incomparable:
            differences += compare_least_losses(curves[0], curves[1])
    if a.table is not None and b.table is not None and "losses" not in incomparable:
        differences += compare_best_runs(best_runs(a.table), best_runs(b.table))
    return differences


def _may_have(sweep: ComparedSweep, section: str) -> bool:
    """Return True unless models of this kind can't have a section."""
    if section in SIZES_SECTIONS:
        return sweep.joint is not None
    return section not in LOOPED_SECTIONS or sweep.axis == "mean_recurrence"


def _section_of_law(sweep: ComparedSweep) -> str:
    return LAW_SECTIONS["sizes" if sweep.joint else "training"]


def _laws_differ(a: ComparedSweep, b: ComparedSweep) -> bool:
    """Return True if both have a law after training of the same section, but not the same one."""
    if a.law is None or b.law is None or _section_of_law(a) != _section_of_law(b):
        return False
    return a.law.law != b.law.law


def _missing_runs(a: ComparedSweep, b: ComparedSweep) -> list[MissingSection]:
    missing = []
    for side, sweep in (("A", a), ("B", b)):
        if sweep.table is None:
            missing.append(MissingSection(section=BEST_RUNS, side=side, reason="only its fit was given, no run table"))
        elif not best_runs(sweep.table):
            missing.append(MissingSection(section=BEST_RUNS, side=side, reason="its runs have no FLOP budgets"))
    if missing or a.table is None or b.table is None:
        return missing
    if not shared_budgets(best_runs(a.table), best_runs(b.table)):
        missing.append(MissingSection(section=BEST_RUNS, side="B", reason="it shares no budget with A (within 1%)"))
    return missing


def _verdicts(differences: list[Difference]) -> list[str]:
    """Return which sweep's model is better at equal FLOPs, by each method that can tell."""
    losses = [number for number in differences if number.kind == "difference" and number.change is not None]
    verdicts = [_model_verdict(number) for number in losses if number.section == BEST_MODEL]
    for section, how in ((LEAST_LOSSES, "the isoFLOP curves' least losses"), (BEST_RUNS, "the best runs measured")):
        measured = [number for number in losses if number.section == section]
        if measured:
            verdicts.append(_measured_verdict(measured, how))
    return verdicts


def _model_verdict(loss: Difference) -> str:
    assert loss.change is not None
    at = f"At {loss.flops:.3g} FLOPs, by the laws after training,"
    better = "B" if loss.change < 0 else "A"
    if loss.interval is None:
        return f"{at} the best loss of {better} is {abs(loss.change):.4f} nats lower; no interval: {loss.reason}."
    low, high = sorted(abs(end) for end in loss.interval)
    if loss.differs:
        return f"{at} the best loss of {better} is lower by {abs(loss.change):.4f} nats ({low:.4f} to {high:.4f})."
    return (
        f"{at} neither is significantly better: B - A = {loss.change:+.4f} nats ({loss.interval[0]:+.4f} to "
        f"{loss.interval[1]:+.4f})."
    )


def _measured_verdict(differences: list[Difference], how: str) -> str:
    """Return the budgets at which A and B are lower, significantly or not."""
    clauses = []
    for side, sign in (("A", 1), ("B", -1)):
        lower = [number for number in differences if number.change is not None and number.change * sign > 0]
        for significant, words in ((True, "is lower at"), (False, "is lower, but not significantly, at")):
            budgets = [f"{number.flops:.3g}" for number in lower if bool(number.differs) is significant]
            if budgets:
                clauses.append(f"{side} {words} {', '.join(budgets)}")
    if all(number.interval is None for number in differences):
        clauses.append(f"there are no intervals: {differences[0].reason}")
    return f"By {how}: {'; '.join(clauses) or 'a tie everywhere'}."


def _multiplier_text(multiplier: ComputeMultiplier) -> str:
    """Return the multiplier over the shared range, and a table of it by B's budgets."""

    def known(one: Multiplier) -> str:
        return f"{one.times} {f'({one.uncertainty})' if one.uncertainty else '(no interval: no refits)'}"

    rows = [("FLOPs of B", "its loss", "A needs", "times as many", "")]
    if multiplier.overall:
        rows.append(
            (f"{multiplier.overall.low:.3g} to {multiplier.overall.high:.3g}", "", "", known(multiplier.overall), "")
        )
    for one in multiplier.at_budgets:
        of_a = "" if one.first_flops is None else f"{one.first_flops:.3g}"
        rows.append((f"{one.flops:.3g}", f"{one.loss:.4f}", of_a, known(one), one.beyond))
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    lines = ["  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in rows]
    notes = [multiplier.no_overlap] if multiplier.no_overlap else []
    return "\n".join(
        [
            f"{MULTIPLIER}: FLOPs that A needs for the loss of B's best model",
            *lines,
            *(_wrap(note, "  ") for note in notes),
        ]
    )


def _section_text(title: str, differences: Sequence[Difference]) -> str:
    """Return a table of the numbers of A and B and their change, in columns as wide as their longest cell."""
    rows = [("", "A", "B", "change"), *(_cells(number) for number in differences)]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = ["  ".join(["", *map(str.ljust, row[:3], widths), row[3]]) for row in rows]
    without_interval = [number for number in differences if number.change is not None and number.interval is None]
    reasons = {f"  no interval: {number.reason}" for number in without_interval}
    return "\n".join([title, *lines, *sorted(reasons)])


def _cells(number: Difference) -> tuple[str, str, str, str]:
    at = "" if number.flops is None else f" at {number.flops:.3g} FLOPs"
    name = f"{number.name}{at}" + ("" if number.unit == "1" else f", {number.unit}")
    form = ".4f" if number.kind == "difference" and number.unit == "nats per token" else ".4g"

    def value(side: float, bounds: tuple[float, float] | None, note: str) -> str:
        limits = f" ({bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else ""
        return f"{side:{form}}{limits}{', ' if note else ''}{note}"

    a = value(number.first, number.first_interval, number.first_note)
    b = value(number.second, number.second_interval, number.second_note)
    if number.change is None:
        return name, a, b, f"not compared: {number.reason}"
    prefix, sign = ("x ", ".4g") if number.kind == "ratio" else ("", "+.4f")
    limits = f"({number.interval[0]:{sign}} to {number.interval[1]:{sign}})" if number.interval else "(no interval)"
    return name, a, b, f"{prefix}{number.change:{sign}} {limits}{' *' if number.differs else ''}"


def _missing_lines(missing: Sequence[MissingSection]) -> list[str]:
    """Return the missing sections with the reasons; sections with the same reasons share a line."""
    sections: dict[str, list[str]] = {}
    for section in dict.fromkeys(part.section for part in missing):
        reasons = "; ".join(f"{part.side} has none: {part.reason}" for part in missing if part.section == section)
        sections.setdefault(reasons, []).append(section)
    return [_wrap(f"{', '.join(titles)}: {reasons}", "  ") for reasons, titles in sections.items()]


def _wrap(text: str, start: str) -> str:
    return textwrap.fill(text, REPORT_WIDTH, initial_indent=start, subsequent_indent="    ")
