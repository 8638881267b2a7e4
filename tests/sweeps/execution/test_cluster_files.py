"""The files under docs/clusters: well formed, with commands that there are. The Slurm script runs on a fake Slurm."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import metadata
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from isoloop.sweeps.cli.main import app
from isoloop.sweeps.config.loading import load_sweep

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "clusters"
GUIDE = ROOT / "docs" / "clusters.md"
TEXT, INTEGER, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(**types):
    return {"type": "object", "properties": types, "additionalProperties": False}


def several(kind):
    return {"type": "array", "items": kind, "minItems": 1}


# The fields that our files may use: those of Kubernetes (core/v1) ...
REFERENCE = fields(name=TEXT, optional=YES)
RESOURCES = fields(requests=TEXTS, limits=TEXTS)
CONTAINER = fields(
    name=TEXT,
    image=TEXT,
    env=several(fields(name=TEXT, value=TEXT)),
    envFrom=several(fields(secretRef=REFERENCE)),
    lifecycle=fields(preStop=fields(exec=fields(command=several(TEXT)))),
    resources=RESOURCES,
    volumeMounts=several(fields(name=TEXT, mountPath=TEXT)),
)
VOLUME = fields(
    name=TEXT, emptyDir=fields(), configMap=REFERENCE, persistentVolumeClaim=fields(claimName=TEXT, readOnly=YES)
)
POD = fields(
    containers=several(CONTAINER),
    volumes=several(VOLUME),
    securityContext=fields(fsGroup=INTEGER),
    terminationGracePeriodSeconds=INTEGER,
)
CLAIM = fields(accessModes=several(TEXT), resources=RESOURCES, storageClassName=TEXT)
# ... and of KubeRay's ray.io/v1 (ray-operator/apis/ray/v1/raycluster_types.go and rayjob_types.go in its repository).
GROUP = {"rayStartParams": TEXTS, "template": fields(spec=POD)}
CLUSTER = fields(
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions=fields(idleTimeoutSeconds=INTEGER, upscalingMode={"enum": ["Default", "Conservative"]}),
    headGroupSpec=fields(**GROUP, serviceType=TEXT),
    workerGroupSpecs=several(
        fields(**GROUP, groupName=TEXT, replicas=INTEGER, minReplicas=INTEGER, maxReplicas=INTEGER)
    ),
)
JOB = fields(
    entrypoint=TEXT,
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=INTEGER,
    backoffLimit=INTEGER,
    rayClusterSpec=CLUSTER,
)
SPECS = {"RayJob": JOB, "RayCluster": CLUSTER, "PersistentVolumeClaim": CLAIM}


def content_of(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_up_takes_the_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    (content,) = content_of(name)
    validate_config(prepare_config(content))  # Ray's own schema, and its rules about node types
    assert content["max_workers"] == content["available_node_types"]["gpu"]["max_workers"]


def test_aws_takes_the_machines():
    """Checked by the service model that boto3 itself checks calls with."""
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    calls = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    (content,) = content_of("aws.yaml")
    for kind in content["available_node_types"].values():
        machine = kind["node_config"]
        assert machine["IamInstanceProfile"]["Name"]
        report = ParamValidator().validate(machine | {"MinCount": 1, "MaxCount": 1}, calls)
        assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_kuberay_knows_the_fields(name):
    first, claim = content_of(name)
    assert (first["apiVersion"], claim["kind"]) == ("ray.io/v1", "PersistentVolumeClaim")
    for item in (first, claim):
        jsonschema.validate(
            item, fields(apiVersion=TEXT, kind=TEXT, metadata=fields(name=TEXT), spec=SPECS[item["kind"]])
        )
    cluster = first["spec"].get("rayClusterSpec", first["spec"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        resources = container["resources"]
        assert resources["requests"].get("nvidia.com/gpu") == resources["limits"].get("nvidia.com/gpu")


def test_the_fields_are_checked():
    """A misspelt field or a number where a text must be is found."""
    job, _ = content_of("rayjob.yaml")
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    for change in ({"maxReplica": 8}, {"rayStartParams": {"num-cpus": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(group | change, CLUSTER["properties"]["workerGroupSpecs"]["items"])


def commands(text):
    """Calls of `isoloop` in a text: its words up to the end of the command."""
    text = re.sub(r"\\\n", " ", text)
    for found in re.finditer(r"(?:^|[\s'/])isoloop ((?:run|plan|status|export|data) [^\n'|`;]*)", text):
        yield shlex.split(found.group(1).removesuffix("&"), comments=True)


def texts():
    for path in [GUIDE, *sorted(FOLDER.iterdir())]:
        yield (
            path.name,
            content_of(path.name)[0]["spec"]["entrypoint"] if path.name == "rayjob.yaml" else path.read_text(),
        )


def test_every_command_is_one_that_isoloop_has(tmp_path):
    """Each parses as typed, and what it sets is a setting of a sweep."""
    known, seen = get_command(app), set()
    for name, text in texts():
        for words in commands(text):
            command = known.commands[words[0]]
            given = command.make_context(words[0], [word.replace("$@", "my-sweep.yaml") for word in words[1:]]).params
            load_sweep("demo", given.get("override", []))
            seen.add((name, words[0]))
    assert {("rayjob.yaml", "run"), ("slurm.sh", "run"), ("aws.yaml", "run"), ("clusters.md", "status")} <= seen


def test_the_cluster_that_a_command_describes_is_the_one_in_its_file():
    """So that as many runs wait in Ray as the autoscaler may start machines for."""
    job = content_of("rayjob.yaml")[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    requests = job["template"]["spec"]["containers"][0]["resources"]["requests"]
    gcp = content_of("gcp.yaml")[0]["available_node_types"]["gpu"]
    described = {
        "rayjob.yaml": (job["maxReplicas"], int(requests["cpu"]), int(requests["nvidia.com/gpu"])),
        "gcp.yaml": (gcp["max_workers"], gcp["resources"]["CPU"], gcp["resources"]["GPU"]),
    }
    for name, text in texts():
        for words in commands(text):
            if name in described and words[0] == "run":
                overrides = [word for word in words if word.startswith("cluster.")]
                cluster = load_sweep("demo", overrides).cluster
                assert cluster.elastic
                assert (cluster.nodes, cluster.cpus, cluster.gpus) == described.pop(name)
    assert not described


@pytest.mark.parametrize(("code", "ends_with"), [(0, 0), (1, 0), (2, 1), (130, 1)])
def test_kubernetes_brings_up_no_cluster_for_failed_runs(code, ends_with, tmp_path):
    """KubeRay puts the entrypoint into a line of bash, and `ray job submit` and the head's shell read it in turn."""
    (tmp_path / "isoloop").write_text(f"#!/bin/sh\necho isoloop $*\nexit {code}\n")
    (tmp_path / "ray").write_text(f"#!{sys.executable}\nimport shlex, sys\nprint(shlex.join(sys.argv[4:]))\n")
    for fake in ("isoloop", "ray"):
        (tmp_path / fake).chmod(0o755)
    entrypoint = content_of("rayjob.yaml")[0]["spec"]["entrypoint"]
    run = partial(
        subprocess.run, shell=True, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    ended = run(run(f"ray job submit -- {entrypoint} ;", executable="/bin/bash").stdout)
    assert ended.returncode == ends_with
    assert ended.stdout.startswith("isoloop run /sweep/sweep.yaml --address auto")


def test_the_image_is_made_of_what_there_is():
    text = (FOLDER / "Dockerfile").read_text()
    (installs,) = re.findall(r"^RUN pip install (.+)$", text, re.MULTILINE)
    words = shlex.split(installs)
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()
    assert "." in words
    assert re.findall(r"^COPY (.+)$", text, re.MULTILINE) == [". ."]
    assert not (ROOT / ".dockerignore").exists(), "what is ignored can't be copied"
    assert metadata("ray").get_all("Provides-Extra", []).count("default") == 1


def test_bash_reads_the_slurm_script():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)


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
touch "$CALLS.up.$$"
while :; do sleep 0.05; done""",
    "isoloop": """
exec "$PYTHON" -c '
import glob, os, sys, time
end = time.monotonic() + 60
while len(glob.glob(os.environ["CALLS"] + ".up.*")) < 2 and time.monotonic() < end:  # as a driver waits for its nodes
    time.sleep(0.02)
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
                start_new_session=True,
            )
        )
        return started[0], tmp_path / "calls"

    yield start
    for process in started:  # and its commands, which hold its output
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_the_driver(calls):
    end = time.monotonic() + 120
    while not (calls.exists() and "isoloop run" in calls.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)  # it must be ready to be interrupted


def test_slurm_starts_head_workers_and_driver_and_cleans_up(slurm):
    process, calls = slurm(0)
    process.communicate(timeout=120)
    assert process.returncode == 0
    lines = calls.read_text().splitlines()
    assert lines[0].startswith("srun ray start --head --block --node-ip-address=10.0.0.1 --port=6379")
    assert any(line.startswith("srun ray start --block --address=10.0.0.1:6379") for line in lines)
    assert "isoloop run my sweep.yaml --out /shared at 10.0.0.1:6379" in lines
    assert lines.count("ray ended") == 2
    assert lines[-1] == "srun rm -rf /tmp/ray-7"


@pytest.mark.parametrize(("sent", "requeued", "code"), [(signal.SIGUSR1, True, 0), (signal.SIGTERM, False, 130)])
def test_slurm_asks_the_runs_to_save_and_requeues_when_the_time_is_up(slurm, sent, requeued, code):
    process, calls = slurm(60)
    wait_for_the_driver(calls)
    process.send_signal(sent)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert ("scontrol requeue 7" in calls.read_text().splitlines()) == requeued
    assert calls.read_text().splitlines().count("ray ended") == 2
