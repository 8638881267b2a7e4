"""Layers of every model: norm, rotary embedding, attention, MLP, blocks (Parcae, arXiv:2604.12946).

`Block` is the contract of a block. A block of the user's own is a subclass in a file of its own, whose
`cost(config, value_embedding=...)` returns a `BlockCost` (docs/extending.md shows one).

Attention is causal. A `mask` [batch, 1, tokens, tokens], which is added to its scores, also keeps it within documents.
"""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isoloop.trainer.accounting import MLP_FACTOR
from isoloop.trainer.config import BLOCKS, ModelConfig, import_class
from isoloop.trainer.model.cache import LayerView
from isoloop.trainer.model.cast import SharedCast


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight, computed in float32 whatever the input's type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of x [..., width]."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding on interleaved pairs: channels 2i and 2i + 1 of a head rotate together."""

    rotation: Tensor

    def __init__(self, head_width: int, context: int, base: float) -> None:
        super().__init__()
        frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)[:, None, :]
        # [context, 1, head_width / 2, 2]: cosine and sine
        self.register_buffer("rotation", torch.stack((angle.cos(), angle.sin()), dim=-1).float(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate x [batch, tokens, heads, head_width] by each token's position, [batch or 1, tokens]; None: 0, 1, ...

        A pair is one complex number, whose product is one operation. torch has no complex bfloat16, and its compiler
        no complex code.
        """
        rotation = self.rotation[: x.shape[1]] if positions is None else self.rotation[positions]
        pairs = x.unflatten(-1, (-1, 2))
        if x.dtype == torch.float32 and not torch.compiler.is_compiling():
            return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation)).flatten(-2)
        cos, sin = rotation.to(x.dtype).unbind(-1)
        even, odd = pairs.unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal attention with normalised queries and keys and, in some layers, a gated value embedding.

    With fewer key-value heads than heads, neighbouring query heads share one.
    """

    def __init__(self, config: ModelConfig, *, value_embedding: bool) -> None:
        super().__init__()
        d, self.heads, self.kv_heads = config.width, config.heads, config.kv_heads
        self.query = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, config.kv_width, bias=False)
        self.value = nn.Linear(d, config.kv_width, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(config.gate_channels, config.kv_heads, bias=False) if value_embedding else None

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        mask: Tensor | None = None,
        cached: LayerView | None = None,
    ) -> Tensor:
        """Attend over x [batch, tokens, width]; value_embedding [batch, tokens, kv_width] is added to the values.

        With `cached`, x are the tokens after those that it holds, and attention is over these, too.
        """
        split = (self.kv_heads, -1)
        query, key, value = self._projections(x)
        query = query.unflatten(-1, (self.heads, -1))
        key, value = key.unflatten(-1, split), value.unflatten(-1, split)
        if self.gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # [batch, tokens, kv_heads]
            value = value + gate.unsqueeze(-1) * value_embedding.unflatten(-1, split).to(value.dtype)
        positions = None if cached is None else cached.view.positions
        query, key = (F.rms_norm(rotary(z, positions), (z.shape[-1],)) for z in (query, key))
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cached is not None:
            key, value = cached.append(key, value)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] == key.shape[2],
            enable_gqa=self.kv_heads < self.heads,
        )
        return self.out(mixed.transpose(1, 2).flatten(-2))

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.compiler.is_compiling():  # the compiler casts x once by itself
            return self.query(x), self.key(x), self.value(x)
        shared = SharedCast(x)
        return self.query(shared.use()), self.key(shared.use()), self.value(shared.use())


class _HalfSquaredReLU(torch.autograd.Function):
    """0.5 * relu(x)^2, whose gradient, relu(x), is one product instead of five passes over the hidden layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square().mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return gradient * positive


class MLP(nn.Module):
    """Two matrices with 0.5 * relu(x)^2 between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, MLP_FACTOR * width, bias=False)
        self.down = nn.Linear(MLP_FACTOR * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., width] to [..., width]."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.down(_HalfSquaredReLU.apply(self.up(x)))
        return self.down(0.5 * F.relu(self.up(x)).square())  # the compiler fuses these passes by itself


class Block(nn.Module, ABC):
    """Contract of a block, which is made from the configuration and `value_embedding`, True if its layer has one."""

    @abstractmethod
    def __init__(self, config: ModelConfig, *, value_embedding: bool) -> None:
        super().__init__()

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        mask: Tensor | None = None,
        cached: LayerView | None = None,
    ) -> Tensor:
        """Map x [batch, tokens, width] to the same shape; value_embedding [batch, tokens, kv_width] or None.

        A block without the argument `mask` serves as long as no run sets `data.document_mask`, and one without `cached`
        generates text without a cache.
        """

    @abstractmethod
    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw the weights from `generator`, matrices with entries of RMS `std`."""


@final
class PreNormBlock(Block):
    """x + s Attention(norm(x)), then x + s MLP(norm(x)), where `branch_scale` s is 1 unless the model sets it."""

    branch_scale = 1.0

    def __init__(self, config: ModelConfig, *, value_embedding: bool) -> None:
        super().__init__(config, value_embedding=value_embedding)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, value_embedding=value_embedding)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        mask: Tensor | None = None,
        cached: LayerView | None = None,
    ) -> Tensor:
        """Map x [batch, tokens, width] to the same shape."""
        x = x + self._scaled(self.attention(self.attention_norm(x), rotary, value_embedding, mask, cached))
        return x + self._scaled(self.mlp(self.mlp_norm(x)))

    def _scaled(self, branch: Tensor) -> Tensor:
        return branch if self.branch_scale == 1.0 else self.branch_scale * branch

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw the matrices; the output projections start at zero."""
        init_parts(self.attention, self.mlp, std, generator)


@final
class ResidualNormBlock(Block):
    """norm(x + Attention(norm(x))), then norm(x + MLP(norm(x))): RDM's residual norms (Geiping et al. 2025)."""

    def __init__(self, config: ModelConfig, *, value_embedding: bool) -> None:
        super().__init__(config, value_embedding=value_embedding)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, value_embedding=value_embedding)
        self.attention_sum_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width)
        self.mlp_sum_norm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        mask: Tensor | None = None,
        cached: LayerView | None = None,
    ) -> Tensor:
        """Map x [batch, tokens, width] to the same shape."""
        x = self.attention_sum_norm(x + self.attention(self.attention_norm(x), rotary, value_embedding, mask, cached))
        return self.mlp_sum_norm(x + self.mlp(self.mlp_norm(x)))

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw the matrices; the output projections start at zero."""
        init_parts(self.attention, self.mlp, std, generator)


def document_mask(documents: Tensor) -> Tensor:
    """Return what attention adds to its scores, [batch, 1, tokens, tokens], so that no token sees another document.

    It is 0 from a token to itself and to those before it in its document, and -inf otherwise, in the type that
    attention computes in: made once, it is kept once, whatever the number of layers and loops.

    Args:
        documents: the number of each token's document in its sequence, [batch, tokens].
    """
    device = documents.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    same = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    return torch.zeros(same.shape, dtype=dtype, device=documents.device).masked_fill_(~same, -torch.inf)


def make_block(config: ModelConfig, layer: int) -> Block:
    """Make the block of distinct layer `layer` (0-based).

    Raises:
        ValueError: a class of the user's own can't be imported, or isn't a `Block`.
    """
    ours = dict(zip(BLOCKS, (PreNormBlock, ResidualNormBlock), strict=True))
    kind = ours.get(config.block) or import_class(config.block, Block)
    return kind(config, value_embedding=config.has_value_embedding(layer))


@torch.no_grad()
def truncated_normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a tensor with a normal of deviation `std`, truncated at 3 of them."""
    draw = torch.empty(weight.shape)
    weight.copy_(torch.nn.init.trunc_normal_(draw, std=std, a=-3 * std, b=3 * std, generator=generator))


@torch.no_grad()
def init_matrix(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a matrix with a truncated normal (3 sigma), make it orthogonal, and scale its entries to RMS `std`."""
    draw = torch.nn.init.trunc_normal_(torch.empty(weight.shape), a=-3.0, b=3.0, generator=generator)
    tall = draw if draw.shape[0] >= draw.shape[1] else draw.T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    orthogonal = q if draw.shape[0] >= draw.shape[1] else q.T
    weight.copy_(orthogonal * std * max(weight.shape) ** 0.5)


@torch.no_grad()
def init_parts(attention: Attention, mlp: MLP, std: float, generator: torch.Generator) -> None:
    """Draw a block's matrices; the output projections of attention and MLP, and the gate, start at zero."""
    for weight in (attention.query.weight, attention.key.weight, attention.value.weight, mlp.up.weight):
        init_matrix(weight, std, generator)
    attention.out.weight.zero_()
    mlp.down.weight.zero_()
    if attention.gate is not None:
        attention.gate.weight.zero_()
