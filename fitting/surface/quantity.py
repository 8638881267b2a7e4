"""A number of an answer with its interval."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its 95% interval over refits, None without refits."""

    value: float
    interval: Interval | None

    def text(self, form: str = ".3g") -> str:
        """Return the number with its interval in brackets."""
        if self.interval is None:
            return f"{self.value:{form}}"
        low, high = self.interval
        return f"{self.value:{form}} ({low:{form}} to {high:{form}})"
