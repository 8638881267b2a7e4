"""One owner of a folder at a time. The kernel lets go of the lock whatever way the owner ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderBusyError(ValueError):
    """Another process owns the folder."""


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own `folder`, made where it is missing, for as long as the `with` block lasts.

    Raises:
        FolderBusyError: another process owns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderBusyError(
                f"one process at a time may work in a folder, but another is at work in {folder}; wait or stop it"
            ) from error
        yield
    finally:
        os.close(handle)
