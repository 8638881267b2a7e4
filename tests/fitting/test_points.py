"""Tables of dense models: read, picked from, refused."""

import pandas as pd
import pytest

from fitting import is_point_table, point_data, read_points, simulate_table

ROWS = {"params": [1e8, 2e8, 4e8], "tokens": [4e9, 2e9, 1e9], "loss": [3.0, 2.9, 3.1], "budget": [2.4e18] * 3}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"points{suffix}"
    frame = pd.DataFrame({**ROWS, "experiment": "a", "outlier": [True, False, False]})
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert is_point_table(path)
    assert list(read_points(path)["loss"]) == ROWS["loss"]
    kept = point_data(read_points(path, experiment="a", outliers=False))
    assert list(kept["loss"]) == [2.9, 3.1]
    assert list(kept["run_id"]) == ["row 0", "row 1"]


def test_a_run_table_is_none_of_dense_models(tmp_path):
    simulate_table(recurrences=()).to_csv(tmp_path / "runs.csv", index=False)
    assert not is_point_table(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("columns", "asked", "words"),
    [
        ({"experiment": ["a", "b", "b"]}, {"experiment": "c"}, "but got 'c'; it has a, b"),
        ({}, {"experiment": "c"}, "the table has no such column"),
        ({}, {"outliers": False}, "needs the column `outlier`"),
        ({"loss": ["3", "x", "3"]}, {}, "`loss` must be a positive and finite number, but row 1 has 'x'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, columns, asked, words):
    pd.DataFrame({**ROWS, **columns}).to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(ValueError, match=words):
        read_points(tmp_path / "points.csv", **asked)


def test_missing_columns_files_and_rows_are_refused(tmp_path):
    pd.DataFrame(ROWS).drop(columns="tokens").to_csv(tmp_path / "two.csv", index=False)
    pd.DataFrame(ROWS).head(0).to_csv(tmp_path / "none.csv", index=False)
    for name, words in (
        ("two.csv", "tokens is missing"),
        ("none.csv", "at least one row"),
        ("no.csv", "there is none at"),
        ("no.txt", "there is none at"),
    ):
        with pytest.raises(ValueError, match=words):
            read_points(tmp_path / name)
