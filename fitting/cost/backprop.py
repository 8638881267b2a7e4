"""Backprop depths: the rule by which they follow from the mean recurrence, and the mean loops that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import pdtr

Shape = Literal["half", "full", "constant", "limited full", "limited half", "proportional"]

_TOLERANCE = 0.05
"""Relative difference within which loops that were measured are those of a rule; they scatter as the draws do."""
_CURRICULUM_POINTS = 64
_FARTHEST = 1024
"""Mean recurrence up to which two rules are compared beyond the runs."""


@dataclass(frozen=True, kw_only=True)
class BackpropRule:
    """The rule by which backprop depth follows from the mean recurrence mu, and the sampling of depths.

    `limit` is the largest depth (loops), None where there is none. `poisson` says that depths are max(1, Poisson(mu)),
    otherwise every sequence runs mu loops. `curriculum` is the mean recurrence that training starts with and the
    fraction of the steps over which it grows. `phase` is instead a mean recurrence that a part of training keeps, and
    the fraction of the steps that it takes; several phases count as one. `share` is that of a rule's loops with
    gradient which the runs ran, None for all. `also_below` and `also_above` name rules that fit the runs as well, but
    differ for smaller or larger mu. `recorded` is False where no rule fits the runs.
    """

    shape: Shape = "half"
    limit: float | None = None
    poisson: bool = False
    curriculum: tuple[float, float] | None = None
    phase: tuple[float, float] | None = None
    share: float | None = None
    also_below: tuple[str, ...] = ()
    also_above: tuple[str, ...] = ()
    recorded: bool = True

    @property
    def name(self) -> str:
        """The rule as a formula or in words."""
        return {
            "half": "ceil(mu/2)",
            "full": "mu",
            "constant": f"{self.limit or 0:g} at every mu",
            "limited full": f"min(mu, {self.limit or 0:g})",
            "limited half": f"min(ceil(mu/2), {self.limit or 0:g})",
            "proportional": "a constant share of mu",
        }[self.shape]

    @property
    def loops_lost(self) -> float:
        """The loops forward by which training falls short of mu, for each loop that mu grows."""
        if self.phase is not None:
            return self.phase[1]
        return 0.0 if self.curriculum is None else self.curriculum[1] / 2

    @property
    def full_depth_at(self) -> float:
        """The smallest mean recurrence whose depth is the limit; infinite without a limit."""
        if self.limit is None:
            return np.inf
        return 2 * (self.limit - 1) + 1 if self.shape == "limited half" else self.limit

    def depths(self, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return the backprop depth at whole mean recurrences, of their shape."""
        mu = np.asarray(mean_recurrence, dtype=float)
        depth = {"half": np.ceil(mu / 2), "limited half": np.ceil(mu / 2), "constant": np.full_like(mu, np.inf)}
        return np.minimum(depth.get(self.shape, mu), np.inf if self.limit is None else self.limit)

    def depths_between(self, mean_recurrence: ArrayLike, nodes: Sequence[float]) -> np.ndarray:
        """Return the backprop depth at any mean recurrence, of its shape: that of the rule at the increasing `nodes`.

        It is linear between nodes, and beyond them grows as the loops with gradient do.
        """
        mu = np.asarray(mean_recurrence, dtype=float)
        nearest = np.clip(mu, nodes[0], nodes[-1])
        plain = replace(self, poisson=False, curriculum=None, phase=None)
        beyond = plain.backward_loops(mu) - plain.backward_loops(nearest)
        return np.maximum(np.interp(mu, nodes, self.depths(np.asarray(nodes))) + beyond, np.minimum(mu, 1.0))

    def backward_loops(self, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return the mean loops with gradient per token, of the shape of `mean_recurrence`.

        Their growth is that of the runs: ceil(mu/2), which steps at every other mu, counts as mu/2. A constant share of
        mu counts as mu.
        """
        mu = np.asarray(mean_recurrence, dtype=float)
        if self.shape == "proportional":
            return mu
        if "half" not in self.shape:
            return self.mean_loops(mu, self.depths(mu))[1]
        growing = mu < self.full_depth_at
        if self.curriculum is None and self.phase is None:
            half = 0.5 * mu
            return half if self.limit is None else np.where(growing, half, self.mean_loops(mu, self.limit)[1])
        return self.mean_loops(mu, 0.5 * mu if self.limit is None else np.where(growing, 0.5 * mu, self.limit))[1]

    def mean_loops(self, mean_recurrence: ArrayLike, depth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean loops (forward, backward) per token with these backprop depths, of the arguments' shape."""
        mu, most = np.broadcast_arrays(np.asarray(mean_recurrence, dtype=float), np.asarray(depth, dtype=float))
        if self.phase is not None:
            means, fraction = np.full((*mu.shape, 1), self.phase[0]), self.phase[1]
        elif self.curriculum is not None:
            start, fraction = self.curriculum
            progress = (np.arange(_CURRICULUM_POINTS) + 0.5) / _CURRICULUM_POINTS
            means = start + (mu[..., None] - start) * progress
        else:
            return poisson_loops(mu, most) if self.poisson else (mu, np.minimum(mu, most))
        constant = replace(self, curriculum=None, phase=None)
        growing, grown = constant.mean_loops(means, most[..., None]), constant.mean_loops(mu, most)
        forward, backward = (
            fraction * first.mean(axis=-1) + (1 - fraction) * last for first, last in zip(growing, grown, strict=True)
        )
        return forward, backward

    def assumption(self, *, below: bool) -> str:
        """Return what a cost for smaller mu (`below`), or larger, than those of the runs assumes; empty for nothing."""
        also = self.also_below if below else self.also_above
        if self.shape == "proportional":
            return (
                "loops with gradient in proportion to the mean recurrence, because those of the runs follow no rule of "
                "ceil(mu/2), mu, a constant, or one of the first two up to a limit"
            )
        if not self.recorded:
            return (
                f"loops with gradient that grow like those of a backprop depth of {self.name}; those of the runs do not"
            )
        return f"a backprop depth of {self.name}, where {' or '.join(also)} would fit the runs as well" if also else ""


def poisson_loops(mean_recurrence: ArrayLike, depth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean loops (forward, backward) of depths T = max(1, Poisson(mu)), of which the last `depth` count.

    Forward is E[T] = mu + exp(-mu), backward E[min(T, depth)], linear between two whole depths.
    """
    mu, most = np.asarray(mean_recurrence, dtype=float), np.maximum(1.0, np.asarray(depth, dtype=float))
    clamped = np.exp(-mu)

    def limited(whole: np.ndarray) -> np.ndarray:
        return mu * pdtr(whole - 1, mu) + whole * (1 - pdtr(whole, mu)) + clamped

    low = np.floor(most)
    return mu + clamped, limited(low) + (most - low) * (limited(low + 1) - limited(low))


def backprop_rule(
    mean_recurrences: Sequence[float],
    depths: Sequence[float] | None,
    loops: tuple[Sequence[float], Sequence[float]] | None = None,
) -> BackpropRule:
    """Return the rule of runs with these increasing mean recurrences and backprop depths, None where not recorded.

    `loops` are the mean loops that were run, (forward, backward); either they or the depths must be given. Where
    several rules fit, the first of ceil(mu/2), mu, a constant, min(mu, k) and min(ceil(mu/2), k) is taken.
    """
    nodes = np.asarray(mean_recurrences, dtype=float)
    forward, backward = (np.asarray(each, dtype=float) for each in loops or (nodes, depths))
    # The rules that fit. A limit counts only if a rule without it does not fit, a constant only if it shows.
    most = float(np.max(depths)) if depths is not None else float(np.ceil(backward.max() - _TOLERANCE))
    rules: list[BackpropRule] = []
    for rule in (
        BackpropRule(shape="half"),
        BackpropRule(shape="full"),
        BackpropRule(shape="constant", limit=most),
        BackpropRule(shape="limited full", limit=most),
        BackpropRule(shape="limited half", limit=most),
    ):
        hidden = rule.shape == "constant" and depths is None and most >= nodes[-1]
        if hidden or rule.shape.removeprefix("limited ") in {fitting.shape for fitting in rules}:
            continue
        if _fits(rule, nodes, depths, backward):
            rules.append(rule)
    if not rules:
        rule = BackpropRule(shape="proportional", recorded=False)
        return rule if depths is None or loops is None else _with_sampling(rule, nodes, depths, forward, backward)
    chosen = rules[0]
    if loops is not None:
        known = chosen.depths(nodes) if depths is None else np.asarray(depths, dtype=float)
        chosen = _with_sampling(chosen, nodes, known, forward, backward)
    return replace(
        chosen,
        also_below=_others(rules, np.arange(1, nodes[0])),
        also_above=_others(rules, np.arange(np.floor(nodes[-1]) + 1, _FARTHEST)),
    )


def _others(rules: Sequence[BackpropRule], mean_recurrences: np.ndarray) -> tuple[str, ...]:
    """Return the names of rules that differ from the first, and from one another, at these mean recurrences."""
    distinct: dict[tuple[float, ...], str] = {}
    for rule in rules:
        distinct.setdefault(tuple(rule.depths(mean_recurrences)), rule.name)
    return tuple(distinct.values())[1:]


def _fits(rule: BackpropRule, nodes: np.ndarray, depths: Sequence[float] | None, backward: np.ndarray) -> bool:
    """Return whether a rule gives the depths, or where these are not recorded, the loops with gradient."""
    expected = rule.depths(nodes)
    if depths is not None:
        return bool(np.array_equal(expected, np.asarray(depths, dtype=float)))
    counts = (replace(rule, poisson=poisson).mean_loops(nodes, expected)[1] for poisson in (False, True))
    return any(bool((abs(backward / count - 1) < _TOLERANCE).all()) for count in counts)


def _with_sampling(
    rule: BackpropRule, nodes: np.ndarray, depths: ArrayLike, forward: np.ndarray, backward: np.ndarray
) -> BackpropRule:
    """Return the rule with the sampling of depths, the curriculum or phase, and the share that the loops show."""
    # Fewer loops forward than the mean recurrence are those of a curriculum, or of a phase with a mean of its own.
    # Where both leave as many, the loops with gradient tell them apart.
    samplings = [replace(rule, poisson=poisson) for poisson in (False, True)]
    if (forward < (1 - _TOLERANCE) * nodes).any():
        samplings = [
            _with_fewer_loops(sampling, phased=phased, nodes=nodes, forward=forward)
            for phased in (False, True)
            for sampling in samplings
        ]

    def misfit(sampling: BackpropRule) -> float:
        pairs = zip((forward, backward), sampling.mean_loops(nodes, depths), strict=True)
        return sum(float(((ran / count - 1) ** 2).sum()) for ran, count in pairs)

    chosen = min(samplings, key=misfit)
    ratios = backward / chosen.mean_loops(nodes, depths)[1]
    smooth = backward / np.maximum(chosen.backward_loops(nodes), np.minimum(nodes, 1.0))
    if (abs(ratios - 1) < _TOLERANCE).all() or (abs(smooth - 1) < _TOLERANCE).all():
        return chosen
    share = float(ratios.mean())
    return replace(chosen, share=share, recorded=bool((abs(ratios / share - 1) < _TOLERANCE).all()))


def _with_fewer_loops(rule: BackpropRule, *, phased: bool, nodes: np.ndarray, forward: np.ndarray) -> BackpropRule:
    """Return the rule with the curriculum, or phase, of least squared relative error in the loops forward."""

    def with_values(mean: float, fraction: float) -> BackpropRule:
        return replace(rule, phase=(mean, fraction)) if phased else replace(rule, curriculum=(mean, fraction))

    least = min(1.0, nodes[0] / 2)
    best = least_squares(
        lambda values: with_values(*values).mean_loops(nodes, nodes)[0] / forward - 1,
        (least, 0.5),
        bounds=((0.0, 0.0), (nodes[0], 1.0)),
    )
    return with_values(*best.x.tolist())
