"""What a run needs of its device's memory, before anything is started. No torch.

The largest part is what autograd keeps of a forward pass for the backward pass. It is counted tensor by tensor, and
held by the tests against the tensors that are alive in the real module. Weights, gradients and what is between the
blocks are float32 whatever the precision; under bfloat16 the operands of the matrix products are 2 bytes wide, and a
copy of each matrix is kept beside the weights.

The tests measure this on the CPU. What they can't measure: on a GPU the fused norm keeps one tensor less, and CUDA's
context takes a share that is assumed here (`RUNTIME`). What an allocator loses between tensors isn't counted, so leave
a tenth of a device free. torch.compile keeps less than is counted. The evaluation needs less than training does with
as many sequences at once.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from isoloop.trainer.accounting import GATE_CHANNELS, MLP_FACTOR, block_cost, count_parameters
from isoloop.trainer.config import ModelConfig, RecurrenceConfig

Precision = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]

FLOAT = 4
INDEX = 8
# The head holds the logits of this many (token, vocabulary) pairs at a time, and of at least this many tokens.
LOGITS_AT_ONCE = 2**24
FEWEST_ROWS = 64
# A process with torch and without a model: resident on the CPU (measured), and of a GPU (assumed).
RUNTIME = {"cpu": 256 * 2**20, "cuda": 2**30}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process needs at its peak.

    Attributes:
        weights: the parameters and the rotary embedding's table.
        gradients: one for each parameter; twice that where processes add theirs up.
        optimizer: Muon's momentum, AdamW's two moments.
        activations: what autograd keeps of one forward pass.
        working: what else is alive at the peak: a chunk of logits and the head's gradient, states, a block's gradients.
        runtime: Python, torch and, on a GPU, CUDA's context.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working + self.runtime


class _Kept(NamedTuple):
    """Bytes that autograd keeps: for each token, and besides whatever the number of sequences."""

    token: int
    besides: int

    def __add__(self, other: tuple) -> "_Kept":
        return _Kept(self.token + other[0], self.besides + other[1])


class _Shape(NamedTuple):
    """What depends on the model and the precision alone. Bytes; those of a token unless it says otherwise.

    Attributes:
        table: the token table, in all.
        weights: in all.
        gradients: in all.
        optimizer: in all.
        outside: kept of what is before and behind the loop.
        loop: kept of each loop.
        core_copies: narrow copies of the core's matrices, in all.
        core_gradients: of the core's matrices, which are held back until every loop has added to them; in all.
        state: h, or e.
        core_values: what the core's value embeddings hold beside what is kept of them.
        coda: kept of the coda, the part of `outside` that is used up first.
        locals: tensors that Python holds until the loss is there.
        flowing: gradients between two operations of a block.
    """

    table: int
    weights: int
    gradients: int
    optimizer: int
    outside: _Kept
    loop: _Kept
    core_copies: int
    core_gradients: int
    state: int
    core_values: int
    coda: int
    locals: int
    flowing: int


def memory(
    model: ModelConfig,
    recurrence: RecurrenceConfig,
    *,
    sequences: int,
    precision: Precision = "float32",
    activation_checkpointing: bool = False,
    processes: int = 1,
    device: Device = "cpu",
) -> Memory:
    """The most memory that one process of a run needs at a time.

    Every sequence is taken to run as many loops with gradient as there can be, which the first micro-batch of a step
    comes close to. An injection or block of the user's own is counted as `diagonal` and `pre-norm`, but for its
    parameters.

    Args:
        model: what is trained.
        recurrence: how many loops carry gradient.
        sequences: of one forward and backward pass: the micro-batch, or the process's share of a batch.
        precision: as in `RunSpec`.
        activation_checkpointing: as in `ExecutionSettings`.
        processes: that share the run; two or more copy all gradients to add them up.
        device: kind of the device.
    """
    half = precision == "bfloat16"
    shape = _shape(model, half, device == "cuda")
    tokens, loops = sequences * model.context, _gradient_loops(recurrence)
    activations = tokens * shape.outside.token + shape.outside.besides + sequences * (model.context + 1) * INDEX
    flowing = tokens * shape.flowing
    if activation_checkpointing and model.is_looped:
        activations += tokens * ((loops + 1) * shape.state + shape.core_values)
        again = tokens * (shape.loop.token - shape.coda) + shape.loop.besides + shape.core_copies
        flowing += shape.core_gradients + max(0, again)  # the coda's are gone when the last loop is run again
    elif model.is_looped:
        activations += loops * (tokens * shape.loop.token + shape.loop.besides) + shape.core_copies
    rows = min(max(FEWEST_ROWS, LOGITS_AT_ONCE // model.padded_vocabulary), tokens)
    head = tokens * shape.locals + 2 * rows * model.padded_vocabulary * FLOAT + (shape.table if half else 0)
    working = max(shape.table + tokens * shape.state + max(head, flowing), 3 * shape.table - activations)
    packed = max(0, shape.gradients - activations - working) if processes > 1 else 0
    return Memory(
        weights=shape.weights,
        gradients=shape.gradients + packed,
        optimizer=shape.optimizer,
        activations=activations,
        working=working,
        runtime=RUNTIME[device],
    )


def largest_micro_batch(
    available: float,
    model: ModelConfig,
    recurrence: RecurrenceConfig,
    *,
    most: int,
    precision: Precision = "float32",
    activation_checkpointing: bool = False,
    processes: int = 1,
    device: Device = "cpu",
) -> int | None:
    """The most sequences of one pass, at most `most`, with which `memory` stays within `available` bytes.

    Returns:
        None if a single sequence needs more.
    """

    def needed(sequences: int) -> int:
        return memory(
            model, recurrence, sequences=sequences, precision=precision,
            activation_checkpointing=activation_checkpointing, processes=processes, device=device,
        ).total  # fmt: skip

    return bisect_right(range(1, most + 1), available, key=needed) or None


def _gradient_loops(recurrence: RecurrenceConfig) -> int:
    """The most loops with gradient that a sequence runs; draws beyond 5 deviations don't fill a batch."""
    mean = recurrence.mean
    drawn = mean if recurrence.sampling == "fixed" else math.ceil(mean + 5 * math.sqrt(mean))
    return min(recurrence.gradient_loops, drawn)


@lru_cache(maxsize=1024)
def _shape(model: ModelConfig, half: bool, gpu: bool) -> _Shape:
    d, product = model.width, 2 if half else FLOAT
    state, square = d * FLOAT, d * d
    norm = _norm(model, gpu)
    blocks = [_block(model, layer, half, gpu) for layer in range(model.layers)]
    first_core, first_coda = model.prelude_layers, model.prelude_layers + model.core_layers
    core, coda = _sum(blocks[first_core:first_coda]), _sum(blocks[first_coda:])
    costs = [block_cost(model, layer) for layer in range(model.layers)]
    core_matrices = sum(cost.products for cost in costs[first_core:first_coda])
    other_matrices = sum(cost.products for cost in costs) - core_matrices
    values = [layer for layer in range(model.layers) if model.has_value_embedding(layer)]
    core_values = sum(first_core <= layer < first_coda for layer in values) * state
    outside = _sum(blocks[:first_core]) + coda + (norm, 0)
    loop = _Kept(0, 0)
    held = 2 * state  # the normed final state and h_0
    if model.is_looped:
        outside += (d * product + (norm if model.prelude_norm else 0), 0)  # what W_C reads
        other_matrices += square
        drive, loop, its_matrix = _injection(model, product)
        outside += drive
        other_matrices += its_matrix
        loop += core
        held += 2 * state  # B̄ e, and h where the loops with gradient start
    else:
        outside, core_matrices, other_matrices = outside + core, 0, other_matrices + core_matrices
    if half:
        outside += (0, 2 * other_matrices)
        held += state + len(values) * state
    else:
        outside += (len(values) * state, 0)
    counted = count_parameters(model)
    matrices = sum(cost.products for cost in costs)
    rotary = model.context * d // model.heads * FLOAT
    return _Shape(
        table=counted.token_table * FLOAT,
        weights=counted.total * FLOAT + rotary,
        gradients=counted.total * FLOAT,
        optimizer=(matrices + 2 * (counted.total - matrices)) * FLOAT,
        outside=outside,
        loop=loop,
        core_copies=2 * core_matrices if half else 0,
        core_gradients=core_matrices * FLOAT,
        state=state,
        core_values=core_values if half else 0,
        coda=coda.token,
        locals=held,
        flowing=3 * MLP_FACTOR * d * product + state,
    )


def _sum(parts: list[_Kept]) -> _Kept:
    return _Kept(sum(part.token for part in parts), sum(part.besides for part in parts))


def _norm(model: ModelConfig, gpu: bool) -> int:
    """Bytes kept of a token by a norm with weight: its input, one factor, and on the CPU the input times the factor."""
    return (1 if gpu else 2) * model.width * FLOAT + FLOAT


def _block(model: ModelConfig, layer: int, half: bool, gpu: bool) -> _Kept:
    """What a block keeps, but for the value embedding where it is float32 as in the table: all loops share that."""
    d, product = model.width, 2 if half else FLOAT
    norms = (4 if model.block == "residual-norm" else 2) * _norm(model, gpu)
    read = (4 if half else 2) * d * product  # by query, key, value, each its own copy if that is narrower; by the MLP
    turned = 2 * (d + model.heads) * FLOAT  # queries and keys before their norm, and its factors
    attended = 4 * d * product + model.heads * FLOAT  # queries, keys, values, result; the softmax's normaliser
    hidden = 2 * MLP_FACTOR * d * product  # relu and its square
    kept = norms + read + turned + attended + hidden
    if model.has_value_embedding(layer):
        kept += 2 * model.heads * product + ((min(GATE_CHANNELS, d) + d) * product if half else 0)
    rotary = 4 * model.context * model.head_width // 2 * product if half else 0  # narrow copies of cos and sin
    return _Kept(kept, rotary)


def _injection(model: ModelConfig, product: int) -> tuple[_Kept, _Kept, int]:
    """What an injection keeps of B̄ e, what of each loop, and the entries of matrices that it copies once."""
    d = model.width
    half = product < FLOAT
    if model.injection == "addition":
        return _Kept(0, 0), _Kept(0, 0), 0
    if model.injection == "concat":  # reads e and each h; half of the matrix is copied at each use
        return _Kept(d * product, 0), _Kept(d * product, d * d * product if half else 0), d * d
    return _Kept(2 * d * product, d * FLOAT), _Kept(d * FLOAT, 3 * d * FLOAT), d * d
