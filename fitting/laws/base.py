"""The contract of a scaling law. A new law is one final class behind it; nothing else has to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Protocol

import numpy as np

Data = Mapping[str, np.ndarray]
"""Columns by name, (rows,), or (..., rows) where every parameter vector has rows of its own. Losses in nats."""

GRID_POINTS = 600
GOLDEN_STEPS = 40
"""How an optimum is searched: on a grid in logs, then by golden section between the neighbours of its best point."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named, bounded parameter of a law; `starts` are what a search tries if the law isn't linear in it.

    A `logarithmic` one moves by factors in a search: right for an amplitude that trades off with a decay which no unit
    of a column can take out.
    """

    name: str
    meaning: str
    unit: str
    lower: float = 0.0
    upper: float = np.inf
    starts: tuple[float, ...] = ()
    logarithmic: bool = False


class Cost(Protocol):
    """What a budget buys along one axis (mean recurrence, or parameters)."""

    @property
    def axis(self) -> str:
        """The column that varies along an isoFLOP curve."""

    def columns(self, budget: float, values: np.ndarray) -> dict[str, np.ndarray]:
        """The data columns, of the shape of `values` on the axis, of models that spend `budget` FLOPs exactly."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best split of a budget; arrays of the parameters' leading shape.

    `at` is the best value on the cost's axis. `at_bound` is True where an end of the search was best, so that a better
    one may lie outside.
    """

    axis: str
    at: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    at_bound: np.ndarray

    @property
    def mean_recurrence(self) -> np.ndarray:
        """The best mean recurrence, loops; only where that is the axis."""
        assert self.axis == "mean_recurrence", self.axis
        return self.at


class Law(ABC):
    """The contract of a scaling law: loss in nats per token, from columns of positive data.

    `parameters` lists those first that the loss is linear in (`linear_count` of them, all non-negative): loss =
    offset + basis(nonlinear) @ linear. Every method broadcasts over leading axes of its parameters, so that many
    candidate fits are evaluated at once. `scaled` are the columns whose unit the fit may change, in groups that share
    one (it divides them by their geometric mean); `rescaled` says what that does to the parameters. `vary` are the
    columns that must not be constant (all unless said), `may_be_zero` those that need not be positive.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    scaled: ClassVar[tuple[tuple[str, ...], ...]] = ()
    vary: ClassVar[tuple[str, ...]] = ()
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]]
    linear_count: ClassVar[int]

    @abstractmethod
    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """Columns that the linear parameters multiply: nonlinear (..., q) to (..., rows, linear_count)."""

    @abstractmethod
    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Loss in nats per token: parameters (..., p) to (..., rows)."""

    @abstractmethod
    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """Loss (..., rows) and its derivative by each parameter (..., rows, p), for parameters (..., p)."""

    @abstractmethod
    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """The same law (..., p) for columns as they are, from parameters for columns divided by `units` (by name).

        A column that isn't named keeps its unit.
        """

    @abstractmethod
    def effective(self, parameters: np.ndarray) -> str:
        """What fitted parameters (p,) mean in effect: one sentence for the report."""

    def gradient(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Derivative of `loss` by each parameter: parameters (..., p) to (..., rows, p)."""
        return self.loss_and_gradient(parameters, data)[1]

    def offset(self, data: Data) -> np.ndarray | float:
        """What the loss holds beside the linear terms, from the data alone: (rows,), nats per token."""
        return 0.0

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """Parameters (p,) at which this law is a simpler one that `fit` fits: further starts, so that it fits no worse.

        `data` are scaled columns, with the losses.
        """
        return []

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names in the order of the parameter vector."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def varying(self) -> tuple[str, ...]:
        """The columns that must not be constant for a fit to make sense."""
        return self.vary or self.columns

    def start_grid(self) -> np.ndarray:
        """Nonlinear parameters (grid, q), in columns of geometric mean 1, from which a search looks for its starts."""
        return np.array(list(product(*(parameter.starts for parameter in self.parameters[self.linear_count :]))))

    def optimum(
        self, parameters: np.ndarray, cost: Cost, budget: float, bounds: tuple[float, float] = (1.0, 1024.0)
    ) -> Optimum:
        """The point of least loss on the axis of `cost` that spends exactly `budget` FLOPs: parameters (..., p) to
        (...).

        The search is over every real value within `bounds`; where the best is a bound, `at_bound` is True and a better
        one may lie outside. Raises ValueError unless 0 < lower < upper and the budget is positive, and where the law
        says nothing about a budget.
        """
        low, high = bounds
        if not (0 < low < high and np.isfinite(high)):
            raise ValueError(f"bounds of `{cost.axis}` must be finite with 0 < lower < upper, but got {bounds}")
        if not (budget > 0 and np.isfinite(budget)):
            raise ValueError(f"a budget must be positive and finite, but got {budget} FLOPs")
        if "tokens" not in self.columns:
            raise ValueError(f"the {self.name} law knows no tokens, so no budget has an optimum under it; ask another")

        def loss_at(log_values: np.ndarray) -> np.ndarray:
            return self.loss(parameters, cost.columns(budget, np.exp(log_values)))

        # The cost has kinks where the backprop depth steps, so a fine grid comes first and a local search after it.
        grid = np.linspace(np.log(low), np.log(high), GRID_POINTS)
        best = np.argmin(loss_at(grid), axis=-1)
        at_bound = (best == 0) | (best == len(grid) - 1)
        left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
        inverse_golden = (np.sqrt(5) - 1) / 2
        for _ in range(GOLDEN_STEPS):
            a, b = right - inverse_golden * (right - left), left + inverse_golden * (right - left)
            losses = loss_at(np.stack([a, b], axis=-1))
            lower = losses[..., 0] < losses[..., 1]
            left, right = np.where(lower, left, a), np.where(lower, b, right)
        log_best = np.where(at_bound, grid[best], (left + right) / 2)
        data = cost.columns(budget, np.exp(log_best)[..., None])
        return Optimum(
            axis=cost.axis,
            at=np.exp(log_best),
            tokens=data["tokens"][..., 0],
            loss=self.loss(parameters, data)[..., 0],
            at_bound=np.asarray(at_bound),
        )
