"""The marginal value of compute: nats that the next FLOPs buy on each axis, and how best models grow with compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import brentq

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.surface.surface import LossSurface, SurfaceOptimum

_WIDEST = 1e6
"""Largest factor by which an axis is raised to spend the next FLOPs."""
_DECADE = 10.0
SAME_FLOPS, MORE_FLOPS = "same_flops", "more_flops"
"""Ways to spend FLOPs that are no axis: the best model for those of a model, and for the next ones as well."""
_IN_ORDER = ("mean_recurrence", "tokens", "params")
"""The axes in the order of the question: more loops, more tokens or more parameters."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a loss surface with its training FLOPs; a number that such models don't have, or share, is None."""

    params: float | None
    mean_recurrence: float | None
    tokens: float
    flops: float

    def of_axis(self, axis: str) -> float:
        """Return the value on an axis that the model has."""
        value: float | None = getattr(self, axis)
        assert value is not None, axis
        return value


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The `nats` (per token) that a way of spending FLOPs takes off the loss: from one model to `model`.

    `wins` is the share of refits in which this axis buys most of those within the limits; None without refits, and for
    a way that is no axis or alone. `beyond` names the limits that the model breaks.
    """

    axis: str
    model: Model
    loss: Quantity
    nats: Quantity
    wins: float | None = None
    beyond: str = ""


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """The gains of `percent` more FLOPs from the model `start`: an entry of `axes` for each axis that alone takes them.

    `same_flops` is the best model for the FLOPs of `start`, and `more_flops` the best one for `percent` more, both
    without limits, and None under some.
    """

    start: Model
    loss: Quantity
    percent: float
    axes: tuple[Gain, ...]
    same_flops: Gain | None
    more_flops: Gain | None

    @property
    def winner(self) -> Gain:
        """The axis that buys most within limits: in the most refits, or without refits by the laws themselves."""
        within = [gain for gain in self.axes if not gain.beyond] or self.axes
        return max(within, key=lambda gain: (gain.wins or 0.0, gain.nats.value))


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The growth of the best model while compute grows tenfold, from 1 / sqrt(10) to sqrt(10) times `flops`.

    `factors` are the ratios by axis, and `shares` the part of the growth in compute, in logs, that each axis takes.
    `leads` is the share of refits in which an axis takes the largest part. Each is None for an axis whose best value is
    at the end of the search.
    """

    flops: float
    factors: Mapping[str, Quantity]
    shares: Mapping[str, Quantity]
    leads: Mapping[str, float] | None


def model_at(surface: LossSurface, *, params: float | None, mean_recurrence: float | None, tokens: float) -> Model:
    """Return the model of a surface with these numbers; `params` and `mean_recurrence` only where models have them."""
    own, loops = _full(surface, params, mean_recurrence)
    flops = tokens * float(surface.family.flops_per_token(own, loops))
    return Model(
        params=None if math.isnan(own) else own,
        mean_recurrence=None if surface.mean_recurrence is None else loops,
        tokens=tokens,
        flops=flops,
    )


def best_model(surface: LossSurface, flops: float) -> tuple[Model, SurfaceOptimum, SurfaceOptimum | None]:
    """Return the best model for `flops`, with the optimum and those of the refits, None without refits."""
    best, drawn = surface.best_for(flops)
    return model_of(surface, best), best, drawn


def model_of(surface: LossSurface, best: SurfaceOptimum) -> Model:
    """Return an optimum of shape () as a model."""
    return model_at(
        surface,
        params=float(best.params),
        mean_recurrence=float(best.mean_recurrence),
        tokens=float(best.tokens),
    )


Losses = Callable[[Sequence[Model]], tuple[np.ndarray, np.ndarray]]
"""A function that gives the losses of models, (models,), and those by each refit, (draws, models)."""


def marginal(
    surface: LossSurface,
    start: Model,
    *,
    percent: float = 10.0,
    losses_under_limits: Losses | None = None,
    broken_limits: Callable[[Model], str] = lambda model: "",
    spent: Callable[[Model], float] = lambda model: model.flops,
) -> Marginal:
    """Return what `percent` more training FLOPs buy from a model, by the laws and by each refit.

    More tokens are those of the same model. More loops, or parameters, are as many as spend the FLOPs at the same
    tokens. Gains are those of expected losses, refit by refit, so the noise of one run is not in their intervals.
    Raises ValueError for a percentage that is not positive, or so large that no axis can take it.
    """
    if not (0 < percent <= 1000):
        raise ValueError(f"percent must be above 0 and at most 1000, but got {percent:g}; 10 is usual")
    flops = spent(start) * (1 + percent / 100)
    names = axes_in_order(surface)
    ends = [_raised(surface, start, axis, flops, spent) for axis in names]
    ways = [*names]
    if losses_under_limits is None:
        ways += [SAME_FLOPS, MORE_FLOPS]
        ends += [best_model_alone(surface, start.flops), best_model_alone(surface, flops)]
    axes = len(names)
    models = [start, *ends]
    losses, drawn = _losses(surface, models) if losses_under_limits is None else losses_under_limits(models)
    bought = drawn[:, :1] - drawn[:, 1:]
    beyond = [broken_limits(end) for end in ends]
    within = [place for place in range(axes) if not beyond[place]]
    wins: list[float | None] = [None] * len(ends)
    if len(bought) and len(within) > 1:
        largest = bought[:, within].argmax(axis=1)
        for place, axis in enumerate(within):
            wins[axis] = float((largest == place).mean())
    gains = [
        replace(
            _gain(way, end, losses[[0, place]], drawn[:, [0, place]]), wins=wins[place - 1], beyond=beyond[place - 1]
        )
        for place, (way, end) in enumerate(zip(ways, ends, strict=True), start=1)
    ]
    return Marginal(
        start=start,
        loss=Quantity.of(losses[0], drawn[:, 0]),
        percent=percent,
        axes=tuple(gains[:axes]),
        same_flops=gains[axes] if losses_under_limits is None else None,
        more_flops=gains[axes + 1] if losses_under_limits is None else None,
    )


def gain_of(surface: LossSurface, start: Model, end: Model, way: str) -> Gain:
    """Return what the step from one model to another buys, under the name `way`."""
    return _gain(way, end, *_losses(surface, [start, end]))


def growth(surface: LossSurface, flops: float) -> Growth:
    """Return how the best model grows around a budget of `flops`; see `Growth`."""
    (_, low, low_draws), (_, high, high_draws) = (
        best_model(surface, flops * factor) for factor in (_DECADE**-0.5, _DECADE**0.5)
    )
    names = axes_in_order(surface)
    free = [name for name in names if not (name in low.at_bound and (low.at_bound[name] | high.at_bound[name]))]
    ratios = {name: getattr(high, name) / getattr(low, name) for name in names}
    parts = _parts(surface, low, high)
    if low_draws is None or high_draws is None:
        nothing = np.empty(0)
        factors = {name: Quantity.of(ratios[name], nothing) for name in free}
        return Growth(
            flops=flops, factors=factors, shares={name: Quantity.of(parts[name], nothing) for name in free}, leads=None
        )
    drawn = _parts(surface, low_draws, high_draws)
    largest = np.stack([drawn[name] for name in names]).argmax(axis=0)
    return Growth(
        flops=flops,
        factors={
            name: Quantity.of(ratios[name], getattr(high_draws, name) / getattr(low_draws, name)) for name in free
        },
        shares={name: Quantity.of(parts[name], drawn[name]) for name in free},
        leads={name: float((largest == place).mean()) for place, name in enumerate(names)},
    )


def best_model_alone(surface: LossSurface, flops: float) -> Model:
    """Return the best model for `flops` by the laws, without refits."""
    return model_of(surface, surface.best(partial(surface.family.tokens_for, flops)))


def axes_in_order(surface: LossSurface) -> tuple[str, ...]:
    """Return the axes of a surface in the order in which answers name them."""
    return tuple(name for name in _IN_ORDER if name in surface.axes)


def axis_words(axis: str) -> str:
    """Return what more of an axis is called in answers: loops, tokens or parameters."""
    return AXES[axis].unit


def _parts(surface: LossSurface, low: SurfaceOptimum, high: SurfaceOptimum) -> dict[str, np.ndarray]:
    """Return the part of the growth in FLOPs, in logs, that each axis takes from one best model to another.

    What parameters and loops add to the FLOPs per token depends on which grows first, so it is the mean of both orders.
    """

    def cost(params: np.ndarray, loops: np.ndarray) -> np.ndarray:
        return np.log(surface.family.flops_per_token(params, loops))

    tokens = np.log(high.tokens / low.tokens)
    corners = {
        (i, j): cost(params, loops)
        for i, params in enumerate((low.params, high.params))
        for j, loops in enumerate((low.mean_recurrence, high.mean_recurrence))
    }
    by_loops = (corners[0, 1] - corners[0, 0] + corners[1, 1] - corners[1, 0]) / 2
    total = tokens + corners[1, 1] - corners[0, 0]
    by_axis = {"params": total - tokens - by_loops, "mean_recurrence": by_loops, "tokens": tokens}
    return {name: by_axis[name] / total for name in surface.axes}


def _raised(surface: LossSurface, start: Model, axis: str, flops: float, spent: Callable[[Model], float]) -> Model:
    """Return the model that spends `flops` because its value on one axis is larger than that of `start`."""
    params, loops = _full(surface, start.params, start.mean_recurrence)
    numbers = {"params": params, "mean_recurrence": loops, "tokens": start.tokens}

    def raised(log_factor: float) -> Model:
        return model_at(surface, **numbers | {axis: numbers[axis] * math.exp(log_factor)})

    def excess(log_factor: float) -> float:
        return math.log(spent(raised(log_factor)) / flops)

    if excess(math.log(_WIDEST)) < 0:
        raise ValueError(
            f"the next FLOPs must fit on every axis, but {_WIDEST:g} times the {axis_words(axis)} of the model spend "
            f"less than {flops:.3g}; give a smaller percentage"
        )
    return raised(float(brentq(excess, 0.0, math.log(_WIDEST), xtol=1e-13)))


def _full(surface: LossSurface, params: float | None, mean_recurrence: float | None) -> tuple[float, float]:
    """Return the numbers that a surface takes for those that its models don't have: the only size, and one loop."""
    return surface.own_params if params is None else params, 1.0 if mean_recurrence is None else mean_recurrence


def _losses(surface: LossSurface, models: Sequence[Model]) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of models at T = mu, (models,), and by each refit, (draws, models)."""
    full = [_full(surface, model.params, model.mean_recurrence) for model in models]
    params, loops = (np.array(values) for values in zip(*full, strict=True))
    tokens = np.array([model.tokens for model in models])
    return surface.loss(params, loops, tokens), surface.loss_draws(params, loops, tokens)


def _gain(way: str, end: Model, losses: np.ndarray, drawn: np.ndarray) -> Gain:
    """Return the gain from the losses before and after, (2,), and those by each refit, (draws, 2)."""
    return Gain(
        axis=way,
        model=end,
        loss=Quantity.of(losses[1], drawn[:, 1]),
        nats=Quantity.of(losses[0] - losses[1], drawn[:, 0] - drawn[:, 1]),
    )
