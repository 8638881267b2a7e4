"""The run table: what is accepted, what is refused and in which words, and the cost model read from it."""

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    CostModel,
    check_table,
    loss_column,
    published_cost_model,
    read_table,
    simulate_table,
    test_time_losses,
)
from isoloop.fitting.tables.runs import law_data


@pytest.fixture
def table():
    return simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2, 4), recurrences=(1, 2, 4, 8))


def changed(table, column, value, row=1):
    copy = table.astype({column: object})
    copy.loc[row, column] = value
    return copy


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_reading_back_what_was_written_gives_the_same_table(table, tmp_path, suffix):
    table["note"] = "kept"
    path = tmp_path / f"runs{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    pd.testing.assert_frame_equal(read_table(path), table, check_exact=True)


def test_a_run_id_that_looks_like_a_number_stays_text(table, tmp_path):
    table.loc[0, "run_id"] = "00012e7"
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert read_table(tmp_path / "runs.csv")["run_id"][0] == "00012e7"


def test_checking_leaves_its_argument_alone(table):
    before = changed(table, "tokens", int(table["tokens"][1]))
    kept = before.copy()
    check_table(before)
    pd.testing.assert_frame_equal(before, kept)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("tokens", -5.0, "`tokens` must be finite and greater than 0"),
        ("tokens", 0.0, "tokens=0.0"),
        ("tokens", np.nan, "tokens=nan"),
        ("flops", np.inf, "flops=inf"),
        ("flops", 1.1e18, "`flops` must equal tokens x"),
        ("mean_recurrence", 0.0, "`mean_recurrence` must be finite and greater than 0"),
        ("backprop_depth", 0.5, "`backprop_depth` must be finite and at least 1"),
        ("budget", -1.0, "`budget`"),
        ("loss", np.nan, "`loss` must be given for every finished run"),
        ("loss", np.inf, "`loss` must be finite"),
        ("loss", "2.9", "`loss` must be a number"),
        ("tokens", True, "`tokens` must be a number"),
        ("loss_T8", -1.0, "`loss_T8` must be finite and greater than 0"),
        ("seed", 0.5, "`seed` must be a whole number"),
        ("run_id", "simulated-1e+18-1-0", "`run_id` must be unique"),
        ("run_id", 7, "`run_id` must be text"),
        ("status", "done", "`status` must be one of finished, diverged, failed"),
        ("status", "diverged", "`loss` must be missing unless the run finished"),
        ("accounting", "mine", "`accounting` must be one of"),
        ("accounting", "parcae-release", "`accounting` must be one value per table"),
        ("simulated", False, "never fit simulated and measured runs together"),
        ("simulated", "yes", "`simulated` must be True or False"),
        ("backward_loops", 100.0, "must not be above forward_loops"),
    ],
)
def test_a_broken_rule_is_named_with_its_row_and_value(table, column, value, words):
    with pytest.raises(ValueError, match=r"row 1\).*;") as caught:
        check_table(changed(table, column, value))
    assert words in str(caught.value)


def test_every_missing_column_is_listed(table):
    with pytest.raises(ValueError, match="these are missing: tokens, loss;"):
        check_table(table.drop(columns=["tokens", "loss"]))


def test_an_empty_table_is_refused(table):
    with pytest.raises(ValueError, match="at least one row"):
        check_table(table.iloc[:0])


def test_a_column_named_twice_is_refused(table):
    with pytest.raises(ValueError, match="named once"):
        check_table(pd.concat([table, table[["loss"]]], axis=1))


def test_a_loss_at_no_loop_at_all_is_refused(table):
    with pytest.raises(ValueError, match="at least once"):
        check_table(table.assign(loss_T0=3.0))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "there is none at"),
        ("runs.json", "{}", "must end in .csv or .parquet"),
        ("empty.csv", "", "must be a readable .csv"),
        ("bad.parquet", "no parquet", "must be a readable .parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name)


def test_an_unfinished_run_may_lack_what_it_never_measured(table):
    for column in ("loss", "tokens", "flops", "forward_loops", "backward_loops"):
        table = changed(table, column, np.nan)
    checked = check_table(changed(table, "status", "failed"))
    assert len(checked) == len(table)
    assert np.isnan(checked["loss"][1])
    assert len(law_data(checked)["loss"]) == len(table) - 1


def test_a_model_without_a_loop_costs_nothing_per_loop(table):
    """The fixed-depth baseline: all of its FLOPs and parameters stand in the fixed part."""
    loopless = table[table["mean_recurrence"] == table["mean_recurrence"].min()].copy()
    loopless["flops_per_token_fixed"] = loopless["flops"] / loopless["tokens"]
    for name in ("flops_per_token_forward_loop", "flops_per_token_backward_loop", "effective_params_per_loop"):
        loopless[name] = 0.0
    assert len(check_table(loopless)) == len(loopless)


def test_the_budget_may_be_absent(table):
    assert "budget" not in check_table(table.drop(columns="budget"))


def test_long_form_leaves_out_what_was_not_measured(table):
    long = test_time_losses(check_table(changed(table, "loss_T8", np.nan)))
    assert len(long) == 4 * len(table) - 1
    row = long[(long["run_id"] == table["run_id"][0]) & (long["recurrence"] == 2)]
    assert row["loss"].item() == table["loss_T2"][0]
    assert test_time_losses(table.drop(columns=[loss_column(T) for T in (1, 2, 4, 8)])).empty


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
