"""A comparison of two sweeps as readable text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fitting.compared_sweep import Missing, OneSide
from fitting.difference import Difference

_WIDTH = 100
_HEADINGS = ("", "A", "B", "change")


def comparison_text(
    first: OneSide,
    second: OneSide,
    accounting: str,
    differences: Sequence[Difference],
    missing: Sequence[Missing],
    verdicts: Sequence[str],
    doubts: Sequence[str],
) -> str:
    """Both sweeps, every number that both have, what is missing, which is better, and what to doubt."""
    head = [
        "Two sweeps compared",
        *(_side(letter, side) for letter, side in (("A", first), ("B", second))),
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
    parts.append(_list("What to doubt", doubts))
    return "\n\n".join(parts) + "\n"


def _side(letter: str, side: OneSide) -> str:
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
