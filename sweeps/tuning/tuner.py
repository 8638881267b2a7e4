"""Tunes: keeps as many trials under way as there is room for, prunes what falls behind, then checks the best.

Imports neither ray nor optuna: the engine runs, the study proposes. Every proposal is in the study's database before
its run is launched. A driver that was killed leaves trials untold; the next one takes them up first, each with its run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isoloop.sweeps.execution.engine import Engine
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan import resources as cost
from isoloop.sweeps.plan.grid import Cell
from isoloop.sweeps.plan.packing import Node, Pool
from isoloop.sweeps.progress import Progress
from isoloop.sweeps.tuning.search_space import Outcome, Search, Trial, ended, tuned_names
from isoloop.sweeps.tuning.study import Proposal, Study
from isoloop.sweeps.tuning.transfer_check import Check, CheckRun, check_runs
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import RunResult, read_result

LOOK_SECONDS = 1.0
SHARE_OF_TRIALS = 4
DUPLICATES_BY_LEARNING = 5
MOST_DUPLICATES = 50


class Recorder(Protocol):
    """A place where runs are recorded (the uploader into MLflow)."""

    def add(self, cell: Cell) -> None:
        """Add a run to the tuning."""

    def watch(self, run_id: str) -> None:
        """Record from now on what the run writes; it was started, or has a folder."""

    def record_end(self, run_id: str, outcome: str, reason: str) -> None:
        """Record the end of a run without a result."""


@dataclass(kw_only=True)
class _UnderWay:
    """A trial whose run was launched: how far its journal was read."""

    proposal: Proposal
    cell: Cell
    offset: int = 0
    pruned_at: int | None = None


class Tuner:
    """Runs a study's trials to their number; those of earlier calls count, unless they failed.

    Args:
        study: proposes and remembers.
        engine: runs; None where nothing is missing (`is_complete`).
        folders: of the tuning.
        recorder: is told of every run.
        progress: the watcher.
        more: runs that will come after the trials, for the share that is done.
    """

    def __init__(
        self,
        study: Study,
        engine: Engine | None,
        folders: Folders,
        recorder: Recorder,
        *,
        progress: Progress | None = None,
        more: int = 0,
    ) -> None:
        self.study, self._engine, self.folders, self.recorder = study, engine, folders, recorder
        self.progress = progress or Progress()
        trials, self.validations = study.tune.trials, study.tune.validations
        nodes = [] if engine is None else engine.cluster.nodes()
        self.parallel = study.tune.parallel or default_parallel(study.search, nodes, trials)
        self.known = {trial.number: trial for trial in study.trials()}
        self.wanted = trials + sum(trial.outcome == "failed" for trial in self.known.values())
        self.runs = trials + more
        self.done = sum(trial.outcome not in ("running", "failed") for trial in self.known.values())
        self.under_way: dict[str, _UnderWay] = {}
        self.left_over = study.unfinished()
        self.exhausted = False
        self.looked = 0.0

    @property
    def engine(self) -> Engine:
        """What runs are started on."""
        assert self._engine is not None, "without an engine nothing is missing"
        return self._engine

    def run(self) -> list[Trial]:
        """Until there are as many trials as wanted, or nothing new is proposed; all of them, in their order."""
        self._report()
        while True:
            while len(self.under_way) < self.parallel and (proposal := self._next()) is not None:
                self._launch(proposal)
            if not self.under_way:
                break
            for cell in self.engine.poll():
                self._ended(self.under_way.pop(cell.run_id))
            self._look()
        return self.study.trials()

    def check(self, best: Trial) -> Check:
        """Run what tells whether `best` holds at the sweep's least and most recurrence."""
        runs = check_runs(self.study.search, best)
        cells = {run.cell.run_id: run.cell for run in runs if run.cell is not None}
        tuned = {trial.run_id for trial in self.known.values()}
        found = {run_id: read_result(self.folders.run(run_id)) for run_id in cells}
        results = {run_id: result for run_id, result in found.items() if result is not None}
        for run_id, cell in cells.items():
            if run_id not in tuned or run_id not in results:
                self.recorder.add(cell)
                self.recorder.watch(run_id)
        waiting = [cell for run_id, cell in cells.items() if run_id not in results]
        if waiting:
            self.engine.add(waiting)
        failed: dict[str, str] = {}
        left = {cell.run_id for cell in waiting}
        while left:
            left -= {cell.run_id for cell in self.engine.poll()}
            self._report((len(cells) - len(left)) / len(runs) * (self.runs - self.done))
        if waiting:
            results |= self.engine.outcome.results
            failed = self.engine.outcome.failed
        told = []
        for run in runs:
            run_id = "" if run.cell is None else run.cell.run_id
            told.append(run.ended(results.get(run_id), failed.get(run_id)))
            self.progress.event(f"  {_check_line(told[-1])}")
        self._report(self.runs)
        return Check.of(told)

    def _next(self) -> Proposal | None:
        """What was left over first, then a new proposal, unless there are enough; None if there is none."""
        if self.left_over:
            return self.left_over.pop(0)
        counted = set(self.known) | {each.proposal.number for each in self.under_way.values()}
        if len(counted) >= self.wanted or self.exhausted:
            return None
        combinations = self.study.search.combinations
        for attempt in range(MOST_DUPLICATES):
            proposal = self.study.ask(at_random=attempt >= DUPLICATES_BY_LEARNING)
            values = [trial.values for trial in self.known.values()]
            if proposal.values not in [*values, *(each.proposal.values for each in self.under_way.values())]:
                return proposal
            self.study.discard(proposal)
            if combinations is not None and len(counted) >= combinations:
                break
        self.exhausted = True
        return None

    def _launch(self, proposal: Proposal) -> None:
        """Start a proposal's run, unless there is a result, or a reason not to."""
        try:
            cell: Cell | str = self.study.search.cell(proposal.values, labels={"trial": proposal.number})
        except ValueError as error:
            cell = str(error)
        if isinstance(cell, str):
            self._tell(proposal, None, "failed", reason=f"not a run: {cell}")
            return
        others = [trial.run_id for trial in self.known.values() if trial.number != proposal.number]
        if cell.run_id in {*others, *self.under_way}:  # two ways to say the same: `model.size`, and its width
            self._tell(proposal, None, "failed", reason=f"the same run as another trial, {cell.run_id}")
            return
        self.study.launch(proposal, cell.run_id)
        self.recorder.add(cell)
        each = _UnderWay(proposal=proposal, cell=cell)
        folder = self.folders.run(cell.run_id)
        if folder.exists():
            self.recorder.watch(cell.run_id)
        result = read_result(folder)
        if result is not None:
            self._tell_result(each, result)
        elif self._read(each):  # its last driver was killed between the verdict and the word to the study
            self._tell_pruned(each)
        else:
            self.under_way[cell.run_id] = each
            self.engine.add([cell])

    def _look(self) -> None:
        """Once in a while: tell the study how the runs under way do, and stop those that fall behind."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        for each in self.under_way.values():
            if each.pruned_at is not None or self._read(each):
                self.engine.stop_run(each.cell.run_id)
        self._report()

    def _read(self, each: _UnderWay) -> bool:
        """Report what the journal has of new validations; whether the run should be pruned."""
        path = self.folders.run(each.cell.run_id) / "journal.jsonl"
        records, each.offset = read_journal(path, each.offset)
        for record in records:
            loss = record.get("values", {}).get("validation_loss")
            if loss is None:
                continue
            percent = _percent(record["step"] / each.cell.spec.steps, self.validations)
            if self.study.report(each.proposal, percent, loss):
                each.pruned_at = percent
        return each.pruned_at is not None

    def _ended(self, each: _UnderWay) -> None:
        """Tell the study what became of a run that isn't under way any more."""
        run_id = each.cell.run_id
        result = self.engine.outcome.results.get(run_id)
        if result is not None:
            self._tell_result(each, result)
        elif run_id in self.engine.outcome.failed:
            self._tell(each.proposal, each.cell, "failed", reason=self.engine.outcome.failed[run_id])
        else:
            self._tell_pruned(each)

    def _tell_result(self, each: _UnderWay, result: RunResult) -> None:
        self._read(each)
        self._tell(each.proposal, each.cell, result.status, loss=result.loss, reason=result.reason)

    def _tell_pruned(self, each: _UnderWay) -> None:
        assert each.pruned_at is not None, "a run without a result, a failure or a verdict isn't over"
        reason = f"validation loss above the median at {each.pruned_at}% of the steps"
        self.recorder.record_end(each.cell.run_id, "pruned", reason)
        self._tell(each.proposal, each.cell, "pruned", reason=reason)

    def _tell(
        self,
        proposal: Proposal,
        cell: Cell | None,
        outcome: Outcome,
        *,
        loss: float | None = None,
        reason: str | None = None,
    ) -> None:
        spec = None if cell is None else cell.spec
        self.study.tell(proposal, outcome, spec=spec, loss=loss, reason=reason)
        self.known = {trial.number: trial for trial in self.study.trials()}
        self.done += 1
        self._report()
        self.progress.event(f"  {_trial_line(self.known[proposal.number])}")

    def _lowest(self) -> float | None:
        return next((trial.loss for trial in ended(list(self.known.values()))), None)

    def _report(self, runs_in_progress: float | None = None) -> None:
        """Report the share that is done; runs in progress count by their FLOPs."""
        if runs_in_progress is None:
            flops = 0.0 if self._engine is None else self._engine.flops_in_progress()
            runs_in_progress = flops / self.study.search.base.flops
        lowest = self._lowest()
        label = f"trials {self.done}/{self.study.tune.trials}" + ("" if lowest is None else f", best {lowest:.4f}")
        self.progress.update(label, min(1.0, (self.done + runs_in_progress) / self.runs), 1.0)


def is_complete(study: Study, folders: Folders, *, check: bool) -> bool:
    """Whether there is nothing to run: enough trials are told, and the check, if it is wanted, has its results."""
    trials = study.trials()
    wanted = min(study.tune.trials, study.search.combinations or study.tune.trials)
    over = [trial for trial in trials if trial.outcome not in ("running", "failed")]
    if len(over) < wanted or any(trial.outcome == "running" for trial in trials):
        return False
    best = ended(trials)
    cells = [run.cell for run in check_runs(study.search, best[0])] if check and best else []
    return all(cell is None or read_result(folders.run(cell.run_id)) is not None for cell in cells)


def default_parallel(search: Search, nodes: Sequence[Node], trials: int) -> int:
    """As many trials as the cluster holds at a time, but a quarter of all at most."""
    there = cost.planned_nodes(search.sweep.cluster) if search.sweep.cluster.elastic else nodes
    pool, needs = Pool(list(there)), cost.needs(search.base.resources)
    most = max(1, -(-trials // SHARE_OF_TRIALS))
    count = 0
    while count < most and pool.place(needs) is not None:
        count += 1
    return max(1, count)


def _trial_line(trial: Trial) -> str:
    at = f" at {trial.share:.0%}" if trial.outcome == "pruned" and trial.share else ""
    ending = trial.reason if trial.loss is None else f"loss {trial.loss:.4f}{at}"
    outcome = "" if trial.outcome == "finished" else f"{trial.outcome}: "
    return f"trial {trial.number}  {tuned_names(trial.values)}  {outcome}{ending}"


def _check_line(run: CheckRun) -> str:
    ending = f"{run.outcome}: {run.reason}" if run.loss is None else f"loss {run.loss:.4f}"
    return f"check  µ = {run.mean}, rates x{run.factor:g}, seed {run.seed}  {ending}"


def _percent(share: float, validations: int) -> int:
    """Percent of the steps, as the validations are spaced: steps are whole, and losses are compared at equal shares."""
    return round(100 * round(share * (validations + 1)) / (validations + 1)) if validations else round(100 * share)
