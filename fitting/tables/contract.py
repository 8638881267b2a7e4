"""The contract of the run table: one row per training run, in natural units, between trainer, fitting and sweeps.

Losses are nats per token, compute is FLOPs, tokens are counts; no unit depends on an option. Missing stays missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd

from isoloop.fitting.tables.budgets import SAME_BUDGET, clustered_budgets, joined_budgets

STATUSES = ("finished", "diverged", "failed")
ACCOUNTINGS = ("exact", "parcae-release")
"""Accountings of a cost model, whose columns the table then has."""
OWN_ACCOUNTING = "own"
"""FLOPs as their owner counted them, where a table has no cost model."""
DENSE_ACCOUNTING = "6ND"
"""6 FLOPs per parameter and token, where dense models have no FLOPs given (Kaplan et al. 2020, arXiv:2001.08361)."""
LOSS_UNIT = "nats per token"
EPOCHS_TOLERANCE = 0.1
"""Largest relative difference between `epochs` and tokens / unique_tokens, where they are over 1 apart."""
COST_TOLERANCE = 1e-3
"""Largest relative difference between `flops` and tokens x FLOPs per token."""

LARGEST_SEED = 2**63 - 1
INFINITE = 1e40
"""A loss from which on is infinite, as SQL stores keep infinity as 1.797e308; no other number is larger."""
_SMALLEST = 1e-20
"""Smallest number other than 0, in any unit: with it and `INFINITE`, products and ratios are numbers, too."""
_MOST_LOOPS = 1e6
_OTHER_NAMES = {"params_once": "effective_params_fixed", "params_recurrent": "effective_params_per_loop"}
_LOSS_AT = re.compile(r"loss_T(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class TableColumn:
    """One column of the run table; numbers must be greater than `lower`, or equal to it if `lower_allowed`, and at most
    `largest`.

    `measured` columns describe what a run did, so a value may be missing if the run diverged or failed; in `optional`
    columns it may always be missing. Columns of one `group` come together.
    """

    name: str
    kind: Literal["text", "flag", "integer", "number"]
    meaning: str
    lower: float = 0.0
    lower_allowed: bool = False
    measured: bool = False
    optional: bool = False
    group: str = ""
    largest: float = INFINITE


_COST, _SHAPE, _INFERENCE = "cost model", "effective parameters", "needs at inference"

COLUMNS: tuple[TableColumn, ...] = (
    TableColumn("run_id", "text", "unique name of the run"),
    TableColumn("status", "text", "finished, diverged or failed"),
    TableColumn("simulated", "flag", "drawn from a law, not trained"),
    TableColumn("accounting", "text", "what FLOPs count: exact, parcae-release, own or 6ND"),
    TableColumn("seed", "integer", "random seed of the run", optional=True),
    TableColumn("mean_recurrence", "number", "mean loops in training (mu) of a looped model", largest=_MOST_LOOPS),
    TableColumn("backprop_depth", "number", "loops with gradient", 1, True, optional=True, largest=_MOST_LOOPS),
    TableColumn("params", "number", "parameters (N) of a dense model"),
    TableColumn("tokens", "number", "training tokens (D)", measured=True),
    TableColumn("flops", "number", "training FLOPs really spent (C)", measured=True),
    TableColumn("budget", "number", "planned FLOPs", optional=True),
    TableColumn("loss", "number", "validation nats per token at T = mu", measured=True),
    TableColumn("flops_per_token_fixed", "number", "FLOPs per token outside the loop", 0, True, group=_COST),
    TableColumn("flops_per_token_forward_loop", "number", "FLOPs per token of a loop forward", 0, True, group=_COST),
    TableColumn("flops_per_token_backward_loop", "number", "FLOPs per token of a loop backward", 0, True, group=_COST),
    TableColumn("forward_loops", "number", "mean loops run forward", measured=True, group=_COST),
    TableColumn("backward_loops", "number", "mean loops run backward", measured=True, group=_COST),
    TableColumn("effective_params_fixed", "number", "prelude + coda parameters", 0, True, group=_SHAPE),
    TableColumn("effective_params_per_loop", "number", "parameters of the core", 0, True, group=_SHAPE),
    TableColumn("unique_tokens", "number", "distinct training tokens that the run could see", optional=True),
    TableColumn("epochs", "number", "passes over them: tokens / unique_tokens", optional=True),
    TableColumn("inference_weights", "number", "all parameters, embeddings too", optional=True, group=_INFERENCE),
    *(
        TableColumn(f"inference_{name}", "number", meaning, 0, True, optional=True, group=_INFERENCE)
        for name, meaning in (
            ("cache_per_token_fixed", "cached keys and values outside the loop"),
            ("cache_per_token_loop", "cached keys and values of a loop"),
            ("activations_per_token", "numbers held per token of a pass"),
        )
    ),
    TableColumn("best_loss", "number", "lowest validation loss of the run's evaluations at T = mu", optional=True),
    TableColumn("best_step", "number", "step of best_loss", optional=True),
    TableColumn("tokenizer", "text", "tokenizer that tokens and losses are counted in", optional=True),
    TableColumn("loss_unit", "text", "unit of the losses: nats per token", optional=True),
)
_BY_NAME = {column.name: column for column in COLUMNS}
LOOPED_COLUMNS: tuple[str, ...] = ("mean_recurrence", "tokens", "flops", "loss")
"""Columns that a table of looped models must have; `budget` may take the place of `flops`."""
DENSE_COLUMNS: tuple[str, ...] = ("params", "tokens", "loss")
"""Columns that a table of dense models must have."""


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """A run table: `frame` with a row per run, and `notes`, sentences about what was guessed in reading it."""

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def loss_column(recurrence: float) -> str:
    """Return the name of the column with the loss at test-time recurrence T: `loss_T8` for T = 8."""
    return f"loss_T{recurrence:g}"


def best_column(name: str) -> str:
    """Return the name of the column with the loss at a run's best step beside that at its last, `loss` or `loss_T8`."""
    return f"best_{name}"


def loss_columns(table: pd.DataFrame) -> dict[str, float]:
    """Return the columns `loss_T*` of a table with their recurrence T, by growing T."""
    matches = {str(name): _LOSS_AT.fullmatch(str(name)) for name in table.columns}
    recurrences = {name: float(match.group(1)) for name, match in matches.items() if match}
    return dict(sorted(recurrences.items(), key=lambda pair: pair[1]))


def is_dense(table: pd.DataFrame) -> bool:
    """Return True if a run table holds dense models, which differ in their parameters, instead of looped ones."""
    return "mean_recurrence" not in table


def check_table(table: pd.DataFrame, *, budget_tolerance: float = SAME_BUDGET) -> pd.DataFrame:
    """Return the frame of `check_runs`."""
    return check_runs(table, budget_tolerance=budget_tolerance).frame


def check_runs(table: pd.DataFrame, *, budget_tolerance: float = SAME_BUDGET) -> RunTable:
    """Return a checked copy of a run table: plain dtypes, a fresh index, and unknown columns untouched.

    A table needs `LOOPED_COLUMNS` or `DENSE_COLUMNS`; other columns of `COLUMNS` are filled in where they follow, and
    absent where they don't. Runs of several sizes that all loop once become dense models. Budgets within
    `budget_tolerance` of one another become one; without budgets, runs that spent nearly the same FLOPs get one. The
    notes name what was filled in or changed.

    Raises ValueError for the first broken rule of the contract, with the rule, the column, row and value, and what to
    do.
    """
    if not 0 <= budget_tolerance < 0.5:
        raise ValueError(f"a budget tolerance must be from 0 to 0.5, but got {budget_tolerance:g}; 0.01 is usual")
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"a run table must be a DataFrame, but got {type(table).__name__}; read a file with read_table(path)"
        )
    if table.columns.duplicated().any():
        repeated = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"columns must be named once, but {repeated!r} occurs more often; drop one of them")
    if len(table) == 0:
        raise ValueError("a run table must have at least one row, but got 0; finish a run, or loosen what filters it")
    checked = table.reset_index(drop=True).copy()
    checked = checked.rename(columns={a: b for a, b in _OTHER_NAMES.items() if b not in checked})
    check_presence(checked)
    _check_groups(checked)
    notes: list[str] = []
    # Types of the columns, and defaults of those that are absent
    for column in COLUMNS:
        if column.name in checked:
            checked[column.name] = _as_kind(checked, column)
    for name in loss_columns(checked):
        for each in {name, best_column(name)} & set(checked):
            checked[each] = _as_kind(checked, TableColumn(each, "number", "loss", optional=True))
    checked = _with_defaults(checked, notes)
    # The rules
    _check_labels(checked)
    _check_numbers(checked)
    _check_losses(checked)
    if {"epochs", "unique_tokens"} <= set(checked):
        _check_epochs(checked)
    if "flops_per_token_fixed" in checked:
        _check_cost(checked)
    checked = _one_loop_as_dense(checked, notes)
    return RunTable(frame=_with_budgets(checked, budget_tolerance, notes), notes=tuple(notes))


def check_presence(
    names: Iterable[str], *, own_names: Iterable[str] | None = None, counted_later: bool = False, hint: str = ""
) -> None:
    """Raise ValueError unless the columns `names` are enough for looped or dense models; the message ends in `hint`.

    `own_names` are the table's own names for its columns. FLOPs that are `counted_later` may be missing.
    """
    names = list(names)
    is_looped = "mean_recurrence" in names or "recurrence" in names
    needed = LOOPED_COLUMNS if is_looped or "params" not in names else DENSE_COLUMNS
    missing = [name for name in needed if name not in names and not (name == "flops" and "budget" in names)]
    if not missing or (counted_later and missing == ["flops"]):
        return
    listed = ", ".join(f"{name} ({_BY_NAME[name].meaning})" for name in missing)
    if missing[0] == "mean_recurrence" and not is_looped:
        listed += f", or instead of it params ({_BY_NAME['params'].meaning})"
    present = listed_names(names if own_names is None else own_names)
    raise ValueError(
        f"a run table must have the columns {', '.join(LOOPED_COLUMNS)}, or for dense models "
        f"{', '.join(DENSE_COLUMNS)}, but this one has {present} and lacks {listed}; add what is missing, or say "
        f"which column it is: --columns {missing[-1]}=NAME{hint}"
    )


def _check_groups(table: pd.DataFrame) -> None:
    """Raise ValueError unless a table has all columns of a group or none."""
    for group in (_COST, _SHAPE, _INFERENCE):
        names = [column.name for column in COLUMNS if column.group == group]
        absent = [name for name in names if name not in table]
        if absent and len(absent) < len(names):
            raise ValueError(
                f"the columns of the {group} come together ({', '.join(names)}), but {', '.join(absent)} "
                f"{'is' if len(absent) == 1 else 'are'} missing; add them, or leave all of them out: what needs them "
                "is then left out of the fit"
            )


def _with_defaults(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Return the table with the columns that follow from others, and with losses of unfinished runs left out."""
    filled = table
    if "run_id" not in filled:
        filled["run_id"] = [f"row {row}" for row in range(1, len(filled) + 1)]
    filled["loss"], infinite = _finite_losses(filled["loss"])
    for name, recurrence in loss_columns(filled).items():
        filled[name], infinite_here = _finite_losses(filled[name])
        if infinite_here.any():
            runs = filled["run_id"][infinite_here].tolist()
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            notes.append(f"The loss at T = {recurrence:g} is infinite, so not measured, in run {runs[0]!r}{more}.")
    if "status" not in filled:
        filled["status"] = np.where(filled["loss"].notna(), "finished", "diverged")
    filled.loc[infinite & (filled["status"] == "finished"), "status"] = "diverged"
    unfinished = filled["status"] != "finished"
    filled.loc[unfinished, "loss"] = np.nan
    if "simulated" not in filled:
        filled["simulated"] = False
    # Compute, as the table counts it
    accounting = OWN_ACCOUNTING
    if "flops" not in filled and "budget" in filled:
        _check_number(filled, replace(_BY_NAME["budget"], measured=True, optional=False))
        filled["flops"] = filled["budget"]
        notes.append("There is no column `flops`: each run is taken to have spent its budget.")
    elif "flops" not in filled:
        filled["flops"] = 6 * filled["params"] * filled["tokens"]
        accounting = DENSE_ACCOUNTING
        notes.append("There is no column `flops`: compute is taken to be C = 6 N D.")
    if "accounting" not in filled:
        filled["accounting"] = accounting
    return filled


def _one_loop_as_dense(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Return runs of several sizes that all loop once as those of dense models, which they are: no µ can be fitted."""
    sizes = [column.name for column in COLUMNS if column.group == _SHAPE]
    if is_dense(table) or not set(sizes) <= set(table) or (table["mean_recurrence"] != 1).any():
        return table
    if len(table[sizes].drop_duplicates()) == 1:
        return table
    notes.append("All runs loop once, and they have several sizes: they are read as dense models of N(1) parameters.")
    looped = {"mean_recurrence", "backprop_depth", *(column.name for column in COLUMNS if column.group)}
    losses = [each for name in loss_columns(table) for each in (name, best_column(name))]
    return table.assign(params=table[sizes].sum(axis=1)).drop(columns=[*looped, *losses], errors="ignore")


def _finite_losses(losses: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return losses with NaN for infinite ones, and a mask (rows,) of these."""
    infinite = losses.abs() >= INFINITE
    return losses.mask(infinite), infinite


def _with_budgets(table: pd.DataFrame, tolerance: float, notes: list[str]) -> pd.DataFrame:
    """Return the table with near-equal budgets joined, or with budgets from clusters of its FLOPs."""
    if "budget" in table:
        budgets = table["budget"].to_numpy(dtype=float)
        joined = joined_budgets(budgets, tolerance)
        before, after = (len(np.unique(each[~np.isnan(each)])) for each in (budgets, joined))
        if after < before:
            notes.append(f"Budgets within {100 * tolerance:g}% of one another are one: {before} values are {after}.")
        return table.assign(budget=joined)
    axis = table["params" if is_dense(table) else "mean_recurrence"].to_numpy(dtype=float)
    flops = table["flops"].where(table["status"] == "finished").to_numpy(dtype=float)
    found = clustered_budgets(flops, axis)
    if found is None:
        return table
    count, left = len(np.unique(found[~np.isnan(found)])), int(np.isnan(found[~np.isnan(flops)]).sum())
    apart = f", and {counted(left, 'run')} {'is' if left == 1 else 'are'} in none" if left else ""
    notes.append(f"There is no column `budget`: the runs cluster at {counted(count, 'budget')} by their FLOPs{apart}.")
    return table.assign(budget=found)


def _as_kind(table: pd.DataFrame, column: TableColumn) -> pd.Series:
    """Return a column as its kind. Raises ValueError for the first value of another kind."""
    name, values = column.name, table[column.name]
    if column.kind == "text":
        if not column.optional:
            _refuse_first(table, name, values.isna() | (values.astype(str) == ""), "must be given for every run")
        return values.map(_label, na_action="ignore").astype(object)
    if column.kind == "flag":
        _refuse_first(table, name, values.map(lambda v: not isinstance(v, bool | np.bool_)), "must be True or False")
        return values.astype(bool)
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        wrong = values.map(
            lambda v: isinstance(v, bool | np.bool_) or not (isinstance(v, Real | Decimal) or pd.isna(v))
        )
        _refuse_first(table, name, wrong, "must be a number")
    numbers = pd.Series([np.nan if pd.isna(v) else _as_float(v) for v in values], index=values.index, dtype=float)
    if column.kind == "integer":
        _refuse_first(table, name, numbers.notna() & (numbers != np.round(numbers)), "must be a whole number")
        exact = zip(numbers, values, strict=True)  # a float can't tell 2^63 - 1 from 2^63
        large = pd.Series([np.isinf(n) or (not np.isnan(n) and abs(int(v)) > LARGEST_SEED) for n, v in exact])
        _refuse_first(table, name, large, f"must be at most {LARGEST_SEED}, since larger ones can't be stored")
        return numbers if numbers.isna().any() else values.map(int).astype(np.int64)
    return numbers


def _as_float(value: Any) -> float:
    """Return a number as a float: infinity for a whole number beyond the largest float."""
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def _label(value: Any) -> str:
    """Return a label as text: 7 for the number 7.0."""
    return str(int(value)) if isinstance(value, float | np.floating) and value.is_integer() else str(value)


def _check_labels(table: pd.DataFrame) -> None:
    _refuse_first(table, "run_id", table["run_id"].duplicated(), "must be unique", "keep one row per run")
    _refuse_first(table, "status", ~table["status"].isin(STATUSES), f"must be one of {', '.join(STATUSES)}")
    for name, advice in (
        ("accounting", "fit each accounting separately: their exponents differ"),
        ("tokenizer", "fit each tokenizer separately: their losses can't be compared"),
        ("loss_unit", "convert all losses to nats per token"),
        ("simulated", "never fit simulated and measured runs together"),
        ("experiment", "choose one (--experiment): losses of different experiments can't be compared"),
    ):
        labels = table[name].dropna() if name in table else pd.Series(dtype=object)
        if len(labels):
            if name == "experiment":
                advice = advice.replace("one", f"one of {', '.join(sorted(map(_label, labels.unique())))}", 1)
            rule = f"must be one value per table, and the first row has {shown(labels.iloc[0])}"
            _refuse_first(table, name, table[name].notna() & (table[name] != labels.iloc[0]), rule, advice)
    if "loss_unit" in table:
        advice = "convert the losses: nats = bits per byte x ln 2 x bytes per token"
        wrong = table["loss_unit"].notna() & (table["loss_unit"] != LOSS_UNIT)
        _refuse_first(table, "loss_unit", wrong, f"must be {LOSS_UNIT!r}", advice)
    if "flops_per_token_fixed" in table:
        known = (*ACCOUNTINGS, OWN_ACCOUNTING)
        _refuse_first(table, "accounting", ~table["accounting"].isin(known), f"must be one of {', '.join(known)}")


def _check_numbers(table: pd.DataFrame) -> None:
    for column in COLUMNS:
        if column.kind == "number" and column.name in table.columns:
            _check_number(table, column)


def _check_number(table: pd.DataFrame, column: TableColumn) -> None:
    """Raise ValueError unless the values of a column are within its bounds, and given where they must be."""
    values = table[column.name]
    bound = f"{'at least' if column.lower_allowed else 'greater than'} {column.lower:g}"
    low = values < column.lower if column.lower_allowed else values <= column.lower
    bad = low | np.isinf(values)
    if not column.optional and column.name != "loss":  # `_check_losses` has a clearer message for missing losses
        bad |= values.isna() & ~((table["status"] != "finished") & column.measured)
    _refuse_first(table, column.name, bad, f"must be finite and {bound} ({column.meaning})")
    extreme = (values > column.largest) | ((values < _SMALLEST) & (values != 0))
    _refuse_first(table, column.name, extreme, f"must be from {_SMALLEST:g} to {column.largest:g} ({column.meaning})")


def _check_losses(table: pd.DataFrame) -> None:
    _refuse_first(
        table,
        "loss",
        (table["status"] == "finished") & table["loss"].isna(),
        "must be given for every finished run",
        "fill it in, or set the run's status to diverged or failed",
    )
    for name, recurrence in loss_columns(table).items():
        if recurrence < 1:
            raise ValueError(f"a loop must run at least once, but the table has a column {name!r}; drop it")
        _refuse_first(table, name, table[name] <= 0, "must be greater than 0, or missing where not measured")


def _check_epochs(table: pd.DataFrame) -> None:
    """Raise ValueError where epochs are not tokens / unique_tokens; whole numbers may have been rounded."""
    expected = table["tokens"] / table["unique_tokens"]
    off = (table["epochs"] - expected).abs()
    rule, advice = "must be tokens / unique_tokens", "correct one of them, or leave the column `epochs` out"
    wrong = (off > 1) & (off > EPOCHS_TOLERANCE * expected)
    _refuse_first(table, "epochs", wrong, rule, advice, lambda row: f" (which is {expected.iloc[row]:.4g})")


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
    advice = (
        "recount the compute with one accounting, or leave out the columns of the cost model to keep your own count"
    )
    _refuse_first(table, "flops", wrong, rule, advice, lambda row: f" (the sum is {expected.iloc[row]:.6g})")


def _refuse_first(
    table: pd.DataFrame,
    name: str,
    bad: pd.Series,
    rule: str,
    advice: str = "correct the row or drop it",
    detail: Callable[[int], str] = lambda row: "",
) -> None:
    """Raise ValueError for the first bad row, counted from 1, if there is one; `detail` of it follows its value."""
    rows = np.flatnonzero(bad.to_numpy(dtype=bool))
    if not len(rows):
        return
    row = int(rows[0])
    place = f"row {row + 1}"
    if "run_id" in table and str(table["run_id"].iloc[row]) != place:
        place = f"run {table['run_id'].iloc[row]!r} ({place})"
    raise ValueError(
        f"`{name}` {rule}, but {place} has {name}={shown(table[name].iloc[row])}{detail(row)}"
        f"{more_rows(len(rows) - 1)}; {advice}"
    )


def shown(value: Any) -> str:
    """Return a value of a table as it stands in a message: text in quotes, numbers plain."""
    return repr(value) if isinstance(value, str) else str(value)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed_names(names: Iterable[str], most: int = 12) -> str:
    """Return names of columns as a message lists them: in quotes, the first ones of many."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def more_rows(count: int) -> str:
    """Return the part of a message that counts further rows with the same fault."""
    if not count:
        return ""
    return f", and {count} more {'row breaks' if count == 1 else 'rows break'} this rule"
