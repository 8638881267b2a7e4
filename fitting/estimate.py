"""Fitting a law: variable projection on a grid of exponents for starts, then damped Newton steps on many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from fitting.laws import Data, Law

_STARTS_POLISHED = 10
_MAX_STEPS = 1000
_SLOW_STEPS = 60
"""So many steps in a row that gain less than 1e-9 of the objective are the floor of a valley."""
_SMALLEST_SHARE = 1e-9
"""An amplitude whose term is below this share of the loss is zero: at its lower bound."""
_DEPENDENT = 1e-6
"""Smallest singular value of the unit slopes, below which parameters can't be told apart."""
_DAMPING_GIVEN_UP = 1e12
"""No step was downhill up to this damping: what is left is rounding."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Sum over rows of Huber's function of the log residual log(measured) - log(fitted).

    r^2 / 2 up to `delta`, then growing as delta |r|. An infinite `delta` is squared error on log loss.
    """

    delta: float = 1e-3

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, but got {self.delta}; use inf for squared error")

    def value(self, residuals: np.ndarray) -> np.ndarray:
        """Residuals (..., rows) to objective (...)."""
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        return np.asarray(np.sum(inner * (size - inner / 2), axis=-1))

    def weights(self, residuals: np.ndarray) -> np.ndarray:
        """Derivative of the objective by each residual, over that residual: 1 inside delta, delta / |r| outside."""
        return np.asarray(np.minimum(1.0, self.delta / np.maximum(np.abs(residuals), 1e-300)))


HUBER = Objective(delta=1e-3)
SQUARED = Objective(delta=np.inf)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The best fit of one law: `parameters` (p,), `residuals` of log loss (rows,), and how sure the search is.

    `degenerate` says that some parameters trade off so closely that the losses don't tell them apart.
    """

    law: Law
    parameters: np.ndarray
    residuals: np.ndarray
    objective: float
    objective_kind: Objective
    converged: bool
    degenerate: bool
    at_bounds: tuple[str, ...]


def fit_law(law: Law, data: Data, objective: Objective = HUBER) -> Estimate:
    """Fit `law` to the rows of `data` (columns of shape (rows,), loss in nats per token).

    Raises ValueError if a column is missing, a value isn't positive and finite, a column is constant, or
    there are fewer rows than parameters + 1. A parameter at its bound is listed in `at_bounds`.
    """
    columns = _checked(law, data)
    starts = _starts(law, columns)
    target = np.log(columns["loss"])
    parameters, values, settled = polish(
        law, columns, starts, np.broadcast_to(target, (len(starts), len(target))), objective
    )
    best = int(np.argmin(values))
    return Estimate(
        law=law,
        parameters=parameters[best],
        residuals=target - np.log(law.loss(parameters[best], columns)),
        objective=float(values[best]),
        objective_kind=objective,
        converged=bool(settled[best]),
        degenerate=_Descent(law, columns, objective).degenerate(parameters[best]),
        at_bounds=_at_bounds(law, parameters[best]),
    )


def polish(
    law: Law, data: Data, starts: np.ndarray, targets: np.ndarray, objective: Objective
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go downhill from each start (batch, p) to the nearest minimum for its own log losses `targets` (batch, rows).

    Returns parameters (batch, p), objectives (batch,) and whether each settled (batch,). Amplitudes move in
    their logarithms, so one that starts at zero stays there; the floor, a constant column's, moves as it is.
    Bounds are honoured by projection.
    """
    descent = _Descent(law, data, objective)
    at, values, settled = descent.enter(starts), np.empty(len(starts)), np.zeros(len(starts), dtype=bool)
    values[:] = objective.value(targets - np.log(law.loss(descent.leave(at), data)))
    damping = np.full(len(starts), 1e-3)
    idle, slow = np.zeros(len(starts), dtype=int), np.zeros(len(starts), dtype=int)
    for _ in range(_MAX_STEPS):
        moving = np.flatnonzero(~settled)
        if not len(moving):
            break
        proposed = descent.step(at[moving], targets[moving], damping[moving])
        reached = objective.value(targets[moving] - np.log(law.loss(descent.leave(proposed), data)))
        gain = values[moving] - reached
        down = gain > 0
        # The end: downhill steps in a row that gain next to nothing although they are hardly damped. A damped
        # step gains little anywhere, so small gains alone would stop a search where it starts.
        idle[moving] = np.where(down, np.where(gain <= 1e-13 * values[moving], idle[moving] + 1, 0), idle[moving])
        slow[moving] = np.where(gain <= 1e-9 * values[moving], slow[moving] + 1, 0)
        went = moving[down]
        at[went], values[went] = proposed[down], reached[down]
        damping[moving] = np.where(down, np.maximum(damping[moving] / 10, 1e-12), damping[moving] * 3)
        done = ((idle[moving] >= 3) & (damping[moving] < 1e-3)) | (slow[moving] >= _SLOW_STEPS)
        settled[moving] = done | (damping[moving] > _DAMPING_GIVEN_UP) | (values[moving] < 1e-28)
    return descent.snap(at), values, settled


class _Descent:
    """Coordinates and damped Newton steps of one law on one table.

    Amplitudes move in their logarithms, in which they trade off with their exponents along straight lines.
    Exponents move as they are, and so does the amplitude of a constant column: a floor trades off with the
    terms above it.
    """

    def __init__(self, law: Law, data: Data, objective: Objective) -> None:
        self.law, self.data, self.objective = law, data, objective
        self.k = law.linear_count
        self.lower = np.array([parameter.lower for parameter in law.parameters])
        self.upper = np.array([parameter.upper for parameter in law.parameters])
        self.scale = float(np.mean(data["loss"]))
        middle = np.array([parameter.starts[len(parameter.starts) // 2] for parameter in law.parameters[self.k :]])
        self.logarithmic = np.zeros(len(law.parameters), dtype=bool)
        self.logarithmic[: self.k] = np.ptp(law.basis(middle, data), axis=0) > 0

    def enter(self, parameters: np.ndarray) -> np.ndarray:
        at = parameters.copy()
        with np.errstate(divide="ignore"):
            at[:, self.logarithmic] = np.log(parameters[:, self.logarithmic])
        return at

    def leave(self, at: np.ndarray) -> np.ndarray:
        parameters = at.copy()
        parameters[:, self.logarithmic] = np.exp(at[:, self.logarithmic])
        return parameters

    def snap(self, at: np.ndarray) -> np.ndarray:
        """Parameters with amplitudes of no account set to exactly zero."""
        parameters = self.leave(at)
        share = parameters[:, : self.k] * self._largest(parameters) / self.scale
        parameters[:, : self.k] = np.where(share < _SMALLEST_SHARE, 0.0, parameters[:, : self.k])
        return parameters

    def degenerate(self, parameters: np.ndarray) -> bool:
        """Whether the slopes by the parameters (p,) that are not at zero are nearly dependent."""
        slopes = self.law.gradient(parameters, self.data)[:, parameters != 0]
        lengths = np.linalg.norm(slopes, axis=0)
        if (lengths == 0).any():
            return True
        return bool(np.linalg.svd(slopes / lengths, compute_uv=False)[-1] < _DEPENDENT)

    def step(self, at: np.ndarray, targets: np.ndarray, damping: np.ndarray) -> np.ndarray:
        parameters = self.leave(at)
        fitted = self.law.loss(parameters, self.data)
        slopes = self.law.gradient(parameters, self.data) / fitted[..., None]
        slopes[..., self.logarithmic] *= parameters[:, None, self.logarithmic]
        residuals = targets - np.log(fitted)
        weights = self.objective.weights(residuals)
        # Huber's curvature is 0 outside delta; a little is kept so that the system never loses rank.
        curvature = np.where(weights < 1, 0.02 * weights, 1.0)
        downhill = np.einsum("bnp,bn->bp", slopes, weights * residuals)
        scales = np.einsum("bnp,bn->bp", slopes**2, weights)
        hessian = np.matmul(slopes.transpose(0, 2, 1), slopes * curvature[..., None])
        held = self._held(at, downhill, scales)
        free = ~held
        hessian = hessian * free[:, :, None] * free[:, None, :]
        diagonal = np.where(held, 1.0, damping[:, None] * scales + 1e-14 * scales.max(axis=1, keepdims=True) + 1e-300)
        hessian[:, np.arange(at.shape[1]), np.arange(at.shape[1])] += diagonal
        # Scaled to unit diagonal, since exponents and log amplitudes differ by orders of magnitude.
        unit = 1 / np.sqrt(np.einsum("bpp->bp", hessian))
        scaled = hessian * unit[:, :, None] * unit[:, None, :]
        move = unit * np.linalg.solve(scaled, (unit * downhill * free)[..., None])[..., 0]
        move[:, self.logarithmic] = np.clip(move[:, self.logarithmic], -5, 5)
        proposed = at + np.where(np.isfinite(at), move, 0.0)
        plain = ~self.logarithmic
        proposed[:, plain] = np.clip(proposed[:, plain], self.lower[plain], self.upper[plain])
        return proposed

    def _held(self, at: np.ndarray, downhill: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Coordinates that stay: at a bound with downhill beyond it, or without any influence."""
        outward = ((at <= self.lower) & (downhill < 0)) | ((at >= self.upper) & (downhill > 0))
        outward &= ~self.logarithmic
        return np.asarray(outward | (scales <= 0) | ~np.isfinite(at))

    def _largest(self, parameters: np.ndarray) -> np.ndarray:
        return np.asarray(self.law.basis(parameters[:, self.k :], self.data).max(axis=1))


def _checked(law: Law, data: Data) -> dict[str, np.ndarray]:
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
        bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
        if len(bad):
            raise ValueError(
                f"`{name}` must be positive and finite, but row {bad[0]} has {values[bad[0]]}; drop that row"
            )
        if name != "loss" and np.ptp(values) <= 1e-9 * values.max():
            raise ValueError(
                f"the {law.name} law needs `{name}` to vary, but all {rows} rows have {values[0]:g}; "
                "add runs with other values"
            )
    return columns


def _starts(law: Law, data: Data) -> np.ndarray:
    """The most promising points of the exponent grid, each with its best amplitudes: (starts, p)."""
    grid = np.array(list(product(*(parameter.starts for parameter in law.parameters[law.linear_count :]))))
    weighted = law.basis(grid, data) / data["loss"][:, None]
    amplitudes, misfits = _non_negative_least_squares(weighted)
    best = np.argsort(misfits, kind="stable")[:_STARTS_POLISHED]
    return np.concatenate([amplitudes[best], grid[best]], axis=1)


def _non_negative_least_squares(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes >= 0 whose combination of the columns is nearest to 1: (batch, rows, k) to (batch, k), (batch,).

    Exact, by trying every set of columns, which is quick for the few columns that a law has.
    """
    batch, rows, k = basis.shape
    norms = np.linalg.norm(basis, axis=1)
    unit = basis / norms[:, None, :]
    gram, projection = np.matmul(unit.transpose(0, 2, 1), unit), unit.sum(axis=1)
    best, misfit = np.zeros((batch, k)), np.full(batch, float(rows))
    for chosen in _subsets(k):
        some = gram[:, chosen][:, :, chosen] + 1e-13 * np.eye(len(chosen))
        solution = np.linalg.solve(some, projection[:, chosen][..., None])[..., 0]
        missed = rows - np.einsum("bk,bk->b", solution, projection[:, chosen])
        better = (solution >= 0).all(axis=1) & (missed < misfit)
        misfit = np.where(better, missed, misfit)
        candidate = np.zeros((batch, k))
        candidate[:, chosen] = solution
        best = np.where(better[:, None], candidate, best)
    return best / norms, misfit


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
