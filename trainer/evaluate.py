"""Validation loss at many recurrences in one pass over the loops."""

import math
from collections.abc import Iterable

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.parcae import Parcae

_BATCH = 64
_STATE_SEED = 20_260_412


@torch.no_grad()
def evaluate(model: Parcae, windows: NDArray, recurrences: Iterable[int]) -> dict[int, float]:
    """Mean cross-entropy in nats per token at each T of `recurrences`, by T ascending.

    T = 1..n costs n loops and n codas. Initial states are drawn from a fixed seed, the same for every model.

    Args:
        model: in any mode; put on any device.
        windows: token ids, shape [sequences, context + 1].
        recurrences: loops to run, each >= 1.
    """
    wanted = sorted(set(recurrences))
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(_STATE_SEED)
    total = dict.fromkeys(wanted, 0.0)
    for rows in torch.from_numpy(windows).split(_BATCH):
        tokens, targets = rows[:, :-1].to(device), rows[:, 1:].to(device)
        h0 = model.initial_state(len(rows), generator)[:, : tokens.shape[1]].to(device)
        for recurrence, logits in model.logits(tokens, wanted, h0):
            nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
            total[recurrence] += nats.item()
    tokens_seen = windows.shape[0] * (windows.shape[1] - 1)
    return {recurrence: nats / tokens_seen for recurrence, nats in total.items()}


def tokens_per_byte(windows: NDArray, token_bytes: NDArray) -> float:
    """Tokens per byte of text among the targets of `windows`: exactly 1 where bytes are the tokens.

    Args:
        windows: token ids, shape [sequences, context + 1]; the first of each is no target.
        token_bytes: bytes of each token id, shape [vocabulary].
    """
    targets = windows[:, 1:]
    return targets.size / int(token_bytes[targets].sum())


def bits_per_byte(nats_per_token: float, tokens_per_byte: float) -> float:
    """Convert a loss in nats per token."""
    return nats_per_token * tokens_per_byte / math.log(2)
