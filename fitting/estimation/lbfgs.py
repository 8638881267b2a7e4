"""The papers' way to fit a law, for comparison: log-sum-exp form, L-BFGS from a grid of starts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize

from isoloop.fitting.estimation.estimate import checked_columns
from isoloop.fitting.estimation.levenberg_marquardt import Problem
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.laws.base import Data, Law

_LOG_AMPLITUDES = (-4.0, -2.0, 0.0)
"""Terms of e^-4 = .02 to 1 nats per token at the middle of the data."""


@dataclass(frozen=True, kw_only=True)
class Descents:
    """What L-BFGS found from every start: the best parameters (p,), natural, and every start's objective (starts,)."""

    parameters: np.ndarray
    objective: float
    objectives: np.ndarray

    @property
    def share_at_best(self) -> float:
        """Share of the starts that ended within 1e-6 (relative) of the best."""
        return float(np.mean(self.objectives <= self.objective * (1 + 1e-6)))


def fit_by_lbfgs(law: Law, data: Data, objective: Objective = HUBER, *, exponents: int = 3) -> Descents:
    """Fit a sum of positive terms as Hoffmann et al. 2022 (appendix D.3) did: each term is the exponential of a sum.

    The search moves in the logarithms of the linear parameters, from every combination of 3 values of each with
    `exponents` values of each nonlinear one. Unlike theirs, columns are scaled to a geometric mean of 1, the objective
    is scaled to 1 where it starts (scipy's tolerances are absolute), and tolerances are tight, so that it ends where it
    should. Raises ValueError as `fit_law` does, and for a law that is not a sum of such terms.
    """
    k = law.linear_count
    if k < 2:
        raise ValueError(f"the {law.name} law is no sum of terms with factors of their own, so it has no such form")
    problem = Problem.of(law, checked_columns(law, data), objective)
    nonlinear = [np.quantile(p.starts, np.linspace(0, 1, exponents + 2)[1:-1]) for p in law.parameters[k:]]
    starts = np.array(list(product(*[_LOG_AMPLITUDES] * k, *nonlinear)))
    bounds = [(None, None)] * k + [(parameter.lower, parameter.upper) for parameter in law.parameters[k:]]
    ends = [_descend(problem, start, bounds) for start in starts]
    objectives = np.array([value for _, value in ends])
    best = int(np.argmin(objectives))
    return Descents(parameters=problem.natural(ends[best][0]), objective=float(objectives[best]), objectives=objectives)


def _descend(problem: Problem, start: np.ndarray, bounds: list) -> tuple[np.ndarray, float]:
    k, objective = problem.law.linear_count, problem.objective

    def natural(at: np.ndarray) -> np.ndarray:
        return np.concatenate([np.exp(np.clip(at[:k], -700, 50)), at[k:]])

    def value_and_slope(at: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = natural(at)
        fitted, slopes = problem.law.loss_and_gradient(parameters, problem.data)
        residuals = objective.residuals(problem.losses, fitted)
        pull = np.clip(residuals, -objective.delta, objective.delta)
        by_fitted = pull / fitted if objective.logarithmic else pull
        slope = -by_fitted @ slopes
        slope[:k] *= parameters[:k]
        return float(objective.value(residuals)) / scale, slope / scale

    scale = 1.0
    scale = max(value_and_slope(start)[0], 1e-300)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-11}
    found = optimize.minimize(value_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return natural(found.x), float(found.fun) * scale
