"""What each process works on in each step, made a step ahead in a thread of its own."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.batches import batch_windows
from trainer.config import RunSpec
from trainer.data import Corpus
from trainer.parallel import Ranks
from trainer.recurrence import sample_recurrences

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
