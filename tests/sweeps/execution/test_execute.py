"""Running a plan on a real local Ray: results, failures, killed workers, stopping."""

import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext

import pandas as pd
import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution import engine
from isoloop.sweeps.execution.engine import SweepOutcome, count_saved_runs, run_plan
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare, train_sweep
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.files import sole_owner
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result


class Watcher(Progress):
    def __init__(self):
        self.shares, self.ended = [], []

    def update(self, label, done, total):
        self.shares.append(done / total)

    def event(self, line):
        self.ended.append(line.split()[0])


@pytest.fixture
def run(ray):
    """Run a prepared sweep on it."""

    def run(prepared, folders, **watching):
        return run_plan(prepared.plan, folders, lambda: nullcontext(ray), corpora=prepared.corpus_folders, **watching)

    return run


def text_of(prepared):
    (corpus,) = prepared.corpora.values()
    return corpus


def losses(results):
    return {run_id: result.losses for run_id, result in results.items()}


@pytest.fixture
def undisturbed(small, tmp_path):
    """The sweep's losses, trained one run after the other in this process."""
    prepared = prepare(small, Folders(out=tmp_path / "quiet", name="small"))
    return losses(
        {c.run_id: train(c.spec, text_of(prepared), tmp_path / "quiet" / c.run_id) for c in prepared.plan.cells}
    )


def test_a_sweep_runs_once_and_the_second_time_not_at_all(small, folders, undisturbed, run):
    prepared = prepare(small, folders)
    folders.sweep.mkdir(parents=True)
    watcher = Watcher()
    outcome = run(prepared, folders, progress=watcher)
    assert losses(outcome.results) == undisturbed
    assert not outcome.failed
    assert sorted(watcher.ended) == sorted(cell.run_id for cell in prepared.plan.cells)
    assert watcher.shares[-1] == pytest.approx(1.0)
    assert watcher.shares == sorted(watcher.shares)

    def refuse():
        raise AssertionError("nothing is missing, so no Ray is started")

    again = run_plan(prepared.plan, folders, refuse, corpora=prepared.corpus_folders)
    assert losses(again.results) == undisturbed


def torn_checkpoint(folder):
    checkpoint = folder / "checkpoints" / "00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(b"torn")
    return checkpoint


def test_a_failed_run_is_reported_and_the_others_go_on(small, folders, undisturbed, run):
    prepared = prepare(small, folders)
    folders.sweep.mkdir(parents=True)
    broken = prepared.plan.cells[0]
    checkpoint = torn_checkpoint(folders.run(broken.run_id))
    outcome = run(prepared, folders)
    assert set(outcome.failed) == {broken.run_id}
    assert "can't be read" in outcome.failed[broken.run_id]
    assert len(outcome.results) == len(prepared.plan.cells) - 1
    shutil.rmtree(checkpoint)
    again = run(prepared, folders)
    assert losses(again.results) == undisturbed


def long_sweep(small, checkpoint_seconds):
    changes = {
        "tokens": [64 * 400], "mean_recurrences": [3], "resources": {"checkpoint_seconds": checkpoint_seconds},
        "maximum_epochs": 2,
    }  # fmt: skip
    return validate_sweep({**small.model_dump(), **changes}, source="test")


def test_a_stop_saves_what_no_checkpoint_holds_yet(small, folders, run):
    prepared = prepare(long_sweep(small, checkpoint_seconds=1e6), folders)
    folders.sweep.mkdir(parents=True)
    (cell,) = prepared.plan.cells
    folder = folders.run(cell.run_id)

    def steps_done():
        return max((r["step"] for r in read_journal(folder / "journal.jsonl")[0] if "step" in r), default=0)

    def stop_in_the_middle():
        deadline = time.monotonic() + 60
        while steps_done() < 30 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop_in_the_middle)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        run(prepared, folders)
    stopper.join()
    assert 30 <= newest(folder) < cell.spec.steps
    assert count_saved_runs(prepared.plan, folders) == 1
    assert "stopped" in [r.get("name") for r in read_journal(folder / "journal.jsonl")[0]]


def test_a_killed_worker_and_a_stop_change_nothing(small, folders, tmp_path, run):
    """Kill the worker of a long run, stop the sweep, resume it: the losses are those of an undisturbed run."""
    prepared = prepare(long_sweep(small, checkpoint_seconds=0.2), folders)
    folders.sweep.mkdir(parents=True)
    (cell,) = prepared.plan.cells
    folder = folders.run(cell.run_id)
    expected = train(cell.spec, text_of(prepared), tmp_path / "quiet").losses

    def when_saved(count, action):
        """Call `action` once the run has saved `count` checkpoints more than it has now."""
        start = newest(folder)

        def wait():
            deadline = time.monotonic() + 60
            while newest(folder) <= start + count and time.monotonic() < deadline:
                time.sleep(0.02)
            action()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    killer = when_saved(0, lambda: os.kill(writer_of(folder), signal.SIGKILL))
    stopper = when_saved(80, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(prepared, folders)
    killer.join()
    stopper.join()
    assert not (folder / "result.json").exists()
    assert not folders.stop_file.exists()
    assert 80 < newest(folder) < cell.spec.steps
    outcome = run(prepared, folders)
    assert outcome.results[cell.run_id].losses == expected


def newest(folder):
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)


def writer_of(folder):
    """Return the process that has the run's journal open."""
    target = str((folder / "journal.jsonl").resolve())
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                handles = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
            except OSError:
                continue
            if target in handles:
                return int(process)
    raise AssertionError(f"no process writes {target}")


def test_two_sweeps_share_a_run_that_is_being_trained(small, folders, undisturbed, run):
    """While another process trains one of its runs, a sweep waits for that run's result instead of failing."""
    prepared = prepare(small, folders)
    folders.sweep.mkdir(parents=True)
    shared, *others = prepared.plan.cells
    outcomes = []
    sweep = threading.Thread(target=lambda: outcomes.append(run(prepared, folders)))
    with sole_owner(folders.run(shared.run_id)):
        sweep.start()
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:  # the shared run was given out first: these show that it was tried
            if all((folders.run(cell.run_id) / "result.json").exists() for cell in others):
                break
            time.sleep(0.1)
        time.sleep(2 * engine.BUSY_SECONDS)
        assert sweep.is_alive()
        assert not (folders.run(shared.run_id) / "result.json").exists()
    sweep.join()
    assert losses(outcomes[0].results) == undisturbed


def test_what_failed_before_a_stop_is_known(small, folders, monkeypatch, run):
    prepared = prepare(small, folders)
    folders.sweep.mkdir(parents=True)
    broken = prepared.plan.cells[0]
    torn_checkpoint(folders.run(broken.run_id))

    class StopsAfterAFailure(Progress):
        def event(self, line):
            if "failed: " in line:
                raise KeyboardInterrupt

    outcome = SweepOutcome()
    with pytest.raises(KeyboardInterrupt):
        run(prepared, folders, progress=StopsAfterAFailure(), outcome=outcome)
    assert set(outcome.failed) == {broken.run_id}


def test_a_run_that_fits_no_node_is_refused(simulated, folders, ray):
    hungry = validate_sweep({**simulated.model_dump(), "resources": {"cpus": 100_000}}, source="test")
    folders.sweep.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"ask for 1 process\(es\) of 100000 CPU"):
        run_plan(plan_sweep(hungry, simulated_corpus), folders, lambda: nullcontext(ray), corpora={})


class TestSeveralProcesses:
    """One run in two processes, in a placement group."""

    @pytest.fixture
    def shared_run(self, small):
        content = small.model_dump() | {"tokens": [1024], "mean_recurrences": [3], "resources": {"processes": 2}}
        return validate_sweep(content, source="test")

    def test_a_killed_process_costs_nothing(self, shared_run, folders, run):
        """The losses of one process (to rounding), although one of the two was killed in the middle."""
        prepared = prepare(shared_run, folders)
        folders.sweep.mkdir(parents=True)
        (cell,) = prepared.plan.cells
        alone = train(cell.spec, text_of(prepared), folders.out / "alone")
        journal = folders.run(cell.run_id) / "journal.jsonl"
        killed = threading.Event()

        def kill_one():
            while not killed.is_set():
                if any(r["kind"] == "metrics" for r in read_journal(journal)[0]):
                    os.kill(writer_of(folders.run(cell.run_id)), signal.SIGKILL)
                    killed.set()
                time.sleep(0.01)

        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        outcome = run(prepared, folders)
        killed.set()
        assert not outcome.failed
        assert outcome.results[cell.run_id].losses == pytest.approx(alone.losses, rel=3e-4)
        starts = [r["processes"] for r in read_journal(journal)[0] if r.get("name") in ("started", "resumed")]
        assert starts == [2, 2]
        from ray.util import placement_group_table

        groups = placement_group_table().values()
        assert groups
        assert {group["state"] for group in groups} == {"REMOVED"}

    def test_a_broken_rule_is_reported_as_it_is(self, shared_run, folders, run):
        prepared = prepare(shared_run, folders)
        folders.sweep.mkdir(parents=True)
        (cell,) = prepared.plan.cells
        torn_checkpoint(folders.run(cell.run_id))
        outcome = run(prepared, folders)
        assert "00000001/state.pt can't be read" in outcome.failed[cell.run_id]

    def test_what_no_cluster_can_hold_is_refused(self, shared_run, folders, run):
        content = shared_run.model_dump() | {"resources": {"processes": 1000}, "batch": 1000, "minimum_steps": 1}
        content["tokens"] = [16_000]
        prepared = prepare(validate_sweep(content, source="test"), folders)
        with pytest.raises(ValueError, match=r"a run must fit the cluster, but its resources ask for 1000 process"):
            run(prepared, folders)


TRUNK = {
    "tokens": [256, 512, 1024],  # 4, 8 and 16 steps
    "mean_recurrences": [2],
    "trunk": True,
    "optimizer": {"muon_weight_decay_schedule": "rate"},
    "maximum_epochs": 2,
    "resources": {"peak_flops": 1e9},
}


def test_runs_that_share_a_trunk_give_the_same_run_table(small, tmp_path, new_database, commands_share_ray):
    """Except for the time and the FLOPs trained, which are fewer: the shorter ones train their decay alone."""
    sweep = validate_sweep({**small.model_dump(), **TRUNK}, source="test")
    tables = {}
    for name, shared in (("together", True), ("apart", False)):
        folders = Folders(out=tmp_path / name, name="small")
        new_database(folders.out / "mlflow.db")
        prepared = prepare(sweep.model_copy(update={"trunk": shared}), folders)
        if not shared:
            for cell in prepared.plan.cells:
                train(cell.spec, text_of(prepared), folders.run(cell.run_id))
        tables[name] = train_sweep(prepared, folders).table.drop(columns="seconds")
    trained = tables["together"].pop("flops_trained")
    assert trained.count() == 2
    pd.testing.assert_frame_equal(tables["together"], tables["apart"])
    together = Folders(out=tmp_path / "together", name="small")
    for cell in prepared.plan.cells:
        result = read_result(together.run(cell.run_id))
        assert result.trunk_steps == {4: 3, 8: 5, 16: 0}[cell.spec.steps]
    assert not list(together.out.glob("runs/*/branches/*"))


def test_a_trunks_states_travel_through_the_storage(small, folders, run, tmp_path, monkeypatch):
    monkeypatch.setattr("isoloop.sweeps.execution.trunks.LOOK_SECONDS", 0.1)
    content = {**small.model_dump(), **TRUNK}
    prepared = prepare(validate_sweep(content, source="test"), folders)
    store = RunStore(str(tmp_path / "storage"))
    store.push_corpus(text_of(prepared).folder)
    outcome = run(prepared, folders, run_store=store)
    alone = {c.run_id: train(c.spec, text_of(prepared), tmp_path / c.run_id) for c in prepared.plan.cells}
    assert losses(outcome.results) == losses(alone)
    assert [outcome.results[cell.run_id].trunk_steps for cell in prepared.plan.cells] == [0, 5, 3]
    assert not [path for path in store.remote.list("runs") if "branches" in path]
