"""How uncertain a fit is: refits of the law to losses with resampled noise."""

from __future__ import annotations

import numpy as np

from fitting.estimate import Estimate, polish
from fitting.laws import Data

LEVEL = 0.95


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The central 95% of `draws` (draws,), by percentiles; NaN draws are left out."""
    low, high = np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def bootstrap(estimate: Estimate, data: Data, *, draws: int, seed: int, runs: np.ndarray | None = None) -> np.ndarray:
    """Parameters (draws, p) refitted to the fitted losses with resampled residuals added.

    Residuals are inflated by sqrt(n / (n - p)), since a fit takes up p of them. Where a run has several rows,
    pass their run ids as `runs` (rows,): the luck of a run is then resampled run by run, and what remains row
    by row, because a run's losses at different T are not independent. That these intervals cover the truth as
    often as they say is not proven.
    """
    rng = np.random.default_rng(seed)
    noise = _resampled(estimate, runs, draws, rng)
    targets = np.log(estimate.law.loss(estimate.parameters, data)) + noise
    starts = np.repeat(_livened(estimate, data)[None], draws, axis=0)
    return polish(estimate.law, data, starts, targets, estimate.objective_kind)[0]


def noise_scale(estimate: Estimate, runs: np.ndarray | None = None) -> float:
    """Relative standard deviation of one measured loss about the law."""
    luck, rest = _split(estimate, runs)
    if rest is None:
        return float(np.sqrt(np.mean(luck**2)))
    return float(np.sqrt(np.mean(luck**2) + np.mean(rest**2)))


def _split(estimate: Estimate, runs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Inflated residuals: per row, or per run and what remains per row."""
    residuals, p = estimate.residuals, len(estimate.parameters)
    rows = len(residuals)
    if runs is None:
        return residuals * np.sqrt(rows / (rows - p)), None
    _, which, counts = np.unique(runs, return_inverse=True, return_counts=True)
    means = np.bincount(which, weights=residuals) / counts
    luck = means * np.sqrt(len(means) / max(len(means) - p, 1))
    rest = (residuals - means[which]) * np.sqrt(rows / max(rows - len(means), 1))
    return luck, rest


def _resampled(estimate: Estimate, runs: np.ndarray | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    luck, rest = _split(estimate, runs)
    if rest is None or runs is None:
        return rng.choice(luck - luck.mean(), size=(draws, len(luck)))
    which = np.unique(runs, return_inverse=True)[1]
    return np.asarray(
        rng.choice(luck - luck.mean(), size=(draws, len(luck)))[:, which] + rng.choice(rest, size=(draws, len(rest)))
    )


def _livened(estimate: Estimate, data: Data) -> np.ndarray:
    """The fitted parameters with amplitudes of zero raised to 1e-3 of the loss, so that refits can leave the bound."""
    k = estimate.law.linear_count
    largest = estimate.law.basis(estimate.parameters[k:], data).max(axis=0)
    small = 1e-3 * float(np.mean(data["loss"])) / np.maximum(largest, 1e-300)
    amplitudes = np.where(estimate.parameters[:k] > 0, estimate.parameters[:k], small)
    return np.concatenate([amplitudes, estimate.parameters[k:]])
