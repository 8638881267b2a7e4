"""Tables of dense models: read, picked from, refused."""

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import check_table, is_dense, law_data, read_runs, read_table, simulate_table

ROWS = {"params": [1e8, 2e8, 4e8], "tokens": [4e9, 2e9, 1e9], "loss": [3.0, 2.9, 3.1], "budget": [2.4e18] * 3}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"points{suffix}"
    frame = pd.DataFrame({**ROWS, "experiment": "a", "outlier": [True, False, False]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert is_dense(read_table(path))
    assert list(read_table(path)["loss"]) == ROWS["loss"]
    kept = law_data(read_runs(path, experiment="a", outliers=False).frame)
    assert list(kept["loss"]) == [2.9, 3.1]
    assert list(kept["run_id"]) == ["row 1", "row 2"]


def test_a_table_of_looped_models_is_none_of_dense_ones():
    assert not is_dense(check_table(simulate_table(recurrences=())))


@pytest.mark.parametrize(
    ("columns", "arguments", "words"),
    [
        ({"experiment": ["a", "b", "b"]}, {"experiment": "c"}, "but got 'c'; choose one of a, b"),
        ({}, {"experiment": "c"}, "the table has no such column"),
        ({}, {"outliers": False}, "needs the column `outlier`"),
        ({"loss": ["3", "x", "3"]}, {}, "`loss` must be a number, but row 1 has loss='3'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, columns, arguments, words):
    pd.DataFrame({**ROWS, **columns}).to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(ValueError, match=words):
        read_runs(tmp_path / "points.csv", **arguments)


def test_missing_columns_files_and_rows_are_refused(tmp_path):
    pd.DataFrame(ROWS).drop(columns="tokens").to_csv(tmp_path / "two.csv", index=False)
    pd.DataFrame(ROWS).head(0).to_csv(tmp_path / "none.csv", index=False)
    for name, words in (
        ("two.csv", r"lacks tokens \(training tokens \(D\)\)"),
        ("none.csv", "at least one row"),
        ("no.csv", "there is none at"),
        ("no.txt", "there is none at"),
    ):
        with pytest.raises(ValueError, match=words):
            read_table(tmp_path / name)


def written(tmp_path, **columns):
    pd.DataFrame({**ROWS, **columns}).to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "points.csv"


@pytest.mark.parametrize(
    "marks", [[True, False, False], ["true", "false", "false"], [1, 0, 0], ["True", "0", "false"], [1.0, 0.0, 0.0]]
)
def test_outliers_are_marked_in_any_plain_way(tmp_path, marks):
    assert list(read_runs(written(tmp_path, outlier=marks), outliers=False).frame["loss"]) == [2.9, 3.1]


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ([True, None, False], r"`outlier` must be True or False \(or 1 or 0\), but row 2 has nothing; fill"),
        (["no", "no", "yes"], "but row 1 has 'no', and 2 more rows break this rule"),
        ([0, 2, 3], "but row 2 has 2, and 1 more row breaks this rule"),
    ],
)
def test_unclear_marks_are_refused(tmp_path, marks, words):
    path = written(tmp_path, outlier=marks)
    with pytest.raises(ValueError, match=words):
        read_runs(path, outliers=False)
    assert len(read_table(path)) == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_experiments_in_numbers_are_compared_as_text(tmp_path, suffix):
    path, frame = tmp_path / f"points{suffix}", pd.DataFrame({**ROWS, "experiment": [0, 1, 1]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert list(read_runs(path, experiment="1").frame["loss"]) == [2.9, 3.1]
    with pytest.raises(ValueError, match="but got '2'; choose one of 0, 1"):
        read_runs(path, experiment="2")


def test_a_dense_table_without_losses_gets_the_error_of_one():
    with pytest.raises(ValueError, match=r"for dense models params, tokens, loss, but .* lacks loss"):
        check_table(pd.DataFrame(ROWS).drop(columns="loss"))


def test_numbers_in_errors_are_plain():
    with pytest.raises(ValueError, match=r"row 2 has loss=-2\.9; correct the row or drop it") as caught:
        check_table(pd.DataFrame({**ROWS, "loss": np.array([3.0, -2.9, 3.1])}))
    assert "np." not in str(caught.value)
    with pytest.raises(ValueError, match=r"row 1 has loss=-1\.0, and 1 more row breaks this rule"):
        check_table(pd.DataFrame({**ROWS, "loss": [-1.0, -1.0, 3.1]}))
