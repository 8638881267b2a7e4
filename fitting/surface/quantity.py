"""A number of an answer with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoloop.fitting.estimation.bootstrap import interval

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its 95% interval over refits, None without refits."""

    value: float
    interval: Interval | None

    @classmethod
    def of(cls, value: float | np.ndarray, draws: np.ndarray | None) -> Quantity:
        """Return a number with the central 95% of its draws (draws,), None for none."""
        return cls(value=float(value), interval=None if draws is None or not len(draws) else interval(draws))

    def text(self, form: str = ".3g") -> str:
        """Return the number with its interval in brackets."""
        if self.interval is None:
            return f"{self.value:{form}}"
        low, high = self.interval
        return f"{self.value:{form}} ({low:{form}} to {high:{form}})"
