"""The same bootstrap refitted in three ways, one of which does not move (a study of misleading.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from benchmarks.fitting.peers import scipy_many_starts
from benchmarks.fitting.problem import LogProblem
from benchmarks.fitting.studies import LAW, NOISE, Span, noisy, quiet_table
from isoloop.fitting import HUBER, point_estimate
from isoloop.fitting.estimation.bootstrap import interval, refit, resampled_counts
from isoloop.fitting.tables.runs import law_data


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The bootstrap of one parameter over the same resamples, refitted in one `way`: values (resamples,), their 95%.

    `worst` is the largest excess of an objective over the best found for its resample, in percent.
    """

    way: str
    parameter: str
    estimate: float
    values: np.ndarray
    interval: Span
    worst: float


def warm_start(*, noise: float = NOISE, resamples: int = 60, starts: int = 6, seed: int = 0) -> list[WarmStart]:
    """Draw rows with replacement, and refit by `refit`, by scipy from many starts, and by one warm L-BFGS each.

    The last minimises the sum over runs of Huber's function as it is, from the estimate, with scipy's default
    tolerances: they are absolute, and the sum is about 1e-5.
    """
    data = law_data(noisy(quiet_table(), noise, seed))
    N, D, loss = data["effective_params"], data["tokens"], data["loss"]
    estimate = point_estimate(LAW, data)
    weights = resampled_counts(np.arange(len(loss)), resamples, np.random.default_rng(seed))
    ours, ours_objectives = refit(estimate, data, weights=weights)
    careful = [scipy_many_starts(N, D, loss, weights=one, starts=starts) for one in weights]
    problems = [LogProblem(N, D, loss, HUBER.delta, weights=one, centred=False) for one in weights]
    warm = [problem.fit(_once(problem, estimate.parameters)) for problem in problems]
    ways = {
        "one warm-started L-BFGS": (np.array([fit.parameters for fit in warm]), [fit.objective for fit in warm]),
        "many starts": (np.array([fit.parameters for fit in careful]), [fit.objective for fit in careful]),
        "ours": (ours, ours_objectives),
    }
    best = np.min([objectives for _, objectives in ways.values()], axis=0)
    return [
        WarmStart(
            way=way,
            parameter=name,
            estimate=float(estimate.parameters[place]),
            values=values[:, place],
            interval=interval(values[:, place]),
            worst=float(100 * (np.array(objectives) / best - 1).max()),
        )
        for way, (values, objectives) in ways.items()
        for place, name in ((0, "E"), (3, "x"), (4, "y"))
    ]


def _once(problem: LogProblem, parameters: np.ndarray) -> np.ndarray:
    def raw(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.value_and_gradient(x)
        return value * problem.unit, gradient * problem.unit

    return np.asarray(optimize.minimize(raw, problem.coordinates(parameters), jac=True, method="L-BFGS-B").x)
