"""Parameters and FLOPs against the real module, torch's own counter and the published figures."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer.accounting import count_parameters, expected_loops, flops_per_token, loop_cost, steps_for
from trainer.config import ModelConfig, RecurrenceConfig
from trainer.parcae import Parcae
from trainer.recurrence import sample_recurrences

M140 = ModelConfig(width=768, heads=6, prelude_layers=2, core_layers=2, coda_layers=2, context=2048, vocabulary=32_768)
SHAPES = [
    ModelConfig(width=16, heads=2, context=8),
    ModelConfig(width=48, heads=3, prelude_layers=2, core_layers=3, coda_layers=1, context=12, vocabulary=300),
]


@pytest.mark.parametrize("config", [*SHAPES, M140], ids=["small", "odd", "140m"])
def test_parameters_equal_the_module(config):
    with torch.device("meta"):
        model = Parcae(config)
    parts = count_parameters(config)

    def numel(module):
        return sum(p.numel() for p in module.parameters())

    assert parts.total == numel(model)
    assert parts.core == numel(model.core)
    assert parts.effective(3) == numel(model.prelude) + numel(model.coda) + 3 * numel(model.core)


def test_published_140m_figures():
    parts = count_parameters(M140)
    assert parts.total == 144_323_136
    assert parts.token_table == 25_165_824
    assert parts.value_tables == 75_497_472


@pytest.mark.parametrize(("mean", "mflop"), [(1, 828), (2, 869), (4, 1033), (8, 1360)])
def test_release_accounting_gives_the_published_figures(mean, mflop):
    assert round(flops_per_token(M140, RecurrenceConfig(mean=mean), "parcae-release") / 1e6) == mflop


@pytest.mark.parametrize("config", SHAPES, ids=["small", "odd"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_exact_accounting_equals_torchs_counter(config, depth):
    """Forward and backward of one training step with mixed loop counts, to the last FLOP."""
    model = Parcae(config)
    model.initialise(0)
    loops = torch.tensor([1, 4, 2, 7])
    tokens = torch.randint(0, config.vocabulary, (4, config.context + 1), generator=torch.Generator().manual_seed(0))
    h0 = torch.zeros(4, config.context, config.width)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens[:, :-1], tokens[:, 1:], loops, depth, h0).backward()
    forward, backward = loops.float().mean().item(), loops.clamp(max=depth).float().mean().item()
    expected = 4 * config.context * loop_cost(config, "exact").flops_per_token(forward, backward)
    assert counter.get_total_flops() == round(expected)


@pytest.mark.parametrize("mean", [1, 2, 3, 8, 12])
def test_expected_loops_are_the_samplers(mean):
    recurrence = RecurrenceConfig(mean=mean)
    draws = np.concatenate([sample_recurrences(recurrence, batch=2000, seed=5, step=s) for s in range(20)])
    forward, backward = expected_loops(recurrence, "exact")
    assert draws.mean() == pytest.approx(forward, abs=5 * draws.std() / np.sqrt(len(draws)))
    assert np.minimum(draws, recurrence.gradient_loops).mean() == pytest.approx(backward, abs=0.02)


def test_expected_loops_without_truncation_are_equal():
    forward, backward = expected_loops(RecurrenceConfig(mean=4, backprop_depth=60), "exact")
    assert forward == pytest.approx(backward)


def test_steps_come_closest_to_what_was_asked():
    assert steps_for(1000.0, 99.0) == 10
    assert steps_for(40.0, 99.0) == 0
