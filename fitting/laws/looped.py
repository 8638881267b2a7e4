"""The scaling laws of looped models: one final class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    Data,
    Law,
    Parameter,
    PowerOfSumLaw,
    TwoPowerLaw,
    amplitude,
    bracket_amplitude,
    exponent,
    halving_factor,
    power,
    rescaled_powers,
    sum_exponent,
)


@final
class TrainingLaw(TwoPowerLaw):
    """Loss after training, at T = mean recurrence, from effective parameters and tokens."""

    name = "training"
    formula = "L(mu, D) = E + X N(mu)^-x + Y D^-y"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946), after Hoffmann et al. 2022"
    columns = ("effective_params", "tokens")
    scaled = (("effective_params",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        amplitude("X", "N"),
        amplitude("Y", "D"),
        exponent("x", "exponent of N(mu)"),
        exponent("y", "exponent of D"),
    )

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, x, y = parameters
        return (
            f"the term of N(mu) halves with {halving_factor(x)} the effective parameters, "
            f"that of D with {halving_factor(y)}"
        )


@final
class LoopedSixParameterLaw(PowerOfSumLaw):
    """The training law with one more exponent: the sum of the terms of N(mu) and D is raised to gamma."""

    name = "looped-six-parameter"
    formula = "L(mu, D) = E + (X N(mu)^-x + Y D^-y)^gamma"
    source = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5, with free exponents, a floor, and N(mu) of Parcae"
    columns = ("effective_params", "tokens")
    scaled = (("effective_params",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        bracket_amplitude("X", "N"),
        bracket_amplitude("Y", "D"),
        exponent("x", "exponent of N(mu)"),
        exponent("y", "exponent of D"),
        sum_exponent(),
    )
    extends = TrainingLaw()

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, x, y, gamma = parameters
        return (
            f"the term of N(mu) in brackets halves with {halving_factor(x)} the effective parameters, that of D with "
            f"{halving_factor(y)}; gamma = {gamma:.3g} (training law: 1) moves no optimum of its own"
        )


@final
class LoopsLaw(Law):
    """Loss after training, at T = mean recurrence, where effective parameters are not known.

    It is the training law with N(mu) = N_rec (q + mu), so that X here is X N_rec^-x there: q, the parameters that run
    once as a multiple of those of the recurrent block, is fitted.
    """

    name = "loops"
    formula = "L(mu, D) = E + X (q + mu)^-x + Y D^-y"
    source = "the training law of Parcae (Prairie et al. 2026, arXiv:2604.12946), with N(mu) in units of one loop"
    columns = ("mean_recurrence", "tokens")
    scaled = (("mean_recurrence",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        amplitude("X", "q + mu"),
        amplitude("Y", "D"),
        exponent("x", "exponent of q + mu"),
        exponent("y", "exponent of D"),
        Parameter(
            name="q",
            meaning="parameters outside the loop",
            unit="loops",
            upper=1000.0,
            starts=(0.0, 0.2, 0.7, 2.0, 8.0),
        ),
    )
    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, (q + mu)^-x, D^-y."""
        x, y, q = (nonlinear[..., i, None] for i in range(3))
        size = power(q + data["mean_recurrence"], x)
        return np.stack([np.ones_like(size), size, power(data["tokens"], y)], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        _, X, Y, x, _, q = (parameters[..., i, None] for i in range(6))
        whole = q + data["mean_recurrence"]
        from_size = X * basis[..., 1]
        by_y = -Y * basis[..., 2] * np.log(data["tokens"])
        return np.stack([-from_size * np.log(whole), by_y, -x * from_size / whole], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: q is in loops, X grows as their unit to the x, Y as that of D to the y."""
        changed = rescaled_powers(parameters, units, "mean_recurrence")
        changed[..., 5] *= units.get("mean_recurrence", 1.0)
        return changed

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, x, y, q = parameters
        return (
            f"the term of the loops halves where q + mu is {halving_factor(x)} as large, that of D with "
            f"{halving_factor(y)} the tokens; what runs once counts as {q:.3g} loops"
        )


@final
class IsoDepthLaw(Law):
    """Loss of looped models, where r loops of a block count as r^phi blocks of parameters of their own.

    phi = 1 would make a loop worth as much as new layers, 0 worth nothing. r is the mean recurrence, N_once the
    parameters that run once and N_rec those of the recurrent block (embeddings apart).
    """

    name = "iso-depth"
    formula = "L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta"
    source = "Schwethelm et al. 2026, arXiv:2604.21106 (phi = 0.46)"
    columns = ("params_once", "params_recurrent", "mean_recurrence", "tokens")
    scaled = (("params_once", "params_recurrent"), ("tokens",))
    vary = ("mean_recurrence", "tokens")
    may_be_zero = ("params_recurrent",)
    parameters = (
        IRREDUCIBLE,
        amplitude("A", "N"),
        amplitude("B", "D"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D"),
        Parameter(
            name="phi",
            meaning="worth of a loop",
            unit="1",
            lower=-1.0,
            upper=3.0,
            starts=(0.0, 0.3, 0.6, 1.0),
        ),
    )
    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-alpha, D^-beta."""
        alpha, beta, phi = (nonlinear[..., i, None] for i in range(3))
        size = power(data["params_once"] + _looped_params(phi, data), alpha)
        return np.stack([np.ones_like(size), size, power(data["tokens"], beta)], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        _, A, B, alpha, _, phi = (parameters[..., i, None] for i in range(6))
        recurrent = _looped_params(phi, data)
        whole = data["params_once"] + recurrent
        from_size = A * basis[..., 1]
        by_alpha = -from_size * np.log(whole)
        by_beta = -B * basis[..., 2] * np.log(data["tokens"])
        by_phi = -from_size * alpha * np.log(data["mean_recurrence"]) * recurrent / whole
        return np.stack([by_alpha, by_beta, by_phi], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A grows as the unit of both N to the alpha, B as that of D to the beta."""
        return rescaled_powers(parameters, units, "params_once")

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the training law, at phi = 1."""
        unrolled = data["params_once"] + _looped_params(np.array(1.0), data)
        if np.ptp(unrolled) <= 1e-9 * unrolled.max():
            return []
        return [np.append(fit(TrainingLaw(), {**data, "effective_params": unrolled}), 1.0)]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"8 loops of a block are worth {8 ** parameters[5]:.3g} blocks with parameters of their own"


def _looped_params(phi: np.ndarray, data: Data) -> np.ndarray:
    """Return r^phi N_rec."""
    return np.asarray(np.exp(phi * np.log(data["mean_recurrence"])) * data["params_recurrent"])
