"""Files that are written whole or not at all, and folders that one process at a time owns."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

# Longer than `is_owned` holds a lock to find out whether it is free.
_LOCK_SECONDS = 0.2


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all, and flush it to the disk."""
    with open_atomically(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of files need not be in UTF-8


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; when the `with` block ends, flush it to the disk and rename it to `path`.

    After an error, such as a full disk, `path` is unchanged and nothing else is left. A process that is killed leaves a
    `.partial` file, which the next writer overwrites.
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


class FolderBusyError(ValueError):
    """Error raised where a folder is needed that another process owns."""


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own `folder`, which is created if it is missing, for the `with` block.

    The system releases the lock however the process ends.

    Raises:
        FolderBusyError: another process owns it.
    """
    try:
        lock = _folder_lock(folder).acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise FolderBusyError(
            f"only one process at a time may work in a folder, but another is at work in {folder}; wait or stop it"
        ) from error
    with lock:
        yield


@contextmanager
def owner_in_turn(folder: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Own `folder` like `sole_owner`, but wait for its present owner; `waiting` is called once before a wait."""
    lock = _folder_lock(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_owned(folder: Path) -> bool:
    """Return whether a process owns `folder` now, without creating anything or turning an owner away."""
    if not (folder / "lock").exists():
        return False
    try:
        with _folder_lock(folder).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _folder_lock(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "lock", thread_local=False)
