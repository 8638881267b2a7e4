"""The relay: everything a run writes reaches the store once, whatever happens in between."""

import json

import numpy as np
import pytest

from fitting import check_table
from sweeps import tracking
from sweeps.folders import Folders
from sweeps.grid import plan_sweep
from sweeps.simulated import simulate_run
from sweeps.tracking import Relay, Store
from trainer.journal import Journal, read_journal
from trainer.result import RunResult, read_result, write_result

# MLflow's own use of SQLAlchemy warns.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One sqlite store for the module: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    return f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts"


@pytest.fixture
def store(database, request):
    uri, artifacts = database
    return Store(uri, f"experiment {request.node.name}", artifacts=artifacts)


@pytest.fixture
def plan(simulated):
    return plan_sweep(simulated.model_copy(update={"budgets": (1e10, 2e10)}), data_fingerprint="simulated")


@pytest.fixture
def simulated_folders(tmp_path):
    return Folders(out=tmp_path, name="simulated-grid")


def run_all(plan, folders):
    return [
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id)) for cell in plan.cells
    ]


def history(store, mlflow_run, key):
    return [(m.step, m.value, m.timestamp) for m in store.client.get_metric_history(mlflow_run, key)]


def journaled(folders, cell, key):
    records, _ = read_journal(folders.run(cell.run_id) / "journal.jsonl")
    return [(r["step"], r["values"][key], r["time_ms"]) for r in records if r["kind"] == "metrics"]


def test_everything_arrives_once(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    for _ in range(2):  # the second time there is nothing left to carry
        relay = Relay(store, plan, simulated_folders)
        assert relay.close() == []
    runs = store.cell_runs(plan.sweep.name)
    assert set(runs) == {cell.run_id for cell in plan.cells}
    for cell, result in zip(plan.cells, results, strict=True):
        run = runs[cell.run_id]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == relay.parent
        assert run.data.tags[tracking.SIMULATED] == "true"
        assert "(simulated)" in run.info.run_name
        assert run.data.params["model.width"] == "16"
        assert run.data.params["mean_recurrence"] == str(cell.mean_recurrence)
        curve = history(store, run.info.run_id, "train_loss")
        assert curve == journaled(simulated_folders, cell, "train_loss")
        against_t = {step: value for step, value, _ in history(store, run.info.run_id, tracking.LOSS_BY_RECURRENCE)}
        assert against_t == result.losses
    assert store.client.get_run(relay.parent).info.status == "FINISHED"


def test_the_table_comes_back_from_the_store_alone(store, plan, simulated_folders):
    results = {result.run_id: result for result in run_all(plan, simulated_folders)}
    Relay(store, plan, simulated_folders).close()
    table = check_table(store.read_table(plan))
    assert len(table) == len(plan.cells)
    for row in table.itertuples():
        result = results[row.run_id]
        assert (row.loss, row.tokens, row.flops) == (result.loss, result.tokens, result.flops_exact)
        assert row.loss_T4 == result.losses[4]
        assert row.simulated


def test_a_batch_sent_twice_counts_once(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Relay(store, plan, simulated_folders).close()
    for cursor in simulated_folders.relay.rglob("*.json"):  # killed between the store's yes and the cursor
        content = json.loads(cursor.read_text())
        cursor.write_text(json.dumps({**content, "offset": 0, "done": False}))
    assert Relay(store, plan, simulated_folders).close() == []
    runs = store.cell_runs(plan.sweep.name)
    for cell in plan.cells:
        curve = history(store, runs[cell.run_id].info.run_id, "train_loss")
        assert curve == journaled(simulated_folders, cell, "train_loss")


def test_a_store_that_goes_away_loses_nothing(store, plan, simulated_folders, monkeypatch):
    run_all(plan, simulated_folders)
    working = store.client.log_batch
    luck = np.random.default_rng(0)

    def flaky(*args, **kwargs):
        if luck.random() < 0.4:
            raise ConnectionError("the server is away")
        return working(*args, **kwargs)

    monkeypatch.setattr(store.client, "log_batch", flaky)
    relay = Relay(store, plan, simulated_folders)
    assert relay.close()
    assert relay.last_error == "the server is away"
    for _ in range(60):
        relay = Relay(store, plan, simulated_folders)
        if not relay.close():
            break
    else:
        pytest.fail("the relay never caught up")
    runs = store.cell_runs(plan.sweep.name)
    assert len(runs) == len(plan.cells)
    for cell in plan.cells:
        curve = history(store, runs[cell.run_id].info.run_id, "train_loss")
        assert curve == journaled(simulated_folders, cell, "train_loss")


def test_another_store_gets_everything_from_the_beginning(store, database, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Relay(store, plan, simulated_folders).close()
    uri, artifacts = database
    other = Store(uri, "another experiment", artifacts=artifacts)
    assert Relay(other, plan, simulated_folders).close() == []
    assert len(other.read_table(plan)) == len(plan.cells)


def test_a_store_that_was_emptied_is_filled_again(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Relay(store, plan, simulated_folders).close()
    for run in store.cell_runs(plan.sweep.name).values():
        store.client.delete_run(run.info.run_id)
    assert Relay(store, plan, simulated_folders).close() == []
    assert len(store.read_table(plan)) == len(plan.cells)


def test_stopped_runs_are_closed_and_taken_up_again(store, plan, simulated_folders):
    cell = plan.cells[0]
    journal = Journal(simulated_folders.run(cell.run_id) / "journal.jsonl")
    journal.metrics(1, {"train_loss": 3.0})
    relay = Relay(store, plan, simulated_folders)
    assert relay.close(interrupted=True) == []
    (run,) = store.cell_runs(plan.sweep.name).values()
    assert run.info.status == "KILLED"
    assert store.client.get_run(relay.parent).info.status == "KILLED"
    journal.metrics(2, {"train_loss": 2.0})
    journal.close()
    again = Relay(store, plan, simulated_folders)
    again.close(failed={cell.run_id: "the disk is full"})
    assert again.parent == relay.parent
    (taken_up,) = store.cell_runs(plan.sweep.name).values()
    assert taken_up.info.run_id == run.info.run_id
    assert taken_up.info.status == "FAILED"
    assert taken_up.data.tags[tracking.REASON] == "the disk is full"
    assert [value for _, value, _ in history(store, run.info.run_id, "train_loss")] == [3.0, 2.0]
    (row,) = store.read_table(plan).to_dict("records")
    assert row["status"] == "failed"
    assert row["loss"] is None


def test_a_diverged_run_is_a_row_without_a_loss(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    diverged = RunResult(
        **{**results[0].model_dump(), "status": "diverged", "reason": "loss nan", "loss": None, "losses": {}}
    )
    write_result(simulated_folders.run(diverged.run_id), diverged)
    Relay(store, plan, simulated_folders).close()
    table = check_table(store.read_table(plan)).set_index("run_id")
    assert table.loc[diverged.run_id, "status"] == "diverged"
    assert table["loss"].isna().sum() == 1
    assert table.loc[diverged.run_id, "flops"] == diverged.flops_exact


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "no-such-scheme://host", "sqlite:////proc/no/such/mlflow.db"])
def test_an_unusable_store_is_named(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="an MLflow store must answer at the tracking URI"):
        Store(uri, "x", artifacts=tmp_path)


def test_simulated_runs_draw_the_same_every_time(plan, simulated_folders, tmp_path):
    first = run_all(plan, simulated_folders)
    second = run_all(plan, Folders(out=tmp_path / "other", name="x"))
    assert first == second
    assert all(result.simulated for result in first)
    assert read_result(simulated_folders.run(plan.cells[0].run_id)) == first[0]
