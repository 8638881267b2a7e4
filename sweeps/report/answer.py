"""The result of a sweep as numbers and text, for its run in MLflow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isoloop.fitting import SizesFit, SweepFit, recommendation, verdict
from isoloop.fitting.tables.best_loss import with_best_losses
from isoloop.sweeps.paths import SweepResults
from isoloop.sweeps.report.headline import headline

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float]
_SYMBOLS = {"mean_recurrence": "mu", "params": "N"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The numbers of a sweep's result by name, the 95% intervals of some, and the result in sentences.

    Names: `best_loss` is the least measured loss, `gamma_mu` and `gamma_D` are the exponents of the best µ and tokens,
    `optimal_mean_recurrence`, `optimal_tokens` and `optimal_loss` are those of the best model at the largest compute,
    and `held_out_error_percent` is the error on the largest budget. What the runs don't determine is left out. The
    numbers of a group of runs end in `/` and the name of the group's folder; MLflow's names have _ for its =.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


def sweep_answer(table: "pd.DataFrame", results: SweepResults) -> Answer:
    """Return the result of a sweep from its table and its fits."""
    answer = Answer(sentences=headline(results))
    losses = with_best_losses(table)["loss"]
    if losses.notna().any():
        answer.numbers["best_loss"] = float(losses.min())
    parts = {"": results} | {f"/{part.report.parent.name}": part for part in results.groups.values()}
    for suffix, part in parts.items():
        for name, value, interval in _numbers(part):
            answer.numbers[f"{name}{suffix}"] = value
            if interval is not None:
                answer.intervals[f"{name}{suffix}"] = interval
    for label, part in results.groups.items():
        answer.sentences.extend(f"{label}: {sentence}" for sentence in headline(part)[:1])
    return answer


def _numbers(results: SweepResults) -> Iterator[tuple[str, float, Interval | None]]:
    """Yield the name, the value and the interval of each number that a fit determines."""
    fit, hold_out = results.fit, results.any_hold_out
    if fit is not None:
        yield from _optimum(fit)
    if results.joint is not None:
        yield from _joint_optimum(results.joint)
    if hold_out is not None and hold_out.held_out is not None and hold_out.held_out.errors:
        yield "held_out_error_percent", hold_out.held_out.errors[0].mean_absolute_error, None


def _optimum(fit: SweepFit) -> Iterator[tuple[str, float, Interval | None]]:
    largest = fit.fitted.flops[1]
    judged, curves = verdict(fit, largest), fit.isoflop
    if curves is not None and not judged.exponents:
        laws = {_SYMBOLS[fit.axis]: curves.axis_law, "D": curves.tokens_law}
        yield from ((f"gamma_{symbol}", law.exponent, law.interval) for symbol, law in laws.items() if law)
    if not judged.answer:
        best = recommendation(fit, largest)
        yield f"optimal_{fit.axis}", best.value, best.value_interval
        yield "optimal_tokens", best.tokens, best.tokens_interval
        yield "optimal_loss", best.loss, best.loss_interval


def _joint_optimum(fit: SizesFit) -> Iterator[tuple[str, float, Interval | None]]:
    largest = fit.fitted.flops[1]
    if not fit.verdict(largest).answer:
        point = fit.point(largest)
        for name in ("params", "mean_recurrence", "tokens", "loss"):
            best = getattr(point, name)
            yield f"optimal_{name}", best.value, best.interval
    if fit.phi is not None:
        yield "phi", fit.phi.value, fit.phi.interval
