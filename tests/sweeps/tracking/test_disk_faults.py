"""A disk that is full or read-only is named as such, not as a store that can't be reached, and nothing is lost."""

import errno
import os
import shutil
import subprocess

import pytest

from isoloop.fitting import check_table
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.execution.worker import classify_error
from isoloop.sweeps.messages import disk_fault
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.tracking.mlflow_store import TrackingStore, translate_store_errors
from isoloop.sweeps.tracking.uploader import Uploader

# MLflow's own use of SQLAlchemy warns.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def disk(tmp_path):
    """A real file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs can't be mounted here ({error})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def plan(simulated):
    return plan_sweep(simulated.model_copy(update={"budgets": (1e10,), "mean_recurrences": (1, 2)}), simulated_corpus)


@pytest.fixture
def uri(disk, new_database):
    return new_database(disk / "mlflow.db")


def simulate(plan, folders):
    return [
        simulate_run(cell.spec, plan.sweep.simulation, cell.run_id, folders.run(cell.run_id)) for cell in plan.cells
    ]


def fill(disk):
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * free.f_bavail * free.f_frsize)


def test_a_full_disk_is_named_and_nothing_is_lost(disk, uri, plan, tmp_path):
    folders = Folders(out=tmp_path / "out", name=plan.sweep.name)
    store = TrackingStore(uri, "full", artifacts=tmp_path / "artifacts")
    fill(disk)
    message = r"the MLflow store 'sqlite:.*' must be usable, but its disk is full .*; nothing is lost: free some space"
    with pytest.raises(ValueError, match=message), translate_store_errors(uri):
        Uploader(store, plan, folders)
    (disk / "filler").unlink()
    # The disk fills up during the sweep.
    uploader = Uploader(store, plan, folders)
    fill(disk)
    results = simulate(plan, folders)
    assert set(uploader.close()) >= {result.run_id for result in results}
    with pytest.raises(ValueError, match=r"runs behind .*; nothing is lost: free some space there, then rerun"):
        uploader.check_complete()
    (disk / "filler").unlink()
    assert Uploader(store, plan, folders).close() == []
    table = check_table(store.read_table(plan.sweep.name))
    losses = dict(zip(table["run_id"], table["loss"], strict=True))
    assert losses == {result.run_id: result.loss for result in results}


def test_a_read_only_disk_is_named_and_can_be_read(disk, new_database, plan, tmp_path):
    folders = Folders(out=tmp_path / "out", name=plan.sweep.name)
    simulate(plan, folders)
    store = TrackingStore(new_database(tmp_path / "mlflow.db"), "kept", artifacts=tmp_path / "artifacts")
    Uploader(store, plan, folders).close()
    table = store.read_table(plan.sweep.name)
    uri = f"sqlite:///{shutil.copy(tmp_path / 'mlflow.db', disk)}"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    read = TrackingStore(uri, "kept", artifacts=None).read_table(plan.sweep.name)
    assert check_table(read).equals(check_table(table))
    with pytest.raises(ValueError, match=r"must be usable, but it can't be written to .*or choose another place"):
        TrackingStore(uri, "new", artifacts=tmp_path / "artifacts")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, but text that is long enough to look like one" * 20)
    with pytest.raises(ValueError, match=r"must be usable, but its file is not an sqlite database .*name another file"):
        TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", "x", artifacts=tmp_path)


def test_a_fault_of_the_network_is_none_of_the_disk():
    assert disk_fault(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert disk_fault(PermissionError(errno.EACCES, "a firewall refuses the connection")) is None
    assert disk_fault(TimeoutError("no answer")) is None
    wrapped = RuntimeError("MLflow's")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert disk_fault(wrapped) == ("its disk is full", "free some space there")
    assert disk_fault(PermissionError(errno.EACCES, "Permission denied", "a.db"))[0] == "it can't be written to"


def test_a_run_on_a_read_only_disk_is_not_tried_again():
    end = classify_error(OSError(errno.EROFS, "Read-only file system", "journal.jsonl"))
    assert (end.retryable, "write to --out" in end.reason) == (False, True)
