"""Estimate of the device memory that a run needs, before it starts, and its model afterwards. No torch.

The largest part is what autograd keeps of a forward pass for the backward pass. It is counted tensor by tensor, and
tests compare it with the tensors that the real module keeps alive. Weights, gradients and the stream between blocks are
float32 in either precision. Under bfloat16 the operands of matrix products take 2 bytes, and a narrow copy of each
matrix is kept beside the weights.

The tests measure all this on the CPU. Not measured: on a GPU a fused norm keeps one tensor less, and CUDA's context
takes a share that is assumed here (`RUNTIME`). Space that an allocator loses between tensors isn't counted, so leave a
tenth of a device free. torch.compile keeps less than is counted. Evaluation needs less memory than training does with
as many sequences.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from isoloop.trainer.accounting import MLP_FACTOR, block_cost, count_parameters
from isoloop.trainer.config import LOG_NORMAL_SIGMA, ModelConfig, RecurrenceConfig

Precision = Literal["float32", "bfloat16"]
MuonVariant = Literal["torch", "released"]
DeviceKind = Literal["cpu", "cuda"]

FLOAT = 4
INDEX = 8
# The head holds the logits of this many (token, vocabulary) pairs at a time, and of at least this many tokens. A GPU
# would be idle between the small operations of a processor's chunks.
LOGITS_AT_ONCE: dict[DeviceKind, int] = {"cpu": 2**24, "cuda": 2**27}
MIN_HEAD_ROWS = 64
# Bytes of gradients that several processes sum at once; the next bucket is copied while one is on its way.
GRADIENT_BUCKET = 2**27
# Bytes that Muon holds for each entry of the matrices that it updates at once, at its peak.
STACK_BYTES: dict[MuonVariant, int] = {"torch": 12, "released": 17}
# A process with torch and without a model: resident memory on the CPU (measured) and of a GPU (assumed).
RUNTIME = {"cpu": 256 * 2**20, "cuda": 2**30}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process needs at its peak.

    Attributes:
        weights: the parameters and the table of the rotary embedding.
        gradients: one for each parameter and, where several processes sum theirs, two buckets of copies.
        optimizer: Muon's momentum, with `released` a mean square for each row or column, and AdamW's two moments.
        activations: tensors that autograd keeps of one forward pass.
        working: the rest of the peak: a chunk of logits and the head's gradient, states, a block's gradients.
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
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working + self.runtime


class _Kept(NamedTuple):
    """Bytes that autograd keeps for each token, and a fixed number for any number of tokens."""

    per_token: int
    fixed: int = 0

    def __add__(self, other: tuple) -> "_Kept":
        return _Kept(self.per_token + other[0], self.fixed + other[1])


class _Footprint(NamedTuple):
    """Bytes that depend on the model and the precision only; in total unless a comment says per token."""

    table: int  # the token table, or the matrix of an untied head
    tied_table: int  # the token table if the head is tied: its gradient waits for that of the embedding
    weights: int
    gradients: int
    optimizer: int  # without `mean_squares`
    mean_squares: int  # of the rows or columns of the blocks' matrices
    stacked: int  # entries of the matrices that Muon updates at once
    outside: _Kept  # of what comes before and after the loop
    loop: _Kept  # of each loop
    core_copies: int  # narrow copies of the core's matrices
    core_gradients: int  # of the core's matrices, held back until every loop has added its part
    state: int  # h, or e; per token
    coda: int  # kept of the coda, the first part of `outside` to be freed; per token
    locals: int  # tensors that Python holds until the loss is computed; per token
    flowing: int  # gradients between two operations of a block; per token


def estimate_memory(
    model: ModelConfig,
    recurrence: RecurrenceConfig,
    *,
    sequences: int,
    precision: Precision = "float32",
    activation_checkpointing: bool = False,
    document_mask: bool = False,
    processes: int = 1,
    device: DeviceKind = "cpu",
    muon: MuonVariant = "torch",
) -> Memory:
    """Estimate the peak memory of one process of a run.

    Every sequence is assumed to run the largest number of loops with gradient, which the first micro-batch of a step
    nearly does. An injection or block of the user's own is counted as `diagonal` or `pre-norm`, except for its
    parameters.

    Args:
        model: configuration of the model.
        recurrence: configuration of the loops; decides how many carry gradient.
        sequences: number in one forward and backward pass: the micro-batch, or the process's share of a batch.
        precision: as in `RunSpec`.
        activation_checkpointing: as in `ExecutionSettings`.
        document_mask: as in `DataConfig`; the mask is a square of the context for each sequence.
        processes: number that share the run; two or more copy gradients to sum them, two buckets at a time.
        device: kind of device.
        muon: as in `OptimizerConfig`.
    """
    half = precision == "bfloat16"
    size = _footprint(model, half, device == "cuda")
    tokens, loops = sequences * model.context, _max_gradient_loops(recurrence)

    # Activations, and the gradients that flow while they are freed
    activations = tokens * size.outside.per_token + size.outside.fixed + sequences * (model.context + 1) * INDEX
    flowing = tokens * size.flowing
    if document_mask:
        activations += tokens * model.context * (2 if half else FLOAT)
    if activation_checkpointing and model.is_looped:
        activations += tokens * (loops + 1) * size.state
        recomputed = tokens * (size.loop.per_token - size.coda) + size.loop.fixed + size.core_copies
        flowing += size.core_gradients + max(0, recomputed)  # the coda's are freed before the last loop is recomputed
    elif model.is_looped:
        activations += loops * (tokens * size.loop.per_token + size.loop.fixed) + size.core_copies

    # The peak: in the head, within a block's backward pass, or while the optimizer works on the table or Muon's stacks
    rows = min(max(MIN_HEAD_ROWS, LOGITS_AT_ONCE[device] // model.padded_vocabulary), tokens)
    head = tokens * size.locals + 2 * rows * model.padded_vocabulary * FLOAT + (size.table if half else 0)
    updating = max(3 * size.table, STACK_BYTES[muon] * size.stacked)
    working = max(tokens * size.state + max(size.table + head, size.tied_table + flowing), updating - activations)
    in_buckets = min(size.gradients, 2 * max(GRADIENT_BUCKET, size.table)) if processes > 1 else 0
    return Memory(
        weights=size.weights,
        gradients=size.gradients + in_buckets,
        optimizer=size.optimizer + (size.mean_squares if muon == "released" else 0),
        activations=activations,
        working=working,
        runtime=RUNTIME[device],
    )


@dataclass(frozen=True, kw_only=True)
class InferenceNumbers:
    """Numbers (of any precision) that a device holds to run a model without gradient, T loops at a time.

    Attributes:
        weights: all parameters; those of the core count once, however many loops run.
        cache_per_token_fixed: keys and values of the layers outside the loop, per token of context and sequence.
        cache_per_token_loop: keys and values of the core in each loop, which are its own.
        activations_per_token: the largest number at a time per token of a pass over a whole context, without logits.
    """

    weights: int
    cache_per_token_fixed: int
    cache_per_token_loop: int
    activations_per_token: int


def inference_numbers(model: ModelConfig) -> InferenceNumbers:
    """Return what a model holds at inference; tests compare it with the real module, run operation by operation.

    At its peak a pass holds the value embeddings, the stream before and after a norm and in the caller, the MLP's
    hidden layer before and after its activation, and in a looped model h_0, e and the state, which `concat` joins.
    """
    keys_and_values = 2 * model.kv_width
    looped_layers = len(model.core) if model.is_looped else 0
    value_embeddings = sum(map(model.has_value_embedding, range(model.layers)))
    streams = 4 + 2 * MLP_FACTOR + (3 if model.is_looped else 0) + (1 if model.injection == "concat" else 0)
    return InferenceNumbers(
        weights=count_parameters(model).total,
        cache_per_token_fixed=keys_and_values * (model.layers - looped_layers),
        cache_per_token_loop=keys_and_values * looped_layers,
        activations_per_token=model.width * streams + model.kv_width * value_embeddings,
    )


def largest_micro_batch(
    available: float, model: ModelConfig, recurrence: RecurrenceConfig, *, limit: int, **settings: Any
) -> int | None:
    """Return the largest number of sequences in one pass, up to `limit`, that needs at most `available` bytes.

    Args:
        available: bytes of the device.
        model: as in `estimate_memory`, like `recurrence`.
        recurrence: see above.
        limit: upper bound of the answer.
        settings: further arguments of `estimate_memory`.

    Returns:
        None if even a single sequence needs more.
    """

    def needed(sequences: int) -> int:
        return estimate_memory(model, recurrence, sequences=sequences, **settings).total

    return bisect_right(range(1, limit + 1), available, key=needed) or None


def _max_gradient_loops(recurrence: RecurrenceConfig) -> int:
    """Return the most loops with gradient of a sequence; draws beyond 5 standard deviations don't fill a batch."""
    mean = max([recurrence.mean, *(phase.mean for phase in recurrence.phases)])
    if recurrence.sampling == "fixed":
        return min(recurrence.gradient_loops, math.ceil(mean))
    rate = float(mean)
    if recurrence.distribution == "log-normal-poisson":
        rate = 1 + rate * math.exp(5 * LOG_NORMAL_SIGMA)
    return min(recurrence.gradient_loops, math.ceil(rate + 5 * math.sqrt(rate)))


@lru_cache(maxsize=1024)
def _footprint(model: ModelConfig, half: bool, gpu: bool) -> _Footprint:
    d, product = model.width, 2 if half else FLOAT  # `product`: bytes of an operand of a matrix product
    state, norm = d * FLOAT, _norm(model, gpu)
    core_layers = slice(model.core.start, model.core.stop)

    # Blocks: what they keep, and the entries of their matrices
    blocks = [_block(model, layer, half, gpu) for layer in range(model.layers)]
    core, coda = sum(blocks[core_layers], _Kept(0)), sum(blocks[model.core.stop :], _Kept(0))
    products = [block_cost(model, layer).products for layer in range(model.layers)]
    core_matrices = sum(products[core_layers])
    other_matrices = sum(products) - core_matrices
    values = [layer for layer in range(model.layers) if model.has_value_embedding(layer)]

    # Around the loop: final norm, prelude norm, injection, W_C
    outside, loop = sum(blocks[: model.core.start], coda) + _Kept(norm), _Kept(0)
    held = 2 * state  # the normed final state and h_0
    if model.is_looped:
        outside += _Kept(d * product + norm * (model.prelude_norm + model.loop_norm))  # the input of W_C
        drive, loop, injection_matrix = _injection(model, product)
        outside, loop = outside + drive, loop + core
        other_matrices += d * d + injection_matrix
        held += 2 * state  # B̄ e, and h where the loops with gradient start
    else:
        outside, core_matrices, other_matrices = outside + core, 0, other_matrices + core_matrices
    outside += _Kept(len(values) * model.kv_width * product)
    coda += _Kept(sum(layer >= model.core.stop for layer in values) * model.kv_width * product)
    if half:
        outside += _Kept(0, 2 * other_matrices)
        held += state

    counted = count_parameters(model)
    return _Footprint(
        table=counted.token_table * FLOAT,
        tied_table=counted.token_table * FLOAT if model.tied_head else 0,
        weights=(counted.total + model.context * model.head_width) * FLOAT,
        gradients=counted.total * FLOAT,
        optimizer=(2 * counted.total - sum(products)) * FLOAT,
        mean_squares=(12 * d * model.layers + max(model.kv_heads, model.gate_channels) * len(values)) * FLOAT,
        stacked=4 * d * d * model.layers,  # query, key, value and out of all blocks, and as many in `up` and in `down`
        outside=outside,
        loop=loop,
        core_copies=2 * core_matrices if half else 0,
        core_gradients=core_matrices * FLOAT,
        state=state,
        coda=coda.per_token,
        locals=held,
        flowing=3 * MLP_FACTOR * d * product + state,
    )


def _norm(model: ModelConfig, gpu: bool) -> int:
    """Return the bytes per token kept by a norm: its input, one factor and, on the CPU, the input times the factor."""
    return (1 if gpu else 2) * model.width * FLOAT + FLOAT


def _block(model: ModelConfig, layer: int, half: bool, gpu: bool) -> _Kept:
    """Count what a block keeps, without its value embedding, which is shared by all loops."""
    d, kv, product = model.width, model.kv_width, 2 if half else FLOAT
    norms = (4 if model.block == "residual-norm" else 2) * _norm(model, gpu)
    inputs = 2 * d * product  # of query, key and value together, and of the MLP
    turned = (d + kv + model.heads + model.kv_heads) * FLOAT  # queries and keys before their norm, and its factors
    attended = 2 * (d + kv) * product + model.heads * FLOAT  # queries, keys, values, result; the softmax's normaliser
    hidden = 2 * MLP_FACTOR * d * product  # relu and its square
    kept = norms + inputs + turned + attended + hidden
    if model.has_value_embedding(layer):
        kept += 2 * model.kv_heads * product + (model.gate_channels * product if half else 0)
    rotary = 4 * model.context * model.head_width // 2 * product if half else 0  # narrow copies of cos and sin
    return _Kept(kept, rotary)


def _injection(model: ModelConfig, product: int) -> tuple[_Kept, _Kept, int]:
    """Count what an injection keeps of B̄ e and of each loop, and the entries of the matrix that it copies once."""
    d = model.width
    if model.injection == "addition":
        return _Kept(0), _Kept(0), 0
    if model.injection == "concat":  # reads e and each h; half of the matrix is copied at each use
        return _Kept(d * product), _Kept(d * product, d * d * product if product < FLOAT else 0), d * d
    return _Kept(2 * d * product, d * FLOAT), _Kept(d * FLOAT, 3 * d * FLOAT), d * d
