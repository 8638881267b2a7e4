"""The laws of the two steps: task loss against validation loss, and the share of wrong answers against either.

Both are laws as `fitting.laws.base` has them, in which the fitted column `loss` is the step's own quantity and the
column `at` the loss that it is predicted from. They are not in the registry: no run table is fitted to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import numpy as np
from scipy.special import expit

from isoloop.fitting.laws.base import Data, Law, Parameter, power

_LADDER = "Bhagia et al. 2024, arXiv:2412.04403"
_STEEPNESS = Parameter(
    name="k",
    meaning="steepness",
    unit="per nat",
    lower=1e-3,
    upper=1e3,
    starts=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
)
_MIDDLE = Parameter(
    name="L0",
    meaning="loss halfway between chance and ceiling",
    unit="nats",
    lower=1e-3,
    upper=1e3,
    starts=(0.2, 0.4, 0.6, 0.75, 0.9, 1.0, 1.15, 1.4, 2.0),
)


class TaskLossLaw(Law):
    """Task loss as a power of the validation loss, A L^p."""

    name = "task loss"
    formula = "task loss = A L^p"
    source = f"after {_LADDER}"
    columns = ("at",)
    scaled = (("at",),)
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(name="A", meaning="task loss at L = 1", unit="nats"),
        Parameter(name="p", meaning="exponent", unit="1", lower=0.01, upper=30.0, starts=(0.25, 0.5, 1, 1.5, 2, 3, 5)),
    )
    linear_count = 1

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: L^p, behind a column of 1 where the law has a floor."""
        grown = power(data["at"], -nonlinear[..., 0, None])
        return np.stack([*[np.ones_like(grown)] * (self.linear_count - 1), grown], axis=-1)

    def nonlinear_gradient(self, parameters: np.ndarray, data: Data, basis: np.ndarray) -> np.ndarray:
        """See `Law.nonlinear_gradient`."""
        return np.asarray(parameters[..., -2, None] * basis[..., -1] * np.log(data["at"]))[..., None]

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: A falls as the unit of L to the p."""
        changed = np.array(parameters)
        changed[..., -2] /= units.get("at", 1.0) ** changed[..., -1]
        return changed

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"1% less validation loss removes {parameters[-1]:.2g}% of the task loss that can fall."


class TaskLossFloorLaw(TaskLossLaw):
    """Task loss as a power of the validation loss above a floor, F + A L^p."""

    name = "task loss with a floor"
    formula = "task loss = F + A L^p"
    parameters = (Parameter(name="F", meaning="floor", unit="nats"), *TaskLossLaw.parameters)
    linear_count = 2


class SigmoidLaw(Law):
    """Wrong answers that fall from those of chance to none: (1 - chance) / (1 + exp(-k (L - L0))).

    The accuracy is 1 minus this, so chance + (1 - chance) / (1 + exp(k (L - L0))). `chance` is a column.
    """

    name = "sigmoid"
    formula = "accuracy = chance + (1 - chance) / (1 + exp(k (L - L0)))"
    source = _LADDER
    columns = ("at", "chance")
    scaled = (("at",),)
    vary = ("at",)
    may_be_zero = ("chance",)
    parameters: ClassVar[tuple[Parameter, ...]] = (_STEEPNESS, _MIDDLE)
    linear_count = 0

    def basis(self, nonlinear: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.basis`: no parameter is linear."""
        return np.ones((*nonlinear.shape[:-1], np.shape(data["at"])[-1], 0))

    def loss(self, parameters: np.ndarray, data: Data) -> np.ndarray:
        """See `Law.loss`: the share of wrong answers."""
        return self.loss_and_gradient(parameters, data)[0]

    def loss_and_gradient(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """See `Law.loss_and_gradient`."""
        k, middle, missed, chance = self._parts(parameters, data)
        distance = data["at"] - middle
        share = expit(k * distance)
        steep = (1 - chance) * (1 - missed) * share * (1 - share)
        wrong = (1 - chance) * (missed + (1 - missed) * share)
        by_chance = -(missed + (1 - missed) * share)
        slopes = [steep * distance, -steep * k, (1 - chance) * (1 - share), by_chance]
        return wrong, np.stack(np.broadcast_arrays(*slopes[: len(self.parameters)]), axis=-1)

    def _parts(self, parameters: np.ndarray, data: Data) -> tuple[np.ndarray, ...]:
        """Return k, L0, the share that is never learned and the score of chance, each (..., rows or 1)."""
        k, middle, *rest = (parameters[..., i, None] for i in range(len(self.parameters)))
        missed = rest[0] if rest else np.zeros(1)
        return k, middle, missed, rest[1] if len(rest) > 1 else np.asarray(data["chance"])

    def rescaled(self, parameters: np.ndarray, units: Mapping[str, float]) -> np.ndarray:
        """See `Law.rescaled`: L0 has the unit of L, and k its inverse."""
        changed = np.array(parameters)
        changed[..., 0] /= units.get("at", 1.0)
        changed[..., 1] *= units.get("at", 1.0)
        return changed

    def effective(self, parameters: np.ndarray) -> str:
        """See `Law.effective`."""
        return f"Half of what can be learned is learned at a loss of {parameters[1]:.3g}."

    def start_grid(self) -> np.ndarray:
        """See `Law.start_grid`."""
        return np.array(list(product(*(parameter.starts for parameter in self.parameters))))


class SigmoidCeilingLaw(SigmoidLaw):
    """Wrong answers that fall from those of chance to a share that is never learned."""

    name = "sigmoid with a ceiling"
    formula = "accuracy = chance + (ceiling - chance) / (1 + exp(k (L - L0)))"
    parameters = (
        *SigmoidLaw.parameters,
        Parameter(name="m", meaning="share never learned", unit="1", upper=0.99, starts=(0.02, 0.2, 0.5, 0.8)),
    )


class SigmoidFreeLaw(SigmoidCeilingLaw):
    """Wrong answers between two levels that are both fitted, as in the model ladder."""

    name = "sigmoid with a ceiling and a floor"
    formula = "accuracy = b + (ceiling - b) / (1 + exp(k (L - L0)))"
    parameters = (
        *SigmoidCeilingLaw.parameters,
        Parameter(name="b", meaning="score at a large loss", unit="1", lower=-0.5, upper=0.9, starts=(0.05, 0.3, 0.5)),
    )
