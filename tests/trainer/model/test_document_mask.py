"""Attention within documents, held against each document run alone."""

import pytest
import torch

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.model.build import build_model, check_mask
from isoloop.trainer.model.language_model import mask_of
from isoloop.trainer.model.layers import document_mask
from tests.trainer.model.test_parcae import VARIANTS, build, each, gradients

SEPARATOR = 7
# The context is 12. The first sequence begins with the rest of a document, the last one is one document.
LENGTHS = [[3, 5, 4], [1, 1, 10], [6, 6], [2, 2, 2, 2, 2, 2], [12]]


@pytest.fixture
def model(request):
    return build(request.param)


@pytest.fixture
def step():
    """Tokens, targets and initial states of five sequences; the first has no separator before its first document."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(8, 256, (5, 13), generator=generator)
    for row, lengths in enumerate(LENGTHS):
        for start in torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist():
            windows[row, start] = SEPARATOR
    windows[0, 0] = 9
    return windows[:, :-1], windows[:, 1:], torch.randn(5, 12, 32, generator=generator)


def documents(row):
    start = 0
    for length in LENGTHS[row]:
        yield slice(start, start + length)
        start += length


def test_a_mask_is_causal_and_within_documents():
    tokens = torch.tensor([[5, SEPARATOR, 5, SEPARATOR, SEPARATOR, 5]])
    mask = mask_of(tokens, SEPARATOR)
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 1, 1],
        ]
    )
    assert mask.shape == (1, 1, 6, 6)
    assert torch.equal(mask[0, 0] == 0, expected.bool())
    assert torch.equal(mask[0, 0] == -torch.inf, ~expected.bool())
    assert mask_of(tokens, None) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert document_mask(tokens).dtype == torch.bfloat16


@each
def test_logits_are_those_of_each_document_alone(model, step):
    tokens, _, h0 = step
    depths = [1, 2, 5] if model.config.is_looped else [1]
    with torch.no_grad():
        for depth, together in model.logits(tokens, depths, h0, SEPARATOR):
            for row in range(5):
                for part in documents(row):
                    ((_, alone),) = model.logits(tokens[row : row + 1, part], [depth], h0[row : row + 1, part])
                    torch.testing.assert_close(together[row : row + 1, part], alone, atol=1e-5, rtol=1e-5)


@each
@pytest.mark.parametrize("recompute_loops", [False, True])
def test_loss_and_gradients_are_those_of_each_document_alone(model, step, request, recompute_loops):
    """Sequences leave the batch after loops of their own, in another order than they came."""
    if recompute_loops:
        if not model.config.is_looped:
            pytest.skip("there is no loop to run again")
        model = build(request.node.callspec.params["model"], recompute_loops=True)
    tokens, targets, h0 = step
    loops = torch.tensor([3, 1, 6, 1, 4] if model.config.is_looped else [1] * 5)
    loss = model.loss(tokens, targets, loops, 2, h0, SEPARATOR).nats
    together = gradients(model, loss)
    model.zero_grad()
    total = 0.0
    for row in range(5):
        for part in documents(row):
            one = slice(row, row + 1)
            alone = model.loss(tokens[one, part], targets[one, part], loops[one], 2, h0[one, part]).nats
            (alone * (part.stop - part.start) / 60).backward()
            total += alone.item() * (part.stop - part.start) / 60
    assert loss.item() == pytest.approx(total, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_sequence_of_one_document_is_as_without_a_mask(step):
    model = build("diagonal")
    tokens, targets, h0 = step
    loops = torch.tensor([3])
    masked = model.loss(tokens[4:], targets[4:], loops, 2, h0[4:], SEPARATOR).nats
    plain = model.loss(tokens[4:], targets[4:], loops, 2, h0[4:]).nats
    other = model.loss(tokens[:1], targets[:1], loops, 2, h0[:1]).nats
    assert masked.item() == pytest.approx(plain.item(), abs=1e-6)
    assert abs(model.loss(tokens[:1], targets[:1], loops, 2, h0[:1], SEPARATOR).nats - other) > 1e-4


def test_evaluation_takes_the_mask(step):
    model = build("diagonal")
    tokens, targets, _ = step
    windows = torch.cat([tokens, targets[:, -1:]], 1).numpy()
    assert evaluate(model, windows, [2], separator=SEPARATOR, batch=2) != evaluate(model, windows, [2])
    masked, at_once = (evaluate(model, windows, [2], separator=SEPARATOR, batch=batch)[2] for batch in (2, 5))
    assert masked == pytest.approx(at_once, abs=1e-6)


def test_a_block_of_ones_own_must_take_the_mask(monkeypatch):
    own = build_model(ModelConfig(width=32, heads=2, context=12, **VARIANTS["own"]))
    check_mask(own)
    monkeypatch.setattr(type(own.core[0]), "forward", lambda self, x, rotary, value_embedding: x)
    with pytest.raises(ValueError, match=r"'tests.trainer.own:ParallelBlock' has no argument `mask`; add it"):
        check_mask(own)
