"""A sweep of seconds, and its simulated twin."""

import os
import time

import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.paths import Folders
from isoloop.trainer.run.journal import read_journal

SMALL = {
    "name": "small",
    "tokens": [256, 512],
    "mean_recurrences": [1, 3],
    "model": {"width": 16, "heads": 2, "context": 16},
    "batch": 4,
    "minimum_steps": 2,
    "evaluation": {"sequences": 8, "recurrences": [1, 2, 4]},
}
SIMULATION = {
    "E": 1.5, "X": 30.0, "x": 0.5, "Y": 20.0, "y": 0.3, "Z": 0.5, "z": 6.0, "run_noise": 1e-3, "evaluation_noise": 1e-5,
}  # fmt: skip
SIMULATED = {
    "name": "simulated-grid",
    "budgets": [1e10, 2e10, 4e10, 8e10],
    "mean_recurrences": [1, 2, 4, 8],
    "model": {"width": 16, "heads": 2, "context": 16},
    "batch": 4,
    "evaluation": {"recurrences": [1, 2, 4, 8]},
    "simulation": SIMULATION,
}


@pytest.fixture
def small(text_folder):
    return validate_sweep({**SMALL, "data": {"corpus": str(text_folder)}}, source="test")


@pytest.fixture
def simulated():
    return validate_sweep(SIMULATED, source="test")


@pytest.fixture
def folders(tmp_path):
    return Folders(out=tmp_path / "out", name="small")


def wait_for_steps(folder, steps):
    """Until the run's journal holds so many steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(record.get("step", 0) >= steps for record in read_journal(folder / "journal.jsonl")[0]):
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} has no {steps} steps after two minutes")


def writer_of(folder, steps):
    """The process that trains in `folder`, once it has done so many steps."""
    wait_for_steps(folder, steps)
    target = str((folder / "journal.jsonl").resolve())
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            handles = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
        except OSError:
            continue
        if target in handles and int(process) != os.getpid():
            return int(process)
    raise AssertionError(f"no process writes {target}")
