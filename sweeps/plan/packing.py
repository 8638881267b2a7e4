"""Which run goes where, and which first: packing, the order, how long it all takes. Pure; the executor asks it, too.

A run asks for processes, each for cores and for a share of a GPU. Shares of a GPU are packed onto GPUs that are shared
already, so that whole ones stay free for runs that need them, as Ray packs them.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_ROUNDING = 1e-9
_DIGITS = 9  # what is free is rounded to these, so that thirds add up to a whole again
# An order whose makespan is this close to the lower bound is good enough: no other is tried.
_GOOD_ENOUGH = 1.01


class Needs(NamedTuple):
    """What a run asks for: `processes`, each with `cpus` cores and `gpus` GPUs (a share, one, or none)."""

    cpus: float
    gpus: float
    processes: int = 1

    @property
    def whole(self) -> float:
        """GPUs of the whole run, or its cores where it has no GPU: what it keeps busy."""
        return self.processes * (self.gpus or self.cpus)

    def fits_if(self, more: "Needs") -> bool:
        """Whether this fits wherever `more` does."""
        return self.processes <= more.processes and self.gpus <= more.gpus and self.cpus <= more.cpus


class Job(NamedTuple):
    """A run to be placed: how long it is expected to take, and what it asks for."""

    seconds: float
    needs: Needs


class Slot(NamedTuple):
    """Where one process sits: a node by name, and the GPU there (-1: none)."""

    node: str
    gpu: int


@dataclass
class Node:
    """A machine with what is free on it: cores, and each GPU's free share."""

    name: str
    cpus: float
    gpus: list[float] = field(default_factory=list)

    def room(self, needs: Needs) -> int:
        """How many processes fit now."""
        by_cpus = int((self.cpus + _ROUNDING) / needs.cpus) if needs.cpus else needs.processes
        if not needs.gpus or not by_cpus:
            return by_cpus
        if needs.gpus == 1:
            return min(by_cpus, self.gpus.count(1.0))
        return min(by_cpus, sum(int((free + _ROUNDING) / needs.gpus) for free in self.gpus))

    def holds(self, needs: Needs) -> bool:
        """Whether one process fits now."""
        has_gpu = not needs.gpus or max(self.gpus, default=0.0) + _ROUNDING >= needs.gpus
        return has_gpu and self.cpus + _ROUNDING >= needs.cpus

    def take(self, needs: Needs) -> Slot | None:
        """Make room for one process, on the GPU that has the least left but enough; None if there is none."""
        if not self.holds(needs):
            return None
        gpu = -1
        if needs.gpus:
            _, gpu = min((free, index) for index, free in enumerate(self.gpus) if free + _ROUNDING >= needs.gpus)
            self.gpus[gpu] = round(self.gpus[gpu] - needs.gpus, _DIGITS)
        self.cpus = round(self.cpus - needs.cpus, _DIGITS)
        return Slot(self.name, gpu)

    def give_back(self, needs: Needs, slot: Slot) -> None:
        """Free what `take` took."""
        self.cpus = round(self.cpus + needs.cpus, _DIGITS)
        if slot.gpu >= 0:
            self.gpus[slot.gpu] = round(self.gpus[slot.gpu] + needs.gpus, _DIGITS)

    def tightness(self, needs: Needs) -> tuple[bool, float, float]:
        """The less, the sooner this node is chosen: shared GPUs first, then where least is free."""
        shared = 0 < needs.gpus < 1 and any(needs.gpus <= free + _ROUNDING < 1 for free in self.gpus)
        return not shared, sum(self.gpus), self.cpus


class Pool:
    """Machines and what is free on them. All of it is kept here: nobody is asked.

    Args:
        nodes: the machines.
        spread: whether the processes of one run may sit on several of them.
    """

    def __init__(self, nodes: Iterable[Node], *, spread: bool = True) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.spread = spread
        self._too_much: set[Needs] = set()  # what was found not to fit since something was last freed

    def place(self, needs: Needs) -> tuple[Slot, ...] | None:
        """A slot for each process, on one node or on few; None, with nothing taken, if they don't all fit."""
        if any(less.fits_if(needs) for less in self._too_much):
            return None
        taken = self._place_one(needs) if needs.processes == 1 else self._place_several(needs)
        if taken is None:
            self._too_much.add(needs)
        return taken

    def release(self, needs: Needs, slots: Sequence[Slot]) -> None:
        """Free the slots of a run; those of nodes that have gone are forgotten."""
        self._too_much.clear()
        for slot in slots:
            if slot.node in self.nodes:
                self.nodes[slot.node].give_back(needs, slot)

    def add(self, node: Node) -> None:
        """Take up a machine that has come."""
        self._too_much.clear()
        self.nodes[node.name] = node

    def drop(self, name: str) -> None:
        """Forget a machine that has gone."""
        del self.nodes[name]

    def holds(self, needs: Needs) -> bool:
        """Whether the run would fit if nothing else ran; asked of an empty pool."""
        slots = self.place(needs)
        if slots is None:
            return False
        self.release(needs, slots)
        return True

    def _place_one(self, needs: Needs) -> tuple[Slot, ...] | None:
        """A process, on the node where the least is left."""
        fitting = [node for node in self.nodes.values() if node.holds(needs)]
        return (_taken(min(fitting, key=lambda node: node.tightness(needs)), needs),) if fitting else None

    def _place_several(self, needs: Needs) -> tuple[Slot, ...] | None:
        """All processes on the node where the least is left, or over several nodes, those with most free first."""
        rooms = [(node, room) for node in self.nodes.values() if (room := node.room(needs))]
        fitting = [node for node, room in rooms if room >= needs.processes]
        if fitting:
            node = min(fitting, key=lambda node: node.tightness(needs))
            return tuple(_taken(node, needs) for _ in range(needs.processes))
        if not self.spread or sum(room for _, room in rooms) < needs.processes:
            return None
        taken: list[Slot] = []
        for node, room in sorted(rooms, key=lambda found: found[0].tightness(needs), reverse=True):
            taken += [_taken(node, needs) for _ in range(min(room, needs.processes - len(taken)))]
        return tuple(taken)


def _taken(node: Node, needs: Needs) -> Slot:
    slot = node.take(needs)
    assert slot is not None, "the node was asked before"
    return slot


Order = Callable[[Job], tuple[float, ...]]
# Longest first is best where runs are alike; where some are wide, they must not wait behind what fits into the gaps.
ORDERS: dict[str, Order] = {
    "longest first": lambda job: (-job.seconds, -job.needs.whole),
    "widest, then longest first": lambda job: (-job.needs.whole, -job.seconds),
    "largest first": lambda job: (-job.seconds * job.needs.whole, -job.seconds),
}


class Queue:
    """Waiting runs by priority. What doesn't fit now is passed over; runs that ask for the same share a fate."""

    def __init__(self) -> None:
        self._by_needs: dict[Needs, list[tuple[tuple[float, ...], int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_needs.values()))

    def add(self, index: int, priority: tuple[float, ...], needs: Needs) -> None:
        """Let run `index` wait; the smallest priority goes first."""
        heapq.heappush(self._by_needs.setdefault(needs, []), (priority, index))

    def remove(self, index: int, needs: Needs) -> bool:
        """Take out a run, whether or not it fits; False if it doesn't wait."""
        waiting = self._by_needs.get(needs, [])
        left = [entry for entry in waiting if entry[1] != index]
        if len(left) == len(waiting):
            return False
        heapq.heapify(left)
        self._by_needs[needs] = left
        return True

    def next(self, pool: Pool) -> tuple[int, Needs, tuple[Slot, ...]] | None:
        """Take out the first run that fits, with the slots taken for it; None if none fits."""
        for needs in sorted(
            (n for n, waiting in self._by_needs.items() if waiting), key=lambda n: self._by_needs[n][0]
        ):
            slots = pool.place(needs)
            if slots is not None:
                _, index = heapq.heappop(self._by_needs[needs])
                return index, needs, slots
        return None


def makespan(jobs: Sequence[Job], nodes: Sequence[Node], order: Order, *, give_up: float = math.inf) -> float:
    """Seconds until all `jobs` are done when each starts as soon as it fits, in `order`; inf if not before `give_up`.

    Raises:
        ValueError: a job asks for more than the nodes have.
    """
    pool, queue = Pool(_fresh(nodes)), Queue()
    for index, job in enumerate(jobs):
        queue.add(index, order(job), job.needs)
    now = 0.0
    ends: list[tuple[float, int, Needs, tuple[Slot, ...]]] = []
    while queue or ends:
        while (found := queue.next(pool)) is not None:
            index, needs, slots = found
            if now + jobs[index].seconds >= give_up:
                return math.inf
            heapq.heappush(ends, (now + jobs[index].seconds, index, needs, slots))
        if not ends:
            raise ValueError("every run must fit the cluster, but some ask for more than its nodes have")
        now = ends[0][0]
        while ends and ends[0][0] == now:
            _, _, needs, slots = heapq.heappop(ends)
            pool.release(needs, slots)
    return now


def best_order(jobs: Sequence[Job], nodes: Sequence[Node]) -> tuple[str, float]:
    """The order with the shortest makespan, and that makespan in seconds. The first that is good enough will do.

    Raises:
        ValueError: a job asks for more than the nodes have.
    """
    alike = len({job.needs.whole for job in jobs}) <= 1
    enough = _GOOD_ENOUGH * lower_bound(jobs, nodes)
    best, shortest = "", math.inf
    for name in list(ORDERS)[:1] if alike else ORDERS:
        seconds = makespan(jobs, nodes, ORDERS[name], give_up=shortest)
        if seconds < shortest:
            best, shortest = name, seconds
        if shortest <= enough:
            break
    return best, shortest


def lower_bound(jobs: Sequence[Job], nodes: Sequence[Node]) -> float:
    """Seconds that no schedule can beat: the longest run, or all work shared evenly among GPUs, or among cores."""
    bounds = [max((job.seconds for job in jobs), default=0.0)]
    gpus, cores = sum(sum(node.gpus) for node in nodes), sum(node.cpus for node in nodes)
    if gpus:
        bounds.append(sum(job.seconds * job.needs.processes * job.needs.gpus for job in jobs) / gpus)
    if cores:
        bounds.append(sum(job.seconds * job.needs.processes * job.needs.cpus for job in jobs) / cores)
    return max(bounds)


def _fresh(nodes: Sequence[Node]) -> list[Node]:
    return [Node(node.name, node.cpus, list(node.gpus)) for node in nodes]
