"""What a sweep's folder holds after fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.fitting import SweepFit, predict
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.result import HeldOut

if TYPE_CHECKING:
    from isoloop.fitting import SweepFit


@dataclass(frozen=True, kw_only=True)
class Results:
    """Both fits of a sweep and its page; a fit that can't be made is None, and there is a reason why.

    `groups` are the same of each group of its runs, where there are several.
    """

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    why_no_hold_out: str | None
    report: Path
    groups: "Mapping[str, Results]" = field(default_factory=dict)


# MERGED answer
AHEAD = 2.0
"""Times the largest fitted compute for which the answer names the best model."""


def answer(results: Results) -> list[str]:
    """The sweep's result in a few sentences, each number with its interval."""
    fit, hold_out = results.fit, results.hold_out
    if fit is None:
        return [f"Not fitted: {results.why_no_fit}."]
    lines = _exponents(fit)
    if fit.training is not None:
        lines.append(_best(fit))
        values = ", ".join(
            f"{p.name} = {p.value:.4g}" + (f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})" if p.interval else "")
            for p in fit.training.parameters
        )
        form = fit.training.form
        lines.append(f"{form.name.capitalize()} law {form.formula.replace('mu', 'µ')}: {values}.")
    if hold_out is not None and hold_out.held_out is not None:
        lines.append(_held_out(hold_out.held_out))
    if results.why_no_hold_out:
        lines.append(f"Nothing was held out: {results.why_no_hold_out}.")
    lines.append(_intervals(fit))
    return lines


def _intervals(fit: SweepFit) -> str:
    """What the intervals rest on."""
    rest = []
    power = fit.isoflop.mean_recurrence_law if fit.isoflop is not None else None
    if fit.isoflop is not None and power is not None and power.interval is not None:
        rest.append(f"of exponents from {fit.isoflop.interval_method.split(' (')[0]}")
    if fit.training is not None and fit.training.draws:
        rest.append("of the laws from refits to redrawn noise")
    if not rest:
        return "There are no intervals: nothing was redrawn."
    return f"Intervals are 95%, {', '.join(rest)}; docs/fitting.md has how often they cover."


def _exponent(law: PowerLaw) -> str:
    """The exponent of a power law, with its interval."""
    said = f"{law.exponent:.3f}"
    return f"{said} ({law.interval[0]:.3f} to {law.interval[1]:.3f})" if law.interval else said


def _exponents(fit: SweepFit) -> list[str]:
    if fit.isoflop is None or not fit.isoflop.mean_recurrence_law or not fit.isoflop.tokens_law:
        reason = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
        return [f"The minima of the isoFLOP curves give no exponents: {reason}."]
    mean, tokens = fit.isoflop.mean_recurrence_law, fit.isoflop.tokens_law
    flops = AHEAD * fit.fitted.flops[1]
    span = mean.interval_at(flops)
    afforded = fit.cost_model.tokens_for(flops, [mean.at(flops), *(span or ())])
    # More loops leave fewer tokens.
    spanned = (float(afforded[2]), float(afforded[1])) if span else None
    lines = [
        f"The best mean recurrence grows as C^{_exponent(mean)} and the best token count as C^{_exponent(tokens)} "
        f"({fit.accounting} accounting; from the minima of the isoFLOP curves).",
        f"For {flops:.3g} FLOPs, twice the largest fitted compute, that means a mean recurrence of "
        f"{_with(mean.at(flops), span)} and {_with(afforded[0], spanned)} tokens, which spend them.",
    ]
    if fit.parabola_bias is not None:
        bias = fit.parabola_bias
        lines.append(
            f"Without the parabola's bias on skewed curves, as far as the {bias.law} law holds: "
            f"C^{_exponent(bias.axis_exponent.corrected)} and C^{_exponent(bias.tokens_exponent.corrected)}."
        )
    return lines


def _best(fit: SweepFit) -> str:
    found = predict(fit, flops=AHEAD * fit.fitted.flops[1])
    return (
        f"For {found.flops:.3g} FLOPs, the {found.law} law finds a mean recurrence of "
        f"{_with(found.mean_recurrence, found.mean_recurrence_interval)} and "
        f"{_with(found.tokens, found.tokens_interval)} tokens best, with a loss of "
        f"{_with(found.loss, found.loss_interval, 5)}."
    )


def _held_out(held: HeldOut) -> str:
    errors = "; ".join(f"{error.mean_absolute_error:.2g}% ({error.method})" for error in held.errors)
    return (
        f"Runs at the largest {held.column} ({held.value:.3g}), kept out of the fit and {held.times_beyond:.3g} "
        f"times beyond it, were predicted with a mean absolute error of: {errors}."
    )


def _with(value: float, span: tuple[float, float] | None, digits: int = 3) -> str:
    return f"{value:.{digits}g}" + (f" ({span[0]:.{digits}g} to {span[1]:.{digits}g})" if span else "")
