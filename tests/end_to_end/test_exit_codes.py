"""Exit codes: what a command that ends with each of them has done and left, for scripts and schedulers."""

import pandas as pd
import pytest
import yaml

from isoloop.sweeps.cli import main
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from tests.commands import isoloop, quick_pages
from tests.sweeps.conftest import SIMULATED


def run_ids(content):
    return [cell.run_id for cell in plan_sweep(validate_sweep(content, source="test"), simulated_corpus).cells]


BY_TOKENS = {**SIMULATED, "budgets": None, "tokens": [2e5, 4e5, 8e5, 16e5]}


@pytest.mark.parametrize(
    ("content", "failing", "is_fitted"),
    [(SIMULATED, 1, True), (SIMULATED, 16, False), (BY_TOKENS, 3, True), (BY_TOKENS, 16, False)],
)
def test_1_is_failed_runs_beside_the_results_of_the_others(
    content, failing, is_fitted, tmp_path, new_database, commands_share_ray
):
    """Some runs can't begin, for a folder is where their lock should be; the others are in table, fit and page."""
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "isoloop-out"
    new_database(out / "mlflow.db")
    failed = run_ids(content)[:failing]
    for run_id in failed:
        (out / "runs" / run_id / "lock").mkdir(parents=True)
    with quick_pages():
        done = isoloop("run", "sweep.yaml", "--draws", 20, cwd=tmp_path, check=1)
    assert all(f"run {run_id} failed: IsADirectoryError" in done.stderr for run_id in failed)
    folder = out / "sweeps" / SIMULATED["name"]
    table = pd.read_csv(folder / "runs.csv")
    assert set(table.loc[table["status"] == "failed", "run_id"]) == set(failed)
    assert len(table) == 16
    assert (folder / "report.html").is_file()
    assert (folder / "fit.json").is_file() == is_fitted
    assert ("Not fitted: a fit needs finished runs" in done.stdout) == (not is_fitted)


def test_3_is_a_fault_of_ours(tmp_path, monkeypatch):
    """Python itself would end with 1, which says that runs have failed and the rest is done."""

    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(main, "app", broken)
    assert "RuntimeError: a bug" in isoloop(cwd=tmp_path, check=3).stderr


@pytest.mark.parametrize("command", [[], ["run"], ["tune"]])
def test_the_codes_are_in_the_help(command, tmp_path):
    said = " ".join(isoloop(*command, "--help", cwd=tmp_path).stdout.split())
    for code in ("0 all is done", "1 runs have failed for good", "2 nothing was done", "3 a fault", "130 stopped"):
        assert code in said
