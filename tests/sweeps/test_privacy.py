"""No user, password, token or key of a URI is shown or stored, and no telemetry leaves the machine."""

import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from isoloop.sweeps.analysis import fit_and_report
from isoloop.sweeps.cli.options import command_line
from isoloop.sweeps.config.fields import SecretUri
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import Tracking, config_text
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.messages import first_line
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import PreparedSweep, train_sweep
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.privacy import TELEMETRY_OFF, redacted
from isoloop.sweeps.tracking.mlflow_store import TrackingStore, translate_store_errors

SECRET = "s3cr3t"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://ann:{SECRET}@host:5000/x", "http://***@host:5000/x"),
        (f"postgresql+psycopg://ann:{SECRET}/a?b#c@d@host/db", "postgresql+psycopg://***@host/db"),
        (f"postgresql://ann:12/{SECRET}@host/db?sslmode=require", "postgresql://***@host/db?sslmode=require"),
        (f"https://{SECRET}@host/x", "https://***@host/x"),
        (f"s3://key:{SECRET}@bucket/x?region=eu&endpoint=h", "s3://***@bucket/x?region=eu&endpoint=h"),
        (f"abfs://box/x?sv=1&sig={SECRET}&access_key={SECRET}", "abfs://box/x?sv=1&sig=***&access_key=***"),
        (f"cannot open 'http://a:{SECRET}@h' or http://b:{SECRET}@i", "cannot open 'http://***@h' or http://***@i"),
        (f"host=h password={SECRET} user=u; api_key: no", "host=h password=*** user=u; api_key: no"),
        (f"Authorization: Bearer {SECRET}abcdef", "Authorization: Bearer ***"),
        (f"401 for hf_{'aB3' * 12}: no access", "401 for ***: no access"),
        (f"'ghp_{'x9' * 18}' and AKIA{'A1' * 8} (sk-proj-{'k_2' * 8})", "'***' and *** (***)"),
    ],
)
def test_secrets_are_left_out(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/ann/out/mlflow.db",
        "http://127.0.0.1:5000/a@b",
        "http://127.0.0.1:5000?mail=a",
        "s3://bucket/folder/a:b",
        "tokens=64000 and tokenizer=bpe, data.max_tokens=10",
        "file:///tmp/a@b",
        "ann@example.org wrote: 3 runs failed",
        "hf_internal_testing/tiny-random-model in hf_cache, task sk-learn-of-some-long-name, disk-0123456789abcdef0123",
    ],
)
def test_what_has_no_secret_stays_as_it_is(text):
    assert redacted(text) == text


def test_a_secret_comes_back_from_the_environment(monkeypatch):
    whole = f"http://ann:{SECRET}@host"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stored = Tracking(uri=redacted(whole))
    assert Tracking(uri=whole).full_uri(default="none") == whole
    assert Tracking().full_uri(default="none") == "none"
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set; set it to the whole of http://"):
        stored.full_uri(default="none")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert stored.full_uri(default="none") == whole
    with pytest.raises(ValueError, match="holds another URI"):
        Tracking(uri="http://***@elsewhere").full_uri(default="none")


def test_a_configuration_shows_no_secret(simulated):
    uri = f"http://ann:{SECRET}@host"
    sweep = simulated.model_copy(update={"tracking": Tracking(uri=uri), "storage": SecretUri(uri)})
    shown = (
        repr(sweep),
        str(sweep),
        f"{sweep.storage}",
        sweep.model_dump_json(),
        str(sweep.model_dump()),
        config_text(sweep),
    )
    for text in shown:
        assert SECRET not in text
        assert "http://***@host" in text
    assert pickle.loads(pickle.dumps(sweep)).storage.get_secret_value() == uri


def test_errors_leave_secrets_out(tmp_path, monkeypatch):
    assert first_line(OSError(f"no route to http://ann:{SECRET}@host")) == "no route to http://***@host"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in (f"http://ann:{SECRET}@127.0.0.1:9", f"nonsense://ann:{SECRET}@host", f"http://ann:{SECRET}@[broken"):
        with pytest.raises(ValueError, match="tracking URI") as caught:
            TrackingStore(uri, "x", artifacts=tmp_path)
        assert SECRET not in str(caught.value)

    def fail():
        with translate_store_errors("http://h"):
            raise RuntimeError(f"refused: http://ann:{SECRET}@h")

    with pytest.raises(ValueError, match="refused") as caught:
        fail()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_stored_configuration_has_no_secret_and_can_be_run_again(simulated, tmp_path):
    tracking = Tracking(uri=f"postgresql://ann:{SECRET}@host/db")
    text = config_text(simulated.model_copy(update={"tracking": tracking}))
    assert SECRET not in text
    (tmp_path / "config.yaml").write_text(text)
    again = load_sweep(str(tmp_path / "config.yaml"))
    assert again.model_copy(update={"tracking": simulated.tracking}) == simulated
    assert again.tracking.uri.get_secret_value() == "postgresql://***@host/db"


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_a_sweep_leaves_no_secret_anywhere(simulated, tmp_path, caplog, new_database, monkeypatch):
    """A sweep whose URIs have secrets: nothing in the output folder has them, nor any log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)  # MLflow makes the folder `file:/...` for such a URI
    # sqlite ignores what it doesn't know: the one store with a secret in its URI that needs no server.
    new_database(tmp_path / "store.db")
    uri = f"sqlite:///file:{tmp_path / 'store.db'}?uri=true&password={SECRET}"
    sweep = simulated.model_copy(update={"tracking": Tracking(uri=uri), "budgets": (1e10,), "mean_recurrences": (1, 2)})
    plan, folders = plan_sweep(sweep, simulated_corpus), Folders(out=tmp_path / "out", name=sweep.name)
    for cell in plan.cells:
        simulate_run(cell.spec, sweep.simulation, cell.run_id, folders.run(cell.run_id))
    recorded = train_sweep(PreparedSweep(plan=plan, corpora={}), folders)
    fit_and_report(sweep, folders, recorded.table, command=f"isoloop run x --tracking-uri {uri}")
    assert recorded.store.save_files(recorded.parent, folders.sweep) is None
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in caplog.text
    assert yaml.safe_load(folders.config.read_text())["tracking"]["uri"] == redacted(uri)


def test_the_command_on_a_page_can_be_given_again_and_has_no_secret(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["isoloop", "run", "my sweep.yaml", "--tracking-uri", f"http://ann:{SECRET}@host"])
    assert command_line() == "isoloop run 'my sweep.yaml' --tracking-uri 'http://***@host'"


def test_the_command_says_no_secret(tmp_path):
    completed = subprocess.run(
        [sys.executable, "-c", "from isoloop.sweeps.cli.main import main; main()", "run", "demo", "--set", f"tracking.uri=['http://a:{SECRET}@h']"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert completed.returncode == 2
    assert "http://***@h" in completed.stderr
    assert SECRET not in completed.stdout + completed.stderr


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
# Variables by which these libraries recognise a test, in which they send nothing anyway.
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
