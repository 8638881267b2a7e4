"""Benchmark of the chunked cross-entropy against all logits at once: time and peak memory, forward and backward."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Row, device, peak_bytes, side_by_side
from isoloop.trainer.model.head import loss_and_gradient, mean_cross_entropy

VOCABULARY = 32_768


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute all logits, then torch's own loss."""
    return F.cross_entropy(F.linear(x, weight).float(), targets)


def run() -> list[Row]:
    """Measure the loss alone: from final states [tokens, width] to the gradients of states and head."""
    place = device()
    tokens, width, pairs = (32_768, 768, 15) if place == "cuda" else (4096, 512, 7)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(place).requires_grad_()
    weight = (0.02 * torch.randn(VOCABULARY, width, generator=generator)).to(place).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator).to(place)

    def use(loss_of: object, _: int = 0) -> None:
        with torch.autocast(place, dtype=torch.bfloat16, enabled=place == "cuda"):
            loss = loss_of(x, weight, targets)  # type: ignore[operator]
        loss.backward()
        x.grad = weight.grad = None

    ratio = side_by_side(lambda n: use(mean_cross_entropy, n), lambda n: use(plain, n), pairs=pairs)
    whole, chunked = (peak_bytes(lambda loss=loss: use(loss)) for loss in (plain, mean_cross_entropy))
    compiled = partial(mean_cross_entropy, chunk_loss=torch.compile(loss_and_gradient))
    use(compiled)  # makes its kernels
    gain = side_by_side(lambda n: use(mean_cross_entropy, n), lambda n: use(compiled, n), pairs=pairs)
    shape = f"{tokens} tokens, width {width}, vocabulary {VOCABULARY}"
    return [
        Row(name=f"chunked / plain loss, time; {shape}", result=str(ratio), wanted="at most 1.10x"),
        Row(name="chunked loss / with its softmax compiled, time", result=str(gain)),
        Row(
            name="plain / chunked loss, peak memory",
            result=f"{whole / chunked:.1f}x ({whole / 2**20:.0f} MiB against {chunked / 2**20:.0f} MiB)",
            wanted="at least 4x",
        ),
    ]
