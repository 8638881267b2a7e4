"""The fixed-depth baseline: the same blocks as the looped model's, each run once."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.head import mean_cross_entropy
from isoloop.trainer.model.language_model import LanguageModel, StepLoss


@final
class Transformer(LanguageModel):
    """Prelude, core and coda in a row: no injection, no prelude norm, no W_C. T is 1, and h_0 goes nowhere."""

    def __init__(self, config: ModelConfig) -> None:
        assert not config.is_looped, "a looped model is a Parcae"
        super().__init__(config)

    def _initialise_own(self, std: float, generator: torch.Generator) -> None:
        """Tables and blocks are all there is."""

    def loss(self, tokens: Tensor, targets: Tensor, loops: Tensor, gradient_loops: int, h0: Tensor) -> StepLoss:
        """Loss of one training step."""
        assert (loops == 1).all(), "each block runs once"
        return StepLoss(mean_cross_entropy(self._states(tokens), self.embedding.weight, targets), None, None)

    def final_states(self, tokens: Tensor, recurrences: Sequence[int], h0: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, normed final states [batch, tokens, width])."""
        assert set(recurrences) == {1}, "each block runs once"
        yield 1, self._states(tokens)

    def spectral_radius(self) -> None:
        """There is no loop."""

    def _states(self, tokens: Tensor) -> Tensor:
        x, first = self.embedding(tokens), 0
        values = self._value_embeddings(tokens)
        for blocks in (self.prelude, self.core, self.coda):
            x = self.run_blocks(blocks, first, x, self.rotary, values)
            first += len(blocks)
        return self.final_norm(x)
