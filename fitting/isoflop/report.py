"""Readable text of an isoFLOP fit and of the bias of its parabolas."""

from __future__ import annotations

import textwrap

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.isoflop.bias import ExponentBias, ParabolaBias
from isoloop.fitting.isoflop.minima import Disagreement, IsoflopFit, Minimum
from isoloop.fitting.isoflop.power_law import WITHOUT_BIAS, MinimalLossLaw, PowerLaw

_FORMATS = {"mean_recurrence": ".3f", "params": ".4g", "tokens": ".4g"}


def isoflop_text(fit: IsoflopFit) -> str:
    """Return the minima, their power laws and their contradiction by parabolas in log(tokens). Intervals are 95%."""
    symbol = AXES[fit.axis].plain_symbol
    lines = [f"isoFLOP curves: parabola of loss in log({AXES[fit.axis].name}) at each budget; D* spends it exactly"]
    lines += _minima_lines(fit.minima, fit.axis)
    for name, law in ((symbol, fit.axis_law), ("D", fit.tokens_law)):
        lines.append(_power_law_line(f"{name}*", law) if law else f"  {name}*: no power law. {fit.reason}")
    lines += [_least_loss_line(law) for law in (fit.loss_law, fit.loss_floor_law) if law]
    lines.append(_wrapped(f"intervals: {fit.interval_method}"))
    if fit.noise is not None:
        lines.append(f"  noise of one loss: {fit.noise:.2g} nats")
    lines += [_wrapped(f"note: {note}") for note in fit.notes]
    if fit.disagreement:
        lines.append(_wrapped(_disagreement_text(fit.disagreement, symbol)))
    if fit.independent:
        lines.append(
            "  Fitted separately: parabola of loss in log(tokens) at each budget, whose D* spends another compute"
        )
        lines += _minima_lines(fit.independent.minima, "tokens")
        if fit.independent.tokens_law:
            lines.append(_power_law_line("D*", fit.independent.tokens_law))
            lines.append(_wrapped(f"intervals: {fit.independent.interval_method}"))
    return "\n".join(lines)


def parabola_bias_text(bias: ParabolaBias, axis: str) -> str:
    """Return the bias of the parabolas on the law's own losses, along `axis`, and the power laws without it."""
    symbol, form = AXES[axis].plain_symbol, _FORMATS[axis]
    lines = [
        f"Bias of the parabolas, if losses follow the {bias.law} law: they are fitted to its losses without noise. "
        f"The exponents are those over these {len(bias.budgets)} budgets"
    ]
    lines.append(f"  {'budget':>10}  {f'{symbol}* parabola':>13}  {f'{symbol}* exact':>10}  {'bias of log':>11}")
    for at_budget in bias.budgets:
        bound = "  (the law's optimum is at the end of the search)" if at_budget.at_bound else ""
        lines.append(
            f"  {at_budget.budget:>10.3g}  {at_budget.parabola:>13{form}}  {at_budget.exact:>10{form}}  "
            f"{at_budget.log_bias:>+11.4f}  {interval_text(at_budget.log_bias_interval)}{bound}"
        )
    lines += [_exponent_bias_text(f"{symbol}*", bias.axis_exponent), _exponent_bias_text("D*", bias.tokens_exponent)]
    lines += [_wrapped(f"note: {note}") for note in bias.notes]
    return "\n".join(lines)


def interval_text(bounds: tuple[float, float] | None) -> str:
    """Return an interval in brackets, or that there is none."""
    return f"({bounds[0]:.5g} to {bounds[1]:.5g})" if bounds else "(no interval)"


def _minima_lines(minima: tuple[Minimum, ...], axis: str) -> list[str]:
    """Return a table of the minima; along the tokens, the best value is D* alone."""

    def cell(value: float | None, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    best = "" if axis == "tokens" else f"  {f'{AXES[axis].plain_symbol}*':>9}"
    lines = [f"  {'budget':>10}  {'points':>6}{best}  {'s.e. of log':>11}  {'D*':>10}  {'loss*':>7}  {'s.e.':>7}"]
    for minimum in minima:
        best = "" if axis == "tokens" else f"  {cell(getattr(minimum, axis), 9, _FORMATS[axis])}"
        lines.append(
            f"  {minimum.budget:>10.3g}  {minimum.points:>6}{best}  {cell(minimum.log_error, 11, '.4f')}  "
            f"{cell(minimum.tokens, 10, '.4g')}  {cell(minimum.loss, 7, '.4f')}  {cell(minimum.loss_error, 7, '.2g')}"
        )
        if not minimum.included:
            lines.append(f"              left out: {minimum.reason}")
    return lines


def _power_law_line(symbol: str, law: PowerLaw) -> str:
    return f"  {symbol:<3} ~ C^{law.exponent:.4f}  {interval_text(law.interval)}"


def _least_loss_line(law: MinimalLossLaw) -> str:
    floor = f"{law.floor:.4f} {interval_text(law.floor_interval)} + " if law.has_floor else ""
    bound = ", at its bound" if law.at_bound else ""
    text = f"  L*  = {floor}{law.coefficient:.4g} (C / {law.reference:.3g})^-{law.exponent:.4f}  "
    if not law.has_floor:
        return f"{text}(without a floor: wrong beyond the measured budgets)"
    return f"{text}{interval_text(law.interval)}{bound}"


def _disagreement_text(disagreement: Disagreement, symbol: str) -> str:
    low, high = (
        f"{abs(percent):.1f}% {'less' if percent < 0 else 'more'}"
        for percent in (min(disagreement.overspent), max(disagreement.overspent))
    )
    text = (
        f"parabolas in log(tokens), fitted separately, disagree: {symbol}* with their D* spends {low} to {high} than C"
    )
    if disagreement.spent_exponent is None:
        return text
    return (
        f"{text}; they give D* ~ C^{disagreement.tokens_exponent:.4f} where {symbol}* implies "
        f"C^{disagreement.implied_tokens_exponent:.4f}, and so spend C^{disagreement.spent_exponent:.4f}"
    )


def _exponent_bias_text(symbol: str, bias: ExponentBias) -> str:
    return (
        f"  {symbol:<3} exponent: the law's own {bias.exact:.4f}, by parabola {bias.parabola:.4f}, "
        f"bias {bias.bias:+.4f} {interval_text(bias.bias_interval)}\n"
        f"      {WITHOUT_BIAS}: {symbol} ~ C^{bias.corrected.exponent:.4f}  {interval_text(bias.corrected.interval)}"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")
