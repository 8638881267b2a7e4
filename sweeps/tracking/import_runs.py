"""Runs that others logged, mapped into the run table by a small YAML."""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
import yaml
from pydantic import Field, ValidationError, model_validator

from isoloop.fitting import check_table
from isoloop.fitting.tables.runs import COLUMNS, LOSS_UNIT, loss_column
from isoloop.sweeps.config.loading import parse_yaml
from isoloop.sweeps.messages import broken_rule, broken_rules
from isoloop.trainer.accounting import Accounting, count_parameters, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, Config, DepthConfig, ModelConfig, RecurrenceConfig

KINDS = ("param", "metric", "tag", "attribute")
ATTRIBUTES = ("run_id", "run_name", "status", "start_time", "end_time")
PLACEHOLDER = "{T}"
_OVER = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed"}
_KNOWN = {column.name: column for column in COLUMNS}


class Source(Config):
    """Where a value comes from: a parameter, the last value of a metric, a tag, an attribute of the run, or `value`.

    Args:
        times: what a number is multiplied by, to come to natural units.
    """

    param: str | None = None
    metric: str | None = None
    tag: str | None = None
    attribute: Literal["run_id", "run_name", "status", "start_time", "end_time"] | None = None
    value: bool | int | float | str | None = None
    times: float | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name in (*KINDS, "value") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(KINDS)} and value must be given, but got {' and '.join(given) or 'none'}; keep one"
            )
        if self.times is not None and self.value is not None:
            raise ValueError(f"times is for what a run says, but got value={self.value!r}; write the product as value")
        return self

    @property
    def label(self) -> str:
        """The source in words."""
        kind = next(name for name in (*KINDS, "value") if getattr(self, name) is not None)
        return f"{kind} {getattr(self, kind)!r}"


class Mapped(Config):
    """How the runs of one MLflow experiment become rows of the run table.

    Args:
        experiment: the experiment's name.
        filter: which of its runs, in MLflow's filter language; all of them if left out.
        accounting: how FLOPs are counted.
        model: the architecture: a size (`140m`), or the keys of a sweep's `model`, each a value or a source; None where
            `columns` has all that is known of the cost.
        depth: how loops are drawn, as in a sweep; it says how many count.
        columns: where each column of the run table, and any other, comes from.
        losses: the name of the metrics with the loss at T loops, `{T}` for the number.
    """

    experiment: str
    filter: str = ""
    accounting: Accounting = "exact"
    model: str | dict[str, bool | int | float | str | Source] | None = None
    depth: DepthConfig = DepthConfig()
    columns: Annotated[dict[str, Source], Field(min_length=1)]
    losses: str | None = None

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if self.losses is not None and self.losses.count(PLACEHOLDER) != 1:
            raise ValueError(f"losses must name a metric with one {PLACEHOLDER} in it, but got {self.losses!r}")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        size = self.model if isinstance(self.model, str) else (self.model or {}).get("size")
        if size is not None and not isinstance(size, Source) and str(size) not in SIZES:
            raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'; correct model")
        return self


def read_mapping(path: Path) -> Mapped:
    """Read a mapping from a YAML file.

    Raises:
        ValueError: there is no such file, it isn't YAML, or it breaks a rule.
    """
    if not path.is_file():
        raise ValueError(f"a mapping must be a YAML file, but there is none at {path}; docs/sweeps.md has an example")
    try:
        content = parse_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"a mapping must be YAML, but {path} isn't: {error}") from error
    try:
        return Mapped.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {broken_rule(problem)}" for problem in error.errors())
        raise ValueError(f"the mapping {path} breaks {error.error_count()} rule(s):\n{problems}") from error


def map_runs(mapping: Mapped, runs: list[Any]) -> pd.DataFrame:
    """The checked run table of MLflow's `runs`; those that are still going on are left out.

    Raises:
        ValueError: a run lacks something, or the table breaks the contract; the message names run and column.
    """
    over = [run for run in runs if run.info.status in _OVER]
    if not over:
        raise ValueError(
            f"a mapping must find runs that are over, but '{mapping.experiment}' has {len(runs)} that pass its filter "
            f"{mapping.filter!r}, and none is over; correct experiment or filter"
        )
    rows = [_Row(mapping, run).columns() for run in over]
    table = pd.DataFrame(rows)
    for name, source in mapping.columns.items():
        if table[name].isna().all() and name not in ("loss", "budget"):
            raise ValueError(
                f"`{name}` must be there for some run, but no run has {source.label}; correct columns.{name}"
            )
    return check_table(table)


class _Row:
    """One run of others on its way into the table."""

    def __init__(self, mapping: Mapped, run: Any) -> None:
        self.mapping, self.run = mapping, run
        self.label = f"run {run.info.run_name!r} ({run.info.run_id})"
        self.places: dict[str, Mapping[str, Any]] = {
            "param": run.data.params,
            "metric": run.data.metrics,
            "tag": run.data.tags,
            "attribute": {name: getattr(run.info, name) for name in ATTRIBUTES},
        }

    def columns(self) -> dict[str, Any]:
        """All columns: what is mapped, and for the rest what follows from it."""
        mapped = {name: self.value(source, name) for name, source in self.mapping.columns.items()}
        row = {
            "run_id": self.run.info.run_id,
            "status": _OVER[self.run.info.status],
            "simulated": False,
            "accounting": self.mapping.accounting,
            "loss_unit": LOSS_UNIT,
            **mapped,
        }
        losses = self.losses()
        mean = row.get("mean_recurrence")
        if "loss" not in row and mean is not None:
            row["loss"] = losses.get(loss_column(mean))
        if row["status"] == "finished" and "status" not in mapped and not _is_number(row.get("loss")):
            row["status"] = "diverged"
        if row["status"] != "finished":
            row["loss"], losses = None, dict.fromkeys(losses)
        for name in (name for name, column in _KNOWN.items() if column.required and not column.measured):
            if name in mapped and mapped[name] is None:
                raise ValueError(self.missing(name, self.mapping.columns[name]))
        return {**self.cost(row), **row, **losses}

    def value(self, source: Source, name: str) -> Any:
        """What `source` says of this run, as the column `name` wants it; None where it is missing."""
        if source.value is not None:
            return source.value
        kind = next(kind for kind in KINDS if getattr(source, kind) is not None)
        found = self.places[kind].get(getattr(source, kind))
        column = _KNOWN.get(name)
        if found is None or found == "":
            return None
        if column is not None and column.kind == "text":
            return str(found)
        if column is not None and column.kind == "flag":
            return {"true": True, "false": False}.get(str(found).lower(), found)
        plain = _plain(found)
        if column is None and source.times is None:
            return plain
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            raise ValueError(
                f"`{name}` must be a number, but {self.label} has {source.label} = {found!r}; correct columns.{name}"
            )
        product = plain * (1 if source.times is None else source.times)
        if not math.isfinite(product):
            return product
        return round(product) if math.isclose(product, round(product), rel_tol=1e-12) else product

    def losses(self) -> dict[str, Any]:
        """The losses by T."""
        if self.mapping.losses is None:
            return {}
        before, after = map(re.escape, self.mapping.losses.split(PLACEHOLDER))
        pattern = re.compile(rf"{before}(\d+(?:\.\d+)?){after}")
        found = {name: pattern.fullmatch(name) for name in self.run.data.metrics}
        numbers = {float(match.group(1)): self.run.data.metrics[name] for name, match in found.items() if match}
        return {loss_column(t): loss if _is_number(loss) else None for t, loss in sorted(numbers.items())}

    def cost(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns that follow from the model and the mean recurrence; those that are mapped go before them."""
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
        loops, parameters = loop_cost(model, self.mapping.accounting), count_parameters(model)
        forward, backward = expected_loops(recurrence, self.mapping.accounting)
        forward, backward = row.get("forward_loops", forward), row.get("backward_loops", backward)
        tokens: Any = row.get("tokens")
        known = _is_number(tokens) and _is_number(forward) and _is_number(backward)
        return {
            "backprop_depth": recurrence.gradient_loops,
            "flops_per_token_fixed": loops.fixed,
            "flops_per_token_forward_loop": loops.per_forward_loop,
            "flops_per_token_backward_loop": loops.per_backward_loop,
            "effective_params_fixed": parameters.effective_fixed,
            "effective_params_per_loop": parameters.effective_per_loop,
            "forward_loops": forward,
            "backward_loops": backward,
            "flops": tokens * loops.flops_per_token(forward, backward) if known else None,
        }

    def model(self) -> ModelConfig:
        """The run's architecture."""
        asked = {"size": self.mapping.model} if isinstance(self.mapping.model, str) else self.mapping.model or {}
        said: dict[str, Any] = {}
        for name, entry in asked.items():
            said[name] = self.value(entry, f"model.{name}") if isinstance(entry, Source) else entry
            if said[name] is None and isinstance(entry, Source):
                raise ValueError(self.missing(f"model.{name}", entry))
        return self.checked(lambda: _model(json.dumps(said, sort_keys=True)), "model")

    def checked(self, make: Callable[[], Any], what: str) -> Any:
        """What `make` makes; a rule that it breaks is told with the run's name."""
        try:
            return make()
        except ValidationError as error:
            raise ValueError(
                f"`{what}` of {self.label} breaks a rule: {broken_rules(error)}; correct {what}"
            ) from error

    def missing(self, name: str, source: Source) -> str:
        """What to say of a value that isn't there."""
        kind = next((kind for kind in KINDS if getattr(source, kind) is not None), "value")
        there = sorted(map(str, self.places.get(kind, {})))
        close = difflib.get_close_matches(str(getattr(source, kind)), there, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it has the {kind}s {', '.join(there) or 'none'}"
        return f"`{name}` must be there for every run, but {self.label} has no {source.label}; {hint}"


@cache
def _model(said: str) -> ModelConfig:
    content = json.loads(said)
    size = content.pop("size", None)
    if size is not None and str(size) not in SIZES:
        raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'; correct model.size")
    return ModelConfig.model_validate((SIZES[str(size)].model_dump() if size is not None else {}) | content)


def _plain(found: Any) -> Any:
    """A parameter's or a tag's text as the number that it may be."""
    if not isinstance(found, str):
        return found
    for kind in (int, float):
        try:
            return kind(found)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(found, found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
