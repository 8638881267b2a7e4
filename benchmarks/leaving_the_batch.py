"""Benchmark of training steps: finished sequences leave the batch, against masking them until the longest is done."""

import torch

from benchmarks.masked import masked_loss
from benchmarks.measure import Row, device, side_by_side
from isoloop.trainer.accounting import loop_cost
from isoloop.trainer.config import SIZES, ModelConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.optim import make_optimizers
from isoloop.trainer.recurrence import sample_recurrences

PAIRS = 9
SEQUENCES = 32
RECURRENCE = RecurrenceConfig(mean=8)
SMALL = ModelConfig(width=256, heads=2, prelude_layers=2, core_layers=2, coda_layers=2, context=128)
LARGE = SIZES["140m"].model_copy(update={"context": 1024})


def run() -> list[Row]:
    """Measure the published split of layers, and a core with twice as many."""
    config = LARGE if device() == "cuda" else SMALL
    deeper = config.model_copy(update={"prelude_layers": 1, "core_layers": 4, "coda_layers": 1})
    return [*compare(config), *compare(deeper)]


def compare(config: ModelConfig) -> list[Row]:
    """Measure loss, backward pass and optimizers for 32 sequences at µ = 8, with the same tokens and loops."""
    place = device()
    model = Parcae(config)
    model.initialise(0)
    model.to(place)
    optimizers = make_optimizers(model, OptimizerConfig(learning_rate=1e-5))
    drawn = [sample_recurrences(RECURRENCE, batch=SEQUENCES, seed=0, step=s, steps=PAIRS) for s in range(PAIRS)]
    depth = RECURRENCE.gradient_loops

    def step(number: int, *, masked: bool) -> None:
        generator = torch.Generator().manual_seed(number)
        windows = torch.randint(0, config.vocabulary, (SEQUENCES, config.context + 1), generator=generator).to(place)
        inputs = windows[:, :-1], windows[:, 1:], torch.from_numpy(drawn[number]), depth
        h0 = model.initial_state(range(SEQUENCES), config.context)
        with torch.autocast(place, dtype=torch.bfloat16, enabled=place == "cuda"):
            loss = masked_loss(model, *inputs, h0) if masked else model.loss(*inputs, h0).nats
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    ratio = side_by_side(lambda n: step(n, masked=True), lambda n: step(n, masked=False), pairs=PAIRS)
    cost = loop_cost(config, "exact")
    ours = sum(cost.flops_per_token(t.mean(), t.clip(max=depth).mean()) for t in drawn)
    theirs = sum(cost.flops_per_token((t - t.clip(max=depth)).max() + t.clip(max=depth).max(), depth) for t in drawn)
    layers = f"{config.prelude_layers}+{config.core_layers}+{config.coda_layers}"
    shape = f"{SEQUENCES} sequences, µ = 8, width {config.width}, context {config.context}, layers {layers}"
    return [
        Row(name=f"masked / leaving the batch, training step; {shape}", result=str(ratio), wanted="at least 1.3x"),
        Row(name="the same in FLOPs, by our accounting", result=f"{theirs / ours:.2f}x"),
    ]
