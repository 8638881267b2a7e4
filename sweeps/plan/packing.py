"""Placement of runs on machines, their order, and the time they take in all. The engine uses it, too.

A run needs processes, each with cores and a share of a GPU. Shares go to GPUs that are already shared, as Ray packs
them, so that whole GPUs stay free for runs that need them.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_TOLERANCE = 1e-9
_FREE_DIGITS = 9  # free shares are rounded, so that three thirds add up to 1
MOST_SIMULATED = 10_000  # jobs of which a makespan is computed exactly
_GOOD_ENOUGH = 1.01  # of the lower bound: if one order's makespan is this close, no other order is tried


class Needs(NamedTuple):
    """Needs of a run: `processes`, each with `cpus` cores and `gpus` GPUs (a share, one, or none)."""

    cpus: float
    gpus: float
    processes: int = 1

    @property
    def busy_units(self) -> float:
        """GPUs of the whole run, or its cores if it has no GPU."""
        return self.processes * (self.gpus or self.cpus)

    def at_most(self, other: "Needs") -> bool:
        """Return whether this fits wherever `other` fits."""
        return self.processes <= other.processes and self.gpus <= other.gpus and self.cpus <= other.cpus


class Job(NamedTuple):
    """A run to be placed: its expected duration, its needs, and the job that it follows, by so many seconds."""

    seconds: float
    needs: Needs
    follows: tuple[int, float] | None = None


class Slot(NamedTuple):
    """The place of one process: the name of a node, and the index of the GPU there (-1 without one)."""

    node: str
    gpu: int


@dataclass
class Node:
    """A machine with its free cores and the free share of each of its GPUs."""

    name: str
    cpus: float
    gpus: list[float] = field(default_factory=list)

    def room(self, needs: Needs) -> int:
        """Return how many processes fit now."""
        by_cpus = int((self.cpus + _TOLERANCE) / needs.cpus) if needs.cpus else needs.processes
        if not needs.gpus or not by_cpus:
            return by_cpus
        if needs.gpus == 1:
            return min(by_cpus, self.gpus.count(1.0))
        return min(by_cpus, sum(int((free + _TOLERANCE) / needs.gpus) for free in self.gpus))

    def fits(self, needs: Needs) -> bool:
        """Return whether one process fits now."""
        has_gpu = not needs.gpus or max(self.gpus, default=0.0) + _TOLERANCE >= needs.gpus
        return has_gpu and self.cpus + _TOLERANCE >= needs.cpus

    def reserve(self, needs: Needs) -> Slot:
        """Reserve a slot for one process that fits, on the GPU with the smallest free share that is large enough."""
        assert self.fits(needs), "the caller checks that the process fits"
        gpu = -1
        if needs.gpus:
            _, gpu = min((free, index) for index, free in enumerate(self.gpus) if free + _TOLERANCE >= needs.gpus)
            self.gpus[gpu] = round(self.gpus[gpu] - needs.gpus, _FREE_DIGITS)
        self.cpus = round(self.cpus - needs.cpus, _FREE_DIGITS)
        return Slot(self.name, gpu)

    def release(self, needs: Needs, slot: Slot) -> None:
        """Free a slot that `reserve` returned."""
        self.cpus = round(self.cpus + needs.cpus, _FREE_DIGITS)
        if slot.gpu >= 0:
            self.gpus[slot.gpu] = round(self.gpus[slot.gpu] + needs.gpus, _FREE_DIGITS)

    def rank(self, needs: Needs) -> tuple[bool, float, float]:
        """Return a sort key: first the nodes with a shared GPU that fits, then those with least free."""
        shared = 0 < needs.gpus < 1 and any(needs.gpus <= free + _TOLERANCE < 1 for free in self.gpus)
        return not shared, sum(self.gpus), self.cpus


class Pool:
    """The machines and what is free on them, by our own accounts.

    Args:
        nodes: the machines.
        spread: allow the processes of one run to be on several machines.
    """

    def __init__(self, nodes: Iterable[Node], *, spread: bool = True) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.spread = spread
        self._rejected: set[Needs] = set()  # needs that didn't fit since something was last released

    def place(self, needs: Needs) -> tuple[Slot, ...] | None:
        """Reserve a slot for each process, on as few nodes as possible; None, with nothing reserved, if not all fit."""
        if any(rejected.at_most(needs) for rejected in self._rejected):
            return None
        slots = self._place_one(needs) if needs.processes == 1 else self._place_several(needs)
        if slots is None:
            self._rejected.add(needs)
        return slots

    def release(self, needs: Needs, slots: Sequence[Slot]) -> None:
        """Free the slots of a run."""
        self._rejected.clear()
        for slot in slots:
            self.nodes[slot.node].release(needs, slot)

    def reject(self, needs: Iterable[Needs]) -> None:
        """Let nothing fit that needs as much as one of these, until something is released."""
        self._rejected.update(needs)

    def fits(self, needs: Needs) -> bool:
        """Return whether a run fits now, with nothing reserved."""
        slots = self.place(needs)
        if slots is None:
            return False
        self.release(needs, slots)
        return True

    def _place_one(self, needs: Needs) -> tuple[Slot, ...] | None:
        """Reserve a slot on the node with least free."""
        fitting = [node for node in self.nodes.values() if node.fits(needs)]
        return (min(fitting, key=lambda node: node.rank(needs)).reserve(needs),) if fitting else None

    def _place_several(self, needs: Needs) -> tuple[Slot, ...] | None:
        """Reserve all slots on the node with least free, or on several nodes, those with most free first."""
        rooms = [(node, room) for node in self.nodes.values() if (room := node.room(needs))]
        fitting = [node for node, room in rooms if room >= needs.processes]
        if fitting:
            node = min(fitting, key=lambda node: node.rank(needs))
            return tuple(node.reserve(needs) for _ in range(needs.processes))
        if not self.spread or sum(room for _, room in rooms) < needs.processes:
            return None
        slots: list[Slot] = []
        for node, room in sorted(rooms, key=lambda entry: entry[0].rank(needs), reverse=True):
            slots += [node.reserve(needs) for _ in range(min(room, needs.processes - len(slots)))]
        return tuple(slots)


Order = Callable[[Job], tuple[float, ...]]
# Longest first is best for runs of equal width; wide ones must not wait behind narrow ones that fill the gaps.
ORDERS: dict[str, Order] = {
    "longest first": lambda job: (-job.seconds, -job.needs.busy_units),
    "widest, then longest first": lambda job: (-job.needs.busy_units, -job.seconds),
    "largest first": lambda job: (-job.seconds * job.needs.busy_units, -job.seconds),
}


class Queue:
    """Waiting runs by priority; one that doesn't fit now is passed over, with all others of the same needs."""

    def __init__(self) -> None:
        self._by_needs: dict[Needs, list[tuple[tuple[float, ...], int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_needs.values()))

    def add(self, index: int, priority: tuple[float, ...], needs: Needs) -> None:
        """Add run `index`; the run with the smallest priority is next."""
        heapq.heappush(self._by_needs.setdefault(needs, []), (priority, index))

    def remove(self, index: int, needs: Needs) -> bool:
        """Remove a run, whether or not it fits, and return whether it was waiting."""
        waiting = self._by_needs.get(needs, [])
        left = [entry for entry in waiting if entry[1] != index]
        if len(left) == len(waiting):
            return False
        heapq.heapify(left)
        self._by_needs[needs] = left
        return True

    def needs(self) -> list[Needs]:
        """Return the needs of the waiting runs, the first in line first."""
        waiting = {needs: entries for needs, entries in self._by_needs.items() if entries}
        return sorted(waiting, key=lambda needs: waiting[needs][0])

    def first(self) -> tuple[int, Needs] | None:
        """Return the run that is next, with its needs."""
        needs = self.needs()
        return (self._by_needs[needs[0]][0][1], needs[0]) if needs else None

    def pop(self, needs: Needs) -> int:
        """Remove and return the first run of these needs."""
        return heapq.heappop(self._by_needs[needs])[1]

    def next(self, pool: Pool) -> tuple[int, Needs, tuple[Slot, ...]] | None:
        """Remove and return the first run that fits, with the slots reserved for it; None if none fits."""
        for needs in self.needs():
            slots = pool.place(needs)
            if slots is not None:
                return self.pop(needs), needs, slots
        return None


def makespan(jobs: Sequence[Job], nodes: Sequence[Node], order: Order, *, limit: float = math.inf) -> float:
    """Return the seconds until all `jobs` are done if each starts as soon as it may and fits, in `order`.

    The result is inf if it isn't under `limit`.

    Raises:
        ValueError: a job needs more than the nodes have.
    """
    pool, queue = Pool([Node(node.name, node.cpus, list(node.gpus)) for node in nodes]), Queue()
    followers: dict[int, list[tuple[float, int]]] = {}
    for index, job in enumerate(jobs):
        if job.follows is None:
            queue.add(index, order(job), job.needs)
        else:
            followers.setdefault(job.follows[0], []).append((job.follows[1], index))
    now = 0.0
    # What happens next: a run ends and leaves its slots, or one that follows another (no slots) may start.
    events: list[tuple[float, int, tuple[Slot, ...]]] = []
    while queue or events:
        while (placed := queue.next(pool)) is not None:
            index, _, slots = placed
            if now + jobs[index].seconds >= limit:
                return math.inf
            heapq.heappush(events, (now + jobs[index].seconds, index, slots))
            for delay, follower in followers.pop(index, ()):
                heapq.heappush(events, (now + delay, follower, ()))
        if not events:
            raise ValueError("every run must fit the cluster, but some need more than its nodes have")
        now = events[0][0]
        while events and events[0][0] == now:
            _, index, slots = heapq.heappop(events)
            if slots:
                pool.release(jobs[index].needs, slots)
            else:
                queue.add(index, order(jobs[index]), jobs[index].needs)
    return now


def best_order(jobs: Sequence[Job], nodes: Sequence[Node]) -> tuple[str, float]:
    """Return the order with the shortest makespan, or the first that comes close to it, and its makespan in seconds.

    Of more than `MOST_SIMULATED` jobs a sample is simulated, and its makespan scaled up by the lower bounds.

    Raises:
        ValueError: a job needs more than the nodes have.
    """
    if len(jobs) > MOST_SIMULATED:
        sample = _sample(jobs, every=math.ceil(len(jobs) / MOST_SIMULATED))
        name, seconds = best_order(sample, nodes)
        return name, seconds * lower_bound(jobs, nodes) / lower_bound(sample, nodes)
    equally_wide = len({job.needs.busy_units for job in jobs}) <= 1
    enough = _GOOD_ENOUGH * lower_bound(jobs, nodes)
    best, shortest = "", math.inf
    for name in list(ORDERS)[:1] if equally_wide else ORDERS:
        seconds = makespan(jobs, nodes, ORDERS[name], limit=shortest)
        if seconds < shortest:
            best, shortest = name, seconds
        if shortest <= enough:
            break
    return best, shortest


def _sample(jobs: Sequence[Job], *, every: int) -> list[Job]:
    """Return every so many-th job of the same needs, from the longest on, as if none followed another."""
    by_needs: dict[Needs, list[Job]] = {}
    for job in sorted((Job(job.seconds, job.needs) for job in jobs), reverse=True):
        by_needs.setdefault(job.needs, []).append(job)
    return [job for same in by_needs.values() for job in same[::every]]


def lower_bound(jobs: Sequence[Job], nodes: Sequence[Node]) -> float:
    """Return the seconds that no schedule can beat: the longest run, or all work spread evenly over GPUs or cores."""
    bounds = [max((job.seconds for job in jobs), default=0.0)]
    gpus, cores = sum(sum(node.gpus) for node in nodes), sum(node.cpus for node in nodes)
    if gpus:
        bounds.append(sum(job.seconds * job.needs.processes * job.needs.gpus for job in jobs) / gpus)
    if cores:
        bounds.append(sum(job.seconds * job.needs.processes * job.needs.cpus for job in jobs) / cores)
    return max(bounds)
