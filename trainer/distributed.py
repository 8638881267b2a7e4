"""The processes that train one run together. What they share goes through torch.distributed, whoever has set it up."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isoloop.trainer.config import RunSpec
from isoloop.trainer.data.batches import batch_windows
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.recurrence import sample_recurrences


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


# MERGED feed
_STATE_STREAM = 3


class Share(NamedTuple):
    """A process's share of a step's batch, the sequences with most loops first.

    Attributes:
        windows: token ids, [sequences, context + 1]; in pinned memory where the device is a GPU.
        loops: T_i, [sequences].
        state_seeds: seeds of the initial states, [sequences].
    """

    windows: Tensor
    loops: Tensor
    state_seeds: list[int]


def share_of(spec: RunSpec, corpus: Corpus, ranks: Ranks, step: int) -> Share:
    """This process's share of `step`: a pure function of (seed, step) and of which rank it is.

    The batch is dealt out in the order of its loops, so that the ranks have nearly the same work.
    """
    loops = sample_recurrences(spec.recurrence, batch=spec.batch, seed=spec.seed, step=step, steps=spec.steps)
    mine = np.argsort(-loops, kind="stable")[ranks.rank :: ranks.size]
    windows = batch_windows(
        corpus, context=spec.model.context, batch=spec.batch, seed=spec.seed, step=step, rows=mine.tolist()
    )
    seeds = np.random.SeedSequence([spec.seed, step, _STATE_STREAM]).generate_state(spec.batch, np.uint64)
    return Share(
        windows=torch.from_numpy(windows),
        loops=torch.from_numpy(loops[mine]),
        state_seeds=(seeds[mine] >> np.uint64(1)).tolist(),
    )


def shares(spec: RunSpec, corpus: Corpus, ranks: Ranks, first: int, *, pinned: bool) -> Iterator[tuple[int, Share]]:
    """Yield (step, share) from step `first` on, the next one made while the caller works on the last."""

    def make(step: int) -> Share:
        share = share_of(spec, corpus, ranks, step)
        return share._replace(windows=share.windows.pin_memory()) if pinned else share

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        ahead: Future[Share] = pool.submit(make, first)
        for step in range(first, spec.steps):
            share = ahead.result()
            if step + 1 < spec.steps:
                ahead = pool.submit(make, step + 1)
            yield step, share
