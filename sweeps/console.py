"""What the commands show: plans, bars with the time left, results."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from sweeps.execute import Progress
    from sweeps.grid import Cell, Plan
    from sweeps.results import Results
    from trainer.result import RunResult


def new_console() -> "Console":
    """Where a command prints: as wide as the terminal, or 110 columns."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)


def print_plan(plan: "Plan", done: set[str]) -> None:
    """Every cell with what it will cost, and the sum."""
    from rich.table import Table

    from trainer.accounting import count_parameters

    sweep, console = plan.sweep, new_console()
    parameters = count_parameters(sweep.model)
    table = Table("µ", "µ_bwd", "budget", "tokens", "steps", "FLOPs", "epochs", "time", "", box=None, pad_edge=False)
    for cell in sorted(plan.cells, key=lambda cell: (cell.budget or cell.spec.tokens, cell.mean_recurrence)):
        table.add_row(
            str(cell.mean_recurrence),
            str(cell.spec.recurrence.gradient_loops),
            f"{cell.budget:.3g}" if cell.budget else "-",
            f"{cell.spec.tokens:.3g}",
            str(cell.spec.steps),
            f"{cell.flops:.4g}",
            f"{cell.epochs:.2f}" if cell.epochs else "-",
            _duration(cell.flops / sweep.resources.flops_per_second),
            "done" if cell.run_id in done else "",
        )
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    console.print(f"{sweep.name}: {len(plan.cells)} runs{' (simulated)' if sweep.simulation else ''}, {len(done)} done")
    console.print(table)
    for missing in plan.left_out:
        console.print(f"left out: {missing.asked}, µ = {missing.mean_recurrence}: {missing.reason}")
    resources = sweep.resources
    parallel = 1 if resources.gpus else max(1, (os.cpu_count() or 1) // (resources.cpus * resources.processes))
    where = "one run at a time" if resources.gpus else f"on this machine, {parallel} runs at a time"
    console.print(
        f"model       {parameters.total:,} parameters, N(µ) = {parameters.effective_fixed:,} + "
        f"{parameters.effective_per_loop:,} µ effective\n"
        f"compute     {plan.flops:.4g} FLOPs in all, counted as {sweep.accounting}\n"
        f"time        about {_duration(plan.hours(parallel) * 3600)}, {where}, if "
        f"each does the stated {sweep.resources.flops_per_second:.3g} FLOPs per second"
    )


def _duration(seconds: float) -> str:
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:,.0f} h"


@contextmanager
def progress_bar(console: "Console", plan: "Plan") -> "Iterator[Progress]":
    """A bar over the sweep's FLOPs with the time left, and a line for each run that ends."""
    from rich import progress as rich_progress

    from sweeps import execute

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(f"0/{len(plan.cells)} runs", total=1.0)
        ended = 0

        class Bar(execute.Progress):
            def share_done(self, share: float) -> None:
                bar.update(task, completed=share)

            def run_ended(self, cell: "Cell", result: "RunResult | None", reason: str | None) -> None:
                nonlocal ended
                ended += 1
                bar.update(task, description=f"{ended}/{len(plan.cells)} runs")
                asked = f"C = {cell.budget:.3g}" if cell.budget else f"D = {cell.spec.tokens:.3g}"
                if result is None:
                    said = f"failed: {reason}"
                elif result.loss is None:
                    said = f"diverged: {result.reason}"
                else:
                    took = " (simulated)" if result.simulated else f" in {_duration(result.seconds)}"
                    said = f"loss {result.loss:.4f}{took}"
                bar.console.print(f"  {cell.run_id}  µ = {cell.mean_recurrence:<2}  {asked}  {said}")

        yield Bar()


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
    from sweeps.report import answer

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
