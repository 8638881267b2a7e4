"""The uploader against real servers: one that is killed for a while, a driver that is killed, PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from isoloop.fitting import check_table
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.privacy import TELEMETRY_OFF
from isoloop.sweeps.tracking import schema as record
from isoloop.sweeps.tracking import uploader
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.uploader import Uploader
from isoloop.trainer.run.journal import Journal, read_journal

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    **os.environ,
    **TELEMETRY_OFF,
    "PYTHONPATH": str(ROOT),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
PATIENCE = 200.0
SECRET = "s3cr3t"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(true, what):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"{what} took more than {PATIENCE:g} s"
        time.sleep(0.05)


class Server:
    """`mlflow server` on loopback, as light as it can be made; killed with all its processes."""

    def __init__(self, database, folder):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
            str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        self.folder = folder

    def start(self):
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True, cwd=self.folder
            )
        wait_for(self.answers, "starting the server")

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as response:
                return response.status == 200
        except OSError:
            return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("server")
    server = Server(new_database(folder / "mlflow.db"), folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def plan(simulated):
    """Two cells."""
    return small_plan(simulated, "simulated-grid")


def small_plan(simulated, name):
    changes = {"name": name, "budgets": (1e10,), "mean_recurrences": (1, 2)}
    return plan_sweep(simulated.model_copy(update=changes), simulated_corpus)


def run_all(plan, folders):
    for cell in plan.cells:
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id))


def assert_each_run_is_stored_once(store, plan, folders):
    """Every point of every journal is in the store once, each cell has one run, and the table holds."""
    runs = store.cell_runs(plan.sweep.name)
    found = store._search({record.KIND: "run", record.SWEEP: plan.sweep.name})
    assert len(found) == len(runs) == len(plan.cells)
    assert len(store._search({record.KIND: "sweep", record.SWEEP: plan.sweep.name})) == 1
    for cell in plan.cells:
        records, _ = read_journal(folders.run(cell.run_id) / "journal.jsonl")
        journaled = [(r["step"], r["values"]["train_loss"]) for r in records if r["kind"] == "metrics"]
        history = store.client.get_metric_history(runs[cell.run_id].info.run_id, record.metric_name("train_loss"))
        assert [(m.step, m.value) for m in history] == journaled
        assert runs[cell.run_id].info.status == "FINISHED"
    assert len(check_table(store.read_table(plan.sweep.name))) == len(plan.cells)


def test_a_server_killed_in_mid_upload_loses_nothing(server, plan, tmp_path, monkeypatch):
    for name in ("UPLOAD_SECONDS", "LONGEST_UPLOAD_PAUSE_SECONDS"):
        monkeypatch.setattr(uploader, name, 0.05)
    folders = Folders(out=tmp_path, name=plan.sweep.name)
    store = TrackingStore(server.uri, "killed", artifacts=tmp_path)
    journals = [Journal(folders.run(cell.run_id) / "journal.jsonl") for cell in plan.cells]

    def write(steps):
        for journal in journals:
            for step in steps:
                journal.metrics(step, {"train_loss": 1 / (step + 1), "system/memory": float(step)})

    write(range(1500))  # several batches
    carrying = Uploader(store, plan, folders)
    wait_for(lambda: any(cursor.mlflow_run for cursor in carrying.cursors.values()), "the first batch")
    server.kill()
    write(range(1500, 1600))
    wait_for(lambda: carrying.last_error is not None, "noticing that the server is away")
    run_all(plan, folders)
    assert carrying.close()  # away for longer than the sweep takes: it says what is missing
    server.start()
    assert Uploader(store, plan, folders).close() == []
    assert_each_run_is_stored_once(store, plan, folders)
    (kept,) = store.client.list_artifacts(store.cell_runs(plan.sweep.name)[plan.cells[0].run_id].info.run_id)
    assert kept.path == "spec.json"


def test_two_sweeps_record_at_once(server, simulated, tmp_path):
    plans = [small_plan(simulated, name) for name in ("one", "other")]
    out = [Folders(out=tmp_path / plan.sweep.name, name=plan.sweep.name) for plan in plans]
    pending = {}

    def carry(plan, folders):
        run_all(plan, folders)
        store = TrackingStore(server.uri, "made by both", artifacts=tmp_path)
        pending[plan.sweep.name] = Uploader(store, plan, folders).close()

    threads = [threading.Thread(target=carry, args=pair) for pair in zip(plans, out, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pending == {"one": [], "other": []}
    store = TrackingStore(server.uri, "made by both", artifacts=None)
    for plan, folders in zip(plans, out, strict=True):
        assert_each_run_is_stored_once(store, plan, folders)


DRIVER = """
import sys, time
from pathlib import Path
from isoloop.sweeps.tracking import uploader
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.tracking.mlflow_store import TrackingStore

uploader.UPLOAD_SECONDS = 0.05
sweep = load_sweep(sys.argv[1])
folders = Folders(out=Path(sys.argv[2]), name=sweep.name)
store = TrackingStore(sys.argv[3], "shared", artifacts=folders.artifacts)
carrying = uploader.Uploader(store, plan_sweep(sweep, simulated_corpus), folders)
while not any(cursor.offset for cursor in carrying.cursors.values()):
    time.sleep(0.02)
Path(sys.argv[2], "recorded").touch()
time.sleep(1000)
"""


def test_drivers_that_were_killed_are_taken_over(simulated, tmp_path):
    """Two drivers make one fresh sqlite store at once, record, and are killed: what they left RUNNING goes on."""
    from isoloop.sweeps.config.schema import config_text

    uri = f"sqlite:///{tmp_path / 'fresh.db'}"
    plans = [small_plan(simulated, name) for name in ("one", "other")]
    drivers = []
    for plan in plans:
        folders = Folders(out=tmp_path / plan.sweep.name, name=plan.sweep.name)
        journal = Journal(folders.run(plan.cells[0].run_id) / "journal.jsonl")
        journal.metrics(0, {"train_loss": 3.0})
        journal.close()
        config = tmp_path / f"{plan.sweep.name}.yaml"
        config.write_text(config_text(plan.sweep))
        command = [sys.executable, "-c", DRIVER, str(config), str(folders.out), uri]
        drivers.append(subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT))
    try:
        wait_for(lambda: all((tmp_path / p.sweep.name / "recorded").exists() for p in plans), "recording")
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    store = TrackingStore(uri, "shared", artifacts=None)
    for plan in plans:
        (orphan,) = store.cell_runs(plan.sweep.name).values()
        assert orphan.info.status == "RUNNING"
        folders = Folders(out=tmp_path / plan.sweep.name, name=plan.sweep.name)
        run_all(plan, folders)
        assert Uploader(store, plan, folders).close() == []
        assert_each_run_is_stored_once(store, plan, folders)
        assert orphan.info.run_id in {run.info.run_id for run in store.cell_runs(plan.sweep.name).values()}


@pytest.fixture
def postgres():
    """The URI of a PostgreSQL of our own, with a password in it, and the folder it lies in."""
    pytest.importorskip("psycopg", reason="psycopg (isoloop[postgres]) is not installed")
    found = [Path(shutil.which("initdb") or "").parent, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    binaries = next((folder for folder in found if (folder / "initdb").is_file()), None)
    if binaries is None:
        pytest.skip("there is no PostgreSQL (initdb) on this machine")
    as_user = []
    folder = Path(tempfile.mkdtemp(prefix="isoloop-postgres-"))
    if os.getuid() == 0:  # it refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL doesn't run as root, and there is no runuser")
        as_user = ["runuser", "-u", "nobody", "--"]
        shutil.chown(folder, "nobody")
    port, data = free_port(), folder / "data"

    def postgres_command(program, *arguments):
        subprocess.run(
            [*as_user, str(binaries / program), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )

    (folder / "password").write_text(SECRET)
    (folder / "password").chmod(0o644)
    postgres_command(
        "initdb", "-D", str(data), "-U", "ann", "-A", "scram-sha-256", "--pwfile", str(folder / "password")
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        postgres_command("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://ann:{SECRET}@127.0.0.1:{port}/postgres"
    finally:
        postgres_command("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


FIRST_USE = """
import sys
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
TrackingStore(sys.argv[1], "isoloop", artifacts=None)
"""


def test_postgresql(postgres, simulated, tmp_path):
    """Two processes at once make its tables; then a sweep is uploaded."""
    user = subprocess.Popen(
        [sys.executable, "-c", FIRST_USE, postgres], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    TrackingStore(postgres, "isoloop", artifacts=tmp_path)
    errors = user.communicate()[1]
    assert user.returncode == 0 or "has no 'isoloop'" in errors, errors  # whichever was first
    plan, folders = small_plan(simulated, "one"), Folders(out=tmp_path / "one", name="one")
    run_all(plan, folders)
    store = TrackingStore(postgres, "isoloop", artifacts=None)
    assert Uploader(store, plan, folders).close() == []
    assert_each_run_is_stored_once(store, plan, folders)
    recorded = store.foreign_runs("")
    assert len(recorded) == 3
    assert SECRET not in str([run.to_dictionary() for run in recorded])
