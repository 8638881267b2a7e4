"""Batches of token windows: a pure function of (seed, step), which costs the same at any step."""

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.corpus import Corpus

_SHUFFLE_STREAM = 2
_FEISTEL_ROUNDS = 10


def batch_windows(
    corpus: Corpus, *, context: int, batch: int, seed: int, step: int, rows: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Read windows of the global batch of `step`, shape [rows, context + 1].

    Each epoch visits every window of the training split once, in an order drawn from (seed, epoch).

    Args:
        corpus: the prepared corpus.
        context: tokens that a window predicts.
        batch: windows of the global batch, on all ranks together.
        seed: seed of the order.
        step: optimizer steps done before.
        rows: places in the global batch, 0 .. batch - 1, to read; by default all.

    Raises:
        ValueError: a row isn't in the batch.
    """
    selected = np.arange(batch, dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    if len(selected) and (selected.min() < 0 or selected.max() >= batch):
        raise ValueError(f"rows must be places in the batch, 0 to {batch - 1}, but got {selected.tolist()}")
    windows = corpus.train.count_windows(context)
    epochs, places = np.divmod(step * batch + selected, windows)
    numbers = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        in_epoch = epochs == epoch
        numbers[in_epoch] = shuffle(places[in_epoch], windows, seed=seed, epoch=epoch)
    return corpus.train.windows(numbers, context)


def validation_windows(corpus: Corpus, *, context: int, sequences: int) -> NDArray[np.int64]:
    """Read at most `sequences` fixed windows spread evenly over the validation split, shape [n, context + 1]."""
    windows = corpus.validation.count_windows(context)
    numbers = np.linspace(0, windows - 1, min(sequences, windows)).round().astype(np.int64)
    return corpus.validation.windows(numbers, context)


def shuffle(places: NDArray[np.int64], n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map `places` by a permutation of 0 .. n - 1 drawn from (seed, epoch); same shape.

    No array of length n is made. A place is written as two digits to the base ceil(sqrt(n)), and the rounds of a
    Feistel network add to one digit a keyed hash of the other, which permutes all pairs of digits for any hash. There
    are slightly more pairs than n: a place mapped to n or beyond is mapped again until it is below n, which is still a
    permutation.
    """
    assert ((places >= 0) & (places < n)).all(), "places lie below n"
    base = np.uint64(isqrt(n - 1) + 1)
    keys = _round_keys(seed, epoch)
    mapped = _permute_pairs(places.astype(np.uint64), base, keys)
    while (beyond := mapped >= n).any():
        mapped[beyond] = _permute_pairs(mapped[beyond], base, keys)
    return mapped.astype(np.int64)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Draw the keys, shape [rounds, 1]; they are arrays because numpy warns when scalars overflow."""
    return np.random.default_rng([seed, epoch, _SHUFFLE_STREAM]).integers(
        2**64, size=(_FEISTEL_ROUNDS, 1), dtype=np.uint64
    )


def _permute_pairs(places: NDArray[np.uint64], base: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    high, low = np.divmod(places, base)
    for key in keys:
        high, low = low, (high + _mix(low ^ key) % base) % base
    return high * base + low


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64 bits to 64 bits by multiplications and shifts; each input bit flips half of the output bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
