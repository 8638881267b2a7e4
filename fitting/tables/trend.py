"""A smooth trend of losses over size and tokens, which single runs cannot bend."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

EXPONENTS = (0.1, 0.2, 0.35, 0.55, 0.9)
"""Exponents of size and of tokens that are tried. Larger ones would let a trend bend to one corner of a grid."""
REWEIGHTINGS = 8
_SMALLEST_RESIDUAL = 1e-3
"""Relative residual up to which runs count fully in a fit of least absolute residuals."""
_RIDGE = 1e-12


def size_of(table: pd.DataFrame) -> np.ndarray:
    """Return what stands for the size of each model of a checked table, (rows,): the parameters of a dense model, the
    effective ones of a looped model, or its mean recurrence where they are not known.
    """
    if "mean_recurrence" not in table:
        return table["params"].to_numpy(dtype=float)
    loops = table["mean_recurrence"].to_numpy(dtype=float)
    if "effective_params_fixed" not in table:
        return loops
    fixed, per_loop = (table[f"effective_params_{part}"].to_numpy(dtype=float) for part in ("fixed", "per_loop"))
    return np.asarray(fixed + loops * per_loop)


def expected_losses(table: pd.DataFrame) -> np.ndarray:
    """Return about the loss that text models of such a size and training have, (rows,) in nats per token: Hoffmann et
    al. 2022, arXiv:2203.15556, as fitted again by Besiroglu et al. 2024, arXiv:2404.10102.

    The size of a looped model is that of the dense model which costs as much, C / (6 D).
    """
    tokens = table["tokens"].to_numpy(dtype=float)
    dense = "mean_recurrence" not in table
    size = table["params"].to_numpy(dtype=float) if dense else table["flops"].to_numpy(dtype=float) / (6 * tokens)
    return np.asarray(1.82 + 482.0 * size**-0.348 + 2085.0 * tokens**-0.366)


def trend_basis(size: np.ndarray, tokens: np.ndarray, exponents: tuple[float, ...] = EXPONENTS) -> np.ndarray:
    """Return the terms 1, N^-a and D^-b of sizes and tokens (rows,) for all pairs of exponents: (pairs, rows, 3).

    Sizes and tokens are in units of their geometric means.
    """
    logs = [np.log(values) - np.log(values).mean() for values in (size, tokens)]
    powers = [np.exp(-np.multiply.outer(exponents, log)) for log in logs]
    grid = [(first, second) for first in powers[0] for second in powers[1]]
    return np.stack([np.stack([np.ones(len(size)), *terms], axis=-1) for terms in grid])


def fitted_trend(
    basis: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None, *, reweightings: int = REWEIGHTINGS
) -> np.ndarray:
    """Return the trend E + A N^-a + B D^-b of each of several sets of losses (sets, rows): (sets, rows).

    E, A and B are not negative, and the exponents are the best of the pairs of `basis` (pairs, rows, 3). The relative
    residuals, each counted `weights` (sets, rows) times, have the least absolute sum, by reweighted least squares. A
    row without weight is predicted from the others.
    """
    counts = np.ones_like(losses) if weights is None else weights
    robust = counts
    for _ in range(reweightings):
        fitted = _least_squares(basis, losses, robust)
        robust = counts / np.maximum(np.abs(fitted / losses - 1), _SMALLEST_RESIDUAL)
    return fitted


def _least_squares(basis: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the trends (sets, rows) of least weighted squares of relative residuals."""
    pairs, rows, terms = basis.shape
    sets = len(losses)
    # The normal equations of every set at every pair of exponents
    products = (basis[..., :, None] * basis[..., None, :]).transpose(1, 0, 2, 3).reshape(rows, -1)
    gram = ((weights / losses**2) @ products).reshape(sets, pairs, terms, terms)
    projection = ((weights / losses) @ basis.transpose(1, 0, 2).reshape(rows, -1)).reshape(sets, pairs, terms)
    total = weights.sum(axis=-1)[:, None]
    # The best non-negative coefficients: those of the best set of terms whose own are not negative
    best, misfit = np.zeros((sets, pairs, terms)), np.full((sets, pairs), np.inf)
    for chosen in (list(some) for count in range(1, terms + 1) for some in combinations(range(terms), count)):
        normal = gram[..., chosen, :][..., chosen]
        scale = np.sqrt(np.einsum("...ii->...i", normal))
        normal = normal / (scale[..., :, None] * scale[..., None, :]) + _RIDGE * np.eye(len(chosen))
        solution = np.linalg.solve(normal, (projection[..., chosen] / scale)[..., None])[..., 0] / scale
        left = total - np.einsum("sgk,sgk->sg", solution, projection[..., chosen])
        better = (solution >= 0).all(axis=-1) & (left < misfit)
        misfit = np.where(better, left, misfit)
        candidate = np.zeros_like(best)
        candidate[..., chosen] = solution
        best = np.where(better[..., None], candidate, best)
    at = np.argmin(misfit, axis=1)
    return np.einsum("srk,sk->sr", basis[at], best[np.arange(sets), at])
