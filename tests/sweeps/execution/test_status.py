"""The output of `isoloop status`, from a sweep's folder alone."""

import json
import math

import pytest
from rich.console import Console

from isoloop.sweeps.cli.console import print_status
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.execution.status import read_status, write_manifest
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.trainer.files import sole_owner
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import write_result


@pytest.fixture
def begun(simulated, folders):
    """Make a sweep with one run in each state, and return the states by run id."""
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10, 2e10)}), simulated_corpus)
    write_manifest(plan, folders)
    done, diverged, running, again, failed, *waiting = plan.cells
    for cell in (done, diverged):
        simulate_run(cell.spec, simulated.simulation, cell.run_id, folders.run(cell.run_id))
    exploded = simulate_run(diverged.spec, simulated.simulation, diverged.run_id, folders.run(diverged.run_id))
    write_result(
        folders.run(diverged.run_id),
        exploded.model_copy(update={"status": "diverged", "reason": "loss nan", "loss": None, "losses": {}}),
    )
    journal = Journal(folders.run(running.run_id) / "journal.jsonl")
    journal.event("started", step=0)
    for step in (10, 20, 30):
        journal.metrics(step, {"train_loss": 5.0 - step / 10})
    journal.close()
    state = {
        "running": {running.run_id: {"attempt": 1}},
        "again": {again.run_id: "the worker was lost"},
        "failed": {failed.run_id: "a bug\nsomewhere"},
    }
    folders.state.write_text(json.dumps(state))
    states = {done.run_id: "done", diverged.run_id: "diverged", failed.run_id: "failed"}
    return plan, states, running, again, [cell.run_id for cell in waiting]


def test_every_state_is_shown(begun, folders):
    _, states, running, again, waiting = begun
    with sole_owner(folders.sweep):
        status = read_status(folders)
    assert status.at_work
    assert {run.run_id: run.state for run in status.runs} == {
        **states, running.run_id: "running", again.run_id: "again", **dict.fromkeys(waiting, "waiting")
    }  # fmt: skip
    (now,) = [run for run in status.runs if run.state == "running"]
    assert (now.step, now.steps, now.loss) == (30, running.spec.steps, 2.0)
    assert now.seconds is not None
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

    runs = json.loads(read_status(folders).to_json(), parse_constant=refuse)["runs"]
    assert [(run["step"], run["loss"]) for run in runs if run["run_id"] == running.run_id] == [(40, None)]


def test_without_a_driver_nothing_runs(begun, folders):
    status = read_status(folders)
    assert not status.at_work
    assert status.counts() == {"done": 1, "diverged": 1, "failed": 1, "waiting": 5}


def test_what_is_shown(begun, folders):
    _, _, running, _, waiting = begun
    with sole_owner(folders.sweep):
        status = read_status(folders)
    console = Console(width=200, highlight=False, soft_wrap=True)
    with console.capture() as output:
        print_status(console, status, every_run=False)
    output = output.get()
    assert "of 8 runs 1 done, 1 diverged, 1 failed, 1 running, 1 again, 3 waiting" in output
    for shown in (running.run_id, f"30/{running.spec.steps}", "loss nan", "the worker was lost", "a bug"):
        assert shown in output
    assert "somewhere" not in output
    assert not any(run_id in output for run_id in waiting)
    with console.capture() as whole:
        print_status(console, status, every_run=True)
    assert all(run_id in whole.get() for run_id in waiting)


def test_a_sweep_that_was_never_started_is_named(folders):
    with pytest.raises(ValueError, match="start it with 'isoloop run small'"):
        read_status(folders)
