"""The compute multiplier of two sweeps: how many times the FLOPs of B sweep A needs for B's loss, with intervals."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.answer.recommendation import BUDGET_ROUNDING
from isoloop.fitting.compare.difference import paired_places
from isoloop.fitting.cost.family import DenseFamily
from isoloop.fitting.estimation.bootstrap import LEVEL
from isoloop.fitting.laws.base import search_bounds
from isoloop.fitting.surface.surface import LossSurface

MULTIPLIER = "Compute multiplier"
_DRAWS = 300
"""Refits of each law that the intervals rest on at most."""
_MOST_BUDGETS = 7
_SEARCHED = 1e6
"""Factor above and below the compute of B up to which A's is searched."""
_ZOOMS = 10
"""Zooms of the search for a best model, which find it within a thousandth of its size and loops."""
_NEAR, _STEP, _FAR_STEP = 64.0, 2 ** (1 / 3), 4.0
"""Steps of compute at which A's least losses are computed: within the factor `_NEAR` of the budgets, and beyond."""

Limits = tuple[float, float]
Ends = tuple[float | None, float | None]
"""A 95% interval; an end is None where there is no limit on that side."""


@dataclass(frozen=True, kw_only=True)
class Multiplier(ABC):
    """A compute multiplier: A needs `value` times the FLOPs of B, None if A does not reach B's loss at any compute.

    `never` is the share of draws in which it does not; it and the `interval` are None without draws.
    """

    value: float | None
    interval: Ends | None
    never: float | None

    @property
    @abstractmethod
    def where(self) -> str:
        """The compute of B that it belongs to, in words."""

    @property
    def times(self) -> str:
        """The factor, or that there is none."""
        return "never" if self.value is None else f"{self.value:.3g} times"

    @property
    def uncertainty(self) -> str:
        """The interval and the share of draws without a factor, in words; empty without draws."""
        if self.interval is None or self.never is None:
            return ""
        low, high = self.interval
        limits = "" if low is None else f"95%: {low:.3g} to {'no limit' if high is None else format(high, '.3g')}"
        share = f"in {self.never:.0%} of the draws A never reaches it" if self.never else ""
        return "; ".join(filter(None, (limits, share)))

    @property
    def sentence(self) -> str:
        """The multiplier in words that can be read in one direction only."""
        known = f" ({self.uncertainty})" if self.uncertainty else ""
        if self.value is None:
            return (
                f"A does not reach the loss that B has {self.where}, at any compute{known}; it was searched to "
                f"{_SEARCHED:.0e} times that of B."
            )
        sentence = f"A needs {self.times}{known} the FLOPs of B for the same loss, {self.where}"
        if self.interval is None:
            return f"{sentence}; no interval, for lack of refits."
        low, high = (math.inf if end is None else end for end in self.interval)
        if low <= 1 <= high:
            return f"{sentence}: neither is shown to need less."
        return f"{sentence}: {'A' if high < 1 else 'B'} needs less."


@dataclass(frozen=True, kw_only=True)
class BudgetMultiplier(Multiplier):
    """The multiplier of the least loss that B has at `flops` FLOPs, for which A needs `first_flops`, if any.

    `extrapolated` says which side is outside the compute that it spent, and by how much; it is empty for none. So is
    `search_end`, which says whose best size is at the end of the search, so that a better one may lie outside.
    """

    flops: float
    loss: float
    first_flops: float | None
    extrapolated: str
    search_end: str = ""

    @property
    def where(self) -> str:
        """See `Multiplier.where`."""
        return f"at {self.flops:.3g} FLOPs"

    @property
    def beyond(self) -> str:
        """What of it lies outside the runs and the search, in words; empty for nothing."""
        extrapolated = f"extrapolated: {self.extrapolated}" if self.extrapolated else ""
        return "; ".join(filter(None, (extrapolated, self.search_end)))


@dataclass(frozen=True, kw_only=True)
class RangeMultiplier(Multiplier):
    """The geometric mean of the multipliers over a range of compute (`low` to `high` FLOPs of B)."""

    low: float
    high: float

    @property
    def where(self) -> str:
        """See `Multiplier.where`."""
        return f"over {self.low:.3g} to {self.high:.3g} FLOPs of B (geometric mean)"


@dataclass(frozen=True, kw_only=True)
class ComputeMultiplier:
    """The multipliers at several budgets of B, and the one over the range that both sweeps cover, if there is one.

    `no_overlap` says so if the least losses in the ranges of compute that were run don't overlap.
    """

    overall: RangeMultiplier | None
    at_budgets: tuple[BudgetMultiplier, ...]
    no_overlap: str

    @property
    def sentences(self) -> list[str]:
        """The multipliers in sentences, the most important first."""
        # A geometric mean over losses of which one is never reached says nothing: that one is named.
        if self.overall is not None and self.overall.value is not None:
            first: Multiplier = self.overall
        else:
            first = min(self.at_budgets, key=lambda one: one.value is not None)
        return [first.sentence, *([self.no_overlap] if self.no_overlap else [])]


def compute_multiplier(
    first: LossSurface, second: LossSurface, ranges: tuple[Limits, Limits], flops: Sequence[float]
) -> ComputeMultiplier:
    """Return how many times the FLOPs of `second` (B) `first` (A) needs for the loss of B's best models.

    At a budget C of B it is m(C) = C_A(L_B*(C)) / C: L_B*(C) is the least loss of B at C, by its laws after training,
    and C_A(L) the least compute at which A's best model has the loss L. Best models are those of any size and any mean
    recurrence of the surface. Draws of both are independent. `ranges` are the FLOPs that A and B spent, and `flops`
    further budgets beside those of the range that both cover. Both must count FLOPs alike.
    """
    # Budgets: over the shared range, and those asked for.
    low, high = max(ends[0] for ends in ranges), min(ends[1] for ends in ranges)
    steps = 1 + round(math.log2(max(high / low, 1.0)))
    shared = (
        np.geomspace(low, high, min(max(steps, 2), _MOST_BUDGETS)) if low < high else np.array([low] * (low == high))
    )
    others = [each for each in flops if not np.isclose(each, shared, rtol=BUDGET_ROUNDING - 1).any()]
    budgets = np.sort(np.concatenate([shared, others]))
    inside = np.isin(budgets, shared)
    # Least losses of both; B's budgets are among A's, so that a sweep compared with itself gives exactly 1.
    losses, drawn, at_end = _least_losses(second, budgets)
    grid = _grid(budgets)
    of_first, drawn_first, at_end_first = _least_losses(first, grid)
    values = _least_flops(grid, of_first[None], losses[None])[0] / budgets
    factors = None
    if drawn is not None and drawn_first is not None:
        a, b = paired_places(len(drawn_first), len(drawn))
        factors = _least_flops(grid, drawn_first[a], drawn[b]) / budgets
    # At each budget, and over the shared range.
    at_budgets: list[BudgetMultiplier] = []
    for place, budget in enumerate(budgets):
        value = float(values[place])
        of_a = float(value * budget) if np.isfinite(value) else None
        outside = [_outside("B", float(budget), ranges[1])] + ([] if of_a is None else [_outside("A", of_a, ranges[0])])
        nearest = np.argmin(np.abs(np.log(grid / of_a))) if of_a is not None else len(grid) - 1
        ends = [side for side, flag in (("A", at_end_first[nearest]), ("B", at_end[place])) if flag]
        interval, never = (None, None) if factors is None else _interval(factors[:, place])
        at_budgets.append(
            BudgetMultiplier(
                value=value if of_a is not None else None,
                interval=interval,
                never=never,
                flops=float(budget),
                loss=float(losses[place]),
                first_flops=of_a,
                extrapolated=", ".join(filter(None, outside)),
                search_end=f"the best size of {' and '.join(ends)} is at the end of the search" if ends else "",
            )
        )
    overall = None
    if inside.any():
        mean = float(np.exp(np.log(values[inside]).mean()))
        means = None if factors is None else np.exp(np.log(factors[:, inside]).mean(axis=1))
        interval, never = (None, None) if means is None else _interval(means)
        overall = RangeMultiplier(
            value=mean if math.isfinite(mean) else None,
            interval=interval,
            never=never,
            low=float(low),
            high=float(high),
        )
    spans = [
        _least_losses(surface, np.array(ends), draws=0)[0]
        for surface, ends in zip((first, second), ranges, strict=True)
    ]
    return ComputeMultiplier(overall=overall, at_budgets=tuple(at_budgets), no_overlap=_no_overlap(*spans))


def _least_losses(
    surface: LossSurface, flops: np.ndarray, draws: int = _DRAWS
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the loss of the best model at each compute (g,), by the laws and by their draws (d, g), widened.

    The last are flags (g,) of best sizes at the end of the search, which for dense models is that of `search_bounds`.
    """
    few = tuple(replace(law, draws=law.draws[:draws]) for law in surface.laws.laws)
    surface = replace(surface, laws=replace(surface.laws, laws=few))
    params = surface.params
    params = search_bounds("params", *params) if params and isinstance(surface.family, DenseFamily) else None
    own, drawn, at_end = [], [], []
    for budget in flops:
        best, optima = surface.best_for(float(budget), params=params, zooms=_ZOOMS)
        own.append(float(best.loss))
        at_end.append(bool(best.at_bound.get("params", np.array(False))))
        drawn.append(None if optima is None else optima.loss)
    known = [losses for losses in drawn if losses is not None]
    return np.array(own), np.stack(known, axis=-1) if known else None, np.array(at_end)


def _grid(budgets: np.ndarray) -> np.ndarray:
    """Return the compute (g,) at which A's least losses are computed: fine near the budgets, coarse far from them."""
    low, high = budgets[0] / _NEAR, budgets[-1] * _NEAR
    near = np.geomspace(low, high, 1 + math.ceil(math.log(high / low) / math.log(_STEP)))
    far = _FAR_STEP ** np.arange(1, 1 + math.ceil(math.log(_SEARCHED / _NEAR) / math.log(_FAR_STEP)))
    near = near[(np.abs(np.log(near[:, None] / budgets)) > 0.1 * math.log(_STEP)).all(axis=1)]
    return np.sort(np.concatenate([low / far, near, budgets, high * far]))


def _least_flops(flops: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the least compute (n, b) at which losses (n, g) at `flops` (g,) fall to targets (n, b), infinite if never.

    Logarithms are interpolated. A target above every loss gives the smallest compute.
    """
    # More compute can do no worse than less, even by a law whose loss rises with tokens.
    logs, falling = np.log(flops), np.minimum.accumulate(np.log(losses), axis=1)
    found = np.empty(targets.shape)
    for column, target in enumerate(np.log(targets).T):
        reached = falling <= target[:, None] + 1e-12
        after = np.argmax(reached, axis=1)
        before = np.maximum(after - 1, 0)
        rows = np.arange(len(falling))
        drop = falling[rows, before] - falling[rows, after]
        share = np.clip((falling[rows, before] - target) / np.where(drop > 0, drop, 1.0), 0.0, 1.0)
        at = logs[before] + share * (logs[after] - logs[before])
        found[:, column] = np.where(reached[:, -1], np.exp(at), np.inf)
    return found


def _interval(draws: np.ndarray) -> tuple[Ends, float]:
    """Return the 95% interval, with None where there is no limit, and the share of draws that are infinite."""
    # No end lies between two draws, of which one may be infinite.
    ends = np.quantile(draws, [0.5 * (1 - LEVEL), 0.5 * (1 + LEVEL)], method="inverted_cdf")
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return (low, high), float(np.mean(np.isinf(draws)))


def _outside(side: str, flops: float, measured: Limits) -> str:
    low, high = measured
    if flops > high * BUDGET_ROUNDING:
        return f"{side} {flops / high:.3g}x beyond"
    return f"{side} {low / flops:.3g}x below" if flops < low / BUDGET_ROUNDING else ""


def _no_overlap(of_first: np.ndarray, of_second: np.ndarray) -> str:
    if max(of_first.min(), of_second.min()) <= min(of_first.max(), of_second.max()):
        return ""
    spans = [f"{losses.max():.4g} to {losses.min():.4g}" for losses in (of_first, of_second)]
    return (
        f"Over the compute that was run, the least losses of A ({spans[0]}) and B ({spans[1]}) do not overlap, so "
        "every multiplier is extrapolated."
    )
