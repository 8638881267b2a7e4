"""The walk in docs/answer.md: each command is run, its output is that of the page, and the prose has no other numbers.

`python -m tests.sweeps.cli.test_walk` runs the commands and writes their outputs into the page.
"""

import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from isoloop.fitting import read_fit
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.runs import simulated_table
from tests.commands import isoloop

PAGE = Path(__file__).resolve().parents[3] / "docs" / "answer.md"
WALK = re.compile(r"^## From a question to an answer\n(.*?)(?=^## )", flags=re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```text\n\$ isoloop (.*?)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=([%MBGKx]|[a-z]*))")
NEAR = 0.02
"""Relative difference of two numbers that are the same: other processors round otherwise, and refits amplify it."""
NEAR_SHARE = 3.0
"""Difference of two percentages of refits that are the same."""
PRESET = "parcae-sizes-simulated"


def walk(text):
    """The section of the page."""
    return WALK.search(text)[1]


def sweep_in(folder):
    """Put the preset's runs where `isoloop run` leaves them, which writes the same table through Ray and MLflow."""
    folders = Folders(out=folder / "isoloop-out", name=PRESET)
    folders.sweep.mkdir(parents=True)
    sweep = load_sweep(PRESET)
    folders.config.write_text(config_text(sweep))
    simulated_table(sweep).to_csv(folders.table, index=False)
    return folders


def output_of(command, folder):
    return isoloop(*shlex.split(command, comments=True), cwd=folder).stdout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The folder of the sweep, and the output of each command of the walk in turn."""
    folder = tmp_path_factory.mktemp("walk")
    folders = sweep_in(folder)
    commands = [found[1] for found in BLOCK.finditer(walk(PAGE.read_text(encoding="utf-8")))]
    return folders, {command: output_of(command, folder) for command in commands}


def without_numbers(text):
    return " ".join(NUMBER.sub("#", text).split())


def test_each_command_prints_what_the_page_shows(outputs):
    shown = {found[1]: found[2] for found in BLOCK.finditer(walk(PAGE.read_text(encoding="utf-8")))}
    assert {command.split()[0] for command in shown} >= {"fit", "answer", "predict"}
    for command, printed in outputs[1].items():
        assert without_numbers(printed) == without_numbers(shown[command]), command
        for own, page in zip(NUMBER.finditer(printed), NUMBER.finditer(shown[command]), strict=True):
            allowed = {"abs": NEAR_SHARE} if own[1] == "%" else {"rel": NEAR}
            assert float(own[0]) == pytest.approx(float(page[0]), **allowed), (command, printed)


def test_the_prose_has_no_number_that_no_command_made():
    text = walk(PAGE.read_text(encoding="utf-8"))
    made = {found[0] for block in BLOCK.finditer(text) for found in NUMBER.finditer(block[0])}
    prose = {found[0] for found in NUMBER.finditer(BLOCK.sub("", text))}
    assert prose - made == set()


def test_the_fit_of_the_walk_holds_the_truth_of_the_preset(outputs):
    """What the prose says of the preset's truth, its comment and its law, held against the fit."""
    fit, truth = read_fit(outputs[0].fit(hold_out=False)), load_sweep(PRESET).simulation
    low, high = fit.phi.interval
    assert low < truth.phi < high
    for point, size in ((fit.frontier[0], 42e6), (fit.point(64e18), 302e6)):
        assert point.params.interval[0] < size * 1.01
        assert point.params.interval[1] > size / 1.01
        assert point.mean_recurrence.value == pytest.approx(2.0, abs=0.05)


def rewritten(text, folder):
    """The page with the outputs of its commands as they are now."""
    section = walk(text)
    new = BLOCK.sub(lambda found: f"```text\n$ isoloop {found[1]}\n{output_of(found[1], folder).strip()}\n```", section)
    return text.replace(section, new)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sweep_in(Path(name))
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
    print(f"written: {PAGE}", file=sys.stderr)
