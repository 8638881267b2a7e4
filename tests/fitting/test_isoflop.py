"""Minima and power laws: known parabolas, exact compute, edges left out, intervals that cover."""

import dataclasses

import numpy as np
import pytest

from fitting import PUBLISHED_TRUTH, fit_isoflop, published_cost_model, simulate_table

COST = published_cost_model()
RECURRENCES = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0)


def parabolas(minima, *, recurrences=RECURRENCES, curvature=0.03, noise=0.0, seed=0):
    """A table whose loss is an exact parabola in log mu with the given vertex at each budget."""
    table = simulate_table(budgets=tuple(minima), mean_recurrences=recurrences, recurrences=())
    vertex = table["budget"].map(minima)
    rng = np.random.default_rng(seed)
    table["loss"] = 3.0 + curvature * np.log(table["mean_recurrence"] / vertex) ** 2
    table["loss"] += noise * rng.standard_normal(len(table))
    return table


def test_known_parabolas_give_their_minima_and_power_law():
    minima = {budget: 2.5 * (budget / 1e18) ** 0.4 for budget in (1e18, 2e18, 4e18, 8e18)}
    fit = fit_isoflop(parabolas(minima), COST)
    for minimum in fit.minima:
        assert minimum.included
        assert minimum.mean_recurrence == pytest.approx(minima[minimum.budget], rel=1e-9)
        assert minimum.loss == pytest.approx(3.0, abs=1e-12)
    assert fit.mean_recurrence_law.exponent == pytest.approx(0.4, abs=1e-9)
    assert fit.mean_recurrence_law.at(16e18) == pytest.approx(2.5 * 16**0.4, rel=1e-6)


def test_best_recurrence_and_tokens_spend_the_budget():
    for minimum in fit_isoflop(simulate_table(), COST).minima:
        spent = COST.flops_for(minimum.tokens, minimum.mean_recurrence)
        assert float(spent) == pytest.approx(minimum.budget, rel=1e-12)


@pytest.mark.parametrize(("vertex", "words"), [(0.7, "below 1"), (1.0, "below 1"), (30.0, "above 12")])
def test_a_minimum_at_the_edge_is_left_out_and_said(vertex, words):
    fit = fit_isoflop(parabolas({1e18: vertex * (1 - 1e-9), 2e18: 4.0, 4e18: 6.0}), COST)
    assert [minimum.included for minimum in fit.minima] == [False, True, True]
    assert words in fit.minima[0].reason


def test_a_curve_that_opens_downwards_is_left_out():
    fit = fit_isoflop(parabolas({1e18: 3.0, 2e18: 4.0}, curvature=-0.03), COST)
    assert all("opens downwards" in minimum.reason for minimum in fit.minima)
    assert fit.mean_recurrence_law is None
    assert "power laws need 2 budgets" in fit.reason


def test_two_recurrences_are_no_parabola():
    fit = fit_isoflop(parabolas({1e18: 2.0, 2e18: 3.0}, recurrences=(1.0, 4.0)), COST)
    assert all("needs 3 mean recurrences, but there are 2" in minimum.reason for minimum in fit.minima)
    assert fit.tokens_law is None


def test_without_freedom_two_budgets_have_a_power_law_but_no_interval():
    fit = fit_isoflop(parabolas({1e18: 2.0, 2e18: 3.0}, recurrences=(1.0, 2.0, 4.0)), COST)
    assert fit.mean_recurrence_law.exponent == pytest.approx(np.log2(1.5))
    assert fit.mean_recurrence_law.interval is None
    assert "intervals need" in fit.reason


def test_without_freedom_three_budgets_use_the_scatter():
    fit = fit_isoflop(parabolas({1e18: 2.0, 2e18: 3.0, 4e18: 3.5}, recurrences=(1.0, 2.0, 4.0)), COST)
    low, high = fit.mean_recurrence_law.interval
    assert low < fit.mean_recurrence_law.exponent < high
    assert fit.interval_method.startswith("scatter")


def test_token_sweeps_have_no_isoflop_curves():
    with pytest.raises(ValueError, match="need the column `budget`"):
        fit_isoflop(simulate_table().drop(columns="budget"), COST)


def test_standard_error_of_a_minimum_is_its_spread():
    minima = {1e18: 3.0, 2e18: 4.0, 4e18: 5.0}
    fits = [fit_isoflop(parabolas(minima, noise=1e-3, seed=seed), COST, draws=0) for seed in range(200)]
    spread = np.std([np.log(fit.minima[1].mean_recurrence) for fit in fits])
    said = np.sqrt(np.mean([fit.minima[1].log_mean_recurrence_error ** 2 for fit in fits]))
    assert said == pytest.approx(spread, rel=0.15)


def test_intervals_of_the_exponent_cover_it():
    minima = {budget: 2.5 * (budget / 1e18) ** 0.4 for budget in (1e18, 2e18, 4e18, 8e18)}
    covered = 0
    for seed in range(100):
        law = fit_isoflop(parabolas(minima, noise=1e-3, seed=seed), COST, seed=seed).mean_recurrence_law
        covered += law.interval[0] <= 0.4 <= law.interval[1]
    assert 88 <= covered <= 100


@pytest.mark.parametrize("seed", range(10))
def test_the_published_grid_gives_the_published_exponents(seed):
    fit = fit_isoflop(simulate_table(PUBLISHED_TRUTH, seed=seed, recurrences=()), COST)
    assert fit.mean_recurrence_law.exponent == pytest.approx(0.40, abs=0.02)
    assert fit.tokens_law.exponent == pytest.approx(0.78, abs=0.02)


def test_more_noise_gives_wider_intervals():
    def width(noise):
        truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=noise)
        laws = [fit_isoflop(simulate_table(truth, seed=s, recurrences=()), COST).mean_recurrence_law for s in range(5)]
        return np.mean([law.interval[1] - law.interval[0] for law in laws])

    assert width(3e-4) < width(6e-4)
