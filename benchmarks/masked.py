"""Loss as the published code computes it: all sequences of a batch run as long as the longest, with masks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoloop.trainer.model.head import soft_capped
from isoloop.trainer.model.parcae import Parcae


def masked_loss(
    model: Parcae, tokens: Tensor, targets: Tensor, loops: Tensor, gradient_loops: int, h0: Tensor
) -> Tensor:
    """Compute the loss `model.loss(...).nats` with max(T_i) loops for all sequences, and all logits at once."""
    with_gradient = loops.clamp(max=gradient_loops)
    drive, values = model._before_loop(tokens)
    h = h0
    with torch.no_grad():
        h = _run(model, h, drive, values, loops - with_gradient)
    h = _run(model, h, drive, values, with_gradient)
    logits = soft_capped(F.linear(model._after_loop(h, values), model.head_weight), model.config.logit_soft_cap)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _run(model: Parcae, h: Tensor, drive: Tensor, values: dict[int, Tensor], loops: Tensor) -> Tensor:
    for t in range(int(loops.max())):
        running = (t < loops).to(h.device)[:, None, None]
        h = torch.where(running, model._one_loop(h, drive, values), h)
    return h
