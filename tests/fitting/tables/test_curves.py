"""Losses of each run at several T: infinite, blown up, rising, copied or inconsistent ones are named, others aren't."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import SweepFit, check_table, fit_sweep, predict, read_runs, simulate_table, test_time_losses
from isoloop.fitting.estimation.rise import RISES, loss_rise
from isoloop.fitting.result import FittedRange
from isoloop.fitting.simulate import PUBLISHED_TRUTH
from isoloop.fitting.tables.contract import check_runs, loss_columns
from isoloop.fitting.tables.curves import blown_up_losses, curve_caveats
from isoloop.fitting.tables.runs import finished_rows, test_time_law_data

TESTED = (1, 2, 4, 8, 12, 16)
CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
RESULTS = Path(__file__).resolve().parents[3] / "results" / "python"
PUBLIC_CURVE = {1: 7.4054, 2: 6.4121, 4: 5.2127, 8: 4.134, 16: 3.7898, 32: 3.9913, 64: 4.3275, 128: 4.6195}
"""Losses in nats per token of a public looped model with mu = 16, by T."""


@pytest.fixture(scope="module")
def table():
    return simulate_table(budgets=(1e18, 4e18, 16e18), mean_recurrences=(2, 4, 8), recurrences=TESTED)


@pytest.fixture(scope="module")
def fitted(table):
    """A fit where two losses were not measured."""
    without = with_value(with_value(table, "loss_T8", math.nan), "loss_T16", math.nan, 4)
    return fit_sweep(without, name="curves", draws=0)


def with_value(table, column, value, row=1):
    changed = table.copy()
    changed.loc[row, column] = value
    return changed


def one_model(curve, mean_recurrence):
    row = {"mean_recurrence": mean_recurrence, "tokens": 1e9, "flops": 1e18, "loss": curve[mean_recurrence]}
    return check_table(pd.DataFrame([row | {f"loss_T{T}": loss for T, loss in curve.items()}]))


def rising(table, size):
    """Return the table with losses that rise by `size` times log2(T / mu) beyond T = mu."""
    factors = {name: 1 + size * np.log2(np.maximum(1, T / table["mean_recurrence"])) for name, T in columns_of(table)}
    return table.assign(**{name: table[name] * factor for name, factor in factors.items()})


def columns_of(table):
    return loss_columns(table).items()


def rise_of(table):
    return loss_rise(test_time_law_data(table))


# Losses at T that are infinite or have blown up


@pytest.mark.parametrize("value", [math.inf, 1.7976931348623157e308, 1e300])
def test_an_infinite_loss_at_one_t_is_not_measured_there(table, value):
    runs = check_runs(with_value(table, "loss_T8", value))
    pd.testing.assert_frame_equal(runs.frame, with_value(table, "loss_T8", math.nan))
    assert runs.notes == (f"The loss at T = 8 is infinite, so not measured, in run {table['run_id'][1]!r}.",)


def test_an_infinite_loss_and_one_that_blew_up_change_no_law_of_the_others(table, fitted):
    faulty = with_value(with_value(table, "loss_T8", math.inf), "loss_T16", 50.0, 4)
    fit = fit_sweep(faulty, name="curves", draws=0)
    assert fit.laws == fitted.laws
    assert fit.test_time == fitted.test_time
    assert fit.reading == (f"The loss at T = 8 is infinite, so not measured, in run {table['run_id'][1]!r}.",)
    (caveat,) = [text for text in fit.caveats if text not in fitted.caveats]
    assert caveat.startswith("1 loss is left out of the test-time, joint and unified laws")
    assert f"50 at T = 16 in run {table['run_id'][4]!r}" in caveat
    assert SweepFit.from_json(fit.to_json()) == fit


def test_several_infinite_losses_at_one_t_are_counted(table):
    notes = check_runs(table.assign(loss_T8=math.inf)).notes
    assert notes == (
        f"The loss at T = 8 is infinite, so not measured, in run {table['run_id'][0]!r} and {len(table) - 1} more.",
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [("loss_T8", 50.0), ("loss_T8", 1e30), ("loss_T16", 7.0), ("loss_T4", 1.3), ("loss_T1", 50.0), ("loss_T2", 8.0)],
)
def test_a_loss_that_blew_up_at_one_t_is_left_out_and_named(table, column, value):
    blown_up = with_value(table, column, value)
    data, expected = test_time_law_data(blown_up), test_time_law_data(with_value(table, column, math.nan))
    assert {name: values.tolist() for name, values in data.items()} == {
        name: values.tolist() for name, values in expected.items()
    }
    (caveat,) = curve_caveats(blown_up)
    named = f"{value:.4g} at T = {column.removeprefix('loss_T')} in run {table['run_id'][1]!r}"
    assert caveat.startswith("1 loss is left out")
    assert named in caveat
    assert rise_of(blown_up) is None


def test_many_losses_that_blew_up_are_counted(table):
    (caveat,) = curve_caveats(table.assign(loss_T16=50.0))
    assert caveat.startswith(f"{len(table)} losses are left out")
    assert caveat.count(" in run ") == 5
    assert caveat.endswith(f", and {len(table) - 5} more.")


def test_a_loss_that_blew_up_in_a_held_out_run_is_in_no_error(table):
    held_out = int(table["budget"].idxmax())
    fit = fit_sweep(with_value(table, "loss_T16", 50.0, held_out), name="c", draws=0, hold_out_largest_budget=True)
    unified = [row for row in fit.held_out.rows if row.method == "unified law"]
    assert len(unified) == 3 * len(TESTED) - 1
    assert max(abs(row.error) for row in unified) < 1


def test_the_fitted_range_ends_at_the_largest_t_that_did_not_blow_up(table):
    assert FittedRange.of(table.assign(loss_T16=50.0)).recurrence == (1, 12)


@pytest.mark.parametrize(("curve", "mean"), [(PUBLIC_CURVE, 16), ({1: 8.99, 4: 3.4, 8: 2.97, 16: 2.95}, 8)])
def test_losses_far_above_at_a_small_t_are_those_of_the_run(curve, mean):
    runs = one_model(curve, mean)
    assert not blown_up_losses(runs).any(axis=None)
    assert len(test_time_losses(runs)) == len(curve)


# Losses that rise with T


def test_the_public_curve_that_rises_is_reported():
    rise = rise_of(one_model(PUBLIC_CURVE, 16))
    assert (rise.models, rise.turn, rise.turn_ratio) == (1, 16, 1)
    assert rise.largest == pytest.approx(4.6195 / 3.7898 - 1)
    size = "by up to 22% (0.83 nats at T = 128)"
    assert rise.caveat == f"The loss rises with T, beyond T = mu (T = 16), {size}: this model overthinks."


@pytest.mark.parametrize("size", [0.002, 0.1])
def test_rises_of_any_size_are_found_if_every_run_has_them(table, size):
    rise = rise_of(rising(table, size))
    assert (len(rise.runs), rise.models, rise.turn, rise.turn_ratio) == (9, 9, 4, 1)
    assert rise.largest == pytest.approx(3 * size, rel=0.3)  # log2(16 / 2) = 3


def test_losses_that_rise_in_every_run_are_reported_where_the_laws_are(table):
    fit = fit_sweep(rising(table, 0.02), name="rising", draws=0)
    largest = f"{100 * rise_of(rising(table, 0.02)).largest:.2g}%"
    (caveat,) = [text for text in fit.caveats if text.startswith(f"The {RISES}")]
    assert caveat.startswith("The loss rises with T in 9 of 9 models, beyond T = mu (T = 4 at the median), by up to")
    assert largest in caveat
    for law in (fit.unified, fit.joint_test_time, *fit.test_time):
        assert [reason for reason in law.reasons if RISES in reason]
    assert not [reason for reason in fit.training.reasons if RISES in reason]
    prediction = predict(fit, mean_recurrence=4, tokens=1e9, recurrence=16)
    assert [note for note in prediction.notes if RISES in note]
    assert "costs" in prediction.notes[1]
    at_mean = predict(fit, mean_recurrence=4, tokens=1e9)
    assert len([note for note in at_mean.notes if "the least loss is at" in note]) == 1


def test_the_models_that_rise_are_told_from_those_that_do_not(table):
    mixed = table.copy()
    mixed.iloc[:2] = rising(table, 0.05).iloc[:2]
    rise = rise_of(mixed)
    assert (rise.runs, rise.models) == (tuple(table["run_id"][:2]), 9)
    fit = fit_sweep(mixed, name="mixed", draws=0)
    assert {law.run_id for law in fit.test_time if RISES in law.reasons} == set(rise.runs)


def test_the_noise_of_losses_at_t_is_no_rise():
    noisy = dataclasses.replace(PUBLISHED_TRUTH, run_noise=2e-3, evaluation_noise=2e-3)
    for seed in range(5):
        runs = simulate_table(noisy, budgets=(1e18, 4e18), mean_recurrences=(2, 8), recurrences=TESTED, seed=seed)
        assert rise_of(runs) is None
        assert curve_caveats(runs) == []


def test_ordinary_losses_raise_no_caveat(table, fitted):
    assert curve_caveats(table) == []
    assert not [text for text in fitted.caveats if RISES in text or "at T" in text]
    for path in RESULTS.glob("looped*/runs.csv"):
        runs = read_runs(path).frame
        assert curve_caveats(finished_rows(runs)) == []
        assert rise_of(runs) is None


# Columns that contradict each other


def test_a_loss_at_t_of_mu_that_differs_from_the_loss_is_reported(table):
    assert curve_caveats(with_value(table, "loss_T4", table["loss"][1] * 1.009)) == []
    (caveat,) = curve_caveats(with_value(table, "loss_T4", table["loss"][1] * 1.1))
    assert caveat.startswith("In 1 run the loss in the column of T = mu differs from `loss` by over 1%")
    assert f"{table['run_id'][1]!r} (+10%)" in caveat


def test_a_column_that_was_copied_is_reported(table):
    assert curve_caveats(table.assign(loss_T16=table["loss"])) == [
        "`loss_T16` equals `loss`, the loss at T = mu, in all 9 runs with another mu: was it copied?"
    ]
    assert curve_caveats(table.assign(loss_T16=table["loss_T12"])) == [
        "`loss_T16` equals `loss_T12` in all 9 runs: was it copied?"
    ]


def test_rounded_losses_that_saturate_are_no_copy(table):
    rounded = table.round(dict.fromkeys(["loss", *loss_columns(table)], 2))
    saturated = rounded.assign(loss_T16=rounded["loss_T12"])
    assert rounded["loss_T12"].nunique() > 2
    assert curve_caveats(saturated) == []


def test_losses_at_t_that_are_perplexities_are_said_to_be(table):
    perplexities = table.assign(**{name: np.exp(table[name]) for name in loss_columns(table)})
    (caveat,) = curve_caveats(perplexities)
    assert caveat.endswith(" They look like perplexities: give their logarithms, which are nats per token.")
    (caveat,) = curve_caveats(table.assign(**dict.fromkeys(loss_columns(table), 50.0)))
    assert "perplexit" not in caveat


# The cases that people met


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("inf-at-one-T/ext2.csv", "The loss at T = 8 is infinite, so not measured"),
        ("inf-at-one-T/t8_big1e30.csv", "1e+30 at T = 8"),
        ("blow-up-at-one-T/t8_big50.csv", "50 at T = 8"),
        ("blow-up-at-one-T/overthink.csv", "The loss rises with T in 12 of 16 models"),
        ("loss-rises-with-T/over_0.03.csv", "The loss rises with T in 24 of 24 models"),
    ],
)
def test_the_cases_that_people_met(case, expected):
    if not (CASES / case).is_file():
        pytest.skip("the shared cases are not here")
    runs = read_runs(CASES / case)
    rise = rise_of(runs.frame)
    sentences = [*runs.notes, *curve_caveats(finished_rows(runs.frame)), *([rise.caveat] if rise else [])]
    assert len(sentences) == 1
    assert expected in sentences[0]
