"""Validation loss at many recurrences, in one pass over the loops."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from numpy.typing import NDArray

from isoloop.trainer.distributed import Ranks
from isoloop.trainer.model.head import mean_cross_entropy
from isoloop.trainer.model.language_model import LanguageModel

EVALUATION_BATCH = 64
_STATE_SEED = 20_260_412


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    windows: NDArray,
    recurrences: Iterable[int],
    *,
    separator: int | None = None,
    ranks: Ranks | None = None,
    batch: int = EVALUATION_BATCH,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Return the mean cross-entropy, in nats per token, at each T of `recurrences` in ascending order.

    T = 1..n costs n loops and n codas. Each sequence's initial state is drawn from a fixed seed, the same for every
    model.

    Args:
        model: on any device, in training or evaluation mode.
        windows: token ids, shape [sequences, context + 1].
        recurrences: loops to run, each >= 1.
        separator: the token that begins a document, if attention isn't to cross documents.
        ranks: the processes that share the work; by default this one alone.
        batch: sequences evaluated at once.
        heartbeat: called at each T of each batch.
    """
    ranks = ranks or Ranks()
    depths = sorted(set(recurrences))
    device = model.embedding.weight.device
    total = torch.zeros(len(depths), dtype=torch.float64)
    share = torch.arange(len(windows))[ranks.rank :: ranks.size]
    for sequences in share.split(batch) if len(share) else ():
        rows = torch.from_numpy(windows)[sequences].to(device)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        h0 = model.initial_state((_STATE_SEED + sequences).tolist(), tokens.shape[1])
        for i, (_, x) in enumerate(model.final_states(tokens, depths, h0, separator)):
            total[i] += mean_cross_entropy(x, model.embedding.weight, targets).item() * targets.numel()
            heartbeat()
    total = ranks.sum(total.to(device)) / (windows.shape[0] * (windows.shape[1] - 1))
    return dict(zip(depths, total.tolist(), strict=True))


def recurrences_around(mean: float) -> tuple[int, ...]:
    """Return the whole numbers of loops T whose losses give the loss at T = `mean` loops: it, or the two around it."""
    low = math.floor(mean)
    return (low,) if low == mean else (low, low + 1)


def loss_at_mean(losses: Mapping[int, float], mean: float) -> float:
    """Return the loss in nats per token at T = `mean` loops, given those at `recurrences_around` it.

    A fraction, such as 1.5, is the loss where as many sequences run 2 loops, and the others 1, that the mean is 1.5.
    """
    low, share = math.floor(mean), mean - math.floor(mean)
    return losses[low] if share == 0 else (1 - share) * losses[low] + share * losses[low + 1]


def tokens_per_byte(windows: NDArray, token_bytes: NDArray) -> float:
    """Return the tokens per byte of text among the targets of `windows`: exactly 1 where bytes are the tokens.

    Args:
        windows: token ids, shape [sequences, context + 1]; the first of each is no target.
        token_bytes: bytes of each token id, shape [vocabulary].
    """
    targets = windows[:, 1:]
    return targets.size / int(token_bytes[targets].sum())


def bits_per_byte(nats_per_token: float, tokens_per_byte: float) -> float:
    """Convert a loss in nats per token to bits per byte."""
    return nats_per_token * tokens_per_byte / math.log(2)
