"""What MLflow holds of a run, as plain tags and parameters, and the row of the run table that is read back from them.

Everything that a row needs is in the run itself: the table can be had from the store alone.
"""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd

from isoloop.fitting.tables.runs import COLUMNS, LOSS_UNIT, loss_column, loss_columns
from isoloop.sweeps.plan.grid import Cell, Plan, cost_columns, nominal_loops
from isoloop.sweeps.privacy import redacted
from isoloop.trainer.run.environment import environment
from isoloop.trainer.run.result import RunResult

PREFIX = "isoloop."
RUN_ID, SWEEP, KIND, SIMULATED, OUTCOME, REASON, IN_SWEEP, CHECKPOINT, CORPUS, PLANNED_TOKENS = (
    f"{PREFIX}{name}"
    for name in (
        "run_id", "sweep", "kind", "simulated", "outcome", "reason", "in_sweep", "checkpoint", "corpus",
        "planned_tokens",
    )
)  # fmt: skip
COLUMN, ENVIRONMENT = f"{PREFIX}column.", f"{PREFIX}env."
SWEEP_KIND, TUNE_KIND = "sweep", "tune"
ENDED = ("finished", "diverged")
LONGEST_TAG = 5000
_EXTRA = ("steps", "bits_per_byte", "spectral_radius", "seconds")
_ABOUT_A_RECORD = ("time_ms", "kind", "name", "step", "id")


def cell_tags(plan: Plan, cell: Cell) -> dict[str, str]:
    """What the plan says of a cell: the columns of its row that are known before the run, and where it comes from."""
    columns = {**cost_columns(plan, cell), "tokenizer": _tokenizer(plan, cell), "loss_unit": LOSS_UNIT}
    if plan.sweep.accounting != "exact":  # nominal loops count, whatever was run
        columns["forward_loops"], columns["backward_loops"] = nominal_loops(cell)
    return {
        **origin_tags(plan),
        IN_SWEEP: "true",
        PLANNED_TOKENS: str(cell.spec.tokens),
        **{f"{COLUMN}{name}": _written(value) for name, value in columns.items()},
    }


def tag_text(value: Any) -> str:
    """Return a value as the text of a tag: without secrets, and no longer than MLflow's stores take."""
    return redacted(str(value))[:LONGEST_TAG]


def origin_tags(plan: Plan) -> dict[str, str]:
    """Where numbers come from: a law, or a corpus."""
    simulated = plan.sweep.simulation is not None
    return {SIMULATED: str(simulated).lower(), CORPUS: "none" if simulated else tag_text(plan.sweep.data.corpus)}


def changed_tags(wanted: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """What must be written so that a run has the tags `wanted`, and no column beside them."""
    gone = {key: "" for key, value in present.items() if key.startswith(COLUMN) and value and key not in wanted}
    return {key: value for key, value in wanted.items() if present.get(key) != value} | gone


def environment_tags(details: Mapping[str, Any]) -> dict[str, str]:
    """What a run, or the driver, says of where it runs; mappings are laid flat."""
    flat = _flat({key: value for key, value in details.items() if key not in _ABOUT_A_RECORD})
    return {f"{ENVIRONMENT}{key}": tag_text(value) for key, value in flat if value is not None}


def parameters(cell: Cell) -> dict[str, Any]:
    """What determines the run's result, flat. MLflow's parameters can't be changed, and these never need to be."""
    spec = cell.spec.model_dump(mode="json", exclude={"data"})
    spec["recurrence"]["backprop_depth"] = cell.spec.recurrence.gradient_loops
    return {"mean_recurrence": cell.mean_recurrence, **dict(_flat(spec))}


def run_name(plan: Plan, cell: Cell) -> str:
    """How the run is called in MLflow's pages."""
    return f"{cell.label}{simulated_suffix(plan)}"


def simulated_suffix(plan: Plan) -> str:
    """What is added to the name of everything that is simulated."""
    return "" if plan.sweep.simulation is None else " (simulated)"


def result_metrics(result: RunResult) -> dict[str, float]:
    """What a result says in numbers, under both accountings; what is missing has no key."""
    values = result.model_dump(
        include={
            "tokens", "steps", "forward_loops", "backward_loops", "flops_exact", "flops_parcae_release", "loss",
            "bits_per_byte", "training_loss", "spectral_radius", "seconds",
        }
    )  # fmt: skip
    values |= {loss_column(recurrence): loss for recurrence, loss in result.losses.items()}
    return {key: float(value) for key, value in values.items() if value is not None}


def is_over(tags: Mapping[str, str]) -> bool:
    """Whether the run came to an end: finished, diverged or failed; not running, and not stopped to go on later."""
    return tags.get(OUTCOME) in (*ENDED, "failed")


def run_table(runs: Iterable[tuple[Mapping[str, str], Mapping[str, float]]]) -> pd.DataFrame:
    """The run table of the runs that are over, from the tags and last metrics of each; smallest budget first.

    Raises:
        ValueError: a run doesn't hold its columns.
    """
    over = [(tags, metrics) for tags, metrics in runs if is_over(tags) and tags.get(IN_SWEEP) != "false"]
    rows = sorted(over, key=lambda run: _place(run[0]))
    table = pd.DataFrame([_row(tags, metrics) for tags, metrics in rows])
    table[list(_EXTRA)] = table[list(_EXTRA)].astype(float)  # also where none of the runs has such a number
    known = [column.name for column in COLUMNS]
    first = [name for name in (*known, *_EXTRA) if name in table]
    last = list(loss_columns(table))
    between = sorted(set(table.columns) - {*first, *last})
    return table[[*first, *between, *last]]


def _row(tags: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, Any]:
    """One row: what the plan said from the tags, what the run did from its metrics."""
    columns = _columns(tags)
    if "accounting" not in columns:
        raise ValueError(
            f"a run must hold the columns of its row, but {tags.get(RUN_ID)} of sweep {tags.get(SWEEP)} doesn't; give "
            "'isoloop run' with this sweep again, which writes them and trains nothing twice"
        )
    status = tags[OUTCOME]
    losses = sorted((name for name in metrics if name.startswith("loss_T")), key=lambda name: float(name[6:]))
    return {
        "run_id": tags[RUN_ID],
        "status": status,
        "simulated": tags[SIMULATED] == "true",
        "tokens": metrics.get("tokens"),
        "flops": metrics.get(f"flops_{str(columns['accounting']).replace('-', '_')}"),
        "forward_loops": metrics.get("forward_loops"),
        "backward_loops": metrics.get("backward_loops"),
        "loss": metrics.get("loss") if status == "finished" else None,
        **{name: metrics.get(name) for name in _EXTRA},
        **{name: metrics[name] if status == "finished" else None for name in losses},
        **columns,
    }


def _place(tags: Mapping[str, str]) -> tuple[float, float, str]:
    columns = _columns(tags)
    asked = columns.get("budget") or tags.get(PLANNED_TOKENS) or 0
    return float(asked), float(columns.get("mean_recurrence", 0)), tags[RUN_ID]


def _columns(tags: Mapping[str, str]) -> dict[str, Any]:
    return {key.removeprefix(COLUMN): _read(value) for key, value in tags.items() if key.startswith(COLUMN) and value}


def _written(value: Any) -> str:
    """A value as a tag: as JSON, and text without quotation marks where it can't be taken for something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False) if not value or _read(value) != value else value


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tokenizer(plan: Plan, cell: Cell) -> str:
    """What the losses are counted in: losses per token of two tokenizers can't be compared."""
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


# MERGED driver
_PACKAGES = ("ray", "mlflow", "scipy", "pandas")


@cache
def driver_environment() -> dict[str, str | None]:
    """Versions, the commit of the code, machine and platform; None where there is nothing to tell."""
    return {**environment(), "platform": platform.platform(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
