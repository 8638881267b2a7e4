"""The reference sweeps in results/: each table is of the configuration beside it, the stored fits are of the table, and
the prose says what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from isoloop.fitting import SweepFit, fit_sweep, read_table
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep

RESULTS = Path(__file__).resolve().parents[1] / "results"
PYTHON = RESULTS / "python"
SWEEPS = sorted(path.parent for path in RESULTS.glob("*/*/config.yaml"))
FITTED = sorted(path.parent for path in RESULTS.glob("*/*/fit.json"))
PROSE = [folder for folder in FITTED if folder.parent == PYTHON]


def name(folder):
    """Return a folder's name for a test's id."""
    return str(folder.relative_to(RESULTS))


def corpus(folder):
    """Return the facts of the text that the runs were trained on."""
    found = json.loads((folder.parent / "corpora.json").read_text(encoding="utf-8"))
    data = load_sweep(str(folder / "config.yaml")).data
    return next(each for each in found if (each["name"], each["tokenizer"]) == (data.corpus, data.tokenizer))


@pytest.mark.parametrize("folder", SWEEPS, ids=name)
def test_the_runs_are_those_of_the_configuration(folder):
    """Run ids are hashes of all that determines a result: planned anew, they are the table's."""
    facts = corpus(folder)
    text = PlannedCorpus(facts["fingerprint"], facts["train_tokens"])
    plan = plan_sweep(load_sweep(str(folder / "config.yaml")), lambda _: text)
    assert {cell.run_id for cell in plan.cells} == set(read_table(folder / "runs.csv")["run_id"])


@pytest.mark.parametrize("folder", FITTED, ids=name)
def test_the_stored_fit_is_of_the_table(folder):
    """The estimates are; their intervals are a matter of the tests of fits."""
    stored = SweepFit.read(folder / "fit.json")
    again = fit_sweep(read_table(folder / "runs.csv"), name=folder.name, draws=0, profiles=False)
    for law in ("mean_recurrence_law", "tokens_law"):
        mine, theirs = getattr(again.isoflop, law), getattr(stored.isoflop, law)
        assert (mine and mine.exponent) == (theirs and pytest.approx(theirs.exponent, abs=1e-6))
    for mine, theirs in zip(again.training.parameters, stored.training.parameters, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-2)


@pytest.mark.parametrize("folder", PROSE, ids=name)
def test_the_losses_in_the_prose_are_the_tables(folder):
    page = (PYTHON / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {folder.name} \| (\S+) \| (\d) \| (.*) \|$", page, flags=re.MULTILINE)
    table = read_table(folder / "runs.csv")
    assert sum(len(losses.split(" | ")) for *_, losses in rows) == len(table)
    for budget, seed, losses in rows:
        mine = table[(table["budget"] == float(budget)) & (table["seed"] == int(seed))].sort_values("mean_recurrence")
        assert [f"{loss:.4f}" for loss in mine["loss"]] == losses.replace("*", "").split(" | ")


LIMITED = [RESULTS / "limited-text" / name for name in ("fresh-text", "800k", "200k")]
BOLD = re.compile(r"\*\*([\d.]+)\*\*")


@pytest.mark.parametrize("folder", LIMITED, ids=name)
def test_the_losses_on_limited_text_are_the_tables(folder):
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {folder.name} \| (\S+) \| (.*) \| \S+ \|$", page, flags=re.MULTILINE)
    table = pd.read_csv(folder / "runs.csv").sort_values("mean_recurrence")
    assert len(rows) == table["budget"].nunique() == 5
    for budget, losses in rows:
        mine = table[table["budget"] == float(budget)]["loss"]
        assert [f"{loss:.4f}" for loss in mine] == losses.replace("*", "").split(" | ")
        assert BOLD.findall(losses) == [f"{mine.min():.4f}"]


def test_the_tuned_runs_have_the_best_decay(tmp_path):
    """`tuned.py` chooses them again from the whole sweep."""
    limited = RESULTS / "limited-text"
    subprocess.run([sys.executable, limited / "tuned.py", limited / "sweep" / "runs.csv", tmp_path], check=True)
    for size in ("200k", "800k"):
        again, stored = (pd.read_csv(place / size / "runs.csv") for place in (tmp_path, limited))
        pd.testing.assert_frame_equal(again, stored)


def test_the_losses_on_the_automaton_are_the_tables():
    folder = RESULTS / "automaton"
    page = (folder / "README.md").read_text(encoding="utf-8")
    table = pd.read_csv(folder / "looped" / "runs.csv")
    rows = re.findall(r"^\| (\S+e\d+) \| (.*\(0\.\d+\)) \|$", page, flags=re.MULTILINE)
    assert len(rows) == table["budget"].nunique() == 4
    for budget, losses in rows:
        cells = table[table["budget"] == float(budget)].groupby("mean_recurrence")["loss"].agg(["mean", "std"])
        mine = [f"{mean:.4f} ({std:.4f})" for mean, std in cells.itertuples(index=False)]
        assert losses.replace("*", "").split(" | ") == mine
        assert BOLD.findall(losses) == [f"{cells['mean'].min():.4f}"]


def test_the_exponents_in_the_findings_are_the_stored_fits():
    page = (RESULTS.parent / "docs" / "findings.md").read_text(encoding="utf-8")
    links = r"^\|[^|]*\[([\w-]+)\]\(\.\./results/([\w-]+)/README\.md\)\)"
    rows = re.findall(links + r" \|[^|]*\|[^|]*\| ([^|]*) \|", page, flags=re.MULTILINE)
    assert len(rows) == 6
    for folder, study, text in rows:
        law = SweepFit.read(RESULTS / study / folder / "fit.json").isoflop.mean_recurrence_law
        expected = "none" if law is None else f"{law.exponent:.2f} ({law.interval[0]:.2f} to {law.interval[1]:.2f})"
        assert text == expected
