"""The uploader sends everything a run writes to the store once, whatever happens in between."""

import dataclasses
import json
import re
import time
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from isoloop.fitting import check_table
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.tracking import schema as record
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.uploader import Uploader
from isoloop.trainer.run.journal import Journal, read_journal
from isoloop.trainer.run.result import RunResult, read_result, write_result

CURVE = record.metric_name("train_loss")
# MLflow's own use of SQLAlchemy warns.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def database(tmp_path_factory, new_database):
    """One sqlite store for the module."""
    folder = tmp_path_factory.mktemp("store")
    return new_database(folder / "mlflow.db"), folder / "artifacts"


@pytest.fixture
def store(database, request):
    uri, artifacts = database
    return TrackingStore(uri, f"experiment {request.node.name}", artifacts=artifacts)


@pytest.fixture
def plan(simulated):
    """Four cells."""
    changes = {"budgets": (1e10, 2e10), "mean_recurrences": (1, 4)}
    return plan_sweep(simulated.model_copy(update=changes), simulated_corpus)


@pytest.fixture
def simulated_folders(tmp_path):
    return Folders(out=tmp_path, name="simulated-grid")


def run_all(plan, folders):
    return [
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id)) for cell in plan.cells
    ]


def history(store, mlflow_run, key):
    return [(m.step, m.value, m.timestamp) for m in store.client.get_metric_history(mlflow_run, key)]


def all_children(store):
    found = store.client.search_runs([store.experiment_id])
    return [run for run in found if run.data.tags[record.KIND] == "run"]


def journaled(folders, cell, key):
    records, _ = read_journal(folders.run(cell.run_id) / "journal.jsonl")
    return [(r["step"], r["values"][key], r["time_ms"]) for r in records if r["kind"] == "metrics"]


def test_everything_arrives_once(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    for _ in range(2):  # the second time there is nothing left to carry
        uploader = Uploader(store, plan, simulated_folders)
        assert uploader.close() == []
    runs = store.cell_runs(plan.sweep.name)
    assert set(runs) == {cell.run_id for cell in plan.cells}
    for cell, result in zip(plan.cells, results, strict=True):
        run = runs[cell.run_id]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == uploader.parent
        assert run.data.tags[record.SIMULATED] == "true"
        assert run.info.run_name.endswith(f" µ={cell.mean_recurrence} (simulated)")
        assert run.data.params["model.width"] == "16"
        assert run.data.tags["isoloop.column.budget"] == str(cell.budget)
        assert run.data.metrics["flops_exact"] == result.flops_exact
        assert run.data.params["mean_recurrence"] == str(cell.mean_recurrence)
        curve = history(store, run.info.run_id, CURVE)
        assert curve == journaled(simulated_folders, cell, "train_loss")
        against_t = {step: value for step, value, _ in history(store, run.info.run_id, record.LOSS_AT_T)}
        assert against_t == result.losses
        for key in run.data.metrics:
            steps = [step for step, _, _ in history(store, run.info.run_id, key)]
            assert len(set(steps)) == len(steps), key
    parent = store.client.get_run(uploader.parent)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["isoloop.accounting"] == "exact"
    assert "budgets" in parent.data.tags["mlflow.note.content"]


def test_the_table_comes_back_from_the_store_alone(store, plan, simulated_folders):
    results = {result.run_id: result for result in run_all(plan, simulated_folders)}
    Uploader(store, plan, simulated_folders).close()
    table = check_table(store.read_table(plan.sweep.name))
    assert len(table) == len(plan.cells)
    for row in table.itertuples():
        result = results[row.run_id]
        assert (row.loss, row.tokens, row.flops) == (result.loss, result.tokens, result.flops_exact)
        assert row.loss_T4 == result.losses[4]
        assert row.simulated


def test_runs_that_older_versions_recorded_give_the_same_table(store, database, plan, simulated_folders):
    """Older versions had curves without sections and a metric for each T; one of these runs has not ended yet."""
    results = run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    uri, artifacts = database
    older = TrackingStore(uri, "of an older version", artifacts=artifacts)
    parent = older.sweep_run(plan, {})
    for cell, result in zip(plan.cells, results, strict=True):
        mlflow_run = older.make_cell_run(plan, cell, record.cell_tags(plan, cell), parent)
        older.send(mlflow_run, points=[("tokens", 1.0, 1, 1), ("train_loss", 9.0, 1, 1)])
        if cell is not plan.cells[0]:
            numbers = record.result_metrics(result).items()
            older.send(mlflow_run, points=[(name, value, 2, result.steps) for name, value in numbers])
            older.close_run(mlflow_run, result.status, None, "FINISHED")
    assert Uploader(older, plan, simulated_folders).close() == []
    tables = [each.read_table(plan.sweep.name).to_csv(index=False) for each in (older, store)]
    assert tables[0] == tables[1]


def test_another_process_may_tag_a_new_experiment_at_the_same_time(database, tmp_path, monkeypatch):
    """MLflow refuses a tag that somebody has set since it looked for it; that is a fault only if it isn't ours."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    (uri, _), set_tag = database, MlflowClient.set_experiment_tag

    def refuse(client, experiment, key, value, *, others=None):
        set_tag(client, experiment, key, others or value)
        raise MlflowException("UNIQUE constraint failed: experiment_tags.key")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    tags = TrackingStore(uri, "at once", artifacts=tmp_path).client.get_experiment_by_name("at once").tags
    assert "at once" in tags.values()
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", partialmethod(refuse, others="something else"))
    with pytest.raises(ValueError, match="UNIQUE constraint failed"):
        TrackingStore(uri, "refused", artifacts=tmp_path)


def test_only_curves_have_steps(store, plan, simulated_folders):
    """MLflow draws a metric of one point as a bar if its step is 0, else as a curve of one point."""
    (result, *_) = run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    run = store.cell_runs(plan.sweep.name)[result.run_id]
    points = {name: history(store, run.info.run_id, name) for name in run.data.metrics}
    single = {name for name, values in points.items() if len(values) == 1}
    assert single >= {"loss", "flops_exact", "seconds"}
    assert {points[name][0][0] for name in single} == {0}
    assert {"training_loss", "train_loss"}.isdisjoint(points)


def test_a_page_shows_the_runs_of_the_sweep(store, plan, simulated_folders):
    """The view that the sweep's address names: MLflow finds the runs by its filter, and they have its columns."""
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    Uploader(
        store, dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"name": "other"})), simulated_folders
    ).close()
    key = store.page_of(plan.sweep.name).rpartition("=")[2]
    view = json.loads(store.client.get_experiment(store.experiment_id).tags[f"{record.VIEW}{key}"])
    state = json.loads(view["state"])
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    shown = store.client.search_runs([store.experiment_id], state["searchFilter"], order_by=[order])
    assert {run.data.tags[record.RUN_ID] for run in shown} == {cell.run_id for cell in plan.cells}
    losses = [run.data.metrics["loss"] for run in shown]
    assert losses == sorted(losses)
    for column in state["selectedColumns"]:
        kind, name = re.fullmatch(r"(\w+)\.`(.+)`", column).groups()
        assert all(name in getattr(run.data, kind) for run in shown), column


def test_a_sweep_has_its_answer(store, plan, simulated_folders, tmp_path):
    parent = Uploader(store, plan, simulated_folders).parent
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "report.html").write_text("<p>")
    problem = store.record_answer(
        parent, plan.sweep, numbers={"gamma_mu": 0.4, "gamma_mu/model.size=140m": 0.3},
        intervals={"gamma_mu": (0.35, 0.45), "gamma_mu/model.size=140m": (0.2, 0.4)}, sentences=["0.4 it is."],
        results=tmp_path / "results",
    )  # fmt: skip
    assert problem is None
    data = store.client.get_run(parent).data
    assert data.metrics == {"gamma_mu": 0.4, "gamma_mu/model.size_140m": 0.3}
    assert data.tags["isoloop.interval.gamma_mu"] == "0.35 to 0.45"
    assert data.tags["isoloop.interval.gamma_mu/model.size_140m"] == "0.2 to 0.4"
    assert data.tags[record.NOTE].startswith("- 0.4 it is.\n\n```yaml\n")
    assert [file.path for file in store.client.list_artifacts(parent)] == ["report.html"]


def test_a_branch_has_the_flops_of_its_own_steps_in_the_run_table(plan, tmp_path):
    """By the accounting of the table, in the proportion that the trainer counted exactly."""
    parts = []
    for cell, share in zip(plan.cells, (None, 0.25, None, 0.5), strict=True):
        result = simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, tmp_path / cell.run_id)
        if share is not None:
            trained = share * result.flops_exact
            result = result.model_copy(update={"trunk_steps": 1, "flops_trained": trained})
        tags = record.cell_tags(plan, cell) | {record.RUN_ID: cell.run_id, record.OUTCOME: "finished"}
        tags[f"{record.COLUMN}accounting"] = "parcae-release"
        parts.append((tags, record.result_metrics(result)))
    table = record.run_table(parts).set_index("run_id").loc[[cell.run_id for cell in plan.cells]]
    np.testing.assert_allclose(table["flops_trained"] / table["flops"], [np.nan, 0.25, np.nan, 0.5])
    assert "flops_trained" not in record.run_table([parts[0], parts[2]])


def test_skipped_steps_are_a_column_where_there_are_any(plan, tmp_path):
    parts = []
    for cell, skipped in zip(plan.cells, (0, 3, 0, 0), strict=True):
        result = simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, tmp_path / cell.run_id)
        tags = record.cell_tags(plan, cell) | {record.RUN_ID: cell.run_id, record.OUTCOME: "finished"}
        points = record.result_points(result.model_copy(update={"skipped_steps": skipped}), ())
        parts.append((tags, {name: value for name, value, _ in points}))
    table = record.run_table(parts).set_index("run_id").loc[[cell.run_id for cell in plan.cells]]
    np.testing.assert_equal(table["skipped_steps"].to_numpy(), [np.nan, 3, np.nan, np.nan])
    assert "skipped_steps" not in record.run_table(parts[:1])


def test_a_batch_sent_twice_counts_once(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    for cursor in simulated_folders.upload_cursors.rglob("*.json"):  # killed between the store's yes and the cursor
        content = json.loads(cursor.read_text())
        cursor.write_text(json.dumps({**content, "offset": 0, "done": False}))
    assert Uploader(store, plan, simulated_folders).close() == []
    runs = store.cell_runs(plan.sweep.name)
    for cell in plan.cells:
        curve = history(store, runs[cell.run_id].info.run_id, CURVE)
        assert curve == journaled(simulated_folders, cell, "train_loss")


def test_a_store_that_goes_away_loses_nothing(store, simulated, simulated_folders, monkeypatch):
    """Eight cells, so that the uploader surely meets a call that fails."""
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10, 2e10)}), simulated_corpus)
    run_all(plan, simulated_folders)
    working = store.client.log_batch
    rng = np.random.default_rng(0)

    def flaky(*args, **kwargs):
        if rng.random() < 0.4:
            raise ConnectionError("the server is away")
        return working(*args, **kwargs)

    first = Uploader(store, plan, simulated_folders)
    monkeypatch.setattr(store.client, "log_batch", flaky)
    assert first.close()
    assert first.last_error == "the server is away"
    for _ in range(200):
        try:
            if not Uploader(store, plan, simulated_folders).close():
                break
        except ConnectionError:
            continue
    else:
        pytest.fail("the uploader never caught up")
    assert len(all_children(store)) == len(plan.cells)
    runs = store.cell_runs(plan.sweep.name)
    for cell in plan.cells:
        curve = history(store, runs[cell.run_id].info.run_id, CURVE)
        assert curve == journaled(simulated_folders, cell, "train_loss")


def test_another_store_gets_everything_from_the_beginning(store, database, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    uri, artifacts = database
    other = TrackingStore(uri, "another experiment", artifacts=artifacts)
    assert Uploader(other, plan, simulated_folders).close() == []
    assert len(other.read_table(plan.sweep.name)) == len(plan.cells)


def test_a_store_that_was_emptied_is_filled_again(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    for run in store.cell_runs(plan.sweep.name).values():
        store.client.delete_run(run.info.run_id)
    assert Uploader(store, plan, simulated_folders).close() == []
    assert len(store.read_table(plan.sweep.name)) == len(plan.cells)


def test_stopped_runs_are_closed_and_taken_up_again(store, plan, simulated_folders):
    cell = plan.cells[0]
    journal = Journal(simulated_folders.run(cell.run_id) / "journal.jsonl")
    journal.metrics(1, {"train_loss": 3.0})
    uploader = Uploader(store, plan, simulated_folders)
    assert uploader.close(stopped="KILLED") == []
    (run,) = store.cell_runs(plan.sweep.name).values()
    assert (run.info.status, run.data.tags[record.OUTCOME]) == ("KILLED", "stopped")
    assert store.client.get_run(uploader.parent).info.status == "KILLED"
    journal.metrics(2, {"train_loss": 2.0})
    journal.close()
    again = Uploader(store, plan, simulated_folders)
    again.close(failed={cell.run_id: "the disk is full"})
    assert again.parent == uploader.parent
    (taken_up,) = store.cell_runs(plan.sweep.name).values()
    assert taken_up.info.run_id == run.info.run_id
    assert taken_up.info.status == "FAILED"
    assert taken_up.data.tags[record.REASON] == "the disk is full"
    assert [value for _, value, _ in history(store, run.info.run_id, CURVE)] == [3.0, 2.0]
    (row,) = store.read_table(plan.sweep.name).to_dict("records")
    assert row["status"] == "failed"
    assert row["loss"] is None


def test_a_diverged_run_is_a_row_without_a_loss(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    diverged = RunResult(
        **{**results[0].model_dump(), "status": "diverged", "reason": "loss nan", "loss": None, "losses": {}}
    )
    write_result(simulated_folders.run(diverged.run_id), diverged)
    Uploader(store, plan, simulated_folders).close()
    table = check_table(store.read_table(plan.sweep.name)).set_index("run_id")
    assert table.loc[diverged.run_id, "status"] == "diverged"
    assert table["loss"].isna().sum() == 1
    assert table.loc[diverged.run_id, "flops"] == diverged.flops_exact


def test_epochs_are_columns_of_runs_that_know_their_text(store, plan, simulated_folders):
    result, *_ = run_all(plan, simulated_folders)
    write_result(simulated_folders.run(result.run_id), result.model_copy(update={"unique_tokens": result.tokens // 4}))
    Uploader(store, plan, simulated_folders).close()
    table = check_table(store.read_table(plan.sweep.name)).set_index("run_id")
    assert table.loc[result.run_id, ["unique_tokens", "epochs"]].tolist() == [result.tokens // 4, 4]
    assert table["epochs"].isna().sum() == len(table) - 1


def curve_lengths(store, plan):
    runs = store.cell_runs(plan.sweep.name)
    assert len(all_children(store)) == len(plan.cells)
    return {len(history(store, run.info.run_id, CURVE)) for run in runs.values()}


def test_the_same_runs_from_another_folder_are_not_recorded_twice(store, plan, simulated_folders, tmp_path):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    once = curve_lengths(store, plan)
    other = Folders(out=tmp_path / "colleague", name=simulated_folders.name)
    run_all(plan, other)
    assert Uploader(store, plan, other).close() == []
    assert curve_lengths(store, plan) == once


def test_a_journal_begun_anew_is_carried_over_from_where_the_store_is(store, plan, simulated_folders):
    cell = plan.cells[0]
    path = simulated_folders.run(cell.run_id) / "journal.jsonl"
    for values in ({1: 3.0, 2: 2.0}, {1: 3.0, 2: 2.0, 3: 1.5}):  # the run's folder is lost in between
        path.unlink(missing_ok=True)
        journal = Journal(path)
        for step, value in values.items():
            journal.metrics(step, {"train_loss": value})
        journal.close()
        assert Uploader(store, plan, simulated_folders).close(stopped="KILLED") == []
    (run,) = store.cell_runs(plan.sweep.name).values()
    assert [(step, value) for step, value, _ in history(store, run.info.run_id, CURVE)] == [
        (1, 3.0), (2, 2.0), (3, 1.5),
    ]  # fmt: skip


def test_one_bad_record_does_not_stop_the_others(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    bad = {plan.cells[0].run_id, plan.cells[1].run_id, plan.cells[2].run_id}
    for run_id in bad:
        (simulated_folders.run(run_id) / "result.json").write_text("{}")
    uploader = Uploader(store, plan, simulated_folders)
    assert set(uploader.close()) == bad
    assert store.client.get_run(uploader.parent).info.status == "FAILED"
    table = store.read_table(plan.sweep.name).set_index("run_id")
    for result in results:
        assert result.run_id in bad or table.loc[result.run_id, "loss"] == result.loss


def outcomes(store, plan):
    runs = store.cell_runs(plan.sweep.name).values()
    return {(run.info.status, run.data.tags[record.OUTCOME]) for run in runs}


def test_a_finished_record_outlives_a_failure_elsewhere(store, plan, simulated_folders, tmp_path):
    """Another folder's copy of the sweep fails or is stopped after ours has finished: the results stay."""
    other = Folders(out=tmp_path / "colleague", name=simulated_folders.name)
    late = Uploader(store, plan, other)
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    journal = Journal(other.run(plan.cells[0].run_id) / "journal.jsonl")
    journal.metrics(1, {"train_loss": 9.0})
    journal.close()
    late.close(stopped="KILLED", failed={plan.cells[1].run_id: "out of memory"})
    assert outcomes(store, plan) == {("FINISHED", "finished")}
    check_table(store.read_table(plan.sweep.name))


def test_a_damaged_record_is_repaired(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    for run in store.cell_runs(plan.sweep.name).values():
        store.close_run(run.info.run_id, "failed", "by hand", "KILLED")
    assert Uploader(store, plan, simulated_folders).close() == []
    assert outcomes(store, plan) == {("FINISHED", "finished")}


def test_results_arrive_without_their_journals_and_cursors(store, plan, simulated_folders):
    results = run_all(plan, simulated_folders)
    (simulated_folders.run(plan.cells[0].run_id) / "journal.jsonl").unlink()
    Uploader(store, plan, simulated_folders).close()
    for cursor in simulated_folders.upload_cursors.rglob("*.json"):
        cursor.write_text("")
    assert Uploader(store, plan, simulated_folders).close() == []
    table = check_table(store.read_table(plan.sweep.name)).set_index("run_id")
    assert {result.run_id: result.loss for result in results} == dict(table["loss"])
    assert len(all_children(store)) == len(plan.cells)


def test_a_run_that_failed_before_its_journal_is_a_row(store, plan, simulated_folders):
    run_id = plan.cells[0].run_id
    assert Uploader(store, plan, simulated_folders).close(failed={run_id: "no such corpus"}) == []
    (row,) = store.read_table(plan.sweep.name).to_dict("records")
    assert (row["run_id"], row["status"]) == (run_id, "failed")
    simulate_run(plan.cells[0].spec, plan.sweep.simulation, run_id, simulated_folders.run(run_id))
    Uploader(store, plan, simulated_folders).close()
    (run,) = store.cell_runs(plan.sweep.name).values()
    assert run.data.tags[record.OUTCOME] == "finished"
    assert run.data.tags[record.REASON] == ""


def test_the_same_runs_under_another_accounting(store, simulated, tmp_path):
    """A run knows nothing of accounting, so its row must follow the plan that asks."""
    grid = simulated.model_copy(update={"budgets": None, "tokens": (64_000, 128_000)})
    folders = Folders(out=tmp_path, name="x")
    flops = {}
    for accounting in ("exact", "parcae-release"):
        plan = plan_sweep(grid.model_copy(update={"accounting": accounting}), simulated_corpus)
        run_all(plan, folders)
        assert Uploader(store, plan, folders).close() == []
        table = check_table(store.read_table(plan.sweep.name))
        assert set(table["accounting"]) == {accounting}
        flops[accounting] = table.set_index("run_id")["flops"]
    assert set(flops["exact"].index) == set(flops["parcae-release"].index)
    assert (flops["exact"] != flops["parcae-release"]).all()


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "no-such-scheme://host", "sqlite://", "sqlite:////proc/no/such/mlflow.db"]
)
def test_an_unusable_store_is_named(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="tracking URI"):
        TrackingStore(uri, "x", artifacts=tmp_path)


def test_simulated_runs_draw_the_same_every_time(plan, simulated_folders, tmp_path):
    first = run_all(plan, simulated_folders)
    second = run_all(plan, Folders(out=tmp_path / "other", name="x"))
    assert first == second
    assert all(result.simulated for result in first)
    assert read_result(simulated_folders.run(plan.cells[0].run_id)) == first[0]


def test_settled_runs_cost_nothing_at_a_restart(store, plan, simulated_folders, monkeypatch):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    for cursor in simulated_folders.upload_cursors.rglob("*.json"):
        cursor.unlink()
    calls = []
    for name in ("search_runs", "get_run", "get_metric_history", "log_batch", "create_run"):
        working = getattr(store.client, name)
        monkeypatch.setattr(store.client, name, lambda *a, _n=name, _w=working, **k: (calls.append(_n), _w(*a, **k))[1])
    assert Uploader(store, plan, simulated_folders).close() == []
    assert calls == ["search_runs", "log_batch", "search_runs"]  # the parent, its tags, all children at once


def test_training_does_not_wait_for_the_list_of_recorded_runs(store, plan, simulated_folders, monkeypatch):
    read, cell_runs = [], store.cell_runs
    monkeypatch.setattr(store, "cell_runs", lambda sweep: read.append(sweep) or cell_runs(sweep))
    uploader = Uploader(store, plan, simulated_folders)
    assert read == []
    run_all(plan, simulated_folders)
    assert uploader.close() == []
    assert read == [plan.sweep.name]
    assert set(cell_runs(plan.sweep.name)) == {cell.run_id for cell in plan.cells}


def test_runs_that_nobody_started_are_not_looked_at(store, plan, simulated_folders, monkeypatch):
    read = []
    monkeypatch.setattr("isoloop.sweeps.tracking.uploader.read_result", lambda folder: read.append(folder.name))
    uploader = Uploader(store, plan, simulated_folders)
    assert uploader._upload_round() == []
    assert read == []
    uploader.watch(plan.cells[1].run_id)
    uploader._upload_round()
    assert read == [plan.cells[1].run_id]
    began = time.monotonic()
    assert uploader.close() == []
    assert time.monotonic() - began < 1.0


def test_a_cell_may_be_added_while_the_uploader_runs(store, plan, simulated_folders):
    begun = dataclasses.replace(plan, cells=plan.cells[:1])
    uploader = Uploader(store, begun, simulated_folders)
    for cell in plan.cells[1:3]:
        uploader.add(cell)
    run_all(plan, simulated_folders)
    assert uploader.close() == []
    assert set(store.read_table(plan.sweep.name)["run_id"]) == {cell.run_id for cell in plan.cells[:3]}


def test_cells_that_left_the_grid_are_marked_and_come_back(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    smaller = dataclasses.replace(plan, cells=plan.cells[2:])
    Uploader(store, smaller, simulated_folders).close()
    assert len(all_children(store)) == len(plan.cells)
    assert set(store.read_table(plan.sweep.name)["run_id"]) == {cell.run_id for cell in smaller.cells}
    Uploader(store, plan, simulated_folders).close()
    assert len(store.read_table(plan.sweep.name)) == len(plan.cells)


def test_axes_are_columns_and_follow_the_plan(store, plan, simulated_folders):
    run_all(plan, simulated_folders)
    names = ["1e3", "concat+norm"]

    def with_axes(make):
        cells = [dataclasses.replace(cell, axes=make(index)) for index, cell in enumerate(plan.cells)]
        return dataclasses.replace(plan, cells=tuple(cells))

    first = with_axes(lambda i: {"variant": names[i % 2], "optimizer.learning_rate": 1e-3 * (1 + i % 2), "seed": 0})
    Uploader(store, first, simulated_folders).close()
    table = check_table(store.read_table(plan.sweep.name)).set_index("run_id")
    for cell in first.cells:
        row = table.loc[cell.run_id]
        assert row["variant"] == cell.axes["variant"]
        assert row["optimizer.learning_rate"] == cell.axes["optimizer.learning_rate"]
        assert row["group"] == cell.group
    Uploader(store, with_axes(lambda i: {"seed": 0}), simulated_folders).close()
    assert not {"variant", "group"} & set(store.read_table(plan.sweep.name))


def test_the_table_is_that_of_any_order_of_arrival(store, database, plan, simulated_folders):
    run_all(plan, simulated_folders)
    Uploader(store, plan, simulated_folders).close()
    uri, artifacts = database
    other = TrackingStore(uri, "in another order", artifacts=artifacts)
    uploader = Uploader(other, plan, simulated_folders)
    for cell in reversed(plan.cells):
        uploader._upload(cell)
    uploader.close()
    tables = [each.read_table(plan.sweep.name).to_csv(index=False) for each in (store, other)]
    assert tables[0] == tables[1]
    assert tables[0].splitlines()[1].startswith("sim-")


def test_a_run_says_where_it_ran_and_where_its_model_lies(store, plan, simulated_folders, monkeypatch):
    cell = plan.cells[0]
    folder = simulated_folders.run(cell.run_id)
    (result,) = run_all(dataclasses.replace(plan, cells=(cell,)), simulated_folders)
    write_result(folder, result.model_copy(update={"simulated": False}))
    journal = Journal(folder / "journal.jsonl")
    journal.event("resumed", step=3, device="cuda:0", versions={"torch": "2.13.0"}, git_commit="abc", host=None)
    journal.metrics(10**6, {"system/memory": 5.0, "system/nothing": None})
    journal.close()
    assert Uploader(store, plan, simulated_folders, runs_at="s3://key:secret@bucket/runs").close() == []
    (run,) = store.cell_runs(plan.sweep.name).values()
    tags = run.data.tags
    assert tags["isoloop.env.device"] == "cuda:0"
    assert tags["isoloop.env.versions.torch"] == "2.13.0"
    assert tags["isoloop.env.git_commit"] == "abc"
    assert tags[record.CHECKPOINT] == f"s3://***@bucket/runs/{cell.run_id}/model"
    assert run.data.metrics["system/memory"] == 5.0
    kept = store.client.download_artifacts(run.info.run_id, "spec.json")
    assert json.loads(Path(kept).read_text()) == cell.spec.model_dump(mode="json")
    (parent,) = store._search({record.KIND: "sweep"})
    assert parent.data.tags["isoloop.env.mlflow"]
    assert parent.data.tags["isoloop.env.python"]


def test_artifacts_that_cannot_be_stored_hold_nothing_up(store, plan, simulated_folders, monkeypatch):
    run_all(plan, simulated_folders)
    tried = []

    def refuse(run, file):
        tried.append(run)
        raise OSError("no space")

    monkeypatch.setattr(store, "save_file", refuse)
    uploader = Uploader(store, plan, simulated_folders)
    assert uploader.close() == []
    assert uploader.artifact_error == "no space"
    assert len(tried) == 2  # once, and once more at the end
    assert len(store.read_table(plan.sweep.name)) == len(plan.cells)


def test_infinities_leave_the_store_as_they_came_and_nan_stays_out(store):
    points = {"inf": np.inf, "minus": -np.inf, "large": 1e299, "nan": np.nan}
    run = store.client.create_run(store.experiment_id).info.run_id
    store.send(run, points=[(name, value, 1, 1) for name, value in points.items()])
    assert store.client.get_run(run).data.metrics["inf"] < np.inf  # the database has no infinity
    (read,) = store.foreign_runs("")
    np.testing.assert_equal(read.data.metrics, {name: value for name, value in points.items() if name != "nan"})
