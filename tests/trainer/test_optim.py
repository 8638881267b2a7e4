import pytest
import torch
from torch.optim import AdamW, Muon

from isoloop.trainer.config import ModelConfig, OptimizerConfig, ScheduleConfig
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.optim import apply_schedule, make_optimizers, split_parameters


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


def test_trapezoid():
    schedule = ScheduleConfig(decay_fraction=0.5)
    factors = [schedule.rate_factor(step, 8) for step in range(8)]
    assert factors == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert ScheduleConfig(decay_fraction=0.0).rate_factor(7, 8) == 1.0


def test_rates_and_decay_follow_the_schedule(model):
    config, schedule = OptimizerConfig(learning_rate=0.01, muon_learning_rate=0.04), ScheduleConfig()
    muon, adamw = optimizers = make_optimizers(model, config)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    apply_schedule(optimizers, config, schedule, 75, 100)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.02)
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.005)
    assert muon.param_groups[0]["weight_decay"] == pytest.approx(0.2 * 0.25)
    assert adamw.param_groups[0]["weight_decay"] == 0
    with_rate = config.model_copy(update={"muon_weight_decay_schedule": "rate"})
    for step, decay in ((30, 0.2), (75, 0.1)):
        apply_schedule(optimizers, with_rate, schedule, step, 100)
        assert muon.param_groups[0]["weight_decay"] == pytest.approx(decay)


def test_muons_step_grows_with_rows_over_columns():
    tall, square = torch.nn.Parameter(torch.zeros(64, 16)), torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([tall, square], lr=1.0, weight_decay=0.0, adjust_lr_fn="original")
    generator = torch.Generator().manual_seed(0)
    for p in (tall, square):
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    ratio = torch.linalg.matrix_norm(tall, 2) / torch.linalg.matrix_norm(square, 2)
    assert ratio.item() == pytest.approx(2.0, rel=0.3)  # sqrt(64 / 16), within Newton-Schulz's spread
