"""Reports of fits and predictions of quality as lines of text: what can't be predicted first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from isoloop.fitting.quality.score import HeldOutScore, Interval, ScoreFit, ScorePrediction
from isoloop.fitting.selection.mixture import NAMED_WEIGHT, LawMixture

_WIDTH = 100


def fit_lines(scores: Sequence[ScoreFit], baselines: str | None, *, simulated: bool) -> list[str]:
    """Return the report of a fit."""
    fitted = [score for score in scores if score.status == "fitted"]
    lines = refusal_lines([score for score in scores if score.status != "fitted"])
    if not fitted:
        return lines
    of_simulated = ", of simulated runs" if simulated else ""
    lines.append(f"Quality against validation loss{of_simulated} (95% intervals; {_baselines_text(baselines)})")
    for score in fitted:
        lines += _score_lines(score)
    return lines


def prediction_lines(
    scores: Sequence[ScorePrediction], refused: Sequence[ScoreFit], baselines: str | None
) -> list[str]:
    """Return the report of a prediction."""
    lines = refusal_lines(refused)
    if not scores:
        return lines
    lines.append(f"Quality at this loss, one model's scores ({_baselines_text(baselines)})")
    width = max(18, *(len(score.label) + 1 for score in scores))
    for score in scores:
        bounds = f"   95%: {_number(score.interval[0], score.unit)} to {_number(score.interval[1], score.unit)}"
        through = "" if score.task_loss is None else f"   task loss {score.task_loss:.4g}"
        lines.append(f"  {score.label:<{width}}{_number(score.value, score.unit):<12}{score.unit:<16}{bounds}{through}")
    for note in dict.fromkeys(score.note for score in scores if score.note):
        lines += _wrapped(f"Note: {note}.", "  ")
    return lines


def refusal_lines(refused: Sequence[ScoreFit]) -> list[str]:
    """Return why scores can't be predicted, those of one reason together."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for score in refused:
        by_reason.setdefault((score.status, score.reason), []).append(score.label)
    lines: list[str] = []
    for (status, reason), labels in by_reason.items():
        judged = "" if status == "not usable" else f" ({status})"
        lines += _wrapped(f"No prediction of {', '.join(labels)}{judged}: {reason}.", "")
    return lines


def _score_lines(score: ScoreFit) -> list[str]:
    assert score.losses is not None, score.status
    assert score.scores is not None, score.status
    assert score.wrong is not None, score.status
    low, high = score.scores
    lines = [
        f"  {score.label}: {score.runs} runs, loss {score.losses[0]:.4g} to {score.losses[1]:.4g} nats per token, "
        f"{_number(low, score.unit)} to {_number(high, score.unit)} {score.unit}"
    ]
    if score.task_loss is not None:
        lines += _wrapped(f"1. {_law_text(score.task_loss)}", "    ")
        lines += _wrapped(f"2. {_law_text(score.wrong)}", "    ")
    else:
        lines += _wrapped(_law_text(score.wrong), "    ")
    for rows, what in (
        (score.held_out, "of the largest fitted budget, predicted from the other runs at their measured loss"),
        (score.held_out_with_loss, "that no fit has seen, predicted at the loss that the laws predict"),
    ):
        if rows:
            lines += _wrapped(f"held out: {_error_text(rows, what, score.unit)}", "    ")
    if not score.held_out:
        lines += _wrapped(f"nothing was held out at measured losses: {score.why_not_held_out}", "    ")
    for caveat in score.caveats:
        lines += _wrapped(f"caveat: {caveat}", "    ")
    return lines


def _error_text(rows: Sequence[HeldOutScore], what: str, unit: str) -> str:
    inside, count = sum(row.inside for row in rows), len(rows)
    size, mean = sum(abs(row.error) for row in rows) / count, sum(row.error for row in rows) / count
    return (
        f"{count} {'run' if count == 1 else 'runs'} {what}: off by {_number(size, unit)} {unit} (mean "
        f"{_number(mean, unit, sign=True)}), {inside} of {count} inside their intervals"
    )


def _law_text(mixture: LawMixture) -> str:
    """Return the laws of a step that count, with parameters and weights."""
    parts = []
    for law, weight in zip(mixture.laws, mixture.weights, strict=True):
        if weight < NAMED_WEIGHT:
            continue
        values = ", ".join(f"{each.name} = {each.value:.4g}{_bounds(each.interval)}" for each in law.parameters)
        parts.append(f"{law.form.formula} with {values}" + (f", weight {weight:.0%}" if weight < 0.995 else ""))
    return "; ".join(parts)


def _bounds(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"


def _baselines_text(baselines: str | None) -> str:
    return f"baselines {baselines}" if baselines else "baselines not known"


def _number(value: float, unit: str, *, sign: bool = False) -> str:
    digits = 2 if unit == "points" else 4
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
