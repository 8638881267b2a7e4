"""A small Ray cluster whose machines come late, are lost in the middle of a run, return, and run out of memory."""

import os
from unittest import mock

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.pipeline import prepare
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import read_journal
from tests.sweeps.conftest import SMALL
from tests.sweeps.execution.machines import Watcher, machines, simulated_runs


@pytest.fixture(scope="module")
def head(no_ray):
    """A machine on which nothing may run."""
    with machines() as cluster:
        yield cluster


@pytest.fixture
def cluster(head):
    """The head, to which tests add machines."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


@pytest.fixture
def run(cluster, folders):
    folders.sweep.mkdir(parents=True)

    def run(plan, watcher, corpora=None):
        return run_plan(plan, folders, lambda: RayCluster(cluster.address), corpora=corpora or {}, progress=watcher)

    return run


def test_a_machine_that_comes_late_is_used(cluster, run):
    calls = []

    def add_a_machine(ended):
        calls.append(ended)
        if len(calls) == 3:
            cluster.add_node(num_cpus=1)

    assert len(run(simulated_runs(2, seconds=0.5), Watcher(add_a_machine)).results) == 2


class LosesTheMachine(Watcher):
    """Takes the machine away once the run has done some steps, and brings another one when that was noticed."""

    def __init__(self, cluster, journal):
        super().__init__(self.lose)
        self.cluster, self.machine, self.journal = cluster, cluster.add_node(num_cpus=1), journal

    def lose(self, ended):
        if self.machine and any(record.get("step", 0) >= 40 for record in read_journal(self.journal)[0]):
            self.cluster.remove_node(self.machine, allow_graceful=False)
            self.machine = None

    def event(self, line):
        super().event(line)
        if "starts again: " in line:
            self.cluster.add_node(num_cpus=1)


def test_a_run_whose_machine_is_lost_goes_on_when_another_comes(cluster, folders, run, text_folder, faults):
    content = {
        **SMALL,
        "tokens": [64 * 120],
        "mean_recurrences": [3],
        "model": {**SMALL["model"], "injection": "tests.sweeps.execution.faulty:Faulty"},
        "data": {"corpus": str(text_folder)},
        "resources": {"checkpoint_seconds": 0.1},
    }
    prepared = prepare(validate_sweep(content, source="test"), folders)
    (cell,) = prepared.plan.cells
    (corpus,) = prepared.corpora.values()
    undisturbed = train(cell.spec, corpus, folders.out / "quiet").losses
    journal = folders.run(cell.run_id) / "journal.jsonl"
    (faults / "next").write_text("hang 80")  # so that the run is not done before its machine is lost
    watcher = LosesTheMachine(cluster, journal)
    outcome = run(prepared.plan, watcher, prepared.corpus_folders)
    (faults / "next").unlink(missing_ok=True)  # the machine may be lost before that
    assert outcome.results[cell.run_id].losses == undisturbed
    (reason,) = [line for line in watcher.lines if "starts again: " in line]
    assert "the worker was lost" in reason
    assert "resumed" in [record.get("name") for record in read_journal(journal)[0]]


def test_what_ray_ends_for_its_memory_is_told_what_to_do(cluster, run):
    """On a machine on which Ray takes any memory in use for too much."""
    too_little = {"RAY_memory_usage_threshold": "0", "RAY_memory_monitor_refresh_ms": "100"}
    with mock.patch.dict(os.environ, too_little):
        cluster.add_node(num_cpus=1)
    (reason,) = run(simulated_runs(1, seconds=60, resources={"retries": 0}), Watcher()).failed.values()
    assert "set resources.micro_batch lower" in reason
