"""Synthetic texts, which isoloop makes itself: what follows from what in them, and after how many steps, is known.

A text consists of lines. Each is a document, so the separator stands where other texts have a newline. All random
numbers are the raw bits of PCG64, which are the same on every machine and in every version of numpy. See
docs/synthetic.md.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import AutomatonConfig, DataConfig, DepoConfig

_SEPARATOR = 0  # of the tokenizer `bytes`
_ZERO = ord("0")
_NODES = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)
_SMALLEST_CYCLE = 3
# Lines that are drawn together; another number would give other lines.
_BLOCK = 2**14


class Answers(NamedTuple):
    """Answers among the tokens of some rows, shape [rows, tokens] each.

    Attributes:
        k: the steps that the answer to which a token belongs asks for; 0 where it belongs to none.
        place: the token's place within its answer, from 0.
    """

    k: NDArray[np.int64]
    place: NDArray[np.int64]


class SyntheticText(ABC):
    """Contract of a synthetic text.

    Attributes:
        settings: its settings.
        answer_tokens: tokens of one answer.
        most_bytes: bytes of all lines, or a bound of them.
        description: the text in words, with the number of different lines that are possible.
    """

    settings: AutomatonConfig | DepoConfig
    answer_tokens: int
    most_bytes: int
    description: str

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, without separators, always the same ones."""
        bits, left = np.random.PCG64(self.settings.seed), self.settings.lines
        while left > 0:
            for line in self._draw(bits)[:left]:
                yield line.tobytes().replace(b"\0", b"")
            left -= _BLOCK

    @abstractmethod
    def _draw(self, bits: np.random.PCG64) -> NDArray[np.uint8]:
        """Draw a block of lines, shape [block, bytes]; bytes 0 are left out of a line."""

    @abstractmethod
    def answers(self, rows: NDArray[np.int64]) -> Answers:
        """Return the answers in rows of tokens [rows, tokens], each of which begins with the separator of a line."""


class Automaton(SyntheticText):
    """Lines `k`, a random row of cells, and rows of which each is k steps of a cellular automaton after the last."""

    settings: AutomatonConfig

    def __init__(self, settings: AutomatonConfig) -> None:
        self.settings = settings
        cells, rows, k = settings.cells, settings.rows, settings.largest_k
        self.answer_tokens = cells
        self.most_bytes = settings.lines * (1 + cells * (1 + rows))
        self.description = (
            f"rows of a cellular automaton, rule {settings.rule}; {settings.lines:,} lines, of "
            f"{_in_words(k * 2**cells)} that are possible, each on one side of the split alone"
        )

    def _draw(self, bits: np.random.PCG64) -> NDArray[np.uint8]:
        """Draw a block of lines; a row is a whole number whose highest bit is the first cell."""
        settings, cells = self.settings, self.settings.cells
        k = _draw_k(bits, settings.largest_k, settings.exponent, _BLOCK)
        rows = [bits.random_raw(_BLOCK) >> np.uint64(64 - cells)]
        for _ in range(settings.rows):
            row = rows[-1].copy()
            for step in range(settings.largest_k):
                row = np.where(step < k, self.next_row(row), row)
            rows.append(row)
        places = np.arange(cells - 1, -1, -1, dtype=np.uint64)
        text = (np.stack(rows, axis=1)[:, :, None] >> places) & np.uint64(1)
        return np.concatenate([k[:, None], text.reshape(_BLOCK, -1)], axis=1).astype(np.uint8) + np.uint8(_ZERO)

    def next_row(self, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return each row after one step of the automaton, as whole numbers like `rows`."""
        one, every = np.uint64(1), np.uint64(2**self.settings.cells - 1)
        neighbourhood = rows >> one, rows, (rows << one) & every  # the bits of the left, the own and the right cells
        after = np.zeros_like(rows)
        for pattern in range(8):
            if self.settings.rule >> pattern & 1:
                wanted = [bool(pattern >> place & 1) for place in (2, 1, 0)]
                match = [cell if is_one else cell ^ every for cell, is_one in zip(neighbourhood, wanted, strict=True)]
                after |= match[0] & match[1] & match[2]
        return after

    def answers(self, rows: NDArray[np.int64]) -> Answers:
        """Return the computed rows' cells."""
        cells, last = self.settings.cells, rows.shape[1] - 1
        places = np.arange(rows.shape[1])
        start = np.maximum.accumulate(np.where(rows == _SEPARATOR, places, 0), axis=1)
        computed = places - start - (cells + 2)  # behind the separator, k and the first row
        k = np.take_along_axis(rows, np.minimum(start + 1, last), axis=1) - _ZERO
        return Answers(np.where(computed >= 0, k, 0), np.where(computed >= 0, computed % cells, 0))


class Depo(SyntheticText):
    """Lines of all edges of a directed cycle, as pairs of nodes in random order, and of queries `k`, node, answer."""

    settings: DepoConfig
    answer_tokens = 1

    def __init__(self, settings: DepoConfig) -> None:
        self.settings = settings
        n, queries = settings.largest_n, settings.queries
        self.most_bytes = settings.lines * (2 * n + 3 * queries)
        nodes = range(_SMALLEST_CYCLE, n + 1)
        # An ordered choice of edges of one of the cycles of n nodes, and a k and a node for each query.
        possible = sum(
            math.comb(n, m) * math.factorial(m - 1) * math.factorial(m) * (settings.largest_k * m) ** queries
            for m in nodes
        )
        self.description = (
            f"queries for successors in cycles of 3 to {n} nodes; {settings.lines:,} lines, of "
            f"{_in_words(possible)} that are possible, each on one side of the split alone"
        )

    def _draw(self, bits: np.random.PCG64) -> NDArray[np.uint8]:
        settings, most = self.settings, self.settings.largest_n
        sizes = np.arange(_SMALLEST_CYCLE, most + 1)
        n = sizes[_choose(bits, 1 / (sizes + math.sqrt(most)), _BLOCK)][:, None]
        shape, queries = (_BLOCK, most), (_BLOCK, settings.queries)
        cycle = np.argsort(bits.random_raw(shape), axis=1, kind="stable")  # the first n are its nodes in their order
        order = np.argsort(np.where(np.arange(most) < n, _fractions(bits, shape), 2.0), axis=1, kind="stable")
        k = _draw_k(bits, settings.largest_k, settings.exponent, queries)
        asked = (_fractions(bits, queries) * n).astype(np.int64)

        def node(places: NDArray[np.int64]) -> NDArray[np.uint8]:
            return _NODES[np.take_along_axis(cycle, places % n, axis=1)]

        edges = np.stack([node(order), node(order + 1)], axis=2)
        edges[np.arange(most) >= n] = 0
        asking = np.stack([(k + _ZERO).astype(np.uint8), node(asked), node(asked + k)], axis=2)
        return np.concatenate([edges.reshape(_BLOCK, -1), asking.reshape(_BLOCK, -1)], axis=1)

    def answers(self, rows: NDArray[np.int64]) -> Answers:
        """Return the last nodes of the queries: a digit stands two tokens before each, and nowhere else."""
        k = np.zeros_like(rows)
        k[:, 2:] = np.where((rows > _ZERO) & (rows <= _ZERO + 9), rows - _ZERO, 0)[:, :-2]
        return Answers(k, np.zeros_like(rows))


def synthetic_text(data: DataConfig) -> SyntheticText | None:
    """Return the synthetic text that `data` names; None if its text is another."""
    if data.corpus == "automaton":
        return Automaton(data.automaton)
    return Depo(data.depo) if data.corpus == "depo" else None


def answer_mask(data: DataConfig, windows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return True for the answers among the targets of a synthetic text's windows [rows, context + 1]."""
    text = synthetic_text(data)
    assert text is not None, "a text with answers is synthetic"
    return text.answers(windows).k[:, 1:] > 0


def _in_words(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"10^{math.log10(count):.0f}"


def _draw_k(bits: np.random.PCG64, largest: int, exponent: float, shape: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Draw k = 1 .. `largest` with weights k^-exponent."""
    return 1 + _choose(bits, np.arange(1.0, largest + 1) ** -exponent, shape)


def _choose(bits: np.random.PCG64, weights: NDArray[np.float64], shape: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Draw places of `weights`, each as often as its weight says."""
    ends = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(ends[:-1], _fractions(bits, shape), side="right")


def _fractions(bits: np.random.PCG64, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Draw numbers in [0, 1), of 53 random bits each."""
    return np.multiply(bits.random_raw(shape) >> np.uint64(11), 2.0**-53, dtype=np.float64)
