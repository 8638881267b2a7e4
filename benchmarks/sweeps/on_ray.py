"""500 simulated runs on a local Ray with 64 declared GPUs: by isoloop, and by peers on the same Ray.

The peers: longest first in a window, and if asked all at once in grid order and Ray Tune.
"""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.results import table
from benchmarks.sweeps.mixes import SPREAD, WIDTHS
from benchmarks.sweeps.tune_peer import run_with_tune
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.execution.worker import Task, run_attempt
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell, Plan, plan_sweep, simulated_corpus
from isoloop.sweeps.plan.packing import ORDERS, Node, Order, Pool, Queue, best_order, lower_bound
from isoloop.trainer.accounting import flops_per_token
from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.run.result import read_result

GPUS, CPUS = 64, 640
WANTED_RATIO, WANTED_COST = 1.05, 0.050
PEERS_WINDOW = 1.25
_MODEL = {"width": 16, "heads": 2, "context": 16}
_BATCH, _SHORTEST_STEPS = 8, 400
_LAW = {"E": 1.5, "X": 30.0, "x": 0.5, "Y": 20.0, "y": 0.3, "Z": 0.5, "z": 6.0}
_SEED = 7


def run(*, runs: int, seconds: float, more: bool = False) -> str:
    """Return the section of RESULTS.md."""
    plan = planned(runs, seconds)
    nodes = [Node("node", CPUS, [1.0] * GPUS)]
    bound, (order, expected) = lower_bound(plan.jobs, nodes), best_order(plan.jobs, nodes)
    with tempfile.TemporaryDirectory() as scratch, RayCluster(declared={"num_cpus": CPUS, "num_gpus": GPUS}) as ray:
        narrow, wide = most_at_once(plan, nodes, ORDERS[order])
        # Ray has workers apart for tasks with a GPU and without. Ours asks for no GPU where a run has several.
        workers = {"with a GPU": round(1.3 * (narrow + wide)), "without": round(1.3 * wide)}
        warm = sum(workers.values())
        took = warm_up(ray, list(workers.values()), task_of(plan.cells[-1], plan, Folders(out=Path(scratch), name="w")))
        print(f"bound {bound:.1f} s, planned {expected:.1f} s, {warm} workers warm after {took:.0f} s", flush=True)
        measured = []
        for name, method in _methods(plan, ray, more=more):
            measured.append(
                _measure(name, plan, Folders(out=Path(scratch) / name.replace(" ", "-"), name="bench"), method)
            )
            print(f"{name}: {measured[-1].makespan:.1f} s", flush=True)
    return _report(plan, bound, order, expected, measured, warm)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of one method.

    Attributes:
        name: of the method.
        makespan: seconds until the last run ended.
        driver_cpu: CPU seconds of the driver.
        busy: GPU seconds in which workers held a run, including their overhead.
        end_delays: seconds from each result until the driver knew of it.
    """

    name: str
    makespan: float
    driver_cpu: float
    busy: float
    end_delays: list[float]


def planned(runs: int, seconds: float, *, widths: Sequence[float] = tuple(WIDTHS), gpus: int = GPUS) -> Plan:
    """Return a plan of runs of these widths and of log-uniform durations, whose work takes `seconds` on all GPUs."""
    rng = random.Random(_SEED)
    drawn = [rng.choice(widths) for _ in range(runs)]
    steps = [round(_SHORTEST_STEPS * SPREAD ** rng.random()) for _ in range(runs)]
    per_step = flops_per_token(ModelConfig(**_MODEL), RecurrenceConfig(mean=1, sampling="fixed"), "exact")
    per_step *= _BATCH * _MODEL["context"]
    work = per_step * sum(width * count for width, count in zip(drawn, steps, strict=True))
    speed = work / (gpus * seconds)
    points = [
        {
            "tokens": count * _BATCH * _MODEL["context"],
            "mean_recurrence": 1,
            "seed": seed,
            "resources.gpus": WIDTHS[width].gpus,
            "resources.processes": WIDTHS[width].processes,
        }
        for seed, (width, count) in enumerate(zip(drawn, steps, strict=True))
    ]
    sweep = {
        "name": "bench",
        "points": points,
        "model": _MODEL,
        "batch": _BATCH,
        "depth": {"sampling": "fixed"},
        "evaluation": {"recurrences": [1]},
        "resources": {"gpus": 1, "flops_per_second": speed},
        "simulation": {**_LAW, "run_noise": 1e-3, "evaluation_noise": 1e-5, "flops_per_second": speed},
    }
    return plan_sweep(validate_sweep(sweep, source="benchmark"), simulated_corpus)


def most_at_once(plan: Plan, nodes: list[Node], order: Order) -> tuple[int, int]:
    """Return the largest numbers of runs of one process, and of several, that run at once."""
    pool, queue, now, ends, most = Pool(nodes), Queue(), 0.0, [], [0, 0]
    for index, job in enumerate(plan.jobs):
        queue.add(index, order(job), job.needs)
    while queue or ends:
        while (found := queue.next(pool)) is not None:
            index, needs, slots = found
            ends.append((now + plan.jobs[index].seconds, index, needs, slots))
        wide = sum(needs.processes > 1 for _, _, needs, _ in ends)
        most = [max(most[0], len(ends) - wide), max(most[1], wide)]
        ends.sort(reverse=True)
        now, _, needs, slots = ends.pop()
        pool.release(needs, slots)
    return most[0], most[1]


def in_grid_order(plan: Plan) -> list[Cell]:
    """Return the runs in the order of the configuration."""
    return sorted(plan.cells, key=lambda cell: cell.spec.seed)


def task_of(cell: Cell, plan: Plan, folders: Folders) -> str:
    """Return one attempt at a run in the form that the worker takes."""
    return Task(
        spec=cell.spec,
        run_id=cell.run_id,
        folder=folders.run(cell.run_id),
        stop_file=folders.stop_file,
        resources=cell.resources,
        corpus=None,
        simulation=plan.sweep.simulation,
    ).model_dump_json()


Method = Callable[[Folders], "_Clock"]


class _Clock(Progress):
    """Wall-clock times at which the driver knew of the ends of runs."""

    def __init__(self) -> None:
        self.ended_at: dict[str, float] = {}

    def event(self, line: str) -> None:
        assert "failed: " not in line, line
        self.ended_at[line.split()[0]] = time.time()


def in_a_window(plan: Plan, ray: RayCluster, folders: Folders, *, gpus: int = GPUS) -> _Clock:
    """Run a plan as a few lines do it: longest first, at most `PEERS_WINDOW` times the GPUs in Ray, which places."""
    clock, start = _Clock(), ray.ray.remote(max_retries=0)(run_attempt)
    left, waiting, asked = list(reversed(plan.cells)), {}, 0.0
    while left or waiting:
        while left and (not waiting or asked + float(_gpus(left[-1])) <= PEERS_WINDOW * gpus):
            cell = left.pop()
            job = start.options(num_cpus=1, num_gpus=_gpus(cell)).remote(task_of(cell, plan, folders))
            waiting[job], asked = cell, asked + float(_gpus(cell))
        (done,), _ = ray.ray.wait(list(waiting), num_returns=1)
        ray.ray.get(done)
        cell = waiting.pop(done)
        clock.ended_at[cell.run_id], asked = time.time(), asked - float(_gpus(cell))
    return clock


def _methods(plan: Plan, ray: RayCluster, *, more: bool) -> list[tuple[str, Method]]:
    def ours(folders: Folders) -> _Clock:
        clock = _Clock()
        run_plan(plan, folders, lambda: nullcontext(ray), corpora={}, progress=clock)
        return clock

    def at_once(folders: Folders) -> _Clock:
        clock, start = _Clock(), ray.ray.remote(max_retries=0)(run_attempt)
        waiting = {}
        for cell in in_grid_order(plan):
            job = start.options(num_cpus=1, num_gpus=_gpus(cell)).remote(task_of(cell, plan, folders))
            waiting[job] = cell
        while waiting:
            (done,), _ = ray.ray.wait(list(waiting), num_returns=1)
            ray.ray.get(done)
            clock.ended_at[waiting.pop(done).run_id] = time.time()
        return clock

    def window(folders: Folders) -> _Clock:
        return in_a_window(plan, ray, folders)

    def with_tune(folders: Folders) -> _Clock:
        cells = in_grid_order(plan)
        run_with_tune([task_of(cell, plan, folders) for cell in cells], [_gpus(cell) for cell in cells], folders.out)
        return _Clock()

    methods = [("isoloop", ours), ("longest first in a window", window)]
    return [*methods, ("all at once, grid order", at_once), ("Ray Tune", with_tune)] if more else methods


def _gpus(cell: Cell) -> float:
    whole = cell.resources.processes * cell.resources.gpu_share
    return int(whole) if whole >= 1 else whole


def warm_up(
    ray: RayCluster, counts: list[int], task: str, *, share: float = 0.1, machines: Sequence[str] = ()
) -> float:
    """Start so many workers with a GPU and without, let each run something, and return the seconds that this took.

    Those of several `machines` (ids of Ray's) are as many on each.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = Path(Task.model_validate_json(task).folder).parent

    def run_and_wait(number: int, task: str) -> None:
        from isoloop.sweeps.execution.worker import Task, run_attempt

        parsed = Task.model_validate_json(task)
        at_once = parsed.simulation.model_copy(update={"flops_per_second": None})
        task = parsed.model_copy(update={"folder": str(folder / str(number)), "simulation": at_once}).model_dump_json()
        run_attempt(task)
        (folder / f"{number} is warm").touch()
        while sum(name.endswith("warm") for name in os.listdir(folder)) < sum(counts):
            time.sleep(0.5)

    began = time.monotonic()
    with_a_gpu, without = ({"num_cpus": 1, "num_gpus": share}, {"num_cpus": 1})
    options_of_all: list[dict[str, Any]] = [dict(with_a_gpu) for _ in range(counts[0])]
    options_of_all += [dict(without) for _ in range(counts[1])]
    for number, options in enumerate(options_of_all if machines else []):
        machine = machines[number % len(machines)]
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(machine, soft=False)
    warming = ray.ray.remote(run_and_wait)
    ray.ray.get([warming.options(**options).remote(number, task) for number, options in enumerate(options_of_all)])
    return time.monotonic() - began


def _measure(name: str, plan: Plan, folders: Folders, method: Method) -> Measured:
    folders.sweep.mkdir(parents=True)
    began, cpu = time.time(), _cpu_seconds()
    clock = method(folders)
    cpu = _cpu_seconds() - cpu
    starts, ends, busy = {}, {}, 0.0
    for cell in plan.cells:
        folder = folders.run(cell.run_id)
        assert read_result(folder) is not None, f"{name} left {cell.run_id} without a result"
        with (folder / "journal.jsonl").open() as journal:
            starts[cell.run_id] = json.loads(journal.readline())["time_ms"] / 1e3
        ends[cell.run_id] = (folder / "result.json").stat().st_mtime
        busy += float(_gpus(cell)) * (ends[cell.run_id] - starts[cell.run_id])
    return Measured(
        name=name,
        makespan=max(ends.values()) - began,
        driver_cpu=cpu,
        busy=busy,
        end_delays=[ended - ends[run] for run, ended in clock.ended_at.items() if run in ends],
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _report(plan: Plan, bound: float, order: str, expected: float, measured: list[Measured], warm: int) -> str:
    runs, work = len(plan.cells), sum(job.seconds * job.needs.busy_units for job in plan.jobs)
    shortest, longest = plan.cells[-1].seconds, plan.cells[0].seconds
    head = (
        f"{runs} simulated runs of 1/8 to 8 GPUs and {shortest:.2g} to {longest:.2g} s on a local Ray with "
        f"{GPUS} declared GPUs. No order takes less than {bound:.1f} s; the plan says {expected:.1f} s "
        f"({expected / bound:.3f} times that, {order}). One Ray, one method after the other; {warm} worker processes "
        "were started before, with everything that a run imports. Ray Tune, if it is measured, starts its actors "
        "meanwhile, which takes seconds of CPU each on two cores and is part of its time, and trials in grid order. "
        "Ours reserves the GPUs of a run of several processes as a placement group, the peers as those of one task. "
        "`idle` is the share of GPU seconds until the last end in which no run trained, `held` by how much a run held "
        "its GPUs longer than its own seconds, once its worker had begun."
    )
    header = ["method", "makespan, s", "over the bound", "over the plan", "idle", "held", "driver's CPU, ms a run"]
    rows: list[list[Any]] = [
        [
            one.name,
            f"{one.makespan:.1f}",
            f"{one.makespan / bound:.3f}",
            f"{one.makespan / expected:.3f}",
            f"{1 - work / (GPUS * one.makespan):.1%}",
            f"{one.busy / work - 1:+.2%}",
            f"{1e3 * one.driver_cpu / runs:.1f}",
        ]
        for one in measured
    ]
    ours = measured[0]
    wanted = (
        f"Wanted of isoloop: at most {WANTED_RATIO:.2f} times the bound, and under {1e3 * WANTED_COST:.0f} ms a run "
        f"for scheduling. From a run's result until the driver knows: {_shown(ours.end_delays)}."
    )
    return f"{head}\n\n{table(header, rows)}\n{wanted}\n"


def _shown(seconds: list[float]) -> str:
    return f"{1e3 * median(seconds):.0f} ms (one of twenty: over {1e3 * quantiles(seconds, n=20)[-1]:.0f} ms)"
