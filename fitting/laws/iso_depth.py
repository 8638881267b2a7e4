"""Scaling laws of looped models of several sizes: each says what a loop is worth beside parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from itertools import product
from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    Data,
    Law,
    Parameter,
    PowerOfSumLaw,
    amplitude,
    bracket_amplitude,
    exponent,
    halving_factor,
    power,
    rescaled_powers,
    sum_exponent,
)
from isoloop.fitting.laws.looped import TrainingLaw

_MANY_LOOPS = 8
_FEWEST_SIZES = 3
"""Sizes from which E, A and alpha follow from the losses."""


def _worth(name: str, meaning: str) -> Parameter:
    """Return the exponent of loops in the parameters that they are worth."""
    return Parameter(name=name, meaning=meaning, unit="1", lower=-1.0, upper=3.0, starts=(0.0, 0.3, 0.6, 1.0))


class _LoopWorthLaw(Law):
    """The form L = E + A (N_once + w N_rec)^-alpha + B D^-beta, with the worth w of the loops a product of powers.

    N_once are the parameters that run once and N_rec those of the recurrent block (embeddings apart).
    """

    scaled = (("params_once", "params_recurrent"), ("tokens",))
    may_be_zero = ("params_recurrent",)
    linear_count = 3

    @abstractmethod
    def log_loops(self, data: Data) -> tuple[np.ndarray, ...]:
        """Return the logarithms (..., rows) whose sum, each times its exponent, is log w."""

    def _worth(self, exponents: tuple[np.ndarray, ...], data: Data) -> np.ndarray:
        """Return w N_rec, the parameters that the recurrent block is worth."""
        logs = sum(each * log for each, log in zip(exponents, self.log_loops(data), strict=True))
        return np.asarray(np.exp(logs) * data["params_recurrent"])

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-alpha, D^-beta."""
        alpha, beta, *exponents = (nonlinear[..., i, None] for i in range(nonlinear.shape[-1]))
        size = power(data["params_once"] + self._worth(tuple(exponents), data), alpha)
        return np.stack([np.ones_like(size), size, power(data["tokens"], beta)], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        _, A, B, alpha, _, *exponents = (parameters[..., i, None] for i in range(parameters.shape[-1]))
        recurrent = self._worth(tuple(exponents), data)
        whole = data["params_once"] + recurrent
        from_size = A * basis[..., 1]
        by_alpha = -from_size * np.log(whole)
        by_beta = -B * basis[..., 2] * np.log(data["tokens"])
        by_exponents = [-from_size * alpha * log * recurrent / whole for log in self.log_loops(data)]
        return np.stack([by_alpha, by_beta, *by_exponents], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A grows as the unit of both N to the alpha, B as that of D to the beta."""
        return rescaled_powers(parameters, units, "params_once")


@final
class IsoDepthLaw(_LoopWorthLaw):
    """Loss of looped models, where r loops of a block count as r^phi blocks of parameters of their own.

    phi = 1 would make a loop worth as much as new layers, 0 worth nothing. r is the mean recurrence.
    """

    name = "iso-depth"
    formula = "L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta"
    source = "Schwethelm et al. 2026, arXiv:2604.21106 (phi = 0.46)"
    columns = ("params_once", "params_recurrent", "mean_recurrence", "tokens")
    vary = ("mean_recurrence", "tokens")
    parameters = (
        IRREDUCIBLE,
        amplitude("A", "N"),
        amplitude("B", "D"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D"),
        _worth("phi", "worth of a loop"),
    )
    alternatives = ("iso-depth-truncated", "loop-term")

    def log_loops(self, data: Data) -> tuple[np.ndarray, ...]:
        """See `_LoopWorthLaw.log_loops`: log r."""
        return (np.log(data["mean_recurrence"]),)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the training law, at phi = 1."""
        unrolled = data["params_once"] + self._worth((np.array(1.0),), data)
        if np.ptp(unrolled) <= 1e-9 * unrolled.max():
            return []
        return [np.append(fit(TrainingLaw(), {**data, "effective_params": unrolled}), 1.0)]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return _blocks(parameters[5])


@final
class TruncatedIsoDepthLaw(_LoopWorthLaw):
    """The iso-depth law for truncated backpropagation: loops with and without gradient have worths of their own.

    b loops carry gradient (the backprop depth) and count as b^phi blocks; that r loops are run instead of b multiplies
    this by (r / b)^psi. At psi = phi it is the iso-depth law.
    """

    name = "iso-depth-truncated"
    formula = "L = E + A (N_once + b^phi (r/b)^psi N_rec)^-alpha + B D^-beta"
    source = (
        "the iso-depth law (Schwethelm et al. 2026, arXiv:2604.21106), with an exponent of its own without gradient"
    )
    columns = ("params_once", "params_recurrent", "mean_recurrence", "backprop_depth", "tokens")
    vary = ("mean_recurrence", "tokens")
    parameters = (*IsoDepthLaw.parameters[:5], _worth("phi", "worth of a loop with gradient"), _worth("psi", "without"))

    def log_loops(self, data: Data) -> tuple[np.ndarray, ...]:
        """See `_LoopWorthLaw.log_loops`: log b and log r/b."""
        with_gradient = np.log(data["backprop_depth"])
        return with_gradient, np.log(data["mean_recurrence"]) - with_gradient

    def why_unfit(self, data: Data) -> str | None:
        """See `Law.why_unfit`: loops with gradient and their share of all loops must differ from run to run."""
        shares = data["backprop_depth"] / data["mean_recurrence"]
        if np.ptp(data["backprop_depth"]) > 0 and np.ptp(shares) > 1e-9:
            return None
        what = "all loops carry gradient" if (shares >= 1 - 1e-9).all() else "one of the two is the same"
        return (
            f"the {self.name} law needs runs that differ in loops with gradient and in their share of all loops, but "
            f"in all {len(shares)} rows {what}; use the iso-depth law"
        )

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the iso-depth law, at psi = phi."""
        at = fit(IsoDepthLaw(), data)
        return [np.append(at, at[5])]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        phi, psi = parameters[5:]
        half = _MANY_LOOPS / 2
        return (
            f"{_MANY_LOOPS} loops of a block are worth {half**phi * 2**psi:.3g} blocks with parameters of their own if "
            f"{half:g} of them carry gradient, and {_MANY_LOOPS**phi:.3g} if all do"
        )


@final
class IsoDepthSixParameterLaw(PowerOfSumLaw):
    """The iso-depth law with one more exponent: the sum of the terms of N and D is raised to gamma."""

    name = "iso-depth-six-parameter"
    formula = "L = E + (A (N_once + r^phi N_rec)^-alpha + B D^-beta)^gamma"
    source = "the iso-depth law (arXiv:2604.21106), extended as Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5"
    columns = IsoDepthLaw.columns
    scaled = IsoDepthLaw.scaled
    vary = IsoDepthLaw.vary
    may_be_zero = IsoDepthLaw.may_be_zero
    parameters = (
        IRREDUCIBLE,
        bracket_amplitude("A", "N"),
        bracket_amplitude("B", "D"),
        *IsoDepthLaw.parameters[3:],
        sum_exponent(),
    )
    extends = IsoDepthLaw()

    def log_size(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """See `PowerOfSumLaw.log_size`: N_once + r^phi N_rec."""
        log_loops = np.log(data["mean_recurrence"])
        recurrent = np.exp(parameters[..., 5, None] * log_loops) * data["params_recurrent"]
        whole = data["params_once"] + recurrent
        return np.log(whole), (log_loops * recurrent / whole,)

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`: that of the form, at two worths of a loop."""
        grid = super().start_grid()
        return np.concatenate([np.insert(grid, 4, phi, axis=1) for phi in (0.3, 0.8)])

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"{_blocks(parameters[5])}; gamma = {parameters[6]:.3g} (iso-depth law: 1) moves no optimum of its own"


@final
class LoopTermLaw(Law):
    """Loss of looped models of several sizes, where loops have a term of their own and no worth in parameters.

    N counts every parameter once. What loops gain does not depend on the size.
    """

    name = "loop-term"
    formula = "L = E + A N^-alpha + M r^-kappa + B D^-beta"
    source = "Chinchilla's law (Hoffmann et al. 2022, arXiv:2203.15556) with a further power, of the loops"
    columns = ("params", "mean_recurrence", "tokens")
    scaled = (("params",), ("mean_recurrence",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        amplitude("A", "N"),
        amplitude("M", "r"),
        amplitude("B", "D"),
        exponent("alpha", "exponent of N"),
        exponent("kappa", "exponent of r"),
        exponent("beta", "exponent of D"),
    )
    linear_count = 4

    def why_unfit(self, data: Data) -> str | None:
        """See `Law.why_unfit`: E, A and alpha can't follow from two sizes, as loops say nothing about them."""
        sizes = len(np.unique(np.log(data["params"]).round(6)))
        if sizes >= _FEWEST_SIZES:
            return None
        return (
            f"the {self.name} law needs {_FEWEST_SIZES} sizes or more, since E, A and alpha do not follow from fewer, "
            f"but got {sizes}; add a size, or use the iso-depth law"
        )

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-alpha, r^-kappa, D^-beta."""
        powers = [power(data[name], nonlinear[..., i, None]) for i, name in enumerate(self.columns)]
        return np.stack(np.broadcast_arrays(np.ones_like(powers[0]), *powers), axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        slopes = (-parameters[..., i, None] * basis[..., i] * np.log(data[self.columns[i - 1]]) for i in (1, 2, 3))
        return np.stack(list(slopes), axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: each amplitude grows as the unit of its column to the exponent."""
        changed = np.array(parameters)
        for place, name in enumerate(self.columns, start=1):
            changed[..., place] *= units.get(name, 1.0) ** changed[..., place + 3]
        return changed

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`: few exponents, as there are three of them."""
        return np.array(list(product((0.1, 0.25, 0.5, 0.9), (0.1, 0.4, 1.0, 2.0), (0.1, 0.25, 0.5, 0.9))))

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        alpha, kappa, beta = parameters[4:]
        return (
            f"the term of N halves with {halving_factor(alpha)} the parameters, that of the loops with "
            f"{halving_factor(kappa)} the loops, that of D with {halving_factor(beta)} the tokens"
        )


def _blocks(phi: float) -> str:
    return f"{_MANY_LOOPS} loops of a block are worth {_MANY_LOOPS**phi:.3g} blocks with parameters of their own"
