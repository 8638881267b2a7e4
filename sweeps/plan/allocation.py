"""Resources of a run on the planned cluster, and its estimated speed, memory and price, before anything runs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from isoloop.sweeps.config.resources import AUTO, CPU_FLOPS_PER_SECOND, DEFAULT_UTILISATION, ClusterConfig, Resources
from isoloop.sweeps.plan.packing import Needs, Node
from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.memory import MuonVariant, estimate_memory, largest_micro_batch

GPU_SHARES = (0.125, 0.25, 0.5, 1.0)
HEADROOM = 1.1  # the allocator loses about a tenth to fragmentation


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Expected training FLOPs per second of one run, and the source of the number."""

    flops_per_second: float
    source: str


def expected_speed(resources: Resources, cluster: ClusterConfig, precision: str) -> Speed:
    """Return the speed of a run: the stated one, else a share of the device's peak, else a guess.

    Raises:
        ValueError: a utilisation is given, but the device isn't.
    """
    stated, utilisation = resources.flops_per_second, resources.utilisation
    if stated is not None:
        return Speed(flops_per_second=stated, source=f"the stated {stated:.3g} FLOPs per second of a run")
    peak = cluster.peak(precision)
    if utilisation is not None and peak is None:
        raise ValueError(
            f"utilisation must refer to a device, but got utilisation={utilisation:g} and cluster.device isn't set; "
            "set it, or set resources.flops_per_second"
        )
    if resources.gpus and peak is not None:
        share = utilisation or DEFAULT_UTILISATION
        source = f"{share:.0%} of the {peak:.3g} FLOPs per second of {cluster.device}'s data sheet"
        return Speed(
            flops_per_second=resources.processes * resources.gpu_share * peak * share,
            source=source + ("" if utilisation else " (a default share, not measured)"),
        )
    return Speed(
        flops_per_second=resources.processes * resources.cpus * CPU_FLOPS_PER_SECOND,
        source=f"a guess of {CPU_FLOPS_PER_SECOND:.0e} FLOPs per second of a core",
    )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The properties of a run that decide which resources it needs.

    Attributes:
        model: the architecture.
        recurrence: its loops.
        batch: sequences per step.
        precision: precision of the matrix products.
        muon: the variant of Muon.
        document_mask: attention has a mask of documents.
        trains: False if its loss is drawn from a law.
        one_machine: all its processes must be on one machine, as the runs lie in a storage.
    """

    model: ModelConfig
    recurrence: RecurrenceConfig
    batch: int
    precision: Literal["float32", "bfloat16"]
    muon: MuonVariant = "torch"
    document_mask: bool = False
    trains: bool = True
    one_machine: bool = False

    def bytes_per_process(self, resources: Resources) -> float:
        """Return the estimated memory of one process."""
        sequences = self.sequences_per_process(resources)
        return estimate_memory(
            self.model,
            self.recurrence,
            sequences=min(resources.micro_batch or sequences, sequences),
            activation_checkpointing=resources.activation_checkpointing,
            **self._memory_settings(resources),
        ).total

    def largest_micro_batch(self, available: float, resources: Resources, *, checkpointing: bool) -> int | None:
        """Return the largest micro-batch that needs at most `available` bytes, None if one sequence needs more."""
        return largest_micro_batch(
            available,
            self.model,
            self.recurrence,
            limit=self.sequences_per_process(resources),
            activation_checkpointing=checkpointing,
            **self._memory_settings(resources),
        )

    def sequences_per_process(self, resources: Resources) -> int:
        """Return the sequences of a batch that one process trains on, at most."""
        return math.ceil(self.batch / resources.processes)

    def _memory_settings(self, resources: Resources) -> dict[str, Any]:
        device = "cuda" if resources.gpus else "cpu"
        return {
            "precision": self.precision, "processes": resources.processes, "device": device, "muon": self.muon,
            "document_mask": self.document_mask,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The resources of a run, with what follows from them.

    Attributes:
        resources: the resources, with `auto` resolved.
        memory: estimated bytes of one process.
        flops_per_second: expected speed of the run.
        reason: the reason if the run can't have them on the cluster.
    """

    resources: Resources
    memory: float
    flops_per_second: float
    reason: str | None = None


@lru_cache(maxsize=4096)  # runs that differ in seed or learning rate have the same
def allocations(workload: Workload, resources: Resources, cluster: ClusterConfig) -> tuple[Allocation, ...]:
    """Return the resources that a run may have, from the smallest on; several only with `longest_hours`.

    Raises:
        ValueError: `resources.gpus` is `auto`, and the configuration doesn't name the cluster's device.
    """
    steps = [resources]
    if resources.gpus == AUTO:
        steps = _doubled_processes(workload, _choose_gpu_share(workload, resources, cluster), cluster)
    return tuple(_allocation(workload, resources, cluster) for resources in steps)


def _allocation(workload: Workload, resources: Resources, cluster: ClusterConfig) -> Allocation:
    """Return the allocation of these resources, after a check that their memory is available."""
    memory = workload.bytes_per_process(resources)
    if resources.gpus:
        available, owner = (cluster.bytes_per_gpu or math.inf) * resources.gpu_share, f"{resources.gpu_share:g} GPU"
    else:
        available = cluster.bytes_per_node if workload.trains else math.inf
        owner = "a machine (cluster.node_memory)"
    reason = None
    if memory * HEADROOM > available:
        reason = (
            f"needs about {memory / 1e9:.3g} GB and {HEADROOM - 1:.0%} to spare, more than the {available / 1e9:.3g} "
            f"GB of {owner}; {_memory_advice(workload, resources, available)}"
        )
    elif workload.one_machine and resources.gpus and 0 < cluster.gpus < resources.processes:
        reason = (
            f"has {resources.processes} processes, which must be on one machine if runs lie in a storage, and a "
            f"machine has {cluster.gpus} GPUs; use fewer processes"
        )
    speed = expected_speed(resources, cluster, workload.precision)
    return Allocation(resources=resources, memory=memory, flops_per_second=speed.flops_per_second, reason=reason)


def needs(resources: Resources) -> Needs:
    """Return what the scheduler must reserve for a run."""
    return Needs(cpus=resources.cpus, gpus=resources.gpu_share, processes=resources.processes)


def planned_nodes(cluster: ClusterConfig, needs: Iterable[Needs] = (), *, largest_machine: float = 0.0) -> list[Node]:
    """Return the empty machines of the cluster that the plan assumes.

    On an elastic cluster whose `cpus` are not given, the driver's own cores say nothing: a machine has as many cores as
    the largest one that is up, and at least as many as the runs of these `needs` that its GPUs hold, or one run without
    GPUs, ask for.
    """
    cores = float(cluster.cores_per_node)
    if cluster.elastic and cluster.cpus is None:
        asked = (each.cpus * (cluster.gpus // each.gpus if each.gpus else each.processes) for each in needs)
        cores = max(1.0, largest_machine, *asked)
    return [Node(f"node {i}", cores, [1.0] * cluster.gpus) for i in range(cluster.nodes)]


def price(seconds: float, resources: Resources, cluster: ClusterConfig) -> float | None:
    """Return the price of a run in the currency of `price_per_hour`, None if no price is given."""
    if cluster.price_per_hour is None:
        return None
    return seconds / 3600 * needs(resources).busy_units * cluster.price_per_hour


def _choose_gpu_share(workload: Workload, resources: Resources, cluster: ClusterConfig) -> Resources:
    """Return the resources with the smallest share of a GPU whose memory is large enough."""
    memory = cluster.bytes_per_gpu
    if cluster.device is None or memory is None:
        raise ValueError(
            "with gpus: auto a run's GPU share and speed must follow from the device, but cluster.device isn't set; "
            "set it, or set resources.gpus and resources.flops_per_second"
        )
    needed = workload.bytes_per_process(resources.model_copy(update={"gpus": 1.0})) * HEADROOM
    share = next((share for share in GPU_SHARES if share * memory >= needed), 1.0)
    return resources.model_copy(update={"gpus": share})


def _doubled_processes(workload: Workload, resources: Resources, cluster: ClusterConfig) -> list[Resources]:
    """Return the resources and, with `longest_hours`, those with processes doubled again and again, a GPU each."""
    limit = min(workload.batch, cluster.gpus * (1 if workload.one_machine else cluster.nodes))
    steps = [resources.model_copy(update={"longest_hours": None})]  # only valid with `auto`
    while resources.longest_hours is not None:
        doubled = 2 * steps[-1].processes if steps[-1].gpus == 1 else 1
        if doubled > limit:
            break
        steps.append(steps[-1].model_copy(update={"gpus": 1.0, "processes": doubled}))
    return steps


def _memory_advice(workload: Workload, resources: Resources, available: float) -> str:
    """Return which setting to change so that the run fits."""
    for checkpointing in (resources.activation_checkpointing, workload.model.is_looped):
        micro_batch = workload.largest_micro_batch(available / HEADROOM, resources, checkpointing=checkpointing)
        if micro_batch is not None:
            is_new = checkpointing != resources.activation_checkpointing
            also = " and activation_checkpointing to true" if is_new else ""
            return f"set resources.micro_batch to {micro_batch}{also}"
    if resources.gpus and resources.gpu_share < 1:
        return "raise resources.gpus, up to 1, or use a smaller model or context"
    return f"use a {'device' if resources.gpus else 'machine'} with more memory, or a smaller model or context"
