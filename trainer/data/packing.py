"""Best-fit packing: rows of whole documents, without padding; what doesn't fit is cropped and counted.

A row of context + 1 tokens begins with a document, and a document with the separator, which stands before it here
(elsewhere it ends the one before). Documents come in the order of a pass, into a buffer of 1,000. A row takes the
longest of them that fits into the rest of it. Where none fits, the shortest is cropped to fill the row. A document
longer than a row is cropped to one as it comes. The buffer is emptied before the next pass begins, so a pass places
each document once. Packing reads lengths alone, about 3 µs per document, so a position is found again by packing up
to it.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.shards import Documents, Tokens

BUFFER = 1000
# Validation rows are packed from so many documents, and what a pass crops is estimated from them, where there are more.
SAMPLED_DOCUMENTS = 200_000
_READ_AHEAD = 4096

# Maps places of a pass, 0 .. documents - 1, and the pass's number to documents.
Order = Callable[[NDArray[np.int64], int], NDArray[np.int64]]


# The start of a document, and how many of its tokens are kept, with the separator before them.
Piece = tuple[int, int]
# A document in the buffer: tokens, minus its place in the pass, start, tokens cropped. Of several with one length, the
# one that came first is the largest.
_BufferedDocument = tuple[int, int, int, int]


class RowPacker:
    """Rows of documents, one after the other, and the position between two of them.

    Args:
        documents: at least one.
        capacity: tokens of a row.
        order: the order of each pass; by default the stored one.
        position: the position of another packer of the same rows, to go on from.

    Attributes:
        rows: rows made so far.
        passes: passes that are over.
        dropped: tokens of text cropped so far.
    """

    def __init__(
        self, documents: Documents, capacity: int, order: Order | None = None, position: dict[str, Any] | None = None
    ) -> None:
        assert len(documents) > 0, "there is a document"
        self._documents, self._count, self._capacity = documents, len(documents), capacity
        self._order = order or (lambda places, _: places)
        position = position or {"rows": 0, "passes": 0, "dropped": 0, "taken": 0, "waiting": []}
        self.rows, self.passes, self.dropped = position["rows"], position["passes"], position["dropped"]
        self._taken = position["taken"]
        waiting = np.array(position["waiting"], np.int64)
        self._buffer = sorted(self._documents_at(waiting)) if len(waiting) else []
        self._remaining = self._next_documents()

    @property
    def position(self) -> dict[str, Any]:
        """Plain numbers from which another packer goes on."""
        waiting = [-minus_place for _, minus_place, _, _ in self._buffer]
        counts = {"rows": self.rows, "passes": self.passes, "dropped": self.dropped, "taken": self._taken}
        return {**counts, "waiting": waiting}

    @property
    def pass_is_over(self) -> bool:
        """True between the last document of a pass and the first of the next."""
        return self._taken == self._count and not self._buffer

    def next_row(self) -> list[Piece]:
        """Pack the next row; its pieces have `capacity` tokens together."""
        row: list[Piece] = []
        left = self._capacity
        while left:
            self._fill_buffer()
            fitting = bisect_left(self._buffer, (left + 1,))
            length, _, start, cropped = self._buffer.pop(fitting - 1 if fitting else 0)
            kept = min(length, left)
            self.dropped += cropped + length - kept
            row.append((start, kept))
            left -= kept
        self.rows += 1
        return row

    def _fill_buffer(self) -> None:
        if not self._buffer and self.pass_is_over:
            self.passes, self._taken = self.passes + 1, 0
            self._remaining = self._next_documents()
        while len(self._buffer) < BUFFER and self._taken < self._count:
            insort(self._buffer, next(self._remaining))
            self._taken += 1

    def _next_documents(self) -> Iterator[_BufferedDocument]:
        """Yield the documents of this pass that haven't been taken."""
        for first in range(self._taken, self._count, _READ_AHEAD):
            yield from self._documents_at(np.arange(first, min(first + _READ_AHEAD, self._count), dtype=np.int64))

    def _documents_at(self, places: NDArray[np.int64]) -> Iterator[_BufferedDocument]:
        starts, lengths = self._documents.spans(self._order(places, self.passes))
        kept = np.minimum(lengths, self._capacity)
        return zip(kept.tolist(), (-places).tolist(), starts.tolist(), (lengths - kept).tolist(), strict=True)


def pack_in_order(documents: Documents, capacity: int) -> Iterator[list[Piece]]:
    """Yield the full rows of one pass over the documents in their stored order, at most the first 200,000."""
    packer = RowPacker(_sample(documents), capacity)
    while True:
        row = packer.next_row()
        if packer.passes:  # it ends with documents of the next pass
            return
        yield row


def read_rows(tokens: Tokens, rows: list[list[Piece]], capacity: int) -> NDArray[np.int64]:
    """Read packed rows, shape [rows, capacity]."""
    windows = np.empty((len(rows), capacity), np.int64)
    separator = tokens.separator
    for window, row in zip(windows, rows, strict=True):
        at = 0
        for start, length in row:
            window[at] = separator
            window[at + 1 : at + length] = tokens.read(start, start + length - 1)
            at += length
    return windows


def cropped_share(documents: Documents, capacity: int) -> float:
    """Return the share of the tokens that a pass crops, of its first 200,000 documents where there are more.

    It is that of the stored order; other orders crop nearly as much.
    """
    sample = _sample(documents)
    pieces = chain.from_iterable(iter(RowPacker(sample, capacity).next_row, None))
    kept = sum(length for _, length in islice(pieces, len(sample)))
    return 1 - kept / sample.tokens


def _sample(documents: Documents) -> Documents:
    starts, lengths = documents.spans(np.arange(min(len(documents), SAMPLED_DOCUMENTS), dtype=np.int64))
    return Documents(starts + lengths, int(starts[-1] + lengths[-1]))
