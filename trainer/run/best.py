"""The step of a run with the lowest validation loss so far, with its weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BestStep:
    """A step, its validation loss at T = µ_rec in nats per token, and a copy of its weights in host memory.

    Only the process that writes the run's files holds weights. Checkpoints hold all of it, so that a resumed run keeps
    the same step as an uninterrupted one.
    """

    step: int
    loss: float
    weights: "dict[str, Tensor]"

    @classmethod
    def of(cls, step: int, loss: float, model: "nn.Module | None") -> "BestStep":
        """Copy the weights of `model`, if this process is to hold them."""
        state = {} if model is None else model.state_dict()
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        return cls(step=step, loss=loss, weights=weights)

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {name: getattr(self, name) for name in ("step", "loss", "weights")}
