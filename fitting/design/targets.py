"""Targets of the next runs: the best model for a budget, its loss, an exponent, or a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.laws.base import Law

AT_BUDGET = ("mu", "N", "tokens", "loss", "decision")
"""Targets that need a budget, as in loss@1e21."""
EXPONENTS = {"gamma_mu": "mu", "gamma_N": "N", "gamma_D": "tokens"}
"""Exponents with which the best model grows with compute, and what they are the exponents of."""
TARGET_AXES = {"mu": "mean_recurrence", "gamma_mu": "mean_recurrence", "N": "params", "gamma_N": "params"}
"""The column of the axis that a target is about; others are of models that differ along any."""
_SPELLED = {"D": "tokens", "params": "N", "µ": "mu", "gamma_µ": "gamma_mu"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A quantity that follows from a law: `name`, or `name`@`flops`.

    - mu, N, tokens: the best mean recurrence, parameters and tokens for a budget.
    - loss: the loss of the best model for a budget.
    - decision: nats lost at a budget by training the model that is best by the fit, where another one is.
    - gamma_mu, gamma_N, gamma_D: the exponents with which the best model grows over the range of the runs.
    - any parameter of the law.

    Widths are those of logarithms, except of exponents and of parameters that may be negative.
    """

    name: str
    flops: float | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target that `text` names, such as mu@1e21 or gamma_mu. Raises ValueError for a wrong budget."""
        name, at, budget = text.strip().partition("@")
        name = _SPELLED.get(name, name)
        if not at:
            if name in AT_BUDGET:
                raise ValueError(f"the target {name} must have a budget in FLOPs, but got {text!r}; write {name}@1e21")
            return cls(name=name)
        if name not in AT_BUDGET:
            known = ", ".join(AT_BUDGET)
            raise ValueError(f"a target at a budget must be one of {known}, but got {text!r}; choose one of them")
        try:
            flops = float(budget)
        except ValueError:
            flops = -1.0
        if not (flops > 0 and np.isfinite(flops)):
            raise ValueError(f"the budget of a target must be positive FLOPs, but got {text!r}; write {name}@1e21")
        return cls(name=name, flops=flops)

    def __str__(self) -> str:
        return self.name if self.flops is None else f"{self.name}@{self.flops:.3g}".replace("e+", "e")

    @property
    def is_parameter(self) -> bool:
        """True if it is a parameter of the law."""
        return self.flops is None and self.name not in EXPONENTS

    def is_ratio(self, law: Law) -> bool:
        """Return True if it is known by its logarithm: all but exponents, and parameters that may be negative."""
        if self.is_parameter:
            return law.parameters[law.parameter_names.index(self.name)].lower >= 0
        return self.name not in EXPONENTS and self.name != "decision"

    def is_of(self, law: Law) -> bool:
        """Return True unless it is a parameter that this law does not have."""
        return not self.is_parameter or self.name in law.parameter_names

    def check(self, laws: Sequence[Law], axes: Sequence[str]) -> None:
        """Raise ValueError unless a law has the parameter, and models differ along the axis, that it names."""
        wanted = TARGET_AXES.get(self.name)
        if wanted is not None and wanted not in axes:
            others = " or ".join(name for name, of in TARGET_AXES.items() if of in axes)
            raise ValueError(
                f"the target {self} must be of models that differ in {AXES[wanted].name}, but these differ in "
                f"{AXES[axes[0]].name}; use {others}"
            )
        if not any(self.is_of(law) for law in laws):
            parameters = dict.fromkeys(name for law in laws for name in law.parameter_names)
            at_budget, exponents = (
                [name for name in names if TARGET_AXES.get(name, axes[0]) in axes] for names in (AT_BUDGET, EXPONENTS)
            )
            known = ", ".join([*(f"{name}@FLOPS" for name in at_budget), *exponents, *parameters])
            raise ValueError(f"a target must be one of {known}, but got {self.name!r}; choose one of them")
