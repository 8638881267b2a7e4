"""Processes that train one run together: their communication, and each one's share of a batch.

They communicate through torch.distributed, in the process group that the caller has set up.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakMethod

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isoloop.trainer.config import RunSpec
from isoloop.trainer.data.batches import BatchReader, batch_reader
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.data.synthetic import answer_mask
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


class GradientSums:
    """Sums of the gradients over the ranks, in buckets, beside the backward pass that computes them.

    A bucket is copied and sent as soon as its gradients and all buckets before it are complete, and what is left at
    `finish`. So all ranks send the same buckets in the same order, whatever the order in which their backward passes
    complete gradients. One bucket is on its way while the next is copied, and two at most are in memory.

    Args:
        ranks: the processes.
        groups: the parameters, in the order in which a backward pass completes their gradients, if it is known; no
            bucket has parameters of two groups.
        bucket_bytes: size of a bucket; a gradient that is larger has its own.
    """

    def __init__(
        self, ranks: Ranks, groups: Iterable[Iterable[nn.Parameter]], bucket_bytes: int = GRADIENT_BUCKET
    ) -> None:
        self._buckets: list[list[nn.Parameter]] = []
        self._incomplete: list[int] = []  # the number of gradients that each bucket waits for; none while unwatched
        self._pending: tuple[list[Tensor], Tensor, dist.Work] | None = None
        self._sent = 0
        if ranks.size == 1:
            return
        for group in groups:
            bucket: list[nn.Parameter] = []
            for parameter in (p for p in group if p.requires_grad):
                if bucket and sum(p.nbytes for p in bucket) + parameter.nbytes > bucket_bytes:
                    self._buckets.append(bucket)
                    bucket = []
                bucket.append(parameter)
            self._buckets.append(bucket)
        complete = WeakMethod(self._complete)  # torch would keep what its hooks refer to as long as the parameters
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(_call, complete, number))

    def watch(self) -> None:
        """Send buckets from now on, as the next backward pass, the last one before `finish`, completes them."""
        self._incomplete = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Send what is left, and return when every gradient is the sum over the ranks, the same numbers on all."""
        self._incomplete = []
        while self._sent < len(self._buckets):
            self._send_next()
        self._receive()
        self._sent = 0

    def _complete(self, number: int) -> None:
        """Count a gradient of bucket `number` as complete, after all its uses in all loops."""
        if not self._incomplete:
            return
        assert number >= self._sent, "a backward pass after the one that was watched"
        self._incomplete[number] -= 1
        while self._sent < len(self._buckets) and self._incomplete[self._sent] == 0:
            self._send_next()

    def _send_next(self) -> None:
        gradients = [p.grad for p in self._buckets[self._sent] if p.grad is not None]
        self._sent += 1
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._receive()
            self._pending = gradients, flat, work

    def _receive(self) -> None:
        """Wait for the bucket on its way, and copy its sums back."""
        if self._pending is not None:
            gradients, flat, work = self._pending
            self._pending = None
            work.wait()
            for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))


def _call(complete: WeakMethod[Any], number: int, _: Tensor) -> None:
    method = complete()
    if method is not None:
        method(number)


class BatchShare(NamedTuple):
    """One process's share of a step's batch, sorted by descending loops.

    Attributes:
        windows: token ids, [sequences, context + 1]; in pinned memory where the device is a GPU, like `predicted`.
        loops: T_i, [sequences].
        state_seeds: seeds of the initial states, [sequences].
        position: the position of the batches' reader after this step, if it has one.
        dropped: tokens of text cropped up to this step.
        predicted: True for the targets that are predicted, [sequences, context]; None: all of them.
        predicted_tokens: number of predicted targets of the whole batch.
    """

    windows: Tensor
    loops: Tensor
    state_seeds: list[int]
    position: dict[str, Any] | None
    dropped: int
    predicted: Tensor | None
    predicted_tokens: int


def load_share(spec: RunSpec, reader: BatchReader, ranks: Ranks, step: int) -> BatchShare:
    """Return this process's share of the batch of `step`, a function of (seed, step) and the rank.

    Sequences are sorted by their loops and dealt out in turn, so that all ranks have nearly the same work.
    """
    loops = sample_recurrences(spec.recurrence, batch=spec.batch, seed=spec.seed, step=step, steps=spec.steps)
    places = np.argsort(-loops, kind="stable")[ranks.rank :: ranks.size]
    if spec.data.answers_only:  # the mean is over the answers of the whole batch
        batch = reader.read(step, range(spec.batch))
        answers = answer_mask(spec.data, batch)
        windows, predicted = batch[places], torch.from_numpy(answers[places])
        predicted_tokens = int(answers.sum())
    else:
        windows, predicted, predicted_tokens = reader.read(step, places.tolist()), None, spec.tokens_per_step
    seeds = np.random.SeedSequence([spec.seed, step, _STATE_STREAM]).generate_state(spec.batch, np.uint64)
    return BatchShare(
        windows=torch.from_numpy(windows),
        loops=torch.from_numpy(loops[places]),
        state_seeds=(seeds[places] >> np.uint64(1)).tolist(),
        position=reader.position,
        dropped=reader.dropped,
        predicted=predicted,
        predicted_tokens=predicted_tokens,
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
        if not pinned:
            return share
        predicted = None if share.predicted is None else share.predicted.pin_memory()
        return share._replace(windows=share.windows.pin_memory(), predicted=predicted)

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        next_share: Future[BatchShare] = pool.submit(load, first)
        for step in range(first, spec.steps):
            share = next_share.result()
            if step + 1 < spec.steps:
                next_share = pool.submit(load, step + 1)
            yield step, share
