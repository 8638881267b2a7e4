"""Messages for people: errors in one line, rows of text in aligned columns, and the progress of long work."""

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from isoloop.sweeps.privacy import redacted
from isoloop.trainer.rules import broken_rule as broken_rule
from isoloop.trainer.rules import broken_rules as broken_rules
from isoloop.trainer.rules import distinct_problems as distinct_problems


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without secrets, or the name of its type if it has no message."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def counted_runs(number: int) -> str:
    """Return a number of runs in words: '1 run', '16 runs'."""
    return "1 run" if number == 1 else f"{number} runs"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a question with the known name that is closest to `name`, or `otherwise` if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def align_columns(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Return a line for each row; with `right`, all columns but the last are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and column < len(row) - 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_FULL = "its disk is full", "free some space there"
_UNWRITABLE = "it can't be written to", "make the file and its folder writable, or choose another place"
_DISK_FAULTS_BY_NUMBER = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _UNWRITABLE,
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EIO: ("its disk doesn't work", "check the disk"),
}
# Libraries pass on errors of sqlite and of the system as text.
_DISK_FAULTS_BY_TEXT = {
    "database or disk is full": _FULL,
    "no space left on device": _FULL,
    "disk quota exceeded": _FULL,
    "readonly database": _UNWRITABLE,
    "read-only file system": _UNWRITABLE,
    "unable to open database file": (
        "its file can't be opened",
        "check that its folder exists, that both can be read and written and that the disk has room, or choose another",
    ),
    "disk i/o error": ("its disk can't be read or written", "check that it is not full and works"),
    "database is locked": ("another process is using it", "wait for that process or stop it"),
    "database disk image is malformed": ("its file is damaged", "restore it, or move it away"),
    "file is not a database": ("its file is not an sqlite database", "name another file"),
}


def disk_fault(error: BaseException) -> tuple[str, str] | None:
    """Return what is wrong with the disk or file behind an error, and what to do; None if it is another fault."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        # A connection that is refused permission has no file.
        is_of_file = isinstance(cause, OSError) and (cause.errno != errno.EACCES or cause.filename is not None)
        if isinstance(cause, OSError) and is_of_file and cause.errno in _DISK_FAULTS_BY_NUMBER:
            return _DISK_FAULTS_BY_NUMBER[cause.errno]
        text = str(cause).lower()
        for part, fault in _DISK_FAULTS_BY_TEXT.items():
            if part in text:
                return fault
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def translate_errors(
    place: str,
    rule: str,
    advice: str | Callable[[Exception], str],
    kinds: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Iterator[None]:
    """Raise any error of these kinds as one ValueError: the rule, the error's first line, the advice.

    A fault of the disk or the file behind `place` is named as such instead.
    """
    try:
        yield
    except kinds as error:
        fault = disk_fault(error)
        if fault is not None:
            translated = ValueError(
                f"{place} must be usable, but {fault[0]} ({first_line(error)}); nothing is lost: {fault[1]}, then "
                "rerun the command"
            )
        else:
            hint = advice if isinstance(advice, str) else advice(error)
            translated = ValueError(f"{rule} ({first_line(error)}); {hint}")
        if redacted(str(error)) != str(error):  # a traceback would show the cause and its secret
            raise translated from None
        raise translated from error


class Progress:
    """A watcher of long work, stage by stage. This one shows nothing; the command line shows a bar.

    The trainer and the fits, which import nothing of the sweeps, take the method `update` as a plain function.
    """

    def begin(self, stage: str) -> None:
        """Report that a stage of the work begins, such as 'Planning'; it ends the stage before it."""

    def update(self, label: str, done: float, total: float) -> None:
        """Report that `done` of the stage's `total` (0 if unknown) is done; `label` is what is being done."""

    def event(self, line: str) -> None:
        """Report in one line that something has happened."""


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:,.0f} h"
