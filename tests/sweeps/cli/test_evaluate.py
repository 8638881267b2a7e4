"""The commands `isoloop evaluate` and `isoloop data prepare-suite`."""

import json
import math
import re
import shutil
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file, save_file

from isoloop.sweeps.cli.evaluate import recurrences_of
from isoloop.sweeps.paths import Folders
from isoloop.trainer import hub
from isoloop.trainer.loop import train
from isoloop.trainer.quality.suites.bundle import find_suite
from isoloop.trainer.quality.suites.catalogue import SUITES
from isoloop.trainer.quality.suites.evaluation import Subject, evaluate_suite
from isoloop.trainer.quality.trained_model import load_trained
from tests.commands import ISOLOOP, isoloop
from tests.parquet import write_parquet
from tests.trainer.quality.bundles import (
    choice_rows,
    exact_rows,
    schema_rows,
    write_catalogue,
    write_rows,
    write_tasks,
)

ENTRIES = [
    {"label": "mc", "dataset_uri": "a/mc.jsonl", "num_fewshot": [2], "icl_task_type": "multiple_choice"},
    {"label": "schema", "dataset_uri": "a/schema.jsonl", "num_fewshot": [0], "icl_task_type": "schema"},
    {"label": "lm", "dataset_uri": "a/lm.jsonl", "num_fewshot": [1], "icl_task_type": "language_modeling"},
]


@pytest.fixture(scope="module")
def out(spec, corpus, tmp_path_factory):
    """An output folder with two runs, and a suite of the user's own beside it."""
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="tiny")
    for each in (spec, spec.model_copy(update={"seed": 1})):
        train(each, corpus, folders.run(each.run_id))
    own = folders.out / "own"
    write_rows(own, "a/mc.jsonl", choice_rows(12))
    write_rows(own, "a/schema.jsonl", schema_rows(8))
    write_rows(own, "a/lm.jsonl", exact_rows(8))
    write_tasks(own, ENTRIES, {"mc": 25, "schema": 50, "lm": 0})
    return folders.out


def evaluated(out, spec, *options, **settings):
    return isoloop("evaluate", spec.run_id, "--suite", "own/core.yaml", *options, "--out", out, cwd=out, **settings)


def test_a_run_is_evaluated_as_from_python(out, spec, tmp_path):
    done = evaluated(out, spec, "--recurrences", "1,3-4", "--seeds", "7,8")
    trained = load_trained(out / "runs" / spec.run_id)
    subject = Subject.of(trained.model, trained.tokenizer, name=trained.name)
    suite, bundle = find_suite(str(out / "own" / "core.yaml"), None)
    summary = evaluate_suite(subject, suite, bundle, tmp_path, recurrences=[1, 3, 4], seeds=[7, 8])
    assert done.stdout == summary.report()
    assert "Mean, baselines own" in done.stdout
    again = evaluated(out, spec, "--recurrences", "1,3-4", "--seeds", "7,8", "--json")
    assert again.stdout == summary.model_dump_json(indent=1) + "\n"
    stored = json.loads((out / "quality" / spec.run_id / "own-core" / "mc.json").read_text())
    assert stored["of"]["name"] == spec.run_id


def test_models_are_compared_row_by_row(out, spec):
    other = spec.model_copy(update={"seed": 1})
    for each in (spec, other):
        evaluated(out, each, "--recurrences", "1,2", "--seeds", "7")
    done = evaluated(out, spec, "--recurrences", "2", "--seeds", "7", "--against", f"{other.run_id}@1")
    assert f"{spec.run_id} at T = 2 minus {other.run_id} at T = 1, row by row" in done.stdout
    done = evaluated(out, spec, "--recurrences", "2", "--seeds", "7", "--against", spec.run_id)
    assert "accuracy" in done.stdout.partition("row by row")[2]
    both = evaluated(out, spec, "--recurrences", "2", "--seeds", "7", "--against", f"{other.run_id}@1", "--json")
    content = json.loads(both.stdout)  # one document
    assert content["summary"]["of"]["name"] == content["differences"]["first"] == spec.run_id
    own = evaluated(out, spec, "--recurrences", "1,5", "--seeds", "7", "--against", f"{spec.run_id}@1").stdout
    assert f"{spec.run_id} at T = 5 minus {spec.run_id} at T = 1" in own


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("nobody", "has no result of mc, schema, lm"),
        ("{other}@9", "has no answers to mc at T = 9 with the seeds 7"),
        ("{other}@1,2", "--against takes one T"),
        ("{other}@x", "T of --against must be whole numbers"),
    ],
)
def test_whom_to_compare_with_is_checked_before_anything_is_computed(out, spec, against, message):
    other = spec.model_copy(update={"seed": 1})
    evaluated(out, other, "--recurrences", "1", "--seeds", "7")
    before = {path: path.read_bytes() for path in (out / "quality").rglob("*.json")}
    against = against.format(other=other.run_id)
    done = evaluated(out, spec, "--recurrences", "6", "--seeds", "7", "--against", against, check=2)
    assert message in done.stderr
    assert {path: path.read_bytes() for path in (out / "quality").rglob("*.json")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recurrences", "one"], "--recurrences must be whole numbers"),
        (["--recurrences", "0"], "from 1 to 4,096"),
        (["--recurrences", "3,8-1"], "the smaller number first, but got '8-1'"),
        (["--seeds", "1,1"], "seeds must be different numbers"),
        (["--suite", "cor"], "a suite must be one of core, core-extended"),
        (["--suite", "core"], "there is none at"),
        (["--suite", "core", "--bundle", "own"], "copa.jsonl is missing"),
    ],
)
def test_bad_input_is_one_clear_error(out, spec, arguments, message):
    done = evaluated(out, spec, *arguments, check=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_recurrences_are_numbers_and_ranges():
    assert recurrences_of(None) == []
    assert recurrences_of("8") == [8]
    assert recurrences_of("1, 2,6-9,7-10") == [1, 2, 6, 7, 8, 9, 10]
    assert len(recurrences_of("1-4096")) == 4096


@pytest.mark.parametrize(
    "text", ["8-1", "3,8-1", "1-10000000000", "1-4097", "0", "-3", "1-", "1-2-3", "", "1,,2", "1.5"]
)
def test_other_recurrences_are_refused_with_the_rule(text):
    with pytest.raises(ValueError, match="whole numbers from 1 to 4,096"):
        recurrences_of(text)


def test_ctrl_c_loses_at_most_a_task(out, spec):
    """The command is stopped when the first task is stored; a later one has nothing of it to do again."""
    write_rows(out / "long", "a/mc.jsonl", choice_rows(20))
    write_rows(out / "long", "a/lm.jsonl", choice_rows(1500, seed=3))
    entries = [ENTRIES[0], {**ENTRIES[0], "label": "lm", "dataset_uri": "a/lm.jsonl", "num_fewshot": [9]}]
    write_tasks(out / "long", entries, {"mc": 25, "lm": 25})
    command = [*ISOLOOP, "evaluate", spec.run_id, "--suite", "long/core.yaml", "--out", str(out), "--seeds", "1"]
    command += ["--recurrences", "1-24"]
    stored = out / "quality" / spec.run_id / "long-core" / "mc.json"
    stored.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out) as process:
        while not stored.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(json.loads(stored.read_text())["seeds"]) == ["1"]


def test_a_bundle_is_unpacked_and_checked(tmp_path):
    write_catalogue(tmp_path / "download" / "eval_bundle", SUITES["lambada"])
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", tmp_path / "download")
    done = isoloop("data", "prepare-suite", "--suite", "lambada", "--from", archive, "--out", "o", cwd=tmp_path)
    assert "has the data of lambada: 1 tasks, all files whole" in done.stdout
    short = isoloop("data", "prepare-suite", "--suite", "core", "--from", archive, "--out", "p", cwd=tmp_path, check=2)
    assert "arc_easy.jsonl is missing" in short.stderr
    nowhere = isoloop("data", "prepare-suite", "--suite", "core", "--out", "o", cwd=tmp_path, check=2)
    assert "name it with --from" in nowhere.stderr


def test_validation_text_is_that_of_the_first_documents(tmp_path):
    texts = [f"document {number}" for number in range(1500)]
    for part in range(3):
        write_parquet(tmp_path / "text" / f"val-{part}.parquet", texts[part * 500 : part * 500 + 500])
    write_parquet(tmp_path / "text" / "train-0.parquet", ["none of these"] * 1000)
    isoloop("data", "prepare-suite", "--suite", "validation", "--from", "text", "--out", "o", cwd=tmp_path)
    path = tmp_path / "o" / "suites" / "eval_data" / "perplexity" / "validation.jsonl"
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == texts[:1000]


def test_wikitext_is_fetched_from_its_public_place(tmp_path, monkeypatch):
    """The client of the hub is replaced: there is no network in a test."""
    source = tmp_path / "hub" / "wikitext-2-raw-v1"
    write_parquet(source / "test-00000.parquet", [f"page {number}" for number in range(62)], column="page")
    write_parquet(source / "train-00000.parquet", ["none of these"], column="page")
    fetched = []

    def list_files(repository, revision, waiting):
        names = sorted(path.relative_to(tmp_path / "hub").as_posix() for path in source.iterdir())
        return "c" * 40, [hub.HubFile(path=name, size=1, digest="d") for name in names]

    def fetch_file(repository, path, *, kind, revision, waiting):
        fetched.append((repository, path, kind, revision))
        return tmp_path / "hub" / path

    monkeypatch.setattr(hub, "list_files", list_files)
    monkeypatch.setattr(hub, "fetch_file", fetch_file)
    isoloop("data", "prepare-suite", "--suite", "wikitext", "--out", "o", cwd=tmp_path)
    assert fetched == [
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1/test-00000.parquet", "dataset", "c" * 40)
    ]
    path = tmp_path / "o" / "suites" / "eval_data" / "perplexity" / "wikitext.jsonl"
    assert [json.loads(line)["page"] for line in path.read_text().splitlines()] == [f"page {n}" for n in range(62)]


def test_a_bundle_on_the_hub_is_fetched_file_by_file_or_as_its_zip(tmp_path, monkeypatch):
    write_catalogue(tmp_path / "hub" / "bundle", SUITES["lambada"])
    monkeypatch.setattr(hub, "fetch_file", lambda repository, path, **_: tmp_path / "hub" / path)
    for names in (["README.md", "bundle/eval_data/language_understanding/lambada_openai.jsonl"], ["all.zip"]):
        shutil.make_archive(str(tmp_path / "hub" / "all"), "zip", tmp_path / "hub" / "bundle")
        listed = [hub.HubFile(path=name, size=1, digest="d") for name in names]
        monkeypatch.setattr(hub, "list_files", lambda *_, listed=listed: ("c" * 40, listed))
        out = f"o-{len(names)}"
        isoloop("data", "prepare-suite", "--suite", "lambada", "--from", "an/owner", "--out", out, cwd=tmp_path)
        assert (tmp_path / out / "suites" / "eval_data" / "language_understanding" / "lambada_openai.jsonl").is_file()


def test_all_runs_of_a_sweep(out, spec):
    """A line for each run, and the results are those of each run alone."""
    folders = Folders(out=out, name="tiny")
    runs = [spec.run_id, spec.model_copy(update={"seed": 1}).run_id]
    folders.sweep.mkdir(parents=True, exist_ok=True)
    folders.table.write_text("run_id\n" + "\n".join(runs) + "\n")
    options = ("--suite", "own/core.yaml", "--seeds", "5", "--out", out)
    lines = isoloop("evaluate", "tiny", "--all", *options, cwd=out).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", *runs]
    summaries = json.loads(isoloop("evaluate", "tiny", "--all", *options, "--json", cwd=out).stdout)
    for run, summary, line in zip(runs, summaries, lines[1:], strict=True):
        alone = json.loads(isoloop("evaluate", run, *options, "--json", cwd=out).stdout)
        assert alone == summary
        (score,) = summary["scores"].values()
        assert f"{100 * score[str(spec.recurrence.mean)]['value']:.2f}" in line
        assert f"{load_trained(out / 'runs' / run).result.loss:.4f}" in line
    said = isoloop("evaluate", "tiny", "--all", "--best", *options, cwd=out, check=2).stderr
    assert "--all evaluates the runs of a sweep as they are, but got --best" in said


def test_all_names_the_runs_that_are_not_in_its_table(out, spec, tmp_path):
    """One has diverged since, another one's weights are gone: said, and the others' table is printed."""
    folders = Folders(out=tmp_path / "out", name="partly")
    runs = [spec.run_id, spec.model_copy(update={"seed": 1}).run_id]
    names = ["whole", "not-a-number", "without-weights", "elsewhere"]
    for name, run in zip(names, (runs[0], runs[1], runs[1]), strict=False):
        shutil.copytree(out / "runs" / run, folders.run(name))
    weights = next((folders.run("not-a-number") / "model").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor * math.nan for name, tensor in tensors.items()}, weights)
    for part in ("model", "checkpoints"):
        shutil.rmtree(folders.run("without-weights") / part, ignore_errors=True)
    folders.sweep.mkdir(parents=True)
    folders.table.write_text("run_id\n" + "\n".join(names) + "\n")
    options = ("--suite", str(out / "own" / "core.yaml"), "--seeds", "5", "--out", folders.out)
    done = isoloop("evaluate", "partly", "--all", *options, cwd=out, check=1)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", spec.run_id]
    assert "run not-a-number was not evaluated: a model's losses must be finite" in done.stderr
    assert "run without-weights was left out: its weights aren't under --out" in done.stderr
    assert "run elsewhere was left out: its folder isn't under --out" in done.stderr


def test_folders_of_one_name_have_results_of_their_own(out, spec, tmp_path):
    """The weights of two runs, each copied to a folder called `weights`; a copy of one finds its results."""
    runs = [spec.run_id, spec.model_copy(update={"seed": 1}).run_id]
    shutil.copytree(out / "own", tmp_path / "own")
    command = ("--suite", "own/core.yaml", "--seeds", "5", "--recurrences", "1", "--json", "--out", "o")
    names = []
    for place, run in zip(("a", "b", "c"), (*runs, runs[0]), strict=True):
        shutil.copytree(out / "runs" / run / "model", tmp_path / place / "weights")
        done = isoloop("evaluate", f"{place}/weights", *command, cwd=tmp_path)
        names.append(json.loads(done.stdout)["of"]["name"])
    assert names[0] == names[2] != names[1]
    assert {path.name for path in (tmp_path / "o" / "quality").iterdir()} == set(names)
    assert all(re.fullmatch(r"weights-[0-9a-f]{8}", name) for name in names)
