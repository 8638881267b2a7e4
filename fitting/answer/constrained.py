"""The best model under limits, beside the best ones under each limit alone and without any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from isoloop.fitting.answer.limits import UNIQUE_TOKENS, Limits
from isoloop.fitting.answer.marginal import Model, model_at
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.laws.base import Data
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.surface.quantity import Interval, Quantity
from isoloop.fitting.surface.search import minimise_on_box
from isoloop.fitting.surface.surface import LossSurface

_LEAST_NATS = 1e-3
"""Loss within which fewer loops at test time count as good as more, where nothing else charges for them."""
_DRAWS = 200
"""Refits that are searched under limits."""
_ALL_LOOPS, _NEAR = 16, 3
"""Loops at test time up to which every number is tried, and how many on each side of the best refits choose from."""
_REACHED = 0.995
_AROUND = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Training budgets, beside the one that reaches a loss, at which refits find the one that does by them."""


@dataclass(frozen=True, kw_only=True)
class LimitedModel:
    """The best model under limits, at `recurrence` loops T at test time (None: T = mu, or no loops).

    `spans` are the 95% intervals of its numbers by axis, and T; `memory` is in bytes, `seconds` the wall time of
    training, each None where nothing says it. `binding` names the limits that the model reaches, `flops` among them,
    and `at_bound` the axes whose value is an end of the search.
    """

    model: Model
    recurrence: float | None
    loss: Quantity
    spans: Mapping[str, Interval | None]
    memory: float | None
    seconds: float | None
    inference_flops: float
    binding: tuple[str, ...]
    at_bound: tuple[str, ...]

    @property
    def flops(self) -> float:
        """FLOPs of training and of serving."""
        return self.model.flops + self.inference_flops


@dataclass(frozen=True, kw_only=True)
class Limited:
    """The best model under `limits`, beside those under each `alone`, and without any.

    `costs` are the nats that all limits and each alone add to the loss of the best model for the same FLOPs. `saving`
    is the share of FLOPs, in training and serving together, that the model saves against the one that is best in
    training and has the same loss; None without tokens to be served.
    """

    limits: Limits
    best: LimitedModel
    unlimited: LimitedModel
    alone: Mapping[str, LimitedModel]
    costs: Mapping[str, Quantity]
    saving: Quantity | None
    training_optimal: Model | None

    @property
    def price_sentence(self) -> str:
        """A sentence on the cost of the limits, together and alone, those that the model reaches, and its saving."""
        names = {
            "memory": "memory",
            UNIQUE_TOKENS: "text",
            "served_tokens": "serving",
            "seconds": "time",
            "flops": "FLOPs",
        }
        alone = [f"{names[name]} alone {self.costs[name].value:.2g}" for name in self.alone]
        text = f"The limits cost {self.costs['all'].text('.2g')} nats against the best model without them"
        text += f" ({', '.join(alone)})" if alone else ""
        reached = " and ".join(names[name] for name in self.best.binding)
        text += f"; the model uses up its {reached}" if reached else ""
        if self.saving is None:
            return f"{text}."
        low, high = self.saving.interval or (self.saving.value,) * 2
        return (
            f"{text}; a model of the same loss that is best in training alone would cost, served as much, "
            f"{_dearer(self.saving.value)} more FLOPs in all ({_dearer(low)} to {_dearer(high)})."
        )


def _dearer(saving: float) -> str:
    """Return by how much more FLOPs another model takes, where this one saves a share of its."""
    return f"{1 / (1 - saving) - 1:.0%}"


def best_under(surface: LossSurface, limits: Limits, flops: float | None) -> Limited:
    """Return the best model for `flops` under limits, which may be None where there is a limit of seconds.

    T is chosen among whole numbers up to the largest measured one, where the surface has a law of test-time loops and
    a limit depends on T; under a limit of memory without tokens to be served, it is the fewest loops within .001 nats
    of the best. Where the limits name a text, the models without that limit have new text. Raises
    ValueError for limits that allow no model, and for those that the surface can't follow.
    """
    if flops is None and limits.seconds is None:
        raise ValueError("the best model under limits needs FLOPs or seconds, but got neither; give one")
    if limits.repetition is not None and reads_unique(surface):
        raise ValueError(
            f"a repetition is for a fit without a law of repeated text, but got {limits.repetition:g} for one by the "
            f"{surface.laws.name}, which says what repeating is worth; leave it out"
        )
    thin = _thinned(surface)
    chooses = limits.served_tokens is not None or limits.memory is not None
    search = _Search(surface=thin, limits=limits, flops=flops, chooses_recurrence=chooses)
    found = search.best()
    spent = flops or found.model.flops
    new_text = replace(search, flops=spent, new_text=limits.unique_tokens is not None and reads_unique(surface))
    free = replace(new_text, limits=limits.only()).best()
    alone = {name: replace(new_text, limits=limits.only(name)).best() for name in limits.given if len(limits.given) > 1}
    searches = {"all": (found, search), **{name: (each, new_text) for name, each in alone.items()}}
    costs = {
        name: _cost(free, replace(new_text, limits=limits.only()), each, replace(own, limits=limits.only(*kept)))
        for (name, (each, own)), kept in zip(
            searches.items(), [limits.given, *((name,) for name in alone)], strict=True
        )
    }
    saving, optimal = _saving(thin, limits, found) if limits.served_tokens is not None else (None, None)
    return Limited(
        limits=limits, best=found, unlimited=free, alone=alone, costs=costs, saving=saving, training_optimal=optimal
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Best models of several functions at once: arrays of one shape."""

    params: np.ndarray
    mean_recurrence: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    recurrence: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Search:
    """The search of the best model for FLOPs (None: as many as the seconds allow) under limits.

    Models are points of a box: the size as a share of the way to the largest that the memory holds at their loops, and
    log mu. So a limit of memory is an end of the box, which the search meets exactly. With `new_text`, a law of
    repeated text gets a text without end where the limits name none.
    """

    surface: LossSurface
    limits: Limits
    flops: float | None
    chooses_recurrence: bool = False
    new_text: bool = False

    def best(self) -> LimitedModel:
        """Return the best model with its intervals. Raises ValueError if no model is allowed."""
        choices = self._recurrences()
        found = [self.optimum(recurrence) for recurrence in choices]
        losses = np.array([float(each.loss) for each in found])
        if not np.isfinite(losses).any():
            raise ValueError(self._why_none())
        place = int(losses.argmin())
        near = choices[max(0, place - _NEAR) : place + _NEAR + 1]
        if self.limits.served_tokens is None and self.limits.memory is not None:
            place = int(np.flatnonzero(losses <= losses.min() + _LEAST_NATS)[0])
        if self.limits.served_tokens is None:
            near = [choices[place]]
        return self._described(found[place], self.drawn(near))

    def _recurrences(self) -> list[float]:
        """Return the loops at test time to choose from; NaN stands for T = mu."""
        measured = self.surface.recurrence
        if self.surface.loops_law is None or measured is None or not self.chooses_recurrence:
            return [math.nan]
        largest = max(1, int(measured[1]))
        further = np.unique(np.round(np.geomspace(_ALL_LOOPS, max(largest, _ALL_LOOPS), 12)))
        return [float(loops) for loops in range(1, min(_ALL_LOOPS, largest) + 1)] + [
            float(loops) for loops in further if _ALL_LOOPS < loops <= largest
        ]

    def optimum(self, recurrence: float, law: LawFit | None = None, vectors: np.ndarray | None = None) -> _Found:
        """Return the best model at one T, by the surface's laws, or by parameter vectors (..., p) of one law."""
        surface = self.surface
        at_mean = math.isnan(recurrence)
        loops_range = surface.search_range("mean_recurrence")
        bounds = [] if surface.params is None else [(0.0, 1.0)]
        if loops_range is not None:
            bounds.append((math.log(loops_range[0]), math.log(loops_range[1])))
        one_size = surface.params is None

        def model(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            loops = np.exp(points[..., -1]) if loops_range is not None else np.ones(points.shape[:-1])
            tested = loops if at_mean else np.full(points.shape[:-1], recurrence)
            if one_size:
                return np.full(points.shape[:-1], surface.own_params), loops, tested
            low = math.log(self._sizes()[0])
            with np.errstate(invalid="ignore"):
                return np.exp(low + points[..., 0] * (np.log(self._largest_size(tested)) - low)), loops, tested

        def loss(points: np.ndarray) -> np.ndarray:
            params, loops, tested = model(points)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                tokens = self.tokens_for(params, loops, tested)
                usable = (one_size | np.isfinite(params)) & np.isfinite(tokens) & (tokens > 0)
                if self.limits.memory is not None and one_size:
                    usable &= self.limits.memory_of(params, tested) <= self.limits.memory * (1 + 1e-12)
            size, read = np.where(usable, params, self._sizes()[0]), np.where(usable, tokens, 1.0)
            columns = surface.family.columns(size, loops, self.limits.worth(read), self.extra())
            losses = surface.laws.loss(columns) if law is None or vectors is None else law.form.loss(vectors, columns)
            if not at_mean:
                losses = self._at_test_time(losses, columns, tested, vectors)
            return np.where(usable, losses, np.inf)

        points, least = minimise_on_box(loss, bounds)
        params, loops, tested = model(points)
        with np.errstate(invalid="ignore"):
            tokens = self.tokens_for(params, loops, tested)
        return _Found(params=params, mean_recurrence=loops, tokens=tokens, loss=least, recurrence=tested)

    def _at_test_time(
        self, losses: np.ndarray, columns: Data, recurrence: np.ndarray, vectors: np.ndarray | None
    ) -> np.ndarray:
        law = self.surface.loops_law
        assert law is not None
        own = law.vector
        if vectors is not None:  # the law's own first, then a refit for each of the others
            drawn = law.draw_matrix if len(law.draws) else own[None]
            own = np.concatenate([own[None], drawn[np.arange(len(vectors) - 1) % len(drawn)]])
        return law.form.loss(own, {**columns, "recurrence": recurrence, "loss_at_mean": losses})

    def drawn(self, recurrences: list[float]) -> _Found | None:
        """Return the best models by each refit, at the best of several T, (draws,); None without refits."""
        parts = []
        for law, count in self.surface.laws.draws_by_law:
            vectors = np.concatenate([law.vector[None], law.draw_matrix[:count]])
            each = [self.optimum(recurrence, law, vectors) for recurrence in recurrences]
            place = np.stack([found.loss for found in each]).argmin(axis=0)
            chosen = {
                name: np.take_along_axis(np.stack([getattr(found, name) for found in each]), place[None], axis=0)[0]
                for name in _Found.__dataclass_fields__
            }
            widened = {name: v[0] * (v[1:] / v[0]) ** law.widening for name, v in chosen.items()}
            parts.append({name: np.clip(v, *self._span(name)) for name, v in widened.items()})
        if not parts:
            return None
        return _Found(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _span(self, name: str) -> Interval:
        """Return the range in which the widened numbers of refits must stay, without end for most."""
        searched = self.surface.search_range(name) if name in ("params", "mean_recurrence") else None
        return searched or (-math.inf, math.inf)

    def _described(self, found: _Found, drawn: _Found | None) -> LimitedModel:
        surface, limits = self.surface, self.limits
        params, loops, tokens = float(found.params), float(found.mean_recurrence), float(found.tokens)
        model = model_at(surface, params=params, mean_recurrence=loops, tokens=tokens)
        chosen = not math.isnan(self._recurrences()[0])
        tested = float(found.recurrence)
        seconds = (
            tokens * float(limits.seconds_per_token(surface.family, found.params, found.mean_recurrence))
            if limits.seconds
            else None
        )
        memory = float(limits.memory_of(params, tested)) if limits.memory else None
        served = serving_flops(surface, limits, model, tested)
        reached = {
            "flops": self.flops is not None and model.flops + served >= _REACHED * self.flops,
            "memory": memory is not None and limits.memory is not None and memory >= _REACHED * limits.memory,
            UNIQUE_TOKENS: limits.unique_tokens is not None and tokens >= _REACHED * limits.unique_tokens,
            "seconds": seconds is not None and limits.seconds is not None and seconds >= _REACHED * limits.seconds,
        }
        spans: dict[str, Interval | None] = {
            name: None if drawn is None else interval(getattr(drawn, name)) for name in surface.axes
        }
        if chosen:
            spans["recurrence"] = None if drawn is None else interval(drawn.recurrence)
        losses = self.loss_draws(model, tested if chosen else None)
        searched = {name: surface.search_range(name) for name in surface.axes if name != "tokens"}
        return LimitedModel(
            model=model,
            recurrence=tested if chosen else None,
            loss=Quantity(value=float(found.loss), interval=interval(losses) if len(losses) else None),
            spans=spans,
            memory=memory,
            seconds=seconds,
            inference_flops=served,
            binding=tuple(name for name, is_reached in reached.items() if is_reached),
            at_bound=tuple(
                name for name, span in searched.items() if span and np.isclose(model.of_axis(name), span, 1e-6, 0).any()
            ),
        )

    def tokens_for(self, params: np.ndarray, loops: np.ndarray, recurrence: np.ndarray) -> np.ndarray:
        """Return the training tokens that FLOPs, seconds and the text leave a model."""
        limits, family = self.limits, self.surface.family
        tokens = np.full(np.shape(params), np.inf)
        if self.flops is not None:
            left = np.asarray(self.flops, dtype=float)
            if limits.served_tokens is not None:
                left = left - limits.served_tokens * family.forward_flops_per_token(params, recurrence)
            tokens = left / family.flops_per_token(params, loops)
        if limits.seconds is not None:
            tokens = np.minimum(tokens, limits.seconds / limits.seconds_per_token(family, params, loops))
        if limits.unique_tokens is not None and limits.repetition is None and not reads_unique(self.surface):
            tokens = np.minimum(tokens, limits.unique_tokens)
        return tokens

    def extra(self) -> dict[str, float] | None:
        """Return the columns beside the model's that laws of repeated text read, None for the text of the fit."""
        text = _text(self.surface, self.limits)
        return {UNIQUE_TOKENS: math.inf} if text is None and self.new_text else text

    def loss_draws(self, model: Model, recurrence: float | None) -> np.ndarray:
        """Return the losses of a model by each refit, (draws,), at T loops (None: T = mu)."""
        return _losses(self.surface, self.limits, [model], recurrence, self.extra())[1][:, 0]

    def _sizes(self) -> Interval:
        return self.surface.search_range("params") or (self.surface.own_params, self.surface.own_params)

    def _largest_size(self, recurrence: np.ndarray) -> np.ndarray:
        """Return the largest size in the search that the memory holds at T loops; NaN where it holds none."""
        low, high = self._sizes()
        if self.limits.memory is None:
            return np.full(np.shape(recurrence), high)
        largest = np.minimum(self.limits.largest_params(recurrence), high)
        return np.where(largest < low, np.nan, largest)

    def _why_none(self) -> str:
        """Return the message that no model is allowed, with what the smallest one needs."""
        limits, smallest = self.limits, self._sizes()[0]
        needs = []
        if limits.memory is not None:
            needs.append(f"the smallest model holds {float(limits.memory_of(smallest, 1.0)):.3g} bytes at one loop")
        if limits.served_tokens is not None and self.flops is not None:
            least = limits.served_tokens * float(self.surface.family.forward_flops_per_token(smallest, 1.0))
            needs.append(
                f"serving {limits.served_tokens:.3g} tokens by the smallest model at one loop takes {least:.3g} FLOPs"
            )
        return f"limits must leave one model, but they leave none: {' and '.join(needs) or 'no tokens'}; loosen one"


def reads_unique(surface: LossSurface) -> bool:
    """Return True if a law of the surface reads the distinct tokens, so that the runs show what repeated text costs."""
    return any(UNIQUE_TOKENS in law.form.columns for law in surface.laws.laws)


def _text(surface: LossSurface, limits: Limits) -> dict[str, float] | None:
    """Return the column of the text that the limits give, None where they give none or no law reads it."""
    if limits.unique_tokens is None or not reads_unique(surface):
        return None
    return {UNIQUE_TOKENS: limits.unique_tokens}


def broken_limits(surface: LossSurface, limits: Limits, model: Model, recurrence: float | None) -> str:
    """Return which limits a model breaks at T loops (None: T = mu), in words; empty if none."""
    params = surface.own_params if model.params is None else model.params
    loops = 1.0 if model.mean_recurrence is None else model.mean_recurrence
    used = []
    if limits.memory is not None:
        used.append(("memory", float(limits.memory_of(params, recurrence or loops)), limits.memory))
    if limits.unique_tokens is not None and limits.repetition is None and not reads_unique(surface):
        used.append(("text", model.tokens, limits.unique_tokens))
    if limits.seconds is not None:
        per_token = float(limits.seconds_per_token(surface.family, params, loops))
        used.append(("time", model.tokens * per_token, limits.seconds))
    return " and ".join(name for name, value, most in used if value > most * (1 + 1e-9))


def serving_flops(surface: LossSurface, limits: Limits, model: Model, recurrence: float | None) -> float:
    """Return the FLOPs of the tokens to be served by a model at T loops (None: T = mu)."""
    params = surface.own_params if model.params is None else model.params
    loops = recurrence or model.mean_recurrence or 1.0
    if limits.served_tokens is None:
        return 0.0
    return limits.served_tokens * float(surface.family.forward_flops_per_token(params, loops))


def losses_under(
    surface: LossSurface, limits: Limits, models: Sequence[Model], recurrence: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of models, (models,), and by each refit, (draws, models), at T loops (None: T = mu).

    Tokens are worth what the limits say of the text.
    """
    return _losses(surface, limits, models, recurrence, _text(surface, limits))


def _losses(
    surface: LossSurface,
    limits: Limits,
    models: Sequence[Model],
    recurrence: float | None,
    extra: Mapping[str, float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    params = np.array([surface.own_params if model.params is None else model.params for model in models])
    loops = np.array([1.0 if model.mean_recurrence is None else model.mean_recurrence for model in models])
    tokens = limits.worth(np.array([model.tokens for model in models]))
    return (
        surface.loss(params, loops, tokens, recurrence=recurrence, extra=extra),
        surface.loss_draws(params, loops, tokens, recurrence=recurrence, extra=extra),
    )


def _cost(free: LimitedModel, without: _Search, found: LimitedModel, search: _Search) -> Quantity:
    """Return the nats that the limits of `search` add to those of the search `without` limits, paired by refit."""
    drawn = search.loss_draws(found.model, found.recurrence) - without.loss_draws(free.model, free.recurrence)
    return Quantity(value=found.loss.value - free.loss.value, interval=interval(drawn) if len(drawn) else None)


def _saving(surface: LossSurface, limits: Limits, found: LimitedModel) -> tuple[Quantity | None, Model | None]:
    """Return the share of FLOPs saved against the training-optimal model of the same loss, and that model.

    By a refit, its own training-optimal models at some budgets are compared with its own loss of the found model. None
    where no training budget within 100 times the model's reaches the loss.
    """
    assert limits.served_tokens is not None
    other_limits = limits.only(UNIQUE_TOKENS, "seconds")

    def search(log_flops: float) -> _Search:
        return _Search(surface=surface, limits=other_limits, flops=math.exp(log_flops))

    def total(log_flops: float, best: _Found) -> np.ndarray:
        forward = surface.family.forward_flops_per_token(best.params, best.mean_recurrence)
        return math.exp(log_flops) + (limits.served_tokens or 0.0) * forward

    def excess(log_flops: float) -> float:
        return float(search(log_flops).optimum(math.nan).loss) - found.loss.value

    middle = math.log(found.model.flops)
    ends = middle - math.log(100), middle + math.log(100)
    if excess(ends[0]) < 0 or excess(ends[1]) > 0:
        return None, None
    at = float(brentq(excess, *ends, xtol=1e-6))
    best = search(at).optimum(math.nan)
    model = model_at(
        surface, params=float(best.params), mean_recurrence=float(best.mean_recurrence), tokens=float(best.tokens)
    )
    value = 1 - found.flops / float(total(at, best))
    losses = losses_under(surface, limits, [found.model], found.recurrence)[1][:, 0]
    if not len(losses):
        return Quantity(value=value, interval=None), model
    logs = at + np.log(_AROUND)
    drawn = [search(log).drawn([math.nan]) for log in logs]
    curves = np.stack([each.loss for each in drawn if each is not None])  # falls with the budget
    totals = np.stack([total(log, each) for log, each in zip(logs, drawn, strict=True) if each is not None])
    reached = [np.exp(np.interp(-losses[k], -curves[:, k], np.log(totals[:, k]))) for k in range(len(losses))]
    return Quantity(value=value, interval=interval(1 - found.flops / np.array(reached))), model


def _thinned(surface: LossSurface) -> LossSurface:
    """Return the surface with at most `_DRAWS` refits, evenly spread, since each of them is searched."""
    step = max(1, math.ceil(surface.draws / _DRAWS))
    if step == 1:
        return surface
    laws = tuple(replace(law, draws=law.draws[::step]) for law in surface.laws.laws)
    return replace(surface, laws=LawMixture(laws=laws, weights=surface.laws.weights, reason=surface.laws.reason))
