"""What one run is given, and the machines that the plan reckons with."""

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
UTILISATION = 0.4
CPU_FLOPS_PER_SECOND = 1e10


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU by its data sheet: dense matrix products in FLOPs per second, memory in bytes."""

    bfloat16: float
    float32: float
    memory: float

    def peak(self, precision: str) -> float:
        """FLOPs per second in a run's precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


# NVIDIA's data sheets, without sparsity; float32 outside the tensor cores, as torch multiplies by default.
DEVICES = {
    "A100-40GB": Device(bfloat16=312e12, float32=19.5e12, memory=40e9),
    "A100-80GB": Device(bfloat16=312e12, float32=19.5e12, memory=80e9),
    "H100": Device(bfloat16=989e12, float32=67e12, memory=80e9),
    "H200": Device(bfloat16=989e12, float32=67e12, memory=141e9),
    "L4": Device(bfloat16=121e12, float32=30.3e12, memory=24e9),
    "L40S": Device(bfloat16=362e12, float32=91.6e12, memory=48e9),
}


def _auto_or_number(value: Any) -> Any:
    """Leave `auto` as it is and refuse what pydantic would quietly turn into a number."""
    if value == AUTO:
        return value
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number or 'auto', but got {value!r}")
    return value


class Resources(ExecutionSettings):
    """What one run is given, how it is executed on that, and how fast it is expected to be.

    Args:
        cpus: CPU cores of one process of a run, and threads of one operation.
        gpus: GPUs of one process; above 0 the run trains on `cuda`. `auto` gives each run the smallest of 1/8, 1/4, 1/2
            and 1 whose memory holds it, so that small runs share a GPU.
        processes: processes of one run, each with its own `cpus` and `gpus`, that share every batch (data parallel).
        longest_hours: with `gpus: auto`, a run that would take longer on one GPU is given 2, 4, 8, ... processes.
        flops_per_second: training FLOPs per second of one run as it is given, stated or measured. It goes before
            `utilisation`.
        utilisation: share of the peak of `cluster.device` that a run is expected to reach.
        retries: how often a run is started again without having got further, when the cause may pass.
        hang_seconds: a run without a step for so long counts as hung; it is killed and goes on from its checkpoint.
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
                f"processes that share a run need a GPU each, or none, but got processes={self.processes}, "
                f"gpus={self.gpus}; set gpus to 0 or 1"
            )
        if self.utilisation is not None and not self.gpus:
            raise ValueError(
                f"utilisation is of a GPU, but got utilisation={self.utilisation:g} and gpus=0; set flops_per_second"
            )
        if self.longest_hours is not None and self.gpus != AUTO:
            raise ValueError(
                f"longest_hours chooses the processes of a run where gpus is auto, but got gpus={self.gpus}; set gpus "
                "to auto, or leave longest_hours out and set processes"
            )
        if self.gpus == AUTO and self.flops_per_second is not None:
            raise ValueError(
                "the speed of a run depends on what it is given, so with gpus: auto it follows from cluster.device and "
                f"utilisation, but got flops_per_second={self.flops_per_second:g}; leave it out, or set gpus"
            )
        return self

    @property
    def gpu_share(self) -> float:
        """GPUs of one process, once they are known."""
        assert not isinstance(self.gpus, str), "auto is resolved when the grid is planned"
        return self.gpus

    @property
    def execution(self) -> ExecutionConfig:
        """How each process executes a run."""
        settings = {name: getattr(self, name) for name in ExecutionSettings.model_fields}
        return ExecutionConfig(device="cuda" if self.gpus else "cpu", cpu_threads=self.cpus, **settings)


class ClusterConfig(Config):
    """The machines that the plan reckons with; what a sweep really runs on is what Ray finds.

    Args:
        nodes: machines, all alike.
        cpus: cores of one of them; by default those of this machine.
        gpus: GPUs of one of them.
        device: the GPUs' kind: its peak and memory are those of the data sheet.
        gpu_memory: bytes of one GPU, where the kind isn't known or not all of it can be used.
        node_memory: bytes of one machine; by default those of this one.
        price_per_hour: of one GPU, or of one CPU core where a run has no GPU, in whatever currency.
        elastic: nodes come when runs wait for them (an autoscaler): as many runs are submitted as `nodes` could hold,
            whatever is there.
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
                f"a device must be one of {', '.join(DEVICES)}, but got '{self.device}'; for another one leave it out, "
                "and state cluster.gpu_memory and resources.flops_per_second"
            )
        return self

    @property
    def cores(self) -> int:
        """CPU cores of one machine."""
        return self.cpus or os.cpu_count() or 1

    @property
    def ram(self) -> float:
        """Bytes of one machine."""
        return self.node_memory or float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    @property
    def memory(self) -> float | None:
        """Bytes of one GPU, None where nobody said."""
        return self.gpu_memory or (DEVICES[self.device].memory if self.device else None)

    def peak(self, precision: str) -> float | None:
        """FLOPs per second of one GPU in a run's precision, None where the kind isn't known."""
        return DEVICES[self.device].peak(precision) if self.device else None
