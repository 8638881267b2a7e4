"""The model that a command's target names, and the weights of it."""

import json

import pandas as pd
import pytest

from isoloop.sweeps.models import find_model, sweep_of
from isoloop.sweeps.paths import Folders
from isoloop.trainer.run.result import RunResult, write_result

RESULT = RunResult(
    run_id="one", status="finished", simulated=False, steps=100, tokens=1000, unique_tokens=100, forward_loops=3,
    backward_loops=2, flops_exact=1, flops_parcae_release=1, loss=2.5, losses={3: 2.5}, best_loss=2.0, best_step=40,
    best_losses={3: 2.0}, bits_per_byte=None, spectral_radius=None, seconds=1,
)  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A sweep of two runs: one overfitted and kept its best weights, the other has a loss between these."""
    folders = Folders(out=tmp_path / "out", name="tiny")
    steady = {"run_id": "two", "loss": 2.2, "losses": {3: 2.2}, "best_loss": None, "best_step": None}
    for result in (RESULT, RESULT.model_copy(update=steady)):
        run = folders.run(result.run_id)
        (run / "model").mkdir(parents=True)
        write_result(run, result)
        (run / "spec.json").write_text("{}")
    (folders.run("one") / "best-model").mkdir()
    folders.sweep.mkdir(parents=True)
    pd.DataFrame({"run_id": ["one", "two"]}).to_csv(folders.table, index=False)
    folders.manifest.write_text(json.dumps({"trials": None, "cells": [{"run_id": "one"}, {"run_id": "two"}]}))
    return folders


def test_the_best_run_has_the_weights_of_its_loss(folders):
    found = find_model("tiny", folders.out)
    assert (found.source, found.weights) == (str(folders.run("one")), "best")
    assert found.note == "the best run of 'tiny', one: validation loss 2.0000 in its best step, 40 of 100"


def test_weights_that_were_not_kept_are_said(folders):
    (folders.run("one") / "best-model").rmdir()
    found = find_model("tiny", folders.out)
    assert (found.source, found.weights) == (str(folders.run("one")), "last")
    assert found.note.endswith(
        "validation loss 2.5000 in its last step; it was 2.0000 in step 40, whose weights it didn't keep"
    )


def test_a_run_that_did_not_overfit_has_its_last_weights(folders):
    changes = {"run_id": "two", "loss": 1.9, "best_loss": 1.9, "best_step": 100}
    write_result(folders.run("two"), RESULT.model_copy(update=changes))
    found = find_model("tiny", folders.out)
    assert (found.source, found.weights) == (str(folders.run("two")), "last")
    assert found.note == "the best run of 'tiny', two: validation loss 1.9000"


def test_a_run_by_name_has_the_weights_that_are_asked_for(folders):
    for target in ("one", str(folders.run("one"))):
        assert find_model(target, folders.out) == (str(folders.run("one")), "last", "")
        assert find_model(target, folders.out, best=True).weights == "best"


def test_a_folder_without_a_model_hides_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "two", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    assert find_model("tiny", folders.out).source == str(folders.run("one"))
    assert find_model("two", folders.out).source == str(folders.run("two"))
    for target in ("other", ".", ".."):  # what is in these, load_trained says
        assert find_model(target, folders.out) == (target, "last", "")


def test_of_two_models_of_one_name_the_folder_is_taken_and_said(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, other in (
        ("tiny", f"sweep of that name in {folders.sweep}"),
        ("two", f"run of that id in {folders.run('two')}"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        note = f"'{name}' is the model in {tmp_path / name} here, not the {other}"
        assert find_model(name, folders.out) == (name, "last", note)
    monkeypatch.chdir(folders.run("two").parent)
    assert find_model("two", folders.out).note == ""  # the same folder


def test_the_sweep_of_a_run_is_that_of_its_weights(folders, monkeypatch):
    run = folders.run("one")
    for source in (run, run / "model", run / "best-model"):
        assert sweep_of(source) == "tiny"
    monkeypatch.chdir(run)
    assert sweep_of(run.relative_to(run)) == "tiny"
    assert sweep_of(folders.sweep) is None
