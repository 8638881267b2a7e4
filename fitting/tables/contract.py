"""The contract of the run table: one row per training run, in natural units, between trainer, fitting and sweeps.

Losses are nats per token, compute is FLOPs, tokens are counts; no unit depends on an option. Missing stays missing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

STATUSES = ("finished", "diverged", "failed")
ACCOUNTINGS = ("exact", "parcae-release")
LOSS_UNIT = "nats per token"
COST_TOLERANCE = 1e-3
"""Largest relative difference between `flops` and tokens x FLOPs per token."""

_LOSS_AT = re.compile(r"loss_T(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class TableColumn:
    """One column of the run table; numbers must be greater than `lower`, or equal to it if `lower_allowed`.

    `measured` columns describe what a run did, so they may be missing if the run diverged or failed.
    """

    name: str
    kind: Literal["text", "flag", "integer", "number"]
    meaning: str
    lower: float = 0.0
    lower_allowed: bool = False
    required: bool = True
    measured: bool = False


COLUMNS: tuple[TableColumn, ...] = (
    TableColumn("run_id", "text", "unique name of the run"),
    TableColumn("status", "text", "finished, diverged or failed"),
    TableColumn("simulated", "flag", "drawn from a law, not trained"),
    TableColumn("accounting", "text", "what FLOPs count: exact or parcae-release"),
    TableColumn("seed", "integer", "random seed of the run"),
    TableColumn("mean_recurrence", "number", "mean loops in training (mu)"),
    TableColumn("backprop_depth", "number", "loops with gradient", lower=1, lower_allowed=True),
    TableColumn("tokens", "number", "training tokens (D)", measured=True),
    TableColumn("flops", "number", "training FLOPs really spent (C)", measured=True),
    TableColumn("budget", "number", "planned FLOPs", required=False),
    TableColumn("loss", "number", "validation nats per token at T = mu", measured=True),
    TableColumn("flops_per_token_fixed", "number", "FLOPs per token outside the loop", lower_allowed=True),
    TableColumn("flops_per_token_forward_loop", "number", "FLOPs per token of a loop forward", lower_allowed=True),
    TableColumn("flops_per_token_backward_loop", "number", "FLOPs per token of a loop backward", lower_allowed=True),
    TableColumn("forward_loops", "number", "mean loops run forward", measured=True),
    TableColumn("backward_loops", "number", "mean loops run backward", measured=True),
    TableColumn("effective_params_fixed", "number", "prelude + coda parameters", lower_allowed=True),
    TableColumn("effective_params_per_loop", "number", "parameters of the core", lower_allowed=True),
    TableColumn("tokenizer", "text", "tokenizer that tokens and losses are counted in", required=False),
    TableColumn("loss_unit", "text", "unit of the losses: nats per token", required=False),
)
REQUIRED_COLUMNS: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.required)


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """A run table: `frame` with a row per run, and `notes`, sentences about what was guessed in reading it."""

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def loss_column(recurrence: float) -> str:
    """Return the name of the column with the loss at test-time recurrence T: `loss_T8` for T = 8."""
    return f"loss_T{recurrence:g}"


def loss_columns(table: pd.DataFrame) -> dict[str, float]:
    """Return the columns `loss_T*` of a table with their recurrence T, by growing T."""
    matches = {str(name): _LOSS_AT.fullmatch(str(name)) for name in table.columns}
    recurrences = {name: float(match.group(1)) for name, match in matches.items() if match}
    return dict(sorted(recurrences.items(), key=lambda pair: pair[1]))


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a checked copy of a run table: plain dtypes, a fresh index, unknown columns untouched.

    Raises ValueError for the first broken rule of the contract, with the rule, the column, row and value, and what to
    do.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"a run table must have the columns {', '.join(REQUIRED_COLUMNS)}, but these are missing: "
            f"{', '.join(missing)}; add them, in natural units"
        )
    if table.columns.duplicated().any():
        repeated = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"columns must be named once, but {repeated!r} occurs more often; drop one of them")
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


def _as_kind(table: pd.DataFrame, name: str, kind: str) -> pd.Series:
    """Return a column as its kind. Raises ValueError for the first value of another kind."""
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
    for name, labels in (("status", STATUSES), ("accounting", ACCOUNTINGS)):
        _refuse_first(table, name, ~table[name].isin(labels), f"must be one of {', '.join(labels)}")
    for name, advice in (
        ("accounting", "fit each accounting separately: their exponents differ"),
        ("tokenizer", "fit each tokenizer separately: their losses can't be compared"),
        ("loss_unit", "convert all losses to nats per token"),
        ("simulated", "never fit simulated and measured runs together"),
    ):
        if name in table:
            first = table[name].iloc[0]
            rule = f"must be one value per table, and the first row has {shown(first)}"
            _refuse_first(table, name, table[name] != first, rule, advice)
    if "loss_unit" in table:
        advice = "convert the losses: nats = bits per byte x ln 2 x bytes per token"
        _refuse_first(table, "loss_unit", table["loss_unit"] != LOSS_UNIT, f"must be {LOSS_UNIT!r}", advice)


def _check_numbers(table: pd.DataFrame) -> None:
    unfinished = table["status"] != "finished"
    for column in COLUMNS:
        if column.kind != "number" or column.name not in table.columns:
            continue
        values = table[column.name]
        bound = f"{'at least' if column.lower_allowed else 'greater than'} {column.lower:g}"
        low = values < column.lower if column.lower_allowed else values <= column.lower
        bad = low | np.isinf(values)
        if column.required:
            bad |= values.isna() & ~(unfinished & column.measured)
        if column.name == "loss":
            bad &= ~values.isna()  # `_check_losses` has a clearer message for these
        _refuse_first(table, column.name, bad, f"must be finite and {bound} ({column.meaning})")


def _check_losses(table: pd.DataFrame) -> None:
    finished, missing = table["status"] == "finished", table["loss"].isna()
    _refuse_first(
        table,
        "loss",
        finished & missing,
        "must be given for every finished run",
        "fill it in, or set the run's status to diverged or failed",
    )
    _refuse_first(table, "loss", ~finished & ~missing, "must be missing unless the run finished", "leave it empty")
    for name, recurrence in loss_columns(table).items():
        if recurrence < 1:
            raise ValueError(f"a loop must run at least once, but the table has a column {name!r}; drop it")
        bad = (table[name] <= 0) | np.isinf(table[name])
        _refuse_first(table, name, bad, "must be finite and greater than 0, or missing where not measured")


def _check_cost(table: pd.DataFrame) -> None:
    more = table["backward_loops"] > table["forward_loops"] * (1 + 1e-9)
    _refuse_first(table, "backward_loops", more, "must not be above forward_loops")
    expected = table["tokens"] * (
        table["flops_per_token_fixed"]
        + table["flops_per_token_forward_loop"] * table["forward_loops"]
        + table["flops_per_token_backward_loop"] * table["backward_loops"]
    )
    wrong = (table["flops"] / expected - 1).abs() > COST_TOLERANCE
    rule = "must equal tokens x (fixed + forward x forward_loops + backward x backward_loops) within 0.1%"
    details = [f" (the sum is {flops:.6g})" for flops in expected]
    _refuse_first(table, "flops", wrong, rule, "recount the compute with one accounting", details)


def _refuse_first(
    table: pd.DataFrame,
    name: str,
    bad: pd.Series,
    rule: str,
    advice: str = "correct the row or drop it",
    details: Sequence[str] | None = None,
) -> None:
    """Raise ValueError for the first bad row, if there is one; `details` (rows,) follow the row's value."""
    rows = np.flatnonzero(bad.to_numpy(dtype=bool))
    if not len(rows):
        return
    row = int(rows[0])
    raise ValueError(
        f"`{name}` {rule}, but run {table['run_id'].iloc[row]!r} (row {row}) has {name}={shown(table[name].iloc[row])}"
        f"{details[row] if details else ''}{more_rows(len(rows) - 1)}; {advice}"
    )


def shown(value: Any) -> str:
    """Return a value of a table as it stands in a message: text in quotes, numbers plain."""
    return repr(value) if isinstance(value, str) else str(value)


def more_rows(count: int) -> str:
    """Return the part of a message that counts further rows with the same fault."""
    if not count:
        return ""
    return f", and {count} more {'row breaks' if count == 1 else 'rows break'} this rule"
