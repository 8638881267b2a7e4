"""Files that are whole or not there."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, bring it to the disk, and rename."""
    with open_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open for writing beside `path`; at the end of the `with` block it is brought to the disk and renamed.

    After an error, a full disk for one, `path` is what it was before and nothing else is left. A process that was
    killed leaves a `.partial` file, which the next one writes anew.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# MERGED lock
class FolderBusyError(ValueError):
    """Another process owns the folder."""


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own `folder`, made where it is missing, for as long as the `with` block lasts.

    Raises:
        FolderBusyError: another process owns it.
    """
    with _lock_file(folder) as handle:
        if not _try(handle):
            raise FolderBusyError(
                f"one process at a time may work in a folder, but another is at work in {folder}; wait or stop it"
            )
        yield


@contextmanager
def owner_in_turn(folder: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Own `folder` as above, after whoever owns it now; `waiting` is called once before a wait."""
    with _lock_file(folder) as handle:
        if not _try(handle):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_owned(folder: Path) -> bool:
    """Whether a process owns `folder` just now; asking disturbs nobody."""
    if not (folder / "lock").exists():
        return False
    with _lock_file(folder) as handle:
        return not _try(handle)


@contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
