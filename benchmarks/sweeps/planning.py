"""CPU time of `isoloop plan` without its start: read the configuration, solve the grid, add up costs, print.

Besides, the largest plan, and a driver that starts again: each in a process of its own, whose memory is measured.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.fitting.cpu_time import cpu_time
from benchmarks.results import table
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.engine import SweepOutcome, run_plan
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.execution.status import read_status, write_manifest
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import open_stores
from isoloop.sweeps.plan.grid import Plan, plan_sweep, simulated_corpus
from isoloop.sweeps.plan.summary import print_plan

WANTED_SECONDS, WANTED_LARGE, WANTED_RESTART = 3.0, 20.0, 5.0
LARGE_CELLS, FINISHED_RUNS, RECORDED_RUNS = 160_000, 20_000, 500
_CLUSTER = {"nodes": 8, "gpus": 8, "cpus": 96, "device": "H100", "price_per_hour": 2.5}
_LAW = {"E": 2.28, "X": 31.8, "x": 0.26, "Y": 34.65, "y": 0.19, "Z": 0.84, "z": 7.5}
_SIMULATION = {**_LAW, "run_noise": 5e-5, "evaluation_noise": 5e-6}
_RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
_TINY = {"width": 16, "heads": 2, "context": 16}


def _budgets(first: float, count: int, factor: float) -> list[float]:
    return [first * factor**i for i in range(count)]


GRIDS: dict[str, Mapping[str, Any]] = {
    "140m: 20 budgets x 20 recurrences x 5 learning rates x 5 seeds": {
        "budgets": _budgets(1e18, 20, 2**0.5),
        "mean_recurrences": list(range(1, 21)),
        "axes": {"seed": list(range(5)), "optimizer.learning_rate": _RATES},
        "model": "140m",
        "batch": 256,
        "precision": "bfloat16",
        "resources": {"gpus": 1, "micro_batch": 4},
    },
    "4 sizes x 2 injections x 10 budgets x 10 recurrences x 5 rates x 3 seeds, GPUs chosen (1/8 to 64)": {
        "budgets": _budgets(1e18, 10, 2.0),
        "mean_recurrences": [1, 2, 3, 4, 6, 8, 10, 12, 14, 16],
        "axes": {
            "model.size": ["140m", "370m", "770m", "1.3b"],
            "variant": [{"name": name, "model.injection": name} for name in ("diagonal", "concat")],
            "optimizer.learning_rate": _RATES,
            "seed": list(range(3)),
        },
        "model": "140m",
        "batch": 256,
        "precision": "bfloat16",
        "resources": {"gpus": "auto", "longest_hours": 12, "cpus": 4, "micro_batch": 2},
    },
    "tiny runs, loops drawn in advance: 20 budgets x 10 recurrences x 10 rates x 5 seeds, batch 16": {
        "budgets": _budgets(1e10, 20, 2**0.25),
        "mean_recurrences": list(range(1, 11)),
        "axes": {"optimizer.learning_rate": [1e-3 * 1.3**i for i in range(10)], "seed": list(range(5))},
        "model": _TINY,
        "batch": 16,
        "minimum_steps": 1,
    },
    "tiny runs, the worst case: 25 budgets x 20 recurrences x 20 seeds, batch 4": {
        "budgets": _budgets(1e9, 25, 2**0.25),
        "mean_recurrences": list(range(1, 21)),
        "axes": {"seed": list(range(20))},
        "model": _TINY,
        "batch": 4,
        "minimum_steps": 1,
    },
}


def run(*, repeats: int) -> str:
    """Return the section of RESULTS.md."""
    rows = []
    for name, grid in GRIDS.items():
        runs = plan(grid)
        taken = cpu_time(lambda grid=grid: plan(grid), repeats)  # type: ignore[misc]
        each = taken.median / runs * 10_000
        rows.append([name, f"{runs:,}", taken.shown(), f"{each:.2f}", f"{each / WANTED_SECONDS:.2f}"])
    head = (
        "CPU seconds from the configuration to the printed plan with its bill and makespan (64 GPUs), the median, the "
        f"least and the most of {repeats}. Wanted: {WANTED_SECONDS:g} s for 10,000 runs; the last column is the share "
        "of it that is used."
    )
    header = ["grid", "runs planned", "CPU-s", "CPU-s for 10,000", "of what is wanted"]
    return f"{head}\n\n{table(header, rows)}\n{_large()}"


def _large() -> str:
    """Return the table of the largest plan and of a driver that starts again."""
    finished, recorded = f"{FINISHED_RUNS:,} finished runs", f"{RECORDED_RUNS:,} finished runs"
    cases: list[tuple[str, str, float | None]] = [
        ("plan", f"plan {LARGE_CELLS:,} cells and print", WANTED_LARGE),
        ("restart", f"plan {finished} and find their results", WANTED_RESTART),
        ("status", f"status of {finished}", WANTED_RESTART),
        ("open", f"open MLflow (sqlite), which has {recorded}, until training can go on", WANTED_RESTART),
        ("record", f"close it: find that all {recorded} are recorded", None),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, what, wanted in cases:
            cpu, peak = _in_a_process(case, folder)
            rows.append([what, f"{cpu:.1f}", "" if wanted is None else f"{wanted:g}", f"{peak:.0f}"])
    head = (
        "One call, in a process of its own. The results are those of one simulated run. A driver that starts again "
        "doesn't wait for MLflow's list of the runs: a thread reads it while runs are trained. Its cost grows with the "
        "runs, and comes once more when the run table is read at the end."
    )
    return f"{head}\n\n{table(['what', 'CPU-s', 'wanted', 'peak memory of the process, MiB'], rows)}"


def _in_a_process(what: str, folder: str) -> tuple[float, float]:
    """Return the CPU seconds, and the peak memory in MiB, of `what` in a new process."""
    command = [sys.executable, "-m", "benchmarks.sweeps.planning", what, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _measure(what: str, folder: Path) -> tuple[float, float]:
    """Measure one of the large cases in this process; the plan's cells are budgets x 20 recurrences x 200 seeds."""
    cells = {"plan": LARGE_CELLS, "open": RECORDED_RUNS, "record": RECORDED_RUNS}.get(what, FINISHED_RUNS)
    grid = {
        "budgets": _budgets(1e18, max(1, cells // 4000), 2**0.2),
        "mean_recurrences": list(range(1, 21)),
        "axes": {"seed": list(range(min(200, cells // 20)))},
        "model": "140m",
        "batch": 256,
        "resources": {"flops_per_second": 4e14},
    }
    folders = Folders(out=folder / "recorded" if what in ("open", "record") else folder, name="planned")
    if what == "plan":
        began = time.process_time()
        plan(grid)
    elif what == "status":
        began = time.process_time()
        assert read_status(folders).counts() == {"done": FINISHED_RUNS}
    elif what in ("open", "record"):
        planned = _planned(grid)
        if what == "open":
            _finish(planned, folders)
            with open_stores(planned, {}, folders, SweepOutcome(), Progress()):
                pass
        began = time.process_time()
        with open_stores(planned, {}, folders, SweepOutcome(), Progress()) as (_, uploader):
            if what == "open":
                return time.process_time() - began, _peak_memory()
            began = time.process_time()
        uploader.check_complete()
    else:
        _finish(_planned(grid), folders)
        began = time.process_time()
        planned = _planned(grid)
        write_manifest(planned.cells, folders)
        outcome = run_plan(planned, folders, _no_cluster, corpora={})
        assert len(outcome.results) == len(planned.cells) == FINISHED_RUNS
    return time.process_time() - began, _peak_memory()


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _finish(planned: Plan, folders: Folders) -> None:
    """Give every run the result of one."""
    first, *others = planned.cells
    assert planned.sweep.simulation is not None
    simulate_run(first.spec, planned.sweep.simulation, first.run_id, folders.run(first.run_id))
    for cell in others:
        folders.run(cell.run_id).mkdir(parents=True)
        shutil.copy(folders.run(first.run_id) / "result.json", folders.run(cell.run_id))
    folders.sweep.mkdir(parents=True)


def _no_cluster() -> Any:
    raise AssertionError("no cluster is needed where every run is finished")


def plan(grid: Mapping[str, Any]) -> int:
    """Plan a grid, print the plan's summary, and return the number of runs."""
    planned = _planned(grid)
    print_plan(Console(file=io.StringIO()), planned, {}, every_run=False)
    return len(planned.cells)


def _planned(grid: Mapping[str, Any]) -> Plan:
    sweep = {"name": "planned", "cluster": _CLUSTER, "simulation": _SIMULATION, **grid}
    return plan_sweep(validate_sweep(sweep, source="benchmark"), simulated_corpus)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
