"""The scaling laws of looped models: one final class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    IRREDUCIBLE,
    LOOP_GAIN,
    Data,
    Law,
    Parameter,
    PowerOfSumLaw,
    TwoPowerLaw,
    amplitude,
    bracket_amplitude,
    exponent,
    halving_factor,
    loop_decay,
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
class TestTimeLaw(Law):
    """Loss of one trained model against the loops that it runs at test time."""

    __test__ = False  # a name that pytest would collect

    name = "test-time"
    formula = "L(T) = L_inf + Z exp(-z T)"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946)"
    columns = ("recurrence",)
    parameters = (
        Parameter(name="L_inf", meaning="loss after many loops", unit="nats per token"),
        Parameter(name="Z", meaning=LOOP_GAIN.meaning, unit="nats per token", logarithmic=True),
        Parameter(
            name="z",
            meaning="decay",
            unit="per loop",
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

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        by_z = -parameters[..., 1, None] * basis[..., 1] * data["recurrence"]
        return by_z[..., None]

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: z is per unit of T."""
        changed = np.array(parameters)
        changed[..., 2] /= units.get("recurrence", 1.0)
        return changed

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"95% of what loops gain is there after {np.log(20) / parameters[2]:.3g} loops"


@final
class JointTestTimeLaw(Law):
    """Loss of any model at T loops, given its loss at T = mean recurrence: one decay in T / mu for all models.

    The noise of a run is in the given loss already, so what is left to fit scatters far less than the losses do.
    """

    name = "joint-test-time"
    formula = "L(T) = L(mu) + Z (exp(-z T / mu) - exp(-z))"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946): the unified law, given the loss at T = mu"
    columns = ("mean_recurrence", "recurrence", "loss_at_mean")
    vary = ("recurrence",)
    parameters = (LOOP_GAIN, loop_decay((0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 20.0)))
    linear_count = 1

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the column exp(-z T / mu) - exp(-z)."""
        z = nonlinear[..., 0, None]
        return np.asarray(np.exp(-z * (data["recurrence"] / data["mean_recurrence"])) - np.exp(-z))[..., None]

    def offset(self, data: Data) -> np.ndarray:
        """See `Law.offset`: the given loss."""
        return data["loss_at_mean"]

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        Z, z = parameters[..., 0, None], parameters[..., 1, None]
        loops = data["recurrence"] / data["mean_recurrence"]
        by_z = Z * (np.exp(-z) - loops * np.exp(-z * loops))
        return np.asarray(by_z)[..., None]

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: T / mu has no unit."""
        return np.array(parameters)

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        Z, z = parameters
        to_mean, beyond = Z * (np.exp(-z / 2) - np.exp(-z)), Z * np.exp(-z)
        return f"from T = mu / 2 to mu, loops gain {to_mean:.3g} nats per token; beyond mu, {beyond:.2g}"


@final
class UnifiedLaw(Law):
    """Loss of any model at any number of loops: the training law and one decay in T / mu."""

    name = "unified"
    formula = "L(T | mu, D) = E + X N(mu)^-x + Y D^-y + Z exp(-z T / mu)"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946)"
    columns = ("effective_params", "tokens", "mean_recurrence", "recurrence")
    scaled = (("effective_params",), ("tokens",))
    parameters = (
        *TrainingLaw.parameters[:3],
        LOOP_GAIN,
        *TrainingLaw.parameters[3:],
        loop_decay((0.3, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0)),
    )
    linear_count = 4

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y, exp(-z T / mu)."""
        x, y, z = (nonlinear[..., i, None] for i in range(3))
        size, amount = power(data["effective_params"], x), power(data["tokens"], y)
        decay = np.exp(-z * (data["recurrence"] / data["mean_recurrence"]))
        return np.stack([np.ones_like(size), size, amount, decay], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        size, amount = np.log(data["effective_params"]), np.log(data["tokens"])
        loops = data["recurrence"] / data["mean_recurrence"]
        by = [-parameters[..., i, None] * basis[..., i] * factor for i, factor in ((1, size), (2, amount), (3, loops))]
        return np.stack(by, axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_powers(parameters, units, "effective_params", exponents=4)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the training law, with little left for loops to gain."""
        E, X, Y, x, y = fit(TrainingLaw(), data)
        little = 1e-3 * float(np.mean(data["loss"]))
        return [np.array([E, X, Y, little, x, y, z]) for z in (1.0, 5.0)]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, Z, x, y, z = parameters
        return (
            f"the term of N(mu) halves with {halving_factor(x)} the effective parameters, that of D with "
            f"{halving_factor(y)}; {Z * np.exp(-z):.2g} nats of {Z:.3g} are left for loops to gain at T = mu"
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
