"""Terms that several laws share: an irreducible loss, powers of a column, a decay with test-time loops."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoloop.fitting.laws.base import Data, Law, Parameter

IRREDUCIBLE = Parameter(name="E", meaning="irreducible loss", unit="nats per token")
LOOP_GAIN = Parameter(name="Z", meaning="what loops can gain, from T = 0 on", unit="nats per token")
_EXPONENT_STARTS = (0.05, 0.12, 0.2, 0.3, 0.4, 0.55, 0.8, 1.2, 2.0)


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
