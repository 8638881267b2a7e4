"""The contract of a scaling law: a new law is one class that derives from `Law`, and nothing else changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Protocol

import numpy as np

Data = Mapping[str, np.ndarray]
"""Columns by name, (rows,), or (..., rows) where every parameter vector has rows of its own. Losses in nats."""

LARGEST_RECURRENCE = 1024.0
"""The largest mean recurrence, in loops, that a search for the best one considers."""
GRID_POINTS = 600
GOLDEN_STEPS = 40
"""An optimum is searched on a grid in logs, then by golden section between the neighbours of its best point."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named, bounded parameter of a law; `starts` are its values on the start grid if the law isn't linear in it.

    A search takes its steps in the logarithm of a `logarithmic` one. That suits an amplitude which trades off with a
    decay, where no choice of units can separate the two.
    """

    name: str
    meaning: str
    unit: str
    lower: float = 0.0
    upper: float = np.inf
    starts: tuple[float, ...] = ()
    logarithmic: bool = False


class Cost(Protocol):
    """The models that a budget buys along one axis (mean recurrence, or parameters)."""

    @property
    def axis(self) -> str:
        """Column that varies along an isoFLOP curve."""

    def columns(self, budget: float, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return columns, of the shape of `values` on the axis, of models that spend exactly `budget` FLOPs."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best split of a budget; arrays of the parameters' leading shape.

    `at` is the best value on the cost's axis. `at_bound` is True where it is an end of the search range, so that a
    better one may lie outside.
    """

    axis: str
    at: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    at_bound: np.ndarray

    @property
    def mean_recurrence(self) -> np.ndarray:
        """Best mean recurrence in loops; only where that is the axis."""
        assert self.axis == "mean_recurrence", self.axis
        return self.at


class Law(ABC):
    """The contract of a scaling law: loss in nats per token, from columns of positive data.

    A law is linear in its first `linear_count` parameters, which are not negative: loss = offset + basis(nonlinear) @
    linear. A law states `basis`, its derivative by the other parameters in `nonlinear_gradient`, `rescaled` and
    `effective`. Every method broadcasts over leading axes of its parameters, so that many candidate fits are
    evaluated at once.

    `scaled` are the columns whose unit the fit may change, in groups that share one (it divides them by their geometric
    mean); `rescaled` says how the parameters change with them. `vary` are the columns that must not be constant (by
    default all), `may_be_zero` those that need not be positive.
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
        """Return the factors of the linear parameters: nonlinear (..., q) to (..., rows, linear_count)."""

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """Return the derivative of the loss by each nonlinear parameter: parameters (..., p) to (..., rows, q).

        `basis` is that of these parameters and data. A law may have a `loss_and_gradient` of its own instead.
        """
        raise NotImplementedError(f"the {self.name} law has neither nonlinear_gradient nor loss_and_gradient")

    @abstractmethod
    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """Return parameters for columns as they are, from parameters (..., p) for columns divided by `units` (by name).

        A column that isn't named keeps its unit.
        """

    @abstractmethod
    def effective(self, parameters: np.ndarray) -> str:
        """Say in one sentence, for the report, what the fitted parameters (p,) mean in effect."""

    def offset(self, data: Data) -> np.ndarray | float:
        """Return the part of the loss that no parameter changes: (rows,), nats per token."""
        return 0.0

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Return the loss in nats per token: parameters (..., p) to (..., rows)."""
        return self._weighted_sum(parameters, self.basis(parameters[..., self.linear_count :], data), data)

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """Return the loss (..., rows) and its derivative by each parameter (..., rows, p), for parameters (..., p)."""
        basis = self.basis(parameters[..., self.linear_count :], data)
        slopes = np.concatenate([basis, self.nonlinear_gradient(parameters, data, basis)], axis=-1)
        return self._weighted_sum(parameters, basis, data), slopes

    def _weighted_sum(self, parameters: np.ndarray, basis: np.ndarray, data: Data) -> np.ndarray:
        loss = self.offset(data)
        # Term by term rather than by `@`: the same rounding for one parameter vector as for many.
        for i in range(self.linear_count):
            loss = loss + parameters[..., i, None] * basis[..., i]
        return np.asarray(loss)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """Return parameters (p,) at which this law equals a simpler one, as `fit` fits that to `data`.

        They are further starts, so that a law never fits worse than one that it contains. `data` are scaled columns,
        with the losses.
        """
        return []

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters in the order of the vector."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def varying(self) -> tuple[str, ...]:
        """Columns that must not be constant for a fit to make sense."""
        return self.vary or self.columns

    def start_grid(self) -> np.ndarray:
        """Return a grid (points, q) of nonlinear parameters to start from, for columns of geometric mean 1."""
        return np.array(list(product(*(parameter.starts for parameter in self.parameters[self.linear_count :]))))

    def optimum(
        self, parameters: np.ndarray, cost: Cost, budget: float, bounds: tuple[float, float] = (1.0, LARGEST_RECURRENCE)
    ) -> Optimum:
        """Return the model of least loss on the axis of `cost` that spends exactly `budget` FLOPs.

        Parameters (..., p) give arrays (...). The search is over every real value within `bounds`. Raises ValueError
        unless 0 < lower < upper and the budget is positive, and for a law that doesn't depend on tokens.
        """
        low, high = bounds
        if not (0 < low < high and np.isfinite(high)):
            raise ValueError(
                f"bounds of `{cost.axis}` must be finite with 0 < lower < upper, but got {low:g} to {high:g}"
            )
        if not (budget > 0 and np.isfinite(budget)):
            raise ValueError(f"a budget must be positive and finite, but got {budget} FLOPs; correct it")
        if "tokens" not in self.columns:
            raise ValueError(
                f"the {self.name} law does not depend on tokens, so no budget has an optimum; use another law"
            )

        # The cost has kinks where the backprop depth steps, so a fine grid comes first and a local search after it.
        def loss_at(log_values: np.ndarray) -> np.ndarray:
            return self.loss(parameters, cost.columns(budget, np.exp(log_values)))

        grid = np.linspace(np.log(low), np.log(high), GRID_POINTS)
        best = np.argmin(loss_at(grid), axis=-1)
        at_bound = (best == 0) | (best == len(grid) - 1)
        left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]

        # Golden section, all parameter vectors at once.
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
