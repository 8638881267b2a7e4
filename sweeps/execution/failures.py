"""Why a run failed, whether the cause may pass, and what to do about it. Pure.

A cause that may pass is worth another start: a lost worker, a network, a full disk that somebody clears. One that stays
is reported at once: a broken rule, a bug, too little memory.
"""

import errno
from dataclasses import dataclass

from isoloop.sweeps.messages import first_line

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_STAYS = (
    ValueError, TypeError, LookupError, AttributeError, NameError, ArithmeticError, AssertionError, ImportError,
    SyntaxError, NotImplementedError,
)  # fmt: skip
_MEMORY_SIGNS = ("out of memory", "outofmemory", "cannot allocate memory", "can't allocate memory")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong with a run: one line, with what to do; `may_pass` says whether another start may help."""

    reason: str
    may_pass: bool


def judge(error: BaseException) -> Failure:
    """What an exception that a run raised means."""
    said = f"{type(error).__name__}: {first_line(error)}"
    if is_out_of_memory(error):
        return Failure(
            reason=f"{said}; the run needs more memory than it is given: set resources.micro_batch lower, "
            "resources.activation_checkpointing to true, or resources.gpus to a larger share",
            may_pass=False,
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return Failure(
            reason=f"{said}; the disk is full: make room and give the same command again, what was saved is kept",
            may_pass=True,
        )
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return Failure(reason=f"{said}; every worker must be able to read the corpus and write --out", may_pass=False)
    if isinstance(error, _STAYS):
        return Failure(reason=first_line(error) if isinstance(error, ValueError) else said, may_pass=False)
    return Failure(reason=said, may_pass=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, torch's on a GPU, or torch's on a CPU, which says so in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _MEMORY_SIGNS)


def lost(what: str) -> Failure:
    """A worker, or the machine that it ran on, was lost."""
    return Failure(reason=what, may_pass=True)


def hung(seconds: float) -> Failure:
    """No step for too long."""
    return Failure(
        reason=f"no step for {seconds:.0f} s (resources.hang_seconds), so it was ended; it goes on from its last "
        "checkpoint",
        may_pass=True,
    )
