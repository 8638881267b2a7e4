"""The laws of a looped model's loss at any number T of test-time loops: one final class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import numpy as np

from isoloop.fitting.laws.base import (
    LOOP_GAIN,
    Data,
    Law,
    Parameter,
    halving_factor,
    loop_decay,
    power,
    rescaled_powers,
)
from isoloop.fitting.laws.looped import TrainingLaw


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
