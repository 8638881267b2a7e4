"""An isoFLOP fit, and the bias of its parabolas, as readable text."""

from __future__ import annotations

import textwrap

from isoloop.fitting.isoflop.bias import ExponentBias, ParabolaBias
from isoloop.fitting.isoflop.minima import AXIS_NAMES, Disagreement, IndependentTokens, IsoflopFit, Minimum
from isoloop.fitting.isoflop.power_law import MinimalLossLaw, PowerLaw

_SYMBOLS = {"mean_recurrence": "mu", "params": "N"}
_FORMS = {"mean_recurrence": ".3f", "params": ".4g", "tokens": ".4g"}


def isoflop_text(fit: IsoflopFit) -> str:
    """The minima, their power laws and what parabolas in log(tokens) say against them. Intervals are 95%."""
    symbol = _SYMBOLS[fit.axis]
    lines = [f"isoFLOP curves: parabola of loss in log({AXIS_NAMES[fit.axis]}) at each budget; D* spends it exactly"]
    lines += _minima(fit.minima, fit.axis, symbol)
    for name, law in ((symbol, fit.axis_law), ("D", fit.tokens_law)):
        lines.append(_power_law(f"{name}*", law) if law else f"  {name}*: no power law. {fit.reason}")
    lines += [_least_loss(law) for law in (fit.loss_law, fit.loss_floor_law) if law]
    lines.append(_filled(f"intervals: {fit.interval_method}"))
    if fit.noise is not None:
        lines.append(f"  noise of one loss: {fit.noise:.2g} nats")
    lines += [_filled(f"note: {note}") for note in fit.notes]
    if fit.disagreement:
        lines.append(_filled(_disagreement(fit.disagreement, symbol)))
    if fit.independent:
        lines += _independent(fit.independent)
    return "\n".join(lines)


def parabola_bias_text(bias: ParabolaBias, axis: str) -> str:
    """What the parabolas miss on the law's own losses, along `axis`, and the power laws without that."""
    symbol = _SYMBOLS[axis]
    lines = [f"Bias of the parabolas, if losses follow the {bias.law} law: its own losses put through them, no noise"]
    lines.append(f"  {'budget':>10}  {f'{symbol}* parabola':>13}  {f'{symbol}* exact':>10}  {'bias of log':>11}")
    for one in bias.budgets:
        bound = "  (the law's optimum is at the end of the search)" if one.at_bound else ""
        lines.append(
            f"  {one.budget:>10.3g}  {one.parabola:>13{_FORMS[axis]}}  {one.exact:>10{_FORMS[axis]}}  "
            f"{one.log_bias:>+11.4f}  {interval_text(one.log_bias_interval)}{bound}"
        )
    lines += [_exponent(f"{symbol}*", bias.axis_exponent), _exponent("D*", bias.tokens_exponent)]
    lines += [_filled(f"note: {note}") for note in bias.notes]
    return "\n".join(lines)


def _minima(minima: tuple[Minimum, ...], axis: str, symbol: str) -> list[str]:
    best = "" if axis == "tokens" else f"  {f'{symbol}*':>9}"
    head = f"  {'budget':>10}  {'points':>6}{best}  {'s.e. of log':>11}  {'D*':>10}  {'loss*':>7}  {'s.e.':>7}"
    return [head, *(_minimum(minimum, axis) for minimum in minima)]


def _minimum(minimum: Minimum, axis: str) -> str:
    def cell(value: float | None, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    best = "" if axis == "tokens" else f"  {cell(getattr(minimum, axis), 9, _FORMS[axis])}"
    line = (
        f"  {minimum.budget:>10.3g}  {minimum.points:>6}{best}  {cell(minimum.log_error, 11, '.4f')}  "
        f"{cell(minimum.tokens, 10, '.4g')}  {cell(minimum.loss, 7, '.4f')}  {cell(minimum.loss_error, 7, '.2g')}"
    )
    return line if minimum.included else f"{line}\n              left out: {minimum.reason}"


def _power_law(symbol: str, law: PowerLaw) -> str:
    return f"  {symbol:<3} ~ C^{law.exponent:.4f}  {interval_text(law.interval)}"


def _least_loss(law: MinimalLossLaw) -> str:
    floor = f"{law.floor:.4f} {interval_text(law.floor_interval)} + " if law.has_floor else ""
    bound = ", at its bound" if law.at_bound else ""
    return (
        f"  L*  = {floor}{law.coefficient:.4g} (C / {law.reference:.3g})^-{law.exponent:.4f}  "
        f"{interval_text(law.interval)}{bound}"
    )


def _disagreement(found: Disagreement, symbol: str) -> str:
    ends = min(found.overspent), max(found.overspent)
    low, high = (f"{abs(end):.1f}% {'less' if end < 0 else 'more'}" for end in ends)
    said = f"parabolas in log(tokens), fitted apart, disagree: {symbol}* with their D* spends {low} to {high} than C"
    if found.spent_exponent is None:
        return said
    return (
        f"{said}; they say D* ~ C^{found.tokens_exponent:.4f} where {symbol}* implies "
        f"C^{found.implied_tokens_exponent:.4f}, and so spend C^{found.spent_exponent:.4f}"
    )


def _independent(found: IndependentTokens) -> list[str]:
    lines = ["  Fitted apart: parabola of loss in log(tokens) at each budget, which spends another compute"]
    lines += _minima(found.minima, "tokens", "D")
    if found.tokens_law:
        lines.append(_power_law("D*", found.tokens_law))
        lines.append(_filled(f"intervals: {found.interval_method}"))
    return lines


def _exponent(symbol: str, found: ExponentBias) -> str:
    return (
        f"  {symbol:<3} exponent: by parabola {found.parabola:.4f}, exactly {found.exact:.4f}, bias {found.bias:+.4f} "
        f"{interval_text(found.bias_interval)}\n"
        f"      corrected: {symbol} ~ C^{found.corrected.exponent:.4f}  {interval_text(found.corrected.interval)}"
    )


def interval_text(bounds: tuple[float, float] | None) -> str:
    """Return an interval in brackets, or that there is none."""
    return f"({bounds[0]:.5g} to {bounds[1]:.5g})" if bounds else "(no interval)"


def _filled(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    ")
