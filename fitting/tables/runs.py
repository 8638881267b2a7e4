"""Run tables from files, and the columns of a checked run table that fits read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from isoloop.fitting.cost import architecture_columns
from isoloop.fitting.tables.best_loss import with_best_losses
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.checks import implausible_losses
from isoloop.fitting.tables.contract import (
    RunTable,
    check_runs,
    is_dense,
    loss_columns,
    more_rows,
    shown,
)
from isoloop.fitting.tables.curves import blown_up_losses
from isoloop.fitting.tables.mapping import ColumnSource, as_flag, map_table
from isoloop.fitting.tables.mixed_losses import loss_mixture
from isoloop.fitting.tables.reading import read_raw
from isoloop.fitting.tables.repetition import unique_tokens_of
from isoloop.fitting.tables.trend import size_of


def read_table(path: str | Path) -> pd.DataFrame:
    """Return the frame of `read_runs`."""
    return read_runs(path).frame


def read_runs(
    path: str | Path,
    *,
    columns: Mapping[str, ColumnSource] | None = None,
    experiment: str | None = None,
    outliers: bool = True,
    budget_tolerance: float = SAME_BUDGET,
) -> RunTable:
    """Read and check the run table in a file of any kind that `read_raw` reads.

    `columns` are the sources of our columns, where they can't be found by name; see `runs_of` for the other arguments.

    Raises ValueError as `read_raw`, `map_table` and `runs_of` do.
    """
    mapped = map_table(read_raw(path), columns)
    return runs_of(mapped, experiment=experiment, outliers=outliers, budget_tolerance=budget_tolerance)


def runs_of(
    mapped: RunTable, *, experiment: str | None = None, outliers: bool = True, budget_tolerance: float = SAME_BUDGET
) -> RunTable:
    """Return the checked run table of a table that has our columns.

    `experiment` keeps the rows with that value in the column `experiment`; without `outliers`, rows that the column
    `outlier` marks are left out. Models that all have one number of loops, but several of params, are dense ones.

    Raises ValueError as `select_rows` and `check_runs` do.
    """
    frame = select_rows(mapped.frame, experiment=experiment, outliers=outliers)
    notes = list(mapped.notes)
    if "params" in frame and "mean_recurrence" in frame and "flops_per_token_fixed" not in frame:
        loops = frame["mean_recurrence"].unique()
        if len(loops) == 1 and frame["params"].nunique() > 1:
            frame = frame.drop(columns="mean_recurrence")
            same = "No run has its loops" if pd.isna(loops[0]) else f"The number of loops is {loops[0]:g} in all runs"
            notes.append(f"{same}, and params differ: the models are taken for dense ones.")
    checked = check_runs(frame, budget_tolerance=budget_tolerance)
    return RunTable(frame=checked.frame, notes=(*notes, *checked.notes))


def select_rows(table: pd.DataFrame, *, experiment: str | None = None, outliers: bool = True) -> pd.DataFrame:
    """Return the rows of one experiment, and without `outliers` those that the column `outlier` does not mark.

    Raises ValueError if the table lacks the experiment or the column, for a mark that is no flag, and if nothing is
    left.
    """
    kept = table
    if experiment is not None:
        values = kept["experiment"].map(str) if "experiment" in kept else pd.Series(dtype=str)
        known = sorted(values.unique())
        if str(experiment) not in known:
            advice = f"choose one of {', '.join(known)}" if known else "the table has no such column, so leave it out"
            raise ValueError(f"an experiment must be in the column `experiment`, but got {experiment!r}; {advice}")
        kept = kept[values == str(experiment)]
    if not outliers:
        if "outlier" not in kept:
            raise ValueError("leaving outliers out needs the column `outlier`, but the table has none; keep them")
        kept = kept[~_outlier_flags(kept["outlier"])]
        if kept.empty:
            raise ValueError("some runs must not be outliers, but the column `outlier` marks all of them; keep them")
    return kept


def finished_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be fitted, index renewed: status `finished`, and no implausible loss.

    Losses are those that fits read: see `best_loss`.
    """
    rows = with_best_losses(table[table["status"] == "finished"])
    return rows[~implausible_rows(rows)].reset_index(drop=True)


def implausible_rows(table: pd.DataFrame) -> np.ndarray:
    """Return a mask (rows,) of the finished runs whose loss is implausible beside those of their budget.

    See `checks.implausible_losses`. Losses in two units are compared in one, so that no run is left out for its unit.
    """
    table = with_best_losses(table)
    finished = (table["status"] == "finished").to_numpy()
    losses = table["loss"].to_numpy(dtype=float)
    budgets = table["budget"].to_numpy(dtype=float) if "budget" in table else np.full(len(table), np.nan)
    compared = budgets, size_of(table), table["tokens"].to_numpy(dtype=float)
    mask = np.zeros(len(table), dtype=bool)
    mask[finished] = implausible_losses(losses[finished], *(values[finished] for values in compared))
    mixture = loss_mixture(table) if mask.any() else None
    if mixture is not None:
        in_one_unit = mixture.losses[finished]
        mask[finished] = implausible_losses(in_one_unit, *(values[finished] for values in compared))
    return mask


def test_time_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return the losses at every measured test-time recurrence, in long form.

    One row per finished run and measured T: run_id, mean_recurrence, tokens, recurrence, loss. Losses that have blown
    up are left out: see `curves.blown_up_losses`. Empty if the table has no `loss_T*` columns.
    """
    keys = ["run_id", "mean_recurrence", "tokens"]
    finished = finished_rows(table)
    columns = {} if is_dense(table) else loss_columns(table)
    blown_up = blown_up_losses(finished) if columns else pd.DataFrame()
    parts = [
        finished[keys].assign(recurrence=recurrence, loss=finished[name])[finished[name].notna() & ~blown_up[name]]
        for name, recurrence in columns.items()
    ]
    if not parts or not sum(len(part) for part in parts):
        return pd.DataFrame({key: [] for key in [*keys, "recurrence", "loss"]})
    return pd.concat(parts, ignore_index=True)


test_time_losses.__test__ = False  # type: ignore[attr-defined]  # a public name that pytest would collect


def law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns that laws read, of the finished runs: arrays of shape (rows,).

    The losses of looped models are those at T = mean recurrence. Effective parameters and backprop depths are there if
    the table has them, and unique tokens (those that a run saw) if it has those of every run.
    """
    rows = finished_rows(table)
    unique = np.minimum(unique_tokens_of(rows), rows["tokens"].to_numpy(dtype=float))
    text = {} if np.isnan(unique).any() else {"unique_tokens": unique}
    if not is_dense(table):
        return _with_architecture(rows.assign(recurrence=rows["mean_recurrence"]), table) | text
    data = {name: rows[name].to_numpy(dtype=float) for name in ("params", "tokens", "flops", "loss")}
    return data | text | _labels_of(rows)


def test_time_law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns that laws read, one entry per finished run and measured T: arrays of shape (rows,).

    `loss_at_mean` is the run's loss at T = mean recurrence.
    """
    rows = test_time_losses(table)
    data = _with_architecture(rows, table)
    at_mean = with_best_losses(table).set_index("run_id")["loss"]
    data["loss_at_mean"] = at_mean.reindex(rows["run_id"]).to_numpy(dtype=float)
    return data


test_time_law_data.__test__ = False  # type: ignore[attr-defined]  # a public name that pytest would collect


def _with_architecture(rows: pd.DataFrame, table: pd.DataFrame) -> dict[str, np.ndarray]:
    by_run = table.set_index("run_id").reindex(rows["run_id"])
    data = {name: rows[name].to_numpy(dtype=float) for name in ("mean_recurrence", "tokens", "recurrence", "loss")}
    data["flops"] = by_run["flops"].to_numpy(dtype=float)
    if "backprop_depth" in table and by_run["backprop_depth"].notna().all():
        data["backprop_depth"] = by_run["backprop_depth"].to_numpy(dtype=float)
    if "effective_params_fixed" in table:
        fixed, per_loop = (
            by_run[name].to_numpy(dtype=float) for name in ("effective_params_fixed", "effective_params_per_loop")
        )
        data = architecture_columns(data["mean_recurrence"], fixed, per_loop) | data
    return data | _labels_of(rows.assign(budget=by_run["budget"].to_numpy()) if "budget" in table else rows)


def _labels_of(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the ids of the rows' runs and, where the table has them, their budgets."""
    labels = {"run_id": rows["run_id"].to_numpy(dtype=str)}
    return labels | ({"budget": rows["budget"].to_numpy(dtype=float)} if "budget" in rows else {})


def _outlier_flags(marks: pd.Series) -> np.ndarray:
    """Return the column `outlier` as flags (rows,). Raises ValueError, with the row's place in the file, for others."""
    flags = marks.map(lambda mark: as_flag(mark))
    unclear = marks[flags.isna()]
    if len(unclear):
        mark = unclear.iloc[0]
        raise ValueError(
            f"`outlier` must be True or False (or 1 or 0), but row {unclear.index[0] + 1} has "
            f"{'nothing' if pd.isna(mark) else shown(mark)}{more_rows(len(unclear) - 1)}; fill it in, or keep outliers"
        )
    return flags.to_numpy(dtype=bool)
