"""Faults in the middle of a sweep, on a real Ray: the results are those of an undisturbed sweep."""

import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import nullcontext

import pandas as pd
import pytest
import yaml

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution import engine
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.trainer.loop import train
from isoloop.trainer.run.journal import read_journal
from tests.commands import isoloop, quick_pages
from tests.sweeps.conftest import SMALL, wait_for_steps, writer_of


@pytest.fixture
def sweep(text_folder):
    """One run of some seconds that can go wrong, with a checkpoint several times a second."""
    return {
        **SMALL,
        "tokens": [64 * 60],
        "mean_recurrences": [3],
        "model": {**SMALL["model"], "injection": "tests.sweeps.execution.faulty:Faulty"},
        "data": {"corpus": str(text_folder)},
        "resources": {"checkpoint_seconds": 0.1},
    }


class Watcher(Progress):
    def __init__(self):
        self.retried = []

    def event(self, line):
        if "starts again: " in line:
            self.retried.append(line.partition("starts again: ")[2])


UNDISTURBED = {}
"""Losses by run id: most tests disturb the same run."""


class Trial:
    """A sweep of one run, undisturbed in this process and disturbed on Ray."""

    def __init__(self, content, folders, faults, cluster):
        self.prepared = prepare(validate_sweep(content, source="test"), folders)
        self.folders, self.faults, self.cluster, self.watcher = folders, faults, cluster, Watcher()
        (self.cell,) = self.prepared.plan.cells
        self.folder = folders.run(self.cell.run_id)

    def undisturbed(self):
        if self.cell.run_id not in UNDISTURBED:
            (corpus,) = self.prepared.corpora.values()
            UNDISTURBED[self.cell.run_id] = train(self.cell.spec, corpus, self.folders.out / "quiet").losses
        return UNDISTURBED[self.cell.run_id]

    def run(self, **faults):
        for name, what in faults.items():
            (self.faults / name).write_text(what)
        try:
            return run_plan(
                self.prepared.plan,
                self.folders,
                lambda: nullcontext(self.cluster),
                corpora=self.prepared.corpus_folders,
                progress=self.watcher,
            )
        finally:
            for name in ("next", "always"):
                (self.faults / name).unlink(missing_ok=True)

    def events(self):
        return [record["name"] for record in read_journal(self.folder / "journal.jsonl")[0] if "name" in record]


@pytest.fixture
def trial(sweep, folders, faults, ray):
    return lambda **changes: Trial({**sweep, **changes}, folders, faults, ray)


@pytest.mark.parametrize(
    ("what", "message"),
    [("full", "the disk is full: make room"), ("network", "ConnectionError: the network is gone")],
)
def test_a_temporary_fault_is_retried_from_the_last_checkpoint(trial, what, message):
    tried = trial()
    outcome = tried.run(next=f"{what} 40")
    assert outcome.results[tried.cell.run_id].losses == tried.undisturbed()
    assert "resumed" in tried.events()
    (reason,) = tried.watcher.retried
    assert message in reason


@pytest.mark.parametrize(
    ("what", "message"),
    [("bug", "TypeError: a bug"), ("memory", "set resources.micro_batch lower, resources.activation_checkpointing")],
)
def test_a_permanent_fault_is_reported_at_once(trial, what, message):
    tried = trial()
    outcome = tried.run(always=f"{what} 3")
    assert message in outcome.failed[tried.cell.run_id]
    assert not tried.watcher.retried
    again = tried.run()
    assert again.results[tried.cell.run_id].losses == tried.undisturbed()


def test_what_never_passes_is_given_up(trial, monkeypatch):
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.1)
    tried = trial(resources={"retries": 2})
    outcome = tried.run(always="network 3")
    assert "the network is gone (tried 3 times without getting further)" in outcome.failed[tried.cell.run_id]
    assert len(tried.watcher.retried) == 2


def test_a_hung_run_is_ended_and_goes_on(trial):
    tried = trial(resources={"checkpoint_seconds": 0.1, "hang_seconds": 2})
    outcome = tried.run(next="hang 40")
    assert outcome.results[tried.cell.run_id].losses == tried.undisturbed()
    (reason,) = tried.watcher.retried
    assert "no step for 2 s" in reason


def test_sigterm_saves_first(trial):
    """Resume from the state that was saved on SIGTERM, without an earlier checkpoint."""
    tried = trial(tokens=[64 * 250], resources={"checkpoint_seconds": 1e6})

    def preempt():
        os.kill(writer_of(tried.folder, 40), signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    outcome = tried.run()
    thread.join()
    assert outcome.results[tried.cell.run_id].losses == tried.undisturbed()
    assert [event for event in tried.events() if event in ("stopped", "resumed")] == ["stopped", "resumed"]
    assert not tried.watcher.retried


def test_sigterm_to_the_driver_lets_its_runs_save(sweep, folders, tmp_path, new_database, ray):
    file = tmp_path / "sweep.yaml"
    content = {**sweep, "model": SMALL["model"], "tokens": [64 * 500], "resources": {"checkpoint_seconds": 1e6}}
    file.write_text(yaml.safe_dump(content))
    new_database(folders.out / "mlflow.db")
    driver = subprocess.Popen(
        [sys.executable, "-m", "isoloop.sweeps.cli.main", "run", str(file), "--out", str(folders.out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ray.ray.get_runtime_context().gcs_address},
    )
    (cell,) = prepare(validate_sweep(content, source="test"), folders).plan.cells
    wait_for_steps(folders.run(cell.run_id), 40)
    driver.terminate()
    message, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "Stopped: 0 of 1 runs are done, and 1 saved their state. Rerun the command to go on." in " ".join(
        message.split()
    )


def table(folders):
    """Return the run table without its times."""
    return pd.read_csv(folders.table).drop(columns="seconds").sort_values("run_id", ignore_index=True)


def test_rerunning_the_command_of_a_killed_driver(sweep, folders, faults, tmp_path, new_database, commands_share_ray):
    """Kill the command with SIGKILL in mid-run and rerun it: the table is that of an undisturbed sweep."""
    file = tmp_path / "sweep.yaml"
    content = {**sweep, "mean_recurrences": [1, 3]}
    file.write_text(yaml.safe_dump(content))
    quiet = Folders(out=tmp_path / "quiet", name=folders.name)
    for one in (folders, quiet):
        new_database(one.out / "mlflow.db")
    (faults / "always").write_text("hang 40")  # so that no run is done before the kill, however slow that is
    driver = subprocess.Popen(
        [sys.executable, "-m", "isoloop.sweeps.cli.main", "run", str(file), "--out", str(folders.out)],
        stdout=subprocess.DEVNULL,
    )
    cells = prepare(validate_sweep(content, source="test"), folders).plan.cells
    workers = [os.pidfd_open(writer_of(folders.run(cell.run_id), 30)) for cell in cells]
    driver.kill()
    driver.wait()
    for worker in workers:
        assert select.select([worker], [], [], 60)[0], "Ray ends the workers of a driver that is gone"
        os.close(worker)
    (faults / "always").unlink()
    assert not folders.table.exists()
    with quick_pages():
        for one in (folders, quiet):
            isoloop("run", file, "--out", one.out, "--draws", 20, cwd=tmp_path)
    pd.testing.assert_frame_equal(table(folders), table(quiet))
    with sqlite3.connect(folders.out / "mlflow.db") as store:
        states = store.execute("select status from runs").fetchall()
    assert states == [("FINISHED",)] * 3
    for cell in cells:
        names = [record.get("name") for record in read_journal(folders.run(cell.run_id) / "journal.jsonl")[0]]
        assert "resumed" in names
