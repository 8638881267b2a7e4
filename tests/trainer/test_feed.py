"""Who works on what: shares of the batch, by rank, made ahead."""

import numpy as np
import pytest
import torch

from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.data.batches import batch_windows
from isoloop.trainer.distributed import Ranks, load_share, prefetch_shares
from isoloop.trainer.recurrence import sample_recurrences


@pytest.fixture
def spec(spec):
    return spec.model_copy(update={"batch": 11, "recurrence": RecurrenceConfig(mean=8)})


def rows(share):
    """The share as comparable rows: window, loops, seed."""
    return sorted(zip(map(tuple, share.windows.tolist()), share.loops.tolist(), share.state_seeds, strict=True))


@pytest.mark.parametrize("size", [2, 3, 11])
def test_the_ranks_shares_are_the_batch_whatever_their_number(spec, corpus, size):
    whole = rows(load_share(spec, corpus, Ranks(), 5))
    parts = [load_share(spec, corpus, Ranks(rank=rank, size=size), 5) for rank in range(size)]
    assert sorted(row for part in parts for row in rows(part)) == whole
    work = [int(part.loops.sum()) for part in parts]
    assert size == 11 or max(work) - min(work) <= part_longest(parts)


def part_longest(parts):
    return max(int(part.loops.max()) for part in parts)


def test_a_share_is_the_steps_batch_deepest_first(spec, corpus):
    share = load_share(spec, corpus, Ranks(), 5)
    loops = sample_recurrences(spec.recurrence, batch=11, seed=spec.seed, step=5, steps=spec.steps)
    order = np.argsort(-loops, kind="stable")
    np.testing.assert_array_equal(share.loops, loops[order])
    windows = batch_windows(corpus, context=16, batch=11, seed=spec.seed, step=5)
    np.testing.assert_array_equal(share.windows, windows[order])
    assert len(set(share.state_seeds)) == 11
    assert share.state_seeds != load_share(spec, corpus, Ranks(), 6).state_seeds


def test_made_ahead_in_order(spec, corpus):
    found = list(prefetch_shares(spec, corpus, Ranks(), 4, pinned=False))
    assert [step for step, _ in found] == list(range(4, spec.steps))
    for step, share in found:
        assert torch.equal(share.windows, load_share(spec, corpus, Ranks(), step).windows)
