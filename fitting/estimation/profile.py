"""Profile likelihood: how much worse a fit becomes when one parameter is held elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.bootstrap import LEVEL, refit
from isoloop.fitting.estimation.estimate import Estimate
from isoloop.fitting.laws.base import Data

_POINTS = 12
"""Values on each side of the estimate at which the others are fitted again, in each of two rounds."""
_REACH = 4.0
"""Standard errors to which the first round goes."""
_FAR = 20.0
"""Most by which a parameter, or its logarithm, is moved from the estimate."""
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
    walk = _Walk(estimate, data, law.parameter_names.index(parameter), runs)
    for _ in range(_ROUNDS):
        walk.look()
    return Profile(
        parameter=parameter,
        values=tuple(float(value) for value in walk.values),
        rise=tuple(float(rise) for rise in walk.rises),
        interval=(walk.end(-1.0), walk.end(1.0)),
    )


class _Walk:
    """The values at which one parameter was held so far, in order, with the others' best fits beside them.

    Steps are even in the parameter, or in its logarithm where it can't be negative and is no exponent: amplitudes range
    over orders of magnitude.
    """

    def __init__(self, estimate: Estimate, data: Data, at: int, runs: np.ndarray | None) -> None:
        self.estimate, self.data, self.at = estimate, data, at
        self.threshold, together = _threshold(estimate, data, at, runs)
        self.centre, self.bounds = float(estimate.parameters[at]), estimate.law.parameters[at]
        self.logarithmic = at < estimate.law.linear_count and self.centre > 0
        self.step = max(together[at], 1e-9 * abs(self.centre), 1e-12)
        self.slopes = together / self.step
        self.values, self.rises = np.array([self.centre]), np.array([0.0])
        self.fits = estimate.parameters[None]
        scale = self.centre if self.logarithmic else 1.0
        self.reach = dict.fromkeys((-1.0, 1.0), _REACH * self.step / scale)

    def look(self) -> None:
        """Hold the parameter at more values on both sides: between those that enclose an end, else further out."""
        new = np.concatenate([self._next(sign) for sign in (-1.0, 1.0)])
        new = np.clip(new, self.bounds.lower, self.bounds.upper)
        new = np.setdiff1d(new, self.values)
        if not len(new):
            return
        straight = self.fits[np.argmin(np.abs(new[:, None] - self.values), axis=1)]
        self._add(new, *self._held(new, self._along(new, straight)))
        self._learn_from_neighbours()

    def _next(self, sign: float) -> np.ndarray:
        """The values to look at next on one side."""
        enclosed = self._enclosing(sign)
        steps = np.linspace(0, 1, _POINTS + 2)[1:-1]
        if enclosed is not None:
            inner, outer = self.values[list(enclosed)]
            if self.logarithmic and inner > 0 and outer > 0:
                return np.asarray(inner * (outer / inner) ** steps)
            return np.asarray(inner + (outer - inner) * steps)
        reach = min(self.reach[sign], _FAR)
        self.reach[sign] *= 4
        return np.asarray(
            self.centre * np.exp(sign * reach * steps) if self.logarithmic else self.centre + sign * reach * steps
        )

    def _along(self, values: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """The fits (values, p) with all parameters moved as they go with this one, to its new values."""
        moved = values - fits[:, self.at]
        if self.logarithmic:  # a term's exponent follows the logarithm of its amplitude
            moved = self.centre * np.log(values / fits[:, self.at])
        return np.asarray(fits + moved[:, None] * self.slopes)

    def _learn_from_neighbours(self) -> None:
        """Search again from the fits beside, as long as that finds better ones: a search from too far may be lost."""
        news = np.ones(len(self.values), dtype=bool)
        while news.any():
            found = np.zeros(len(self.values), dtype=bool)
            for shift in (1, -1):
                beside = np.clip(np.arange(len(self.values)) + shift, 0, len(self.values) - 1)
                asked = np.flatnonzero(news[beside])
                starts = self.fits[beside[asked]]
                for trial in (starts, self._along(self.values[asked], starts)):
                    fits, rises = self._held(self.values[asked], trial)
                    better = rises < self.rises[asked] - 1e-6 * (1 + np.abs(rises))
                    self.fits[asked[better]], self.rises[asked[better]] = fits[better], rises[better]
                    found[asked[better]] = True
            news = found

    def end(self, sign: float) -> float | None:
        """Where the rise first exceeds 1 on one side of the centre, by linear interpolation of its root."""
        enclosed = self._enclosing(sign)
        if enclosed is None:
            return None
        inner, outer = enclosed
        low, high = np.sqrt(np.maximum(self.rises[[inner, outer]], 0))
        share = (1 - low) / (high - low) if np.isfinite(high) and high > low else 0.0
        return float(self.values[inner] + share * (self.values[outer] - self.values[inner]))

    def _enclosing(self, sign: float) -> tuple[int, int] | None:
        """The last place below 1 and the first above, going out from the centre; None where all are below."""
        side = np.flatnonzero((self.values - self.centre) * sign >= 0)
        side = side[np.argsort(np.abs(self.values[side] - self.centre), kind="stable")]
        above = np.flatnonzero(self.rises[side] > 1)
        if not len(above) or above[0] == 0:
            return None
        return int(side[above[0] - 1]), int(side[above[0]])

    def _add(self, values: np.ndarray, fits: np.ndarray, rises: np.ndarray) -> None:
        order = np.argsort(np.append(self.values, values), kind="stable")
        self.values = np.append(self.values, values)[order]
        self.rises = np.append(self.rises, rises)[order]
        self.fits = np.concatenate([self.fits, fits])[order]

    def _held(self, values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The others' best fits (values, p), from `starts`, and the objective's rise there."""
        law = self.estimate.law
        starts = np.clip(starts, [p.lower for p in law.parameters], [p.upper for p in law.parameters])
        starts[:, self.at] = values
        fixed = np.arange(len(law.parameters)) == self.at
        weights = np.ones((len(values), len(self.data["loss"])))
        fits, reached = refit(self.estimate, self.data, weights=weights, fixed=fixed, starts=starts)
        return fits, (reached - self.estimate.objective) / self.threshold


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
    pull = np.clip(estimate.residuals, -estimate.objective_kind.delta, estimate.objective_kind.delta)
    if runs is None:
        # The same noise in every row, as the parametric bootstrap has it: rows that pull hard hide their own noise.
        count, meat = len(fitted), np.mean(pull**2) * unit.T @ unit
    else:
        groups = np.unique(runs, return_inverse=True)[1]
        count = int(groups.max()) + 1
        scores = np.zeros((count, len(free)))
        np.add.at(scores, groups, unit * pull[:, None])
        meat = scores.T @ scores
    freedom = max(count - int(free.sum()), 1)
    inverse = np.linalg.pinv(_curvature(estimate) * unit.T @ unit, rcond=1e-13, hermitian=True)
    variance = inverse @ meat @ inverse * count / freedom
    if not inverse[at, at] > 0:  # the losses say nothing of it
        return np.inf, np.zeros(len(free))
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
