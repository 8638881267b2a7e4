"""Predictions from a joint fit over sizes: the best model for a budget, and the loss of any model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoloop.fitting.answer.predict import Prediction, perplexity, range_notes, text_notes
from isoloop.fitting.answer.verdict import Verdict
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.sizes.result import SizesFit
from isoloop.fitting.sizes.verdict import verdict_on
from isoloop.fitting.surface.quantity import Interval
from isoloop.fitting.surface.surface import LossSurface, SurfaceOptimum


def predict_sizes(
    fit: SizesFit,
    *,
    size: str | None = None,
    params: float | None = None,
    mean_recurrence: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    recurrence: float | None = None,
    loss_at_mean: float | None = None,
    unique_tokens: float | None = None,
) -> Prediction:
    """Predict the loss of a model of a joint fit, or the best model for a budget.

    With `flops` alone, size, mean recurrence and tokens are the best ones; with a size (its name, or `params`, each
    parameter counted once, embeddings apart) or a mean recurrence besides, the best ones of the rest. With `tokens`,
    both must be given. `recurrence` are loops at test time, and `loss_at_mean` is the measured loss at T = mean
    recurrence (nats per token). `unique_tokens` are those of the text there is, for a law of repeated text. Raises
    ValueError for other combinations and values out of range, and for unique tokens that no law reads.
    """
    _check_arguments(size, params, mean_recurrence, tokens, flops, recurrence, loss_at_mean)
    given = fit.params_of(size) if size is not None else params
    fit = fit if unique_tokens is None else _on_text(fit, unique_tokens)
    surface = fit.surface
    # The model: given by three of its numbers, or the best one for a budget
    optimum, drawn = None, None
    if given is not None and mean_recurrence is not None:
        per_token = float(surface.family.flops_per_token(given, mean_recurrence))
        tokens = flops / per_token if flops is not None else tokens
        assert tokens is not None
        model = (given, mean_recurrence, tokens)
    else:
        assert flops is not None
        optimum, drawn = _best(surface, flops, given, mean_recurrence)
        model = (float(optimum.params), float(optimum.mean_recurrence), float(optimum.tokens))
    verdict = Verdict()
    if given is None and mean_recurrence is None:
        assert flops is not None
        verdict = verdict_on(fit, fit.point(flops))
    # Its loss
    loss, loss_interval = _loss(fit, model, recurrence, loss_at_mean)
    compute = float(model[2] * surface.family.flops_per_token(*model[:2]))
    return Prediction(
        loss=loss,
        loss_interval=loss_interval,
        perplexity=perplexity(loss),
        perplexity_interval=(perplexity(loss_interval[0]), perplexity(loss_interval[1])) if loss_interval else None,
        mean_recurrence=model[1],
        mean_recurrence_interval=None if mean_recurrence is not None else _span(drawn, "mean_recurrence"),
        params=model[0],
        params_interval=None if given is not None else _span(drawn, "params"),
        tokens=model[2],
        tokens_interval=_span(drawn, "tokens"),
        flops=compute,
        recurrence=model[1] if recurrence is None else recurrence,
        optimal=optimum is not None,
        method=fit.laws.name,
        reason=fit.laws.reason,
        others=(),
        verdict=verdict,
        simulated=fit.simulated,
        accounting=fit.accounting,
        notes=tuple(_notes(fit, model, compute, recurrence, optimum)),
    )


def _on_text(fit: SizesFit, unique_tokens: float) -> SizesFit:
    """Return the fit for a text of so many unique tokens. Raises ValueError if no law reads them."""
    if not unique_tokens > 0:
        raise ValueError(f"unique_tokens must be positive, but got {unique_tokens}; give the tokens of the text")
    law = fit.laws.laws[0].form
    if not law.reads_unique_tokens:
        raise ValueError(
            f"unique_tokens need a law of repeated text, but {fit.name!r} has the {law.name} law; fit runs of which "
            "some saw their text again by such a law, or leave unique_tokens out"
        )
    return replace(fit, family=fit.family.on_text(unique_tokens), frontier=())


def _best(
    surface: LossSurface,
    flops: float,
    params: float | None,
    mean_recurrence: float | None,
) -> tuple[SurfaceOptimum, SurfaceOptimum | None]:
    sizes = None if params is None else (params, params)
    loops = None if mean_recurrence is None else (mean_recurrence, mean_recurrence)
    return surface.best_for(flops, params=sizes, mean_recurrence=loops)


def _loss(
    fit: SizesFit,
    model: tuple[float, float, float],
    recurrence: float | None,
    loss_at_mean: float | None,
) -> tuple[float, Interval | None]:
    """Return the loss of a model and its interval: of one measured run, or at other T of the laws' own values."""
    surface = fit.surface
    size, loops, tokens = (np.array([value]) for value in model)
    columns = surface.family.columns(size, loops, tokens)
    if recurrence is None or recurrence == model[1]:
        loss, bounds = float(fit.laws.loss(columns)[0]), fit.laws.loss_interval(columns)
        return loss, (float(bounds[0][0]), float(bounds[1][0])) if bounds else None
    if loss_at_mean is not None:
        law = fit.joint_test_time
        if law is None:
            raise ValueError(f"this prediction needs the joint test-time law, but {fit.missing_fits[0].reason}")
        data = {**columns, "recurrence": np.array([recurrence]), "loss_at_mean": np.array([loss_at_mean])}
        bounds = law.loss_interval(data)
        return float(law.loss(data)[0]), (float(bounds[0][0]), float(bounds[1][0])) if bounds else None
    drawn = surface.loss_draws(size, loops, tokens, recurrence=recurrence)
    loss = float(surface.loss(size, loops, tokens, recurrence=recurrence)[0])
    return loss, interval(drawn[:, 0]) if len(drawn) else None


def _notes(
    fit: SizesFit,
    model: tuple[float, float, float],
    flops: float,
    recurrence: float | None,
    optimum: SurfaceOptimum | None,
) -> list[str]:
    ranges = fit.fitted
    assert ranges.params is not None, "looped models of several sizes"
    assert ranges.mean_recurrence is not None, "looped models of several sizes"
    quantities = [
        ("compute", flops, ranges.flops, "FLOPs"),
        ("token count", model[2], ranges.tokens, "tokens"),
        ("size", model[0], ranges.params, "parameters"),
        ("mean recurrence", model[1], ranges.mean_recurrence, "loops"),
    ]
    if recurrence is not None and ranges.recurrence is not None:
        quantities.append(("recurrence T", recurrence, ranges.recurrence, "loops"))
    reads = fit.laws.laws[0].form.reads_unique_tokens
    unique = fit.family.members[0].cost.unique_tokens
    notes = [*range_notes(quantities), *text_notes(ranges.epochs, model[2], reads_text=reads, unique=unique)]
    label = fit.family.label_of(model[0])
    if label != short_count(model[0]):
        notes.insert(0, f"{short_count(model[0])} parameters are the size {label}")
    ends = [] if optimum is None else [name for name, flag in optimum.at_bound.items() if flag]
    return [*notes, *(f"the best {name.replace('_', ' ')} is at the end of the search" for name in ends)]


def _span(drawn: SurfaceOptimum | None, name: str) -> Interval | None:
    return None if drawn is None else interval(getattr(drawn, name))


def _check_arguments(
    size: str | None,
    params: float | None,
    mean_recurrence: float | None,
    tokens: float | None,
    flops: float | None,
    recurrence: float | None,
    loss_at_mean: float | None,
) -> None:
    """Raise ValueError for a value out of range, and for a combination that can't be answered."""
    positive = {"params": params, "tokens": tokens, "flops": flops, "loss_at_mean": loss_at_mean}
    for name, value in positive.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, but got {value}; give a positive number")
    for name, value in (("mean_recurrence", mean_recurrence), ("recurrence", recurrence)):
        if value is not None and not (value >= 1 and math.isfinite(value)):
            raise ValueError(f"{name} must be at least 1 and finite, but got {value}; give 1 loop or more")
    if size is not None and params is not None:
        raise ValueError(f"one of size and params must be given, but got {size} and {params:g}; keep one")
    if (tokens is None) == (flops is None):
        got = "neither" if tokens is None else "both"
        raise ValueError(f"a prediction takes either tokens or flops, but got {got}; give one of the two")
    whole = (size is not None or params is not None) and mean_recurrence is not None
    if tokens is not None and not whole:
        raise ValueError(
            "with tokens, the size and the mean recurrence must be given, but one is missing; give size (or params) "
            "and mean_recurrence, or flops in place of tokens for the best ones"
        )
    if loss_at_mean is not None and not (whole and recurrence is not None):
        raise ValueError(
            "loss_at_mean needs the size, the mean recurrence and the recurrence to predict, but one is missing; give "
            "all three"
        )
