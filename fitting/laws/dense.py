"""The scaling laws of models whose blocks run once: loss from parameters and tokens."""

from __future__ import annotations

from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    PowerOfSumLaw,
    TwoPowerLaw,
    amplitude,
    bracket_amplitude,
    exponent,
    halving_factor,
    sum_exponent,
)


@final
class ChinchillaLaw(TwoPowerLaw):
    """Loss of a dense model from its parameters N and tokens D. On looped runs, N counts every parameter once."""

    name = "chinchilla"
    formula = "L(N, D) = E + A N^-alpha + B D^-beta"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, approach 3"
    columns = ("params", "tokens")
    scaled = (("params",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        amplitude("A", "N"),
        amplitude("B", "D"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D"),
    )

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`; the exponents are eq. 4 of Hoffmann et al. 2022, for C proportional to N D."""
        alpha, beta = parameters[3], parameters[4]
        return (
            f"N* ~ C^{beta / (alpha + beta):.3f} and D* ~ C^{alpha / (alpha + beta):.3f} where C = 6 N D; the term "
            f"of N halves with {halving_factor(alpha)} the parameters, that of D with {halving_factor(beta)} the tokens"
        )


@final
class SixParameterLaw(PowerOfSumLaw):
    """Chinchilla's law with one more exponent: the sum of the terms of N and D is raised to gamma."""

    name = "six-parameter"
    formula = "L(N, D) = E + (A N^-alpha + B D^-beta)^gamma"
    source = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5, with free exponents and a floor"
    columns = ("params", "tokens")
    scaled = (("params",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        bracket_amplitude("A", "N"),
        bracket_amplitude("B", "D"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D"),
        sum_exponent(),
    )
    extends = ChinchillaLaw()

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`; the exponents follow as in Hoffmann et al. 2022, eq. 4, since gamma moves no optimum."""
        alpha, beta, gamma = parameters[3:]
        return (
            f"N* ~ C^{beta / (alpha + beta):.3f} and D* ~ C^{alpha / (alpha + beta):.3f} where C = 6 N D; "
            f"with gamma = {gamma:.3g} (Chinchilla's law: 1)"
        )
