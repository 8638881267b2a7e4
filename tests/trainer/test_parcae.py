"""Properties of the model that no reference number shows."""

import pytest
import torch
from torch.nn import functional as F

from trainer.config import ModelConfig
from trainer.injection import DiagonalInjection
from trainer.layers import Rotary, init_matrix
from trainer.parcae import Parcae

CONFIG = ModelConfig(width=32, heads=2, core_layers=2, context=12)


@pytest.fixture
def model():
    model = Parcae(CONFIG)
    model.initialise(3)
    with torch.no_grad():  # away from zero, so that every path counts
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def step():
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 256, (5, 13), generator=generator)
    return windows[:, :-1], windows[:, 1:], torch.randn(5, 12, 32, generator=generator)


@pytest.mark.parametrize("gradient_loops", [1, 2, 9])
def test_leaving_the_batch_changes_nothing(model, step, gradient_loops):
    """Loss and gradients equal those of each sequence trained alone, its early loops without gradient."""
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 6, 1, 4])
    model.loss(tokens, targets, loops, gradient_loops, h0).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for i in range(5):
        alone = model.loss(tokens[i : i + 1], targets[i : i + 1], loops[i : i + 1], gradient_loops, h0[i : i + 1])
        (alone / 5).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-6, rtol=1e-4, msg=name)


def test_only_the_last_loops_carry_gradient(model, step):
    """With one gradient loop, the gradient is that of one loop from a state that is a constant."""
    tokens, targets, h0 = step
    loops = torch.full((5,), 4)
    model.loss(tokens, targets, loops, 1, h0).backward()
    truncated = model.injection.A_log.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        drive, values = model._before_loop(tokens)
        for _ in range(3):
            h0 = model._one_loop(h0, drive, values)
    model.loss(tokens, targets, torch.ones(5, dtype=torch.long), 1, h0).backward()
    torch.testing.assert_close(model.injection.A_log.grad, truncated)


def test_training_and_evaluation_agree(model, step):
    tokens, targets, h0 = step
    with torch.no_grad():
        for recurrence, logits in model.logits(tokens, [2, 5], h0):
            expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss = model.loss(tokens, targets, torch.full((5,), recurrence), 2, h0)
            torch.testing.assert_close(loss, expected)


def test_causal(model, step):
    tokens, _, h0 = step
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    with torch.no_grad():
        (_, before), (_, after) = (next(model.logits(t, [3], h0)) for t in (tokens, changed))
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 1e-3


def test_injection_at_the_start():
    injection = DiagonalInjection(8)
    torch.testing.assert_close(injection.decay(), torch.full((8,), 0.2**0.5))
    torch.testing.assert_close(injection.B.weight, torch.eye(8))
    assert injection.spectral_radius() < 1
    with torch.no_grad():
        injection.A_log.fill_(-20.0)
        injection.dt.fill_(-20.0)
    assert injection.spectral_radius() <= 1


def test_output_projections_start_at_zero_and_the_state_map_at_identity():
    model = Parcae(CONFIG)
    model.initialise(0)
    for block in (*model.prelude, *model.core, *model.coda):
        assert not block.attention.out.weight.any()
        assert not block.mlp.down.weight.any()
    torch.testing.assert_close(model.state_to_width.weight, torch.eye(32))


@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128)])
def test_matrices_start_orthogonal_with_the_stated_deviation(shape):
    weight = torch.empty(shape)
    init_matrix(weight, 0.1, torch.Generator().manual_seed(0))
    assert weight.pow(2).mean().sqrt() == pytest.approx(0.1, rel=1e-4)
    small = weight if shape[0] <= shape[1] else weight.T
    gram = small @ small.T
    torch.testing.assert_close(gram, torch.eye(len(gram)) * gram[0, 0], atol=1e-5, rtol=0)


def test_rotary_turns_interleaved_pairs():
    rotary = Rotary(head_width=4, context=3, base=50_000.0)
    x = torch.zeros(1, 3, 1, 4)
    x[..., 0] = 1.0
    turned = rotary(x)[0, :, 0]
    position = torch.arange(3.0)
    torch.testing.assert_close(turned[:, 0], position.cos())
    torch.testing.assert_close(turned[:, 1], position.sin())
    assert not turned[:, 2:].any()


@pytest.mark.parametrize(("state_init", "std"), [("zero", 0.0), ("normal", 1.0), ("like-init", (2 / 160) ** 0.5)])
def test_initial_state(state_init, std):
    model = Parcae(CONFIG.model_copy(update={"state_init": state_init}))
    state = model.initial_state(200, torch.Generator().manual_seed(0))
    assert state.shape == (200, 12, 32)
    assert state.std().item() == pytest.approx(std, rel=0.02)
