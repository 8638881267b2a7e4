"""No telemetry leaves the machine."""

import os
import subprocess
import sys
from pathlib import Path

from isoloop.sweeps.privacy import TELEMETRY_OFF

ROOT = Path(__file__).resolve().parents[2]

# Every connection and every look-up of a name that isn't this machine's own is noted and refused, in every thread.
GUARD = """
import socket
attempts = []

def is_own(address):
    own = ("127.0.0.1", "::1", "localhost", "", socket.gethostname())
    return not isinstance(address, tuple) or str(address[0]) in own

def guarded(original):
    def connect(self, address, *rest):
        if not is_own(address):
            attempts.append(address)
            raise OSError(f"refused: {address}")
        return original(self, address, *rest)
    return connect

def guarded_lookup(original):
    def look_up(host, *rest, **others):
        if host is not None and not is_own((host,)):
            attempts.append(host)
            raise OSError(f"refused: {host}")
        return original(host, *rest, **others)
    return look_up

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
socket.getaddrinfo = guarded_lookup(socket.getaddrinfo)
"""

SWEEP = """
import os, sys, time
from pathlib import Path

if sys.argv[3] == "off":
    from isoloop.sweeps.privacy import switch_telemetry_off
    switch_telemetry_off()
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore
    from isoloop.sweeps.paths import Folders
    from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.tracking.uploader import Uploader
    from isoloop.sweeps.execution.simulated import simulate_run
    sweep = load_sweep("parcae-140m-simulated", ["budgets=[1e18]", "mean_recurrences=[2]"])
    folders = Folders(out=Path(sys.argv[1]), name=sweep.name)
    plan = plan_sweep(sweep, simulated_corpus)
    for cell in plan.cells:
        simulate_run(cell.spec, sweep.simulation, cell.run_id, folders.run(cell.run_id))
    store = TrackingStore(sys.argv[2], "x", artifacts=folders.artifacts)
    assert Uploader(store, plan, folders).close() == []
    assert len(store.read_table(sweep.name)) == 1
    import huggingface_hub.constants, ray
    from ray._common.usage import usage_lib
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert not usage_lib.usage_stats_enabled()
import mlflow
from mlflow.telemetry import get_telemetry_client, set_telemetry_client
set_telemetry_client()
if sys.argv[3] == "on":
    get_telemetry_client().activate()
    deadline = time.monotonic() + 30
    while not attempts and time.monotonic() < deadline:
        time.sleep(0.05)
print("client", get_telemetry_client() is not None, "attempts", len(attempts), attempts[:3])
"""
# What these libraries take for a sign that they are tested, and then are silent by themselves.
SILENCING = (
    "CI",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "PYTEST_CURRENT_TEST",
    "BUILDKITE",
    "JENKINS_URL",
    *TELEMETRY_OFF,
)


def guarded_sweep(tmp_path, database, switch):
    environment = {name: value for name, value in os.environ.items() if name not in SILENCING}
    done = subprocess.run(
        [sys.executable, "-c", GUARD + SWEEP, str(tmp_path), database, switch],
        env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("client ")[1].strip()


def test_a_recorded_sweep_talks_to_nobody(tmp_path, new_database):
    assert guarded_sweep(tmp_path, new_database(tmp_path / "mlflow.db"), "off") == "False attempts 0 []"


def test_the_guard_sees_what_would_leave(tmp_path):
    assert "mlflow-telemetry" in guarded_sweep(tmp_path, "", "on")
