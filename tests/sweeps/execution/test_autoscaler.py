"""A Ray cluster that starts machines on demand: at first there is only a head, on which nothing may run."""

from contextlib import nullcontext

import pytest

from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.execution.worker import SCRATCH_VARIABLE
from isoloop.sweeps.storage.run_store import RunStore
from tests.sweeps.execution.machines import autoscaled_machines, simulated_runs

NODE_TYPES = {"many-cores": {"CPU": 64}, "gpus": {"CPU": 2, "GPU": 2}}


@pytest.fixture(scope="module")
def cluster(no_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoscaler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH_VARIABLE, str(folder / "scratch"))
        with autoscaled_machines(folder, NODE_TYPES) as machines, RayCluster(machines.address) as cluster:
            yield cluster


@pytest.fixture
def run(cluster, folders):
    folders.sweep.mkdir(parents=True)
    return lambda plan, **more: run_plan(plan, folders, lambda: nullcontext(cluster), corpora={}, **more)


def machines_with(cluster, **resources):
    return [n for n in cluster.ray.nodes() if all(n["Resources"].get(k) == count for k, count in resources.items())]


def test_runs_larger_than_the_drivers_machine_get_one_that_holds_them(cluster, run):
    plan = simulated_runs(2, seconds=0.5, resources={"cpus": 64}, cluster={"elastic": True})
    assert len(run(plan).results) == 2
    assert len(machines_with(cluster, CPU=64)) == 1


def test_several_processes_get_one_machine(cluster, run, tmp_path):
    """They are on one machine as the run lies in a storage."""
    resources, machine = {"gpus": 1, "processes": 2}, {"elastic": True, "gpus": 2}
    plan = simulated_runs(2, seconds=0.5, resources=resources, cluster=machine)
    assert len(run(plan, run_store=RunStore(str(tmp_path / "storage"))).results) == 2
    assert len(machines_with(cluster, GPU=2)) == 1
