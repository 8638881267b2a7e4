"""Fits find a known truth, the global optimum of a peer, and bounds; bad data are refused."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize

from isoloop.fitting import (
    HUBER,
    LAWS,
    PUBLISHED_TRUTH,
    SQUARED,
    Objective,
    TestTimeLaw,
    TrainingLaw,
    UnifiedLaw,
    law_named,
    point_estimate,
)
from isoloop.fitting import simulate_table as simulate
from isoloop.fitting.estimation.bootstrap import bootstrap, interval, noise_scale, refit
from isoloop.fitting.tables.runs import law_data, test_time_law_data

QUIET = dataclasses.replace(PUBLISHED_TRUTH, run_noise=0.0, evaluation_noise=0.0)
NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3, evaluation_noise=1e-4)
TRAINING_TRUTH = np.array([QUIET.E, QUIET.X, QUIET.Y, QUIET.x, QUIET.y])


def on_the_law(law, parameters, rows=30, seed=0):
    rng = np.random.default_rng(seed)
    mu = rng.uniform(1, 12, rows)
    data = {
        "mean_recurrence": mu,
        "backprop_depth": np.ceil(mu / 2),
        "effective_params": 28.3e6 + 14.16e6 * mu,
        "params": 10 ** rng.uniform(7, 10, rows),
        "params_once": 10 ** rng.uniform(7, 9, rows),
        "params_recurrent": 10 ** rng.uniform(7, 9, rows),
        "loss_at_mean": rng.uniform(2.9, 3.3, rows),
        "tokens": 10 ** rng.uniform(9, 11, rows),
        "recurrence": rng.uniform(1, 12, rows),
    }
    return {**data, "loss": law.loss(np.array(parameters), data)}


NEW_TEXT_LAWS = [law for law in LAWS if not law.reads_unique_tokens]
"""Those of repeated text have tests of their own."""
EXAMPLES = {
    "training": [1.7, 40.0, 400.0, 0.3, 0.33],
    "test-time": [2.9, 0.84, 0.9],
    "unified": [2.28, 32.3, 34.65, 0.84, 0.26, 0.19, 4.0],
    "joint-test-time": [0.84, 4.0],
    "chinchilla": [1.8, 480.0, 2085.0, 0.35, 0.37],
    "iso-depth": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.46],
    "six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.7],
    "looped-six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.7],
    "loops": [1.7, 0.9, 400.0, 0.3, 0.33, 2.0],
    "overthinking": [2.9, 0.84, 0.4, 0.9, 6.0, 3.0],
    "joint-overthinking": [0.84, 0.4, 4.0, 2.0, 3.0],
    "unified-overthinking": [2.28, 32.3, 34.65, 0.84, 0.4, 0.26, 0.19, 4.0, 2.0, 3.0],
    "iso-depth-six-parameter": [1.5, 5000.0, 20000.0, 0.5, 0.55, 0.46, 0.7],
    "iso-depth-truncated": [1.8, 480.0, 2085.0, 0.35, 0.37, 0.5, 0.3],
    "loop-term": [1.8, 480.0, 0.3, 2085.0, 0.35, 0.8, 0.37],
}


@pytest.mark.parametrize("law", NEW_TEXT_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("objective", [HUBER, SQUARED], ids=["huber", "squared"])
def test_a_noiseless_table_gives_the_truth_back(law, objective):
    estimate = point_estimate(law, on_the_law(law, EXAMPLES[law.name]), objective)
    np.testing.assert_allclose(estimate.parameters, EXAMPLES[law.name], rtol=1e-6)
    assert estimate.converged
    assert estimate.at_bounds == ()


@pytest.mark.parametrize("seed", range(4))
def test_no_start_of_a_peer_finds_a_better_objective(seed):
    law, data = TrainingLaw(), law_data(simulate(NOISY, seed=seed))
    rng = np.random.default_rng(seed)
    lower, upper = [-50] * 3 + [0.01] * 2, [50] * 3 + [3] * 2

    def residuals(at):
        return np.log(data["loss"]) - np.log(law.loss(np.r_[np.exp(at[:3]), at[3:]], data))

    best = np.inf
    for _ in range(6):
        x, y = rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.6)
        start = np.array([np.log(2), np.log(0.2) + x * np.log(1e8), np.log(0.4) + y * np.log(2e9), x, y])
        options = {"loss": "huber", "f_scale": 1e-3, "x_scale": "jac", "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
        best = min(best, least_squares(residuals, start, bounds=(lower, upper), max_nfev=400, **options).cost)
    assert point_estimate(law, data).objective <= best * (1 + 1e-9)


def test_outliers_move_huber_less_than_squared_error():
    law, data = TrainingLaw(), on_the_law(TrainingLaw(), TRAINING_TRUTH)
    data["loss"] = data["loss"] * np.where(np.arange(30) == 7, 1.1, 1.0)
    huber, squared = (point_estimate(law, data, objective).parameters[4] for objective in (HUBER, SQUARED))
    assert 5 * abs(huber - QUIET.y) < abs(squared - QUIET.y)


def test_an_amplitude_that_is_not_there_is_zero_and_said():
    law = TrainingLaw()
    data = on_the_law(law, [2.0, 0.0, 400.0, 0.3, 0.33])
    # Loss grows with size here, which an amplitude above zero can't follow.
    data["loss"] = data["loss"] * (data["effective_params"] / 1e8) ** 0.01
    estimate = point_estimate(law, data)
    assert "X" in estimate.at_bounds
    assert estimate.parameters[1] == 0


def test_a_decay_seen_at_one_point_only_is_called_degenerate():
    data = {"recurrence": np.array([1.0, 4, 8, 16, 24]), "loss": np.array([3.1, 3.0, 3.0, 3.0, 3.0])}
    assert point_estimate(TestTimeLaw(), data).degenerate
    assert not point_estimate(TestTimeLaw(), on_the_law(TestTimeLaw(), EXAMPLES["test-time"])).degenerate


def test_row_order_does_not_matter():
    data = law_data(simulate(NOISY, seed=5))
    order = np.random.default_rng(0).permutation(len(data["loss"]))
    shuffled = {name: values[order] for name, values in data.items()}
    a, b = point_estimate(TrainingLaw(), data), point_estimate(TrainingLaw(), shuffled)
    np.testing.assert_allclose(a.parameters, b.parameters, rtol=1e-5)


def test_read_only_columns_are_fitted():
    data = on_the_law(TestTimeLaw(), EXAMPLES["test-time"])
    for values in data.values():
        values.flags.writeable = False
    assert point_estimate(TestTimeLaw(), data).converged


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: {name: values[:5] for name, values in data.items()}, "needs at least 6 rows, but got 5"),
        (lambda data: {name: values for name, values in data.items() if name != "tokens"}, "tokens is missing"),
        (lambda data: {**data, "tokens": 0 * data["tokens"] + 1e9}, "needs `tokens` to vary"),
        (lambda data: {**data, "loss": data["loss"] * np.nan}, "row 0 has nan"),
        (lambda data: {**data, "tokens": -data["tokens"]}, "`tokens` must be positive and finite"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        point_estimate(TrainingLaw(), change(on_the_law(TrainingLaw(), TRAINING_TRUTH)))


def test_a_law_fits_no_worse_than_a_simpler_one_that_it_contains():
    for seed in range(3):
        law, data = TrainingLaw(), on_the_law(law_named("chinchilla"), EXAMPLES["chinchilla"], seed=seed)
        data["loss"] = data["loss"] * np.exp(2e-3 * np.random.default_rng(seed).standard_normal(30))
        simple = point_estimate(law_named("chinchilla"), data).objective
        assert point_estimate(law_named("six-parameter"), data).objective <= simple * (1 + 1e-9)
        unrolled = data["params_once"] + data["mean_recurrence"] * data["params_recurrent"]
        simple = point_estimate(law, {**data, "effective_params": unrolled}).objective
        assert point_estimate(law_named("iso-depth"), data).objective <= simple * (1 + 1e-9)
        simple = point_estimate(law, data).objective
        assert point_estimate(law_named("unified"), data).objective <= simple * (1 + 1e-9)


def test_loops_beyond_the_mean_alone_give_the_joint_law_back():
    law = law_named("joint-test-time")
    data = on_the_law(law, EXAMPLES["joint-test-time"])
    data["recurrence"] = data["mean_recurrence"] * 1.5
    data["loss"] = law.loss(np.array([0.84, 1.0]), data) * np.exp(1e-5 * np.sin(np.arange(30)))
    data["recurrence"][:15] *= 2
    data["loss"] = law.loss(np.array([0.84, 1.0]), data)
    estimate = point_estimate(law, data)
    np.testing.assert_allclose(estimate.parameters, [0.84, 1.0], rtol=1e-5)
    assert estimate.at_bounds == ()
    low, high = interval(bootstrap(estimate, data, draws=20, seed=0)[:, 0])
    assert 0.8 < low <= high < 0.9


def test_the_objective_is_that_of_the_residuals():
    for law in NEW_TEXT_LAWS:
        data = on_the_law(law, EXAMPLES[law.name])
        data["loss"] = data["loss"] * np.exp(1e-3 * np.random.default_rng(1).standard_normal(30))
        estimate = point_estimate(law, data)
        assert estimate.objective == pytest.approx(float(HUBER.value(estimate.residuals)))


@pytest.mark.parametrize("weights", [np.zeros(30), -np.ones(30), np.full(30, np.nan), np.ones(7)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 30 finite numbers of 0 or more"):
        point_estimate(TrainingLaw(), on_the_law(TrainingLaw(), TRAINING_TRUTH), weights=weights)


def test_loops_that_never_ran_leave_phi_undetermined():
    law = law_named("iso-depth")
    data = on_the_law(law, EXAMPLES["iso-depth"])
    data["params_recurrent"] = 0 * data["params_recurrent"]
    data["loss"] = law.loss(np.array(EXAMPLES["iso-depth"]), data)
    assert point_estimate(law, data).degenerate


def test_loops_that_gain_nothing_leave_nothing_to_tell_apart():
    law = law_named("joint-test-time")
    data = on_the_law(law, EXAMPLES["joint-test-time"])
    # More loops only lose here, which no Z above zero can follow.
    data["loss"] = data["loss_at_mean"] + 0.01 * (data["recurrence"] / data["mean_recurrence"] - 1)
    estimate = point_estimate(law, data)
    assert "Z" in estimate.at_bounds
    assert not estimate.degenerate
    assert np.isfinite(bootstrap(estimate, data, draws=20, seed=0)).all()


def test_fewer_rows_that_count_than_parameters_are_degenerate():
    data = on_the_law(TrainingLaw(), TRAINING_TRUTH)
    assert point_estimate(TrainingLaw(), data, weights=(np.arange(30) < 3).astype(float)).degenerate


def test_a_delta_of_zero_is_refused():
    with pytest.raises(ValueError, match="delta must be positive, but got 0"):
        Objective(delta=0)


@pytest.mark.parametrize("how", ["losses", "weights"])
def test_warm_refits_reach_what_a_careful_fit_of_the_same_losses_reaches(how):
    law, data = TrainingLaw(), law_data(simulate(NOISY, seed=2))
    estimate = point_estimate(law, data)
    rng = np.random.default_rng(0)
    rows = len(data["loss"])
    if how == "losses":
        losses = data["loss"] * np.exp(2e-3 * rng.standard_normal((30, rows)))
        _, objectives = refit(estimate, data, losses=losses)
        careful = [point_estimate(law, {**data, "loss": one}).objective for one in losses]
    else:
        weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=30).astype(float)
        _, objectives = refit(estimate, data, weights=weights)
        careful = [point_estimate(law, data, weights=one).objective for one in weights]
    assert np.mean(objectives <= np.array(careful) * (1 + 1e-6)) >= 0.98


def test_refits_do_not_stop_where_they_start():
    """The trap: a warm-started L-BFGS with scipy's default tolerances, whose intervals are far too narrow."""
    law, data = TrainingLaw(), law_data(simulate(NOISY, seed=2))
    estimate = point_estimate(law, data)
    k, rows = law.linear_count, len(data["loss"])
    weights = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=25).astype(float)
    trapped = []
    for one in weights:

        def objective(at, one=one):
            residuals = np.log(data["loss"] / law.loss(np.r_[np.exp(at[:k]), at[k:]], data))
            return float(HUBER.value(residuals, one))

        start = np.r_[np.log(estimate.parameters[:k]), estimate.parameters[k:]]
        trapped.append(minimize(objective, start, method="L-BFGS-B").x[4])
    ours = refit(estimate, data, weights=weights)[0][:, 4]
    careful = np.array([point_estimate(law, data, weights=one).parameters[4] for one in weights])
    assert np.std(trapped) < 0.3 * np.std(careful)  # the trap is real
    assert np.std(ours) == pytest.approx(np.std(careful), rel=0.02)


@pytest.mark.parametrize("law", NEW_TEXT_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("objective", [Objective(delta=1e-2, on="loss"), Objective(delta=np.inf, on="loss")], ids=str)
def test_losses_can_be_fitted_instead_of_their_logarithms(law, objective):
    data = on_the_law(law, EXAMPLES[law.name])
    rng = np.random.default_rng(3)
    data["loss"] = data["loss"] + 1e-3 * rng.standard_normal(len(data["loss"]))
    estimate = point_estimate(law, data, objective)
    truth = objective.value(data["loss"] - law.loss(np.array(EXAMPLES[law.name]), data))
    assert estimate.objective < truth
    assert estimate.objective > 0.5 * truth
    expected = data["loss"] - law.loss(estimate.parameters, data)
    np.testing.assert_allclose(estimate.residuals, expected, atol=1e-12)


def test_bootstrap_intervals_are_as_wide_as_the_spread_over_sweeps():
    law, exponents = TrainingLaw(), []
    for seed in range(30):
        data = law_data(simulate(NOISY, seed=100 + seed, recurrences=()))
        estimate = point_estimate(law, data)
        exponents.append(estimate.parameters[4])
    low, high = interval(bootstrap(estimate, data, draws=200, seed=0)[:, 4])
    assert (high - low) / (4 * np.std(exponents)) == pytest.approx(1, abs=0.5)


def test_bootstrap_knows_that_losses_of_one_run_share_their_luck():
    law, data = UnifiedLaw(), test_time_law_data(simulate(NOISY, seed=1, recurrences=(1, 2, 4, 8, 16)))
    estimate = point_estimate(law, data)
    alone = bootstrap(estimate, data, draws=60, seed=0)[:, 5]
    by_run = bootstrap(estimate, data, draws=60, seed=0, runs=data["run_id"])[:, 5]
    assert np.std(by_run) > 1.5 * np.std(alone)


def test_the_scatter_of_a_loss_is_its_noise():
    data = test_time_law_data(simulate(NOISY, seed=1))
    assert noise_scale(point_estimate(UnifiedLaw(), data), data["run_id"])[0] == pytest.approx(1e-3, rel=0.4)
