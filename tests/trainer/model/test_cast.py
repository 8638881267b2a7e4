"""One cast for several uses equals a cast at each use to the bit, and autocast casts as often as there are tensors."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.cast import SharedCast

USES = 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_of_all_uses_are_summed_as_if_each_had_its_own_cast(precision):
    """Of fewer and fewer rows, as in the loops of a batch."""
    generator = torch.Generator().manual_seed(0)
    weight, factors = torch.randn(8, 8, generator=generator), torch.randn(USES, 6, 8, generator=generator)
    found = []
    for shared in (True, False):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            once = SharedCast(2 * x) if shared else 2 * x
            results = []
            for number, factor in enumerate(factors):
                part = once[: 6 - number]
                results.append((part.use() if shared else part) @ weight * factor[: 6 - number])
        sum(result.float().sum() for result in results).backward()
        found.append((*results, x.grad))
    assert all(map(torch.equal, *found))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        assert SharedCast(x).use().dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


def test_without_gradient_it_is_a_plain_copy():
    x = torch.randn(3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        once = SharedCast(x)
        assert not once.detach().use().requires_grad
        assert once[torch.tensor([2, 0])].use().requires_grad
        with torch.no_grad():
            assert torch.equal(SharedCast(x)[1:].use(), x[1:].bfloat16())
    assert SharedCast(x).use() is x


class Casts(TorchDispatchMode):
    """How many tensors of each shape were cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.count[tuple(args[0].shape)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_forward_pass_casts_value_embeddings_once_whatever_the_loops(recompute):
    """Queries, keys and values share a cast of what they are computed from, too."""
    config = ModelConfig(width=36, heads=3, key_value_heads=1, context=8, core_layers=2)
    assert sum(map(config.has_value_embedding, config.core)) == 1
    model = build_model(config, recompute_loops=recompute)
    model.initialise(0)
    tokens, tables = torch.zeros(2, 9, dtype=torch.long), sum(map(config.has_value_embedding, range(config.layers)))
    for loops in (1, 6):
        with torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], torch.full((2,), loops), 3, model.initial_state((0, 1), 8))
        loss.nats.backward()
        assert casts.count[2, 8, config.kv_width] == tables
        layers_run = config.prelude_layers + config.coda_layers + loops * config.core_layers
        assert casts.count[2, 8, config.width] == 2 * layers_run + 2  # before attention, MLP, B and W_C
