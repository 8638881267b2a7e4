"""The whole fit as text: methods, parameters, bounds that were hit, held-out runs and caveats."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from isoloop.fitting.answer.predict import predict
from isoloop.fitting.answer.recommendation import ANSWER_MULTIPLE, why_no_recommendation
from isoloop.fitting.answer.verdict import verdict
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.rise import RISES
from isoloop.fitting.isoflop.report import interval_text, isoflop_text, parabola_bias_text
from isoloop.fitting.report.estimates import HIGH_CORRELATION, correlations, parameters
from isoloop.fitting.result import HeldOut, SweepFit
from isoloop.fitting.selection.distance import distance_table, trust_sentences
from isoloop.fitting.selection.misfit import Misfit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.selection.overthinking import Overthinking
from isoloop.fitting.tables.repetition import epochs_text

REPORT_WIDTH = 100
_MODELS_SHOWN = 12
_ROWS_SHOWN = 200
"""Held-out runs that the report lists."""


def full_report(fit: SweepFit) -> str:
    """Return the whole fit as text: methods, parameters, bounds that were hit, caveats. Intervals are 95%."""
    simulated = "  (simulated)" if fit.simulated else ""
    low, high = fit.fitted.flops
    least, most = fit.fitted.of_axis(fit.axis)
    axis = f"mean loops     {least:g} to {most:g}"
    if fit.axis == "params":
        axis = f"parameters     {least:.3g} to {most:.3g}"
    epochs = ""
    if fit.fitted.epochs is not None:
        epochs = f"  epochs         {' to '.join(map(epochs_text, fit.fitted.epochs))} (see caveats)\n"
    parts = [
        f"Fit of {fit.name}{simulated}\n"
        f"  runs fitted    {fit.finished_runs}\n"
        f"  compute        {low:.3g} to {high:.3g} FLOPs, accounting {fit.accounting}\n"
        f"  tokens         {fit.fitted.tokens[0]:.3g} to {fit.fitted.tokens[1]:.3g}\n"
        f"{epochs}"
        f"  {axis}\n"
        f"  FLOPs/token    {fit.cost_model.formula}"
    ]
    if fit.reading:
        parts.insert(0, "\n".join(bullets("How the table was read", fit.reading)))
    if why_no_recommendation(fit) is None:
        parts.append(predict(fit, flops=ANSWER_MULTIPLE * fit.fitted.flops[1]).report().rstrip())
    else:
        parts.append("\n".join(verdict(fit).sentences))
    parts.append(isoflop_text(fit.isoflop) if fit.isoflop else _not_fitted(fit, "isoFLOP curves", "isoflop"))
    if fit.isoflop and fit.parabola_bias:
        parts.append(parabola_bias_text(fit.parabola_bias, fit.isoflop.axis))
    if fit.axis == "params":
        parts.append(law_text(fit.training) if fit.training else _not_fitted(fit, "law L(N, D)", "training"))
        parts += mixture_texts(fit.mixture)
    else:
        for name, law in fit.laws.items():
            parts.append(law_text(law) if law else _not_fitted(fit, f"{name} law", name))
            parts += mixture_texts(fit.mixture) if name == "training" else []
        parts.append(
            _test_time_text(fit.test_time) if fit.test_time else _not_fitted(fit, "test-time law", "test-time")
        )
    if fit.overthinking:
        parts += _overthinking_texts(fit.overthinking)
    if fit.misfits:
        parts.append(misfit_text(fit.misfits))
    if fit.rollouts:
        sentences = bullets("How far the laws after training can be trusted", trust_sentences(fit.rollouts.rows))
        parts.append("\n".join([*sentences, *distance_table(fit.rollouts.rows)]))
    if fit.held_out:
        parts.append(held_out_text(fit.held_out, fit.method_after_training, dense=fit.axis == "params"))
    parts.append("\n".join(bullets("Caveats", fit.caveats)))
    return "\n".join(within_width(line) for line in "\n\n".join(parts).split("\n")) + "\n"


def within_width(line: str) -> str:
    """Return a line of the report, continued on further ones if it is too long."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return line if len(line) <= REPORT_WIDTH else textwrap.fill(line, REPORT_WIDTH, subsequent_indent=indent)


def _not_fitted(fit: SweepFit, title: str, name: str) -> str:
    return textwrap.fill(f"{title}: not fitted. {fit.why_missing(name)}", REPORT_WIDTH, subsequent_indent="  ")


def law_text(fit: LawFit) -> str:
    """Return one fitted law as text: its method, parameters with intervals, and warnings."""
    law = fit.form
    scatter = f"{100 * fit.noise:.3g}%" if fit.on == "log loss" else f"{fit.noise:.3g} nats"
    if fit.noise_model is not None:
        scatter += fit.noise_model.departure
    lines = [
        f"{law.name} law: {law.formula}",
        f"  source      {law.source}",
        f"  method      {fit.method}; {fit.rows} losses of {fit.runs} runs, {len(fit.parameters)} free",
        f"  objective   {fit.objective:.6g}; scatter of one loss {scatter}; {len(fit.draws)} refits, {fit.bootstrap}",
    ]
    # A row for each parameter, in columns as wide as their widest cell
    profiled = any(parameter.profile is not None for parameter in fit.parameters)
    rows = [
        (
            estimate.name,
            f"{estimate.value:.5g}",
            interval_text(estimate.interval),
            _profile_text(parameter.profile) if profiled else "",
            f"{estimate.words}, at its bound" if estimate.at_bound else estimate.words,
        )
        for estimate, parameter in zip(parameters(fit), fit.parameters, strict=True)
    ]
    heading = ("", "", "95% by refits", "95% by profile" if profiled else "", "")
    names, values, refits, profiles, _ = (max(map(len, cells)) for cells in zip(heading, *rows, strict=True))
    for name, value, by_refits, by_profile, words in [heading, *rows] if fit.draws or profiled else rows:
        cells = f"  {name:<{max(6, names)}}{value:>{max(10, values)}}  {by_refits:<{refits}}  "
        cells += f"{by_profile:<{profiles}}  " if profiled else ""
        indent = " " * len(cells)
        lines += textwrap.wrap(words, REPORT_WIDTH, initial_indent=cells, subsequent_indent=indent) or [cells.rstrip()]
    # What the parameters amount to
    pairs = [str(pair) for pair in correlations(fit)]
    if pairs:
        lines.append(f"  correlations above {HIGH_CORRELATION:g} over the refits: {', '.join(pairs)}")
    if not any(RISES in reason for reason in fit.reasons):
        lines.append(f"  in effect: {law.effective(fit.vector)}")
    lines += [f"  warning: {reason}" for reason in fit.reasons]
    return "\n".join(lines)


def _profile_text(limits: tuple[float | None, float | None] | None) -> str:
    low, high = ("no limit" if limit is None else f"{limit:.5g}" for limit in limits or (None, None))
    return f"({low} to {high})"


def mixture_texts(mixture: LawMixture | None) -> list[str]:
    """Return the laws that extend the law after training, and the weights of all of them in predictions."""
    if mixture is None:
        return []
    weights = f"Weights of the laws after training\n  {mixture.reason}"
    return [*(law_text(law) for law in mixture.laws[1:]), weights]


def misfit_text(misfits: Sequence[Misfit]) -> str:
    """Return the tests of the form of each law, with their p-values."""
    lines = ["Tests of the form of each law: departures from it that are too regular for noise"]
    for misfit in misfits:
        tests = "; ".join(f"{test.against} {test.p_value:.2g}" for test in misfit.tests)
        judged = "a misfit" if misfit.significant else "no misfit is seen"
        p_value = f"p = {misfit.p_value:.2g} ({tests})" if tests else "the table allows no test"
        lines.append(f"  {misfit.law} law: {judged}; {p_value}")
    return "\n".join(lines)


def _test_time_text(fits: tuple[LawFit, ...]) -> str:
    law = fits[0].form
    lines = [f"{law.name} law: {law.formula}, one per model ({len(fits)} models)"]
    lines.append(f"  {'mu':>5}  {'L_inf':>8}  {'Z':>8}  {'z':>8}  {'scatter':>8}  run")
    for fit in fits:
        reasons = f"  ({'; '.join(fit.reasons)})" if fit.reasons else ""
        lines.append(
            f"  {fit.mean_recurrence:>5g}  {fit.value('L_inf'):>8.4f}  {fit.value('Z'):>8.4f}  {fit.value('z'):>8.4f}  "
            f"{100 * fit.noise:>7.3g}%  {fit.run_id}{reasons}"
        )
    return "\n".join(lines)


def _overthinking_texts(overthinking: Overthinking) -> list[str]:
    """Return the best T of each model that overthinks, and the laws that can follow the rise."""
    rise = overthinking.rise
    lines = bullets("Losses that rise with T (overthinking)", [rise.caveat, overthinking.sentence])
    lines.append(f"  {'mu':>5}  {'best T':>7}  {'T / mu':>7}  {'loss':>8}  {'largest T':>9}  {'costs':>12}  run")
    shown = sorted(rise.least, key=lambda model: -model.cost)[:_MODELS_SHOWN]
    for model in shown:
        mu = model.mean_recurrence or math.nan
        lines.append(
            f"  {mu:>5g}  {model.recurrence:>7g}  {model.recurrence / mu:>7.3g}  {model.loss:>8.4f}  "
            f"{model.largest:>9g}  {model.cost:>7.3g} nats  {model.run_id}"
        )
    if len(shown) < len(rise.least):
        lines.append(f"  ... these {len(shown)} lose most of {len(rise.least)}")
    return ["\n".join(lines), *map(law_text, (*overthinking.laws, *overthinking.test_time[:1]))]


def bullets(title: str, sentences: Sequence[str]) -> list[str]:
    """Return a title and the sentences under it, each from a new line on."""
    filled = (textwrap.fill(text, REPORT_WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in sentences)
    return [title, *filled]


def held_out_text(held: HeldOut, training: str, *, dense: bool) -> str:
    """Return the errors on held-out runs, and the predictions by the method `training` beside what was measured."""
    runs = "1 run" if held.runs == 1 else f"{held.runs} runs"
    lines = [f"Held out: {runs} at the largest {held.quantity}, {held.value:.4g} ({held.times_beyond:.1f}x beyond)"]
    for error in held.errors:
        covered = "" if error.coverage is None else f"; {error.coverage:.0%} inside their 95% intervals"
        lines.append(
            f"  mean absolute error {error.mean_absolute_error:8.4f}%  {error.method}, {error.rows} losses{covered}"
        )
    at_mean = [row for row in held.rows if row.method == training]
    if not at_mean:
        return "\n".join([*lines, "  no law of the loss after training was fitted to predict them"])
    model = f"{'run':<14}" if dense else f"{'mu':>5}  {'T':>4}"
    lines.append(f"  {model}  {'predicted':>9}  {'95%':>18}  {'measured':>9}  {'error':>8}")
    worst = sorted(at_mean, key=lambda row: -abs(row.error))[:_ROWS_SHOWN]
    for row in at_mean if len(at_mean) <= _ROWS_SHOWN else worst:
        bounds = f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" if row.interval else "-"
        model = f"{row.run_id:<14.14}" if dense else f"{row.mean_recurrence:>5g}  {row.recurrence:>4g}"
        lines.append(f"  {model}  {row.predicted:>9.4f}  {bounds:>18}  {row.measured:>9.4f}  {row.error:>+7.3f}%")
    if len(at_mean) > _ROWS_SHOWN:
        lines.append(f"  ... these {_ROWS_SHOWN} have the largest errors of {len(at_mean)}")
    return "\n".join(lines)
