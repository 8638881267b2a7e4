"""Damped Newton steps for many fits of one law at once: the engine behind every fit and every bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.estimation.objective import Objective
from isoloop.fitting.laws.base import Data, Law

_MAX_STEPS = 500
_CHUNK_CELLS = 30_000
"""Fits times rows that go downhill together: more no longer fit into a core's cache."""
_OUTSIDE = 0.1
"""Curvature beyond delta as a share of that of the parabola which bounds Huber's function from above (exact: 0)."""
_EASY = 1e-3
"""Damping below which a step is Newton's own."""
_HOPELESS = 1e10
"""No step was downhill up to this damping: what is left is rounding."""
_NOTHING_LEFT = 1e-28
_LARGEST_FACTOR = 3.0
"""Most by which the logarithm of a parameter moves in one step."""
_LIFT = 8.0
_LIFTED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Fits of one law to one table that differ in the rows' weights or losses.

    `data` are the columns (rows,), scaled as the law allows by `units`; `losses` (rows,) or (fits, rows) in nats;
    `weights` (fits, rows) or None; `fixed` (p,) marks parameters that stay where they start.
    """

    law: Law
    data: Data
    units: Mapping[str, float]
    objective: Objective
    losses: np.ndarray
    weights: np.ndarray | None = None
    fixed: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        law: Law,
        data: Data,
        objective: Objective,
        *,
        losses: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        fixed: np.ndarray | None = None,
    ) -> Problem:
        """The problem of fitting `law` to natural columns, which are scaled to a geometric mean of 1.

        Columns whose unit a parameter in `fixed` depends on stay as they are.
        """
        units: dict[str, float] = {}
        for group in law.scaled:
            moves = law.rescaled(np.ones(len(law.parameters)), dict.fromkeys(group, 2.0)) != 1
            if fixed is not None and (moves & fixed).any():
                continue
            unit = float(np.exp(np.mean(np.log(np.sum([data[name] for name in group], axis=0)))))
            units |= dict.fromkeys(group, unit)
        scaled = {name: data[name] / units.get(name, 1.0) for name in law.columns}
        losses = np.asarray(data["loss"] if losses is None else losses, dtype=float)
        return cls(law=law, data=scaled, units=units, objective=objective, losses=losses, weights=weights, fixed=fixed)

    def natural(self, parameters: np.ndarray) -> np.ndarray:
        """Parameters (..., p) for the columns in their own units."""
        return self.law.rescaled(parameters, self.units)

    def scaled(self, parameters: np.ndarray) -> np.ndarray:
        """Parameters (..., p) for the scaled columns."""
        return self.law.rescaled(parameters, {name: 1 / unit for name, unit in self.units.items()})

    def objectives(self, parameters: np.ndarray) -> np.ndarray:
        """The objective of each fit's own parameters (fits, p): (fits,)."""
        residuals = self.objective.residuals(self.losses, self.law.loss(parameters, self.data))
        return self.objective.value(residuals, self.weights)

    def part(self, which: slice) -> Problem:
        """The problem of some of the fits."""
        return replace(
            self,
            losses=self.losses if self.losses.ndim == 1 else self.losses[which],
            weights=None if self.weights is None else self.weights[which],
        )

    def softened(self, factor: float) -> Problem:
        """The same fits with a delta `factor` times larger."""
        return replace(self, objective=replace(self.objective, delta=self.objective.delta * factor))


@dataclass(frozen=True, kw_only=True)
class Descended:
    """Where each search ended: scaled parameters (fits, p), objectives (fits,), whether it settled (fits,)."""

    parameters: np.ndarray
    objectives: np.ndarray
    settled: np.ndarray


def descend(problem: Problem, starts: np.ndarray, *, tolerance: float = 1e-12, steps: int = _MAX_STEPS) -> Descended:
    """Go downhill from each start (fits, p), in scaled columns, to the nearest minimum of its own fit.

    A search ends when Newton steps gain less than `tolerance` of the objective. Bounds are honoured by projection.
    """
    fits = len(starts)
    chunk = max(1, _CHUNK_CELLS // problem.losses.shape[-1])
    parameters, objectives = np.array(starts, dtype=float), np.empty(fits)
    settled = np.zeros(fits, dtype=bool)
    with np.errstate(all="ignore"):  # a step may leave the law's domain; it is then refused
        for first in range(0, fits, chunk):
            some = slice(first, min(first + chunk, fits))
            search = _Search(problem.part(some), parameters[some], tolerance)
            search.run(steps)
            parameters[some], objectives[some], settled[some] = search.at, search.value, search.settled
    return Descended(parameters=parameters, objectives=objectives, settled=settled)


def descend_twice(problem: Problem, starts: np.ndarray, *, tolerance: float = 1e-12) -> Descended:
    """As `descend`, then once more from where a few steps with a softer objective lead: the better end of the two.

    Huber's function with a small delta has several minima close together; a softer one sees past them.
    """
    first = descend(problem, starts, tolerance=tolerance)
    if np.isinf(problem.objective.delta):
        return first
    lifted = descend(problem.softened(_LIFT), first.parameters, steps=_LIFTED_STEPS)
    second = descend(problem, lifted.parameters, tolerance=tolerance)
    better = second.objectives < first.objectives
    return Descended(
        parameters=np.where(better[:, None], second.parameters, first.parameters),
        objectives=np.where(better, second.objectives, first.objectives),
        settled=np.where(better, second.settled, first.settled),
    )


class _Search:
    """Levenberg-Marquardt with Huber's own curvature, for a chunk of fits; those that settled drop out."""

    def __init__(self, problem: Problem, starts: np.ndarray, tolerance: float) -> None:
        self.problem, self.tolerance = problem, tolerance
        law, fits = problem.law, len(starts)
        self.lower = np.array([parameter.lower for parameter in law.parameters])
        self.upper = np.array([parameter.upper for parameter in law.parameters])
        self.factors = np.array([parameter.logarithmic for parameter in law.parameters])
        self.fixed = np.zeros(len(self.lower), dtype=bool) if problem.fixed is None else problem.fixed
        rows = problem.losses.shape[-1]
        self.target = np.log(problem.losses) if problem.objective.logarithmic else problem.losses
        self.weights = np.ones((fits, rows)) if problem.weights is None else problem.weights
        self.at = starts.copy()
        self.value, self.damping = np.empty(fits), np.full(fits, _EASY)
        self.idle = np.zeros(fits, dtype=int)
        self.settled = np.zeros(fits, dtype=bool)
        self.moving = np.arange(fits)

    def run(self, steps: int) -> None:
        """Take up to `steps` steps."""
        slopes, residuals = self._look(self.at)
        self.value[:] = self._value(residuals)
        for _ in range(steps):
            if not len(self.moving):
                return
            proposed = self._propose(slopes, residuals)
            new_slopes, new_residuals = self._look(proposed)
            down = self._judge(proposed, self._value(new_residuals))
            if down.all():
                slopes, residuals = new_slopes, new_residuals
            else:
                slopes[down], residuals[down] = new_slopes[down], new_residuals[down]
            going = ~self.settled[self.moving]
            if not going.all():
                self.moving, slopes, residuals = self.moving[going], slopes[going], residuals[going]

    def _look(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes (moving, rows, p) and residuals (moving, rows) of what is fitted: log loss, or loss."""
        fitted, slopes = self.problem.law.loss_and_gradient(at, self.problem.data)
        target = self.target if self.target.ndim == 1 else self.target[self.moving]
        if self.problem.objective.logarithmic:
            slopes /= fitted[..., None]
            fitted = np.log(fitted)
        return slopes, target - fitted

    def _value(self, residuals: np.ndarray) -> np.ndarray:
        return self.problem.objective.value(residuals, self.weights[self.moving])

    def _propose(self, slopes: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        delta, weights, at = self.problem.objective.delta, self.weights[self.moving], self.at[self.moving]
        if self.factors.any():
            slopes = slopes * np.where(self.factors, at, 1.0)[:, None, :]
        size = np.abs(residuals)
        pull = weights * np.clip(residuals, -delta, delta)
        curvature = weights * np.where(size <= delta, 1.0, _OUTSIDE * delta / size)
        downhill = np.matmul(pull[:, None, :], slopes)[:, 0]
        hessian = np.matmul((slopes * curvature[..., None]).transpose(0, 2, 1), slopes)
        held = self.fixed | ((at <= self.lower) & (downhill < 0)) | ((at >= self.upper) & (downhill > 0))
        diagonal = np.einsum("bii->bi", hessian)  # a view
        damped = diagonal * (1 + self.damping[self.moving, None]) + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
        if held.any():
            hessian *= ~(held[:, :, None] | held[:, None, :])
            damped[held] = 1.0
        diagonal[:] = damped
        # Scaled to unit diagonal, since amplitudes and exponents may differ by orders of magnitude.
        unit = 1 / np.sqrt(damped)
        move = (
            unit * np.linalg.solve(hessian * unit[:, :, None] * unit[:, None, :], (unit * downhill)[..., None])[..., 0]
        )
        move = np.where(held, 0.0, move)
        plain = np.where(self.factors, at * np.exp(np.clip(move, -_LARGEST_FACTOR, _LARGEST_FACTOR)), at + move)
        return np.clip(plain, self.lower, self.upper)

    def _judge(self, proposed: np.ndarray, reached: np.ndarray) -> np.ndarray:
        """Take what went downhill, set each search's damping, and see which have settled: went down (moving,)."""
        moving, before = self.moving, self.value[self.moving]
        down = reached < before
        went = moving[down]
        self.at[went], self.value[went] = proposed[down], reached[down]
        damping = np.where(down, np.maximum(self.damping[moving] / 10, 1e-12), self.damping[moving] * 4)
        self.damping[moving] = damping
        # Only steps that are hardly damped tell: a damped one gains little anywhere, and would stop a search where it
        # starts.
        small = down & (before - reached <= self.tolerance * before) & (damping < _EASY)
        self.idle[moving] = np.where(small, self.idle[moving] + 1, np.where(down, 0, self.idle[moving]))
        ended = (self.idle[moving] >= 2) | (damping > _HOPELESS) | (self.value[moving] < _NOTHING_LEFT)
        self.settled[moving] = ended
        return down
