"""Sweeps on synthetic texts: the configurations of docs/synthetic.md, their plan, and what the run table has."""

import re
from pathlib import Path

import pandas as pd
import pytest

from isoloop.fitting import check_table
from isoloop.sweeps.cli.console import describe_corpus
from isoloop.sweeps.config.loading import load_sweep, validate_sweep
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep
from isoloop.sweeps.report.provenance import read_origin
from isoloop.sweeps.tracking.schema import OUTCOME, RUN_ID, cell_tags, loss_tags, parameters, result_metrics, run_table
from isoloop.trainer.data.synthetic import Automaton
from isoloop.trainer.loop import train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "synthetic.md"


def test_the_sweeps_of_the_page_are_valid(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    (yaml,) = re.findall(r"^```yaml\n# automaton.yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^    isoloop run automaton.yaml (--set .*)$", text, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("automaton.yaml").write_text(yaml, encoding="utf-8")
    trial = load_sweep("automaton.yaml")
    assert (trial.data.automaton.exponent, trial.data.packing, trial.data.answers_only) == (1.5, "contiguous", False)
    aligned = load_sweep("automaton.yaml", command.removeprefix("--set ").split(" --set "))
    assert (aligned.name, aligned.data.packing, aligned.data.answers_only) == ("answers", "best-fit", True)
    line = len(next(iter(Automaton(aligned.data.automaton).lines())))
    assert aligned.model.context + 1 == line + 1  # a row is one line and its separator
    for sweep in (trial, aligned):
        plan = plan_sweep(sweep, lambda data: PlannedCorpus("f", 29_000_000))
        assert len(plan.cells) == 19  # 4 budgets of 5 recurrences, less a run of too few steps
        assert max(cell.epochs for cell in plan.cells) < 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep over two texts from its configuration to its run table, without Ray and MLflow."""
    text = {"lines": 300, "cells": 3, "rows": 2, "largest_k": 2}
    content = {
        "name": "text",
        "tokens": [640],
        "mean_recurrences": [2],
        "axes": {"text": [
            {"name": "few steps", "data.automaton": {**text, "exponent": 2}},
            {"name": "many steps", "data.automaton": text},
        ]},
        "model": {"width": 16, "heads": 2, "context": 20},
        "data": {"corpus": "automaton", "packing": "best-fit", "answers_only": True, "validation_fraction": 0.2},
        "depth": {"sampling": "fixed"},
        "evaluation": {"sequences": 4, "recurrences": [1, 2]},
        "batch": 4,
        "minimum_steps": 5,
        "maximum_epochs": 100,
    }  # fmt: skip
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="text")
    prepared = prepare(validate_sweep(content, source="test"), folders)
    rows = []
    for cell in prepared.plan.cells:
        result = train(cell.spec, prepared.corpora[cell.spec.data_fingerprint], folders.run(cell.run_id))
        tags = {**cell_tags(prepared.plan, cell), **loss_tags(result), RUN_ID: cell.run_id, OUTCOME: result.status}
        rows.append((tags, {name: value for name, value in result_metrics(result).items() if "loss_T" not in name}))
    return folders, prepared, rows


def test_each_text_is_a_corpus_of_its_own_and_is_called_synthetic(trained):
    folders, prepared, rows = trained
    assert [corpus.facts.name for corpus in prepared.corpora.values()] == ["automaton (synthetic)"] * 2
    assert {tags["isoloop.corpus"] for tags, _ in rows} == {"automaton (synthetic)"}
    for corpus in prepared.corpora.values():
        assert "a synthetic text, made by isoloop" in describe_corpus(corpus, context=20, is_new=True)
    origin = read_origin(folders, [cell.run_id for cell in prepared.plan.cells])
    assert set(origin.corpora) == {f"{name} (automaton, a synthetic text)" for name in prepared.corpora}
    assert parameters(prepared.plan.cells[0])["data.answers_only"] is True


def test_the_run_table_has_exact_answers_and_predicted_tokens(trained):
    _, prepared, rows = trained
    table = check_table(run_table(rows))
    assert len(table) == 2
    assert pd.api.types.is_float_dtype(table["exact_answers"])
    assert table["exact_answers"].between(0, 1).all()
    assert (table["predicted_tokens"] < table["tokens"]).all()
    assert (table["predicted_tokens"] > 0.3 * table["tokens"]).all()
    assert set(table["flops"]) == {cell.flops for cell in prepared.plan.cells}
