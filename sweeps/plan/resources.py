"""What a run is given on the cluster that the plan reckons with, and what that will cost: time, memory, price. Pure.

Every number here is an estimate made before anything runs; `Rate.source` says what the speed rests on.
"""

import math
from dataclasses import dataclass
from typing import Literal

from isoloop.sweeps.config.resources import AUTO, CPU_FLOPS_PER_SECOND, DEFAULT_UTILISATION, ClusterConfig, Resources
from isoloop.sweeps.plan.packing import Needs, Node
from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.memory import estimate_memory, largest_micro_batch

SHARES = (0.125, 0.25, 0.5, 1.0)
HEADROOM = 1.1  # what the allocator loses to fragments


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Training FLOPs per second of one run, and what the number rests on."""

    flops_per_second: float
    source: str


def rate(resources: Resources, cluster: ClusterConfig, precision: str) -> Rate:
    """How fast a run is expected to be on what it is given.

    In this order: what was stated; a share of the device's peak; a guess.

    Raises:
        ValueError: a share of the peak of a device that isn't known.
    """
    stated, share = resources.flops_per_second, resources.utilisation
    if stated is not None:
        return Rate(flops_per_second=stated, source=f"the stated {stated:.3g} FLOPs per second of a run")
    peak = cluster.peak(precision)
    if share is not None and peak is None:
        raise ValueError(
            f"utilisation is a share of the device's peak, but got utilisation={share:g} and cluster.device isn't set; "
            "set it, or set resources.flops_per_second"
        )
    if resources.gpus and peak is not None:
        used = share or DEFAULT_UTILISATION
        said = f"{used:.0%} of the {peak:.3g} FLOPs per second of {cluster.device}'s data sheet"
        return Rate(
            flops_per_second=resources.processes * resources.gpu_share * peak * used,
            source=said + ("" if share else ", which nobody has measured"),
        )
    guess = resources.processes * resources.cpus * CPU_FLOPS_PER_SECOND
    return Rate(flops_per_second=guess, source=f"a guess of {CPU_FLOPS_PER_SECOND:.0e} FLOPs per second of a core")


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What decides which resources a run needs.

    Attributes:
        model: what is trained.
        recurrence: its loops.
        batch: sequences of a step.
        precision: of the matrix products.
        flops: what the run will spend.
        trains: False where its loss is drawn from a law.
        together: whether its processes must be on one machine, as where runs lie in a storage.
    """

    model: ModelConfig
    recurrence: RecurrenceConfig
    batch: int
    precision: Literal["float32", "bfloat16"]
    flops: float
    trains: bool = True
    together: bool = False

    def bytes(self, resources: Resources, micro_batch: int | None = None) -> float:
        """Estimated memory of one process."""
        share = -(-self.batch // resources.processes)
        return estimate_memory(
            self.model,
            self.recurrence,
            sequences=min(micro_batch or resources.micro_batch or share, share),
            precision=self.precision,
            activation_checkpointing=resources.activation_checkpointing,
            processes=resources.processes,
            device="cuda" if resources.gpus else "cpu",
        ).total


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a run is given, the bytes that one of its processes needs, and why it can't run, if it can't."""

    resources: Resources
    memory: float
    reason: str | None = None


def fit_run(demand: Demand, resources: Resources, cluster: ClusterConfig) -> Fit:
    """Choose what is left to choose of a run's resources, and check that its memory is there.

    Raises:
        ValueError: `resources.gpus` is `auto`, and the cluster doesn't say what its GPUs are.
    """
    if resources.gpus == AUTO:
        resources = _processes(demand, _share(demand, resources, cluster), cluster)
    needed = demand.bytes(resources)
    reason = None
    if resources.gpus:
        there, of = (cluster.bytes_per_gpu or math.inf) * resources.gpu_share, f"{resources.gpu_share:g} GPU"
    else:
        there, of = cluster.bytes_per_node if demand.trains else math.inf, "a machine (cluster.node_memory)"
    if needed * HEADROOM > there:
        reason = (
            f"needs about {needed / 1e9:.3g} GB and {HEADROOM - 1:.0%} to spare, more than the {there / 1e9:.3g} GB of "
            f"{of}; {_advice(demand, resources, there)}"
        )
    elif demand.together and resources.gpus and 0 < cluster.gpus < resources.processes:
        reason = (
            f"asks for {resources.processes} processes, which must be on one machine where runs lie in a storage, and "
            f"one has {cluster.gpus} GPUs; ask for fewer processes"
        )
    return Fit(resources=resources, memory=needed, reason=reason)


def needs(resources: Resources) -> Needs:
    """What the scheduler is asked for."""
    return Needs(cpus=resources.cpus, gpus=resources.gpu_share, processes=resources.processes)


def nodes(cluster: ClusterConfig) -> list[Node]:
    """The cluster that the plan reckons with, empty."""
    return [Node(f"node {i}", cluster.cores_per_node, [1.0] * cluster.gpus) for i in range(cluster.nodes)]


def price(seconds: float, resources: Resources, cluster: ClusterConfig) -> float | None:
    """What a run costs in the currency of `price_per_hour`, None where no price was given."""
    if cluster.price_per_hour is None:
        return None
    return seconds / 3600 * needs(resources).whole * cluster.price_per_hour


def _share(demand: Demand, resources: Resources, cluster: ClusterConfig) -> Resources:
    """The smallest share of a GPU whose memory holds the run."""
    if cluster.device is None or cluster.bytes_per_gpu is None:
        raise ValueError(
            "with gpus: auto a run's share of a GPU and its speed follow from the device, but cluster.device isn't "
            "set; set it, or set resources.gpus and resources.flops_per_second"
        )
    needed = demand.bytes(resources.model_copy(update={"gpus": 1.0})) * HEADROOM
    share = next((share for share in SHARES if share * cluster.bytes_per_gpu >= needed), 1.0)
    return resources.model_copy(update={"gpus": share})


def _processes(demand: Demand, resources: Resources, cluster: ClusterConfig) -> Resources:
    """Twice as many processes, a GPU each, until the run takes no longer than `longest_hours`."""
    most = min(demand.batch, cluster.gpus * (1 if demand.together else cluster.nodes))
    while resources.longest_hours is not None:
        hours = demand.flops / rate(resources, cluster, demand.precision).flops_per_second / 3600
        more = 2 * resources.processes if resources.gpus == 1 else 1
        if hours <= resources.longest_hours or more > most:
            break
        resources = resources.model_copy(update={"gpus": 1.0, "processes": more})
    return resources.model_copy(update={"longest_hours": None})  # it has been heeded


def _advice(demand: Demand, resources: Resources, there: float) -> str:
    """What to change so that the run fits."""
    share = -(-demand.batch // resources.processes)
    for checkpointing in (resources.activation_checkpointing, demand.model.is_looped):
        found = largest_micro_batch(
            there / HEADROOM,
            demand.model,
            demand.recurrence,
            limit=share,
            precision=demand.precision,
            activation_checkpointing=checkpointing,
            processes=resources.processes,
            device="cuda" if resources.gpus else "cpu",
        )
        if found is not None:
            more = (
                "" if checkpointing == resources.activation_checkpointing else " and activation_checkpointing to true"
            )
            return f"set resources.micro_batch to {found}{more}"
    return "it needs more memory"
