"""The files under docs/clusters: well formed, with commands that there are. The Slurm script runs on a fake Slurm."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from isoloop.sweeps.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "clusters"
GUIDE = ROOT / "docs" / "clusters.md"
# Fields of KubeRay's ray.io/v1 that our files may use (ray-operator/apis/ray/v1 in its repository).
JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD = {"rayStartParams", "template", "serviceType"}
WORKERS = HEAD - {"serviceType"} | {"groupName", "replicas", "minReplicas", "maxReplicas"}


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_up_takes_the_file(name):
    content = yaml.safe_load((FOLDER / name).read_text())
    schema = json.loads((Path(find_spec("ray").origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(content, schema)
    assert content["head_node_type"] in content["available_node_types"]


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_kuberay_knows_the_fields(name):
    first, claim = yaml.safe_load_all((FOLDER / name).read_text())
    assert first["apiVersion"] == "ray.io/v1"
    assert claim["kind"] == "PersistentVolumeClaim"
    cluster = first["spec"]
    if first["kind"] == "RayJob":
        assert set(cluster) <= JOB
        cluster = cluster["rayClusterSpec"]
    assert set(cluster) <= CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS


def commands(text):
    """Calls of `isoloop` in a text: its words up to the end of the command."""
    text = re.sub(r"\\\n", " ", text)
    for found in re.finditer(r"(?:^|[\s'/])isoloop ((?:run|plan|status|export|data) [^\n'|`;]*)", text):
        yield shlex.split(found.group(1).removesuffix("&"), comments=True)


def texts():
    for path in [GUIDE, *sorted(FOLDER.iterdir())]:
        text = path.read_text()
        if path.name == "rayjob.yaml":
            text = "\nisoloop".join(
                ["", yaml.safe_load_all(text).__next__()["spec"]["entrypoint"].removeprefix("isoloop")]
            )
        yield path.name, text


def test_every_command_is_one_that_isoloop_has():
    known = get_command(app).commands
    seen = set()
    for name, text in texts():
        for words in commands(text):
            command = known[words[0]]
            options = {option for parameter in command.params for option in parameter.opts}
            used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
            assert used <= options, f"{name}: isoloop {' '.join(words)}"
            seen.add((name, words[0]))
    assert {("rayjob.yaml", "run"), ("slurm.sh", "run"), ("aws.yaml", "run"), ("clusters.md", "status")} <= seen


def test_no_registry_is_named():
    for name, text in texts():
        assert not re.search(r"(docker|quay|ghcr|gcr|ecr|nvcr)\.(io|com)|amazonaws|pkg\.dev", text), name


FAKES = {
    "srun": 'while [[ "${1:-}" == --* ]]; do shift; done; echo "srun $*" >> "$CALLS"; exec "$@"',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"',
    "ray": """
if [ "$1" = status ]; then [ -e "$CALLS.head" ]; exit; fi
[ "$2" = --head ] && touch "$CALLS.head"
trap 'echo "ray ended" >> "$CALLS"; exit' TERM
while :; do sleep 0.05; done""",
    "isoloop": """
exec "$PYTHON" -c '
import os, sys, time
open(os.environ["CALLS"], "a").write("isoloop " + " ".join(sys.argv[1:]) + " at " + os.environ["RAY_ADDRESS"] + chr(10))
try:
    time.sleep(float(os.environ["SECONDS_NEEDED"]))
except KeyboardInterrupt:
    time.sleep(0.2)
    sys.exit(130)
' "$@" """,
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm would on the first of two nodes, whose commands all run here."""
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "PYTHON": sys.executable,
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1", "SLURMD_NODENAME": "n1",
        "RAY_HEAD_IP": "10.0.0.1",
    }  # fmt: skip
    started = []

    def start(seconds):
        started.append(
            subprocess.Popen(
                ["bash", str(FOLDER / "slurm.sh"), "my sweep.yaml", "--out", "/shared"],
                env=environment | {"SECONDS_NEEDED": str(seconds)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[0], tmp_path / "calls"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_the_driver(calls):
    end = time.monotonic() + 20
    while not (calls.exists() and "isoloop run" in calls.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)  # it must be ready to be interrupted


def test_slurm_starts_head_workers_and_driver_and_cleans_up(slurm):
    process, calls = slurm(0)
    process.communicate(timeout=30)
    assert process.returncode == 0
    lines = calls.read_text().splitlines()
    assert lines[0].startswith("srun ray start --head --block --node-ip-address=10.0.0.1 --port=6379")
    assert any(line.startswith("srun ray start --block --address=10.0.0.1:6379") for line in lines)
    assert "isoloop run my sweep.yaml --out /shared --address auto at 10.0.0.1:6379" in lines
    assert lines.count("ray ended") == 2
    assert lines[-1] == "srun rm -rf /tmp/ray-7"


@pytest.mark.parametrize(("sent", "requeued", "code"), [(signal.SIGUSR1, True, 0), (signal.SIGTERM, False, 130)])
def test_slurm_asks_the_runs_to_save_and_requeues_when_the_time_is_up(slurm, sent, requeued, code):
    process, calls = slurm(60)
    wait_for_the_driver(calls)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert ("scontrol requeue 7" in calls.read_text().splitlines()) == requeued
    assert calls.read_text().splitlines().count("ray ended") == 2
