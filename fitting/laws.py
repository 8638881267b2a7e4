"""The scaling laws: one final class each, behind one contract.

Every method broadcasts over leading axes of its parameters, so that many candidate fits are evaluated at
once. A new law is one more `Law` class; estimation, bootstrap and reports need nothing else of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fitting.cost import CostModel

Data = Mapping[str, np.ndarray]
"""Columns by name, of shape (rows,): effective_params, tokens, mean_recurrence, recurrence, loss (nats)."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named, bounded parameter of a law; `starts` are what a search tries if the law isn't linear in it."""

    name: str
    meaning: str
    lower: float = 0.0
    upper: float = np.inf
    starts: tuple[float, ...] = ()


class Law(ABC):
    """The contract of a scaling law: loss = basis(nonlinear) @ linear, in nats per token.

    `parameters` lists the linear parameters first and then the nonlinear ones; `columns` are the data that it
    reads.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    parameters: ClassVar[tuple[Parameter, ...]]
    linear_count: ClassVar[int]

    @abstractmethod
    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """Columns that the linear parameters multiply: nonlinear (..., q) to (..., rows, linear_count)."""

    @abstractmethod
    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Loss in nats per token: parameters (..., p) to (..., rows)."""

    @abstractmethod
    def gradient(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """Derivative of `loss` by each parameter: parameters (..., p) to (..., rows, p)."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names in the order of the parameter vector."""
        return tuple(parameter.name for parameter in self.parameters)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best split of a budget; arrays of the parameters' leading shape.

    `at_bound` is True where an end of the search was best, so that a better one may lie outside.
    """

    mean_recurrence: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    at_bound: np.ndarray


@final
class TrainingLaw(Law):
    """Loss after training, at T = mean recurrence, from effective parameters and tokens."""

    name = "training"
    formula = "L(mu, D) = E + X N(mu)^-x + Y D^-y"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946), after Hoffmann et al. 2022"
    columns = ("effective_params", "tokens")
    parameters = (
        Parameter(name="E", meaning="irreducible loss, nats per token"),
        Parameter(name="X", meaning="nats per token at N = 1"),
        Parameter(name="Y", meaning="nats per token at D = 1"),
        Parameter(
            name="x",
            meaning="exponent of N(mu)",
            lower=0.01,
            upper=3.0,
            starts=(0.05, 0.12, 0.2, 0.3, 0.4, 0.55, 0.8, 1.2, 2.0),
        ),
        Parameter(
            name="y",
            meaning="exponent of D",
            lower=0.01,
            upper=3.0,
            starts=(0.05, 0.12, 0.2, 0.3, 0.4, 0.55, 0.8, 1.2, 2.0),
        ),
    )
    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y."""
        x, y = nonlinear[..., 0, None], nonlinear[..., 1, None]
        size = np.exp(-x * np.log(data["effective_params"]))
        amount = np.exp(-y * np.log(data["tokens"]))
        return np.stack([np.ones_like(size), size, amount], axis=-1)

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        return (self.basis(parameters[..., 3:], data) @ parameters[..., :3, None])[..., 0]

    def gradient(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.gradient`."""
        basis = self.basis(parameters[..., 3:], data)
        by_x = -parameters[..., 1, None] * basis[..., 1] * np.log(data["effective_params"])
        by_y = -parameters[..., 2, None] * basis[..., 2] * np.log(data["tokens"])
        return np.concatenate([basis, by_x[..., None], by_y[..., None]], axis=-1)

    def optimum(
        self,
        parameters: np.ndarray,
        cost_model: CostModel,
        budget: float,
        bounds: tuple[float, float] = (1.0, 1024.0),
    ) -> Optimum:
        """The mean recurrence and tokens of least loss that spend exactly `budget` FLOPs.

        `parameters` has shape (..., 5). The search is over every real mean recurrence within `bounds`; where
        the best is a bound, `at_bound` is True and a better one may lie outside. Raises ValueError unless 0 <
        lower < upper and the budget is positive.
        """
        low, high = bounds
        if not (0 < low < high and np.isfinite(high)):
            raise ValueError(f"bounds of the mean recurrence must be finite with 0 < lower < upper, but got {bounds}")
        if not (budget > 0 and np.isfinite(budget)):
            raise ValueError(f"a budget must be positive and finite, but got {budget} FLOPs")

        def loss_at(log_mu: np.ndarray) -> np.ndarray:
            mu = np.exp(log_mu)
            data = {
                "effective_params": cost_model.effective_params(mu),
                "tokens": cost_model.tokens_for(budget, mu),
            }
            return self.loss(parameters, data)

        # The cost has kinks where the backprop depth steps, so a fine grid comes first and a local search
        # after it.
        grid = np.linspace(np.log(low), np.log(high), 600)
        best = np.argmin(loss_at(grid), axis=-1)
        at_bound = (best == 0) | (best == len(grid) - 1)
        left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
        inverse_golden = (np.sqrt(5) - 1) / 2
        for _ in range(40):
            a, b = right - inverse_golden * (right - left), left + inverse_golden * (right - left)
            losses = self._loss_each(parameters, cost_model, budget, np.exp(np.stack([a, b], axis=-1)))
            lower = losses[..., 0] < losses[..., 1]
            left, right = np.where(lower, left, a), np.where(lower, b, right)
        inside = np.where(best == 0, grid[0], np.where(best == len(grid) - 1, grid[-1], (left + right) / 2))
        mu = np.exp(inside)
        loss = self._loss_each(parameters, cost_model, budget, mu[..., None])[..., 0]
        return Optimum(
            mean_recurrence=mu,
            tokens=cost_model.tokens_for(budget, mu),
            loss=loss,
            at_bound=np.asarray(at_bound),
        )

    @staticmethod
    def _loss_each(parameters: np.ndarray, cost_model: CostModel, budget: float, mu: np.ndarray) -> np.ndarray:
        """Loss where every parameter vector has recurrences of its own: (..., 5) and (..., k) to (..., k)."""
        E, X, Y, x, y = (parameters[..., i, None] for i in range(5))
        size, amount = cost_model.effective_params(mu), cost_model.tokens_for(budget, mu)
        return np.asarray(E + X * size**-x + Y * amount**-y)


@final
class TestTimeLaw(Law):
    """Loss of one trained model against the loops that it runs at test time."""

    __test__ = False  # a name that pytest would collect

    name = "test-time"
    formula = "L(T) = L_inf + Z exp(-z T)"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946)"
    columns = ("recurrence",)
    parameters = (
        Parameter(name="L_inf", meaning="loss after many loops, nats per token"),
        Parameter(name="Z", meaning="nats per token at T = 0"),
        Parameter(
            name="z",
            meaning="decay per loop",
            lower=1e-3,
            upper=20.0,
            starts=(0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0),
        ),
    )
    linear_count = 2

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, exp(-z T)."""
        decay = np.exp(-nonlinear[..., 0, None] * data["recurrence"])
        return np.stack([np.ones_like(decay), decay], axis=-1)

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        return (self.basis(parameters[..., 2:], data) @ parameters[..., :2, None])[..., 0]

    def gradient(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.gradient`."""
        basis = self.basis(parameters[..., 2:], data)
        by_z = -parameters[..., 1, None] * basis[..., 1] * data["recurrence"]
        return np.concatenate([basis, by_z[..., None]], axis=-1)


@final
class UnifiedLaw(Law):
    """Loss of any model at any number of loops: the training law and one decay in T / mu."""

    name = "unified"
    formula = "L(T | mu, D) = E + X N(mu)^-x + Y D^-y + Z exp(-z T / mu)"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946)"
    columns = ("effective_params", "tokens", "mean_recurrence", "recurrence")
    parameters = (
        *TrainingLaw.parameters[:3],
        Parameter(name="Z", meaning="nats per token at T = 0"),
        *TrainingLaw.parameters[3:],
        Parameter(
            name="z",
            meaning="decay per T / mu",
            lower=0.01,
            upper=50.0,
            starts=(0.3, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0),
        ),
    )
    linear_count = 4

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y, exp(-z T / mu)."""
        x, y, z = (nonlinear[..., i, None] for i in range(3))
        size = np.exp(-x * np.log(data["effective_params"]))
        amount = np.exp(-y * np.log(data["tokens"]))
        decay = np.exp(-z * data["recurrence"] / data["mean_recurrence"])
        return np.stack([np.ones_like(size), size, amount, decay], axis=-1)

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        return (self.basis(parameters[..., 4:], data) @ parameters[..., :4, None])[..., 0]

    def gradient(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.gradient`."""
        basis = self.basis(parameters[..., 4:], data)
        by_x = -parameters[..., 1, None] * basis[..., 1] * np.log(data["effective_params"])
        by_y = -parameters[..., 2, None] * basis[..., 2] * np.log(data["tokens"])
        by_z = -parameters[..., 3, None] * basis[..., 3] * data["recurrence"] / data["mean_recurrence"]
        return np.concatenate([basis, by_x[..., None], by_y[..., None], by_z[..., None]], axis=-1)


LAWS: tuple[Law, ...] = (TrainingLaw(), TestTimeLaw(), UnifiedLaw())
"""Every law, for reports and for the contract test."""


def law_named(name: str) -> Law:
    """The law of that name; raises ValueError with the known names."""
    for law in LAWS:
        if law.name == name:
            return law
    raise ValueError(
        f"a law must be one of {', '.join(law.name for law in LAWS)}, but got {name!r}; choose one of them"
    )
