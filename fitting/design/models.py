"""Models among which a design looks for the best one: along one axis, or of any size and any mean recurrence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from isoloop.fitting.cost import Cost
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.laws.base import LARGEST_RECURRENCE, Data, best_split
from isoloop.fitting.surface.search import minimise_on_box
from isoloop.fitting.surface.surface import PARAMS_BEYOND

LossOf = Callable[[Data], np.ndarray]
"""The loss of rows (..., n) by each of s parameter vectors, (s, n)."""
_SEARCH = {"mean_recurrence": (0.02, 1e5), "params": (1e3, 1e15)}
"""Values on the axis between which best models are searched for, wide enough that none sits at an end."""
_ZOOMS = 14


@dataclass(frozen=True, kw_only=True)
class Models(ABC):
    """Models that differ along `axes`, columns of the run table, at the FLOPs that a budget leaves them.

    A model is the logarithms of its values on the axes, (..., d). `step` is that of derivatives along them.
    """

    axes: tuple[str, ...]
    step: float

    @abstractmethod
    def columns(self, flops: float, logs: np.ndarray) -> Data:
        """Return the columns that laws read, (...), of models (..., d) that spend exactly `flops` FLOPs."""

    @abstractmethod
    def best(self, loss: LossOf, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the model of least loss for `flops` FLOPs by each vector, (s, d), and flags (s, d) of axes whose best
        value is an end of the search.
        """


@dataclass(frozen=True, kw_only=True)
class SmoothCost(Cost):
    """FLOPs per token of looped models as a line in the mean recurrence, without the kinks of whole loops.

    A best model that sits at a kink does not move with the parameters of a law, so that its derivative would be 0.
    """

    axis = "mean_recurrence"

    flops_per_token_fixed: float
    flops_per_token_loop: float
    effective_params_fixed: float | None = None
    effective_params_per_loop: float | None = None
    unique_tokens: float | None = None

    @property
    def formula(self) -> str:
        """See `Cost.formula`."""
        return f"{self.flops_per_token_fixed:.4g} + {self.flops_per_token_loop:.4g} mu"

    def flops_per_token(self, values: ArrayLike) -> np.ndarray:
        """See `Cost.flops_per_token`."""
        return np.asarray(self.flops_per_token_fixed + self.flops_per_token_loop * np.asarray(values, dtype=float))


def smooth_cost(cost: Cost, values: np.ndarray) -> Cost:
    """Return a cost without kinks near `cost` at `values` on its axis: a line, by least squares of the ratio."""
    if cost.axis != "mean_recurrence":
        return cost
    exact = cost.flops_per_token(values)
    line, _ = nnls(np.stack([1 / exact, values / exact], axis=-1), np.ones(len(values)))
    return SmoothCost(
        flops_per_token_fixed=float(line[0]),
        flops_per_token_loop=float(line[1]),
        effective_params_fixed=cost.effective_params_fixed,
        effective_params_per_loop=cost.effective_params_per_loop,
        unique_tokens=cost.unique_tokens,
    )


@dataclass(frozen=True, kw_only=True)
class ModelsOnAxis(Models):
    """Models of one architecture that differ in their loops, or dense ones that differ in size; `cost` has no kinks."""

    cost: Cost

    @classmethod
    def of(cls, cost: Cost, values: np.ndarray) -> ModelsOnAxis:
        """Return the models whose cost has no kinks at `values` on its axis."""
        return cls(axes=(cost.axis,), step=1e-2, cost=smooth_cost(cost, np.unique(values)))

    def columns(self, flops: float, logs: np.ndarray) -> Data:
        """See `Models.columns`."""
        return self.cost.columns(flops, np.exp(logs[..., 0]))

    def best(self, loss: LossOf, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Models.best`; the range is so wide that no end of it is one of what can be trained."""
        optimum = best_split(loss, self.cost, flops, _SEARCH[self.cost.axis])
        return np.log(optimum.at)[..., None], np.zeros((len(optimum.at), 1), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class ModelsOfAnySize(Models):
    """Looped models of any size of a family, at its own FLOPs.

    These have kinks at whole loops, where best models like to sit, and one loop is the least. So derivatives are
    differences over a fifth of the value, which see a kink as what it is over that distance: a steep valley, in which
    a best model hardly moves.
    """

    family: ModelFamily

    @classmethod
    def of(cls, family: ModelFamily) -> ModelsOfAnySize:
        """Return the models of a family."""
        return cls(axes=("params", "mean_recurrence"), step=0.2, family=family)

    def columns(self, flops: float, logs: np.ndarray) -> Data:
        """See `Models.columns`."""
        size, loops = np.exp(logs[..., 0]), np.exp(logs[..., 1])
        return self.family.columns(size, loops, self.family.tokens_for(flops, size, loops))

    def best(self, loss: LossOf, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """See `Models.best`."""
        low, high = self.family.sizes[0] / PARAMS_BEYOND, self.family.sizes[-1] * PARAMS_BEYOND
        bounds = np.log([(low, high), (1.0, LARGEST_RECURRENCE)])
        logs, _ = minimise_on_box(
            lambda at: loss(self.columns(flops, at)), [(float(a), float(b)) for a, b in bounds], zooms=_ZOOMS
        )
        return logs, np.isclose(logs, bounds[:, 0], atol=1e-9) | np.isclose(logs, bounds[:, 1], atol=1e-9)


def models_of(cost: Cost | ModelFamily, columns: Data) -> Models:
    """Return the models of a cost, without kinks at those of `columns`, or of a family of several sizes."""
    if isinstance(cost, ModelFamily):
        return ModelsOfAnySize.of(cost)
    return ModelsOnAxis.of(cost, columns.get("mean_recurrence", columns.get("params", np.ones(1))))
