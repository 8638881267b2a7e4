"""What a plan will cost, for people: a row per run or per budget, and the sums. Nothing is started."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from isoloop.sweeps.plan import resources as cost
from isoloop.sweeps.plan.grid import ONE_GROUP, Cell, Plan
from isoloop.sweeps.plan.packing import best_order, lower_bound
from isoloop.trainer.accounting import count_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from isoloop.trainer.run.result import RunResult

MOST_ROWS = 60


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:,.0f} h"


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What the runs of a plan that aren't done yet will cost on the cluster that it reckons with.

    Attributes:
        makespan: seconds until the last one ends, each started as soon as it fits.
        bound: seconds that no order of the runs can beat.
        order: the order that `makespan` is of.
        price: of the runs, None where no price was given.
    """

    makespan: float
    bound: float
    order: str
    price: float | None

    @classmethod
    def of(cls, plan: Plan, done: "Mapping[str, RunResult]") -> "Bill | None":
        """The bill, None where nothing is left to do or a run doesn't fit the cluster."""
        jobs = [job for job, cell in zip(plan.jobs, plan.cells, strict=True) if cell.run_id not in done]
        if not jobs:
            return None
        nodes = cost.nodes(plan.sweep.cluster)
        try:
            order, makespan = best_order(jobs, nodes)
        except ValueError:
            return None
        prices = [
            cost.price(cell.seconds, cell.resources, plan.sweep.cluster)
            for cell in plan.cells
            if cell.run_id not in done
        ]
        price = None if None in prices else sum(price for price in prices if price is not None)
        return cls(makespan=makespan, bound=lower_bound(jobs, nodes), order=order, price=price)


def slowness(plan: Plan, done: "Mapping[str, RunResult]") -> float | None:
    """How many times as long as expected the finished runs took, the median; None where none was trained."""
    ratios = [
        done[cell.run_id].seconds / cell.seconds
        for cell in plan.cells
        if cell.run_id in done and done[cell.run_id].seconds > 0 and done[cell.run_id].status == "finished"
    ]
    return median(ratios) if ratios else None


def print_plan(console: "Console", plan: Plan, done: "Mapping[str, RunResult]", *, every_run: bool) -> None:
    """The grid with its cost, a row for each run where there are few or `every_run` is asked for, and the sums."""
    sweep = plan.sweep
    simulated = " (simulated)" if sweep.simulation else ""
    console.print(f"{sweep.name}: {len(plan.cells)} runs{simulated}, {len(done)} done")
    shown = every_run or len(plan.cells) <= MOST_ROWS
    console.print(_runs(plan, done) if shown else _budgets(plan, done))
    if not shown:
        console.print("a row for each run: --all, or --to plan.csv")
    for cell in plan.left_out if shown else plan.left_out[:MOST_ROWS]:
        console.print(f"left out: {cell.label}: {cell.reason}")
    if not shown and len(plan.left_out) > MOST_ROWS:
        console.print(f"left out: {len(plan.left_out) - MOST_ROWS} more")
    for name, said in _sums(plan, done):
        console.print(f"{name:<11} {said}")


def rows(plan: Plan) -> list[dict[str, object]]:
    """A row for each run, in plain units: what `--to` writes."""
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
            "epochs": cell.epochs,
            "memory_bytes": cell.memory,
            "processes": cell.resources.processes,
            "cpus": cell.resources.cpus,
            "gpus": cell.resources.gpus,
            "seconds": cell.seconds,
            "price": cost.price(cell.seconds, cell.resources, plan.sweep.cluster),
        }
        for cell in plan.cells
    ]


def _table(columns: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    return table


def _runs(plan: Plan, done: "Mapping[str, RunResult]") -> "Table":
    names = list(plan.cells[0].axes)
    shares = any(cell.resources.gpus for cell in plan.cells)
    columns = ["µ", "µ_bwd", "budget", *names, "tokens", "steps", "FLOPs", "epochs", "memory"]
    table = _table([*columns, *(["GPUs"] if shares else []), "time", ""])

    def place(cell: Cell) -> tuple[str, float, int, int]:
        return cell.group, cell.budget or cell.spec.tokens, cell.mean_recurrence, cell.spec.seed

    for cell in sorted(plan.cells, key=place):
        gpus = f"{cell.resources.processes * cell.resources.gpu_share:g}"
        table.add_row(
            str(cell.mean_recurrence),
            str(cell.spec.recurrence.gradient_loops),
            f"{cell.budget:.3g}" if cell.budget else "-",
            *(str(cell.axes[name]) for name in names),
            f"{cell.spec.tokens:.3g}",
            str(cell.spec.steps),
            f"{cell.flops:.4g}",
            f"{cell.epochs:.2f}" if cell.epochs else "-",
            f"{cell.memory / 1e9:.2g} GB",
            *([gpus] if shares else []),
            duration(cell.seconds),
            "done" if cell.run_id in done else "",
        )
    return table


def _budgets(plan: Plan, done: "Mapping[str, RunResult]") -> "Table":
    """A row for each budget of each group, where there are many runs."""
    together: dict[tuple[str, float], list[Cell]] = {}
    for cell in plan.cells:
        together.setdefault((cell.group, cell.budget or cell.spec.tokens), []).append(cell)
    grouped = plan.groups != [ONE_GROUP]
    table = _table(
        [*(["group"] if grouped else []), "budget or tokens", "runs", "µ", "FLOPs", "GPU or core hours", "done"]
    )
    for (group, asked), cells in sorted(together.items()):
        means = sorted({cell.mean_recurrence for cell in cells})
        table.add_row(
            *([group] if grouped else []),
            f"{asked:.3g}",
            str(len(cells)),
            f"{means[0]} to {means[-1]}" if len(means) > 1 else str(means[0]),
            f"{sum(cell.flops for cell in cells):.4g}",
            f"{sum(_hours(cell) for cell in cells):,.3g}",
            str(sum(cell.run_id in done for cell in cells)),
        )
    return table


def _hours(cell: Cell) -> float:
    """GPU hours, or core hours where the run has no GPU."""
    return cell.seconds / 3600 * cost.needs(cell.resources).whole


def _sums(plan: Plan, done: "Mapping[str, RunResult]") -> Iterable[tuple[str, str]]:
    """The last lines: (what, how much)."""
    sweep, cluster = plan.sweep, plan.sweep.cluster
    for model in list(dict.fromkeys(cell.spec.model for cell in plan.cells))[:8]:
        counted = count_parameters(model)
        effective = f"N(µ) = {counted.effective_fixed:,} + {counted.effective_per_loop:,} µ effective"
        yield "model", f"{counted.total:,} parameters, {effective}"
    yield "compute", f"{plan.flops:.4g} FLOPs on {plan.tokens:.4g} tokens in all, counted as {sweep.accounting}"
    busy = "GPU" if any(cell.resources.gpus for cell in plan.cells) else "core"
    longest = duration(plan.cells[0].seconds)
    yield "work", f"{sum(map(_hours, plan.cells)):,.3g} {busy} hours in all, longest run {longest}"
    sources = dict.fromkeys(cost.rate(c.resources, cluster, c.spec.precision).source for c in plan.cells)
    yield "speed", "; ".join(list(sources)[:3])
    where = f"{cluster.nodes} node(s) of {cluster.cores_per_node} cores"
    where += f" and {cluster.gpus} GPU(s) {cluster.device or ''}".rstrip() if cluster.gpus else ""
    bill = Bill.of(plan, done)
    if bill is None:
        if len(done) < len(plan.cells):
            yield "time", f"unknown: a run asks for more than {where}; say what there is under `cluster`"
        return
    left = "for what is left" if done else "in all"
    bound = f"no order does it under {duration(bill.bound)}"
    yield "time", f"about {duration(bill.makespan)} {left} on {where}, {bill.order}; {bound}"
    slow = slowness(plan, done)
    if slow is not None:
        measured = f"the runs that are done took {slow:.2g} times as long as that speed says"
        yield "measured", f"{measured}: about {duration(bill.makespan * slow)} {left}"
    if bill.price is not None:
        yield "price", f"{bill.price:,.2f} {left} at {cluster.price_per_hour:g} an hour for each {busy}"
