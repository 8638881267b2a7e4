"""The run table from MLflow alone, of our sweeps and of runs that others logged."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from isoloop.fitting import check_table, read_table
from isoloop.sweeps.cli.main import app
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.runs import TableOptions, load_table
from isoloop.sweeps.tracking.export import export_sweep
from isoloop.sweeps.tracking.import_runs import read_mapping
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.uploader import Uploader
from isoloop.trainer.accounting import count_parameters, flops_per_token
from isoloop.trainer.config import SIZES, RecurrenceConfig
from isoloop.trainer.run.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
DOCS = Path(__file__).resolve().parents[3] / "docs" / "sweeps.md"


@pytest.fixture(scope="module")
def uri(tmp_path_factory, new_database):
    return new_database(tmp_path_factory.mktemp("export") / "mlflow.db")


@pytest.fixture(scope="module")
def recorded(uri, tmp_path_factory):
    """A sweep of two finished runs and one that is still going on, recorded in a store; its output folder is gone."""
    from isoloop.sweeps.config.loading import validate_sweep
    from tests.sweeps.conftest import SIMULATED

    sweep = validate_sweep({**SIMULATED, "budgets": [1e10], "mean_recurrences": [1, 2, 4]}, source="test")
    plan = plan_sweep(sweep, simulated_corpus)
    folders = Folders(out=tmp_path_factory.mktemp("gone"), name=sweep.name)
    results = {
        cell.run_id: simulate_run(cell.spec, sweep.simulation, cell.run_id, folders.run(cell.run_id))
        for cell in plan.cells[:2]
    }
    journal = Journal(folders.run(plan.cells[2].run_id) / "journal.jsonl")
    journal.metrics(1, {"train_loss": 3.0})
    journal.close()
    Uploader(TrackingStore(uri, "isoloop", artifacts=folders.artifacts), plan, folders).close()
    return sweep.name, results


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_store_is_enough(uri, recorded, tmp_path, suffix):
    name, results = recorded
    to = tmp_path / "deep" / f"runs{suffix}"
    table = export_sweep(name, to, out=tmp_path / "nothing", tracking_uri=uri)
    again = read_table(to)
    pd.testing.assert_frame_equal(check_table(table), again, check_dtype=False)
    assert dict(zip(again["run_id"], again["loss"], strict=True)) == {i: r.loss for i, r in results.items()}
    assert (again["loss_unit"] == "nats per token").all()
    assert not (tmp_path / "nothing").exists()


def test_the_command(uri, recorded, tmp_path):
    name, _ = recorded
    done = CliRunner().invoke(app, ["export", name, "--to", str(tmp_path / "a.csv"), "--tracking-uri", uri])
    assert done.exit_code == 0, done.output
    assert "2 runs (2 finished)" in done.output
    assert len(read_table(tmp_path / "a.csv")) == 2


def test_missing_stores_and_sweeps_are_named(uri, recorded, tmp_path):
    def export(name="simulated-grid", to="a.csv", tracking_uri=uri, experiment=None):
        return export_sweep(name, tmp_path / to, out=tmp_path / "o", tracking_uri=tracking_uri, experiment=experiment)

    with pytest.raises(ValueError, match="none of 'other'; its sweeps: simulated-grid"):
        export(name="other")
    with pytest.raises(ValueError, match="has no 'nothing'; it has Default, isoloop"):
        export(experiment="nothing")
    with pytest.raises(ValueError, match=r"there is no file .*o/mlflow.db"):
        export(tracking_uri=None)
    with pytest.raises(ValueError, match=r"must end in .csv or .parquet"):
        export(to="a.txt")
    with pytest.raises(ValueError, match="letters, digits"):
        export(name="x' or 1=1")
    for arguments, message in (
        (["export"], "one of a sweep's name, mlflow:EXPERIMENT and --map must be given"),
        (["export", "x", "--map", "y"], "'x' is the name of a sweep"),
        (["export", "mlflow:a", "--experiment", "b"], "one experiment must be given"),
        (["export", "mlflow:looped-lm", "--to", "runs.xlsx"], "must end in .csv or .parquet, but got 'runs.xlsx'"),
    ):
        assert message in str(CliRunner().invoke(app, arguments).exception)
    with pytest.raises(
        ValueError, match=r"has sweeps of isoloop \(simulated-grid\); name one of them, or get its table"
    ):
        load_table("mlflow:isoloop", tmp_path, TableOptions(tracking_uri=uri))


@pytest.fixture(scope="module")
def foreign(uri):
    """Somebody's experiment: four runs of looped models, and one of another kind."""
    store = TrackingStore(uri, "looped-lm", artifacts=Path("unused"))

    def log(mu, status="FINISHED", losses=None, **tags):
        run = store.client.create_run(store.experiment_id, run_name=f"mu{mu}", tags={"team": "red", **tags}).info.run_id
        parameters = {"family": "looped", "mu": mu, "tokens_b": 2.5, "injection": "diagonal"}
        points = [(f"val/loss_T{t}", loss, 1, 100) for t, loss in (losses or {}).items()]
        store.send(run, params=parameters, points=points)
        store.end(run, status)
        return run

    runs = {
        "two": log(2, losses={1: 3.5, 2: 3.1, 4: 3.05}, flops_asked="3e18"),
        "four": log(4, losses={1: 3.6, 2: 3.2, 4: 3.0}, flops_asked="3e18"),
        "diverged": log(8, losses={8: math.nan}),
        "killed": log(6, status="KILLED"),
    }
    other = store.client.create_run(store.experiment_id, run_name="dense").info.run_id
    store.send(other, params={"family": "dense"})
    parent = store.client.create_run(store.experiment_id, run_name="parent").info.run_id
    store.send(parent, params={"family": "looped", "injection": "concat"})
    store.end(parent, "FINISHED")
    store.client.create_run(store.experiment_id, run_name="at it")
    return runs


@pytest.fixture
def mapping():
    (text,) = re.findall(r"```yaml\n(experiment:.*?)```", DOCS.read_text(), flags=re.DOTALL)
    return text


@pytest.fixture
def mapped(uri, foreign, tmp_path):
    def load(text, target="mlflow:"):
        (tmp_path / "mapping.yaml").write_text(text)
        return load_table(target, tmp_path, TableOptions(mapping=tmp_path / "mapping.yaml", tracking_uri=uri)).frame

    return load


def test_runs_of_others_are_mapped_as_the_docs_say(uri, mapping, foreign, tmp_path):
    (tmp_path / "mapping.yaml").write_text(mapping)
    options = ["--map", str(tmp_path / "mapping.yaml"), "--to", str(tmp_path / "runs.csv"), "--tracking-uri", uri]
    done = CliRunner().invoke(app, ["export", *options])
    assert done.exit_code == 0, done.output
    top = " ".join(done.output.split())
    assert "FLOPs are counted from the model (exact)" in top
    assert "Left out: 1 run without mean_recurrence, tokens, loss" in top
    table = read_table(tmp_path / "runs.csv").set_index("run_id")
    assert dict(table["status"]) == {
        foreign["two"]: "finished", foreign["four"]: "finished", foreign["diverged"]: "diverged",
        foreign["killed"]: "failed",
    }  # fmt: skip
    row = table.loc[foreign["four"]]
    model = SIZES["140m"]
    assert (row["mean_recurrence"], row["tokens"], row["loss"], row["loss_T2"]) == (4, 2.5e9, 3.0, 3.2)
    assert row["flops"] == pytest.approx(2.5e9 * flops_per_token(model, RecurrenceConfig(mean=4), "exact"))
    assert row["effective_params_per_loop"] == count_parameters(model).effective_per_loop
    assert (row["backprop_depth"], row["budget"], row["team"]) == (2, 3e18, "red")
    assert math.isnan(table.loc[foreign["diverged"], "loss"])


def test_the_cost_may_be_given_instead_of_a_model(mapped, mapping):
    content = yaml.safe_load(mapping)
    del content["model"], content["losses"]
    content["columns"] |= {
        "tokens": {"param": "tokens_b", "times": 1e9},
        "loss": {"metric": "val/loss_T2"},
        "backprop_depth": {"value": 1}, "forward_loops": {"param": "mu"}, "backward_loops": {"value": 1},
        "flops": {"param": "tokens_b", "times": 7e9}, "flops_per_token_fixed": {"value": 7},
        "flops_per_token_forward_loop": {"value": 0}, "flops_per_token_backward_loop": {"value": 0},
        "effective_params_fixed": {"value": 10}, "effective_params_per_loop": {"value": 5},
    }  # fmt: skip
    table = mapped(yaml.safe_dump(content))
    assert sorted(table["loss"].dropna()) == [3.1, 3.2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": {"mean_recurrence": {"param": "mue"}}},
            "`mean_recurrence` must .* no run has param 'mue'; did you mean 'mu'",
        ),
        ({"columns": {"mean_recurrence": {"param": "family"}}}, "`mean_recurrence` must be a number, .*'looped'"),
        ({"columns": {"tokens": {"param": "tokens_b", "times": -1}}}, "columns.tokens.times: .*greater than 0"),
        ({"columns": {"tokens": {"metric": "seen"}}}, "`tokens` must be in the table, but no run has metric 'seen'"),
        (
            {"columns": {"seed": {"param": "a", "tag": "b"}}},
            "columns.seed: one of column, param, metric, .*but got param and tag",
        ),
        ({"columns": {"seed": {"value": 0, "times": 2}}}, "times scales what a run holds"),
        ({"colums": {}}, "colums: extra inputs"),
        ({"model": "141m"}, "a size must be one of 140m"),
        (
            {"model": {"size": "140m", "injection": {"param": "family"}}},
            "the model of run 'mu2'.* breaks a rule: injection",
        ),
        ({"model": None, "columns": {"budget": None}}, "lacks flops"),
        ({"losses": "val/loss"}, "losses must name a metric with one {T}"),
        ({"filter": "params.family = 'none'"}, "it has 0 that pass the filter"),
        ({"filter": "colour is red"}, "a filter must be in MLflow's language, but got 'colour is red'"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_named(mapped, mapping, change, message):
    content = yaml.safe_load(mapping)
    columns = change.get("columns")
    content |= change | ({"columns": content["columns"] | columns} if columns else {})
    with pytest.raises(ValueError, match=message):
        mapped(yaml.safe_dump(content))


def test_a_mapping_is_read_safely(tmp_path):
    path = tmp_path / "mapping.yaml"
    with pytest.raises(ValueError, match="there is none at"):
        read_mapping(path)
    path.write_text("columns: !!python/object/apply:os.system ['touch harm']")
    with pytest.raises(ValueError, match="must be YAML"):
        read_mapping(path)
