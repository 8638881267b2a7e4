"""Limits of a model: memory of a device, tokens that exist, tokens to be served, time on devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloop.fitting.answer.device import DeviceNeeds
from isoloop.fitting.cost.family import DenseFamily, ModelFamily

UNIQUE_TOKENS = "unique_tokens"
PUBLISHED_REPETITION = 15.4
"""R* of Muennighoff et al. 2023 (arXiv:2305.16264): repetitions after which more of the same text is worth little."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a model; None where there is none.

    Args:
        memory: bytes of a device, which must hold weights, cached keys and values and activations at inference, for
            `inference_batch` sequences of `context` tokens, at `bytes_per_number`.
        unique_tokens: training tokens that exist. Without a law of repeated text, none is repeated unless there is a
            `repetition`, the R* by which R repetitions are taken to be worth R* (1 - exp(-R / R*)) fresh ones.
        served_tokens: tokens that the model will serve; the FLOPs then pay for training and for them.
        seconds: wall time of training on `devices`, each as fast as that of the runs or of `flops_per_second`.
        needs: what the models need of a device.
    """

    memory: float | None = None
    context: int = 2048
    inference_batch: int = 1
    bytes_per_number: float = 2.0
    unique_tokens: float | None = None
    repetition: float | None = None
    served_tokens: float | None = None
    seconds: float | None = None
    devices: int = 1
    flops_per_second: float | None = None
    needs: DeviceNeeds | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, but got {value}; give a positive number")
        if self.repetition is not None and self.unique_tokens is None:
            raise ValueError("repetition says what repeated text is worth, but there are no unique_tokens; give both")
        if self.memory is not None and self.needs is None:
            raise ValueError("a limit of memory needs what models hold on a device, but got none; name a run table")
        timed = self.needs is not None and (self.needs.times or self.needs.flops_per_second)
        if self.seconds is not None and self.flops_per_second is None and not timed:
            why = self.needs.why_no_time if self.needs else "no run table was given"
            raise ValueError(
                f"a limit of seconds needs the time of runs, but {why}; give the FLOPs per second of a device, at "
                "which loops and width cost alike"
            )

    @property
    def words(self) -> str:
        """The limits in words, to follow 'the best model'."""
        served, unique = self.served_tokens or 0.0, self.unique_tokens or 0.0
        texts = {
            "memory": f"in {(self.memory or 0.0) / 1e9:.3g} GB at {self.context} tokens of context",
            UNIQUE_TOKENS: f"from {unique:.3g} tokens of text",
            "served_tokens": f"serving {served:.3g} tokens",
            "seconds": f"in {self.seconds or 0.0:.3g} s of {self.devices} device{'s' if self.devices > 1 else ''}",
        }
        return ", ".join(texts[name] for name in self.given)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Assumptions of the limits that no run shows."""
        texts = []
        if self.memory is not None and self.needs is not None and self.needs.dense:
            texts.append("the memory holds the weights alone, at the table's parameters, since it tells no more")
        if self.repetition is not None:
            texts.append(
                f"repeated text is worth what R* = {self.repetition:g} says (published: {PUBLISHED_REPETITION:g}, "
                "Muennighoff et al. 2023), an assumption that no run here tests"
            )
        if self.seconds is not None and self.flops_per_second is None and self.needs is not None and self.needs.times:
            scatter = max(time.scatter for time in self.needs.times)
            texts.append(f"times are those of the runs on their device, about which they scatter by {scatter:.0%}")
        elif self.seconds is not None:
            texts.append("every FLOP takes the same time, whether of loops or of width")
        if self.seconds is not None and self.devices > 1:
            texts.append(f"{self.devices} devices are {self.devices} times as fast as one")
        return tuple(texts)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the limits that there are."""
        names = ("memory", UNIQUE_TOKENS, "served_tokens", "seconds")
        return tuple(name for name in names if getattr(self, name) is not None)

    def only(self, *names: str) -> Limits:
        """Return the limits of these names without the others."""
        dropped: dict[str, Any] = {other: None for other in self.given if other not in names}
        if UNIQUE_TOKENS not in names:
            dropped["repetition"] = None
        return replace(self, **dropped)

    def memory_of(self, params: np.ndarray | float, recurrence: np.ndarray | float) -> np.ndarray:
        """Return the bytes at inference of models at `recurrence` loops T."""
        assert self.needs is not None
        return self.needs.memory(params, recurrence, **self._inference)

    def largest_params(self, recurrence: np.ndarray) -> np.ndarray:
        """Return the size that takes all of the memory at `recurrence` loops T."""
        assert self.needs is not None
        assert self.memory is not None
        return self.needs.largest_params(self.memory, recurrence, **self._inference)

    @property
    def _inference(self) -> dict[str, float]:
        return {
            "context": self.context, "batch": self.inference_batch, "bytes_per_number": self.bytes_per_number,
        }  # fmt: skip

    def worth(self, tokens: np.ndarray) -> np.ndarray:
        """Return the fresh tokens that training tokens are worth under the assumed `repetition`."""
        if self.unique_tokens is None or self.repetition is None:
            return tokens
        repeats = np.maximum(tokens / self.unique_tokens - 1, 0.0)
        repeated = self.unique_tokens * (1 + self.repetition * -np.expm1(-repeats / self.repetition))
        return np.where(tokens > self.unique_tokens, repeated, tokens)

    def seconds_per_token(
        self, family: ModelFamily | DenseFamily, params: np.ndarray | float, mean_recurrence: np.ndarray | float
    ) -> np.ndarray:
        """Return the seconds per training token on all devices together: as the runs took, or at FLOPs per second."""
        rate = self.flops_per_second
        if rate is None:
            assert self.needs is not None
            if self.needs.times:
                return self.needs.seconds_per_token(params, mean_recurrence) / self.devices
            rate = self.needs.flops_per_second
        assert rate is not None
        return family.flops_per_token(params, mean_recurrence) / (rate * self.devices)
