"""Profile likelihood: how much worse a fit becomes when one parameter is held elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fitting.estimate import Estimate
from fitting.law import Data
from fitting.refit import refit
from fitting.uncertainty import LEVEL

_POINTS = 12
"""Values on each side of the estimate at which the others are fitted again, in each of two rounds."""
_REACH = 8.0
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One parameter held at `values`, the others fitted: `rise` is the objective's rise over its 95% threshold.

    The interval is where the rise stays below 1. An end is None where the rise does not reach 1 before the parameter's
    bound, or before the search gave up: the losses then set no limit on that side.
    """

    parameter: str
    values: tuple[float, ...]
    rise: tuple[float, ...]
    interval: tuple[float | None, float | None]


def profile(estimate: Estimate, data: Data, parameter: str, *, runs: np.ndarray | None = None) -> Profile:
    """The profile of one parameter by name.

    The threshold is the F distribution's 95% for the rise in units of the objective's own noise. For Huber's function
    that unit follows from the residuals (Kent 1982's correction of the likelihood ratio); where a run has several rows,
    pass their run ids as `runs` (rows,), and its rows count as one draw of luck. Raises ValueError for an unknown name.
    """
    law = estimate.law
    if parameter not in law.parameter_names:
        raise ValueError(
            f"a parameter of the {law.name} law is one of {', '.join(law.parameter_names)}, but got {parameter!r}"
        )
    at = law.parameter_names.index(parameter)
    fixed = np.arange(len(law.parameters)) == at
    threshold, together = _threshold(estimate, data, at, runs)
    centre, bounds = estimate.parameters[at], law.parameters[at]
    values, rises = np.array([centre]), np.array([0.0])
    step = max(together[at], 1e-9 * abs(centre), 1e-12)
    sides = {-1.0: _REACH * step, 1.0: _REACH * step}
    for _ in range(_ROUNDS):
        new = np.concatenate(
            [centre + sign * reach * np.linspace(0, 1, _POINTS + 1)[1:] for sign, reach in sides.items()]
        )
        new = np.unique(np.clip(new, max(bounds.lower, centre * 1e-3) if centre > 0 else bounds.lower, bounds.upper))
        starts = estimate.parameters + (new - centre)[:, None] / step * together
        starts = np.clip(starts, [p.lower for p in law.parameters], [p.upper for p in law.parameters])
        starts[:, at] = new
        weights = np.ones((len(new), len(data["loss"])))
        reached = refit(estimate, data, weights=weights, fixed=fixed, starts=starts)[1]
        values, rises = np.append(values, new), np.append(rises, (reached - estimate.objective) / threshold)
        order = np.argsort(values, kind="stable")
        values, rises = values[order], rises[order]
        for sign in sides:
            end = _crossing(values, rises, centre, sign)
            # Closer in where the crossing is near, further out where none was found.
            sides[sign] = 1.3 * abs(end - centre) if end is not None else 4 * sides[sign]
    return Profile(
        parameter=parameter,
        values=tuple(float(value) for value in values),
        rise=tuple(float(rise) for rise in rises),
        interval=(_crossing(values, rises, centre, -1.0), _crossing(values, rises, centre, 1.0)),
    )


def _crossing(values: np.ndarray, rises: np.ndarray, centre: float, sign: float) -> float | None:
    """Where the rise first exceeds 1 on one side of the centre, by linear interpolation of its root."""
    side = np.flatnonzero((values - centre) * sign >= 0)
    side = side[np.argsort(np.abs(values[side] - centre), kind="stable")]
    above = np.flatnonzero(rises[side] > 1)
    if not len(above) or above[0] == 0:
        return None
    inner, outer = side[above[0] - 1], side[above[0]]
    low, high = np.sqrt(np.maximum(rises[[inner, outer]], 0))
    share = (1 - low) / (high - low)
    return float(values[inner] + share * (values[outer] - values[inner]))


def _threshold(estimate: Estimate, data: Data, at: int, runs: np.ndarray | None) -> tuple[float, np.ndarray]:
    """The rise of the objective that 95% of repetitions stay below, and how the parameters (p,) move with this one.

    The latter for one standard error of it, so its own entry is that standard error.
    """
    fitted, slopes = estimate.law.loss_and_gradient(estimate.parameters, data)
    if estimate.objective_kind.logarithmic:
        slopes = slopes / fitted[:, None]
    free = _free(estimate, at)
    lengths = np.linalg.norm(slopes, axis=0)
    unit = np.where(free, slopes / np.where(lengths > 0, lengths, 1.0), 0.0)
    groups = np.arange(len(fitted)) if runs is None else np.unique(runs, return_inverse=True)[1]
    pull = np.clip(estimate.residuals, -estimate.objective_kind.delta, estimate.objective_kind.delta)
    scores = np.zeros((int(groups.max()) + 1, len(free)))
    np.add.at(scores, groups, unit * pull[:, None])
    freedom = max(len(scores) - int(free.sum()), 1)
    inverse = np.linalg.pinv(_curvature(estimate) * unit.T @ unit, rcond=1e-13, hermitian=True)
    variance = inverse @ (scores.T @ scores) @ inverse * len(scores) / freedom
    threshold = float(stats.f.ppf(LEVEL, 1, freedom)) * variance[at, at] / inverse[at, at] / 2
    together = inverse[:, at] / inverse[at, at] * np.sqrt(variance[at, at]) / np.where(lengths > 0, lengths, 1.0)
    return max(float(threshold), 1e-300), together


def _free(estimate: Estimate, at: int) -> np.ndarray:
    """The parameters that could move both ways: all but those at a bound, and the one that is profiled."""
    held = np.array([name in estimate.at_bounds for name in estimate.law.parameter_names])
    held[at] = False
    return ~held


def _curvature(estimate: Estimate) -> float:
    """Mean second derivative of the objective's function over the residuals' density, smoothed where delta is small."""
    delta, size = estimate.objective_kind.delta, np.abs(estimate.residuals)
    if np.isinf(delta):
        return 1.0
    spread = 1.4826 * float(np.median(size))
    window = max(delta, 1.5 * spread * len(size) ** -0.2)
    return max(float(np.mean(size <= window)) * delta / window, 1.0 / len(size))
