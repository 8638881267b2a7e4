"""The state of a sweep, read from its folder alone: states, speed, time left, and what is read again."""

import json
import math
import time
from dataclasses import replace
from unittest import mock

import pytest

from isoloop.sweeps.execution import presence
from isoloop.sweeps.execution import status as status_module
from isoloop.sweeps.execution.presence import last_driver, sole_driver
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.execution.status import StatusReader, read_status, write_manifest
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.files import sole_owner
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import write_result


@pytest.fixture
def begun(simulated, folders):
    """Make a sweep with one run in each state, and return the states by run id."""
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10, 2e10)}), simulated_corpus)
    write_manifest(plan.cells, folders)
    done, diverged, running, again, failed, *waiting = plan.cells
    for cell in (done, diverged):
        simulate_run(cell.spec, simulated.simulation, cell.run_id, folders.run(cell.run_id))
    exploded = simulate_run(diverged.spec, simulated.simulation, diverged.run_id, folders.run(diverged.run_id))
    write_result(
        folders.run(diverged.run_id),
        exploded.model_copy(update={"status": "diverged", "reason": "loss nan", "loss": None, "losses": {}}),
    )
    write_journal(folders.run(running.run_id), [(time.time() - 40 + step, step) for step in (0, 10, 20, 30)])
    states = {done.run_id: "done", diverged.run_id: "diverged", failed.run_id: "failed"}
    return plan, states, running, again, [cell.run_id for cell in waiting]


def write_state(begun, folders):
    """Write what the driver says of the runs."""
    _, states, running, again, waiting = begun
    (failed,) = [run_id for run_id, state in states.items() if state == "failed"]
    state = {
        "running": {running.run_id: {"attempt": 1, "node": "gpu-7"}},
        "queued": waiting[:1],
        "again": {again.run_id: "the worker was lost"},
        "failed": {failed: "a bug\nsomewhere"},
        "note": "1 run waits in Ray for 1 GPU; 0 of 1 GPUs are free",
    }
    folders.state.write_text(json.dumps(state))


def write_journal(folder, points):
    """Write a journal of (seconds, step): the first is the start of an attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "journal.jsonl").open("a") as file:
        for index, (seconds, step) in enumerate(points):
            record = {"time_ms": round(1000 * seconds), "step": step}
            record |= {"kind": "metrics", "values": {"train_loss": 5.0 - step / 10}}
            record |= {"kind": "event", "name": "started", "values": {}} if index == 0 else {}
            file.write(json.dumps(record) + "\n")


def test_every_state_is_shown(begun, folders):
    _, states, running, again, waiting = begun
    with sole_driver(folders, command="isoloop run small"):
        write_state(begun, folders)
        status = read_status(folders)
    assert status.at_work
    assert status.driver.command == "isoloop run small"
    assert {run.run_id: run.state for run in status.runs} == {
        **states, running.run_id: "running", again.run_id: "again", **dict.fromkeys(waiting, "waiting")
    }  # fmt: skip
    (now,) = [run for run in status.runs if run.state == "running"]
    assert (now.step, now.steps, now.loss, now.losses, now.node) == (
        30, running.spec.steps, 2.0, (4.0, 3.0, 2.0), "gpu-7"
    )  # fmt: skip
    assert now.seconds == pytest.approx((running.spec.steps - 40) / 1, abs=2)
    assert [run.run_id for run in status.runs if run.reason == "in Ray's queue"] == waiting[:1]
    assert status.note.startswith("1 run waits in Ray")
    assert 0 < status.share < 1
    assert json.loads(status.to_json())["name"] == folders.name


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_null_for_programs(begun, folders, loss):
    running = begun[2]
    journal = Journal(folders.run(running.run_id) / "journal.jsonl")
    journal.metrics(40, {"train_loss": loss})
    journal.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    with sole_driver(folders):
        write_state(begun, folders)
        runs = json.loads(read_status(folders).to_json(), parse_constant=refuse)["runs"]
    (run,) = [run for run in runs if run["run_id"] == running.run_id]
    assert (run["step"], run["loss"], run["losses"]) == (40, None, [4.0, 3.0, 2.0])


def test_without_a_driver_nothing_runs(begun, folders):
    with sole_driver(folders):
        write_state(begun, folders)
    status = read_status(folders)
    assert not status.at_work
    assert (status.note, status.flops_per_second, status.seconds_left) == (None, None, None)
    assert status.counts() == {"done": 1, "diverged": 1, "failed": 1, "waiting": 5}


def test_a_new_driver_forgets_the_failures_of_the_last(begun, folders):
    with sole_driver(folders):
        write_state(begun, folders)
    with sole_driver(folders):
        assert "failed" not in read_status(folders).counts()


def test_the_state_file_of_an_engine_that_says_less_is_read(begun, folders):
    with sole_driver(folders):
        folders.state.write_text(json.dumps({"running": {begun[2].run_id: {"attempt": 1}}}))
        assert read_status(folders).counts()["running"] == 1


def test_a_sweep_that_was_never_started_is_named(folders):
    with pytest.raises(ValueError, match="start it with 'isoloop run small'"):
        read_status(folders)


def test_speed_and_time_left_follow_the_journals(simulated, folders):
    """Two runs at 2 steps per second; the first record came long after the driver's start, and the last is 2 s old."""
    plan = plan_sweep(simulated, simulated_corpus)
    write_manifest(plan.cells, folders)
    first, second, *_ = plan.cells
    begin = time.time() + 1000
    for cell in (first, second):
        write_journal(folders.run(cell.run_id), [(begin + 5 * i, 10 * i) for i in range(11)])
    with sole_driver(folders):
        folders.state.write_text(json.dumps({"running": {first.run_id: {}, second.run_id: {}}}))
        status = StatusReader(folders).read(now=begin + 52)
        later = StatusReader(folders).read(now=begin + 500)
    per_step = [cell.flops / cell.spec.steps for cell in (first, second)]
    assert status.flops_per_second == pytest.approx(2 * sum(per_step))
    assert [run.flops_per_second for run in status.runs[:2]] == pytest.approx([2 * flops for flops in per_step])
    assert status.runs[0].seconds == pytest.approx((first.spec.steps - 104) / 2)
    left = plan.flops - 100 * sum(per_step)
    assert status.seconds_left == pytest.approx(left / status.flops_per_second)
    # Runs that write nothing for long make no speed, and the time left isn't known.
    assert (later.flops_per_second, later.seconds_left) == (None, None)


def test_the_sweep_lasts_as_long_as_its_longest_running_run(simulated, folders, tmp_path):
    """Nearly all speed was that of a run that has just ended."""
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10,), "mean_recurrences": (1, 8)}), simulated_corpus)
    write_manifest(plan.cells, folders)
    quick, slow = plan.cells
    begin = time.time() + 1000
    with sole_driver(folders):
        folders.state.write_text(json.dumps({"running": {quick.run_id: {}, slow.run_id: {}}}))
        write_journal(folders.run(quick.run_id), [(begin + i, i * quick.spec.steps // 10) for i in range(11)])
        write_journal(folders.run(slow.run_id), [(begin + i, i) for i in range(11)])
        reader = StatusReader(folders)
        reader.read(now=begin + 10)
        result = simulate_run(quick.spec, simulated.simulation, quick.run_id, tmp_path / "elsewhere")
        write_result(folders.run(quick.run_id), result)
        status = reader.read(now=begin + 10)
    assert status.counts() == {"done": 1, "running": 1}
    assert status.seconds_left == pytest.approx(slow.spec.steps - 10)


def test_time_that_the_sweep_stood_still_does_not_count(simulated, folders):
    """A restart: the run resumes at an older step, and only what it does since then is speed."""
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10,), "mean_recurrences": (8,)}), simulated_corpus)
    write_manifest(plan.cells, folders)
    (cell,) = plan.cells
    now = time.time() + 1000
    write_journal(folders.run(cell.run_id), [(now - 5000 + i, i) for i in range(31)])
    write_journal(folders.run(cell.run_id), [(now - 20, 20), (now - 10, 40), (now, 60)])
    with sole_driver(folders):
        folders.state.write_text(json.dumps({"running": {cell.run_id: {}}}))
        status = StatusReader(folders).read(now=now)
    assert status.flops_per_second == pytest.approx(2 * cell.flops / cell.spec.steps)
    assert status.speed_seconds == pytest.approx(20, abs=0.01)


def test_runs_that_ended_are_read_once_and_journals_read_on(begun, folders, monkeypatch):
    _, states, running, _, _ = begun
    read, bytes_read = [], []

    def read_result(folder):
        read.append(folder.name)
        return original_read_result(folder)

    original_read_result = status_module.read_result
    monkeypatch.setattr(status_module, "read_result", read_result)
    with sole_driver(folders):
        write_state(begun, folders)
        reader = StatusReader(folders)
        first = reader.read()
        assert {run_id for run_id, state in states.items() if state != "failed"} <= set(read)
        read.clear()
        write_journal(folders.run(running.run_id), [(time.time(), 30), (time.time(), 40)])
        original = status_module.JournalReader.read
        monkeypatch.setattr(
            status_module.JournalReader, "read",
            lambda self, now: (before := self.offset, original(self, now), bytes_read.append(self.offset - before)),
        )  # fmt: skip
        second = reader.read()
    # No folder but that of the run that goes on is looked into: others are done, or not begun.
    assert read == [running.run_id]
    assert 0 < bytes_read[0] < 400
    assert first.counts() == second.counts()
    assert [run.step for run in second.runs if run.state == "running"] == [40]


def test_another_machine_sees_the_driver_by_its_signs(begun, folders, monkeypatch):
    """Locks need not reach other machines: there the age of the last sign tells, and here the lock alone."""
    monkeypatch.setattr(presence.socket, "gethostname", lambda: "far-away")
    with sole_driver(folders):
        pass
    written = json.loads(folders.driver.read_text())
    assert not last_driver(folders).at_work
    folders.driver.write_text(json.dumps({**written, "at_work": True}))
    assert not last_driver(folders).at_work  # on the same machine, and its lock is free
    with sole_owner(folders.sweep):
        assert last_driver(folders).at_work
    monkeypatch.setattr(presence.socket, "gethostname", lambda: "here")
    assert last_driver(folders).at_work
    assert read_status(folders).at_work
    signed = time.time() - 2 * presence.STALE_SECONDS
    folders.driver.write_text(json.dumps({**written, "at_work": True, "last_sign": signed}))
    assert not last_driver(folders).at_work


def test_a_folder_of_somebody_else_is_judged_by_signs(begun, folders, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder / "lock"))

    monkeypatch.setattr(presence, "is_owned", refuse)
    with sole_driver(folders):
        assert read_status(folders).at_work
    assert not read_status(folders).at_work


def test_a_driver_signs_again_and_again(folders, monkeypatch):
    monkeypatch.setattr(presence, "SIGN_SECONDS", 0.01)
    with sole_driver(folders):
        first = last_driver(folders).last_sign
        deadline = time.monotonic() + 30
        while last_driver(folders).last_sign == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not last_driver(folders).at_work


def test_who_sees_only_the_storage_fetches_what_the_driver_says(begun, folders, tmp_path):
    """The driver publishes plan, signs and state with its next sign, and once more at its end."""
    storage, elsewhere = str(tmp_path / "storage"), replace(folders, out=tmp_path / "elsewhere")
    done, running, store = begun[0].cells[0], begun[2], RunStore(storage)
    for cell in (done, running):
        store.push_run(folders.run(cell.run_id), cell.run_id)
    with pytest.raises(ValueError, match="must have been started"):
        StatusReader(elsewhere, RunStore(storage))
    with mock.patch.object(presence, "SIGN_SECONDS", 0.01), sole_driver(folders, storage=storage):
        write_state(begun, folders)
        deadline = time.monotonic() + 30
        while store.remote.read("sweeps/small/state.json") is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        reader = StatusReader(elsewhere, RunStore(storage))
        status = reader.read()
    assert status.at_work
    # The diverged run isn't published, and so not known to have ended.
    assert status.counts() == {"done": 1, "failed": 1, "running": 1, "again": 1, "waiting": 4}
    assert [run.step for run in status.runs if run.state == "running"] == [30]
    assert reader.read().at_work  # it fetches every ten seconds
    with mock.patch.object(status_module, "FETCH_SECONDS", 0.0):
        assert not reader.read().at_work
