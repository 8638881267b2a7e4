"""Keys and values of tokens that were read already, so that each next token costs one column of attention.

Every unrolled layer has a slot of its own: the prelude's layers, the core's layers at each loop, and the coda's layers
for each T at which the model is read out. A slot holds [batch, key-value heads, tokens, head width], twice. With
`shared_loops` the loops of a core layer share one slot, which holds the last loop's keys and values (`compress-s1` of
Geiping et al. 2025, arXiv:2502.05171). A prompt is then read as before, and only later tokens differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from isoloop.trainer.config import ModelConfig


class KeyValueCache:
    """Keys and values of `batch` sequences of up to `capacity` tokens each, in float32.

    `lengths`, of type int64 on the CPU, [batch], counts the tokens that each sequence holds. A forward pass adds the
    keys and values of its tokens behind them; `advance` then says how many of these are to stay.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        shared_loops: bool = False,
    ) -> None:
        self.config = config
        self.capacity = capacity
        self.shared_loops = shared_loops
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self._shape = (2, batch, config.kv_heads, capacity, config.head_width)
        self.device = torch.device(device)
        self._slots: dict[tuple[int, int], Tensor] = {}

    @staticmethod
    def bytes_needed(
        config: ModelConfig, recurrences: Sequence[int], *, batch: int, tokens: int, shared_loops: bool = False
    ) -> int:
        """Return the bytes of a float32 cache from which the model is read out at each T of `recurrences`."""
        loops = 1 if shared_loops or not config.is_looped else max(recurrences)
        slots = config.prelude_layers + loops * config.core_layers + len(set(recurrences)) * config.coda_layers
        return 2 * 4 * slots * batch * config.kv_width * tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the slots that were used so far."""
        return sum(slot.nbytes for slot in self._slots.values())

    def advance(self, tokens: int | Sequence[int] | Tensor) -> None:
        """Keep the keys and values of the first `tokens` tokens of the last pass: one number, or one per sequence."""
        self.lengths = self.lengths + torch.as_tensor(tokens)
        assert self.lengths.max() <= self.capacity, "the cache is full"

    def clear(self, row: int) -> None:
        """Forget the tokens of one sequence."""
        self.lengths = self.lengths.clone()
        self.lengths[row] = 0

    def view(self, tokens: int, rows: Sequence[int] | None = None) -> "CacheView":
        """Return the view for a pass over `tokens` new tokens of all sequences, or of the sequences `rows`."""
        numbers = None if rows is None else torch.tensor(list(rows))
        starts = self.lengths if numbers is None else self.lengths[numbers]
        assert int(starts.max()) + tokens <= self.config.context, "positions beyond it have no rotary embedding"
        return CacheView(cache=self, tokens=tokens, rows=numbers, starts=starts)

    def branches(self, branches: int, tokens: int) -> "BranchView":
        """Return the view for a pass over continuations of each sequence, one behind the other, all of equal length.

        Each begins at the position after the sequence's last token and sees that sequence and itself, so what was
        computed of a text serves all its continuations. All sequences must have the same length. Nothing of the pass
        can be kept.
        """
        assert (self.lengths == self.lengths[0]).all(), "branches grow from sequences of one length"
        return BranchView(cache=self, tokens=branches * tokens, rows=None, starts=self.lengths, branch_tokens=tokens)

    def slot(self, layer: int, loop: int) -> Tensor:
        """Return the slot of a distinct layer: at loop `loop` of the core, for T = `loop` of the coda, else of loop 0.

        Its shape is [2, batch, key-value heads, capacity, head width].
        """
        if self.shared_loops and layer in self.config.core:
            loop = 0
        if (layer, loop) not in self._slots:
            self._slots[layer, loop] = torch.zeros(self._shape, device=self.device)
        return self._slots[layer, loop]


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """The part of a cache that one forward pass reads and writes.

    Attributes:
        cache: the cache.
        tokens: new tokens of each sequence.
        rows: the sequences that run, [rows]; None: all of them.
        starts: tokens that each of these held before, [rows].
    """

    cache: KeyValueCache
    tokens: int
    rows: Tensor | None
    starts: Tensor

    @cached_property
    def first(self) -> int:
        """Smallest number of tokens that a sequence held before."""
        return int(self.starts.min())

    @cached_property
    def last(self) -> int:
        """Largest number of tokens that a sequence holds with the new ones."""
        return int(self.starts.max()) + self.tokens

    @property
    def is_ragged(self) -> bool:
        """True if the sequences hold different numbers of tokens."""
        return self.first + self.tokens != self.last

    @cached_property
    def positions(self) -> Tensor:
        """Positions of the new tokens, [rows or 1, tokens], on the cache's device."""
        starts = self.starts if self.is_ragged else self.starts[:1]
        return (starts[:, None] + torch.arange(self.tokens)).to(self.cache.device)

    def mask(self) -> Tensor | None:
        """Return which tokens each new one attends to: True in [rows or 1, 1, tokens, tokens before and new].

        None where that is all of them (one new token), or those before it in the pass (nothing is held yet).
        """
        if not self.is_ragged and (self.first == 0 or self.tokens == 1):
            return None
        return torch.arange(self.last, device=self.cache.device) <= self.positions[:, None, :, None]

    @cached_property
    def device_rows(self) -> Tensor | slice:
        """The sequences that run as an index of the slots' second dimension."""
        return slice(None) if self.rows is None else self.rows.to(self.cache.device)

    def select(self, running: Tensor) -> Self:
        """Return the view of those of its sequences for which `running`, [rows], is True."""
        running = running.cpu()
        rows = self._row_numbers[running]
        return type(self)(cache=self.cache, tokens=self.tokens, rows=rows, starts=self.starts[running])

    def slots(self, layers: Sequence[int], loop: int) -> Iterator["LayerView"]:
        """Yield the slots of several distinct layers at a loop, for attention."""
        return (LayerView(view=self, slot=self.cache.slot(layer, loop)) for layer in layers)

    @property
    def _row_numbers(self) -> Tensor:
        return torch.arange(len(self.starts)) if self.rows is None else self.rows

    def copy_loop(self, layer: int, loop: int, targets: range) -> None:
        """Let the loops `targets` of a layer have the new tokens' keys and values of `loop`, as the latest ones."""
        if self.cache.shared_loops:
            return
        for row, start in zip(self._row_numbers.tolist(), self.starts.tolist(), strict=True):
            place = slice(start, start + self.tokens)
            for target in targets:
                self.cache.slot(layer, target)[:, row, :, place] = self.cache.slot(layer, loop)[:, row, :, place]


@dataclass(frozen=True, kw_only=True)
class BranchView(CacheView):
    """The view of continuations that share a beginning; see `KeyValueCache.branches`.

    Attributes:
        branch_tokens: tokens of each continuation.
    """

    branch_tokens: int

    @cached_property
    def positions(self) -> Tensor:
        """Positions of the new tokens, [1, tokens]: those of each branch are the same."""
        places = torch.arange(self.tokens) % self.branch_tokens
        return (self.first + places)[None].to(self.cache.device, non_blocking=True)

    @cached_property
    def _mask(self) -> Tensor:
        place = torch.arange(self.tokens, device=self.cache.device)
        of_branch = place[:, None] // self.branch_tokens == place // self.branch_tokens
        held = torch.ones(self.tokens, self.first, dtype=torch.bool, device=self.cache.device)
        return torch.cat((held, of_branch.tril()), dim=1)[None, None]

    def mask(self) -> Tensor:
        """Return which tokens each new one attends to: True in [1, 1, tokens, tokens before and new]."""
        return self._mask


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """The slot of one unrolled layer, as attention sees it in one forward pass."""

    view: CacheView
    slot: Tensor

    @property
    def positions(self) -> Tensor:
        """Positions of the new tokens, [rows or 1, tokens]."""
        return self.view.positions

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of the new tokens, and return all up to them.

        Args:
            key: [rows, key-value heads, new tokens, head width].
            value: the same shape.

        Returns:
            Keys and values, [rows, key-value heads, tokens, head width], where `tokens` is the largest number of tokens
            of a sequence; what a shorter one has beyond its own is masked.
        """
        view, rows = self.view, self.view.device_rows
        new = torch.stack([key, value]).to(self.slot.dtype)
        if view.is_ragged:
            rows = view._row_numbers.to(self.slot.device)[:, None]
            self.slot[:, rows, :, view.positions] = new.permute(1, 3, 0, 2, 4)  # advanced indices come first
        else:
            self.slot[:, rows, :, view.first : view.last] = new
        keys, values = self.slot[:, view.device_rows, :, : view.last].to(key.dtype).unbind(0)
        return keys, values
