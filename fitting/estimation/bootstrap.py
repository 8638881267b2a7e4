"""One law fitted to many resamples of a table at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.estimate import Estimate
from isoloop.fitting.estimation.levenberg_marquardt import Descended, Problem, descend_twice
from isoloop.fitting.laws.base import Data

_TOLERANCE = 1e-8
_WORTH_IT = 1e-6
"""Share of the objective by which a neighbour's parameters must be better before a search starts again from there."""
_NEIGHBOURS = 200


def refit(
    estimate: Estimate,
    data: Data,
    *,
    weights: np.ndarray | None = None,
    losses: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the law of `estimate` again to each resample: parameters (resamples, p), natural, and objectives
    (resamples,).

    A resample counts the rows of `data` `weights` (resamples, rows) times, or has `losses` (resamples, rows) of its
    own, in nats. Every search starts from the estimate (or from `starts` (resamples, p)) and goes all the way to its
    minimum; where the parameters of another resample suit better than where it ended, it starts again from those.
    Parameters marked in `fixed` (p,) stay where they start.
    """
    problem = Problem.of(estimate.law, data, estimate.objective_kind, weights=weights, losses=losses, fixed=fixed)
    count = len(problem.losses) if problem.losses.ndim == 2 else 0 if weights is None else len(weights)
    if starts is None:
        starts = np.broadcast_to(_livened(problem, estimate.parameters), (count, len(estimate.parameters)))
    else:
        starts = problem.scaled(starts)
    ended = descend_twice(problem, starts, tolerance=_TOLERANCE)
    if fixed is None:
        ended = _learnt_from_neighbours(problem, ended)
    return problem.natural(ended.parameters), ended.objectives


def _livened(problem: Problem, parameters: np.ndarray) -> np.ndarray:
    """The parameters (p,) in scaled columns, with linear ones of zero raised to 1e-3 of the loss.

    At zero the exponent of a term has no slope, and a search that wants the term back would keep the exponent.
    """
    k = problem.law.linear_count
    at = problem.scaled(parameters)
    largest = np.abs(problem.law.basis(at[None, k:], problem.data)[0]).max(axis=0)
    small = 1e-3 * problem.losses.mean() / np.maximum(largest, 1e-300)
    return np.concatenate([np.where(at[:k] > 0, at[:k], small), at[k:]])


def _learnt_from_neighbours(problem: Problem, ended: Descended) -> Descended:
    """Start those searches again whose resample another resample's parameters fit better than their own."""
    some = np.linspace(0, len(ended.parameters) - 1, min(_NEIGHBOURS, len(ended.parameters))).astype(int)
    candidates = np.unique(ended.parameters[some], axis=0)
    values = _cross_objectives(problem, candidates)
    nearest = np.argmin(values, axis=1)
    lost = np.flatnonzero(values.min(axis=1) < ended.objectives * (1 - _WORTH_IT))
    if not len(lost):
        return ended
    again = replace(
        problem,
        losses=problem.losses if problem.losses.ndim == 1 else problem.losses[lost],
        weights=None if problem.weights is None else problem.weights[lost],
    )
    second = descend_twice(again, candidates[nearest[lost]], tolerance=_TOLERANCE)
    better = second.objectives < ended.objectives[lost]
    parameters, objectives, settled = ended.parameters.copy(), ended.objectives.copy(), ended.settled.copy()
    parameters[lost[better]], objectives[lost[better]] = second.parameters[better], second.objectives[better]
    settled[lost[better]] = second.settled[better]
    return Descended(parameters=parameters, objectives=objectives, settled=settled)


def _cross_objectives(problem: Problem, candidates: np.ndarray) -> np.ndarray:
    """The objective of each resample at each candidate (candidates, p): (resamples, candidates)."""
    with np.errstate(all="ignore"):  # a candidate may leave the law's domain on another resample's rows
        fitted = problem.law.loss(candidates, problem.data)
        if problem.losses.ndim == 1:
            assert problem.weights is not None
            residuals = problem.objective.residuals(problem.losses, fitted)
            values = problem.weights @ problem.objective.terms(residuals).T
        else:
            each = (problem.objective.residuals(problem.losses, one) for one in fitted)
            values = np.stack([problem.objective.value(one, problem.weights) for one in each], axis=1)
    return np.where(np.isnan(values), np.inf, values)


# MERGED uncertainty
LEVEL = 0.95
BootstrapKind = Literal["parametric", "rows", "budgets"]
BOOTSTRAP_KINDS: tuple[str, ...] = get_args(BootstrapKind)
_GROUPS_NEEDED = 3
"""With 2 budgets, intervals by budgets held the truth in 71 to 77% of simulated sweeps, however wide."""
_CUT = 3.5
_FREEDOM_TO_CUT = 10
_MEDIAN_OF_NORMAL = 0.6745
"""Median of the absolute value of a standard normal."""
_CELLS_AT_ONCE = 10_000_000
"""Draws times rows that are held in memory together: 80 MB an array."""


def interval(draws: np.ndarray, around: float | None = None, widening: float = 1.0) -> tuple[float, float]:
    """The central 95% of `draws` (draws,), by percentiles; NaN draws are left out.

    Both ends are moved away from `around`, the estimate, by the factor `widening`: in logarithms where all is positive.
    """
    low, high = (float(end) for end in np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]))
    if around is None or widening == 1.0:
        return low, high
    low, high = min(low, around), max(high, around)
    if low > 0:
        return around * (low / around) ** widening, around * (high / around) ** widening
    return around - widening * (around - low), around + widening * (high - around)


def reach(freedom: int) -> float:
    """How many standard errors a 95% interval reaches where the noise is known by `freedom` degrees of freedom."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(freedom, 1)))


def bootstrap(
    estimate: Estimate,
    data: Data,
    *,
    draws: int,
    seed: int,
    kind: BootstrapKind = "parametric",
    runs: np.ndarray | None = None,
) -> np.ndarray:
    """Parameters (draws, p) of the law fitted again to resampled tables; the same seed gives the same draws.

    - "parametric": normal noise around the fitted losses, as large as the residuals say for the freedom they have left
      (see `noise_scale`); how large it is, is itself drawn, which gives the draws the tails of a t distribution.
    - "rows": rows drawn with replacement.
    - "budgets": whole budgets drawn with replacement, for noise that a budget's runs share. It needs `widening`.

    How often their 95% intervals hold the truth in simulated sweeps is measured: benchmarks/fitting/RESULTS.md.

    Where a run has several rows, pass their run ids as `runs` (rows,): a run's luck is then drawn once for all its
    rows. Raises ValueError for another kind, where the budgets are unknown or fewer than 3, or unless
    draws are 1 or more.
    """
    if draws < 1:
        raise ValueError(f"a bootstrap needs 1 draw or more, but got {draws}; 1000 is usual")
    rng = np.random.default_rng(seed)
    rows = len(data["loss"])
    blocks = [len(block) for block in np.array_split(np.arange(draws), max(1, -(-draws * rows // _CELLS_AT_ONCE)))]
    if kind == "parametric":
        drawn = [refit(estimate, data, losses=_redrawn(estimate, data, runs, block, rng))[0] for block in blocks]
        return np.concatenate(drawn)
    if kind == "rows":
        groups = np.arange(len(data["loss"])) if runs is None else runs
    elif kind == "budgets":
        groups = _budgets(data)
    else:
        raise ValueError(f"a bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {kind!r}; choose one")
    counted = [refit(estimate, data, weights=resampled_counts(groups, block, rng))[0] for block in blocks]
    return np.concatenate(counted)


def resampled_counts(groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row (draws, rows) counts when as many groups as there are, are drawn with replacement."""
    names, which = np.unique(groups, return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, which].astype(float)


def widening(kind: BootstrapKind, data: Data) -> float:
    """By what factor percentile intervals of this bootstrap must be widened to cover.

    Few budgets, drawn with replacement, scatter too little: by the share (G - 1) / G of the variance, and with only
    G - 1 degrees of freedom to know it by. Without this, the intervals of simulated sweeps with 3 to 6 budgets held the
    truth in 78 to 95% of them; with it, in 92% or more (benchmarks/fitting/RESULTS.md).
    """
    if kind != "budgets":
        return 1.0
    groups = len(np.unique(_budgets(data)))
    return float(np.sqrt(groups / (groups - 1)) * stats.t.ppf(0.5 + LEVEL / 2, groups - 1) / stats.norm.ppf(0.975))


def noise_scale(estimate: Estimate, runs: np.ndarray | None = None) -> float:
    """Standard deviation of one measured loss about the law, for the freedom that is left: relative, or in nats.

    Where the objective is Huber's, residuals count up to 3.5 times the typical one: as the fit is not led by outliers,
    so its noise is not. (5% of the runs with ten times the noise would triple the root mean square.)
    """
    scales = _noise(estimate, runs)
    return float(np.sqrt(sum(scale**2 for scale, _ in scales)))


def noise_freedom(estimate: Estimate, runs: np.ndarray | None = None) -> int:
    """Degrees of freedom by which the larger part of the noise is known."""
    return max(_noise(estimate, runs))[1]


def _budgets(data: Data) -> np.ndarray:
    budgets = np.asarray(data.get("budget", np.array([np.nan])))
    if np.isnan(budgets).any():
        raise ValueError("a bootstrap by budgets needs the column `budget` in every row; draw rows instead")
    if len(np.unique(budgets)) < _GROUPS_NEEDED:
        found = len(np.unique(budgets))
        raise ValueError(
            f"a bootstrap by budgets needs {_GROUPS_NEEDED} budgets, but there are {found}; draw rows instead"
        )
    return budgets


def _noise(estimate: Estimate, runs: np.ndarray | None) -> list[tuple[float, int]]:
    """Standard deviation and degrees of freedom of the noise per row; of a run's luck, and then of the rest per row."""
    residuals, p = estimate.residuals, len(estimate.parameters)
    robust = bool(np.isfinite(estimate.objective_kind.delta))
    if runs is None:
        return [_scale(residuals, len(residuals) - p, robust)]
    _, which, counts = np.unique(runs, return_inverse=True, return_counts=True)
    means = np.bincount(which, weights=residuals) / counts
    rest = residuals - means[which]
    return [_scale(means, len(means) - p, robust), _scale(rest, len(residuals) - len(means), robust)]


def _scale(residuals: np.ndarray, freedom: int, robust: bool) -> tuple[float, int]:
    """Standard deviation of the noise behind residuals that took up all freedom but this, and this freedom."""
    freedom = max(freedom, 1)
    if robust and freedom >= _FREEDOM_TO_CUT:
        # A fit of nearly absolute residuals takes some of them to zero; the others say how large noise is.
        typical = float(np.median(np.sort(np.abs(residuals))[-freedom:])) / _MEDIAN_OF_NORMAL
        residuals = np.clip(residuals, -_CUT * typical, _CUT * typical)
    return float(np.sqrt(residuals @ residuals / freedom)), freedom


def _redrawn(
    estimate: Estimate, data: Data, runs: np.ndarray | None, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Losses (draws, rows) of the same rows, were they trained again."""
    fitted = estimate.law.loss(estimate.parameters, data)
    noise = np.zeros((draws, len(fitted)))
    each_row = np.arange(len(fitted))
    by_level = [each_row] if runs is None else [np.unique(runs, return_inverse=True)[1], each_row]
    for (scale, freedom), which in zip(_noise(estimate, runs), by_level, strict=True):
        scales = scale * np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
        noise += (scales * rng.standard_normal((draws, int(which.max()) + 1)))[:, which]
    if estimate.objective_kind.logarithmic:
        return np.asarray(fitted * np.exp(noise))
    return np.maximum(fitted + noise, np.finfo(float).tiny)
