"""The best learning rates as a power law of compute, mean recurrence and parameters, from trials at several of each."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

FEATURES = {"flops": "C", "mean_recurrence": "µ", "params": "N"}
"""Quantities that the best rates may depend on (FLOPs, loops, parameters without embeddings), with their symbols."""
WINDOW = 4.0
"""Trials beyond this factor of the best rate of their cell don't count: the loss is no parabola there."""
DRAWS = 2000
SIGNIFICANT = 0.05
_ROUNDS = 12
_RANGE_TOLERANCE = 1.01


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """The power of a feature with which a best rate grows; the 95% interval is None without spare trials."""

    rate: str
    feature: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class BestRates:
    """The best rates of one run.

    Attributes:
        rates: by name.
        intervals: 95% intervals by name; empty if they aren't known.
        nats: expected excess of the run's loss because the best rates are uncertain, nats per token; None if unknown.
        beyond: by feature, the factor by which the run lies outside the range of the trials; empty inside it.
        unknown: features whose exponent the trials don't tell, although the run differs from them there.
    """

    rates: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    nats: float | None
    beyond: Mapping[str, float]
    unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RateLaw:
    """A quadratic loss in the logs of the rates x, whose minimum is linear in the logs of the features z = (1, ...).

    loss = level(cell) + 1/2 (x - x*)' K (x - x*) with K x* = B z. Expanded it is linear in the levels, K and B, so it
    is fitted by least squares, and the exponents are those of K^-1 B. The curvature K is the same in every cell, and so
    is the noise. Intervals come from draws of K and B out of their multivariate t distribution (a flat prior, the
    noise estimated from the residuals, which hold the misfit of the parabola, too); draws without a minimum are left
    out.

    Attributes:
        rates: names of the rates.
        features: names of the features that vary between cells.
        ranges: least and largest value of every feature in the trials that count.
        centre_rates: logs of the rates that x is measured from.
        centre_features: logs of the features that z is measured from.
        coefficients: K's upper triangle by rows, then B by rows.
        covariance: covariance of the coefficients; None without spare trials.
        noise: standard deviation of the residuals, nats per token; None without spare trials.
        dof: trials that count, less the fitted numbers.
        cells: distinct combinations of features.
        trials: trials with a loss.
        misfit: p-value of the F-test of the power law against best rates of each cell's own; None without spare
            trials or with no more cells than exponents to test.
        trials_used: those within `WINDOW` of the best rates of their cell.
    """

    rates: tuple[str, ...]
    features: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    centre_rates: tuple[float, ...]
    centre_features: tuple[float, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...] | None
    noise: float | None
    dof: int
    cells: int
    trials: int
    trials_used: int
    misfit: float | None = None

    @property
    def curvature(self) -> np.ndarray:
        """K, in nats per squared unit of log rate, (rates, rates)."""
        return _matrices(np.asarray(self.coefficients), len(self.rates))[0]

    @property
    def exponents(self) -> list[Exponent]:
        """The power of each feature in each best rate."""
        values = _exponents(np.asarray(self.coefficients), len(self.rates))
        draws = None if self._draws is None else _exponents(self._draws, len(self.rates))
        return [
            Exponent(
                rate=rate,
                feature=feature,
                value=float(values[row, column + 1]),
                interval=None if draws is None else _span(draws[:, row, column + 1]),
            )
            for row, rate in enumerate(self.rates)
            for column, feature in enumerate(self.features)
        ]

    @cached_property
    def _draws(self) -> np.ndarray | None:
        """Draws of the coefficients that have a minimum, (draws, coefficients)."""
        if self.covariance is None:
            return None
        rng = np.random.default_rng(0)
        normal = rng.multivariate_normal(np.zeros(len(self.coefficients)), self.covariance, DRAWS, method="eigh")
        scale = np.sqrt(self.dof / rng.chisquare(self.dof, (DRAWS, 1)))
        draws = np.asarray(self.coefficients) + scale * normal
        return draws[_has_minimum(draws, len(self.rates))]

    @property
    def share_with_minimum(self) -> float | None:
        """The share of the draws that have a minimum: a low one says that the trials hardly show where it is."""
        return None if self._draws is None else len(self._draws) / DRAWS

    def nats_off(self, factor: float) -> float:
        """Return the excess loss in nats per token of all rates being `factor` times their best."""
        return float(0.5 * math.log(factor) ** 2 * self.curvature.sum())

    def at(self, features: Mapping[str, float]) -> BestRates:
        """Return the best rates of a run with these features.

        The expected excess is 1/2 tr(K^-1 Cov(B z - K x)): the gradient at the chosen rates x is linear in K and B.
        """
        z, count = self._features(features), len(self.rates)
        best = _optimum(np.asarray(self.coefficients), z, count)
        intervals, nats = {}, None
        beyond = {name: factor for name, ends in self.ranges.items() if (factor := _beyond(features[name], *ends)) > 1}
        unknown = tuple(name for name in beyond if name not in self.features)
        if self._draws is not None and self.covariance is not None and not unknown:
            drawn = _optimum(self._draws, z, count)
            for index, name in enumerate(self.rates):
                low, high = _span(drawn[:, index] + self.centre_rates[index])
                intervals[name] = math.exp(low), math.exp(high)
            gradient = _gradient(z, best)
            spread = gradient @ np.asarray(self.covariance) @ gradient.T
            nats = float(0.5 * np.trace(np.linalg.solve(self.curvature, spread)))
        return BestRates(rates=self.best_at(features), intervals=intervals, nats=nats, beyond=beyond, unknown=unknown)

    def best_at(self, features: Mapping[str, float]) -> dict[str, float]:
        """Return the best rates of a run with these features, by name."""
        best = _optimum(np.asarray(self.coefficients), self._features(features), len(self.rates))
        return {name: math.exp(log) for name, log in zip(self.rates, best + self.centre_rates, strict=True)}

    def _features(self, features: Mapping[str, float]) -> np.ndarray:
        """Return z, from the centre."""
        logs = [math.log(features[name]) for name in self.features]
        return np.array([1.0, *(np.subtract(logs, self.centre_features))])

    def report(self) -> list[str]:
        """Return the law in words, line by line: exponents, cost of a wrong rate, and what the trials don't tell."""
        lines = []
        centre = _optimum(np.asarray(self.coefficients), np.eye(1, 1 + len(self.features))[0], len(self.rates))
        for row, rate in enumerate(self.rates):
            exponents = [each for each in self.exponents if each.rate == rate]
            powers = "".join(
                f" x ({FEATURES[each.feature]} / {math.exp(log):.3g})^{each.value:.3g}"
                for each, log in zip(exponents, self.centre_features, strict=True)
            )
            best = math.exp(centre[row] + self.centre_rates[row])
            lines.append(f"best {rate} = {best:.3g}{powers}")
            for each in exponents:
                span = "its interval needs more trials"
                if each.interval is not None:
                    span = f"95% interval {each.interval[0]:.3g} to {each.interval[1]:.3g}"
                lines.append(f"      exponent of {FEATURES[each.feature]}: {each.value:.3g} ({span})")
        used = f"{self.trials_used} of {self.trials} trials with a loss, within {WINDOW:g} times the best rates"
        scatter = "no spare trial shows the noise" if self.noise is None else f"residuals {self.noise:.3g} nats"
        lines.append(f"from {used}, in {self.cells} cell(s); {scatter}")
        lines.append(f"half or twice the best rates cost {self.nats_off(2):.3g} nats")
        fixed = [FEATURES[name] for name in self.ranges if name not in self.features]
        if fixed:
            lines.append(
                f"not known: how the best rates depend on {' and '.join(fixed)}, of which the trials have one value"
            )
        if self.misfit is not None and self.misfit < SIGNIFICANT:
            lines.append(
                f"the best rates of the cells are no power law (F-test, p = {self.misfit:.2g}): beyond the trials they "
                "are less certain than their intervals say; tune nearer to the runs"
            )
        share = self.share_with_minimum
        if share is not None and share < 0.975:
            lines.append(f"the trials hardly show a minimum: {1 - share:.0%} of the draws have none; add trials")
        return lines

    def to_json(self) -> str:
        """Return the law as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RateLaw:
        """Return the law that `to_json` has written."""
        content: dict[str, Any] = json.loads(text)
        for name in ("rates", "features", "centre_rates", "centre_features", "coefficients"):
            content[name] = tuple(content[name])
        content["ranges"] = {name: tuple(ends) for name, ends in content["ranges"].items()}
        if content["covariance"] is not None:
            content["covariance"] = tuple(map(tuple, content["covariance"]))
        return cls(**content)


def fit_rate_law(
    rates: Mapping[str, ArrayLike], features: Mapping[str, ArrayLike], losses: ArrayLike, *, window: float = WINDOW
) -> RateLaw:
    """Fit the best rates as a power law to the final losses of trials.

    Args:
        rates: learning rates by name, (trials,) each.
        features: `FEATURES` of each trial, (trials,) each; trials with equal features are one cell.
        losses: nats per token, (trials,).
        window: trials beyond this factor of the best rates of their cell don't count; they are found by iteration.

    Raises:
        ValueError: too few trials, or no minimum in the rates.
    """
    # Logs from their means, cells by number, and the features that vary.
    x = np.log(np.column_stack([np.asarray(values, dtype=float) for values in rates.values()]))
    all_features = {name: np.asarray(values, dtype=float) for name, values in features.items()}
    cells = np.unique(np.column_stack(list(all_features.values())), axis=0, return_inverse=True)[1].reshape(-1)
    varying = tuple(name for name, values in all_features.items() if len(np.unique(values)) > 1)
    z = np.column_stack([np.ones(len(x)), *(np.log(all_features[name]) for name in varying)])
    loss = np.asarray(losses, dtype=float)
    centre_x, centre_z = x.mean(axis=0), z.mean(axis=0) * np.array([0.0] + [1.0] * len(varying))
    x, z = x - centre_x, z - centre_z

    # Least squares on the trials near the best rates, which follow from it.
    count = x.shape[1]
    used = np.ones(len(x), dtype=bool)
    fitted = _least_squares(x, z, cells, loss)
    for _ in range(_ROUNDS):
        if fitted is None or not _has_minimum(fitted[0], count).all():
            break
        off = np.abs(x - np.stack([_optimum(fitted[0], row, count) for row in z])).max(axis=1)
        near = off <= math.log(window) + 1e-9
        if (near == used).all() or not near.any():
            break
        again = _least_squares(x[near], z[near], cells[near], loss[near])
        if again is None or again[3] < 1 or not _has_minimum(again[0], count).all():
            break
        used, fitted = near, again
    if fitted is None and np.linalg.matrix_rank(z) < z.shape[1]:
        raise ValueError(
            f"the cells of a law of the best rates must differ in {', '.join(varying)} independently, but they change "
            "together; add a budget or a mean recurrence"
        )
    if fitted is None:
        raise ValueError(
            f"a law of the best rates must have more trials with a loss than {_parameters(count, z, cells)}, the "
            f"numbers to fit, but got {len(x)}; raise --trials"
        )
    coefficients, covariance, noise, dof = fitted
    if not _has_minimum(coefficients, count).all():
        raise ValueError(
            f"the losses of the trials must have a minimum in {' and '.join(rates)}, but a parabola through "
            f"{len(x)} of them has none; widen the range of tune.space, or raise --trials"
        )
    return RateLaw(
        rates=tuple(rates),
        features=varying,
        ranges={name: (float(values[used].min()), float(values[used].max())) for name, values in all_features.items()},
        centre_rates=tuple(map(float, centre_x)),
        centre_features=tuple(map(float, centre_z[1:])),
        coefficients=tuple(map(float, coefficients)),
        covariance=None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
        noise=noise,
        dof=dof,
        cells=len(np.unique(cells)),
        trials=len(x),
        trials_used=int(used.sum()),
        misfit=_misfit(x[used], cells[used], loss[used], noise, dof),
    )


def _misfit(x: np.ndarray, cells: np.ndarray, loss: np.ndarray, noise: float | None, dof: int) -> float | None:
    """Return the p-value of the law's squares against those of a fit in which each cell has its own best rates."""
    free = _least_squares(x, (cells[:, None] == np.unique(cells)).astype(float), cells, loss)
    if noise is None or free is None or not free[2] or free[3] >= dof:
        return None
    squares, more = free[2] ** 2 * free[3], dof - free[3]
    ratio = (noise**2 * dof - squares) / more / free[2] ** 2
    return float(stats.f.sf(ratio, more, free[3]))


def _least_squares(
    x: np.ndarray, z: np.ndarray, cells: np.ndarray, loss: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, float | None, int] | None:
    """Return coefficients, covariance, noise and degrees of freedom; None if the trials don't determine them."""
    rows, columns = np.triu_indices(x.shape[1])
    quadratic = x[:, rows] * x[:, columns] * np.where(rows == columns, 0.5, 1.0)
    linear = -(x[:, :, None] * z[:, None, :]).reshape(len(x), -1)
    levels = cells[:, None] == np.unique(cells)
    design = np.hstack([quadratic, linear, levels.astype(float)])
    solution, _, rank, _ = np.linalg.lstsq(design, loss, rcond=1e-10)
    if rank < design.shape[1]:
        return None
    dof, kept = len(x) - rank, quadratic.shape[1] + linear.shape[1]
    if dof < 1:
        return solution[:kept], None, None, 0
    variance = float(np.sum((loss - design @ solution) ** 2) / dof)
    covariance = variance * np.linalg.inv(design.T @ design)
    return solution[:kept], covariance[:kept, :kept], math.sqrt(variance), int(dof)


def _parameters(rates: int, z: np.ndarray, cells: np.ndarray) -> int:
    return rates * (rates + 1) // 2 + rates * z.shape[1] + len(np.unique(cells))


def _matrices(coefficients: np.ndarray, rates: int) -> tuple[np.ndarray, np.ndarray]:
    """Return K (..., rates, rates) and B (..., rates, features) of coefficients (..., count)."""
    rows, columns = np.triu_indices(rates)
    curvature = np.zeros((*coefficients.shape[:-1], rates, rates))
    curvature[..., rows, columns] = curvature[..., columns, rows] = coefficients[..., : len(rows)]
    return curvature, coefficients[..., len(rows) :].reshape(*coefficients.shape[:-1], rates, -1)


def _exponents(coefficients: np.ndarray, rates: int) -> np.ndarray:
    """Return K^-1 B, (..., rates, features)."""
    curvature, linear = _matrices(coefficients, rates)
    return np.linalg.solve(curvature, linear)


def _optimum(coefficients: np.ndarray, z: np.ndarray, rates: int) -> np.ndarray:
    """Return x* = K^-1 B z, (..., rates)."""
    return _exponents(coefficients, rates) @ z


def _gradient(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the derivative of B z - K x with respect to the coefficients, (rates, coefficients)."""
    rows, columns = np.triu_indices(len(x))
    of_curvature = np.zeros((len(x), len(rows)))
    for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
        of_curvature[row, index] -= x[column]
        if row != column:
            of_curvature[column, index] -= x[row]
    return np.hstack([of_curvature, np.kron(np.eye(len(x)), z)])


def _has_minimum(coefficients: np.ndarray, rates: int) -> np.ndarray:
    """Return whether K is positive definite, (...)."""
    return np.asarray(np.linalg.eigvalsh(_matrices(coefficients, rates)[0])[..., 0] > 0)


def _span(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _beyond(value: float, low: float, high: float) -> float:
    """Return the factor by which a value lies outside a range; 1 inside, and within 1% of it."""
    factor = max(low / value, value / high)
    return factor if factor > _RANGE_TOLERANCE else 1.0


def describe_beyond(beyond: Mapping[str, float]) -> str:
    """Return in words how far a run lies outside the range of the trials."""
    return " and ".join(f"{factor:.3g} times beyond in {FEATURES[name]}" for name, factor in beyond.items())


def names_of(paths: Sequence[str]) -> list[str]:
    """Return the last part of each path."""
    return [path.rpartition(".")[2] for path in paths]
