"""The noise of losses: it may depend on the FLOPs of a run, and the runs of a budget may share a part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from isoloop.fitting.estimation.point_estimate import LARGE_TABLE, PointEstimate
from isoloop.fitting.estimation.typical_size import typical_size
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.laws.base import Data

_SIGNIFICANT, _SIGNIFICANT_SHARED = 0.01, 0.05
"""Levels of the tests of an exponent and of shared luck. Luck that is not seen makes intervals too narrow."""
_DOF_NEEDED = 8
"""Degrees of freedom from which scatter is compared between budgets."""
_CURVE_PARAMETERS = 3
_NULL_DRAWS = 10_000
_LEAST_SHARE_OF_LARGEST = 0.01
"""Directions between budgets that a law follows but for less than this share tell nothing of shared noise."""
_LEAST_SHARED_DOF = 2.0
"""Shared noise that only just shows is overestimated, which makes up for fewer degrees of freedom."""
_MOST_GROUPS = 100
_LARGEST_EXPONENT = 4.0
_CLIP, _CLIP_TO_COMPARE = 3.5, 2.0
"""Residuals count up to this many typical ones; fewer where scatter is compared, so that one run decides nothing."""
_LEAST_SHARE_OF_MEDIAN = 0.1
"""A fit of nearly absolute residuals makes some of them zero; they count as this share of the median one."""


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Standard deviation of one run's loss as a power of its FLOPs, and noise that all runs of a budget share.

    `level` is that of log loss at `reference` FLOPs, known with `dof` degrees of freedom; it grows as C^`exponent`,
    which has the standard error `exponent_error`. An exponent of 0 is the same noise at every budget. `shared` is the
    standard deviation of the noise that runs of a budget have in common, 0 if the losses show none, known with
    `shared_dof` degrees of freedom; `possible_shared` is its estimate, whether or not a test shows it. `source` names
    what the noise was measured by.
    """

    level: float
    reference: float
    dof: float
    exponent: float = 0.0
    exponent_error: float = 0.0
    shared: float = 0.0
    shared_dof: float = 0.0
    possible_shared: float = 0.0
    source: str = "law"

    @property
    def uneven(self) -> bool:
        """True if it departs from the same independent noise in every run."""
        return self.exponent != 0 or self.shared > 0

    def at(self, flops: np.ndarray) -> np.ndarray:
        """Return the standard deviation of log loss of runs that spend `flops`, of their shape."""
        return np.asarray(self.level * (np.asarray(flops, dtype=float) / self.reference) ** self.exponent)

    def scales(self, flops: np.ndarray) -> np.ndarray:
        """Return the standard deviations of runs that spend `flops` (rows,), relative to their geometric mean."""
        logs = np.log(np.asarray(flops, dtype=float))
        return np.asarray(np.exp(self.exponent * (logs - logs.mean())))

    def whitening(self, data: Data, *, independent: bool = False) -> Whitening | None:
        """Return the transform that makes residuals of the rows of `data` equally uncertain; None if they are.

        With `independent`, what budgets share is left in the residuals. Raises ValueError if the exponent is not 0
        and the data have no column `flops`.
        """
        scales = self.scales(flops_of(data)) if self.exponent else None
        if independent or not self.shared or "budget" not in data:
            return None if scales is None else Whitening(scales=scales)
        typical = float(np.exp(np.log(self.at(flops_of(data))).mean())) if self.exponent else self.level
        return Whitening.of_groups(scales, np.asarray(data["budget"], dtype=float), (self.shared / typical) ** 2)

    def centred(self, data: Data) -> NoiseModel:
        """Return the same noise with its level at the geometric mean of the FLOPs of `data`."""
        if not self.exponent:
            return self
        reference = float(np.exp(np.log(flops_of(data)).mean()))
        return replace(self, level=float(self.at(np.array(reference))), reference=reference)

    def drawn_ratios(self, data: Data, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return the noise of the rows relative to the level, by exponents that are drawn: (draws, rows), or 1."""
        if not self.exponent:
            return np.ones((1, 1))
        exponents = self.exponent + self.exponent_error * rng.standard_normal((draws, 1))
        return np.asarray(np.exp(exponents * np.log(flops_of(data) / self.reference)))

    def drawn_shared(self, data: Data, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return noise that the rows of a budget share: (draws, rows) of log loss, or 0."""
        if not self.shared:
            return np.zeros((1, 1))
        rows = len(next(iter(data.values())))
        budgets = np.asarray(data.get("budget", np.full(rows, np.nan)), dtype=float)
        # A row without a budget shares it with none.
        known = ~np.isnan(budgets)
        names, groups = np.unique(budgets[known], return_inverse=True)
        group = len(names) + np.arange(rows)
        group[known] = groups
        sizes = self.shared * np.sqrt(self.shared_dof / rng.chisquare(self.shared_dof, size=(draws, 1)))
        return np.asarray((sizes * rng.standard_normal((draws, len(names) + rows)))[:, group])

    def __str__(self) -> str:
        """Return the noise in words, for reports."""
        return f"{100 * self.level:.2g}% of the loss{self.departure or ' at every budget'}; measured by {self.source}"

    @property
    def departure(self) -> str:
        """The dependence on compute and the noise that budgets share, in words that follow the level; '' if none."""
        words = ""
        if self.exponent:
            words = (
                f" at {self.reference:.3g} FLOPs, which {'grows' if self.exponent > 0 else 'falls'} with C as "
                f"C^{self.exponent:.2f} (standard error {self.exponent_error:.2f})"
            )
        if self.shared:
            words += f", and noise of {100 * self.shared:.2g}% that the runs of a budget share"
        return words


def flops_of(data: Data) -> np.ndarray:
    """Return the FLOPs of each row. Raises ValueError if the column is missing."""
    if "flops" not in data:
        raise ValueError("noise that depends on compute needs the column `flops`, but it is missing; add it")
    return np.asarray(data["flops"], dtype=float)


def noise_model(data: Data, estimate: PointEstimate) -> NoiseModel:
    """Measure the noise of the losses that a law was fitted to, by the residuals of `estimate`.

    The scatter about the law is compared between budgets where several seeds ran the same model, or else where budgets
    have more runs than the 3 parameters of a parabola (what a law misses along a curve is then not taken for noise),
    or else over all runs. An exponent that a test does not show at the 1% level, or shared noise at the 5% level, is 0.
    Both tests hold their level for normal noise, by simulation, and nearly so with outliers, whose residuals are
    clipped. `data` need the columns loss and flops, and may have budget and mean_recurrence or params.
    """
    residuals = np.log(data["loss"]) - np.log(estimate.law.loss(estimate.parameters, data))
    log_flops = np.log(flops_of(data))
    reference = float(np.exp(log_flops.mean()))
    position = log_flops - log_flops.mean()
    slopes = _log_slopes(estimate, data)
    compared, clipped = (
        _clipped(residuals, position, len(estimate.parameters), clip) for clip in (_CLIP_TO_COMPARE, _CLIP)
    )
    exponent, error = _exponent(_scatter(data, compared, position, slopes))
    weighted = clipped * np.exp(-exponent * position)
    scatter = _scatter(data, clipped, position, slopes)
    level = np.sqrt(np.sum(scatter.squares * np.exp(-2 * exponent * scatter.position)) / scatter.total_dof)
    luck, luck_dof, seen = 0.0, 0.0, False
    if "budget" in data and len(clipped) <= LARGE_TABLE:
        luck, luck_dof, seen = _shared(weighted, slopes, np.exp(exponent * position), np.asarray(data["budget"]))
    return NoiseModel(
        level=float(level),
        reference=reference,
        dof=float(scatter.total_dof),
        exponent=exponent,
        exponent_error=error,
        shared=luck if seen else 0.0,
        shared_dof=luck_dof if seen else 0.0,
        possible_shared=luck,
        source=scatter.source,
    )


@dataclass(frozen=True, kw_only=True)
class _Scatter:
    """Sums of squares of residuals, their degrees of freedom and log FLOPs (about the mean), (groups,) each.

    `tails` is the variance of a squared residual, relative to that of a squared normal one.
    """

    squares: np.ndarray
    dof: np.ndarray
    position: np.ndarray
    tails: float
    source: str

    @property
    def total_dof(self) -> float:
        """Degrees of freedom of all groups."""
        return float(self.dof.sum())

    @property
    def comparable(self) -> bool:
        """True if there are enough degrees of freedom at different compute."""
        return self.total_dof >= _DOF_NEEDED and bool(np.ptp(self.position) > np.log(2))

    def joined(self, most: int) -> _Scatter:
        """Return the scatter in at most so many groups: neighbours in compute are one."""
        if len(self.dof) <= most:
            return self
        parts = np.array_split(np.argsort(self.position, kind="stable"), most)
        dof = np.array([self.dof[part].sum() for part in parts])
        position = np.array([self.dof[part] @ self.position[part] for part in parts]) / dof
        squares = np.array([self.squares[part].sum() for part in parts])
        return replace(self, squares=squares, dof=dof, position=position)


def _clipped(residuals: np.ndarray, position: np.ndarray, parameters: int, clip: float) -> np.ndarray:
    """Return residuals (rows,) clipped at `clip` typical ones, beside a scale that may be a power of compute."""
    size = np.abs(residuals)
    least = max(_LEAST_SHARE_OF_MEDIAN * float(np.median(size)), np.finfo(float).tiny)
    spread = float(position @ position)
    slope = float(position @ np.log(np.maximum(size, least))) / spread if spread > 0 else 0.0
    scales = np.exp(np.clip(slope, -_LARGEST_EXPONENT, _LARGEST_EXPONENT) * position)
    limit = clip * typical_size(size / scales, max(len(size) - parameters, 1))
    return np.clip(residuals, -limit * scales, limit * scales)


def _log_slopes(estimate: PointEstimate, data: Data) -> np.ndarray:
    """Return the slopes of log loss by the parameters, normalised, without those that change nothing: (rows, p)."""
    loss, slopes = estimate.law.loss_and_gradient(estimate.parameters, data)
    slopes = slopes / loss[:, None]
    lengths = np.linalg.norm(slopes, axis=0)
    free = (lengths > 0) & np.isfinite(lengths) & ~np.isin(estimate.law.parameter_names, estimate.at_bounds)
    return np.asarray(slopes[:, free] / lengths[free])


def _scatter(data: Data, residuals: np.ndarray, position: np.ndarray, slopes: np.ndarray) -> _Scatter:
    """Return the scatter of seeds if there are enough, or else of the isoFLOP curves, or else about the law."""
    axis = _axis(data)
    budgets = np.asarray(data.get("budget", np.full(len(residuals), np.nan)), dtype=float)
    if axis is not None:
        values = np.log(np.asarray(data[axis], dtype=float))
        level = np.where(np.isnan(budgets), np.asarray(data["tokens"], dtype=float), budgets)
        # Models of a budget differ in size, too, where there are several: each has cells and a curve of its own.
        size = np.asarray(data["params"] if "params" in data and axis != "params" else level * 0, dtype=float)
        cells = np.unique(np.stack([values, level, size], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        seeds = _within_groups(cells, residuals, position, values, 1, "seeds")
        if seeds is not None and seeds.comparable:
            return seeds
        groups = np.unique(np.stack([budgets, size], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        groups[np.isnan(budgets)] = -1
        curves = _within_groups(groups, residuals, position, values, _CURVE_PARAMETERS, "isoFLOP curves")
        if curves is not None and curves.comparable:
            return curves
    basis = np.linalg.qr(slopes)[0]
    left = residuals - basis @ (basis.T @ residuals)
    shares = np.maximum(1 - (basis**2).sum(axis=1), 1e-3)
    return _Scatter(squares=left**2, dof=shares, position=position, tails=_tails(left / np.sqrt(shares)), source="law")


def _axis(data: Data) -> str | None:
    """Return the column along which the models of a budget differ, None if there is none."""
    names = [name for name in ("mean_recurrence", "params") if name in data and np.ptp(data[name]) > 0]
    return names[0] if names else None


def _within_groups(
    groups: np.ndarray, residuals: np.ndarray, position: np.ndarray, values: np.ndarray, parameters: int, source: str
) -> _Scatter | None:
    """Return the scatter within groups (rows,), -1 for none, about a mean (1 parameter) or a parabola (3) of each."""
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    scatters: list[tuple[float, int, float]] = []
    standardised: list[np.ndarray] = []
    for name, rows in zip(names, np.split(order, starts[1:]), strict=True):
        if name < 0 or len(rows) <= parameters or len(np.unique(values[rows])) < parameters:
            continue
        centred = values[rows] - values[rows].mean()
        basis = np.linalg.qr(np.vander(centred / max(np.abs(centred).max(), 1e-300), parameters))[0]
        left = residuals[rows] - basis @ (basis.T @ residuals[rows])
        scatters.append((float(left @ left), len(rows) - parameters, float(position[rows].mean())))
        standardised.append(left / np.sqrt(np.maximum(1 - (basis**2).sum(axis=1), 1e-3)))
    if not scatters:
        return None
    squares, dof, positions = (np.array(column, dtype=float) for column in zip(*scatters, strict=True))
    scales = np.sqrt(np.maximum(squares / dof, 1e-300))
    tails = _tails(np.concatenate([left / scale for left, scale in zip(standardised, scales, strict=True)]))
    return _Scatter(squares=squares, dof=dof, position=positions, tails=tails, source=source)


def _tails(standardised: np.ndarray) -> float:
    """Return the variance of squared residuals relative to that of normal ones, at least 1."""
    squares = standardised**2
    mean = float(squares.mean())  # 0 where losses lie on the curves exactly
    return max(1.0, float(np.mean((squares / mean) ** 2) - 1) / 2) if mean > 0 else 1.0


def _exponent(scatter: _Scatter) -> tuple[float, float]:
    """Return the exponent of the standard deviation in compute and its standard error, both 0 if a test shows none.

    It maximises the likelihood of the sums of squares, which is that of a gamma regression (restricted maximum
    likelihood, Harville 1977). The test is its score test, whose distribution is simulated for normal noise and widened
    by the tails of the residuals.
    """
    if not scatter.comparable or not scatter.squares.sum() > 0:
        return 0.0, 0.0
    scatter = scatter.joined(_MOST_GROUPS)
    squares, dof, total = scatter.squares / scatter.squares.sum(), scatter.dof, scatter.total_dof
    position = scatter.position - float(dof @ scatter.position) / total
    # The score test
    drawn = np.random.default_rng(0).chisquare(dof, size=(_NULL_DRAWS, len(dof)))
    null = np.abs(drawn @ position) / drawn.sum(axis=1) * np.sqrt(scatter.tails)
    if np.mean(null >= abs(float(squares @ position))) >= _SIGNIFICANT:
        return 0.0, 0.0

    # The estimate and its error
    def deviance(exponent: float) -> float:
        return total * float(np.log(squares @ np.exp(-2 * exponent * position)))

    best = optimize.minimize_scalar(deviance, bounds=(-_LARGEST_EXPONENT, _LARGEST_EXPONENT), method="bounded")
    return float(best.x), float(np.sqrt(scatter.tails / (2 * (dof @ position**2))))


def _shared(
    residuals: np.ndarray, slopes: np.ndarray, scales: np.ndarray, budgets: np.ndarray
) -> tuple[float, float, bool]:
    """Return the standard deviation of noise that a budget's runs share, its degrees of freedom, and True if it shows.

    `residuals` (rows,) are divided by their `scales`. The scatter between budgets beyond the law is tested against that
    within them by the score test of a random effect, whose distribution is simulated for normal noise; its size is then
    the estimate of restricted maximum likelihood.
    """
    known = ~np.isnan(budgets)
    names, group = np.unique(budgets[known], return_inverse=True)
    if len(residuals) - len(names) < _DOF_NEEDED:
        return 0.0, 0.0, False
    effects = np.zeros((len(residuals), len(names)))
    effects[np.flatnonzero(known), group] = 1 / scales[known]
    # What the law can't follow: between budgets, and within them
    basis = np.linalg.qr(slopes / scales[:, None])[0]
    left = residuals - basis @ (basis.T @ residuals)
    seen = effects - basis @ (basis.T @ effects)
    values, vectors = np.linalg.eigh(seen.T @ seen)
    free = values > _LEAST_SHARE_OF_LARGEST * max(float(values.max(initial=0.0)), 1e-300)
    values = values[free]
    within = len(residuals) - basis.shape[1] - len(values)
    if within < _DOF_NEEDED or not len(values) or not left @ left > 0:
        return 0.0, 0.0, False
    between = ((seen @ vectors[:, free]) / np.sqrt(values)).T @ left
    rest = max(float(left @ left - between @ between), 1e-300)
    # The score test
    rng = np.random.default_rng(0)
    drawn = rng.chisquare(1, size=(_NULL_DRAWS, len(values)))
    null = drawn @ values / (drawn.sum(axis=1) + rng.chisquare(within, size=_NULL_DRAWS))
    shows = bool(np.mean(null >= between**2 @ values / (left @ left)) < _SIGNIFICANT_SHARED)

    # The ratio of the variance of the shared noise to that of a run's own noise
    def deviance(log_ratio: float) -> float:
        spread = 1 + np.exp(log_ratio) * values
        total = float((between**2 / spread).sum()) + rest
        return (within + len(values)) * float(np.log(total)) + float(np.log(spread).sum())

    largest = float(np.log(values.max()))
    best = optimize.minimize_scalar(deviance, bounds=(-largest - 7, -largest + 14), method="bounded")
    ratio = float(np.exp(best.x))
    spread = 1 + ratio * values
    variance = (float((between**2 / spread).sum()) + rest) / (within + len(values))
    dof = max(_LEAST_SHARED_DOF, float(((ratio * values / spread) ** 2).sum()))
    return float(np.sqrt(ratio * variance)), dof, shows
