"""A cluster in virtual time for tests of the engine: attempts end as a script says, and no process is started."""

import dataclasses
import math
import os
from dataclasses import dataclass

from isoloop.sweeps.execution.worker import AttemptEnd
from isoloop.sweeps.plan.packing import Needs, Node, Pool
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE
from isoloop.trainer.run.branch import BRANCHES
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import RunResult, write_result

DONE = AttemptEnd(status="done")
FOREVER = math.inf
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
    """One attempt: `seconds` after it has begun (None: as long as the run is expected to take) it has journaled `step`
    and ends; until then it beats.
    """

    end: AttemptEnd = DONE
    seconds: float | None = None
    step: int = 0
    beats: bool = True
    writes: bool = True


@dataclass(kw_only=True, eq=False)
class Attempt:
    task: object
    needs: object
    act: Act | None = None
    slots: tuple | None = None
    saves: list = dataclasses.field(default_factory=list)
    ends: float = FOREVER
    end: AttemptEnd | None = None


class VirtualCluster:
    """A cluster that queues attempts and places them as Ray does: whatever fits begins, single processes before groups.

    `scripts` has the acts of a run's attempts by run id; what isn't there is done in its time.
    """

    def __init__(self, clock, machines, seconds):
        self.clock, self.seconds = clock, seconds
        self.scripts, self.log, self.attempts, self.reported, self.events, self.tasks = {}, [], [], set(), [], []
        self.machines = machines

    @property
    def machines(self):
        """The machines that are up, empty."""
        return self._machines

    @machines.setter
    def machines(self, machines):
        self._machines, self.pool = list(machines), Pool(copies(machines))

    @property
    def running(self):
        return [attempt for attempt in self.attempts if attempt.slots is not None]

    def nodes(self):
        return copies(self.machines)

    def free(self):
        return copies(self.pool.nodes.values())

    def start(self, task, needs, *, one_machine):
        assert task.run_id not in [attempt.task.run_id for attempt in self.attempts], "one attempt at a time"
        attempt = Attempt(task=task, needs=needs)
        self.attempts.append(attempt)
        self.tasks.append(task)
        self.log.append((self.clock.now, "queue", task.run_id))
        self.place()
        return attempt

    def begun(self, handles, timeout):
        return {attempt: attempt.slots[0].node for attempt in handles if attempt.slots is not None}

    def wait(self, handles, timeout):
        deadline = self.clock.now + timeout
        while True:
            self.turn()
            ended = [attempt for attempt in handles if attempt.end is not None]
            if ended or self.clock.now >= deadline:
                break
            due = [attempt.ends for attempt in self.running] + [at for at, _ in self.events]
            due += [at for attempt in self.running for at, _ in attempt.saves]
            self.clock.now = min([deadline, *(at for at in due if at > self.clock.now)])
        for attempt in ended:
            self.attempts.remove(attempt)
            self.log.append((self.clock.now, attempt.end.status, attempt.task.run_id))
        return [(attempt, attempt.end) for attempt in ended]

    def kill(self, handle):
        if handle.slots is None:
            self.log.append((self.clock.now, "cancel", handle.task.run_id))
        self.finish(handle, LOST)

    def turn(self):
        """Let everything happen that is due."""
        for at, event in [due for due in self.events if due[0] <= self.clock.now]:
            self.events.remove((at, event))
            event()
        for attempt in self.running:
            if attempt.end is None:
                self.get_on(attempt)
        self.place()

    def place(self):
        waiting = [attempt for attempt in self.attempts if attempt.slots is None and attempt.end is None]
        for attempt in sorted(waiting, key=lambda attempt: attempt.needs.processes > 1):
            attempt.slots = self.pool.place(attempt.needs)
            if attempt.slots is not None:
                run_id = attempt.task.run_id
                script = self.scripts.get(run_id)
                attempt.act = script.pop(0) if script else Act()
                seconds = self.seconds[run_id] if attempt.act.seconds is None else attempt.act.seconds
                attempt.ends = self.clock.now + seconds
                attempt.saves = saves_of(attempt.task, self.clock.now, self.seconds[run_id])
                self.log.append((self.clock.now, "start", run_id))

    def get_on(self, attempt):
        if attempt.act.beats:
            self.touch(attempt)
        for at, step in [save for save in attempt.saves if save[0] <= self.clock.now]:
            attempt.saves.remove((at, step))
            (attempt.task.folder / BRANCHES / f"{step:08d}").mkdir(parents=True)
        stop_files = [attempt.task.stop_file, attempt.task.folder / STOP_FILE]
        if any(file.exists() for file in stop_files):
            self.finish(attempt, AttemptEnd(status="stopped"))
        elif attempt.ends <= self.clock.now:
            self.write(attempt)
            self.finish(attempt, attempt.act.end)

    def finish(self, attempt, end):
        if attempt.end is None:
            attempt.end = end
            if attempt.slots is not None:
                here = [slot for slot in attempt.slots if slot.node in self.pool.nodes]
                self.pool.release(attempt.needs, here)

    def add(self, node):
        """Bring a machine."""
        self._machines.append(node)
        self.pool.nodes[node.name] = copies([node])[0]
        self.pool.release(Needs(0, 0), [])  # what didn't fit may fit now

    def lose(self, name):
        """Lose a machine with everything that runs on it."""
        self._machines = [node for node in self._machines if node.name != name]
        for attempt in self.running:
            if any(slot.node == name for slot in attempt.slots):
                self.finish(attempt, LOST)
        del self.pool.nodes[name]

    def hold(self, needs):
        """Occupy room by another job; returns what frees it again."""
        slots = self.pool.place(needs)
        assert slots is not None
        return lambda: self.pool.release(needs, slots)

    def at(self, seconds, event):
        """Call `event` once so many seconds have passed."""
        self.events.append((self.clock.now + seconds, event))

    def times(self, what, run_id):
        """When an attempt at a run was queued, started, or ended so, in seconds since the first was queued."""
        return [at - self.log[0][0] for at, how, run in self.log if (how, run) == (what, run_id)]

    def touch(self, attempt):
        file = attempt.task.folder / HEARTBEAT_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (self.clock.now, self.clock.now))

    def write(self, attempt):
        act, folder = attempt.act, attempt.task.folder
        if attempt.task.quality is not None:
            if act.end.status == "done" and act.writes:
                attempt.task.quality.folder.mkdir(parents=True)
            return
        if act.step:
            self.record_step(attempt, act.step)
        if act.end.status == "done" and act.writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_result(folder, result_of(attempt.task))

    def record_step(self, attempt, step):
        journal = Journal(attempt.task.folder / "journal.jsonl")
        journal.metrics(step, {"train_loss": 1.0})
        journal.close()


def saves_of(task, now, seconds):
    """When a run that takes so many seconds saves its states for others."""
    first = task.branching.start.step if task.branching.start else 0
    places = [step for step in task.branching.save_at if step > first]
    return [(now + seconds * (step - first) / (task.spec.steps - first), step) for step in places]


def copies(nodes):
    return [Node(node.name, node.cpus, list(node.gpus)) for node in nodes]


def result_of(task):
    """Return some result."""
    return RunResult(
        run_id=task.run_id, status="finished", simulated=True, steps=1, tokens=1, forward_loops=1, backward_loops=1,
        flops_exact=1, flops_parcae_release=1, loss=1.0, losses={1: 1.0}, bits_per_byte=None, spectral_radius=None,
        seconds=0,
    )  # fmt: skip
