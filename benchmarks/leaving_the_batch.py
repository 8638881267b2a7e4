"""Sequences that are done leave the batch, against masking them until the longest is done: whole training steps."""

import torch

from benchmarks.masked import masked_loss
from benchmarks.measure import Row, device, side_by_side
from trainer.accounting import loop_cost
from trainer.config import ModelConfig, OptimizerConfig, RecurrenceConfig
from trainer.optim import make_optimizers
from trainer.parcae import Parcae
from trainer.recurrence import sample_recurrences

PAIRS = 9
SEQUENCES = 32
RECURRENCE = RecurrenceConfig(mean=8)
SMALL = ModelConfig(width=256, heads=2, prelude_layers=2, core_layers=2, coda_layers=2, context=64)
LARGE = ModelConfig(width=768, heads=6, prelude_layers=2, core_layers=2, coda_layers=2, context=1024, vocabulary=32_768)


def run() -> list[Row]:
    """Loss, backward, Muon and AdamW, 32 sequences at µ = 8; both ways get the same tokens and loops."""
    where = device()
    config = LARGE if where == "cuda" else SMALL
    model = Parcae(config)
    model.initialise(0)
    model.to(where)
    optimizers = make_optimizers(model, OptimizerConfig(learning_rate=1e-5))
    drawn = [sample_recurrences(RECURRENCE, batch=SEQUENCES, seed=0, step=s, steps=PAIRS) for s in range(PAIRS)]
    depth = RECURRENCE.gradient_loops

    def step(number: int, *, masked: bool) -> None:
        generator = torch.Generator().manual_seed(number)
        windows = torch.randint(0, config.vocabulary, (SEQUENCES, config.context + 1), generator=generator).to(where)
        inputs = windows[:, :-1], windows[:, 1:], torch.from_numpy(drawn[number]), depth
        h0 = model.initial_state(range(SEQUENCES), config.context)
        with torch.autocast(where, dtype=torch.bfloat16, enabled=where == "cuda"):
            loss = masked_loss(model, *inputs, h0) if masked else model.loss(*inputs, h0).nats
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    ratio = side_by_side(lambda n: step(n, masked=True), lambda n: step(n, masked=False), pairs=PAIRS)
    cost = loop_cost(config, "exact")
    ours = sum(cost.flops_per_token(t.mean(), t.clip(max=depth).mean()) for t in drawn)
    theirs = sum(cost.flops_per_token((t - t.clip(max=depth)).max() + t.clip(max=depth).max(), depth) for t in drawn)
    shape = (
        f"width {config.width}, context {config.context}, layers 2+2+2, µ = 8, µ_bwd = {depth}, {SEQUENCES} sequences"
    )
    return [Row(name=f"masked / leaving the batch, training step; {shape}", result=str(ratio), wanted="at least 1.3x"),
            Row(name="the same in FLOPs, by our accounting", result=f"{theirs / ours:.2f}x")]  # fmt: skip
