"""The laws of a looped model's loss at any number T of test-time loops: one final class each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
from scipy.special import expit

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

LATE_LOSS = Parameter(name="R", meaning="what too many loops cost in the end", unit="nats per token", logarithmic=True)
_LARGEST_REST = 0.1
"""Share of what loops gain from the smallest T on that may lie beyond the largest, for their end to be determined."""


@final
class TestTimeLaw(Law):
    """Loss of one trained model against the loops that it runs at test time."""

    __test__ = False  # a name that pytest would collect

    name = "test-time"
    saturates = True
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

    def undetermined(self, parameters: np.ndarray, data: Data) -> list[str]:
        """See `Law.undetermined`."""
        return _unfinished_decay("L_inf", float(parameters[2]), data["recurrence"], "T")

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"95% of what loops gain is there after {np.log(20) / parameters[2]:.3g} loops"


@final
class JointTestTimeLaw(Law):
    """Loss of any model at T loops, given its loss at T = mean recurrence: one decay in T / mu for all models.

    The noise of a run is in the given loss already, so what is left to fit scatters far less than the losses do.
    """

    name = "joint-test-time"
    saturates = True
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

    def undetermined(self, parameters: np.ndarray, data: Data) -> list[str]:
        """See `Law.undetermined`."""
        return _unfinished_decay("Z", float(parameters[1]), data["recurrence"] / data["mean_recurrence"], "T / mu")

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        Z, z = parameters
        to_mean, beyond = Z * (np.exp(-z / 2) - np.exp(-z)), Z * np.exp(-z)
        return f"from T = mu / 2 to mu, loops gain {to_mean:.3g} nats per token; beyond mu, {beyond:.2g}"


@final
class UnifiedLaw(Law):
    """Loss of any model at any number of loops: the training law and one decay in T / mu."""

    name = "unified"
    saturates = True
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


def _late_rise(loops: np.ndarray, half: np.ndarray, steepness: np.ndarray) -> np.ndarray:
    """Return Hill's function of the loops, 1 / (1 + (loops / half)^-steepness): it grows from 0 to 1."""
    return np.asarray(expit(steepness * np.log(loops / half)))


def _late_rise_slopes(rise: np.ndarray, loops: np.ndarray, half: np.ndarray, steepness: np.ndarray) -> np.ndarray:
    """Return the derivatives of `_late_rise` by half and by steepness: (..., rows, 2)."""
    bend = rise * (1 - rise)
    return np.stack([-bend * steepness / half, bend * np.log(loops / half)], axis=-1)


def _late_rise_parameters(unit: str, halves: tuple[float, ...], steepness: tuple[float, ...]) -> tuple[Parameter, ...]:
    """Return the nonlinear parameters of `_late_rise`: where half of R is lost, in `unit`, and how steeply."""
    return (
        Parameter(
            name="t",
            meaning="loops that lose half of R",
            unit=unit,
            lower=0.1,
            upper=2000.0,
            starts=halves,
            logarithmic=True,
        ),
        Parameter(name="r", meaning="steepness of the rise", unit="1", lower=0.5, upper=12.0, starts=steepness),
    )


def _unfinished_decay(name: str, decay: float, loops: np.ndarray, quantity: str) -> list[str]:
    """Return a reason why `name` is hardly determined, if much of the decay over `loops` lies beyond the largest."""
    left = float(np.exp(-decay * np.ptp(loops)))
    if left <= _LARGEST_REST:
        return []
    return [
        f"{name} is weakly identified: at the largest {quantity}, {loops.max():.3g}, {100 * left:.2g}% of what loops "
        "can still gain is ahead"
    ]


@final
class OverthinkingLaw(Law):
    """Loss of one trained model against the loops that it runs, where too many of them raise it again.

    The last term is Hill's function: it starts at 0, grows as T^r up to T = t, where it is R / 2, and saturates at R.
    """

    name = "overthinking"
    extends = TestTimeLaw()
    formula = "L(T) = L_inf + Z exp(-z T) + R / (1 + (T / t)^-r)"
    source = "isoloop: the test-time law of Parcae (arXiv:2604.12946) with a term for losses that rise with T"
    columns = ("recurrence",)
    parameters = (
        *TestTimeLaw.parameters[:2],
        LATE_LOSS,
        dataclasses.replace(TestTimeLaw.parameters[2], starts=(0.03, 0.1, 0.2, 0.4, 0.7, 1.2, 2.5)),
        *_late_rise_parameters("loops", (2.0, 5.0, 12.0, 30.0, 80.0, 200.0), (1.0, 2.0, 5.0)),
    )
    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, exp(-z T), 1 / (1 + (T / t)^-r)."""
        z, t, r = (nonlinear[..., i, None] for i in range(3))
        decay = np.exp(-z * data["recurrence"])
        return np.stack([np.ones_like(decay), decay, _late_rise(data["recurrence"], t, r)], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        _, Z, R, _, t, r = (parameters[..., i, None] for i in range(6))
        by_z = -Z * basis[..., 1] * data["recurrence"]
        by_rise = R[..., None] * _late_rise_slopes(basis[..., 2], data["recurrence"], t, r)
        return np.concatenate([by_z[..., None], by_rise], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: z is per unit of T, t in that unit."""
        changed = np.array(parameters)
        changed[..., 3] /= units.get("recurrence", 1.0)
        changed[..., 4] *= units.get("recurrence", 1.0)
        return changed

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the test-time law, without a rise."""
        L_inf, Z, z = fit(TestTimeLaw(), data)
        return [np.array([L_inf, Z, 0.0, z, float(np.max(data["recurrence"])), 2.0])]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        R, t = parameters[2], parameters[4]
        return f"too many loops cost {R:.3g} nats in the end, half of it at {t:.3g} loops"


@final
class JointOverthinkingLaw(Law):
    """Loss of any model at T loops, given its loss at T = mean recurrence, where too many loops raise it again."""

    name = "joint-overthinking"
    extends = JointTestTimeLaw()
    formula = "L(T) = L(mu) + Z (exp(-z T / mu) - exp(-z)) + R (h(T / mu) - h(1)), h(u) = 1 / (1 + (u / t)^-r)"
    source = "isoloop: the joint test-time law after Parcae (arXiv:2604.12946) with a term for losses that rise with T"
    columns = JointTestTimeLaw.columns
    vary = JointTestTimeLaw.vary
    parameters = (
        LOOP_GAIN,
        LATE_LOSS,
        loop_decay((0.3, 1.0, 2.0, 3.5, 5.5, 9.0, 14.0)),
        *_late_rise_parameters("T / mu", (0.4, 1.0, 2.0, 4.0, 8.0, 20.0), (1.0, 2.0, 5.0)),
    )
    linear_count = 2

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns exp(-z T / mu) - exp(-z), h(T / mu) - h(1)."""
        z, t, r = (nonlinear[..., i, None] for i in range(3))
        loops = data["recurrence"] / data["mean_recurrence"]
        return np.stack(
            [np.exp(-z * loops) - np.exp(-z), _late_rise(loops, t, r) - _late_rise(np.ones(1), t, r)], axis=-1
        )

    def offset(self, data: Data) -> np.ndarray:
        """See `Law.offset`: the given loss."""
        return data["loss_at_mean"]

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        Z, R, z, t, r = (parameters[..., i, None] for i in range(5))
        loops = data["recurrence"] / data["mean_recurrence"]
        by_z = Z * (np.exp(-z) - loops * np.exp(-z * loops))
        at_mean = _late_rise(np.ones(1), t, r)
        at_loops = basis[..., 1] + at_mean
        by_rise = _late_rise_slopes(at_loops, loops, t, r) - _late_rise_slopes(at_mean, np.ones(1), t, r)
        return np.concatenate([by_z[..., None], R[..., None] * by_rise], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: T / mu has no unit."""
        return np.array(parameters)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the joint test-time law, without a rise."""
        Z, z = fit(JointTestTimeLaw(), data)
        return [np.array([Z, 0.0, z, float(np.max(data["recurrence"] / data["mean_recurrence"])), 2.0])]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, R, _, t, _ = parameters
        return f"too many loops cost {R:.3g} nats in the end, half of it at T = {t:.3g} mu"


@final
class UnifiedOverthinkingLaw(Law):
    """Loss of any model at any number of loops, where too many of them raise it again."""

    name = "unified-overthinking"
    extends = UnifiedLaw()
    formula = "L(T | mu, D) = E + X N(mu)^-x + Y D^-y + Z exp(-z T / mu) + R / (1 + (T / (t mu))^-r)"
    source = "isoloop: the unified law of Parcae (arXiv:2604.12946) with a term for losses that rise with T"
    columns = UnifiedLaw.columns
    scaled = UnifiedLaw.scaled
    parameters = (
        *UnifiedLaw.parameters[:4],
        LATE_LOSS,
        *(dataclasses.replace(parameter, starts=(0.15, 0.35, 0.8)) for parameter in UnifiedLaw.parameters[4:6]),
        loop_decay((1.0, 3.0, 8.0)),
        *_late_rise_parameters("T / mu", (1.0, 2.5, 8.0), (1.0, 2.0, 5.0)),
    )
    linear_count = 5

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y, exp(-z T / mu), 1 / (1 + (T / (t mu))^-r)."""
        t, r = nonlinear[..., 3, None], nonlinear[..., 4, None]
        saturating = UnifiedLaw().basis(nonlinear[..., :3], data)
        rise = _late_rise(data["recurrence"] / data["mean_recurrence"], t, r)
        return np.concatenate([saturating, rise[..., None]], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        R, t, r = (parameters[..., i, None] for i in (4, 8, 9))
        saturating = UnifiedLaw().nonlinear_gradient(np.delete(parameters, 4, axis=-1), data, basis)
        loops = data["recurrence"] / data["mean_recurrence"]
        by_rise = R[..., None] * _late_rise_slopes(basis[..., 4], loops, t, r)
        return np.concatenate([saturating, by_rise], axis=-1)

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_powers(parameters, units, "effective_params", exponents=5)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the unified law, without a rise and with little of one."""
        E, X, Y, Z, x, y, z = fit(UnifiedLaw(), data)
        little = 1e-3 * float(np.mean(data["loss"]))
        rises = ((0.0, 2.0, 2.0), (little, 2.0, 2.0), (little, 6.0, 1.5))
        return [np.array([E, X, Y, Z, R, x, y, z, t, r]) for R, t, r in rises]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        R, x, y, t = (parameters[i] for i in (4, 5, 6, 8))
        return (
            f"the term of N(mu) halves with {halving_factor(x)} the effective parameters, that of D with "
            f"{halving_factor(y)}; too many loops cost {R:.3g} nats in the end, half of it at T = {t:.3g} mu"
        )
