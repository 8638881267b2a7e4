"""The run table: one row per training run, in natural units. The one contract between the rooms.

Losses are nats per token, compute is FLOPs, tokens are counts; no unit depends on an option. Missing stays
missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from isoloop.fitting.cost import architecture_columns
from isoloop.fitting.tables.checks import implausible_losses

STATUSES = ("finished", "diverged", "failed")
ACCOUNTINGS = ("exact", "parcae-release")
LOSS_UNIT = "nats per token"
COST_TOLERANCE = 1e-3
"""Largest relative difference between `flops` and tokens x FLOPs per token."""

_LOSS_AT = re.compile(r"loss_T(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the run table.

    `measured` columns say what a run did, so they may be missing where the run diverged or failed.
    """

    name: str
    kind: Literal["text", "flag", "integer", "number"]
    meaning: str
    at_least: float = 0.0
    may_equal: bool = False
    required: bool = True
    measured: bool = False


COLUMNS: tuple[Column, ...] = (
    Column(name="run_id", kind="text", meaning="unique name of the run"),
    Column(name="status", kind="text", meaning="finished, diverged or failed"),
    Column(name="simulated", kind="flag", meaning="drawn from a law, not trained"),
    Column(name="accounting", kind="text", meaning="what FLOPs count: exact or parcae-release"),
    Column(name="seed", kind="integer", meaning="random seed of the run"),
    Column(name="mean_recurrence", kind="number", meaning="mean loops in training (mu)"),
    Column(name="backprop_depth", kind="number", meaning="loops with gradient", at_least=1, may_equal=True),
    Column(name="tokens", kind="number", meaning="training tokens (D)", measured=True),
    Column(name="flops", kind="number", meaning="training FLOPs really spent (C)", measured=True),
    Column(name="budget", kind="number", meaning="FLOPs asked for", required=False),
    Column(name="loss", kind="number", meaning="validation nats per token at T = mu", measured=True),
    Column(
        name="flops_per_token_fixed",
        kind="number",
        meaning="FLOPs per token outside the loop",
        may_equal=True,
    ),
    Column(
        name="flops_per_token_forward_loop", kind="number", meaning="FLOPs per token of a loop forward", may_equal=True
    ),
    Column(
        name="flops_per_token_backward_loop",
        kind="number",
        meaning="FLOPs per token of a loop backward",
        may_equal=True,
    ),
    Column(name="forward_loops", kind="number", meaning="mean loops run forward", measured=True),
    Column(name="backward_loops", kind="number", meaning="mean loops run backward", measured=True),
    Column(name="effective_params_fixed", kind="number", meaning="prelude + coda parameters", may_equal=True),
    Column(name="effective_params_per_loop", kind="number", meaning="parameters of the core", may_equal=True),
    Column(name="tokenizer", kind="text", meaning="what tokens and losses are counted in", required=False),
    Column(name="loss_unit", kind="text", meaning="unit of the losses: nats per token", required=False),
)
REQUIRED_COLUMNS: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.required)


def loss_column(recurrence: float) -> str:
    """Name of the column with the loss at test-time recurrence T: `loss_T8` for T = 8."""
    return f"loss_T{recurrence:g}"


def loss_columns(table: pd.DataFrame) -> dict[str, float]:
    """Columns `loss_T*` of a table with their recurrence T, by growing T."""
    found = {str(name): _LOSS_AT.fullmatch(str(name)) for name in table.columns}
    pairs = {name: float(match.group(1)) for name, match in found.items() if match}
    return dict(sorted(pairs.items(), key=lambda pair: pair[1]))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read and check a run table from a `.csv` or `.parquet` file.

    Raises ValueError where the file is missing, has another suffix or cannot be read, and as `check_table`
    does.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"a run table must be a file, but there is none at {path}; export the sweep's runs first")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"a run table must end in .csv or .parquet, but got {path.name}; convert or rename it")
    return check_table(read_frame(path, text=[column.name for column in COLUMNS if column.kind == "text"]))


def read_frame(path: Path, *, text: Sequence[str] = (), header: bool = False) -> pd.DataFrame:
    """The table in a `.csv` or `.parquet` file, unchecked; columns named in `text` are not taken for numbers.

    Of a long `.csv`, the `header` alone is read much sooner.

    Raises ValueError where the file cannot be read.
    """
    try:
        # The Python engine reads floats exactly as they were written.
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=dict.fromkeys(text, str), engine="python", nrows=0 if header else None)
        return pd.read_parquet(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError, OSError) as error:
        raise ValueError(f"a table must be a readable {path.suffix} file, but {path} is not: {error}") from error


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a checked copy of a run table: plain dtypes, a fresh index, unknown columns untouched.

    Raises ValueError with the rule, the column, row and value, and what to do, for every broken rule of the
    contract.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"a run table must have the columns {', '.join(REQUIRED_COLUMNS)}, but these are missing: "
            f"{', '.join(missing)}; add them, in natural units"
        )
    if table.columns.duplicated().any():
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"columns must be named once, but {twice!r} occurs more often; drop one of them")
    if len(table) == 0:
        raise ValueError("a run table must have at least one row, but got 0; run the sweep first")
    checked = table.reset_index(drop=True).copy()
    for column in COLUMNS:
        if column.name in checked.columns:
            checked[column.name] = _as_kind(checked, column.name, column.kind)
    for name in loss_columns(checked):
        checked[name] = _as_kind(checked, name, "number")
    _check_labels(checked)
    _check_numbers(checked)
    _check_losses(checked)
    _check_cost(checked)
    return checked


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
    """Losses at every measured test-time recurrence, in long form.

    One row per finished run and measured T: run_id, mean_recurrence, tokens, recurrence, loss. Empty where
    the table has no `loss_T*` columns.
    """
    columns = loss_columns(table)
    keys = ["run_id", "mean_recurrence", "tokens"]
    finished = finished_rows(table)
    parts = [
        finished[keys].assign(recurrence=recurrence, loss=finished[name])[finished[name].notna()]
        for name, recurrence in columns.items()
    ]
    if not parts or not sum(len(part) for part in parts):
        return pd.DataFrame({key: [] for key in [*keys, "recurrence", "loss"]})
    return pd.concat(parts, ignore_index=True)


test_time_losses.__test__ = False  # type: ignore[attr-defined]  # a public name that pytest would collect


def law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns that laws read, of the finished runs at T = mean recurrence: arrays of shape (rows,)."""
    return _with_architecture(finished_rows(table).assign(recurrence=lambda rows: rows["mean_recurrence"]), table)


def test_time_law_data(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns that laws read, one entry per finished run and measured T: arrays of shape (rows,).

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


def _as_kind(table: pd.DataFrame, name: str, kind: str) -> pd.Series:
    values = table[name]
    if kind == "text":
        _refuse_first(table, name, values.map(lambda v: not isinstance(v, str) or not v), "must be text")
        return values.astype(object)
    if kind == "flag":
        _refuse_first(table, name, values.map(lambda v: not isinstance(v, bool | np.bool_)), "must be True or False")
        return values.astype(bool)
    number = (int, float, np.integer, np.floating)
    wrong = values.map(
        lambda v: isinstance(v, bool | np.bool_) or not (v is None or v is pd.NA or isinstance(v, number))
    )
    _refuse_first(table, name, wrong, "must be a number")
    numbers = pd.to_numeric(values.where(values.notna(), np.nan)).astype(float)
    if kind == "integer":
        _refuse_first(table, name, ~(numbers == np.round(numbers)), "must be a whole number")
        return numbers.astype(np.int64)
    return numbers


def _check_labels(table: pd.DataFrame) -> None:
    _refuse_first(table, "run_id", table["run_id"].duplicated(), "must be unique", "keep one row per run")
    _refuse_first(table, "status", ~table["status"].isin(STATUSES), f"must be one of {', '.join(STATUSES)}")
    unknown = ~table["accounting"].isin(ACCOUNTINGS)
    _refuse_first(table, "accounting", unknown, f"must be one of {', '.join(ACCOUNTINGS)}")
    mixed = table["accounting"] != table["accounting"].iloc[0]
    rule = f"must be one value per table, and the first row has {table['accounting'].iloc[0]!r}"
    _refuse_first(table, "accounting", mixed, rule, "fit each accounting apart: their exponents differ")
    for name in ("tokenizer", "loss_unit"):
        if name in table:
            mixed = table[name] != table[name].iloc[0]
            rule = f"must be one value per table, and the first row has {table[name].iloc[0]!r}"
            _refuse_first(table, name, mixed, rule, "fit each apart: their losses can't be compared")
    if "loss_unit" in table:
        other = table["loss_unit"] != LOSS_UNIT
        advice = "convert the losses: nats = bits per byte x ln 2 x bytes per token"
        _refuse_first(table, "loss_unit", other, f"must be {LOSS_UNIT!r}", advice)
    mixed = table["simulated"] != table["simulated"].iloc[0]
    rule = f"must be one value per table, and the first row has {table['simulated'].iloc[0]}"
    _refuse_first(table, "simulated", mixed, rule, "never fit simulated and measured runs together")


def _check_numbers(table: pd.DataFrame) -> None:
    unfinished = table["status"] != "finished"
    for column in COLUMNS:
        if column.kind != "number" or column.name not in table.columns:
            continue
        values = table[column.name]
        bound = f"{'at least' if column.may_equal else 'greater than'} {column.at_least:g}"
        low = values < column.at_least if column.may_equal else values <= column.at_least
        bad = low | np.isinf(values)
        if column.required:
            bad |= values.isna() & ~(unfinished & column.measured)
        if column.name == "loss":
            bad &= ~values.isna()  # `_check_losses` has a clearer word for these
        _refuse_first(table, column.name, bad, f"must be finite and {bound} ({column.meaning})")


def _check_losses(table: pd.DataFrame) -> None:
    finished = table["status"] == "finished"
    _refuse_first(
        table,
        "loss",
        finished & table["loss"].isna(),
        "must be there for every finished run",
        "call the run failed",
    )
    _refuse_first(
        table,
        "loss",
        ~finished & table["loss"].notna(),
        "must be missing unless the run finished",
        "leave it empty",
    )
    for name, recurrence in loss_columns(table).items():
        if recurrence < 1:
            raise ValueError(f"a loop must run at least once, but the table has a column {name!r}; drop it")
        bad = (table[name] <= 0) | np.isinf(table[name])
        _refuse_first(table, name, bad, "must be finite and greater than 0, or missing where not measured")


def _check_cost(table: pd.DataFrame) -> None:
    more = table["backward_loops"] > table["forward_loops"] * (1 + 1e-9)
    _refuse_first(table, "backward_loops", more, "must not be above forward_loops")
    per_token = (
        table["flops_per_token_fixed"]
        + table["flops_per_token_forward_loop"] * table["forward_loops"]
        + table["flops_per_token_backward_loop"] * table["backward_loops"]
    )
    expected = table["tokens"] * per_token
    off = (table["flops"] / expected - 1).abs() > COST_TOLERANCE
    rule = "must equal tokens x (fixed + forward x forward_loops + backward x backward_loops) within 0.1%"
    _refuse_first(
        table,
        "flops",
        off,
        rule,
        "recount the compute with one accounting",
        lambda row: f"the sum is {expected[row]:.6g}",
    )


def _refuse_first(
    table: pd.DataFrame,
    name: str,
    bad: pd.Series,
    rule: str,
    advice: str = "correct the row or drop it",
    detail: Callable[[int], str] | None = None,
) -> None:
    """Raise ValueError about the first bad row, if there is one."""
    rows = np.flatnonzero(bad.to_numpy(dtype=bool))
    if not len(rows):
        return
    row = int(rows[0])
    value = table[name].iloc[row]
    shown = repr(value) if isinstance(value, str) else str(value)
    others = len(rows) - 1
    more = f", and {others} more {'row breaks' if others == 1 else 'rows break'} this rule" if others else ""
    said = f" ({detail(row)})" if detail else ""
    raise ValueError(
        f"`{name}` {rule}, but run {table['run_id'].iloc[row]!r} (row {row}) has {name}={shown}{said}{more}; {advice}"
    )
