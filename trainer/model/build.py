"""Construction and compilation of a model."""

import inspect
import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.head import loss_and_gradient
from isoloop.trainer.model.language_model import LanguageModel, run_blocks
from isoloop.trainer.model.layers import PreNormBlock, Rotary
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.model.transformer import Transformer

MAX_GRAPHS = 16
# What the graphs of the last compiled model depend on; torch's cache of graphs, too, is one for the process.
_last_compiled: tuple[Hashable, ...] = ()


def build_model(config: ModelConfig, *, mean_recurrence: float = 1, recompute_loops: bool = False) -> LanguageModel:
    """Build the model that `config` describes; its weights aren't drawn yet.

    `mean_recurrence` (µ_rec) matters only for `config.residual_scale`.

    Raises:
        ValueError: `recompute_loops` (activation checkpointing) is set for a model without a loop, or a class of the
            user's own can't be imported.
    """
    if config.is_looped:
        model = Parcae(config, recompute_loops=recompute_loops)
        if config.residual_scale is not None:
            for block in model.core:
                assert isinstance(block, PreNormBlock)
                block.branch_scale = config.residual_scale / (mean_recurrence * math.sqrt(config.core_layers))
        return model
    if recompute_loops:
        raise ValueError(
            "activation checkpointing needs a loop, but got a fixed-depth Transformer (injection: none), which has "
            "none; turn it off"
        )
    return Transformer(config)


def check_mask(model: LanguageModel) -> None:
    """Raise ValueError if a block of the user's own takes no mask, which `data.document_mask` needs."""
    if not _blocks_take(model, "mask"):
        raise ValueError(
            "with data.document_mask, a block of your own must pass a mask on to attention, but the forward of "
            f"'{model.config.block}' has no argument `mask`; add it (docs/extending.md), or set data.document_mask "
            "to false"
        )


def check_cache(model: LanguageModel) -> None:
    """Raise ValueError if a block of the user's own can't use a cache of keys and values."""
    if not _blocks_take(model, "cached"):
        raise ValueError(
            "with a cache, a block of your own must pass it on to attention, but the forward of "
            f"'{model.config.block}' has no argument `cached`; add it (docs/extending.md), or go without a cache"
        )


def _blocks_take(model: LanguageModel, argument: str) -> bool:
    blocks = (*model.prelude, *model.core, *model.coda)
    return all(argument in inspect.signature(type(block).forward).parameters for block in blocks)


def compile_blocks(model: LanguageModel, *settings: Hashable, backend: str = "inductor") -> None:
    """Compile the blocks of `model` and the softmax of its head into at most `MAX_GRAPHS` graphs each.

    A graph is one pass through the blocks of the prelude, the core or the coda, so the number of loops never enters it.
    The number of sequences still running varies from loop to loop and is marked as dynamic, so one graph serves any
    number from 2 up. torch compiles separate graphs with and without gradient, for an input that is a constant (the
    first loop that carries gradient) or not, and for one sequence or several. The head's graphs are those with and
    without gradient, for any number of rows.

    Graphs of the model before in this process serve this one if it has the same configuration and `settings`, which are
    all else that graphs depend on: precision, masks and the like. Others are discarded, so that a model has all
    `MAX_GRAPHS` to itself. Beyond these, torch would run uncompiled and warn.
    """
    global _last_compiled
    if _last_compiled != (model.config, *settings, backend):
        torch._dynamo.reset()
        _last_compiled = (model.config, *settings, backend)
    compiled = torch.compile(run_blocks, backend=backend)

    def run(
        blocks: nn.ModuleList,
        first: int,
        x: Tensor,
        rotary: Rotary,
        values: dict[int, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        for tensor in (x, *values.values(), *(() if mask is None else (mask,))):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            return compiled(blocks, first, x, rotary, values, mask)

    compiled_chunk = torch.compile(loss_and_gradient, backend=backend)

    def run_chunk(
        logits: Tensor,
        ids: Tensor,
        soft_cap: float | None,
        z_loss: float,
        scale: float,
        with_gradient: bool,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        for tensor in (logits, ids, *(() if weights is None else (weights,))):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            return compiled_chunk(logits, ids, soft_cap, z_loss, scale, with_gradient, weights)

    model.run_blocks, model.loss_and_gradient = run, run_chunk
