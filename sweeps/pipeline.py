"""A sweep from its configuration to its page, station by station. The command line parses and prints; this does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sweeps.config import SweepConfig
from sweeps.folders import Folders
from sweeps.grid import SIMULATED_DATA, Plan, plan_sweep
from trainer.data import Corpus, prepare_corpus

if TYPE_CHECKING:
    import pandas as pd

    from fitting import SweepFit
    from sweeps.execute import Progress
    from sweeps.tracking import Store

FitProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A plan and the corpus it will be trained on (None where losses are simulated)."""

    plan: Plan
    corpus: Corpus | None


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A sweep whose runs are in the store: its checked run table, failures by run id, and where it is recorded."""

    table: "pd.DataFrame"
    failed: dict[str, str]
    store: "Store"
    parent: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a sweep's folder holds after fitting; a fit that can't be made is None and `why_no_fit` says why."""

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    report: Path


def prepare(sweep: SweepConfig, folders: Folders) -> Prepared:
    """Prepare the corpus and solve the grid.

    Raises:
        ValueError: the corpus is missing, empty or too small; a budget is too small; no cell is left.
    """
    if sweep.simulation is not None:
        return Prepared(plan=plan_sweep(sweep, data_fingerprint=SIMULATED_DATA), corpus=None)
    corpus = prepare_corpus(sweep.data, folders.corpora)
    corpus.check(sweep.model.context)
    facts = corpus.facts
    plan = plan_sweep(sweep, data_fingerprint=facts.fingerprint, train_tokens=facts.train_tokens)
    return Prepared(plan=plan, corpus=corpus)


def train_and_record(
    prepared: Prepared, folders: Folders, *, address: str | None = None, progress: "Progress | None" = None
) -> Recorded:
    """Train what is missing, carry it into MLflow and write the run table.

    Raises:
        ValueError: the tracking store or the Ray address can't be used, or the store didn't take everything.
        KeyboardInterrupt: stopped; the runs have saved their state and the store says so.
    """
    from fitting import check_table
    from sweeps.execute import Outcome, execute
    from sweeps.tracking import Relay, Store

    plan = prepared.plan
    folders.sweep.mkdir(parents=True, exist_ok=True)
    (folders.sweep / "config.yaml").write_text(config_text(plan.sweep))
    uri = plan.sweep.tracking.uri or folders.default_tracking_uri()
    store = Store(uri, plan.sweep.tracking.experiment, artifacts=folders.artifacts)
    relay = Relay(store, plan, folders)
    interrupted, outcome = True, Outcome()
    try:
        corpus = prepared.corpus.folder if prepared.corpus else None
        outcome = execute(plan, folders, corpus=corpus, address=address, progress=progress)
        interrupted = False
    finally:
        pending = relay.close(interrupted=interrupted, failed=outcome.failed)
    if pending:
        raise ValueError(
            f"the tracking store must take every run, but {uri} is {len(pending)} runs behind ({relay.last_error}); "
            "nothing is lost: bring it back and give the same command again"
        )
    table = store.read_table(plan)
    table.to_csv(folders.table, index=False)
    return Recorded(table=check_table(table), failed=outcome.failed, store=store, parent=relay.parent)


def fit_and_report(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    *,
    left_out: list[str],
    command: str,
    progress: FitProgress | None = None,
) -> Results:
    """Fit the table with and without its largest budget, store both fits, draw and write the page.

    A table that can't be fitted gets a page all the same, which says why.
    """
    from fitting import fit_sweep
    from sweeps.report import write_report

    fit = hold_out = None
    why_no_fit: str | None = None
    try:
        fit = fit_sweep(table, name=sweep.name, progress=progress)
        store_fit(fit, folders, hold_out=False)
        hold_out = fit_sweep(table, name=sweep.name, hold_out_largest_budget=True, progress=progress)
        store_fit(hold_out, folders, hold_out=True)
    except ValueError as error:
        why_no_fit = str(error)
    report = write_report(
        folders.report,
        sweep=sweep,
        table=table,
        fit=fit,
        hold_out=hold_out,
        why_no_fit=why_no_fit,
        left_out=left_out,
        command=command,
    )
    return Results(fit=fit, hold_out=hold_out, why_no_fit=why_no_fit, report=report)


def store_fit(fit: "SweepFit", folders: Folders, *, hold_out: bool) -> Path:
    """Write a fit as JSON and, beside it, as readable text; returns the JSON's path."""
    path = folders.fit(hold_out=hold_out)
    folders.sweep.mkdir(parents=True, exist_ok=True)
    path.write_text(fit.to_json())
    path.with_suffix(".txt").write_text(fit.report())
    return path


def config_text(sweep: SweepConfig) -> str:
    """The whole configuration as YAML, defaults included; `isoloop run` takes it back."""
    return yaml.safe_dump(sweep.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
