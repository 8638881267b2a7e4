"""Memory before launch, held against every tensor that the real module keeps alive."""

import timeit
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoloop.trainer.config import SIZES, ModelConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.memory import (
    GRADIENT_BUCKET,
    INDEX,
    STACK_BYTES,
    estimate_memory,
    inference_numbers,
    largest_micro_batch,
)
from isoloop.trainer.model.build import build_model
from isoloop.trainer.optim import make_optimizers

GIB = 2**30
SEQUENCES, LOOPS = 3, 2


class LiveTensors(TorchDispatchMode):
    """Bytes of the distinct storages that operations made and that are still referenced: now, and at largest."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def measure(config, *, half, recompute, separator=None):
    """(bytes kept after a forward pass, peak bytes until the end of its backward pass), in a second micro-batch.

    Weights, gradients, token ids and initial states are there before and don't count.
    """
    model = build_model(config, recompute_loops=recompute)
    model.initialise(0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rows = torch.randint(0, config.vocabulary, (SEQUENCES, config.context + 1))
    h0 = model.initial_state(range(SEQUENCES), config.context)
    loops = torch.full((SEQUENCES,), 4 if config.is_looped else 1)
    there = [*model.parameters(), *(p.grad for p in model.parameters()), *model.buffers(), rows, h0, loops]
    with LiveTensors(there) as live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            nats = model.loss(rows[:, :-1], rows[:, 1:], loops, LOOPS, h0, separator).nats
        kept = live.now
        nats.backward()
    return kept, live.peak


SHAPES = {
    "small": {"width": 64, "heads": 4, "context": 48, "vocabulary": 512},
    "deep": {"width": 96, "heads": 3, "context": 64, "prelude_layers": 2, "core_layers": 3, "coda_layers": 1},
    "long": {"width": 32, "heads": 2, "context": 256, "core_layers": 2, "coda_layers": 2},
}
MODELS = {
    "diagonal": {},
    "concat": {"injection": "concat", "prelude_norm": False},
    "addition": {"injection": "addition", "block": "residual-norm"},
    "fixed depth": {"injection": "none"},
    "grouped": {"key_value_heads": 1},
    "untied": {"tied_head": False},
    "capped": {"logit_soft_cap": 15.0},
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("name", "shape"), [*((name, "deep") for name in MODELS), ("diagonal", "small"), ("concat", "long")]
)
def test_activations_are_what_the_module_keeps_and_the_peak_is_covered(name, shape, recompute, precision):
    config = ModelConfig(**SHAPES[shape], **MODELS[name])
    if recompute and not config.is_looped:
        pytest.skip("there is no loop to run again")
    half = precision == "bfloat16"
    kept, peak = measure(config, half=half, recompute=recompute)
    recurrence = RecurrenceConfig(mean=4, backprop_depth=LOOPS) if config.is_looped else RecurrenceConfig(mean=1)
    estimate = estimate_memory(
        config, recurrence, sequences=SEQUENCES, precision=precision, activation_checkpointing=recompute
    )
    ids = SEQUENCES * (config.context + 1) * INDEX
    head = 4 * config.width * (config.padded_vocabulary + SEQUENCES * config.context)  # gradients of table and states
    loss = 4
    # concat's matrix is counted once too often: the first loop's state is a constant, which needs no copy of it.
    spare = 2 * config.width**2 if half and name == "concat" and not recompute else 0
    # Recomputed loops hold a number for each table of the core, into whose shape gradients flow (`SharedCast`).
    numbers = 4 * sum(map(config.has_value_embedding, config.core)) if half and recompute else 0
    assert estimate.activations == kept - head - loss + ids + spare - numbers
    initial = SEQUENCES * config.context * config.width * 4
    most = 1.18 if name == "grouped" else 1.16  # as many bytes too many, of fewer
    assert 0.97 * (peak + ids + initial) < estimate.activations + estimate.working < most * (peak + ids + initial)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_logits_of_a_capped_head_are_covered(precision):
    """At a large vocabulary they are most of the peak: the logits and the slope of the cap."""
    config = ModelConfig(width=32, heads=2, context=64, vocabulary=8192, logit_soft_cap=15.0, z_loss=1e-4)
    _, peak = measure(config, half=precision == "bfloat16", recompute=False)
    recurrence = RecurrenceConfig(mean=4, backprop_depth=LOOPS)
    estimate = estimate_memory(config, recurrence, sequences=SEQUENCES, precision=precision)
    assert 0.99 * peak < estimate.activations + estimate.working < 1.15 * peak


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_mask_of_documents_is_kept_once_however_many_layers_and_loops(name, precision):
    config, half = ModelConfig(**SHAPES["deep"], **MODELS[name]), precision == "bfloat16"
    kept = [measure(config, half=half, recompute=False, separator=separator)[0] for separator in (None, 0)]
    recurrence = RecurrenceConfig(mean=4, backprop_depth=LOOPS) if config.is_looped else RecurrenceConfig(mean=1)
    settings = {"sequences": SEQUENCES, "precision": precision}
    estimates = [estimate_memory(config, recurrence, document_mask=masked, **settings) for masked in (False, True)]
    assert estimates[1].activations - estimates[0].activations == kept[1] - kept[0] > 0


@pytest.mark.parametrize("muon", ["torch", "released"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_gradients_and_optimizer_are_those_of_the_real_ones(name, muon):
    config = ModelConfig(**SHAPES["deep"], **MODELS[name])
    model = build_model(config)
    optimizers = make_optimizers(model, OptimizerConfig(muon=muon))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for per in optimizer.state.values() for state in per.values()]
    estimate = estimate_memory(config, RecurrenceConfig(mean=1), sequences=1, muon=muon)
    assert estimate.weights == size([*model.parameters(), *model.buffers()])
    assert estimate.gradients == size([parameter.grad for parameter in model.parameters()])
    assert estimate.optimizer == size(
        [state for state in states if state.ndim]
    )  # AdamW also counts steps, one number each


def size(tensors):
    """Return the bytes of the distinct storages: states of matrices of one shape are rows of one tensor."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("muon", ["torch", "released"])
def test_the_stacks_of_an_update_are_covered(muon):
    config = ModelConfig(width=256, heads=2, prelude_layers=2, core_layers=1, coda_layers=1)
    model = build_model(config)
    optimizer, _ = make_optimizers(model, OptimizerConfig(muon=muon))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [state for per in optimizer.state.values() for state in per.values()]
    with LiveTensors([*model.parameters(), *(p.grad for p in model.parameters()), *state]) as live:
        optimizer.step()
    assert STACK_BYTES[muon] * 4 * 256**2 * config.layers == pytest.approx(live.peak, rel=0.02)


def test_the_loops_that_carry_gradient_are_what_recurrence_costs():
    model = ModelConfig(**SHAPES["small"])

    def needed(**recurrence):
        return estimate_memory(model, RecurrenceConfig(**recurrence), sequences=4).activations

    per_loop = needed(mean=2, backprop_depth=2) - needed(mean=2)
    assert per_loop > 0
    assert needed(mean=9) - needed(mean=1) == 4 * per_loop  # ceil(9 / 2) against 1
    assert needed(mean=2, backprop_depth=8, sampling="fixed") == needed(mean=2, backprop_depth=2)
    assert needed(mean=2, backprop_depth=4000) == needed(mean=2, backprop_depth=10)  # no sequence draws more
    assert needed(mean=2, backprop_depth=8, phases=[{"until": 0.5, "mean": 8}]) == needed(mean=8, backprop_depth=8)
    fixed = {"backprop_depth": 8, "sampling": "fixed"}
    assert needed(mean=2, phases=[{"until": 0.5, "mean": 6}], **fixed) == needed(mean=6, **fixed)
    fixed_depth = ModelConfig(**SHAPES["small"], injection="none")
    assert estimate_memory(fixed_depth, RecurrenceConfig(mean=1), sequences=4).total > 0


def test_the_largest_micro_batch_is_the_last_that_fits():
    settings = {"precision": "bfloat16", "device": "cuda", "activation_checkpointing": True}
    model, recurrence = SIZES["370m"], RecurrenceConfig(mean=8)
    for available in (40 * GIB, 80 * GIB):
        largest = largest_micro_batch(available, model, recurrence, limit=256, **settings)
        assert 1 < largest < 256
        assert estimate_memory(model, recurrence, sequences=largest, **settings).total <= available
        assert estimate_memory(model, recurrence, sequences=largest + 1, **settings).total > available
    assert largest_micro_batch(4 * GIB, model, recurrence, limit=256, **settings) is None
    assert largest_micro_batch(1e15, model, recurrence, limit=256, **settings) == 256


def test_processes_that_add_up_gradients_need_two_buckets_more():
    """Beside all activations: the first buckets are sent while the backward pass has most of its way to go."""
    alone, two = (estimate_memory(SIZES["1.3b"], RecurrenceConfig(mean=1), sequences=1, processes=n) for n in (1, 2))
    table = 4 * SIZES["1.3b"].padded_vocabulary * SIZES["1.3b"].width
    assert two.total - alone.total == 2 * max(GRADIENT_BUCKET, table)
    small = ModelConfig(**SHAPES["small"])
    alone, two = (estimate_memory(small, RecurrenceConfig(mean=1), sequences=1, processes=n) for n in (1, 2))
    assert two.total - alone.total == alone.gradients


def test_a_block_of_ones_own_counts_with_its_own_parameters():
    classes = {"block": "tests.trainer.own:ParallelBlock", "injection": "tests.trainer.own:ScaledInjection"}
    own, built_in = ModelConfig(**SHAPES["small"], **classes), ModelConfig(**SHAPES["small"])
    estimate, known = (estimate_memory(model, RecurrenceConfig(mean=4), sequences=2) for model in (own, built_in))
    assert estimate.activations == known.activations
    # A norm less in each of three blocks, and one number instead of two vectors.
    assert known.weights - estimate.weights == 4 * (3 * 64 + 2 * 64 - 1)


def test_it_is_cheap_enough_for_ten_thousand_cells():
    models = [ModelConfig(width=64 * n, heads=n) for n in range(1, 9)]
    recurrences = [RecurrenceConfig(mean=mean) for mean in range(1, 9)]

    def all_cells():
        for model in models:
            for recurrence in recurrences:
                estimate_memory(model, recurrence, sequences=8)

    all_cells()
    assert min(timeit.repeat(all_cells, number=5, repeat=5)) / 5 / 64 < 60e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MODELS)
def test_numbers_at_inference_are_those_of_the_module(shape, kind):
    config = ModelConfig(**SHAPES[shape], **MODELS[kind])
    model, loops = build_model(config), 4 if config.is_looped else 1
    model.initialise(0)
    tokens = torch.randint(0, config.vocabulary, (SEQUENCES, config.context))
    h0 = model.initial_state(range(SEQUENCES), config.context)
    cached = []
    for name, part in model.named_modules():
        if name.endswith(("attention.key", "attention.value")):
            part.register_forward_hook(lambda part, inputs, output: cached.append(output.numel()))
    with torch.no_grad(), LiveTensors([*model.parameters(), *model.buffers(), tokens]) as live:
        assert [recurrence for recurrence, _ in model.final_states(tokens, [loops], h0)] == [loops]
    numbers = inference_numbers(config)
    assert numbers.weights == sum(parameter.numel() for parameter in model.parameters())
    per_token = numbers.cache_per_token_fixed + loops * numbers.cache_per_token_loop
    if not config.is_looped:
        assert numbers.cache_per_token_loop == 0
        per_token = numbers.cache_per_token_fixed
    assert tokens.numel() * per_token == sum(cached)
    measured = live.peak / 4 / tokens.numel() + (config.width if config.is_looped else 0)  # h_0 was there before
    assert measured <= numbers.activations_per_token <= 1.1 * measured
