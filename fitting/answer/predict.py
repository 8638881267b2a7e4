"""Predictions from a stored fit: the loss of a model that nobody has trained, and the best model for a budget."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.answer.recommendation import (
    BUDGET_ROUNDING,
    BestModel,
    recommendation,
    why_no_recommendation,
)
from isoloop.fitting.answer.verdict import Verdict, verdict, verdict_on
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import EXACT, LawFit
from isoloop.fitting.estimation.rise import RISES
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.tables.repetition import epochs_text

_WIDTH = 100
_LARGEST_EXPONENT = math.log(sys.float_info.max)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted loss (nats per token) of one model: looped, at `recurrence` loops, or dense, with `params` parameters.

    Intervals are 95% and None where the fit has no draws; the interval of the loss covers the uncertainty of the
    parameters and the noise of one run. `optimal` is True if the model was chosen as the best for `flops`; only then
    do its mean recurrence or parameters and its tokens have intervals, there is a `reason` for the method that chose
    it, and `others` are the models that the other methods would choose, with the loss that each would cost. `verdict`
    says what the runs do not determine: where it has an `answer`, the chosen model is no answer. `method` chose the
    model if it is optimal, and predicts the loss otherwise.
    """

    loss: float
    loss_interval: tuple[float, float] | None
    perplexity: float
    perplexity_interval: tuple[float, float] | None
    mean_recurrence: float | None
    mean_recurrence_interval: tuple[float, float] | None
    params: float | None
    params_interval: tuple[float, float] | None
    tokens: float
    tokens_interval: tuple[float, float] | None
    flops: float
    recurrence: float | None
    optimal: bool
    method: str
    reason: str
    others: tuple[BestModel, ...]
    verdict: Verdict
    simulated: bool
    accounting: str
    notes: tuple[str, ...]

    @property
    def value(self) -> float:
        """The mean recurrence in loops, or of dense models the parameters."""
        value = self.params if self.mean_recurrence is None else self.mean_recurrence
        assert value is not None
        return value

    @property
    def value_interval(self) -> tuple[float, float] | None:
        """The 95% interval of `value`."""
        return self.params_interval if self.mean_recurrence is None else self.mean_recurrence_interval

    def report(self) -> str:
        """Return the prediction as text: the verdict, the one value, its reason, and the other methods' values."""
        simulated = ", from simulated runs" if self.simulated else ""
        title = f"Prediction by the {self.method}"
        if self.optimal:
            title = f"Best model for {self.flops:.4g} FLOPs by the {self.method}"
        if self.verdict.answer:
            title = f"Details: what the {self.method} would choose for {self.flops:.4g} FLOPs"
        lines = [
            *wrapped([*map(str, self.verdict.answer), *self.verdict.caveats], ""),
            f"{title}{simulated}",
            *self._value_lines(),
            *_line("tokens", self.tokens, self.tokens_interval, "tokens"),
            *_line("loss", self.loss, self.loss_interval, "nats per token"),
            *_line("perplexity", self.perplexity, self.perplexity_interval, "per token"),
            *_line("compute", self.flops, None, f"FLOPs, {self.accounting}"),
            *_line("recurrence T", self.recurrence, None, "loops at test time"),
        ]
        if self.reason:
            lines += wrapped([f"Why the {self.method}: {self.reason}."], "  ")
        if self.others:
            lines += ["Other methods, and the loss that their choice would cost", *map(self._other_line, self.others)]
        return "\n".join([*lines, *wrapped([f"Note: {note}." for note in self.notes], "  ")]) + "\n"

    def _value_lines(self) -> list[str]:
        return [
            *_line("mean recurrence", self.mean_recurrence, self.mean_recurrence_interval, "loops"),
            *_line("parameters", self.params, self.params_interval, "parameters"),
        ]

    def _other_line(self, other: BestModel) -> str:
        limits = other.value_interval
        span = f" (95%: {limits[0]:.4g} to {limits[1]:.4g})" if limits else ""
        cost = "" if other.extra_loss is None else f", {max(other.extra_loss, 0.0):+.2g} nats"
        symbol = "N*" if self.mean_recurrence is None else "mu*"
        return f"  {other.method}: {symbol} = {other.value:.4g}{span}, {other.tokens:.4g} tokens{cost}"


def _line(label: str, value: float | None, bounds: tuple[float, float] | None, unit: str) -> list[str]:
    if value is None:
        return []
    limits = f"   95%: {bounds[0]:.5g} to {bounds[1]:.5g}" if bounds else ""
    return [f"  {label:<18}{value:<12.5g}{unit:<16}{limits}".rstrip()]


def wrapped(texts: Iterable[str], indent: str) -> list[str]:
    """Return texts as paragraphs of at most 100 columns, each indented by `indent`, its further lines by 2 more."""
    wrapper = textwrap.TextWrapper(
        width=_WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
    return [wrapper.fill(text) for text in texts]


def predict(
    fit: SweepFit,
    *,
    mean_recurrence: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    recurrence: float | None = None,
    loss_at_mean: float | None = None,
    unique_tokens: float | None = None,
) -> Prediction:
    """Predict the loss of a model with a mean recurrence (loops), or parameters, and either tokens or training FLOPs.

    A fit of looped models takes the mean recurrence, one of dense models the parameters. With `flops` alone, the model
    and its tokens are those of `recommendation`. Without `recurrence`, the law of the loss after training predicts the
    loss of a looped model at T = mean recurrence; with it, the unified law predicts the loss at that T; with
    `loss_at_mean` as well, the loss measured at T = mean recurrence (nats per token), the joint test-time law does.
    `unique_tokens` are those of the text there is: more tokens are repetitions, which a law of repeated text counts. By
    default they are those of the runs if these are all of one text, and else text is new to the end.
    Raises ValueError for any other combination, for values out of range, and if the law it needs was not fitted.
    """
    if unique_tokens is not None:
        fit = _with_text(fit, unique_tokens)
    dense = fit.axis == "params"
    _check_axis(fit, mean_recurrence, params, recurrence, loss_at_mean)
    given = params if dense else mean_recurrence
    _check_arguments(fit.axis, given, tokens, flops, recurrence, loss_at_mean)
    # The model: given by two of its numbers, or the best one for a budget.
    best = None
    if given is None and flops is not None:
        if why_no_recommendation(fit):
            raise ValueError(str(verdict(fit, flops).answer[0]))
        best = recommendation(fit, flops)
    law: LawFit | LawMixture | None = None
    if recurrence is not None:
        law = _required_law(fit, "unified" if loss_at_mean is None else "joint-test-time")
    elif best is None:
        _required_law(fit, "training")
        law = fit.laws_after_training
    if best is not None:
        value, tokens, flops = best.value, best.tokens, best.flops
    else:
        assert given is not None
        value = given
        if tokens is None:
            assert flops is not None
            tokens = float(fit.cost_model.tokens_for(flops, value))
        else:
            flops = float(fit.cost_model.flops_for(tokens, value))
    # Its loss.
    loops = None if dense else value if recurrence is None else recurrence
    if law is None:
        assert best is not None
        loss, loss_interval = best.loss, best.loss_interval
    else:
        data = fit.cost_model.model_columns([value], [tokens])
        if loops is not None:
            data["recurrence"] = np.array([loops])
        if loss_at_mean is not None:
            data["loss_at_mean"] = np.array([loss_at_mean])
        loss = float(law.loss(data)[0])
        bounds = law.loss_interval(data)
        loss_interval = (float(bounds[0][0]), float(bounds[1][0])) if bounds else None
    value_interval = best.value_interval if best else None
    method = best.method if best is not None else ""
    if law is not None and best is None:
        method = law.name if isinstance(law, LawMixture) else f"{law.form.name} law"
    of_law = law if isinstance(law, LawFit) else fit.laws_after_training.best if fit.laws_after_training else None
    return Prediction(
        loss=loss,
        loss_interval=loss_interval,
        perplexity=perplexity(loss),
        perplexity_interval=(perplexity(loss_interval[0]), perplexity(loss_interval[1])) if loss_interval else None,
        mean_recurrence=None if dense else value,
        mean_recurrence_interval=None if dense else value_interval,
        params=value if dense else None,
        params_interval=value_interval if dense else None,
        tokens=tokens,
        tokens_interval=best.tokens_interval if best else None,
        flops=flops,
        recurrence=loops,
        optimal=best is not None,
        method=method,
        reason=best.reason if best else "",
        others=best.others if best else (),
        verdict=verdict_on(fit, best) if best else Verdict(),
        simulated=fit.simulated,
        accounting=fit.accounting,
        notes=(
            *(best.notes if best else ()),
            *(reason for reason in (of_law.reasons if of_law else ()) if RISES in reason),
            *(
                fit.overthinking.notes(of_law, data)
                if fit.overthinking and law and of_law and loops is not None
                else ()
            ),
            *([EXACT] if of_law and of_law.exact and of_law.draws and best is None else []),
            *extrapolation_notes(fit, flops, tokens, value, recurrence),
            *repetition_notes(fit, tokens),
        ),
    )


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where that exceeds the largest float."""
    return math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)


def _check_axis(
    fit: SweepFit,
    mean_recurrence: float | None,
    params: float | None,
    recurrence: float | None,
    loss_at_mean: float | None,
) -> None:
    """Raise ValueError for a quantity that the models of a fit do not have."""
    if fit.axis == "params":
        looped = {"mean_recurrence": mean_recurrence, "recurrence": recurrence, "loss_at_mean": loss_at_mean}
        got = [name for name, value in looped.items() if value is not None]
        if got:
            raise ValueError(
                f"a prediction for dense models takes params, tokens and flops, but got {' and '.join(got)}; "
                f"{fit.name!r} is a fit of models without loops, so leave {'it' if len(got) == 1 else 'them'} out"
            )
    elif params is not None:
        raise ValueError(
            f"a prediction for looped models takes their mean_recurrence, but got params={params:g}; {fit.name!r} is a "
            "fit of one architecture, so leave params out"
        )


def _check_arguments(
    axis: str,
    given: float | None,
    tokens: float | None,
    flops: float | None,
    recurrence: float | None,
    loss_at_mean: float | None,
) -> None:
    """Raise ValueError for a value out of range, and for a combination that `predict` can't answer."""
    for name, value in ((axis, given), ("tokens", tokens), ("flops", flops)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, but got {value}; give a positive number")
    if axis == "mean_recurrence" and given is not None and given < 1:
        raise ValueError(
            f"mean_recurrence must be at least 1, but got {given}; a loop runs at least once, so give 1 or more"
        )
    if recurrence is not None and not (recurrence >= 1 and math.isfinite(recurrence)):
        raise ValueError(f"recurrence must be at least 1 and finite, but got {recurrence}; give 1 loop or more")
    if given is not None and (tokens is None) == (flops is None):
        got = "neither" if tokens is None else "both"
        raise ValueError(f"{axis} needs either tokens or flops, but got {got}; give one of the two")
    if given is None and (flops is None or tokens is not None):
        arguments = {"tokens": tokens, "flops": flops, "recurrence": recurrence}
        got = " and ".join(name for name, value in arguments.items() if value is not None)
        raise ValueError(
            f"without {axis} a prediction takes flops and no tokens, and finds the best split, but got "
            f"{got or 'nothing'}; give flops alone, or {axis} with tokens or with flops"
        )
    if loss_at_mean is None:
        return
    if not (loss_at_mean > 0 and math.isfinite(loss_at_mean)):
        raise ValueError(f"loss_at_mean must be positive and finite, but got {loss_at_mean}; give nats per token")
    if given is None or recurrence is None:
        missing = "mean_recurrence" if given is None else "recurrence"
        raise ValueError(
            f"loss_at_mean needs mean_recurrence and the recurrence to predict, but {missing} is missing; give both"
        )


def _required_law(fit: SweepFit, name: str) -> LawFit:
    law = fit.laws[name] if name == "training" else fit.loops_law(name)
    if law is None:
        needed = "law of the loss" if fit.axis == "params" else f"{name} law"
        raise ValueError(
            f"this prediction needs the {needed}, but {fit.name!r} has no fit of it: {fit.why_missing(name)}; "
            "change that and fit the sweep again"
        )
    return law


def extrapolation_notes(
    fit: SweepFit, flops: float, tokens: float, on_axis: float, recurrence: float | None = None
) -> list[str]:
    """Return a note for each quantity outside its fitted range, with the distance, and for what its cost assumes.

    `on_axis` is the mean recurrence, or the parameters.
    """
    quantities = [
        ("compute", flops, fit.fitted.flops, "FLOPs"),
        ("token count", tokens, fit.fitted.tokens, "tokens"),
        (AXES[fit.axis].name, on_axis, fit.fitted.of_axis(fit.axis), "loops" if fit.axis == "mean_recurrence" else ""),
    ]
    if recurrence is not None and fit.fitted.recurrence is not None:
        quantities.append(("recurrence T", recurrence, fit.fitted.recurrence, "loops"))
    notes = range_notes(quantities)
    low, high = fit.fitted.of_axis(fit.axis)
    assumption = fit.cost_model.assumption_at(on_axis)
    if assumption and not low / BUDGET_ROUNDING <= on_axis <= BUDGET_ROUNDING * high:
        notes.append(f"the compute of {on_axis:.3g} loops assumes {assumption}")
    return notes


def range_notes(quantities: Iterable[tuple[str, float, tuple[float, float], str]]) -> list[str]:
    """Return a note for each quantity (label, value, fitted range, unit) outside its range, with the distance."""
    notes = []
    for label, value, (low, high), unit in quantities:
        if value > BUDGET_ROUNDING * high:
            times = f"{value / high:.1f}x" if value < math.inf else "infinitely far"
            notes.append(f"{times} beyond the largest fitted {label} ({high:.4g} {unit}".rstrip() + ")")
        elif value < low / BUDGET_ROUNDING:
            times = f"{low / value:.1f}x" if value > 0 else "infinitely far"
            notes.append(f"{times} below the smallest fitted {label} ({low:.4g} {unit}".rstrip() + ")")
    return notes


def _with_text(fit: SweepFit, unique_tokens: float) -> SweepFit:
    """Return the fit for models that are trained on `unique_tokens` of text. Raises ValueError if no law reads them."""
    if not unique_tokens > 0:
        raise ValueError(f"unique_tokens must be positive, but got {unique_tokens}; give the tokens of the text")
    if fit.training is None or not fit.training.form.reads_unique_tokens:
        law = "no law of the loss" if fit.training is None else f"the {fit.training.form.name} law"
        raise ValueError(
            f"unique_tokens need a law of repeated text, but {fit.name!r} has {law}; fit runs of which some saw their "
            "text again, or leave unique_tokens out"
        )
    limit = unique_tokens if math.isfinite(unique_tokens) else None
    return replace(fit, cost_model=replace(fit.cost_model, unique_tokens=limit))


def repetition_notes(fit: SweepFit, tokens: float) -> list[str]:
    """Return what a prediction for so many `tokens` assumes of the text; nothing if no run saw any of it again."""
    reads = fit.training is not None and fit.training.form.reads_unique_tokens
    return text_notes(fit.fitted.epochs, tokens, reads_text=reads, unique=fit.cost_model.unique_tokens)


def text_notes(
    epochs: tuple[float, float] | None, tokens: float, *, reads_text: bool, unique: float | None
) -> list[str]:
    """Return what a prediction for `tokens` assumes of the text, by the `epochs` of the runs, None if all was new.

    `reads_text` says that the law is one of repeated text; `unique` are the tokens of the text, None for new text.
    """
    if epochs is None:
        return []
    most = epochs[1]
    if reads_text:
        if unique is None:
            return ["this is for text that never repeats; unique_tokens says how much text there is"]
        seen = tokens / unique
        beyond = f", where the runs saw theirs at most {epochs_text(most)} times" if seen > most else ""
        return [f"this is for a text of {unique:.4g} tokens, which is seen {epochs_text(seen)} times{beyond}"]
    return [f"fitted to runs that saw their text up to {epochs_text(most)} times (see the fit's caveats)"]
