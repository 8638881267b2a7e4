"""Models as readers: the losses of chosen tokens, and whether each is the likeliest, at many recurrences."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.memory import LOGITS_AT_ONCE, MIN_HEAD_ROWS
from isoloop.trainer.model.build import check_cache
from isoloop.trainer.model.cache import CacheView, KeyValueCache
from isoloop.trainer.model.language_model import LanguageModel

# Positions of one pass, by kind of device.
TOKENS_AT_ONCE = {"cpu": 2**13, "cuda": 2**16}
Precision = Literal["float32", "bfloat16"]


class Reader(ABC):
    """Contract of a model that suites evaluate.

    Shapes: tokens [rows, tokens], states [rows, tokens, width]. Prefixes, each of which several rows share, are
    [prefixes, tokens]; the first counts[0] rows follow the first prefix, and so on.

    Attributes:
        context: most tokens of a prompt.
        device: of the tensors that it reads.
        is_looped: False if T = 1 is the only recurrence.
    """

    context: int
    device: torch.device
    is_looped: bool

    @abstractmethod
    def states(self, tokens: Tensor, recurrences: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, states that `logits` takes) for each T, ascending, in one pass; `seeds` are those of h_0 by row."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [places, vocabulary] of states [places, width]."""

    def states_after(
        self, prefix: Tensor, counts: Sequence[int], tokens: Tensor, recurrences: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, states of `tokens`, each row of which follows its prefix), with h_0 from STATE_SEED.

        Here the prefix is read again for each row; a reader with a cache reads it once.
        """
        repeated = prefix.repeat_interleave(torch.tensor(counts, device=prefix.device), dim=0)
        whole = torch.cat((repeated, tokens), dim=1)
        for recurrence, states in self.states(whole, recurrences, [STATE_SEED] * len(whole)):
            yield recurrence, states[:, prefix.shape[1] :]

    def prefix_bytes(self, recurrences: Sequence[int]) -> int:
        """Return the bytes of cache of one token of a prefix; 0 without a cache, and then prefixes aren't shared."""
        return 0

    @property
    def tokens_at_once(self) -> int:
        """Positions of one pass."""
        return TOKENS_AT_ONCE["cpu" if self.device.type == "cpu" else "cuda"]

    def score(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nats of `targets` [places], and whether each has the largest logit."""
        nats, greedy = [], []
        rows = max(MIN_HEAD_ROWS, LOGITS_AT_ONCE["cpu" if states.device.type == "cpu" else "cuda"] // self.vocabulary)
        for part, wanted in zip(states.split(rows), targets.split(rows), strict=True):
            logits = self.logits(part).float()
            nats.append(F.cross_entropy(logits, wanted, reduction="none"))
            greedy.append(logits.argmax(-1) == wanted)
        return torch.cat(nats), torch.cat(greedy)

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of logits."""


class LoopedReader(Reader):
    """A looped or fixed-depth model of ours, on the device on which it is.

    Args:
        model: its weights are float32.
        precision: `bfloat16` runs matrix products under autocast, as in training.
    """

    def __init__(self, model: LanguageModel, precision: Precision = "float32") -> None:
        self.model, self.precision = model.eval(), precision
        self.context, self.is_looped = model.config.context, model.config.is_looped
        self.device = model.embedding.weight.device

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.model.config.padded_vocabulary

    def states(self, tokens: Tensor, recurrences: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield as `Reader.states` says."""
        return self._passes(tokens, recurrences, self._initial_state(seeds)[:, : tokens.shape[1]])

    def states_after(
        self, prefix: Tensor, counts: Sequence[int], tokens: Tensor, recurrences: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield as `Reader.states_after` says; the prefixes are read once, into a cache that their rows share."""
        shared, own, most = prefix.shape[1], tokens.shape[1], max(counts)
        capacity = shared + most * own
        cache = KeyValueCache(self.model.config, batch=len(prefix), capacity=capacity, device=self.device)
        state = self._initial_state([STATE_SEED] * len(prefix))
        for _ in self._passes(prefix, recurrences, state[:, :shared], cache.view(shared)):
            pass  # only the keys and values are needed
        cache.advance(shared)

        # The rows of a prefix, one behind the other: [prefixes, most x tokens], where a prefix may have fewer rows
        place = torch.tensor([owner * most + row for owner, count in enumerate(counts) for row in range(count)])
        place = place.to(self.device, non_blocking=True)
        branches = tokens.new_zeros(len(prefix) * most, own).index_copy(0, place, tokens).view(len(prefix), -1)
        state = state[:, shared : shared + own].repeat(1, most, 1)
        for recurrence, states in self._passes(branches, recurrences, state, cache.branches(most, own)):
            yield recurrence, states.view(len(prefix) * most, own, -1)[place]

    def prefix_bytes(self, recurrences: Sequence[int]) -> int:
        """Return the bytes of cache of one token; 0 where a block of the user's own can't use a cache."""
        try:
            check_cache(self.model)
        except ValueError:
            return 0
        return KeyValueCache.bytes_needed(self.model.config, recurrences, batch=1, tokens=1)

    @torch.no_grad()
    def _passes(
        self, tokens: Tensor, recurrences: Sequence[int], h0: Tensor, cache: CacheView | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        passes = self.model.final_states(tokens, recurrences, h0, cache=cache)
        while True:
            with self._autocast():  # not around the yield, where the caller's code runs
                step = next(passes, None)
            if step is None:
                return
            yield step

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits as `Reader.logits` says."""
        with self._autocast():
            return self.model.logits_of(states)

    def _initial_state(self, seeds: Sequence[int]) -> Tensor:
        """Return h_0 [len(seeds), context, width]; a prompt of any length sees the same one at each position."""
        if set(seeds) == {STATE_SEED}:
            return self._common_state.expand(len(seeds), -1, -1)
        return self.model.initial_state(seeds, self.context)

    @cached_property
    def _common_state(self) -> Tensor:
        return self.model.initial_state([STATE_SEED], self.context)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
