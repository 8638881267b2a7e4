"""The objective of a fit: squared error or Huber's function, on loss or on log loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Sum over rows of Huber's function of the residual measured - fitted, of log loss or of loss (nats).

    Huber's function is r^2 / 2 up to `delta` and grows as delta |r| beyond; an infinite `delta` gives squared error.
    `delta` has the unit of the residual: relative for log loss, nats per token for loss.

    Raises:
        ValueError: delta is not positive, or the objective is on something else.
    """

    delta: float = 1e-3
    on: Literal["log loss", "loss"] = "log loss"

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, but got {self.delta}; give inf for squared error")
        if self.on not in ("log loss", "loss"):
            raise ValueError(f"an objective must be on 'log loss' or 'loss', but got {self.on!r}; choose one")

    def __str__(self) -> str:
        kind = "squared error" if np.isinf(self.delta) else f"Huber, delta {self.delta:g},"
        return f"{kind} on {self.on}"

    @property
    def logarithmic(self) -> bool:
        """True if residuals are of log loss."""
        return self.on == "log loss"

    def residuals(self, measured: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """Return the residuals of losses in nats, of their broadcast shape."""
        return np.log(measured) - np.log(fitted) if self.logarithmic else np.asarray(measured - fitted)

    def terms(self, residuals: np.ndarray) -> np.ndarray:
        """Return the contribution of each residual to the objective, of the shape of `residuals`."""
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        return np.asarray(inner * (size - inner / 2))

    def value(self, residuals: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the objective (...) of residuals (..., rows), each counted `weights` (..., rows) times."""
        terms = self.terms(residuals)
        return np.asarray(terms.sum(axis=-1) if weights is None else np.einsum("...r,...r->...", terms, weights))

    def log_likelihood(self, value: float, rows: int) -> float:
        """Return the log likelihood of `rows` residuals whose objective is `value`, maximised over their scale s.

        The density is exp(-rho / s) / Z(s), with rho the function of one residual: normal within delta and exponential
        beyond (Huber's least favourable density), with Z(s) in closed form; for squared error it is normal.
        """
        if np.isinf(self.delta):
            variance = max(2 * value / rows, 1e-300)
            return -0.5 * rows * (math.log(2 * math.pi * variance) + 1)
        delta = self.delta

        def negative(log_scale: float) -> float:
            scale = math.exp(log_scale)
            inner = math.sqrt(2 * math.pi * scale) * special.erf(delta / math.sqrt(2 * scale))
            tails = 2 * scale / delta * math.exp(-(delta**2) / (2 * scale))
            return value / scale + rows * math.log(inner + tails)

        middle = math.log(max(value / rows, 1e-300))
        minimum = optimize.minimize_scalar(negative, bounds=(middle - 15, middle + 15), method="bounded")
        return -float(minimum.fun)


HUBER = Objective(delta=1e-3)
SQUARED = Objective(delta=np.inf)
