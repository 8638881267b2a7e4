"""What a sweep evaluates of its runs: done or not, by which weights, and columns of the table."""

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import SweepEvaluationConfig, setting_paths
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.quality import QualityPlan, compared_weights, results_folder, table_recurrence
from isoloop.sweeps.tracking.quality import read_quality, summary_files
from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.quality.suites.bundle import find_suite
from isoloop.trainer.quality.suites.evaluation import Subject, evaluate_suite
from isoloop.trainer.run.result import RunResult, write_result
from tests.sweeps.conftest import SIMULATED, SMALL
from tests.trainer.quality.bundles import choice_rows, exact_rows, small_model, write_rows, write_tasks


@pytest.fixture
def suite(tmp_path):
    """A suite of two tasks, of which `choose` has a baseline of 20 or 25%."""
    write_rows(tmp_path, "choose.jsonl", choice_rows(15))
    write_rows(tmp_path, "go_on.jsonl", exact_rows(10))
    write_tasks(
        tmp_path,
        [
            {"label": "choose", "dataset_uri": "choose.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice"},
            {"label": "go_on", "dataset_uri": "go_on.jsonl", "num_fewshot": [0], "icl_task_type": "language_modeling"},
        ],
        {"choose": 20, "go_on": 0},
    )
    return (tmp_path / "core.yaml").rename(tmp_path / "words.yaml")


@pytest.fixture
def evaluation(suite):
    return SweepEvaluationConfig(suites=(str(suite),), suite_recurrences=(2,), suite_seeds=(1, 2))


def evaluated(suite, folder, recurrences, seeds=(1, 2)):
    subject = Subject.of(small_model(), ByteTokenizer(), name="small")
    found, bundle = find_suite(str(suite), None)
    return evaluate_suite(subject, found, bundle, folder, recurrences=recurrences, seeds=seeds)


def test_done_is_what_has_these_data_seeds_and_recurrences(spec, suite, evaluation, tmp_path):
    folders = Folders(out=tmp_path / "out", name="any")
    plan = QualityPlan.of(evaluation, folders)
    task = plan.task(spec)
    assert task.recurrences == (2, spec.recurrence.mean)
    assert not plan.is_done(spec)
    evaluated(suite, task.folder, [2])
    assert not plan.is_done(spec), "a recurrence is missing"
    evaluated(suite, task.folder, [1, 2, spec.recurrence.mean], seeds=[1])
    assert not plan.is_done(spec), "a seed is missing"
    evaluated(suite, task.folder, [1, 2, spec.recurrence.mean])
    assert plan.is_done(spec)
    write_rows(suite.parent, "go_on.jsonl", exact_rows(10, seed=1))
    assert not QualityPlan.of(evaluation, folders).is_done(spec), "the data have changed"
    assert QualityPlan.of(SweepEvaluationConfig(), folders) is None


def test_missing_data_are_refused_at_once(evaluation, suite, tmp_path):
    (suite.parent / "eval_data" / "go_on.jsonl").unlink()
    with pytest.raises(ValueError, match=r"eval_data/go_on.jsonl is missing"):
        QualityPlan.of(evaluation, Folders(out=tmp_path / "out", name="any"))


@pytest.mark.parametrize(("mean", "t"), [(1, 1), (3, 3), (1.4, 1), (2.6, 3)])
def test_the_table_has_the_results_at_the_mean_recurrence(spec, mean, t):
    assert table_recurrence(spec.model_copy(update={"recurrence": RecurrenceConfig(mean=mean)})) == t


def test_the_weights_are_those_of_the_compared_loss(spec, tmp_path):
    """The best ones where the loss rose, text was repeated, and they were kept: in a folder, or in a checkpoint."""
    folders = Folders(out=tmp_path, name="any")
    folder = folders.run("a")
    result = RunResult(
        run_id="a", status="finished", simulated=False, steps=9, tokens=90, unique_tokens=30, forward_loops=1,
        backward_loops=1, flops_exact=1, flops_parcae_release=1, loss=2.0, losses={1: 2.0}, best_loss=1.5, best_step=4,
        bits_per_byte=None, spectral_radius=None, seconds=1,
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_result(folder, result)
    assert compared_weights(folders, "a") == "last"
    (folder / "best-model").mkdir()
    assert compared_weights(folders, "a") == "best"
    assert results_folder(folders, "a") == folders.quality("a-best")
    (folder / "best-model").rmdir()
    evaluation = spec.evaluation.model_copy(update={"keep_best": True})
    (folder / "spec.json").write_text(spec.model_copy(update={"evaluation": evaluation}).model_dump_json())
    assert compared_weights(folders, "a") == "best"
    (folder / "model").mkdir()
    assert compared_weights(folders, "a") == "last"
    (folder / "best-model").mkdir()
    write_result(folder, result.model_copy(update={"unique_tokens": 900}))
    assert compared_weights(folders, "a") == "last"


def test_columns_are_the_summary_in_the_units_of_the_table(suite, tmp_path):
    summary = evaluated(suite, tmp_path / "results", [1, 3])
    record = read_quality(summary_files(tmp_path / "results"), 3, "v2")
    (version,) = summary.scores  # of a suite of one's own
    score, choose, go_on = summary.scores[version][3], *summary.tasks
    assert record.columns["words_mean"] == 100 * score.value
    assert record.columns["words_mean_se"] == pytest.approx(100 * (score.high - score.low) / 3.92, rel=1e-3)
    assert "core_baselines" not in record.columns
    assert record.columns["choose_accuracy"] == choose.measures["accuracy"][3].value
    assert record.columns["choose_chance"] == 0.2
    assert record.columns["go_on_loss"] == go_on.gold_nats[3]
    assert record.curves == [
        (f"quality/words_mean_{version}_at_T", 100 * summary.scores[version][t].value, t) for t in (1, 3)
    ]
    assert read_quality(summary_files(tmp_path / "results"), 2, "v2").columns == {}


def test_no_run_depends_on_its_suites(suite):
    """The ids with suites are those without, and the configuration says nothing of suites that aren't there."""
    without = validate_sweep(SIMULATED, source="test")
    cells = plan_sweep(without, simulated_corpus).cells
    config = without.evaluation.model_copy(update={"suites": (str(suite),), "suite_recurrences": (7,)})
    with_suites = without.model_copy(update={"evaluation": config})
    assert [cell.run_id for cell in plan_sweep(with_suites, simulated_corpus).cells] == [cell.run_id for cell in cells]
    assert not any("suite" in key for key in without.model_dump()["evaluation"])
    assert "evaluation.recurrences" in setting_paths()
    assert not any("suite" in path for path in setting_paths())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SIMULATED | {"evaluation": {"recurrences": [1], "suites": ["core"]}}, "suites evaluate trained models"),
        (SMALL | {"evaluation": {"suites": ["core"]}, "storage": "/mnt/x"}, "but this sweep has a storage"),
        (SMALL | {"evaluation": {"bundle": "x"}}, "got evaluation.bundle and no evaluation.suites"),
        (SMALL | {"evaluation": {"suites": ["core"], "suite_baselines": "v3"}}, "suite_baselines"),
    ],
)
def test_suites_without_a_use_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        validate_sweep(content, source="test")
