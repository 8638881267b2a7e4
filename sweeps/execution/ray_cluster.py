"""Ray: the machines it has, and attempts started, ended and killed on them. But for the worker, all that imports ray"""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoloop.sweeps.execution.failures import lost
from isoloop.sweeps.execution.worker import Ended, Task, run_attempt
from isoloop.sweeps.messages import first_line
from isoloop.sweeps.plan.packing import Needs, Node, Slot
from isoloop.sweeps.privacy import switch_telemetry_off

CONNECT_SECONDS = 5.0
AUTO_ADDRESS = "auto"
# Ray's switch for machines that must not listen to the network: everything binds to the loopback address alone.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class RayCluster:
    """A Ray to start attempts on, for as long as the `with` block lasts: a local one, or the one at `address`.

    Args:
        address: host:port, ray://host:port, or `auto` within a Ray job; None starts a local Ray, which listens on the
            loopback address alone.
        runtime_env: what the workers of another cluster need of this driver: code and environment.
        declared: `num_cpus` and `num_gpus` that a local Ray is told to have; by default what it finds.

    Raises:
        ValueError: no Ray answers there.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        runtime_env: Mapping[str, Any] | None = None,
        declared: Mapping[str, int] | None = None,
    ) -> None:
        self.is_local = address is None
        if address is not None:
            _check_reachable(address)
            if (Path.home() / ".ray" / "auth_token").exists():
                os.environ.setdefault("RAY_AUTH_MODE", "token")  # what `ray start` asks for; a driver doesn't offer it
        else:
            os.environ.setdefault(_LOOPBACK, "0")
        switch_telemetry_off()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray = ray
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=dict(runtime_env) if runtime_env else None,
                **({} if address else dict(declared or {})),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if address else ""
            raise ValueError(f"no Ray could be used at '{address or 'local'}': {first_line(error)}{hint}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the driver before its runs have saved
        # A process that has used a GPU ends with its run, so that its memory is free for the next one. Ray restarts
        # nothing by itself: the driver knows better what may be worth it.
        attempt = {"max_retries": 0, "num_cpus": 0}
        self.on_gpu = ray.remote(max_calls=1, **attempt)(run_attempt)
        self.on_cpu = ray.remote(**attempt)(run_attempt)

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        session = getattr(getattr(self.ray, "_private", None), "worker", None)
        node = getattr(session, "_global_node", None)
        folder = node.get_session_dir_path() if self.is_local and node is not None and node.is_head() else None
        self.ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)  # Ray never cleans its sessions up

    def nodes(self) -> list[Node]:
        """The machines that are alive, with all that they have."""
        return [
            Node(node["NodeID"], node["Resources"].get("CPU", 0.0), [1.0] * int(node["Resources"].get("GPU", 0)))
            for node in self.ray.nodes()
            if node["Alive"]
        ]

    def start(self, task: Task, needs: Needs, slots: Sequence[Slot]) -> Any:
        """Start an attempt where its slots are; returns its handle."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"name": f"isoloop {task.run_id}"}
        if needs.processes == 1:  # otherwise the task only starts the processes and waits: Ray must not count it
            options |= {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        if slots:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(slots[0].node, soft=True)
        remote = self.on_gpu if needs.gpus and task.simulation is None else self.on_cpu
        return remote.options(**options).remote(task.model_dump_json())

    def ended(self, handles: Sequence[Any], timeout: float) -> list[tuple[Any, Ended]]:
        """Attempts that have ended, waiting up to `timeout` seconds for the first."""
        done, _ = self.ray.wait(list(handles), num_returns=len(handles), timeout=0)
        if not done:
            done, _ = self.ray.wait(list(handles), num_returns=1, timeout=timeout)
        return [(handle, self._outcome(handle)) for handle in done]

    def kill(self, handle: Any) -> None:
        """End an attempt at once, whatever it does."""
        self.ray.cancel(handle, force=True)

    def _outcome(self, handle: Any) -> Ended:
        try:
            return Ended.model_validate_json(self.ray.get(handle))
        except self.ray.exceptions.RayTaskError as error:  # raised before the attempt began: code that didn't arrive
            return Ended(how="failed", reason=first_line(error.cause or error), may_pass=False)
        except self.ray.exceptions.RayError as error:
            failure = lost(f"the worker was lost ({type(error).__name__}: {first_line(error)})")
            return Ended(how="failed", reason=failure.reason, may_pass=failure.may_pass)


def _check_reachable(address: str) -> None:
    """Fail in seconds where Ray itself would try for minutes."""
    if address == AUTO_ADDRESS:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"--address must read host:port, ray://host:port or auto, but got '{address}'")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"a Ray cluster must answer at --address, but {address} does not ({error}); start one with 'ray start "
            "--head', or leave --address out for a local Ray"
        ) from error
