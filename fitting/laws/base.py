"""The contract of a scaling law, and terms that several laws share.

A new law is one class that derives from `Law`; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from isoloop.fitting.cost import Cost

Data = Mapping[str, np.ndarray]
"""Columns by name, (rows,), or (..., rows) where every parameter vector has rows of its own. Losses in nats."""

LARGEST_RECURRENCE = 1024.0
"""The largest mean recurrence, in loops, that a search for the best one considers."""
_PARAMS_FACTOR = 1000.0
"""The best parameter count is searched for up to this factor below and above the measured ones."""
_GRID_POINTS = 600
_SEARCH_POINTS, _SEARCH_STEPS = 8, 13
_EXPONENT_STARTS = (0.05, 0.12, 0.2, 0.3, 0.4, 0.55, 0.8, 1.2, 2.0)


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


IRREDUCIBLE = Parameter(name="E", meaning="irreducible loss", unit="nats per token")
LOOP_GAIN = Parameter(name="Z", meaning="what loops can gain, from T = 0 on", unit="nats per token")


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

    `extends` is the law that this one equals at one value of one more parameter. `alternatives` are the names of
    further laws of the same losses, which are weighed beside this one. `scaled` are the columns whose unit the fit may
    change, in groups that share one (it divides them by their geometric mean); `rescaled` says how the parameters
    change with them. `vary` are the columns that must not be constant (by default all), `may_be_zero` those
    that need not be positive. `saturates` says that the loss can only fall with the loops T run at test time.
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
    extends: ClassVar[Law | None] = None
    alternatives: ClassVar[tuple[str, ...]] = ()
    saturates: ClassVar[bool] = False

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

    def why_unfit(self, data: Data) -> str | None:
        """Return the reason why these rows can't determine the law, with what to do; None if they may."""
        return None

    def undetermined(self, parameters: np.ndarray, data: Data) -> list[str]:
        """Return reasons why the range of `data` hardly determines some of the fitted parameters (p,)."""
        return []

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
    def reads_unique_tokens(self) -> bool:
        """True for a law of text that may run out."""
        return "unique_tokens" in self.columns

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
        if "tokens" not in self.columns:
            raise ValueError(
                f"the {self.name} law does not depend on tokens, so no budget has an optimum; use another law"
            )
        return best_split(lambda data: self.loss(parameters, data), cost, budget, bounds)


def best_split(loss: Callable[[Data], np.ndarray], cost: Cost, budget: float, bounds: tuple[float, float]) -> Optimum:
    """Return the best split of `budget` FLOPs by `loss`, which takes rows (..., n) and returns their losses (..., n).

    Raises ValueError unless 0 < lower < upper and the budget is positive.
    """
    low, high = bounds
    if not (0 < low < high and np.isfinite(high)):
        raise ValueError(f"bounds of `{cost.axis}` must be finite with 0 < lower < upper, but got {low:g} to {high:g}")
    if not (budget > 0 and np.isfinite(budget)):
        raise ValueError(f"a budget must be positive and finite, but got {budget} FLOPs; correct it")

    # The cost has kinks where the backprop depth steps, so a fine grid comes first and a local search after it.
    def loss_at(log_values: np.ndarray) -> np.ndarray:
        return loss(cost.columns(budget, np.exp(log_values)))

    grid = np.linspace(np.log(low), np.log(high), _GRID_POINTS)
    best, log_best = minimise_on_grid(loss_at, grid)
    at_bound = (best == 0) | (best == len(grid) - 1)
    log_best = np.where(at_bound, grid[best], log_best)
    data = cost.columns(budget, np.exp(log_best)[..., None])
    return Optimum(
        axis=cost.axis,
        at=np.exp(log_best),
        tokens=data["tokens"][..., 0],
        loss=loss(data)[..., 0],
        at_bound=np.asarray(at_bound),
    )


def search_bounds(axis: str, low: float, high: float) -> tuple[float, float]:
    """Return the values on an axis between which the best one is searched for, where `low` to `high` was measured."""
    if axis == "params":
        return low / _PARAMS_FACTOR, high * _PARAMS_FACTOR
    return min(1.0, low), max(LARGEST_RECURRENCE, high)


def minimise_on_grid(function: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the best point of `grid` (points,) for each function, (...), and its minimum near it, (...).

    `function` evaluates all functions at once: at points (points,), or (..., points) with points for each, it returns
    (..., points). The minimum is searched between the neighbours of the best point, then between those of the best of
    a few points there, and so on: few calls, which cost more than points do.
    """
    best = np.argmin(function(grid), axis=-1)
    left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    inside = np.arange(1, _SEARCH_POINTS + 1) / (_SEARCH_POINTS + 1)
    for _ in range(_SEARCH_STEPS):
        points = left[..., None] + (right - left)[..., None] * inside
        lowest = np.argmin(function(points), axis=-1)
        width = (right - left) / (_SEARCH_POINTS + 1)
        left = left + lowest * width
        right = left + 2 * width
    return best, (left + right) / 2


def exponent(name: str, meaning: str) -> Parameter:
    """Return a positive exponent of a power law, bounded to .01 to 3."""
    return Parameter(name=name, meaning=meaning, unit="1", lower=0.01, upper=3.0, starts=_EXPONENT_STARTS)


def amplitude(name: str, of: str) -> Parameter:
    """Return the factor of a power of `of`: the value of that term of the loss where `of` is 1."""
    return Parameter(name=name, meaning=f"the term at {of} = 1", unit="nats per token")


def loop_decay(starts: tuple[float, ...]) -> Parameter:
    """Return the decay rate of the loss in T / mu."""
    return Parameter(name="z", meaning="decay", unit="per T / mu", lower=0.01, upper=50.0, starts=starts)


def power(values: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Return values^-exponent."""
    return np.exp(-exponent * np.log(values))


def halving_factor(exponent: float) -> str:
    """Return the factor by which a quantity must grow for its term of the loss to halve, such as '8.3x'."""
    return f"{2 ** (1 / exponent):.3g}x"


def rescaled_powers(parameters: np.ndarray, units: Mapping[str, float], size: str, exponents: int = 3) -> np.ndarray:
    """Return `Law.rescaled` for X N^-x + Y D^-y: X (place 1) and Y (place 2) grow as the units to their exponents.

    N is in the column `size`; x and y stand at the places `exponents` and the one behind it.
    """
    changed = np.array(parameters)
    changed[..., 1] *= units.get(size, 1.0) ** changed[..., exponents]
    changed[..., 2] *= units.get("tokens", 1.0) ** changed[..., exponents + 1]
    return changed


class TwoPowerLaw(Law):
    """The form L = E + X N^-x + Y D^-y, with N in the first column and D, the tokens, in the second."""

    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y."""
        size = power(data[self.columns[0]], nonlinear[..., 0, None])
        return np.stack([np.ones_like(size), size, power(data["tokens"], nonlinear[..., 1, None])], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        by_x = -parameters[..., 1, None] * basis[..., 1] * np.log(data[self.columns[0]])
        by_y = -parameters[..., 2, None] * basis[..., 2] * np.log(data["tokens"])
        return np.stack([by_x, by_y], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_powers(parameters, units, self.columns[0])


class PowerOfSumLaw(Law):
    """The form L = E + (X N^-x + Y D^-y)^gamma, with N in the first column and D in the column of tokens.

    At gamma = 1, the last parameter, it is the law that it `extends`. A law whose N follows from several columns has a
    `log_size` of its own, with further parameters in front of gamma.
    """

    linear_count = 1  # so `loss` and `loss_and_gradient` can't follow from `basis` alone

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the column 1, since the loss is linear in its floor alone."""
        return np.ones((*nonlinear.shape[:-1], np.shape(data["tokens"])[-1], 1))

    def log_size(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return log N (..., rows), and its slopes by the parameters between y and gamma."""
        return np.log(data[self.columns[0]]), ()

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        E, X, Y, x, y = (parameters[..., i, None] for i in range(5))
        inner = X * np.exp(-x * self.log_size(parameters, data)[0]) + Y * power(data["tokens"], y)
        return np.asarray(E + inner ** parameters[..., -1, None])

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        E, X, Y, x, y = (parameters[..., i, None] for i in range(5))
        gamma = parameters[..., -1, None]
        (log_size, size_slopes), log_amount = self.log_size(parameters, data), np.log(data["tokens"])
        size, amount = np.exp(-x * log_size), np.exp(-y * log_amount)
        inner = np.maximum(X * size + Y * amount, np.finfo(float).tiny)
        reducible = inner**gamma
        by_inner = gamma * reducible / inner
        slopes = np.empty((*size.shape, len(self.parameters)))
        slopes[..., 0], slopes[..., 1], slopes[..., 2] = 1.0, by_inner * size, by_inner * amount
        slopes[..., 3], slopes[..., 4] = -by_inner * X * size * log_size, -by_inner * Y * amount * log_amount
        for place, slope in enumerate(size_slopes, start=5):
            slopes[..., place] = -by_inner * X * size * x * slope
        slopes[..., -1] = reducible * np.log(inner)
        return E + reducible, slopes

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_powers(parameters, units, self.columns[0])

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the law that this one extends, at gamma = 1."""
        assert self.extends is not None
        return [np.append(fit(self.extends, data), 1.0)]

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`: over the reducible loss at the middle of the data, N's share of it, the exponents."""
        exponents = (0.1, 0.25, 0.5, 0.9)
        grid = []
        for reducible, share, x, y, gamma in product(
            (0.2, 0.5, 1.0, 2.0), (0.15, 0.5, 0.85), exponents, exponents, (0.3, 0.7, 1.0, 1.8)
        ):
            inner = reducible ** (1 / gamma)
            # x and y of the sum's own slopes, so that gamma bends the law without tilting it
            grid.append((share * inner, (1 - share) * inner, x / gamma, y / gamma, gamma))
        of_form = (*self.parameters[1:5], self.parameters[-1])
        lower, upper = (np.array([getattr(p, end) for p in of_form]) for end in ("lower", "upper"))
        return np.clip(np.array(grid), lower, upper)


def bracket_amplitude(name: str, of: str) -> Parameter:
    """Return the factor of a power of `of` in the bracket of a `PowerOfSumLaw`."""
    return Parameter(name=name, meaning=f"the term in brackets at {of} = 1", unit="nats per token^(1/gamma)")


def sum_exponent() -> Parameter:
    """Return the exponent of the bracket of a `PowerOfSumLaw`."""
    return Parameter(name="gamma", meaning="exponent of the sum", unit="1", lower=0.05, upper=5.0)
