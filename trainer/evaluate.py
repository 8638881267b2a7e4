"""Validation at many recurrences, in one pass over the loops: losses of rows and of documents each by itself, and the
share of a synthetic text's answers that are right.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from isoloop.trainer.data.synthetic import SyntheticText
from isoloop.trainer.distributed import Ranks
from isoloop.trainer.memory import LOGITS_AT_ONCE, MIN_HEAD_ROWS
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
    predicted: NDArray[np.bool_] | None = None,
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
        predicted: True for the targets whose mean it is, shape [sequences, context], at least one; None: all of them.
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
        counted, count = None, targets.numel()
        if predicted is not None:
            own = torch.from_numpy(predicted)[sequences]
            counted, count = own.to(device, non_blocking=True), int(own.sum())
        h0 = model.initial_state((STATE_SEED + sequences).tolist(), tokens.shape[1])
        for i, (_, x) in enumerate(model.final_states(tokens, depths, h0, separator)):
            total[i] += model.cross_entropy(x, targets, counted).double() * count
            heartbeat()
    total = ranks.sum(total) / (windows[:, 1:].size if predicted is None else int(predicted.sum()))
    return dict(zip(depths, total.tolist(), strict=True))


class AnswerScores(NamedTuple):
    """Shares of answers that are right, 0 to 1, by the steps k that they ask for and by T, and of all by T."""

    by_k: dict[int, dict[int, float]]
    overall: dict[int, float]


@torch.no_grad()
def evaluate_answers(
    model: LanguageModel,
    windows: NDArray,
    text: SyntheticText,
    recurrences: Iterable[int],
    *,
    separator: int | None = None,
    ranks: Ranks | None = None,
    batch: int = EVALUATION_BATCH,
    heartbeat: Callable[[], None] = lambda: None,
) -> AnswerScores:
    """Return how many answers of a synthetic text are right at each T: each of its tokens is the most probable one.

    The model reads the text itself, so an answer is given all right answers, and right tokens, before it. Answers that
    a row cuts don't count.

    Args:
        model: as in `evaluate`, like the other arguments.
        windows: rows that begin with a line, shape [sequences, context + 1].
        text: the text that they are of.
        recurrences: see there.
        separator: see there.
        ranks: see there.
        batch: see there.
        heartbeat: see there.
    """
    ranks = ranks or Ranks()
    depths, length = sorted(set(recurrences)), text.answer_tokens
    device = model.embedding.weight.device
    k, place = text.answers(windows)
    is_whole = np.zeros(k.shape, bool)  # at the first token of each answer that ends within its row
    is_whole[:, : k.shape[1] - length + 1] = True
    is_whole &= (k > 0) & (place == 0)
    most = int(k.max(initial=0))
    right = torch.zeros(len(depths), most + 1, dtype=torch.float64, device=device)
    at_once = max(MIN_HEAD_ROWS, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"] // len(model.head_weight))
    share = np.arange(len(windows))[ranks.rank :: ranks.size]
    for start in range(0, len(share), batch):
        sequences = share[start : start + batch]
        places = np.nonzero(is_whole[sequences])
        steps = torch.from_numpy(k[sequences][places]).to(device, non_blocking=True)
        rows = torch.from_numpy(windows[sequences]).to(device, non_blocking=True)
        tokens = rows[:, :-1]
        row = torch.from_numpy(places[0][:, None]).to(device, non_blocking=True)
        targets = torch.from_numpy(places[1][:, None] + np.arange(length)).to(device, non_blocking=True)
        h0 = model.initial_state((STATE_SEED + sequences).tolist(), tokens.shape[1])
        for i, (_, x) in enumerate(model.final_states(tokens, depths, h0, separator)):
            states = x[row, targets - 1].flatten(0, 1)
            best = torch.cat([model.logits_of(part).argmax(-1) for part in states.split(at_once)])
            is_right = (best.view(targets.shape) == rows[row, targets]).all(1)
            right[i].index_add_(0, steps, is_right.double())
            heartbeat()
    shares, counts = ranks.sum(right).tolist(), np.bincount(k[is_whole], minlength=most + 1)
    present = np.flatnonzero(counts).tolist()
    return AnswerScores(
        by_k={
            n: {t: right_of[n] / int(counts[n]) for t, right_of in zip(depths, shares, strict=True)} for n in present
        },
        overall={t: sum(right_of) / max(1, int(counts.sum())) for t, right_of in zip(depths, shares, strict=True)},
    )


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
