"""Run tables from files, and the columns of a checked run table that fits read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from isoloop.fitting.cost import architecture_columns
from isoloop.fitting.tables.checks import implausible_losses
from isoloop.fitting.tables.contract import COLUMNS, check_table, loss_columns


def read_table(path: str | Path) -> pd.DataFrame:
    """Read and check a run table from a `.csv` or `.parquet` file.

    Raises ValueError if the file is missing, has another suffix or cannot be read, and as `check_table` does.
    """
    return check_table(read_frame(Path(path), text=[column.name for column in COLUMNS if column.kind == "text"]))


def read_frame(path: Path, *, text: Sequence[str] = (), header: bool = False) -> pd.DataFrame:
    """Read the table in a `.csv` or `.parquet` file, unchecked; the columns named in `text` stay text.

    With `header`, only the header of a `.csv` file is read, which is much faster for a long one.

    Raises ValueError if the file is missing, has another suffix or cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"a table must be a file, but there is none at {path}; check the path")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"a table must end in .csv or .parquet, but got {path.name}; convert or rename it")
    try:
        # The Python engine reads floats exactly as they were written.
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=dict.fromkeys(text, str), engine="python", nrows=0 if header else None)
        return pd.read_parquet(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError, OSError) as error:
        raise ValueError(
            f"a table must be a readable {path.suffix} file, but {path} is not: {error}; write it again"
        ) from error


def finished_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be fitted, index renewed: status `finished`, and no implausible loss."""
    rows = table[table["status"] == "finished"]
    return rows[~implausible_rows(rows)].reset_index(drop=True)


def implausible_rows(table: pd.DataFrame) -> np.ndarray:
    """Return a mask (rows,) of the finished runs whose loss is implausible beside those of their budget.

    See `checks.implausible_losses`.
    """
    finished = (table["status"] == "finished").to_numpy()
    losses = table["loss"].to_numpy(dtype=float)
    budgets = table["budget"].to_numpy(dtype=float) if "budget" in table else np.full(len(table), np.nan)
    mask = np.zeros(len(table), dtype=bool)
    mask[finished] = implausible_losses(losses[finished], budgets[finished])
    return mask


def test_time_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return the losses at every measured test-time recurrence, in long form.

    One row per finished run and measured T: run_id, mean_recurrence, tokens, recurrence, loss. Empty if the table has
    no `loss_T*` columns.
    """
    keys = ["run_id", "mean_recurrence", "tokens"]
    finished = finished_rows(table)
    parts = [
        finished[keys].assign(recurrence=recurrence, loss=finished[name])[finished[name].notna()]
        for name, recurrence in loss_columns(table).items()
    ]
    if not parts or not sum(len(part) for part in parts):
        return pd.DataFrame({key: [] for key in [*keys, "recurrence", "loss"]})
    return pd.concat(parts, ignore_index=True)


test_time_losses.__test__ = False  # type: ignore[attr-defined]  # a public name that pytest would collect


def law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns that laws read, of the finished runs at T = mean recurrence: arrays of shape (rows,)."""
    return _with_architecture(finished_rows(table).assign(recurrence=lambda rows: rows["mean_recurrence"]), table)


def test_time_law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns that laws read, one entry per finished run and measured T: arrays of shape (rows,).

    `loss_at_mean` is the run's loss at T = mean recurrence.
    """
    rows = test_time_losses(table)
    data = _with_architecture(rows, table)
    data["loss_at_mean"] = table.set_index("run_id")["loss"].reindex(rows["run_id"]).to_numpy(dtype=float)
    return data


test_time_law_data.__test__ = False  # type: ignore[attr-defined]  # a public name that pytest would collect


def _with_architecture(rows: pd.DataFrame, table: pd.DataFrame) -> dict[str, np.ndarray]:
    by_run = table.set_index("run_id")
    fixed = by_run["effective_params_fixed"].reindex(rows["run_id"]).to_numpy(dtype=float)
    per_loop = by_run["effective_params_per_loop"].reindex(rows["run_id"]).to_numpy(dtype=float)
    data = architecture_columns(rows["mean_recurrence"].to_numpy(dtype=float), fixed, per_loop)
    data |= {name: rows[name].to_numpy(dtype=float) for name in ("tokens", "recurrence", "loss")}
    data["run_id"] = rows["run_id"].to_numpy(dtype=str)
    if "budget" in table:
        data["budget"] = by_run["budget"].reindex(rows["run_id"]).to_numpy(dtype=float)
    return data
