"""Results on suites in MLflow and the run table: those that the sweep asks for, and never in the way of the runs."""

from types import SimpleNamespace

import pytest

from isoloop.fitting import check_table
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.schema import LONGEST_TAG, is_own_column, quality_key, quality_tags
from isoloop.sweeps.tracking.uploader import Uploader
from isoloop.trainer.quality.suites.result import Identity
from isoloop.trainer.quality.suites.summary import Estimate, SuiteSummary, TaskSummary
from tests.sweeps.conftest import SIMULATED


@pytest.fixture(scope="module")
def plan():
    content = SIMULATED | {"name": "scored", "budgets": [1e10], "mean_recurrences": [1, 2]}
    return plan_sweep(validate_sweep(content, source="test"), simulated_corpus)


@pytest.fixture
def folders(plan, tmp_path, new_database):
    folders = Folders(out=tmp_path / "out", name=plan.sweep.name)
    new_database(folders.default_store)
    for cell in plan.cells:
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id))
    return folders


def summary_of(suite, task, share):
    estimate = Estimate(value=share, low=share - 0.1, high=share + 0.1)
    scores = {version: {1: estimate.model_copy(update={"value": share / k})} for k, version in ((1, "v1"), (2, "v2"))}
    return SuiteSummary(
        suite=suite, score="Core", recurrences=(1,), seeds=(1,), scores=scores,
        of=Identity(name="any", weights="", tokenizer="", context=8, precision="float32"),
        tasks=(
            TaskSummary(
                name=task, shots=0, rows=9, measures={"accuracy": {1: estimate}},
                baselines={"v1": 20, "v2": 40}, gold_nats={1: 1.5}, cropped=0, cut=0,
            ),
        ),
    )  # fmt: skip


class Asked:
    """A plan of suites whose results are given by run id."""

    def __init__(self, results, version="v1"):
        self.results, self.evaluation = results, SimpleNamespace(suite_baselines=version)

    def summaries(self, cell):
        return self.results.get(cell.run_id)

    def task(self, cell):
        return SimpleNamespace(weights="last")


def recorded(folders, plan, quality):
    """The run table after another call of the sweep, and its uploader."""
    store = TrackingStore(folders.default_tracking_uri(), "isoloop", artifacts=folders.artifacts)
    uploader = Uploader(store, plan, folders, quality=quality)
    assert uploader.close() == []
    uploader.check_complete()
    table = check_table(store.read_table(plan.sweep.name))
    assert len(table) == len(plan.cells)
    return table.set_index("run_id"), uploader


def test_the_table_has_what_the_sweep_asks_for_now(folders, plan):
    once = next(cell.run_id for cell in plan.cells if cell.mean_recurrence == 1)
    results = {once: [summary_of("core", "choose", 0.5)]}
    table, uploader = recorded(folders, plan, Asked(results))
    assert (table["core"][once], table["core_baselines"][once], table["choose_chance"][once]) == (50, "v1", 0.2)
    assert table["core"].isna().sum() == 1

    # Other baselines, of the same files.
    table, _ = recorded(folders, plan, Asked(results, "v2"))
    assert (table["core"][once], table["core_baselines"][once], table["choose_chance"][once]) == (25, "v2", 0.4)
    metrics = uploader.store.cell_runs(plan.sweep.name)[once].data.metrics
    assert metrics["quality/core"] == 25, "the last value, although it is smaller"

    # Another suite: nothing of the earlier one stays.
    table, _ = recorded(folders, plan, Asked({once: [summary_of("core-extended", "other", 0.4)]}))
    assert table["core_extended"][once] == 40
    assert not {"core", "core_se", "choose_accuracy"} & set(table)

    # Not evaluated as it is asked for, and no suites at all.
    assert "core_extended" not in recorded(folders, plan, Asked({}))[0]
    assert "core" in recorded(folders, plan, Asked(results))[0]
    assert "core" not in recorded(folders, plan, None)[0]


def test_what_is_recorded_is_not_sent_again(folders, plan, monkeypatch):
    results = {cell.run_id: [summary_of("core", "choose", 0.5)] for cell in plan.cells}
    recorded(folders, plan, Asked(results))
    sent = []
    send = TrackingStore.send
    monkeypatch.setattr(TrackingStore, "send", lambda self, run, **what: sent.append(what) or send(self, run, **what))
    recorded(folders, plan, Asked(results))
    assert not [what for what in sent if any("quality" in key for key in what.get("tags") or {})]


def test_a_name_that_mlflow_refuses_is_recorded_under_another(folders, plan):
    once = next(cell.run_id for cell in plan.cells if cell.mean_recurrence == 1)
    name = "who? what! a=b/../c:" + 300 * "x"
    table, uploader = recorded(folders, plan, Asked({once: [summary_of("core", name, 0.5)]}))
    assert uploader.unrecorded == {}
    assert table[f"{name}_accuracy"][once] == 0.5
    assert quality_key("a=b/../c") == "quality/a_b_.._c"


def test_a_record_that_is_refused_holds_up_no_other(folders, plan, monkeypatch):
    first, second = (cell.run_id for cell in sorted(plan.cells, key=lambda cell: cell.mean_recurrence))
    results = {first: [summary_of("core", "refused", 0.5)], second: [summary_of("core", "choose", 0.5)]}
    send = TrackingStore.send

    def refuse(self, run, **what):
        if "refused" in str(what):
            raise ValueError("the store takes no such name")
        return send(self, run, **what)

    monkeypatch.setattr(TrackingStore, "send", refuse)
    table, uploader = recorded(folders, plan, Asked(results))
    assert uploader.unrecorded == {first: "the store takes no such name"}
    assert uploader.store.cell_runs(plan.sweep.name)[second].data.metrics["quality/core_v1_at_T"] == 50
    assert table["loss"].notna().all()
    monkeypatch.undo()
    assert recorded(folders, plan, Asked(results))[1].unrecorded == {}


def test_tags_are_as_short_as_stores_take_them():
    columns = {f"{number} {'name' * 40}": 0.123456789 for number in range(200)}
    tags = quality_tags(columns)
    assert len(tags) > 1
    assert max(map(len, tags.values())) <= LONGEST_TAG
    assert quality_tags({}) == {}


def test_columns_of_runs_are_known_from_those_of_suites():
    own = ("loss", "best_loss", "best_step", "loss_T4", "best_loss_T4", "perplexity", "budget", "seconds")
    assert all(map(is_own_column, own))
    assert not any(map(is_own_column, ("core", "choose_loss", "lambada_ppl", "scored_weights")))
