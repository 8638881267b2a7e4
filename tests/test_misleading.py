"""What docs/fitting.md says can mislead does so, in the numbers behind its figures."""

import numpy as np
import pytest

from benchmarks.fitting import misleading, studies

REDUCED = {
    "accounting": {"draws": 60},
    "grid-width": {"seeds": 4, "draws": 20},
    "few-budgets": {"counts": (2, 4), "seeds": 12, "draws": 40},
    "outliers": {"seeds": 12},
    "warm-start": {"resamples": 8, "starts": 2},
    "fitted-apart": {"seeds": 10},
}

COMPARED_GRIDS = ("1 to 12 (published)", "1 to 32", "µ*/3 to 3µ*", "µ*/1.5 to 1.5µ*")


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "GRIDS", {name: studies.GRIDS[name] for name in COMPARED_GRIDS})
        return {name: study.make(**REDUCED[name]) for name, study in misleading.STUDIES.items()}


@pytest.mark.parametrize("name", misleading.STUDIES)
def test_every_study_has_its_figure_and_its_numbers(made, name, tmp_path):
    path = misleading.write(name, made[name], tmp_path / "figures")
    assert path.name == f"fitting-{name}.png"
    assert path.stat().st_size > 10_000
    assert len(misleading.text(made[name]).splitlines()) == len(made[name])


def test_counting_as_the_release_gives_tokens_a_larger_exponent(made):
    exact, release = made["accounting"]
    assert float(studies.cost_under("parcae-release").flops_per_token(1)) == pytest.approx(828e6, abs=0.5e6)
    assert exact.gamma_tokens == pytest.approx(0.79, abs=0.02)
    assert release.gamma_tokens == pytest.approx(0.834, abs=0.02)
    assert release.gamma_recurrence < exact.gamma_recurrence - 0.03
    low, high = release.extra_gamma_tokens_interval
    assert 0.03 < low < release.extra_gamma_tokens < high < 0.06
    # Each pair spends the compute that it was asked for, as its own accounting counts.
    for row in (exact, release):
        spent = studies.cost_under(row.accounting).flops_for(row.tokens, row.mean_recurrence)
        np.testing.assert_allclose(spent, row.budgets, rtol=1e-9)


def test_the_grid_decides_bias_and_spread(made):
    rows = {row.grid: row for row in made["grid-width"]}
    published, wide, middle, narrow = (rows[name] for name in COMPARED_GRIDS)
    assert published.without_noise == pytest.approx(0.072, abs=0.005)
    assert abs(middle.without_noise) < 0.01
    assert np.ptp(wide.parabola) < np.ptp(published.parabola)
    assert np.ptp(narrow.parabola) > 2 * np.ptp(middle.parabola)
    assert narrow.included < wide.included == 5
    assert abs(published.corrected_median) < published.without_noise


def test_intervals_of_few_budgets_are_wide_and_still_hold(made):
    rows = {(row.quantity, row.budgets): row for row in made["few-budgets"]}
    assert rows["y", 2].width > 2 * rows["y", 4].width
    assert rows["loss", 2].width > 1.5 * rows["loss", 4].width
    assert min(rows[name, count].covered for name in ("y", "gamma_mu", "loss") for count in (2, 4)) >= 9


@pytest.mark.parametrize("case", studies.OUTLIERS[1:])
def test_outliers_move_huber_less_than_squared_error(made, case):
    squared, huber = (row for row in made["outliers"] if row.case == case)
    assert (squared.objective, huber.objective) == ("squared error", "Huber, 1e-3")
    assert np.ptp(squared.exponents) > 1.5 * np.ptp(huber.exponents)
    assert squared.mean_absolute_error > 1.5 * huber.mean_absolute_error


def test_one_warm_started_search_per_resample_gives_intervals_far_too_narrow(made):
    rows = {(row.way, row.parameter): row for row in made["warm-start"]}
    for name in ("E", "x", "y"):
        warm, careful, ours = (rows[way, name] for way in ("one warm-started L-BFGS", "many starts", "ours"))
        assert np.ptp(careful.interval) > 5 * np.ptp(warm.interval)
        np.testing.assert_allclose(ours.values, careful.values, rtol=1e-4)
        assert ours.worst < 1e-6 < 1 < warm.worst


def test_minima_fitted_apart_contradict_each_other_even_without_noise(made):
    by_budget = {row.budget: row for row in made["fitted-apart"]}
    assert by_budget[1e18].without_noise < -10
    assert by_budget[16e18].without_noise > 10


def test_the_same_arguments_give_the_same_rows():
    again, once = (studies.outliers(seeds=1) for _ in range(2))
    assert again == once
