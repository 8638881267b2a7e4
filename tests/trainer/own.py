"""An injection and a block of a user's own, each complete in its class: what docs/trainer.md says is enough."""

import torch
from torch import nn

from isoloop.trainer.accounting import BlockCost, InjectionCost
from isoloop.trainer.model.injection import Injection
from isoloop.trainer.model.layers import MLP, Attention, Block, RMSNorm, init_parts


class ScaledInjection(Injection):
    """a h + B e with one learned number a and a full matrix B."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.B = nn.Linear(width, width, bias=False)

    @staticmethod
    def cost(width):
        return InjectionCost(parameters=width**2 + 1, products_once=width**2)

    def drive(self, e):
        return self.B(e)

    def inject(self, h, drive):
        return self.scale * h + drive

    def spectral_radius(self):
        return self.scale.abs().item()

    def initialise(self, std, generator):
        with torch.no_grad():
            self.B.weight.normal_(0, std, generator=generator)


class ParallelBlock(Block):
    """x + Attention(norm(x)) + MLP(norm(x)): both halves read the same norm."""

    def __init__(self, config, *, value_embedding):
        super().__init__(config, value_embedding=value_embedding)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, value_embedding=value_embedding)
        self.mlp = MLP(config.width)

    @staticmethod
    def cost(config, *, value_embedding):
        gate = min(32, config.width) * config.kv_heads if value_embedding else 0
        products = 10 * config.width**2 + 2 * config.width * config.kv_width + gate
        return BlockCost(
            parameters=products + config.width, products=products, attention=2 * config.context * config.width
        )

    def forward(self, x, rotary, value_embedding, mask=None, cached=None):
        normed = self.norm(x)
        return x + self.attention(normed, rotary, value_embedding, mask, cached) + self.mlp(normed)

    def initialise(self, std, generator):
        init_parts(self.attention, self.mlp, std, generator)
