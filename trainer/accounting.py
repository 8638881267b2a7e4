"""What a run costs: parameters, effective parameters, FLOPs per token, tokens for a budget. No torch.

Two ways to count FLOPs (SPEC "FLOPs: count what runs"):

`exact`
    Every matrix product that runs: 2 FLOPs per multiply-add forward, 4 backward. Attention scores and their product
    with the values count as the whole square, 4 * context * width per layer and token forward, although half of it is
    masked. The output head counts, the look-ups in embedding and value-embedding tables don't. The core counts
    once per loop that runs: forward for every loop, backward for those that carry gradient. Loops are the loops of
    the sampler, whose clamp at 1 makes their mean µ + exp(-µ), not µ.
`parcae-release`
    What the published code counts: 6 FLOPs per token and parameter of everything outside the core blocks except the
    token table (so the value-embedding tables count and the tied head doesn't), plus attention; the core with its
    nominal loops, µ forward and µ_bwd backward.
"""

import math
from dataclasses import dataclass
from typing import Literal

from trainer.config import ModelConfig, RecurrenceConfig

Accounting = Literal["exact", "parcae-release"]

FORWARD_FLOPS = 2
BACKWARD_FLOPS = 4
GATE_CHANNELS = 32
MLP_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters by part of the model. `prelude`, `core` and `coda` are blocks without their value-embedding tables."""

    token_table: int
    value_tables: int
    prelude: int
    core: int
    coda: int
    injection: int
    state_to_width: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters, embeddings included; the tied output head counts once."""
        outside = self.injection + self.state_to_width + self.norms
        return self.token_table + self.value_tables + self.prelude + self.core + self.coda + outside

    @property
    def effective_fixed(self) -> int:
        """The part of the effective parameters N(µ) that doesn't depend on µ: prelude and coda."""
        return self.prelude + self.coda

    @property
    def effective_per_loop(self) -> int:
        """What one more loop adds to the effective parameters: the core."""
        return self.core

    def effective(self, mean_recurrence: float) -> float:
        """N(µ): parameters of the unrolled model, prelude + coda + µ x core, embeddings and adapters apart."""
        return self.effective_fixed + mean_recurrence * self.effective_per_loop


@dataclass(frozen=True, kw_only=True)
class LoopCost:
    """FLOPs per training token as a linear function of the loops that count."""

    fixed: float
    per_forward_loop: float
    per_backward_loop: float

    def flops_per_token(self, forward_loops: float, backward_loops: float) -> float:
        """FLOPs per token, forward and backward, for these mean loops per token."""
        return self.fixed + self.per_forward_loop * forward_loops + self.per_backward_loop * backward_loops


def count_parameters(model: ModelConfig) -> Parameters:
    """Count the parameters of `model` by part; the tests hold this against the real module."""
    d = model.width
    table = model.padded_vocabulary * d
    first_core, first_coda = model.prelude_layers, model.prelude_layers + model.core_layers
    return Parameters(
        token_table=table,
        value_tables=table * sum(map(model.has_value_embedding, range(model.layers))),
        prelude=sum(_block_parameters(model, i) for i in range(first_core)),
        core=sum(_block_parameters(model, i) for i in range(first_core, first_coda)),
        coda=sum(_block_parameters(model, i) for i in range(first_coda, model.layers)),
        injection=d * d + 2 * d,
        state_to_width=d * d,
        norms=2 * d,
    )


def loop_cost(model: ModelConfig, accounting: Accounting) -> LoopCost:
    """FLOPs per token of `model`, split into what runs once, per forward loop and per backward loop."""
    core = range(model.prelude_layers, model.prelude_layers + model.core_layers)
    outside = [i for i in range(model.layers) if i not in core]
    attention = 2 * model.context * model.width
    if accounting == "exact":
        core_products = sum(_block_products(model, i) + attention for i in core)
        d = model.width
        once = 2 * d * d + model.padded_vocabulary * d
        fixed_products = once + sum(_block_products(model, i) + attention for i in outside)
    else:
        parameters = count_parameters(model)
        core_products = parameters.core + len(core) * attention
        fixed_products = parameters.total - parameters.token_table - parameters.core + len(outside) * attention
    return LoopCost(
        fixed=(FORWARD_FLOPS + BACKWARD_FLOPS) * fixed_products,
        per_forward_loop=FORWARD_FLOPS * core_products,
        per_backward_loop=BACKWARD_FLOPS * core_products,
    )


def expected_loops(recurrence: RecurrenceConfig, accounting: Accounting) -> tuple[float, float]:
    """Mean loops per token that count: forward and with gradient.

    Under `exact` these are E[T] = µ + exp(-µ) and E[min(T, µ_bwd)] for T = max(1, Poisson(µ)); under `parcae-release`
    the nominal µ and µ_bwd.
    """
    mean, depth = recurrence.mean, recurrence.gradient_loops
    if accounting == "parcae-release":
        return float(mean), float(depth)
    probability = cumulative = math.exp(-mean)  # of 0 loops before the clamp; up to and including them
    forward, backward = mean + cumulative, 1.0
    for loops in range(1, depth):
        probability *= mean / loops
        cumulative += probability
        backward += 1 - cumulative  # E[min(T, depth)] is the sum of P(T >= j), j = 1 .. depth
    return forward, backward


def flops_per_token(model: ModelConfig, recurrence: RecurrenceConfig, accounting: Accounting) -> float:
    """Training FLOPs per token, forward and backward, at the loops that count."""
    return loop_cost(model, accounting).flops_per_token(*expected_loops(recurrence, accounting))


def flops_spent(
    model: ModelConfig, recurrence: RecurrenceConfig, tokens: int, forward_loops: float, backward_loops: float
) -> dict[str, float]:
    """FLOPs of a run under both accountings, named as in its result: `exact` with the mean loops that it ran."""
    nominal = expected_loops(recurrence, "parcae-release")
    return {
        "flops_exact": tokens * loop_cost(model, "exact").flops_per_token(forward_loops, backward_loops),
        "flops_parcae_release": tokens * loop_cost(model, "parcae-release").flops_per_token(*nominal),
    }


def steps_for(asked: float, per_step: float) -> int:
    """Whole optimizer steps that come closest to what was asked (FLOPs or tokens), given the same of one step."""
    return round(asked / per_step)


def _gate_channels(model: ModelConfig) -> int:
    return min(GATE_CHANNELS, model.width)


def _block_products(model: ModelConfig, layer: int) -> int:
    """Multiply-adds per token of the block's weight matrices; attention's square apart."""
    gate = _gate_channels(model) * model.heads if model.has_value_embedding(layer) else 0
    return (4 + 2 * MLP_FACTOR) * model.width**2 + gate


def _block_parameters(model: ModelConfig, layer: int) -> int:
    return _block_products(model, layer) + 2 * model.width
