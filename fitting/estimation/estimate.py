"""Fitting a law: variable projection on a grid of exponents for the starts, then damped Newton steps from the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from isoloop.fitting.estimation.levenberg_marquardt import Descended, Problem, descend, descend_twice
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.laws.base import Data, Law

_STARTS = 10
_FIRST_STEPS = 10
_FINALISTS, _FINALISTS_OF_MANY = 5, 10
"""Searches followed to their end: more where a law has more than 5 parameters, and so more minima."""
_FEW_PARAMETERS = 5
_SAME_PLACE = 1e-2
"""Relative difference of all parameters below which two searches go to one place."""
_SMALLEST_SHARE = 1e-9
"""An amplitude whose term is below this share of the loss is zero: at its lower bound."""
_SMALLEST_START = 1e-6
"""Share of the loss at which an amplitude starts that can only move by factors."""
_DEPENDENT = 1e-6
"""Smallest singular value of the unit slopes, below which parameters can't be told apart."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The best fit of one law: `parameters` (p,), `residuals` (rows,) as its objective takes them, how it was
    found.

    `degenerate` says that some parameters trade off so closely that the losses don't tell them apart.
    """

    law: Law
    parameters: np.ndarray
    residuals: np.ndarray
    objective: float
    objective_kind: Objective
    converged: bool
    degenerate: bool
    at_bounds: tuple[str, ...]


def fit_law(law: Law, data: Data, objective: Objective = HUBER, *, weights: np.ndarray | None = None) -> Estimate:
    """Fit `law` to the rows of `data` (columns of shape (rows,), loss in nats per token).

    Each row counts `weights` (rows,) times. Raises ValueError if a column is missing, a value isn't positive and
    finite, a column is constant, or there are fewer rows than parameters + 1. A parameter at its bound is listed in
    `at_bounds`.
    """
    columns = checked_columns(law, data)
    counts = _checked_weights(weights, len(columns["loss"]))
    problem = Problem.of(law, columns, objective, weights=counts[None])
    begun = starts(problem)
    first = descend(_repeated(problem, len(begun)), begun, steps=_FIRST_STEPS)
    simpler = law.simpler({**problem.data, "loss": columns["loss"]}, _quick(objective, counts))
    count = _FINALISTS if len(law.parameters) <= _FEW_PARAMETERS else _FINALISTS_OF_MANY
    finalists = np.concatenate([_distinct(first, count), *(one[None] for one in simpler)])
    ended = descend_twice(_repeated(problem, len(finalists)), finalists)
    best = int(np.argmin(ended.objectives))
    parameters = _snapped(problem, ended.parameters[best])
    residuals = objective.residuals(columns["loss"], law.loss(parameters, problem.data))
    return Estimate(
        law=law,
        parameters=problem.natural(parameters),
        residuals=residuals,
        objective=float(objective.value(residuals, counts)),
        objective_kind=objective,
        converged=bool(ended.settled[best]),
        degenerate=_degenerate(problem, parameters),
        at_bounds=_at_bounds(law, parameters),
    )


def _quick(objective: Objective, weights: np.ndarray) -> Callable[[Law, Data], np.ndarray]:
    """How a law asks for the fit of a simpler one that it contains, to the same rows: its parameters."""
    return lambda law, data: fit_law(law, data, objective, weights=weights).parameters


def _distinct(ends: Descended, count: int) -> np.ndarray:
    """The best `count` ends (count, p) of searches that are not the same place."""
    order = np.argsort(ends.objectives, kind="stable")
    kept: list[int] = []
    for one in order:
        here, others = ends.parameters[one], ends.parameters[kept]
        same = np.abs(others - here) <= _SAME_PLACE * (np.abs(others) + np.abs(here))
        if not same.all(axis=1).any():
            kept.append(int(one))
        if len(kept) == count:
            break
    return ends.parameters[kept]


def starts(problem: Problem) -> np.ndarray:
    """Scaled parameters (starts, p): the best points of the law's grid for the first fit, with their amplitudes."""
    law, data = problem.law, problem.data
    grid = law.start_grid()
    assert problem.weights is not None
    root = np.sqrt(problem.weights[0])
    basis = law.basis(grid, data) * (root / problem.losses)[:, None]
    target = root * (1 - law.offset(data) / problem.losses)
    candidates = np.concatenate([_non_negative_least_squares(basis, target), grid], axis=1)
    for place in np.flatnonzero([parameter.logarithmic for parameter in law.parameters]):
        candidates[:, place] = np.maximum(candidates[:, place], _SMALLEST_START * problem.losses.mean())
    with np.errstate(all="ignore"):  # where every amplitude is zero, or a law leaves its domain
        values = _repeated(problem, len(candidates)).objectives(candidates)
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
    _, first_of_kind = np.unique(candidates[order, : law.linear_count] > 0, axis=0, return_index=True)
    chosen = np.unique(np.concatenate([np.arange(min(_STARTS, len(order))), first_of_kind]))
    return candidates[order[chosen]]


def _repeated(problem: Problem, count: int) -> Problem:
    """The first fit of the problem, `count` times."""
    assert problem.weights is not None
    return replace(problem, weights=np.broadcast_to(problem.weights[0], (count, problem.weights.shape[1])))


def _snapped(problem: Problem, parameters: np.ndarray) -> np.ndarray:
    """Parameters (p,) with linear ones of no account set to exactly zero."""
    k = problem.law.linear_count
    terms = parameters[:k] * np.abs(problem.law.basis(parameters[None, k:], problem.data)[0]).max(axis=0)
    kept = np.where(terms < _SMALLEST_SHARE * problem.losses.mean(), 0.0, parameters[:k])
    return np.concatenate([kept, parameters[k:]])


def _checked_weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    if weights is None:
        return np.ones(rows)
    counts = np.asarray(weights, dtype=float)
    if counts.shape != (rows,) or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
        raise ValueError(f"weights must be {rows} finite numbers of 0 or more, not all 0, but got {weights!r}")
    return counts


def _counted(problem: Problem) -> dict[str, np.ndarray]:
    """The rows that count at all in the first fit."""
    assert problem.weights is not None
    kept = problem.weights[0] > 0
    return {name: values[kept] for name, values in problem.data.items()}


def _degenerate(problem: Problem, parameters: np.ndarray) -> bool:
    """Whether the slopes by the parameters (p,) that are not at zero are nearly dependent."""
    # A term that is not there leaves its exponent without a slope, which its bound already says.
    gone = np.zeros(len(parameters), dtype=bool)
    gone[: problem.law.linear_count] = parameters[: problem.law.linear_count] == 0
    slopes = problem.law.loss_and_gradient(parameters, _counted(problem))[1]
    if gone.any():
        slopes = slopes[:, ~gone & (np.linalg.norm(slopes, axis=0) > 0)]
    lengths = np.linalg.norm(slopes, axis=0)
    if not len(lengths):  # no term is there
        return False
    if (lengths == 0).any() or len(slopes) < len(lengths):
        return True
    return bool(np.linalg.svd(slopes / lengths, compute_uv=False)[-1] < _DEPENDENT)


def checked_columns(law: Law, data: Data) -> dict[str, np.ndarray]:
    """The columns that a fit of `law` reads, checked; raises ValueError as `fit_law` does."""
    missing = [name for name in (*law.columns, "loss") if name not in data]
    if missing:
        raise ValueError(
            f"the {law.name} law reads {', '.join(law.columns)} and loss, but {', '.join(missing)} is missing"
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
        bad = np.flatnonzero(~(positive & np.isfinite(values)))
        if len(bad):
            raise ValueError(
                f"`{name}` must be positive and finite, but row {bad[0]} has {values[bad[0]]}; drop that row"
            )
        if name in (*law.varying, "loss") and np.ptp(values) <= 1e-9 * values.max():
            raise ValueError(
                f"the {law.name} law needs `{name}` to vary, but all {rows} rows have {values[0]:g}; "
                "add runs with other values"
            )
    return columns


def _non_negative_least_squares(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Amplitudes >= 0 whose combination of the columns is nearest to `target` (rows,): (batch, rows, k) to (batch, k).

    Exact, by trying every set of columns, which is quick for the few columns that a law has.
    """
    batch, _, k = basis.shape
    norms = np.linalg.norm(basis, axis=1)
    unit = basis / norms[:, None, :]
    gram, projection = np.matmul(unit.transpose(0, 2, 1), unit), np.matmul(target, unit)
    whole = float(target @ target)
    best, misfit = np.zeros((batch, k)), np.full(batch, whole)
    for chosen in _subsets(k):
        some = gram[:, chosen][:, :, chosen] + 1e-13 * np.eye(len(chosen))
        solution = np.linalg.solve(some, projection[:, chosen][..., None])[..., 0]
        missed = whole - np.einsum("bk,bk->b", solution, projection[:, chosen])
        better = (solution >= 0).all(axis=1) & (missed < misfit)
        misfit = np.where(better, missed, misfit)
        candidate = np.zeros((batch, k))
        candidate[:, chosen] = solution
        best = np.where(better[:, None], candidate, best)
    return best / norms


def _subsets(k: int) -> Iterator[list[int]]:
    for size in range(1, k + 1):
        for chosen in combinations(range(k), size):
            yield list(chosen)


def _at_bounds(law: Law, parameters: np.ndarray) -> tuple[str, ...]:
    names = []
    for parameter, value in zip(law.parameters, parameters, strict=True):
        span = 1e-6 * (parameter.upper - parameter.lower if np.isfinite(parameter.upper) else 0.0)
        if value <= parameter.lower + span or value >= parameter.upper - span:
            names.append(parameter.name)
    return tuple(names)
