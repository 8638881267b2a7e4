"""Fits as in Hoffmann et al. 2022, for comparison: log-sum-exp form, L-BFGS from a grid of starts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize

from isoloop.fitting.estimation.levenberg_marquardt import Problem
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.point_estimate import checked_columns
from isoloop.fitting.laws.base import Data, Law

_LOG_AMPLITUDES = (-4.0, -2.0, 0.0)
"""Terms of e^-4 = .02 to 1 nats per token at the middle of the data."""


@dataclass(frozen=True, kw_only=True)
class MultistartResult:
    """The best parameters (p,), in the columns' own units, and the objective from every start (starts,)."""

    parameters: np.ndarray
    objective: float
    objectives: np.ndarray


def fit_by_lbfgs(law: Law, data: Data, objective: Objective = HUBER, *, exponents: int = 3) -> MultistartResult:
    """Fit a sum of positive terms as Hoffmann et al. 2022 (appendix D.3) did, with each term the exponential of a sum.

    The search is over the logarithms of the linear parameters, from every combination of 3 values of each with
    `exponents` values of each nonlinear one. Unlike theirs, columns are scaled to a geometric mean of 1, the objective
    is scaled to 1 at the start (scipy's tolerances are absolute), and tolerances are tight, so that it converges.
    Raises ValueError as `point_estimate` does, and for a law that is not a sum of such terms.
    """
    k = law.linear_count
    if k < 2:
        raise ValueError(
            f"L-BFGS needs a law that is a sum of terms with factors of their own, but the {law.name} law is not; "
            "fit it by `point_estimate`"
        )
    problem = Problem.of(law, checked_columns(law, data), objective)
    nonlinear = [np.quantile(p.starts, np.linspace(0, 1, exponents + 2)[1:-1]) for p in law.parameters[k:]]
    starts = np.array(list(product(*[_LOG_AMPLITUDES] * k, *nonlinear)))
    bounds = [(None, None)] * k + [(parameter.lower, parameter.upper) for parameter in law.parameters[k:]]
    minima = [_minimise(problem, start, bounds) for start in starts]
    objectives = np.array([value for _, value in minima])
    best = int(np.argmin(objectives))
    return MultistartResult(
        parameters=problem.unscaled(minima[best][0]), objective=float(objectives[best]), objectives=objectives
    )


def _minimise(problem: Problem, start: np.ndarray, bounds: list) -> tuple[np.ndarray, float]:
    k, objective = problem.law.linear_count, problem.objective

    def unlogged(at: np.ndarray) -> np.ndarray:
        return np.concatenate([np.exp(np.clip(at[:k], -700, 50)), at[k:]])

    def value_and_slope(at: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = unlogged(at)
        fitted, slopes = problem.law.loss_and_gradient(parameters, problem.data)
        residuals = objective.residuals(problem.losses, fitted)
        influence = np.clip(residuals, -objective.delta, objective.delta)
        by_fitted = influence / fitted if objective.logarithmic else influence
        slope = -by_fitted @ slopes
        slope[:k] *= parameters[:k]
        return float(objective.value(residuals)) / scale, slope / scale

    scale = 1.0
    scale = max(value_and_slope(start)[0], 1e-300)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-11}
    result = optimize.minimize(value_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return unlogged(result.x), float(result.fun) * scale
