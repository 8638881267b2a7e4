"""`isoloop status`: exact screens of made-up sweeps, and the live screen in a pseudo-terminal."""

import codecs
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest
from rich.console import Console

from isoloop.sweeps.cli.console import use_terminal_encoding
from isoloop.sweeps.cli.status import describe_ending, frame, sparkline
from isoloop.sweeps.execution.presence import Driver, sole_driver
from isoloop.sweeps.execution.status import RunStatus, SweepStatus, TrialCounts, write_manifest
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.storage.run_store import RunStore
from tests.commands import ISOLOOP, isoloop

NOW = time.mktime((2026, 11, 29, 14, 3, 22, 0, 0, -1))
DRIVER = Driver(
    host="gpu-head", pid=4321, command="isoloop run mine.yaml", started=NOW - 7000, last_sign=NOW - 4, at_work=True
)
CURVE = tuple(10.0 / (1 + step) ** 0.25 for step in range(200))


def run(number, state, **fields):
    return RunStatus(
        run_id=f"run-{number:012x}", label=f"µ = {number}, C = 1e+18, seed = 0", state=state,
        **{"step": 0, "steps": 40000, **fields},
    )  # fmt: skip


def sweep(*runs, **fields):
    given = {
        "name": "mine", "time": NOW, "driver": DRIVER, "flops": 3.2e20, "share": 0.52, "flops_per_second": 1.21e15,
        "speed_seconds": 300.0, "seconds_left": 127000.0, "note": None, "trials": None, **fields,
    }  # fmt: skip
    return SweepStatus(**given, runs=runs)


BUSY = sweep(
    *(run(number, "done", step=40000, loss=3.1, seconds=90.0) for number in range(1, 21)),
    run(21, "running", step=12000, loss=3.21321, seconds=720.0, flops_per_second=2.3e14, node="10.0.0.7", losses=CURVE),
    run(22, "running", step=0, node="10.0.0.9"),
    run(23, "failed", step=77, reason="OutOfMemoryError: CUDA out of memory; the run needs more memory than it is "
        "given: set resources.micro_batch lower, resources.activation_checkpointing to true or, on a GPU, "
        "resources.gpus to a larger share\nTraceback"),
    run(24, "failed", reason="a bug"),
    run(25, "failed", reason="a bug"),
    run(26, "again", step=300, reason="the worker was lost"),
    run(27, "diverged", step=4000, reason="training loss nan in step 4000"),
    *(run(number, "waiting") for number in range(28, 43)),
    note="4 runs wait in Ray for 1 GPU each; 4 of 8 GPUs are free",
)  # fmt: skip


def screen(status, width, height=None, **options):
    """The lines as a terminal of that width shows them."""
    console = Console(width=width, record=True, file=io.StringIO(), legacy_windows=False)
    for line in frame(status, width=width, height=height, **options):
        console.print(line)
    return console.export_text().splitlines()


def test_a_screen_of_80_columns_is_exactly_this():
    assert screen(BUSY, 80, 24, is_live=True) == [
        "mine                            driver at work on gpu-head since 12:06  14:03:22",
        "━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸                             52% of 3.2e+20 FLOPs",
        "42 runs: 20 done, 1 diverged, 3 failed, 2 running, 1 again, 15 waiting",
        "1.21e+15 FLOPs per second over the last 5 min; at that speed 35 h left",
        "4 runs wait in Ray for 1 GPU each; 4 of 8 GPUs are free",
        "",
        "running                             step    loss    left  FLOPs/s  loss curve",
        "µ = 21, C = 1e+18, seed = 0  12000/40000  3.2132  12 min  2.3e+14  ███▇▅▅▄▃▃▂▂▁▁",
        "µ = 22, C = 1e+18, seed = 0      0/40000",
        "",
        "failed    µ = 23, C = 1e+18, seed = 0: OutOfMemoryError: CUDA out of memory; the",
        "          run needs more memory than it is given: set resources.micro_batch",
        "          lower, resources.activation_checkpointing to true or, on a GPU, …",
        "failed    µ = 24, C = 1e+18, seed = 0 and 1 more: a bug",
        "again     µ = 26, C = 1e+18, seed = 0: the worker was lost",
        "diverged  µ = 27, C = 1e+18, seed = 0: training loss nan in step 4000",
        "",
        "Ctrl-C leaves; the sweep goes on",
    ]


def test_a_wide_screen_has_ids_and_machines():
    assert screen(BUSY, 120) == [
        "mine                                                                    "
        "driver at work on gpu-head since 12:06  14:03:22",
        "━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━                                                 "
        "52% of 3.2e+20 FLOPs",
        "42 runs: 20 done, 1 diverged, 3 failed, 2 running, 1 again, 15 waiting",
        "1.21e+15 FLOPs per second over the last 5 min; at that speed 35 h left",
        "4 runs wait in Ray for 1 GPU each; 4 of 8 GPUs are free",
        "",
        "running                                               step    loss    left  FLOPs/s      node  loss curve",
        "run-000000000015  µ = 21, C = 1e+18, seed = 0  12000/40000  3.2132  12 min  2.3e+14  10.0.0.7  "
        "█████▇▆▆▅▅▅▄▄▃▃▃▃▂▂▂▂▂▁▁▁",
        "run-000000000016  µ = 22, C = 1e+18, seed = 0      0/40000                           10.0.0.9",
        "",
        "failed    µ = 23, C = 1e+18, seed = 0: OutOfMemoryError: CUDA out of memory; the run needs more memory than "
        "it is given:",
        "          set resources.micro_batch lower, resources.activation_checkpointing to true or, on a GPU, "
        "resources.gpus to a",
        "          larger share",
        "failed    µ = 24, C = 1e+18, seed = 0 and 1 more: a bug",
        "again     µ = 26, C = 1e+18, seed = 0: the worker was lost",
        "diverged  µ = 27, C = 1e+18, seed = 0: training loss nan in step 4000",
    ]


def test_a_large_sweep_fits_the_screen():
    running = [run(n, "running", step=10, loss=4.0, seconds=60.0, flops_per_second=1e14) for n in range(1, 65)]
    failed = [run(n, "failed", reason=f"bug number {n}") for n in range(65, 95)]
    status = sweep(*running, *failed)
    lines = screen(status, 80, 24, is_live=True)
    assert len(lines) == 24
    assert lines[4:6] == ["", "running                         step    loss  left  FLOPs/s  loss curve"]
    assert lines[6:15] == [
        f"µ = {n}, C = 1e+18, seed = 0  {'10/40000':>8}  4.0000  60 s    1e+14" for n in range(1, 10)
    ]
    assert lines[15:] == [
        "+55 more",
        "",
        *(f"failed    µ = {n}, C = 1e+18, seed = 0: bug number {n}" for n in range(65, 69)),
        "+26 more reasons; --all shows every run",
        "",
        "Ctrl-C leaves; the sweep goes on",
    ]
    for width in (30, 40, 60, 100, 200):
        for height in (8, 10, 15, 24, 50):
            lines = screen(replace(BUSY, runs=BUSY.runs + status.runs), width, height, is_live=True)
            assert len(lines) <= max(height, 12), (width, height)
            assert max(map(len, lines)) <= width


def test_a_tuning_shows_its_trials():
    status = sweep(
        run(1, "done", step=40000, loss=3.0),
        run(2, "pruned", step=20000, loss=3.4, reason="validation loss above the median at 50% of the steps"),
        replace(run(3, "running", step=100, losses=(3.0, 2.0)), label="trial 3  learning_rate = 0.01, batch = 64"),
        name="mine/tune",
        trials=TrialCounts(
            trials=24, ended=2, best="trial 1  learning_rate = 0.02  loss 3.0000", runs_to_come=29, flops_to_come=1e15
        ),
    )
    lines = screen(status, 80)
    assert lines[2:4] == [
        "32 runs: 1 done, 1 pruned, 1 running, 29 waiting",
        "2 of 24 trials have ended; best: trial 1  learning_rate = 0.02  loss 3.0000",
    ]
    assert lines[6:] == [
        "running                                  step  loss  left  FLOPs/s  loss curve",
        "trial 3  learning_rate = 0.01, ba…  100/40000                       █▁",
    ]
    assert describe_ending(status) is None
    none_finished = screen(replace(status, trials=replace(status.trials, best=None)), 80)
    assert none_finished[3] == "2 of 24 trials have ended; best: none has finished yet"


def test_an_ending_says_how_to_go_on():
    gone = replace(DRIVER, at_work=False)
    assert describe_ending(BUSY) is None
    assert describe_ending(replace(BUSY, driver=gone)) == (
        "no driver is at work; the last one was at 14:03:18 on gpu-head\nto go on: isoloop run mine.yaml"
    )
    assert "rerun the sweep's command" in describe_ending(replace(BUSY, driver=replace(gone, command=None)))
    assert "rerun the sweep's command" in describe_ending(replace(BUSY, driver=None))
    complete = sweep(run(1, "done"), run(2, "diverged", reason="nan"), driver=gone)
    assert describe_ending(complete) == "complete: all 2 runs are done"
    assert "its driver goes on" in describe_ending(replace(complete, driver=DRIVER))
    counts = TrialCounts(trials=2, ended=2, best="trial 0", runs_to_come=0, flops_to_come=0.0)
    tuned = sweep(run(1, "done"), run(2, "pruned"), run(3, "failed"), driver=gone, trials=counts)
    assert describe_ending(tuned) == "complete: all 3 runs have ended"
    assert describe_ending(replace(tuned, trials=replace(counts, runs_to_come=8))).startswith("no driver is at work")


def test_a_loss_curve_is_scaled_without_its_steep_beginning():
    assert sparkline([1.0] * 5, 10) == "▁▁▁▁▁"
    assert sparkline([1.0], 10) == ""
    assert sparkline([100.0, *[2.0] * 10, 4.0, *[2.0] * 4], 16) == "█▁▁▁▁▁▁▁▁▁▁█▁▁▁▁"
    assert sparkline([8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625], 8) == "██▇▆▅▃▂▁"


def test_an_ascii_terminal_gets_ascii_of_the_same_width(monkeypatch):
    # The file stands for the terminal: its encoding says what can be shown.
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"))
    use_terminal_encoding()
    console = Console(width=80, file=sys.stdout, force_terminal=True, color_system=None)
    for line in frame(BUSY, width=80, height=24, is_live=True):
        console.print(line)
    sys.stdout.flush()
    lines = sys.stdout.buffer.getvalue().decode("ascii").splitlines()
    assert lines[1].rstrip() == "-" * 30 + " " * 30 + "52% of 3.2e+20 FLOPs"
    assert lines[7].rstrip() == "mu = 21, C = 1e+18, seed = 0  12000/40000  3.2132  12 min  2.3e+14  ###*=~~-..__"
    assert max(map(len, lines)) <= 80


# Made-up sweeps on disk.


@pytest.fixture
def mine(simulated, tmp_path):
    """A sweep of four runs of which the first runs; its folder and its plan."""
    folders = Folders(out=tmp_path / "isoloop-out", name="mine")
    plan = plan_sweep(simulated.model_copy(update={"budgets": (1e10,)}), simulated_corpus)
    write_manifest(plan.cells, folders)
    journal = folders.run(plan.cells[0].run_id) / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    records = [
        {"kind": "metrics", "time_ms": round(1000 * time.time()) - 10_000 + 100 * step, "step": step,
         "values": {"train_loss": 5.0 - step / 100}} for step in range(1, 101)
    ]  # fmt: skip
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folders, plan


def write_state(folders, plan, **more):
    folders.state.write_text(json.dumps({"running": {plan.cells[0].run_id: {"attempt": 1, "node": None}}, **more}))


def test_a_log_gets_lines_and_the_command_that_goes_on(mine, tmp_path):
    folders, plan = mine
    with sole_driver(folders, command="isoloop run mine.yaml"):
        write_state(folders, plan, failed={plan.cells[1].run_id: "a bug"})
        once = isoloop("status", "mine", cwd=tmp_path).stdout
    assert "4 runs: 1 failed, 1 running, 2 waiting" in once
    assert "no driver" not in once
    log = isoloop("status", "mine", "--watch", cwd=tmp_path).stdout.splitlines()
    assert log[0] == f"  {plan.cells[1].run_id}  {plan.cells[1].label}  failed: a bug"
    assert re.fullmatch(r"\d\d:\d\d:\d\d  mine: \d%; 4 runs: 1 failed, 3 waiting", log[1])
    assert log[2].startswith("no driver is at work; the last one was at ")
    assert log[3:] == ["to go on: isoloop run mine.yaml"]
    rows = isoloop("status", "mine", "--all", cwd=tmp_path).stdout
    assert all(f"{cell.run_id}  {cell.label}" in rows for cell in plan.cells)
    refused = isoloop("status", "mine", "--watch", "--json", cwd=tmp_path, check=2)
    assert "can't be combined" in refused.stderr


def test_the_name_of_a_sweep_finds_its_tuning(mine, tmp_path):
    """It is shown while it is at work, or if the sweep itself was never started; NAME/tune always is."""
    folders, plan = mine
    tuning = replace(folders, name="mine/tune")
    write_manifest(plan.cells[:1], tuning, trials=TrialCounts(
        trials=9, ended=0, best=None, runs_to_come=8, flops_to_come=1e10
    ))  # fmt: skip

    def shown(target):
        return json.loads(isoloop("status", target, "--json", cwd=tmp_path).stdout)["name"]

    assert (shown("mine"), shown("mine/tune")) == ("mine", "mine/tune")
    with sole_driver(tuning):
        assert shown("mine") == "mine/tune"
        with sole_driver(folders):
            assert shown("mine") == "mine"
    folders.manifest.unlink()
    assert shown("mine") == "mine/tune"


def test_a_storage_is_enough_on_another_machine(mine, tmp_path):
    folders, plan = mine
    storage, laptop = tmp_path / "storage", tmp_path / "laptop"
    laptop.mkdir()
    RunStore(str(storage)).push_run(folders.run(plan.cells[0].run_id), plan.cells[0].run_id)
    with sole_driver(folders, command="isoloop run mine.yaml --storage s3://bucket", storage=str(storage)):
        write_state(folders, plan)
    shown = isoloop("status", "mine", "--storage", storage, cwd=laptop).stdout
    assert "to go on: isoloop run mine.yaml --storage s3://bucket" in shown
    assert (
        json.loads(isoloop("status", "mine", "--storage", storage, "--json", cwd=laptop).stdout)["runs"][0]["step"]
        == 100
    )
    refused = isoloop("status", "mine", "--storage", storage, cwd=tmp_path, check=2).stderr
    assert "a driver has worked in isoloop-out/sweeps/mine; leave it out" in refused
    assert "has no sweep 'yours'" in isoloop("status", "yours", "--storage", storage, cwd=laptop, check=2).stderr


class Terminal:
    """`isoloop status mine --watch` in a pseudo-terminal of its own."""

    def __init__(self, cwd, columns=80):
        self.master, slave = pty.openpty()
        self.resize(columns)
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)  # it would go before the terminal's own width
        self.process = subprocess.Popen(
            [*ISOLOOP, "status", "mine", "--watch"], stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.output, self.decoder = "", codecs.getincrementaldecoder("utf-8")()  # a read may end within a character

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_for(self, text, seconds=180):
        """Until the text was printed; what was printed until then is forgotten."""
        deadline = time.monotonic() + seconds
        while (found := self.output.find(text)) < 0:
            assert time.monotonic() < deadline, self.output
            self._read()
        before, self.output = self.output[:found], self.output[found + len(text) :]
        return before

    def wait_for_end(self, seconds=180):
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            self._read()
        while self._read():
            pass
        os.close(self.master)
        return self.process.returncode

    def _read(self):
        if not select.select([self.master], [], [], 0.1)[0]:
            return False
        try:
            self.output += self.decoder.decode(os.read(self.master, 65536))
        except OSError:  # its other end is closed
            return False
        return True


def test_a_live_screen_follows_the_sweep_and_leaves_the_last_one(mine, tmp_path):
    folders, plan = mine
    label = plan.cells[0].label
    with sole_driver(folders, command="isoloop run mine.yaml"):
        write_state(folders, plan)
        left, stays = Terminal(tmp_path), Terminal(tmp_path)
        try:
            for terminal in (left, stays):
                assert "\x1b[?1049h" in terminal.wait_for(label)
                assert "100/" in terminal.wait_for("Ctrl-C leaves")
            # A narrower window: lines are cut, not wrapped.
            stays.resize(60)
            for _ in range(2):
                stays.wait_for("Ctrl-C leaves")
            write_state(folders, plan, failed={plan.cells[1].run_id: "the disk of machine seven is full " * 5})
            stays.wait_for("the disk of machine")
            # Ctrl-C.
            os.write(left.master, b"\x03")
            assert left.wait_for_end() == 0
            assert "\x1b[?1049l" in left.output
            assert label in left.output.partition("\x1b[?1049l")[2]
            assert "Traceback" not in left.output
        finally:
            for terminal in (left, stays):
                if terminal.process.poll() is None and sys.exc_info()[0] is not None:
                    terminal.process.send_signal(signal.SIGKILL)
    # The driver has ended.
    assert stays.wait_for_end() == 0
    last = stays.output.partition("\x1b[?1049l")[2]
    assert "to go on: isoloop run mine.yaml" in last
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).splitlines()
    assert max(map(len, plain)) <= 60
