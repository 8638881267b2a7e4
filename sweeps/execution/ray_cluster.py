"""A Ray cluster: its machines, and attempts that Ray places on them, awaited and killed.

Only this file and the worker import ray.
"""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from isoloop.sweeps.execution.ray_address import LOCAL, OPTION, check_reachable
from isoloop.sweeps.execution.runtime_env import JOB_VARIABLE
from isoloop.sweeps.execution.worker import AttemptEnd, Task, classify_error, run_attempt
from isoloop.sweeps.messages import first_line
from isoloop.sweeps.plan.packing import Needs, Node
from isoloop.sweeps.privacy import switch_telemetry_off

FREE_SECONDS = 2.0
BOARD_SECONDS = 60.0
# With this switch of Ray's off, everything binds to the loopback address alone. ray.init has no argument for that.
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# A placement group that waits is tried again after at most so many ms; by default 1000, in which its GPUs stand idle.
_GROUP_RETRY_VARIABLE, _GROUP_RETRY_MS = "RAY_gcs_create_placement_group_retry_max_interval_ms", "100"

log = logging.getLogger(__name__)


class _Board:
    """An actor on the head node, to which attempts say that they have begun, and which sees what is free.

    Streamed results of tasks would say the first too, but not through Ray Client (ray://).
    """

    def __init__(self) -> None:
        self.begun: dict[str, str] = {}

    def report(self, attempt: str, machine: str) -> None:
        """Note that an attempt has begun on a machine."""
        self.begun[attempt] = machine

    def take_begun(self) -> dict[str, str]:
        """Return the machines of the attempts that have begun since the last call."""
        begun, self.begun = self.begun, {}
        return begun

    def free(self) -> dict[str, dict[str, float]]:
        """Return the free resources of each machine by its id, as Ray counts them for all jobs."""
        from ray._private.state import available_resources_per_node

        return available_resources_per_node()


class _Attempt(NamedTuple):
    """The name under which an attempt reports, and the placement group of its processes if it has several."""

    name: str
    group: Any


class RayCluster:
    """A Ray, local or at an address, on which attempts are started while the `with` block lasts.

    Args:
        address: host:port, ray://host:port, or `auto` within a Ray job; None starts a local Ray, which listens on the
            loopback address alone.
        named_by: the option or variable that the address was read from.
        runtime_env: code and environment that the workers of another cluster get from this driver.
        declared: `num_cpus` and `num_gpus` of a local Ray; detected if left out.

    Raises:
        ValueError: no Ray answers at the address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        named_by: str = OPTION,
        runtime_env: Mapping[str, Any] | None = None,
        declared: Mapping[str, int] | None = None,
    ) -> None:
        # Set the environment, which Ray reads when it is imported.
        if address is not None:
            check_reachable(address, named_by)
            if (Path.home() / ".ray" / "auth_token").exists():
                os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` asks for it; a driver doesn't by itself
        else:
            os.environ.setdefault(_LOOPBACK_VARIABLE, "0")
            os.environ.setdefault(_GROUP_RETRY_VARIABLE, _GROUP_RETRY_MS)
            os.environ.pop(JOB_VARIABLE, None)  # what a Ray job has sent to its cluster isn't on this one
        switch_telemetry_off()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if address is None:
            from ray._private import ray_constants

            ray_constants.ENABLE_RAY_CLUSTER = False  # the variable comes too late where ray was imported before

        # Connect, and keep the driver's own handling of SIGTERM: with Ray's it would end before its runs have saved.
        self.ray = ray
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            context = ray.init(
                address=address or LOCAL,  # which Ray takes before its own RAY_ADDRESS
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=dict(runtime_env) if runtime_env else None,
                **({} if address else dict(declared or {})),
            )
        except Exception as error:  # Ray raises a bare Exception where its start takes more than 30 s
            reason = first_line(error)
            if address is None:
                raise ValueError(
                    f"Ray must start on this machine, but it doesn't: {reason}; if the machine is busy, rerun the "
                    "command later: nothing is lost"
                ) from error
            raise ValueError(
                f"Ray must be usable at {address!r} ({named_by}), but it isn't: {reason}; if it asks for a token, set "
                f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; {OPTION} {LOCAL} starts a Ray on this machine"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        self._session_folder = None if address else context.address_info["session_dir"]
        # A process that has used a GPU ends with its run, so that its memory is free for the next one. Ray retries
        # nothing by itself: the driver knows better what is worth a retry.
        options = {"max_retries": 0, "num_cpus": 0}
        self.on_gpu = ray.remote(max_calls=1, **options)(run_attempt)
        self.on_cpu = ray.remote(**options)(run_attempt)
        on_head = {"node:__internal_head__": 0.001}  # it lives as long as the cluster, and keeps no other node up
        lasting = {"max_restarts": -1, "max_task_retries": -1}  # a report is repeated, not lost, while it starts again
        self._new_board = ray.remote(num_cpus=0, resources=on_head, **lasting)(_Board).remote
        self.board = self._new_board()
        self._begun: dict[str, str] = {}
        self._begun_reply: Any = None
        self._attempts: dict[Any, _Attempt] = {}
        self._numbers = count()
        if address is not None:
            self._check_actors(address, named_by)

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()
        if self._session_folder is not None:
            shutil.rmtree(self._session_folder, ignore_errors=True)  # Ray never cleans its sessions up

    def _check_actors(self, address: str, named_by: str) -> None:
        """Raise where tasks work, but actors end at once, as with a token that the cluster doesn't have."""
        try:
            self.ray.get(self.board.take_begun.remote(), timeout=BOARD_SECONDS)
        except self.ray.exceptions.GetTimeoutError:  # a head that is busy: the attempts will be seen later
            return
        except self.ray.exceptions.RayActorError as error:
            self.ray.shutdown()
            mode = os.environ.get("RAY_AUTH_MODE", "disabled")
            other = "disabled" if mode == "token" else "token"
            raise ValueError(
                f"Ray at {address!r} ({named_by}) must be able to reach this driver, but it ended an actor at once; if "
                f"its machines were started with another RAY_AUTH_MODE than this driver's '{mode}', set "
                f"RAY_AUTH_MODE={other} and rerun the command"
            ) from error

    def nodes(self) -> list[Node]:
        """Return the machines that are up, with all their resources, free or not."""
        return [_node(node["NodeID"], node["Resources"]) for node in self.ray.nodes() if node["Alive"]]

    def free(self) -> list[Node]:
        """Return the machines that are up, with what no job uses now; none if Ray doesn't say so at once."""
        reply = self.board.free.remote()
        try:
            return [_node(name, resources) for name, resources in self.ray.get(reply, timeout=FREE_SECONDS).items()]
        except self.ray.exceptions.ActorDiedError:
            self.board = self._new_board()
            return []
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            return []

    def start(self, task: Task, needs: Needs, *, one_machine: bool) -> Any:
        """Queue an attempt, which Ray starts where there is room, and return its handle.

        Several processes get a placement group, in which the attempt itself begins once all of it is reserved: what
        it starts there has its place, and until then it waits in Ray like any other, where an autoscaler sees it.
        """
        name, group = f"isoloop {task.run_id} {next(self._numbers)}", None
        options: dict[str, Any] = {"name": f"isoloop {task.run_id}"}
        if needs.processes == 1:
            options |= {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        else:
            from ray.util.placement_group import placement_group
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            bundle = {"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {})
            strategy = "STRICT_PACK" if one_machine else "PACK"
            group = placement_group([bundle] * needs.processes, strategy=strategy, name=name)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, 0)
        remote = self.on_gpu if needs.gpus and task.simulation is None else self.on_cpu
        handle = remote.options(**options).remote(task.model_dump_json(), self.board, name)
        self._attempts[handle] = _Attempt(name, group)
        return handle

    def begun(self, handles: Sequence[Any], timeout: float) -> dict[Any, str]:
        """Return those of the attempts that have begun, with the host name of their (first) machine.

        With a `timeout` those that have begun by now; otherwise it may be those of a moment ago.
        """
        deadline = time.monotonic() + timeout
        replies = 0
        while replies < (2 if timeout else 1):  # the first may be the answer to an earlier question
            if self._begun_reply is None:
                self._begun_reply = self.board.take_begun.remote()
            if not self.ray.wait([self._begun_reply], timeout=max(0.0, deadline - time.monotonic()))[0]:
                break
            try:
                self._begun |= self.ray.get(self._begun_reply)
            except self.ray.exceptions.ActorDiedError:
                self.board = self._new_board()
            except self.ray.exceptions.RayActorError as error:  # Ray starts it again
                log.warning("%s", error)
            self._begun_reply, replies = None, replies + 1
        names = {handle: self._attempts[handle].name for handle in handles if handle in self._attempts}
        return {handle: self._begun.pop(name) for handle, name in names.items() if name in self._begun}

    def wait(self, handles: Sequence[Any], timeout: float) -> list[tuple[Any, AttemptEnd]]:
        """Return the attempts that have ended, after waiting up to `timeout` seconds for the first."""
        done, _ = self.ray.wait(list(handles), num_returns=len(handles), timeout=0)
        if not done:
            done, _ = self.ray.wait(list(handles), num_returns=1, timeout=timeout)
        for handle in done:
            self._forget(handle)
        return [(handle, self._end(handle)) for handle in done]

    def kill(self, handle: Any) -> None:
        """End an attempt at once, or take it out of Ray's queue."""
        self.ray.cancel(handle, force=True)
        self._forget(handle)

    def _forget(self, handle: Any) -> None:
        """Give up the room that was reserved for an attempt."""
        attempt = self._attempts.pop(handle, None)
        if attempt is None:
            return
        self._begun.pop(attempt.name, None)
        if attempt.group is not None:
            self.ray.util.remove_placement_group(attempt.group)

    def _end(self, handle: Any) -> AttemptEnd:
        try:
            return AttemptEnd.model_validate_json(self.ray.get(handle))
        except self.ray.exceptions.RayTaskError as error:  # raised before the attempt began: code that didn't arrive
            return AttemptEnd(status="failed", reason=first_line(error.cause or error))
        except self.ray.exceptions.RayError as error:
            return classify_error(error)


def _node(name: str, resources: Mapping[str, float]) -> Node:
    """Return a machine by Ray's counts; of several GPUs' free shares Ray tells only the sum."""
    whole, share = divmod(round(resources.get("GPU", 0.0), 4), 1.0)
    return Node(name, resources.get("CPU", 0.0), [1.0] * int(whole) + ([share] if share else []))
