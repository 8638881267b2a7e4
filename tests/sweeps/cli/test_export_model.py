"""The command `isoloop export-model`."""

import json

import pandas as pd
import pytest

from isoloop.sweeps.paths import Folders
from isoloop.trainer.loop import train
from isoloop.trainer.model.exported import is_exported
from isoloop.trainer.quality import load_trained
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
