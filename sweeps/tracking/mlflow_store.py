"""The MLflow store: parent and child runs, their parameters, tags and points, and the run table read back.

Only this file imports mlflow. Runs are found by tags of our own; parameters hold only what the run id hashes, since
MLflow's can't be changed.
"""

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd
from filelock import FileLock

from isoloop.sweeps.config.schema import SWEEP_NAME, SweepConfig, config_text
from isoloop.sweeps.messages import Progress, first_line, translate_errors
from isoloop.sweeps.plan.grid import Cell, Plan
from isoloop.sweeps.privacy import redacted, switch_telemetry_off
from isoloop.sweeps.tracking.schema import (
    EXPERIMENT,
    IN_SWEEP,
    INTERVAL,
    KIND,
    LONGEST_TAG,
    NOTE,
    OUTCOME,
    PARENT_RUN,
    PREFIX,
    REASON,
    RUN_ID,
    SETTLED_OUTCOMES,
    SWEEP,
    SWEEP_KIND,
    VIEW,
    has_ended,
    metric_name,
    origin_tags,
    result_key,
    run_name,
    run_table,
    runs_view,
    simulated_suffix,
    tag_text,
)

EXPERIMENT_KIND, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag of an experiment of training runs. Pages of MLflow 3.17 go by the address: `page_of` says it there, too."""
VIEW_PARAMETER = "viewStateShareKey"
_EXPERIMENT_NOTE = "Sweeps of isoloop. Choose 'Model training' above, and on the page of runs a sweep under 'Views'."
# MLflow takes 1,000 points, parameters and tags at a time, of which at most 100 parameters and 100 tags.
BATCH_POINTS = 800
POSTGRES_LOCK = 0x150100B  # an arbitrary number of our own
_STORED_INFINITY = 1e308
"""A metric from which on is infinite: SQL stores keep infinity as 1.797e308."""


class TrackingStore:
    """One MLflow store and the experiment in it under which sweeps are recorded.

    Args:
        uri: the tracking URI.
        experiment: the experiment's name.
        artifacts: folder of the artifacts of a new experiment in an sqlite store; None: the store is only read, and
            nothing is created.
        progress: the watcher of how many runs have been read.

    Attributes:
        notices: what was unusual about the store and is mended, or what to do about it, a sentence each.

    Raises:
        ValueError: nothing usable answers at `uri`, or the experiment to read doesn't exist.
    """

    def __init__(self, uri: str, experiment: str, *, artifacts: Path | None, progress: Progress | None = None) -> None:
        # Set the environment, which mlflow reads when it is imported.
        switch_telemetry_off()
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Check the URI.
        self.uri, self.shown_uri, self.experiment = uri, redacted(uri), experiment
        self.progress = progress or Progress()
        is_sqlite = uri.startswith("sqlite:")
        if is_sqlite and (":memory:" in uri or not uri.removeprefix("sqlite:").strip("/")):
            raise ValueError(f"an sqlite tracking URI must read sqlite:///path/to/file.db, but got '{self.shown_uri}'")
        if is_sqlite and artifacts is None and not _sqlite_file(uri).is_file():
            raise ValueError(f"a store to read must exist, but there is no file {_sqlite_file(uri)}; correct the URI")
        # Connect, and find or create the experiment.
        self.notices: list[str] = []
        with translate_store_errors(uri, read_only=artifacts is None), _first_use(uri):
            self.client = MlflowClient(uri)
            existing = self.client.get_experiment_by_name(experiment)
            if existing is not None:
                self.experiment_id = existing.experiment_id
            elif artifacts is not None:
                self._notice_renamed()
                self.experiment_id = self._create_experiment(artifacts.resolve().as_uri() if is_sqlite else None)
            if artifacts is not None and (existing is None or existing.lifecycle_stage == "active"):
                self._mark_as_training(existing)
                if existing is not None:
                    self._check_artifacts(existing.artifact_location, artifacts)
        if existing is None and artifacts is None:
            names = sorted(each.name for each in self.client.search_experiments())
            raise ValueError(
                f"an experiment to read must exist, but {self.shown_uri} has no '{experiment}'; it has "
                f"{', '.join(names)}"
            )
        if existing is not None and existing.lifecycle_stage == "deleted":
            raise ValueError(
                f"the MLflow experiment must exist, but '{experiment}' was deleted; restore it with "
                f"'MLFLOW_TRACKING_URI={self.shown_uri} mlflow experiments restore --experiment-id "
                f"{existing.experiment_id}', or record in another one, with another name as tracking.experiment"
            )

    def _create_experiment(self, artifacts: str | None) -> str:
        try:
            return self.client.create_experiment(self.experiment, artifact_location=artifacts)
        except Exception:
            existing = self.client.get_experiment_by_name(self.experiment)
            if existing is None:
                raise
            return existing.experiment_id  # another process has just created it

    def _mark_as_training(self, existing: Any) -> None:
        """Tag the experiment as one of training runs, unless somebody has said what it is, and with its name."""
        tags = {} if existing is None else existing.tags
        kind = tags.get(EXPERIMENT_KIND, "")
        if not kind or kind.endswith("inferred") or kind == "no_inferred_type":
            self._tag_experiment(EXPERIMENT_KIND, MODEL_TRAINING)
        for key, value in ((EXPERIMENT, self.experiment), (NOTE, _EXPERIMENT_NOTE)):
            if key not in tags:
                self._tag_experiment(key, value)

    def _tag_experiment(self, key: str, value: str) -> None:
        try:
            self.client.set_experiment_tag(self.experiment_id, key, value)
        except Exception:
            if self.client.get_experiment(self.experiment_id).tags.get(key) != value:
                raise  # otherwise another process has just set it

    def _notice_renamed(self) -> None:
        """Notice that a new experiment is needed because the one of this name was renamed."""
        # MLflow's filters can't quote every name.
        renamed = [each for each in self.client.search_experiments() if each.tags.get(EXPERIMENT) == self.experiment]
        if renamed:
            self.notices.append(
                f"the MLflow experiment '{self.experiment}' was renamed to '{renamed[0].name}', so a new "
                f"'{self.experiment}' records all runs again; to go on in the old one, set tracking.experiment to "
                f"'{renamed[0].name}'"
            )

    def _check_artifacts(self, location: str, artifacts: Path) -> None:
        """Let the artifacts go where `artifacts` is now, or notice that they can't.

        MLflow fixes the place when an experiment is made. The store beside the artifacts is ours, and moves with them.
        """
        old, new = _local_path(location), artifacts.resolve()
        if old is None or old == new:
            return
        is_own = self.uri.startswith("sqlite:") and _sqlite_file(self.uri).resolve().parent == new.parent
        if is_own and old.name == new.name:
            _move_artifacts(_sqlite_file(self.uri), location, new.as_uri())
            self.notices.append(
                f"the output folder was moved or copied: MLflow's artifacts are now in {new}, not {old}"
            )
        elif not old.parent.is_dir():
            self.notices.append(
                f"MLflow keeps the artifacts of '{self.experiment}' in {old}, which is not on this machine any more; "
                "set tracking.experiment to a new name, whose artifacts go into the output folder"
            )

    def sweep_run(self, plan: Plan, environment: Mapping[str, str], *, kind: str = SWEEP_KIND) -> str:
        """Return the MLflow run id of the sweep's parent run, created if missing; its note is the configuration.

        `environment` are tags about the driver's machine and software.
        """
        sweep = plan.sweep
        identity = {KIND: kind, SWEEP: sweep.name}
        name, parents = f"{sweep.name}{simulated_suffix(plan)}", self._search(identity)
        parent = parents[0].info.run_id if parents else self._create(name, identity)
        self.client.update_run(parent, status="RUNNING")
        self._save_view(plan)
        settings = {key: value for key, value in sweep.model_dump(mode="json").items() if not isinstance(value, dict)}
        tags = {f"{PREFIX}{key}": tag_text(value) for key, value in settings.items()}
        self.send(parent, tags={**tags, **origin_tags(plan), **environment, NOTE: _note(sweep)})
        return parent

    def record_answer(
        self,
        parent: str,
        sweep: SweepConfig,
        *,
        numbers: Mapping[str, float],
        intervals: Mapping[str, tuple[float, float]],
        sentences: Sequence[str],
        results: Path,
    ) -> str | None:
        """Record the result of a sweep in its run: metrics, intervals as tags, the note, the files of `results`.

        Returns:
            The error, if there is one; the results are in the output folder.
        """
        now = int(time.time() * 1000)
        spans = {f"{INTERVAL}{result_key(name)}": f"{low:.6g} to {high:.6g}" for name, (low, high) in intervals.items()}
        try:
            self.send(
                parent,
                points=[(result_key(name), value, now, 0) for name, value in numbers.items()],
                tags={**spans, NOTE: _note(sweep, sentences)},
            )
        except Exception as error:  # noqa: BLE001  the caller reports it
            return first_line(error)
        return self.save_files(parent, results)

    def page_of(self, sweep: str) -> str:
        """Return the address of MLflow's page of a sweep's runs; an sqlite file needs `mlflow ui` for it."""
        server = self.shown_uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        view = f"workflowType=machine_learning&{VIEW_PARAMETER}={sweep}"
        return f"{server}/#/experiments/{self.experiment_id}/runs?{view}"

    def sweeps(self) -> list[str]:
        """Return the names of the sweeps that are recorded here."""
        return sorted({run.data.tags[SWEEP] for run in self._search({KIND: SWEEP_KIND})})

    def cell_runs(self, sweep: str, progress: Progress | None = None) -> dict[str, Any]:
        """Return MLflow's runs of a sweep's cells, by our run id; of two of the same cell, the settled one."""
        runs = self._search({KIND: "run", SWEEP: sweep}, progress)
        return {run.data.tags[RUN_ID]: run for run in sorted(runs, key=is_settled)}

    def find_cell_run(self, sweep: str, run_id: str) -> str | None:
        """Return the MLflow run id of a cell, None if it has no run."""
        runs = self._search({KIND: "run", SWEEP: sweep, RUN_ID: run_id})
        return max(runs, key=is_settled).info.run_id if runs else None

    def make_cell_run(self, plan: Plan, cell: Cell, tags: Mapping[str, str], parent: str) -> str:
        """Create the child run of a cell that has none, and return its MLflow run id."""
        identity = {KIND: "run", SWEEP: plan.sweep.name, RUN_ID: cell.run_id, PARENT_RUN: parent}
        return self._create(run_name(plan, cell), {**tags, **identity})

    def reopen(self, mlflow_run: str) -> None:
        """Mark an existing run as running."""
        self.client.update_run(mlflow_run, status="RUNNING")

    def is_settled(self, mlflow_run: str) -> bool:
        """Return whether the store has, as of now, the run's end and everything before it."""
        return is_settled(self.client.get_run(mlflow_run))

    def last_step(self, mlflow_run: str) -> int:
        """Return the last step of the loss curve in the store, -1 if there is none."""
        names = metric_name("train_loss"), "train_loss"  # the second in runs of older versions
        return max((m.step for name in names for m in self.client.get_metric_history(mlflow_run, name)), default=-1)

    def is_deleted(self, mlflow_run: str) -> bool:
        """Return whether a run was deleted, for good or not; False if the store doesn't answer."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(mlflow_run).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
        except Exception:  # noqa: BLE001  whatever it is, the store doesn't answer
            return False

    def answers(self) -> bool:
        """Return whether the store can be reached now."""
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
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log points (key, value, timestamp in ms, step) in batches; the last batch has the parameters and tags.

        NaN is not logged: MLflow's pages show it as a number, and a missing number is missing in the run table.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(key, float(value), when, step) for key, value, when, step in points if not math.isnan(value)]
        while len(metrics) > BATCH_POINTS:
            self.client.log_batch(mlflow_run, metrics=metrics[:BATCH_POINTS])
            metrics = metrics[BATCH_POINTS:]
        if metrics or params or tags:
            self.client.log_batch(
                mlflow_run,
                metrics=metrics,
                params=[Param(key, str(value)) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
            )

    def close_run(self, mlflow_run: str, outcome: str, reason: str | None, status: str) -> None:
        """Record the end of a run: outcome, reason and MLflow's status."""
        self.send(mlflow_run, tags={OUTCOME: outcome, REASON: tag_text(reason or "")})
        self.end(mlflow_run, status)

    def end(self, mlflow_run: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(mlflow_run, status)

    def save_file(self, mlflow_run: str, file: Path) -> None:
        """Store one file as an artifact of a run."""
        self._artifacts(mlflow_run).log_artifact(str(file))

    def save_files(self, mlflow_run: str, folder: Path) -> str | None:
        """Store the readable results of `folder` as artifacts of a run; return the error, if there is one."""
        readable = {".yaml", ".csv", ".json", ".txt", ".html", ".png", ".svg", ".pdf"}
        try:
            artifacts = self._artifacts(mlflow_run)
            for file in sorted(folder.rglob("*")):
                if file.suffix in readable and file.relative_to(folder).parts[0] != "relay":
                    inside = file.relative_to(folder).parent.as_posix()
                    artifacts.log_artifact(str(file), None if inside == "." else inside)
        except Exception as error:  # noqa: BLE001  the results are all in `folder`; the caller reports it
            return first_line(error)
        return None

    def _artifacts(self, mlflow_run: str) -> Any:
        """Return the place of a run's artifacts as the store has it now.

        MLflow's client remembers it by the run's id, and a copied store has the same ids.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self.client.get_run(mlflow_run).info.artifact_uri, tracking_uri=self.uri)

    def read_table(self, sweep: str) -> pd.DataFrame:
        """Return the run table of a sweep, of the ended runs in its grid, from MLflow alone.

        Raises:
            ValueError: no run of that sweep has ended; the store doesn't answer.
        """
        if not re.fullmatch(SWEEP_NAME, sweep):
            raise ValueError(f"a sweep's name must be of letters, digits and ._-, but got '{sweep}'; correct it")
        with translate_store_errors(self.uri):
            runs = list(self.cell_runs(sweep, self.progress).values())
            known = [] if runs else self.sweeps()
        if not any(has_ended(run.data.tags) and run.data.tags.get(IN_SWEEP) != "false" for run in runs):
            other = f"it has {len(runs)} unfinished runs" if runs else f"its sweeps: {', '.join(known) or 'none'}"
            raise ValueError(
                f"a sweep to read must have runs that have ended, but '{self.experiment}' in {self.shown_uri} has none "
                f"of '{sweep}'; {other}"
            )
        return run_table((run.data.tags, run.data.metrics) for run in runs)

    def foreign_runs(self, condition: str) -> list[Any]:
        """Return MLflow's runs of the experiment that pass a filter in MLflow's language, oldest first.

        Raises:
            ValueError: the filter isn't in that language; the store doesn't answer.
        """
        from mlflow.exceptions import MlflowException

        with translate_store_errors(self.uri):
            try:
                runs = self._pages(condition, self.progress)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                refused = first_line(error)
            else:
                return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        raise ValueError(f"a filter must be in MLflow's language, but got {condition!r} ({refused}); correct it")

    def _save_view(self, plan: Plan) -> None:
        """Save the view of the sweep's runs that MLflow's pages offer under 'Views', by the sweep's name."""
        key, state = f"{VIEW}{plan.sweep.name}", runs_view(plan)
        present = self.client.get_experiment(self.experiment_id).tags.get(key)
        if present is None or json.loads(present).get("state") != state:
            view = {"name": plan.sweep.name, "createdAt": int(time.time() * 1000), "state": state}
            self.client.set_experiment_tag(self.experiment_id, key, json.dumps(view))

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id

    def _search(self, tags: Mapping[str, str], progress: Progress | None = None) -> list[Any]:
        return self._pages(" and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()), progress)

    def _pages(self, condition: str, progress: Progress | None = None) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, max_results=1000, page_token=token)
            runs += map(_with_infinities, page)
            token = page.token
            if not token:
                return runs
            if progress is not None:
                progress.update(f"{len(runs):,} runs read", 0, 0)


def _note(sweep: SweepConfig, sentences: Sequence[str] = ()) -> str:
    """Return the text that MLflow shows with a sweep: its result, once there is one, and its configuration."""
    result = "".join(f"- {sentence}\n" for sentence in sentences)
    settings = config_text(sweep)
    room = max(LONGEST_TAG - len(result), 0)
    if len(settings) > room:
        settings = f"{settings[:room]}...\n# the rest is in the artifact config.yaml\n"
    return f"{result}\n```yaml\n{settings}```"


def is_settled(run: Any) -> bool:
    """Return whether MLflow's run is recorded as ended, which is written last."""
    return run.data.tags.get(OUTCOME) in SETTLED_OUTCOMES and run.info.status == "FINISHED"


def _with_infinities(run: Any) -> Any:
    """Return MLflow's run with its infinite metrics restored: a database keeps them as the largest numbers."""
    metrics = run.data.metrics
    metrics.update(
        {key: math.copysign(math.inf, value) for key, value in metrics.items() if abs(value) >= _STORED_INFINITY}
    )
    return run


def translate_store_errors(uri: str, *, read_only: bool = False) -> contextlib.AbstractContextManager[None]:
    """Return a context that raises any error of a store as one ValueError with its name."""

    def advice(error: Exception) -> str:
        schema = re.search(r"database schema \(found version (\w+)", str(error))
        if schema is not None:
            return _schema_advice(schema.group(1), shown)
        missing = isinstance(error, ModuleNotFoundError) and uri.startswith("postgresql")
        first = "install isoloop[postgres]" if missing else "start it, correct tracking.uri"
        if read_only:
            return "install isoloop[postgres]" if missing else "start it, or correct the URI"
        return f"nothing is lost: {first}, or leave it out for an sqlite file beside the results"

    shown = redacted(uri)
    rule = f"an MLflow store must answer at the tracking URI, but '{shown}' does not"
    return translate_errors(f"the MLflow store '{shown}'", rule, advice)


def _schema_advice(revision: str, shown_uri: str) -> str:
    """Return what to do about a database whose schema isn't that of the installed MLflow."""
    from mlflow import __version__
    from mlflow.store import db_migrations

    is_older = any(Path(db_migrations.__file__).parent.glob(f"versions/{revision}_*.py"))
    if is_older:
        return f"nothing is lost: back the database up, then run 'mlflow db upgrade {shown_uri}' and this command again"
    return (
        f"it was made by an MLflow newer than {__version__}, which is installed: nothing is lost, install that one, or "
        "use another store"
    )


def _local_path(location: str) -> Path | None:
    """Return the folder of an artifact location on this machine, None for another kind of place."""
    if location.startswith("file:"):
        return Path(url2pathname(urlparse(location).path))
    return Path(location) if location.startswith("/") else None


def _move_artifacts(database: Path, old: str, new: str) -> None:
    """Change the place of the artifacts, from URI to URI, in an sqlite store; MLflow has no call for it."""
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("update experiments set artifact_location = ? where artifact_location = ?", (new, old))
        connection.execute(
            "update runs set artifact_uri = ? || substr(artifact_uri, ?) where substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, len(old) + 1, f"{old}/"),
        )


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0].removeprefix("file:"))


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time create a database's tables, which crashes if several do it at once.

    An MLflow server creates them by itself.
    """
    if uri.startswith("sqlite:"):
        database = _sqlite_file(uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(database.with_name(f".{database.name}.lock"))
        try:
            lock.acquire()
        except OSError:
            if not database.is_file():
                raise
        # A file in a folder that can't be written to can still be read.
        try:
            yield
        finally:
            lock.release()
    elif uri.startswith("postgresql"):
        from sqlalchemy import NullPool, create_engine, text

        # This also fails at once if nobody answers, where MLflow would try for minutes.
        with create_engine(uri, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
            connection.execute(text(f"select pg_advisory_lock({POSTGRES_LOCK})"))
            yield
            connection.execute(text(f"select pg_advisory_unlock({POSTGRES_LOCK})"))
    else:
        yield
