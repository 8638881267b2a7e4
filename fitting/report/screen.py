"""A fit on one screen of 80 columns x 40 lines: the answer, the estimates, and what to doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isoloop.fitting.answer.recommendation import (
    ANSWER_MULTIPLE,
    BestModel,
    Recommendation,
    recommendation,
    why_no_recommendation,
)
from isoloop.fitting.answer.verdict import Verdict, verdict, verdict_on
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.report.estimates import (
    HIGH_CORRELATION,
    Estimate,
    correlations,
    exponents,
    parameters,
)
from isoloop.fitting.report.layout import columns_of, filled, shortened
from isoloop.fitting.result import HeldOut, SweepFit
from isoloop.fitting.selection.distance import trust_sentences

COLUMNS, LINES = 80, 40
_FULL = "--full"
_VERDICT_LINES, _REMARK_LINES, _READING_LINES = 6, 5, 6
"""Lines that a verdict in place of the answer, sentences beside it, and the reading of the table take at most."""
_TRUST_LINES = 3
"""Lines that the rollouts take at most."""
_SHORTEST_READING, _SHORTEST_CAVEATS = 2, 4
"""Lines that the reading of the table and the caveats take at least."""

Printable = Callable[[str], str]
"""A function that returns a text as the terminal prints it."""


def screen(fit: SweepFit, *, lines: int = LINES, printable: Printable = str) -> str:
    """Return a fit in at most `lines` lines of at most 80 columns, whatever it is.

    First stands how its table was read, if that had to be guessed, then the best model for twice the largest fitted
    compute, or what the runs do not determine of it, then exponents and parameters with their 95% intervals, and then
    the caveats that weigh most. What there is no room for is counted. `printable` spells out the characters that a
    terminal lacks.
    """
    best = None if why_no_recommendation(fit) else recommendation(fit, ANSWER_MULTIPLE * fit.fitted.flops[1])
    judged = verdict(fit) if best is None else verdict_on(fit, best)
    answer = [_title(fit, printable), *_answer(fit, best, judged, printable)]
    # The table of parameters takes what it needs, as long as there is room for the shortest reading and caveats.
    shortest = _SHORTEST_CAVEATS + 1 + (_SHORTEST_READING + 1 if fit.reading else 0)
    estimates = _estimates(fit, lines - len(answer) - 1 - shortest, printable)
    left = lines - len(answer) - len(estimates) - 2
    reading: list[str] = []
    if fit.reading:
        most = min(_READING_LINES, max(_SHORTEST_READING, left - _SHORTEST_CAVEATS - 1))
        notes = [f"How the table was read: {fit.reading[0]}", *fit.reading[1:]]
        reading = _paragraph(notes, most, printable)
        left -= len(reading) + 1
    # How far it can be trusted comes after how the table was read, if there is room for it.
    trust = [] if fit.rollouts is None else _paragraph(trust_sentences(fit.rollouts.rows), _TRUST_LINES, printable)
    if left - len(trust) > _SHORTEST_CAVEATS:
        answer += trust
        left -= len(trust)
    above = [*judged.sentences, *(each.reason for each in judged.answer), *_missing(fit).values()]
    above = [sentence.lower() for sentence in above]
    caveats = [caveat for caveat in fit.caveats if not any(sentence in caveat.lower() for sentence in above)]
    caveat_lines, hidden = _list(caveats, max(1, left - 1), printable)
    more = f" ({hidden} more: {_FULL})" if hidden else ""
    caveat_lines = [f"What to doubt, the most important first{more}", *caveat_lines]
    parts = [reading, answer, estimates, caveat_lines]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _title(fit: SweepFit, printable: Printable) -> str:
    low, high = fit.fitted.flops
    simulated = " (simulated)" if fit.simulated else ""
    facts = printable(
        f"{simulated}: {fit.finished_runs} runs, {low:.3g} to {high:.3g} FLOPs, counted by {fit.accounting}"
    )
    name = shortened(printable(fit.name), COLUMNS - columns_of(f"Fit of {facts}"))
    return shortened(f"Fit of {name}{facts}", COLUMNS)


def _answer(fit: SweepFit, best: Recommendation | None, judged: Verdict, printable: Printable) -> list[str]:
    """Return the verdict, the best model for a budget, the models of other methods, and the held-out error."""
    most = _VERDICT_LINES if judged.answer else _REMARK_LINES
    lines = _paragraph(judged.sentences, most, printable)
    if best is not None:
        axis = AXES[fit.axis]
        title = f"Best model for {best.flops:.3g} FLOPs, {ANSWER_MULTIPLE:g} times the largest, by the {best.method}"
        if judged.answer:
            title = f"Details: what the {best.method} would choose for {best.flops:.3g} FLOPs"
        lines += _paragraph([title], 2, printable)
        lines += [
            _number(axis.name, best.value, best.value_interval, "loops" if axis.unit == "loops" else ""),
            _number("tokens", best.tokens, best.tokens_interval, ""),
            _number("loss", best.loss, best.loss_interval, "nats per token"),
        ]
        # Of the other methods, those that would cost most.
        others = [] if judged.answer else sorted(best.others, key=lambda other: -(other.extra_loss or 0.0))[:2]
        lines += [shortened(f"  {_other_model(other, axis.plain_symbol)}", COLUMNS) for other in others]
    if fit.held_out is not None:
        lines += _paragraph([_held_out(fit.held_out)], 2, printable)
    return lines


def _number(label: str, value: float, span: tuple[float, float] | None, unit: str) -> str:
    interval = f"({span[0]:.5g} to {span[1]:.5g})" if span else "(no interval)"
    return f"  {label:<16} {value:>11.5g}  {interval:<28}  {unit}".rstrip()


def _other_model(other: BestModel, symbol: str) -> str:
    span = f" ({other.value_interval[0]:.3g} to {other.value_interval[1]:.3g})" if other.value_interval else ""
    cost = "" if other.extra_loss is None else f", costs {max(0.0, other.extra_loss):.1g} nats"
    return f"{other.method}: {symbol}* {other.value:.3g}{span}{cost}"


def _held_out(held: HeldOut) -> str:
    runs = "1 run" if held.runs == 1 else f"{held.runs} runs"
    text = f"Held out: {runs} at the largest {held.quantity}, {held.value:.3g} ({held.times_beyond:.1f}x beyond)"
    if not held.errors:
        return f"{text}."
    error = held.errors[0]
    return f"{text}: mean absolute error {error.mean_absolute_error:.2g}% by the {error.method}."


def _estimates(fit: SweepFit, room: int, printable: Printable) -> list[str]:
    """Return the table of exponents and parameters with 95% intervals, and the high correlations of the latter.

    Of more parameters than there is room for, the first are shown, and the others counted.
    """
    # The rows, in columns as wide as their widest cell
    law = fit.laws_after_training.best if fit.laws_after_training else None
    of_power_laws, of_law = exponents(fit), () if law is None else parameters(law)
    rows = [*of_power_laws, *of_law]
    names = [printable(row.name) for row in rows]
    spans = [f"{row.interval[0]:.5g} to {row.interval[1]:.5g}" if row.interval else "-" for row in rows]
    name_width = min(24, max(map(columns_of, names), default=0))
    span_width = max(map(len, [*spans, "95% interval"]))

    def line(row: Estimate, name: str, span: str) -> str:
        name = shortened(name, name_width)
        padding = " " * (name_width - columns_of(name))
        words = printable(f"at its bound; {row.words}" if row.at_bound else row.words)
        return shortened(f"  {name}{padding}  {row.value:>11.5g}  {span:<{span_width}}  {words}", COLUMNS)

    table = [line(*cells) for cells in zip(rows, names, spans, strict=True)]
    # What is missing, and the exponents
    above = str(verdict(fit).answer)
    missing = [f"No {what}: {why}." for what, why in _missing(fit).items() if why not in above]
    lines = [line for sentence in missing for line in _paragraph([sentence], 3, printable)]
    heading = [f"  {'':<{name_width}}  {'value':>11}  95% interval"]
    lines += [*heading, *table[: len(of_power_laws)]] if of_power_laws else []
    # The law
    if law is None:
        return lines
    lines += _paragraph([f"{law.form.name} law: {law.form.formula}"], 2, printable)
    lines += [] if of_power_laws else heading
    correlated = _correlated(law, printable)
    if fit.mixture is not None and len(fit.mixture.draws_by_law) > 1:
        weights = zip(fit.mixture.laws, fit.mixture.weights, strict=True)
        counted = ", ".join(f"{each.form.name} law {weight:.0%}" for each, weight in weights)
        correlated += _paragraph([f"weights in predictions: {counted}"], 2, printable, first="  ", rest="    ")
    shown = table[len(of_power_laws) :]
    most = max(2, room - len(lines) - len(correlated))
    if len(shown) > most:
        shown = [*shown[: most - 1], f"  {len(shown) - most + 1} more parameters, which {_FULL} shows"]
    return lines + shown + correlated


def _missing(fit: SweepFit) -> dict[str, str]:
    """Return what of the table of estimates is missing, with the reason."""
    missing = {}
    if not exponents(fit):
        reason = fit.isoflop.reason if fit.isoflop is not None else None
        missing["exponents of isoFLOP power laws"] = reason or fit.why_missing("isoflop")
    if fit.training is None:
        missing["law of the loss after training"] = fit.why_missing("training")
    return missing


def _correlated(law: LawFit, printable: Printable) -> list[str]:
    """Return the high correlations of a law's parameters, or as many of them as two lines have room for."""
    pairs = [str(pair) for pair in correlations(law)]
    lines: list[str] = []
    for count in range(len(pairs), 0, -1):
        more = f" and {len(pairs) - count} more" if count < len(pairs) else ""
        text = f"correlations above {HIGH_CORRELATION:g}: {', '.join(pairs[:count])}{more}"
        lines = filled(printable(text), COLUMNS, first="  ", rest="    ")
        if len(lines) <= 2:
            break
    return lines[:2]


def _list(sentences: Sequence[str], most: int, printable: Printable) -> tuple[list[str], int]:
    """Return the sentences that `most` lines have room for, each from a new line on, and the number of the others."""
    for shown in range(len(sentences), 0, -1):
        lines = [
            line
            for sentence in sentences[:shown]
            for line in filled(printable(sentence), COLUMNS, first="  - ", rest="    ")
        ]
        if len(lines) <= most:
            return lines, len(sentences) - shown
    return (_beginning(printable(sentences[0]), most, "  - ", "    "), len(sentences) - 1) if sentences else ([], 0)


def _paragraph(
    sentences: Sequence[str], most: int, printable: Printable, *, first: str = "", rest: str = "  "
) -> list[str]:
    """Return as many sentences as `most` lines have room for, one after another, and count the others."""
    if not sentences:
        return []
    for shown in range(len(sentences), 0, -1):
        hidden = f"({len(sentences) - shown} more, which {_FULL} shows)" if shown < len(sentences) else ""
        lines = filled(f"{printable(' '.join(sentences[:shown]))} {hidden}", COLUMNS, first=first, rest=rest)
        if len(lines) <= most:
            return lines
    return _beginning(printable(sentences[0]), most, first, rest)


def _beginning(text: str, most: int, first: str, rest: str) -> list[str]:
    """Return the first lines of a text, with where to find its end."""
    ending = f"... ({_FULL} has the rest)"
    *lines, last = filled(text, COLUMNS, first=first, rest=rest)[:most]
    while columns_of(last) > COLUMNS - len(ending) and " " in last.strip():
        last = last.rstrip().rpartition(" ")[0]
    return [*lines, shortened(last, COLUMNS - len(ending)) + ending]
