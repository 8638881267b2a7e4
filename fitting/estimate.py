"""Fitting a law: variable projection on a grid of exponents for the starts, then damped Newton steps from the best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from fitting.descent import Problem, descend, descend_twice
from fitting.law import Data, Law
from fitting.objective import HUBER, Objective

_STARTS = 10
_FIRST_STEPS = 10
_FINALISTS = 3
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

    `others` (n, p) are the ends of further searches, none of them better. `degenerate` says that some parameters trade
    off so closely that the losses don't tell them apart.
    """

    law: Law
    parameters: np.ndarray
    residuals: np.ndarray
    objective: float
    objective_kind: Objective
    converged: bool
    degenerate: bool
    at_bounds: tuple[str, ...]
    others: np.ndarray


def fit_law(law: Law, data: Data, objective: Objective = HUBER, *, weights: np.ndarray | None = None) -> Estimate:
    """Fit `law` to the rows of `data` (columns of shape (rows,), loss in nats per token).

    Each row counts `weights` (rows,) times. Raises ValueError if a column is missing, a value isn't positive and
    finite, a column is constant, or there are fewer rows than parameters + 1. A parameter at its bound is listed in
    `at_bounds`.
    """
    columns = checked_columns(law, data)
    counts = np.ones(len(columns["loss"])) if weights is None else np.asarray(weights, dtype=float)
    problem = Problem.of(law, columns, objective, weights=counts[None])
    begun = starts(problem)
    first = descend(_repeated(problem, len(begun)), begun, steps=_FIRST_STEPS)
    finalists = first.parameters[np.argsort(first.objectives, kind="stable")[:_FINALISTS]]
    ended = descend_twice(_repeated(problem, len(finalists)), finalists)
    order = np.argsort(ended.objectives, kind="stable")
    best = int(order[0])
    parameters = _snapped(problem, ended.parameters[best])
    return Estimate(
        law=law,
        parameters=problem.natural(parameters),
        residuals=objective.residuals(columns["loss"], law.loss(parameters, problem.data)),
        objective=float(ended.objectives[best]),
        objective_kind=objective,
        converged=bool(ended.settled[best]),
        degenerate=_degenerate(problem, parameters),
        at_bounds=_at_bounds(law, parameters),
        others=problem.natural(ended.parameters[order[1:]]),
    )


def starts(problem: Problem) -> np.ndarray:
    """Scaled parameters (starts, p): the best points of the law's grid for the first fit, with their amplitudes."""
    law, data = problem.law, problem.data
    grid = law.start_grid()
    root = np.ones(len(problem.losses)) if problem.weights is None else np.sqrt(problem.weights[0])
    basis = law.basis(grid, data) * (root / problem.losses)[:, None]
    target = root * (1 - law.offset(data) / problem.losses)
    candidates = np.concatenate([_non_negative_least_squares(basis, target), grid], axis=1)
    for place in np.flatnonzero([parameter.logarithmic for parameter in law.parameters]):
        candidates[:, place] = np.maximum(candidates[:, place], _SMALLEST_START * problem.losses.mean())
    with np.errstate(divide="ignore"):  # where every amplitude is zero
        values = _repeated(problem, len(candidates)).objectives(candidates)
    return candidates[np.argsort(values, kind="stable")[:_STARTS]]


def _repeated(problem: Problem, count: int) -> Problem:
    """The first fit of the problem, `count` times."""
    assert problem.weights is not None
    return replace(problem, weights=np.broadcast_to(problem.weights[0], (count, problem.weights.shape[1])))


def _snapped(problem: Problem, parameters: np.ndarray) -> np.ndarray:
    """Parameters (p,) with linear ones of no account set to exactly zero."""
    k = problem.law.linear_count
    terms = parameters[:k] * problem.law.basis(parameters[None, k:], problem.data)[0].max(axis=0)
    kept = np.where(terms < _SMALLEST_SHARE * problem.losses.mean(), 0.0, parameters[:k])
    return np.concatenate([kept, parameters[k:]])


def _degenerate(problem: Problem, parameters: np.ndarray) -> bool:
    """Whether the slopes by the parameters (p,) that are not at zero are nearly dependent."""
    slopes = problem.law.loss_and_gradient(parameters, problem.data)[1][:, parameters != 0]
    lengths = np.linalg.norm(slopes, axis=0)
    if (lengths == 0).any():
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
