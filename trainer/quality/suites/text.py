"""Texts that are scored from their first token to their last: pages of WikiText, documents of validation text."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.tokenizer import Tokenizer
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.quality.suites.bundle import Row
from isoloop.trainer.quality.suites.prompts import Option, Question, encode_texts

_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
# What undoes WikiText's spaces, in this order (as lm-evaluation-harness does it): patterns and their replacements.
_DETOKENISATION: tuple[tuple[str, str], ...] = (
    ("s '", "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,"),
    (r" @\.@ ", "."),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    *((rf"\{a}\s*([^\{b}]*?)\s*\{b}", rf"{a}\1{b}") for a, b in _PAIRS),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenised(page: str) -> str:
    """Return a page of WikiText without the spaces around its punctuation, as it is read by the model."""
    for pattern, replacement in _DETOKENISATION:
        page = re.sub(pattern, replacement, page)
    return page


def page_units(page: str) -> dict[str, int]:
    """Return the words and bytes of a page as WikiText has it, by which its log-likelihood is divided."""
    return {"words": len(re.split(r"\s+", page)), "bytes": len(page.encode())}


def page_windows(tokens: NDArray[np.int64], *, separator: int, context: int) -> Question:
    """Return the windows of a page, each an option whose tokens are all scored.

    The page begins with the separator. It is cut into disjoint windows of `context` positions, and each position
    predicts the token after it: the first token of a window is scored from the last position of the one before.
    """
    page = np.concatenate([[separator], tokens])
    starts = range(0, len(tokens), context)
    return Question(options=tuple(Option(tokens=page[at : at + context + 1], start=1) for at in starts), gold=0)


def make_pages(rows: Sequence[Row], *, tokenizer: Tokenizer, context: int) -> list[Question]:
    """Return the windows of each page of a rolling task."""
    encoded = encode_texts(tokenizer, [detokenised(row["page"]) for row in rows])
    return [page_windows(tokens, separator=tokenizer.separator, context=context) for tokens in encoded]


def document_units(
    rows: Sequence[Row], *, tokenizer: Tokenizer, context: int
) -> tuple[list[Row], list[dict[str, int]]]:
    """Return the documents of at least two tokens, and the predicted tokens of each and, if known, their bytes.

    Raises:
        ValueError: there is none.
    """
    encoded = encode_texts(tokenizer, [row["text"] for row in rows])
    kept = [(row, tokens[1 : context + 1]) for row, tokens in zip(rows, encoded, strict=True) if len(tokens) > 1]
    if not kept:
        raise ValueError(f"a document must have two tokens, but none of {len(rows)} has; use other text")
    units = [{"tokens": len(tokens)} for _, tokens in kept]
    if len(tokenizer.token_bytes):
        for unit, (_, tokens) in zip(units, kept, strict=True):
            unit["bytes"] = int(tokenizer.token_bytes[tokens].sum())
    return [row for row, _ in kept], units


def make_documents(rows: Sequence[Row], first: int, *, tokenizer: Tokenizer, context: int) -> list[Question]:
    """Return each document by itself, without a separator, cut to `context` targets: the published protocol.

    The initial state of each is that of `evaluate_documents`; `first` is the number of the first one there.
    """
    encoded = encode_texts(tokenizer, [row["text"] for row in rows])
    options = [
        Option(tokens=tokens[: context + 1], start=1, state_seed=STATE_SEED + number)
        for number, tokens in enumerate(encoded, start=first)
    ]
    return [Question(options=(option,), gold=0) for option in options]
