"""The base class of the looped and the fixed-depth model: tables, blocks, final norm, output head."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoloop.trainer.config import Initialisation, ModelConfig
from isoloop.trainer.model.cache import CacheView, LayerView
from isoloop.trainer.model.cast import SharedCast
from isoloop.trainer.model.head import ChunkLoss, loss_and_gradient, mean_cross_entropy, soft_capped
from isoloop.trainer.model.layers import (
    Attention,
    Block,
    RMSNorm,
    Rotary,
    document_mask,
    init_matrix,
    make_block,
    truncated_normal,
)


class StepLoss(NamedTuple):
    """Loss of a training step and statistics of its last loop; scalars.

    Attributes:
        nats: mean cross-entropy, nats per predicted token; its gradient has the z-loss, too, if there is one.
        state_norm: mean over tokens of the Euclidean norm of h_T; None without a loop.
        residual: mean over tokens of |h_T - h_{T-1}| / |h_T|; None without a loop.
    """

    nats: Tensor
    state_norm: Tensor | None
    residual: Tensor | None


class LanguageModel(nn.Module, ABC):
    """Base class: embedding and value-embedding tables, blocks, final norm and output head.

    Shapes: tokens and targets [batch, tokens]; states and embeddings [batch, tokens, width]; loops [batch]. With
    `separator`, the id that begins a document, attention doesn't cross documents.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocabulary, d = config.padded_vocabulary, config.width
        self.embedding = nn.Embedding(vocabulary, d)
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(vocabulary, config.kv_width)
                for i in range(config.layers)
                if config.has_value_embedding(i)
            }
        )
        blocks = [make_block(config, layer) for layer in range(config.layers)]
        self.prelude = nn.ModuleList(blocks[: config.core.start])
        self.core = nn.ModuleList(blocks[config.core.start : config.core.stop])
        self.coda = nn.ModuleList(blocks[config.core.stop :])
        self.final_norm = RMSNorm(d, config.norm_eps)
        self.head = None if config.tied_head else nn.Linear(d, vocabulary, bias=False)
        self.rotary = Rotary(config.head_width, config.context, config.rotary_base)
        self.run_blocks: Callable[..., Tensor] = run_blocks  # replaced by `compile_blocks`, like the next one
        self.loss_and_gradient: ChunkLoss = loss_and_gradient

    @torch.no_grad()
    def initialise(self, seed: int, initialisation: Initialisation = "paper") -> None:
        """Draw the weights on the CPU from `seed`, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.init_std
        for module in (self.embedding, *self.value_embeddings.values()):
            truncated_normal(module.get_parameter("weight"), std, generator)
        for block in (*self.prelude, *self.core, *self.coda):
            assert isinstance(block, Block)
            block.initialise(std, generator)
        self._initialise_own(std, generator)
        if initialisation == "released":
            self._redraw_as_released(std, generator)
        if self.head is not None:  # as the token table; last, so that a tied model has the same other weights
            (init_matrix if initialisation == "released" else truncated_normal)(self.head.weight, std, generator)

    @abstractmethod
    def _initialise_own(self, std: float, generator: torch.Generator) -> None:
        """Draw the parameters outside the tables and blocks."""

    def _redraw_as_released(self, std: float, generator: torch.Generator) -> None:
        """Draw what the published code draws otherwise than the paper's text: tables and gates of value embeddings."""
        init_matrix(self.embedding.weight, std, generator)
        for module in self.value_embeddings.values():
            table = module.get_parameter("weight")
            table.copy_(torch.empty(table.shape).normal_(generator=generator))
        for module in self.modules():
            if isinstance(module, Attention) and module.gate is not None:
                gate, bound = module.gate.weight, module.gate.in_features**-0.5
                gate.copy_(torch.empty(gate.shape).uniform_(-bound, bound, generator=generator))

    @abstractmethod
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
        """Compute the loss of one training step.

        Args:
            tokens: input ids, [batch, tokens].
            targets: ids to predict, [batch, tokens].
            loops: T_i on the CPU, [batch].
            gradient_loops: µ_bwd.
            h0: initial states, [batch, tokens, width].
            separator: see the class.
            predicted: True for the targets whose mean the loss is, [batch, tokens]; None: all of them.
        """

    @abstractmethod
    def final_states(
        self,
        tokens: Tensor,
        recurrences: Sequence[int],
        h0: Tensor,
        separator: int | None = None,
        cache: CacheView | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, normed final states [batch, tokens, width]) for each T of `recurrences`, ascending, in one pass.

        With `cache`, a view for as many tokens, these come after the tokens that it holds. Documents can't be masked
        then. The recurrences must be the same at each pass.
        """

    @abstractmethod
    def spectral_radius(self) -> float | None:
        """Return ρ(Ā), or None without a loop."""

    def radius_on_device(self) -> Tensor | None:
        """Return ρ(Ā) as a scalar tensor, without a wait for the device; None without a loop or such a way."""
        return None

    def logits(
        self,
        tokens: Tensor,
        recurrences: Sequence[int],
        h0: Tensor,
        separator: int | None = None,
        cache: CacheView | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, logits [batch, tokens, padded vocabulary]) for each T of `recurrences`, ascending, in one pass."""
        for recurrence, x in self.final_states(tokens, recurrences, h0, separator, cache):
            yield recurrence, self.logits_of(x)

    def logits_of(self, x: Tensor) -> Tensor:
        """Return the logits [..., padded vocabulary] of normed final states x [..., width]."""
        return soft_capped(F.linear(x, self.head_weight), self.config.logit_soft_cap)

    def cross_entropy(self, x: Tensor, targets: Tensor, predicted: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy, in nats, of normed final states x [..., width] and targets [...].

        With `predicted` [...] it is the mean over the targets where this is True. Its gradient has the z-loss of the
        configuration, too.
        """
        config = self.config
        return mean_cross_entropy(
            x,
            self.head_weight,
            targets,
            soft_cap=config.logit_soft_cap,
            z_loss=config.z_loss,
            chunk_loss=self.loss_and_gradient,
            predicted=predicted,
        )

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head, [padded vocabulary, width]: the token table unless it is untied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def gradient_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters in the order in which a backward pass completes their gradients.

        They are those behind the loop, then those of the loop, with all value embeddings from there on, and then those
        before it and the token table, to whose gradient a tied head adds, too.
        """
        first = self.config.core.start
        tables = [(int(layer) < first, table) for layer, table in self.value_embeddings.items()]
        behind = [self.final_norm, self.coda, *([] if self.head is None else [self.head])]
        after = [table for is_before, table in tables if not is_before]
        before = [self.prelude, *(table for is_before, table in tables if is_before), self.embedding]
        groups = [[p for part in parts for p in part.parameters()] for parts in (behind, after, before)]
        known = {id(p) for group in groups for p in group}
        rest = [p for p in self.parameters() if id(p) not in known]
        return [groups[0], rest + groups[1], groups[2]]

    def initial_state(self, seeds: Sequence[int], tokens: int) -> Tensor:
        """Draw h_0 [len(seeds), tokens, width] on the model's device by `state_init`, with one seed per sequence."""
        device = self.embedding.weight.device
        h0 = torch.zeros(len(seeds), tokens, self.config.width, device=device)
        if self.config.is_looped and self.config.state_init != "zero":
            stds = {"like-init": self.config.init_std * (self.config.embedding_scale or 1.0)}
            stds["embed"] = 1 / math.sqrt(self.config.width)
            std = stds.get(self.config.state_init, 1.0)
            generator = torch.Generator(device)
            for state, seed in zip(h0, seeds, strict=True):
                state.normal_(0.0, std, generator=generator.manual_seed(int(seed)))
            if self.config.state_init == "unit":
                spread, mean = torch.std_mean(h0, dim=-1, keepdim=True)
                h0 = (h0 - mean) / spread
        return h0

    def _run(
        self,
        blocks: nn.ModuleList,
        first: int,
        x: Tensor,
        values: dict[int, SharedCast],
        mask: Tensor | None,
        cache: CacheView | None,
        loop: int = 0,
    ) -> Tensor:
        """Run `blocks` on x [batch, tokens, width] with or without a cache; the first one is distinct layer `first`."""
        layers = range(first, first + len(blocks))
        own_values = {layer: values[layer].use() for layer in layers if layer in values}
        if cache is None:
            return self.run_blocks(blocks, first, x, self.rotary, own_values, mask)
        return run_blocks(blocks, first, x, self.rotary, own_values, mask, cache.slots(layers, loop))

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Return the scaled token embeddings."""
        embedded: Tensor = self.embedding(tokens)
        return embedded if self.config.embedding_scale is None else self.config.embedding_scale * embedded

    def _value_embeddings(self, tokens: Tensor, layers: range) -> dict[int, SharedCast]:
        """Look up the value embeddings of these tokens, by distinct layer, for those of `layers` that have any.

        A backward pass comes to a table after all that came later in the forward pass: what is looked up late has its
        gradient early.
        """
        found = {layer: f"{layer}" for layer in layers if f"{layer}" in self.value_embeddings}
        return {layer: SharedCast(self.value_embeddings[name](tokens)) for layer, name in found.items()}


def mask_of(tokens: Tensor, separator: int | None, cache: CacheView | None = None) -> Tensor | None:
    """Return the mask of the documents in tokens [batch, tokens], each of which `separator` begins; None without one.

    What stands before the first separator is the rest of a document. With a cache it is the cache's own mask.
    """
    if cache is not None:
        assert separator is None, "a cache holds no documents"
        return cache.mask()
    return None if separator is None else document_mask((tokens == separator).cumsum(1))


def run_blocks(
    blocks: nn.ModuleList,
    first: int,
    x: Tensor,
    rotary: Rotary,
    values: dict[int, Tensor],
    mask: Tensor | None = None,
    cached: Iterable[LayerView] | None = None,
) -> Tensor:
    """Run `blocks` on x [batch, tokens, width]; the first one is distinct layer `first`."""
    masked = () if mask is None else (mask,)
    if cached is not None:
        for layer, (block, slot) in enumerate(zip(blocks, cached, strict=True), start=first):
            x = block(x, rotary, values.get(layer), mask, slot)
        return x
    for layer, block in enumerate(blocks, start=first):
        x = block(x, rotary, values.get(layer), *masked)
    return x
