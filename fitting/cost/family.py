"""A family of models of several sizes: FLOPs per token and shape as functions of size and mean recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoloop.fitting.cost.base import architecture_columns
from isoloop.fitting.cost.dense import DenseCost
from isoloop.fitting.cost.looped import CostModel, MeasuredCost
from isoloop.fitting.cost.of_table import cost_of

_SHAPE = ["effective_params_fixed", "effective_params_per_loop"]
Columns = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FamilyMember:
    """One architecture of a family: its name, and its cost. `label` is what people call the size, such as '140m'."""

    label: str
    cost: CostModel | MeasuredCost

    @property
    def params(self) -> float:
        """Parameters, each counted once, embeddings apart; NaN where the table does not tell."""
        fixed, per_loop = self.cost.effective_params_fixed, self.cost.effective_params_per_loop
        return float("nan") if fixed is None or per_loop is None else fixed + per_loop


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Looped models of one or several sizes, the smallest first.

    At the measured sizes, FLOPs per token and shape are theirs. Between two sizes, the logarithm of the FLOPs per token
    at each mean recurrence, and the share of the recurrent block in the parameters, are linear in the logarithm of the
    parameters; beyond the sizes they go on as between the last two. A family of one member has no other size.
    """

    members: tuple[FamilyMember, ...]

    def __post_init__(self) -> None:
        sizes = [member.params for member in self.members]
        if not sizes or (len(sizes) > 1 and not (np.diff(sizes) > 0).all()):
            raise ValueError(f"a family needs members of growing size, but got {sizes} parameters; sort them")

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> ModelFamily:
        """Return the family of a checked run table of looped models, a member per architecture.

        Members are named by the column `model.size`, or by their parameters. Raises ValueError as `cost_of` does for
        the runs of one member, and where two architectures have equally many parameters.
        """
        if not set(_SHAPE) <= set(table):
            return cls(members=(FamilyMember(label="", cost=_looped_cost(table)),))
        members = []
        for _, runs in table.groupby(_SHAPE, sort=False):
            params = float(runs[_SHAPE].iloc[0].sum())
            label = str(runs["model.size"].iloc[0]) if "model.size" in runs else short_count(params)
            members.append(FamilyMember(label=label, cost=_looped_cost(runs)))
        members.sort(key=lambda member: member.params)
        for first, second in pairwise(members):
            if not second.params > first.params * (1 + 1e-9):
                raise ValueError(
                    f"the models of a joint fit must differ in their parameters, but {first.label} and {second.label} "
                    f"both have {first.params:.4g}; fit one of them at a time"
                )
        return cls(members=tuple(members))

    @property
    def recurrent_shares(self) -> np.ndarray:
        """Share of the recurrent block in the parameters of each member, (members,); NaN where the table is silent."""
        loops = [member.cost.effective_params_per_loop for member in self.members]
        return np.array([np.nan if each is None else each for each in loops]) / np.array(self.sizes)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Parameters of the members, each counted once, embeddings apart."""
        return tuple(member.params for member in self.members)

    def on_text(self, unique_tokens: float | None) -> ModelFamily:
        """Return the family on a text of `unique_tokens`, None for text that is new to the end."""
        members = (replace(each, cost=replace(each.cost, unique_tokens=unique_tokens)) for each in self.members)
        return replace(self, members=tuple(members))

    def label_of(self, params: float) -> str:
        """Return the name of the member with these parameters, or the parameters in short where there is none."""
        near = [member.label for member in self.members if abs(member.params / params - 1) < 1e-6]
        return near[0] if near else short_count(params)

    def flops_per_token(self, params: ArrayLike, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return training FLOPs per token, of the arguments' broadcast shape."""
        params, mu = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(mean_recurrence, dtype=float))
        costs = np.stack([member.cost.flops_per_token(mu) for member in self.members], axis=-1)
        return np.exp(between_sizes(self.sizes, params, np.log(costs)))

    def forward_flops_per_token(self, params: ArrayLike, recurrence: ArrayLike) -> np.ndarray:
        """Return FLOPs per token of a forward pass of `recurrence` loops T; see `Cost.forward_flops_per_token`."""
        params, loops = np.broadcast_arrays(np.asarray(params, dtype=float), np.asarray(recurrence, dtype=float))
        costs = np.stack([member.cost.forward_flops_per_token(loops, loops) for member in self.members], axis=-1)
        return np.exp(between_sizes(self.sizes, params, np.log(costs)))

    def columns(
        self,
        params: ArrayLike,
        mean_recurrence: ArrayLike,
        tokens: ArrayLike,
        extra: Mapping[str, ArrayLike] | None = None,
    ) -> Columns:
        """Return the columns that laws read, of the arguments' broadcast shape; `extra` ones are broadcast, too.

        The loss is that at T = mean recurrence. A family of one member takes its own parameters for `params`. Without
        effective parameters in the table there are none here, and backprop depths only where they follow a rule.
        """
        named = {name: np.asarray(values, dtype=float) for name, values in (extra or {}).items()}
        sized = np.asarray(params, dtype=float)
        if len(self.members) == 1:
            sized = np.full_like(sized, self.members[0].params)
        arrays = (sized, np.asarray(mean_recurrence, dtype=float), np.asarray(tokens, dtype=float))
        params, mu, tokens, *others = np.broadcast_arrays(*arrays, *named.values())
        columns = {"mean_recurrence": mu, "recurrence": mu, "tokens": tokens}
        columns["flops"] = tokens * self.flops_per_token(params, mu)
        columns |= self.members[0].cost.text_columns(tokens)
        shares = self.recurrent_shares
        if not np.isnan(shares).any():
            share = np.clip(
                between_sizes(self.sizes, params, np.broadcast_to(shares, (*params.shape, len(shares)))), 0.0, 1.0
            )
            columns |= architecture_columns(mu, (1 - share) * params, share * params)
        depths = [member.cost.backprop_depths(mu) for member in self.members]
        known = [depth for depth in depths if depth is not None]
        if len(known) == len(depths):
            columns["backprop_depth"] = between_sizes(self.sizes, params, np.stack(known, axis=-1))
        return columns | dict(zip(named, others, strict=True))

    def tokens_for(self, flops: ArrayLike, params: ArrayLike, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return the tokens that spend exactly `flops` in training."""
        return np.asarray(np.asarray(flops, dtype=float) / self.flops_per_token(params, mean_recurrence))


@dataclass(frozen=True, kw_only=True)
class DenseFamily:
    """Fixed-depth models of any number of parameters, at the FLOPs of a `DenseCost`. A mean recurrence is ignored."""

    cost: DenseCost

    def on_text(self, unique_tokens: float | None) -> DenseFamily:
        """See `ModelFamily.on_text`."""
        return replace(self, cost=replace(self.cost, unique_tokens=unique_tokens))

    @property
    def sizes(self) -> tuple[float, ...]:
        """No architectures of their own: any number of parameters is one."""
        return ()

    def label_of(self, params: float) -> str:
        """Return the parameters in short."""
        return short_count(params)

    def flops_per_token(self, params: ArrayLike, mean_recurrence: ArrayLike) -> np.ndarray:
        """See `ModelFamily.flops_per_token`."""
        return np.broadcast_arrays(self.cost.flops_per_token(params), np.asarray(mean_recurrence, dtype=float))[0]

    def forward_flops_per_token(self, params: ArrayLike, recurrence: ArrayLike) -> np.ndarray:
        """See `ModelFamily.forward_flops_per_token`."""
        return self.cost.forward_flops_per_token(params, recurrence)

    def columns(
        self,
        params: ArrayLike,
        mean_recurrence: ArrayLike,
        tokens: ArrayLike,
        extra: Mapping[str, ArrayLike] | None = None,
    ) -> Columns:
        """See `ModelFamily.columns`: params, tokens and flops, and the `extra` columns."""
        named = {name: np.asarray(values, dtype=float) for name, values in (extra or {}).items()}
        arrays = (np.asarray(values, dtype=float) for values in (params, mean_recurrence, tokens))
        params, _, tokens, *others = np.broadcast_arrays(*arrays, *named.values())
        return self.cost.model_columns(params, tokens) | dict(zip(named, others, strict=True))

    def tokens_for(self, flops: ArrayLike, params: ArrayLike, mean_recurrence: ArrayLike) -> np.ndarray:
        """See `ModelFamily.tokens_for`."""
        return np.asarray(np.asarray(flops, dtype=float) / self.flops_per_token(params, mean_recurrence))


def between_sizes(sizes: Sequence[float], params: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `values` (..., sizes) interpolated linearly in log params (...); beyond the sizes they go on as inside."""
    if len(sizes) == 1:
        return values[..., 0]
    nodes, at = np.log(sizes), np.log(params)
    first = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    weight = (at - nodes[first]) / (nodes[first + 1] - nodes[first])
    low, high = (np.take_along_axis(values, (first + step)[..., None], axis=-1)[..., 0] for step in (0, 1))
    return np.asarray(low + weight * (high - low))


def short_count(count: float) -> str:
    """Return a number of parameters in short, such as '56.6M'."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def _looped_cost(runs: pd.DataFrame) -> CostModel | MeasuredCost:
    cost = cost_of(runs)
    assert not isinstance(cost, DenseCost), "looped models have a mean recurrence"
    return cost
