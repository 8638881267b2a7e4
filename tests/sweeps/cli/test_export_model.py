"""The command `isoloop export-model`."""

import json
import shutil

import pandas as pd
import pytest
import torch

from isoloop.sweeps.paths import Folders
from isoloop.trainer.data.stored_tokenizer import save_tokenizer
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.loop import train
from isoloop.trainer.model.exported import is_exported
from isoloop.trainer.model.pretrained import load_published, save_published
from isoloop.trainer.quality import load_trained
from isoloop.trainer.run.result import read_result, write_result
from tests.commands import isoloop


@pytest.fixture(scope="module")
def out(spec, corpus, tmp_path_factory):
    """An output folder with a sweep of one run."""
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="tiny")
    train(spec, corpus, folders.run(spec.run_id))
    folders.sweep.mkdir(parents=True)
    pd.DataFrame({"run_id": [spec.run_id]}).to_csv(folders.table, index=False)
    folders.manifest.write_text(json.dumps({"trials": None, "cells": [{"run_id": spec.run_id}]}))
    return folders.out


def test_a_run_is_exported_with_the_name_of_its_sweep(out, spec, tmp_path):
    run = out / "runs" / spec.run_id
    for target in ("tiny", spec.run_id, run, run / "model"):
        said = isoloop("export-model", target, "--to", tmp_path / "to", "--out", out, cwd=tmp_path).stdout
        assert f"{tmp_path / 'to'} has the model at T = 3" in said
        assert is_exported(tmp_path / "to")
        assert "| sweep | tiny |" in (tmp_path / "to" / "README.md").read_text()
    assert load_trained(tmp_path / "to").losses == load_trained(out / "runs" / spec.run_id).losses


def test_of_an_overfitted_run_the_weights_are_those_of_its_loss(out, spec, tmp_path):
    """For generated text, too: here the best weights are others by their sign."""
    copy = shutil.copytree(out, tmp_path / "out")
    run = copy / "runs" / spec.run_id
    model, recurrence = load_published(run / "model")
    with torch.no_grad():
        model.embedding.weight.neg_()
    save_published(run / "best-model", model, recurrence)
    save_tokenizer(run / "best-model", ByteTokenizer(), spec.model.context)
    changes = {"unique_tokens": 10, "best_loss": 1.0, "best_step": 4, "best_losses": {3: 1.0}}
    write_result(run, read_result(run).model_copy(update=changes))
    said = isoloop("export-model", "tiny", "--to", "to", "--out", copy, cwd=tmp_path).stdout
    assert f"the best run of 'tiny', {spec.run_id}: validation loss 1.0000 in its best step, 4 of {spec.steps}" in said
    exported = load_trained(tmp_path / "to")
    assert torch.equal(exported.model.embedding.weight, model.embedding.weight)
    assert exported.losses == {3: 1.0}
    greedy = ("-p", "the ", "--max-tokens", "8", "--temperature", "0", "--ignore-end")
    texts = [
        isoloop("generate", target, *greedy, "--out", copy, cwd=tmp_path).stdout
        for target in ("tiny", "to", spec.run_id)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_recurrence_that_was_not_measured_is_noted(out, spec, tmp_path):
    said = isoloop("export-model", spec.run_id, "--to", "to", "--recurrence", "9", "--out", out, cwd=tmp_path).stdout
    assert "note: T = 9 is outside what was measured" in said
    assert json.loads((tmp_path / "to" / "config.json").read_text())["recurrence"] == 9


def test_bad_targets_are_one_clear_message(out, spec, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = isoloop("export-model", spec.run_id, "--to", "mine", "--out", out, cwd=tmp_path, check=2)
    assert "isoloop: a model is exported into a new or empty folder" in done.stderr
    done = isoloop("export-model", spec.run_id, "--best", "--to", "to", "--out", out, cwd=tmp_path, check=2)
    assert "evaluation.keep_best" in done.stderr
    done = isoloop(
        "export-model", spec.run_id, "--recurrence", "5000", "--to", "to", "--out", out, cwd=tmp_path, check=2
    )
    assert "must be a whole number of loops from 1 to 4,096, but got 5000" in done.stderr
    done = isoloop("export-model", spec.run_id, "--to", ".", "--out", out, cwd=tmp_path, check=2)
    assert "is the one in which the command runs; name a new folder in it" in done.stderr
    assert not (tmp_path / "to").exists()
