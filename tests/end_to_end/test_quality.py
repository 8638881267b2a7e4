"""A sweep with a suite of the user's own: from `run` to the page, and again only what is missing."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from tests.commands import isoloop, quick_pages
from tests.trainer.quality.bundles import choice_rows, exact_rows, write_rows, write_tasks

SWEEP = {
    "name": "with-suites",
    "tokens": [512, 1024],
    "mean_recurrences": [1, 3],
    "model": {"width": 16, "heads": 2, "context": 64},
    "batch": 4,
    "minimum_steps": 2,
    "maximum_epochs": 20,
    "evaluation": {"sequences": 8, "recurrences": [1, 2, 4], "suites": ["words.yaml"], "suite_recurrences": [2]},
}
TASKS = [
    {"label": "choose", "dataset_uri": "choose.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice"},
    {"label": "go_on", "dataset_uri": "go_on.jsonl", "num_fewshot": [0], "icl_task_type": "language_modeling"},
]
COLUMNS = ["words_mean", "words_mean_se"] + [
    f"{task}_{part}" for task in ("choose", "go_on") for part in ("accuracy", "accuracy_se", "loss", "chance")
]


@pytest.fixture
def work(tmp_path, text_folder, new_database, commands_share_ray):
    write_rows(tmp_path, "choose.jsonl", choice_rows(12, options=2, most=2))
    write_rows(tmp_path, "go_on.jsonl", exact_rows(12))
    write_tasks(tmp_path, TASKS, {"choose": 50, "go_on": 0})
    (tmp_path / "core.yaml").rename(tmp_path / "words.yaml")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | {"data": {"corpus": str(text_folder)}}))
    new_database(tmp_path / "isoloop-out" / "mlflow.db")
    with quick_pages():
        yield tmp_path


def test_runs_are_evaluated_recorded_and_shown(work):
    isoloop("run", "sweep.yaml", "--draws", 20, cwd=work)
    folders = Folders(out=work / "isoloop-out", name="with-suites")
    table = pd.read_csv(folders.table)
    assert len(table) == 4
    assert table[COLUMNS].notna().all().all()
    assert (table["choose_chance"] == 0.5).all()

    # The table has what is stored of each run at T = µ, and MLflow the other T as well.
    for _, row in table.iterrows():
        summary = json.loads((folders.quality(row["run_id"]) / "words.sweep.json").read_text())["summary"]
        assert summary["recurrences"] == sorted({2, row["mean_recurrence"]})
        (version,) = summary["scores"]
        at_mean = summary["scores"][version][f"{row['mean_recurrence']:g}"]
        assert row["words_mean"] == pytest.approx(100 * at_mean["value"])
        choose = summary["tasks"][0]
        assert row["choose_accuracy"] == choose["measures"]["accuracy"][f"{row['mean_recurrence']:g}"]["value"]
        assert row["choose_loss"] == pytest.approx(choose["gold_nats"][f"{row['mean_recurrence']:g}"])
    store = TrackingStore(folders.default_tracking_uri(), "isoloop", artifacts=folders.artifacts)
    run = store.cell_runs("with-suites")[table["run_id"][0]]
    assert run.data.metrics["quality/choose_accuracy"] == table["choose_accuracy"][0]
    assert any(name.startswith("quality/words_mean_") and name.endswith("_at_T") for name in run.data.metrics)
    assert "No prediction of choose (at chance)" in folders.report.read_text(encoding="utf-8")
    assert "no prediction of words_mean, choose, go_on" in isoloop("fit", "with-suites", "--draws", 20, cwd=work).stdout

    # Again: nothing is computed anew, without a change; a deleted result is.
    before = {path: path.stat().st_mtime_ns for path in (work / "isoloop-out/quality").rglob("*.json")}
    isoloop("run", "sweep.yaml", "--draws", 20, cwd=work)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(folders.quality(table["run_id"][0]))
    again = isoloop("run", "sweep.yaml", "--draws", 20, cwd=work)
    pd.testing.assert_frame_equal(pd.read_csv(folders.table), table)
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert {path.relative_to(work / "isoloop-out/quality").parts[0] for path in changed} == {table["run_id"][0]}
    assert "Training" not in again.stderr


def test_data_are_checked_before_anything_is_trained(work):
    planned = isoloop("plan", "sweep.yaml", cwd=work).stdout
    assert "suites      words (2 tasks, 24 rows) of each finished run, at T = µ, 2, with 3 seeds" in planned
    (work / "eval_data" / "go_on.jsonl").unlink()
    said = isoloop("run", "sweep.yaml", cwd=work, check=2).stderr
    assert "eval_data/go_on.jsonl is missing (task go_on)" in said
    assert not (work / "isoloop-out" / "runs").exists()


def test_a_failed_evaluation_is_said_and_training_stays(work):
    """A folder stands where one run's results should be."""
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.pipeline import prepare

    folders = Folders(out=work / "isoloop-out", name="with-suites")
    sweep = load_sweep(str(work / "sweep.yaml"))
    evaluation = sweep.evaluation.model_copy(update={"suites": (str(work / "words.yaml"),)})
    cells = prepare(sweep.model_copy(update={"evaluation": evaluation}), folders).plan.cells
    (folders.quality(cells[0].run_id) / "words" / "choose.json").mkdir(parents=True)
    done = isoloop("run", "sweep.yaml", "--draws", 20, cwd=work, check=1)
    assert f"run {cells[0].run_id} was not evaluated: " in done.stderr
    table = pd.read_csv(folders.table)
    assert len(table) == 4
    assert table["loss"].notna().all()
    assert table.set_index("run_id")["choose_accuracy"].isna().to_dict() == {
        cell.run_id: cell.run_id == cells[0].run_id for cell in cells
    }
