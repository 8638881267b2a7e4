"""A tuning from a sweep's configuration to the settings that won, station by station."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.config.uri import TUNE_STORAGE_VARIABLE
from isoloop.sweeps.execution.engine import Engine, SweepOutcome
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import open_cluster, open_stores, prepare
from isoloop.sweeps.plan.centre import with_centres
from isoloop.sweeps.plan.grid import Cell, Plan, PlannedCorpus
from isoloop.sweeps.progress import Progress
from isoloop.sweeps.tuning.result import Tuned, write_tuned
from isoloop.sweeps.tuning.search_space import Search, ended, grid_base, search_for
from isoloop.sweeps.tuning.study import Study
from isoloop.sweeps.tuning.transfer_check import FACTORS
from isoloop.sweeps.tuning.tuner import Tuner, is_complete
from isoloop.trainer.config import DataConfig
from isoloop.trainer.files import sole_owner

ClusterOf = Callable[[SweepConfig, str | None], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is to be tuned: the search, its corpora by fingerprint, and where it is kept."""

    search: Search
    corpora: Mapping[str, Path]
    folders: Folders


def prepare_tuning(sweep: SweepConfig, folders: Folders, progress: Progress | None = None) -> Tuning:
    """Prepare the corpus and the search.

    Raises:
        ValueError: the sweep can't be tuned, or not in that space; the corpus is missing, empty or too small.
    """
    base, means = grid_base(with_centres(sweep, folders))
    prepared = prepare(base, folders, progress)
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
    progress: Progress | None = None,
    cluster: ClusterOf = open_cluster,
) -> Tuned:
    """Run the trials that are missing and the check, all recorded in MLflow, and write what was found.

    Args:
        tuning: what to tune.
        source: the sweep as the command names it.
        command: the command, for the files' headers.
        check: look whether the best holds at other recurrences.
        address: of a Ray cluster.
        progress: the watcher.
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
            with study.translate_errors():
                return _tune(
                    tuning, study, source, command, check, progress, partial(cluster, tuning.search.sweep, address)
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
    progress: Progress | None,
    cluster: Callable[[], AbstractContextManager[Any]],
) -> Tuned:
    search, folders, sweep = tuning.search, tuning.folders, tuning.search.sweep
    plan = Plan(sweep=sweep.model_copy(update={"name": f"{sweep.name}.tune"}), cells=_cells_so_far(study))
    outcome = SweepOutcome()
    with (
        open_stores(plan, tuning.corpora, folders, outcome, is_tuning=True) as (run_store, uploader),
        ExitStack() as stack,
    ):
        for trial in study.trials():  # those that earlier calls have pruned
            if trial.run_id is not None and trial.outcome == "pruned":
                uploader.record_end(trial.run_id, "pruned", trial.reason or "")
        engine = None
        if not is_complete(study, folders, check=check):
            engine = stack.enter_context(
                Engine(
                    stack.enter_context(cluster()),
                    sweep,
                    folders,
                    tuning.corpora,
                    run_store=run_store,
                    outcome=outcome,
                    on_start=uploader.watch,
                )
            )
        more = (len(FACTORS) + 1) * len({search.means[0], search.means[-1]}) if check else 0
        tuner = Tuner(study, engine, folders, uploader, progress=progress, more=more)
        trials = tuner.run()
        finished = ended(trials)
        checked = tuner.check(finished[0]) if check and finished else None
    if not finished:
        raise ValueError(_why_none(sweep.name, [trial.reason for trial in trials if trial.reason]))
    tuned = Tuned(source=source, search=search, trials=tuple(trials), best=finished[0], check=checked)
    write_tuned(tuned, folders, command)
    uploader.check_complete(f", and {folders.sweep / 'tuned.yaml'} is written")
    uploader.store.save_files(uploader.parent, folders.sweep)
    return tuned


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
