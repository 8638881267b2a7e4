"""The fit that all peers solve: L = E + A N^-alpha + B D^-beta under Huber's function of the log residual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True, kw_only=True)
class PeerFit:
    """Parameters in the order of `NAMES`, and their value of `objective`."""

    parameters: np.ndarray
    objective: float


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Return r^2 / 2 inside delta, delta (|r| - delta / 2) outside; r^2 / 2 everywhere if delta is inf."""
    size = np.abs(residuals)
    inside = np.minimum(size, delta)
    return np.asarray(inside * (size - inside / 2))


def objective(
    parameters: np.ndarray,
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    delta: float,
    weights: np.ndarray | None = None,
) -> float:
    """Return the sum over rows of Huber's function of log loss - log fitted, weighted; inf where a fit is <= 0."""
    E, A, B, alpha, beta = np.asarray(parameters, dtype=float)
    fitted = E + A * N**-alpha + B * D**-beta
    if not (np.isfinite(fitted) & (fitted > 0)).all():
        return float("inf")
    each = huber(np.log(loss) - np.log(fitted), delta)
    return float(np.sum(each if weights is None else weights * each))


class LogProblem:
    """The objective over (log E, a, b, alpha, beta), where the terms are exp(a - alpha n) and exp(b - beta d).

    n and d are log N and log D; `centred` counts them from their means, so that a and b don't trade off with the
    exponents. Values are in units of `unit`: delta^2 where there is one, so that tolerances mean the same everywhere.
    """

    def __init__(
        self,
        N: np.ndarray,
        D: np.ndarray,
        loss: np.ndarray,
        delta: float,
        *,
        weights: np.ndarray | None = None,
        centred: bool = True,
    ) -> None:
        self.rows = N, D, loss, delta, weights
        self.delta, self.target = delta, np.log(loss)
        self.weights = np.ones(len(loss)) if weights is None else np.asarray(weights, dtype=float)
        self.unit = delta**2 if np.isfinite(delta) else 1e-6
        self.middle = (np.log(N).mean(), np.log(D).mean()) if centred else (0.0, 0.0)
        self.n, self.d = np.log(N) - self.middle[0], np.log(D) - self.middle[1]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """Return log loss - log fitted."""
        return np.asarray(self.target - np.log(self._terms(x).sum(axis=0)))

    def value(self, x: np.ndarray) -> float:
        """Return the objective, in units."""
        return float(self.weights @ huber(self.residuals(x), self.delta)) / self.unit

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient, in units."""
        terms = self._terms(x)
        fitted = terms.sum(axis=0)
        residuals = self.target - np.log(fitted)
        pull = self.weights * np.clip(residuals, -self.delta, self.delta)
        value = float(self.weights @ huber(residuals, self.delta)) / self.unit
        return value, -(self._slopes(terms) / fitted) @ pull / self.unit

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the second derivatives of the objective, in units; those of Huber's function jump at delta."""
        terms = self._terms(x)
        fitted = terms.sum(axis=0)
        residuals = self.target - np.log(fitted)
        pull = self.weights * np.clip(residuals, -self.delta, self.delta)
        slopes = self._slopes(terms) / fitted
        curvature = self.weights * (np.abs(residuals) <= self.delta) + pull
        second = (slopes * curvature) @ slopes.T
        share = pull / fitted
        floor, size, amount = terms
        for i, j, term in (
            (0, 0, floor), (1, 1, size), (1, 3, -self.n * size), (3, 3, self.n**2 * size),
            (2, 2, amount), (2, 4, -self.d * amount), (4, 4, self.d**2 * amount),
        ):  # fmt: skip
            second[i, j] -= share @ term
            if i != j:
                second[j, i] -= share @ term
        return np.asarray(second / self.unit)

    def starts(self, count: int, seed: int) -> np.ndarray:
        """Draw points (count, 5) over the range of plausible parameters, for a centred problem."""
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet((1.0, 1.0, 1.0), size=count)
        amplitudes = np.log(np.maximum(shares, 1e-3)) + self.target.mean()
        return np.concatenate([amplitudes, np.exp(rng.uniform(np.log(0.05), np.log(2), size=(count, 2)))], axis=1)

    def coordinates(self, parameters: np.ndarray) -> np.ndarray:
        """Return the point of parameters in the order of `NAMES`; amplitudes of zero become very small."""
        E, A, B, alpha, beta = parameters
        e, a, b = np.log(np.maximum([E, A, B], 1e-12))
        return np.array([e, a - alpha * self.middle[0], b - beta * self.middle[1], alpha, beta])

    def fit(self, x: np.ndarray) -> PeerFit:
        """Return the parameters at a point, with their `objective`."""
        e, a, b, alpha, beta = x
        with np.errstate(over="ignore", invalid="ignore"):
            A, B = np.exp(a + alpha * self.middle[0]), np.exp(b + beta * self.middle[1])
            parameters = np.array([np.exp(e), A, B, alpha, beta])
            return PeerFit(parameters=parameters, objective=objective(parameters, *self.rows))

    def _terms(self, x: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = x
        return np.exp(np.stack([np.full_like(self.n, e), a - alpha * self.n, b - beta * self.d]))

    def _slopes(self, terms: np.ndarray) -> np.ndarray:
        return np.concatenate([terms, [-self.n * terms[1], -self.d * terms[2]]])
