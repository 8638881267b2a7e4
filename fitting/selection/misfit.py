"""Tests of the form of a fitted law: regular departures of the losses from it, beside their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
from scipy import stats

from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.estimation.point_estimate import LARGE_TABLE
from isoloop.fitting.estimation.typical_size import typical_size
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.laws.base import Data, Law
from isoloop.fitting.laws.registry import richer_law

MISFIT = "The form of the law is wrong:"
"""The words with which the sentence of a misfit begins."""
_RICHER, _CURVES, _SEEDS, _SMOOTH, _WITHIN = (
    "the law that extends it",
    "the isoFLOP curves",
    "repeated runs",
    "smooth departures",
    "regular departures within runs",
)
_SHARES = {_RICHER: 0.8, _CURVES: 0.2, _SEEDS: 0.2, _SMOOTH: 0.2, _WITHIN: 0.2}
"""Shares of the level that the tests have, relative to those that a table allows."""
LEVEL_AFTER_TRAINING, LEVEL_AT_TEST_TIME = 0.018, 0.002
"""Chance of calling a true law wrong: of the law after training, and of each of the up to three of test-time loops."""
_LEAST_SIZE = 2e-4
"""Smaller departures, as a share of the loss, matter to no prediction: they are never significant."""
_CLIP = 2.0
"""Residuals count up to this many typical ones."""
_NO_LAW = "compare other laws by `isoloop choose`, and trust no prediction beyond the fitted runs"
_NO_LAW_OF_LOOPS = "trust no loss that it predicts at a T that was not measured"
_SAME_CELL = 1e-6
_MIN_DOF = 4
"""Fewest degrees of freedom of the noise for a test."""
_DEPENDENT = 1e-6
_SMOOTH_DEGREE = 3
_EXPLAINED = 0.03
_CURVE_VALUES = 4
"""Values on the axis that one budget at least must have, for curves to say more than a parabola."""
_MOST_GROUPS = 100
"""Budgets up to which there are curves, and cells of repeated runs that are compared: the most repeated ones."""
_CLEARLY_BETTER = 2.0
"""Difference of AICc, by which predictions weigh laws, from which another law is said to carry them."""


@dataclass(frozen=True, kw_only=True)
class MisfitTest:
    """An F test of one kind of departure from a law, with its two degrees of freedom."""

    against: str
    statistic: float
    dof: tuple[int, int]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Tests of the form of one fitted law.

    `p_value` is that of all `tests` together: the chance of departures as regular as these from noise alone. `size` is
    the root mean square of the regular departure, as a share of the loss. `better` is the law to use in its place.
    """

    law: str
    tests: tuple[MisfitTest, ...]
    p_value: float
    size: float
    significant: bool
    better: str | None
    sentence: str


def law_misfit(
    fit: LawFit,
    data: Data,
    *,
    better_fit: LawFit | None = None,
    by_run: bool = False,
    level: float = LEVEL_AFTER_TRAINING,
    noise: NoiseModel | None = None,
) -> Misfit:
    """Test the form of a law that was fitted to the rows of `data`, by all of these that the rows allow.

    - Against the law that extends it: the slope of the loss by its further parameters explains some of the residuals.
    - Against the isoFLOP curves: a parabola per budget with a cubic and a quartic term in common does.
    - Against repeated runs: they scatter less among themselves than their means do about the law (lack of fit).
    - Without budgets: a cubic in the logarithms of the law's columns does. With `by_run`, where several rows of a run
      share its noise, only departures within runs count.

    They are F tests of residuals beside the law's own slopes (C(alpha) tests, Neyman 1959), with residuals clipped at 2
    typical ones and divided by the noise of their compute (`noise`, by default that of the fit). Where budgets share
    noise, only departures within them count; where none shows, those between budgets count less by its estimate.
    The p-values are combined by weighted Bonferroni, and the misfit is significant if the combined one is below
    `level`. `better_fit` is that of another law to the same rows, which the sentence names if it fits clearly better.
    """
    tests = _tests(fit, data, by_run, noise or fit.noise_model)
    return _judged(fit, tests, better_fit, level, float(np.mean(data["loss"])))


@dataclass(frozen=True, kw_only=True)
class _Departures:
    """Residuals (rows,) and slopes (rows, p) of a fit, both whitened, and the runs (rows,) whose losses share noise."""

    residuals: np.ndarray
    slopes: np.ndarray
    runs: np.ndarray | None

    def test(
        self, against: str, directions: np.ndarray, dependent: float = _DEPENDENT
    ) -> tuple[MisfitTest, float] | None:
        """Return the F test of `directions` (rows, q) and the variance that they explain, None without enough rows.

        Directions that the slopes explain but for the share `dependent` of their length are left out.
        """
        slopes, directions, residuals = (self._within_runs(each) for each in (self.slopes, directions, self.residuals))
        basis = _orthonormal(_unit(slopes), _DEPENDENT)
        residuals = _clipped(residuals - basis @ (basis.T @ residuals))
        residuals = residuals - basis @ (basis.T @ residuals)
        free = _unit(directions)
        for _ in range(2):  # once more, for rounding
            free = free - basis @ (basis.T @ free)
        free = _orthonormal(free, dependent)
        explained = float(np.sum((free.T @ residuals) ** 2))
        total = float(residuals @ residuals)
        lost = basis.shape[1] + (0 if self.runs is None else len(np.unique(self.runs)))
        dof = free.shape[1], len(residuals) - lost - free.shape[1]
        if dof[0] < 1 or dof[1] < _MIN_DOF or not total > 0:
            return None
        noise = max(total - explained, 1e-30 * total) / dof[1]
        statistic = explained / dof[0] / noise
        test = MisfitTest(
            against=against, statistic=statistic, dof=dof, p_value=float(stats.f.sf(statistic, dof[0], dof[1]))
        )
        return test, max(explained - dof[0] * noise, 0.0) / len(residuals)

    def _within_runs(self, values: np.ndarray) -> np.ndarray:
        """Return values (rows, ...) less their mean over the rows of the run."""
        if self.runs is None:
            return values
        run, counts = np.unique(self.runs, return_inverse=True, return_counts=True)[1:]
        columns = values.reshape(len(values), -1)
        means = np.stack([np.bincount(run, weights=column) / counts for column in columns.T], axis=-1)
        return (columns - means[run]).reshape(values.shape)


def misfit_of_models(misfits: Sequence[Misfit], level: float) -> Misfit | None:
    """Return the misfit of one law that was fitted to each of several models by itself; None without a test.

    It is significant if one of them is at `level` over their number.
    """
    tested = [misfit for misfit in misfits if misfit.tests]
    if not tested:
        return None
    worst = min(tested, key=lambda misfit: misfit.p_value)
    p_value = min(1.0, len(tested) * worst.p_value)
    departing = [misfit for misfit in tested if len(tested) * misfit.p_value < level and misfit.size > _LEAST_SIZE]
    sentence = f"The losses show no departure from the form of the {worst.law} law (p = {p_value:.2g})."
    if departing:
        sentence = (
            f"{MISFIT} the losses of {len(departing)} of {len(tested)} models depart from the {worst.law} law in a "
            f"regular way, by up to {100 * max(misfit.size for misfit in departing):.2g}% of the loss on average; "
            f"{_NO_LAW_OF_LOOPS}."
        )
    return replace(worst, p_value=p_value, significant=bool(departing), better=None, sentence=sentence)


def _tests(fit: LawFit, data: Data, by_run: bool, noise: NoiseModel | None) -> list[tuple[MisfitTest, float]]:
    """Return the tests that the rows allow, each with the variance of the residuals that its departure explains."""
    law, rows = fit.form, len(data["loss"])
    if rows > LARGE_TABLE:
        some = np.sort(np.random.default_rng(0).choice(rows, LARGE_TABLE, replace=False))
        data = {name: values[some] for name, values in data.items()}
    # Residuals and slopes of what was fitted: log loss or loss
    shared = noise is not None and noise.shared > 0 and "budget" in data and not by_run
    if noise is not None and not shared:
        noise = replace(noise, shared=noise.possible_shared)
    whitening = (noise.whitening(data, independent=shared or by_run) if noise else None) or Whitening()
    loss, slopes = law.loss_and_gradient(fit.vector, data)
    logarithmic = fit.on == "log loss"
    residuals = np.log(data["loss"] / loss) if logarithmic else data["loss"] - loss
    per_row = loss[:, None] if logarithmic else 1.0
    slopes = slopes / per_row
    if shared:
        # Noise that the runs of a budget share can look like any departure between budgets.
        slopes = np.column_stack([slopes, data["budget"][:, None] == np.unique(data["budget"])])
    departures, plain = (
        _Departures(
            residuals=each.rows(residuals), slopes=each.columns(slopes), runs=data["run_id"] if by_run else None
        )
        for each in (whitening, Whitening(scales=whitening.scales))
    )
    # The departures to look for
    directions: list[tuple[str, np.ndarray, float]] = []
    form = richer_law(law)
    simpler = form.simpler(data, lambda law, data: fit.vector) if form is not None else []
    if form is not None and simpler:
        directions.append((_RICHER, form.loss_and_gradient(simpler[0], data)[1] / per_row, _DEPENDENT))
    curves, cells = (None, None) if by_run else (_curve_directions(data), _cells(law, data))
    if curves is None:
        directions.append((_WITHIN if by_run else _SMOOTH, _smooth(law, data), _EXPLAINED))
    else:
        directions.append((_CURVES, curves, _EXPLAINED))
    if cells is not None:
        directions.append((_SEEDS, cells, _DEPENDENT))
    # The size of a departure is that of the losses, whatever part of it may be luck
    results = []
    for name, free, dependent in directions:
        test = departures.test(name, whitening.columns(free), dependent)
        sized = plain.test(name, Whitening(scales=whitening.scales).columns(free), dependent)
        if test is not None and sized is not None:
            results.append((test[0], sized[1]))
    return results


def _judged(
    fit: LawFit, tests: Sequence[tuple[MisfitTest, float]], better_fit: LawFit | None, level: float, mean_loss: float
) -> Misfit:
    """Return the misfit by all tests together."""
    name = fit.form.name
    if not tests:
        return Misfit(
            law=name,
            tests=(),
            p_value=1.0,
            size=0.0,
            significant=False,
            better=None,
            sentence=f"There are too few runs to test the form of the {name} law.",
        )
    shares = np.array([_SHARES[test.against] for test, _ in tests])
    combined = np.minimum(np.array([test.p_value for test, _ in tests]) / (shares / shares.sum()), 1.0)
    most = int(np.argmin(combined))
    p_value = float(combined[most])
    size = float(np.sqrt(tests[most][1])) / (1.0 if fit.on == "log loss" else mean_loss)
    significant = p_value < level and size > _LEAST_SIZE
    is_better = better_fit is not None and better_fit.aicc < fit.aicc - _CLEARLY_BETTER
    better = better_fit.form.name if better_fit is not None and is_better else None
    return Misfit(
        law=name,
        tests=tuple(test for test, _ in tests),
        p_value=p_value,
        size=size,
        significant=significant,
        better=better if significant else None,
        sentence=_sentence(fit, p_value, size, significant, better),
    )


def _sentence(fit: LawFit, p_value: float, size: float, significant: bool, better: str | None) -> str:
    name = fit.form.name
    if not significant:
        return f"The losses show no departure from the form of the {name} law (p = {p_value:.2g})."
    chance = f"1 of {_round_odds(p_value)} tables"
    after_training = "tokens" in fit.form.columns and "recurrence" not in fit.form.columns
    advice = _NO_LAW if after_training else _NO_LAW_OF_LOOPS
    if better is not None:
        advice = f"predictions use the {better} law, which fits better"
    return (
        f"{MISFIT} the losses depart from the {name} law in a regular way, by {100 * size:.2g}% on average (by noise "
        f"alone: fewer than {chance}); {advice}."
    )


def _round_odds(p_value: float) -> str:
    """Return 1 / p, rounded down to one digit, at most a million: '3,000'."""
    odds = min(1 / max(p_value, 1e-300), 1e6)
    unit = 10 ** int(np.log10(odds))
    return f"{int(odds / unit) * unit:,}"


def _curve_directions(data: Data) -> np.ndarray | None:
    """Return the freedom of isoFLOP curves (rows, 3 curves + 2): parabolas with a cubic and a quartic in common.

    Each budget has a curve, or each size of looped models at each budget. None if a row has no budget, no curve has 4
    values on the axis, or there are more than 100 curves.
    """
    axis = data.get("mean_recurrence", data.get("params"))
    budgets = np.asarray(data.get("budget", np.full(len(data["loss"]), np.nan)), dtype=float)
    if axis is None or np.isnan(budgets).any():
        return None
    if "mean_recurrence" in data and "params" in data:  # each size has a curve of its own
        budgets = np.unique(np.stack([budgets, data["params"]], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    names = np.unique(budgets)
    if len(names) > _MOST_GROUPS:
        return None
    columns, offset = [], np.zeros(len(axis))
    most = 0
    for budget in names:
        rows = budgets == budget
        log_axis = np.log(axis[rows])
        offset[rows] = log_axis - (log_axis.min() + log_axis.max()) / 2
        most = max(most, len(np.unique(axis[rows])))
        columns += [np.where(rows, offset**power, 0.0) for power in range(3)]
    if most < _CURVE_VALUES:
        return None
    return np.column_stack([*columns, offset**3, offset**4])


def _cells(law: Law, data: Data) -> np.ndarray | None:
    """Return a column for each cell, runs that agree in what the law reads, (rows, cells); None if few are repeated.

    Of more than 100 cells, they are those with most runs.
    """
    columns = np.column_stack([np.log(np.maximum(data[name], 1e-300)) for name in law.columns])
    _, cell, runs = np.unique(np.round(columns / _SAME_CELL), axis=0, return_inverse=True, return_counts=True)
    if len(runs) > len(columns) - _MIN_DOF:
        return None
    compared = np.sort(np.argsort(-runs, kind="stable")[:_MOST_GROUPS])
    return np.asarray(compared == cell.reshape(-1, 1), dtype=float)


def _smooth(law: Law, data: Data) -> np.ndarray:
    """Return all products up to the third degree of the logarithms of the law's columns: (rows, products)."""
    logs = [np.log(data[name]) for name in law.varying if np.ptp(data[name]) > 0 and (data[name] > 0).all()]
    scaled = [(each - each.mean()) / each.std() for each in logs]
    products = [
        np.prod([scaled[place] for place in places], axis=0)
        for degree in range(1, _SMOOTH_DEGREE + 1)
        for places in combinations_with_replacement(range(len(scaled)), degree)
    ]
    return np.column_stack([np.ones(len(data["loss"])), *products])


def _unit(columns: np.ndarray) -> np.ndarray:
    """Return columns (rows, q) of length 1, without those that are zero."""
    lengths = np.linalg.norm(columns, axis=0)
    kept = lengths > 1e-12 * lengths.max(initial=1e-300)
    return np.asarray(columns[:, kept] / lengths[kept])


def _orthonormal(columns: np.ndarray, dependent: float) -> np.ndarray:
    """Return an orthonormal basis of what columns span, but for directions shorter than `dependent`."""
    vectors, values, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(vectors[:, values > dependent])


def _clipped(residuals: np.ndarray) -> np.ndarray:
    limit = _CLIP * typical_size(residuals, len(residuals))
    return np.clip(residuals, -limit, limit) if limit > 0 else residuals
