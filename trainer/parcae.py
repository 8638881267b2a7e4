"""The looped language model of Parcae (Prairie et al. 2026, arXiv:2604.12946): prelude, loop, coda.

e       = norm(P(tokens))
h_0     ~ N(0, sigma^2)
h_{t+1} = R(Ā h_t + B̄ e)          t = 0 .. T-1
logits  = head(norm(C(W_C h_T)))
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import ModelConfig
from trainer.injection import DiagonalInjection
from trainer.layers import Block, RMSNorm, Rotary, init_block


class Parcae(nn.Module):
    """A looped transformer with a diagonal injection, value embeddings and a tied head.

    Shapes: tokens and targets [batch, context]; states and embeddings [batch, context, width]; loops [batch].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocabulary, d = config.padded_vocabulary, config.width
        blocks = [Block(config, value_embedding=config.has_value_embedding(i)) for i in range(config.layers)]
        first_coda = config.prelude_layers + config.core_layers
        self.embedding = nn.Embedding(vocabulary, d)
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(vocabulary, d) for i in range(config.layers) if config.has_value_embedding(i)}
        )
        self.prelude = nn.ModuleList(blocks[: config.prelude_layers])
        self.prelude_norm = RMSNorm(d, config.norm_eps)
        self.injection = DiagonalInjection(d)
        self.core = nn.ModuleList(blocks[config.prelude_layers : first_coda])
        self.state_to_width = nn.Linear(d, d, bias=False)  # W_C
        self.coda = nn.ModuleList(blocks[first_coda:])
        self.final_norm = RMSNorm(d, config.norm_eps)
        self.rotary = Rotary(config.head_width, config.context, config.rotary_base)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the weights on the CPU from `seed`, the same on every device (SPEC "Training", init)."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.init_std
        for module in (self.embedding, *self.value_embeddings.values()):
            weight = module.get_parameter("weight")
            draw = torch.empty(weight.shape)
            weight.copy_(nn.init.trunc_normal_(draw, std=std, a=-3 * std, b=3 * std, generator=generator))
        for block in (*self.prelude, *self.core, *self.coda):
            init_block(block, std, generator)
        nn.init.eye_(self.state_to_width.weight)

    def loss(self, tokens: Tensor, targets: Tensor, loops: Tensor, gradient_loops: int, h0: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of one training step.

        Sequence i runs loops[i] >= 1 times, its last min(loops[i], gradient_loops) with gradient, and leaves the batch
        when it is done, so that only loops that count are computed.

        Args:
            tokens: input ids, [batch, context].
            targets: ids to predict, [batch, context].
            loops: T_i on the CPU, [batch].
            gradient_loops: µ_bwd.
            h0: initial states, [batch, context, width].
        """
        order = torch.argsort(loops, descending=True, stable=True)
        loops = loops[order]
        with_gradient = loops.clamp(max=gradient_loops)
        moved = order.to(tokens.device)
        tokens, targets, h = tokens[moved], targets[moved], h0[moved]
        drive, values = self._before_loop(tokens)
        with torch.no_grad():
            constants = {layer: value.detach() for layer, value in values.items()}
            h = self._loop(h, drive.detach(), constants, loops - with_gradient)
        h = self._loop(h, drive, values, with_gradient)
        logits = self._after_loop(h, values)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def logits(self, tokens: Tensor, recurrences: Sequence[int], h0: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, logits [batch, context, vocabulary]) for each T of `recurrences`, ascending, in one pass."""
        drive, values = self._before_loop(tokens)
        h = h0
        wanted = set(recurrences)
        for recurrence in range(1, max(wanted) + 1):
            h = self._one_loop(h, drive, values)
            if recurrence in wanted:
                yield recurrence, self._after_loop(h, values)

    def initial_state(self, batch: int, generator: torch.Generator) -> Tensor:
        """h_0 [batch, context, width] on the CPU, drawn from `generator` as `state_init` says."""
        shape = (batch, self.config.context, self.config.width)
        if self.config.state_init == "zero":
            return torch.zeros(shape)
        std = self.config.init_std if self.config.state_init == "like-init" else 1.0
        return torch.randn(shape, generator=generator) * std

    def _before_loop(self, tokens: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Prelude and prelude norm; returns what enters every loop and each layer's value embeddings."""
        values = {int(layer): table(tokens) for layer, table in self.value_embeddings.items()}
        x = self.embedding(tokens)
        for layer, block in enumerate(self.prelude):
            x = block(x, self.rotary, values.get(layer))
        return self.injection.drive(self.prelude_norm(x)), values

    def _one_loop(self, h: Tensor, drive: Tensor, values: dict[int, Tensor]) -> Tensor:
        h = self.injection.inject(h, drive)
        for layer, block in enumerate(self.core, start=self.config.prelude_layers):
            value = values.get(layer)
            h = block(h, self.rotary, None if value is None else value[: len(h)])
        return h

    def _loop(self, h: Tensor, drive: Tensor, values: dict[int, Tensor], loops: Tensor) -> Tensor:
        """Run sequence i loops[i] times; `loops` descends, so those still running are the first ones."""
        done = []
        for t in range(int(loops[0])):
            running = int((loops > t).sum())
            if running < len(h):
                done.append(h[running:])
                h = h[:running]
            h = self._one_loop(h, drive[:running], values)
        done.append(h)
        return torch.cat(done[::-1]) if len(done) > 1 else h

    def _after_loop(self, h: Tensor, values: dict[int, Tensor]) -> Tensor:
        """W_C, coda, final norm and tied head: logits [batch, context, padded vocabulary]."""
        first = self.config.prelude_layers + self.config.core_layers
        x = self.state_to_width(h)
        for layer, block in enumerate(self.coda, start=first):
            x = block(x, self.rotary, values.get(layer))
        return F.linear(self.final_norm(x), self.embedding.weight)
