"""The reference sweeps in results/: each table is of the configuration beside it, the stored fits are of the table, and
the prose says what they say."""

import json
import re
from pathlib import Path

import pytest

from isoloop.fitting import SweepFit, fit_sweep, read_table
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep

PYTHON = Path(__file__).resolve().parents[1] / "results" / "python"
SWEEPS = sorted(path.parent for path in PYTHON.glob("*/runs.csv"))
FITTED = [folder for folder in SWEEPS if (folder / "fit.json").exists()]


def corpus(folder):
    """Return the facts of the text that the runs were trained on."""
    found = json.loads((PYTHON / "corpora.json").read_text(encoding="utf-8"))
    tokenizer = load_sweep(str(folder / "config.yaml")).data.tokenizer
    return next(each for each in found if each["tokenizer"] == tokenizer)


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda folder: folder.name)
def test_the_runs_are_those_of_the_configuration(folder):
    """Run ids are hashes of all that determines a result: planned anew, they are the table's."""
    facts = corpus(folder)
    text = PlannedCorpus(facts["fingerprint"], facts["train_tokens"])
    plan = plan_sweep(load_sweep(str(folder / "config.yaml")), lambda _: text)
    assert {cell.run_id for cell in plan.cells} == set(read_table(folder / "runs.csv")["run_id"])


@pytest.mark.parametrize("folder", FITTED, ids=lambda folder: folder.name)
def test_the_stored_fit_is_of_the_table(folder):
    """The estimates are; their intervals are a matter of the tests of fits."""
    stored = SweepFit.read(folder / "fit.json")
    again = fit_sweep(read_table(folder / "runs.csv"), name=folder.name, draws=0, profiles=False)
    for law in ("mean_recurrence_law", "tokens_law"):
        assert getattr(again.isoflop, law).exponent == pytest.approx(getattr(stored.isoflop, law).exponent, abs=1e-6)
    for mine, theirs in zip(again.training.parameters, stored.training.parameters, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-2)


@pytest.mark.parametrize("folder", FITTED, ids=lambda folder: folder.name)
def test_the_losses_in_the_prose_are_the_tables(folder):
    page = (PYTHON / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {folder.name} \| (\S+) \| (\d) \| (.*) \|$", page, flags=re.MULTILINE)
    table = read_table(folder / "runs.csv")
    assert sum(len(losses.split(" | ")) for *_, losses in rows) == len(table)
    for budget, seed, losses in rows:
        mine = table[(table["budget"] == float(budget)) & (table["seed"] == int(seed))].sort_values("mean_recurrence")
        assert [f"{loss:.4f}" for loss in mine["loss"]] == losses.replace("*", "").split(" | ")
