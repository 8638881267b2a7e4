"""Runs that others logged, in MLflow or in a file, mapped into the run table by name or by a small YAML file."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from pydantic import Field, PositiveFloat, ValidationError, model_validator

from isoloop.fitting.tables.contract import COST_TOLERANCE, RunTable, counted, loss_column, loss_columns
from isoloop.fitting.tables.mapping import NAMES, ColumnSource, map_table, parse_source
from isoloop.fitting.tables.reading import RawTable, read_raw, to_numbers
from isoloop.sweeps.config.yaml_text import read_yaml
from isoloop.sweeps.messages import broken_rule, broken_rules, did_you_mean
from isoloop.sweeps.plan.grid import cost_model_columns, inference_columns
from isoloop.trainer.accounting import Accounting, expected_loops
from isoloop.trainer.config import SIZES, Config, DepthConfig, ModelConfig, RecurrenceConfig

Attribute = Literal["run_id", "run_name", "status", "start_time", "end_time"]
ATTRIBUTES: tuple[str, ...] = get_args(Attribute)

SOURCE_KINDS = ("column", "param", "metric", "tag", "attribute", "value")
MLFLOW_FOLDERS = {"param": "params/", "metric": "metrics/", "tag": "tags/"}
"""Prefixes of MLflow's parameters, last metric values and tags as columns: `params/` and their name, and so on."""
PLACEHOLDER = "{T}"
OWN = "own"
_ENDED = ("FINISHED", "FAILED", "KILLED")  # in MLflow's words
_LOOPS = ("forward_loops", "backward_loops")
_PER_TOKEN = ("flops_per_token_fixed", "flops_per_token_forward_loop", "flops_per_token_backward_loop")
COST_COLUMNS = (*_PER_TOKEN, *_LOOPS)
_AT_MEAN = ColumnSource(name="the loss at T = mean recurrence")
_CURVE = re.compile(r".+ - .+__(MIN|MAX)")  # columns of a chart that wandb exports
_TRACKIO = {"timestamp", "run_name", "step"}  # columns of an export of trackio
MODEL_KEY, COLUMNS_KEY = "model", "columns"
_MAY_BE_MISSING = ("loss", "budget")  # from every run: all may have diverged, and a budget is optional


class ValueSource(Config):
    """The source of a value: a column of the table, a constant, or in MLflow a parameter, metric, tag or attribute.

    A metric's value is its last one. A text such as `D_billions*1e9` stands for a column and a factor.

    Args:
        times: the factor that converts a number to the column's unit.
    """

    column: str | None = None
    param: str | None = None
    metric: str | None = None
    tag: str | None = None
    attribute: Attribute | None = None
    value: bool | int | float | str | None = None
    times: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        if not isinstance(content, str):
            return content
        source = parse_source("loss", content)
        return {"column": source.name} | ({} if source.factor == 1 else {"times": source.factor})

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [kind for kind in SOURCE_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(SOURCE_KINDS[:-1])} and value must be given, but got "
                f"{' and '.join(given) or 'none'}; keep one"
            )
        if self.times is not None and self.value is not None:
            raise ValueError(f"times scales what a run holds, but got value={self.value!r}; write the product as value")
        return self

    @property
    def kind(self) -> str:
        """The kind that is given, one of `SOURCE_KINDS`."""
        return next(kind for kind in SOURCE_KINDS if getattr(self, kind) is not None)

    @property
    def label(self) -> str:
        """The source in words."""
        return f"{self.kind} {getattr(self, self.kind)!r}"

    @property
    def column_name(self) -> str:
        """The name of the column that holds it, in MLflow's runs as `experiment_table` returns them."""
        return f"{MLFLOW_FOLDERS.get(self.kind, '')}{getattr(self, self.kind)}"


class RunMapping(Config):
    """The mapping of somebody's table, or of an MLflow experiment, to the run table.

    Args:
        experiment: the MLflow experiment's name; None for a file.
        filter: a filter of the experiment's runs in MLflow's filter language; all of them if left out.
        accounting: how FLOPs are counted: `own` are those of the table, as they are. By default `exact` if the cost
            follows from `model` or is among the columns, else `own`.
        model: the architecture: a size (`140m`), or the keys of a sweep's `model`, each a value or a source; None if
            nothing is known about the cost, or `columns` has it.
        depth: how loops are drawn, as in a sweep; it determines how many count.
        columns: the source of each column of the run table, and of any other column; None for a column to do without.
            What isn't given is found by name.
        losses: the name of the columns or metrics with the loss at T loops, `{T}` for the number.
    """

    experiment: str | None = None
    filter: str = ""
    accounting: Literal["exact", "parcae-release", "own"] | None = None
    model: str | dict[str, bool | int | float | str | ValueSource] | None = None
    depth: DepthConfig = DepthConfig()
    columns: dict[str, ValueSource | None] = Field(default_factory=dict)
    losses: str | None = None

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if self.losses is not None and self.losses.count(PLACEHOLDER) != 1:
            raise ValueError(f"losses must name a metric with one {PLACEHOLDER} in it, but got {self.losses!r}")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        size = self.model if isinstance(self.model, str) else (self.model or {}).get("size")
        if size is not None and not isinstance(size, ValueSource) and str(size) not in SIZES:
            raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'; correct model")
        return self


def read_mapping(path: Path) -> RunMapping:
    """Read a mapping from a YAML file.

    Raises:
        ValueError: there is no such file, it isn't YAML, or it breaks a rule.
    """
    if not path.is_file():
        raise ValueError(f"a mapping must be a YAML file, but there is none at {path}; docs/sweeps.md has an example")
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"a mapping must be YAML, but {path} isn't: {error}") from error
    if not isinstance(content, dict):
        got = "is empty" if content is None else "is a list" if isinstance(content, list) else "is a single text"
        raise ValueError(f"a mapping must have keys with values, but {path} {got}; docs/sweeps.md has an example")
    try:
        return RunMapping.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {broken_rule(problem)}" for problem in error.errors())
        raise ValueError(f"the mapping {path} breaks {error.error_count()} rule(s):\n{problems}") from error


def experiment_table(runs: Sequence[Any], mapping: RunMapping | None = None) -> RawTable:
    """Return MLflow's `runs` as a table: attributes, then params/NAME, metrics/NAME and tags/NAME.

    MLflow's own tags (`mlflow.user`) are left out, except those that the mapping names.

    Raises:
        ValueError: no run has ended.
    """
    if not any(run.info.status in _ENDED for run in runs):
        passing = f" that pass the filter {mapping.filter!r}" if mapping and mapping.filter else ""
        raise ValueError(
            f"an experiment must have runs that have ended, but it has {len(runs)}{passing}, and none has ended; "
            "correct the experiment or the filter, or wait for a run to end"
        )
    kept = {source.tag for source in mapping.columns.values() if source} if mapping else set()
    groups: dict[str, list[Mapping[str, Any]]] = {
        "params/": [run.data.params for run in runs],
        "metrics/": [run.data.metrics for run in runs],
        "tags/": [
            {name: value for name, value in run.data.tags.items() if name in kept or not name.startswith("mlflow.")}
            for run in runs
        ],
    }
    columns: dict[str, list[Any]] = {name: [getattr(run.info, name) for run in runs] for name in ATTRIBUTES}
    for folder, values in groups.items():
        for name in dict.fromkeys(name for each in values for name in each):
            columns[folder + name] = [each.get(name) for each in values]
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    return RawTable(frame=frame)


def tracker_table(raw: RawTable, path: Path) -> RawTable:
    """Return a table in which a trackio export has the configuration of its runs; any other table as it is.

    trackio exports a row per run and step to PROJECT.parquet, and the configurations to PROJECT_configs.parquet, or to
    metrics.parquet and aux/configs.parquet (https://huggingface.co/docs/trackio/storage_schema).

    Raises:
        ValueError: the table is a chart of wandb.
    """
    if any(_CURVE.fullmatch(str(name)) for name in raw.frame):
        raise ValueError(
            f"a table must have a row for each run, but {path} is a chart of wandb, with a column for each run; export "
            "the table of runs instead"
        )
    if not set(raw.frame.columns) >= _TRACKIO:
        return raw
    frame = raw.frame.drop(columns=["id", "log_id", "space_id"], errors="ignore")
    places = [path.with_name(f"{path.stem}_configs{path.suffix}"), path.with_name("aux") / f"configs{path.suffix}"]
    configs = next((place for place in places if place.is_file()), None)
    if configs is None:
        return RawTable(frame=frame, notes=raw.notes)
    config = read_raw(configs).frame
    new = [name for name in config if name not in frame.columns and name not in ("config", "created_at")]
    joined = frame.merge(config[["run_name", *new]], on="run_name", how="left")
    return RawTable(frame=joined, notes=(*raw.notes, f"Configurations of the runs: from {configs.name}."))


def map_runs(
    raw: RawTable, mapping: RunMapping | None = None, columns: Mapping[str, ColumnSource] | None = None
) -> RunTable:
    """Return a table of somebody's runs with our columns, unchecked: mapped, and else found by name.

    Args:
        raw: the table, of a file or of an MLflow experiment.
        mapping: where its columns come from, and how its FLOPs are counted.
        columns: further sources by column, which go before those of `mapping`.

    Raises:
        ValueError: a source isn't in the table, a value is no number, or the cost can't be computed.
    """
    mapping, columns = mapping or RunMapping(), columns or {}
    # The columns that are given, and then those that are found by name; rows of one run become one.
    frame = raw.frame.copy()
    given = _given(raw, mapping, columns, frame)
    hidden = _hidden(raw, mapping, frame)
    mapped = map_table(RawTable(frame=frame, notes=raw.notes), given)
    table, notes = mapped.frame.copy(), list(mapped.notes)
    values = {key: table.pop(name) for key, name in hidden.items() if name in table}
    for (place, name), column in values.items():
        if place == COLUMNS_KEY:
            source = mapping.columns[name]
            table[name] = column if source is None or source.times is None else _scaled(name, column, source)
    for name, source in mapping.columns.items():
        if source is not None and source.value is not None and not _is_known(name):
            table[name] = source.value
    # Columns to do without, and those of MLflow that stand for nothing.
    without = [name for name, source in mapping.columns.items() if source is None and name not in columns]
    unmapped = [name for name in table if str(name).startswith(tuple(MLFLOW_FOLDERS.values()))]
    times = [name for name in ("start_time", "end_time") if _in_mlflow(raw) and name not in mapping.columns]
    table = table.drop(columns=[*unmapped, *without, *times], errors="ignore")
    # What follows from them.
    if given.get("loss") == _AT_MEAN:
        table["loss"] = _losses_at_mean(table)
    if _in_mlflow(raw):
        table, notes = _without_empty_runs(table, notes)
        table, notes = _with_divergences(table, notes)
    if mapping.model is not None:
        models = {name: column[table.index] for (place, name), column in values.items() if place == MODEL_KEY}
        table, notes = _with_model(table, notes, mapping, models)
    elif mapping.accounting is not None:
        table["accounting"] = mapping.accounting
    elif set(COST_COLUMNS) <= set(mapping.columns) and "accounting" not in table:
        table["accounting"] = "exact"
    return RunTable(frame=table, notes=tuple(notes))


def _is_known(name: str) -> bool:
    """Return True for a column that a run table knows."""
    return name in NAMES or bool(loss_columns(pd.DataFrame(columns=[name])))


def _given(
    raw: RawTable, mapping: RunMapping, columns: Mapping[str, ColumnSource], frame: pd.DataFrame
) -> dict[str, ColumnSource]:
    """Return the given sources of columns that a run table knows; a constant is added to `frame` as a column."""
    given: dict[str, ColumnSource] = {}
    for name, source in mapping.columns.items():
        if source is None or name in columns or not _is_known(name):
            continue
        column = None if source.value is not None else _find_column(raw, name, source, f"columns.{name} of the mapping")
        if column is None:
            column = "nothing" if source.value is None else f"the constant {source.value}"
            frame[column] = source.value
        given[name] = ColumnSource(name=column, factor=1.0 if source.times is None else source.times)
    for name, column_source in columns.items():
        column = _find_column(raw, name, ValueSource(column=column_source.name), "--columns")
        given[name] = ColumnSource(name=str(column), factor=column_source.factor)
    for name, column in _loss_sources(raw, mapping).items():
        given.setdefault(name, ColumnSource(name=column))
    if mapping.losses is not None and "loss" not in given:
        frame[_AT_MEAN.name] = math.nan
        given["loss"] = _AT_MEAN
    return given


def _hidden(raw: RawTable, mapping: RunMapping, frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Add the sources of `model` and of columns that a run table doesn't know to `frame`, and return their names there.

    The names are of a form that stands for no column of a run table.
    """
    model = mapping.model if isinstance(mapping.model, dict) else {}
    others = {name: source for name, source in mapping.columns.items() if not _is_known(name)}
    hidden: dict[tuple[str, str], str] = {}
    for place, sources in ((MODEL_KEY, model), (COLUMNS_KEY, others)):
        for name, source in sources.items():
            if isinstance(source, ValueSource) and source.value is None:
                column = _find_column(raw, f"{place}.{name}", source, f"{place}.{name} of the mapping")
                hidden[place, name] = f"{name} in {place} of the mapping"
                frame[hidden[place, name]] = raw.frame[column]
    return hidden


def _scaled(name: str, values: pd.Series, source: ValueSource) -> Any:
    try:
        return to_numbers(values)[0] * source.times
    except ValueError as error:
        raise ValueError(f"`{name}` must be a number, but {error} of {source.label}; correct columns.{name}") from error


def _in_mlflow(raw: RawTable) -> bool:
    """Return True if a table is of MLflow's runs, as `experiment_table` returns them."""
    return set(ATTRIBUTES) <= set(raw.frame.columns)


def _find_column(raw: RawTable, name: str, source: ValueSource, place: str) -> str | None:
    """Return the name of a source's column in the table; None if no MLflow run has what may be missing from all runs.

    In MLflow's runs, the plain name of a parameter, metric or tag stands for the only one of that name.

    Raises:
        ValueError: there is no such column, or several.
    """
    present = [str(column) for column in raw.frame.columns]
    if source.column_name in present:
        return source.column_name
    in_mlflow = _in_mlflow(raw)
    folders = MLFLOW_FOLDERS.values() if in_mlflow and source.kind == "column" else ()
    matches = [folder + source.column_name for folder in folders if folder + source.column_name in present]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"`{name}` must have one source, but got {' and '.join(matches)}; name one of them in {place}")
    if not in_mlflow and source.kind != "column":
        raise ValueError(
            f"a {source.kind} is of an MLflow run, but {place} names {source.label} for a file; write it as "
            f"column: {getattr(source, source.kind)}"
        )
    if in_mlflow and name in _MAY_BE_MISSING:
        return None
    folder = MLFLOW_FOLDERS.get(source.kind, "")
    alike = [column.removeprefix(folder) for column in present if column.startswith(folder)]
    holder = "no run has" if in_mlflow else "the table has no"
    hint = did_you_mean(getattr(source, source.kind), alike, f"there are {', '.join(alike[:12]) or 'none'}.")
    raise ValueError(f"`{name}` must be in the table, but {holder} {source.label}; {hint} Correct {place}")


def _loss_sources(raw: RawTable, mapping: RunMapping) -> dict[str, str]:
    """Return the columns with the losses at T loops, by our name for them."""
    if mapping.losses is None:
        return {}
    before, after = map(re.escape, mapping.losses.split(PLACEHOLDER))
    pattern = re.compile(rf"(?:metrics/)?{before}(\d+(?:\.\d+)?){after}")
    matches = {str(name): pattern.fullmatch(str(name)) for name in raw.frame.columns}
    losses = {float(match.group(1)): name for name, match in matches.items() if match}
    if not losses:
        raise ValueError(
            f"losses must name what the table has, but nothing matches {mapping.losses!r}; correct it, or leave it out"
        )
    return {loss_column(recurrence): name for recurrence, name in sorted(losses.items())}


def _losses_at_mean(table: pd.DataFrame) -> list[float]:
    """Return each run's loss at T = mean recurrence, NaN where that loss is.

    Raises:
        ValueError: a finished run was evaluated, but not at that T.
    """
    if "mean_recurrence" not in table:
        raise ValueError("the loss at T = mean recurrence needs mean_recurrence, but the table has none; map it")
    losses = []
    for row, mean in enumerate(table["mean_recurrence"]):
        evaluated = [t for name, t in loss_columns(table).items() if pd.notna(table[name].iloc[row])]
        name = loss_column(mean)
        if evaluated and mean not in evaluated and name not in table:
            raise ValueError(
                f"a run must be evaluated at T = mean recurrence, but {_label(table, row)} with {mean:g} loops has "
                f"losses at T = {', '.join(f'{t:g}' for t in evaluated)} alone; map columns.loss"
            )
        losses.append(float(table[name].iloc[row]) if name in table else math.nan)
    return losses


def _without_empty_runs(table: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the table without runs that logged nothing of a training run, such as the parents of others."""
    needed = [name for name in ("mean_recurrence", "params", "tokens", "flops", "loss") if name in table]
    empty = table[needed].isna().all(axis=1)
    if not empty.any() or empty.all():
        return table, notes
    return table[~empty], [*notes, f"Left out: {counted(empty.sum(), 'run')} without {', '.join(needed)}."]


def _with_divergences(table: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with the finished runs that have no finite loss as diverged, and a note about them."""
    if "loss" not in table:
        return table, notes
    losses = pd.to_numeric(table["loss"], errors="coerce")
    diverged = (table["status"] == "finished") & ~np.isfinite(losses.astype(float))
    if not diverged.any():
        return table, notes
    count = int(diverged.sum())
    runs = (
        "1 finished run without a finite loss counts"
        if count == 1
        else f"{count} finished runs without a finite loss count"
    )
    return table.assign(status=table["status"].mask(diverged, "diverged")), [*notes, f"{runs} as diverged."]


def _with_model(
    table: pd.DataFrame, notes: list[str], mapping: RunMapping, models: Mapping[str, pd.Series]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with the columns that follow from the model and the mean recurrence; mapped ones go before.

    `models` has the values (rows,) of the keys of `model` that differ from run to run.
    FLOPs in the table are kept. If they aren't the model's count within `COST_TOLERANCE`, they are the table's own, and
    the model gives the effective parameters alone.
    """
    # What the model costs at each run's recurrence.
    accounting = _counted_by(table, mapping)
    costs = _costs(table, mapping, models, accounting)
    named_otherwise = {"effective_params_fixed": "params_once", "effective_params_per_loop": "params_recurrent"}
    costs = costs.drop(columns=[name for name in costs if name in table or named_otherwise.get(name) in table])
    completed = pd.concat([table, costs], axis=1)
    per_token = (
        completed["flops_per_token_fixed"]
        + completed["flops_per_token_forward_loop"] * completed["forward_loops"]
        + completed["flops_per_token_backward_loop"] * completed["backward_loops"]
    )
    counted = completed["tokens"] * per_token if "tokens" in completed else pd.Series(np.nan, index=completed.index)
    # FLOPs: counted, or those of the table.
    own = completed["flops"] if "flops" in completed else pd.Series(np.nan, index=completed.index)
    if own.isna().all():
        if mapping.accounting == OWN:
            raise ValueError(
                "accounting: own keeps the table's FLOPs, but it has none; map columns.flops, or say exact"
            )
        note = f"FLOPs are counted from the model ({accounting})."
        return completed.assign(flops=counted, accounting=accounting), [*notes, note]
    ratios = (own / counted).dropna()
    if mapping.accounting != OWN and ((ratios - 1).abs() <= COST_TOLERANCE).all():
        note = f"The table's FLOPs agree with the model's count ({accounting}) within {100 * COST_TOLERANCE:g}%."
        return completed.assign(accounting=accounting), [*notes, note]
    span = f"{ratios.min():.3g} to {ratios.max():.3g} times" if len(ratios) else "not comparable with"
    note = (
        f"FLOPs are the table's own, {span} the model's count ({accounting}): they are kept, and the model gives "
        "the effective parameters alone. For FLOPs by that count, write 'flops: null' under columns of the mapping."
    )
    return completed.drop(columns=list(COST_COLUMNS)).assign(accounting=OWN), [*notes, note]


def _counted_by(table: pd.DataFrame, mapping: RunMapping) -> Accounting:
    """Return the accounting of the model's count: that of the mapping, else of the table, else `exact`."""
    labels = set(table["accounting"].dropna()) if "accounting" in table else set()
    for label in (mapping.accounting, *labels):
        if label in get_args(Accounting):
            return label
    return "exact"


def _costs(
    table: pd.DataFrame, mapping: RunMapping, models: Mapping[str, pd.Series], accounting: Accounting
) -> pd.DataFrame:
    """Return the columns that follow from each run's model and mean recurrence."""
    model: dict[str, Any] = {"size": mapping.model} if isinstance(mapping.model, str) else dict(mapping.model or {})
    sources = {name: source for name, source in model.items() if isinstance(source, ValueSource)}
    model |= {name: source.value for name, source in sources.items()}
    nothing = pd.Series(np.nan, index=table.index)
    means = table.get("mean_recurrence", nothing).to_numpy(dtype=float)
    limits = table.get("backprop_depth", nothing).to_numpy(dtype=float)
    rows = []
    for row, (mean, limit) in enumerate(zip(means, limits, strict=True)):
        if not math.isfinite(mean) or mean < 1:
            raise ValueError(
                "`mean_recurrence` must be a number from 1 on for the cost to follow from `model`, but "
                f"{_label(table, row)} has {mean:g}; map columns.mean_recurrence, or leave `model` out"
            )
        for name, values in models.items():
            model[name] = _parsed(values.iloc[row])
            if pd.isna(model[name]) or model[name] == "":
                raise ValueError(
                    f"`model.{name}` must be given for every run, but {_label(table, row)} has no "
                    f"{sources[name].label}; correct model"
                )
            if sources[name].times is not None:
                model[name] *= sources[name].times
        with _named(table, row):
            limit = None if math.isnan(limit) else int(limit)
            rows.append(_cost_of(json.dumps(model, sort_keys=True), mapping.depth, limit, float(mean), accounting))
    return pd.DataFrame(rows, index=table.index)


@contextmanager
def _named(table: pd.DataFrame, row: int) -> Iterator[None]:
    """Raise what breaks a rule of the model as one ValueError with the run's name."""
    try:
        yield
    except ValidationError as error:
        raise ValueError(
            f"the model of {_label(table, row)} breaks a rule: {broken_rules(error)}; correct it"
        ) from error


@cache
def _cost_of(
    model: str, depth: DepthConfig, backprop_depth: int | None, mean: float, accounting: Accounting
) -> dict[str, float]:
    """Return the cost columns of a model, in JSON, at a mean recurrence; a depth of `depth` goes before the run's."""
    drawn = depth.model_dump()
    drawn["backprop_depth"] = drawn["backprop_depth"] or backprop_depth
    recurrence = RecurrenceConfig(mean=mean, **drawn)
    loops = dict(zip(_LOOPS, expected_loops(recurrence, accounting), strict=True))
    return cost_model_columns(_model(model), recurrence, accounting) | loops | inference_columns(_model(model))


@cache
def _model(content_json: str) -> ModelConfig:
    content = json.loads(content_json)
    size = content.pop("size", None)
    if size is not None and str(size) not in SIZES:
        raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'; correct model.size")
    return ModelConfig.model_validate((SIZES[str(size)].model_dump() if size is not None else {}) | content)


def _parsed(value: Any) -> Any:
    """Return the number or truth value that a text stands for, otherwise the text."""
    if not isinstance(value, str):
        return value.item() if isinstance(value, np.generic) else value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(value, value)


def _label(table: pd.DataFrame, row: int) -> str:
    """Return a run's name for messages."""
    names = [str(table[name].iloc[row]) for name in ("run_name", "run_id") if name in table]
    return f"run {names[0]!r}" + (f" ({names[1]})" if names[1:] else "") if names else f"row {row + 1}"
