"""A sweep from its configuration to its page, station by station. The command line parses and prints; this does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.schema import SweepConfig, config_text
from isoloop.sweeps.config.uri import STORAGE_VARIABLE
from isoloop.sweeps.execution.engine import Outcome, Progress
from isoloop.sweeps.execution.status import write_manifest
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.centre import with_centres
from isoloop.sweeps.plan.grid import Cell, Plan, PlannedCorpus, plan_sweep, simulated_corpus
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.corpus import Corpus, prepare_corpus
from isoloop.trainer.data.sources import CorpusProgress, no_progress
from isoloop.trainer.files import sole_owner
from isoloop.trainer.run.result import RunResult

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.sweeps.execution.ray_cluster import RayCluster
    from isoloop.sweeps.storage.run_store import Storage
    from isoloop.sweeps.tracking.mlflow_store import Store


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A plan and the corpora it will be trained on, by fingerprint (none where losses are simulated)."""

    plan: Plan
    corpora: Mapping[str, Corpus]

    @property
    def corpus_folders(self) -> dict[str, Path]:
        """Where the corpora lie, by fingerprint."""
        return {fingerprint: corpus.folder for fingerprint, corpus in self.corpora.items()}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A sweep whose runs are in the store: its checked run table, failures by run id, and where it is recorded."""

    table: "pd.DataFrame"
    failed: dict[str, str]
    store: "Store"
    parent: str


def prepare(sweep: SweepConfig, folders: Folders, corpus_progress: CorpusProgress = no_progress) -> Prepared:
    """Prepare the corpus, telling `corpus_progress` how far it is, and solve the grid.

    Raises:
        ValueError: the corpus is missing, empty or too small; a budget is too small; no cell is left.
    """
    sweep = with_centres(sweep, folders)
    if sweep.simulation is not None:
        return Prepared(plan=plan_sweep(sweep, simulated_corpus), corpora={})
    corpora: dict[DataConfig, Corpus] = {}

    def corpus_of(data: DataConfig) -> PlannedCorpus:
        if data not in corpora:
            corpora[data] = prepare_corpus(data, folders.corpora, corpus_progress)
        facts = corpora[data].facts
        return PlannedCorpus(facts.fingerprint, facts.train_tokens)

    plan = plan_sweep(sweep, corpus_of)
    for data, context, vocabulary in {
        (cell.spec.data, cell.spec.model.context, cell.spec.model.vocabulary) for cell in plan.cells
    }:
        corpora[data].check(context, vocabulary)
    return Prepared(plan=plan, corpora={corpus.facts.fingerprint: corpus for corpus in corpora.values()})


def train_and_record(
    prepared: Prepared, folders: Folders, *, address: str | None = None, progress: Progress | None = None
) -> Recorded:
    """Train what is missing, carry it into MLflow and write the run table with the configuration that it is of.

    Raises:
        ValueError: the tracking store or the Ray address can't be used, the store didn't take everything, or another
            process runs this sweep.
        KeyboardInterrupt: stopped; the runs have saved their state and the store says so.
    """
    with sole_owner(folders.sweep):
        return _train_and_record(prepared.plan, prepared.corpus_folders, folders, address, progress)


def _train_and_record(
    plan: Plan, corpora: Mapping[str, Path], folders: Folders, address: str | None, progress: Progress | None
) -> Recorded:
    from isoloop.fitting import check_table
    from isoloop.sweeps.execution.engine import execute
    from isoloop.sweeps.tracking.mlflow_store import Store, named_trouble
    from isoloop.sweeps.tracking.uploader import Relay

    uri = plan.sweep.tracking.full_uri(default=folders.default_tracking_uri())
    write_manifest(plan, folders)
    storage = open_storage(plan, corpora, folders)
    store = Store(uri, plan.sweep.tracking.experiment, artifacts=folders.artifacts)
    with named_trouble(uri):
        runs_at = None if plan.sweep.storage is None else f"{str(plan.sweep.storage).rstrip('/')}/runs"
        relay = Relay(store, plan, folders, runs_at=runs_at)
    stopped: str | None = "FAILED"
    outcome = Outcome()
    try:
        execute(
            plan,
            folders,
            partial(open_cluster, plan.sweep, address),
            corpora=corpora,
            storage=storage,
            progress=_Noticed(relay.notice, progress),
            outcome=outcome,
        )
        stopped = None
    except KeyboardInterrupt:
        stopped = "KILLED"
        raise
    finally:
        pending = relay.close(stopped=stopped, failed=outcome.failed)
    if pending:
        raise ValueError(
            f"the tracking store must take every run, but {store.shown_uri} is {len(pending)} runs behind "
            f"({relay.last_error}); nothing is lost: mend that and give the same command again"
        )
    table = check_table(store.read_table(plan.sweep.name))
    if len(table) < len(plan.cells):
        raise ValueError(
            f"the tracking store must hold all {len(plan.cells)} runs, but {store.shown_uri} has {len(table)}; nothing "
            "is lost: give the same command again"
        )
    left_out = [f"{cell.label}: {cell.reason}\n" for cell in plan.skipped]
    folders.left_out.write_text("".join(left_out))
    folders.config.write_text(config_text(plan.sweep))
    table.to_csv(folders.table, index=False)
    return Recorded(table=table, failed=outcome.failed, store=store, parent=relay.parent)


def open_storage(plan: Plan, corpora: Mapping[str, Path], folders: Folders) -> "Storage | None":
    """The sweep's storage with its corpora in it, and what it has of the plan's runs brought here; None without one.

    Raises:
        ValueError: the storage can't be used.
    """
    if plan.sweep.storage is None:
        return None
    from isoloop.sweeps.storage.filesystem import StorageError
    from isoloop.sweeps.storage.run_store import Storage

    storage = Storage(plan.sweep.storage.with_secret(STORAGE_VARIABLE))
    storage.check()
    try:
        for folder in corpora.values():
            storage.push_corpus(folder)
        storage.fetch_news([cell.run_id for cell in plan.cells], folders.out)
        storage.withdraw_stop([cell.run_id for cell in plan.cells])
    except StorageError as error:
        raise ValueError(f"{error}; nothing is lost: mend that and give the same command again") from error
    return storage


class _Noticed(Progress):
    """Says which runs were started, so that only those are looked at, and passes everything on to a watcher."""

    def __init__(self, notice: Callable[[str], None], watcher: Progress | None) -> None:
        self.notice, self.watcher = notice, watcher or Progress()

    def share_done(self, share: float) -> None:
        self.watcher.share_done(share)

    def run_started(self, cell: Cell) -> None:
        self.notice(cell.run_id)
        self.watcher.run_started(cell)

    def run_ended(self, cell: Cell, result: RunResult | None, reason: str | None) -> None:
        self.watcher.run_ended(cell, result, reason)

    def run_retried(self, cell: Cell, reason: str) -> None:
        self.watcher.run_retried(cell, reason)


def open_cluster(sweep: SweepConfig, address: str | None) -> "RayCluster":
    """Ray, local or at `address`; a local one for simulated runs has what the configuration says of the cluster."""
    from isoloop.sweeps.execution.ray_cluster import RayCluster
    from isoloop.sweeps.execution.runtime_env import own_classes, runtime_environment

    declared = None
    if sweep.simulation is not None and sweep.cluster.gpus:
        nodes, cores, gpus = sweep.cluster.nodes, sweep.cluster.cores_per_node, sweep.cluster.gpus
        declared = {"num_cpus": nodes * cores, "num_gpus": nodes * gpus}
    runtime_env = None
    if address is not None:
        runtime_env = runtime_environment(own_classes(sweep.model_dump(mode="json")))
    return RayCluster(address, runtime_env=runtime_env, declared=declared)
