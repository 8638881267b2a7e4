"""Prompts of questions as tokens: few-shot examples, what the options share, and the tokens that are scored.

The protocol is that of DCLM's Core as Parcae's release runs it. For row i of the shuffled rows:

- The examples are `Random(seed + i).sample(...)` of the other rows in their order, and each ends with an empty line.
- A prompt begins with the separator (BOS). The text is encoded as a whole, so tokens may merge across the delimiter.
- multiple_choice: the options are scored from the first token on in which they differ.
- schema: the options are scored where they agree, over their common suffix.
- language_modeling: the context is stripped. What is scored begins where the tokens with and without the continuation
  part; spaces at the end of the latter are left to the continuation.
- A prompt longer than the context loses its beginning.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.sources import Document
from isoloop.trainer.data.tokenizer import Tokenizer
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.quality.suites.bundle import Row
from isoloop.trainer.quality.suites.task import Task

BETWEEN_EXAMPLES = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Option:
    """Tokens of one option, of which those from `start` on (at least 1) are scored.

    Attributes:
        tokens: the whole prompt, [tokens]; the last one is only predicted.
        start: number of the first scored token.
        state_seed: seed of the initial state.
        is_cropped: the prompt was longer than the context and has lost its beginning.
        is_cut: it was so long that tokens to be scored are lost, too.
    """

    tokens: NDArray[np.int64]
    start: int
    state_seed: int = STATE_SEED
    is_cropped: bool = False
    is_cut: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.start < len(self.tokens), "a token is predicted from those before it"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Options of a row, and the number of the right one (0 where there is only one)."""

    options: tuple[Option, ...]
    gold: int


def make_questions(
    task: Task, rows: Sequence[Row], numbers: Sequence[int], *, seed: int, tokenizer: Tokenizer, context: int
) -> list[Question]:
    """Make the prompts of rows `numbers` (0-based) as tokens.

    Args:
        task: one with an accuracy.
        rows: all rows of the task, shuffled.
        numbers: those of the questions' rows.
        seed: of the few-shot examples.
        tokenizer: the model's.
        context: most tokens of a prompt.
    """
    texts = [_texts(task, rows, number, seed) for number in numbers]
    encoded = iter(encode_texts(tokenizer, [text for prompts in texts for text in prompts]))
    separator = np.array([tokenizer.separator], np.int64)
    questions = []
    for number, prompts in zip(numbers, texts, strict=True):
        tokens = [np.concatenate([separator, next(encoded)]) for _ in prompts]
        questions.append(_question(task, tokens, rows[number].get("gold", 0), context))
    return questions


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Encode texts without separators, all at once."""
    documents = [Document("a prompt", text.encode(errors="surrogateescape"), "train", 0) for text in texts]
    tokens, lengths = tokenizer.encode(documents)
    return [part[:-1].astype(np.int64) for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def few_shot_examples(rows: Sequence[Row], number: int, *, shots: int, seed: int) -> list[Row]:
    """Draw `shots` rows other than row `number`, by Random(seed + number)."""
    others = random.Random(seed + number).sample(range(len(rows) - 1), shots)
    return [rows[other + (other >= number)] for other in others]


def common_prefix(prompts: Sequence[NDArray[np.int64]]) -> int:
    """Return the number of first tokens in which all prompts agree."""
    length = min(map(len, prompts))
    stacked = np.stack([tokens[:length] for tokens in prompts])
    differing = np.flatnonzero((stacked != stacked[0]).any(axis=0))
    return int(differing[0]) if len(differing) else length


def common_suffix(prompts: Sequence[NDArray[np.int64]]) -> int:
    """Return the number of last tokens in which all prompts agree."""
    return common_prefix([tokens[::-1] for tokens in prompts])


def _texts(task: Task, rows: Sequence[Row], number: int, seed: int) -> list[str]:
    """Return the prompt of each option; of language modeling, the prompt with and without the continuation."""
    row = rows[number]
    examples = few_shot_examples(rows, number, shots=task.shots, seed=seed)
    solved = "".join(_solved(task, example) + BETWEEN_EXAMPLES for example in examples)
    if task.kind == "multiple_choice":
        return [f"{solved}{row['query']}{task.delimiter}{choice}" for choice in row["choices"]]
    if task.kind == "schema":
        return [f"{solved}{beginning}{task.delimiter}{row['continuation']}" for beginning in row["context_options"]]
    question = f"{solved}{str(row['context']).strip()}{task.delimiter}"
    return [f"{question}{row['continuation']}", question.strip()]


def _solved(task: Task, example: Row) -> str:
    if task.kind == "multiple_choice":
        return f"{example['query']}{task.delimiter}{example['choices'][example['gold']]}"
    if task.kind == "schema":
        return f"{example['context_options'][example['gold']]}{task.delimiter}{example['continuation']}"
    return f"{str(example['context']).strip()}{task.delimiter}{example['continuation']}"


def _question(task: Task, prompts: list[NDArray[np.int64]], gold: int, context: int) -> Question:
    """Find the first scored token of each option; where nothing would be scored, the last token is."""
    lengths = [len(tokens) for tokens in prompts]
    if task.kind == "schema":
        starts = [max(length - common_suffix(prompts), 1) for length in lengths]
    elif task.kind == "multiple_choice":
        starts = [min(common_prefix(prompts), min(lengths) - 1)] * len(prompts)
    else:
        prompts, gold, starts = prompts[:1], 0, [min(common_prefix(prompts), lengths[0] - 1)]
    options = [_cropped(tokens, start, context) for tokens, start in zip(prompts, starts, strict=True)]
    return Question(options=tuple(options), gold=gold)


def _cropped(tokens: NDArray[np.int64], start: int, context: int) -> Option:
    """Return the last `context` tokens as an option."""
    lost = max(len(tokens) - context, 0)
    return Option(tokens=tokens[lost:], start=max(start - lost, 1), is_cropped=lost > 0, is_cut=start - lost < 1)
