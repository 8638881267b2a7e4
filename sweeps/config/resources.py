"""Resources of one run, and the machines that the plan assumes."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from isoloop.trainer.config import (
    Config,
    ExecutionConfig,
    ExecutionSettings,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictNumber,
)

AUTO = "auto"
DEFAULT_UTILISATION = 0.4
CPU_FLOPS_PER_SECOND = 1e10


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """A GPU's data sheet: FLOPs per second of dense matrix products, and memory in bytes."""

    bfloat16: float
    float32: float
    memory: float

    def peak(self, precision: str) -> float:
        """Return the FLOPs per second in a run's precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


# NVIDIA's data sheets, without sparsity; float32 outside the tensor cores, as torch multiplies by default.
DEVICES = {
    "A100-40GB": Datasheet(bfloat16=312e12, float32=19.5e12, memory=40e9),
    "A100-80GB": Datasheet(bfloat16=312e12, float32=19.5e12, memory=80e9),
    "H100": Datasheet(bfloat16=989e12, float32=67e12, memory=80e9),
    "H200": Datasheet(bfloat16=989e12, float32=67e12, memory=141e9),
    "L4": Datasheet(bfloat16=121e12, float32=30.3e12, memory=24e9),
    "L40S": Datasheet(bfloat16=362e12, float32=91.6e12, memory=48e9),
}


def _auto_or_number(value: Any) -> Any:
    """Refuse whatever else than `auto` pydantic would silently turn into a number."""
    if isinstance(value, bool | str) and value != AUTO:
        raise ValueError(f"must be a number or 'auto', but got {value!r}")
    return value


class Resources(ExecutionSettings):
    """Resources of one run, how it is executed on them, and its expected speed.

    Args:
        cpus: CPU cores of each process, and threads per operation.
        gpus: GPUs of each process; above 0 the run trains on `cuda`. `auto` gives each run the smallest of 1/8, 1/4,
            1/2 and 1 GPU whose memory is large enough, so that small runs share a GPU.
        processes: processes of one run that share every batch (data parallel), each with its own `cpus` and `gpus`.
        longest_hours: with `gpus: auto`, a run that would take longer on one GPU gets 2, 4, 8, ... processes.
        flops_per_second: training FLOPs per second of one run on these resources, stated or measured. Overrides
            `utilisation`.
        utilisation: share of the peak of `cluster.device` that a run is expected to reach.
        retries: how often a run is restarted without having progressed, if its failure may be temporary.
        hang_seconds: a run without a step for this long counts as hung; it is killed and resumes from its checkpoint.
    """

    cpus: PositiveInt = 1
    gpus: Annotated[Literal["auto"] | Annotated[float, Field(ge=0, le=1)], BeforeValidator(_auto_or_number)] = 0.0
    processes: PositiveInt = 1
    longest_hours: PositiveFloat | None = None
    flops_per_second: PositiveFloat | None = None
    utilisation: Annotated[float, StrictNumber, Field(gt=0, le=1)] | None = None
    retries: NonNegativeInt = 3
    hang_seconds: PositiveFloat = 1800.0

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.processes > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"the processes of one run must have a whole GPU each, or none, but got processes={self.processes}, "
                f"gpus={self.gpus}; set gpus to 0 or 1"
            )
        if self.utilisation is not None and not self.gpus:
            raise ValueError(
                f"utilisation applies to GPUs only, but got utilisation={self.utilisation:g} and gpus=0; set "
                "flops_per_second instead"
            )
        if self.tf32 and not self.gpus:
            raise ValueError("tf32 applies to GPUs only, but got tf32=true and gpus=0; leave it out")
        if self.longest_hours is not None and self.gpus != AUTO:
            raise ValueError(
                f"longest_hours requires gpus: auto, but got gpus={self.gpus}; set gpus to auto, or set processes "
                "instead of longest_hours"
            )
        if self.gpus == AUTO and self.flops_per_second is not None:
            raise ValueError(
                "with gpus: auto a run's speed must follow from cluster.device and utilisation, but got "
                f"flops_per_second={self.flops_per_second:g}; leave it out, or set gpus to a number"
            )
        return self

    @property
    def gpu_share(self) -> float:
        """GPUs of one process, after `auto` was resolved by the plan."""
        assert not isinstance(self.gpus, str), "auto is resolved when the grid is planned"
        return self.gpus

    @property
    def execution(self) -> ExecutionConfig:
        """The execution settings of each process."""
        settings = {name: getattr(self, name) for name in ExecutionSettings.model_fields}
        return ExecutionConfig(device="cuda" if self.gpus else "cpu", cpu_threads=self.cpus, **settings)


class ClusterConfig(Config):
    """The machines that the plan assumes; a sweep itself runs on the machines that Ray finds.

    Args:
        nodes: number of identical machines.
        cpus: cores per machine; by default those of this machine, and unknown if `elastic`.
        gpus: GPUs per machine.
        device: model of the GPUs; its data sheet gives their peak and memory.
        gpu_memory: usable bytes per GPU, if `device` is unset or some of its memory is taken.
        node_memory: bytes per machine; by default those of this machine.
        price_per_hour: price of one GPU, or of one CPU core for runs without a GPU, in any currency.
        elastic: an autoscaler adds machines while runs wait in Ray, so 1.25 times as many runs are handed to Ray as
            `nodes` machines could hold, however many there are now. Where `cpus` isn't given, only GPUs limit that, or
            the cores of the largest machine that is up.
    """

    nodes: PositiveInt = 1
    cpus: PositiveInt | None = None
    gpus: NonNegativeInt = 0
    device: Annotated[str, Field(min_length=1)] | None = None
    gpu_memory: PositiveFloat | None = None
    node_memory: PositiveFloat | None = None
    price_per_hour: PositiveFloat | None = None
    elastic: bool = False

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.device is not None and self.device not in DEVICES:
            raise ValueError(
                f"device must be one of {', '.join(DEVICES)}, but got '{self.device}'; for another GPU leave it out "
                "and set cluster.gpu_memory and resources.flops_per_second"
            )
        return self

    @property
    def cores_per_node(self) -> int:
        """CPU cores of one machine."""
        return self.cpus or os.cpu_count() or 1

    @property
    def bytes_per_node(self) -> float:
        """Memory of one machine."""
        return self.node_memory or float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    @property
    def bytes_per_gpu(self) -> float | None:
        """Memory of one GPU, None if the configuration doesn't give it."""
        return self.gpu_memory or (DEVICES[self.device].memory if self.device else None)

    def peak(self, precision: str) -> float | None:
        """Return the FLOPs per second of one GPU in a run's precision, None if `device` isn't set."""
        return DEVICES[self.device].peak(precision) if self.device else None
