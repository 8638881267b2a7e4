"""Cost of a run: parameters, effective parameters and FLOPs per token. No torch.

There are two ways to count FLOPs:

`exact`
    Every matrix product that runs: 2 FLOPs per multiply-add forward, 4 backward. Attention scores and their product
    with the values count as the whole square, 4 * context * width per layer and token forward, although half of it is
    masked, and more with `data.document_mask`: what a run costs doesn't depend on its documents. The output head
    counts; look-ups in the embedding and value-embedding tables don't. The core counts once per loop that runs: forward
    for every loop, backward for those that carry gradient. The sampler clamps loop counts at 1, so their mean is µ +
    exp(-µ), not µ. Work that activation checkpointing repeats doesn't count.
`parcae-release`
    The count of the published code: 6 FLOPs per token and parameter outside the core blocks, except the token table (so
    the value-embedding tables and an untied head count, but a tied head doesn't), plus attention; the core with its
    nominal loops, µ forward and µ_bwd backward.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoloop.trainer.config import BLOCKS, LOG_NORMAL_SIGMA, ModelConfig, RecurrenceConfig, import_class

Accounting = Literal["exact", "parcae-release"]

FORWARD_FLOPS = 2
BACKWARD_FLOPS = 4
MLP_FACTOR = 4
_CURRICULUM_POINTS = 256
_RATE_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class InjectionCost:
    """Parameters of an injection, and its multiply-adds per token: once (on e) and in every loop (on h)."""

    parameters: int
    products_once: int = 0
    products_per_loop: int = 0


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Parameters of a block without its value-embedding table, and its multiply-adds per token.

    `products` counts its weight matrices, `attention` the scores and their product with the values.
    """

    parameters: int
    products: int
    attention: int


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters by part of the model. `prelude`, `core` and `coda` are blocks without their value-embedding tables.

    `head` is 0 where the output head is the token table. `looped` is False for the fixed-depth Transformer, whose core
    runs once.
    """

    looped: bool
    token_table: int
    head: int
    value_tables: int
    prelude: int
    core: int
    coda: int
    injection: int
    state_to_width: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters, including embeddings; the tied output head counts once."""
        outside = self.injection + self.state_to_width + self.norms
        return self.token_table + self.head + self.value_tables + self.prelude + self.core + self.coda + outside

    @property
    def effective_fixed(self) -> int:
        """Effective parameters that don't depend on µ: prelude and coda."""
        return self.prelude + self.coda + (0 if self.looped else self.core)

    @property
    def effective_per_loop(self) -> int:
        """Effective parameters that each loop adds: the core."""
        return self.core if self.looped else 0

    def effective(self, mean_recurrence: float) -> float:
        """Return N(µ), the parameters of the unrolled model: prelude + coda + µ x core, without embeddings."""
        return self.effective_fixed + mean_recurrence * self.effective_per_loop


@dataclass(frozen=True, kw_only=True)
class LoopCost:
    """FLOPs per training token, linear in the forward and backward loops."""

    fixed: float
    per_forward_loop: float
    per_backward_loop: float

    def flops_per_token(self, forward_loops: float, backward_loops: float) -> float:
        """Return the FLOPs per token, forward and backward, for these mean loops per token."""
        return self.fixed + self.per_forward_loop * forward_loops + self.per_backward_loop * backward_loops


def injection_cost(model: ModelConfig) -> InjectionCost:
    """Return the cost of the model's injection; a class of the user's own states it in `cost(width)`."""
    square = model.width**2
    match model.injection:
        case "diagonal":
            return InjectionCost(parameters=square + 2 * model.width, products_once=square)
        case "concat":
            return InjectionCost(parameters=2 * square, products_once=square, products_per_loop=square)
        case "addition" | "none":
            return InjectionCost(parameters=0)
    return _stated_cost(model.injection, InjectionCost, model.width)


def block_cost(model: ModelConfig, layer: int) -> BlockCost:
    """Return the cost of distinct layer `layer`; a block of the user's own states it in `cost`."""
    value_embedding = model.has_value_embedding(layer)
    if model.block not in BLOCKS:
        return _stated_cost(model.block, BlockCost, model, value_embedding=value_embedding)
    gate = model.gate_channels * model.kv_heads if value_embedding else 0
    products = (2 + 2 * MLP_FACTOR) * model.width**2 + 2 * model.width * model.kv_width + gate
    norms = 2 if model.block == "pre-norm" else 4
    attention = 2 * model.context * model.width
    return BlockCost(parameters=products + norms * model.width, products=products, attention=attention)


def count_parameters(model: ModelConfig) -> Parameters:
    """Count the parameters of `model` by part; tests compare them with the real module."""
    d = model.width
    table = model.padded_vocabulary * d
    tables = sum(map(model.has_value_embedding, range(model.layers)))
    blocks = [block_cost(model, layer).parameters for layer in range(model.layers)]
    return Parameters(
        looped=model.is_looped,
        token_table=table,
        head=0 if model.tied_head else table,
        value_tables=model.padded_vocabulary * model.kv_width * tables,
        prelude=sum(blocks[: model.core.start]),
        core=sum(blocks[model.core.start : model.core.stop]),
        coda=sum(blocks[model.core.stop :]),
        injection=injection_cost(model).parameters,
        state_to_width=d * d if model.is_looped else 0,
        norms=2 * d if model.is_looped and model.prelude_norm else d,
    )


def loop_cost(model: ModelConfig, accounting: Accounting) -> LoopCost:
    """Return the FLOPs per token of `model`: once, per forward loop and per backward loop."""
    looped_layers = model.core if model.is_looped else range(0)
    core = [block_cost(model, layer) for layer in looped_layers]
    outside = [block_cost(model, layer) for layer in range(model.layers) if layer not in looped_layers]
    both = FORWARD_FLOPS + BACKWARD_FLOPS
    if accounting == "exact":
        injection = injection_cost(model)
        head = model.padded_vocabulary * model.width
        once = injection.products_once + head + (model.width**2 if model.is_looped else 0)
        fixed = both * (once + sum(block.products + block.attention for block in outside))
        # The first loop that carries gradient starts from a constant: no gradient is computed for that state.
        fixed -= BACKWARD_FLOPS // 2 * injection.products_per_loop
        per_loop = injection.products_per_loop + sum(block.products + block.attention for block in core)
    else:
        parameters = count_parameters(model)
        in_core = sum(block.parameters for block in core)
        attention = sum(block.attention for block in outside)
        fixed = both * (parameters.total - parameters.token_table - in_core + attention)
        per_loop = in_core + sum(block.attention for block in core)
    return LoopCost(fixed=fixed, per_forward_loop=FORWARD_FLOPS * per_loop, per_backward_loop=BACKWARD_FLOPS * per_loop)


def forward_flops(model: ModelConfig, recurrence: int) -> float:
    """Return the FLOPs per token of one forward pass with T = `recurrence` loops, by `exact` accounting."""
    cost = loop_cost(model, "exact")
    # What the first loop with gradient saves, it saves in the backward pass.
    both = cost.fixed + BACKWARD_FLOPS // 2 * injection_cost(model).products_per_loop
    return both * FORWARD_FLOPS / (FORWARD_FLOPS + BACKWARD_FLOPS) + cost.per_forward_loop * recurrence


def expected_loops(recurrence: RecurrenceConfig, accounting: Accounting) -> tuple[float, float]:
    """Return the mean loops per token that count: forward, and with gradient.

    Under `exact` these are E[T] and E[min(T, µ_bwd)] of the sampler's loop counts: for T = max(1, Poisson(µ)), E[T] is
    µ + exp(-µ), and for log-normal Poisson loops µ + 1. Under `parcae-release` they are the nominal µ and min(µ_bwd,
    µ). A curriculum and phases count with their average over the run.
    """
    last = _loops_at(recurrence, accounting, float(recurrence.mean))
    parts: list[tuple[float, tuple[float, float]]] = []  # shares of the run with the mean loops in each
    end = 0.0
    for phase in recurrence.phases:
        parts.append((phase.until - end, _loops_at(recurrence, accounting, float(phase.mean))))
        end = phase.until
    if recurrence.curriculum_start is not None:
        end = recurrence.curriculum_fraction
        progress = [(i + 0.5) / _CURRICULUM_POINTS * end for i in range(_CURRICULUM_POINTS)]
        loops = [_loops_at(recurrence, accounting, recurrence.mean_at(point)) for point in progress]
        parts = [(end, (sum(f for f, _ in loops) / len(loops), sum(b for _, b in loops) / len(loops)))]
    parts.append((1 - end, last))
    return sum(share * f for share, (f, _) in parts), sum(share * b for share, (_, b) in parts)


def _loops_at(recurrence: RecurrenceConfig, accounting: Accounting, mean: float) -> tuple[float, float]:
    """Return the expected loops, forward and with gradient, of sequences drawn with the mean `mean`."""
    depth = recurrence.gradient_loops
    if accounting == "parcae-release":
        return mean, float(min(depth, mean))
    if recurrence.sampling == "fixed":
        return float(round(mean)), float(min(round(mean), depth))
    if recurrence.distribution == "log-normal-poisson":
        return mean + 1, _log_normal_backward_loops(mean, depth)
    cumulative = math.exp(-mean)  # P(0 loops) before the clamp
    forward, backward = mean + cumulative, 1.0
    for loops in range(1, depth):
        cumulative += math.exp(loops * math.log(mean) - mean - math.lgamma(loops + 1))
        backward += 1 - cumulative  # E[min(T, depth)] is the sum of P(T >= j), j = 1 .. depth
    return forward, backward


def _log_normal_backward_loops(mean: float, depth: int) -> float:
    """Return E[min(T, depth)] of T = 1 + Poisson(rate) at log-normal rates: the sum of P(T >= j), j = 1 .. depth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_RATE_POINTS)
    rates = mean * np.exp(LOG_NORMAL_SIGMA * nodes - LOG_NORMAL_SIGMA**2 / 2)
    cumulative, loops = np.exp(-rates), np.ones_like(rates)
    for draws in range(1, depth):
        loops += 1 - cumulative
        cumulative += np.exp(draws * np.log(rates) - rates - math.lgamma(draws + 1))
    return float(loops @ weights / weights.sum())


def flops_per_token(model: ModelConfig, recurrence: RecurrenceConfig, accounting: Accounting) -> float:
    """Return the training FLOPs per token, forward and backward, at the expected loops."""
    return loop_cost(model, accounting).flops_per_token(*expected_loops(recurrence, accounting))


def flops_spent(
    model: ModelConfig, recurrence: RecurrenceConfig, tokens: int, forward_loops: float, backward_loops: float
) -> dict[str, float]:
    """Return a run's FLOPs under both accountings, named as in its result; `exact` counts the mean loops given."""
    nominal = expected_loops(recurrence, "parcae-release")
    return {
        "flops_exact": tokens * loop_cost(model, "exact").flops_per_token(forward_loops, backward_loops),
        "flops_parcae_release": tokens * loop_cost(model, "parcae-release").flops_per_token(*nominal),
    }


def steps_for(budget: float, per_step: float) -> int:
    """Return the number of optimizer steps closest to a budget of FLOPs or tokens, given those of one step."""
    return round(budget / per_step)


def _stated_cost(path: str, kind: type, *args: Any, **kwargs: Any) -> Any:
    """Return the cost that a class of the user's own states; raise ValueError if it states none of type `kind`."""
    rule = f"a class of your own must return its cost as {kind.__name__} from `cost`"
    try:
        cost = import_class(path).cost(*args, **kwargs)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{rule}, but '{path}' fails: {error}; docs/extending.md shows one") from error
    if not isinstance(cost, kind):
        raise ValueError(f"{rule}, but '{path}' returns {cost!r}; docs/extending.md shows one")
    return cost
