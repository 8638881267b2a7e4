"""One budget's parabola: loss against the logarithm of what is varied, its vertex, and redraws of both."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

POINTS_NEEDED = 3
_FLAT = 1e-12
"""A curve that rises by less than this share of its loss over the grid is rounding."""
_FREEDOM_FOR_SHAPE = 3
"""Below so many degrees of freedom a shape common to all curves costs more in the tails of t than it saves."""
_CANDIDATES = 8


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The losses (nats per token) of one budget (FLOPs) against the log of the axis, each (points,), by growing axis.

    `runs` counts the budget's rows with and without a loss. Coefficients are of (log axis - centre)^2, ^1 and ^0, since
    a parabola about the middle of its own grid is numerically sound wherever the axis stands.
    """

    budget: float
    log_axis: np.ndarray
    loss: np.ndarray
    runs: int

    @property
    def distinct(self) -> int:
        """How many different values of the axis have a loss; a parabola needs 3."""
        return len(np.unique(self.log_axis))

    @property
    def grid(self) -> tuple[float, float]:
        """The smallest and largest log of the axis that has a loss."""
        return float(self.log_axis[0]), float(self.log_axis[-1])

    @property
    def centre(self) -> float:
        """The middle of the grid, in log."""
        return sum(self.grid) / 2

    @property
    def powers(self) -> np.ndarray:
        """(log axis - centre) to the powers 2, 1, 0: (points, 3)."""
        return np.vander(self.log_axis - self.centre, 3)

    @property
    def solver(self) -> np.ndarray:
        """Losses (points,) to coefficients: (3, points). With unit noise, coefficients have covariance S S^T."""
        return np.linalg.pinv(self.powers)

    @property
    def coefficients(self) -> np.ndarray:
        """Least-squares coefficients (3,)."""
        return self.solver @ self.loss

    def vertex(self, coefficients: np.ndarray) -> np.ndarray:
        """Log of the best axis value: coefficients (..., 3) to (...), NaN where the curve is flat or turns down."""
        a, b, c = np.moveaxis(coefficients, -1, 0)
        low, high = self.grid
        convex = a * (high - low) ** 2 > _FLAT * np.abs(c)
        return np.where(convex, self.centre - b / (2 * np.where(convex, a, 1.0)), np.nan)

    def minimal_loss(self, coefficients: np.ndarray) -> np.ndarray:
        """Loss at the vertex, nats per token: coefficients (..., 3) to (...), NaN where there is no vertex."""
        x = self.vertex(coefficients) - self.centre
        return np.asarray(coefficients[..., 0] * x**2 + coefficients[..., 1] * x + coefficients[..., 2])

    def errors(self, log_axis: np.ndarray) -> np.ndarray:
        """Standard error of the parabola at `log_axis` (n,), for losses of unit noise: (n,)."""
        return np.asarray(np.linalg.norm(np.vander(log_axis - self.centre, 3) @ self.solver, axis=1))

    def slopes(self) -> np.ndarray:
        """How vertex, minimal loss and log curvature answer to each loss: (3, points), of a curve that has a vertex.

        The sum of squares of a row is the variance of its quantity for losses of unit noise.
        """
        solver, (a, b, _) = self.solver, self.coefficients
        x = -b / (2 * a)
        vertex = -(solver[1] + 2 * x * solver[0]) / (2 * a)
        # The loss is level in x at the vertex, so that moving the vertex adds nothing.
        return np.stack([vertex, x**2 * solver[0] + x * solver[1] + solver[2], solver[0] / a])


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of one loss about its curve (nats squared), and its degrees of freedom.

    `shape_taken_out` says that what parabolas cannot follow is no part of it.
    """

    variance: float
    freedom: int
    shape_taken_out: bool

    @property
    def about(self) -> str:
        """The curves that the noise is about, for reports."""
        return "parabolas with a cubic and a quartic term in common" if self.shape_taken_out else "parabolas"


def pooled_noise(curves: list[Curve]) -> Noise | None:
    """The noise of the losses over all budgets, None where no freedom is left.

    A parabola is not the whole shape of an isoFLOP curve, and what it misses is alike at every budget: no noise. Where
    freedom allows, a cubic and a quartic term that all budgets share are therefore taken out first.
    """
    curves = [curve for curve in curves if curve.distinct >= POINTS_NEEDED]
    if not curves:
        return None
    ends = np.cumsum([0, *(len(curve.loss) for curve in curves)])
    own = np.zeros((ends[-1], 3 * len(curves)))
    for i, (curve, (start, end)) in enumerate(zip(curves, pairwise(ends), strict=True)):
        own[start:end, 3 * i : 3 * i + 3] = curve.powers
    offset = np.concatenate([curve.log_axis - curve.centre for curve in curves])
    losses = np.concatenate([curve.loss for curve in curves])
    shaped = np.column_stack([own, offset**3, offset**4])
    for design, needed, shape_taken_out in ((shaped, _FREEDOM_FOR_SHAPE, True), (own, 1, False)):
        fitted, _, rank, _ = np.linalg.lstsq(design, losses, rcond=None)
        freedom = len(losses) - int(rank)
        if freedom >= needed:
            residuals = losses - design @ fitted
            variance = float(residuals @ residuals) / freedom
            return Noise(variance=variance, freedom=freedom, shape_taken_out=shape_taken_out)
    return None


@dataclass(frozen=True, kw_only=True)
class Redraws:
    """Vertices (log axis), minimal losses and log curvatures of redrawn curves, each (draws, curves).

    NaN where no candidate had a minimum. `rejected` is the share of draws in which a curve's first candidate had none.
    """

    vertices: np.ndarray
    losses: np.ndarray
    log_curvatures: np.ndarray
    rejected: float


def redraw(curves: list[Curve], noise: Noise, draws: int, seed: int) -> Redraws:
    """Draw what the curves could have been instead, given their noise: each of them has a minimum.

    The coefficients scatter about the fitted ones as least squares says; the variance is itself an estimate, and its
    own uncertainty gives the draws the tails of a t distribution. A curve counts because its minimum is inside the
    grid, so a candidate that opens downwards, or whose vertex is further outside than the grid is wide, is drawn again
    (up to 8 times). Minima just outside stay: to cut the draws at the edge as the data are cut would make the interval
    of a budget near the edge far too narrow.
    """
    rng = np.random.default_rng(seed)
    scale = np.sqrt(noise.variance * noise.freedom / rng.chisquare(noise.freedom, size=draws))[:, None, None]
    first_failed = np.zeros(draws, dtype=bool)
    columns = []
    for curve in curves:
        root = np.linalg.cholesky(curve.solver @ curve.solver.T)
        scatter = rng.standard_normal((draws, _CANDIDATES, 3)) @ root.T
        candidates = curve.coefficients + scale * scatter
        vertices = curve.vertex(candidates)
        low, high = curve.grid
        good = (vertices > low - (high - low)) & (vertices < high + (high - low))
        chosen = np.take_along_axis(candidates, good.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        chosen[~good.any(axis=1)] = np.nan
        first_failed |= ~good[:, 0]
        columns.append((curve.vertex(chosen), curve.minimal_loss(chosen), np.log(chosen[:, 0])))
    vertices, losses, log_curvatures = (np.stack(column, axis=-1) for column in zip(*columns, strict=True))
    return Redraws(
        vertices=vertices,
        losses=losses,
        log_curvatures=log_curvatures,
        rejected=float(first_failed.mean()) if draws else 0.0,
    )
