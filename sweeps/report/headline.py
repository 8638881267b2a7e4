"""The result of a sweep in a few sentences, each number with its interval."""

import math
import re

from isoloop.fitting import ANSWER_MULTIPLE, HeldOut, PowerLaw, SizesFit, SweepFit, Verdict, recommendation, verdict
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.isoflop.power_law import POWER_LAWS, WITHOUT_BIAS
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.tables.repetition import REPEATED_TEXT
from isoloop.sweeps.paths import SweepResults


def headline(results: SweepResults) -> list[str]:
    """Return the sweep's result in a few sentences, the answer or the reason why there is none first."""
    fit, hold_out = results.fit, results.hold_out
    if results.joint is not None:
        return sizes_headline(results.joint, results.joint_hold_out)
    if fit is None:
        return [f"Not fitted: {results.why_no_fit}."]
    judged = verdict(fit)
    sentences = [with_greek_mu(str(each)) for each in judged.answer] or [_answer_sentence(fit)]
    sentences += map(with_greek_mu, judged.caveats)
    sentences += _exponent_sentences(fit, judged)
    if fit.laws_after_training is not None:
        law = fit.laws_after_training.best
        values = (f"{p.name} = {_spanned(p.value, p.interval, '.4g')}" for p in law.parameters)
        sentences.append(f"{law.form.name.capitalize()} law {with_greek_mu(law.form.formula)}: {', '.join(values)}.")
    if hold_out is not None and hold_out.held_out is not None:
        sentences.append(_held_out_sentence(hold_out.held_out))
    if results.why_no_hold_out:
        sentences.append(f"No runs were held out: {results.why_no_hold_out}.")
    sentences += [caveat for caveat in fit.caveats if caveat.startswith(REPEATED_TEXT)]
    return [*sentences, _interval_sentence(fit)]


def with_greek_mu(text: str) -> str:
    """Return the formula of a law, or the name of a method of prediction, as a page spells it: with µ for mu."""
    return re.sub(r"\bmu\b", "µ", text)


def _answer_sentence(fit: SweepFit) -> str:
    """Return the best model for twice the largest fitted compute, and what the other methods' choices would cost."""
    best = recommendation(fit, ANSWER_MULTIPLE * fit.fitted.flops[1])
    low, high = best.value_interval or (best.value, best.value)
    outside = [
        f"{other.value:.3g} by the {other.method}, which would cost {max(other.extra_loss, 0.0):.1g} nats"
        for other in best.others
        if other.extra_loss is not None and not low <= other.value <= high
    ]
    costs = f" Other methods choose {'; '.join(outside)}." if outside else ""
    return (
        f"The best model for {best.flops:.3g} FLOPs, {ANSWER_MULTIPLE:g} times the largest measured compute, has a "
        f"{AXES[fit.axis].name} of {_spanned(best.value, best.value_interval)}, trained on "
        f"{_spanned(best.tokens, best.tokens_interval)} tokens to a loss of "
        f"{_spanned(best.loss, best.loss_interval, '.5g')} nats per token, by the {best.method}.{costs}"
    )


def sizes_headline(fit: SizesFit, hold_out: SizesFit | None) -> list[str]:
    """Return the result of a joint fit over sizes, the answer or the reason why there is none first."""
    judged, point = fit.verdict(), fit.point(fit.answer_budget)
    sentences = [with_greek_mu(str(each)) for each in judged.answer]
    if not sentences:
        sentences.append(
            f"The best model for {point.budget:.3g} FLOPs, {ANSWER_MULTIPLE:g} times the largest measured compute, has "
            f"{_sized(point.params)} parameters and a mean recurrence of "
            f"{_spanned(point.mean_recurrence.value, point.mean_recurrence.interval)}, trained on "
            f"{_spanned(point.tokens.value, point.tokens.interval)} tokens to a loss of "
            f"{_spanned(point.loss.value, point.loss.interval, '.4f')} nats per token, by the {fit.laws.name}."
        )
    sentences += map(with_greek_mu, judged.caveats)
    best = min(point.sizes, key=lambda size: size.loss.value)
    chance = "" if best.chance is None else f", by {best.chance:.0%} of the refits"
    sentences.append(
        f"Of the measured sizes {best.label} is the best at that budget{chance}, with a mean recurrence of "
        f"{_spanned(best.mean_recurrence.value, best.mean_recurrence.interval)}."
    )
    law = fit.laws.best
    values = (f"{p.name} = {_spanned(p.value, p.interval, '.4g')}" for p in law.parameters)
    sentences.append(f"{law.form.name.capitalize()} law {with_greek_mu(law.form.formula)}: {', '.join(values)}.")
    sentences.append(f"In effect: {law.form.effective(law.vector)}.")
    if fit.phi is not None:
        sentences.append(
            f"The worth of a loop by the laws that have one ({fit.phi_weight:.0%} of the weight): phi = "
            f"{_spanned(fit.phi.value, fit.phi.interval)}."
        )
    sentences += [
        f"Held out by {comparison.by}, losses are predicted by: "
        + "; ".join(f"{error.method} to {error.mean_absolute_error:.2g}%" for error in comparison.errors)
        + "."
        for comparison in fit.comparisons
        if comparison.errors
    ]
    if hold_out is not None and hold_out.held_out is not None:
        sentences.append(_held_out_sentence(hold_out.held_out))
    return sentences


def _sized(size: Quantity) -> str:
    span = "" if size.interval is None else f" ({short_count(size.interval[0])} to {short_count(size.interval[1])})"
    return f"{short_count(size.value)}{span}"


def _exponent_sentences(fit: SweepFit, judged: Verdict) -> list[str]:
    if fit.isoflop is None or not fit.isoflop.axis_law or not fit.isoflop.tokens_law:
        reason = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
        return [f"There are no exponents of {POWER_LAWS}: {reason}."]
    if judged.exponents:
        return [with_greek_mu(str(each)) for each in judged.exponents]
    name, law, tokens = AXES[fit.axis].name, fit.isoflop.axis_law, fit.isoflop.tokens_law
    sentences = [
        f"By the {POWER_LAWS}, the best {name} grows as C^{_exponent(law)} and the best "
        f"token count as C^{_exponent(tokens)} ({fit.accounting} accounting)."
    ]
    if fit.parabola_bias is not None:
        bias = fit.parabola_bias
        sentences.append(
            f"{WITHOUT_BIAS.capitalize()} on skewed curves, as the {bias.law} law predicts it, the exponents are "
            f"{_exponent(bias.axis_exponent.corrected)} and {_exponent(bias.tokens_exponent.corrected)}."
        )
    return sentences


def _held_out_sentence(held: HeldOut) -> str:
    errors = "; ".join(f"{error.mean_absolute_error:.2g}% ({with_greek_mu(error.method)})" for error in held.errors)
    return (
        f"Without the runs at the largest {held.quantity} ({held.value:.3g}, {held.times_beyond:.3g} times beyond the "
        f"others), the fit predicts their losses with a mean absolute error of {errors}."
    )


def _interval_sentence(fit: SweepFit) -> str:
    sources = []
    power = fit.isoflop.axis_law if fit.isoflop is not None else None
    if fit.isoflop is not None and power is not None and power.interval is not None:
        sources.append(f"those of exponents come from {fit.isoflop.interval_method.split(' (')[0]}")
    if fit.training is not None and fit.training.draws:
        drawn = {"parametric": "noise", "rows": "runs", "budgets": "budgets"}
        kind = fit.training.bootstrap
        how = f"refits to redrawn {drawn[kind]}" if kind in drawn else f"a {kind}"
        sources.append(f"those of the laws come from {how}")
    if not sources:
        return "There are no intervals, because nothing was refitted."
    return f"Intervals are 95%: {', '.join(sources)}; docs/fitting.md has how often they cover the truth."


def _exponent(law: PowerLaw) -> str:
    return _spanned(law.exponent, law.interval, ".3f")


def _spanned(value: float, span: tuple[float, ...] | list[float] | None, form: str = ".3g") -> str:
    """Return a number with its interval in brackets, if there is one whose ends are numbers or infinite."""
    has_interval = span and not any(map(math.isnan, span))
    return f"{value:{form}}" + (f" ({span[0]:{form}} to {span[1]:{form}})" if span and has_interval else "")
