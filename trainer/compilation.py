"""torch.compile for the blocks, with a number of graphs that doesn't grow although T does.

The number of loops never enters a graph: what is compiled is one pass through the prelude's, the core's or the coda's
blocks. The number of sequences still running does vary from loop to loop; it is marked as dynamic, so one graph serves
all of them from 2 up. What is left are the cases that torch compiles apart: with or without gradient, an input that is
a constant (the first loop that carries gradient) or not, one sequence or several.
"""

import torch
from torch import Tensor, nn

from trainer.language_model import LanguageModel, run_blocks
from trainer.layers import Rotary

MOST_GRAPHS = 16


def compile_blocks(model: LanguageModel, *, backend: str = "inductor") -> None:
    """Put the blocks of `model` through torch.compile; at most `MOST_GRAPHS` graphs are made.

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
