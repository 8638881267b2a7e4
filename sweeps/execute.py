"""Run a plan: what is done is counted, what is missing goes through the engine."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sweeps.engine import Engine, Outcome, Progress
from sweeps.folders import Folders
from sweeps.grid import Cell, Plan
from sweeps.storage import Storage
from trainer.journal import read_journal
from trainer.result import RunResult, read_result


def finished_results(cells: Iterable[Cell], folders: Folders) -> dict[str, RunResult]:
    """Results that are there already, by run id."""
    found = {cell.run_id: read_result(folders.run(cell.run_id)) for cell in cells}
    return {run_id: result for run_id, result in found.items() if result is not None}


def saved_states(plan: Plan, folders: Folders) -> int:
    """How many runs without a result have a state to go on from: a checkpoint here, or one that a storage has."""
    unfinished = [folders.run(cell.run_id) for cell in plan.cells]
    return sum(_has_saved(folder) for folder in unfinished if not (folder / "result.json").exists())


def _has_saved(folder: Path) -> bool:
    if any((folder / "checkpoints").glob("[0-9]*")):
        return True
    events = [record["name"] for record in read_journal(folder / "journal.jsonl")[0] if record["kind"] == "event"]
    return events[-1:] == ["stopped"]


def execute(
    plan: Plan,
    folders: Folders,
    cluster: Callable[[], Any],
    *,
    corpora: Mapping[str, Path],
    storage: Storage | None = None,
    progress: Progress | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run what has no result yet.

    A run that raises is reported and the others go on; where the cause may pass, as with a lost worker, it goes on
    from its last checkpoint. On KeyboardInterrupt the runs save their state and end, and the interrupt is raised again;
    `outcome`, if given, then holds what is known until there.

    Args:
        plan: what to run.
        folders: where; every worker must see them, unless the sweep has a storage.
        cluster: makes what the attempts are started on: a context manager; not asked where nothing is missing.
        corpora: folders of the prepared corpora, by fingerprint.
        storage: the sweep's, where workers and driver share no disk; the corpora are in it.
        progress: is told how far it is.
        outcome: is filled in.

    Raises:
        ValueError: there is no such cluster, or it can't give a run its resources.
    """
    progress, outcome = progress or Progress(), outcome or Outcome()
    outcome.results |= finished_results(plan.cells, folders)
    waiting = []
    for cell in plan.cells:
        if cell.run_id in outcome.results:
            progress.run_ended(cell, outcome.results[cell.run_id], None)
        else:
            waiting.append(cell)
    if not waiting:
        progress.share_done(1.0)
        return outcome
    with (
        cluster() as started,
        Engine(started, plan.sweep, folders, corpora, storage=storage, progress=progress, outcome=outcome) as engine,
    ):
        engine.add(waiting)
        done = plan.flops - sum(cell.flops for cell in waiting)
        while engine.busy:
            done += sum(cell.flops for cell in engine.poll())
            progress.share_done((done + engine.flops_under_way()) / plan.flops)
    return outcome
