"""The steps of a sweep, from its configuration to its run table: prepare, train, record."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.schema import STORAGE_VARIABLE, SweepConfig, config_text
from isoloop.sweeps.execution.engine import SweepOutcome, run_plan
from isoloop.sweeps.execution.presence import sole_driver
from isoloop.sweeps.execution.status import write_manifest
from isoloop.sweeps.execution.trunks import with_origins
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.axes import with_centres
from isoloop.sweeps.plan.grid import CorpusLookup, Plan, PlannedCorpus, grid_columns, plan_sweep, simulated_corpus
from isoloop.sweeps.plan.quality import QualityPlan
from isoloop.sweeps.plan.rates import tuned_rates
from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.config import DataConfig, RunSpec
from isoloop.trainer.data.batches import tokens_per_pass
from isoloop.trainer.data.corpus import Corpus, prepare_corpus

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.sweeps.execution.ray_cluster import RayCluster
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore
    from isoloop.sweeps.tracking.uploader import Uploader


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A plan, the corpora that it is trained on, by fingerprint (none where losses are simulated), and its suites."""

    plan: Plan
    corpora: Mapping[str, Corpus]
    quality: QualityPlan | None = None

    @property
    def corpus_folders(self) -> dict[str, Path]:
        """Folders of the corpora, by fingerprint."""
        return {fingerprint: corpus.folder for fingerprint, corpus in self.corpora.items()}


@dataclass(frozen=True, kw_only=True)
class TrainedSweep:
    """A sweep whose runs are in MLflow.

    Attributes:
        table: the checked run table.
        failed: reasons of failures, by run id.
        unevaluated: reasons of failed evaluations by suites, by run id.
        store: the MLflow store.
        parent: the MLflow run id of the sweep.
    """

    table: "pd.DataFrame"
    failed: dict[str, str]
    unevaluated: dict[str, str]
    store: "TrackingStore"
    parent: str


def prepare(sweep: SweepConfig, folders: Folders, progress: Progress | None = None) -> PreparedSweep:
    """Prepare the corpora, and solve the grid.

    Raises:
        ValueError: a corpus is missing, empty or too small; a budget is too small; no cell is left; a suite's data are
            missing or short.
    """
    progress = progress or Progress()
    quality = QualityPlan.of(sweep.evaluation, folders)
    progress.begin("Planning" if sweep.simulation is not None else "Preparing the corpus")
    sweep = with_centres(sweep, folders)
    if sweep.simulation is not None:
        plan = plan_sweep(sweep, simulated_corpus, progress)
        return PreparedSweep(plan=with_origins(plan, folders), corpora={})
    corpora: dict[DataConfig, Corpus] = {}
    plan = with_origins(
        plan_sweep(sweep, corpus_lookup(folders, corpora, progress), progress, tuned_rates(sweep, folders)), folders
    )
    for data, context, vocabulary in {
        (cell.spec.data.whole, cell.spec.model.context, cell.spec.model.vocabulary) for cell in plan.cells
    }:
        corpora[data].check(context, vocabulary)
    for data, trains in {
        (cell.spec.data.whole, cell.spec.data.needs_documents) for cell in plan.cells if _needs_documents(cell.spec)
    }:
        progress.update("finding the documents", 0, 0)
        corpora[data].check_documents(held_out_only=not trains)
    by_fingerprint = {corpus.facts.fingerprint: corpus for corpus in corpora.values()}
    return PreparedSweep(plan=plan, corpora=by_fingerprint, quality=quality)


def corpus_lookup(folders: Folders, corpora: dict[DataConfig, Corpus], progress: Progress) -> CorpusLookup:
    """Return what gives the facts of the corpus of a data configuration, which is prepared and put into `corpora`."""

    def corpus_of(data: DataConfig) -> PlannedCorpus:
        if data.whole not in corpora:
            if corpora:
                progress.begin("Preparing the corpus")
            corpora[data.whole] = prepare_corpus(data.whole, folders.corpora, progress.update)
            progress.begin("Planning")
        return planned_corpus(corpora[data.whole], data)

    return corpus_of


def _needs_documents(spec: RunSpec) -> bool:
    return spec.data.needs_documents or spec.evaluation.documents is not None


def planned_corpus(corpus: Corpus, data: DataConfig) -> PlannedCorpus:
    """Return what a plan must know of a prepared corpus as `data` reads it."""
    tokens = corpus.first(data.unique_tokens).train
    packed = cache(partial(tokens_per_pass, tokens, data.packing)) if data.packing != "contiguous" else None
    return PlannedCorpus(corpus.facts.fingerprint, len(tokens), packed)


def train_sweep(
    prepared: PreparedSweep,
    folders: Folders,
    *,
    command: str | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> TrainedSweep:
    """Train what is missing, record it in MLflow, and write the run table with its configuration.

    Args:
        prepared: the plan and its corpora.
        folders: the places of the results.
        command: the command without secrets, which `isoloop status` shows where the sweep has stopped.
        address: address of a Ray cluster; None starts Ray on this machine.
        progress: the watcher.

    Raises:
        ValueError: the tracking store or the Ray address can't be used, the store didn't take every run, or another
            process runs this sweep.
        KeyboardInterrupt: the sweep was stopped; its runs have saved their state and the store says so.
    """
    plan, outcome, progress = prepared.plan, SweepOutcome(), progress or Progress()
    with sole_driver(folders, command=command, storage=storage_uri(plan.sweep)):
        # Train and record.
        accounting = {"accounting": plan.sweep.accounting}
        write_manifest(plan.cells, folders, columns=lambda cell: accounting | grid_columns(plan, cell))
        so_far = folders.so_far
        so_far.sweep.mkdir(exist_ok=True)
        so_far.config.write_text(config_text(plan.sweep), encoding="utf-8")
        if plan.rates is not None:
            plan.rates.write(folders.rates)
        with open_stores(plan, prepared.corpus_folders, folders, outcome, progress, quality=prepared.quality) as (
            run_store,
            uploader,
        ):
            run_plan(
                plan,
                folders,
                partial(open_cluster, plan.sweep, address),
                corpora=prepared.corpus_folders,
                run_store=run_store,
                progress=progress,
                outcome=outcome,
                on_start=uploader.watch,
                on_evaluated=uploader.watch_quality,
                quality=prepared.quality,
            )
        uploader.check_complete()
        for run_id, reason in uploader.unrecorded.items():
            outcome.unevaluated.setdefault(run_id, f"its results on suites were not recorded: {reason}")
        # Write the table.
        progress.begin("Writing the run table")
        from isoloop.fitting import check_table

        store = uploader.store
        table = check_table(store.read_table(plan.sweep.name))
        if len(table) < len(plan.cells):
            raise ValueError(
                f"the tracking store must hold all {len(plan.cells)} runs, but {store.shown_uri} has {len(table)}; "
                "nothing is lost: rerun the command"
            )
        folders.left_out.write_text(
            "".join(f"{cell.label}: {cell.reason}\n" for cell in plan.left_out), encoding="utf-8"
        )
        folders.config.write_text(config_text(plan.sweep), encoding="utf-8")
        table.to_csv(folders.table, index=False)
    return TrainedSweep(
        table=table, failed=outcome.failed, unevaluated=outcome.unevaluated, store=store, parent=uploader.parent
    )


def storage_uri(sweep: SweepConfig) -> str | None:
    """Return the whole URI of a sweep's storage, None if it has none."""
    return None if sweep.storage is None else sweep.storage.with_secret(STORAGE_VARIABLE)


@contextmanager
def open_stores(
    plan: Plan,
    corpora: Mapping[str, Path],
    folders: Folders,
    outcome: SweepOutcome,
    progress: Progress,
    *,
    is_tuning: bool = False,
    quality: QualityPlan | None = None,
) -> "Iterator[tuple[RunStore | None, Uploader]]":
    """Open the sweep's storage, if it has one, and an uploader of the runs of `plan` into MLflow.

    The storage gets the corpora, and what it has of the runs is fetched. When the block ends, what `outcome` says of
    failed runs is recorded, and MLflow's runs are closed.

    Raises:
        ValueError: the storage or the tracking store can't be used.
    """
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore, translate_store_errors
    from isoloop.sweeps.tracking.schema import SWEEP_KIND, TUNE_KIND
    from isoloop.sweeps.tracking.uploader import Uploader

    # The storage.
    run_store = None
    if plan.sweep.storage is not None:
        progress.begin("Reading the storage")
        run_ids = [cell.run_id for cell in plan.cells]
        run_store = RunStore(plan.sweep.storage.with_secret(STORAGE_VARIABLE))
        run_store.check()
        try:
            for folder in corpora.values():
                run_store.push_corpus(folder)
            run_store.fetch_updates(run_ids, folders.out)
            run_store.clear_stop_request(run_ids)
        except StorageError as error:
            raise ValueError(f"{error}; nothing is lost: fix this and rerun the command") from error
    # MLflow.
    progress.begin("Opening MLflow")
    tracking = plan.sweep.tracking
    uri = tracking.full_uri(default=folders.default_tracking_uri())
    store = TrackingStore(uri, tracking.experiment, artifacts=folders.artifacts, progress=progress)
    for notice in store.notices:
        progress.event(notice)
    runs_at = None if plan.sweep.storage is None else f"{str(plan.sweep.storage).rstrip('/')}/runs"
    with translate_store_errors(uri):
        kind = TUNE_KIND if is_tuning else SWEEP_KIND
        uploader = Uploader(store, plan, folders, runs_at=runs_at, kind=kind, quality=quality)
    stopped: str | None = "FAILED"
    try:
        yield run_store, uploader
        stopped = None
    except KeyboardInterrupt:
        stopped = "KILLED"
        raise
    finally:
        progress.begin("Recording the runs in MLflow")
        uploader.close(stopped=stopped, failed=outcome.failed)


def open_cluster(sweep: SweepConfig, address: str | None) -> "RayCluster":
    """Open Ray, local or at `address`; a local one for simulated runs has the resources of the sweep's `cluster`.

    Without an address it is that of the variable RAY_ADDRESS; `local` insists on a Ray on this machine.
    """
    from isoloop.sweeps.execution.ray_address import RayAddress
    from isoloop.sweeps.execution.ray_cluster import RayCluster
    from isoloop.sweeps.execution.runtime_env import own_classes, runtime_environment

    ray_address = RayAddress.resolve(address)
    declared = None
    if sweep.simulation is not None and sweep.cluster.gpus:
        nodes, cores, gpus = sweep.cluster.nodes, sweep.cluster.cores_per_node, sweep.cluster.gpus
        declared = {"num_cpus": nodes * cores, "num_gpus": nodes * gpus}
    runtime_env = None
    if ray_address.value is not None:
        runtime_env = runtime_environment(own_classes(sweep.model_dump(mode="json")))
    return RayCluster(ray_address.value, named_by=ray_address.named_by, runtime_env=runtime_env, declared=declared)
