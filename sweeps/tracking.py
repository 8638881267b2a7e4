"""The MLflow store: parent and child runs, their parameters, tags and points, and the run table read back.

The only file that imports mlflow. Runs are found by tags of our own; parameters hold only what the run id hashes, since
MLflow's can't be changed.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.config import config_text
from sweeps.errors import first_line
from sweeps.grid import Cell, Plan, cost_columns, nominal_loops

PREFIX = "isoloop."
RUN_ID, SWEEP, KIND, SIMULATED, OUTCOME, REASON = (
    f"{PREFIX}{name}" for name in ("run_id", "sweep", "kind", "simulated", "outcome", "reason")
)
NOTE = "mlflow.note.content"
ENDED = ("finished", "diverged")
BATCH_POINTS = 1000
_EXTRA = ("steps", "bits_per_byte", "spectral_radius", "seconds")


class Store:
    """One MLflow store and the experiment in it that sweeps are recorded under."""

    def __init__(self, uri: str, experiment: str, *, artifacts: Path) -> None:
        """Connect to `uri`; a new experiment keeps its artifacts in the folder `artifacts` if the store is sqlite.

        Raises:
            ValueError: nothing usable answers at `uri`.
        """
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri, self.experiment = uri, experiment
        local = uri.startswith("sqlite:")
        if local and (":memory:" in uri or not uri.removeprefix("sqlite:").strip("/")):
            raise ValueError(f"an sqlite tracking URI must read sqlite:///path/to/file.db, but got '{uri}'")
        with named_trouble(uri), _first_use(uri) if local else contextlib.nullcontext():
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                where = artifacts.resolve().as_uri() if local else None
                self.experiment_id = self.client.create_experiment(experiment, artifact_location=where)
            else:
                self.experiment_id = found.experiment_id
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(f"the MLflow experiment must exist, but '{experiment}' was deleted; restore or rename it")

    def sweep_run(self, plan: Plan) -> str:
        """The MLflow run id of the sweep's parent run, made where it is missing; its note is the configuration."""
        sweep = plan.sweep
        identity = {KIND: "sweep", SWEEP: sweep.name}
        found = self._search(identity)
        name = f"{sweep.name}{_simulated_suffix(plan)}"
        parent = found[0].info.run_id if found else self._create(name, identity)
        self.client.update_run(parent, status="RUNNING", name=name)
        axes = {key: value for key, value in sweep.model_dump(mode="json").items() if not isinstance(value, dict)}
        self._tag(parent, {**_origin_tags(plan), **{f"{PREFIX}{key}": value for key, value in axes.items()}})
        self._tag(parent, {NOTE: f"```yaml\n{config_text(sweep)}```"})
        return parent

    def cell_runs(self, sweep: str) -> dict[str, Any]:
        """MLflow's runs of a sweep's cells, by our run id."""
        return {run.data.tags[RUN_ID]: run for run in self._search({KIND: "run", SWEEP: sweep})}

    def cell_run(self, plan: Plan, cell: Cell, parent: str) -> str:
        """The child run of `cell`, looked up by its tags and made only where it is missing."""
        identity = {KIND: "run", SWEEP: plan.sweep.name, RUN_ID: cell.run_id}
        found = self._search(identity)
        if found:
            return found[0].info.run_id
        asked = f"C={cell.budget:.3g}" if cell.budget else f"D={cell.spec.tokens:.3g}"
        name = f"µ={cell.mean_recurrence} {asked}{_simulated_suffix(plan)}"
        return self._create(name, {**identity, "mlflow.parentRunId": parent})

    def take_up(self, mlflow_run: str, plan: Plan, cell: Cell) -> None:
        """Mark a child run as running and as asked for by this plan; its parameters are what determines its result."""
        self.client.update_run(mlflow_run, status="RUNNING")
        self.send(mlflow_run, params=_parameters(cell))
        asked = {} if cell.budget is None else {f"{PREFIX}budget": cell.budget}
        self._tag(mlflow_run, {**_origin_tags(plan), **asked, OUTCOME: "running", REASON: ""})

    def outcome(self, mlflow_run: str) -> str | None:
        """How the store says a run ended, as of now; None if nothing was said yet."""
        return self.client.get_run(mlflow_run).data.tags.get(OUTCOME)

    def last_step(self, mlflow_run: str) -> int:
        """The last step of the loss curve that the store has, -1 if it has none."""
        return max((m.step for m in self.client.get_metric_history(mlflow_run, "train_loss")), default=-1)

    def answers(self) -> bool:
        """Whether the store can be reached at all just now."""
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:  # noqa: BLE001  whatever it is, the store doesn't answer
            return False
        return True

    def send(
        self,
        mlflow_run: str,
        *,
        points: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Log points (key, value, timestamp in ms, step) in batches, and parameters."""
        from mlflow.entities import Metric, Param

        metrics = [Metric(key, float(value), when, step) for key, value, when, step in points]
        for first in range(0, len(metrics), BATCH_POINTS):
            self.client.log_batch(mlflow_run, metrics=metrics[first : first + BATCH_POINTS])
        if params:
            self.client.log_batch(mlflow_run, params=[Param(key, str(value)) for key, value in params.items()])

    def close_run(self, mlflow_run: str, outcome: str, reason: str | None, status: str) -> None:
        """Record how a run ended: outcome, reason (nothing, where there is none) and MLflow's status."""
        self._tag(mlflow_run, {OUTCOME: outcome, REASON: (reason or "")[:5000]})
        self.end(mlflow_run, status)

    def end(self, mlflow_run: str, status: str) -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(mlflow_run, status)

    def save_files(self, mlflow_run: str, folder: Path) -> str | None:
        """Keep the readable results of `folder` as artifacts of a run; returns why not, if it could not be done."""
        readable = {".yaml", ".csv", ".json", ".txt", ".html", ".png", ".svg"}
        try:
            for file in sorted(folder.rglob("*")):
                if file.suffix in readable and file.relative_to(folder).parts[0] != "relay":
                    inside = file.relative_to(folder).parent.as_posix()
                    self.client.log_artifact(mlflow_run, str(file), None if inside == "." else inside)
        except Exception as error:  # noqa: BLE001  the results are all in `folder`; the caller says what is missing
            return first_line(error)
        return None

    def read_table(self, plan: Plan) -> pd.DataFrame:
        """The run table of the plan's cells: what MLflow has of each, counted as the plan counts."""
        runs = self.cell_runs(plan.sweep.name)
        return pd.DataFrame([_row(plan, cell, runs[cell.run_id]) for cell in plan.cells if cell.run_id in runs])

    def _tag(self, mlflow_run: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(mlflow_run, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id

    def _search(self, tags: Mapping[str, str]) -> list[Any]:
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def _parameters(cell: Cell) -> dict[str, Any]:
    """What determines the run's result, flat. MLflow's parameters can't be changed, and these never need to be."""
    spec = cell.spec.model_dump(mode="json", exclude={"data"})
    spec["recurrence"]["backprop_depth"] = cell.spec.recurrence.gradient_loops
    return {"mean_recurrence": cell.mean_recurrence, **dict(_flat(spec))}


def _origin_tags(plan: Plan) -> dict[str, str]:
    """Where a run's numbers come from: a law, or a corpus."""
    simulated = plan.sweep.simulation is not None
    return {SIMULATED: str(simulated).lower(), f"{PREFIX}corpus": "none" if simulated else plan.sweep.data.corpus}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _row(plan: Plan, cell: Cell, run: Any) -> dict[str, Any]:
    """One row of the run table: the result from the MLflow run, the axes and the cost from the plan."""
    tags, metrics = run.data.tags, run.data.metrics
    outcome = tags.get(OUTCOME)
    status = outcome if outcome in ENDED else "failed"
    exact = plan.sweep.accounting == "exact"
    forward, backward = (metrics.get("forward_loops"), metrics.get("backward_loops")) if exact else nominal_loops(cell)
    at = sorted((name for name in metrics if name.startswith("loss_T")), key=lambda name: float(name[6:]))
    return {
        "run_id": cell.run_id,
        "status": status,
        "simulated": tags[SIMULATED] == "true",
        "tokenizer": _tokenizer(plan),
        "loss_unit": "nats per token",
        **cost_columns(plan, cell),
        "tokens": metrics.get("tokens"),
        "flops": metrics.get("flops_exact" if exact else "flops_parcae_release"),
        "forward_loops": forward,
        "backward_loops": backward,
        "loss": metrics.get("loss") if status == "finished" else None,
        **{name: metrics.get(name) for name in _EXTRA},
        **{name: metrics[name] if status == "finished" else None for name in at},
    }


def _tokenizer(plan: Plan) -> str:
    """What the losses are counted in: losses per token of two tokenizers can't be compared."""
    if plan.sweep.simulation is not None:
        return "none"
    data = plan.sweep.data
    return f"bpe {data.tokenizer_vocabulary} of {data.corpus}" if data.tokenizer == "bpe" else data.tokenizer


def _simulated_suffix(plan: Plan) -> str:
    return "" if plan.sweep.simulation is None else " (simulated)"


@contextlib.contextmanager
def named_trouble(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong with a store into one ValueError that names it."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # the store may be any database or server, each with errors of its own
        raise ValueError(
            f"an MLflow store must answer at the tracking URI, but '{uri}' does not ({first_line(error)}); nothing is "
            "lost: start it, correct tracking.uri, or leave it out for an sqlite file beside the results"
        ) from error


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time make an sqlite store's tables: at once, they crash."""
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
