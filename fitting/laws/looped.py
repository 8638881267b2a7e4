"""The scaling laws of looped models: one final class each."""

from __future__ import annotations

from collections.abc import Mapping
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
