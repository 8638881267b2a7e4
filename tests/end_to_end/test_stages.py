"""Waiting for a command: its stages are shown on stderr, and stdout has its result alone."""

from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.cli import console
from tests.commands import isoloop


def test_the_result_is_all_that_is_printed_without_a_terminal(tmp_path, monkeypatch):
    simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.setattr(console, "SHORT_SECONDS", 0.0)
    done = isoloop("choose", "runs.csv", "--draws", 20, "--law", "training", "--law", "chinchilla", cwd=tmp_path)
    assert done.stdout.startswith("Use the ")
    assert "Comparing laws" in done.stderr
    assert not any(character in done.stderr for character in "\x1b\r")
    assert done.stderr.startswith("Reading the table")
