"""A Ray cluster of two machines with two GPUs each, which other jobs use too: every run begins, and nothing idles."""

import time
from contextlib import nullcontext

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution import engine
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.execution.ray_cluster import RayCluster
from isoloop.sweeps.execution.worker import SCRATCH_VARIABLE
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.run.journal import read_journal
from tests.sweeps.conftest import SMALL
from tests.sweeps.execution.machines import Gpus, OtherJob, Times, Watcher, machines, simulated_runs, wait_until

HALF = {"GPU": 2}
ON_A_GPU = {"cluster": {"gpus": 2}, "resources": {"gpus": 1}}
ON_THREE_GPUS = {"cluster": {"gpus": 2, "nodes": 2}, "resources": {"gpus": 1, "processes": 3}, "batch": 3}


@pytest.fixture(scope="module")
def address(no_ray, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, machines() as cluster:
        patch.setenv(SCRATCH_VARIABLE, str(tmp_path_factory.mktemp("scratch")))
        for address in ("127.0.0.2", "127.0.0.3"):  # machines with one address would be one to Ray's `node:<address>`
            cluster.add_node(num_cpus=2, num_gpus=2, node_ip_address=address)
        yield cluster.address


@pytest.fixture(scope="module")
def other(address):
    with OtherJob(address) as job:
        yield job


@pytest.fixture(scope="module")
def cluster(address):
    with RayCluster(address) as cluster:
        yield cluster


@pytest.fixture
def run(cluster, folders):
    """Run a plan on the cluster."""
    folders.sweep.mkdir(parents=True)

    def run(plan, watcher=None, *, corpora=None, run_store=None):
        opened = lambda: nullcontext(cluster)
        return run_plan(plan, folders, opened, corpora=corpora or {}, run_store=run_store, progress=watcher)

    return run


class TestGpus:
    def test_free_ones_are_used_and_no_run_waits_for_busy_ones(self, cluster, other, folders, run):
        plan = simulated_runs(8, seconds=1, **ON_A_GPU)
        with other.holding(HALF), Gpus(cluster.ray, Times(plan, folders), gpus=2) as gpus:
            outcome = run(plan)
        assert len(outcome.results) == 8
        assert gpus.fewest_free == 0
        assert gpus.longest_idle < 2

    def test_those_of_a_job_that_ends_are_used(self, cluster, other, folders, run):
        plan, in_use = simulated_runs(8, seconds=1, **ON_A_GPU), []

        def end_it_in_the_middle(ended):
            if ended >= 2:
                if not in_use:
                    other.let_go()
                in_use.append(4 - cluster.ray.available_resources().get("GPU", 0.0))

        other.hold(HALF)
        assert len(run(plan, Watcher(end_it_in_the_middle)).results) == 8
        assert max(in_use) > 2

    def test_two_drivers_take_turns(self, address, folders, tmp_path, run):
        """Another driver has many more runs than the cluster has room for; it goes on while ours come through."""
        many, few = simulated_runs(150, seconds=1, **ON_A_GPU), simulated_runs(12, seconds=1, **ON_A_GPU)
        theirs, ours = Times(many, Folders(out=tmp_path / "other", name="other")), Times(few, folders)
        with OtherJob(address) as driver:
            driver.run(theirs)
            wait_until(lambda: theirs.of("finished"))
            assert len(run(few).results) == 12
            assert len(theirs.of("finished")) < 150
        first, last = min(ours.of("started").values()), max(ours.of("finished").values())
        assert any(first < start < last for start in theirs.of("started").values())


class TestSeveralProcesses:
    def test_runs_that_need_more_than_half_come_one_after_the_other(self, cluster, other, folders, tmp_path, run):
        """Two of ours and two of another driver's, of which no two fit at a time."""
        plan = simulated_runs(2, seconds=1, **ON_THREE_GPUS)
        theirs, ours = Times(plan, Folders(out=tmp_path / "other", name="other")), Times(plan, folders)
        with Gpus(cluster.ray, ours) as gpus:
            other.run(theirs)
            assert len(run(plan).results) == other.answer() == 2
        assert gpus.fewest_free <= 1  # none while Ray tries to reserve the next three
        started, finished = (
            sorted([*ours.of(event).values(), *theirs.of(event).values()]) for event in ("started", "finished")
        )
        assert all(finished[i] <= started[i + 1] for i in range(3))

    def test_one_machine_is_waited_for_without_being_judged_hung(
        self, cluster, other, folders, text_folder, tmp_path, run
    ):
        """A core is free on each machine, and two processes must be on one, as the run lies in a storage.

        Until they may begin, whatever is silent for a second counts as hung.
        """
        content = {
            **SMALL,
            "tokens": [512],
            "mean_recurrences": [3],
            "data": {"corpus": str(text_folder)},
            "resources": {"processes": 2, "hang_seconds": 100},
            "cluster": {"elastic": True},
        }
        prepared = prepare(validate_sweep(content, source="test"), folders)
        (cell,) = prepared.plan.cells
        journal = folders.run(cell.run_id) / "journal.jsonl"
        run_store = RunStore(str(tmp_path / "storage"))
        for folder in prepared.corpus_folders.values():
            run_store.push_corpus(folder)
        places, waits_since = [], None

        def let_it_begin(ended):
            nonlocal waits_since
            if waits_since is None and folders.state.exists():  # it is in Ray
                waits_since = time.monotonic()
            if waits_since and time.monotonic() > waits_since + 5:
                waits_since = float("inf")
                assert not journal.exists()
                patch.undo()
                other.let_go()
            groups = cluster.ray.util.placement_group_table().values()
            places.extend(
                set(group["bundles_to_node_id"].values())
                for group in groups
                if group["state"] == "CREATED" and group["name"].startswith("isoloop")
            )

        watcher = Watcher(let_it_begin)
        other.hold({"CPU": 1}, {"CPU": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "START_SECONDS", -99)
            patch.setattr(engine, "STORAGE_DELAY_SECONDS", 0)
            outcome = run(prepared.plan, watcher, corpora=prepared.corpus_folders, run_store=run_store)
        assert outcome.results[cell.run_id].status == "finished"
        assert not [line for line in watcher.lines if "starts again" in line]
        assert places
        assert all(len(machines) == 1 for machines in places)
        assert [r["processes"] for r in read_journal(journal)[0] if r.get("name") == "started"] == [2]


class Interrupts(Watcher):
    """Interrupts a sweep that has runs in Ray once so many of them have begun; `at` is when."""

    def __init__(self, times, begun):
        super().__init__(self.interrupt)
        self.times, self.begun, self.at = times, begun, None

    def interrupt(self, ended):
        in_ray = self.times.folders.state.exists()
        if self.at is None and in_ray and len(self.times.of("started")) >= self.begun:
            self.at = time.monotonic()
            raise KeyboardInterrupt


class TestInterrupt:
    @pytest.mark.parametrize(
        ("held", "resources", "begun"),
        [([HALF], ON_A_GPU, 2), ([HALF, HALF], ON_A_GPU, 0), ([HALF], ON_THREE_GPUS, 0)],
        ids=["others run", "none runs", "several processes"],
    )
    def test_what_waits_is_taken_out_of_ray(self, other, folders, run, held, resources, begun):
        plan = simulated_runs(6, seconds=600, **resources)
        watcher = Interrupts(Times(plan, folders), begun)
        with other.holding(*held):
            with pytest.raises(KeyboardInterrupt):
                run(plan, watcher)
            assert time.monotonic() - watcher.at < 30
        with other.holding(HALF, HALF):  # all of it is free now, and nothing of ours takes it
            pass
        assert len(watcher.times.of("started")) == len(watcher.times.of("stopped")) == begun
