"""The scaling laws of looped models: one final class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import numpy as np

from isoloop.fitting.laws.base import Data, Law, Parameter

EXPONENTS = (0.05, 0.12, 0.2, 0.3, 0.4, 0.55, 0.8, 1.2, 2.0)
FLOOR = Parameter(name="E", meaning="irreducible loss", unit="nats per token")


def exponent(name: str, meaning: str) -> Parameter:
    """A positive exponent of a power law, searched for between .01 and 3."""
    return Parameter(name=name, meaning=meaning, unit="1", lower=0.01, upper=3.0, starts=EXPONENTS)


def amplitude(name: str, of: str) -> Parameter:
    """The factor of a power of `of`: what that term of the loss is where `of` is 1."""
    return Parameter(name=name, meaning=f"the term at {of} = 1", unit="nats per token")


def halved_by(exponent: float) -> str:
    """By how much a quantity must grow for its term of the loss to halve, in words."""
    return f"{2 ** (1 / exponent):.3g}x"


def _power(data: Data, column: str, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """column^-exponent and log(column)."""
    logs = np.log(data[column])
    return np.exp(-exponent * logs), logs


def two_powers_basis(nonlinear: np.ndarray, data: Data, size: str) -> np.ndarray:
    """The columns 1, N^-x, D^-y (..., rows, 3), for exponents (..., 2) and N in the column `size`."""
    from_size, _ = _power(data, size, nonlinear[..., 0, None])
    from_tokens, _ = _power(data, "tokens", nonlinear[..., 1, None])
    return np.stack([np.ones_like(from_size), from_size, from_tokens], axis=-1)


def two_powers(parameters: np.ndarray, data: Data, size: str) -> np.ndarray:
    """The loss E + X N^-x + Y D^-y (..., rows), for parameters (..., 5) and N in the column `size`."""
    E, X, Y, x, y = (parameters[..., i, None] for i in range(5))
    return np.asarray(E + X * _power(data, size, x)[0] + Y * _power(data, "tokens", y)[0])


def two_powers_and_gradient(parameters: np.ndarray, data: Data, size: str) -> tuple[np.ndarray, np.ndarray]:
    """As `two_powers`, with the derivative by each parameter (..., rows, 5)."""
    E, X, Y, x, y = (parameters[..., i, None] for i in range(5))
    of_size, log_size = _power(data, size, x)
    of_tokens, log_tokens = _power(data, "tokens", y)
    from_size, from_tokens = X * of_size, Y * of_tokens
    slopes = np.empty((*of_size.shape, 5))
    slopes[..., 0], slopes[..., 1], slopes[..., 2] = 1.0, of_size, of_tokens
    slopes[..., 3], slopes[..., 4] = -from_size * log_size, -from_tokens * log_tokens
    return E + from_size + from_tokens, slopes


def rescaled_terms(parameters: np.ndarray, units: Mapping[str, float], size: str, exponents: int = 3) -> np.ndarray:
    """Parameters with the factors of N (place 1) and D (place 2) grown as the units to their exponents.

    The exponents stand at the places `exponents` and the one behind it.
    """
    changed = np.array(parameters)
    changed[..., 1] *= units.get(size, 1.0) ** changed[..., exponents]
    changed[..., 2] *= units.get("tokens", 1.0) ** changed[..., exponents + 1]
    return changed


@final
class TrainingLaw(Law):
    """Loss after training, at T = mean recurrence, from effective parameters and tokens."""

    name = "training"
    formula = "L(mu, D) = E + X N(mu)^-x + Y D^-y"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946), after Hoffmann et al. 2022"
    columns = ("effective_params", "tokens")
    scaled = (("effective_params",), ("tokens",))
    parameters = (
        FLOOR,
        amplitude("X", "N"),
        amplitude("Y", "D"),
        exponent("x", "exponent of N(mu)"),
        exponent("y", "exponent of D"),
    )
    linear_count = 3

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y."""
        return two_powers_basis(nonlinear, data, "effective_params")

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        return two_powers(parameters, data, "effective_params")

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        return two_powers_and_gradient(parameters, data, "effective_params")

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_terms(parameters, units, "effective_params")

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, x, y = parameters
        return f"the term of N(mu) halves with {halved_by(x)} the effective parameters, that of D with {halved_by(y)}"


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
        Parameter(name="Z", meaning="what loops can gain, from T = 0 on", unit="nats per token", logarithmic=True),
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

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        rest, Z, z = (parameters[..., i, None] for i in range(3))
        return np.asarray(rest + Z * np.exp(-z * data["recurrence"]))

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        rest, Z, z = (parameters[..., i, None] for i in range(3))
        decay = np.exp(-z * data["recurrence"])
        slopes = np.stack([np.ones_like(decay), decay, -Z * decay * data["recurrence"]], axis=-1)
        return rest + Z * decay, slopes

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: loops have no other unit."""
        changed = np.array(parameters)
        changed[..., 2] /= units.get("recurrence", 1.0)
        return changed

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"95% of what loops gain is there after {np.log(20) / parameters[2]:.3g} loops"


@final
class JointTestTimeLaw(Law):
    """Loss of any model at T loops, given its loss at T = mean recurrence: one decay in T / mu for all models.

    A run's luck is in the given loss, so what is left to fit is far quieter than the losses themselves.
    """

    name = "joint-test-time"
    formula = "L(T) = L(mu) + Z (exp(-z T / mu) - exp(-z))"
    source = "Parcae (Prairie et al. 2026, arXiv:2604.12946): the unified law, given the loss at T = mu"
    columns = ("mean_recurrence", "recurrence", "loss_at_mean")
    vary = ("recurrence",)
    parameters = (
        Parameter(name="Z", meaning="what loops can gain, from T = 0 on", unit="nats per token"),
        Parameter(
            name="z",
            meaning="decay",
            unit="per T / mu",
            lower=0.01,
            upper=50.0,
            starts=(0.1, 0.3, 0.6, 1.0, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 20.0),
        ),
    )
    linear_count = 1

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the column exp(-z T / mu) - exp(-z)."""
        z = nonlinear[..., 0, None]
        return np.asarray(np.exp(-z * (data["recurrence"] / data["mean_recurrence"])) - np.exp(-z))[..., None]

    def offset(self, data: Data) -> np.ndarray:
        """See `Law.offset`: the given loss."""
        return data["loss_at_mean"]

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        Z, z = parameters[..., 0, None], parameters[..., 1, None]
        gained = np.exp(-z * (data["recurrence"] / data["mean_recurrence"])) - np.exp(-z)
        return np.asarray(data["loss_at_mean"] + Z * gained)

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        Z, z = parameters[..., 0, None], parameters[..., 1, None]
        loops = data["recurrence"] / data["mean_recurrence"]
        decay, at_mean = np.exp(-z * loops), np.exp(-z)
        slopes = np.stack([decay - at_mean, Z * (at_mean - loops * decay)], axis=-1)
        return data["loss_at_mean"] + Z * (decay - at_mean), slopes

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
        Parameter(name="Z", meaning="what loops can gain, from T = 0 on", unit="nats per token"),
        *TrainingLaw.parameters[3:],
        Parameter(
            name="z",
            meaning="decay",
            unit="per T / mu",
            lower=0.01,
            upper=50.0,
            starts=(0.3, 1.0, 2.0, 4.0, 7.0, 12.0, 20.0),
        ),
    )
    linear_count = 4

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: the columns 1, N^-x, D^-y, exp(-z T / mu)."""
        size, _ = _power(data, "effective_params", nonlinear[..., 0, None])
        amount, _ = _power(data, "tokens", nonlinear[..., 1, None])
        decay = np.exp(-nonlinear[..., 2, None] * (data["recurrence"] / data["mean_recurrence"]))
        return np.stack([np.ones_like(size), size, amount, decay], axis=-1)

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        E, X, Y, Z, x, y, z = (parameters[..., i, None] for i in range(7))
        trained = E + X * _power(data, "effective_params", x)[0] + Y * _power(data, "tokens", y)[0]
        return np.asarray(trained + Z * np.exp(-z * (data["recurrence"] / data["mean_recurrence"])))

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        E, X, Y, Z, x, y, z = (parameters[..., i, None] for i in range(7))
        size, log_size = _power(data, "effective_params", x)
        amount, log_amount = _power(data, "tokens", y)
        loops = data["recurrence"] / data["mean_recurrence"]
        decay = np.exp(-z * loops)
        from_size, from_amount, from_loops = X * size, Y * amount, Z * decay
        slopes = np.empty((*size.shape, 7))
        slopes[..., 0], slopes[..., 1], slopes[..., 2], slopes[..., 3] = 1.0, size, amount, decay
        slopes[..., 4], slopes[..., 5] = -from_size * log_size, -from_amount * log_amount
        slopes[..., 6] = -from_loops * loops
        return E + from_size + from_amount + from_loops, slopes

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: X grows as the unit of N to the x, Y as that of D to the y."""
        return rescaled_terms(parameters, units, "effective_params", exponents=4)

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the training law, with little left for loops to gain."""
        E, X, Y, x, y = fit(TrainingLaw(), data)
        little = 1e-3 * float(np.mean(data["loss"]))
        return [np.array([E, X, Y, little, x, y, z]) for z in (1.0, 5.0)]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        _, _, _, Z, x, y, z = parameters
        return (
            f"the term of N(mu) halves with {halved_by(x)} the effective parameters, that of D with {halved_by(y)}; "
            f"{Z * np.exp(-z):.2g} nats of {Z:.3g} are left for loops to gain at T = mu"
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
        FLOOR,
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
        size = np.exp(-nonlinear[..., 0, None] * np.log(self._size(nonlinear[..., 2, None], data)))
        amount, _ = _power(data, "tokens", nonlinear[..., 1, None])
        return np.stack([np.ones_like(size), size, amount], axis=-1)

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`."""
        E, A, B, alpha, beta, phi = (parameters[..., i, None] for i in range(6))
        size = np.exp(-alpha * np.log(self._size(phi, data)))
        return np.asarray(E + A * size + B * _power(data, "tokens", beta)[0])

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        E, A, B, alpha, beta, phi = (parameters[..., i, None] for i in range(6))
        log_loops = np.log(data["mean_recurrence"])
        recurrent = np.exp(phi * log_loops) * data["params_recurrent"]
        whole = data["params_once"] + recurrent
        log_size = np.log(whole)
        size = np.exp(-alpha * log_size)
        amount, log_amount = _power(data, "tokens", beta)
        from_size, from_amount = A * size, B * amount
        slopes = np.empty((*size.shape, 6))
        slopes[..., 0], slopes[..., 1], slopes[..., 2] = 1.0, size, amount
        slopes[..., 3], slopes[..., 4] = -from_size * log_size, -from_amount * log_amount
        slopes[..., 5] = -from_size * alpha * log_loops * recurrent / whole
        return E + from_size + from_amount, slopes

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A grows as the unit of both N to the alpha, B as that of D to the beta."""
        return rescaled_terms(parameters, units, "params_once")

    def simpler(self, data: Data, fit: Callable[[Law, Data], np.ndarray]) -> list[np.ndarray]:
        """See `Law.simpler`: the training law, at phi = 1."""
        unrolled = self._size(np.array(1.0), data)
        if np.ptp(unrolled) <= 1e-9 * unrolled.max():
            return []
        return [np.append(fit(TrainingLaw(), {**data, "effective_params": unrolled}), 1.0)]

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"8 loops of a block are worth {8 ** parameters[5]:.3g} blocks with parameters of their own"

    @staticmethod
    def _size(phi: np.ndarray, data: Data) -> np.ndarray:
        loops = np.exp(phi * np.log(data["mean_recurrence"]))
        return np.asarray(data["params_once"] + loops * data["params_recurrent"])
