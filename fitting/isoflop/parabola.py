"""The parabola of one budget: loss against the log of the varied quantity, its vertex, and redraws of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

POINTS_NEEDED = 3
_FLAT = 1e-12
"""A curve that rises by less than this share of its loss over the grid is flat but for rounding."""
_DOF_FOR_SHAPE = 3
"""With fewer degrees of freedom, fitting a shape common to all curves costs more in the tails of t than it saves."""
_CANDIDATES = 8
_CLEAR = 2.0
"""Standard errors from which a curvature or slope is known."""


@dataclass(frozen=True, kw_only=True)
class IsoflopCurve:
    """The losses (nats per token) of one budget (FLOPs) against the log of the axis, each (points,), by growing axis.

    `runs` counts the budget's rows with and without a loss; `scale` is the noise of its losses relative to the table's,
    1 where every budget is as noisy. Coefficients are those of (log axis - centre)^2, ^1 and ^0:
    a parabola about the middle of its own grid is numerically sound whatever the scale of the axis.
    """

    budget: float
    log_axis: np.ndarray
    loss: np.ndarray
    runs: int
    scale: float = 1.0

    @property
    def distinct_values(self) -> int:
        """Number of different values on the axis that have a loss; a parabola needs 3."""
        return len(np.unique(self.log_axis))

    @property
    def grid(self) -> tuple[float, float]:
        """Smallest and largest log of the axis that has a loss."""
        return float(self.log_axis[0]), float(self.log_axis[-1])

    @property
    def centre(self) -> float:
        """Middle of the grid, in log."""
        return sum(self.grid) / 2

    @property
    def powers(self) -> np.ndarray:
        """Powers 2, 1 and 0 of (log axis - centre): (points, 3)."""
        return np.vander(self.log_axis - self.centre, 3)

    @property
    def solver(self) -> np.ndarray:
        """Matrix S from losses to coefficients: (3, points). With unit noise, coefficients have covariance S S^T."""
        return np.linalg.pinv(self.powers)

    @property
    def coefficients(self) -> np.ndarray:
        """Least-squares coefficients (3,)."""
        return self.solver @ self.loss

    def vertex(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the log of the best axis value, NaN for a curve without a minimum: coefficients (..., 3) to (...)."""
        a, b, c = np.moveaxis(coefficients, -1, 0)
        low, high = self.grid
        convex = a * (high - low) ** 2 > _FLAT * np.abs(c)
        return np.where(convex, self.centre - b / (2 * np.where(convex, a, 1.0)), np.nan)

    def minimal_loss(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the loss at the vertex, nats per token: coefficients (..., 3) to (...), NaN if there is no vertex."""
        x = self.vertex(coefficients) - self.centre
        return np.asarray(coefficients[..., 0] * x**2 + coefficients[..., 1] * x + coefficients[..., 2])

    def errors(self, log_axis: np.ndarray) -> np.ndarray:
        """Return the standard error of the parabola at `log_axis` (n,), where the table's noise is 1: (n,)."""
        return self.scale * np.asarray(np.linalg.norm(np.vander(log_axis - self.centre, 3) @ self.solver, axis=1))

    def sensitivities(self) -> np.ndarray:
        """Return the derivatives of vertex, minimal loss and log curvature by each loss: (3, points).

        The sum of squares of a row is the variance of its quantity where the losses of this budget have unit noise. The
        curve must have a vertex.
        """
        solver, (a, b, _) = self.solver, self.coefficients
        x = -b / (2 * a)
        vertex = -(solver[1] + 2 * x * solver[0]) / (2 * a)
        # The parabola is level at its vertex, so that moving the vertex adds nothing to the minimal loss.
        return np.stack([vertex, x**2 * solver[0] + x * solver[1] + solver[2], solver[0] / a])


@dataclass(frozen=True, kw_only=True)
class CurveNoise:
    """Variance of one loss about its curve (nats squared), and its degrees of freedom.

    Where budgets differ in noise it is the variance at a scale of 1. `shape_removed` is True if the shape that
    parabolas cannot follow is not counted as noise.
    """

    variance: float
    dof: int
    shape_removed: bool

    @property
    def about(self) -> str:
        """Name of the curves from which the noise is measured, for reports."""
        return "parabolas with a cubic and a quartic term in common" if self.shape_removed else "parabolas"


def pooled_noise(curves: list[IsoflopCurve]) -> CurveNoise | None:
    """Estimate the noise of the losses over all budgets; None if no degree of freedom is left.

    An isoFLOP curve is not quite a parabola, and its departure from one is alike at every budget, so it is not noise.
    With enough degrees of freedom, a cubic and a quartic term shared by all budgets are therefore removed first.
    """
    curves = [curve for curve in curves if curve.distinct_values >= POINTS_NEEDED]
    if not curves:
        return None
    ends = np.cumsum([0, *(len(curve.loss) for curve in curves)])
    own = np.zeros((ends[-1], 3 * len(curves)))
    for i, (curve, (start, end)) in enumerate(zip(curves, pairwise(ends), strict=True)):
        own[start:end, 3 * i : 3 * i + 3] = curve.powers
    offset = np.concatenate([curve.log_axis - curve.centre for curve in curves])
    losses = np.concatenate([curve.loss for curve in curves])
    scales = np.repeat([curve.scale for curve in curves], np.diff(ends))
    shaped = np.column_stack([own, offset**3, offset**4])
    for design, needed, shape_removed in ((shaped, _DOF_FOR_SHAPE, True), (own, 1, False)):
        design, scaled = design / scales[:, None], losses / scales
        fitted, _, rank, _ = np.linalg.lstsq(design, scaled, rcond=None)
        dof = len(losses) - int(rank)
        if dof >= needed:
            residuals = scaled - design @ fitted
            variance = float(residuals @ residuals) / dof
            return CurveNoise(variance=variance, dof=dof, shape_removed=shape_removed)
    return None


def clearly_curved(curve: IsoflopCurve, noise: CurveNoise) -> bool:
    """Return True if the curve opens upwards by 2 standard errors or more, so that its minimum is known."""
    return bool(_curvature_and_slopes(curve, noise)[0] > _CLEAR)


def may_have_minimum(curve: IsoflopCurve, noise: CurveNoise) -> bool:
    """Return True if noise may hide a minimum inside the grid: neither the curvature nor the slope at an end of the
    grid shows, by 2 standard errors, where the minimum is or that it is elsewhere.
    """
    curvature, at_low, at_high = _curvature_and_slopes(curve, noise)
    return bool(noise.variance > 0 and abs(curvature) < _CLEAR and at_low < _CLEAR and at_high > -_CLEAR)


def _curvature_and_slopes(curve: IsoflopCurve, noise: CurveNoise) -> np.ndarray:
    """Return the curvature and the slopes at both ends of the grid, in standard errors: (3,)."""
    half = (curve.grid[1] - curve.grid[0]) / 2
    contrasts = np.array([[1.0, 0.0, 0.0], [-2 * half, 1.0, 0.0], [2 * half, 1.0, 0.0]])
    errors = np.sqrt(noise.variance) * curve.scale * np.linalg.norm(contrasts @ curve.solver, axis=1)
    return np.asarray(contrasts @ curve.coefficients / np.maximum(errors, np.finfo(float).tiny))


@dataclass(frozen=True, kw_only=True)
class Redraws:
    """Vertices (log axis), minimal losses and log curvatures of redrawn curves, each (draws, curves).

    The columns are those of the curves that count, then of those that count only in some draws. They are NaN where a
    curve does not count. `rejected` is the share of draws in which the first candidate of a curve had no minimum.
    """

    vertices: np.ndarray
    losses: np.ndarray
    log_curvatures: np.ndarray
    rejected: float


def redraw(
    curves: list[IsoflopCurve], noise: CurveNoise, draws: int, seed: int, *, hidden: Sequence[IsoflopCurve] = ()
) -> Redraws:
    """Draw curves that have a minimum from the distribution of the fitted ones, given their noise.

    The coefficients scatter about the fitted ones as least squares implies; the variance is itself an estimate, and its
    own uncertainty gives the draws the tails of a t distribution. A curve is included because its minimum is inside the
    grid, so a candidate that opens downwards, or whose vertex is further outside than the grid is wide, is drawn again
    (up to 8 times). Minima just outside are kept: cutting the draws at the edge, as the data are cut, would make the
    interval of a budget near the edge far too narrow.

    Which budgets count depends on the noise too. Curves whose minimum it may hide (`hidden`) are left out of the fit,
    but other noise would have included them, so they count in those draws whose only candidate has a minimum.
    """
    rng = np.random.default_rng(seed)
    scale = np.sqrt(noise.variance * noise.dof / rng.chisquare(noise.dof, size=draws))[:, None, None]
    first_failed = np.zeros(draws, dtype=bool)
    columns = []
    for number, curve in enumerate((*curves, *hidden)):
        counts = number < len(curves)
        root = np.linalg.cholesky(curve.solver @ curve.solver.T)
        scatter = rng.standard_normal((draws, _CANDIDATES if counts else 1, 3)) @ root.T
        candidates = curve.coefficients + scale * curve.scale * scatter
        vertices = curve.vertex(candidates)
        low, high = curve.grid
        good = (vertices > low - (high - low)) & (vertices < high + (high - low))
        chosen = np.take_along_axis(candidates, good.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        chosen[~good.any(axis=1)] = np.nan
        first_failed |= counts & ~good[:, 0]
        columns.append((curve.vertex(chosen), curve.minimal_loss(chosen), np.log(chosen[:, 0])))
    vertices, losses, log_curvatures = (np.stack(column, axis=-1) for column in zip(*columns, strict=True))
    return Redraws(
        vertices=vertices,
        losses=losses,
        log_curvatures=log_curvatures,
        rejected=float(first_failed.mean()) if draws else 0.0,
    )
