"""Bundles: what they must hold, in a folder or a zip, and the suites of the user's own."""

import json
import random
import shutil

import pytest

from isoloop.trainer.quality.suites import SUITES, Bundle, Suite, Task, find_suite
from isoloop.trainer.quality.suites.bundle import BundleError
from isoloop.trainer.quality.suites.prompts import few_shot_examples
from tests.trainer.quality.bundles import choice_rows, exact_rows, write_catalogue, write_rows, write_tasks

MC = Task(name="mc", kind="multiple_choice", file="a/mc.jsonl", baselines={"own": 25})


def test_published_suites_have_all_tasks():
    core, extended = SUITES["core"], SUITES["core-extended"]
    assert (len(core.tasks), len(extended.tasks)) == (22, 46)
    assert core.versions == extended.versions == ("v1", "v2")
    assert extended.tasks[:22] == core.tasks
    assert {task.file.partition("/")[0] for task in extended.tasks} == {
        "world_knowledge", "commonsense_reasoning", "language_understanding", "symbolic_problem_solving",
        "reading_comprehension", "safety",
    }  # fmt: skip


def test_versions_of_the_baselines_differ_in_core_by_as_much_as_published():
    """25% accuracy on the three tasks whose baselines differ makes Core 2.5 points larger under v1."""
    tasks = [task for task in SUITES["core"].tasks if task.baselines["v1"] != task.baselines["v2"]]
    assert len(tasks) == 3
    differences = [task.centred(0.25, "v1") - task.centred(0.25, "v2") for task in tasks]
    assert 100 * sum(differences) / 22 == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize("form", ["folder", "zip", "folder in a folder"])
def test_rows_are_read_from_a_folder_or_a_zip(form, tmp_path):
    rows = choice_rows(20)
    inner = tmp_path / "download" / "my_eval_data"
    write_rows(inner, MC.file, rows)
    (inner.parent / "__MACOSX" / "my_eval_data" / "eval_data").mkdir(parents=True)
    (inner.parent / "__MACOSX" / "my_eval_data" / "eval_data" / "._a").write_text("what some systems add to a zip")
    source = {"folder": inner, "folder in a folder": tmp_path / "download"}.get(form)
    if source is None:
        source = tmp_path / shutil.make_archive(str(tmp_path / "bundle"), "zip", tmp_path / "download")
    random.Random(1337).shuffle(rows)
    assert Bundle(source).rows(MC) == rows
    assert Bundle(source).digest(MC) == Bundle(inner).digest(MC)


def test_every_missing_or_short_file_of_core_is_named(tmp_path):
    core = SUITES["core"]
    write_catalogue(
        tmp_path,
        core,
        short=["commonsense_reasoning/copa.jsonl"],
        missing=["language_understanding/winograd_wsc.jsonl", "symbolic_problem_solving/bigbench_operators.jsonl"],
    )
    with pytest.raises(BundleError) as error:
        Bundle(tmp_path).check(core.tasks)
    message = str(error.value)
    assert "copa.jsonl is short: 99 of 100 rows" in message
    assert "winograd_wsc.jsonl is missing" in message
    assert "bigbench_operators.jsonl is missing" in message
    assert message.count(".jsonl") == 3
    write_catalogue(tmp_path, core)
    Bundle(tmp_path).check(core.tasks)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "choices": ["a", "b"]}, "must have query, choices, gold"),
        ({"query": "q", "choices": ["a"], "gold": 0}, "two or more choices"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "the number of one of its choices"),
        ({"query": ["q"], "choices": ["a", "b"], "gold": 0}, "must have text"),
        ("torn", "is not JSON"),
    ],
)
def test_a_broken_row_is_named_with_its_line(row, problem, tmp_path):
    write_rows(tmp_path, MC.file, choice_rows(3))
    path = tmp_path / "eval_data" / MC.file
    path.write_text(path.read_text() + ("{" if row == "torn" else json.dumps(row)))
    with pytest.raises(BundleError, match=rf"line 4 .*{problem}"):
        Bundle(tmp_path).check([MC])


def test_a_task_needs_a_row_more_than_examples(tmp_path):
    write_rows(tmp_path, MC.file, choice_rows(3))
    with pytest.raises(BundleError, match="3 of 4 rows"):
        Bundle(tmp_path).check([MC.model_copy(update={"shots": 3})])


def test_a_suite_of_the_users_own(tmp_path):
    write_rows(tmp_path, "a/mc.jsonl", choice_rows(5))
    write_rows(tmp_path, "b/lm.jsonl", exact_rows(5))
    entries = [
        {"label": "mc", "dataset_uri": "local_data/a/mc.jsonl", "num_fewshot": [2], "icl_task_type": "multiple_choice"},
        {
            "label": "lm",
            "dataset_uri": "b/lm.jsonl",
            "num_fewshot": 0,
            "icl_task_type": "language_modeling",
            "continuation_delimiter": "\nA: ",
        },
    ]
    write_tasks(tmp_path, entries, {"mc": 25, "lm": 0})
    suite, bundle = find_suite(str(tmp_path / "core.yaml"), None)
    assert suite.name == f"{tmp_path.name}-core"  # not that of the published suite
    assert suite.tasks[0] == MC.model_copy(update={"shots": 2})
    assert (suite.tasks[1].delimiter, suite.tasks[1].shots, suite.versions) == ("\nA: ", 0, ("own",))
    bundle.check(suite.tasks)
    write_tasks(tmp_path, entries, {"mc": 25})
    with pytest.raises(BundleError, match="lm has none"):
        find_suite(str(tmp_path / "core.yaml"), tmp_path)


def test_a_bundles_own_settings_and_baselines_are_noted(tmp_path):
    task = Task(name="mc", kind="multiple_choice", file="a/mc.jsonl", shots=1, baselines={"v1": 20, "v2": 25})
    write_rows(tmp_path, MC.file, choice_rows(5))
    entry = {"label": "mc", "dataset_uri": "a/mc.jsonl", "num_fewshot": [3], "icl_task_type": "multiple_choice"}
    write_tasks(tmp_path, [entry], {"mc": 25})
    notes = Bundle(tmp_path).notes(Suite(name="s", tasks=(task,), score="Core"))
    assert notes == [
        "core.yaml has shots 3 for mc; the suite's 1 was used",
        "eval_meta_data.csv of the bundle has the baselines v2",
    ]


def test_suites_and_bundles_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="core, core-extended, lambada, wikitext, validation, or a YAML file"):
        find_suite("cor", tmp_path)
    with pytest.raises(BundleError, match="there is none at"):
        find_suite("core", tmp_path / "none")
    with pytest.raises(BundleError, match="must hold eval_data/"):
        find_suite("core", tmp_path)


def test_examples_are_drawn_from_the_other_rows_by_seed_and_number():
    rows = [{"number": number} for number in range(30)]
    for number in (0, 7, 29):
        others = [row for row in rows if row["number"] != number]
        expected = random.Random(1234 + number).sample(others, 10)
        assert few_shot_examples(rows, number, shots=10, seed=1234) == expected
