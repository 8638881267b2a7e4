"""A design as text: the rounds, the certainty that each buys, the runs of the first, and when to stop."""

from __future__ import annotations

import numpy as np

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.design.design import Design, Round
from isoloop.fitting.report.layout import filled

_WIDTH = 100
_UNKNOWN = 3.0
"""Width of an interval, of a logarithm or an exponent, that says nothing: a factor of 20 between both ends."""


def design_report(design: Design, *, axis: str, unit: str = "FLOPs", width: float | None = None) -> str:
    """Return a design as text in lines of 100 columns.

    Args:
        design: the design.
        axis: the column in which models differ.
        unit: the unit of the candidates' costs.
        width: the width of the first target's interval that is wanted, in the target's unit.
    """
    laws = " and ".join(filter(None, (", ".join(design.laws[:-1]), design.laws[-1])))
    known = f"noise of a loss {100 * design.noise:.2g}% of it ({design.noise_source})"
    return "\n".join(
        [
            *filled(f"Runs for {', '.join(map(str, design.targets))}, by the laws {laws}; {known}.", _WIDTH),
            "",
            *_table(design, unit),
            "",
            *filled(_stop(design, width), _WIDTH),
            "",
            *_cells(design.rounds[0], design, axis, unit),
            "",
            *filled(_CAVEAT, _WIDTH),
            "",
        ]
    )


_CAVEAT = (
    "Intervals are 95% and predicted: they hold if the losses follow one of these laws and the noise is as given. They "
    "are averages over what is plausible today, so design the next round anew once this one has run."
)


def _table(design: Design, unit: str) -> list[str]:
    shown = [place for place, target in enumerate(design.targets) if target.name != "decision"]
    header = ["", "runs", unit, "in all", *(f"{design.targets[place]} (95%)" for place in shown)]
    header += ["nats lost"] if design.before.nats_lost is not None else []
    rows, spent = [header], 0.0
    for number, each in enumerate((design.before, *design.rounds)):
        spent += each.cost
        name = f"round {number}" if number else "now"
        costs = [f"{each.counts.sum():d}", f"{each.cost:.3g}", f"{spent:.3g}"] if number else ["", "", ""]
        spans = [_span(design, place, each) for place in shown]
        rows.append([name, *costs, *spans, *([] if each.nats_lost is None else [f"{each.nats_lost:.2g}"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _span(design: Design, place: int, known: Round) -> str:
    """Return a target with its interval, or that it is not known."""
    if known.widths[place] > _UNKNOWN:
        return "not known"
    low, high = design.interval(place, known)
    return f"{design.values[place]:.4g} ({low:.4g} to {high:.4g})"


def _stop(design: Design, width: float | None) -> str:
    sentences = []
    if width is not None:
        enough, target = design.rounds_to(width), design.targets[0]
        sentences.append(
            f"The interval of {target} is not {width:g} wide after {len(design.rounds)} rounds: spend more."
            if enough is None
            else f"The interval of {target} is at most {width:g} wide already: stop."
            if enough == 0
            else f"The interval of {target} is at most {width:g} wide after round {enough}: stop there."
        )
    useful = design.useful_rounds
    if useful is not None:
        assert design.gain_per_flop is not None
        where = f"{next(target.flops for target in design.targets if target.flops is not None):.3g} FLOPs"
        elsewhere = "the same FLOPs spent on a larger run of the model itself would bring more nats than they save"
        sentences.append(
            f"For the choice of the model at {where} alone, stop now: already in round 1 {elsewhere}."
            if useful == 0
            else f"For the choice of the model at {where}, each of these rounds is worth its FLOPs."
            if useful == len(design.rounds)
            else f"For the choice of the model at {where} alone, stop after round {useful}: beyond it, {elsewhere}."
        )
    if not sentences:
        sentences.append("When to stop: give the width that you need with --width, or a target at a budget.")
    return " ".join(sentences)


def _cells(played: Round, design: Design, axis: str, unit: str) -> list[str]:
    symbol, candidates = AXES[axis].plain_symbol, design.candidates
    lines = [f"Round 1: {played.counts.sum()} runs, {played.cost:.4g} {unit}"]
    for budget in np.unique(candidates.flops[played.counts > 0]):
        at = np.flatnonzero((candidates.flops == budget) & (played.counts > 0))
        at = at[np.argsort(candidates.values[at])]
        of_size: dict[str, list[str]] = {}
        for cell in at:
            seeds = f" (x {played.counts[cell]})" if played.counts[cell] > 1 else ""
            size = candidates.sizes[cell] if candidates.sizes else ""
            of_size.setdefault(size, []).append(f"{candidates.values[cell]:.4g}{seeds}")
        sizes = [name for name in dict.fromkeys(candidates.sizes or ("",)) if name in of_size]
        cells = [f"{name}{', ' if name else ''}{symbol} = {', '.join(of_size[name])}" for name in sizes]
        lines += filled("; ".join(cells), _WIDTH, first=f"  {budget:.3g} FLOPs: ", rest="    ")
    return lines
