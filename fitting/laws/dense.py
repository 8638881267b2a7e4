"""The scaling laws of models whose blocks run once: loss from parameters and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    Data,
    Law,
    Parameter,
    TwoPowerLaw,
    amplitude,
    exponent,
    halving_factor,
    power,
    rescaled_powers,
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
class SixParameterLaw(Law):
    """Chinchilla's law with one more exponent: the sum of the terms of N and D is raised to gamma.

    At gamma = 1 it is Chinchilla's law.
    """

    name = "six-parameter"
    formula = "L(N, D) = E + (A N^-alpha + B D^-beta)^gamma"
    source = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5, with free exponents and a floor"
    columns = ("params", "tokens")
    scaled = (("params",), ("tokens",))
    parameters = (
        IRREDUCIBLE,
        Parameter(name="A", meaning="the term in brackets at N = 1", unit="nats per token^(1/gamma)"),
        Parameter(name="B", meaning="the term in brackets at D = 1", unit="nats per token^(1/gamma)"),
        exponent("alpha", "exponent of N"),
        exponent("beta", "exponent of D"),
        Parameter(name="gamma", meaning="exponent of the sum", unit="1", lower=0.05, upper=5.0),
    )
    linear_count = 1  # so `loss` and `loss_and_gradient` can't follow from `basis` alone

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the column 1, since the loss is linear in its floor alone."""
        return np.ones((*nonlinear.shape[:-1], np.shape(data["tokens"])[-1], 1))

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        E, A, B, alpha, beta, gamma = (parameters[..., i, None] for i in range(6))
        inner = A * power(data["params"], alpha) + B * power(data["tokens"], beta)
        return np.asarray(E + inner**gamma)

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        E, A, B, alpha, beta, gamma = (parameters[..., i, None] for i in range(6))
        log_size, log_amount = np.log(data["params"]), np.log(data["tokens"])
        size, amount = np.exp(-alpha * log_size), np.exp(-beta * log_amount)
        inner = np.maximum(A * size + B * amount, np.finfo(float).tiny)
        reducible = inner**gamma
        by_inner = gamma * reducible / inner
        slopes = np.empty((*size.shape, 6))
        slopes[..., 0], slopes[..., 1], slopes[..., 2] = 1.0, by_inner * size, by_inner * amount
        slopes[..., 3], slopes[..., 4] = -by_inner * A * size * log_size, -by_inner * B * amount * log_amount
        slopes[..., 5] = reducible * np.log(inner)
        return E + reducible, slopes

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A grows as the unit of N to the alpha, B as that of D to the beta."""
        return rescaled_powers(parameters, units, "params")

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`; the exponents follow as in Hoffmann et al. 2022, eq. 4, since gamma moves no optimum."""
        alpha, beta, gamma = parameters[3:]
        return (
            f"N* ~ C^{beta / (alpha + beta):.3f} and D* ~ C^{alpha / (alpha + beta):.3f} where C = 6 N D; "
            f"with gamma = {gamma:.3g} (Chinchilla's law: 1)"
        )

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: Chinchilla's law, at gamma = 1."""
        return [np.append(fit(ChinchillaLaw(), data), 1.0)]

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`: over the reducible loss at the middle of the data, N's share of it, the exponents."""
        exponents = (0.1, 0.25, 0.5, 0.9)
        grid = []
        for reducible, share, alpha, beta, gamma in product(
            (0.2, 0.5, 1.0, 2.0), (0.15, 0.5, 0.85), exponents, exponents, (0.3, 0.7, 1.0, 1.8)
        ):
            inner = reducible ** (1 / gamma)
            # alpha and beta of the sum's own slopes, so that gamma bends the law without tilting it
            grid.append((share * inner, (1 - share) * inner, alpha / gamma, beta / gamma, gamma))
        lower, upper = (np.array([getattr(p, end) for p in self.parameters[1:]]) for end in ("lower", "upper"))
        return np.clip(np.array(grid), lower, upper)
