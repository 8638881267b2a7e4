"""A store that was moved, copied, cleaned up or made by another MLflow: mended where it is ours, else named."""

import re
import shlex
import shutil
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from isoloop.fitting import check_table
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.tracking import schema as record
from isoloop.sweeps.tracking.mlflow_store import EXPERIMENT_KIND, MODEL_TRAINING, TrackingStore
from isoloop.sweeps.tracking.uploader import Uploader

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def plan(simulated):
    return plan_sweep(simulated.model_copy(update={"budgets": (1e10,), "mean_recurrences": (1, 2)}), simulated_corpus)


@pytest.fixture
def folders(tmp_path, plan, new_database):
    """An output folder with a store of its own, and two simulated runs that aren't recorded yet."""
    folders = Folders(out=tmp_path / "out", name=plan.sweep.name)
    new_database(folders.default_store)
    for cell in plan.cells:
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id))
    return folders


def open_store(folders, experiment="isoloop"):
    return TrackingStore(folders.default_tracking_uri(), experiment, artifacts=folders.artifacts)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recorded(folders, plan):
    """Record the sweep, and return the store and the sweep's run."""
    store = open_store(folders)
    uploader = Uploader(store, plan, folders)
    assert uploader.close() == []
    return store, uploader.parent


def assert_complete(store, plan, parent):
    runs = store.cell_runs(plan.sweep.name)
    assert {run.data.tags[record.PARENT_RUN] for run in runs.values()} == {parent}
    assert store.client.get_run(parent).info.lifecycle_stage == "active"
    assert len(check_table(store.read_table(plan.sweep.name))) == len(plan.cells)
    for run in runs.values():
        assert len(store.client.get_metric_history(run.info.run_id, record.metric_name("train_loss"))) > 1


@pytest.mark.parametrize("change", [shutil.move, shutil.copytree])
def test_artifacts_go_where_out_is_now(change, folders, plan, tmp_path):
    store, parent = recorded(folders, plan)
    assert store.notices == []
    other = Folders(out=tmp_path / "other place" / "out", name=folders.name)
    original = files(folders.out)
    change(folders.out, other.out)
    store = open_store(other)
    (notice,) = store.notices
    assert str(other.artifacts) in notice
    (other.out / "new.txt").write_text("new")
    cell = plan.cells[0]
    run = store.cell_runs(plan.sweep.name)[cell.run_id].info
    assert run.artifact_uri == (other.artifacts / run.run_id / "artifacts").as_uri()
    assert [file.path for file in store.client.list_artifacts(run.run_id)] == ["spec.json"]
    for mlflow_run in (parent, run.run_id, store._create("later", {})):
        store.save_file(mlflow_run, other.out / "new.txt")
        assert (other.artifacts / mlflow_run / "artifacts" / "new.txt").is_file()
    assert open_store(other).notices == []
    if change is shutil.move:
        assert not folders.out.exists()
    else:
        assert files(folders.out) == original


def test_an_experiment_of_others_keeps_its_place(folders, tmp_path):
    """A shared store is none of our own: what is there stays, and a place that is gone is said."""
    shared = f"sqlite:///{shutil.copy(folders.default_store, tmp_path / 'shared.db')}"
    first = TrackingStore(shared, "isoloop", artifacts=tmp_path / "first" / "artifacts")
    (tmp_path / "first").mkdir()
    assert TrackingStore(shared, "isoloop", artifacts=folders.artifacts).notices == []
    (tmp_path / "first").rmdir()
    (notice,) = TrackingStore(shared, "isoloop", artifacts=folders.artifacts).notices
    assert "set tracking.experiment to a new name" in notice
    location = first.client.get_experiment(first.experiment_id).artifact_location
    assert location == (tmp_path / "first" / "artifacts").as_uri()
    assert not (tmp_path / "first").exists()


def test_artifacts_that_are_gone_hold_nothing_up(folders, plan):
    store, parent = recorded(folders, plan)
    shutil.rmtree(folders.artifacts)
    assert Uploader(open_store(folders), plan, folders).close() == []
    (folders.sweep / "runs.csv").write_text("a\n1\n")
    assert store.save_files(parent, folders.sweep) is None
    assert (folders.artifacts / parent / "artifacts" / "runs.csv").is_file()


def delete_for_good(store, mlflow_run):
    store.client.delete_run(mlflow_run)
    store.client._tracking_client.store._hard_delete_run(mlflow_run)


def delete(store, mlflow_run):
    store.client.delete_run(mlflow_run)


@pytest.mark.parametrize("remove", [delete, delete_for_good])
def test_a_deleted_sweep_is_made_anew_with_its_runs(remove, folders, plan):
    store, parent = recorded(folders, plan)
    remove(store, parent)
    _, new = recorded(folders, plan)
    assert new != parent
    assert_complete(store, plan, new)


@pytest.mark.parametrize("remove", [delete, delete_for_good])
def test_a_sweep_and_a_run_that_are_deleted_meanwhile_are_made_anew(remove, folders, plan):
    store = open_store(folders)
    first, second = plan.cells
    result = folders.run(first.run_id) / "result.json"
    kept = result.read_bytes()
    result.unlink()  # the first run hasn't ended, the second has
    uploader = Uploader(store, plan, folders)
    uploader._upload_round()
    remove(store, uploader.mlflow_runs[first.run_id])
    remove(store, uploader.parent)
    result.write_bytes(kept)
    assert uploader.close() == []
    uploader.check_complete()
    assert set(store.cell_runs(plan.sweep.name)) == {first.run_id, second.run_id}
    assert_complete(store, plan, uploader.parent)
    assert store.client.get_run(uploader.parent).info.status == "FINISHED"


def test_names_that_people_give_stay(folders, plan):
    store, parent = recorded(folders, plan)
    child = store.cell_runs(plan.sweep.name)[plan.cells[0].run_id].info.run_id
    for mlflow_run in (parent, child):
        store.client.update_run(mlflow_run, name="the good one")
    assert recorded(folders, plan)[1] == parent
    assert {store.client.get_run(run).info.run_name for run in (parent, child)} == {"the good one"}
    store.client.rename_experiment(store.experiment_id, "kept")
    other, _ = recorded(folders, plan)
    assert other.experiment_id != store.experiment_id
    assert re.search("'isoloop' was renamed to 'kept'.* set tracking.experiment to 'kept'", other.notices[0])
    assert open_store(folders, "kept").notices == []


def test_an_experiment_may_have_any_name(folders):
    """MLflow's filters can't quote a name with both kinds of quotation marks."""
    name = """it's "ours\""""
    store = open_store(folders, name)
    assert store.notices == open_store(folders, name).notices == []
    store.client.rename_experiment(store.experiment_id, "kept")
    (notice,) = open_store(folders, name).notices
    assert f"'{name}' was renamed to 'kept'" in notice


def test_a_deleted_experiment_comes_back_by_the_command_that_is_named(folders, plan, monkeypatch):
    from mlflow.experiments import commands

    store, parent = recorded(folders, plan)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(ValueError, match=r"was deleted; restore it with .*, or record in another one") as refused:
        open_store(folders)
    command = re.search("'(MLFLOW_TRACKING_URI=.*)'", str(refused.value).replace("'isoloop'", ""))[1]
    variable, *words = shlex.split(command)
    assert words[:2] == ["mlflow", "experiments"]
    done = CliRunner(env=dict([variable.split("=", 1)])).invoke(commands, words[2:])
    assert done.exit_code == 0, done.output
    assert recorded(folders, plan)[1] == parent


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        ("ffffffffffff", r"newer than [\d.]+, which is installed: .* another store"),
        ("451aebb31d03", "mlflow db upgrade"),
    ],
)
@pytest.mark.parametrize("reading", [True, False])
def test_the_schema_of_another_mlflow_is_named(revision, advice, reading, folders):
    with closing(sqlite3.connect(folders.default_store)) as database, database:
        database.execute("update alembic_version set version_num = ?", (revision,))
    with pytest.raises(ValueError, match=advice) as refused:
        TrackingStore(folders.default_tracking_uri(), "x", artifacts=None if reading else folders.artifacts)
    assert ("upgrade" in str(refused.value).rpartition(");")[2]) == (revision == "451aebb31d03")


def test_a_run_without_some_numbers_is_a_row(folders, plan):
    """NaN is no metric of MLflow's: it would be the largest in its lists."""
    cell = plan.cells[0]
    store = open_store(folders)
    uploader = Uploader(store, plan, folders)
    uploader._upload_round()
    mlflow_run = uploader.mlflow_runs[cell.run_id]
    store.send(mlflow_run, points=[("gradient_norm", float("nan"), 1, 1), ("more", float("inf"), 1, 1)])
    uploader.close()
    assert "gradient_norm" not in store.client.get_run(mlflow_run).data.metrics
    assert "more" in store.client.get_run(mlflow_run).data.metrics
    row = store.read_table(plan.sweep.name).set_index("run_id").loc[cell.run_id]
    assert row["spectral_radius"] != row["spectral_radius"]  # a simulated run has none


def test_the_experiment_is_one_of_training(folders, plan):
    from mlflow import MlflowClient

    client = MlflowClient(folders.default_tracking_uri())
    client.create_experiment("old")  # as older versions made it
    client.create_experiment("chosen", tags={EXPERIMENT_KIND: "genai_development"})
    client.create_experiment("guessed", tags={EXPERIMENT_KIND: "genai_development_inferred"})
    kinds = dict.fromkeys(("new", "old", "chosen", "guessed"), "")
    for name in kinds:
        store = open_store(folders, name)
        kinds[name] = store.client.get_experiment(store.experiment_id).tags[EXPERIMENT_KIND]
    assert kinds == dict.fromkeys(kinds, MODEL_TRAINING) | {"chosen": "genai_development"}
