"""Which run goes where, and which first: packing, the order, how long it all takes. Pure; the executor asks it, too.

A run asks for processes, each for cores and for a share of a GPU. Shares of a GPU are packed onto GPUs that are shared
already, so that whole ones stay free for runs that need them, as Ray packs them.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_ROUNDING = 1e-9


class Needs(NamedTuple):
    """What a run asks for: `processes`, each with `cpus` cores and `gpus` GPUs (a share, one, or none)."""

    cpus: float
    gpus: float
    processes: int = 1

    @property
    def whole(self) -> float:
        """GPUs of the whole run, or its cores where it has no GPU: what it keeps busy."""
        return self.processes * (self.gpus or self.cpus)


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

    def take(self, needs: Needs) -> Slot | None:
        """Make room for one process, on the GPU that has the least left but enough; None if there is none."""
        if self.cpus + _ROUNDING < needs.cpus:
            return None
        gpu = -1
        if needs.gpus:
            fitting = [(free, index) for index, free in enumerate(self.gpus) if free + _ROUNDING >= needs.gpus]
            if not fitting:
                return None
            _, gpu = min(fitting)
            self.gpus[gpu] -= needs.gpus
        self.cpus -= needs.cpus
        return Slot(self.name, gpu)

    def give_back(self, needs: Needs, slot: Slot) -> None:
        """Free what `take` took."""
        self.cpus += needs.cpus
        if slot.gpu >= 0:
            self.gpus[slot.gpu] += needs.gpus

    def tightness(self, needs: Needs) -> tuple[bool, float, float]:
        """The less, the sooner this node is chosen: shared GPUs first, then where least is free."""
        shared = any(needs.gpus <= free + _ROUNDING < 1 for free in self.gpus)
        return not (0 < needs.gpus < 1 and shared), sum(self.gpus), self.cpus


class Pool:
    """Machines and what is free on them. All of it is kept here: nobody is asked.

    Args:
        nodes: the machines.
        spread: whether the processes of one run may sit on several of them.
    """

    def __init__(self, nodes: Iterable[Node], *, spread: bool = True) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.spread = spread

    def place(self, needs: Needs) -> tuple[Slot, ...] | None:
        """A slot for each process, on as few nodes as can be; None, with nothing taken, if they don't all fit."""
        taken: list[Slot] = []
        for node in sorted(self.nodes.values(), key=lambda node: node.tightness(needs)):
            if needs.processes > 1 and len(taken) == 0 and not self._holds_all(node, needs):
                continue
            while len(taken) < needs.processes and (slot := node.take(needs)) is not None:
                taken.append(slot)
            if len(taken) == needs.processes:
                return tuple(taken)
        return self._spread(needs) if needs.processes > 1 and self.spread else None

    def release(self, needs: Needs, slots: Sequence[Slot]) -> None:
        """Free the slots of a run; those of nodes that have gone are forgotten."""
        for slot in slots:
            if slot.node in self.nodes:
                self.nodes[slot.node].give_back(needs, slot)

    def holds(self, needs: Needs) -> bool:
        """Whether the run would fit if nothing else ran; asked of an empty pool."""
        slots = self.place(needs)
        if slots is None:
            return False
        self.release(needs, slots)
        return True

    def _holds_all(self, node: Node, needs: Needs) -> bool:
        """Whether all processes fit on one node now."""
        whole = sum(int((free + _ROUNDING) / needs.gpus) for free in node.gpus) if needs.gpus else needs.processes
        return whole >= needs.processes and node.cpus + _ROUNDING >= needs.cpus * needs.processes

    def _spread(self, needs: Needs) -> tuple[Slot, ...] | None:
        """Processes over several nodes, those with most free first."""
        taken: list[Slot] = []
        for node in sorted(self.nodes.values(), key=lambda node: node.tightness(needs), reverse=True):
            while len(taken) < needs.processes and (slot := node.take(needs)) is not None:
                taken.append(slot)
        if len(taken) == needs.processes:
            return tuple(taken)
        self.release(needs, taken)
        return None


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


def makespan(jobs: Sequence[Job], nodes: Sequence[Node], order: Order) -> float:
    """Seconds until all `jobs` are done when each starts as soon as it fits, in `order`.

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
            heapq.heappush(ends, (now + jobs[index].seconds, index, needs, slots))
        if not ends:
            raise ValueError("every run must fit the cluster, but some ask for more than its nodes have")
        now, _, needs, slots = heapq.heappop(ends)
        pool.release(needs, slots)
    return now


def best_order(jobs: Sequence[Job], nodes: Sequence[Node]) -> tuple[str, float]:
    """The order with the shortest makespan, and that makespan in seconds."""
    alike = len({job.needs.whole for job in jobs}) <= 1
    tried = list(ORDERS)[:1] if alike else list(ORDERS)
    found = {name: makespan(jobs, nodes, ORDERS[name]) for name in tried}
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def lower_bound(jobs: Sequence[Job], nodes: Sequence[Node]) -> float:
    """Seconds that no schedule can beat: the longest run, or all work shared evenly among GPUs (or cores)."""
    gpus = [job for job in jobs if job.needs.gpus]
    cores = [job for job in jobs if not job.needs.gpus]
    all_gpus, all_cores = sum(sum(node.gpus) for node in nodes), sum(node.cpus for node in nodes)
    bounds = [max((job.seconds for job in jobs), default=0.0)]
    if gpus and all_gpus:
        bounds.append(sum(job.seconds * job.needs.whole for job in gpus) / all_gpus)
    if cores and all_cores:
        bounds.append(sum(job.seconds * job.needs.whole for job in cores) / all_cores)
    return max(bounds)


def _fresh(nodes: Sequence[Node]) -> list[Node]:
    return [Node(node.name, node.cpus, list(node.gpus)) for node in nodes]
