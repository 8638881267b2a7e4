"""The fixed-depth Transformer, the baseline: the same blocks as the looped model's, each run once."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.cache import CacheView
from isoloop.trainer.model.cast import SharedCast
from isoloop.trainer.model.language_model import LanguageModel, StepLoss, mask_of


@final
class Transformer(LanguageModel):
    """The fixed-depth baseline: prelude, core and coda once each, without injection, prelude norm, W_C or h_0."""

    def __init__(self, config: ModelConfig) -> None:
        assert not config.is_looped, "a looped model is a Parcae"
        super().__init__(config)

    def _initialise_own(self, std: float, generator: torch.Generator) -> None:
        """Draw nothing: there are only tables and blocks."""

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loops: Tensor,
        gradient_loops: int,
        h0: Tensor,
        separator: int | None = None,
        predicted: Tensor | None = None,
    ) -> StepLoss:
        """Compute the loss of one training step."""
        assert (loops == 1).all(), "each block runs once"
        return StepLoss(self.cross_entropy(self._states(tokens, separator), targets, predicted), None, None)

    def final_states(
        self,
        tokens: Tensor,
        recurrences: Sequence[int],
        h0: Tensor,
        separator: int | None = None,
        cache: CacheView | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, normed final states [batch, tokens, width])."""
        assert set(recurrences) == {1}, "each block runs once"
        yield 1, self._states(tokens, separator, cache)

    def spectral_radius(self) -> None:
        """Return None: there is no loop."""

    def _states(self, tokens: Tensor, separator: int | None, cache: CacheView | None = None) -> Tensor:
        x = self._embedded(tokens)
        values: dict[int, SharedCast] = {}
        core, mask = self.config.core, mask_of(tokens, separator, cache)
        for blocks, first in ((self.prelude, 0), (self.core, core.start), (self.coda, core.stop)):
            values |= self._value_embeddings(tokens, range(first, first + len(blocks)))
            x = self._run(blocks, first, x, values, mask, cache)
        return self.final_norm(x)
