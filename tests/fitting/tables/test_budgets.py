"""Runs grouped by compute: near-equal budgets are one, and runs without budgets are clustered by their FLOPs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import PUBLISHED_TRUTH, ChinchillaLaw, choose_table, fit_sweep, simulate_table
from isoloop.fitting.tables.budgets import clustered_budgets, group_values, joined_budgets
from isoloop.fitting.tables.contract import check_runs

TRUTH = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=5e-4)


def dense_points(seed=0, budgets=(1e19, 3e19, 1e20, 3e20, 1e21), miss=0.0):
    """A table of dense models, whose runs spend up to `miss` (relative) less or more than their budget."""
    rng = np.random.default_rng(seed)
    budget = np.repeat(budgets, 7)
    params = np.sqrt(budget / 6 / 20) * np.tile(np.geomspace(0.25, 4, 7), len(budgets))
    flops = budget * (1 + miss * rng.uniform(-1, 1, len(budget)))
    data = {"params": params, "tokens": flops / (6 * params)}
    loss = ChinchillaLaw().loss(TRUTH, data) * np.exp(rng.normal(0, 1e-3, len(params)))
    return pd.DataFrame({**data, "flops": flops, "budget": budget, "loss": loss})


@pytest.fixture(scope="module")
def looped():
    return simulate_table(NOISY, recurrences=())


@pytest.fixture(scope="module")
def looped_fit(looped):
    return fit_sweep(looped, name="x", draws=0)


def test_a_group_holds_what_lies_within_the_tolerance_of_its_smallest_value():
    values = np.array([1.02, 1.0, np.nan, 1.0099, 1.021, 5.0])
    assert list(group_values(values)) == [1, 0, -1, 0, 1, 2]
    assert list(group_values(values, 0.0)) == [2, 0, -1, 1, 3, 4]
    assert list(group_values(np.array([np.nan]))) == [-1]


def test_joined_budgets_are_the_most_frequent_value_of_their_group():
    budgets = np.array([6e18, 6e18, 6 * 0.1 * 1e19, np.nextafter(6e18, 0), 2e19, np.nan])
    joined = joined_budgets(budgets)
    assert list(joined[:5]) == [6e18] * 4 + [2e19]
    assert np.isnan(joined[5])


def test_budgets_an_ulp_apart_are_one_curve_and_the_answer_says_so(looped, looped_fit):
    table, whole = looped, looped_fit
    split = table["budget"] * np.where(np.arange(len(table)) % 3, 1.0, 1 - 2**-52)
    assert split.nunique() > table["budget"].nunique()
    fit = fit_sweep(table.assign(budget=split), name="x", draws=0)
    assert fit.isoflop == whole.isoflop
    assert fit.training == whole.training
    number = table["budget"].nunique()
    assert fit.reading == (f"Budgets within 1% of one another are one: {split.nunique()} values are {number}.",)
    assert whole.reading == ()


def test_budgets_that_runs_miss_by_a_step_give_the_curves_of_the_round_ones():
    table = dense_points(miss=1e-4)
    rounded = choose_table(table, draws=0, laws=["chinchilla"])
    exact = choose_table(table.assign(budget=table["flops"]), draws=0, laws=["chinchilla"])
    # Where each budget is held out, enough are left for a floor; the first rollouts have too few.
    (by_budget,) = [each for each in exact.cross_validations if each.by == "budget"]
    assert "isoFLOP minima, L* = E + k C^-g" in [error.method for error in by_budget.errors]
    for one, other in zip(exact.cross_validations, rounded.cross_validations, strict=True):
        assert [error.rows for error in one.errors] == [error.rows for error in other.errors]
        for mine, round_one in zip(one.errors, other.errors, strict=True):
            assert mine.mean_absolute_error == pytest.approx(round_one.mean_absolute_error, rel=0.01)
    assert exact.reading == ("Budgets within 1% of one another are one: 35 values are 5.",)


def test_the_tolerance_is_a_setting():
    table = dense_points()
    near = table.assign(budget=table["budget"] * np.where(np.arange(35) % 2, 1.0, 1.04))
    assert check_runs(near).frame["budget"].nunique() == 10
    assert check_runs(near, budget_tolerance=0.05).frame["budget"].nunique() == 5
    with pytest.raises(ValueError, match=r"must be from 0 to 0\.5, but got 0\.7; 0\.01 is usual"):
        check_runs(near, budget_tolerance=0.7)


@pytest.mark.parametrize("miss", [0.0, 1e-4, 0.01, 0.04])
def test_runs_that_cluster_by_their_flops_get_the_budgets_they_were_planned_for(miss):
    table = dense_points(miss=miss)
    runs = check_runs(table.drop(columns="budget"))
    np.testing.assert_allclose(runs.frame["budget"], table["budget"], rtol=miss + 1e-12)
    assert runs.frame["budget"].nunique() == 5
    assert runs.notes == ("There is no column `budget`: the runs cluster at 5 budgets by their FLOPs.",)
    fit = fit_sweep(table.drop(columns="budget"), name="x", draws=0)
    assert fit.isoflop.axis_law.exponent == pytest.approx(0.37 / 0.72, abs=0.03)
    assert fit.reading == runs.notes


def test_a_looped_table_without_budgets_gives_the_fit_of_one_with_them(looped, looped_fit):
    without = fit_sweep(looped.drop(columns="budget"), name="x", draws=0)
    assert without.isoflop.axis_law.exponent == pytest.approx(looped_fit.isoflop.axis_law.exponent, rel=1e-9)
    assert "the runs cluster at" in without.reading[0]


def test_stray_runs_belong_to_no_budget_and_are_counted():
    table = dense_points().drop(columns="budget")
    stray = pd.DataFrame({"params": [1e9], "tokens": [1e9], "flops": [6e19], "loss": [2.9]})
    runs = check_runs(pd.concat([table, stray]))
    assert runs.frame["budget"].isna().sum() == 1
    assert "the runs cluster at 5 budgets by their FLOPs, and 1 run is in none." in runs.notes[0]


def test_runs_that_do_not_cluster_have_no_budgets_and_the_isoflop_methods_say_why():
    table = dense_points().drop(columns=["budget", "flops"])
    table["tokens"] *= 10 ** np.random.default_rng(1).uniform(-0.5, 0.5, len(table))
    table["loss"] = ChinchillaLaw().loss(TRUTH, table)
    fit = fit_sweep(table, name="x", draws=0)
    assert fit.isoflop is None
    reason = next(missing.reason for missing in fit.missing_fits if missing.name == "isoflop")
    assert "no run has a `budget`, and the FLOPs of its 35 runs do not cluster" in reason
    assert fit.training is not None
    assert any("There is no isoflop fit" in caveat for caveat in fit.caveats)


def test_too_few_runs_do_not_cluster():
    assert clustered_budgets(np.array([1e18, 1e18]), np.array([1.0, 2.0])) is None
    assert clustered_budgets(np.full(3, 1e18), np.array([1.0, 2.0, 2.0])) is None
    assert list(clustered_budgets(np.full(3, 1e18), np.array([1.0, 2.0, 3.0]))) == pytest.approx([1e18] * 3)
