"""The relay: carries the runs' journals and results into the store, in a thread of the driver.

Workers never talk to the store. Each run writes its journal; one relay per sweep carries the records over in batches
and moves its cursor only after the store has taken them. The store may be away for a while: nothing is lost. Sending a
batch twice is harmless: MLflow keeps one point per key, timestamp, step and value.

A round looks only at runs that were noticed: those whose folder was there at the start, those that the engine says were
started, and at the end whatever has a folder.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from isoloop.sweeps.messages import first_line
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.redaction import redacted
from isoloop.sweeps.tracking.mlflow_store import TrackingStore, is_settled
from isoloop.sweeps.tracking.schema import (
    CHECKPOINT,
    IN_SWEEP,
    LONGEST_TAG,
    OUTCOME,
    REASON,
    SWEEP_KIND,
    cell_tags,
    changed_tags,
    driver_environment,
    environment_tags,
    parameters,
    result_metrics,
)
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.journal import journal_id, read_journal
from isoloop.trainer.run.result import RunResult, read_result

LOSS_BY_RECURRENCE = "loss_by_recurrence"
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 30.0

log = logging.getLogger("isoloop.relay")


@dataclass
class _Cursor:
    """How far the journal with this id has reached the MLflow run, which had steps up to `known_step` before it."""

    mlflow_run: str = ""
    journal: str | None = None
    known_step: int = -1
    offset: int = 0
    done: bool = False


class Relay:
    """Carries the journals and results of a plan's cells into a store, in a thread, until it is closed."""

    def __init__(
        self, store: TrackingStore, plan: Plan, folders: Folders, *, runs_at: str | None = None, kind: str = SWEEP_KIND
    ) -> None:
        """Start the thread.

        Args:
            store: where to.
            plan: what the sweep asks for; the runs that the store has already follow it in their columns.
            folders: where the run folders lie on this machine.
            runs_at: the URI of the folder in which the run folders, and so the trained models, are kept in the end;
                None: they stay where they are.
            kind: of the parent run.
        """
        self.store, self.plan, self.folders = store, plan, folders
        self.runs_at = runs_at or str(folders.run("").resolve())
        target = hashlib.sha256(f"{store.shown_uri} {store.experiment}".encode()).hexdigest()[:8]
        self.cursors = folders.upload_cursors / target
        self.cursors.mkdir(parents=True, exist_ok=True)
        self.cells = {cell.run_id: cell for cell in plan.cells}
        self.parent = store.sweep_run(plan, environment_tags(driver_environment()), kind=kind)
        runs = store.cell_runs(plan.sweep.name)
        self.known = {run_id: run.info.run_id for run_id, run in runs.items()}
        self.carried = {run_id for run_id, run in runs.items() if is_settled(run)}
        self.opened: dict[str, _Cursor] = {}
        self.last_error: str | None = None
        self.artifact_error: str | None = None
        self._tags: dict[str, Mapping[str, str]] = {run_id: run.data.tags for run_id, run in runs.items()}
        self._unlabelled = set(runs)
        self._without_spec: dict[str, str] = {}
        self._noticed: set[str] = set()
        self._given_up: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._notice_folders()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="isoloop-relay", daemon=True)
        self._thread.start()

    def watch(self, run_id: str) -> None:
        """Look at this run from now on; called when it is started, by any thread."""
        with self._lock:
            self._noticed.add(run_id)

    def add(self, cell: Cell) -> None:
        """Take one more cell in, by any thread; a plan may grow while it runs."""
        with self._lock:
            self.cells[cell.run_id] = cell
            if self._given_up.pop(cell.run_id, None):
                self.carried.discard(cell.run_id)
            if cell.run_id in self.known:
                self._unlabelled.add(cell.run_id)

    def record_end(self, run_id: str, outcome: str, reason: str) -> None:
        """Say how a run ended that has no result and won't go on, once all that it wrote is carried over."""
        with self._lock:
            self._given_up[run_id] = outcome, reason
            self._noticed.add(run_id)

    def close(self, *, stopped: str | None = None, failed: Mapping[str, str] | None = None) -> list[str]:
        """Stop the thread, carry over what is left and close the runs in the store.

        Args:
            stopped: the sweep didn't come to its end: what MLflow shall say of it and of runs without a result, KILLED
                if somebody stopped it, FAILED otherwise.
            failed: reasons by run id of the runs that failed.

        Returns:
            Run ids of which something is not in the store yet; the next call of the sweep carries it over.
        """
        self._closing.set()
        self._thread.join()
        self._notice_folders()
        pending = self._pass()
        reasons = dict(failed or {})
        for run_id, reason in reasons.items():
            self._try(run_id, partial(self._fail, self.cells[run_id], reason), pending)
        if stopped:
            for run_id, cursor in self.opened.items():
                if not cursor.done and run_id not in {*reasons, *pending, *self._given_up}:
                    self._try(
                        run_id, partial(self.store.close_run, cursor.mlflow_run, "stopped", None, stopped), pending
                    )
        self._keep_specs()
        status = stopped or ("FAILED" if failed or pending else "FINISHED")
        self._try("the sweep", partial(self.store.end, self.parent, status), pending)
        return pending

    def _notice_folders(self) -> None:
        """Notice every cell that has a folder; one look at their parent, however many cells there are."""
        parent = self.folders.run("")
        there = {path.name for path in parent.iterdir()} if parent.is_dir() else set()
        with self._lock:
            self._noticed |= there & set(self.cells)

    def _work(self) -> None:
        pause = PAUSE_SECONDS
        while not self._closing.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if self._pass() else PAUSE_SECONDS

    def _pass(self) -> list[str]:
        """One round over what was noticed; returns the run ids that could not be carried over."""
        with self._lock:
            actions: list[tuple[str, Callable[[], None]]] = [
                (run_id, partial(self._label, run_id)) for run_id in sorted(self._unlabelled)
            ]
            looked_at = self._noticed - self.carried
            actions += [
                (run_id, partial(self._carry, cell)) for run_id, cell in self.cells.items() if run_id in looked_at
            ]
        pending: list[str] = []
        for index, (run_id, action) in enumerate(actions):
            carried = self._try(run_id, action, pending)
            if not carried and not self.store.answers():  # the store is away, not one record bad: spare it the others
                return list(dict.fromkeys(pending + [later for later, _ in actions[index + 1 :]]))
        return pending

    def _try(self, run_id: str, action: Callable[[], None], pending: list[str]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001  a store's trouble must never reach the scheduler; it is reported
            self.last_error = first_line(error)
            log.debug("relay: %s", self.last_error)
            if run_id not in pending:
                pending.append(run_id)
            return False
        return True

    def _label(self, run_id: str) -> None:
        """Let the tags of a run that the store has follow the plan, also of one that it asks for no more."""
        cell = self.cells.get(run_id)
        present = self._tags.get(run_id, {})
        changed = {IN_SWEEP: "false"} if cell is None else changed_tags(cell_tags(self.plan, cell), present)
        if any(present.get(key) != value for key, value in changed.items()):
            self.store.send(self.known[run_id], tags=changed)
            self._tags[run_id] = {**present, **changed}
        with self._lock:
            self._unlabelled.discard(run_id)

    def _carry(self, cell: Cell) -> None:
        """Bring the store up to date with one cell's journal and result."""
        folder = self.folders.run(cell.run_id)
        journal = folder / "journal.jsonl"
        result = read_result(folder)  # before the journal: what stands in it by now is all there will be
        identity = journal_id(journal)
        if identity is None and result is None:
            return
        cursor = self.opened.get(cell.run_id)
        if cursor is None or cursor.journal != identity:
            cursor = self._open(cell, identity)
        if cursor.done:
            self.carried.add(cell.run_id)
            return
        records, offset = read_journal(journal, cursor.offset)
        points = [
            (key, value, record["time_ms"], record["step"])
            for record in records
            if record["kind"] == "metrics" and record["step"] > cursor.known_step
            for key, value in record["values"].items()
            if isinstance(value, int | float)
        ]
        tags = _environment(records)
        if result is not None:
            points += _result_points(result, folder)
            tags |= self._outcome_tags(result, folder)
        self.store.send(cursor.mlflow_run, points=points, tags=tags)
        cursor.offset = offset
        if result is not None:
            self.store.end(cursor.mlflow_run, "FINISHED")
            cursor.done = True
        if records or cursor.done:
            self._save(cell.run_id, cursor)
        given_up = None if cursor.done else self._given_up.get(cell.run_id)
        if given_up is not None:
            self.store.close_run(cursor.mlflow_run, *given_up, "FINISHED")
        if cursor.done or given_up is not None:
            self.carried.add(cell.run_id)
            self._keep_spec(cell.run_id, cursor.mlflow_run)

    def _open(self, cell: Cell, journal: str | None) -> _Cursor:
        """Find or make the run's record, mark it as running and say from where on the journal is to be sent."""
        cursor, run_id = self._cursor(cell.run_id), cell.run_id
        run = self.known.get(run_id) or self.store.find_cell_run(self.plan.sweep.name, run_id)
        if run is None:
            cursor = _Cursor(mlflow_run=self._make(cell), journal=journal)
        else:
            self.known[run_id] = run
            if (cursor.mlflow_run, cursor.journal) != (run, journal):
                # Another journal of the same run has been here, or none: what the store has isn't sent again.
                cursor = _Cursor(mlflow_run=run, journal=journal, known_step=self.store.last_step(run))
            cursor.done = self.store.is_settled(run)
            if not cursor.done:
                self._take_up(cell, run)
        self._save(run_id, cursor)
        self.opened[run_id] = cursor
        return cursor

    def _make(self, cell: Cell) -> str:
        """A new record for a cell that has none."""
        tags = {**cell_tags(self.plan, cell), OUTCOME: "running", REASON: ""}
        run = self.store.make_cell_run(self.plan, cell, tags, self.parent)
        self.known[cell.run_id], self._tags[cell.run_id] = run, tags
        self.store.send(run, params=parameters(cell))
        return run

    def _take_up(self, cell: Cell, run: str) -> None:
        """Say of a record that is there what the plan asks of it, and that its run is at it again."""
        wanted = cell_tags(self.plan, cell)
        tags = {**changed_tags(wanted, self._tags.get(cell.run_id, {})), OUTCOME: "running", REASON: ""}
        self.store.reopen(run)
        self.store.send(run, params=parameters(cell), tags=tags)
        self._tags[cell.run_id] = wanted

    def _outcome_tags(self, result: RunResult, folder: Path) -> dict[str, str]:
        tags = {OUTCOME: result.status, REASON: redacted(result.reason or "")[:LONGEST_TAG]}
        if not result.simulated:
            tags[CHECKPOINT] = redacted(f"{self.runs_at.rstrip('/')}/{folder.name}/model")
        return tags

    def _keep_spec(self, run_id: str, mlflow_run: str) -> None:
        """Keep the run's configuration as a file of its record; where that fails, once, it waits for the end."""
        spec = self.folders.run(run_id) / "spec.json"
        if self.artifact_error is not None:
            self._without_spec[run_id] = mlflow_run
            return
        try:
            if spec.exists():
                self.store.save_file(mlflow_run, spec)
        except Exception as error:  # noqa: BLE001  the store has all of it as parameters; the caller may say what is missing
            self.artifact_error = first_line(error)
            self._without_spec[run_id] = mlflow_run

    def _keep_specs(self) -> None:
        """Try once more to keep the configurations that could not be kept before."""
        waiting, self._without_spec = self._without_spec, {}
        self.artifact_error = None
        for run_id, mlflow_run in waiting.items():
            self._keep_spec(run_id, mlflow_run)

    def _fail(self, cell: Cell, reason: str) -> None:
        """Record a failure, also of a run that failed before it could write a journal."""
        run = self.known.get(cell.run_id) or self.store.find_cell_run(self.plan.sweep.name, cell.run_id)
        if run is not None and self.store.is_settled(run):  # elsewhere the same run came to its end: that record stays
            return
        if run is None:
            run = self._make(cell)
        else:
            self._take_up(cell, run)
        self.known[cell.run_id] = run
        self.store.close_run(run, "failed", reason, "FAILED")

    def _cursor(self, run_id: str) -> _Cursor:
        """The run's cursor; one that is missing or can't be read begins anew, and the store says how far it is."""
        try:
            return _Cursor(**json.loads((self.cursors / f"{run_id}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Cursor()

    def _save(self, run_id: str, cursor: _Cursor) -> None:
        write_atomically(self.cursors / f"{run_id}.json", json.dumps(asdict(cursor)))


def _environment(records: list[dict[str, Any]]) -> dict[str, str]:
    """What the last start or resumption among the records says of where the run is trained."""
    starts = [r for r in records if r["kind"] == "event" and r["name"] in ("started", "resumed")]
    return environment_tags(starts[-1]) if starts else {}


def _result_points(result: RunResult, folder: Path) -> list[tuple[str, float, int, int]]:
    """What the result says beside the journal; its time is the result file's, the same when it is sent again."""
    when = int((folder / "result.json").stat().st_mtime * 1000)
    records, _ = read_journal(folder / "journal.jsonl")
    sent = {key for r in records if r["kind"] == "metrics" and r["step"] == result.steps for key in r["values"]}
    points = [(key, value, when, result.steps) for key, value in result_metrics(result).items() if key not in sent]
    return points + [(LOSS_BY_RECURRENCE, loss, when, recurrence) for recurrence, loss in result.losses.items()]
