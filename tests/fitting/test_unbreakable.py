"""Bad tables: one clear error or one clear warning in the result each, never a silent wrong answer."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    ChinchillaLaw,
    SweepFit,
    TrainingLaw,
    check_table,
    choose,
    choose_table,
    fit_sweep,
    point_estimate,
    simulate_table,
)
from isoloop.fitting.tables.checks import implausible_losses, row_caveats
from isoloop.fitting.tables.runs import law_data
from isoloop.fitting.tables.units import unit_caveats

TRUTH = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=5e-4)


def points():
    """A table of dense models on 5 budgets, C = 6 N D."""
    budgets = np.repeat([1e19, 3e19, 1e20, 3e20, 1e21], 7)
    params = np.sqrt(budgets / 6 / 20) * np.tile(np.geomspace(0.25, 4, 7), 5)
    data = {"params": params, "tokens": budgets / (6 * params)}
    noise = np.random.default_rng(0).normal(0, 2e-3, len(params))
    return pd.DataFrame({**data, "budget": budgets, "loss": ChinchillaLaw().loss(TRUTH, data) * np.exp(noise)})


def sweep(*, recurrences=(), **changes):
    """A table of looped models, evaluated at `recurrences` too."""
    return simulate_table(NOISY, seed=1, recurrences=recurrences).assign(**changes)


@pytest.mark.parametrize("column", ["params", "tokens", "budget"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_impossible_numbers_are_refused(column, value):
    table = points()
    table.loc[4, column] = value
    with pytest.raises(ValueError, match=f"`{column}` must be finite and greater than 0 .*, but row 5 has {column}="):
        check_table(table)


@pytest.mark.parametrize("value", [-2.0, 0.0])
@pytest.mark.parametrize("table", [points, sweep])
def test_impossible_losses_are_refused(table, value):
    rows = table()
    rows.loc[4, "loss"] = value
    with pytest.raises(ValueError, match="`loss` must be finite and greater than 0"):
        fit_sweep(rows, name="bad", draws=0)


def test_a_finished_run_without_a_loss_is_refused():
    table = sweep()
    table.loc[4, "loss"] = np.nan
    with pytest.raises(ValueError, match="`loss` must be given for every finished run"):
        fit_sweep(table, name="bad", draws=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.797e308])
def test_dense_runs_without_a_finite_loss_are_left_out_and_counted(value):
    table = points()
    without = fit_sweep(table.drop(index=4), name="a", draws=0)
    table.loc[4, "loss"] = value
    fit = fit_sweep(table, name="a", draws=0)
    assert "1 of 35 runs diverged and is not fitted." in fit.caveats
    assert fit.training.vector == pytest.approx(without.training.vector)
    assert fit.isoflop.axis_law.exponent == pytest.approx(without.isoflop.axis_law.exponent, rel=1e-9)
    caveat = "Left out, since they did not finish or have no loss: 1 of 35 rows."
    assert caveat in choose_table(table, laws=["chinchilla"], by=["largest budget"], draws=0).caveats


@pytest.mark.parametrize("value", [np.inf, 1.797e308])
def test_an_infinite_loss_of_a_finished_run_is_left_out_and_counted(value):
    table = sweep()
    table.loc[4, "loss"] = value
    assert "1 of 42 runs diverged and is not fitted." in fit_sweep(table, name="a", draws=0).caveats


def test_a_run_that_diverged_unnoticed_is_left_out_and_reported():
    table = sweep(recurrences=(2, 8))[lambda table: table["budget"] <= 2e18]
    table.loc[10, "loss"] = 11.0
    without = fit_sweep(table.drop(index=10), name="a", draws=10)
    fit = fit_sweep(table, name="a", draws=10)
    run = table["run_id"][10]
    assert any(f"Run '{run}' is left out of every fit: its loss of 11" in caveat for caveat in fit.caveats)
    assert fit.training == without.training
    assert fit.isoflop == without.isoflop
    assert fit.unified is not None
    assert fit.unified == without.unified


def test_losses_of_ordinary_runs_far_from_the_optimum_are_kept():
    table = sweep()
    table["loss"] *= np.where(table["mean_recurrence"] == 1, 1.6, 1.0)
    assert fit_sweep(table, name="a", draws=0).finished_runs == len(table)


@pytest.mark.parametrize("column", ["params", "tokens"])
def test_a_constant_column_is_refused(column):
    with pytest.raises(ValueError, match=f"needs `{column}` to vary"):
        point_estimate(ChinchillaLaw(), law_data(check_table(points().assign(**{column: 1e9}))))


def test_one_budget_is_reported_by_every_fit():
    one = points()[lambda table: table["budget"] == 1e20]
    assert any("All runs spend one budget" in caveat for caveat in row_caveats(law_data(check_table(one))))
    table = sweep()[lambda table: table["budget"] == 4e18]
    fit = fit_sweep(table, name="one", draws=0)
    assert any("All runs spend one budget" in caveat for caveat in fit.caveats)
    assert fit.isoflop.mean_recurrence_law is None
    assert "power laws need 2 budgets" in fit.isoflop.reason


def test_fewer_rows_than_parameters_are_refused():
    with pytest.raises(ValueError, match="needs at least 6 rows, but got 5"):
        point_estimate(ChinchillaLaw(), law_data(check_table(points().head(5))))


def test_rows_that_are_all_the_same_are_refused():
    same = pd.concat([points().head(1)] * 12)
    with pytest.raises(ValueError, match="needs `params` to vary"):
        point_estimate(ChinchillaLaw(), law_data(check_table(same)))


def test_losses_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="needs `loss` to vary"):
        point_estimate(ChinchillaLaw(), law_data(check_table(points().assign(loss=3.0))))


def test_rows_given_twice_are_reported():
    twice = pd.concat([points(), points().head(2)])
    found = choose(
        law_data(check_table(twice)),
        ["chinchilla"],
        draws=0,
        caveats=row_caveats(law_data(check_table(twice))),
    )
    assert "2 rows repeat the parameters, tokens and loss of another" in found.report()
    assert not any("repeat" in caveat for caveat in row_caveats(law_data(check_table(points()))))
    table = sweep()
    again = table.head(1).assign(run_id="again")
    fit = fit_sweep(pd.concat([table, again]), name="twice", draws=0)
    assert any("1 row repeats" in caveat for caveat in fit.caveats)


def test_the_same_run_id_twice_is_refused():
    table = sweep()
    with pytest.raises(ValueError, match="`run_id` must be unique"):
        fit_sweep(pd.concat([table, table.head(1)]), name="twice", draws=0)


@pytest.mark.parametrize(("column", "values"), [("accounting", ["exact", "parcae-release"]), ("tokenizer", ["a", "b"])])
def test_runs_that_cannot_be_compared_are_refused(column, values):
    mixed = np.array(values, dtype=object)[np.arange(42) % 2]
    with pytest.raises(ValueError, match=f"`{column}` must be one value per table"):
        fit_sweep(sweep(**{column: mixed}), name="mixed", draws=0)
    with pytest.raises(ValueError, match=f"`{column}` must be one value per table"):
        check_table(points().assign(**{column: mixed[:35]}))


def test_losses_in_another_unit_are_refused():
    with pytest.raises(ValueError, match=r"`loss_unit` must be 'nats per token', .*convert the losses"):
        fit_sweep(sweep(loss_unit="bits per byte"), name="bits", draws=0)
    assert fit_sweep(sweep(loss_unit="nats per token"), name="nats", draws=0).training


def test_a_run_far_off_the_law_is_named():
    table = sweep()
    table.loc[10, "loss"] *= 1.1
    fit = fit_sweep(table, name="stray", draws=0)
    assert any(f"Run '{table['run_id'][10]}' lies +10% off the training law" in caveat for caveat in fit.caveats)
    assert not any("off the training law" in caveat for caveat in fit_sweep(sweep(), name="none", draws=0).caveats)


def test_an_interval_that_ends_at_a_bound_is_reported():
    table = simulate_table(dataclasses.replace(PUBLISHED_TRUTH, run_noise=3e-3), seed=1, recurrences=())
    fit = fit_sweep(table, name="wide", draws=50)
    assert any("the interval of E ends at a bound" in reason for reason in fit.training.reasons)


def test_runs_that_are_all_alike_raise_no_warning_of_numpy():
    table = simulate_table(NOISY, recurrences=(1, 2, 4, 8))
    same = pd.concat([table.head(1).assign(run_id=str(copy)) for copy in range(7)])
    with pytest.raises(ValueError, match=r"needs enough runs for one fit|allows none"):
        fit_sweep(same.drop(columns=[f"loss_T{T}" for T in (1, 2, 4, 8)]), name="same", draws=50)
    fit_sweep(same, name="same", draws=10)


@pytest.mark.parametrize("table", [points, sweep])
def test_mixed_units_of_loss_are_refused(table):
    rows = table()
    mixed = np.array(["nats per token", "bits per byte"], dtype=object)[np.arange(len(rows)) % 2]
    with pytest.raises(ValueError, match="`loss_unit` must be one value per table"):
        (check_table if table is points else lambda rows: fit_sweep(rows, name="x"))(rows.assign(loss_unit=mixed))


def test_several_experiments_are_refused():
    with pytest.raises(
        ValueError, match=r"`experiment` must be one value per table, .*choose one of 0, 1 \(--experiment\)"
    ):
        check_table(points().assign(experiment=np.arange(35) % 2))


def test_swapped_parameters_and_tokens_are_reported():
    swapped = points().rename(columns={"params": "tokens", "tokens": "params"})
    caveats = unit_caveats(check_table(swapped))
    assert any("were the columns params and tokens swapped?" in caveat for caveat in caveats)
    assert not any("swapped" in one for one in unit_caveats(check_table(points())))


def test_read_only_arrays_are_fitted_and_left_alone():
    table = sweep()
    data = law_data(table)
    for values in data.values():
        values.flags.writeable = False
    assert point_estimate(TrainingLaw(), data).converged
    kept = points().to_numpy().copy()
    frame = pd.DataFrame(kept, columns=points().columns)
    kept.flags.writeable = False
    choose(law_data(check_table(frame)), ["chinchilla"], draws=20)
    pd.testing.assert_frame_equal(frame, points())


def test_a_stored_fit_of_another_version_is_refused():
    text = fit_sweep(sweep(), name="x", draws=0).to_json()
    older = json.dumps({**json.loads(text), "format": "isoloop-fit/2"})
    with pytest.raises(ValueError, match="the format 'isoloop-fit/4', but got 'isoloop-fit/2'; fit the sweep"):
        SweepFit.from_json(older)


def test_a_bound_that_is_hit_is_reported():
    table = points()
    # The loss grows with N, which no positive amplitude can follow.
    table["loss"] = 2.0 + 2085.0 * table["tokens"] ** -0.37 + 0.01 * np.log(table["params"] / 1e8)
    estimate = point_estimate(ChinchillaLaw(), law_data(check_table(table)))
    assert "A" in estimate.at_bounds
    found = choose(law_data(check_table(table)), ["chinchilla"], draws=0)
    assert "warning: A is at its bound" in found.report()


def caveat_text(table):
    return " ".join(unit_caveats(check_table(table)))


def test_mixed_units_of_compute_are_reported():
    table = points()
    assert "params x tokens" not in caveat_text(table)
    assert "params x tokens" not in caveat_text(table.drop(columns="budget"))
    mixed = table.assign(tokens=table["tokens"] / np.where(np.arange(35) % 2, 1e9, 1.0))
    assert "`tokens` has values up to 145 and others from" in caveat_text(mixed)
    assert "were units mixed?" in caveat_text(mixed)
    one = table.assign(budget=table["budget"] * np.where(np.arange(35) == 7, 3.1, 1.0))
    assert "6 to 18.6 times params x tokens" in caveat_text(one)


@pytest.mark.parametrize(("factor", "expected"), [(0.4, True), (0.6, False), (1.9, False), (2.1, True)])
def test_budgets_that_are_not_6nd_are_reported(factor, expected):
    text = caveat_text(points().assign(budget=lambda table: factor * table["budget"]))
    assert ("C = 6 N D does not hold here, so D* from it is off" in text) == expected
    assert "units mixed" not in text


def test_runs_far_off_are_found_although_half_of_a_budget_diverged():
    losses = np.array([3.0, 3.1, 3.2, 11.0, 11.2, 10.9, 2.5, 2.6, 2.4, 1.0])
    budgets = np.repeat([1e18, 1e19], [6, 4])
    assert list(np.flatnonzero(implausible_losses(losses, budgets))) == [3, 4, 5, 9]
    assert list(np.flatnonzero(implausible_losses(losses[:6]))) == [3, 4, 5]
    assert not implausible_losses(np.array([])).any()


def test_budgets_of_few_runs_are_held_against_the_table():
    losses = np.array([3.0, 3.1, 3.2, 11.0, 11.0])
    assert list(implausible_losses(losses, np.array([1e18, 1e18, 1e18, 1e19, 1e19]))) == [False] * 3 + [True] * 2


def test_a_run_with_a_loss_in_another_unit_is_left_out_and_reported():
    table = sweep()
    table.loc[10, "loss"] *= 0.3
    fit = fit_sweep(table, name="a", draws=0)
    assert fit.finished_runs == len(table) - 1
    words = "above 2 times or below 1/2 of the lower quartile of its budget's losses"
    assert any("is left out of every fit" in caveat and words in caveat for caveat in fit.caveats)


def test_one_run_is_reported_in_the_singular():
    table = sweep()
    table.loc[0, "budget"] *= 1.5
    caveats = fit_sweep(table, name="one", draws=0).caveats
    assert any(caveat.startswith("1 run spent over 1% more or less than its budget, ") for caveat in caveats)


def test_a_curve_whose_minimum_is_no_loss_has_none():
    """A parabola through few, lopsided points dips below a loss of 0, which has no logarithm."""
    x = np.array([-1.0, -0.9, 1.0])
    lopsided = pd.DataFrame({"params": 1e8 * np.exp(x), "tokens": 1e9, "budget": 1e18, "loss": 10 * x**2 - 5})
    fit = fit_sweep(pd.concat([points(), lopsided]), name="x", draws=20)
    assert not fit.isoflop.minima[0].included
    assert fit.isoflop.minima[0].reason == "the curve's minimum would be a loss of -5, which none can have"
    assert any("which none can have" in caveat for caveat in fit.caveats)
    assert len(fit.isoflop.included) == 5
