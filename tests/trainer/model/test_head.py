"""The chunked cross-entropy against the plain one, and that it never holds all logits."""

from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.memory import LOGITS_AT_ONCE
from isoloop.trainer.model.build import build_model, compile_blocks
from isoloop.trainer.model.head import mean_cross_entropy

ROWS, WIDTH, VOCABULARY = 300, 24, 512


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 100, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    return x, weight, torch.randint(0, VOCABULARY, (3, 100), generator=generator)


def plain(x, weight, targets, soft_cap=None):
    logits = (x @ weight.T).flatten(0, 1).float()
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return F.cross_entropy(logits, targets.flatten())


@pytest.mark.parametrize("soft_cap", [None, 0.5, 30.0])
@pytest.mark.parametrize("rows", [64, 100, 299, 300, 10_000])
def test_loss_and_gradients_are_the_plain_ones(inputs, rows, soft_cap):
    x, weight, targets = inputs
    expected = plain(x, weight, targets, soft_cap)
    gradients = torch.autograd.grad(3 * expected, (x, weight))
    found = mean_cross_entropy(x, weight, targets, logits_at_once=rows * VOCABULARY, soft_cap=soft_cap)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, (x, weight)), gradients)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_a_z_loss_adds_to_the_gradient_and_not_to_the_loss(inputs, soft_cap):
    x, weight, targets = inputs
    logits = x @ weight.T
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    objective = plain(x, weight, targets, soft_cap) + 0.01 * logits.logsumexp(-1).square().mean()
    expected = torch.autograd.grad(objective, (x, weight))
    options = {"logits_at_once": 100 * VOCABULARY, "soft_cap": soft_cap}
    without = mean_cross_entropy(x, weight, targets, **options)
    found = mean_cross_entropy(x, weight, targets, z_loss=0.01, **options)
    assert found.item() == without.item()
    torch.testing.assert_close(torch.autograd.grad(found, (x, weight)), expected)


def draw_predicted(seed=5):
    return torch.rand(3, 100, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("rows", [64, 299, 10_000])
def test_over_some_targets_it_is_their_plain_mean(inputs, rows, soft_cap):
    """Also in chunks without any of them; the others have no gradient at all."""
    x, weight, targets = inputs
    predicted = draw_predicted()
    predicted[1] = False
    logits = (x @ weight.T)[predicted]
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    expected = F.cross_entropy(logits, targets[predicted])
    objective = expected + 0.01 * logits.logsumexp(-1).square().mean()
    gradients = torch.autograd.grad(3 * objective, (x, weight))
    options = {"logits_at_once": rows * VOCABULARY, "soft_cap": soft_cap, "z_loss": 0.01, "predicted": predicted}
    found = mean_cross_entropy(x, weight, targets, **options)
    torch.testing.assert_close(found, expected)
    own = torch.autograd.grad(3 * found, (x, weight))
    torch.testing.assert_close(own, gradients)
    assert not own[0][~predicted].any()
    with torch.no_grad():
        torch.testing.assert_close(mean_cross_entropy(x, weight, targets, **options), expected)


def test_over_no_targets_it_is_zero_and_so_are_its_gradients(inputs):
    x, weight, targets = inputs
    loss = mean_cross_entropy(x, weight, targets, predicted=torch.zeros(3, 100, dtype=torch.bool))
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


def test_over_some_targets_it_costs_the_same(inputs):
    x, weight, targets = inputs
    counts = []
    for predicted in (None, draw_predicted()):
        with FlopCounterMode(display=False) as counter:
            mean_cross_entropy(x, weight, targets, predicted=predicted).backward()
        counts.append(counter.get_total_flops())
    assert counts == [6 * ROWS * WIDTH * VOCABULARY] * 2


def test_only_the_gradients_that_are_wanted(inputs):
    x, weight, targets = inputs
    alone = mean_cross_entropy(x.detach(), weight, targets)
    alone.backward()
    assert x.grad is None
    with torch.no_grad():
        torch.testing.assert_close(mean_cross_entropy(x, weight, targets), alone)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_bfloat16_is_as_close_as_autocast_itself(inputs, soft_cap):
    x, weight, targets = inputs
    expected = torch.autograd.grad(plain(x, weight, targets, soft_cap), (x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = torch.autograd.grad(plain(x, weight, targets, soft_cap), (x, weight))
        chunked = mean_cross_entropy(x, weight, targets, logits_at_once=64 * VOCABULARY, soft_cap=soft_cap)
        found = torch.autograd.grad(chunked, (x, weight))
    for exact, theirs, ours in zip(expected, usual, found, strict=True):
        assert ours.dtype == exact.dtype
        assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


def test_without_gradient_only_the_loss_is_computed(inputs):
    x, weight, targets = inputs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mean_cross_entropy(x, weight, targets)
    assert counter.get_total_flops() == 2 * ROWS * WIDTH * VOCABULARY


def test_a_second_backward_pass_is_refused(inputs):
    loss = mean_cross_entropy(*inputs)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="allows one backward pass"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_never_all_logits(inputs):
    x, weight, targets = inputs
    with Largest() as chunked:
        mean_cross_entropy(x, weight, targets, logits_at_once=64 * VOCABULARY).backward()
    with Largest() as whole:
        plain(x, weight, targets).backward()
    assert chunked.elements == 64 * VOCABULARY
    assert whole.elements == ROWS * VOCABULARY


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("some", [False, True], ids=["all targets", "some targets"])
@pytest.mark.parametrize(("soft_cap", "z_loss"), [(None, 0.0), (3.0, 1e-3)])
def test_compiled_it_is_the_same_to_the_bit_in_few_graphs(soft_cap, z_loss, some, half):
    """With whole chunks and a rest of any size. It is traced but not compiled, since kernels round otherwise."""
    torch._dynamo.reset()
    counters.clear()
    config = ModelConfig(width=WIDTH, heads=2, vocabulary=VOCABULARY, logit_soft_cap=soft_cap, z_loss=z_loss)
    compiled = build_model(config)
    compile_blocks(compiled, backend="aot_eager")
    plain = build_model(config)
    plain.load_state_dict(compiled.state_dict())
    for rows in (300, 257, 256, 70, 511):
        generator = torch.Generator().manual_seed(rows)
        x = torch.randn(rows, WIDTH, generator=generator, requires_grad=True)
        targets = torch.randint(0, VOCABULARY, (rows,), generator=generator)
        predicted = torch.rand(rows, generator=generator) < 0.5 if some else None
        found = []
        for model in (compiled, plain):
            with (
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
                mock.patch.dict(LOGITS_AT_ONCE, cpu=64 * VOCABULARY),
            ):
                loss = model.cross_entropy(x, targets, predicted)
                with torch.no_grad():
                    evaluated = model.cross_entropy(x, targets, predicted)
            found.append((loss.detach(), evaluated, *torch.autograd.grad(loss, (x, model.head_weight))))
        assert all(map(torch.equal, *found))
    assert 2 <= counters["stats"]["unique_graphs"] <= 5  # with and without gradient, one row or more, other factors
