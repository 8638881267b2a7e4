"""Tokens -> batches of windows. A position is a step and nothing more: far along costs what the start costs."""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.corpus import Corpus

_SHUFFLE_STREAM = 2
_ROUNDS = 10


def batch_windows(
    corpus: Corpus, *, context: int, batch: int, seed: int, step: int, rows: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Windows of the global batch of `step`, shape [rows, context + 1].

    Every window of the training split is seen once an epoch, in an order drawn from (seed, epoch).

    Args:
        corpus: the tokens.
        context: tokens that a window predicts.
        batch: windows of the global batch, on all ranks together.
        seed: of the order.
        step: optimizer steps done before.
        rows: places in the global batch, 0 .. batch - 1, that are wanted; all by default. Only these are read.

    Raises:
        ValueError: a row isn't in the batch.
    """
    wanted = np.arange(batch, dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= batch):
        raise ValueError(f"rows must be places in the batch, 0 to {batch - 1}, but got {wanted.tolist()}")
    windows = corpus.train.count_windows(context)
    epochs, places = np.divmod(step * batch + wanted, windows)
    chosen = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        mine = epochs == epoch
        chosen[mine] = shuffle(places[mine], windows, seed=seed, epoch=epoch)
    return corpus.train.windows(chosen, context)


def validation_windows(corpus: Corpus, *, context: int, sequences: int) -> NDArray[np.int64]:
    """Fixed validation windows spread evenly over the split: at most `sequences`, shape [n, context + 1]."""
    windows = corpus.validation.count_windows(context)
    chosen = np.linspace(0, windows - 1, min(sequences, windows)).round().astype(np.int64)
    return corpus.validation.windows(chosen, context)


def shuffle(places: NDArray[np.int64], n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a permutation of 0 .. n - 1, drawn from (seed, epoch), takes each of `places`; same shape.

    Nothing of length n is made. A place is written as two digits to the base ceil(sqrt(n)), and rounds of a Feistel
    network add to one digit a keyed hash of the other, which is a permutation of all pairs of digits whatever the hash.
    These are a few more than n: what lands at n or beyond is sent on until it lands below, still a permutation.
    """
    assert ((places >= 0) & (places < n)).all(), "places lie below n"
    base = np.uint64(isqrt(n - 1) + 1)
    keys = _round_keys(seed, epoch)
    at = _permute_pairs(places.astype(np.uint64), base, keys)
    while (beyond := at >= n).any():
        at[beyond] = _permute_pairs(at[beyond], base, keys)
    return at.astype(np.int64)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Shape [rounds, 1]: arrays, since numpy warns of scalars that overflow."""
    return np.random.default_rng([seed, epoch, _SHUFFLE_STREAM]).integers(2**64, size=(_ROUNDS, 1), dtype=np.uint64)


def _permute_pairs(at: NDArray[np.uint64], base: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    high, low = np.divmod(at, base)
    for key in keys:
        high, low = low, (high + _mix(low ^ key) % base) % base
    return high * base + low


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64 bits to 64 bits: multiplications and shifts, so that each bit of the input moves half of the output."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
