"""Tables of dense models: parameters, tokens and loss of each run, as in public isoFLOP tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import more_rows, shown
from isoloop.fitting.tables.runs import read_frame

POINT_COLUMNS = ("params", "tokens", "loss")
_FLAGS = {"True": True, "true": True, "1": True, "1.0": True, "False": False, "false": False, "0": False, "0.0": False}
SINGLE_VALUED = ("experiment", "tokenizer", "loss_unit", "accounting")
"""Columns that must hold one value throughout if a table has them, because losses across them are not comparable."""


def is_dense_table(path: str | Path) -> bool:
    """Return True if a `.csv` or `.parquet` file has params and tokens, as a table of dense models, and no run_id.

    It may still lack a column, for which `read_dense_table` raises ValueError.
    """
    names = read_frame(Path(path), text=SINGLE_VALUED, header=True).columns
    return {"params", "tokens"} <= set(names) and "run_id" not in names


def read_dense_table(path: str | Path, *, experiment: str | None = None, outliers: bool = True) -> pd.DataFrame:
    """Read and check a table of dense models from a `.csv` or `.parquet` file.

    `experiment` keeps the rows with that value, as text, in the column `experiment`; without `outliers`, rows marked in
    the column `outlier` are left out (True or False, 1 or 0). Raises ValueError as `check_dense_table` does, if the
    table lacks the experiment or the column, and for any other mark.
    """
    frame = read_frame(Path(path), text=SINGLE_VALUED)
    if experiment is not None:
        values = frame["experiment"].map(str) if "experiment" in frame else pd.Series(dtype=str)
        known = sorted(values.unique())
        if str(experiment) not in known:
            advice = f"choose one of {', '.join(known)}" if known else "the table has no such column, so leave it out"
            raise ValueError(f"an experiment must be in the column `experiment`, but got {experiment!r}; {advice}")
        frame = frame[values == str(experiment)]
    if not outliers:
        if "outlier" not in frame:
            raise ValueError("leaving outliers out needs the column `outlier`, but the table has none; keep them")
        frame = frame[~_outlier_flags(frame["outlier"])]
    return check_dense_table(frame)


def check_dense_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a checked copy of a table with columns params, tokens, loss (nats per token) and maybe budget (FLOPs).

    Raises ValueError for missing columns, values that are not positive and finite numbers, no rows at all, or rows
    whose losses can't be compared (several experiments, tokenizers, units or FLOP accountings).
    """
    missing = [name for name in POINT_COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"a table of dense models needs {', '.join(POINT_COLUMNS)}, but {', '.join(missing)} is missing; add it"
        )
    if not len(table):
        raise ValueError("a table of dense models must have at least one row, but got 0; add rows")
    checked = table.reset_index(drop=True).copy()
    for name in SINGLE_VALUED:
        values = sorted(map(str, checked[name].unique())) if name in checked else []
        if len(values) > 1:
            raise ValueError(
                f"`{name}` must be one value per table, but got {', '.join(values)}; fit each separately (--experiment "
                "selects one), since their losses can't be compared"
            )
    for name in (*POINT_COLUMNS, "budget"):
        if name not in checked:
            continue
        numbers = pd.to_numeric(checked[name], errors="coerce").astype(float)
        bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)).to_numpy())
        if len(bad):
            raise ValueError(
                f"`{name}` must be a positive and finite number, but row {bad[0]} has "
                f"{shown(checked[name].iloc[bad[0]])}{more_rows(len(bad) - 1)}; correct or drop it"
            )
        checked[name] = numbers
    return checked


def dense_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns of a checked table that laws read: arrays of shape (rows,)."""
    data = {name: table[name].to_numpy(dtype=float) for name in POINT_COLUMNS}
    data["run_id"] = np.array([f"row {index}" for index in range(len(table))])
    if "budget" in table:
        data["budget"] = table["budget"].to_numpy(dtype=float)
    return data


def _outlier_flags(marks: pd.Series) -> np.ndarray:
    """Return the column `outlier` as flags (rows,). Raises ValueError, with the row's place in the file, for others."""
    flags = marks.map(lambda mark: _FLAGS.get(str(mark).strip()))
    unclear = marks[flags.isna()]
    if len(unclear):
        mark = unclear.iloc[0]
        raise ValueError(
            f"`outlier` must be True or False (or 1 or 0), but row {unclear.index[0]} has "
            f"{'nothing' if pd.isna(mark) else shown(mark)}{more_rows(len(unclear) - 1)}; fill it in, or keep outliers"
        )
    return flags.to_numpy(dtype=bool)
