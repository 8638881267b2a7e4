"""MLflow: relays the runs' journals into it and reads the run table back. The only file that imports mlflow.

Workers never talk to the store. Each run writes its journal; one relay per sweep, a thread of the driver, carries the
records over in batches and moves its cursor only after the store has taken them. The store may be away for a while:
nothing is lost, and sending a batch twice is harmless, since MLflow keeps one point per key, timestamp, step and value.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fitting.table import COLUMNS, loss_column
from sweeps.folders import Folders
from sweeps.grid import Cell, Plan, architecture_columns, nominal_loops
from trainer.journal import read_journal
from trainer.result import RunResult, read_result

RUN_ID, SWEEP, KIND, SIMULATED, OUTCOME, REASON = (
    f"isoloop.{name}" for name in ("run_id", "sweep", "kind", "simulated", "outcome", "reason")
)
LOSS_BY_RECURRENCE = "loss_by_recurrence"
BATCH_POINTS = 1000
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 30.0
_EXTRA = ("steps", "bits_per_byte", "spectral_radius", "seconds")

log = logging.getLogger("isoloop.tracking")


class Store:
    """One MLflow store and the experiment in it that sweeps are recorded under."""

    def __init__(self, uri: str, experiment: str, *, artifacts: Path) -> None:
        """Connect to `uri`; a new experiment keeps its artifacts in the folder `artifacts` if the store is sqlite.

        Raises:
            ValueError: nothing usable answers at `uri`.
        """
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri, self.experiment = uri, experiment
        local = uri.startswith("sqlite:")
        try:
            with _first_use(uri) if local else contextlib.nullcontext():
                self.client = MlflowClient(uri)
                found = self.client.get_experiment_by_name(experiment)
                if found is None:
                    where = artifacts.resolve().as_uri() if local else None
                    self.experiment_id = self.client.create_experiment(experiment, artifact_location=where)
                else:
                    self.experiment_id = found.experiment_id
        except Exception as error:  # the store may be any database or server, each with errors of its own
            raise ValueError(
                f"an MLflow store must answer at the tracking URI, but '{uri}' does not ({_first_line(error)}); "
                "start it, correct tracking.uri, or leave it out for an sqlite file beside the results"
            ) from error
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(f"the MLflow experiment must exist, but '{experiment}' was deleted; restore or rename it")

    def sweep_run(self, plan: Plan) -> str:
        """The MLflow run id of the sweep's parent run, made where it is missing."""
        sweep = plan.sweep
        found = self._search({KIND: "sweep", SWEEP: sweep.name})
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        tags = {KIND: "sweep", SWEEP: sweep.name, SIMULATED: str(sweep.simulation is not None).lower()}
        return self._create(f"{sweep.name}{_simulated_suffix(plan)}", tags)

    def cell_runs(self, sweep: str) -> dict[str, Any]:
        """MLflow's runs of a sweep's cells, by our run id."""
        return {run.data.tags[RUN_ID]: run for run in self._search({KIND: "run", SWEEP: sweep})}

    def create_cell(self, plan: Plan, cell: Cell, parent: str) -> str:
        """A child run for `cell` with its tags."""
        asked = f"C={cell.budget:.3g}" if cell.budget else f"D={cell.spec.tokens:.3g}"
        tags = {
            KIND: "run",
            SWEEP: plan.sweep.name,
            RUN_ID: cell.run_id,
            SIMULATED: str(plan.sweep.simulation is not None).lower(),
            "mlflow.parentRunId": parent,
        }
        return self._create(f"µ={cell.mean_recurrence} {asked}{_simulated_suffix(plan)}", tags)

    def end(self, mlflow_run: str, status: str) -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(mlflow_run, status)

    def save_files(self, mlflow_run: str, folder: Path) -> None:
        """Keep the readable results of `folder` as artifacts of a run."""
        for file in sorted(folder.rglob("*")):
            if file.suffix in {".yaml", ".csv", ".json", ".txt", ".html", ".png", ".svg"} and "relay" not in file.parts:
                inside = file.relative_to(folder).parent.as_posix()
                self.client.log_artifact(mlflow_run, str(file), None if inside == "." else inside)

    def read_table(self, plan: Plan) -> pd.DataFrame:
        """The run table of the plan's cells, from MLflow alone; a cell that was never recorded has no row."""
        runs = self.cell_runs(plan.sweep.name)
        return pd.DataFrame([_row(cell, runs[cell.run_id]) for cell in plan.cells if cell.run_id in runs])

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


@dataclass
class _Cursor:
    """How far a run's journal has reached the store."""

    mlflow_run: str = ""
    offset: int = 0
    done: bool = False


class Relay:
    """Carries the journals and results of a plan's cells into a store, in a thread, until it is closed."""

    def __init__(self, store: Store, plan: Plan, folders: Folders) -> None:
        self.store, self.plan, self.folders = store, plan, folders
        target = hashlib.sha256(f"{store.uri} {store.experiment}".encode()).hexdigest()[:8]
        self.cursors = folders.relay / target
        self.cursors.mkdir(parents=True, exist_ok=True)
        self.parent = store.sweep_run(plan)
        self.known = store.cell_runs(plan.sweep.name)
        self.opened: set[str] = set()
        self.last_error: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="isoloop-relay", daemon=True)
        self._thread.start()

    def close(self, *, interrupted: bool = False, failed: Mapping[str, str] | None = None) -> list[str]:
        """Stop the thread, carry over what is left and close the runs in the store.

        Args:
            interrupted: the sweep was stopped; runs without a result are closed as KILLED.
            failed: reasons by run id of the runs that failed.

        Returns:
            Run ids of which something is not in the store yet; the next call of the sweep carries it over.
        """
        self._closing.set()
        self._thread.join()
        pending = self._pass()
        for run_id, reason in (failed or {}).items():
            cursor = self._cursor(run_id)
            if cursor.mlflow_run and run_id not in pending:
                self._try(run_id, lambda cursor=cursor, reason=reason: self._fail(cursor, reason), pending)
        if interrupted:
            for cell in self.plan.cells:
                cursor = self._cursor(cell.run_id)
                if cursor.mlflow_run and not cursor.done and cell.run_id not in pending:
                    self._try(cell.run_id, lambda cursor=cursor: self.store.end(cursor.mlflow_run, "KILLED"), pending)
        status = "KILLED" if interrupted else "FAILED" if failed else "FINISHED"
        self._try("the sweep", lambda: self.store.end(self.parent, status), pending)
        return pending

    def _work(self) -> None:
        pause = PAUSE_SECONDS
        while not self._closing.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if self._pass() else PAUSE_SECONDS

    def _pass(self) -> list[str]:
        """One round over all cells; returns the run ids that could not be carried over."""
        pending: list[str] = []
        for index, cell in enumerate(self.plan.cells):
            self._try(cell.run_id, lambda cell=cell: self._carry(cell), pending)
            if len(pending) >= 2:  # the store is away, not one record bad: don't wait for each of the others in turn
                return pending + [later.run_id for later in self.plan.cells[index + 1 :]]
        return pending

    def _try(self, run_id: str, action: Any, pending: list[str]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  a store's trouble must never reach the scheduler; it is reported
            self.last_error = _first_line(error)
            log.debug("relay: %s", self.last_error)
            pending.append(run_id)

    def _carry(self, cell: Cell) -> None:
        """Bring the store up to date with one cell's journal and result."""
        cursor = self._cursor(cell.run_id)
        known = self.known.get(cell.run_id)
        foreign = cursor.mlflow_run and (known is None or known.info.run_id != cursor.mlflow_run)
        if foreign and cell.run_id not in self.opened:
            cursor = _Cursor()  # the store is not the one that the cursor speaks of: begin again
        if cursor.done:
            return
        folder = self.folders.run(cell.run_id)
        result = read_result(folder)  # before the journal: what stands in it by now is all there will be
        records, offset = read_journal(folder / "journal.jsonl", cursor.offset)
        if not records and result is None:
            return
        if cell.run_id not in self.opened:
            cursor.mlflow_run = known.info.run_id if known else self.store.create_cell(self.plan, cell, self.parent)
            self._send(cursor.mlflow_run, params=_parameters(self.plan, cell))
            if known:
                self.store.client.update_run(cursor.mlflow_run, status="RUNNING")
            self.opened.add(cell.run_id)
            self._save(cell.run_id, cursor)
        points = [
            (key, value, record["time_ms"], record["step"])
            for record in records
            if record["kind"] == "metrics"
            for key, value in record["values"].items()
        ]
        self._send(cursor.mlflow_run, points=points)
        cursor.offset = offset
        if result is not None:
            self._finish(cell, cursor, result, folder)
        self._save(cell.run_id, cursor)

    def _finish(self, cell: Cell, cursor: _Cursor, result: RunResult, folder: Path) -> None:
        """Record the outcome; its timestamp is the result file's, so that it is the same when sent again."""
        when = int((folder / "result.json").stat().st_mtime * 1000)
        values = measured_columns(self.plan, cell, result)
        points = [(key, value, when, result.steps) for key, value in values.items()]
        points += [(LOSS_BY_RECURRENCE, loss, when, recurrence) for recurrence, loss in result.losses.items()]
        self._send(cursor.mlflow_run, points=points)
        self.store.client.set_tag(cursor.mlflow_run, OUTCOME, result.status)
        if result.reason:
            self.store.client.set_tag(cursor.mlflow_run, REASON, result.reason)
        self.store.end(cursor.mlflow_run, "FINISHED")
        cursor.done = True

    def _fail(self, cursor: _Cursor, reason: str) -> None:
        self.store.client.set_tag(cursor.mlflow_run, OUTCOME, "failed")
        self.store.client.set_tag(cursor.mlflow_run, REASON, reason[:5000])
        self.store.end(cursor.mlflow_run, "FAILED")

    def _send(
        self,
        mlflow_run: str,
        *,
        points: list[tuple[str, float, int, int]] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(key, float(value), when, step) for key, value, when, step in points or []]
        for first in range(0, len(metrics), BATCH_POINTS):
            self.store.client.log_batch(mlflow_run, metrics=metrics[first : first + BATCH_POINTS])
        if params:
            items = [Param(key, str(value)) for key, value in params.items()]
            self.store.client.log_batch(mlflow_run, params=items)

    def _cursor(self, run_id: str) -> _Cursor:
        file = self.cursors / f"{run_id}.json"
        return _Cursor(**json.loads(file.read_text())) if file.exists() else _Cursor()

    def _save(self, run_id: str, cursor: _Cursor) -> None:
        partial = self.cursors / f".{run_id}.partial"
        partial.write_text(json.dumps(asdict(cursor)))
        os.replace(partial, self.cursors / f"{run_id}.json")


def measured_columns(plan: Plan, cell: Cell, result: RunResult) -> dict[str, float]:
    """The columns of the run table that a result gives, under the sweep's accounting; what is missing has no key."""
    exact = plan.sweep.accounting == "exact"
    forward, backward = (result.forward_loops, result.backward_loops) if exact else nominal_loops(cell)
    values: dict[str, float | None] = {
        "tokens": result.tokens,
        "flops": result.flops_exact if exact else result.flops_parcae_release,
        "forward_loops": forward,
        "backward_loops": backward,
        "loss": result.loss,
        "steps": result.steps,
        "bits_per_byte": result.bits_per_byte,
        "spectral_radius": result.spectral_radius,
        "seconds": result.seconds,
    }
    values |= {loss_column(recurrence): loss for recurrence, loss in result.losses.items()}
    return {key: float(value) for key, value in values.items() if value is not None}


def _parameters(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What MLflow shows as parameters: the run's whole configuration, flat, and the table's known columns."""
    spec = cell.spec.model_dump(mode="json")
    spec["recurrence"].pop("mean")  # stands among the columns as mean_recurrence
    return {**dict(_flat(spec)), **architecture_columns(plan, cell)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _row(cell: Cell, run: Any) -> dict[str, Any]:
    """One row of the run table from one MLflow run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    row: dict[str, Any] = {
        "run_id": cell.run_id,
        "status": tags.get(OUTCOME, "failed"),
        "simulated": tags[SIMULATED] == "true",
    }
    for column in COLUMNS:
        if column.name in row:
            continue
        if column.name in params:
            text = params[column.name]
            row[column.name] = text if column.kind == "text" else (int if column.kind == "integer" else float)(text)
        else:
            row[column.name] = metrics.get(column.name)
    row |= {name: metrics.get(name) for name in _EXTRA}
    at = sorted((name for name in metrics if name.startswith("loss_T")), key=lambda name: float(name[6:]))
    return row | {name: metrics[name] for name in at}


def _simulated_suffix(plan: Plan) -> str:
    return "" if plan.sweep.simulation is None else " (simulated)"


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time make an sqlite store's tables: at once, they crash."""
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
