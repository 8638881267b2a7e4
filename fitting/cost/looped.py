"""FLOPs per token of the models of one architecture, as a function of the mean recurrence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoloop.fitting.cost.backprop import BackpropRule, backprop_rule
from isoloop.fitting.cost.base import Cost

_PER_ARCHITECTURE = (
    "flops_per_token_fixed",
    "flops_per_token_forward_loop",
    "flops_per_token_backward_loop",
    "effective_params_fixed",
    "effective_params_per_loop",
)


class _LoopedCost(Cost):
    """A cost over mean recurrences, whose models have a backprop depth where a rule is known."""

    axis = "mean_recurrence"
    mean_recurrences: tuple[float, ...]
    backprop: BackpropRule | None

    def backprop_depths(self, mean_recurrence: ArrayLike) -> np.ndarray | None:
        """Return backprop depths, of the shape of `mean_recurrence`, None where those of the runs follow no rule."""
        if self.backprop is None or not self.backprop.recorded:
            return None
        return self.backprop.depths_between(mean_recurrence, self.mean_recurrences)

    def model_columns(self, values: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
        """See `Cost.model_columns`; with `backprop_depth`, if it is known."""
        columns, depths = super().model_columns(values, tokens), self.backprop_depths(values)
        return columns if depths is None else columns | {"backprop_depth": depths}


@dataclass(frozen=True, kw_only=True)
class CostModel(_LoopedCost):
    """FLOPs per token and effective parameters of one architecture, as functions of the mean recurrence mu.

    FLOPs per token = fixed + forward f(mu) + backward b(mu). At the recurrences of the runs (the nodes), f and b are
    the loops that were run, so the cost is exact there under any sampling of depths and any accounting. Between nodes,
    f - mu and b are interpolated linearly. Beyond them, f - mu is that of the nearest node (f falls at most in
    proportion to mu), and b differs from the node's as the loops of the rule `backprop` do. Under a curriculum or
    phases f, too, grows as they say.
    """

    flops_per_token_fixed: float
    flops_per_token_forward_loop: float
    flops_per_token_backward_loop: float
    effective_params_fixed: float
    effective_params_per_loop: float
    mean_recurrences: tuple[float, ...]
    forward_loops: tuple[float, ...]
    backward_loops: tuple[float, ...]
    backprop: BackpropRule = field(default_factory=BackpropRule)
    unique_tokens: float | None = None

    def __post_init__(self) -> None:
        nodes = self.mean_recurrences
        if not nodes or len(nodes) != len(self.forward_loops) or len(nodes) != len(self.backward_loops):
            raise ValueError(
                "a cost model needs loops forward and backward at each of its mean recurrences, but got "
                f"{len(nodes)} recurrences, {len(self.forward_loops)} forward and "
                f"{len(self.backward_loops)} backward; give one of each for every recurrence"
            )
        if nodes[0] <= 0 or any(second <= first for first, second in pairwise(nodes)):
            raise ValueError(f"mean recurrences must be positive and increasing, but got {nodes}; sort them")

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> CostModel:
        """Return the cost model of a checked run table.

        Raises ValueError if its runs differ in architecture, or in backprop depth at one mean recurrence.
        """
        _check_one_architecture(table, _PER_ARCHITECTURE)
        ran = table[table["forward_loops"].notna() & table["backward_loops"].notna()]
        if ran.empty:
            raise ValueError("a cost model needs loop counts, but those of all runs are missing; finish a run first")
        depths = _recorded_depths(ran)
        loops = ran.groupby("mean_recurrence")[["forward_loops", "backward_loops"]].mean().sort_index()
        per_token: dict[str, Any] = {name: float(table[name].iloc[0]) for name in _PER_ARCHITECTURE}
        nodes = tuple(float(node) for node in loops.index)
        forward, backward = (tuple(float(value) for value in loops[name]) for name in loops)
        return cls(
            mean_recurrences=nodes,
            forward_loops=forward,
            backward_loops=backward,
            backprop=backprop_rule(nodes, depths, (forward, backward)),
            **per_token,
        )

    @property
    def formula(self) -> str:
        """See `Cost.formula`."""
        return (
            f"{self.flops_per_token_fixed:.4g} + {self.flops_per_token_forward_loop:.4g} per forward loop + "
            f"{self.flops_per_token_backward_loop:.4g} per backward loop"
            + ("" if self.backprop.shape == "half" else f" (backprop depth {self.backprop.name})")
        )

    def assumption_at(self, value: float) -> str:
        """See `Cost.assumption_at`."""
        inside = self.mean_recurrences[0] <= value <= self.mean_recurrences[-1]
        return "" if inside else self.backprop.assumption(below=value < self.mean_recurrences[0])

    def loops(self, mean_recurrence: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean loops per token (forward, backward), of the shape of `mean_recurrence`."""
        mu = np.asarray(mean_recurrence, dtype=float)
        nodes, rule = np.array(self.mean_recurrences), self.backprop
        nearest = np.clip(mu, nodes[0], nodes[-1])
        forward = mu + np.interp(mu, nodes, np.array(self.forward_loops) - nodes)
        forward -= rule.loops_lost * (mu - nearest)
        backward = np.interp(mu, nodes, np.array(self.backward_loops))
        share: ArrayLike = rule.share or 1.0
        if rule.shape == "proportional":
            share = backward / nearest
        backward = backward + share * (rule.backward_loops(mu) - rule.backward_loops(nearest))
        least = np.minimum(mu, nodes[0]) * min(1.0, self.forward_loops[0] / nodes[0])
        return np.maximum(forward, least), np.maximum(backward, min(1.0, self.backward_loops[0]))

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        forward, backward = self.loops(values)
        return np.asarray(
            self.flops_per_token_fixed
            + self.flops_per_token_forward_loop * forward
            + self.flops_per_token_backward_loop * backward
        )

    def forward_flops_per_token(self, values: ArrayLike, recurrence: ArrayLike) -> np.ndarray:
        """See `Cost.forward_flops_per_token`: a third of what runs once, and `recurrence` loops forward.

        The trainer counts up to a thousandth more with `concat`, whose first loop with gradient saves a product.
        """
        loops = np.asarray(recurrence, dtype=float)
        per_token = self.flops_per_token_fixed / 3 + self.flops_per_token_forward_loop * loops
        return np.broadcast_arrays(per_token, np.asarray(values, dtype=float))[0]

    def effective_params(self, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return N(mu), the parameters of the unrolled model, of the shape of `mean_recurrence`."""
        mu = np.asarray(mean_recurrence, dtype=float)
        return np.asarray(self.effective_params_fixed + self.effective_params_per_loop * mu)


@dataclass(frozen=True, kw_only=True)
class MeasuredCost(_LoopedCost):
    """FLOPs per token of looped models as their table counts them, at its mean recurrences, without a cost model.

    Between two mean recurrences the FLOPs per token are interpolated linearly, and beyond the largest they grow as over
    the upper half of the range, or where the recorded backprop depth has a limit, as over the runs that it holds for.
    Below the smallest they fall as between the first two, but at most in proportion to mu.
    """

    mean_recurrences: tuple[float, ...]
    measured_flops_per_token: tuple[float, ...]
    effective_params_fixed: float | None = None
    effective_params_per_loop: float | None = None
    backprop: BackpropRule | None = None
    unique_tokens: float | None = None

    def __post_init__(self) -> None:
        nodes, costs = self.mean_recurrences, self.measured_flops_per_token
        if not nodes or len(nodes) != len(costs) or nodes[0] <= 0 or any(b <= a for a, b in pairwise(nodes)):
            raise ValueError(
                "a measured cost needs positive and increasing mean recurrences with FLOPs per token each, but got "
                f"{nodes} and {costs}; give one of each"
            )

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> MeasuredCost:
        """Return the cost of a checked table: the median of flops / tokens at each mean recurrence.

        Raises ValueError as `CostModel.from_table` does where effective parameters, or the parameters, differ.
        """
        known = [name for name in ("effective_params_fixed", "effective_params_per_loop", "params") if name in table]
        _check_one_architecture(table, known)
        ran = table[table["flops"].notna() & table["tokens"].notna()]
        if ran.empty:
            raise ValueError("a cost needs flops and tokens, but those of all runs are missing; fill them in")
        per_token = (ran["flops"] / ran["tokens"]).groupby(ran["mean_recurrence"]).median().sort_index()
        nodes = tuple(float(node) for node in per_token.index)
        depths = None
        if "backprop_depth" in ran and ran.groupby("mean_recurrence")["backprop_depth"].nunique().max() == 1:
            depths = _recorded_depths(ran)
        return cls(
            mean_recurrences=nodes,
            backprop=None if depths is None else backprop_rule(nodes, depths),
            measured_flops_per_token=tuple(float(value) for value in per_token),
            **{name: float(table[name].iloc[0]) for name in known if name != "params"},
        )

    @property
    def formula(self) -> str:
        """See `Cost.formula`."""
        return "the median at each mean recurrence, interpolated between them"

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        mu, nodes, costs = (
            np.asarray(each, dtype=float) for each in (values, self.mean_recurrences, self.measured_flops_per_token)
        )
        below, above = np.minimum(mu - nodes[0], 0.0), np.maximum(mu - nodes[-1], 0.0)
        fall = rise = costs[0] / nodes[0]
        if len(nodes) > 1:
            # Over half of the range, so that a step of the backprop depth between two neighbours does not decide.
            half = min(max(0, int(np.searchsorted(nodes, nodes[-1] / 2, side="right")) - 1), len(nodes) - 2)
            rise = max(0.0, (costs[-1] - costs[half]) / (nodes[-1] - nodes[half]))
            if self.backprop is not None and nodes[-1] > self.backprop.full_depth_at:
                rise = self._rise_at_full_depth(half)
            fall = np.clip((costs[1] - costs[0]) / (nodes[1] - nodes[0]), 0.0, fall)
        return np.asarray(np.interp(mu, nodes, costs) + fall * below + rise * above)

    def _rise_at_full_depth(self, first: int) -> float:
        """Return the FLOPs per token of a loop without gradient, from the runs from index `first` on.

        Of runs that are not at their full depth, a loop with gradient counts as three without.
        """
        assert self.backprop is not None, "a rule has the limit"
        nodes, costs = np.array(self.mean_recurrences), np.array(self.measured_flops_per_token)
        full = max(first, int(np.searchsorted(nodes, self.backprop.full_depth_at)))
        if full < len(nodes) - 1:
            return float((costs[-1] - costs[full]) / (nodes[-1] - nodes[full]))
        units = nodes + 2 * np.minimum(nodes, self.backprop.depths(nodes))
        return float((costs[-1] - costs[first]) / (units[-1] - units[first]))

    def assumption_at(self, value: float) -> str:
        """See `Cost.assumption_at`."""
        below = value < self.mean_recurrences[0]
        if self.mean_recurrences[0] <= value <= self.mean_recurrences[-1]:
            return ""
        if self.backprop is not None and self.backprop.recorded:
            return self.backprop.assumption(below=below)
        why = "the table records no backprop depth" if self.backprop is None else "its backprop depths follow no rule"
        if len(self.mean_recurrences) == 1:
            return "FLOPs per token in proportion to the loops, because all runs have the same mean recurrence"
        where = "between the two smallest recurrences" if below else "over the upper half of the recurrences"
        return f"a change per loop as {where} of the runs, because {why}"


def _recorded_depths(runs: pd.DataFrame) -> tuple[float, ...] | None:
    """Return the backprop depth of each mean recurrence, in increasing order; None if it is not recorded for each.

    Raises ValueError if one has several.
    """
    if "backprop_depth" not in runs:
        return None
    recorded = runs.groupby("mean_recurrence")["backprop_depth"]
    for mean_recurrence, depths in recorded:
        if depths.nunique() > 1:
            raise ValueError(
                f"a mean recurrence must have one backprop depth, but {mean_recurrence:g} was trained "
                f"with {sorted(depths.unique())}; filter the table to one of them"
            )
    first = recorded.first().sort_index()
    return None if first.isna().any() else tuple(float(depth) for depth in first)


def _check_one_architecture(table: pd.DataFrame, columns: Iterable[str]) -> None:
    for name in columns:
        low, high = float(table[name].min()), float(table[name].max())
        if high > low * (1 + 1e-9):
            raise ValueError(
                f"a fit takes the runs of one architecture, but `{name}` ranges from {low:.10g} to {high:.10g}; "
                "filter the table to the runs of one architecture"
            )
