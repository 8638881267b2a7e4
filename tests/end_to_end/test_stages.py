"""Waiting for a command: each stage of it is shown on stderr, and stdout has its result alone."""

import os
import pty
import subprocess
from contextlib import contextmanager, nullcontext

import pytest
import yaml

from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps import pipeline
from isoloop.sweeps.cli import console, sweep
from isoloop.sweeps.execution.worker import AttemptEnd, run_attempt
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.plan.packing import Node
from tests.commands import ISOLOOP, isoloop, quick_figures
from tests.sweeps.conftest import SIMULATED

STAGES = [
    "Starting", "Planning", "Opening MLflow", "Starting Ray", "Training", "Recording the runs in MLflow",
    "Writing the run table", "Fitting", "Fitting without the largest budget", "Drawing figures",
    "Drawing learning curves", "Writing the report", "Copying the results into MLflow",
]  # fmt: skip


class Recorder(Progress):
    def __init__(self):
        self.stages, self.labels, self.events = [], {}, []

    def begin(self, stage):
        self.stages.append(stage)

    def update(self, label, done, total):
        assert 0 <= done <= total
        self.labels.setdefault(self.stages[-1], []).append(label)

    def event(self, line):
        self.events.append(line)


class HereAtOnce:
    """A cluster that runs a simulated attempt as it is queued, in this process."""

    def nodes(self):
        return [Node("here", 2, [])]

    free = nodes

    def start(self, task, needs, *, one_machine):
        self.ends = {**getattr(self, "ends", {}), task.run_id: run_attempt(task.model_dump_json())}
        return task.run_id

    def begun(self, handles, timeout):
        return dict.fromkeys(handles, "here")

    def wait(self, handles, timeout):
        return [(handle, AttemptEnd.model_validate_json(self.ends[handle])) for handle in handles]


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()

    @contextmanager
    def record(**_):
        yield recorder

    monkeypatch.setattr(sweep, "show_progress", record)
    return recorder


def test_run_begins_every_stage_and_says_first_what_is_left_out(recorder, tmp_path, new_database, monkeypatch):
    monkeypatch.setattr(pipeline, "open_cluster", lambda *_: nullcontext(HereAtOnce()))
    budgets, means = [2e8, 1e10, 2e10], [1, 2]  # four runs, too few for a law: the stages come all the same
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SIMULATED, "budgets": budgets, "mean_recurrences": means}))
    new_database(tmp_path / "isoloop-out" / "mlflow.db")
    with quick_figures():
        said = isoloop("run", "sweep.yaml", "--draws", 20, cwd=tmp_path).stdout
    assert recorder.stages == STAGES
    assert recorder.labels["Training"][-1] == "4/4 runs"
    assert len([line for line in recorder.events if "(simulated)" in line]) == 4
    assert "isoFLOP curves" in recorder.labels["Fitting"]
    head, _, rest = said.partition("\n2 of 6 cells left out:\n  2e+08 FLOPs, µ = 1: only ")
    assert head.splitlines()[-1].startswith("simulated-grid: 4 runs")
    assert " (and 1 more like it: 2e+08 FLOPs, µ = 2)\n" in rest
    planned = isoloop("plan", "sweep.yaml", cwd=tmp_path).stdout
    assert f"\n2 of 6 cells left out:\n  2e+08 FLOPs, µ = 1: only {rest.splitlines()[0]}\n" in planned


def test_a_bar_is_on_a_terminal_and_the_result_in_a_file(tmp_path):
    """As `isoloop fit runs.csv > fit.txt` is typed."""
    simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1).to_csv(tmp_path / "runs.csv", index=False)
    terminal, slave = pty.openpty()
    command = [*ISOLOOP, "fit", "runs.csv", "--draws", "20"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        while part := _read(terminal):
            seen += part
        result = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0
    assert "Reading the table" in seen.decode()
    assert "Fitting: " in seen.decode()
    assert b"\x1b" not in result
    assert result.startswith(b"Fit of runs")
    assert b"Reading" not in result


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def test_the_result_is_all_that_is_printed_without_a_terminal(tmp_path, monkeypatch):
    simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.setattr(console, "SHORT_SECONDS", 0.0)
    done = isoloop("choose", "runs.csv", "--draws", 20, "--law", "training", "--law", "chinchilla", cwd=tmp_path)
    assert done.stdout.startswith("Use the ")
    assert "Comparing laws" in done.stderr
    assert not any(character in done.stderr for character in "\x1b\r")
    assert done.stderr.startswith("Reading the table")
