"""Small Ray clusters of several machines on this one, with declared GPUs, and another job that uses them too."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.engine import run_plan
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.trainer.run.journal import read_journal
from tests.sweeps.conftest import SIMULATED

FLOPS = 1e11


def wait_until(happens):
    """Wait for an event; the limit is for a machine that does much else."""
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline, "it must happen within two minutes"
        time.sleep(0.05)


def simulated_runs(count, *, seconds, **content):
    """The plan of so many simulated runs, each of about so many seconds (up to a tenth more)."""
    budgets = [FLOPS * (1 + 0.1 * i / count) for i in range(count)]
    sweep = {
        **SIMULATED,
        "budgets": budgets,
        "mean_recurrences": [2],
        "simulation": {**SIMULATED["simulation"], "flops_per_second": FLOPS / seconds},
        **content,
    }
    return plan_sweep(validate_sweep(sweep, source="test"), simulated_corpus)


@contextlib.contextmanager
def machines(**head):
    """A Ray cluster whose head has no resources; machines are added with `add_node`."""
    from ray._private.authentication import authentication_token_setup as authentication
    from ray.cluster_utils import Cluster

    authentication.enable_token_auth_by_default()  # as a local Ray does, after which drivers of this user ask for it
    authentication.ensure_token_if_auth_enabled()
    workers = {
        "RAY_prestart_worker_first_driver": "0",  # none before one is needed
        "RAY_enable_worker_prestart": "0",
    }
    with mock.patch.dict(os.environ, workers):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **head})
        session = cluster.head_node.get_session_dir_path()
        try:
            yield cluster
        finally:
            cluster.shutdown()
            left = subprocess.run(["pgrep", "--full", session], capture_output=True, text=True, check=False)
            for process in left.stdout.split():  # of machines that an autoscaler has started
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)


@contextlib.contextmanager
def autoscaled_machines(folder, node_types):
    """A Ray cluster whose head has no resources, and whose autoscaler starts machines of these types on demand.

    Args:
        folder: a place for the autoscaler's configuration.
        node_types: resources of a machine by type; there is at most one machine of each.
    """
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    empty = ("file_mounts", "auth")
    none = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    none += ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    config = {
        "cluster_name": "test",
        "max_workers": len(node_types),
        "upscaling_speed": 10,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"{get_node_ip_address()}:{port}",
            "use_node_id_as_ip": True,  # all of them have this machine's address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {FAKE_HEAD_NODE_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0}},
        "file_mounts_sync_continuously": False,
        **{key: {} for key in empty},
        **{key: [] for key in none},
    }
    for name, resources in node_types.items():
        resources = {**resources, "object_store_memory": 100 * 2**20}
        config["available_node_types"][name] = {"resources": resources, "node_config": {}, "max_workers": 1}
    file = folder / "autoscaler.yaml"
    file.write_text(json.dumps(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTOSCALER_FATESHARE_WORKERS": "1",  # it ends its machines when it is ended
    }
    with mock.patch.dict(os.environ, environment):
        head = {"autoscaling_config": str(file), "gcs_server_port": port}
        head["env_vars"] = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        with machines(**head) as cluster:
            yield cluster
            (monitor,) = cluster.head_node.all_processes["monitor"]
            monitor.process.terminate()
            monitor.process.wait(60)


class Watcher(Progress):
    """What a sweep reports; `meanwhile` is called with the number of runs that have ended, again and again."""

    def __init__(self, meanwhile=lambda ended: None):
        self.meanwhile, self.lines = meanwhile, []

    def update(self, label, done, total):
        self.meanwhile(int(label.removeprefix("runs ").partition("/")[0]))

    def event(self, line):
        self.lines.append(line)


class Times:
    """When the runs of a plan began and ended, by the clocks of their journals."""

    def __init__(self, plan, folders):
        self.plan, self.folders = plan, folders
        self.journals = {cell.run_id: folders.run(cell.run_id) / "journal.jsonl" for cell in plan.cells}

    def of(self, *events):
        """Times in ms by run id of the first of these events in a run's journal."""
        times = {}
        for run_id, journal in self.journals.items():
            for record in read_journal(journal)[0]:
                if record.get("name") in events:
                    times.setdefault(run_id, record["time_ms"])
        return times


class Gpus(threading.Thread):
    """Looks at a cluster's free GPUs, while the `with` block lasts.

    Attributes:
        longest_idle: for how many seconds one was free at most, while more runs were left than there were GPUs in use.
        fewest_free: the lowest number of free ones.
    """

    def __init__(self, ray, times, gpus=4):
        """Of the `gpus`, no other job uses any."""
        super().__init__(daemon=True)
        self.ray, self.times, self.gpus, self.over = ray, times, gpus, threading.Event()
        self.longest_idle, self.fewest_free = 0.0, float("inf")

    def run(self):
        idle_since = None
        while not self.over.wait(0.05):
            now = time.monotonic()
            free = self.count_free()
            self.fewest_free = min(self.fewest_free, free)
            left = len(self.times.journals) - len(self.times.of("finished"))
            idle_since = (idle_since or now) if free >= 1 and left > self.gpus - free else None
            self.longest_idle = max(self.longest_idle, now - (idle_since or now))

    def count_free(self):
        return self.ray.available_resources().get("GPU", 0.0)

    def __enter__(self):
        wait_until(lambda: self.count_free() == self.gpus)  # Ray tells it a moment later
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


class OtherJob:
    """A job of somebody else on the same Ray, in a process of its own."""

    def __init__(self, address):
        command = [sys.executable, "-m", __name__, address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def hold(self, *bundles):
        """Take these resources, each bundle on a machine of its own, and keep them until `let_go`."""
        self._ask({"hold": bundles})
        assert self.answer(), f"{bundles} must come free"

    def let_go(self):
        self.hold()

    @contextlib.contextmanager
    def holding(self, *bundles):
        self.hold(*bundles)
        try:
            yield
        finally:
            self.let_go()

    def run(self, times):
        """Begin a sweep as another driver; `answer` waits for its end."""
        self._ask({"run": times.plan.sweep.model_dump(mode="json"), "out": str(times.folders.out)})

    def _ask(self, request):
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def answer(self):
        return json.loads(self.process.stdout.readline())


def answer_requests(address):
    """Be the other job."""
    from isoloop.sweeps.execution.ray_cluster import RayCluster

    with RayCluster(address) as cluster:
        from ray.util import placement_group, remove_placement_group

        group = None
        for request in map(json.loads, sys.stdin):
            if "run" in request:
                sweep = validate_sweep(request["run"], source="test")
                folders = Folders(out=Path(request["out"]), name=sweep.name)
                plan = plan_sweep(sweep, simulated_corpus)
                outcome = run_plan(plan, folders, lambda: nullcontext(cluster), corpora={})
                print(json.dumps(len(outcome.results)), flush=True)
            else:
                if group is not None:
                    remove_placement_group(group)
                group = placement_group(request["hold"], strategy="STRICT_SPREAD") if request["hold"] else None
                print(json.dumps(group is None or group.wait(120)), flush=True)


if __name__ == "__main__":
    answer_requests(sys.argv[1])
