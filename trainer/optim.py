"""Optimizers, Muon for the matrices of the blocks and AdamW for the rest, and their schedules."""

from torch import nn
from torch.optim import AdamW, Optimizer

from isoloop.trainer.config import OptimizerConfig, ScheduleConfig
from isoloop.trainer.muon import Muon, ReleasedMuon, ShareMatrices, TorchMuon, compute_alone

_BLOCK_PREFIXES = ("prelude.", "core.", "coda.")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters into (matrices of the blocks, everything else)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = name.startswith(_BLOCK_PREFIXES) and parameter.ndim == 2
        (matrices if in_block else rest).append(parameter)
    return matrices, rest


def make_optimizers(model: nn.Module, config: OptimizerConfig, share: ShareMatrices = compute_alone) -> list[Optimizer]:
    """Make Muon, in the variant of `config`, and AdamW without decay, at peak rates; see `Muon` for `share`."""
    matrices, rest = split_parameters(model)
    variant = ReleasedMuon if config.muon == "released" else TorchMuon
    muon = variant(
        matrices,
        rate=config.matrix_learning_rate,
        momentum=config.momentum_at(0),
        weight_decay=config.muon_weight_decay,
        share=share,
    )
    adamw = AdamW(
        rest, lr=config.learning_rate, betas=config.adam_betas, eps=config.adam_eps, weight_decay=0.0, fused=True
    )
    return [muon, adamw]


def apply_schedule(
    optimizers: list[Optimizer], config: OptimizerConfig, schedule: ScheduleConfig, step: int, steps: int
) -> None:
    """Set the learning rates, and Muon's weight decay and momentum, for `step` (0-based)."""
    factor = schedule.rate_factor(step, steps)
    decay_factor = factor if config.muon_weight_decay_schedule == "rate" else 1 - step / steps
    for optimizer in optimizers:
        is_muon = isinstance(optimizer, Muon)
        for group in optimizer.param_groups:
            group["lr"] = factor * (config.matrix_learning_rate if is_muon else config.learning_rate)
            if is_muon:
                group["weight_decay"] = config.muon_weight_decay * decay_factor
                group["momentum"] = config.momentum_at(step)
