"""Parameters and FLOPs against the real module, torch's own counter and the published figures."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoloop.trainer.accounting import (
    block_cost,
    count_parameters,
    expected_loops,
    flops_per_token,
    forward_flops,
    loop_cost,
    steps_for,
)
from isoloop.trainer.config import SIZES, ModelConfig, RecurrenceConfig
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.model.build import build_model
from isoloop.trainer.recurrence import sample_recurrences

SMALL = ModelConfig(width=16, heads=2, context=8)
SHAPES = {
    "small": SMALL,
    "odd": ModelConfig(width=48, heads=3, prelude_layers=2, core_layers=3, coda_layers=1, context=12, vocabulary=300),
    "concat": SMALL.model_copy(update={"injection": "concat", "prelude_norm": False}),
    "addition": SMALL.model_copy(update={"injection": "addition"}),
    "residual norms": SMALL.model_copy(update={"injection": "concat", "block": "residual-norm", "core_layers": 2}),
    "capped": SMALL.model_copy(update={"logit_soft_cap": 2.0}),
    "grouped": SMALL.model_copy(update={"heads": 4, "key_value_heads": 2, "core_layers": 2}),
    "grouped fixed depth": SMALL.model_copy(update={"key_value_heads": 1, "injection": "none"}),
    "grouped own": SMALL.model_copy(update={"key_value_heads": 1, "block": "tests.trainer.own:ParallelBlock"}),
    "untied": SMALL.model_copy(update={"tied_head": False}),
    "fixed depth": SMALL.model_copy(update={"injection": "none", "core_layers": 2}),
    "own": ModelConfig(
        width=16,
        heads=2,
        context=8,
        injection="tests.trainer.own:ScaledInjection",
        block="tests.trainer.own:ParallelBlock",
    ),
}
EACH_SHAPE = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def numel(module):
    return sum(p.numel() for p in module.parameters())


def training_flops(config, loops, depth, separator=None, **build):
    """FLOPs of one training step by torch's own counter."""
    model = build_model(config, **build)
    model.initialise(0)
    loops = torch.tensor(loops)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocabulary, (len(loops), config.context + 1), generator=generator)
    h0 = torch.zeros(len(loops), config.context, config.width)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens[:, :-1], tokens[:, 1:], loops, depth, h0, separator).nats.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [*SHAPES.values(), *SIZES.values()], ids=[*SHAPES, *SIZES])
def test_parameters_equal_the_module(config):
    with torch.device("meta"):
        model = build_model(config)
    parts = count_parameters(config)
    assert parts.total == numel(model)
    assert parts.core == numel(model.core)
    outside = numel(model.prelude) + numel(model.coda)
    assert parts.effective(3) == outside + (3 if config.is_looped else 1) * numel(model.core)


def test_published_sizes():
    """Two are published, the other two are counted by hand: 8 and 12 layers' matrices, tables, gates and norms."""
    totals = {name: count_parameters(model).total for name, model in SIZES.items()}
    assert (totals["140m"], totals["370m"]) == (144_323_136, 388_003_328)
    for name, d, heads, layers in (("770m", 1280, 10, 18), ("1.3b", 1536, 12, 24)):
        tables = 32_768 * d * (1 + layers // 2)
        blocks = layers * (12 * d * d + 2 * d) + layers // 2 * 32 * heads
        assert totals[name] == tables + blocks + 2 * d * d + 2 * d + 2 * d
    parts = count_parameters(SIZES["140m"])
    assert (parts.token_table, parts.value_tables) == (25_165_824, 75_497_472)


def test_an_untied_head_counts_as_the_tied_one_in_flops_and_in_the_releases_count_as_its_parameters():
    tied, untied = SMALL, SHAPES["untied"]
    table = count_parameters(untied).head
    assert table == count_parameters(tied).token_table == count_parameters(untied).total - count_parameters(tied).total
    assert loop_cost(untied, "exact") == loop_cost(tied, "exact")
    fixed = [loop_cost(model, "parcae-release").fixed for model in (tied, untied)]
    assert fixed[1] - fixed[0] == 6 * table
    assert count_parameters(untied).effective(3) == count_parameters(tied).effective(3)


@pytest.mark.parametrize(("mean", "mflop"), [(1, 828), (2, 869), (4, 1033), (8, 1360)])
def test_release_accounting_gives_the_published_figures(mean, mflop):
    assert round(flops_per_token(SIZES["140m"], RecurrenceConfig(mean=mean), "parcae-release") / 1e6) == mflop


@EACH_SHAPE
@pytest.mark.parametrize("depth", [1, 3])
def test_exact_accounting_equals_torchs_counter(config, depth):
    """Forward and backward of one training step with mixed loop counts, to the last FLOP."""
    loops = np.array([1, 4, 2, 7] if config.is_looped else [1, 1, 1, 1])
    expected = 4 * config.context * loop_cost(config, "exact").flops_per_token(
        loops.mean(), loops.clip(max=depth).mean()
    )  # fmt: skip
    assert training_flops(config, loops, depth) == round(expected)


@EACH_SHAPE
def test_a_forward_pass_costs_a_third_of_what_runs_once_and_its_loops(config):
    """As the fits count inference, against torch's counter of a pass of 5 loops."""
    model, loops = build_model(config), 5 if config.is_looped else 1
    model.initialise(0)
    tokens = torch.randint(0, config.vocabulary, (1, config.context))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        list(model.logits(tokens, [loops], torch.zeros(1, config.context, config.width)))
    assert counter.get_total_flops() == pytest.approx(config.context * forward_flops(config, loops), rel=1e-12)
    cost = loop_cost(config, "exact")
    expected = config.context * (cost.fixed / 3 + (loops if config.is_looped else 0) * cost.per_forward_loop)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03 if config.injection == "concat" else 1e-12)


def test_the_core_runs_as_often_as_the_loops_say():
    """Beyond one loop each, a batch costs, to the FLOP, the sum of its further loops: no sequence is masked."""
    config, depth = SHAPES["odd"], 3
    cost = loop_cost(config, "exact")
    more = training_flops(config, [9, 1, 2, 5, 1], depth) - training_flops(config, [1, 1, 1, 1, 1], depth)
    forward, backward = 8 + 0 + 1 + 4 + 0, 2 + 0 + 1 + 2 + 0
    assert more == config.context * (forward * cost.per_forward_loop + backward * cost.per_backward_loop)


def test_activation_checkpointing_runs_the_loops_with_gradient_forward_once_more():
    config, loops, depth = SHAPES["odd"], [9, 1, 2], 3
    more = training_flops(config, loops, depth, recompute_loops=True) - training_flops(config, loops, depth)
    last_product = 2 * 4 * config.width**2  # of a loop; nothing that follows needs its result
    assert more == config.context * (3 + 1 + 2) * (loop_cost(config, "exact").per_forward_loop - last_product)


@pytest.mark.parametrize("config", [SHAPES["odd"], SHAPES["fixed depth"]], ids=["odd", "fixed depth"])
def test_a_mask_of_documents_costs_what_the_whole_square_does(config):
    loops = [4, 1, 2] if config.is_looped else [1, 1, 1]
    assert training_flops(config, loops, 2, separator=0) == training_flops(config, loops, 2)


def test_evaluation_at_many_recurrences_runs_the_loops_once():
    """T = 1..24 costs 24 loops and 24 codas, not 300 loops."""
    config = SHAPES["odd"]
    model = build_model(config)
    model.initialise(0)
    windows = np.zeros((2, config.context + 1), dtype=np.int64)

    def flops(recurrences):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            evaluate(model, windows, recurrences)
        return counter.get_total_flops()

    blocks = [block_cost(config, layer) for layer in range(config.layers)]
    products = [block.products + block.attention for block in blocks]
    square = config.width**2
    before = sum(products[: config.prelude_layers]) + square  # and the injection's B
    after = square + sum(products[-config.coda_layers :]) + config.padded_vocabulary * config.width
    loop = sum(products[config.prelude_layers : -config.coda_layers])
    per_product = 2 * 2 * config.context  # two sequences, two FLOPs
    assert flops([1]) == per_product * (before + loop + after)
    assert flops(range(1, 25)) == per_product * (before + 24 * loop + 24 * after)


@pytest.mark.parametrize("sampling", ["per-sequence", "per-batch", "fixed"])
@pytest.mark.parametrize("mean", [1, 2, 3, 8, 12])
def test_expected_loops_are_the_samplers(mean, sampling):
    recurrence = RecurrenceConfig(mean=mean, sampling=sampling)
    _compare_with_draws(recurrence, batch=2000 if sampling == "per-sequence" else 1)


@pytest.mark.parametrize("sampling", ["per-sequence", "fixed"])
def test_expected_loops_under_a_curriculum(sampling):
    recurrence = RecurrenceConfig(mean=9, sampling=sampling, curriculum_start=1, curriculum_fraction=0.6)
    _compare_with_draws(recurrence, batch=200)


@pytest.mark.parametrize(
    "depth",
    [
        {"mean": 1.5},
        {"mean": 9, "curriculum_start": 1.5, "curriculum_fraction": 0.6, "curriculum_shape": "sqrt"},
        {"mean": 2, "phases": ({"until": 0.5, "mean": 1}, {"until": 0.7, "mean": 5.5})},
        {"mean": 2, "phases": ({"until": 0.7, "mean": 1},), "sampling": "fixed"},
        {"mean": 8, "distribution": "log-normal-poisson"},
        {"mean": 1, "distribution": "log-normal-poisson"},
        {"mean": 4, "distribution": "log-normal-poisson", "backprop_depth": 9, "sampling": "per-batch"},
    ],
)
def test_expected_loops_of_other_depths(depth):
    recurrence = RecurrenceConfig(**depth)
    _compare_with_draws(recurrence, batch=20 if recurrence.sampling == "per-batch" else 200)


def _compare_with_draws(recurrence, batch):
    steps = 1000
    draws = np.concatenate(
        [sample_recurrences(recurrence, batch=batch, seed=5, step=s, steps=steps) for s in range(steps)]
    )
    forward, backward = expected_loops(recurrence, "exact")
    assert draws.mean() == pytest.approx(forward, abs=5 * draws.std() / np.sqrt(len(draws)) + 0.002)
    capped = np.minimum(draws, recurrence.gradient_loops)
    assert capped.mean() == pytest.approx(backward, abs=5 * capped.std() / np.sqrt(len(draws)) + 0.002)


@pytest.mark.parametrize("mean", [700, 1000, 4096])
def test_expected_loops_of_very_many(mean):
    forward, backward = expected_loops(RecurrenceConfig(mean=mean, backprop_depth=2 * mean), "exact")
    assert forward == pytest.approx(mean)
    assert backward == pytest.approx(mean, rel=1e-9)
    assert expected_loops(RecurrenceConfig(mean=mean, backprop_depth=2 * mean), "parcae-release") == (mean, mean)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"injection": "math:pi"}, "must return its cost as InjectionCost from `cost`, but 'math:pi'"),
        ({"block": "os:path"}, "must return its cost as BlockCost from `cost`, but 'os:path'"),
        ({"block": "tests.trainer.own:ScaledInjection"}, "must return its cost as BlockCost"),
        ({"injection": "no.such:Thing"}, "must be importable as module:Class"),
    ],
)
def test_a_class_of_ones_own_that_has_no_cost_is_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        loop_cost(SMALL.model_copy(update=change), "exact")


def test_expected_loops_without_truncation_are_equal():
    forward, backward = expected_loops(RecurrenceConfig(mean=4, backprop_depth=60), "exact")
    assert forward == pytest.approx(backward)


def test_steps_come_closest_to_the_budget():
    assert steps_for(1000.0, 99.0) == 10
    assert steps_for(40.0, 99.0) == 0
