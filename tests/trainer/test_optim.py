import copy

import numpy as np
import pytest
import torch
from torch.optim import AdamW

from isoloop.trainer.config import ModelConfig, OptimizerConfig, ScheduleConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.muon import Muon, ReleasedMuon, TorchMuon
from isoloop.trainer.optim import apply_schedule, make_optimizers, split_parameters

RATE, STEPS = 0.008, 50
SHAPES = [(24, 24), (24, 24), (96, 24), (24, 96), (3, 16), (24, 24), (96, 24)]


@pytest.fixture
def model():
    return Parcae(ModelConfig(width=16, heads=2))


def test_every_parameter_exactly_once(model):
    matrices, rest = split_parameters(model)
    ids = [id(p) for p in (*matrices, *rest)]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].split(".")[0] in {"prelude", "core", "coda"} for p in matrices)
    adam = {names[id(p)] for p in rest}
    assert {"embedding.weight", "state_to_width.weight", "injection.B.weight", "injection.A_log"} <= adam
    assert all(p.ndim == 2 for p in matrices)


def test_an_untied_head_belongs_to_adamw():
    model = build_model(ModelConfig(tied_head=False))
    assert any(p is model.head.weight for p in split_parameters(model)[1])


def test_trapezoid():
    schedule = ScheduleConfig(decay_fraction=0.5)
    factors = [schedule.rate_factor(step, 8) for step in range(8)]
    assert factors == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert ScheduleConfig(decay_fraction=0.0).rate_factor(7, 8) == 1.0


def test_rates_and_decay_follow_the_schedule(model):
    config, schedule = OptimizerConfig(learning_rate=0.01, muon_learning_rate=0.04), ScheduleConfig()
    muon, adamw = optimizers = make_optimizers(model, config)
    assert isinstance(muon, TorchMuon)
    assert isinstance(adamw, AdamW)
    apply_schedule(optimizers, config, schedule, 75, 100)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.02)
    assert muon.param_groups[0]["momentum"] == 0.95
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.005)
    assert muon.param_groups[0]["weight_decay"] == pytest.approx(0.2 * 0.25)
    assert adamw.param_groups[0]["weight_decay"] == 0
    with_rate = config.model_copy(update={"muon_weight_decay_schedule": "rate"})
    for step, decay in ((30, 0.2), (75, 0.1)):
        apply_schedule(optimizers, with_rate, schedule, step, 100)
        assert muon.param_groups[0]["weight_decay"] == pytest.approx(decay)


def test_the_released_momentum_rises_over_300_steps(model):
    config = OptimizerConfig(muon="released")
    optimizers = make_optimizers(model, config)
    assert isinstance(optimizers[0], ReleasedMuon)
    for step, momentum in ((0, 0.85), (75, 0.875), (150, 0.9), (300, 0.95), (5000, 0.95)):
        apply_schedule(optimizers, config, ScheduleConfig(), step, 10_000)
        assert optimizers[0].param_groups[0]["momentum"] == pytest.approx(momentum)
    low = config.model_copy(update={"muon_momentum": 0.5})
    assert [low.momentum_at(step) for step in (0, 100, 300)] == [0.5, 0.5, 0.5]


def gradients(step):
    """Gradients as training has them: zero at first, of low rank, of sizes that change."""
    generator = torch.Generator().manual_seed(step)
    for index, (rows, columns) in enumerate(SHAPES):
        left = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
        right = torch.randn(6, columns, generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        yield (left @ right + 0.3 * noise) * 10.0 ** (index - 3) * (0 if step == 0 and index == 1 else 1)


def matrices(dtype):
    generator = torch.Generator().manual_seed(99)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 for shape in SHAPES]
    return [torch.nn.Parameter(matrix.to(dtype)) for matrix in drawn]


def released(dtype, inner):
    """The matrices after 50 steps of our optimizer, whose orthogonalisation is in `inner`."""
    ours = matrices(dtype)
    optimizer = ReleasedMuon(ours, rate=RATE, momentum=0.85, weight_decay=0.2, dtype=inner)
    group = optimizer.param_groups[0]
    for step in range(STEPS):
        group["momentum"], group["weight_decay"] = 0.85 + 0.1 * step / 300, 0.2 * (1 - step / STEPS)
        for matrix, gradient in zip(ours, gradients(step), strict=True):
            matrix.grad = gradient.to(dtype)
        optimizer.step()
    return ours


def reference():
    """The matrices after 50 steps of the release's recipe: one at a time, in numpy, in double precision."""
    steps = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ]
    results = []
    for index, start in enumerate(matrices(torch.float64)):
        weights = start.detach().numpy().copy()
        rows, columns = weights.shape
        momentum, variance = np.zeros_like(weights), np.zeros(max(rows, columns))
        for step in range(STEPS):
            mu, decay = 0.85 + 0.1 * step / 300, 0.2 * (1 - step / STEPS)
            gradient = list(gradients(step))[index].numpy()
            momentum = mu * momentum + (1 - mu) * gradient
            x = (1 - mu) * gradient + mu * momentum
            x = x / (1.02 * np.sqrt((x**2).sum()) + 1e-6)
            for a, b, c in steps:
                if rows > columns:
                    gram = x.T @ x
                    x = a * x + x @ (b * gram + c * gram @ gram)
                else:
                    gram = x @ x.T
                    x = a * x + (b * gram + c * gram @ gram) @ x
            norm = np.sqrt((x**2).sum())
            variance = 0.95 * variance + 0.05 * (x**2).mean(axis=1 if rows >= columns else 0)
            root = np.sqrt(np.maximum(variance, 1e-10))
            x = x / (root[:, None] if rows >= columns else root[None, :])
            x = x * norm / max(np.sqrt((x**2).sum()), 1e-10)
            rate = RATE * max(1.0, rows / columns) ** 0.5
            shrinks = x * weights >= 0
            weights = weights - rate * x - rate * decay * np.where(shrinks, weights, 0.0)
        results.append(weights)
    return results


def test_released_muon_equals_a_reference_that_takes_one_matrix_at_a_time():
    for ours, theirs in zip(released(torch.float64, torch.float64), reference(), strict=True):
        assert ours.detach().numpy() == pytest.approx(theirs, abs=1e-6)


def test_in_bfloat16_as_in_training_it_stays_close_to_the_reference():
    """The bfloat16 of the orthogonalisation is worth a few percent of the way that weights go."""
    for start, ours, theirs in zip(
        matrices(torch.float64), released(torch.float32, torch.bfloat16), reference(), strict=True
    ):
        way = np.linalg.norm(theirs - start.detach().numpy())
        assert np.linalg.norm(ours.detach().numpy() - theirs) < 0.05 * way


def test_torchs_muon_in_stacks_equals_it_one_matrix_at_a_time_to_the_bit():
    ours, theirs = matrices(torch.float32), matrices(torch.float32)
    stacked = TorchMuon(ours, rate=0.04, momentum=0.95, weight_decay=0.2)
    single = torch.optim.Muon(theirs, lr=0.04, momentum=0.95, weight_decay=0.2, adjust_lr_fn="original")
    for step in range(20):
        for mine, other, gradient in zip(ours, theirs, gradients(step), strict=True):
            mine.grad, other.grad = gradient.float(), gradient.float()
        stacked.step()
        single.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(stacked.state[mine]["momentum_buffer"], single.state[other]["momentum_buffer"])

    # A state of torch's class, as in checkpoints of older versions, goes on
    stacked.load_state_dict(copy.deepcopy(single.state_dict()))
    stacked.step()
    single.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("variant", [TorchMuon, ReleasedMuon])
def test_a_matrix_without_a_gradient_stays_and_the_others_go_on(variant):
    """Stacks are made anew from the states of the matrices when another set of them has gradients."""

    def trained(present):
        ours = matrices(torch.float32)
        optimizer: Muon = variant(ours, rate=0.01, momentum=0.9, weight_decay=0.1)
        for step in range(4):
            for index, (matrix, gradient) in enumerate(zip(ours, gradients(step), strict=True)):
                matrix.grad = gradient.float() if present(step, index) else None
            optimizer.step()
        return ours

    whole, without = trained(lambda step, index: True), trained(lambda step, index: index != 1 or step == 9)
    assert torch.equal(without[1], matrices(torch.float32)[1])
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(whole, without, strict=True)) if i != 1)
    late = trained(lambda step, index: index != 1 or step in (0, 2, 3))
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(whole, late, strict=True)) if i != 1)


@pytest.mark.parametrize("variant", [TorchMuon, ReleasedMuon])
def test_the_step_grows_with_rows_over_columns(variant):
    tall, square = torch.nn.Parameter(torch.zeros(64, 16)), torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = variant([tall, square], rate=1.0, momentum=0.95, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for p in (tall, square):
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    ratio = torch.linalg.matrix_norm(tall) / torch.linalg.matrix_norm(square)
    assert ratio.item() == pytest.approx(2.0, rel=0.1)  # sqrt(64 / 16), within the spread of the singular values
