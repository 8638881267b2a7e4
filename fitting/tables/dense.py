"""Tables of dense models: parameters, tokens and loss of each run, as public isoFLOP tables hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from isoloop.fitting.tables.runs import read_frame

REQUIRED = ("params", "tokens", "loss")
_MARKS = {"True": True, "true": True, "1": True, "1.0": True, "False": False, "false": False, "0": False, "0.0": False}
ONE_VALUE = ("experiment", "tokenizer", "loss_unit", "accounting")
"""Columns that, where a table has them, must hold one value throughout: losses across them are not comparable."""


def is_point_table(path: str | Path) -> bool:
    """Whether a `.csv` or `.parquet` file is a table of dense models (params, tokens) rather than a run table (run_id).

    It may still lack a column: `read_points` says so.
    """
    names = _read(Path(path), header=True).columns
    return {"params", "tokens"} <= set(names) and "run_id" not in names


def read_points(path: str | Path, *, experiment: str | None = None, outliers: bool = True) -> pd.DataFrame:
    """Read and check a table of dense models from a `.csv` or `.parquet` file.

    `experiment` keeps the rows of that value, as text, in the column `experiment`; without `outliers`, rows marked in
    the column `outlier` are left out (True or False, 1 or 0). Raises ValueError as `check_points` does, where the asked
    column or value is missing, and for any other mark.
    """
    frame = _read(Path(path))
    if experiment is not None:
        values = frame["experiment"].map(str) if "experiment" in frame else pd.Series(dtype=str)
        known = sorted(values.unique())
        if str(experiment) not in known:
            there = f"it has {', '.join(known)}" if known else "the table has no such column"
            raise ValueError(f"an experiment must be in the column `experiment`, but got {experiment!r}; {there}")
        frame = frame[values == str(experiment)]
    if not outliers:
        if "outlier" not in frame:
            raise ValueError("leaving outliers out needs the column `outlier`, but the table has none; keep them")
        frame = frame[~_marked(frame["outlier"])]
    return check_points(frame)


def check_points(table: pd.DataFrame) -> pd.DataFrame:
    """A checked copy of a table with the columns params, tokens, loss (nats per token) and, if known, budget (FLOPs).

    Raises ValueError for missing columns, values that are not positive and finite numbers, no rows at all, or rows
    whose losses can't be compared (several experiments, tokenizers, units or FLOP accountings).
    """
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise ValueError(f"a table of dense models needs {', '.join(REQUIRED)}, but {', '.join(missing)} is missing")
    if not len(table):
        raise ValueError("a table of dense models must have at least one row, but got 0")
    checked = table.reset_index(drop=True).copy()
    for name in ONE_VALUE:
        found = sorted(map(str, checked[name].unique())) if name in checked else []
        if len(found) > 1:
            raise ValueError(
                f"`{name}` must be one value per table, but got {', '.join(found)}; fit each apart (--experiment "
                "picks one), since their losses can't be compared"
            )
    for name in (*REQUIRED, "budget"):
        if name not in checked:
            continue
        numbers = pd.to_numeric(checked[name], errors="coerce").astype(float)
        bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)).to_numpy())
        if len(bad):
            value = checked[name].iloc[bad[0]]
            raise ValueError(
                f"`{name}` must be a positive and finite number, but row {bad[0]} has "
                f"{repr(value) if isinstance(value, str) else value}{_more(len(bad) - 1)}; correct or drop it"
            )
        checked[name] = numbers
    return checked


def point_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The columns that laws read, of a checked table: arrays of shape (rows,)."""
    data = {name: table[name].to_numpy(dtype=float) for name in REQUIRED}
    data["run_id"] = np.array([f"row {index}" for index in range(len(table))])
    if "budget" in table:
        data["budget"] = table["budget"].to_numpy(dtype=float)
    return data


def _marked(marks: pd.Series) -> np.ndarray:
    """The column `outlier` as flags (rows,); a row is named by its place in the file, from 0 on."""
    flags = marks.map(lambda mark: _MARKS.get(str(mark).strip()))
    unclear = marks[flags.isna()]
    if len(unclear):
        value = unclear.iloc[0]
        got = "nothing" if pd.isna(value) else repr(value) if isinstance(value, str) else str(value)
        raise ValueError(
            f"`outlier` must be True or False (or 1 or 0), but row {unclear.index[0]} has {got}"
            f"{_more(len(unclear) - 1)}; fill it in, or keep outliers"
        )
    return flags.to_numpy(dtype=bool)


def _more(count: int) -> str:
    if not count:
        return ""
    return f", and {count} more {'row breaks' if count == 1 else 'rows break'} this rule"


def _read(path: Path, *, header: bool = False) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"a table must be a file, but there is none at {path}")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"a table must end in .csv or .parquet, but got {path.name}; convert or rename it")
    return read_frame(path, text=ONE_VALUE, header=header)
