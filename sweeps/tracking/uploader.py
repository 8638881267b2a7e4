"""The uploader: sends the runs' journals and results to MLflow, in a thread of the driver.

Workers never talk to MLflow. Each run writes its journal; one uploader per sweep sends the records in batches and moves
its cursor only after the store has accepted them. The store may be away for a while: nothing is lost. Sending a batch
twice is harmless: MLflow keeps one point per key, timestamp, step and value.

The first round reads what the store has of the sweep, which takes 4 ms of CPU a run; training doesn't wait for it. A
round looks only at watched runs: those whose folder existed at the start, those that were started since, and at the end
every run that has a folder.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from isoloop.sweeps.messages import disk_fault, first_line
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.plan.quality import QualityPlan, table_recurrence
from isoloop.sweeps.tracking.mlflow_store import TrackingStore, is_settled
from isoloop.sweeps.tracking.quality import QualityRecord, read_quality
from isoloop.sweeps.tracking.schema import (
    CHECKPOINT,
    IN_SWEEP,
    OUTCOME,
    PARENT_RUN,
    QUALITY,
    REASON,
    SWEEP_KIND,
    cell_tags,
    changed_tags,
    driver_environment,
    environment_tags,
    loss_tags,
    metric_name,
    parameters,
    quality_key,
    quality_tags,
    result_points,
    tag_text,
)
from isoloop.trainer.files import write_atomically
from isoloop.trainer.run.journal import journal_id, read_journal
from isoloop.trainer.run.result import RunResult, read_result

UPLOAD_SECONDS = 2.0
LONGEST_UPLOAD_PAUSE_SECONDS = 30.0

log = logging.getLogger("isoloop.uploader")


@dataclass
class _Cursor:
    """Progress of one journal into one MLflow run, which had steps up to `known_step` before this journal."""

    mlflow_run: str = ""
    journal: str | None = None
    known_step: int = -1
    offset: int = 0
    done: bool = False
    quality: str = ""  # digest of the results on suites that are being sent, or were
    quality_time: int = 0  # of its points, in ms
    quality_sent: bool = False


class Uploader:
    """Sends the journals and results of a plan's cells to a store, in a thread, until it is closed.

    Args:
        store: the MLflow store.
        plan: the cells and their columns; runs that are in the store already get these columns, too.
        folders: the places of the run folders on this machine.
        runs_at: the URI of the folder that holds the trained models in the end; None: where the run folders are.
        kind: the kind of the parent run, a sweep or a tuning.
        quality: the suites whose results are recorded; None: of none, and what is recorded of earlier ones is removed.

    Attributes:
        unrecorded: reasons why the store didn't take a run's results on suites, by run id; they hold up nothing else.
    """

    def __init__(
        self,
        store: TrackingStore,
        plan: Plan,
        folders: Folders,
        *,
        runs_at: str | None = None,
        kind: str = SWEEP_KIND,
        quality: QualityPlan | None = None,
    ) -> None:
        # The plan, and the cursors of earlier calls.
        self.store, self.plan, self.folders = store, plan, folders
        self.runs_at = runs_at or str(folders.run("").resolve())
        target = hashlib.sha256(f"{store.shown_uri} {store.experiment}".encode()).hexdigest()[:8]
        self.cursor_folder = folders.upload_cursors / target
        self.cursor_folder.mkdir(parents=True, exist_ok=True)
        self.cells = {cell.run_id: cell for cell in plan.cells}
        # The runs in the store, once they are read.
        self.parent = store.sweep_run(plan, environment_tags(driver_environment()), kind=kind)
        self.mlflow_runs: dict[str, str] = {}
        self.complete: set[str] = set()
        self._kind, self._has_read_store = kind, False
        self._tags: dict[str, Mapping[str, str]] = {}
        self._outdated_tags: set[str] = set()
        # The state of this call.
        self.cursors: dict[str, _Cursor] = {}
        self.pending: list[str] = []
        self.last_error: str | None = None
        self.advice = "fix this"
        self.artifact_error: str | None = None
        self._without_spec: dict[str, str] = {}
        self._watched: set[str] = set()
        self._ends: dict[str, tuple[str, str]] = {}
        self._quality_plan = quality
        self._quality: set[str] = set()
        self.unrecorded: dict[str, str] = {}
        self._lock = threading.Lock()
        self._watch_folders()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="isoloop-uploader", daemon=True)
        self._thread.start()

    def watch(self, run_id: str) -> None:
        """Look at this run from now on; called by any thread when the run is started."""
        with self._lock:
            self._watched.add(run_id)

    def watch_quality(self, run_id: str) -> None:
        """Record the run's results on suites; called by any thread when it was evaluated."""
        with self._lock:
            self._quality.add(run_id)

    def add(self, cell: Cell) -> None:
        """Add a cell to the plan, by any thread."""
        with self._lock:
            self.cells[cell.run_id] = cell
            if self._ends.pop(cell.run_id, None):
                self.complete.discard(cell.run_id)
            if cell.run_id in self.mlflow_runs:
                self._outdated_tags.add(cell.run_id)

    def record_end(self, run_id: str, outcome: str, reason: str) -> None:
        """Record how a run without a result has ended, once everything that it wrote is uploaded."""
        with self._lock:
            self._ends[run_id] = outcome, reason
            self._watched.add(run_id)

    def close(self, *, stopped: str | None = None, failed: Mapping[str, str] | None = None) -> list[str]:
        """Stop the thread, upload the rest and close the runs in the store.

        Args:
            stopped: MLflow's status of a sweep that didn't reach its end, and of its runs without a result: KILLED if
                somebody stopped it, FAILED otherwise.
            failed: reasons of failures by run id.

        Returns:
            Run ids of which something isn't in the store yet; the sweep's next call uploads it.
        """
        # Upload the rest.
        self._closing.set()
        self._thread.join()
        self._watch_folders()
        self.pending = self._upload_round()
        # Close the runs that have no result.
        reasons = dict(failed or {})
        for run_id, reason in reasons.items():
            self._try(run_id, partial(self._record_failure, self.cells[run_id], reason), self.pending)
        if stopped:
            for run_id, cursor in self.cursors.items():
                if not cursor.done and run_id not in {*reasons, *self.pending, *self._ends}:
                    close = partial(self.store.close_run, cursor.mlflow_run, "stopped", None, stopped)
                    self._try(run_id, close, self.pending)
        # Try once more to store the specs, and close the sweep.
        without_spec, self._without_spec, self.artifact_error = self._without_spec, {}, None
        for run_id, mlflow_run in without_spec.items():
            self._save_spec(run_id, mlflow_run)
        status = stopped or ("FAILED" if failed or self.pending else "FINISHED")
        self._try("the sweep", partial(self._end_parent, status), self.pending)
        return self.pending

    def check_complete(self, also: str = "") -> None:
        """Raise ValueError if something wasn't uploaded when the uploader was closed."""
        if self.pending:
            raise ValueError(
                f"the tracking store must take every run, but {self.store.shown_uri} is {len(self.pending)} runs "
                f"behind ({self.last_error}); nothing is lost{also}: {self.advice}, then rerun the command"
            )

    def _watch_folders(self) -> None:
        """Watch every cell that has a folder."""
        parent = self.folders.run("")
        names = {path.name for path in parent.iterdir()} if parent.is_dir() else set()
        with self._lock:
            self._watched |= names & set(self.cells)
            self._quality |= set(self.cells)

    def _read_store(self) -> None:
        """Read which runs the store has, and their tags."""
        runs = self.store.cell_runs(self.plan.sweep.name)
        with self._lock:
            self.mlflow_runs = {run_id: run.info.run_id for run_id, run in runs.items()}
            self.complete = {run_id for run_id, run in runs.items() if is_settled(run)}
            self._tags = {run_id: run.data.tags for run_id, run in runs.items()}
            self._outdated_tags = set(runs)
            self._has_read_store = True

    def _work(self) -> None:
        pause = UPLOAD_SECONDS
        while not self._closing.wait(pause):
            pause = min(2 * pause, LONGEST_UPLOAD_PAUSE_SECONDS) if self._upload_round() else UPLOAD_SECONDS

    def _upload_round(self) -> list[str]:
        """Upload what is new of all watched runs, and return the ids of those that failed."""
        pending: list[str] = []
        if not self._has_read_store and not self._try("the sweep", self._read_store, pending):
            return pending
        with self._lock:
            actions: list[tuple[str, Callable[[], None]]] = [
                (run_id, partial(self._update_tags, run_id)) for run_id in sorted(self._outdated_tags)
            ]
            watched = self._watched - self.complete
            actions += [
                (run_id, partial(self._upload, cell)) for run_id, cell in self.cells.items() if run_id in watched
            ]
        for index, (run_id, action) in enumerate(actions):
            uploaded = self._try(run_id, action, pending)
            if not uploaded and not self.store.answers():  # the store is away, not one record bad: skip the others
                return list(dict.fromkeys(pending + [other for other, _ in actions[index + 1 :]]))
        # Results on suites: one that the store refuses is reported, and holds up no run.
        with self._lock:
            evaluated = sorted(self._quality & self.complete & self.cells.keys())
        for place, run_id in enumerate(evaluated):
            if self._try(run_id, partial(self._upload_quality, self.cells[run_id]), []):
                self.unrecorded.pop(run_id, None)
            elif self.store.answers():
                self.unrecorded[run_id] = self.last_error or ""
            else:
                return list(dict.fromkeys(pending + evaluated[place:]))
        return pending

    def _try(self, run_id: str, action: Callable[[], None], pending: list[str]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001  an error of the store must never reach the scheduler; it is reported
            if self._forget_deleted(run_id):
                return self._try(run_id, action, pending)
            self.last_error, fault = first_line(error), disk_fault(error)
            self.advice = "fix this" if fault is None else fault[1]
            log.debug("%s: %s", run_id, self.last_error)
            if run_id not in pending:
                pending.append(run_id)
            return False
        return True

    def _forget_deleted(self, run_id: str) -> bool:
        """Forget a run that somebody has deleted from the store, so that it is recorded anew; False if it is there."""
        if run_id not in self.mlflow_runs or not self.store.is_deleted(self.mlflow_runs[run_id]):
            return False
        del self.mlflow_runs[run_id]
        self.cursors.pop(run_id, None)
        self._tags.pop(run_id, None)
        return True

    def _end_parent(self, status: str) -> None:
        """End the sweep's run; if somebody has deleted it, end a new one, to which the runs then belong."""
        try:
            self.store.end(self.parent, status)
        except Exception:
            if not self.store.is_deleted(self.parent):
                raise
            self.parent = self.store.sweep_run(self.plan, environment_tags(driver_environment()), kind=self._kind)
            for run_id in sorted(self.mlflow_runs):
                self._update_tags(run_id)
            self.store.end(self.parent, status)

    def _update_tags(self, run_id: str) -> None:
        """Write the plan's tags, and the sweep's run, to a run in the store, also if the run has left the plan."""
        cell, present = self.cells.get(run_id), self._tags.get(run_id, {})
        changed = {IN_SWEEP: "false"} if cell is None else changed_tags(cell_tags(self.plan, cell), present)
        changed[PARENT_RUN] = self.parent
        if run_id in self.mlflow_runs and any(present.get(key) != value for key, value in changed.items()):
            self.store.send(self.mlflow_runs[run_id], tags=changed)
            self._tags[run_id] = {**present, **changed}
        with self._lock:
            self._outdated_tags.discard(run_id)

    def _upload(self, cell: Cell) -> None:
        """Bring the store up to date with one cell's journal and result."""
        # Read the result before the journal, which is then complete if there is a result.
        run_id, folder = cell.run_id, self.folders.run(cell.run_id)
        journal = folder / "journal.jsonl"
        result, identity = read_result(folder), journal_id(journal)
        if identity is None and result is None:
            return
        cursor = self.cursors.get(run_id)
        if cursor is None or cursor.journal != identity:
            cursor = self._open_cursor(cell, identity)
        if cursor.done:
            self.complete.add(run_id)
            return
        # Send what is new, and move the cursor.
        records, offset = read_journal(journal, cursor.offset)
        points = [
            (metric_name(key), value, record["time_ms"], record["step"])
            for record in records
            if record["kind"] == "metrics" and record["step"] > cursor.known_step
            for key, value in record["values"].items()
            if isinstance(value, int | float)
        ]
        starts = [r for r in records if r["kind"] == "event" and r["name"] in ("started", "resumed")]
        tags = environment_tags(starts[-1]) if starts else {}
        if result is not None:
            points += _result_points(result, folder)
            tags |= self._outcome_tags(result, folder)
        self.store.send(cursor.mlflow_run, points=points, tags=tags)
        cursor.offset = offset
        if result is not None:
            self.store.end(cursor.mlflow_run, "FINISHED")
            cursor.done = True
        if records or cursor.done:
            self._save_cursor(run_id, cursor)
        # Close a run that has ended.
        end = None if cursor.done else self._ends.get(run_id)
        if end is not None:
            self.store.close_run(cursor.mlflow_run, *end, "FINISHED")
        if cursor.done or end is not None:
            self.complete.add(run_id)
            self._save_spec(run_id, cursor.mlflow_run)

    def _upload_quality(self, cell: Cell) -> None:
        """Bring the store up to date with a finished run's results on the suites that the sweep asks for now."""
        run_id, record, digest = cell.run_id, QualityRecord({}, []), ""
        quality = self._quality_plan
        summaries = None if quality is None else quality.summaries(cell)
        if quality is not None and summaries is not None:
            version, weights = quality.evaluation.suite_baselines, quality.task(cell).weights
            record = read_quality(summaries, table_recurrence(cell.spec), version, weights=weights)
            digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
        # The tags, without those of suites, seeds or data that are no longer asked for.
        mlflow_run, wanted = self._find(run_id), quality_tags(record.columns)
        present = {key: value for key, value in self._tags.get(run_id, {}).items() if key.startswith(QUALITY) and value}
        cursor = self._read_cursor(run_id) if digest else _Cursor()
        is_sent = present == wanted and (not digest or _was_sent(cursor, mlflow_run, digest))
        if mlflow_run is not None and not is_sent:
            if cursor.quality != digest:  # a later time than that of other values; the same if it is sent again
                cursor.mlflow_run, cursor.quality, cursor.quality_time = mlflow_run, digest, time.time_ns() // 1_000_000
                cursor.quality_sent = False
                if digest:
                    self._save_cursor(run_id, cursor)
            when = cursor.quality_time
            numbers = {name: value for name, value in record.columns.items() if isinstance(value, float)}
            points = [(quality_key(name), value, when, 0) for name, value in numbers.items()]
            points += [
                (quality_key(name.removeprefix("quality/")), value, when, depth) for name, value, depth in record.curves
            ]
            tags = dict.fromkeys(present, "") | wanted
            self.store.send(mlflow_run, points=points, tags=tags)
            self._tags[run_id] = {**self._tags.get(run_id, {}), **tags}
            if digest:
                cursor.mlflow_run, cursor.quality_sent = mlflow_run, True
                self._save_cursor(run_id, cursor)
        with self._lock:
            self._quality.discard(run_id)

    def _open_cursor(self, cell: Cell, journal: str | None) -> _Cursor:
        """Find or create the MLflow run of a cell, mark it as running, and return the cursor of its journal."""
        cursor, run_id = self._read_cursor(cell.run_id), cell.run_id
        mlflow_run = self._find(run_id)
        if mlflow_run is None:
            cursor = _Cursor(mlflow_run=self._create(cell), journal=journal)
        else:
            if (cursor.mlflow_run, cursor.journal) != (mlflow_run, journal):
                # Another journal of the same run was sent, or none: steps that the store has aren't sent again.
                known_step = self.store.last_step(mlflow_run)
                cursor = _Cursor(mlflow_run=mlflow_run, journal=journal, known_step=known_step)
            cursor.done = self.store.is_settled(mlflow_run)
            if not cursor.done:
                self._reopen(cell, mlflow_run)
        self._save_cursor(run_id, cursor)
        self.cursors[run_id] = cursor
        return cursor

    def _find(self, run_id: str) -> str | None:
        mlflow_run = self.mlflow_runs.get(run_id) or self.store.find_cell_run(self.plan.sweep.name, run_id)
        if mlflow_run is not None:
            self.mlflow_runs[run_id] = mlflow_run
        return mlflow_run

    def _create(self, cell: Cell) -> str:
        """Create the MLflow run of a cell, and return its id."""
        tags = {**cell_tags(self.plan, cell), OUTCOME: "running", REASON: ""}
        mlflow_run = self.store.make_cell_run(self.plan, cell, tags, self.parent)
        self.mlflow_runs[cell.run_id], self._tags[cell.run_id] = mlflow_run, tags
        self.store.send(mlflow_run, params=parameters(cell))
        return mlflow_run

    def _reopen(self, cell: Cell, mlflow_run: str) -> None:
        """Mark an MLflow run as running again, with the plan's tags."""
        wanted = {**cell_tags(self.plan, cell), PARENT_RUN: self.parent}
        tags = {**changed_tags(wanted, self._tags.get(cell.run_id, {})), OUTCOME: "running", REASON: ""}
        self.store.reopen(mlflow_run)
        self.store.send(mlflow_run, params=parameters(cell), tags=tags)
        self._tags[cell.run_id] = {**self._tags.get(cell.run_id, {}), **wanted}

    def _record_failure(self, cell: Cell, reason: str) -> None:
        """Record a failure, also of a run that failed before it could write a journal."""
        mlflow_run = self._find(cell.run_id)
        if mlflow_run is None:
            mlflow_run = self._create(cell)
        elif self.store.is_settled(mlflow_run):  # elsewhere the same run has reached its end: that record stays
            return
        else:
            self._reopen(cell, mlflow_run)
        self.store.close_run(mlflow_run, "failed", reason, "FAILED")

    def _outcome_tags(self, result: RunResult, folder: Path) -> dict[str, str]:
        tags = {OUTCOME: result.status, REASON: tag_text(result.reason or ""), **loss_tags(result)}
        if not result.simulated:
            tags[CHECKPOINT] = tag_text(f"{self.runs_at.rstrip('/')}/{folder.name}/model")
        return tags

    def _save_spec(self, run_id: str, mlflow_run: str) -> None:
        """Store the run's spec as an artifact; after a first error, leave all others for the end."""
        spec = self.folders.run(run_id) / "spec.json"
        if self.artifact_error is None:
            try:
                if spec.exists():
                    self.store.save_file(mlflow_run, spec)
            except Exception as error:  # noqa: BLE001  the store has all of it as parameters; the caller may report it
                self.artifact_error = first_line(error)
        if self.artifact_error is not None:
            self._without_spec[run_id] = mlflow_run

    def _read_cursor(self, run_id: str) -> _Cursor:
        """Return the run's cursor; a missing or unreadable one begins anew, from the last step in the store."""
        try:
            return _Cursor(**json.loads((self.cursor_folder / f"{run_id}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return _Cursor()

    def _save_cursor(self, run_id: str, cursor: _Cursor) -> None:
        write_atomically(self.cursor_folder / f"{run_id}.json", json.dumps(asdict(cursor)))


def _was_sent(cursor: _Cursor, mlflow_run: str | None, digest: str) -> bool:
    return cursor.quality_sent and (cursor.mlflow_run, cursor.quality) == (mlflow_run, digest)


def _result_points(result: RunResult, folder: Path) -> list[tuple[str, float, int, int]]:
    """Return the result's points that aren't in the journal; their time is the result file's, the same when resent."""
    when = int((folder / "result.json").stat().st_mtime * 1000)
    records, _ = read_journal(folder / "journal.jsonl")
    sent = {key for r in records if r["kind"] == "metrics" and r["step"] == result.steps for key in r["values"]}
    return [(key, value, when, step) for key, value, step in result_points(result, sent)]
