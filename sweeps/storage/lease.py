"""Who may train a run, where no lock of a file system reaches: a small object that its owner keeps renewing."""

import json
import os
import socket
import time
import uuid
from typing import Any

from isoloop.sweeps.storage.filesystem import Remote
from isoloop.trainer.files import FolderBusyError

STALE_SECONDS = 60.0
SETTLE_SECONDS = 0.5
SKEW_SECONDS = 120.0


class LeaseLostError(FolderBusyError):
    """Somebody else has taken the lease over."""


class Lease:
    """A lease on one run, in the object `path`: taken if it is free, let go of by its owner, or not renewed any more.

    It is no lock. The file systems that we use through pyarrow have no "write if it is not there": a lease is written,
    and read again after `SETTLE_SECONDS`; whoever then finds another's in its place steps back. Two may both go on if
    one of them stalls for longer than that between reading and writing; and an owner that stalls (or is cut off) for
    `stale_seconds` is taken over and learns of it at its next renewal. What happens then is wasteful, not wrong: both
    train the same run, each whole checkpoint is one of that run, and a result is published once.

    A lease counts as not renewed when it hasn't changed for `stale_seconds` of the watcher's own clock, or is older
    than that by `SKEW_SECONDS` on its writer's, so that clocks may differ by two minutes.

    Args:
        remote, path: where it is.
        owner: on whose behalf, such as the driver's own id: a lease of the same owner is taken over at once, because a
            driver starts a run again only when the worker before is gone. None is nobody else's.
        stale_seconds: after which an owner that is silent is taken for gone; at least three times what it takes to
            renew.
    """

    def __init__(
        self, remote: Remote, path: str, *, owner: str | None = None, stale_seconds: float = STALE_SECONDS
    ) -> None:
        self._remote, self._path, self._stale = remote, path, stale_seconds
        self._token = uuid.uuid4().hex
        self._owner = owner or self._token

    def acquire(self) -> None:
        """Take the lease, if need be after watching for `stale_seconds` whether it is renewed.

        Raises:
            FolderBusyError: it is.
            StorageError: the storage can't be used.
        """
        seen, since = None, time.monotonic()
        while (found := self._read()) is not None and not self._may_take(found):
            if found != seen:
                if seen is not None:
                    raise self._busy(found)
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > self._stale:
                break
            time.sleep(min(1.0, self._stale / 10))
        self._write()
        time.sleep(min(SETTLE_SECONDS, self._stale / 10))
        found = self._read()
        if found is None or found["token"] != self._token:
            raise self._busy(found or {})

    def renew(self) -> None:
        """Say that the owner is alive.

        Raises:
            LeaseLostError: the lease is another's by now.
            StorageError: the storage can't be used; the lease may still be ours.
        """
        found = self._read()
        if found is not None and found["token"] != self._token:
            raise LeaseLostError(
                f"one worker at a time may train a run, but {found.get('host')} has taken over {self._path}; this "
                "one was silent for too long, and ends"
            )
        self._write()

    def release(self) -> None:
        """Let go of it, if it is ours."""
        found = self._read()
        if found is not None and found["token"] == self._token:
            self._remote.remove(self._path)

    def _may_take(self, found: dict[str, Any]) -> bool:
        return found["owner"] == self._owner or time.time() - found["time"] > self._stale + SKEW_SECONDS

    def _read(self) -> dict[str, Any] | None:
        """The lease there is; one that can't be read is none."""
        try:
            found = json.loads(self._remote.read(self._path) or b"null")
            whole = isinstance(found, dict) and {"token", "owner", "time"} <= set(found)
            return {**found, "time": float(found["time"])} if whole else None
        except (ValueError, TypeError):
            return None

    def _write(self) -> None:
        said = {
            "token": self._token, "owner": self._owner, "host": socket.gethostname(), "pid": os.getpid(),
            "time": time.time(),
        }  # fmt: skip
        self._remote.write(self._path, json.dumps(said).encode())

    def _busy(self, found: dict[str, Any]) -> FolderBusyError:
        return FolderBusyError(
            f"one worker at a time may train a run, but {found.get('host', 'another')} (process {found.get('pid')}) "
            f"holds {self._path} in {self._remote.name}; wait or stop it"
        )
