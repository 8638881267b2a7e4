"""A small Ray cluster of several machines, which come and go in the middle of a sweep."""

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.pipeline import prepare
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import read_journal
from tests.sweeps.conftest import SMALL


@pytest.fixture
def machines(no_ray):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


class LosesAMachine(Progress):
    """Takes the machine that the run is on away once it has done some steps, and brings another one."""

    def __init__(self, machines, journal):
        self.machines, self.journal, self.retried = machines, journal, []
        self.node = machines.add_node(num_cpus=1)

    def update(self, label, done, total):
        if self.node is not None and any(record.get("step", 0) >= 40 for record in read_journal(self.journal)[0]):
            self.machines.add_node(num_cpus=1)
            self.machines.remove_node(self.node, allow_graceful=False)
            self.node = None

    def event(self, line):
        if "starts again: " in line:
            self.retried.append(line)


def test_a_run_whose_machine_is_lost_goes_on_elsewhere(machines, folders, text_folder, faults):
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
    folder = folders.run(cell.run_id)
    (faults / "next").write_text("hang 80")  # so that the run is not done before its machine is lost
    watcher = LosesAMachine(machines, folder / "journal.jsonl")
    outcome = run_plan(
        prepared.plan,
        folders,
        lambda: RayCluster(machines.address),
        corpora=prepared.corpus_folders,
        progress=watcher,
    )
    assert outcome.results[cell.run_id].losses == undisturbed
    (reason,) = watcher.retried
    assert "the worker was lost" in reason
    assert "resumed" in [record.get("name") for record in read_journal(folder / "journal.jsonl")[0]]
