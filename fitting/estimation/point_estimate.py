"""The best fit of one law to one table, from starts found by variable projection on a grid of exponents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from isoloop.fitting.estimation.levenberg_marquardt import Minima, Problem, minimise, minimise_with_restart
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.laws.base import Data, Law

_STARTS = 10
_FIRST_STEPS = 10
_CANDIDATES, _CANDIDATES_OF_LARGE_LAWS = 5, 10
"""Searches that are continued: more for a law of more than 5 parameters, which has more minima."""
_FINALISTS = 3
"""Of more candidates, those that are searched to convergence, after all of them have come near a minimum."""
_PARAMETERS_OF_FINALISTS = 6
"""Laws of more parameters have so many minima that all candidates are searched to convergence."""
_NEAR_STEPS, _NEAR_TOLERANCE = 25, 1e-6
_FEW_PARAMETERS = 5
_SAMPLE_ROWS = 1000
LARGE_TABLE = 4000
"""Rows from which the search starts from the fit to a sample, and intervals need no refits."""
_SAME_POINT = 1e-2
"""Relative difference of all parameters below which two searches are taken to go to the same minimum."""
_NEGLIGIBLE_SHARE = 1e-9
"""An amplitude whose term is below this share of the loss is set to zero, its lower bound."""
_SMALLEST_START = 1e-6
"""Share of the loss at which an amplitude starts whose steps are in its logarithm."""
_DEPENDENT = 1e-6
"""Smallest singular value of the normalised slopes below which the parameters are called degenerate."""


@dataclass(frozen=True, kw_only=True)
class PointEstimate:
    """The best fit of one law: `parameters` (p,) and the `residuals` (rows,) of its objective.

    The residuals are those that `whitening` makes equally uncertain. `degenerate` says that some parameters trade off
    so closely that the losses do not tell them apart.
    """

    law: Law
    parameters: np.ndarray
    residuals: np.ndarray
    objective: float
    objective_kind: Objective
    converged: bool
    degenerate: bool
    at_bounds: tuple[str, ...]
    whitening: Whitening | None = None


def point_estimate(
    law: Law,
    data: Data,
    objective: Objective = HUBER,
    *,
    weights: np.ndarray | None = None,
    whitening: Whitening | None = None,
) -> PointEstimate:
    """Fit `law` to the rows of `data` (columns of shape (rows,), loss in nats per token), without intervals.

    Each row counts `weights` (rows,) times, and residuals of unequal or shared noise go through `whitening`. A
    parameter at its bound is listed in `at_bounds`. Of more than 4,000 rows, a sample of 1,000 is fitted first, and the
    search starts from its minimum. Raises ValueError if a column is missing or constant, a value isn't positive and
    finite, or there are fewer rows than parameters + 1.
    """
    columns = checked_columns(law, data)
    counts = _checked_weights(weights, len(columns["loss"]))
    problem = Problem.of(law, columns, objective, weights=counts[None], whitening=whitening)
    if len(counts) > LARGE_TABLE:
        rows = _sample(columns, counts)
        few = {name: values[rows] for name, values in columns.items()}
        of_few = None if whitening is None else whitening.subset(rows)
        start = point_estimate(law, few, objective, weights=counts[rows], whitening=of_few).parameters
        minima = minimise(problem, problem.scaled(start)[None])
    else:
        candidates = _candidates(problem, columns, counts)
        if len(law.parameters) <= _PARAMETERS_OF_FINALISTS and len(candidates) > _CANDIDATES + _FINALISTS:
            candidates = _distinct(_near_minima(problem, candidates), _FINALISTS)
        minima = minimise_with_restart(_repeated(problem, len(candidates)), candidates)
    # The lowest minimum.
    best = int(np.argmin(minima.objectives))
    parameters = _without_negligible_terms(problem, minima.parameters[best])
    residuals = problem.residuals(columns["loss"], law.loss(parameters, problem.data))
    return PointEstimate(
        law=law,
        parameters=problem.unscaled(parameters),
        residuals=residuals,
        objective=float(objective.value(residuals, counts)),
        objective_kind=objective,
        converged=bool(minima.converged[best]),
        degenerate=_degenerate(problem, parameters),
        at_bounds=_at_bounds(law, parameters),
        whitening=whitening,
    )


def _candidates(problem: Problem, columns: Data, counts: np.ndarray) -> np.ndarray:
    """Return the starts (candidates, p) worth a search to convergence.

    These are the best distinct ends of a few steps from each start, and the fits of simpler laws.
    """
    law = problem.law
    start_points = starts(problem)
    first = minimise(_repeated(problem, len(start_points)), start_points, steps=_FIRST_STEPS)
    data = {**problem.data, "loss": columns["loss"]}
    simpler = law.simpler(data, lambda law, data: _near_estimate(law, data, problem, counts))
    count = _CANDIDATES if len(law.parameters) <= _FEW_PARAMETERS else _CANDIDATES_OF_LARGE_LAWS
    return np.concatenate([_distinct(first, count), *(parameters[None] for parameters in simpler)])


def _near_minima(problem: Problem, candidates: np.ndarray) -> Minima:
    """Return the candidates (candidates, p) after some steps, near their minima."""
    repeated = _repeated(problem, len(candidates))
    return minimise(repeated, candidates, steps=_NEAR_STEPS, tolerance=_NEAR_TOLERANCE)


def _near_estimate(law: Law, data: Data, like: Problem, counts: np.ndarray) -> np.ndarray:
    """Return parameters (p,) near the best fit of a simpler law to rows that are those of the problem `like`."""
    columns = checked_columns(law, data)
    problem = Problem.of(law, columns, like.objective, weights=counts[None], whitening=like.whitening)
    minima = _near_minima(problem, _candidates(problem, columns, counts))
    return problem.unscaled(minima.parameters[int(np.argmin(minima.objectives))])


def _sample(columns: Data, counts: np.ndarray) -> np.ndarray:
    """Return 1,000 random indices of rows that count, with the smallest and largest of each column, sorted."""
    rows = np.flatnonzero(counts > 0)
    extremes = [rows[pick(values[rows])] for values in columns.values() for pick in (np.argmin, np.argmax)]
    drawn = np.random.default_rng(0).choice(rows, min(_SAMPLE_ROWS, len(rows)), replace=False)
    return np.unique([*drawn, *extremes])


def _distinct(minima: Minima, count: int) -> np.ndarray:
    """Return the `count` points (count, p) of least objective that are not the same point twice."""
    kept: list[int] = []
    for candidate in np.argsort(minima.objectives, kind="stable"):
        point, others = minima.parameters[candidate], minima.parameters[kept]
        same = np.abs(others - point) <= _SAME_POINT * (np.abs(others) + np.abs(point))
        if not same.all(axis=1).any():
            kept.append(int(candidate))
        if len(kept) == count:
            break
    return minima.parameters[kept]


def starts(problem: Problem) -> np.ndarray:
    """Return scaled parameters (starts, p): the best points of the law's grid for the first fit, with amplitudes.

    Amplitudes are those of non-negative least squares at the grid's nonlinear parameters. The best point with each
    pattern of zero amplitudes is among the starts.
    """
    law, data = problem.law, problem.data
    grid = law.start_grid()
    assert problem.weights is not None
    root = np.sqrt(problem.weights[0])
    if problem.whitening is not None and problem.whitening.scales is not None:
        root = root / problem.whitening.scales
    basis = law.basis(grid, data) * (root / problem.losses)[:, None]
    target = root * (1 - law.offset(data) / problem.losses)
    candidates = np.concatenate([_non_negative_least_squares(basis, target), grid], axis=1)
    for place in np.flatnonzero([parameter.logarithmic for parameter in law.parameters]):
        candidates[:, place] = np.maximum(candidates[:, place], _SMALLEST_START * problem.losses.mean())
    with np.errstate(all="ignore"):  # where every amplitude is zero, or a law leaves its domain
        values = _repeated(problem, len(candidates)).objectives(candidates)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    _, first_of_pattern = np.unique(candidates[order, : law.linear_count] > 0, axis=0, return_index=True)
    chosen = np.unique(np.concatenate([np.arange(min(_STARTS, len(order))), first_of_pattern]))
    return candidates[order[chosen]]


def _repeated(problem: Problem, count: int) -> Problem:
    """Return the first fit of the problem, `count` times."""
    assert problem.weights is not None
    return replace(problem, weights=np.broadcast_to(problem.weights[0], (count, problem.weights.shape[1])))


def _without_negligible_terms(problem: Problem, parameters: np.ndarray) -> np.ndarray:
    """Return parameters (p,) with the amplitudes of negligible terms set to exactly zero."""
    k = problem.law.linear_count
    terms = parameters[:k] * np.abs(problem.law.basis(parameters[None, k:], problem.data)[0]).max(axis=0)
    kept = np.where(terms < _NEGLIGIBLE_SHARE * problem.losses.mean(), 0.0, parameters[:k])
    return np.concatenate([kept, parameters[k:]])


def _checked_weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    if weights is None:
        return np.ones(rows)
    counts = np.asarray(weights, dtype=float)
    if counts.shape != (rows,) or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
        raise ValueError(f"weights must be {rows} finite numbers of 0 or more, not all 0, but got {counts}")
    return counts


def _degenerate(problem: Problem, parameters: np.ndarray) -> bool:
    """Return True if the slopes by the parameters (p,) that are not zero are nearly linearly dependent."""
    assert problem.weights is not None
    counted = problem.weights[0] > 0
    data = {name: values[counted] for name, values in problem.data.items()}
    slopes = problem.law.loss_and_gradient(parameters, data)[1]
    # The exponent of a term of zero has no slope; the amplitude at its bound already says so.
    zero = np.zeros(len(parameters), dtype=bool)
    zero[: problem.law.linear_count] = parameters[: problem.law.linear_count] == 0
    if zero.any():
        slopes = slopes[:, ~zero & (np.linalg.norm(slopes, axis=0) > 0)]
    lengths = np.linalg.norm(slopes, axis=0)
    if not len(lengths):  # every term is zero
        return False
    if (lengths == 0).any() or len(slopes) < len(lengths):
        return True
    return bool(np.linalg.svd(slopes / lengths, compute_uv=False)[-1] < _DEPENDENT)


def checked_columns(law: Law, data: Data) -> dict[str, np.ndarray]:
    """Return the columns that a fit of `law` reads. Raises ValueError as `point_estimate` does."""
    missing = [name for name in (*law.columns, "loss") if name not in data]
    if missing:
        raise ValueError(
            f"the {law.name} law reads {', '.join(law.columns)} and loss, but {', '.join(missing)} is missing; add it"
        )
    columns = {name: np.asarray(data[name], dtype=float) for name in (*law.columns, "loss")}
    rows, needed = len(columns["loss"]), len(law.parameters) + 1
    if rows < needed:
        raise ValueError(
            f"the {law.name} law has {len(law.parameters)} parameters and needs at least {needed} rows, but got "
            f"{rows}; add runs to the sweep"
        )
    for name, values in columns.items():
        positive = values >= 0 if name in law.may_be_zero else values > 0
        invalid = np.flatnonzero(~(positive & np.isfinite(values)))
        if len(invalid):
            raise ValueError(
                f"`{name}` must be positive and finite, but row {invalid[0]} has {values[invalid[0]]}; drop that row"
            )
        if name in (*law.varying, "loss") and np.ptp(values) <= 1e-9 * values.max():
            raise ValueError(
                f"the {law.name} law needs `{name}` to vary, but all {rows} rows have {values[0]:g}; "
                "add runs with other values"
            )
    unfit = law.why_unfit(columns)
    if unfit is not None:
        raise ValueError(unfit)
    return columns


def _non_negative_least_squares(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the non-negative least-squares fits of `target` (rows,): basis (batch, rows, k) to (batch, k).

    They are exact, by trying every subset of the few columns that a law has.
    """
    batch, _, k = basis.shape
    norms = np.linalg.norm(basis, axis=1)
    unit = basis / norms[:, None, :]
    gram, projection = np.matmul(unit.transpose(0, 2, 1), unit), np.matmul(target, unit)
    total = float(target @ target)
    best, misfit = np.zeros((batch, k)), np.full(batch, total)
    for chosen in (list(subset) for size in range(1, k + 1) for subset in combinations(range(k), size)):
        normal = gram[:, chosen][:, :, chosen] + 1e-13 * np.eye(len(chosen))
        solution = np.linalg.solve(normal, projection[:, chosen][..., None])[..., 0]
        residual = total - np.einsum("bk,bk->b", solution, projection[:, chosen])
        better = (solution >= 0).all(axis=1) & (residual < misfit)
        misfit = np.where(better, residual, misfit)
        candidate = np.zeros((batch, k))
        candidate[:, chosen] = solution
        best = np.where(better[:, None], candidate, best)
    return best / norms


def _at_bounds(law: Law, parameters: np.ndarray) -> tuple[str, ...]:
    names = []
    for parameter, value in zip(law.parameters, parameters, strict=True):
        span = 1e-6 * (parameter.upper - parameter.lower if np.isfinite(parameter.upper) else 0.0)
        if value <= parameter.lower + span or value >= parameter.upper - span:
            names.append(parameter.name)
    return tuple(names)
