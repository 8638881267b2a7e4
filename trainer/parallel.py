"""The processes that train one run together. What they share goes through torch.distributed, whoever has set it up."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the `size` that train one run, each a part of every batch; `rank` 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """The ranks of the process group that this process is in, or itself alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), size=dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share_weights(self, model: nn.Module) -> None:
        """Give every rank the first one's weights: drawn on unlike machines they could differ in the last bit."""
        if self.size > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, src=0)

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up each parameter's gradient over the ranks, in place; they end with the same numbers."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Add up a small tensor over the ranks; returns it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def first_says(self, value: Any) -> Any:
        """What rank 0 passes, on every rank."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]
