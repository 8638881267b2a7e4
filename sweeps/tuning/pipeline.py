"""The steps of a tuning, from a sweep's configuration to the best settings: prepare, run, check, write."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isoloop.sweeps.config.schema import TUNE_STORAGE_VARIABLE, SweepConfig
from isoloop.sweeps.execution.engine import Engine, SweepOutcome
from isoloop.sweeps.execution.presence import sole_driver
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import open_cluster, open_stores, planned_corpus, prepare, storage_uri
from isoloop.sweeps.plan.axes import with_centres
from isoloop.sweeps.plan.grid import Cell, Plan, PlannedCorpus
from isoloop.sweeps.tuning.rate_design import fit_trials
from isoloop.sweeps.tuning.rate_result import RateTuningResult
from isoloop.sweeps.tuning.result import TuningResult, write_result_files
from isoloop.sweeps.tuning.search_space import (
    SearchSpace,
    finished_trials,
    make_search_space,
    reduce_to_one_point,
)
from isoloop.sweeps.tuning.study import Study
from isoloop.sweeps.tuning.transfer_check import FACTORS
from isoloop.sweeps.tuning.tuner import Tuner, is_complete
from isoloop.trainer.config import DataConfig

ClusterOpener = Callable[[SweepConfig, str | None], AbstractContextManager[Any]]


class NoTrialFinishedError(ValueError):
    """A tuning whose trials have all ended, and none with a loss."""


@dataclass(frozen=True, kw_only=True)
class PreparedTuning:
    """A search space, its corpora by fingerprint, and the folders of the tuning."""

    space: SearchSpace
    corpora: Mapping[str, Path]
    folders: Folders

    def open_study(self) -> Study:
        """Open the study in its database: a file of its own unless the configuration gives one.

        Raises:
            ValueError: no database answers, or it is that of the tracking store.
        """
        sweep = self.space.sweep
        url = f"sqlite:///{(self.folders.sweep / 'tune.db').resolve()}"
        if sweep.tune.storage is not None:
            url = sweep.tune.storage.with_secret(TUNE_STORAGE_VARIABLE)
            default = self.folders.default_tracking_uri()
            if url in (default, sweep.tracking.full_uri(default=default)):
                raise ValueError(
                    "the study must have a database of its own, but tune.storage (--storage-url) is MLflow's, which "
                    "has tables of the same names; name another one, or leave it out"
                )
        return Study(url, self.space, sweep.tune)


def prepare_tuning(sweep: SweepConfig, folders: Folders, progress: Progress | None = None) -> PreparedTuning:
    """Prepare the corpus and the search space.

    Raises:
        ValueError: the sweep can't be tuned, or not in that space; the corpus is missing, empty or too small.
    """
    base, means = reduce_to_one_point(with_centres(sweep, folders))
    prepared = prepare(base, folders, progress)
    (cell,) = prepared.plan.cells
    (corpus,) = prepared.corpora.values()

    def corpus_of(data: DataConfig) -> PlannedCorpus:
        return planned_corpus(corpus, data)

    return PreparedTuning(
        space=make_search_space(base, means, cell, corpus_of),
        corpora=prepared.corpus_folders,
        folders=replace(folders, name=f"{folders.name}/tune"),
    )


def run_tuning(
    tuning: PreparedTuning,
    source: str,
    *,
    command: str,
    check: bool = True,
    address: str | None = None,
    progress: Progress | None = None,
    cluster: ClusterOpener = open_cluster,
) -> TuningResult:
    """Run the missing trials and the check, record them in MLflow, and write the result.

    Args:
        tuning: the prepared tuning.
        source: the sweep as the command names it.
        command: the command without secrets, for the header of tuned.yaml.
        check: check whether the best settings hold at other recurrences, unless the trials were in several cells.
        address: address of a Ray cluster.
        progress: the watcher.
        cluster: opens the cluster.

    Raises:
        NoTrialFinishedError: no trial finished.
        ValueError: a store, storage, database or cluster can't be used, or the store didn't take every trial.
        KeyboardInterrupt: the tuning was stopped; its runs have saved their state, and the study knows them.
    """
    space, folders, sweep, progress = tuning.space, tuning.folders, tuning.space.sweep, progress or Progress()
    check = check and not space.grid_cells
    progress.begin("Opening the study")
    folders.sweep.mkdir(parents=True, exist_ok=True)
    with (
        sole_driver(folders, command=command, storage=storage_uri(sweep)),
        closing(tuning.open_study()) as study,
        study.translate_errors(),
    ):
        # Run the trials and the check.
        plan = Plan(sweep=sweep.model_copy(update={"name": f"{sweep.name}.tune"}), cells=_started_cells(study))
        outcome = SweepOutcome()
        with (
            open_stores(plan, tuning.corpora, folders, outcome, progress, is_tuning=True) as (run_store, uploader),
            ExitStack() as stack,
        ):
            # Trials that earlier calls pruned have no result, so their end is recorded here.
            for trial in study.trials():
                if trial.run_id is not None and trial.outcome == "pruned":
                    uploader.record_end(trial.run_id, "pruned", trial.reason or "")
            engine = None
            if not is_complete(study, folders, check=check):
                progress.begin("Starting Ray")
                engine = stack.enter_context(
                    Engine(
                        stack.enter_context(cluster(sweep, address)),
                        sweep,
                        folders,
                        tuning.corpora,
                        run_store=run_store,
                        progress=progress,
                        outcome=outcome,
                        on_start=uploader.watch,
                    )
                )
            checked_means = {space.grid_recurrences[0], space.grid_recurrences[-1]} if check else ()
            check_runs = (len(FACTORS) + 1) * len(checked_means)
            tuner = Tuner(
                study, engine, folders, uploader, progress=progress, check_runs=check_runs, started=plan.cells
            )
            progress.begin("Tuning")
            trials = tuner.run()
            finished = finished_trials(trials)
            if check:
                progress.begin("Checking the best settings")
            checked = tuner.check(finished[0]) if check and finished else None

        # Write and record the result.
        if not finished:
            reasons = [trial.reason for trial in trials if trial.reason]
            last = f"; the last: {reasons[-1]}" if reasons else ""
            raise NoTrialFinishedError(
                f"a tuning must have a trial that finishes, but of '{sweep.name}' none did{last}; lower the learning "
                "rates in tune.space, or fix the cause, and rerun the command"
            )
        content: dict[str, Any] = {"source": source, "space": space, "trials": tuple(trials), "best": finished[0]}
        content |= {"check": checked, "failed": outcome.failed}
        result = _result_with_law(content, folders) if space.grid_cells else TuningResult(**content)
        write_result_files(result, folders, command)
        uploader.check_complete(f", and {folders.sweep / 'tuned.yaml'} is written")
        progress.begin("Copying the results into MLflow")
        uploader.store.save_files(uploader.parent, folders.sweep)
        return result


def _result_with_law(content: dict[str, Any], folders: Folders) -> TuningResult:
    """Fit the law of the best rates to the trials, write it in the place of an earlier one, and return the result."""
    folders.rates.unlink(missing_ok=True)
    try:
        result = RateTuningResult(**content, law=fit_trials(content["space"], content["trials"]))
    except ValueError as error:
        return RateTuningResult(**content, law=None, why_no_law=str(error))
    result.write_law(folders)
    return result


def count_trials(tuning: PreparedTuning) -> tuple[int, int]:
    """Return how many trials have ended, and how many were running when the driver stopped."""
    with closing(tuning.open_study()) as study:
        outcomes = [trial.outcome for trial in study.trials()]
    return len(outcomes) - outcomes.count("running"), outcomes.count("running")


def _started_cells(study: Study) -> tuple[Cell, ...]:
    """Return the runs of the trials that earlier calls have started."""
    cells = {}
    for trial in study.trials():
        cell = None if trial.run_id is None else study.space.cell(trial.values, labels={"trial": trial.number})
        if isinstance(cell, Cell):
            cells[cell.run_id] = cell
    return tuple(cells.values())
