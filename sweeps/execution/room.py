"""The room of a cluster: which runs it could hold, which share of it each takes, and what waits for it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from isoloop.sweeps.config.resources import ClusterConfig
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.packing import Needs, Node, Pool


class Room:
    """The room of a cluster whose machines come and go.

    Args:
        described: the machines that the sweep's configuration describes.
        one_machine: the processes of a run must be on one machine.
    """

    def __init__(self, described: ClusterConfig, *, one_machine: bool) -> None:
        self.described, self.one_machine = described, one_machine
        self.cores = self.gpus = 0.0

    def measure(self, nodes: Sequence[Node], needs: Sequence[Needs]) -> list[Node]:
        """Measure the cluster, and return the machines that may hold runs of these `needs`, empty.

        To those that are up, `nodes`, come those that the configuration describes, where they start on demand or have
        not all registered yet. Only the former count as part of the cluster before they are up.
        """
        described: list[Node] = []
        if self.described.elastic or self._is_incomplete(nodes, needs):
            largest = max((node.cpus for node in nodes), default=0.0)
            described = allocation.planned_nodes(self.described, needs, largest_machine=largest)
        parts = [nodes, described] if self.described.elastic else [nodes]
        self.cores = max(sum(node.cpus for node in part) for part in parts)
        self.gpus = max(sum(sum(node.gpus) for node in part) for part in parts)
        return [*described, *nodes]

    def _is_incomplete(self, nodes: Sequence[Node], needs: Sequence[Needs]) -> bool:
        """Return whether more machines are described than are up, of which one holds a process of each run."""
        return len(nodes) < self.described.nodes and all(any(node.fits(each) for node in nodes) for each in needs)

    def share(self, needs: Needs) -> float:
        """Return the share of the whole cluster that a run takes: of its GPUs or its cores, whichever is more."""
        gpus, cores = needs.processes * needs.gpus, needs.processes * needs.cpus
        return max(gpus / self.gpus if gpus and self.gpus else 0.0, cores / self.cores if self.cores else 1.0)

    def pool(self, nodes: Iterable[Node]) -> Pool:
        """Return what is free on these machines, to reckon with."""
        return Pool(nodes, spread=not self.one_machine)

    def check(self, needs: Iterable[Needs], nodes: Sequence[Node]) -> None:
        """Raise ValueError where no machine could ever hold a run; a cluster without any room yet is waited for."""
        pool = self.pool(nodes)
        misfit = next((each for each in dict.fromkeys(needs) if not pool.fits(each)), None)
        if misfit is None or not has_room(nodes):
            return
        counts = Counter(f"{node.cpus:g} CPU, {sum(node.gpus):g} GPU" for node in nodes)
        held = "; ".join(f"{count} x {text}" if count > 1 else text for text, count in counts.items())
        advice = "give the address of a larger cluster, or set cluster.elastic where nodes start on demand"
        if self.described.elastic:
            advice = "describe the machines that can start in cluster.nodes, cluster.cpus and cluster.gpus"
        together = ", all on one node as the runs lie in a storage" if self.one_machine else ""
        raise ValueError(
            f"a run must fit the cluster, but its resources ask for {misfit.processes} process(es) of "
            f"{misfit.cpus:g} CPU, {misfit.gpus:g} GPU, each on one node{together}, and the nodes have {held}; "
            f"ask for less, or {advice}"
        )


def has_room(nodes: Iterable[Node]) -> bool:
    """Return whether any machine can hold anything; a head that only manages the cluster has no room."""
    return any(node.cpus or node.gpus for node in nodes)


def describe_waiting(waiting: Mapping[Needs, int], nodes: Sequence[Node], free: Sequence[Node]) -> str:
    """Return what waits in Ray, for what, and how much of it is free: '4 runs wait in Ray for 1 GPU each; ...'."""
    parts: list[str] = []
    for needs, count in sorted(waiting.items(), key=lambda entry: -entry[1]):
        amount = f"{needs.gpus:g} GPU" if needs.gpus else f"{needs.cpus:g} core" + "s" * (needs.cpus != 1)
        runs = f"{count} run{'s wait' if count > 1 else ' waits'} in Ray" if not parts else f"{count}"
        several = f"{needs.processes} x " if needs.processes > 1 else ""
        parts.append(f"{runs} for {several}{amount}" + (" each" if count > 1 else ""))
    text = ", ".join(parts)
    if not has_room(nodes):
        return f"{text}; no machine with cores or GPUs has come up yet"
    if not free:  # the cluster is too busy to say
        return text
    if any(needs.gpus for needs in waiting):
        total, left, unit = sum(sum(n.gpus) for n in nodes), sum(sum(n.gpus) for n in free), "GPUs"
    else:
        total, left, unit = sum(n.cpus for n in nodes), sum(n.cpus for n in free), "cores"
    return f"{text}; {left:g} of {total:g} {unit} are free"
