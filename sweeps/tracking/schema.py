"""The record of a run in MLflow: its tags, parameters and metrics, and the row of the run table read back from them.

Everything that a row needs is in the run itself: the table can be read from the store alone.
"""

import json
import platform
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import pandas as pd

from isoloop.fitting.tables.contract import COLUMNS, LOSS_UNIT, best_column, loss_column, loss_columns
from isoloop.sweeps.plan.grid import Cell, Plan, planned_columns
from isoloop.sweeps.privacy import redacted
from isoloop.trainer.accounting import expected_loops
from isoloop.trainer.config import READING, RunSpec
from isoloop.trainer.run.environment import environment, package_version
from isoloop.trainer.run.result import RunResult

PREFIX = "isoloop."
RUN_ID, SWEEP, KIND, SIMULATED, OUTCOME, REASON, IN_SWEEP, CHECKPOINT, CORPUS, PLANNED_TOKENS, EXPERIMENT = (
    f"{PREFIX}{name}"
    for name in (
        "run_id", "sweep", "kind", "simulated", "outcome", "reason", "in_sweep", "checkpoint", "corpus",
        "planned_tokens", "experiment",
    )
)  # fmt: skip
COLUMN, ENVIRONMENT, LOSSES, BEST_LOSSES, INTERVAL, QUALITY = (
    f"{PREFIX}{name}." for name in ("column", "env", "losses", "best_losses", "interval", "quality")
)
PARENT_RUN, NOTE = "mlflow.parentRunId", "mlflow.note.content"
SWEEP_KIND, TUNE_KIND = "sweep", "tune"
SETTLED_OUTCOMES = ("finished", "diverged")
LONGEST_TAG = 5000
LONGEST_KEY = 250
EXTRA_COLUMNS = ("steps", "bits_per_byte", "spectral_radius", "seconds")
# Missing in simulated runs, in runs of older versions, and where there is nothing to count or nothing was asked for.
RARE_COLUMNS = (
    "unique_tokens",
    "epochs",
    "best_loss",
    "best_step",
    "skipped_steps",
    "dropped_tokens",
    "predicted_tokens",
    "exact_answers",
    "perplexity",
    "document_bits_per_byte",
)
_OWN_COLUMNS = {*(column.name for column in COLUMNS), *EXTRA_COLUMNS, *RARE_COLUMNS, "flops_trained"}
_PACKAGES = ("ray", "mlflow", "scipy", "pandas")
_RECORD_FIELDS = ("time_ms", "kind", "name", "step", "id")
_LOSS = "loss_T"
_LOSSES_PER_TAG = 100
_MOST_AXIS_COLUMNS = 20
LOSS_AT_T = "test_time/loss_at_T"
_CURVES = {
    "loss": ("train_loss", "validation_loss"),
    "model": ("spectral_radius", "state_norm", "last_loop_residual"),
    "speed": ("tokens_per_second", "model_flop_utilisation", "peak_memory"),
    "training": (
        "gradient_norm",
        "learning_rate",
        "matrix_learning_rate",
        "tokens",
        "skipped_steps",
        "dropped_tokens",
    ),
}
"""Sections of MLflow's charts and the journal's metrics in them; MLflow shows them by name, and then other metrics."""
_SECTIONS = {name: section for section, names in _CURVES.items() for name in names}
VIEW = "mlflow.sharedViewState."
_NO_KEY = re.compile(r"[^\w\-. /]")
"""Characters that MLflow takes in no name of a metric or tag, such as the = in the name of a group of runs."""


def cell_tags(plan: Plan, cell: Cell) -> dict[str, str]:
    """Return the tags of a cell that the plan determines: its columns known before the run, and its origin."""
    columns = {**planned_columns(plan, cell), "tokenizer": _tokenizer(plan, cell), "loss_unit": LOSS_UNIT}
    return {**origin_tags(plan), **column_tags(cell.spec, columns)}


def column_tags(spec: RunSpec, columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a run's planned columns, with the loops that count where accounting is nominal."""
    if columns["accounting"] != "exact":  # nominal loops count, whatever was run
        forward, backward = expected_loops(spec.recurrence, "parcae-release")
        columns = {**columns, "forward_loops": forward, "backward_loops": backward}
    return {
        IN_SWEEP: "true",
        PLANNED_TOKENS: str(spec.tokens),
        **{f"{COLUMN}{name}": _to_tag(value) for name, value in columns.items()},
    }


def tag_text(value: Any) -> str:
    """Return a value as the text of a tag: without secrets, and no longer than MLflow's stores take."""
    return redacted(str(value))[:LONGEST_TAG]


def metric_name(name: str) -> str:
    """Return what MLflow calls a metric of the journal or a number of the result: curves have a section of charts."""
    return f"{_SECTIONS[name]}/{name}" if name in _SECTIONS else name


def result_key(name: str) -> str:
    """Return what MLflow calls a number of a sweep's result: the name without the characters that it refuses."""
    return _NO_KEY.sub("_", name)


def result_points(result: RunResult, journaled: Collection[str]) -> list[tuple[str, float, int]]:
    """Return the points (metric, value, step) of a result.

    A curve ends at the run's last step, unless the journal has it (`journaled` are its metrics in that step). MLflow
    shows a single number as a bar if its step is 0, and as a curve of one point otherwise.
    """
    numbers = {name: value for name, value in result_metrics(result).items() if _LOSS not in name}
    last = {name: value for name, value in numbers.items() if name in _SECTIONS and name not in journaled}
    points = [(metric_name(name), value, result.steps) for name, value in last.items()]
    points += [(name, value, 0) for name, value in numbers.items() if name not in _SECTIONS]
    return points + [(LOSS_AT_T, loss, recurrence) for recurrence, loss in result.losses.items()]


def loss_tags(result: RunResult) -> dict[str, str]:
    """Return the tags of the losses at each T, from which the run table has them; MLflow cuts longer ones."""
    tags: dict[str, str] = {}
    for prefix, losses in (LOSSES, list(result.losses.items())), (BEST_LOSSES, list(result.best_losses.items())):
        parts = [dict(losses[start : start + _LOSSES_PER_TAG]) for start in range(0, len(losses), _LOSSES_PER_TAG)]
        tags |= {f"{prefix}{place}": json.dumps(part) for place, part in enumerate(parts)}
    return tags


def quality_key(name: str) -> str:
    """Return what MLflow calls a score: a name that it takes, whatever a task is called."""
    return f"quality/{result_key(name).replace('/', '_')}"[:LONGEST_KEY]


def quality_tags(columns: Mapping[str, float | str]) -> dict[str, str]:
    """Return the tags of a run's results on suites, from which the run table has them; each is short enough."""
    parts: list[dict[str, float | str]] = [{}]
    for name, value in columns.items():
        if parts[-1] and len(json.dumps({**parts[-1], name: value})) > LONGEST_TAG:
            parts.append({})
        parts[-1][name] = value
    return {f"{QUALITY}{place}": json.dumps(part) for place, part in enumerate(parts) if part}


def is_own_column(name: str) -> bool:
    """Return whether a column of the run table is one that its runs or the plan fill in, whatever suites there are."""
    return name in _OWN_COLUMNS or _LOSS in name


def run_name(plan: Plan, cell: Cell) -> str:
    """Return the name of a cell's run in MLflow's pages: budget, µ, and the axes on which the sweep's cells differ."""
    size = f"C={cell.budget:.4g}" if cell.budget else f"D={cell.spec.tokens:.4g}"
    axes = (f"{name.rpartition('.')[2]}={value}" for name, value in cell.axes.items())
    return " ".join([re.sub(r"e\+0*", "e", size), f"µ={cell.mean_recurrence}", *axes]) + simulated_suffix(plan)


def runs_view(plan: Plan) -> str:
    """Return the state of MLflow's page of runs that shows a sweep's runs by loss, with what they differ in.

    Sorted by their start, MLflow would fold them up in the sweep's run.
    """
    axes = list(dict.fromkeys(name for cell in plan.cells for name in cell.axes))[:_MOST_AXIS_COLUMNS]
    budgets = ["budget"] if any(cell.budget for cell in plan.cells) else []
    columns = [f"tags.`{COLUMN}{name}`" for name in budgets]
    columns += ["params.`mean_recurrence`", f"metrics.`{metric_name('tokens')}`", "metrics.`loss`"]
    columns += [f"tags.`{COLUMN}{name}`" for name in axes]
    return json.dumps(
        {
            "searchFilter": f"tags.`{SWEEP}` = '{plan.sweep.name}' and tags.`{KIND}` = 'run'",
            "orderByKey": "metrics.`loss`",
            "orderByAsc": True,
            "selectedColumns": [*columns, f"tags.`{OUTCOME}`"],
        }
    )


def origin_tags(plan: Plan) -> dict[str, str]:
    """Return the tags of the source of the losses: a law, or a corpus."""
    simulated, data = plan.sweep.simulation is not None, plan.sweep.data
    corpus = f"{data.corpus} (synthetic)" if data.is_synthetic else data.corpus
    return {SIMULATED: str(simulated).lower(), CORPUS: "none" if simulated else tag_text(corpus)}


def changed_tags(wanted: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """Return the tags to write so that a run has the tags `wanted`, and no other columns."""
    gone = {key: "" for key, value in present.items() if key.startswith(COLUMN) and value and key not in wanted}
    return {key: value for key, value in wanted.items() if present.get(key) != value} | gone


def environment_tags(details: Mapping[str, Any]) -> dict[str, str]:
    """Return tags of the environment of a run or of the driver; nested mappings become dotted names."""
    flat = _flat({key: value for key, value in details.items() if key not in _RECORD_FIELDS})
    return {f"{ENVIRONMENT}{key}": tag_text(value) for key, value in flat if value is not None}


@cache
def driver_environment() -> dict[str, str | None]:
    """Return versions, the commit of the code, machine and platform of the driver; None for unknown ones."""
    return {**environment(), "platform": platform.platform(), **{name: package_version(name) for name in _PACKAGES}}


def parameters(cell: Cell) -> dict[str, Any]:
    """Return everything that determines the run's result, by dotted names.

    MLflow's parameters can't be changed, and these never need to be.
    """
    spec = cell.spec.all_fields()
    spec["recurrence"]["backprop_depth"] = cell.spec.recurrence.gradient_loops
    spec["data"] = {name: spec["data"][name] for name in READING}
    return {"mean_recurrence": cell.mean_recurrence, **dict(_flat(spec))}


def simulated_suffix(plan: Plan) -> str:
    """Return the suffix of the names of simulated runs in MLflow's pages."""
    return "" if plan.sweep.simulation is None else " (simulated)"


def result_metrics(result: RunResult) -> dict[str, float]:
    """Return a result's numbers, under both accountings, without the missing ones."""
    values = result.model_dump(
        include={
            "tokens", "unique_tokens", "dropped_tokens", "steps", "forward_loops", "backward_loops", "flops_exact",
            "flops_parcae_release", "loss", "best_loss", "best_step", "bits_per_byte", "spectral_radius", "seconds",
            "predicted_tokens", "exact_answers", "perplexity", "document_bits_per_byte",
        }
    )  # fmt: skip
    values |= {"epochs": result.epochs, "train_loss": result.training_loss}
    if result.skipped_steps:
        values["skipped_steps"] = result.skipped_steps
    if result.trunk_steps:
        values |= {"trunk_steps": result.trunk_steps, "flops_trained": result.flops_trained}
    values |= {loss_column(recurrence): loss for recurrence, loss in result.losses.items()}
    values |= {best_column(loss_column(recurrence)): loss for recurrence, loss in result.best_losses.items()}
    return {key: float(value) for key, value in values.items() if value is not None}


def has_ended(tags: Mapping[str, str]) -> bool:
    """Return whether the run has finished, diverged or failed, and isn't running or stopped to resume later."""
    return tags.get(OUTCOME) in (*SETTLED_OUTCOMES, "failed")


def run_table(runs: Iterable[tuple[Mapping[str, str], Mapping[str, float]]]) -> pd.DataFrame:
    """Return the run table of the runs that have ended, from their tags and last metrics; smallest budget first.

    Raises:
        ValueError: a run doesn't hold its columns.
    """
    ended = [(tags, metrics) for tags, metrics in runs if has_ended(tags) and tags.get(IN_SWEEP) != "false"]
    rows = sorted(ended, key=lambda run: _sort_key(run[0]))
    table = pd.DataFrame([_row(tags, metrics) for tags, metrics in rows])
    table[list(EXTRA_COLUMNS)] = table[list(EXTRA_COLUMNS)].astype(float)  # also if no run has such a number
    known = [column.name for column in COLUMNS]
    first = [name for name in (*known, *EXTRA_COLUMNS) if name in table]
    last = list(loss_columns(table))
    last += [best_column(name) for name in last if best_column(name) in table]
    between = sorted(set(table.columns) - {*first, *last})
    return table[[*first, *between, *last]]


def _row(tags: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return one row: the plan's columns from the tags, the measured ones from the metrics."""
    columns = _columns(tags)
    if "accounting" not in columns:
        raise ValueError(
            f"a run must hold the columns of its row, but {tags.get(RUN_ID)} of sweep {tags.get(SWEEP)} doesn't; rerun "
            "'isoloop run' with this sweep, which writes them and trains nothing twice"
        )
    status = tags[OUTCOME]
    # Runs of older versions have curves without a section, and a metric for each T.
    metrics = {**metrics, **{name: metrics[metric_name(name)] for name in _SECTIONS if metric_name(name) in metrics}}
    losses = {name: loss for name, loss in metrics.items() if _LOSS in name}
    for prefix, named in (LOSSES, loss_column), (BEST_LOSSES, lambda recurrence: best_column(loss_column(recurrence))):
        for key in sorted(key for key in tags if key.startswith(prefix)):
            losses |= {named(int(recurrence)): loss for recurrence, loss in json.loads(tags[key]).items()}
    flops = metrics.get(f"flops_{str(columns['accounting']).replace('-', '_')}")
    trained = {}
    if flops is not None and "flops_trained" in metrics:  # a branch's, by `exact` accounting
        trained["flops_trained"] = flops * metrics["flops_trained"] / metrics["flops_exact"]
    return {
        "run_id": tags[RUN_ID],
        "status": status,
        "simulated": tags[SIMULATED] == "true",
        "tokens": metrics.get("tokens"),
        "flops": flops,
        **trained,
        "forward_loops": metrics.get("forward_loops"),
        "backward_loops": metrics.get("backward_loops"),
        "loss": metrics.get("loss") if status == "finished" else None,
        **{name: metrics[name] for name in RARE_COLUMNS if name in metrics},
        **{name: metrics.get(name) for name in EXTRA_COLUMNS},
        **{name: loss if status == "finished" else None for name, loss in losses.items()},
        **{
            name: value
            for key in sorted(key for key in tags if key.startswith(QUALITY) and tags[key])
            for name, value in json.loads(tags[key]).items()
            if not is_own_column(name)
        },
        **columns,
    }


def _sort_key(tags: Mapping[str, str]) -> tuple[float, float, str]:
    columns = _columns(tags)
    size = columns.get("budget") or tags.get(PLANNED_TOKENS) or 0
    return float(size), float(columns.get("mean_recurrence", 0)), tags[RUN_ID]


def _columns(tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        key.removeprefix(COLUMN): _from_tag(value) for key, value in tags.items() if key.startswith(COLUMN) and value
    }


def _to_tag(value: Any) -> str:
    """Return a value as JSON, and text without quotation marks where it can't be taken for another value."""
    if not isinstance(value, str):
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False) if not value or _from_tag(value) != value else value


def _from_tag(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tokenizer(plan: Plan, cell: Cell) -> str:
    """Return the name of the tokenizer: losses per token of two tokenizers can't be compared."""
    if plan.sweep.simulation is not None:
        return "none"
    data = cell.spec.data
    return tag_text(f"bpe {data.tokenizer_vocabulary} of {data.corpus}" if data.tokenizer == "bpe" else data.tokenizer)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
