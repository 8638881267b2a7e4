"""Run tables from files, the columns that fits read, and the cost read from a table."""

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    CostModel,
    check_table,
    is_dense,
    loss_column,
    published_cost_model,
    read_runs,
    read_table,
    simulate_table,
    test_time_losses,
)
from isoloop.fitting.tables.runs import law_data

DENSE = {"params": [1e8, 2e8, 4e8], "tokens": [4e9, 2e9, 1e9], "loss": [3.0, 2.9, 3.1], "budget": [2.4e18] * 3}


@pytest.fixture
def table():
    return simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2, 4), recurrences=(1, 2, 4, 8))


def dense_file(tmp_path, suffix=".csv", **columns):
    path, frame = tmp_path / f"points{suffix}", pd.DataFrame({**DENSE, **columns})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_reading_back_what_was_written_gives_the_same_table(table, tmp_path, suffix):
    table["note"] = "kept"
    path = tmp_path / f"runs{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    pd.testing.assert_frame_equal(read_table(path), table, check_exact=True)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_dense_models_is_read_as_it_was_written(tmp_path, suffix):
    path = dense_file(tmp_path, suffix, experiment="a", outlier=[True, False, False])
    assert is_dense(read_table(path))
    assert list(read_table(path)["loss"]) == DENSE["loss"]
    kept = law_data(read_runs(path, experiment="a", outliers=False).frame)
    assert list(kept["loss"]) == [2.9, 3.1]


def test_a_run_id_that_looks_like_a_number_stays_text(table, tmp_path):
    table.loc[0, "run_id"] = "00012e7"
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert read_table(tmp_path / "runs.csv")["run_id"][0] == "00012e7"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "there is none at"),
        ("runs.json", "{}", "column names and rows, but .* has none; export it again"),
        ("empty.csv", "", "is empty; export it again"),
        ("bad.parquet", "no parquet", "must be a readable parquet file"),
        ("header.csv", "params,tokens,loss\n", "has only column names; export it again"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "arguments", "words"),
    [
        ({"experiment": ["a", "b", "b"]}, {"experiment": "c"}, "but got 'c'; choose one of a, b"),
        ({}, {"experiment": "c"}, "the table has no such column"),
        ({}, {"outliers": False}, "needs the column `outlier`"),
        ({"outlier": [1, 1, 1]}, {"outliers": False}, "marks all of them; keep them"),
        ({"loss": ["3", "x", "3"]}, {}, "`loss` must be a number, but row 2 has 'x'; correct it, or leave it empty"),
    ],
)
def test_what_cannot_be_selected_is_refused(tmp_path, columns, arguments, words):
    with pytest.raises(ValueError, match=words):
        read_runs(dense_file(tmp_path, **columns), **arguments)


@pytest.mark.parametrize(
    "marks", [[True, False, False], ["true", "false", "false"], [1, 0, 0], ["True", "0", "false"], [1.0, 0.0, 0.0]]
)
def test_outliers_are_marked_in_any_plain_way(tmp_path, marks):
    assert list(read_runs(dense_file(tmp_path, outlier=marks), outliers=False).frame["loss"]) == [2.9, 3.1]


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ([True, None, False], r"`outlier` must be True or False \(or 1 or 0\), but row 2 has nothing; fill"),
        (["no", "no", "yes"], "but row 1 has 'no', and 2 more rows break this rule"),
        ([0, 2, 3], "but row 2 has 2, and 1 more row breaks this rule"),
    ],
)
def test_unclear_marks_are_refused(tmp_path, marks, words):
    path = dense_file(tmp_path, outlier=marks)
    with pytest.raises(ValueError, match=words):
        read_runs(path, outliers=False)
    assert len(read_table(path)) == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_experiments_in_numbers_are_compared_as_text(tmp_path, suffix):
    path = dense_file(tmp_path, suffix, experiment=[0, 1, 1])
    assert list(read_runs(path, experiment="1").frame["loss"]) == [2.9, 3.1]
    with pytest.raises(ValueError, match="but got '2'; choose one of 0, 1"):
        read_runs(path, experiment="2")


def test_long_form_leaves_out_what_was_not_measured(table):
    gap = table.copy()
    gap.loc[1, "loss_T8"] = np.nan
    assert len(test_time_losses(check_table(gap))) == 4 * len(table) - 1
    long = test_time_losses(check_table(table))
    row = long[(long["run_id"] == table["run_id"][0]) & (long["recurrence"] == 2)]
    assert row["loss"].item() == table["loss_T2"][0]
    assert test_time_losses(table.drop(columns=[loss_column(T) for T in (1, 2, 4, 8)])).empty


def test_a_model_without_a_loop_costs_nothing_per_loop(table):
    """The fixed-depth baseline: all of its FLOPs and parameters stand in the fixed part."""
    loopless = table[table["mean_recurrence"] == table["mean_recurrence"].min()].copy()
    loopless["flops_per_token_fixed"] = loopless["flops"] / loopless["tokens"]
    for name in ("flops_per_token_forward_loop", "flops_per_token_backward_loop", "effective_params_per_loop"):
        loopless[name] = 0.0
    assert len(check_table(loopless)) == len(loopless)


def test_cost_at_the_grid_is_what_ran(table):
    cost = CostModel.from_table(table)
    np.testing.assert_allclose(cost.flops_for(table["tokens"], table["mean_recurrence"]), table["flops"], rtol=1e-12)
    np.testing.assert_allclose(cost.tokens_for(table["flops"], table["mean_recurrence"]), table["tokens"], rtol=1e-12)


def test_cost_between_and_beyond_the_grid():
    cost = published_cost_model()
    forward, backward = cost.loops([5.0, 20.0, 0.5])
    assert forward[1] - 20 == pytest.approx(cost.forward_loops[-1] - 12)
    assert backward[0] == pytest.approx((cost.backward_loops[2] + cost.backward_loops[3]) / 2)
    assert backward[1] == pytest.approx(cost.backward_loops[-1] + 4)
    assert backward[2] == 1
    assert (np.diff(cost.flops_per_token(np.linspace(0.5, 40, 400))) > 0).all()


def test_two_architectures_are_refused(table):
    table.loc[0, "effective_params_per_loop"] *= 2
    with pytest.raises(ValueError, match="filter the table to the runs of one architecture"):
        CostModel.from_table(table)


def test_two_backprop_depths_at_one_recurrence_are_refused(table):
    table.loc[2, "backprop_depth"] = 4.0
    with pytest.raises(ValueError, match="filter the table to one of them"):
        CostModel.from_table(table)
