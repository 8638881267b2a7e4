"""What the commands show: plans, bars with the time left, results."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import ProgressColumn

    from isoloop.sweeps.execution.engine import Progress
    from isoloop.sweeps.execution.status import SweepStatus
    from isoloop.sweeps.plan.grid import Cell, Plan
    from isoloop.sweeps.report.headline import Results
    from isoloop.sweeps.tuning.search_space import Trial
    from isoloop.sweeps.tuning.transfer_check import CheckRun
    from isoloop.sweeps.tuning.tuner import Watcher
    from isoloop.trainer.run.result import RunResult


def new_console() -> "Console":
    """Where a command prints: as wide as the terminal, or 110 columns."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 110)


def _columns() -> "Iterator[ProgressColumn]":
    """What a bar shows."""
    from rich import progress as rich_progress

    yield rich_progress.TextColumn("{task.description}")
    yield rich_progress.BarColumn()
    yield rich_progress.TaskProgressColumn()
    yield rich_progress.TimeRemainingColumn(elapsed_when_finished=True)


@contextmanager
def progress_bar(console: "Console", plan: "Plan") -> "Iterator[Progress]":
    """A bar over the sweep's FLOPs with the time left, and a line for each run that ends."""
    from rich import progress as rich_progress

    from isoloop.sweeps.execution import engine
    from isoloop.sweeps.plan.summary import format_duration

    with rich_progress.Progress(*_columns(), console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(f"0/{len(plan.cells)} runs", total=1.0)
        ended = 0

        class Bar(engine.Progress):
            def share_done(self, share: float) -> None:
                bar.update(task, completed=share)

            def run_ended(self, cell: "Cell", result: "RunResult | None", reason: str | None) -> None:
                nonlocal ended
                ended += 1
                bar.update(task, description=f"{ended}/{len(plan.cells)} runs")
                if result is None:
                    said = f"failed: {reason}"
                elif result.loss is None:
                    said = f"diverged: {result.reason}"
                else:
                    took = " (simulated)" if result.simulated else f" in {format_duration(result.seconds)}"
                    said = f"loss {result.loss:.4f}{took}"
                bar.console.print(f"  {cell.run_id}  {cell.label}  {said}")

            def run_retried(self, cell: "Cell", reason: str) -> None:
                bar.console.print(f"  {cell.run_id}  {cell.label}  starts again: {reason}")

        yield Bar()


@contextmanager
def tune_bar(console: "Console", trials: int) -> "Iterator[Watcher]":
    """A bar over all that there is to train with the time left, and a line for each trial and run of the check."""
    from rich import progress as rich_progress

    from isoloop.sweeps.tuning import search_space as search
    from isoloop.sweeps.tuning import tuner

    with rich_progress.Progress(*_columns(), console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(f"0/{trials} trials", total=1.0)

        class Bar(tuner.Watcher):
            def share_done(self, share: float) -> None:
                bar.update(task, completed=share)

            def begun(self, done: int, best: float | None) -> None:
                lowest = "" if best is None else f", best {best:.4f}"
                bar.update(task, description=f"{done}/{trials} trials{lowest}")

            def trial_ended(self, trial: "Trial", done: int, best: float | None) -> None:
                self.begun(done, best)
                at = f" at {trial.share:.0%}" if trial.outcome == "pruned" and trial.share else ""
                said = trial.reason if trial.loss is None else f"loss {trial.loss:.4f}{at}"
                outcome = "" if trial.outcome == "finished" else f"{trial.outcome}: "
                bar.console.print(
                    f"  trial {trial.number}  {search.tuned_names(trial.values)}  {outcome}{said}", markup=False
                )

            def check_ended(self, run: "CheckRun") -> None:
                said = f"{run.outcome}: {run.reason}" if run.loss is None else f"loss {run.loss:.4f}"
                bar.console.print(
                    f"  check  µ = {run.mean}, rates x{run.factor:g}, seed {run.seed}  {said}", markup=False
                )

        yield Bar()


def print_status(console: "Console", status: "SweepStatus", *, every_run: bool) -> None:
    """How far a sweep is: the counts, and a row for each run that runs or has trouble, or for all."""
    from rich.table import Table

    from isoloop.sweeps.plan.summary import format_duration

    counts = ", ".join(f"{number} {state}" for state, number in status.counts().items())
    driver = "" if status.at_work or status.is_over else "; nobody is at work on it: run it again to go on"
    console.print(f"{status.name}: {status.share:.0%} of the compute done; of {len(status.runs)} runs {counts}{driver}")
    shown = [run for run in status.runs if every_run or run.state not in ("done", "waiting")]
    if not shown:
        return
    table = Table("run", "", "state", "step", "loss", "time", "why", box=None, pad_edge=False)
    for run in shown:
        left = "" if run.seconds is None else format_duration(run.seconds) + (" left" if run.state == "running" else "")
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        table.add_row(
            run.run_id, run.label, run.state, f"{run.step}/{run.steps}", loss, left, (run.reason or "").split("\n")[0]
        )
    console.print(table)


@contextmanager
def fit_progress(console: "Console") -> "Iterator[Callable[[str, int, int], None]]":
    """A bar for each stage of a fit, gone when all are done."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, object] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"fitting {what}", total=total)
            bar.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield tell


def print_results(console: "Console", results: "Results") -> None:
    """The answer, and how far off the held-out runs were."""
    from isoloop.sweeps.report.headline import answer

    for label, group in results.groups.items():
        console.print(f"\n{label}", style="bold", markup=False)
        print_results(console, group)
    if results.groups:
        return
    console.print()
    for line in answer(results):
        console.print(line)
    held_out = results.hold_out.held_out if results.hold_out else None
    if held_out is not None:
        console.print(f"\nFitted without the largest {held_out.column}, then compared with it:")
        for row in sorted(held_out.rows, key=lambda row: (row.method, row.mean_recurrence)):
            if row.recurrence == row.mean_recurrence:
                span = f" ({row.interval[0]:.4f} to {row.interval[1]:.4f})" if row.interval else ""
                console.print(
                    f"  µ = {row.mean_recurrence:<3g} {row.method}: predicted {row.predicted:.4f}{span}, "
                    f"measured {row.measured:.4f}, error {row.error:+.2f}%"
                )
