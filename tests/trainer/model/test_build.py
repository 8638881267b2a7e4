"""torch.compile sees a bounded number of graphs although T and the number of running sequences vary."""

import gc
import random
import weakref
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import MAX_GRAPHS, build_model, compile_blocks

# Of the head in training: for the first number of tokens, and for any other.
HEAD_GRAPHS = 2


# torch looks at .grad of what it compiles and hides its own warning, too late where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("injection", "layers", "separator", "key_value_heads"),
    [
        ("diagonal", 2, None, None),
        ("concat", 1, None, None),
        ("none", 1, None, None),
        ("diagonal", 1, 7, None),
        ("diagonal", 1, None, 1),
    ],
)
def test_the_graphs_are_bounded_and_the_numbers_the_same(injection, layers, separator, key_value_heads):
    torch._dynamo.reset()
    counters.clear()
    depth = {"prelude_layers": layers, "core_layers": layers}
    config = ModelConfig(width=16, heads=2, **depth, context=8, injection=injection, key_value_heads=key_value_heads)
    model = build_model(config)
    model.initialise(0)
    compiled = build_model(config)
    compiled.load_state_dict(model.state_dict())
    compile_blocks(compiled, backend="eager")
    chance = random.Random(0)
    graphs = []
    for _ in range(25):
        batch = chance.choice([1, 3, 8, 9])
        loops = torch.tensor([chance.randint(1, 9) if config.is_looped else 1 for _ in range(batch)])
        tokens = torch.randint(0, 256, (batch, 9), generator=torch.Generator().manual_seed(batch))
        found = []
        for which in (model, compiled):
            which.zero_grad()
            h0 = which.initial_state(range(batch), 8)
            loss = which.loss(tokens[:, :-1], tokens[:, 1:], loops, 3, h0, separator).nats
            loss.backward()
            found.append((loss.detach(), *(p.grad for p in which.parameters())))
        torch.testing.assert_close(found[1], found[0])
        with torch.no_grad():
            depths = [1, 4] if config.is_looped else [1]
            list(compiled.logits(tokens[:, :-1], depths, torch.zeros(batch, 8, 16), separator))
        graphs.append(counters["stats"]["unique_graphs"])
    assert 3 <= graphs[-1] - HEAD_GRAPHS <= MAX_GRAPHS
    assert graphs[-1] == graphs[12]  # all there are, soon


# See above.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_graphs_serve_the_next_model_of_the_same_shapes_and_no_other():
    """Weights of the next model are other ones, and so is its loss; a model of another width begins anew."""

    def losses(config, seed, precision="float32"):
        model = build_model(config)
        model.initialise(seed)
        plain = build_model(config)
        plain.load_state_dict(model.state_dict())
        compile_blocks(model, precision, backend="eager")
        models.append(weakref.ref(model))
        tokens = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(1))
        found = []
        for which in (model, plain):
            h0 = which.initial_state(range(3), 8)
            loss = which.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([4, 3, 1]), 2, h0).nats
            loss.backward()
            found.append((loss.detach(), *(p.grad for p in which.parameters())))
        torch.testing.assert_close(found[0], found[1])
        return found[0][0].item()

    torch._dynamo.reset()
    models = []
    small, wide = (ModelConfig(width=width, heads=2, context=8) for width in (16, 32))
    counters.clear()
    first = losses(small, 0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 3
    assert losses(small, 1) != first
    assert counters["stats"]["unique_graphs"] == graphs
    with mock.patch.object(torch._dynamo, "reset", wraps=torch._dynamo.reset) as reset:
        assert losses(small, 0) == first
        assert reset.call_count == 0
        losses(wide, 0)
        losses(wide, 0, "bfloat16")
        assert reset.call_count == 2
    gc.collect()
    assert [model() for model in models] == [None] * 5  # kept graphs keep no weights
