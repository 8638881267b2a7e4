"""The best models through budgets: of any size, of each measured size, and how they grow with compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.sizes.result import FrontierPoint, Growth, SizeAtBudget
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.surface.surface import LossSurface, SurfaceOptimum

Optima = tuple[SurfaceOptimum, SurfaceOptimum | None]
"""The best model for a budget, and those by each refit."""
_GROWING = ("params", "mean_recurrence", "tokens")
_SEARCH_DECIMALS = 6
"""Decimals of the logarithm of a best model that the search finds."""


def frontier_point(surface: LossSurface, flops: float) -> FrontierPoint:
    """Return the best models for `flops` FLOPs. Raises ValueError unless the budget is positive and finite."""
    return _point(surface, flops)[0]


def frontier(surface: LossSurface, budgets: Sequence[float], growing: int) -> tuple[list[FrontierPoint], Growth | None]:
    """Return the best models at growing budgets, and their growth over the first `growing` of them, None for one."""
    points, optima = [], []
    for budget in budgets:
        point, best, drawn = _point(surface, budget)
        points.append(point)
        optima.append((best, drawn))
    if growing < 2:
        return points, None
    exponents = growth_exponents(np.array(budgets[:growing]), optima[:growing])
    return points, Growth(**{name: Quantity.of(*exponent) for name, exponent in exponents.items()})


def growth_exponents(budgets: np.ndarray, optima: Sequence[Optima]) -> dict[str, tuple[float, np.ndarray | None]]:
    """Return the exponents of C of the best size, loops and tokens over budgets (g,): by the laws, and refits (draws,).

    They are least-squares slopes in logarithms, without the rounding of the search: best loops may stay at one number.
    """
    logs, exponents = np.log(budgets), {}
    for name in _GROWING:
        own = np.log([getattr(best, name) for best, _ in optima]).round(_SEARCH_DECIMALS)
        drawn = [np.log(getattr(each, name)).round(_SEARCH_DECIMALS) for _, each in optima if each is not None]
        value = float(np.polyfit(logs, own, 1)[0].round(_SEARCH_DECIMALS))
        draws = np.polyfit(logs, np.stack(drawn), 1)[0].round(_SEARCH_DECIMALS) if drawn else None
        exponents[name] = value, draws
    return exponents


def _point(surface: LossSurface, flops: float) -> tuple[FrontierPoint, SurfaceOptimum, SurfaceOptimum | None]:
    if not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"flops must be positive and finite, but got {flops}; give a positive number")
    best, drawn = surface.best_for(flops)
    # The best of each measured size, all by the same refits
    members = surface.family.members if isinstance(surface.family, ModelFamily) else ()
    of_sizes = [surface.best_for(flops, params=(member.params, member.params)) for member in members]
    losses = np.array([float(own.loss) for own, _ in of_sizes])
    drawn_losses = None if drawn is None else np.stack([each.loss for _, each in of_sizes if each is not None])
    sizes = []
    for place, (member, (own, draws)) in enumerate(zip(members, of_sizes, strict=True)):
        extra = None if drawn_losses is None else drawn_losses[place] - drawn_losses.min(axis=0)
        sizes.append(
            SizeAtBudget(
                label=member.label,
                params=member.params,
                mean_recurrence=Quantity.of(float(own.mean_recurrence), _drawn(draws, "mean_recurrence")),
                tokens=Quantity.of(float(own.tokens), _drawn(draws, "tokens")),
                loss=Quantity.of(float(own.loss), _drawn(draws, "loss")),
                extra_loss=Quantity.of(losses[place] - losses.min(), extra),
                chance=None if drawn_losses is None else float(np.mean(drawn_losses.argmin(axis=0) == place)),
            )
        )
    point = FrontierPoint(
        budget=float(flops),
        params=Quantity.of(float(best.params), _drawn(drawn, "params")),
        mean_recurrence=Quantity.of(float(best.mean_recurrence), _drawn(drawn, "mean_recurrence")),
        tokens=Quantity.of(float(best.tokens), _drawn(drawn, "tokens")),
        loss=Quantity.of(float(best.loss), _drawn(drawn, "loss")),
        at_bound=tuple(name for name, flag in best.at_bound.items() if flag),
        sizes=tuple(sizes),
    )
    return point, best, drawn


def _drawn(optima: SurfaceOptimum | None, name: str) -> np.ndarray | None:
    return None if optima is None else getattr(optima, name)
