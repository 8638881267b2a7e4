"""What a sweep evaluates of its runs: done or not, by which weights, and columns of the table."""

import dataclasses
import shutil

import numpy as np
import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import SweepEvaluationConfig, setting_paths
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.quality import (
    QualityPlan,
    compared_weights,
    result_digest,
    results_folder,
    summary_file,
    table_recurrence,
    write_summary,
)
from isoloop.sweeps.tracking.quality import read_quality
from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.quality.suites.bundle import Bundle, find_suite
from isoloop.trainer.quality.suites.catalogue import SUITES
from isoloop.trainer.quality.suites.evaluation import Subject, evaluate_suite
from isoloop.trainer.quality.suites.task import Suite, Task
from isoloop.trainer.run.result import RunResult, write_result
from tests.sweeps.conftest import SIMULATED, SMALL
from tests.trainer.quality.bundles import choice_rows, exact_rows, small_model, write_catalogue, write_rows, write_tasks


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


@pytest.fixture
def cell():
    return next(
        cell
        for cell in plan_sweep(validate_sweep(SIMULATED, source="test"), simulated_corpus).cells
        if cell.mean_recurrence == 4
    )


@pytest.fixture
def folders(tmp_path, cell):
    """Those of a sweep of which one run has finished."""
    folders = Folders(out=tmp_path / "out", name="any")
    finish(folders, cell.run_id)
    return folders


def finish(folders, run_id, **changes):
    result = RunResult(
        run_id=run_id, status="finished", simulated=False, steps=9, tokens=90, unique_tokens=30, forward_loops=1,
        backward_loops=1, flops_exact=1, flops_parcae_release=1, loss=2.0, losses={1: 2.0}, best_loss=1.5, best_step=4,
        bits_per_byte=None, spectral_radius=None, seconds=1,
    ).model_copy(update=changes)  # fmt: skip
    folders.run(run_id).mkdir(parents=True, exist_ok=True)
    write_result(folders.run(run_id), result)
    return result


def evaluated(suite, folder, recurrences, seeds=(1, 2), precision="float32"):
    subject = Subject.of(small_model(), ByteTokenizer(), name=folder.name, precision=precision)
    found, bundle = find_suite(str(suite), None)
    return evaluate_suite(subject, found, bundle, folder, recurrences=recurrences, seeds=seeds)


def worked(plan, cell, suite, **changes):
    """Evaluate the run as a worker does, but for these changes; returns whether the sweep takes it for done."""
    task = plan.task(cell)
    given = {"recurrences": task.recurrences, "seeds": task.seeds, "precision": task.precision} | changes
    summary = evaluated(suite, task.folder, **given)
    write_summary(task.folder, summary, result_digest(plan.folders.run(cell.run_id)))
    return plan.is_done(cell)


def test_done_is_what_the_plan_asks_for(cell, suite, evaluation, folders):
    plan = QualityPlan.of(evaluation, folders)
    assert plan.task(cell).recurrences == (2, 4)
    assert not plan.is_done(cell)
    assert not worked(plan, cell, suite, recurrences=(2,)), "a recurrence is missing"
    assert not worked(plan, cell, suite, seeds=(1,)), "a seed is missing"
    assert not worked(plan, cell, suite, precision="bfloat16"), "another precision"
    assert worked(plan, cell, suite)
    # The run's weights are others: it was trained again.
    finish(folders, cell.run_id, seconds=2)
    assert not plan.is_done(cell)
    assert worked(plan, cell, suite)
    # The data have changed: for the next plan, not for this one.
    write_rows(suite.parent, "go_on.jsonl", exact_rows(10, seed=1))
    assert plan.is_done(cell)
    assert not QualityPlan.of(evaluation, folders).is_done(cell)
    assert QualityPlan.of(SweepEvaluationConfig(), folders) is None


def test_what_is_evaluated_by_hand_leaves_the_sweep_its_own(cell, suite, evaluation, folders):
    plan = QualityPlan.of(evaluation, folders)
    evaluated(suite, plan.task(cell).folder, [2, 4])
    assert not plan.is_done(cell), "only what a worker has stored counts"
    assert worked(plan, cell, suite)
    before = plan.summaries(cell)
    evaluated(suite, plan.task(cell).folder, [1], seeds=[7])
    assert plan.summaries(cell) == before
    for broken in "{", "{}", '{"summary": {}}':
        summary_file(plan.task(cell).folder, "words").write_text(broken)
        assert not plan.is_done(cell)


def test_only_looped_models_have_further_recurrences(cell, evaluation, folders):
    plan = QualityPlan.of(evaluation, folders)
    once = cell.spec.model.model_copy(update={"injection": "none"})
    spec = cell.spec.model_copy(update={"model": once, "recurrence": RecurrenceConfig(mean=1)})
    assert not spec.model.is_looped
    assert plan.task(dataclasses.replace(cell, spec=spec)).recurrences == (1,)


def test_precision_is_that_of_training_on_a_gpu_and_float32_elsewhere(cell, evaluation, folders):
    plan = QualityPlan.of(evaluation, folders)
    cell = dataclasses.replace(cell, spec=cell.spec.model_copy(update={"precision": "bfloat16"}))
    assert plan.task(cell).precision == "float32"
    on_gpu = dataclasses.replace(cell, resources=cell.resources.model_copy(update={"gpus": 1}))
    assert plan.task(on_gpu).precision == "bfloat16"


def test_each_suite_has_its_own_place_of_data(suite, tmp_path):
    """A published suite beside one of the user's: in the output folder, and beside the YAML file."""
    folders = Folders(out=tmp_path / "out", name="any")
    write_catalogue(folders.suites, SUITES["wikitext"])
    plan = QualityPlan.of(SweepEvaluationConfig(suites=("wikitext", str(suite))), folders)
    assert {name: each.bundle for name, each in plan.suites.items()} == {
        "wikitext": folders.suites.resolve(), "words": None,
    }  # fmt: skip
    assert plan.describe().startswith("wikitext (1 task, 60 rows), words (2 tasks, 25 rows) of each finished run, at")
    # A bundle that is named is for all of them.
    with pytest.raises(ValueError, match=r"wikitext.* is missing"):
        QualityPlan.of(SweepEvaluationConfig(suites=("wikitext",), bundle=str(suite.parent)), folders)


def test_suites_that_would_write_the_same_results_are_refused(suite, tmp_path):
    folders, other = Folders(out=tmp_path / "out", name="any"), tmp_path / "other"
    shutil.copytree(suite.parent, other, ignore=shutil.ignore_patterns("other"))
    with pytest.raises(ValueError, match=rf"{suite} is called 'words' and {other / 'words.yaml'} 'words'"):
        QualityPlan.of(SweepEvaluationConfig(suites=(str(suite), str(other / "words.yaml"))), folders)
    renamed = (other / "words.yaml").rename(other / "again.yaml")
    for first, second in ("a-b", "a_b"), ("ab", "AB"):
        for name in first, second:
            shutil.copy(renamed, other / f"{name}.yaml")
        with pytest.raises(ValueError, match=rf"{first}.yaml is called '{first}' and .*{second}.yaml '{second}'"):
            QualityPlan.of(
                SweepEvaluationConfig(suites=tuple(str(other / f"{name}.yaml") for name in (first, second))), folders
            )
    with pytest.raises(ValueError, match=r"words.yaml is called 'words' and "):
        QualityPlan.of(SweepEvaluationConfig(suites=(str(suite), str(suite))), folders)
    both = SweepEvaluationConfig(suites=(str(suite), str(renamed)))
    assert set(QualityPlan.of(both, folders).suites) == {"words", "again"}, "the same data may be in two suites"
    write_rows(other, "go_on.jsonl", exact_rows(10, seed=1))
    with pytest.raises(ValueError, match=rf"'go_on' of {suite} and that of {renamed} differ"):
        QualityPlan.of(both, folders)


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
    result = finish(folders, "a")
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


def columns_of(summaries, recurrence, baselines="v1", weights="last"):
    return read_quality(summaries, recurrence, baselines, weights=weights)


def test_columns_are_the_summary_in_the_units_of_the_table(suite, tmp_path):
    summary = evaluated(suite, tmp_path / "results", [1, 3])
    record = columns_of([summary], 3, "v2", weights="best")
    (version,) = summary.scores  # of a suite of one's own
    score, choose, go_on = summary.scores[version][3], *summary.tasks
    assert record.columns["words_mean"] == 100 * score.value
    assert record.columns["words_mean_se"] == pytest.approx(100 * (score.high - score.low) / 3.92, rel=1e-3)
    assert "core_baselines" not in record.columns
    assert record.columns["choose_accuracy"] == choose.measures["accuracy"][3].value
    assert record.columns["choose_chance"] == 0.2
    assert record.columns["go_on_loss"] == go_on.gold_nats[3]
    assert record.columns["scored_weights"] == "best"
    assert record.curves == [
        (f"quality/words_mean_{version}_at_T", 100 * summary.scores[version][t].value, t) for t in (1, 3)
    ]
    assert columns_of([summary], 2).columns == {}


def test_columns_of_a_published_suite_have_the_chosen_baselines(suite, tmp_path):
    """Score, chance and the name of the version, of a suite with two."""
    of_words, bundle = find_suite(str(suite), None)
    choose, go_on = of_words.tasks
    published = Suite(
        name="core-extended",
        score="Core-Extended",
        tasks=(
            choose.model_copy(update={"baselines": {"v1": 20.0, "v2": 40.0}}),
            go_on.model_copy(update={"baselines": {"v1": 0.0, "v2": 0.0}}),
        ),
    )
    subject = Subject.of(small_model(), ByteTokenizer(), name="any")
    summary = evaluate_suite(subject, published, bundle, tmp_path / "results", recurrences=[1], seeds=[1])
    accuracies = [task.measures["accuracy"][1].value for task in summary.tasks]
    for version, chance in ("v1", 0.2), ("v2", 0.4):
        columns = columns_of([summary], 1, version).columns
        centred = [(accuracies[0] - chance) / (1 - chance), accuracies[1]]
        assert columns["core_extended"] == pytest.approx(100 * np.mean(centred))
        assert (columns["choose_chance"], columns["core_baselines"]) == (chance, version)
        assert columns["choose_accuracy"] == accuracies[0]


def test_pages_have_a_perplexity_per_word(tmp_path):
    write_rows(tmp_path, "pages.jsonl", [{"page": "a core of the loop \n"}, {"page": "one more state"}])
    pages = Suite(name="pages", tasks=(Task(name="pages", kind="rolling", file="pages.jsonl"),))
    subject = Subject.of(small_model(), ByteTokenizer(), name="any")
    summary = evaluate_suite(subject, pages, Bundle(tmp_path), tmp_path / "results", recurrences=[1], seeds=[1])
    columns = columns_of([summary], 1).columns
    measures = summary.tasks[0].measures
    assert columns["pages_ppl"] == measures["word_perplexity"][1].value != measures["byte_perplexity"][1].value
    assert set(columns) == {"pages_ppl", "scored_weights"}


def test_the_run_tables_own_columns_stay_as_they_are(suite, tmp_path):
    summary = evaluated(suite, tmp_path / "results", [1])
    renamed = summary.tasks[0].model_copy(update={"name": "best"})
    columns = columns_of([summary.model_copy(update={"tasks": (renamed,)})], 1).columns
    assert "best_accuracy" in columns
    assert "best_loss" not in columns


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
