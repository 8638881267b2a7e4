"""`isoloop answer` on a table without a fit, which is fitted and stored, and then on that fit, as text and JSON."""

import json

import pytest

from isoloop.fitting import SweepFit, answer
from tests.commands import isoloop
from tests.run_tables import dense_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs.csv, which has no fit yet."""
    folder = tmp_path_factory.mktemp("answer")
    dense_table().to_csv(folder / "runs.csv", index=False)
    return folder


def test_a_table_is_fitted_first_and_then_answered_from_its_fit(folder):
    text = isoloop("answer", "runs.csv", cwd=folder).stdout
    assert text.startswith("No fit of runs.csv was stored: it was fitted now")
    assert "Should the next FLOP buy more tokens or more parameters?" in text
    fit = SweepFit.read(folder / "runs.fit.json")
    assert answer(fit).report() in text
    again = isoloop("answer", "runs.csv", "--flops", 1e20, "--params", 2e8, "--tokens", 1e10, cwd=folder).stdout
    assert again.endswith(answer(fit, 1e20, params=2e8, tokens=1e10).report())
    stored = json.loads(isoloop("answer", "runs.fit.json", "--percent", 20, "--json", cwd=folder).stdout)
    assert stored["marginal"]["percent"] == 20


def test_a_part_of_a_model_is_refused(folder):
    assert "tokens is missing" in isoloop("answer", "runs.fit.json", "--params", 1e9, cwd=folder, check=2).stderr
