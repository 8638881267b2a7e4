"""A Ray that others use, too: another job holds half of the GPUs for a while, and two drivers run at once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.results import table
from benchmarks.sweeps import on_ray
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Plan
from isoloop.sweeps.plan.packing import lower_bound

WANTED_IDLE, WANTED_RATIO = 2.0, 1.15
_NODES, _GPUS_PER_NODE = 2, 4
_GPUS = _NODES * _GPUS_PER_NODE

Span = tuple[float, float, float]
"""Start, end and GPUs of something that held GPUs."""


def run(*, runs: int, seconds: float) -> str:
    """Return the section of RESULTS.md."""
    rows = []
    with _machines() as address, tempfile.TemporaryDirectory() as folder:
        scratch, plan = Path(folder), _plan(runs, seconds)
        with RayCluster(address) as ray:
            _warm_up(ray, plan, scratch / "warm")
            for name in ("isoloop", "longest first in a window"):
                idle = beside_another_job(name, ray, plan, scratch / name.replace(" ", "-"), seconds / 2)
                rows.append(
                    ["another job holds half of the GPUs: longest idle time of a free GPU", name, f"{idle:.2f} s"]
                )
                print(rows[-1], flush=True)
        ratio = two_drivers(address, scratch / "two", runs, seconds)
        rows.append(["two drivers at once: makespan over the lower bound of both", "isoloop", f"{ratio:.3f}"])
    head = (
        f"{runs} simulated runs of 1 GPU on a real local cluster of {_NODES} nodes with {_GPUS_PER_NODE} declared GPUs "
        f"each; worker processes were started before. The other job holds one node for {seconds / 2:.0f} s. A GPU is "
        "free and idle while fewer GPUs are held than there are and a run has not begun, by the times in the runs' own "
        f"journals. Wanted: at most {WANTED_IDLE:g} s, and at most {WANTED_RATIO:g} times the bound."
    )
    return f"{head}\n\n{table(['what', 'method', 'measured'], rows)}"


def beside_another_job(name: str, ray: RayCluster, plan: Plan, out: Path, seconds: float) -> float:
    """Return the longest time that a free GPU was idle while a run waited; a job holds a node for so many seconds."""
    folders = Folders(out=out, name="bench")
    folders.sweep.mkdir(parents=True)
    hold = ray.ray.remote(num_cpus=0, num_gpus=_GPUS_PER_NODE)(_hold)
    held = hold.remote(seconds, str(out / "held"))
    while not (out / "held").exists():
        time.sleep(0.05)
    began = time.time()
    if name == "isoloop":
        run_plan(plan, folders, lambda: nullcontext(ray), corpora={})
    else:
        on_ray.in_a_window(plan, ray, folders, gpus=_GPUS)
    start, end = ray.ray.get(held)
    spans = [*_spans(plan, folders), (start, end, float(_GPUS_PER_NODE))]
    return longest_idle(spans, began, _GPUS)


def two_drivers(address: str, out: Path, runs: int, seconds: float) -> float:
    """Return the makespan of two drivers, each with half of the runs, over the lower bound of both together."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.sweeps.shared", address, str(out), str(runs), str(seconds)]
    drivers = [subprocess.Popen([*command, str(half)]) for half in range(2)]
    while not all((out / f"{half} is warm").exists() for half in range(2)):
        assert all(driver.poll() is None for driver in drivers), "a driver ended before it began"
        time.sleep(0.1)
    (out / "go").touch()
    began = time.time()
    assert [driver.wait() for driver in drivers] == [0, 0]
    plan = _plan(runs, seconds)
    ends = [end for _, end, _ in _spans(plan, Folders(out=out, name="bench"))]
    with RayCluster(address) as ray:
        return (max(ends) - began) / lower_bound(plan.jobs, ray.nodes())


def longest_idle(spans: list[Span], began: float, gpus: int) -> float:
    """Return the longest time in which a GPU was free while a run had not begun yet."""
    last_start = max(start for start, _, _ in spans)
    times = sorted({began, *(time for start, end, _ in spans for time in (start, end) if began < time < last_start)})
    longest = idle = 0.0
    for now, later in zip(times, [*times[1:], last_start], strict=True):
        in_use = sum(share for start, end, share in spans if start <= now < end)
        idle = idle + later - now if in_use < gpus else 0.0
        longest = max(longest, idle)
    return longest


def _plan(runs: int, seconds: float) -> Plan:
    return on_ray.planned(runs, seconds, widths=[1.0], gpus=_GPUS)


def _warm_up(ray: RayCluster, plan: Plan, out: Path, *, share: float = 1.0) -> None:
    """Start this driver's worker for each GPU, on its machine; two drivers at once take half of each GPU for that."""
    task = on_ray.task_of(plan.cells[0], plan, Folders(out=out, name="warm"))
    on_ray.warm_up(ray, [_GPUS, 0], task, share=share, machines=[node.name for node in ray.nodes()])


def _spans(plan: Plan, folders: Folders) -> list[Span]:
    """Return when each run held its GPU, by its own journal and result."""
    spans = []
    for cell in plan.cells:
        folder = folders.run(cell.run_id)
        with (folder / "journal.jsonl").open(encoding="utf-8") as journal:
            start = json.loads(journal.readline())["time_ms"] / 1e3
        spans.append((start, (folder / "result.json").stat().st_mtime, cell.resources.gpu_share))
    return spans


def _hold(seconds: float, begun: str) -> tuple[float, float]:
    """Hold a node's GPUs, and return from when to when."""
    start = time.time()
    Path(begun).touch()
    time.sleep(seconds)
    return start, time.time()


@contextmanager
def _machines() -> Iterator[str]:
    """Yield the address of a cluster of several nodes on this machine."""
    from ray._private.authentication import authentication_token_setup as authentication
    from ray.cluster_utils import Cluster

    authentication.enable_token_auth_by_default()  # as a local Ray does, after which drivers of this user ask for it
    authentication.ensure_token_if_auth_enabled()
    os.environ |= {
        "RAY_prestart_worker_first_driver": "0",  # none before one is needed
        "RAY_enable_worker_prestart": "0",
        "RAY_worker_niceness": "0",  # on a machine that does much else they would hardly get on
    }
    options: dict[str, Any] = {"num_cpus": 16, "num_gpus": _GPUS_PER_NODE, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for _ in range(_NODES - 1):
            cluster.add_node(**options)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def _drive(address: str, out: Path, runs: int, seconds: float, half: int) -> None:
    """Run half of the plan when the other driver is ready, too."""
    plan = _plan(runs, seconds)
    mine = dataclasses.replace(plan, cells=plan.cells[half::2])
    with RayCluster(address) as ray:
        _warm_up(ray, plan, out / f"warm {half}", share=0.5)
        (out / f"{half} is warm").touch()
        while not (out / "go").exists():
            time.sleep(0.02)
        run_plan(mine, Folders(out=out, name=f"bench-{half}"), lambda: nullcontext(ray), corpora={})


if __name__ == "__main__":
    _drive(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
