"""Cost of a plan as a table: a row for each run or budget, and the totals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from isoloop.sweeps.messages import counted_runs, format_duration
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.grid import ONE_GROUP, Cell, Plan, jobs_of
from isoloop.sweeps.plan.packing import best_order, lower_bound
from isoloop.sweeps.plan.rates import rate_lines
from isoloop.sweeps.plan.trunks import FROM_SCRATCH, trunk_groups
from isoloop.trainer.accounting import count_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from isoloop.trainer.run.result import RunResult

    Results = Mapping[str, RunResult]

MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """The cost of a plan's unfinished runs on the planned cluster.

    Attributes:
        makespan: seconds until the last run ends, if each starts as soon as it fits.
        bound: seconds that no order of the runs can beat.
        order: name of the order that gives `makespan`.
        price: price of the runs, None if no price is given.
    """

    makespan: float
    bound: float
    order: str
    price: float | None

    @classmethod
    def of(cls, plan: Plan, done: "Results") -> "PlanSummary | None":
        """Return the summary, None if all runs are done or one doesn't fit the cluster."""
        left = [cell for cell in plan.cells if cell.run_id not in done]
        if not left:
            return None
        jobs = jobs_of(left)
        nodes = allocation.planned_nodes(plan.sweep.cluster, [job.needs for job in jobs])
        try:
            order, makespan = best_order(jobs, nodes)
        except ValueError:
            return None
        price = plan.price(left)
        return cls(makespan=makespan, bound=lower_bound(jobs, nodes), order=order, price=price)


def slowdown(plan: Plan, done: "Results") -> float | None:
    """Return the median ratio of a finished run's time to its expected time, None if none was trained."""
    finished = [(cell, done[cell.run_id]) for cell in plan.cells if cell.run_id in done]
    ratios = [
        result.seconds / cell.seconds for cell, result in finished if result.seconds > 0 and result.status == "finished"
    ]
    return median(ratios) if ratios else None


def print_plan(console: "Console", plan: Plan, done: "Results", *, every_run: bool) -> None:
    """Print the grid with its cost and the totals, in at most `MOST_ROWS` rows unless `every_run`.

    More runs than that are shown by budget; of more budgets than that the first and the last are shown.
    """
    sweep = plan.sweep
    simulated = " (simulated)" if sweep.simulation else ""
    console.print(f"{sweep.name}: {counted_runs(len(plan.cells))}{simulated}, {len(done)} done")
    by_run = every_run or len(plan.cells) <= MOST_ROWS
    if by_run:
        console.print(_run_table(plan, done))
    else:
        table, hidden = _budget_table(plan, done)
        console.print(table)
        shown = f"the first and the last {MOST_ROWS // 2} rows, {hidden} between them are not shown; " if hidden else ""
        console.print(f"{shown}for a row per run use --all, or --to plan.csv")
    each = [f"left out: {cell.label}: {cell.reason}" for cell in plan.left_out]
    for line in each if every_run else plan.left_out_lines():
        console.print(line)
    for line in rate_lines(plan.rates, plan.cells, every_run=every_run):
        console.print(f"{'rates':<11} {line}")
    for name, text in _totals(plan, done):
        console.print(f"{name:<11} {text}")


def plan_rows(plan: Plan) -> list[dict[str, object]]:
    """Return a row for each run in plain units, as `--to` writes them."""
    return [
        {
            "run_id": cell.run_id,
            "mean_recurrence": cell.mean_recurrence,
            "backprop_depth": cell.spec.recurrence.gradient_loops,
            "budget": cell.budget,
            **cell.axes,
            "tokens": cell.spec.tokens,
            "steps": cell.spec.steps,
            "flops": cell.flops,
            **({"flops_trained": cell.trained_flops, "trunk": cell.origin.trunk} if plan.sweep.trunk else {}),
            "epochs": cell.epochs,
            "memory_bytes": cell.memory,
            "processes": cell.resources.processes,
            "cpus": cell.resources.cpus,
            "gpus": cell.resources.gpus,
            "seconds": cell.trained_seconds,
            "price": allocation.price(cell.trained_seconds, cell.resources, plan.sweep.cluster),
            **({} if cell.rates is None else {**cell.rates.best.rates, **cell.rates.columns}),
        }
        for cell in plan.cells
    ]


def _table(columns: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    return table


def _run_table(plan: Plan, done: "Results") -> "Table":
    names = list(plan.cells[0].axes)
    shares = any(cell.resources.gpus for cell in plan.cells)
    rates = [] if plan.rates is None else [path.rpartition(".")[2] for path in plan.rates.law.rates]
    columns = ["µ", "µ_bwd", "budget", *names, *rates, "tokens", "steps", "FLOPs", "epochs", "memory"]
    table = _table([*columns, *(["GPUs"] if shares else []), "time", ""])

    def position(cell: Cell) -> tuple[str, float, float, int]:
        return cell.group, cell.budget or cell.spec.tokens, cell.mean_recurrence, cell.spec.seed

    for cell in sorted(plan.cells, key=position):
        gpus = f"{cell.resources.processes * cell.resources.gpu_share:g}"
        table.add_row(
            str(cell.mean_recurrence),
            str(cell.spec.recurrence.gradient_loops),
            f"{cell.budget:.3g}" if cell.budget else "-",
            *("null" if cell.axes[name] is None else str(cell.axes[name]) for name in names),
            *(f"{getattr(cell.spec.optimizer, name):.3g}{_rate_mark(cell)}" for name in rates),
            f"{cell.spec.tokens:.3g}",
            str(cell.spec.steps),
            f"{cell.flops:.4g}",
            f"{cell.epochs:.2f}" if cell.epochs else "-",
            f"{cell.memory / 1e9:.2g} GB",
            *([gpus] if shares else []),
            format_duration(cell.trained_seconds),
            "done" if cell.run_id in done else f"from step {cell.origin.step}" if cell.origin.step else "",
        )
    return table


def _rate_mark(cell: Cell) -> str:
    return "*" if cell.rates is not None and cell.rates.best.beyond else " "


def _budget_table(plan: Plan, done: "Results") -> tuple["Table", int]:
    """Return a table with a row for each budget of each group, and how many of its middle are left out."""
    by_budget: dict[tuple[str, float], list[Cell]] = {}
    for cell in plan.cells:
        by_budget.setdefault((cell.group, cell.budget or cell.spec.tokens), []).append(cell)
    grouped, repeats = plan.groups != [ONE_GROUP], any(map(_sees_text_again, plan.cells))
    columns = [*(["group"] if grouped else []), "budget or tokens", "runs", "µ", "FLOPs"]
    table = _table([*columns, *(["epochs"] if repeats else []), "GPU or core hours", "done"])
    entries, half = sorted(by_budget.items()), MOST_ROWS // 2
    hidden = max(len(entries) - 2 * half, 0)
    for (group, size), cells in entries if not hidden else [*entries[:half], *entries[-half:]]:
        means = sorted({cell.mean_recurrence for cell in cells})
        epochs = sorted(map(_epochs, cells))
        table.add_row(
            *([group] if grouped else []),
            f"{size:.3g}",
            str(len(cells)),
            f"{means[0]} to {means[-1]}" if len(means) > 1 else str(means[0]),
            f"{sum(cell.flops for cell in cells):.4g}",
            *([" to ".join(dict.fromkeys(f"{each:.2f}" for each in (epochs[0], epochs[-1])))] if repeats else []),
            f"{sum(_hours(cell) for cell in cells):,.3g}",
            str(sum(cell.run_id in done for cell in cells)),
        )
    return table, hidden


def _epochs(cell: Cell) -> float:
    return cell.epochs or 0.0


def _sees_text_again(cell: Cell) -> bool:
    return _epochs(cell) > 1


def _hours(cell: Cell) -> float:
    """Return the GPU hours of a run, or its core hours if it has no GPU."""
    resources = cell.resources
    return cell.trained_seconds / 3600 * resources.processes * (resources.gpu_share or resources.cpus)


def _trunk_savings(plan: Plan, done: "Results") -> str:
    """Return what it saves that runs share their first steps, and what they would cost if each trained alone."""
    groups, branches = trunk_groups(plan.cells), sum(cell.origin.step > 0 for cell in plan.cells)
    if not groups:
        reason = ", as each budget has a learning rate of its own" if plan.rates is not None else ""
        return f"nothing is shared: no two runs differ in tokens alone{reason}"
    apart = replace(plan, cells=tuple(replace(cell, origin=FROM_SCRATCH) for cell in plan.cells))
    price, unit = apart.price(), "GPU" if any(cell.resources.gpus for cell in plan.cells) else "core"
    text = (
        f"{branches} of {len(plan.cells)} runs branch off a longer one: {plan.trained_flops:.4g} FLOPs are trained, "
        f"{1 - plan.trained_flops / plan.flops:.1%} less; each alone: {sum(map(_hours, apart.cells)):,.3g} {unit} hours"
    ) + ("" if price is None else f", {price:,.2f}")
    shorter = [cell for group in groups for cell in group[1:]]
    alone = sum(cell.origin.step == 0 and cell.run_id not in done for cell in shorter)
    if alone:
        text += f"; {counted_runs(alone)} must train alone, as the longer ones have passed that step and left no state"
    return text


def _totals(plan: Plan, done: "Results") -> Iterable[tuple[str, str]]:
    """Yield the lines under the table: a name and a text."""
    # The models, and the work in all.
    sweep, cluster = plan.sweep, plan.sweep.cluster
    for model in list(dict.fromkeys(cell.spec.model for cell in plan.cells))[:8]:
        counted = count_parameters(model)
        effective = f"N(µ) = {counted.effective_fixed:,} + {counted.effective_per_loop:,} µ effective"
        yield "model", f"{counted.total:,} parameters, {effective}"
    yield "compute", f"{plan.flops:.4g} FLOPs on {plan.tokens:.4g} tokens in all, accounting: {sweep.accounting}"
    if sweep.trunk:
        yield "trunks", _trunk_savings(plan, done)
    repeated = [cell for cell in plan.cells if _sees_text_again(cell)]
    if repeated:
        most = max(map(_epochs, repeated))
        text = f"{len(repeated)} of {len(plan.cells)} runs see text again, up to {most:.3g} times"
        evaluations = max(cell.spec.evaluation.evaluations(sees_text_again=True) for cell in repeated)
        yield "epochs", text + (f"; {evaluations} evaluations during each keep its best loss" if evaluations else "")
    unit = "GPU" if any(cell.resources.gpus for cell in plan.cells) else "core"
    longest = format_duration(max(cell.trained_seconds for cell in plan.cells))
    yield "work", f"{sum(map(_hours, plan.cells)):,.3g} {unit} hours in all, longest run {longest}"
    distinct = dict.fromkeys((cell.resources, cell.spec.precision) for cell in plan.cells)
    sources = dict.fromkeys(
        allocation.expected_speed(resources, cluster, precision).source for resources, precision in distinct
    )
    yield "speed", "; ".join(list(sources)[:3])

    # Time and price of what is left, on the planned cluster.
    unknown = cluster.elastic and cluster.cpus is None
    machines = f"{cluster.nodes} node(s)" + ("" if unknown else f" of {cluster.cores_per_node} cores")
    machines += f" and {cluster.gpus} GPU(s) {cluster.device or ''}".rstrip() if cluster.gpus else ""
    summary = PlanSummary.of(plan, done)
    if summary is None:
        if len(done) < len(plan.cells):
            yield "time", f"unknown: a run needs more than {machines}; describe your machines under `cluster`"
        return
    left = "for the remaining runs" if done else "in all"
    bound = f"no order takes less than {format_duration(summary.bound)}"
    yield "time", f"about {format_duration(summary.makespan)} {left} on {machines}, {summary.order}; {bound}"
    slower = slowdown(plan, done)
    if slower is not None:
        corrected = format_duration(summary.makespan * slower)
        yield "measured", f"finished runs took {slower:.2g} times their expected time: about {corrected} {left}"
    if summary.price is not None:
        yield "price", f"{summary.price:,.2f} {left} at {cluster.price_per_hour:g} an hour for each {unit}"
