"""One law fitted to many resamples of a table at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fitting.descent import Descended, Problem, descend_twice
from fitting.estimate import Estimate
from fitting.law import Data

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
