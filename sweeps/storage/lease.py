"""Run leases for storage without file locks: a small object that its holder keeps renewing."""

import json
import os
import socket
import time
import uuid
from typing import Any

from isoloop.sweeps.storage.filesystem import RemoteFolder
from isoloop.trainer.files import FolderBusyError

STALE_SECONDS = 60.0
SETTLE_SECONDS = 0.5
CLOCK_SKEW_SECONDS = 120.0


class LeaseLostError(FolderBusyError):
    """A lease that another worker has taken over."""


class Lease:
    """A lease on one run, in the object `path`: taken if it is free, released by its owner, or no longer renewed.

    It is not a lock. The file systems that we use through pyarrow have no "write if absent": a lease is written, and
    read again after `SETTLE_SECONDS`; a worker that then finds another's in its place steps back. Two may both go on if
    one of them stalls for longer than that between reading and writing; and a holder that stalls (or is cut off) for
    `stale_seconds` is taken over and learns of it at its next renewal. The consequence is wasteful, not wrong: both
    train the same run, each whole checkpoint is one of that run, and a result is published once.

    A lease is stale when it hasn't changed for `stale_seconds` of the watcher's own clock, or is older than that by
    `CLOCK_SKEW_SECONDS` on its writer's, so that clocks may differ by two minutes.

    Args:
        remote, path: the place of the object.
        owner: the id of the driver for which the lease is taken: a lease of the same owner is taken over at once,
            because a driver starts a run again only when its worker has ended. None: no other lease has the same owner.
        stale_seconds: time without renewal after which a holder counts as dead; at least three times what it takes to
            renew.
    """

    def __init__(
        self, remote: RemoteFolder, path: str, *, owner: str | None = None, stale_seconds: float = STALE_SECONDS
    ) -> None:
        self._remote, self._path, self._stale_seconds = remote, path, stale_seconds
        self._token = uuid.uuid4().hex
        self._owner = owner or self._token

    def acquire(self) -> None:
        """Take the lease, if need be after watching for `stale_seconds` whether it is renewed.

        Raises:
            FolderBusyError: it is renewed.
            StorageError: the storage can't be used.
        """
        # Wait until the present lease is released or stale.
        last, since = None, time.monotonic()
        while (present := self._read()) is not None and not self._may_take(present):
            if present != last:
                if last is not None:
                    raise self._busy(present)
                last, since = present, time.monotonic()
            elif time.monotonic() - since > self._stale_seconds:
                break
            time.sleep(min(1.0, self._stale_seconds / 10))
        # Write ours, and see whether it stays.
        self._write()
        time.sleep(min(SETTLE_SECONDS, self._stale_seconds / 10))
        present = self._read()
        if present is None or present["token"] != self._token:
            raise self._busy(present or {})

    def renew(self) -> None:
        """Show that the holder is still working.

        Raises:
            LeaseLostError: another worker holds the lease by now.
            StorageError: the storage can't be used; the lease may still be ours.
        """
        present = self._read()
        if present is not None and present["token"] != self._token:
            raise LeaseLostError(
                f"one worker at a time may train a run, but {present.get('host')} has taken over {self._path}, because "
                "this one didn't renew its lease in time; this one ends"
            )
        self._write()

    def release(self) -> None:
        """Remove the lease if it is ours."""
        present = self._read()
        if present is not None and present["token"] == self._token:
            self._remote.remove(self._path)

    def _may_take(self, present: dict[str, Any]) -> bool:
        age = time.time() - present["time"]
        return present["owner"] == self._owner or age > self._stale_seconds + CLOCK_SKEW_SECONDS

    def _read(self) -> dict[str, Any] | None:
        """Return the present lease; one that can't be read counts as none."""
        try:
            content = json.loads(self._remote.read(self._path) or b"null")
            is_whole = isinstance(content, dict) and {"token", "owner", "time"} <= set(content)
            return {**content, "time": float(content["time"])} if is_whole else None
        except (ValueError, TypeError):
            return None

    def _write(self) -> None:
        content = {
            "token": self._token, "owner": self._owner, "host": socket.gethostname(), "pid": os.getpid(),
            "time": time.time(),
        }  # fmt: skip
        self._remote.write(self._path, json.dumps(content).encode())

    def _busy(self, present: dict[str, Any]) -> FolderBusyError:
        return FolderBusyError(
            f"one worker at a time may train a run, but {present.get('host', 'another')} (process "
            f"{present.get('pid')}) holds {self._path} in {self._remote.name}; wait or stop it"
        )
