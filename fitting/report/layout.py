"""Text in lines of a given width, where some characters take two columns of a terminal and others none."""

from __future__ import annotations

import unicodedata


def columns_of(text: str) -> int:
    """Return the columns of a terminal that a line of text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def shortened(text: str, width: int) -> str:
    """Return a text that fits `width` columns: with dots in place of its end if it is longer."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 3:
        text = text[:-1]
    return f"{text.rstrip()}..."


def filled(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    """Return the words of a text in lines of at most `width` columns that begin with `first`, then with `rest`.

    A word that is longer than a line is broken.
    """
    lines: list[str] = []
    line = first
    start = True
    for word in text.split():
        while columns_of(line) + columns_of(word) + (not start) > width:
            if not start:
                lines, line, start = [*lines, line], rest, True
                continue
            room, head = width - columns_of(line), ""
            while columns_of(head + word[len(head)]) <= room:
                head = word[: len(head) + 1]
            lines, line, word = [*lines, line + head], rest, word[len(head) :]
        line, start = f"{line}{word}" if start else f"{line} {word}", False
    return [*lines, line] if not start else lines
