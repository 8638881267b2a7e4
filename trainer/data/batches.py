"""Batches of rows of tokens, a function of (seed, step): windows of the text, or packed documents.

A batch of windows costs the same at any step. Packed rows follow from those before them, so their reader goes on from a
position, which checkpoints hold, or packs from the start.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache, partial
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import RunSpec
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.data.packing import Piece, RowPacker, cropped_share, pack_in_order, read_rows
from isoloop.trainer.data.shards import Tokens

_SHUFFLE_STREAM = 2
_FEISTEL_ROUNDS = 10
# Packed rows that are shuffled together, and the number that the first such block has among the seed's epochs.
SHUFFLED_ROWS = 1024
_FIRST_BLOCK = 2**32


class BatchReader(ABC):
    """Contract of a reader of a run's batches, step after step.

    Attributes:
        position: what the reader of the next step needs to go on from here; None if it needs nothing.
        dropped: tokens of text cropped so far.
    """

    position: dict[str, Any] | None = None
    dropped: int = 0

    @abstractmethod
    def read(self, step: int, rows: Sequence[int]) -> NDArray[np.int64]:
        """Read these rows, places 0 .. batch - 1, of the batch of `step`, shape [rows, context + 1]."""


class WindowReader(BatchReader):
    """Reader of contiguous windows, in an order of its own in each epoch."""

    def __init__(self, spec: RunSpec, corpus: Corpus) -> None:
        self._windows = partial(batch_windows, corpus, context=spec.model.context, batch=spec.batch, seed=spec.seed)

    def read(self, step: int, rows: Sequence[int]) -> NDArray[np.int64]:
        """Read these rows of the batch of any step."""
        return self._windows(step=step, rows=rows)


class PackedReader(BatchReader):
    """Reader of documents packed best-fit, in an order of its own in each pass.

    Where a pass begins, the packer takes long documents first. So rows are read in blocks, of 1,024 or up to the row in
    which a pass ends, and each block is shuffled. Every process packs all rows of a batch and reads the tokens of its
    own, so rows don't depend on their number.
    """

    def __init__(self, spec: RunSpec, corpus: Corpus, position: dict[str, Any] | None) -> None:
        self._tokens, self._batch, self._capacity = corpus.train, spec.batch, spec.model.context + 1
        self._seed, documents = spec.seed, corpus.train.documents

        def order(places: NDArray[np.int64], number: int) -> NDArray[np.int64]:
            return shuffle(places, len(documents), seed=spec.seed, epoch=number)

        self._packer = RowPacker(documents, self._capacity, order, position and position["packer"])
        self._number = position["block"] if position else 0
        self._next_block()

    def read(self, step: int, rows: Sequence[int]) -> NDArray[np.int64]:
        """Read these rows of the batch of a step that isn't before the reader's position."""
        first, stop = step * self._batch, (step + 1) * self._batch
        assert self._start <= first, "batches are read in order"
        batch: list[list[Piece]] = []
        while self._start + len(self._block) < stop:
            batch += self._block[max(0, first - self._start) :]
            self._number += 1
            self._next_block()
        batch += self._block[max(0, first - self._start) : stop - self._start]
        self.dropped = self._dropped[stop - self._start]
        self.position = {"block": self._number, "packer": self._position, "dropped": self.dropped}
        return read_rows(self._tokens, [batch[row] for row in rows], self._capacity)

    def _next_block(self) -> None:
        """Pack the next block: its rows in their order, and the tokens dropped before each of them and after all."""
        packer, packed = self._packer, list[list[Piece]]()
        self._position, self._start, dropped = packer.position, packer.rows, [packer.dropped]
        this_pass = packer.passes + packer.pass_is_over
        while not packed or (len(packed) < SHUFFLED_ROWS and packer.passes == this_pass and not packer.pass_is_over):
            packed.append(packer.next_row())
            dropped.append(packer.dropped)
        places = shuffle(np.arange(len(packed)), len(packed), seed=self._seed, epoch=_FIRST_BLOCK + self._number)
        self._block = [packed[place] for place in places]
        self._dropped = [dropped[0], *(dropped[0] + np.cumsum(np.diff(dropped)[places])).tolist()]


def batch_reader(spec: RunSpec, corpus: Corpus, position: dict[str, Any] | None = None) -> BatchReader:
    """Return the reader of a run's batches, from `position` on if it has one."""
    if spec.data.packing == "best-fit":
        return PackedReader(spec, corpus, position)
    return WindowReader(spec, corpus)


def tokens_per_pass(tokens: Tokens, packing: str, context: int) -> int:
    """Return the tokens that a run trains on before it sees text again.

    Windows see all of them. Packed rows crop some, and of each row of context + 1 tokens the first one isn't predicted.
    """
    if packing == "contiguous":
        return len(tokens)
    kept = (1 - cropped_share(tokens.documents, context + 1)) * len(tokens)
    return max(1, round(kept * context / (context + 1)))


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


def validation_windows(
    corpus: Corpus, *, context: int, sequences: int, packing: str = "contiguous"
) -> NDArray[np.int64]:
    """Read at most `sequences` fixed rows spread evenly over the validation split, shape [n, context + 1].

    They are made as those of training are: windows, or documents packed in their stored order.

    Raises:
        ValueError: the documents don't fill a row.
    """
    tokens = corpus.validation
    if packing == "contiguous":
        return tokens.windows(_spread(tokens.count_windows(context), sequences), context)
    rows = list(pack_in_order(tokens.documents, context + 1))
    if not rows:
        raise ValueError(
            f"the validation split must fill a row of context + 1 = {context + 1} tokens, but its documents "
            f"({len(tokens)} tokens) don't; use more text, a shorter context or a larger validation_fraction"
        )
    return read_rows(tokens, [rows[number] for number in _spread(len(rows), sequences).tolist()], context + 1)


def validation_documents(corpus: Corpus, *, context: int, count: int) -> list[NDArray[np.int64]]:
    """Read the first `count` documents of the validation split, without separators, each cut to context + 1 tokens.

    A document of one token is left out: its first token isn't predicted.

    Raises:
        ValueError: none has two tokens.
    """
    tokens = corpus.validation
    starts, lengths = tokens.documents.spans(np.arange(min(count, len(tokens.documents)), dtype=np.int64))
    stops = starts + np.minimum(lengths - 1, context + 1)
    texts = [tokens.read(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    if not any(len(text) > 1 for text in texts):
        raise ValueError(
            f"a document of the first {count} that are held out must have two tokens, but none of {len(texts)} has; "
            "raise evaluation.documents, or leave it out"
        )
    return [text for text in texts if len(text) > 1]


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """Return at most `wanted` numbers spread evenly over 0 .. count - 1."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64)


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
