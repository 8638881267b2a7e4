"""A cluster in virtual time for tests of the engine: attempts end as a script says, and no process is started."""

import math
import os
from dataclasses import dataclass, field

from isoloop.sweeps.execution.worker import AttemptEnd
from isoloop.sweeps.plan.packing import Node
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import RunResult, write_result

DONE = AttemptEnd(status="done")
LOST = AttemptEnd(status="failed", reason="the worker was lost", retryable=True)
BROKEN = AttemptEnd(status="failed", reason="a rule is broken", retryable=False)


class Clock:
    """A stand-in for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@dataclass(kw_only=True)
class Act:
    """One attempt: after `seconds` (None: as long as the run is expected to take) it has journaled `step` and ends.

    It shows that it has begun, unless it waits in Ray for others to end, and then beats.
    """

    end: AttemptEnd = DONE
    seconds: float | None = None
    step: int = 0
    begins: bool = True
    beats: bool = True
    writes: bool = True


@dataclass(kw_only=True, eq=False)
class Attempt:
    task: object
    needs: object
    slots: tuple
    act: Act
    ends: float
    began: float
    end: AttemptEnd | None = None


@dataclass
class VirtualCluster:
    """`scripts` has the acts of a run's attempts by run id; what isn't there is done in its time."""

    clock: Clock
    machines: list[Node]
    seconds: dict[str, float]
    scripts: dict[str, list[Act]] = field(default_factory=dict)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    events: list[tuple[float, object]] = field(default_factory=list)

    def nodes(self):
        return [Node(node.name, node.cpus, list(node.gpus)) for node in self.machines]

    def start(self, task, needs, slots):
        assert not [a for a in self.running if a.task.run_id == task.run_id and a.end is None], "one attempt at a time"
        script = self.scripts.get(task.run_id)
        act = script.pop(0) if script else Act()
        seconds = self.seconds[task.run_id] if act.seconds is None else act.seconds
        now = self.clock.now
        attempt = Attempt(task=task, needs=needs, slots=tuple(slots), act=act, began=now, ends=now + seconds)
        self.running.append(attempt)
        if act.begins:
            self.touch(attempt)
        self.log.append((now, "start", task.run_id))
        self.check_room()
        return attempt

    def wait(self, handles, timeout):
        until = min([self.clock.now + timeout, *(max(self.clock.now, a.ends) for a in handles)])
        self.clock.now = until
        for at, event in [due for due in self.events if due[0] <= until]:
            self.events.remove((at, event))
            event()
        for attempt in self.running:
            self.beat(attempt)
            self.stop_on_request(attempt)
            if attempt.end is None and attempt.ends <= until:
                self.finish(attempt)
        ended = [attempt for attempt in handles if attempt.end is not None]
        for attempt in ended:
            self.running.remove(attempt)
            self.log.append((self.clock.now, attempt.end.status, attempt.task.run_id))
        return [(attempt, attempt.end) for attempt in ended]

    def kill(self, handle):
        handle.end = LOST

    def lose(self, name):
        """Lose a machine with everything that runs on it."""
        self.machines = [node for node in self.machines if node.name != name]
        for attempt in self.running:
            if any(slot.node == name for slot in attempt.slots):
                attempt.end = LOST

    def at(self, seconds, event):
        """Call `event` once so many seconds have passed."""
        self.events.append((self.clock.now + seconds, event))

    def times(self, what, run_id):
        """When an attempt at a run started, or ended so, in seconds since the first start."""
        return [at - self.log[0][0] for at, how, run in self.log if (how, run) == (what, run_id)]

    def beat(self, attempt):
        if attempt.act.beats and attempt.end is None:
            self.touch(attempt)

    def touch(self, attempt):
        file = attempt.task.folder / HEARTBEAT_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (self.clock.now, self.clock.now))

    def stop_on_request(self, attempt):
        stop_files = [attempt.task.stop_file, attempt.task.folder / STOP_FILE]
        if attempt.end is None and any(file.exists() for file in stop_files):
            attempt.end = AttemptEnd(status="stopped")

    def finish(self, attempt):
        attempt.end, folder = attempt.act.end, attempt.task.folder
        if attempt.act.step:
            self.record_step(attempt, attempt.act.step)
        if attempt.end.status == "done" and attempt.act.writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_result(folder, result_of(attempt.task))

    def record_step(self, attempt, step):
        journal = Journal(attempt.task.folder / "journal.jsonl")
        journal.metrics(step, {"train_loss": 1.0})
        journal.close()

    def check_room(self):
        """No GPU and no core is given twice."""
        used = {}
        for attempt in self.running:
            for slot in attempt.slots if attempt.end is None else ():
                used[slot] = used.get(slot, 0.0) + attempt.needs.gpus
        assert all(share <= 1 + 1e-9 for slot, share in used.items() if slot.gpu >= 0), used
        for node in self.machines:
            slots = [(s, a.needs.cpus) for a in self.running if a.end is None for s in a.slots if s.node == node.name]
            assert sum(cpus for _, cpus in slots) <= node.cpus


def result_of(task):
    """Return some result."""
    return RunResult(
        run_id=task.run_id, status="finished", simulated=True, steps=1, tokens=1, forward_loops=1, backward_loops=1,
        flops_exact=1, flops_parcae_release=1, loss=1.0, losses={1: 1.0}, bits_per_byte=None, spectral_radius=None,
        seconds=0,
    )  # fmt: skip


FOREVER = math.inf
