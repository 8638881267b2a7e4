"""Noise that depends on compute, and luck that a budget shares: seen where they are, and used by the fits."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy import optimize

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    SQUARED,
    SweepFit,
    TrainingLaw,
    check_table,
    fit_sweep,
    point_estimate,
    simulate_table,
)
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.estimation.noise import NoiseModel, noise_model
from isoloop.fitting.estimation.whitening import Whitening
from isoloop.fitting.tables.runs import law_data

LAW = TrainingLaw()


@cache
def noiseless_table():
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=0.0, evaluation_noise=0.0)
    return simulate_table(truth, recurrences=())


def noisy(seed, *, level=1e-3, exponent=0.0, shared=0.0, copies=1):
    """Return columns whose losses have normal noise of sd level (C / mean)^exponent and luck that budgets share."""
    data = {name: np.tile(values, copies) for name, values in law_data(noiseless_table()).items()}
    rng = np.random.default_rng(seed)
    ratio = data["flops"] / np.exp(np.log(data["flops"]).mean())
    budgets, group = np.unique(data["budget"], return_inverse=True)
    noise = level * ratio**exponent * rng.standard_normal(len(group))
    noise += shared * rng.standard_normal(len(budgets))[group]
    return data | {"loss": data["loss"] * np.exp(noise)}


def measured(data):
    return noise_model(data, point_estimate(LAW, data))


def uneven(data, *, exponent=0.0, shared=0.0, level=1e-3):
    reference = float(np.exp(np.log(data["flops"]).mean()))
    return NoiseModel(level=level, reference=reference, dof=30.0, exponent=exponent, shared=shared, shared_dof=5.0)


def test_the_exponent_of_the_noise_is_recovered_whichever_way_it_goes():
    for exponent in (-0.8, 0.8):
        models = [measured(noisy(seed, exponent=exponent)) for seed in range(8)]
        found = np.array([model.exponent for model in models])
        assert (found != 0).mean() > 0.9
        assert found.mean() == pytest.approx(exponent, abs=0.15)
        # Its standard error is the scatter between sweeps, which 8 of them tell to 25%.
        assert models[0].exponent_error == pytest.approx(found[found != 0].std(), rel=0.75)
        at_mean = np.sqrt(np.mean([model.at(np.array(model.reference)) ** 2 for model in models]))
        assert at_mean == pytest.approx(1e-3, rel=0.15)
        assert {model.source for model in models} == {"isoFLOP curves"}


def test_luck_that_budgets_share_is_recovered():
    models = [measured(noisy(seed, shared=3e-3)) for seed in range(8)]
    assert np.mean([model.shared > 0 for model in models]) > 0.7
    assert np.sqrt(np.mean([model.shared**2 for model in models])) == pytest.approx(3e-3, rel=0.3)
    assert np.mean([model.level for model in models]) == pytest.approx(1e-3, rel=0.15)
    assert all(2 <= model.shared_dof <= 6 for model in models if model.shared)


def test_even_noise_shows_neither():
    for level in (2e-4, 1e-2):
        models = [measured(noisy(100 + seed, level=level)) for seed in range(8)]
        # Each test errs in 1% of sweeps: 2 or more of 16 would happen in 1% of cases.
        assert sum(model.uneven for model in models) <= 1
        assert np.mean([model.level for model in models]) == pytest.approx(level, rel=0.15)


def test_one_bad_run_is_no_trend():
    for row in (0, -1):
        data = noisy(1)
        losses = data["loss"].copy()
        losses[row] *= 1.02
        assert not measured(data | {"loss": losses}).uneven


def test_repeated_runs_measure_the_noise_before_curves_do():
    model = measured(noisy(0, exponent=0.8, copies=2))
    assert model.source == "seeds"
    assert model.dof == len(noiseless_table())
    assert model.exponent == pytest.approx(0.8, abs=3 * model.exponent_error)


def test_runs_without_budgets_are_compared_about_the_law():
    data = {name: values for name, values in noisy(0, exponent=0.8).items() if name != "budget"}
    model = measured(data)
    assert model.source == "law"
    assert model.exponent == pytest.approx(0.8, abs=3 * model.exponent_error)


def test_whitened_noise_is_independent_and_alike():
    groups = np.array([1.0, 1.0, 2.0, 2.0, 2.0, np.nan])
    scales = np.array([1.0, 2.0, 0.5, 0.5, 3.0, 1.5])
    covariance = np.diag(scales**2) + 0.7 * (groups[:, None] == groups)
    whitening = Whitening.of_groups(scales, groups, 0.7)
    transform = whitening.columns(np.eye(6))
    np.testing.assert_allclose(transform @ covariance @ transform.T, np.eye(6), atol=1e-12)
    rows = np.random.default_rng(0).standard_normal((4, 6))
    np.testing.assert_allclose(whitening.rows(rows), rows @ transform.T, atol=1e-12)


@pytest.mark.parametrize(("exponent", "shared"), [(0.8, 0.0), (0.0, 2e-3), (0.5, 2e-3)])
def test_a_fit_is_that_of_generalised_least_squares(exponent, shared):
    data = noisy(3, exponent=exponent, shared=shared)
    model = uneven(data, exponent=exponent, shared=shared)
    whitening = model.whitening(data)
    estimate = point_estimate(LAW, data, SQUARED, whitening=whitening)
    # The reference: residuals through the Cholesky factor of their covariance, minimised by scipy
    same = data["budget"][:, None] == data["budget"]
    factor = np.linalg.cholesky(np.diag(model.at(data["flops"]) ** 2) + shared**2 * same)
    inverse = np.linalg.inv(factor)

    def residuals(logs):
        return inverse @ (np.log(data["loss"]) - np.log(LAW.loss(np.exp(logs), data)))

    start = np.log(estimate.parameters)
    found = optimize.least_squares(residuals, start, x_scale="jac", xtol=1e-12, ftol=1e-14, gtol=1e-12)
    np.testing.assert_allclose(found.x, start, rtol=1e-4)
    assert found.cost == pytest.approx(estimate.objective / model.level**2, rel=1e-8)


def test_weights_bring_the_law_nearer_to_the_truth():
    data = noisy(0)
    beyond = {name: values[-1:] for name, values in data.items()} | {"tokens": 2 * data["tokens"][-1:]}
    errors = {True: [], False: []}
    for seed in range(12):
        data = noisy(seed, exponent=-1.0)
        for noise in (uneven(data, exponent=-1.0), None):
            fit = fit_law(LAW, data, draws=0, seed=0, noise=noise)
            errors[noise is not None].append(np.log(fit.loss(beyond)[0]))
    assert np.std(errors[True]) < 0.6 * np.std(errors[False])


def test_intervals_of_measured_losses_follow_the_noise_at_their_compute():
    data = noisy(0, exponent=0.8)
    fit = fit_law(LAW, data, draws=100, seed=0, noise=uneven(data, exponent=0.8))
    (low, high), law = fit.loss_interval(data), fit.loss_interval(data, measured=False)
    width = (high - low) / data["loss"]
    smallest, largest = data["flops"] == data["flops"].min(), data["flops"] == data["flops"].max()
    growth = (data["flops"].max() / data["flops"].min()) ** 0.8
    assert width[largest].mean() / width[smallest].mean() == pytest.approx(growth, rel=0.3)
    # Luck that is shared widens the law's interval and that of a measured loss.
    lucky = fit_law(LAW, data, draws=100, seed=0, noise=uneven(data, exponent=0.8, shared=5e-3))
    assert np.ptp(lucky.loss_interval(data), axis=0).mean() > 1.3 * (high - low).mean()
    widths = [np.ptp(one, axis=0).mean() for one in (lucky.loss_interval(data, measured=False), law)]
    assert widths[0] > 1.3 * widths[1]


def test_noise_that_depends_on_compute_needs_the_flops():
    data = {name: values for name, values in noisy(0).items() if name != "flops"}
    with pytest.raises(ValueError, match="needs the column `flops`"):
        fit_law(LAW, data, draws=0, seed=0, noise=uneven(noisy(0), exponent=0.8))


def test_even_noise_changes_no_number():
    data = noisy(0)
    plain, given = (fit_law(LAW, data, draws=20, seed=0, noise=noise) for noise in (None, uneven(data)))
    assert plain == given


def test_a_sweep_says_how_its_noise_grows_and_is_stored_whole():
    table = noiseless_table().assign(loss=noisy(0, exponent=0.8)["loss"])
    fit = fit_sweep(check_table(table), name="noisy", draws=20)
    assert fit.noise.exponent == pytest.approx(0.8, abs=3 * fit.noise.exponent_error)
    assert fit.training.noise_model.exponent == fit.noise.exponent
    assert f"grows with C as C^{fit.noise.exponent:.2f}" in " ".join(fit.report().split())
    assert SweepFit.from_json(fit.to_json()) == fit


def test_what_budgets_share_is_no_noise_of_a_run_that_has_several_losses():
    data = {name: np.tile(values, 3) for name, values in noisy(2, shared=3e-3).items()}
    data["loss"] = data["loss"] * np.exp(1e-4 * np.random.default_rng(1).standard_normal(len(data["loss"])))
    noise = uneven(data, shared=3e-3, level=1e-3)
    shared, alone = (fit_law(LAW, data, draws=0, seed=0, by_run=True, noise=each) for each in (noise, None))
    assert shared.noise == pytest.approx(1e-3, rel=0.02)
    assert alone.noise > 1.5e-3
