"""The answer to the package's question: should the next FLOP buy more loops, more tokens or more parameters?"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from isoloop.fitting.answer.constrained import Limited, best_under, broken_limits, losses_under, serving_flops
from isoloop.fitting.answer.limits import Limits
from isoloop.fitting.answer.marginal import (
    MORE_FLOPS,
    SAME_FLOPS,
    Gain,
    Growth,
    Marginal,
    Model,
    axes_in_order,
    axis_words,
    best_model,
    gain_of,
    growth,
    marginal,
    model_at,
    model_of,
)
from isoloop.fitting.answer.predict import range_notes, wrapped
from isoloop.fitting.answer.recommendation import ANSWER_MULTIPLE
from isoloop.fitting.answer.verdict import Verdict, verdict, verdict_under
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.result import SweepFit
from isoloop.fitting.surface.quantity import Interval, Quantity
from isoloop.fitting.surface.surface import LossSurface, SurfaceOptimum

_WITHOUT_LOOPS = "without_loops"
_ONE_LOOP = 1.02
"""Mean recurrence up to which measured runs show a model without loops."""
_DECIDED, _LIKELY = 0.95, 0.75
"""Shares of refits from which on an axis wins without doubt, or probably; below, the runs do not decide."""


class JointFit(Protocol):
    """A fit that has a loss surface and judges itself, such as that of several sizes together."""

    @property
    def name(self) -> str:
        """Name of the sweep or table."""
        ...

    @property
    def simulated(self) -> bool:
        """True if the losses were drawn from a law."""
        ...

    @property
    def accounting(self) -> str:
        """Accounting of the FLOPs."""
        ...

    @property
    def surface(self) -> LossSurface | None:
        """The loss as a function of what the models differ in, None without a law of it."""
        ...

    def verdict(self, flops: float | None = None, limited: Limited | None = None) -> Verdict:
        """Return what the runs do not determine of the best model for `flops`, or of that under limits."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best model for `flops` training FLOPs, and what more FLOPs buy from it, or from a model that was `given`.

    `spans` are the 95% intervals of the best model's numbers by axis, None without refits; the interval of `loss` is
    that of one measured run. `without_loops` is the best model of one loop for as many FLOPs, where runs have one loop,
    with what it buys, which is negative where loops pay. `growth` says how the best model grows with compute.
    `marginal` starts at the best model, or at the given one; with limits at `limited`, the best model under them. What
    the runs do not determine of the best model, under the limits if there are any, is in `verdict`: where that has an
    `answer`, the best model is none. `far` says how far
    from the runs the answer is, the farthest first, `notes` what the runs leave open, and `refits` is the number
    of them behind an interval.
    """

    name: str
    simulated: bool
    accounting: str
    method: str
    runs: int
    refits: int
    flops: float
    best: Model
    without_loops: Gain | None
    spans: Mapping[str, Interval | None]
    loss: Quantity
    growth: Growth
    given: bool
    marginal: Marginal
    limited: Limited | None
    verdict: Verdict
    far: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def question(self) -> str:
        """The question, as far as the models of the fit differ."""
        *first, last = [f"more {axis_words(gain.axis)}" for gain in self.marginal.axes]
        return f"Should the next FLOP buy {', '.join(first)} or {last}?"

    @property
    def sentences(self) -> tuple[str, str, str]:
        """The answer in three sentences: the best model, what the next FLOPs should buy, and how sure that is."""
        return self._best_sentence(), self._next_sentence(), self._doubt_sentence()

    def report(self) -> str:
        """Return the answer as text: three sentences, one table, and what to doubt."""
        simulated = ", simulated" if self.simulated else ""
        lines = [
            f"{self.question} ({self.name}{simulated}, {self.accounting} accounting)",
            *wrapped(self.sentences, "  "),
            "",
            *self._table_lines(),
            *wrapped(
                [*self.verdict.caveats, *(f"{note[0].upper()}{note[1:]}." for note in (*self.far, *self.notes))], "  "
            ),
        ]
        return "\n".join(lines) + "\n"

    def rows(self) -> list[dict[str, str]]:
        """Return the table: a row per way to spend the next FLOPs, as text by column."""
        return [
            {
                "the next FLOPs buy": self._way(gain),
                "model": self._model_text(gain.model),
                "loss": f"{gain.loss.value:.5g}",
                "nats bought (95%)": gain.nats.text(".3g"),
                "buys most": self._wins_text(gain),
            }
            for gain in self._gains()
        ]

    def _wins_text(self, gain: Gain) -> str:
        if gain.beyond:
            return f"beyond the limit of {gain.beyond}"
        return "" if gain.wins is None else f"in {gain.wins:.0%} of refits"

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as numbers, text, lists and dictionaries."""
        content = dataclasses.asdict(self)
        if content["limited"] is not None:
            del content["limited"]["limits"]["needs"]  # the table's, and no part of the answer
        return {"sentences": list(self.sentences), **content}

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def _gains(self) -> list[Gain]:
        """Return the ways to spend FLOPs that a table shows; at a best model the same FLOPs buy nothing better."""
        step = self.marginal
        others = [step.more_flops, step.same_flops if self.given else self.without_loops if step.more_flops else None]
        return [*step.axes, *(gain for gain in others if gain is not None)]

    def _best_sentence(self) -> str:
        if self.verdict.answer:
            return " ".join(map(str, self.verdict.answer))
        if self.limited is not None:
            return self._limited_sentence(self.limited)
        parts = [self._spanned_text(axis, self.best.of_axis(axis), self.spans[axis]) for axis in self.spans]
        shape, tokens = parts[:-1], parts[-1]
        return (
            f"The best model for {self.flops:.3g} FLOPs has {_listed(shape)}, trained on {tokens}, to a loss of "
            f"{self.loss.text('.5g')} nats per token{self._loops_pay()}."
        )

    def _limited_sentence(self, limited: Limited) -> str:
        found = limited.best
        parts = [self._spanned_text(axis, found.model.of_axis(axis), found.spans[axis]) for axis in self.spans]
        shape, tokens = parts[:-1], parts[-1]
        if found.recurrence is not None:
            shape.append(self._spanned_text("recurrence", found.recurrence, found.spans["recurrence"]))
        spent = "" if "flops" in found.binding else f" with {found.flops:.3g} FLOPs"
        return (
            f"The best model for {self.flops:.3g} FLOPs {limited.limits.words} has {_listed(shape)}, trained on "
            f"{tokens}{spent}, to a loss of {found.loss.text('.5g')} nats per token."
        )

    def _loops_pay(self) -> str:
        """Say what the same FLOPs would lose without loops."""
        if self.without_loops is None:
            return ""
        nats = self.without_loops.nats
        lost = Quantity(
            value=-nats.value, interval=None if nats.interval is None else (-nats.interval[1], -nats.interval[0])
        )
        return f"; without loops as many FLOPs would lose {lost.text('.2g')} nats"

    def _next_sentence(self) -> str:
        if self.given:
            return self._from_given()
        return self._as_compute_grows() if self.limited is None else self.limited.price_sentence

    def _from_given(self) -> str:
        """Say what the next FLOPs should buy from the given model, and what another model of the same FLOPs would."""
        step, gains = self.marginal, sorted(self.marginal.axes, key=lambda gain: -(gain.wins or 0.0))
        start = (
            f"From {self._model_text(step.start)} ({step.start.flops:.3g} FLOPs), the next {step.percent:g}% of FLOPs"
        )
        best = step.winner
        gains = [gain for gain in gains if not gain.beyond]
        rest = ", ".join(f"{gain.nats.value:.2g} for {axis_words(gain.axis)}" for gain in gains if gain is not best)
        against = f" against {rest}" if rest else ""
        nats = f"{best.nats.text('.2g')} nats{against}"
        if best.wins is None:
            text = f"{start} should buy more {axis_words(best.axis)}: {nats}"
        elif best.wins < _LIKELY:
            shares = " or ".join(f"{axis_words(gain.axis)} ({gain.wins:.0%})" for gain in gains)
            text = f"{start} should buy more {shares}, which these runs do not decide: {nats}"
        else:
            surely = "should" if best.wins >= _DECIDED else "should probably"
            text = f"{start} {surely} buy more {axis_words(best.axis)} (probability {self._chance(best.wins)}): {nats}"
        if step.same_flops is None:
            return f"{text}."
        nats = step.same_flops.nats.text(".2g")
        return f"{text}; the best model for the same FLOPs would buy {nats} without any."

    def _as_compute_grows(self) -> str:
        """Say what the next FLOPs buy at a best model, where all axes are worth the same, and how it grows."""
        step, grown = self.marginal, self.growth
        assert step.more_flops is not None, "only limits leave it out"
        there = f"From there the next {step.percent:g}% of FLOPs buy {step.more_flops.nats.text('.3g')} nats"
        if len(step.axes) > 1:
            there += ", nearly the same on each axis alone, as at every best model"
        factors = [f"{factor.text('.3g')} times the {axis_words(axis)}" for axis, factor in grown.factors.items()]
        if not factors:
            return f"{there}."
        largest = max(grown.shares, key=lambda axis: (grown.leads or {}).get(axis, grown.shares[axis].value))
        chance = "" if grown.leads is None else f", probability {self._chance(grown.leads[largest])}"
        share = grown.shares[largest].value
        return (
            f"{there}; with ten times the compute the best model has {_listed(factors)}, so most of the next "
            f"FLOPs should buy more {axis_words(largest)} ({share:.0%} of the growth{chance})."
        )

    def _doubt_sentence(self) -> str:
        sure = (
            f"Intervals are 95%, of {self.refits} refits to {self.runs} runs" if self.refits else "Nothing was refitted"
        )
        many = "do" if self.method.endswith("laws") else "does"
        if not self.far:
            return (
                f"{sure}; the answer lies within what was measured, and is wrong if the {self.method} {many} not hold."
            )
        return f"{sure}; the answer lies {self.far[0]}, and is wrong if the {self.method} {many} not hold there."

    def _chance(self, share: float) -> str:
        """Return a share of refits as a probability, which no number of refits shows to be 1."""
        most = 1 - 1 / max(self.refits, 2)
        return f"over {most:.3g}" if share > most else f"{share:.2g}"

    def _table_lines(self) -> list[str]:
        """Return the table as lines of text under its title."""
        rows, step = self.rows(), self.marginal
        columns = list(rows[0])
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
        place = f"the best model for {self.flops:.3g} FLOPs{' under these limits' if self.limited else ''}"
        place = self._model_text(step.start) if self.given else place
        undecided = " (details: it is not determined)" if self.verdict.answer and not self.given else ""
        lines = [f"The next {step.percent:g}% of FLOPs from {place}{undecided}, loss {step.loss.value:.5g}"]
        for row in [dict(zip(columns, columns, strict=True)), *rows]:
            lines.append("  " + "  ".join(f"{row[name]:<{widths[name]}}" for name in columns).rstrip())
        return [*lines, ""]

    def _way(self, gain: Gain) -> str:
        named = {
            MORE_FLOPS: "best model for all FLOPs",
            SAME_FLOPS: "none: best model for as many",
            _WITHOUT_LOOPS: "none: best without loops",
        }
        return named.get(gain.axis) or f"more {axis_words(gain.axis)} alone"

    def _model_text(self, model: Model) -> str:
        return ", ".join(self._value_text(axis, model.of_axis(axis), short=True) for axis in self.spans)

    def _value_text(self, axis: str, value: float, *, short: bool = False) -> str:
        if axis == "tokens":
            return f"{value:.3g} tokens"
        if axis == "params":
            return f"{short_count(value)} parameters"
        return f"mu {value:.3g}" if short else f"a mean recurrence of {value:.3g}"

    def _spanned_text(self, axis: str, value: float, span: Interval | None) -> str:
        text = (
            f"{value:g} loop{'' if value == 1 else 's'} at test time"
            if axis == "recurrence"
            else self._value_text(axis, value)
        )
        if span is None:
            return text
        low, high = (short_count(end) if axis == "params" else f"{end:.3g}" for end in span)
        return f"{text} ({low} to {high})"


def _listed(parts: Sequence[str]) -> str:
    """Return parts of a sentence with commas, and `and` before the last."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def answer(
    fit: SweepFit | JointFit,
    flops: float | None = None,
    *,
    params: float | None = None,
    mean_recurrence: float | None = None,
    tokens: float | None = None,
    percent: float = 10.0,
    limits: Limits | None = None,
) -> Answer:
    """Return the best model for `flops` training FLOPs, and what the next `percent` of FLOPs buy on each axis.

    They are spent from the best model, or from the one that has `tokens` and, as far as the fit's models differ in
    them, `mean_recurrence` and `params`. By default `flops` are those of the model that is given, or twice the largest
    measured compute; with a limit of seconds they are as many as the time allows. Raises ValueError for numbers out of
    range, for a model that is not given whole, for limits that allow none, and for a fit without a law of the loss.
    """
    # The question
    surface = fit.surface
    if surface is None:
        why = f": {fit.why_missing('training')}" if isinstance(fit, SweepFit) else ""
        raise ValueError(
            f"an answer needs a law of the loss, but {fit.name!r} has none{why}; change that and fit again, or ask "
            "'isoloop predict' for the best model by isoFLOP curves"
        )
    _check_positive({"flops": flops, "params": params, "mean_recurrence": mean_recurrence, "tokens": tokens})
    start = _given_model(surface, params, mean_recurrence, tokens)
    if flops is None and (limits is None or limits.seconds is None):
        flops = ANSWER_MULTIPLE * surface.flops[1] if start is None else start.flops
    limited = None if limits is None or not limits.given else best_under(surface, limits, flops)
    if flops is None:
        assert limited is not None, "there are FLOPs, or seconds"
        flops = limited.best.flops
    # The best model, and what more FLOPs buy
    best, optimum, drawn = best_model(surface, flops)
    spans = {axis: None if drawn is None else interval(_bounded(surface, axis, drawn)) for axis in surface.axes}
    rows = surface.family.columns([float(optimum.params)], [float(optimum.mean_recurrence)], [float(optimum.tokens)])
    ends = surface.laws.loss_interval(rows)
    if not isinstance(fit, SweepFit):
        judged = fit.verdict(flops, limited)
    else:
        judged = verdict(fit, flops) if limited is None else verdict_under(fit, limited)
    origin = start or best
    if limits is None or limited is None:
        step = marginal(surface, origin, percent=percent)
    else:
        origin, recurrence = (limited.best.model, limited.best.recurrence) if start is None else (start, None)
        step = marginal(
            surface,
            origin,
            percent=percent,
            losses_under_limits=lambda models: losses_under(surface, limits, models, recurrence),
            broken_limits=lambda model: broken_limits(surface, limits, model, recurrence),
            spent=lambda model: model.flops + serving_flops(surface, limits, model, recurrence),
        )
    return Answer(
        name=fit.name,
        simulated=fit.simulated,
        accounting=fit.accounting,
        method=surface.laws.name,
        runs=surface.laws.best.runs,
        refits=surface.draws,
        flops=flops,
        best=best,
        without_loops=_without_loops(surface, best),
        spans=spans,
        loss=Quantity(
            value=float(optimum.loss), interval=None if ends is None else (float(ends[0][0]), float(ends[1][0]))
        ),
        growth=growth(surface, flops),
        given=start is not None,
        marginal=step,
        limited=limited,
        verdict=judged,
        far=tuple(_distance_notes(surface, [origin] if limited is not None else [best, origin])),
        notes=(*_open_notes(surface), *(limits.assumptions if limits is not None else ())),
    )


def _given_model(
    surface: LossSurface, params: float | None, mean_recurrence: float | None, tokens: float | None
) -> Model | None:
    """Return the model that a user has, None where no number of it is given. Raises ValueError for a part of one."""
    numbers = {"params": params, "mean_recurrence": mean_recurrence, "tokens": tokens}
    given = {name for name, value in numbers.items() if value is not None}
    if not given:
        return None
    missing, foreign = [name for name in surface.axes if name not in given], sorted(given - set(surface.axes))
    if foreign:
        raise ValueError(
            f"a model of this fit is given by {' and '.join(surface.axes)}, but got {foreign[0]}, in which its models "
            "do not differ; leave it out"
        )
    if missing:
        raise ValueError(
            f"a model of this fit is given by {' and '.join(surface.axes)}, but {missing[0]} is missing; add it, or "
            "leave the others out to start from the best model"
        )
    if mean_recurrence is not None and mean_recurrence < 1:
        raise ValueError(f"mean_recurrence must be at least 1, but got {mean_recurrence:g}; a loop runs at least once")
    assert tokens is not None, "tokens are an axis of every surface"
    return model_at(surface, params=params, mean_recurrence=mean_recurrence, tokens=tokens)


def _check_positive(numbers: Mapping[str, float | None]) -> None:
    for name, value in numbers.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, but got {value}; give a positive number")


def _bounded(surface: LossSurface, axis: str, drawn: SurfaceOptimum) -> Any:
    """Return the refits' best values, which widening may have moved beyond the search, within its range."""
    values, search = getattr(drawn, axis), surface.search_range(axis) if axis != "tokens" else None
    return values if search is None else values.clip(*search)


def _without_loops(surface: LossSurface, best: Model) -> Gain | None:
    if surface.mean_recurrence is None or surface.mean_recurrence[0] > _ONE_LOOP:
        return None
    alone = surface.best(partial(surface.family.tokens_for, best.flops), mean_recurrence=(1.0, 1.0))
    return gain_of(surface, best, model_of(surface, alone), _WITHOUT_LOOPS)


def _open_notes(surface: LossSurface) -> Iterator[str]:
    """Yield what a question about all axes gets no answer to from these runs."""
    if surface.mean_recurrence is None:
        yield "these models have no loops, so the runs do not show what loops would buy"
    if surface.params is None:
        yield "all runs have one size, so they do not show what more parameters would buy"


def _distance_notes(surface: LossSurface, models: Sequence[Model]) -> list[str]:
    """Return how far models are outside the measured ranges, the farthest quantity first."""

    def farthest(values: Iterable[float], measured: Interval) -> float:
        return max(values, key=lambda value: max(value / measured[1], measured[0] / value))

    names = {"flops": ("compute", "FLOPs")}
    names |= {axis: (AXES[axis].name, axis_words(axis)) for axis in axes_in_order(surface)}
    quantities = []
    for name, (label, unit) in names.items():
        measured = getattr(surface, name)
        quantities.append((label, farthest((getattr(model, name) for model in models), measured), measured, unit))
    quantities.sort(key=lambda each: -max(each[1] / each[2][1], each[2][0] / each[1]))
    return range_notes(quantities)
