"""Validation loss at many recurrences, in one pass over the loops: of rows, and of documents each by itself."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from isoloop.trainer.distributed import Ranks
from isoloop.trainer.model.language_model import LanguageModel

EVALUATION_BATCH = 64
STATE_SEED = 20_260_412
"""Seed of h_0 of the first evaluated sequence, and of every sequence that is generated."""


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
    total = torch.zeros(len(depths), dtype=torch.float64, device=device)  # read once, so the host waits once
    share = torch.arange(len(windows))[ranks.rank :: ranks.size]
    for sequences in share.split(batch) if len(share) else ():
        rows = torch.from_numpy(windows)[sequences].to(device, non_blocking=True)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        h0 = model.initial_state((STATE_SEED + sequences).tolist(), tokens.shape[1])
        for i, (_, x) in enumerate(model.final_states(tokens, depths, h0, separator)):
            total[i] += model.cross_entropy(x, targets).double() * targets.numel()
            heartbeat()
    total = ranks.sum(total) / (windows.shape[0] * (windows.shape[1] - 1))
    return dict(zip(depths, total.tolist(), strict=True))


@torch.no_grad()
def evaluate_documents(
    model: LanguageModel,
    documents: Sequence[NDArray],
    recurrences: Iterable[int],
    *,
    ranks: Ranks | None = None,
    batch: int = EVALUATION_BATCH,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Return the mean cross-entropy, in nats per token, over documents that the model reads each by itself.

    It is the published protocol of validation perplexity, exp of this loss. The first token of a document isn't
    predicted, since nothing stands before it. Documents of a batch are padded at their ends, which changes nothing.

    Args:
        documents: token ids of each, shape [tokens], at least 2 and at most context + 1.
        model: as in `evaluate`, like the other arguments.
        recurrences: see there.
        ranks: see there.
        batch: see there.
        heartbeat: see there.
    """
    ranks = ranks or Ranks()
    depths = sorted(set(recurrences))
    device = model.embedding.weight.device
    total = torch.zeros(len(depths), dtype=torch.float64, device=device)
    by_length = sorted(range(len(documents)), key=lambda number: -len(documents[number]))[ranks.rank :: ranks.size]
    for start in range(0, len(by_length), batch):
        numbers = by_length[start : start + batch]
        rows = pad_sequence([torch.from_numpy(documents[number]) for number in numbers], batch_first=True)
        lengths = torch.tensor([len(documents[number]) - 1 for number in numbers])
        places = (torch.arange(rows.shape[1] - 1) < lengths[:, None]).flatten().nonzero().squeeze(1)
        rows, places = rows.to(device, non_blocking=True), places.to(device, non_blocking=True)
        tokens, targets = rows[:, :-1], rows[:, 1:].flatten()[places]
        h0 = model.initial_state([STATE_SEED + number for number in numbers], model.config.context)
        for i, (_, x) in enumerate(model.final_states(tokens, depths, h0[:, : tokens.shape[1]])):
            nats = model.cross_entropy(x.flatten(0, 1)[places], targets)
            total[i] += nats.double() * len(places)
            heartbeat()
    total = ranks.sum(total) / sum(len(document) - 1 for document in documents)
    return dict(zip(depths, total.tolist(), strict=True))


def tokens_per_byte(targets: NDArray, token_bytes: NDArray) -> float:
    """Return the tokens per byte of text among `targets`: exactly 1 where bytes are the tokens.

    Args:
        targets: ids of the predicted tokens, any shape.
        token_bytes: bytes of each token id, shape [vocabulary].
    """
    return targets.size / int(token_bytes[targets].sum())


def bits_per_byte(nats_per_token: float, tokens_per_byte: float) -> float:
    """Convert a loss in nats per token to bits per byte."""
    return nats_per_token * tokens_per_byte / math.log(2)
