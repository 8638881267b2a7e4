"""Failures of runs: the reason, the advice, and whether another attempt may succeed.

A temporary cause is worth another attempt: a lost worker, a network, a full disk that is cleared. A permanent one
is reported at once: a broken rule, a bug, too little memory.
"""

import errno
from dataclasses import dataclass

from isoloop.sweeps.messages import first_line

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_PERMANENT = (
    ValueError, TypeError, LookupError, AttributeError, NameError, ArithmeticError, AssertionError, ImportError,
    SyntaxError, NotImplementedError,
)  # fmt: skip
_MEMORY_MESSAGES = ("out of memory", "outofmemory", "cannot allocate memory", "can't allocate memory")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why a run failed, in one line with advice, and whether to retry."""

    reason: str
    retryable: bool


def classify_error(error: BaseException) -> Failure:
    """Return the failure that an exception raised by a run amounts to."""
    message = f"{type(error).__name__}: {first_line(error)}"
    if is_out_of_memory(error):
        advice = (
            "the run needs more memory than it is given: set resources.micro_batch lower, "
            "resources.activation_checkpointing to true, or resources.gpus to a larger share"
        )
        return Failure(reason=f"{message}; {advice}", retryable=False)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        advice = "the disk is full: make room; the run is tried again, and after its last try rerun the command"
        return Failure(reason=f"{message}; {advice}", retryable=True)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        advice = "every worker must be able to read the corpus and write to --out"
        return Failure(reason=f"{message}; {advice}", retryable=False)
    if isinstance(error, _PERMANENT):
        reason = first_line(error) if isinstance(error, ValueError) else message
        return Failure(reason=reason, retryable=False)
    return Failure(reason=message, retryable=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, a GPU's, or a CPU's, which torch reports in its message alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _MEMORY_MESSAGES)


def hang_reason(seconds: float) -> str:
    """Return why a run that made no step for so many seconds was killed."""
    return (
        f"no step for {seconds:.0f} s (resources.hang_seconds), so it was killed; if its steps take that long, raise it"
    )
