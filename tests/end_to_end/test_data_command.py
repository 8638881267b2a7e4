"""`isoloop data prepare`, as its user has it."""

import json
import re

import pytest
import yaml

from tests.commands import isoloop, isoloop_process


@pytest.fixture
def sweep_file(tmp_path, parquet_folder):
    sweep = {
        "name": "on-parquet",
        "tokens": [2048],
        "mean_recurrences": [1],
        "minimum_steps": 2,
        "model": {"width": 16, "heads": 2, "context": 16, "vocabulary": 400},
        "batch": 16,
        "data": {
            "corpus": str(parquet_folder), "tokenizer": "bpe", "tokenizer_vocabulary": 400, "validation_fraction": 0.1,
        },
        "evaluation": {"sequences": 8, "recurrences": [1]},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path / "sweep.yaml"


def test_prepare_then_run(sweep_file, tmp_path, new_database, ray, monkeypatch):
    said = isoloop("data", "prepare", "sweep.yaml", cwd=tmp_path).stdout
    assert ": prepared" in said
    assert re.search(r"^held out +(9|1[01])\.?\d*% of the text$", said, re.MULTILINE)
    assert "bpe, 400 ids" in said
    assert "windows of 16 tokens" in said
    (corpus,) = tmp_path.glob("isoloop-out/corpora/*/corpus.json")
    assert corpus.parent.name in said
    assert f"{json.loads(corpus.read_text())['train_tokens']:,} tokens" in said
    written = corpus.stat().st_mtime_ns
    assert "already prepared" in isoloop("data", "prepare", "sweep.yaml", cwd=tmp_path).stdout
    planned = isoloop("plan", "sweep.yaml", cwd=tmp_path).stdout
    assert "1 run, 0 done" in planned
    assert re.search(
        r"^corpus +parquet\w*, [\d.e+]+ training tokens, [\d.]+% of the text held out$", planned, re.MULTILINE
    )
    new_database(tmp_path / "isoloop-out" / "mlflow.db")
    address = ray.ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    ran = isoloop_process("run", "sweep.yaml", cwd=tmp_path)
    assert ran.stdout.splitlines()[0] == f"Ray at {address} (RAY_ADDRESS)"
    assert "TOKENIZERS_PARALLELISM" not in ran.stderr
    (result,) = tmp_path.glob("isoloop-out/runs/*/result.json")
    outcome = json.loads(result.read_text())
    assert outcome["bits_per_byte"] < outcome["loss"] / 0.7
    assert corpus.stat().st_mtime_ns == written


def test_plan_prepares_what_is_not_there(sweep_file, tmp_path):
    said = isoloop("plan", "sweep.yaml", cwd=tmp_path).stdout
    assert "1 run, 0 done" in said
    assert "already prepared" in isoloop("data", "prepare", "sweep.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parcae-140m-simulated"], "draws its losses from a law"),
        (["sweep.yaml", "--set", "data.column=body"], "data.column must be a column of every parquet file"),
        (["sweep.yaml", "--set", "model.vocabulary=256"], "set model.vocabulary=400"),
        (["demo", "--set", "data.files='*'"], "the standard library has none for data.files"),
        (["demo", "--set", "data.tokenizer=absent.json"], "data.tokenizer must be"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(sweep_file, tmp_path, arguments, said):
    done = isoloop("data", "prepare", *arguments, cwd=tmp_path, check=2)
    assert said in done.stderr
    assert done.stderr.count("\n") < 8


def test_help(tmp_path):
    assert "prepare" in isoloop("data", "--help", cwd=tmp_path).stdout
    assert "Usage" in isoloop("data", "prepare", "--help", cwd=tmp_path).stdout
