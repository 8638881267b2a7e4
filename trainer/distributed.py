"""Processes that train one run together: their communication, and each one's share of a batch.

They communicate through torch.distributed, in the process group that the caller has set up.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isoloop.trainer.config import RunSpec
from isoloop.trainer.data.batches import BatchReader, batch_reader
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.memory import GRADIENT_BUCKET
from isoloop.trainer.recurrence import sample_recurrences

_STATE_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's `rank` among the `size` processes of a run. Rank 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return this process's place in its process group; without a group, it is alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), size=dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """True for the process that writes the run's files."""
        return self.rank == 0

    def broadcast_weights(self, model: nn.Module) -> None:
        """Copy rank 0's weights to all ranks: drawn on different machines, they could differ in the last bit."""
        if self.size > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, src=0)

    def sum_gradients(self, model: nn.Module, bucket_bytes: int = GRADIENT_BUCKET) -> None:
        """Sum each parameter's gradient over the ranks, in place; all ranks get the same numbers.

        Gradients are copied into buckets of `bucket_bytes`, or of one gradient that is larger. A bucket is summed while
        the next one is copied, and two at most are in memory.
        """
        if self.size == 1:
            return
        buckets: list[list[Tensor]] = [[]]
        for gradient in (p.grad for p in model.parameters() if p.grad is not None):
            if buckets[-1] and sum(g.nbytes for g in buckets[-1]) + gradient.nbytes > bucket_bytes:
                buckets.append([])
            buckets[-1].append(gradient)

        def finish(bucket: list[Tensor], flat: Tensor, work: dist.Work) -> None:
            work.wait()
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

        before = None
        for bucket in buckets:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            on_its_way = bucket, flat, dist.all_reduce(flat, async_op=True)
            if before is not None:
                finish(*before)
            before = on_its_way
        if before is not None:
            finish(*before)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a small tensor over the ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share_rows(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Return function(rows) on every rank, where each rank computes a part of it.

        Args:
            function: maps each row by itself, so that the result has as many.
            rows: the same on all ranks, [rows, ...].
        """
        if self.size == 1:
            return function(rows)
        share = math.ceil(len(rows) / self.size)
        own = function(rows[self.rank * share : (self.rank + 1) * share])
        padded = own.new_zeros(share, *own.shape[1:])  # the last ranks may have fewer rows, or none
        padded[: len(own)] = own
        whole = own.new_empty(self.size * share, *own.shape[1:])
        dist.all_gather(list(whole.split(share)), padded)
        return whole[: len(rows)]

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's `value` on every rank."""
        objects = [value]
        if self.size > 1:
            dist.broadcast_object_list(objects, src=0)
        return objects[0]


class BatchShare(NamedTuple):
    """One process's share of a step's batch, sorted by descending loops.

    Attributes:
        windows: token ids, [sequences, context + 1]; in pinned memory where the device is a GPU.
        loops: T_i, [sequences].
        state_seeds: seeds of the initial states, [sequences].
        position: the position of the batches' reader after this step, if it has one.
        dropped: tokens of text cropped up to this step.
    """

    windows: Tensor
    loops: Tensor
    state_seeds: list[int]
    position: dict[str, Any] | None
    dropped: int


def load_share(spec: RunSpec, reader: BatchReader, ranks: Ranks, step: int) -> BatchShare:
    """Return this process's share of the batch of `step`, a function of (seed, step) and the rank.

    Sequences are sorted by their loops and dealt out in turn, so that all ranks have nearly the same work.
    """
    loops = sample_recurrences(spec.recurrence, batch=spec.batch, seed=spec.seed, step=step, steps=spec.steps)
    places = np.argsort(-loops, kind="stable")[ranks.rank :: ranks.size]
    windows = reader.read(step, places.tolist())
    seeds = np.random.SeedSequence([spec.seed, step, _STATE_STREAM]).generate_state(spec.batch, np.uint64)
    return BatchShare(
        windows=torch.from_numpy(windows),
        loops=torch.from_numpy(loops[places]),
        state_seeds=(seeds[places] >> np.uint64(1)).tolist(),
        position=reader.position,
        dropped=reader.dropped,
    )


def prefetch_shares(
    spec: RunSpec, corpus: Corpus, ranks: Ranks, first: int, *, pinned: bool, position: dict[str, Any] | None = None
) -> Iterator[tuple[int, BatchShare]]:
    """Yield (step, share) from step `first` on; a thread loads the next share while the caller uses the last one.

    `position` is that of the batches' reader before step `first`, if it is known.
    """
    reader = batch_reader(spec, corpus, position)

    def load(step: int) -> BatchShare:
        share = load_share(spec, reader, ranks, step)
        return share._replace(windows=share.windows.pin_memory()) if pinned else share

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        next_share: Future[BatchShare] = pool.submit(load, first)
        for step in range(first, spec.steps):
            share = next_share.result()
            if step + 1 < spec.steps:
                next_share = pool.submit(load, step + 1)
            yield step, share
