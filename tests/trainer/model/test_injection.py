"""The contract of an injection, run on each of them and on one of a user's own."""

import math

import pytest
import torch

from isoloop.trainer.accounting import injection_cost
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.injection import ConcatInjection, DiagonalInjection, Injection, make_injection

NAMES = ["diagonal", "concat", "addition", "tests.trainer.own:ScaledInjection"]
WIDTH = 12


def config_of(name):
    return ModelConfig(width=WIDTH, heads=2, injection=name)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def injection(name):
    injection = make_injection(config_of(name))
    generator = torch.Generator().manual_seed(0)
    injection.initialise(0.2, generator)
    with torch.no_grad():  # away from the start, where some matrices are the identity
        for parameter in injection.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return injection


def test_the_spectral_radius_is_that_of_the_loops_own_map(injection):
    """ρ(Ā) against the Jacobian of the injection itself, and against what many loops do to a state."""
    drive = torch.randn(1, 1, WIDTH)
    transition = torch.autograd.functional.jacobian(
        lambda h: injection.inject(h[None, None], drive)[0, 0], torch.ones(WIDTH)
    )
    radius = injection.spectral_radius()
    assert injection.radius_on_device() in (None, radius)
    assert torch.linalg.eigvals(transition.double()).abs().max().item() == pytest.approx(radius, rel=1e-5)
    state, growth = torch.randn(1, 1, WIDTH, dtype=torch.float64), 0.0
    transition, loops = transition.double(), 600
    for _ in range(loops):
        state = state @ transition.T
        growth += state.norm().log().item()
        state = state / state.norm()
    assert math.exp(growth / loops) == pytest.approx(radius, rel=0.02)


def test_a_loop_is_affine_in_the_state_and_its_drive(injection):
    generator = torch.Generator().manual_seed(1)
    h, other, e = (torch.randn(2, 3, WIDTH, generator=generator) for _ in range(3))
    drive = injection.drive(e)
    assert drive.shape == e.shape
    zero = torch.zeros_like(h)
    torch.testing.assert_close(injection.inject(zero, drive), drive)
    both = injection.inject(h + other, drive)
    torch.testing.assert_close(both, injection.inject(h, drive) + injection.inject(other, zero))


def test_every_parameter_learns_and_is_counted(injection, name):
    generator = torch.Generator().manual_seed(2)
    h, e = (torch.randn(2, 3, WIDTH, generator=generator) for _ in range(2))
    parameters = list(injection.parameters())
    assert sum(p.numel() for p in parameters) == injection_cost(config_of(name)).parameters
    if parameters:
        injection.inject(h, injection.drive(e)).square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in parameters)


def test_the_start_follows_from_the_generator(name):
    def drawn(seed):
        injection = make_injection(config_of(name))
        injection.initialise(0.2, torch.Generator().manual_seed(seed))
        return injection.state_dict()

    first, again = drawn(5), drawn(5)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_diagonal_starts_as_published_and_never_reaches_one():
    injection = DiagonalInjection(8)
    torch.testing.assert_close(injection.decay(), torch.full((8,), 0.2**0.5))
    torch.testing.assert_close(injection.B.weight, torch.eye(8))
    assert injection.spectral_radius() < 1
    with torch.no_grad():
        injection.A_log.fill_(-20.0)
        injection.dt.fill_(-20.0)
    assert injection.spectral_radius() <= 1


def test_concat_is_one_linear_map_on_both():
    injection = ConcatInjection(WIDTH)
    injection.initialise(0.2, torch.Generator().manual_seed(0))
    assert injection.weight.pow(2).mean().sqrt().item() == pytest.approx(0.2, rel=1e-4)
    h, e = torch.randn(2, 1, 5, WIDTH)
    together = torch.cat([h, e], dim=-1) @ injection.weight.T
    torch.testing.assert_close(injection.inject(h, injection.drive(e)), together)
    with torch.no_grad():
        injection.weight[0, 0] = math.nan
    assert math.isnan(injection.spectral_radius())


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("no.such.module:Class", "must be importable as module:Class"),
        ("tests.trainer.own:Missing", "must be importable as module:Class"),
        ("tests.trainer.own:ParallelBlock", "must be a subclass of isoloop.trainer.model.injection.Injection"),
    ],
)
def test_what_is_no_injection_is_refused(path, rule):
    with pytest.raises(ValueError, match=rule):
        make_injection(config_of(path))


def test_an_injection_that_lacks_a_part_is_refused():
    class Half(Injection):
        def drive(self, e):
            return e

    with pytest.raises(TypeError, match="abstract"):
        Half()
