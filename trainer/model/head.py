"""Output head and its loss, without ever holding all logits.

The logits of all tokens, [tokens, vocabulary], are by far the largest tensor of a small model's training step. Here
they are computed for a chunk of tokens at a time, and so is their gradient, while the chunk is in memory. The backward
pass recomputes no logits, so the head costs its usual FLOPs: 2 forward and 4 backward per multiply-add.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isoloop.trainer.memory import LOGITS_AT_ONCE, MIN_HEAD_ROWS


def loss_and_gradient(
    logits: Tensor,
    ids: Tensor,
    soft_cap: float | None,
    z_loss: float,
    scale: float,
    with_gradient: bool,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the weighted sum of the cross-entropies of a chunk and, if wanted, its gradient by the logits x `scale`.

    This is all of the head but its matrix products. Uncompiled, it passes over the chunk several times, in place;
    compiled (`compile_blocks`), it reads the chunk twice and writes it once.

    Args:
        logits: the products x @ weight.T, [rows, vocabulary], of any type; they are overwritten if that is float32.
        ids: ids to predict, [rows, 1].
        soft_cap: as in `mean_cross_entropy`.
        z_loss: see there.
        scale: factor of the gradient.
        with_gradient: False returns the loss alone.
        weights: of the tokens, [rows, 1]; None: all are 1.
    """
    dtype = logits.dtype
    logits = logits.float()
    if soft_cap is not None:
        logits.div_(soft_cap).tanh_().mul_(soft_cap)
    normaliser = logits.logsumexp(-1, keepdim=True)
    nats = normaliser - logits.gather(1, ids)
    loss = (nats if weights is None else nats * weights).sum()
    if not with_gradient:
        return loss, None
    slope = None if soft_cap is None else logits.div(soft_cap).square_().neg_().add_(1)  # 1 - tanh^2
    gradient = logits.sub_(normaliser).exp_()  # softmax, then minus one at the target
    if z_loss:
        gradient.mul_(1 + 2 * z_loss * normaliser)
    if torch.compiler.is_compiling():  # a scatter would end the fused pass
        gradient -= (torch.arange(gradient.shape[1], device=ids.device) == ids).to(gradient.dtype)
    else:
        gradient.scatter_add_(1, ids, gradient.new_full(ids.shape, -1.0))
    if slope is not None:
        gradient.mul_(slope)
        del slope  # as large as the logits
    return loss, gradient.mul_(scale if weights is None else scale * weights).to(dtype)


# The type of `loss_and_gradient`.
ChunkLoss = Callable[[Tensor, Tensor, float | None, float, float, bool, Tensor | None], tuple[Tensor, Tensor | None]]


def mean_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    logits_at_once: int | None = None,
    *,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk_loss: ChunkLoss = loss_and_gradient,
    predicted: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy, in nats, of the logits x @ weight.T; softmax and sums are in float32.

    With `z_loss` its gradient, but not its value, is that of mean(cross-entropy + z_loss x logsumexp(logits)^2).

    Args:
        x: normed final states, [..., width].
        weight: the head, [vocabulary, width].
        targets: ids to predict, [...].
        logits_at_once: largest number of logits to hold at a time, but at least those of 64 tokens; None:
            `LOGITS_AT_ONCE` of the device.
        soft_cap: c of logits c tanh(x @ weight.T / c); None: no cap.
        z_loss: coefficient of the squared logsumexp of the (capped) logits.
        chunk_loss: `loss_and_gradient` or, compiled, the same.
        predicted: True for the targets whose mean it is, [...]; 0 if there are none. None: all of them.
    """
    if logits_at_once is None:
        logits_at_once = LOGITS_AT_ONCE["cpu" if x.device.type == "cpu" else "cuda"]
    rows = max(MIN_HEAD_ROWS, logits_at_once // weight.shape[0])
    if not torch.is_grad_enabled():  # a Function computes gradients of tensors that require them even then
        x, weight = x.detach(), weight.detach()
    ids, weights = targets.flatten(), None
    if predicted is not None:
        weights = (predicted.flatten() / predicted.sum().clamp(min=1))[:, None]
    return _ChunkedCrossEntropy.apply(x.flatten(0, -2), weight, ids, rows, soft_cap, z_loss, chunk_loss, weights)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap x tanh(logits / cap), in float32; the logits themselves without a cap."""
    return logits if cap is None else cap * torch.tanh(logits.float() / cap)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose forward pass computes loss and gradients chunk by chunk; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        soft_cap: float | None,
        z_loss: float,
        chunk_loss: ChunkLoss,
        weights: Tensor | None,
    ) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        head, wants_x, wants_weight = weight.to(dtype), ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total, scale = torch.zeros((), device=x.device), 1 / len(x) if weights is None else 1.0
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                states, ids, own_weights = (
                    x[part].to(dtype),
                    targets[part, None],
                    None if weights is None else weights[part],
                )
                loss, gradient = chunk_loss(
                    states @ head.T, ids, soft_cap, z_loss, scale, wants_x or wants_weight, own_weights
                )
                total += loss
                if gradient is None:
                    continue
                if grad_x is not None:
                    grad_x[part] = gradient @ head
                if grad_weight is not None and grad_weight.dtype == dtype:
                    torch.addmm(grad_weight, gradient.T, states, out=grad_weight)
                elif grad_weight is not None:
                    grad_weight += gradient.T @ states
        ctx.gradients = grad_x, grad_weight
        return total / len(x) if weights is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a loss allows one backward pass, but got a second; compute the loss again")
        grad_x, grad_weight = ctx.gradients
        ctx.gradients = None  # they are scaled in place, once
        return (
            None if grad_x is None else grad_x.mul_(scale),
            None if grad_weight is None else grad_weight.mul_(scale),
            *(None,) * 6,
        )
