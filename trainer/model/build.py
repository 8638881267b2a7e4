"""Model configuration -> model."""

import torch
from torch import Tensor, nn

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.language_model import LanguageModel, run_blocks
from isoloop.trainer.model.layers import Rotary
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.model.transformer import Transformer


def build_model(config: ModelConfig, *, recompute_loops: bool = False) -> LanguageModel:
    """The model that `config` describes, its weights not drawn yet.

    Raises:
        ValueError: `recompute_loops` (activation checkpointing) for a model without a loop; a class of the user's own
            can't be imported.
    """
    if config.is_looped:
        return Parcae(config, recompute_loops=recompute_loops)
    if recompute_loops:
        raise ValueError(
            "activation checkpointing works loop by loop, but a fixed-depth Transformer (injection: none) has no loop; "
            "turn it off"
        )
    return Transformer(config)


MOST_GRAPHS = 16


def compile_blocks(model: LanguageModel, *, backend: str = "inductor") -> None:
    """Put the blocks of `model` through torch.compile; at most `MOST_GRAPHS` graphs are made.

    What is compiled is one pass through the blocks of the prelude, the core or the coda, so the number of loops
    never enters a graph. The number of sequences still running varies from loop to loop: it is marked as dynamic,
    so one graph serves all of them from 2 up. torch compiles apart: with or without gradient, an input that is a
    constant (the first loop that carries gradient) or not, one sequence or several.

    Graphs of another model in this process are forgotten, so that each has the whole number to itself. One graph more
    than that would run uncompiled, and torch would say so.
    """
    torch._dynamo.reset()
    compiled = torch.compile(run_blocks, backend=backend)

    def run(blocks: nn.ModuleList, first: int, x: Tensor, rotary: Rotary, values: dict[int, Tensor]) -> Tensor:
        mine = {layer: values[layer] for layer in range(first, first + len(blocks)) if layer in values}
        for tensor in (x, *mine.values()):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            return compiled(blocks, first, x, rotary, mine)

    model.run_blocks = run
