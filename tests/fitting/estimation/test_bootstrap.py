"""Intervals: bootstraps of every kind and profiles agree with the scatter over many sweeps, and with each other."""

import dataclasses

import numpy as np
import pytest

from isoloop.fitting import (
    HUBER,
    PUBLISHED_TRUTH,
    SQUARED,
    ChinchillaLaw,
    TrainingLaw,
    bootstrap,
    check_table,
    law_named,
    point_estimate,
    profile,
)
from isoloop.fitting import simulate_table as simulate
from isoloop.fitting.estimation.bootstrap import BOOTSTRAP_KINDS, asymptotic_draws, interval, widening
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.laws.test_time import UnifiedLaw
from isoloop.fitting.tables.runs import law_data, test_time_law_data
from tests.run_tables import dense_table

NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3, evaluation_noise=1e-4)


@pytest.fixture(scope="module")
def sweeps():
    """Fits to 40 sweeps that differ in their noise alone."""
    tables = [law_data(simulate(NOISY, seed=seed, recurrences=())) for seed in range(40)]
    return [(point_estimate(TrainingLaw(), data), data) for data in tables]


@pytest.mark.parametrize("kind", BOOTSTRAP_KINDS)
def test_bootstraps_scatter_as_sweeps_do(sweeps, kind):
    truth = np.std([estimate.parameters[4] for estimate, _ in sweeps])
    spread = [np.std(bootstrap(*one, draws=100, seed=0, kind=kind)[:, 4]) for one in sweeps[:10]]
    assert np.mean(spread) > 0.65 * truth
    if kind != "budgets":  # six budgets drawn with replacement: a resample of two of them is at a loss
        assert np.mean(spread) < 1.35 * truth


def test_parametric_intervals_and_profiles_cover_the_truth(sweeps):
    by_refits, by_profile = [], []
    for estimate, data in sweeps:
        low, high = interval(bootstrap(estimate, data, draws=100, seed=0)[:, 4])
        by_refits.append(low <= PUBLISHED_TRUTH.y <= high)
        low, high = profile(estimate, data, "y").interval
        by_profile.append(low <= PUBLISHED_TRUTH.y <= high)
    # 40 sweeps, so one standard error is 3.4%; benchmarks/fitting has the experiment in full.
    assert 0.84 <= np.mean(by_refits) <= 1.0
    assert 0.84 <= np.mean(by_profile) <= 1.0


@pytest.mark.parametrize("kind", BOOTSTRAP_KINDS)
def test_the_same_seed_gives_the_same_draws(sweeps, kind):
    first, again, other = (bootstrap(*sweeps[0], draws=20, seed=seed, kind=kind) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_few_budgets_are_widened_more(sweeps):
    _, data = sweeps[0]
    factors = []
    for count in (6, 4, 3):
        kept = np.isin(data["budget"], np.unique(data["budget"])[:count])
        factors.append(widening("budgets", {name: values[kept] for name, values in data.items()}))
    assert 1 < factors[0] < factors[1] < factors[2]
    assert widening("parametric", data) == widening("rows", data) == 1


def test_widened_intervals_stay_on_the_side_of_zero_that_they_are_on():
    draws = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    low, high = interval(draws, 3.0, 10.0)
    assert 0 < low < 1
    assert high > 5
    assert interval(draws - 3, 0.0, 2.0) == pytest.approx((-3.8, 3.8))


def test_a_bootstrap_that_is_none_is_refused(sweeps):
    estimate, data = sweeps[0]
    with pytest.raises(ValueError, match="must be one of parametric, rows, budgets, but got 'jackknife'"):
        bootstrap(estimate, data, draws=10, seed=0, kind="jackknife")
    one = {name: values[data["budget"] == 4e18] for name, values in data.items()}
    with pytest.raises(ValueError, match="needs 3 budgets, but there are 1"):
        bootstrap(estimate, one, draws=10, seed=0, kind="budgets")
    without = {name: values for name, values in data.items() if name != "budget"}
    with pytest.raises(ValueError, match="needs the column `budget`"):
        bootstrap(estimate, without, draws=10, seed=0, kind="budgets")


@pytest.mark.parametrize("objective", [HUBER, SQUARED], ids=["huber", "squared"])
def test_a_profile_is_the_objective_with_one_parameter_held(sweeps, objective):
    _, data = sweeps[3]
    estimate = point_estimate(TrainingLaw(), data, objective)
    for place, name in enumerate(estimate.law.parameter_names):
        found = profile(estimate, data, name)
        assert min(found.rise) >= -1e-6
        assert found.rise[found.values.index(float(estimate.parameters[place]))] == 0
        low, high = found.interval
        assert low < estimate.parameters[place] < high
        # At its ends the rise is 1, by interpolation between the values that were fitted.
        ends = np.interp([low, high], found.values, found.rise)
        np.testing.assert_allclose(ends, 1, atol=0.15)


def test_a_profile_of_squared_error_is_the_f_test():
    """For a law that is linear in what is free, the profile's interval is the t interval of linear regression."""
    rng = np.random.default_rng(0)
    data = {"params": 10 ** rng.uniform(8, 10, 60), "tokens": 10 ** rng.uniform(9, 11, 60)}
    truth = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
    data["loss"] = ChinchillaLaw().loss(truth, data) + 1e-4 * rng.standard_normal(60)
    estimate = point_estimate(ChinchillaLaw(), data, dataclasses.replace(SQUARED, on="loss"))
    slopes = ChinchillaLaw().loss_and_gradient(estimate.parameters, data)[1]
    variance = estimate.residuals @ estimate.residuals / 55
    errors = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)) * variance)
    for place, name in enumerate(("E", "A", "B", "alpha", "beta")):
        low, high = profile(estimate, data, name).interval
        assert (high - low) / 2 == pytest.approx(2.004 * errors[place], rel=0.25), name


def test_losses_that_set_no_limit_say_so():
    # Three recurrences within a factor of 1.2 tell next to nothing of N.
    data = law_data(simulate(NOISY, seed=0, recurrences=(), mean_recurrences=(10.0, 11.0, 12.0)))
    found = profile(point_estimate(TrainingLaw(), data), data, "x")
    assert None in found.interval


def test_outliers_do_not_make_parametric_intervals_useless():
    law = ChinchillaLaw()
    rng = np.random.default_rng(0)
    data = {"params": 10 ** rng.uniform(8, 10, 60), "tokens": 10 ** rng.uniform(9, 11, 60)}
    at = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
    clean = law.loss(at, data) * np.exp(2e-3 * rng.standard_normal(60))
    spoilt = clean * np.where(np.arange(60) % 12 == 0, np.exp(0.1 * rng.standard_normal(60)), 1.0)
    widths = []
    for losses in (clean, spoilt):
        estimate = point_estimate(law, {**data, "loss": losses})
        widths.append(np.ptp(interval(bootstrap(estimate, {**data, "loss": losses}, draws=200, seed=0)[:, 3])))
    assert widths[0] < widths[1] < 2.5 * widths[0]


def test_an_amplitude_that_ranges_over_decades_is_profiled_to_its_end():
    noisy = dataclasses.replace(PUBLISHED_TRUTH, run_noise=2e-3)
    data = law_data(simulate(noisy, seed=6, recurrences=()))
    low, high = profile(point_estimate(TrainingLaw(), data), data, "X").interval
    assert low < PUBLISHED_TRUTH.X
    assert high is None or high > PUBLISHED_TRUTH.X


def test_a_parameter_of_which_the_losses_say_nothing_has_no_limits():
    law = law_named("joint-test-time")
    loops = np.tile([1.0, 2, 4, 8, 16], 4)
    data = {"recurrence": loops, "mean_recurrence": np.full(20, 6.0), "loss_at_mean": 3 + 0.01 * np.arange(20)}
    # More loops only lose: Z is zero, and z is then anything.
    data["loss"] = data["loss_at_mean"] + 0.01 * (loops / 6 - 1)
    assert profile(point_estimate(law, data), data, "z").interval == (None, None)


def test_an_unknown_parameter_is_refused(sweeps):
    with pytest.raises(ValueError, match="must be one of E, X, Y, x, y for the training law, but got 'Q'"):
        profile(*sweeps[0], "Q")


def test_profiles_of_runs_with_several_rows_are_as_wide_as_their_bootstrap():
    law, data = UnifiedLaw(), test_time_law_data(simulate(NOISY, seed=1, recurrences=(1, 2, 4, 8, 16)))
    estimate = point_estimate(law, data)
    low, high = interval(bootstrap(estimate, data, draws=200, seed=0, runs=data["run_id"])[:, 5])
    by_run = np.ptp(profile(estimate, data, "y", runs=data["run_id"]).interval)
    by_row = np.ptp(profile(estimate, data, "y").interval)
    assert by_run == pytest.approx(high - low, rel=0.5)
    assert by_row < 0.75 * by_run


def test_the_interval_of_a_measured_loss_holds_more_than_that_of_the_law():
    data = law_data(simulate(NOISY, seed=1, recurrences=()))
    fit = fit_law(TrainingLaw(), data, draws=200, seed=0)
    beyond = {name: values[-7:] * (3 if name == "tokens" else 1) for name, values in data.items() if name != "run_id"}
    law_low, law_high = fit.loss_interval(beyond, measured=False)
    low, high = fit.loss_interval(beyond)
    assert (low < law_low).all()
    assert (high > law_high).all()
    assert (law_low < fit.loss(beyond)).all()
    assert fit_law(TrainingLaw(), data, draws=0, seed=0).loss_interval(beyond) is None


def large_table(rows=5000):
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(9, 11, rows)
    losses = (1.8 + 480 / params**0.35 + 2085 / tokens**0.37) * np.exp(0.01 * rng.standard_normal(rows))
    return {"params": params, "tokens": tokens, "loss": losses}


def test_a_large_table_is_fitted_to_the_minimum_of_all_its_rows(monkeypatch):
    data = large_table()
    from_sample = point_estimate(ChinchillaLaw(), data)
    monkeypatch.setattr("isoloop.fitting.estimation.point_estimate.LARGE_TABLE", 10**9)
    from_grid = point_estimate(ChinchillaLaw(), data)
    assert from_sample.objective == pytest.approx(from_grid.objective, rel=1e-10)
    assert from_sample.parameters == pytest.approx(from_grid.parameters, rel=1e-4)


def test_draws_of_a_large_table_spread_as_refits_do():
    data = large_table(rows=2500)
    estimate = point_estimate(ChinchillaLaw(), data)
    refits = bootstrap(estimate, data, draws=100, seed=0)
    drawn = asymptotic_draws(estimate, data, draws=1000, seed=0)
    # The standard deviation of 100 draws is known to about 7%.
    spread = np.std(refits, axis=0)
    assert np.std(drawn, axis=0) == pytest.approx(spread, rel=0.25)
    assert (np.abs(np.median(drawn, axis=0) - estimate.parameters) < 0.2 * spread).all()
    correlation = np.corrcoef(drawn[:, 1], drawn[:, 3])[0, 1]
    assert correlation == pytest.approx(np.corrcoef(refits[:, 1], refits[:, 3])[0, 1], abs=0.1)


def test_rows_that_share_their_noise_widen_the_draws_of_a_large_table():
    data = large_table(rows=1000)
    tripled = {name: np.tile(values, 3) for name, values in data.items()}
    estimate = point_estimate(ChinchillaLaw(), tripled)
    alone, shared = (
        np.std(asymptotic_draws(estimate, tripled, draws=1000, seed=0, groups=groups), axis=0)
        for groups in (None, np.tile(np.arange(1000), 3))
    )
    assert shared == pytest.approx(np.sqrt(3) * alone, rel=0.05)


def test_a_profile_of_runs_that_say_nothing_of_a_term_has_no_limit_and_no_warning():
    """One budget alone: at many values of an exponent no fit is finite, on both sides of a step of the search."""
    data = law_data(check_table(dense_table(budgets=(6e18,))))
    limits = [profile(point_estimate(ChinchillaLaw(), data), data, name).interval for name in ("alpha", "E")]
    assert None in [end for low_and_high in limits for end in low_and_high]
