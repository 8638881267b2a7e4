"""The screen that `isoloop fit` prints, and the fit that it stores: where, of which table, whole or not at all."""

import gc
import gzip
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from isoloop.fitting import SweepFit, simulate_table
from tests.commands import isoloop
from tests.run_tables import dense_table, own_flops_table

FLOPS = "1e20"
BUDGETS = (6e18, 1.2e19, 2.4e19)
LINES, COLUMNS = 40, 80


def fit(target, folder, *options):
    return isoloop("fit", target, "--draws", 20, *options, cwd=folder).stdout


def predict(target, folder):
    return isoloop("predict", target, "--flops", FLOPS, cwd=folder).stdout


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the table runs.csv.gz, its fit, and in screen.txt what `isoloop fit` printed."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "runs.csv.gz").write_bytes(gzip.compress(dense_table(budgets=BUDGETS).to_csv(index=False).encode()))
    (folder / "screen.txt").write_text(fit("runs.csv.gz", folder))
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return Path(shutil.copytree(stored, tmp_path / "runs"))


def test_the_screen_says_where_the_fit_is_and_how_to_predict_and_the_fit_answers_for_its_table(stored):
    rows = (stored / "screen.txt").read_text().splitlines()
    assert len(rows) <= LINES
    assert max(map(len, rows)) <= COLUMNS
    assert rows[-2] == "stored in runs.fit.json; the whole report: runs.fit.txt, or --full"
    assert rows[-1] == "next: isoloop predict runs.fit.json --flops 4.8e+19"
    assert "4.8e+19 FLOPs" in isoloop(*rows[-1].split()[2:], cwd=stored).stdout
    assert "was fitted now" not in predict("runs.csv.gz", stored)
    read = SweepFit.read(stored / "runs.fit.json")
    assert len(read.training.draws) == 20
    assert (stored / "runs.fit.txt").read_text() == read.report()
    assert (stored / "screen.txt").read_text().startswith(read.summary(lines=37))


def test_full_prints_the_whole_report_and_a_second_fit_is_the_same(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full = fit("runs.csv.gz", folder, "--full")
    assert full.startswith(SweepFit.read(folder / "runs.fit.json").report())
    assert full.splitlines()[-2:] == (folder / "screen.txt").read_text().splitlines()[-2:]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_tables_of_one_stem_have_a_fit_each(folder):
    before = (folder / "runs.fit.json").read_bytes()
    own_flops_table(budgets=BUDGETS).to_parquet(folder / "runs.parquet")
    assert "stored in runs.parquet.fit.json" in fit("runs.parquet", folder)
    assert (folder / "runs.fit.json").read_bytes() == before
    answers = [predict(name, folder) for name in ("runs.csv.gz", "runs.parquet")]
    assert ["mean recurrence" in answer for answer in answers] == [False, True]
    assert not any("was fitted now" in answer for answer in answers)
    assert "Figures of runs" in isoloop("figure", "runs.parquet.fit.json", cwd=folder).stdout  # of its own table


def test_a_table_whose_content_changed_is_noticed_and_one_that_was_touched_is_not(folder):
    path = folder / "runs.csv.gz"
    os.utime(path, (2e9, 2e9))
    assert "was fitted now" not in predict("runs.csv.gz", folder)
    path.write_bytes(gzip.compress(dense_table(budgets=BUDGETS, seed=1).to_csv(index=False).encode()))
    os.utime(path, (1e9, 1e9))  # as a copy that keeps its time, from a backup
    for command in (["predict", "runs.csv.gz", "--flops", FLOPS], ["figure", "runs.csv.gz"]):
        message = isoloop(*command, cwd=folder, check=2).stderr
        assert "runs.csv.gz changed after runs.fit.json was made; fit it again with: isoloop fit runs.csv.gz" in message


def test_a_fit_without_the_largest_budget_has_a_file_of_its_own(folder):
    before = (folder / "runs.fit.json").read_bytes()
    screen = fit("runs.csv.gz", folder, "--hold-out")
    words = " ".join(screen.split())
    assert "Held out: 7 runs at the largest budget, 2.4e+19 (2.0x beyond): mean absolute error 0." in words
    assert "stored in runs.hold-out.json" in screen
    assert "next: isoloop predict runs.hold-out.json --flops 2.4e+19" in screen
    assert (folder / "runs.fit.json").read_bytes() == before


def table_whose_fit_cannot_be_written(folder):
    """A table whose name is so long that a fit beside it would have too long a name."""
    path = folder / f"{'x' * 240}.csv"
    dense_table(budgets=BUDGETS).to_csv(path, index=False)
    return path


def test_where_no_fit_can_be_written_beside_a_table_it_is_in_the_output_folder(tmp_path):
    path = table_whose_fit_cannot_be_written(tmp_path)
    screen = fit(path.name, tmp_path)
    assert ".fit.json can't be written (File name too long):" in screen
    (stored,) = (tmp_path / "isoloop-out" / "fits").glob("*.fit.json")
    assert f"stored in isoloop-out/fits/{stored.name}" in screen
    assert sum(math.ceil(len(line) / COLUMNS) for line in screen.splitlines()) <= LINES
    assert "was fitted now" not in predict(path.name, tmp_path)
    assert "Figures of" in isoloop("figure", path.name, cwd=tmp_path).stdout
    # It is no fit of another table of that name.
    dense_table(budgets=BUDGETS, seed=1).to_csv(path, index=False)
    assert "there is none" in isoloop("figure", path.name, cwd=tmp_path, check=2).stderr


def test_where_no_fit_can_be_written_at_all_it_is_printed_all_the_same(tmp_path):
    path = table_whose_fit_cannot_be_written(tmp_path)
    (tmp_path / "isoloop-out").write_text("a file, and no folder")
    screen = fit(path.name, tmp_path)
    assert "for 4.8e+19 FLOPs" in screen
    assert re.search(
        r"^not stored: .* can't be written .*, nor can isoloop-out/fits/.*; give --out a folder", screen, re.M
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can write everywhere")
def test_the_fit_of_a_read_only_folder_is_in_the_output_folder(folder):
    (folder / "runs.fit.json").unlink()
    folder.chmod(0o555)
    screen = fit("runs/runs.csv.gz", folder.parent)
    folder.chmod(0o755)
    assert "runs/runs.fit.json can't be written (Permission denied)" in screen
    assert "stored in isoloop-out/fits/runs.csv.gz-" in screen
    assert "was fitted now" not in predict("runs/runs.csv.gz", folder.parent)


def test_an_interrupted_fit_leaves_the_stored_one_as_it_was(folder):
    simulate_table().to_csv(folder / "runs.csv.gz", index=False, compression="gzip")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # an interrupt in a callback of the collector, of which a test runner has some, is lost
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        isoloop("fit", "runs.csv.gz", "--draws", 5000, cwd=folder, check=130)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.enable()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
