"""What an error says in one line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from isoloop.sweeps.privacy import redacted


def first_line(error: BaseException) -> str:
    """The first line of an error's message without secrets, or its type where it has none."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def broken_rules(error: ValidationError) -> str:
    """The rules that a value broke, in one line."""
    return "; ".join(broken_rule(problem) for problem in error.errors())


def broken_rule(problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors: where, the rule, and what was got."""
    where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if problem["type"] == "missing":
        return f"{where}: must be given, but is missing"
    message = problem["msg"].removeprefix("Value error, ")
    got = problem["input"]
    shown = "" if isinstance(got, dict) or problem["type"] == "value_error" else f", but got {got!r}"
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


# MERGED columns
def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """A line for each row; `right` sets all columns but the last flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and place < len(row) - 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@contextmanager
def translate_errors(
    rule: str,
    advice: str | Callable[[Exception], str],
    kinds: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Iterator[None]:
    """Raise any error of these kinds as one ValueError: the rule, the error's first line, the advice."""
    try:
        yield
    except kinds as error:
        hint = advice if isinstance(advice, str) else advice(error)
        translated = ValueError(f"{rule} ({first_line(error)}); {hint}")
        if redacted(str(error)) != str(error):  # a traceback would show the cause and its secret
            raise translated from None
        raise translated from error
