"""FLOPs per token as a function of the mean recurrence, from the runs of one architecture, or of the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

BACKWARD_SLOPE = 0.5
_PER_ARCHITECTURE = (
    "flops_per_token_fixed",
    "flops_per_token_forward_loop",
    "flops_per_token_backward_loop",
    "effective_params_fixed",
    "effective_params_per_loop",
)


class Cost(ABC):
    """The FLOPs of models that differ along one axis, the column that varies along an isoFLOP curve."""

    axis: ClassVar[str]

    @abstractmethod
    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """Return FLOPs per token, forward and backward, of models with `values` on the axis, of their shape."""

    @abstractmethod
    def columns(self, budget: float, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns that laws read, of the shape of `values`, of models that spend exactly `budget` FLOPs."""

    def tokens_for(self, budget: ArrayLike, values: ArrayLike) -> np.ndarray:
        """Return the tokens that spend exactly `budget` FLOPs with `values` on the axis."""
        return np.asarray(budget, dtype=float) / self.flops_per_token(values)

    def flops_for(self, tokens: ArrayLike, values: ArrayLike) -> np.ndarray:
        """Return the training FLOPs of `tokens` tokens with `values` on the axis."""
        return np.asarray(tokens, dtype=float) * self.flops_per_token(values)


@dataclass(frozen=True, kw_only=True)
class CostModel(Cost):
    """FLOPs per token and effective parameters of one architecture, as functions of the mean recurrence mu.

    FLOPs per token = fixed + forward f(mu) + backward b(mu). At the recurrences of the runs (the nodes), f and b are
    the loops that were run, so the cost is exact there under any sampling of depths and any accounting. Between nodes,
    f - mu and b are interpolated linearly. Beyond them, f - mu is that of the nearest node, and b grows with the slope
    1/2 of a backprop depth mu / 2.
    """

    axis = "mean_recurrence"

    flops_per_token_fixed: float
    flops_per_token_forward_loop: float
    flops_per_token_backward_loop: float
    effective_params_fixed: float
    effective_params_per_loop: float
    mean_recurrences: tuple[float, ...]
    forward_loops: tuple[float, ...]
    backward_loops: tuple[float, ...]

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
        for name in _PER_ARCHITECTURE:
            low, high = float(table[name].min()), float(table[name].max())
            if high > low * (1 + 1e-9):
                raise ValueError(
                    f"a fit takes the runs of one architecture, but `{name}` ranges from {low:.10g} to {high:.10g}; "
                    "filter the table to the runs of one architecture"
                )
        ran = table[table["forward_loops"].notna() & table["backward_loops"].notna()]
        if ran.empty:
            raise ValueError("a cost model needs loop counts, but those of all runs are missing; finish a run first")
        for mean_recurrence, runs in ran.groupby("mean_recurrence"):
            depths = sorted(set(runs["backprop_depth"]))
            if len(depths) > 1:
                raise ValueError(
                    f"a mean recurrence must have one backprop depth, but {mean_recurrence:g} was trained "
                    f"with {depths}; filter the table to one of them"
                )
        loops = ran.groupby("mean_recurrence")[["forward_loops", "backward_loops"]].mean().sort_index()
        per_token: dict[str, Any] = {name: float(table[name].iloc[0]) for name in _PER_ARCHITECTURE}
        return cls(
            mean_recurrences=tuple(float(node) for node in loops.index),
            forward_loops=tuple(float(value) for value in loops["forward_loops"]),
            backward_loops=tuple(float(value) for value in loops["backward_loops"]),
            **per_token,
        )

    def loops(self, mean_recurrence: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean loops per token (forward, backward), of the shape of `mean_recurrence`."""
        mu = np.asarray(mean_recurrence, dtype=float)
        nodes = np.array(self.mean_recurrences)
        excess = np.interp(mu, nodes, np.array(self.forward_loops) - nodes)
        beyond = mu - np.clip(mu, nodes[0], nodes[-1])
        backward = np.interp(mu, nodes, np.array(self.backward_loops)) + BACKWARD_SLOPE * beyond
        return mu + excess, np.maximum(backward, min(1.0, self.backward_loops[0]))

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        forward, backward = self.loops(values)
        return np.asarray(
            self.flops_per_token_fixed
            + self.flops_per_token_forward_loop * forward
            + self.flops_per_token_backward_loop * backward
        )

    def effective_params(self, mean_recurrence: ArrayLike) -> np.ndarray:
        """Return N(mu), the parameters of the unrolled model, of the shape of `mean_recurrence`."""
        mu = np.asarray(mean_recurrence, dtype=float)
        return np.asarray(self.effective_params_fixed + self.effective_params_per_loop * mu)

    def columns(self, budget: float, values: np.ndarray) -> dict[str, np.ndarray]:
        """See `Cost.columns`; the loss is that at T = mean recurrence."""
        return self.model_columns(values, self.tokens_for(budget, values))

    def model_columns(self, mean_recurrence: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
        """Return columns that laws read, of models with these mean recurrences and tokens, at T = mean recurrence."""
        values, tokens = np.asarray(mean_recurrence, dtype=float), np.asarray(tokens, dtype=float)
        return architecture_columns(values, self.effective_params_fixed, self.effective_params_per_loop) | {
            "tokens": tokens,
            "recurrence": values,
        }


@dataclass(frozen=True, kw_only=True)
class DenseCost(Cost):
    """FLOPs of fixed-depth models of many sizes: `flops_per_param_token` for each of N parameters and D tokens.

    The count 6 N D is that of Kaplan et al. 2020 (arXiv:2001.08361): 2 forward and 4 backward, without attention.
    """

    axis = "params"
    flops_per_param_token: float = 6.0

    def __post_init__(self) -> None:
        if not (self.flops_per_param_token > 0 and np.isfinite(self.flops_per_param_token)):
            raise ValueError(
                f"FLOPs per parameter and token must be positive, but got {self.flops_per_param_token}; 6 is usual"
            )

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        return self.flops_per_param_token * np.asarray(values, dtype=float)

    def columns(self, budget: float, values: np.ndarray) -> dict[str, np.ndarray]:
        """See `Cost.columns`."""
        return {"params": np.asarray(values, dtype=float), "tokens": self.tokens_for(budget, values)}


def architecture_columns(
    mean_recurrence: ArrayLike, effective_params_fixed: ArrayLike, effective_params_per_loop: ArrayLike
) -> dict[str, np.ndarray]:
    """Return the columns of a model's shape that laws read, embeddings apart, of the arguments' broadcast shape.

    `params` counts every parameter once, `effective_params` those of the unrolled model.
    """
    arguments = (mean_recurrence, effective_params_fixed, effective_params_per_loop)
    mu, once, recurrent = np.broadcast_arrays(*(np.asarray(values, dtype=float) for values in arguments))
    return {
        "mean_recurrence": mu,
        "params_once": once,
        "params_recurrent": recurrent,
        "params": once + recurrent,
        "effective_params": once + mu * recurrent,
    }
