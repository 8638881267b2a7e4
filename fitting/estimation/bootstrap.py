"""Bootstraps of a fit: many resamples of a table refitted at once, and the intervals that follow from them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy import special, stats

from isoloop.fitting.estimation.levenberg_marquardt import Minima, Problem, minimise_with_restart
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.estimation.point_estimate import LARGE_TABLE, PointEstimate
from isoloop.fitting.estimation.typical_size import typical_size
from isoloop.fitting.laws.base import Data

LEVEL = 0.95
BootstrapKind = Literal["parametric", "rows", "budgets"]
BOOTSTRAP_KINDS: tuple[str, ...] = get_args(BootstrapKind)
_MIN_ROWS = 12
"""Rows from which dense models are resampled by default: 7 to 8 of 12 are in a resample, for 5 or 6 parameters."""
_MIN_BUDGETS = 3
"""With 2 budgets, intervals by budgets held the truth in 71 to 77% of simulated sweeps, however wide."""
_CLIP = 3.5
"""Residuals count up to this many typical ones in the noise behind a fit by Huber's function."""
_MIN_DOF_TO_CLIP = 10
_ELEMENTS_AT_ONCE = 10_000_000
"""Draws times rows that are held in memory together: 80 MB an array."""
_REFIT_TOLERANCE = 1e-8
_HELD_STALL = 1e-4
"""Stall of refits in which a parameter is held: their objectives are compared with thresholds of tenths of it."""
_MIN_IMPROVEMENT = 1e-6
"""Share of the objective by which another refit's parameters must be better for a search to restart from them."""
_NEIGHBOURS = 200


def interval(draws: np.ndarray, around: float | None = None, widening: float = 1.0) -> tuple[float, float]:
    """Return the central 95% of `draws` (draws,), by percentiles; NaN draws are left out (all NaN: NaN).

    Both ends are moved away from `around`, the estimate, by the factor `widening`: in logarithms where all is positive.
    """
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = (float(end) for end in np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]))
    if around is None or widening == 1.0:
        return low, high
    low, high = min(low, around), max(high, around)
    if low > 0:
        return around * (low / around) ** widening, around * (high / around) ** widening
    return around - widening * (around - low), around + widening * (high - around)


def t_quantile(dof: int) -> float:
    """Return the half-width of a 95% interval in standard errors, for noise known by `dof` degrees of freedom."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(dof, 1)))


def default_kind(data: Data) -> BootstrapKind:
    """Return the kind of bootstrap for these rows unless another is asked for: "rows" for dense models, else
    "parametric".

    Losses of dense models are collected from runs of all sizes, and their residuals have longer tails at some budgets
    than at others. On residuals of four public tables, 95% intervals by parametric redraws held the exponent of the
    tokens in 85 to 100%, and those by redrawn rows in 93 to 100%, also with 3 runs per budget, or 9 runs in all
    (benchmarks/fitting/redraws.py). A resample may lack a budget, since a law is fitted to all of them together. With
    fewer than 12 rows it may lack too many of them to determine a law, so noise is redrawn. A looped sweep has few
    runs, all trained alike.
    """
    dense = "params" in data and "mean_recurrence" not in data
    return "rows" if dense and len(data["loss"]) >= _MIN_ROWS else "parametric"


def bootstrap(
    estimate: PointEstimate,
    data: Data,
    *,
    draws: int,
    seed: int,
    kind: BootstrapKind = "parametric",
    runs: np.ndarray | None = None,
    noise: NoiseModel | None = None,
) -> np.ndarray:
    """Return parameters (draws, p) of the law refitted to resampled tables; the same seed gives the same draws.

    - "parametric": normal noise is added to the fitted losses. Its scale is that of the residuals (see `noise_scale`),
      itself drawn, which gives the draws the tails of a t distribution. With `noise`, its standard deviation is a
      power of compute, and budgets share a part of it; the exponent and the size of that part are drawn as well.
    - "rows": rows are drawn with replacement.
    - "budgets": whole budgets are drawn with replacement, for noise that the runs of a budget share. Its intervals need
      `widening`.

    A table of more than 4,000 rows is not refitted: see `asymptotic_draws`.

    benchmarks/fitting/RESULTS.md has how often their 95% intervals hold the truth in simulated sweeps.

    Where a run has several rows, pass their run ids as `runs` (rows,): the noise of a run is then drawn once for all
    its rows. Raises ValueError for another kind, for less than 1 draw, and for "budgets" if the rows have no budgets or
    fewer than 3.
    """
    if draws < 1:
        raise ValueError(f"a bootstrap needs 1 draw or more, but got {draws}; 1000 draws are usual")
    rows = len(data["loss"])
    if rows > LARGE_TABLE:
        groups = _budgets(data) if kind == "budgets" else runs
        return asymptotic_draws(estimate, data, draws=draws, seed=seed, groups=groups)
    rng = np.random.default_rng(seed)
    blocks = [len(block) for block in np.array_split(np.arange(draws), max(1, -(-draws * rows // _ELEMENTS_AT_ONCE)))]
    if kind == "parametric":
        simulated = (_simulated_losses(estimate, data, runs, noise, block, rng) for block in blocks)
        return np.concatenate([refit(estimate, data, losses=losses)[0] for losses in simulated])
    if kind == "rows":
        groups = np.arange(len(data["loss"])) if runs is None else runs
    elif kind == "budgets":
        groups = _budgets(data)
    else:
        raise ValueError(f"a bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {kind!r}; choose one")
    counts = (resampled_counts(groups, block, rng) for block in blocks)
    return np.concatenate([refit(estimate, data, weights=weights)[0] for weights in counts])


def asymptotic_draws(
    estimate: PointEstimate, data: Data, *, draws: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return parameters (draws, p) from the normal distribution that the estimate tends to with many rows.

    Its covariance is the sandwich of an M-estimate (Huber 1967), A^-1 B A^-1: A from the law's slopes and the share
    of residuals within Huber's delta, B from the scores of the rows, or of `groups` (rows,) whose noise is shared. The
    logarithms of the parameters are drawn, so that they stay positive; those at a bound stay there.
    """
    law, objective = estimate.law, estimate.objective_kind
    problem = Problem.of(law, data, objective, weights=np.ones((1, len(data["loss"]))))
    at = problem.scaled(estimate.parameters)
    loss, slopes = law.loss_and_gradient(at, problem.data)
    # Slopes and scores by the logarithms of the free parameters
    bounded = np.isin(law.parameter_names, estimate.at_bounds)
    free = ~bounded & (at > 0) & (np.linalg.norm(slopes, axis=0) > 0)
    slopes = (slopes * at)[:, free] / (loss[:, None] if objective.logarithmic else 1.0)
    if estimate.whitening is not None:
        slopes = estimate.whitening.columns(slopes)
    scores = np.clip(estimate.residuals, -objective.delta, objective.delta)[:, None] * slopes
    if groups is not None:
        names, group = np.unique(groups, return_inverse=True)
        scores = np.stack([np.bincount(group, weights=column, minlength=len(names)) for column in scores.T], axis=-1)
    scale, _ = noise_scale(estimate)
    within = float(special.erf(objective.delta / max(scale, 1e-300) / np.sqrt(2)))
    bread = np.linalg.pinv(within * slopes.T @ slopes, hermitian=True)
    covariance = bread @ (scores.T @ scores) @ bread
    # Draws
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    drawn = np.tile(at, (draws, 1))
    drawn[:, free] *= np.exp(np.random.default_rng(seed).standard_normal((draws, free.sum())) @ root.T)
    lower, upper = zip(*((parameter.lower, parameter.upper) for parameter in law.parameters), strict=True)
    return np.clip(problem.unscaled(drawn), lower, upper)


def resampled_counts(groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each row counts (draws, rows) when all groups are drawn with replacement."""
    names, group = np.unique(groups, return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, group].astype(float)


def widening(kind: BootstrapKind, data: Data) -> float:
    """Return the factor by which percentile intervals of this bootstrap must be widened for 95% coverage.

    G budgets drawn with replacement have (G - 1) / G of the variance, which is known by only G - 1 degrees of freedom.
    Without this factor, the intervals of simulated sweeps with 3 to 6 budgets held the truth in 78 to 95% of them; with
    it, in 92% or more (benchmarks/fitting/RESULTS.md).
    """
    if kind != "budgets":
        return 1.0
    groups = len(np.unique(_budgets(data)))
    return float(np.sqrt(groups / (groups - 1)) * stats.t.ppf(0.5 + LEVEL / 2, groups - 1) / stats.norm.ppf(0.975))


def noise_scale(
    estimate: PointEstimate, runs: np.ndarray | None = None, noise: NoiseModel | None = None
) -> tuple[float, int]:
    """Return the standard deviation of one measured loss about the law, relative or in nats, and degrees of freedom.

    Where the noise is a power of compute, it is that at the geometric mean of the FLOPs, without what budgets share.

    With Huber's function, residuals count up to 3.5 times the typical one, so that outliers determine the noise as
    little as the fit. (5% of the runs with ten times the noise would triple the root mean square.) With `runs`, the
    degrees of freedom are those of the larger part of the noise. `noise` is that of the fit.
    """
    levels = _noise_levels(estimate, runs, noise)
    return float(np.sqrt(sum(scale**2 for scale, _ in levels))), max(levels)[1]


def _budgets(data: Data) -> np.ndarray:
    budgets = np.asarray(data.get("budget", np.array([np.nan])))
    if np.isnan(budgets).any():
        raise ValueError("a bootstrap by budgets needs the column `budget` in every row; draw rows instead")
    if (count := len(np.unique(budgets))) < _MIN_BUDGETS:
        raise ValueError(
            f"a bootstrap by budgets needs {_MIN_BUDGETS} budgets, but there are {count}; draw rows instead"
        )
    return budgets


def _noise_levels(
    estimate: PointEstimate, runs: np.ndarray | None, noise: NoiseModel | None
) -> list[tuple[float, int]]:
    """Return scale and degrees of freedom of the noise per row; with `runs`, of the noise per run and then per row.

    What budgets share is not in them. With `runs`, the residuals hold it, so that it is the measured noise per run.
    """
    residuals, p = estimate.residuals, len(estimate.parameters)
    robust = bool(np.isfinite(estimate.objective_kind.delta))
    if runs is None:
        return [_scale(residuals, len(residuals) - p, robust)]
    _, run, counts = np.unique(runs, return_inverse=True, return_counts=True)
    means = np.bincount(run, weights=residuals) / counts
    within_runs = residuals - means[run]
    scale, dof = _scale(means, len(means) - p, robust)
    if noise is not None and noise.shared and estimate.objective_kind.logarithmic:
        scale, dof = min(scale, noise.level), max(round(noise.dof), 1)
    return [(scale, dof), _scale(within_runs, len(residuals) - len(means), robust)]


def _scale(residuals: np.ndarray, dof: int, robust: bool) -> tuple[float, int]:
    """Return the standard deviation of the noise behind residuals, and their degrees of freedom, at least 1."""
    dof = max(dof, 1)
    if robust and dof >= _MIN_DOF_TO_CLIP:
        limit = _CLIP * typical_size(residuals, dof)
        residuals = np.clip(residuals, -limit, limit)
    return float(np.sqrt(residuals @ residuals / dof)), dof


def _simulated_losses(
    estimate: PointEstimate,
    data: Data,
    runs: np.ndarray | None,
    model: NoiseModel | None,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return losses (draws, rows) of the same rows with new noise about the law."""
    fitted = estimate.law.loss(estimate.parameters, data)
    noise = np.zeros((draws, len(fitted)))
    each_row = np.arange(len(fitted))
    by_level = [each_row] if runs is None else [np.unique(runs, return_inverse=True)[1], each_row]
    for (scale, dof), group in zip(_noise_levels(estimate, runs, model), by_level, strict=True):
        scales = scale * np.sqrt(dof / rng.chisquare(dof, size=(draws, 1)))
        noise += (scales * rng.standard_normal((draws, int(group.max()) + 1)))[:, group]
    if model is None and estimate.whitening is not None and estimate.whitening.scales is not None:
        noise = noise * estimate.whitening.scales
    if model is not None:
        shared = model.drawn_shared(data, draws, rng)
        noise = noise * model.drawn_ratios(data, draws, rng)
        noise += shared if estimate.objective_kind.logarithmic else shared * fitted
    if estimate.objective_kind.logarithmic:
        return np.asarray(fitted * np.exp(noise))
    return np.maximum(fitted + noise, np.finfo(float).tiny)


def refit(
    estimate: PointEstimate,
    data: Data,
    *,
    weights: np.ndarray | None = None,
    losses: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the law of `estimate` to many resamples: parameters (resamples, p) and objectives (resamples,).

    A resample counts the rows of `data` `weights` (resamples, rows) times, or has `losses` (resamples, rows) of its
    own, in nats. Every search starts from the estimate (or from `starts` (resamples, p)) and converges to a minimum;
    where the parameters of another resample give a lower objective, it restarts from those. Parameters marked in
    `fixed` (p,) stay at their starts. See `minimise_with_restart` for `known`.
    """
    problem = Problem.of(
        estimate.law,
        data,
        estimate.objective_kind,
        weights=weights,
        losses=losses,
        fixed=fixed,
        whitening=estimate.whitening,
    )
    count = len(problem.losses) if problem.losses.ndim == 2 else 0 if weights is None else len(weights)
    if starts is None:
        start = _with_positive_amplitudes(problem, estimate.parameters)
        starts = np.broadcast_to(start, (count, len(start)))
    else:
        starts = problem.scaled(starts)
    stall = 0.0 if fixed is None else _HELD_STALL
    minima = minimise_with_restart(problem, starts, tolerance=_REFIT_TOLERANCE, stall=stall, known=known)
    if fixed is None:
        _restart_from_neighbours(problem, minima)
    return problem.unscaled(minima.parameters), minima.objectives


def _with_positive_amplitudes(problem: Problem, parameters: np.ndarray) -> np.ndarray:
    """Return the parameters (p,) for scaled columns, with amplitudes of zero raised to 1e-3 of the loss.

    At an amplitude of zero the exponent has no slope, so a resample that needs the term could not change its exponent.
    """
    k = problem.law.linear_count
    at = problem.scaled(parameters)
    largest = np.abs(problem.law.basis(at[None, k:], problem.data)[0]).max(axis=0)
    small = 1e-3 * problem.losses.mean() / np.maximum(largest, 1e-300)
    return np.concatenate([np.where(at[:k] > 0, at[:k], small), at[k:]])


def _restart_from_neighbours(problem: Problem, minima: Minima) -> None:
    """Replace the minima of searches that end lower when they start from another resample's parameters."""
    sample = np.linspace(0, len(minima.parameters) - 1, min(_NEIGHBOURS, len(minima.parameters))).astype(int)
    candidates = np.unique(minima.parameters[sample], axis=0)
    values = _cross_objectives(problem, candidates)
    best = np.argmin(values, axis=1)
    trapped = np.flatnonzero(values.min(axis=1) < minima.objectives * (1 - _MIN_IMPROVEMENT))
    if not len(trapped):
        return
    second = minimise_with_restart(problem.subset(trapped), candidates[best[trapped]], tolerance=_REFIT_TOLERANCE)
    better = second.objectives < minima.objectives[trapped]
    minima.parameters[trapped[better]] = second.parameters[better]
    minima.objectives[trapped[better]] = second.objectives[better]


def _cross_objectives(problem: Problem, candidates: np.ndarray) -> np.ndarray:
    """Return the objective of each resample at each candidate (candidates, p): (resamples, candidates)."""
    with np.errstate(all="ignore"):  # a candidate may leave the law's domain on another resample's rows
        fitted = problem.law.loss(candidates, problem.data)
        if problem.losses.ndim == 1:
            assert problem.weights is not None
            residuals = problem.residuals(problem.losses, fitted)
            values = problem.weights @ problem.objective.terms(residuals).T
        else:
            residuals_of = (problem.residuals(problem.losses, losses) for losses in fitted)
            values = np.stack([problem.objective.value(each, problem.weights) for each in residuals_of], axis=1)
    return np.where(np.isnan(values), np.inf, values)
