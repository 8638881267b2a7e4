"""A tuning from a sweep's configuration to the settings that won, station by station."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.config.uri import TUNE_STORAGE_VARIABLE
from isoloop.sweeps.execution.engine import Engine, Outcome, Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import open_cluster, open_storage, prepare
from isoloop.sweeps.plan.centre import with_centres
from isoloop.sweeps.plan.grid import Cell, Plan, PlannedCorpus
from isoloop.sweeps.tracking.schema import TUNE_KIND
from isoloop.sweeps.tuning.result import Tuned, write_tuned
from isoloop.sweeps.tuning.search_space import Search, ended, grid_base, search_for
from isoloop.sweeps.tuning.study import Study
from isoloop.sweeps.tuning.transfer_check import FACTORS
from isoloop.sweeps.tuning.tuner import Tuner, Watcher, is_complete
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.sources import CorpusProgress, no_progress
from isoloop.trainer.files import sole_owner

if TYPE_CHECKING:
    from isoloop.sweeps.tracking.uploader import Relay

ClusterOf = Callable[[SweepConfig, str | None], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is to be tuned: the search, its corpora by fingerprint, and where it is kept."""

    search: Search
    corpora: Mapping[str, Path]
    folders: Folders


def prepare_tuning(sweep: SweepConfig, folders: Folders, corpus_progress: CorpusProgress = no_progress) -> Tuning:
    """Prepare the corpus and the search.

    Raises:
        ValueError: the sweep can't be tuned, or not in that space; the corpus is missing, empty or too small.
    """
    base, means = grid_base(with_centres(sweep, folders))
    prepared = prepare(base, folders, corpus_progress)
    (cell,) = prepared.plan.cells
    ((fingerprint, corpus),) = prepared.corpora.items()

    def corpus_of(_: DataConfig) -> PlannedCorpus:
        return PlannedCorpus(fingerprint, corpus.facts.train_tokens)

    return Tuning(
        search=search_for(base, means, cell, corpus_of),
        corpora=prepared.corpus_folders,
        folders=replace(folders, name=f"{folders.name}/tune"),
    )


def tune(
    tuning: Tuning,
    source: str,
    *,
    command: str,
    check: bool = True,
    address: str | None = None,
    watcher: Watcher | None = None,
    cluster: ClusterOf = open_cluster,
) -> Tuned:
    """Run the trials that are missing and the check, all recorded in MLflow, and write what was found.

    Args:
        tuning: what to tune.
        source: the sweep as the command names it.
        command: the command, for the files' headers.
        check: look whether the best holds at other recurrences.
        address: of a Ray cluster.
        watcher: is told how far it is.
        cluster: makes what runs are started on.

    Raises:
        ValueError: a store, storage, database or cluster can't be used; no trial finished; the store didn't take all.
        KeyboardInterrupt: stopped; the runs have saved their state and the study knows what was under way.
    """
    folders = tuning.folders
    folders.sweep.mkdir(parents=True, exist_ok=True)
    with sole_owner(folders.sweep):
        study = Study(_database(tuning), tuning.search, tuning.search.sweep.tune)
        try:
            with study.named_trouble():
                return _tune(
                    tuning, study, source, command, check, watcher, partial(cluster, tuning.search.sweep, address)
                )
        finally:
            study.close()


def progress_so_far(tuning: Tuning) -> tuple[int, int]:
    """How many trials are done, and how many were under way when the driver stopped."""
    study = Study(_database(tuning), tuning.search, tuning.search.sweep.tune)
    try:
        outcomes = [trial.outcome for trial in study.trials()]
    finally:
        study.close()
    return len(outcomes) - outcomes.count("running"), outcomes.count("running")


def _tune(
    tuning: Tuning,
    study: Study,
    source: str,
    command: str,
    check: bool,
    watcher: Watcher | None,
    cluster: Callable[[], AbstractContextManager[Any]],
) -> Tuned:
    search, folders, sweep = tuning.search, tuning.folders, tuning.search.sweep
    plan = Plan(sweep=sweep.model_copy(update={"name": f"{sweep.name}.tune"}), cells=_cells_so_far(study))
    storage = open_storage(plan, tuning.corpora, folders)
    relay = _open_relay(study, plan, folders)
    stopped: str | None = "FAILED"
    outcome = Outcome()
    try:
        with ExitStack() as stack:
            engine = None
            if not is_complete(study, folders, check=check):
                started = stack.enter_context(cluster())
                engine = stack.enter_context(
                    Engine(
                        started,
                        sweep,
                        folders,
                        tuning.corpora,
                        storage=storage,
                        progress=_Noticed(relay),
                        outcome=outcome,
                    )
                )
            more = (len(FACTORS) + 1) * len({search.means[0], search.means[-1]}) if check else 0
            tuner = Tuner(study, engine, folders, relay, watcher=watcher, more=more)
            trials = tuner.run()
            finished = ended(trials)
            checked = tuner.check(finished[0]) if check and finished else None
        stopped = None
    except KeyboardInterrupt:
        stopped = "KILLED"
        raise
    finally:
        pending = relay.close(stopped=stopped, failed=outcome.failed)
    if not finished:
        raise ValueError(_why_none(sweep.name, [trial.reason for trial in trials if trial.reason]))
    tuned = Tuned(source=source, search=search, trials=tuple(trials), best=finished[0], check=checked)
    write_tuned(tuned, folders, command)
    if pending:
        raise ValueError(
            f"the tracking store must take every trial, but {relay.store.shown_uri} is {len(pending)} runs behind "
            f"({relay.last_error}); nothing is lost, and {folders.sweep / 'tuned.yaml'} is written: mend that and give "
            "the same command again"
        )
    relay.store.save_files(relay.parent, folders.sweep)
    return tuned


def _open_relay(study: Study, plan: Plan, folders: Folders) -> "Relay":
    """Into MLflow; it knows which trials of earlier calls were pruned."""
    from isoloop.sweeps.tracking.mlflow_store import Store, named_trouble
    from isoloop.sweeps.tracking.uploader import Relay

    tracking, storage = plan.sweep.tracking, plan.sweep.storage
    uri = tracking.full_uri(default=folders.default_tracking_uri())
    store = Store(uri, tracking.experiment, artifacts=folders.artifacts)
    with named_trouble(uri):
        runs_at = None if storage is None else f"{str(storage).rstrip('/')}/runs"
        relay = Relay(store, plan, folders, runs_at=runs_at, kind=TUNE_KIND)
    for trial in study.trials():
        if trial.run_id is not None and trial.outcome == "pruned":
            relay.give_up(trial.run_id, "pruned", trial.reason or "")
    return relay


class _Noticed(Progress):
    """Tells the relay which runs were started."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay

    def run_started(self, cell: Cell) -> None:
        self.relay.notice(cell.run_id)


def _cells_so_far(study: Study) -> tuple[Cell, ...]:
    """The runs of the trials that an earlier call has launched."""
    found = {}
    for trial in study.trials():
        cell = None if trial.run_id is None else study.search.cell(trial.values, labels={"trial": trial.number})
        if isinstance(cell, Cell):
            found[cell.run_id] = cell
    return tuple(found.values())


def _database(tuning: Tuning) -> str:
    """The URL of the study's database: a file of its own unless one is given.

    Raises:
        ValueError: it is the tracking store's.
    """
    sweep = tuning.search.sweep
    if sweep.tune.storage is None:
        return f"sqlite:///{(tuning.folders.sweep / 'tune.db').resolve()}"
    database = sweep.tune.storage.with_secret(TUNE_STORAGE_VARIABLE)
    default = tuning.folders.default_tracking_uri()
    if database in (default, sweep.tracking.full_uri(default=default)):
        raise ValueError(
            "the study must have a database of its own, but tune.storage (--storage-url) is MLflow's, whose tables "
            "would collide with its; name another one, or leave it out"
        )
    return database


def _why_none(name: str, reasons: list[str]) -> str:
    said = f"; the last: {reasons[-1]}" if reasons else ""
    return (
        f"a tuning must have a trial that finishes, but of '{name}' none did{said}; lower the learning rates in "
        "tune.space, or mend that, and give the same command again"
    )
