"""Runs that others logged in MLflow, mapped into the run table by a small YAML file."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pandas as pd
import yaml
from pydantic import Field, ValidationError, model_validator

from isoloop.fitting import check_table
from isoloop.fitting.tables.contract import COLUMNS, LOSS_UNIT, loss_column
from isoloop.sweeps.config.yaml_text import parse_yaml
from isoloop.sweeps.messages import broken_rule, broken_rules, did_you_mean
from isoloop.sweeps.plan.grid import cost_model_columns
from isoloop.trainer.accounting import Accounting, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, Config, DepthConfig, ModelConfig, RecurrenceConfig

Attribute = Literal["run_id", "run_name", "status", "start_time", "end_time"]

SOURCE_KINDS = ("param", "metric", "tag", "attribute", "value")
PLACEHOLDER = "{T}"
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed"}  # of MLflow, for runs that have ended
_COLUMNS = {column.name: column for column in COLUMNS}


class ValueSource(Config):
    """The source of a value: a parameter, the last value of a metric, a tag, an attribute of the run, or a constant.

    Args:
        times: the factor that converts a number to the column's unit.
    """

    param: str | None = None
    metric: str | None = None
    tag: str | None = None
    attribute: Attribute | None = None
    value: bool | int | float | str | None = None
    times: float | None = None

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


class RunMapping(Config):
    """The mapping of one MLflow experiment's runs to rows of the run table.

    Args:
        experiment: the experiment's name.
        filter: a filter of its runs in MLflow's filter language; all of them if left out.
        accounting: how FLOPs are counted.
        model: the architecture: a size (`140m`), or the keys of a sweep's `model`, each a value or a source; None if
            `columns` has everything that is known about the cost.
        depth: how loops are drawn, as in a sweep; it determines how many count.
        columns: the source of each column of the run table, and of any other column.
        losses: the name of the metrics with the loss at T loops, `{T}` for the number.
    """

    experiment: str
    filter: str = ""
    accounting: Accounting = "exact"
    model: str | dict[str, bool | int | float | str | ValueSource] | None = None
    depth: DepthConfig = DepthConfig()
    columns: Annotated[dict[str, ValueSource], Field(min_length=1)]
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
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"a mapping must be YAML, but {path} isn't: {error}") from error
    try:
        return RunMapping.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {broken_rule(problem)}" for problem in error.errors())
        raise ValueError(f"the mapping {path} breaks {error.error_count()} rule(s):\n{problems}") from error


def map_runs(mapping: RunMapping, runs: list[Any]) -> pd.DataFrame:
    """Return the checked run table of MLflow's `runs` that have ended.

    Raises:
        ValueError: a run lacks a value, or the table breaks a rule; the message names run and column.
    """
    ended = [run for run in runs if run.info.status in _STATUS]
    if not ended:
        raise ValueError(
            f"a mapping must find runs that have ended, but '{mapping.experiment}' has {len(runs)} that pass its "
            f"filter {mapping.filter!r}, and none has ended; correct experiment or filter"
        )
    table = pd.DataFrame([_MappedRun(mapping, run).columns() for run in ended])
    for name, source in mapping.columns.items():
        if table[name].isna().all() and name not in ("loss", "budget"):
            raise ValueError(
                f"`{name}` must be given for some run, but no run has {source.label}; correct columns.{name}"
            )
    return check_table(table)


class _MappedRun:
    """One of MLflow's runs and its row of the table."""

    def __init__(self, mapping: RunMapping, run: Any) -> None:
        self.mapping, self.run = mapping, run
        self.label = f"run {run.info.run_name!r} ({run.info.run_id})"
        self.values: dict[str, Mapping[str, Any]] = {
            "param": run.data.params,
            "metric": run.data.metrics,
            "tag": run.data.tags,
            "attribute": {name: getattr(run.info, name) for name in get_args(Attribute)},
        }

    def columns(self) -> dict[str, Any]:
        """Return all columns: the mapped ones, and those that follow from them."""
        mapped = {name: self.value(source, name) for name, source in self.mapping.columns.items()}
        row = {
            "run_id": self.run.info.run_id,
            "status": _STATUS[self.run.info.status],
            "simulated": False,
            "accounting": self.mapping.accounting,
            "loss_unit": LOSS_UNIT,
            **mapped,
        }
        # The losses and the status.
        losses = self.losses()
        mean = row.get("mean_recurrence")
        if "loss" not in row and mean is not None:
            row["loss"] = losses.get(loss_column(mean))
        if row["status"] == "finished" and "status" not in mapped and not _is_number(row.get("loss")):
            row["status"] = "diverged"
        if row["status"] != "finished":
            row["loss"], losses = None, dict.fromkeys(losses)
        # The required columns, and the cost.
        for name, column in _COLUMNS.items():
            if not column.optional and not column.measured and name in mapped and mapped[name] is None:
                raise ValueError(self.missing(name, self.mapping.columns[name]))
        return {**self.cost(row), **row, **losses}

    def value(self, source: ValueSource, name: str) -> Any:
        """Return the value of `source` in this run in the type of column `name`, None if it is missing."""
        if source.value is not None:
            return source.value
        value = self.values[source.kind].get(getattr(source, source.kind))
        column = _COLUMNS.get(name)
        if value is None or value == "":
            return None
        if column is not None and column.kind == "text":
            return str(value)
        if column is not None and column.kind == "flag":
            return {"true": True, "false": False}.get(str(value).lower(), value)
        parsed = _parsed(value)
        if column is None and source.times is None:
            return parsed
        if isinstance(parsed, bool) or not isinstance(parsed, int | float):
            raise ValueError(
                f"`{name}` must be a number, but {self.label} has {source.label} = {value!r}; correct columns.{name}"
            )
        product = parsed * (1 if source.times is None else source.times)
        if not math.isfinite(product):
            return product
        return round(product) if math.isclose(product, round(product), rel_tol=1e-12) else product

    def losses(self) -> dict[str, Any]:
        """Return the losses by column name."""
        if self.mapping.losses is None:
            return {}
        before, after = map(re.escape, self.mapping.losses.split(PLACEHOLDER))
        pattern = re.compile(rf"{before}(\d+(?:\.\d+)?){after}")
        matches = {name: pattern.fullmatch(name) for name in self.run.data.metrics}
        losses = {float(match.group(1)): self.run.data.metrics[name] for name, match in matches.items() if match}
        return {loss_column(t): loss for t, loss in sorted(losses.items())}

    def cost(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that follow from the model and the mean recurrence; mapped ones take precedence."""
        if self.mapping.model is None:
            return {}
        mean, model = row.get("mean_recurrence"), self.model()
        if mean is None or not _is_number(mean) or mean != round(mean):
            raise ValueError(
                f"`mean_recurrence` must be a whole number for the cost to follow from `model`, but {self.label} has "
                f"{mean!r}; map columns.mean_recurrence, or leave `model` out and map the columns of the cost"
            )
        recurrence = self.checked(
            lambda: RecurrenceConfig(mean=round(mean), **self.mapping.depth.model_dump()), "depth"
        )
        accounting = self.mapping.accounting
        forward, backward = expected_loops(recurrence, accounting)
        forward, backward = row.get("forward_loops", forward), row.get("backward_loops", backward)
        tokens: Any = row.get("tokens")
        known = _is_number(tokens) and _is_number(forward) and _is_number(backward)
        return {
            **cost_model_columns(model, recurrence, accounting),
            "forward_loops": forward,
            "backward_loops": backward,
            "flops": tokens * loop_cost(model, accounting).flops_per_token(forward, backward) if known else None,
        }

    def model(self) -> ModelConfig:
        """Return the run's architecture."""
        model = self.mapping.model
        content: dict[str, Any] = {"size": model} if isinstance(model, str) else dict(model or {})
        for name, source in content.items():
            if isinstance(source, ValueSource):
                content[name] = self.value(source, f"model.{name}")
                if content[name] is None:
                    raise ValueError(self.missing(f"model.{name}", source))
        return self.checked(lambda: _model(json.dumps(content, sort_keys=True)), "model")

    def checked(self, make: Callable[[], Any], key: str) -> Any:
        """Return the result of `make`; an error gets the run's name."""
        try:
            return make()
        except ValidationError as error:
            raise ValueError(f"`{key}` of {self.label} breaks a rule: {broken_rules(error)}; correct {key}") from error

    def missing(self, name: str, source: ValueSource) -> str:
        """Return the message about a missing value."""
        present = sorted(map(str, self.values.get(source.kind, {})))
        known = f"it has the {source.kind}s {', '.join(present) or 'none'}"
        hint = did_you_mean(str(getattr(source, source.kind)), present, known)
        return f"`{name}` must be given for every run, but {self.label} has no {source.label}; {hint}"


@cache
def _model(content_json: str) -> ModelConfig:
    content = json.loads(content_json)
    size = content.pop("size", None)
    if size is not None and str(size) not in SIZES:
        raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'; correct model.size")
    return ModelConfig.model_validate((SIZES[str(size)].model_dump() if size is not None else {}) | content)


def _parsed(value: Any) -> Any:
    """Return the number or truth value that the text of a parameter or tag stands for, otherwise the text."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(value, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
