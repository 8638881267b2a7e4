"""The loop of a tuning: it keeps trials running, prunes those that fall behind, and checks the best.

It knows neither Ray nor Optuna: the engine runs, the study proposes. Each proposal is in the study's database before
its run starts. A driver that was killed leaves trials running; the next one continues them first, with the same runs.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.execution.engine import Engine
from isoloop.sweeps.execution.status import TrialCounts, write_manifest
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.grid import Cell
from isoloop.sweeps.plan.packing import Node, Pool
from isoloop.sweeps.tuning.search_space import SearchSpace, Trial, TrialOutcome, describe_values, finished_trials
from isoloop.sweeps.tuning.study import Proposal, Study
from isoloop.sweeps.tuning.transfer_check import CheckRun, TransferCheck, runs_to_check
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import RunResult, read_result

if TYPE_CHECKING:
    from isoloop.sweeps.tracking.uploader import Uploader

CHECK_SECONDS = 1.0
LARGEST_PARALLEL_SHARE = 4  # at most a quarter of the trials run at a time
SAMPLED_RETRIES = 5  # of duplicate proposals; then random ones
MOST_RETRIES = 50


class Tuner:
    """The trials of a study, run up to their number; those of earlier calls count unless they failed.

    Args:
        study: the study.
        engine: the engine; None if nothing is missing (`is_complete`).
        folders: folders of the tuning.
        uploader: records each run.
        progress: the watcher.
        check_runs: number of runs that the check will take, if it comes.
        started: runs of trials that earlier calls have started.
    """

    def __init__(
        self,
        study: Study,
        engine: Engine | None,
        folders: Folders,
        uploader: "Uploader",
        *,
        progress: Progress | None = None,
        check_runs: int = 0,
        started: Sequence[Cell] = (),
    ) -> None:
        self.study, self._engine, self.folders, self.uploader = study, engine, folders, uploader
        self.progress = progress or Progress()
        trial_count = study.tune.trials
        nodes = [] if engine is None else engine.cluster.nodes()
        self.parallel = study.tune.parallel or default_parallel(study.space, nodes, trial_count)
        self.trials = {trial.number: trial for trial in study.trials()}
        outcomes = [trial.outcome for trial in self.trials.values()]
        self.limit = trial_count + outcomes.count("failed")
        self.check_runs_to_come = check_runs
        self.cells = {cell.run_id: cell for cell in started}  # of all trials and of the check
        self.check_labels: dict[str, str] = {}  # by run id
        self.done = len(outcomes) - outcomes.count("running") - outcomes.count("failed")
        self.running: dict[str, tuple[Proposal, Cell]] = {}  # by run id
        self.unfinished = study.unfinished()
        self.exhausted = False
        self.last_check = 0.0

    @property
    def engine(self) -> Engine:
        """The engine that runs are started on."""
        assert self._engine is not None, "without an engine nothing is missing"
        return self._engine

    def run(self) -> list[Trial]:
        """Run trials until there are enough or no new one is proposed, and return all of them in their order."""
        self._report_progress()
        self._write_manifest()
        while True:
            while len(self.running) < self.parallel and (proposal := self._next_proposal()) is not None:
                self._start(proposal)
            if not self.running:
                self._write_manifest()
                return self.study.trials()
            for cell in self.engine.poll():
                proposal, _ = self.running.pop(cell.run_id)
                self._record_end(proposal, cell, self.engine.outcome.results.get(cell.run_id))
            self._check_running()

    def check(self, best: Trial) -> TransferCheck:
        """Run the best settings elsewhere in the sweep, and return whether they hold."""
        # Runs without a result, all recorded.
        runs = runs_to_check(self.study.space, best)
        cells = {run.cell.run_id: run.cell for run in runs if run.cell is not None}
        stored = {run_id: read_result(self.folders.run(run_id)) for run_id in cells}
        results = {run_id: result for run_id, result in stored.items() if result is not None}
        trial_ids = {trial.run_id for trial in self.trials.values()}
        for run_id, cell in cells.items():
            if run_id not in trial_ids or run_id not in results:
                self.uploader.add(cell)
                self.uploader.watch(run_id)
        failed: dict[str, str] = {}
        missing = {run_id for run_id in cells if run_id not in results}
        self.check_runs_to_come = 0
        self.check_labels = {run.cell.run_id: f"check  {_describe_check(run)}" for run in runs if run.cell is not None}
        self.cells |= cells
        self._write_manifest()
        if missing:
            self.engine.add([cells[run_id] for run_id in cells if run_id in missing])
            while missing:
                self.progress.update(
                    f"{len(runs) - len(missing)}/{len(runs)} runs", len(runs) - len(missing), len(runs)
                )
                missing -= {cell.run_id for cell in self.engine.poll()}
            results |= self.engine.outcome.results
            failed = self.engine.outcome.failed

        ended = []
        for run in runs:
            run_id = "" if run.cell is None else run.cell.run_id
            ended.append(run.with_result(results.get(run_id), failed.get(run_id)))
            self.progress.event(f"  {_check_line(ended[-1])}")
        self.progress.update(f"{len(runs)}/{len(runs)} runs", len(runs), len(runs))
        return TransferCheck.of(ended)

    def _next_proposal(self) -> Proposal | None:
        """Return an unfinished proposal, else a new one; None if there are enough trials or all were proposed."""
        if self.unfinished:
            return self.unfinished.pop(0)
        count = len(set(self.trials) | {proposal.number for proposal, _ in self.running.values()})
        if count >= self.limit or self.exhausted:
            return None
        known = [trial.values for trial in self.trials.values()]
        known += [proposal.values for proposal, _ in self.running.values()]
        for attempt in range(MOST_RETRIES):
            proposal = self.study.ask(at_random=attempt >= SAMPLED_RETRIES)
            if proposal.values not in known:
                return proposal
            self.study.discard(proposal)
            combinations = self.study.space.combinations
            if combinations is not None and count >= combinations:
                break
        self.exhausted = True
        return None

    def _start(self, proposal: Proposal) -> None:
        """Start a proposal's run, unless it can't be run or has ended already."""
        try:
            cell: Cell | str = self.study.space.cell(proposal.values, labels={"trial": proposal.number})
        except ValueError as error:
            cell = str(error)
        if isinstance(cell, str):
            self._conclude(proposal, None, "failed", reason=f"can't be run: {cell}")
            return
        others = {trial.run_id for trial in self.trials.values() if trial.number != proposal.number}
        if cell.run_id in others | set(self.running):  # the same setting twice, as `model.size` and the width
            self._conclude(proposal, None, "failed", reason=f"the same run as another trial, {cell.run_id}")
            return
        self.study.record_run(proposal, cell.run_id)
        self.cells[cell.run_id] = cell
        self.uploader.add(cell)
        folder = self.folders.run(cell.run_id)
        if folder.exists():
            self.uploader.watch(cell.run_id)
        result = read_result(folder)
        if result is not None or self._should_prune(proposal, cell):  # an earlier driver may have left a run to prune
            self._record_end(proposal, cell, result)
        else:
            self.running[cell.run_id] = proposal, cell
            self.engine.add([cell])
            self._write_manifest()

    def _check_running(self) -> None:
        """Report the validations of running trials every `CHECK_SECONDS`, and stop those to prune."""
        if time.monotonic() - self.last_check < CHECK_SECONDS:
            return
        self.last_check = time.monotonic()
        for proposal, cell in self.running.values():
            if self._should_prune(proposal, cell):
                self.engine.stop_run(cell.run_id)
        self._report_progress()

    def _should_prune(self, proposal: Proposal, cell: Cell) -> bool:
        """Report new validation losses to the study, and return whether the run should be pruned."""
        validations = self.study.tune.validations
        path = self.folders.run(cell.run_id) / "journal.jsonl"
        records, proposal.journal_offset = read_journal(path, proposal.journal_offset)
        for record in records:
            loss = record.get("values", {}).get("validation_loss")
            # Losses are compared at equal shares, at the steps nearest to them; runs that see text again have more.
            place = round(record.get("step", 0) / cell.spec.steps * (validations + 1))
            if loss is None or record["step"] != round(cell.spec.steps * place / (validations + 1)):
                continue
            percent = round(100 * place / (validations + 1))
            if self.study.report(proposal, percent, loss):
                proposal.pruned_at = percent
        return proposal.pruned_at is not None

    def _record_end(self, proposal: Proposal, cell: Cell, result: RunResult | None) -> None:
        """Record how a run ended: with a result, a failure, or pruned."""
        if result is not None:
            self._should_prune(proposal, cell)  # reports the last losses
            self._conclude(proposal, cell, result.status, loss=result.compared_loss, reason=result.reason)
        elif cell.run_id in self.engine.outcome.failed:
            self._conclude(proposal, cell, "failed", reason=self.engine.outcome.failed[cell.run_id])
        else:
            assert proposal.pruned_at is not None, "a run ends with a result, with a failure, or pruned"
            reason = f"validation loss above the median at {proposal.pruned_at}% of the steps"
            self.uploader.record_end(cell.run_id, "pruned", reason)
            self._conclude(proposal, cell, "pruned", reason=reason)

    def _conclude(
        self,
        proposal: Proposal,
        cell: Cell | None,
        outcome: TrialOutcome,
        *,
        loss: float | None = None,
        reason: str | None = None,
    ) -> None:
        spec = None if cell is None else cell.spec
        self.study.conclude(proposal, outcome, spec=spec, loss=loss, reason=reason)
        self.trials = {trial.number: trial for trial in self.study.trials()}
        self.done += 1
        self._report_progress()
        self._write_manifest()
        self.progress.event(f"  {_trial_line(self.trials[proposal.number])}")

    def _report_progress(self, runs_in_progress: float | None = None) -> None:
        """Report the share that is done; runs in progress count by their FLOPs."""
        if runs_in_progress is None:
            flops = 0.0 if self._engine is None else sum(self._engine.flops_in_progress())
            runs_in_progress = flops / self.study.space.flops_per_trial
        finished = finished_trials(list(self.trials.values()))
        best = f", best {finished[0].loss:.4f}" if finished else ""
        trials = self.study.tune.trials
        label = f"{self.done}/{trials} trials{best}"
        self.progress.update(label, min(trials, self.done + runs_in_progress), trials)

    def _write_manifest(self) -> None:
        """Write the trials, and what only the study knows of them, for `isoloop status` in another terminal."""
        trials = {trial.run_id: trial for trial in self.trials.values() if trial.run_id in self.cells}
        trials |= {
            run_id: Trial(number=proposal.number, values=proposal.values, run_id=run_id, outcome="running")
            for run_id, (proposal, _) in self.running.items()
        }
        known: dict[str, dict[str, Any]] = {run_id: {"label": label} for run_id, label in self.check_labels.items()}
        for run_id, trial in trials.items():
            known[run_id] = {"label": f"trial {trial.number}  {describe_values(trial.values)}"}
            if trial.outcome in ("pruned", "failed"):
                steps = round((trial.share or 0.0) * self.cells[run_id].spec.steps)
                known[run_id] |= {"state": trial.outcome, "step": steps, "loss": trial.loss, "reason": trial.reason}
        begun = len({*self.trials, *(proposal.number for proposal, _ in self.running.values())})
        to_come = self.check_runs_to_come + (0 if self.exhausted else max(0, self.limit - begun))
        outcomes = [trial.outcome for trial in self.trials.values()]
        finished = finished_trials(list(self.trials.values()))
        counts = TrialCounts(
            trials=self.study.tune.trials,
            ended=len(outcomes) - outcomes.count("running") - outcomes.count("failed"),
            best=_trial_line(finished[0]) if finished else None,
            runs_to_come=to_come,
            flops_to_come=to_come * self.study.space.flops_per_trial,
        )
        with suppress(OSError):  # a full disk: the study and the runs report it
            write_manifest(self.cells.values(), self.folders, trials=counts, known=known)


def is_complete(study: Study, folders: Folders, *, check: bool) -> bool:
    """Return whether nothing is left to run: there are enough trials, and the check's runs if it is wanted."""
    trials = study.trials()
    needed = min(study.tune.trials, study.space.combinations or study.tune.trials)
    outcomes = [trial.outcome for trial in trials]
    if "running" in outcomes or len(trials) - outcomes.count("failed") < needed:
        return False
    best = finished_trials(trials)
    cells = [run.cell for run in runs_to_check(study.space, best[0])] if check and best else []
    return all(cell is None or read_result(folders.run(cell.run_id)) is not None for cell in cells)


def default_parallel(space: SearchSpace, nodes: Sequence[Node], trials: int) -> int:
    """Return how many trials the cluster holds at a time, but at most a quarter of all."""
    cluster, needs = space.sweep.cluster, allocation.needs(space.base.resources)
    pool = Pool(allocation.planned_nodes(cluster, [needs]) if cluster.elastic else nodes)
    limit = max(1, -(-trials // LARGEST_PARALLEL_SHARE))
    count = 0
    while count < limit and pool.place(needs) is not None:
        count += 1
    return max(1, count)


def _trial_line(trial: Trial) -> str:
    at = f" at {trial.share:.0%}" if trial.outcome == "pruned" and trial.share else ""
    ending = trial.reason if trial.loss is None else f"loss {trial.loss:.4f}{at}"
    outcome = "" if trial.outcome == "finished" else f"{trial.outcome}: "
    return f"trial {trial.number}  {describe_values(trial.values)}  {outcome}{ending}"


def _check_line(run: CheckRun) -> str:
    ending = f"{run.outcome}: {run.reason}" if run.loss is None else f"loss {run.loss:.4f}"
    return f"check  {_describe_check(run)}  {ending}"


def _describe_check(run: CheckRun) -> str:
    return f"µ = {run.mean_recurrence}, rates x{run.factor:g}, seed {run.seed}"
