"""Brute force: a grid of both exponents, the best amplitudes at each pair, and finer grids around the lowest points."""

from __future__ import annotations

import numpy as np

from benchmarks.fitting.problem import PeerFit, huber, objective


def brute_grid(
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    delta: float = 1e-3,
    *,
    weights: np.ndarray | None = None,
    points: int = 40,
    zooms: int = 6,
) -> PeerFit:
    """Return the best of `zooms` local minima of a grid of points x points exponents from 0.02 to 3; amplitudes >= 0.

    Each is looked at ever closer, until the window is 1e-8 of the exponents wide.
    """
    grid = ExponentGrid(N, D, loss, delta, weights)
    axis = np.log(np.geomspace(0.02, 3, points))
    values, _ = grid.profile(axis, axis, steps=15)
    found = [grid.zoom(axis[i], axis[j], axis[1] - axis[0]) for i, j in local_minima(values)[:zooms]]
    fits = [PeerFit(parameters=p, objective=objective(p, N, D, loss, delta, weights)) for p in found]
    return min(fits, key=lambda fit: fit.objective)


def local_minima(values: np.ndarray) -> list[tuple[int, int]]:
    """Return the places of a table that are no higher than their neighbours, the lowest first."""
    padded = np.pad(values, 1, constant_values=np.inf)
    rows, columns = values.shape
    around = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    places = np.argwhere((values <= np.min(around, axis=0)) & np.isfinite(values))
    return sorted(((int(i), int(j)) for i, j in places), key=lambda place: float(values[place]))


class ExponentGrid:
    """The least objective at each pair of exponents, with the amplitudes that reach it."""

    def __init__(
        self, N: np.ndarray, D: np.ndarray, loss: np.ndarray, delta: float, weights: np.ndarray | None = None
    ) -> None:
        self.middle = np.log(N).mean(), np.log(D).mean()
        self.n, self.d = np.log(N) - self.middle[0], np.log(D) - self.middle[1]
        self.target, self.delta = np.log(loss), delta
        self.weights = np.ones(len(loss)) if weights is None else np.asarray(weights, dtype=float)

    def profile(self, log_alphas: np.ndarray, log_betas: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return objective (i, j) and amplitudes (i, j, 3) at all pairs; inf where no amplitudes >= 0 were found."""
        shape = len(log_alphas), len(log_betas)
        alpha, beta = (x.reshape(-1, 1) for x in np.meshgrid(np.exp(log_alphas), np.exp(log_betas), indexing="ij"))
        columns = [np.ones((alpha.size, len(self.n))), np.exp(-alpha * self.n), np.exp(-beta * self.d)]
        best, amplitudes = np.full(alpha.size, np.inf), np.zeros((alpha.size, 3))
        for support in ([0, 1, 2], [1, 2]):  # with a floor and without
            values, theta = self._amplitudes(np.stack([columns[k] for k in support], axis=-1), steps)
            better = (theta >= 0).all(axis=1) & (values < best)
            best[better] = values[better]
            amplitudes[better] = 0.0
            amplitudes[better[:, None] & np.isin(range(3), support)] = theta[better].ravel()
        return best.reshape(shape), amplitudes.reshape(*shape, 3)

    def zoom(self, log_alpha: float, log_beta: float, width: float) -> np.ndarray:
        """Return the parameters at the minimum near a place, by a 9 x 9 window that moves, then halves."""
        offsets = np.linspace(-1, 1, 9)
        lowest, parameters = np.inf, np.full(5, np.nan)
        for _ in range(200):
            alphas, betas = log_alpha + width * offsets, log_beta + width * offsets
            values, amplitudes = self.profile(alphas, betas, steps=30)
            i, j = np.unravel_index(np.argmin(values), values.shape)
            log_alpha, log_beta = alphas[i], betas[j]
            if values[i, j] < lowest:
                lowest, parameters = values[i, j], self.parameters(log_alpha, log_beta, amplitudes[i, j])
            if 0 < i < 8 and 0 < j < 8:
                width /= 2
            if width < 1e-8:
                break
        return parameters

    def parameters(self, log_alpha: float, log_beta: float, amplitudes: np.ndarray) -> np.ndarray:
        """Return E, A, B, alpha, beta, from amplitudes at the middle of the rows."""
        (E, A, B), alpha, beta = amplitudes, np.exp(log_alpha), np.exp(log_beta)
        return np.array([E, A * np.exp(alpha * self.middle[0]), B * np.exp(beta * self.middle[1]), alpha, beta])

    def _amplitudes(self, basis: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the least objective (pairs,) and its amplitudes (pairs, k) for a basis (pairs, rows, k).

        Each step tries re-weighted least squares, which goes down from anywhere, and Newton's step, which ends
        exactly, and takes the lower.
        """
        relative = basis * np.exp(-self.target)[:, None]
        theta = _solve(relative, self.weights, self.weights)
        positive = ((basis @ theta[..., None]) > 0).all(axis=(1, 2))
        theta = np.where(positive[:, None], theta, np.exp(self.target.mean()) / basis.shape[-1])
        value = self._value(basis, theta)
        for _ in range(steps):
            fitted = (basis @ theta[..., None])[..., 0]
            residuals = self.target - np.log(fitted)
            slopes = basis / fitted[..., None]
            soft = self.weights * np.minimum(1, self.delta / np.maximum(np.abs(residuals), 1e-300))
            hard = self.weights * (np.abs(residuals) <= self.delta) + 1e-4 * soft
            trials = [theta + _solve(slopes, curvature, soft * residuals) for curvature in (soft, hard)]
            for trial in trials:
                reached = self._value(basis, trial)
                lower = reached < value
                theta, value = np.where(lower[:, None], trial, theta), np.where(lower, reached, value)
        return value, theta

    def _value(self, basis: np.ndarray, theta: np.ndarray) -> np.ndarray:
        fitted = (basis @ theta[..., None])[..., 0]
        positive = (fitted > 0).all(axis=1)
        each = huber(self.target - np.log(np.where(positive[:, None], fitted, 1.0)), self.delta)
        return np.where(positive, each @ self.weights, np.inf)


def _solve(columns: np.ndarray, curvature: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """Return the normal equations of columns (pairs, rows, k) with row weights `curvature`, scaled to unit diagonal."""
    shape = columns.shape[:2]
    gram = (columns * np.broadcast_to(curvature, shape)[..., None]).transpose(0, 2, 1) @ columns
    right = (columns * np.broadcast_to(pull, shape)[..., None]).sum(axis=1)
    unit = 1 / np.sqrt(np.einsum("gkk->gk", gram))
    scaled = gram * unit[:, :, None] * unit[:, None, :] + 1e-14 * np.eye(gram.shape[-1])
    return np.asarray(unit * np.linalg.solve(scaled, (unit * right)[..., None])[..., 0])
