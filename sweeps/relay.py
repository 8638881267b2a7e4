"""The relay: carries the runs' journals and results into the store, in a thread of the driver.

Workers never talk to the store. Each run writes its journal; one relay per sweep carries the records over in batches
and moves its cursor only after the store has taken them. The store may be away for a while: nothing is lost. Sending a
batch twice is harmless: MLflow keeps one point per key, timestamp, step and value.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from fitting.table import loss_column
from sweeps.errors import first_line
from sweeps.folders import Folders
from sweeps.grid import Cell, Plan
from sweeps.tracking import ENDED, OUTCOME, Store
from trainer.atomic import write_atomically
from trainer.journal import journal_id, read_journal
from trainer.result import RunResult, read_result

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

    def __init__(self, store: Store, plan: Plan, folders: Folders) -> None:
        self.store, self.plan, self.folders = store, plan, folders
        target = hashlib.sha256(f"{store.uri} {store.experiment}".encode()).hexdigest()[:8]
        self.cursors = folders.relay / target
        self.cursors.mkdir(parents=True, exist_ok=True)
        self.parent = store.sweep_run(plan)
        runs = store.cell_runs(plan.sweep.name)
        self.known = {run_id: run.info.run_id for run_id, run in runs.items()}
        self.settled = {
            run_id
            for run_id, run in runs.items()
            if run.data.tags.get(OUTCOME) in ENDED and run.info.status == "FINISHED"
        }
        self.opened: set[str] = set()
        self.carried: set[str] = set()
        self.last_error: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="isoloop-relay", daemon=True)
        self._thread.start()

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
        pending = self._pass()
        reasons = dict(failed or {})
        for cell in self.plan.cells:
            if cell.run_id in reasons:
                self._try(cell.run_id, partial(self._fail, cell, reasons[cell.run_id]), pending)
            elif stopped and cell.run_id not in pending:
                self._try(cell.run_id, partial(self._stop, cell, stopped), pending)
        status = stopped or ("FAILED" if failed or pending else "FINISHED")
        self._try("the sweep", partial(self.store.end, self.parent, status), pending)
        return pending

    def _work(self) -> None:
        pause = PAUSE_SECONDS
        while not self._closing.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if self._pass() else PAUSE_SECONDS

    def _pass(self) -> list[str]:
        """One round over all cells; returns the run ids that could not be carried over."""
        pending: list[str] = []
        for index, cell in enumerate(self.plan.cells):
            carried = self._try(cell.run_id, partial(self._carry, cell), pending)
            if not carried and not self.store.answers():  # the store is away, not one record bad: spare it the others
                return pending + [later.run_id for later in self.plan.cells[index + 1 :]]
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

    def _carry(self, cell: Cell) -> None:
        """Bring the store up to date with one cell's journal and result."""
        if cell.run_id in self.carried:
            return
        folder = self.folders.run(cell.run_id)
        journal = folder / "journal.jsonl"
        result = read_result(folder)  # before the journal: what stands in it by now is all there will be
        identity = journal_id(journal)
        if identity is None and result is None:
            return
        cursor = self._cursor(cell.run_id)
        known = self.known.get(cell.run_id)
        ours = cursor.journal == identity and (known == cursor.mlflow_run or cell.run_id in self.opened)
        if ours and cursor.done and cell.run_id in self.settled:
            self.carried.add(cell.run_id)
            return
        if cell.run_id not in self.opened:
            if not ours:
                # Another journal of the same run has been here, or none: what the store has isn't sent again.
                run = known or self.store.cell_run(self.plan, cell, self.parent)
                cursor = _Cursor(mlflow_run=run, journal=identity, known_step=self.store.last_step(run))
                if self.store.outcome(run) in ENDED:
                    self.known[cell.run_id] = run
                    self._save(cell.run_id, replace(cursor, done=True))
                    self.carried.add(cell.run_id)
                    return
            self.store.take_up(cursor.mlflow_run, self.plan, cell)
            self.known[cell.run_id] = cursor.mlflow_run
            self.opened.add(cell.run_id)
            self._save(cell.run_id, cursor)
        records, offset = read_journal(journal, cursor.offset)
        points = [
            (key, value, record["time_ms"], record["step"])
            for record in records
            if record["kind"] == "metrics" and record["step"] > cursor.known_step
            for key, value in record["values"].items()
        ]
        self.store.send(cursor.mlflow_run, points=points)
        cursor.offset = offset
        if result is not None:
            self._finish(cursor, result, folder)
        self._save(cell.run_id, cursor)
        if cursor.done:
            self.carried.add(cell.run_id)

    def _finish(self, cursor: _Cursor, result: RunResult, folder: Path) -> None:
        """Record the outcome; its timestamp is the result file's, so that it is the same when sent again."""
        when = int((folder / "result.json").stat().st_mtime * 1000)
        records, _ = read_journal(folder / "journal.jsonl")
        sent = {key for r in records if r["kind"] == "metrics" and r["step"] == result.steps for key in r["values"]}
        values = {key: value for key, value in _result_metrics(result).items() if key not in sent}
        points = [(key, value, when, result.steps) for key, value in values.items()]
        points += [(LOSS_BY_RECURRENCE, loss, when, recurrence) for recurrence, loss in result.losses.items()]
        self.store.send(cursor.mlflow_run, points=points)
        self.store.close_run(cursor.mlflow_run, result.status, result.reason, "FINISHED")
        cursor.done = True

    def _fail(self, cell: Cell, reason: str) -> None:
        """Record a failure, also of a run that failed before it could write a journal."""
        run = self.known.get(cell.run_id) or self.store.cell_run(self.plan, cell, self.parent)
        self.known[cell.run_id] = run
        if self.store.outcome(run) in ENDED:  # elsewhere the same run came to its end: that record stays
            return
        self.store.take_up(run, self.plan, cell)
        self.store.close_run(run, "failed", reason, "FAILED")

    def _stop(self, cell: Cell, status: str) -> None:
        cursor = self._cursor(cell.run_id)
        if cursor.mlflow_run and not cursor.done:
            self.store.close_run(cursor.mlflow_run, "stopped", None, status)

    def _cursor(self, run_id: str) -> _Cursor:
        """The run's cursor; one that is missing or can't be read begins anew, and the store says how far it is."""
        try:
            return _Cursor(**json.loads((self.cursors / f"{run_id}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Cursor()

    def _save(self, run_id: str, cursor: _Cursor) -> None:
        write_atomically(self.cursors / f"{run_id}.json", json.dumps(asdict(cursor)))


def _result_metrics(result: RunResult) -> dict[str, float]:
    """What a result says in numbers, under both accountings; what is missing has no key."""
    values = result.model_dump(
        include={
            "tokens", "steps", "forward_loops", "backward_loops", "flops_exact", "flops_parcae_release", "loss",
            "bits_per_byte", "training_loss", "spectral_radius", "seconds",
        }
    )  # fmt: skip
    values |= {loss_column(recurrence): loss for recurrence, loss in result.losses.items()}
    return {key: float(value) for key, value in values.items() if value is not None}
