"""The contract of the run table: what is accepted, filled in or refused, and in which words."""

import re

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import check_table, is_dense, simulate_table
from isoloop.fitting.tables.contract import check_runs
from isoloop.fitting.tables.runs import law_data

DENSE = {"params": [1e8, 2e8, 4e8], "tokens": [4e9, 2e9, 1e9], "loss": [3.0, 2.9, 3.1], "budget": [2.4e18] * 3}
LOOPED = {"mean_recurrence": [2.0, 4.0, 8.0], "tokens": [4e9, 2e9, 1e9], "flops": [1e18] * 3, "loss": [3.1, 3.0, 3.2]}


@pytest.fixture
def table():
    return simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2, 4), recurrences=(1, 2, 4, 8))


def changed(table, column, value, row=1):
    copy = table.astype({column: object})
    copy.loc[row, column] = value
    return copy


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match=r"must be a DataFrame, but got str; read a file with read_table"):
        check_runs("runs.csv")


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
        ("budget", -1.0, "`budget` must be finite and greater than 0"),
        ("loss", np.nan, "`loss` must be given for every finished run"),
        ("loss", -2.9, "`loss` must be finite and greater than 0"),
        ("loss", 0.0, "loss=0.0"),
        ("loss", "2.9", "`loss` must be a number"),
        ("tokens", True, "`tokens` must be a number"),
        ("loss_T8", -1.0, "`loss_T8` must be greater than 0, or missing where not measured"),
        ("seed", 0.5, "`seed` must be a whole number"),
        ("seed", 1e20, "`seed` must be at most 9223372036854775807"),
        ("seed", 2**63, "`seed` must be at most 9223372036854775807"),
        ("run_id", "simulated-1e+18-1-0", "`run_id` must be unique"),
        ("run_id", None, "`run_id` must be given for every run"),
        ("status", "done", "`status` must be one of finished, diverged, failed"),
        ("accounting", "parcae-release", "`accounting` must be one value per table, and the first row has 'exact'"),
        ("simulated", False, "never fit simulated and measured runs together"),
        ("simulated", "yes", "`simulated` must be True or False"),
        ("backward_loops", 100.0, "must not be above forward_loops"),
    ],
)
def test_a_broken_rule_is_named_with_its_row_counted_from_1_and_its_value(table, column, value, words):
    with pytest.raises(ValueError, match=r"row 2\).*;") as caught:
        check_table(changed(table, column, value))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("flops", 1e-320, "from 1e-20 to 1e+40"),
        ("tokens", 1e-300, "from 1e-20 to 1e+40"),
        ("tokens", 1e50, "from 1e-20 to 1e+40"),
        ("mean_recurrence", 1e18, "from 1e-20 to 1e+06"),
    ],
)
def test_numbers_that_no_unit_explains_are_refused(column, value, words):
    with pytest.raises(
        ValueError, match=f"`{column}` must be {re.escape(words)} .* row 2 has {column}={re.escape(str(value))}"
    ):
        check_table(changed(pd.DataFrame(LOOPED), column, value))


@pytest.mark.parametrize(
    ("value", "words"), [(10**400, "must be finite and .* tokens=inf"), (1 + 2j, "must be a number")]
)
def test_numbers_of_python_that_are_no_floats_are_refused(value, words):
    table = pd.DataFrame(LOOPED).astype(object)
    table.loc[0, "tokens"] = value
    with pytest.raises(ValueError, match=f"`tokens` {words}"):
        check_table(table)


@pytest.mark.parametrize("column", ["params", "tokens", "budget"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0, 1.797e308])
def test_impossible_numbers_of_dense_models_are_refused_by_the_column_that_has_them(column, value):
    frame = pd.DataFrame(DENSE)
    frame.loc[1, column] = value
    with pytest.raises(
        ValueError,
        match=f"`{column}` must be (finite and greater than 0|from 1e-20 to 1e\\+40) .* but row 2 has {column}=",
    ):
        check_table(frame)


def test_an_accounting_that_no_cost_model_has_is_refused_beside_one(table):
    with pytest.raises(ValueError, match="`accounting` must be one of exact, parcae-release, own, but"):
        check_table(table.assign(accounting="mine"))
    assert (check_table(pd.DataFrame(LOOPED).assign(accounting="mine"))["accounting"] == "mine").all()


def test_every_missing_column_is_listed_with_its_meaning_and_the_way_to_name_it(table):
    with pytest.raises(ValueError, match=r"lacks tokens \(training tokens \(D\)\), loss \(val.*--columns loss=NAME"):
        check_table(table.drop(columns=["tokens", "loss"]))
    with pytest.raises(ValueError, match=r"lacks mean_recurrence \(.*\), or instead of it params"):
        check_table(table.drop(columns=["mean_recurrence"]))
    with pytest.raises(ValueError, match=r"for dense models params, tokens, loss, but .* lacks loss"):
        check_table(pd.DataFrame(DENSE).drop(columns="loss"))


@pytest.mark.parametrize("column", ["flops_per_token_fixed", "forward_loops", "effective_params_per_loop"])
def test_columns_that_come_together_are_not_taken_apart(table, column):
    with pytest.raises(ValueError, match=f"come together .*, but {column} is missing; add them, or leave all"):
        check_table(table.drop(columns=column))


def test_an_empty_table_is_refused(table):
    with pytest.raises(ValueError, match="at least one row"):
        check_table(table.iloc[:0])


def test_a_column_named_twice_is_refused(table):
    with pytest.raises(ValueError, match="named once"):
        check_table(pd.concat([table, table[["loss"]]], axis=1))


def test_a_loss_at_no_loop_at_all_is_refused(table):
    with pytest.raises(ValueError, match="at least once"):
        check_table(table.assign(loss_T0=3.0))


def test_an_unfinished_run_may_lack_what_it_never_measured(table):
    for column in ("loss", "tokens", "flops", "forward_loops", "backward_loops"):
        table = changed(table, column, np.nan)
    checked = check_table(changed(table, "status", "failed"))
    assert len(checked) == len(table)
    assert np.isnan(checked["loss"][1])
    assert len(law_data(checked)["loss"]) == len(table) - 1


def test_the_loss_of_an_unfinished_run_is_not_used(table):
    assert np.isnan(check_table(changed(table, "status", "diverged"))["loss"][1])


@pytest.mark.parametrize("frame", [LOOPED, DENSE], ids=["looped", "dense"])
@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf, 1.7976931348623157e308])
def test_a_run_without_a_finite_loss_diverged(frame, loss):
    checked = check_table(changed(pd.DataFrame(frame), "loss", loss))
    assert list(checked["status"]) == ["finished", "diverged", "finished"]
    assert list(law_data(checked)["run_id"]) == ["row 1", "row 3"]


def test_an_infinite_loss_overrules_the_status(table):
    """A store that can't keep infinity keeps the status `finished` beside 1.797e308."""
    assert check_table(changed(table, "loss", 1.797e308))["status"][1] == "diverged"


def test_an_infinite_loss_at_one_T_is_not_measured(table):
    checked = check_table(changed(table, "loss_T8", 1.797e308))
    assert np.isnan(checked["loss_T8"][1])
    assert checked["status"][1] == "finished"


def test_what_follows_is_filled_in():
    checked = check_table(pd.DataFrame(LOOPED))
    assert list(checked["run_id"]) == ["row 1", "row 2", "row 3"]
    assert list(checked["status"]) == ["finished"] * 3
    assert not checked["simulated"].any()
    assert set(checked["accounting"]) == {"own"}
    assert "flops_per_token_fixed" not in checked


def test_a_run_id_may_be_a_number():
    assert list(check_table(pd.DataFrame(LOOPED).assign(run_id=[7, 8, 9]))["run_id"]) == ["7", "8", "9"]
    long = [1234567.0, 1234568.0, np.inf]  # numbers that 6 digits don't tell apart, and one that is no whole number
    assert list(check_table(pd.DataFrame(LOOPED).assign(run_id=long))["run_id"]) == ["1234567", "1234568", "inf"]


def test_compute_that_is_not_given_follows_from_the_budget_or_else_from_6nd_and_that_is_said():
    by_budget = check_runs(pd.DataFrame(DENSE))
    assert list(by_budget.frame["flops"]) == DENSE["budget"]
    assert by_budget.notes == ("There is no column `flops`: each run is taken to have spent its budget.",)
    by_size = check_runs(pd.DataFrame(DENSE).drop(columns="budget").assign(tokens=[4e9, 3e9, 9e9]))
    assert list(by_size.frame["flops"]) == [2.4e18, 3.6e18, 2.16e19]
    assert set(by_size.frame["accounting"]) == {"6ND"}
    assert by_size.notes == ("There is no column `flops`: compute is taken to be C = 6 N D.",)


def test_a_users_flops_are_never_replaced():
    own = check_runs(pd.DataFrame(DENSE).assign(flops=[1e18, 2e18, 3e18]))
    assert list(own.frame["flops"]) == [1e18, 2e18, 3e18]
    assert set(own.frame["accounting"]) == {"own"}
    assert own.notes == ()


def test_effective_parameters_have_two_names():
    frame = pd.DataFrame(LOOPED).assign(params_once=3e7, params_recurrent=1e7)
    assert list(law_data(check_table(frame))["effective_params"]) == [5e7, 7e7, 11e7]


def test_a_table_of_looped_models_is_none_of_dense_ones():
    assert not is_dense(check_table(simulate_table(recurrences=())))
    assert is_dense(check_table(pd.DataFrame(DENSE)))


def test_numbers_in_errors_are_plain():
    with pytest.raises(ValueError, match=r"row 2 has loss=-2\.9; correct the row or drop it") as caught:
        check_table(pd.DataFrame({**DENSE, "loss": np.array([3.0, -2.9, 3.1])}))
    assert "np." not in str(caught.value)
    with pytest.raises(ValueError, match=r"row 1 has loss=-1\.0, and 1 more row breaks this rule"):
        check_table(pd.DataFrame({**DENSE, "loss": [-1.0, -1.0, 3.1]}))


def test_mixed_experiments_are_refused_and_all_of_them_named():
    frame = pd.DataFrame({**DENSE, "experiment": [0, 1, 7]})
    with pytest.raises(ValueError, match=r"row 2 has experiment=1, and 1 more .*; choose one of 0, 1, 7 \(--experim"):
        check_table(frame)


def test_runs_of_several_sizes_that_all_loop_once_are_dense(table):
    """A sweep of fixed-depth models over widths, as isoloop writes it, has a law in N, and no µ that could vary."""
    once = table[table["mean_recurrence"] == 1]
    sizes = [once.assign(run_id=lambda t, n=n: t["run_id"] + f" {n}", effective_params_per_loop=n) for n in (1e6, 4e6)]
    checked = check_runs(pd.concat(sizes))
    assert is_dense(checked.frame)
    expected = [fixed + loop for part in sizes for fixed, loop in zip(*shape_of(part), strict=True)]
    assert checked.frame["params"].tolist() == expected
    assert any("read as dense models" in note for note in checked.notes)
    assert not any("loss_T" in name or name.startswith("flops_per") for name in checked.frame)
    assert check_runs(checked.frame).notes == ()
    # One size, or another number of loops beside, and they are looped models.
    assert not is_dense(check_runs(once).frame)
    assert not is_dense(check_runs(pd.concat([*sizes, table[table["mean_recurrence"] == 2]])).frame)


def shape_of(table):
    return table["effective_params_fixed"], table["effective_params_per_loop"]
