"""Anybody's table as a run table: columns found by their usual names or as given, in natural units, one row per run."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import (
    COLUMNS,
    LARGEST_SEED,
    LOOPED_COLUMNS,
    LOSS_UNIT,
    RunTable,
    check_presence,
    counted,
    listed_names,
    loss_column,
)
from isoloop.fitting.tables.quality import quality_names
from isoloop.fitting.tables.reading import RawTable, is_missing, to_numbers

_LOOPS = ("loops", "n_loops", "num_loops", "loop_count", "recurrences", "n_recurrences", "num_recurrences")
NAMES: dict[str, tuple[str, ...]] = {
    "run_id": ("run_id", "run", "id", "experiment_id", "run_name", "name", "model_id", "model_name", "model"),
    "status": ("status", "state"),
    "mean_recurrence": (
        "mean_recurrence", "mu_rec", "mu", "mean_loops", "mean_recurrences", "avg_loops", "mean_depth",
        "train_recurrence", "train_loops", *_LOOPS, "n_loop", "num_recurrence", "n_recurrence", "recurrent_depth", "r",
    ),
    "recurrence": (
        "recurrence", "t", "test_recurrence", "test_loops", "eval_recurrence", "eval_loops", "inference_loops", *_LOOPS,
    ),
    "backprop_depth": ("backprop_depth", "mu_bwd", "mean_backprop_depth", "bptt_depth", "backward_depth"),
    "params": (
        "params", "n_params", "num_params", "parameters", "n_parameters", "num_parameters", "total_params",
        "param_count", "parameter_count", "model_params", "model_size", "non_embedding_params",
        "n_params_non_embedding", "params_non_embedding", "n", "size",
    ),
    "tokens": (
        "tokens", "train_tokens", "training_tokens", "n_tokens", "num_tokens", "tokens_trained", "total_tokens",
        "num_train_tokens", "n_train_tokens", "total_training_tokens", "tokens_seen", "consumed_tokens", "token_count",
        "num_input_tokens_seen", "d",
    ),
    "flops": (
        "flops", "train_flops", "training_flops", "total_flops", "total_training_flops", "n_flops", "num_flops", "flop",
        "training_flop", "train_flop", "compute", "train_compute", "training_compute", "total_compute",
        "total_flos", "c",
    ),
    "budget": (
        "budget", "flops_budget", "compute_budget", "flop_budget", "target_flops", "planned_flops", "isoflop",
        "isoflop_budget", "isoflops",
    ),
    "loss": (
        "val_loss", "valid_loss", "validation_loss", "final_val_loss", "final_validation_loss", "eval_loss",
        "final_eval_loss", "test_loss", "heldout_loss", "loss", "final_loss", "val_nll", "eval_nll", "nll",
        "cross_entropy", "best_val_loss", "min_val_loss", "l",
    ),
    "bits_per_token": ("bits_per_token", "val_bits_per_token"),
    "perplexity": (
        "perplexity", "ppl", "val_perplexity", "val_ppl", "validation_perplexity", "valid_ppl", "eval_perplexity",
        "eval_ppl", "test_perplexity", "test_ppl",
    ),
    "bits_per_byte": ("bits_per_byte", "bpb", "val_bits_per_byte", "val_bpb", "validation_bpb", "eval_bpb"),
    "seed": ("seed", "random_seed", "run_seed", "rng_seed"),
    "step": ("step", "global_step", "train_step", "training_step", "iteration", "iter"),
    "params_once": ("params_once", "n_once"),
    "params_recurrent": ("params_recurrent", "n_rec", "n_recurrent"),
    "unique_tokens": ("unique_tokens", "n_unique_tokens", "num_unique_tokens", "dataset_tokens"),
    "epochs": ("epochs", "n_epochs", "num_epochs"),
    "outlier": ("outlier", "is_outlier"),
    "experiment": ("experiment", "experiment_name"),
}  # fmt: skip
"""The usual names of what a table holds, the most telling first; case, spaces and punctuation do not matter."""
NAMES |= {column.name: (column.name,) for column in COLUMNS if column.name not in NAMES}

TEXT = ("run_id", "status", "tokenizer", "loss_unit", "accounting", "experiment")
FLAGS = ("simulated", "outlier")
_WEAK_IDS = ("name", "model_id", "model_name", "model", "id")
"""Names of columns that hold run ids only if no value is repeated."""
_COUNTED = ("params", "tokens", "flops", "budget", "params_once", "params_recurrent", "unique_tokens")
_OURS = {"run_id", "status", "accounting", "mean_recurrence", "tokens", "loss"}
"""Columns by which a table is recognised as one of our own sweeps."""
_TRAINING_RANK = 1000
_NESTED_RANK = 50
_TRAINING = re.compile(r"(^|[/._ -])(train|training)([/._ -]|$)", re.IGNORECASE)
_LOSS_AT = re.compile(
    r"(?:.*_)?(?:loss|nll)_?(?:at_?)?(?:t|r|loops|recurrence|at)_?=?(\d+(?:\.\d+)?)"
    r"|(?:.*_)?(?:t|r|loops|recurrence)_?=?(\d+(?:\.\d+)?)_(?:loss|nll)"
)
_SOME_LOSS = re.compile(
    r"(.*_)?(val|valid|validation|eval|test|heldout)_(.*_)?(loss|nll)(?!.*_(std|stderr|sem?|var|ci|err|error|step|epoch)$)(_.*)?"
)
"""Names like val_loss_c4, of a loss on one of several texts."""
_TELLING = re.compile(
    r"(^|[_.])(params?|parameters|tokens?|[a-z]?flops?|flos|compute|loss|nll|ppl|perplexity|bpb)([_.]|$)"
)
_EXPRESSION = re.compile(r"(?P<name>.+?)(?:\s*(?P<sign>[*/])\s*(?P<factor>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?))?")
_THOUSAND, _MILLION, _BILLION, _TRILLION = 1e3, 1e6, 1e9, 1e12
_UNITS = {
    **dict.fromkeys(("k", "thousand", "thousands"), _THOUSAND),
    **dict.fromkeys(("m", "mn", "million", "millions"), _MILLION),
    **dict.fromkeys(("b", "bn", "g", "billion", "billions"), _BILLION),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), _TRILLION),
}
_FLOP_UNITS = {
    f"{prefix}{unit}": factor
    for prefixes, factor in (
        (("g", "giga"), 1e9), (("t", "tera"), 1e12), (("p", "peta"), 1e15), (("e", "exa"), 1e18),
        (("z", "zetta"), 1e21),
    )
    for prefix in prefixes
    for unit in ("flop", "flops")
} | {"pf_days": 8.64e19, "petaflop_days": 8.64e19, "pflop_days": 8.64e19, "petaflops_days": 8.64e19}  # fmt: skip
_NO_FACTOR = frozenset({"tokens", "token", "params", "parameters", "flops", "flop", "of", "in", "x"})
_STATUSES = {
    **dict.fromkeys(("finished", "complete", "completed", "done", "success", "succeeded", "ok"), "finished"),
    **dict.fromkeys(("diverged", "nan"), "diverged"),
    **dict.fromkeys(("failed", "crashed", "killed", "error", "aborted", "preempted", "stopped", "canceled"), "failed"),
    **dict.fromkeys(("running", "scheduled", "pending", "queued"), "running"),
}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, kw_only=True)
class ColumnSource:
    """The column of a file that a value is taken from, and the factor that brings it to natural units."""

    name: str
    factor: float = 1.0

    def __str__(self) -> str:
        """Return the source as it stands in a note."""
        return repr(self.name) if self.factor == 1 else f"{self.name!r} x {_power(self.factor)}"


def parse_columns(text: str) -> dict[str, ColumnSource]:
    """Parse `tokens=D_billions*1e9,loss=val/loss`: our column, the file's column, and a factor if there is one.

    Raises:
        ValueError: a part has another form, names no column of a run table, or names one twice.
    """
    sources: dict[str, ColumnSource] = {}
    # A comma may also stand in a name of the file: a new part begins with `NAME=`.
    for part in filter(None, map(str.strip, re.split(r",(?=\s*\w*\s*=|\s*$)", text))):
        column, equals, source = (piece.strip() for piece in part.partition("="))
        if not equals or not source:
            raise ValueError(f"columns must be given as tokens=NAME or tokens=NAME*1e9, but got {part!r}; correct it")
        if column in sources:
            raise ValueError(f"each column must be given once, but {column!r} is given twice; drop one")
        sources[column] = parse_source(column, source)
    return sources


def parse_source(column: str, text: str) -> ColumnSource:
    """Parse the name of a file's column with an optional factor, for our `column`. Raises as `parse_columns` does."""
    if column not in NAMES and not re.fullmatch(r"loss_T\d+(\.\d+)?", column):
        close = difflib.get_close_matches(column, NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(NAMES)}, loss_T8"
        raise ValueError(f"what is given must be a column of a run table, but got {column!r}; {hint}")
    match = _EXPRESSION.fullmatch(text)
    assert match is not None, "any text is a column's name"
    factor = float(match["factor"] or 1)
    if not 0 < factor < math.inf:
        raise ValueError(f"a factor must be a positive and finite number, but got {text!r}; correct it")
    return ColumnSource(name=match["name"].strip(), factor=factor if match["sign"] != "/" else 1 / factor)


def map_table(raw: RawTable, given: Mapping[str, ColumnSource] | None = None) -> RunTable:
    """Map the columns of a file to those of a run table, one row per run, in natural units.

    Columns that are `given` go before those found by name (`NAMES`). Other columns of the file keep their names. A
    table with a row per run and test-time recurrence, or with the history of each run, is brought to a row per run.

    Raises:
        ValueError: a given column is not in the file, two columns could be meant equally well, a needed column is
            missing, or a value is not of its column's kind.
    """
    # Which column holds what.
    sources, notes = _sources(raw.frame, dict(given or {}))
    columns = _converted(raw.frame, sources, notes)
    _check_presence(columns, raw.frame)
    frame = pd.DataFrame(columns)

    # One row per run.
    if "step" in sources:
        frame, more = _last_of_history(frame, raw.frame, sources)
        notes += more
    if "recurrence" in frame:
        frame, more = _one_row_per_run(frame)
        notes += more
    frame, more = _with_quality(frame)
    notes += more
    ids = ["run_id", "seed"]
    if set(ids) <= set(frame) and frame["run_id"].duplicated().any() and not frame.duplicated(ids).any():
        frame["run_id"] = [f"{run} seed {seed}" for run, seed in zip(frame["run_id"], frame["seed"], strict=True)]
        notes.append("Runs: the seed was added to run_id, which stands for several seeds.")
    notes += _unused_notes(frame, ours=set(map(str, raw.frame.columns)) >= _OURS)
    frame, more = _with_statuses(frame)
    return RunTable(frame=frame.reset_index(drop=True), notes=(*raw.notes, *notes, *more))


# Which column holds what


def _sources(frame: pd.DataFrame, given: dict[str, ColumnSource]) -> tuple[dict[str, ColumnSource], list[str]]:
    """Return the source of each of our columns that the file has, and the notes about the choice."""
    names = [str(name) for name in frame.columns]
    for column, source in given.items():
        if source.name not in names and source.name in NAMES:
            # Our own name stands for the column that is found for it, as in the advice tokens=tokens*1e9.
            by_name = _sources(frame, {})[0].get(source.name)
            if by_name is not None:
                source = given[column] = ColumnSource(name=by_name.name, factor=source.factor * by_name.factor)
        if source.name not in names:
            close = difflib.get_close_matches(source.name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {listed_names(names)}"
            raise ValueError(f"a given column must be in the table, but it has no {source.name!r} for {column}; {hint}")
    sources, used = dict(given), {source.name for source in given.values()}

    # Candidates for each column of ours, the best first.
    candidates: dict[str, list[tuple[int, int, ColumnSource]]] = {}
    quality = _quality_names(names)
    for place, name in enumerate(names):
        if name in quality:
            continue
        for column, rank, factor in _meanings(name, ours=set(names) >= _OURS):
            candidates.setdefault(column, []).append((rank, place, ColumnSource(name=name, factor=factor)))
    ranked = {}
    for column in [*NAMES, *(column for column in candidates if column not in NAMES)]:
        ranked[column] = sorted(candidates.get(column, []), key=lambda one: one[:2])
        if column == "run_id":
            ranked[column] = _identifying(frame, ranked[column])
        free = [candidate for candidate in ranked[column] if candidate[2].name not in used]
        if column == "loss" and {"perplexity", "bits_per_token"} & set(given):
            continue  # the loss follows from what is given
        if column not in sources and free:
            sources[column] = free[0][2]
            used.add(free[0][2].name)

    # Other columns that could have been meant.
    rivals: dict[str, list[str]] = {}
    for column, source in sources.items():
        ranks = {one.name: rank for rank, _, one in ranked.get(column, [])}
        for rank, _, rival in ranked.get(column, []):
            if (
                column in given
                or column == "run_id"
                or rival.name in used
                or rank >= _TRAINING_RANK > ranks[source.name]
                or _equal(frame, source, rival)
            ):
                continue
            if rank == ranks[source.name]:
                raise ValueError(
                    f"one column must hold {column}, but {source.name!r} and {rival.name!r} could, and differ; say "
                    f"which with --columns {column}={source.name}"
                )
            rivals.setdefault(column, []).append(rival.name)
    sources = _loss_source(_recurrence_source(frame, sources), ranked.get("loss", []), given)
    for column in sources:
        if column in names and sources[column].name != column and column not in rivals.get(column, []):
            rivals.setdefault(column, []).append(column)
    return sources, _column_notes(sources, rivals, given, ours=set(names) >= _OURS)


def _meanings(name: str, *, ours: bool) -> list[tuple[str, int, float]]:
    """Return what a column of this name may hold: our column, a rank (lower is surer), and the factor of its unit."""
    if name in NAMES and (ours or name not in ("loss", "recurrence")):
        return [(name, -1, 1.0)]
    if ours and name == "model.size":  # the name of a size, by which our sweeps tell their models apart
        return []
    if re.fullmatch(r"best_loss_T\d+(?:\.\d+)?", name):
        return [(name, 0, 1.0)]
    match = re.fullmatch(r"loss_T(\d+(?:\.\d+)?)", name) or _LOSS_AT.fullmatch(column_key(name))
    if match and not _TRAINING.search(name):
        return [(loss_column(float(next(filter(None, match.groups())))), 0, 1.0)]
    if ours and "." in name:  # the path of a setting, which is an axis of the sweep
        return []
    if column_key(name).endswith("_days") and column_key(name) in _FLOP_UNITS:
        return [("flops", 0, _FLOP_UNITS[column_key(name)])]
    parts = [part for part in re.split(r"[/.]", name) if part] if not re.search(r"[(\[]", name) else name.split("/")
    meanings: dict[str, tuple[int, float]] = {}
    for depth in range(len(parts)):
        nested = "/".join(parts[depth:])
        for base, unit in ((nested, None), _without_unit(nested)):
            for column, usual in NAMES.items():
                factor = _unit_factor(unit, column)
                if column_key(base) not in usual or factor is None or column in meanings:
                    continue
                if depth and column == "run_id" and column_key(base) in _WEAK_IDS:
                    continue
                rank = usual.index(column_key(base)) + _NESTED_RANK * depth
                meanings[column] = (rank + _TRAINING_RANK * bool(_is_training_loss(name, column)), factor)
    if not meanings and _SOME_LOSS.fullmatch(column_key(name)) and not _TRAINING.search(name):
        meanings["loss"] = (len(NAMES["loss"]), 1.0)
    if not meanings and column_key(parts[-1] if parts else name) in ("train_loss", "training_loss"):
        meanings["loss"] = (_TRAINING_RANK, 1.0)
    if "loss" in meanings:
        _, unit = _without_unit(name)
        bits = {"bits": "bits_per_token", "bits_per_token": "bits_per_token", "bits_token": "bits_per_token"}
        bits |= {"bits_per_byte": "bits_per_byte", "bpb": "bits_per_byte", "bits_byte": "bits_per_byte"}
        if unit in bits:
            return [(bits[unit], *meanings["loss"])]
    return [(column, rank, factor) for column, (rank, factor) in meanings.items()]


def _is_training_loss(name: str, column: str) -> bool:
    return column in ("loss", "perplexity", "bits_per_byte") and _TRAINING.search(name) is not None


def _without_unit(name: str) -> tuple[str, str | None]:
    """Return a name without the unit that it ends with, and the unit: `tokens_B`, `params (M)`, `D [1e9]`."""
    match = re.fullmatch(r"(.+?)[\s_]*[(\[]\s*(.+?)\s*[)\]]", name)
    if match:
        power = re.fullmatch(r"(?:x|×)?\s*10\s*\^\s*(\d+)", match[2])
        return match[1], f"1e{power[1]}" if power else column_key(match[2])
    match = re.fullmatch(r"(.+?)[\s_]+(?:in[\s_])?([A-Za-z]+|1?e\d+)", name)
    if match:
        single = len(match[1]) == 1 and len(match[2]) == 1
        if not single or (match[1] + match[2]).isupper():
            return match[1], column_key(match[2])
    match = re.fullmatch(r"([A-Za-z_]*[a-z])([MBT])", name)
    return (match[1], column_key(match[2])) if match else (name, None)


def _unit_factor(unit: str | None, column: str) -> float | None:
    """Return the factor of a unit in the name of `column`; None if it is no unit of such a column."""
    if unit is None:
        return 1.0
    if column == "loss":
        return 1.0 if unit.startswith(("nat", "bit", "bpb")) else None
    if column not in _COUNTED:
        return None
    if re.fullmatch(r"1?e\d+", unit):
        return float(unit if unit[0] == "1" else f"1{unit}")
    flops = column in ("flops", "budget")
    if flops and unit in _FLOP_UNITS:
        return _FLOP_UNITS[unit]
    words = [word for word in unit.split("_") if word not in _NO_FACTOR]
    if not words:
        return 1.0
    units = _UNITS | (_FLOP_UNITS if flops else {})
    return units.get(words[0]) if len(words) == 1 else None


def _identifying(
    frame: pd.DataFrame, candidates: list[tuple[int, int, ColumnSource]]
) -> list[tuple[int, int, ColumnSource]]:
    """Return the candidates for run_id: weak names only with a value per row, and such columns before others."""
    unique = [not frame[source.name].duplicated().any() for _, _, source in candidates]
    kept = [
        (not one, candidate)
        for one, candidate in zip(unique, candidates, strict=True)
        if one or column_key(candidate[2].name) not in _WEAK_IDS or candidate[0] < 0
    ]
    repeats = "step" in map(column_key, map(str, frame.columns)) or (kept[:1] and kept[0][1][0] < 0)
    return [candidate for _, candidate in (kept if repeats else sorted(kept, key=lambda one: one[0]))]


def _recurrence_source(frame: pd.DataFrame, sources: dict[str, ColumnSource]) -> dict[str, ColumnSource]:
    """Return the sources with T as the mean recurrence, if there is no other and no run has two values of T."""
    if "mean_recurrence" in sources or "recurrence" not in sources or "params" in sources:
        return sources
    runs = [sources[column].name for column in ("tokens", "flops", "budget", "seed", "run_id") if column in sources]
    if not runs or "tokens" not in sources or frame.duplicated(runs).any():
        return sources
    return {column: source for column, source in sources.items() if column != "recurrence"} | {
        "mean_recurrence": sources["recurrence"]
    }


def _loss_source(
    sources: dict[str, ColumnSource], candidates: Sequence[tuple[int, int, ColumnSource]], given: Mapping[str, Any]
) -> dict[str, ColumnSource]:
    """Return the sources with `loss` from bits per token or perplexity if there is no validation loss.

    Raises:
        ValueError: losses are only given in bits per byte.
    """
    ranks = {source.name: rank for rank, _, source in candidates}
    training = "loss" in sources and "loss" not in given and ranks.get(sources["loss"].name, 0) >= _TRAINING_RANK
    if "loss" in sources and not (training and {"bits_per_token", "perplexity"} & set(sources)):
        return sources
    if "bits_per_token" in sources:
        source = sources["bits_per_token"]
        return sources | {"loss": replace(source, factor=source.factor * math.log(2))}
    if "perplexity" in sources:
        return sources | {"loss": sources["perplexity"]}
    if "bits_per_byte" in sources and not any(column.startswith("loss_T") for column in sources):
        name = sources["bits_per_byte"].name
        raise ValueError(
            f"losses must be in {LOSS_UNIT}, but the table has them only in bits per byte ({name!r}); give the factor: "
            f"ln 2 x bytes per token, as in --columns 'loss={name}*2.9' for 4.2 bytes per token"
        )
    return sources


def _equal(frame: pd.DataFrame, source: ColumnSource, rival: ColumnSource) -> bool:
    """Return True if two columns hold the same, each in its unit."""
    try:
        ours, theirs = (to_numbers(frame[one.name])[0] * one.factor for one in (source, rival))
    except ValueError:
        return bool((frame[source.name].astype(str) == frame[rival.name].astype(str)).all())
    return bool(np.allclose(ours, theirs, rtol=1e-9, atol=0, equal_nan=True))


def _column_notes(
    sources: Mapping[str, ColumnSource],
    rivals: Mapping[str, Sequence[str]],
    given: Mapping[str, ColumnSource],
    *,
    ours: bool,
) -> list[str]:
    """Return the sentence that says what was taken for what, and in which unit.

    In a table of our own sweeps, only what was renamed, scaled or chosen is in it.
    """
    parts = []
    for column, source in sources.items():
        if column in ("step", "perplexity", "bits_per_token", "bits_per_byte"):
            continue
        others = rivals.get(column, ())
        named = source.name == column and source.factor == 1
        if named and not others and (ours or column not in (*LOOPED_COLUMNS, "params", "budget")):
            continue
        part = column if named else f"{column} from {source}"
        if column in ("flops", "budget"):
            part += " (FLOPs)"
        if column == "loss":
            perplexity = sources.get("perplexity") == source
            training = _TRAINING.search(source.name) is not None
            unit = f"the logarithm of the perplexity, {LOSS_UNIT}" if perplexity else LOSS_UNIT
            part += f" ({'a training loss; ' if training and column not in given else ''}{unit})"
        if others:
            part += f", not {listed_names(others)}"
        parts.append(part)
    return [f"Columns: {', '.join(parts)}."] if parts else []


def _unused_notes(frame: pd.DataFrame, *, ours: bool) -> list[str]:
    """Return notes about columns of a mapped table that are not used, but tell something about its runs."""
    if ours:
        return []
    known = {*NAMES, *quality_names(map(str, frame.columns)).values()}
    others = [name for name in map(str, frame.columns) if name not in known and not re.fullmatch(r"loss_T.*", name)]
    keys = {name: column_key(re.sub(r"^(params|metrics|tags)/", "", name)) for name in others}
    telling = [name for name in others if _TELLING.search(keys[name])]
    kinds, repeated = [], []
    for name in others:
        values = [value for value in frame[name].tolist() if not is_missing(value)]
        if name not in telling and values and all(isinstance(value, str) for value in values):
            counts = pd.Series(values).value_counts()
            if keys[name] in NAMES["run_id"] and counts.max() > 1:
                repeated.append(name)
            elif len(counts) > 1 and counts.min() > 1:
                kinds.append(name)
    notes = []
    if telling:
        notes.append(f"Not used: {listed_names(telling)}; if one of them is meant, name it with --columns.")
    if kinds:
        one = next(value for value in frame[kinds[0]].tolist() if not is_missing(value))
        notes.append(
            f"Runs that differ in {listed_names(kinds)} are fitted together; to fit those of one kind, use "
            f"--columns 'experiment={kinds[0]}' --experiment '{one}'."
        )
    if repeated:
        notes.append(
            f"Rows with the same {listed_names(repeated)} were taken for runs of their own: drop restarted ones."
        )
    return notes


def _with_quality(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with its columns of quality under our names (`tables.quality`), and a note about new names."""
    names = _quality_names(list(map(str, frame.columns)))
    renamed = {name: ours for name, ours in names.items() if name != ours and ours not in frame}
    if not renamed:
        return frame, []
    listed = ", ".join(f"{ours} from {name!r}" for name, ours in renamed.items())
    return frame.rename(columns=renamed), [f"Quality: {listed}."]


def _quality_names(names: Sequence[str]) -> dict[str, str]:
    """Return our name of each column that holds quality, by its name in the file."""
    keys = {column_key(re.sub(r"^(metrics|summary)[/.]", "", name.lower())): name for name in names}
    return {keys[key]: ours for key, ours in quality_names(keys).items()}


# Values


def _converted(frame: pd.DataFrame, sources: Mapping[str, ColumnSource], notes: list[str]) -> dict[str, Any]:
    """Return the table's columns in the order of the file, each by its name in a run table."""
    by_name: dict[str, list[str]] = {}
    for column, source in sources.items():
        if column not in ("step", "bits_per_token", "bits_per_byte", "perplexity"):
            by_name.setdefault(source.name, []).append(column)
    mapped = {column for columns_of in by_name.values() for column in columns_of}
    columns: dict[str, Any] = {}
    details: list[str] = []
    for name in map(str, frame.columns):
        for column in by_name.get(name, []):
            columns[column] = _as_kind(frame[name], column, sources[column], details)
        if name not in by_name and name not in mapped:
            columns[name] = _plain(frame[name])
    loss = sources.get("loss")
    if loss is not None and loss == sources.get("perplexity") and "loss" in columns:
        with np.errstate(divide="ignore", invalid="ignore"):
            columns["loss"] = np.log(columns["loss"])
    if "loss" not in columns and "mean_recurrence" in columns:
        at_mean = _losses_at_mean(columns)
        if at_mean is not None:
            columns["loss"] = at_mean
            notes.append("Loss: the loss at T = mean recurrence, from the columns loss_T*.")
    if details:
        notes.append(f"Values: {'; '.join(details)}.")
    return columns


def _as_kind(values: pd.Series, column: str, source: ColumnSource, details: list[str]) -> Any:
    """Return the values of a column of a run table: text, flags, whole numbers or floats, in natural units.

    Raises:
        ValueError: a value is of another kind.
    """
    if column in TEXT:
        items = [None if value is None or value != value or value == "" else str(value) for value in values.tolist()]
        return pd.Series(items, dtype=object)
    if column in FLAGS:
        return _flags(values, column)
    if column == "seed":
        return _seeds(values)
    try:
        numbers, forms = to_numbers(values)
    except ValueError as error:
        value = str(error) if source.name == column else str(error).replace(" has", f" of {source.name!r} has", 1)
        advice = "leave it empty" if column == "loss" or column.startswith("loss_T") else "drop the row"
        raise ValueError(f"`{column}` must be a number, but {value}; correct it, or {advice}") from error
    texts = map(str, values.tolist()) if any("thousands" in form for form in forms) else ()
    ambiguous = next(filter(re.compile(r"\s*\d{1,3},\d{3}\s*").fullmatch, texts), None)
    if ambiguous is not None and column not in _COUNTED:
        raise ValueError(
            f"`{column}` must have a decimal point, but {source.name!r} has {ambiguous}: thousands, or a decimal "
            f"comma? write {ambiguous.replace(',', '.')} or {ambiguous.replace(',', '')}"
        )
    details += [f"{column} has {form}" for form in forms]
    if source.factor != 1:
        numbers = numbers * source.factor
        if column in _COUNTED:
            whole = np.rint(numbers)
            numbers = np.where(np.isclose(numbers, whole, rtol=1e-12, atol=0), whole, numbers)
    return numbers


def as_flag(value: Any) -> bool | None:
    """Return the truth value that True, False, 1, 0 or their text stand for, None for others."""
    return _TRUTH.get(str(value).strip().lower())


def _flags(values: pd.Series, column: str) -> Any:
    flags = [as_flag(value) for value in values.tolist()]
    if None not in flags:
        return np.array(flags, dtype=bool)
    if column == "outlier":
        return _plain(values)  # checked where outliers are left out
    row = flags.index(None)
    raise ValueError(f"`{column}` must be True or False, but row {row + 1} has {values.iloc[row]!r}; correct it")


def _seeds(values: pd.Series) -> Any:
    """Return seeds as exact integers. Raises ValueError for those that are none or can't be stored."""
    if pd.api.types.is_integer_dtype(values) and not values.isna().any():
        items = values.tolist()
    else:
        items = []
        for row, value in enumerate(values.tolist()):
            text = "" if is_missing(value) else str(value).strip()
            try:
                number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text) if text else None
            except ValueError:
                number = 0.5
            if number is None or number != number:
                items.append(None)
            elif number != math.inf and number == int(number):
                items.append(int(number))
            else:
                raise ValueError(f"`seed` must be a whole number, but row {row + 1} has {text!r}; correct it")
    for row, seed in enumerate(items):
        if seed is not None and not -LARGEST_SEED <= seed <= LARGEST_SEED:
            raise ValueError(
                f"`seed` must be at most 2^63 - 1 = {LARGEST_SEED}, but row {row + 1} has {seed}; give such a run a "
                "smaller number, as a larger one can't be stored exactly"
            )
    return np.array(items, dtype=np.int64) if None not in items else pd.Series(items, dtype=object)


def _plain(values: pd.Series) -> Any:
    """Return a column that is no part of a run table: numbers and flags as such, otherwise as the file has it."""
    if values.dtype != object:
        return values.reset_index(drop=True)
    items = values.tolist()
    present = [item for item in items if not (item is None or item == "")]
    if present and all(isinstance(item, str) for item in present):
        if set(present) <= {"True", "False"} and len(present) == len(items):
            return np.array([item == "True" for item in items])
        if len(present) == len(items) and all(re.fullmatch(r"[+-]?\d{1,18}", item) for item in present):
            return np.array(list(map(int, items)), dtype=np.int64)
    try:
        return np.array([math.nan if is_missing(item) else float(item) for item in items])
    except (ValueError, TypeError):
        return pd.Series([None if item == "" else item for item in items])


def _losses_at_mean(columns: Mapping[str, Any]) -> np.ndarray | None:
    """Return the losses (rows,) at T = mean recurrence, NaN where not measured; None if no run has one."""
    means = np.asarray(columns["mean_recurrence"], dtype=float)
    losses = np.full(len(means), np.nan)
    for mean in np.unique(means[np.isfinite(means)]):
        values = columns.get(loss_column(float(mean)))
        if values is not None:
            losses[means == mean] = np.asarray(values)[means == mean]
    return losses if np.isfinite(losses).any() else None


def _check_presence(columns: Mapping[str, Any], frame: pd.DataFrame) -> None:
    """Raise ValueError if no run could be fitted for want of a column; FLOPs may follow from a model."""
    names = [str(name) for name in frame.columns]
    steps = next((name for name in names if re.search(r"(^|_)(steps?|iters?)$", column_key(name))), None)
    product = f" (or steps times the tokens of a step, as in --columns 'tokens={steps}*524288')" if steps else ""
    hint = product if "tokens" not in columns else ""
    check_presence(columns, own_names=names, counted_later=True, hint=hint)


# One row per run


def _blank(values: pd.Series) -> np.ndarray:
    """Return a mask (rows,) of the values that were not logged at all; a loss of NaN was."""
    if values.dtype == object:
        return np.array([value is None or value == "" for value in values.tolist()], dtype=bool)
    return values.isna().to_numpy()


def _last_of_history(
    frame: pd.DataFrame, raw: pd.DataFrame, sources: Mapping[str, ColumnSource]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the last logged values of each run, if runs have several rows, and a note about it."""
    name = sources["step"].name
    try:
        steps = to_numbers(raw[name])[0]
    except ValueError as error:
        raise ValueError(f"a step must be a number, but {error} in {name!r}; correct it, or drop the column") from error
    if "recurrence" in frame:
        return frame, []
    if "run_id" not in frame:
        if len(frame) < 2 or (steps == steps[0]).all():
            return frame, []
        return frame, [
            f"Each row was taken for a run; if rows are steps ({name!r}) of runs, keep the last row of each."
        ]
    if not frame["run_id"].duplicated().any():
        return frame, []
    order = np.argsort(steps, kind="stable")
    ordered, blank = frame.iloc[order], _blank(raw[sources["loss"].name])[order] if "loss" in sources else False
    runs = ordered.groupby("run_id", sort=False).last()
    # A loss that ended as NaN or infinity stays so: the run diverged.
    logged = ordered[~np.broadcast_to(blank, len(ordered))].drop_duplicates("run_id", keep="last").set_index("run_id")
    runs["loss"] = logged["loss"].reindex(runs.index)
    runs = runs.loc[frame["run_id"].drop_duplicates()].reset_index()[list(frame.columns)]
    return runs, [f"History: the last loss of each of {len(runs)} runs kept, of {len(frame)} rows."]


def _one_row_per_run(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with a row per run and the losses at each T in columns, from one with a row per run and T.

    The loss of a run is that at T = mean recurrence.

    Raises:
        ValueError: a run has two losses at one T, or no run has a loss at T = mean recurrence.
    """
    unknown = np.flatnonzero(frame["recurrence"].isna())
    if len(unknown):
        raise ValueError(
            "each loss must have the T at which it was measured (`recurrence`), but row "
            f"{unknown[0] + 1} has none; fill it in, or drop the row"
        )
    by_id = "run_id" in frame and frame["run_id"].duplicated().any()
    settings = [name for name in frame if name in NAMES and name not in ("run_id", "recurrence", "loss")]
    run = frame.groupby(["run_id"] if by_id else settings, dropna=False, sort=False).ngroup().to_numpy()
    again = np.flatnonzero(pd.DataFrame({"run": run, "T": frame["recurrence"]}).duplicated().to_numpy())
    if len(again):
        row, recurrence = int(again[0]), frame["recurrence"].iloc[again[0]]
        raise ValueError(
            f"each run must have one loss at each T, but row {row + 1} repeats T = {recurrence:g} of a run; add "
            "a column run_id or seed that tells runs apart, or drop the row"
        )
    wide = frame.assign(run=run).pivot(index="run", columns="recurrence", values="loss")
    wide.columns = pd.Index([loss_column(float(recurrence)) for recurrence in wide.columns])
    first = frame.drop(columns=["recurrence", "loss"]).groupby(run)
    varying = [name for name in frame if name not in ("recurrence", "loss") and (first[name].nunique() > 1).any()]
    changing = [name for name in varying if name in settings]
    if changing:
        raise ValueError(
            f"the rows of a run must differ only in T and loss, but {listed_names(changing)} differ in a run; give "
            "each run its own run_id"
        )
    runs = first.first().drop(columns=varying)
    runs = runs.join(wide)
    losses = _losses_at_mean(runs.to_dict("series"))
    if losses is None:
        raise ValueError(
            "the loss of a run must be that at T = mean recurrence, but no run has one there "
            f"(T is {', '.join(f'{value:g}' for value in sorted(frame['recurrence'].unique())[:8])}); measure it there"
        )
    runs.insert(0, "loss", losses)
    measured = np.isin(runs.index, run[(frame["recurrence"] == frame["mean_recurrence"]).to_numpy()])
    notes = [f"Rows: {len(frame)}, one for each T of {len(runs)} runs; a run's loss is that at T = mean recurrence."]
    if (~measured).any():
        notes.append(f"Left out: {counted((~measured).sum(), 'run')} without a loss at T = mean recurrence.")
    if varying:
        notes.append(f"Left out: columns that differ within a run: {listed_names(varying)}.")
    return runs[measured], notes


def _with_statuses(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with statuses in our words, without runs that have not ended, and notes about both."""
    if "status" not in frame:
        return frame, []
    words = frame["status"].map(lambda word: str(word).strip().lower() if word is not None else None)
    statuses = words.map(lambda word: _STATUSES.get(word, word))
    running = (statuses == "running").to_numpy()
    unfinished = statuses.isin(["failed", "diverged"]).to_numpy()
    frame = frame.assign(status=statuses.where(statuses.notna(), None).astype(object))
    notes = []
    renamed = sorted(set(words[words != statuses].dropna()) - {"running", "scheduled", "pending", "queued"})
    if renamed:
        notes.append(f"Status: {', '.join(f'{word} taken for {_STATUSES[word]}' for word in renamed)}.")
    losses = [name for name in frame if name == "loss" or re.fullmatch(r"loss_T\d+(\.\d+)?", str(name))]
    given = unfinished & frame[losses].notna().any(axis=1).to_numpy()
    if given.any():
        frame.loc[unfinished, losses] = np.nan
        notes.append(f"Left out: the losses of {counted(given.sum(), 'run')} that failed or diverged.")
    if running.any():
        frame = frame[~running]
        notes.append(f"Left out: {counted(running.sum(), 'run')} still running.")
        if not len(frame):
            raise ValueError("a table must have runs that have ended, but all are still running; wait for them")
    return frame, notes


# Names


def names_of(column: str) -> tuple[str, ...]:
    """Return the usual names of a column, as `column_key` writes them."""
    return NAMES[column]


def column_key(name: str) -> str:
    """Return a name without case, punctuation and humps: `nParams`, `N params` and `n-params` are one."""
    plain = name.replace("µ", "mu").replace("μ", "mu").replace("@", "_at_")
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", plain)
    return re.sub(r"[^a-z0-9.=]+", "_", plain.lower()).strip("_.")


def _power(factor: float) -> str:
    """Return a factor as people write it: 1e9 for a billion."""
    exponent = round(math.log10(factor))
    return f"1e{exponent}" if abs(exponent) > 2 and factor == float(f"1e{exponent}") else f"{factor:.6g}"
