"""Scores of options: the nats of their scored tokens, at any recurrences in one pass over the loops.

Options of one question share the tokens before those that differ (its few-shot examples, above all), so the model reads
these once. A batch holds questions whose shared prefixes are about equally long: the prefixes are cut to the shortest
one, and what is cut off is read with each option.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isoloop.trainer.quality.suites.prompts import Option, Question, common_prefix
from isoloop.trainer.quality.suites.reader import Reader

# Bytes that the caches of a pass's prefixes may take, by kind of device.
CACHE_BYTES = {"cpu": 2**30, "cuda": 2**34}
# A prefix is shared if that saves at least this fraction of the positions.
LEAST_SAVED = 0.2
# Questions with prefixes of different lengths are read together while the tokens that this adds to the longest one's
# options are at most this fraction of its positions.
EXCESS = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score of an option at each T of the recurrences, ascending.

    Attributes:
        nats: sum over the scored tokens, [recurrences].
        tokens: number of scored tokens.
        greedy: True where each scored token has the largest logit, [recurrences].
    """

    nats: NDArray[np.float64]
    tokens: int
    greedy: NDArray[np.bool_]

    @property
    def mean_nats(self) -> NDArray[np.float64]:
        """Nats per scored token, [recurrences]."""
        return self.nats / self.tokens


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Options, by (question, option), and the number of first tokens that each question's options share."""

    options: list[tuple[int, int]]
    shared: int


def score_questions(
    reader: Reader,
    questions: Sequence[Question],
    recurrences: Sequence[int],
    *,
    share_prefixes: bool = True,
    progress: Callable[[int], None] = lambda positions: None,
) -> list[list[Score]]:
    """Score the options of all questions.

    Args:
        reader: the model.
        questions: with prompts of at most `reader.context` tokens.
        recurrences: T, each >= 1.
        share_prefixes: read what the options of a question share only once.
        progress: called with the number of prompt tokens that were scored.

    Returns:
        Scores by question and option.
    """
    depths = sorted(set(recurrences))
    scores: list[list[Score | None]] = [[None] * len(question.options) for question in questions]
    cache_bytes = reader.prefix_bytes(depths) if share_prefixes else 0
    cache_limit = CACHE_BYTES["cpu" if reader.device.type == "cpu" else "cuda"]
    for batch in _batches(questions, reader.tokens_at_once, cache_bytes, cache_limit):
        options = [questions[number].options[option] for number, option in batch.options]
        counts = list(Counter(number for number, _ in batch.options).values()) if batch.shared else None
        for (number, option), score in zip(
            batch.options, _score_batch(reader, options, counts, batch.shared, depths), strict=True
        ):
            scores[number][option] = score
        progress(sum(len(option.tokens) for option in options))
    return [[score for score in row if score is not None] for row in scores]


def _batches(questions: Sequence[Question], limit: int, cache_bytes: int, cache_limit: int) -> list[_Batch]:
    """Return batches of questions that share prefixes, the longest first, and of all other options by length.

    Args:
        questions: their options are what is to be scored.
        limit: positions of one pass, unless it is of one question.
        cache_bytes: of one token of a prefix; 0: prefixes aren't shared.
        cache_limit: bytes of the caches of one pass; a longer prefix isn't shared.
    """
    shared = {number: _shared_tokens(question) if cache_bytes else 0 for number, question in enumerate(questions)}
    numbers = sorted((number for number in shared if shared[number]), key=lambda number: (-shared[number], number))
    batches = []
    while numbers:
        taken: list[int] = []
        for number in numbers:
            of_batch = [questions[each].options for each in (*taken, number)]
            length = shared[number]
            tail = max(len(option.tokens) for options in of_batch for option in options) - length
            positions = len(of_batch) * (length + max(map(len, of_batch)) * tail)
            if positions * cache_bytes > cache_limit and not taken:
                shared[number] = 0
                break
            is_uneven = (shared[numbers[0]] - length) * len(of_batch[0]) > EXCESS * positions / len(of_batch)
            if taken and (is_uneven or positions > limit or positions * cache_bytes > cache_limit):
                break
            taken.append(number)
        if taken:
            batches.append(_Batch(options=_options(questions, taken), shared=shared[taken[-1]]))
        numbers = numbers[max(len(taken), 1) :]

    alone = _options(questions, [number for number in shared if not shared[number]])
    alone.sort(key=lambda place: -len(questions[place[0]].options[place[1]].tokens))
    start = 0
    while start < len(alone):
        number, option = alone[start]
        rows = max(limit // len(questions[number].options[option].tokens), 1)
        batches.append(_Batch(options=alone[start : start + rows], shared=0))
        start += rows
    return batches


def _options(questions: Sequence[Question], numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(number, option) for number in numbers for option in range(len(questions[number].options))]


def _shared_tokens(question: Question) -> int:
    """Return the number of first tokens to read once; 0 if that would save too little.

    The last of the tokens that the options have in common is read with each, as it predicts the first that differs.
    """
    options = question.options
    if len(options) < 2:
        return 0
    common = common_prefix([option.tokens for option in options])
    shared = min(common, *(option.start for option in options)) - 1
    positions = sum(len(option.tokens) - 1 for option in options)
    return shared if shared * (len(options) - 1) >= LEAST_SAVED * positions else 0


def _score_batch(
    reader: Reader, options: Sequence[Option], counts: Sequence[int] | None, shared: int, depths: Sequence[int]
) -> list[Score]:
    """Score one batch. `counts` are the options of each question if these share their first `shared` tokens."""
    device = reader.device
    rows = [option.tokens[shared:-1] for option in options]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row

    # Places that predict a scored token, in the flattened [rows, tokens]
    scored = [len(option.tokens) - option.start for option in options]
    places = np.concatenate(
        [
            number * tokens.shape[1] + np.arange(option.start - 1 - shared, len(option.tokens) - 1 - shared)
            for number, option in enumerate(options)
        ]
    )
    targets = np.concatenate([option.tokens[option.start :] for option in options])
    owners = np.repeat(np.arange(len(options)), scored)
    arrays = (owners, places, targets, tokens)
    owner, at, wanted, inputs = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    if counts is None:
        passes = reader.states(inputs, depths, [option.state_seed for option in options])
    else:
        firsts = np.cumsum([0, *counts[:-1]])
        prefixes = torch.from_numpy(np.stack([options[first].tokens[:shared] for first in firsts]))
        passes = reader.states_after(prefixes.to(device, non_blocking=True), counts, inputs, depths)

    # Sums by option, of nats and of tokens that aren't the likeliest, read from the device once
    sums = torch.zeros(2, len(depths), len(options), dtype=torch.float64, device=device)
    for depth, (_, states) in enumerate(passes):
        token_nats, greedy = reader.score(states.flatten(0, 1)[at], wanted)
        sums[0, depth].index_add_(0, owner, token_nats.double())
        sums[1, depth].index_add_(0, owner, (~greedy).double())
    nats, misses = sums.cpu().numpy()
    return [Score(nats=nats[:, row], tokens=count, greedy=misses[:, row] == 0) for row, count in enumerate(scored)]
