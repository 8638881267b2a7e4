"""Profile likelihood: the objective against one parameter, with all others refitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.bootstrap import LEVEL, refit
from isoloop.fitting.estimation.point_estimate import PointEstimate
from isoloop.fitting.laws.base import Data

_POINTS = 12
"""Values on each side of the estimate at which the others are refitted, in each round."""
_FIRST_SPAN = 4.0
"""Standard errors that the first round covers."""
_MAX_SPAN = 20.0
"""Largest distance of a parameter, or of its logarithm, from the estimate."""
_ROUNDS = 3
_MIN_FALL = 1e-3
"""Fall of the rise over its threshold for which fits are restarted again: it moves an end by half of it at most."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One parameter held at `values`, the others refitted: `rise` is the rise of the objective over its 95% threshold.

    The interval is where the rise stays below 1. An end is None if the rise stays below 1 up to the parameter's bound,
    or as far as the search goes: the losses then set no limit on that side.
    """

    parameter: str
    values: tuple[float, ...]
    rise: tuple[float, ...]
    interval: tuple[float | None, float | None]


def profile(estimate: PointEstimate, data: Data, parameter: str, *, runs: np.ndarray | None = None) -> Profile:
    """Return the profile of one parameter, given by its name.

    The threshold is the 95% quantile of the F distribution in units of the objective's own noise. For Huber's function
    that unit follows from the residuals (Kent 1982's correction of the likelihood ratio). Where a run has several rows,
    pass their run ids as `runs` (rows,): its rows then count as one draw of the noise. Raises ValueError for an unknown
    name.
    """
    law = estimate.law
    if parameter not in law.parameter_names:
        raise ValueError(
            f"a parameter must be one of {', '.join(law.parameter_names)} for the {law.name} law, but got {parameter!r}"
        )
    search = _ProfileSearch(estimate, data, law.parameter_names.index(parameter), runs)
    for _ in range(_ROUNDS):
        search.refine()
    return Profile(
        parameter=parameter,
        values=tuple(float(value) for value in search.values),
        rise=tuple(float(rise) for rise in search.rises),
        interval=(search.end(-1.0), search.end(1.0)),
    )


class _ProfileSearch:
    """The values at which one parameter has been held so far, in order, with the fits of the others.

    Values are equally spaced in the parameter, or log-uniform for amplitudes, which range over orders of magnitude.
    """

    def __init__(self, estimate: PointEstimate, data: Data, at: int, runs: np.ndarray | None) -> None:
        self.estimate, self.data, self.at = estimate, data, at
        self.threshold, change = _threshold(estimate, data, at, runs)
        self.centre, self.bounds = float(estimate.parameters[at]), estimate.law.parameters[at]
        self.logarithmic = at < estimate.law.linear_count and self.centre > 0
        self.step = max(change[at], 1e-9 * abs(self.centre), 1e-12)
        self.slopes = change / self.step
        self.values, self.objectives = np.array([self.centre]), np.array([estimate.objective])
        self.fits = estimate.parameters[None]
        scale = self.centre if self.logarithmic else 1.0
        self.span = dict.fromkeys((-1.0, 1.0), _FIRST_SPAN * self.step / scale)

    @property
    def rises(self) -> np.ndarray:
        """The rise of the objective at each value over its threshold."""
        return self._rises(self.objectives)

    def _rises(self, objectives: np.ndarray) -> np.ndarray:
        return (objectives - self.estimate.objective) / self.threshold

    def refine(self) -> None:
        """Hold the parameter at more values on both sides: between those that bracket an end, or else further out."""
        new = np.concatenate([self._next_values(sign) for sign in (-1.0, 1.0)])
        new = np.clip(new, self.bounds.lower, self.bounds.upper)
        new = np.setdiff1d(new, self.values)
        if not len(new):
            return
        nearest = self.fits[np.argmin(np.abs(new[:, None] - self.values), axis=1)]
        fits, objectives = self._refit(new, self._extrapolated(new, nearest))
        values = np.append(self.values, new)
        order = np.argsort(values, kind="stable")
        self.values, self.objectives = values[order], np.append(self.objectives, objectives)[order]
        self.fits = np.concatenate([self.fits, fits])[order]
        self._restart_from_neighbours(changed=np.isin(self.values, new))

    def _next_values(self, sign: float) -> np.ndarray:
        """Return the next values on one side."""
        bracket = self._bracket(sign)
        steps = np.linspace(0, 1, _POINTS + 2)[1:-1]
        if bracket is not None:
            inner, outer = self.values[list(bracket)]
            if self.logarithmic and inner > 0 and outer > 0:
                return np.asarray(inner * (outer / inner) ** steps)
            return np.asarray(inner + (outer - inner) * steps)
        span = min(self.span[sign], _MAX_SPAN)
        self.span[sign] *= 4
        return np.asarray(
            self.centre * np.exp(sign * span * steps) if self.logarithmic else self.centre + sign * span * steps
        )

    def _extrapolated(self, values: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """Return the fits (values, p), extrapolated linearly to new values of this parameter."""
        moved = values - fits[:, self.at]
        if self.logarithmic:  # the exponent of a term is linear in the logarithm of its amplitude
            moved = self.centre * np.log(values / fits[:, self.at])
        return np.asarray(fits + moved[:, None] * self.slopes)

    def _restart_from_neighbours(self, changed: np.ndarray) -> None:
        """Refit from the fits at adjacent values for as long as that lowers an objective.

        Fits are restarted where one of the two, theirs or the one beside it, has `changed` (values,).
        """
        while changed.any():
            improved = np.zeros(len(self.values), dtype=bool)
            for shift in (1, -1):
                neighbour = np.clip(np.arange(len(self.values)) + shift, 0, len(self.values) - 1)
                places = np.flatnonzero(changed[neighbour] | changed)
                starts = self.fits[neighbour[places]]
                for trial in (starts, self._extrapolated(self.values[places], starts)):
                    fits, objectives = self._refit(self.values[places], trial, known=self.objectives[places])
                    rises = self._rises(objectives)
                    # An infinite rise is never better, not even than another one.
                    threshold = np.where(np.isfinite(rises), _MIN_FALL * (1 + np.abs(rises)), 0.0)
                    better = rises < self.rises[places] - threshold
                    self.fits[places[better]], self.objectives[places[better]] = fits[better], objectives[better]
                    improved[places[better]] = True
            changed = improved

    def end(self, sign: float) -> float | None:
        """Return the value where the rise first exceeds 1 on one side, by linear interpolation of its square root."""
        bracket = self._bracket(sign)
        if bracket is None:
            return None
        inner, outer = bracket
        low, high = np.sqrt(np.maximum(self.rises[[inner, outer]], 0))
        share = (1 - low) / (high - low) if np.isfinite(high) and high > low else 0.0
        return float(self.values[inner] + share * (self.values[outer] - self.values[inner]))

    def _bracket(self, sign: float) -> tuple[int, int] | None:
        """Return the last place with a rise below 1 and the first above, outwards from the centre, if there is one."""
        side = np.flatnonzero((self.values - self.centre) * sign >= 0)
        side = side[np.argsort(np.abs(self.values[side] - self.centre), kind="stable")]
        above = np.flatnonzero(self.rises[side] > 1)
        if not len(above) or above[0] == 0:
            return None
        return int(side[above[0] - 1]), int(side[above[0]])

    def _refit(
        self, values: np.ndarray, starts: np.ndarray, known: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the fits of the others (values, p), from `starts`, and their objectives (values,).

        `known` are the objectives (values,) of the fits so far.
        """
        law = self.estimate.law
        starts = np.clip(starts, [p.lower for p in law.parameters], [p.upper for p in law.parameters])
        starts[:, self.at] = values
        fixed = np.arange(len(law.parameters)) == self.at
        weights = np.ones((len(values), len(self.data["loss"])))
        return refit(self.estimate, self.data, weights=weights, fixed=fixed, starts=starts, known=known)


def _threshold(estimate: PointEstimate, data: Data, at: int, runs: np.ndarray | None) -> tuple[float, np.ndarray]:
    """Return the 95% threshold of the rise, and the change of the parameters (p,) with one standard error of this one.

    The entry of the parameter itself is its standard error.
    """
    fitted, slopes = estimate.law.loss_and_gradient(estimate.parameters, data)
    if estimate.objective_kind.logarithmic:
        slopes = slopes / fitted[:, None]
    if estimate.whitening is not None:
        slopes = estimate.whitening.columns(slopes)
    # Parameters at a bound are held, apart from this one.
    free = np.array([name not in estimate.at_bounds for name in estimate.law.parameter_names])
    free[at] = True
    lengths = np.linalg.norm(slopes, axis=0)
    unit = np.where(free, slopes / np.where(lengths > 0, lengths, 1.0), 0.0)
    influence = np.clip(estimate.residuals, -estimate.objective_kind.delta, estimate.objective_kind.delta)
    if runs is None:
        # The same noise in every row, as in the parametric bootstrap: influential rows hide their own noise.
        count, meat = len(fitted), np.mean(influence**2) * unit.T @ unit
    else:
        groups = np.unique(runs, return_inverse=True)[1]
        count = int(groups.max()) + 1
        scores = np.zeros((count, len(free)))
        np.add.at(scores, groups, unit * influence[:, None])
        meat = scores.T @ scores
    dof = max(count - int(free.sum()), 1)
    inverse = np.linalg.pinv(_curvature(estimate) * unit.T @ unit, rcond=1e-13, hermitian=True)
    variance = inverse @ meat @ inverse * count / dof
    if not inverse[at, at] > 0:  # the losses do not depend on it
        return np.inf, np.zeros(len(free))
    threshold = float(stats.f.ppf(LEVEL, 1, dof)) * variance[at, at] / inverse[at, at] / 2
    change = inverse[:, at] / inverse[at, at] * np.sqrt(variance[at, at]) / np.where(lengths > 0, lengths, 1.0)
    return max(float(threshold), 1e-300), change


def _curvature(estimate: PointEstimate) -> float:
    """Return the mean curvature of the objective's function over the density of residuals (smoothed)."""
    delta, size = estimate.objective_kind.delta, np.abs(estimate.residuals)
    if np.isinf(delta):
        return 1.0
    spread = 1.4826 * float(np.median(size))
    window = max(delta, 1.5 * spread * len(size) ** -0.2)
    return max(float(np.mean(size <= window)) * delta / window, 1.0 / len(size))
