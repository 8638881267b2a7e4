"""Levenberg-Marquardt for many fits of one law at once, with Huber's function in the place of squared error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.estimation.objective import Objective
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.laws.base import Data, Law

_MAX_STEPS = 500
_STALL_STEPS = 50
"""Steps in which a search must gain more than its `stall` of the objective, or it ends."""
_CHUNK_ELEMENTS = 30_000
"""Fits times rows that are minimised together; more do not fit into a core's cache."""
_TAIL_CURVATURE = 0.1
"""Curvature beyond delta, relative to the parabola that bounds Huber's function from above (the exact one is 0)."""
_LIGHT_DAMPING = 1e-3
"""Damping to start with; below it, a step is as good as a Gauss-Newton step."""
_MAX_DAMPING = 1e10
"""Damping at which a search ends: what a smaller step could gain is below rounding."""
_ZERO_OBJECTIVE = 1e-28
_MAX_LOG_STEP = 3.0
"""Longest step in the logarithm of a parameter."""
_DELTA_RELAXATION = 8.0
"""Factor on Huber's delta for the few steps that take a search out of a local minimum."""
_RELAXED_STEPS = 4
_SAME_MINIMUM = 1e-7
"""Largest difference, relative to their objective, of searches that end at the same minimum."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Fits of one law to one table that differ in the rows' weights or losses.

    `data` are the columns (rows,), divided by their `units`; `losses` (rows,) or (fits, rows) in nats; `weights` (fits,
    rows) or None; `fixed` (p,) marks parameters that stay at their starts. Residuals are made equally uncertain by
    `whitening`, None where they are.
    """

    law: Law
    data: Data
    units: Mapping[str, float]
    objective: Objective
    losses: np.ndarray
    weights: np.ndarray | None = None
    fixed: np.ndarray | None = None
    whitening: Whitening | None = None

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
        whitening: Whitening | None = None,
    ) -> Problem:
        """Return the problem of fitting `law` to columns, which are scaled to a geometric mean of 1.

        Columns whose unit a parameter in `fixed` depends on are not scaled.
        """
        units: dict[str, float] = {}
        for group in law.scaled:
            depends = law.rescaled(np.ones(len(law.parameters)), dict.fromkeys(group, 2.0)) != 1
            if fixed is not None and (depends & fixed).any():
                continue
            unit = float(np.exp(np.mean(np.log(np.sum([data[name] for name in group], axis=0)))))
            units |= dict.fromkeys(group, unit)
        scaled = {name: data[name] / units.get(name, 1.0) for name in law.columns}
        losses = np.asarray(data["loss"] if losses is None else losses, dtype=float)
        return cls(
            law=law,
            data=scaled,
            units=units,
            objective=objective,
            losses=losses,
            weights=weights,
            fixed=fixed,
            whitening=whitening,
        )

    def unscaled(self, parameters: np.ndarray) -> np.ndarray:
        """Return parameters (..., p) for the columns in their own units."""
        return self.law.rescaled(parameters, self.units)

    def scaled(self, parameters: np.ndarray) -> np.ndarray:
        """Return parameters (..., p) for the scaled columns."""
        return self.law.rescaled(parameters, {name: 1 / unit for name, unit in self.units.items()})

    def objectives(self, parameters: np.ndarray) -> np.ndarray:
        """Return the objective of each fit at its own parameters (fits, p): (fits,)."""
        return self.objective.value(self.residuals(self.losses, self.law.loss(parameters, self.data)), self.weights)

    def residuals(self, measured: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        """Return the residuals that the objective sums, of losses (nats) of shape (..., rows)."""
        residuals = self.objective.residuals(measured, fitted)
        return residuals if self.whitening is None else self.whitening.rows(residuals)

    def subset(self, fits: slice | np.ndarray) -> Problem:
        """Return the problem of some of the fits."""
        return replace(
            self,
            losses=self.losses if self.losses.ndim == 1 else self.losses[fits],
            weights=None if self.weights is None else self.weights[fits],
        )


@dataclass(frozen=True, kw_only=True)
class Minima:
    """The minimum of each fit: scaled parameters (fits, p), objectives (fits,), and whether searches converged."""

    parameters: np.ndarray
    objectives: np.ndarray
    converged: np.ndarray


def minimise(
    problem: Problem, starts: np.ndarray, *, tolerance: float = 1e-12, stall: float = 0.0, steps: int = _MAX_STEPS
) -> Minima:
    """Minimise each fit's objective from its start (fits, p), in scaled columns, to the nearest minimum.

    A search converges when Gauss-Newton steps gain less than `tolerance` of the objective, or when many steps together
    gain less than `stall` of it, as in a curved valley along parameters that the losses don't determine. Steps are
    projected onto the bounds of the parameters.
    """
    fits = len(starts)
    chunk = max(1, _CHUNK_ELEMENTS // problem.losses.shape[-1])
    parameters, objectives = np.array(starts, dtype=float), np.empty(fits)
    converged = np.zeros(fits, dtype=bool)
    with np.errstate(all="ignore"):  # a step may leave the law's domain; it is then rejected
        for first in range(0, fits, chunk):
            part = slice(first, min(first + chunk, fits))
            search = _Search(problem.subset(part), parameters[part], tolerance, stall)
            search.run(steps)
            parameters[part], objectives[part], converged[part] = search.at, search.objectives, search.converged
    return Minima(parameters=parameters, objectives=objectives, converged=converged)


def minimise_with_restart(
    problem: Problem,
    starts: np.ndarray,
    *,
    tolerance: float = 1e-12,
    stall: float = 0.0,
    known: np.ndarray | None = None,
) -> Minima:
    """Minimise as `minimise` does, then again from where a few steps with a larger delta lead; keep the lower minimum.

    Huber's function with a small delta has several minima close together; one with a larger delta has fewer. `known`
    are objectives (fits,) of minima that such a second search has left before: one that ends there is not made again.
    """
    first = minimise(problem, starts, tolerance=tolerance, stall=stall)
    if np.isinf(problem.objective.delta):
        return first
    again = np.arange(len(first.objectives))
    if known is not None:
        again = np.flatnonzero(~np.isclose(known, first.objectives, rtol=_SAME_MINIMUM, atol=0))
    part = problem.subset(again)
    relaxed = replace(problem.objective, delta=problem.objective.delta * _DELTA_RELAXATION)
    start = minimise(replace(part, objective=relaxed), first.parameters[again], steps=_RELAXED_STEPS)
    second = minimise(part, start.parameters, tolerance=tolerance, stall=stall)
    better = second.objectives < first.objectives[again]
    for values, others in (
        (first.parameters, second.parameters),
        (first.objectives, second.objectives),
        (first.converged, second.converged),
    ):
        values[again[better]] = others[better]
    return first


class _Search:
    """The Levenberg-Marquardt iteration for a chunk of fits; those that have converged drop out.

    The Hessian is that of Gauss-Newton, J' diag(curvature) J, with the curvature of Huber's function at each residual.
    """

    def __init__(self, problem: Problem, starts: np.ndarray, tolerance: float, stall: float) -> None:
        self.problem, self.tolerance, self.stall = problem, tolerance, stall
        law, fits = problem.law, len(starts)
        self.lower = np.array([parameter.lower for parameter in law.parameters])
        self.upper = np.array([parameter.upper for parameter in law.parameters])
        self.logarithmic = np.array([parameter.logarithmic for parameter in law.parameters])
        self.fixed = np.zeros(len(self.lower), dtype=bool) if problem.fixed is None else problem.fixed
        rows = problem.losses.shape[-1]
        self.target = np.log(problem.losses) if problem.objective.logarithmic else problem.losses
        self.weights = np.ones((fits, rows)) if problem.weights is None else problem.weights
        self.at = starts.copy()
        self.objectives, self.damping = np.empty(fits), np.full(fits, _LIGHT_DAMPING)
        self.small_steps = np.zeros(fits, dtype=int)
        self.converged = np.zeros(fits, dtype=bool)
        self.active = np.arange(fits)

    def run(self, steps: int) -> None:
        """Take up to `steps` steps."""
        slopes, residuals = self._linearise(self.at)
        self.objectives[:] = self._objectives(residuals)
        earlier = self.objectives.copy()
        for step in range(1, steps + 1):
            if not len(self.active):
                return
            proposed = self._propose(slopes, residuals)
            new_slopes, new_residuals = self._linearise(proposed)
            accepted = self._accept(proposed, self._objectives(new_residuals))
            if accepted.all():
                slopes, residuals = new_slopes, new_residuals
            else:
                slopes[accepted], residuals[accepted] = new_slopes[accepted], new_residuals[accepted]
            if step % _STALL_STEPS == 0:
                self.converged |= earlier - self.objectives < self.stall * earlier
                earlier[:] = self.objectives
            unfinished = ~self.converged[self.active]
            if not unfinished.all():
                self.active = self.active[unfinished]
                slopes, residuals = slopes[unfinished], residuals[unfinished]

    def _linearise(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slopes (active, rows, p) and residuals (active, rows) of what is fitted: log loss, or loss."""
        fitted, slopes = self.problem.law.loss_and_gradient(at, self.problem.data)
        target = self.target if self.target.ndim == 1 else self.target[self.active]
        if self.problem.objective.logarithmic:
            slopes /= fitted[..., None]
            fitted = np.log(fitted)
        if self.problem.whitening is None:
            return slopes, target - fitted
        return self.problem.whitening.columns(slopes), self.problem.whitening.rows(target - fitted)

    def _objectives(self, residuals: np.ndarray) -> np.ndarray:
        return self.problem.objective.value(residuals, self.weights[self.active])

    def _propose(self, slopes: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        """Return the parameters (active, p) after one damped step each, within their bounds."""
        delta, weights, at = self.problem.objective.delta, self.weights[self.active], self.at[self.active]
        # Gradient and Gauss-Newton Hessian of the objective.
        if self.logarithmic.any():
            slopes = slopes * np.where(self.logarithmic, at, 1.0)[:, None, :]
        size = np.abs(residuals)
        influence = weights * np.clip(residuals, -delta, delta)
        curvature = weights * np.where(size <= delta, 1.0, _TAIL_CURVATURE * delta / size)
        descent = np.matmul(influence[:, None, :], slopes)[:, 0]  # minus the gradient
        hessian = np.matmul((slopes * curvature[..., None]).transpose(0, 2, 1), slopes)
        # Damping, and parameters that can't move.
        held = self.fixed | ((at <= self.lower) & (descent < 0)) | ((at >= self.upper) & (descent > 0))
        diagonal = np.einsum("bii->bi", hessian)  # a view
        damped = diagonal * (1 + self.damping[self.active, None]) + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
        if held.any():
            hessian *= ~(held[:, :, None] | held[:, None, :])
            damped[held] = 1.0
        diagonal[:] = damped
        # The step, solved at unit diagonal, since amplitudes and exponents may differ by orders of magnitude.
        unit = 1 / np.sqrt(damped)
        step = (
            unit * np.linalg.solve(hessian * unit[:, :, None] * unit[:, None, :], (unit * descent)[..., None])[..., 0]
        )
        step = np.where(held, 0.0, step)
        moved = np.where(self.logarithmic, at * np.exp(np.clip(step, -_MAX_LOG_STEP, _MAX_LOG_STEP)), at + step)
        return np.clip(moved, self.lower, self.upper)

    def _accept(self, proposed: np.ndarray, objectives: np.ndarray) -> np.ndarray:
        """Take the steps that lower the objective, and update damping and convergence: accepted (active,)."""
        active, before = self.active, self.objectives[self.active]
        accepted = objectives < before
        moved = active[accepted]
        self.at[moved], self.objectives[moved] = proposed[accepted], objectives[accepted]
        damping = np.where(accepted, np.maximum(self.damping[active] / 10, 1e-12), self.damping[active] * 4)
        self.damping[active] = damping
        # Only lightly damped steps count: a heavily damped one gains little anywhere, also far from a minimum.
        small = accepted & (before - objectives <= self.tolerance * before) & (damping < _LIGHT_DAMPING)
        self.small_steps[active] = np.where(
            small, self.small_steps[active] + 1, np.where(accepted, 0, self.small_steps[active])
        )
        self.converged[active] = (
            (self.small_steps[active] >= 2) | (damping > _MAX_DAMPING) | (self.objectives[active] < _ZERO_OBJECTIVE)
        )
        return accepted
