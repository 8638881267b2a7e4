"""Bundles: what they must hold, in a folder or a zip, and the suites of the user's own."""

import json
import random
import shutil
import zipfile

import pytest

from isoloop.trainer.quality.suites import SUITES, Bundle, Suite, Task, find_suite
from isoloop.trainer.quality.suites.bundle import BundleError
from isoloop.trainer.quality.suites.preparation import prepare_suite
from isoloop.trainer.quality.suites.prompts import few_shot_examples
from tests.parquet import write_parquet
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
        ({"query": "q", "choices": ["a", "b"], "gold": True}, "the number of one of its choices"),
        ({"query": "q", "choices": ["a", "\ud800"], "gold": 0}, "half a character"),
    ],
)
def test_a_broken_row_is_named_with_its_line(row, problem, tmp_path):
    write_rows(tmp_path, MC.file, choice_rows(3))
    path = tmp_path / "eval_data" / MC.file
    path.write_text(path.read_text() + ("{" if row == "torn" else json.dumps(row)))
    with pytest.raises(BundleError, match=rf"line 4 .*{problem}"):
        Bundle(tmp_path).check([MC])


@pytest.mark.parametrize(("kind", "row"), [("rolling", {"page": 5}), ("documents", {"text": 5})])
def test_texts_must_be_texts(kind, row, tmp_path):
    write_rows(tmp_path, "t.jsonl", [row])
    with pytest.raises(BundleError, match=r"t.jsonl is broken: line 1 must have text in"):
        Bundle(tmp_path).check([Task(name="t", kind=kind, file="t.jsonl")])


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
    with pytest.raises(BundleError, match=r"\(lm\) has none"):
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


def test_a_bundles_broken_list_and_baselines_are_noted_too(tmp_path):
    """A published suite needs neither of them, so they can't make an evaluation fail."""
    suite = SUITES["lambada"]
    write_catalogue(tmp_path, suite)
    entry = {"label": "lambada_openai", "dataset_uri": "language_understanding/lambada_openai.jsonl"}
    known = {**entry, "num_fewshot": [0], "icl_task_type": "generation", "prompt_string": "x"}
    write_tasks(tmp_path, [known], {"lambada_openai": 0})
    (tmp_path / "eval_meta_data.csv").unlink()
    assert Bundle(tmp_path).notes(suite) == [
        "core.yaml has kind 'generation' for lambada_openai; the suite's 'language_modeling' was used",
        "core.yaml of the bundle has settings that aren't used here: prompt_string",
    ]
    (tmp_path / "core.yaml").write_text("icl_tasks:\n- label: [a\n")
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nlambada_openai,none\n")
    tasks, baselines = Bundle(tmp_path).notes(suite)
    assert "core.yaml must be YAML, but it isn't: line 3" in tasks
    assert "a number in percent, but line 2 of that of" in baselines


OWN = {"label": "mc", "dataset_uri": "a/mc.jsonl", "num_fewshot": [2], "icl_task_type": "multiple_choice"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "arc (easy)?"}, r"begin with a letter or a digit .*, but got 'arc \(easy\)\?'"),
        ({"label": "../../oops"}, "got '../../oops'"),
        ({"label": "sci/phys"}, "got 'sci/phys'"),
        ({"label": ".hidden"}, "got '.hidden'"),
        ({"label": "mc\n"}, "begin with a letter"),
        ({"label": "best"}, "would have the column best_loss"),
        ({"label": "best-"}, "would have the column best-_loss"),
        ({"label": "Training"}, "would have the column Training_loss"),
        ({"label": 5}, "label: Input should be a valid string, but got 5"),
        ({"num_fewshot": [0, 1]}, r"num_fewshot must be one number, but that of .* is \[0, 1\]"),
        ({"continuation_delimeter": ": "}, "has continuation_delimeter, which would change nothing"),
        ({"prompt_string": ""}, "has prompt_string, which would change nothing"),
        ({"icl_task_type": "generation"}, r"task 1 of own.yaml \(mc\) isn't .* icl_task_type: Input should be 'mul"),
        ({"perplexity": True}, "leave perplexity out"),
        ({"icl_task_type": "rolling"}, "texts are read without examples"),
        ({"dataset_uri": None}, "dataset_uri: Input should be a valid string"),
        ({"rows": 0}, "rows: Input should be greater than or equal to 1"),
    ],
)
def test_a_task_of_the_users_own_is_refused_rather_than_guessed(changes, message, tmp_path):
    write_rows(tmp_path, "a/mc.jsonl", choice_rows(5))
    entry = OWN | changes
    write_tasks(tmp_path, [entry], {entry["label"]: 25})
    path = (tmp_path / "core.yaml").rename(tmp_path / "own.yaml")
    with pytest.raises(BundleError, match=message) as error:
        find_suite(str(path), None)
    assert "http" not in str(error.value)


@pytest.mark.parametrize("names", [("a", "a"), ("a-b", "a_b"), ("a", "A")])
def test_tasks_of_a_suite_differ_by_more_than_a_dash(names):
    tasks = tuple(Task(name=name, kind="documents", file="t.jsonl") for name in names)
    with pytest.raises(ValueError, match=f"tasks of a suite must differ in their names.* got {', '.join(names)}"):
        Suite(name="s", tasks=tasks)


def test_a_key_that_is_missing_is_named(tmp_path):
    write_rows(tmp_path, "a/mc.jsonl", choice_rows(5))
    write_tasks(tmp_path, [{key: value for key, value in OWN.items() if key != "num_fewshot"}], {"mc": 25})
    with pytest.raises(BundleError, match=r"task 1 of core.yaml \(mc\) has no num_fewshot"):
        find_suite(str(tmp_path / "core.yaml"), None)
    for text in ("[]", "icl_tasks: 5", "icl_tasks: [a]"):
        (tmp_path / "core.yaml").write_text(text)
        with pytest.raises(BundleError, match="must list tasks as `icl_tasks`"):
            find_suite(str(tmp_path / "core.yaml"), None)
    (tmp_path / "core.yaml").write_text(json.dumps({"icl_tasks": [OWN], "num_fewshot": [5]}))
    with pytest.raises(BundleError, match="must have `icl_tasks` alone, but has num_fewshot"):
        find_suite(str(tmp_path / "core.yaml"), None)


def test_texts_may_be_beside_questions_but_then_there_is_no_mean(tmp_path):
    write_rows(tmp_path, "a/mc.jsonl", choice_rows(5))
    write_rows(tmp_path, "a/text.jsonl", [{"text": "a core"}])
    text = {"label": "text", "dataset_uri": "a/text.jsonl", "num_fewshot": 0, "icl_task_type": "documents"}
    for entries, score in (([OWN], "Mean"), ([OWN, text], None), ([text], None)):
        write_tasks(tmp_path, entries, {"mc": 25})
        suite, bundle = find_suite(str(tmp_path / "core.yaml"), None)
        bundle.check(suite.tasks)
        assert (suite.score, suite.is_own, len(suite.tasks)) == (score, True, len(entries))


def test_the_digest_has_the_baselines_and_that_of_the_answers_not(tmp_path):
    write_rows(tmp_path, MC.file, choice_rows(5))
    bundle, other = Bundle(tmp_path), MC.model_copy(update={"baselines": {"own": 30}})
    assert bundle.answers_digest(MC) == bundle.answers_digest(other)
    assert bundle.digest(MC) != bundle.digest(other)
    shots = MC.model_copy(update={"shots": 1})
    assert bundle.answers_digest(MC) != bundle.answers_digest(shots)
    write_rows(tmp_path, MC.file, choice_rows(5, seed=1))
    assert bundle.answers_digest(MC) != Bundle(tmp_path).answers_digest(MC)


def test_rows_are_parsed_once_and_shuffled_each_time_the_same(tmp_path, monkeypatch):
    write_rows(tmp_path, MC.file, choice_rows(20))
    bundle, reads = Bundle(tmp_path), []
    read = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: reads.append(name) or read(self, name))
    bundle.check([MC])
    assert bundle.rows(MC) == bundle.rows(MC)
    assert bundle.size(MC) == (tmp_path / "eval_data" / MC.file).stat().st_size
    assert bundle.digest(MC)
    assert reads == ["eval_data/a/mc.jsonl"]


def test_a_broken_zip_is_named_with_its_file(tmp_path):
    write_rows(tmp_path / "b", MC.file, choice_rows(200))
    archive = tmp_path / shutil.make_archive(str(tmp_path / "bundle"), "zip", tmp_path / "b")
    with zipfile.ZipFile(archive) as content:
        start = content.getinfo(f"eval_data/{MC.file}").header_offset
    data = bytearray(archive.read_bytes())
    for place in range(start + 200, start + 260):
        data[place] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(BundleError, match=r"eval_data/a/mc.jsonl is broken: it can't be unpacked"):
        Bundle(archive).check([MC])
    archive.write_bytes(data[:300])
    with pytest.raises(BundleError, match=r"bundle.zip is neither, or a zip that was cut off"):
        Bundle(archive)


def test_preparation_leaves_what_is_there_if_the_source_is_not_whole(tmp_path):
    """Each file is as before; and of a whole source, only the suite's own files are taken."""
    lambada, folder = SUITES["lambada"], tmp_path / "suites"
    write_catalogue(folder, lambada)
    before = (folder / "eval_data" / lambada.tasks[0].file).read_bytes()
    write_catalogue(tmp_path / "short", lambada, short=[lambada.tasks[0].file])
    with pytest.raises(BundleError, match="5152 of 5153 rows") as error:
        prepare_suite(lambada, str(tmp_path / "short"), folder)
    assert "prepare-suite" not in str(error.value)
    assert "name another source with --from" in str(error.value)
    assert (folder / "eval_data" / lambada.tasks[0].file).read_bytes() == before
    source = tmp_path / "whole"
    write_catalogue(source, lambada)
    write_rows(source, "world_knowledge/other.jsonl", [{"context": "a", "continuation": "b"}])
    write_rows(folder, "world_knowledge/mine.jsonl", [{"context": "a", "continuation": "b"}])
    (source / "core.yaml").write_text("another list")
    prepare_suite(lambada, str(source), folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {f"eval_data/{lambada.tasks[0].file}", "eval_data/world_knowledge/mine.jsonl"}


def test_texts_that_are_not_whole_replace_nothing(tmp_path):
    folder, suite = tmp_path / "suites", SUITES["wikitext"]
    write_catalogue(folder, suite)
    before = (folder / "eval_data" / suite.tasks[0].file).read_bytes()
    write_parquet(tmp_path / "few.parquet", ["page 1", "page 2"], column="page")
    with pytest.raises(BundleError, match="2 of 60 rows"):
        prepare_suite(suite, str(tmp_path / "few.parquet"), folder)
    assert [path.read_bytes() for path in folder.rglob("*") if path.is_file()] == [before]


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
