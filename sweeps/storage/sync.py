"""A worker's side of the storage: a run's local folder is brought up to date, held, and published while it trains."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from isoloop.sweeps.storage.filesystem import StorageError
from isoloop.sweeps.storage.lease import STALE_SECONDS, LeaseLostError
from isoloop.sweeps.storage.run_store import Storage

HEARTBEAT = "heartbeat"
STOP = "stop"
PUSH_SECONDS = 15.0
PATIENCE_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 30.0

T = TypeVar("T")
log = logging.getLogger("isoloop.mirror")


class Mirror:
    """Keep `folder` and what the storage has of the run alike, for the `with` block that trains it.

    On entry the lease on the run is taken and what is published is fetched: `finished` says whether that is a result.
    In the block one thread publishes what is new, and another renews the lease, passes the heartbeat on, and makes
    the file `stop` in the folder when the driver asks for it in the storage, or the lease is lost. A storage that is
    away delays all that and never disturbs the training. At the end, whatever way the block ends, all that is new is
    published and the lease let go of.

    Args:
        storage: the storage; no other thread may use this object meanwhile.
        run_id: the run.
        folder: its local folder, made where it is missing; whoever trains in it must stop when `stop` is there.
        owner: the driver's id (sweeps/storage/lease.py).
        seconds: between two looks.
        patience: seconds to keep trying on entry and at the end while the storage is away.
        stale_seconds: after which a silent owner of the lease is taken for gone.

    Raises:
        FolderBusyError: another trains this run, or took it over when this one was silent for too long.
        StorageError: the storage stayed away. What was trained is in `folder` and goes on from there.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        folder: Path,
        *,
        owner: str | None = None,
        seconds: float = PUSH_SECONDS,
        patience: float = PATIENCE_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self.finished, self.lost = False, False
        self._storage, self._run_id, self._folder = storage, run_id, folder
        self._lease = storage.lease(run_id, owner=owner, stale_seconds=stale_seconds)
        self._seconds, self._patience = min(seconds, stale_seconds / 3), patience
        self._beaten, self._asked = 0, False
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(action,), name=f"isoloop-{name}-{run_id}", daemon=True)
            for name, action in (("push", self._push), ("pulse", self._pulse))
        ]

    def __enter__(self) -> "Mirror":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._insist(self._lease.acquire)
        try:
            (self._folder / STOP).unlink(missing_ok=True)  # of an earlier time
            self._insist(self._follow_stop)
            self.finished = self._insist(lambda: self._storage.pull_run(self._run_id, self._folder))
        except BaseException:
            self._let_go()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        try:
            if not self.lost:
                self._insist(self._renew_and_push)
        except StorageError as away:
            trouble = StorageError(
                f"what run {self._run_id} has trained must reach the storage, but it stayed away for "
                f"{self._patience:g} s; nothing is lost: it is in {self._folder} on {socket.gethostname()}, and the "
                f"run goes on from there or from what was published ({away})"
            )
            if error is None:
                raise trouble from away
            error.add_note(str(trouble))
        finally:
            self._let_go()
        if self.lost and error is None:
            raise LeaseLostError(
                f"one worker at a time may train a run, but another took {self._run_id} over when this one was silent "
                f"for too long; what this one has trained is in {self._folder}"
            )

    def _repeat(self, action: Callable[[], None]) -> None:
        """Every few seconds until the end; less often while there is trouble."""
        pause = self._seconds
        while not self._ending.wait(pause) and not self.lost:
            try:
                action()
                pause = self._seconds
            except (StorageError, FileNotFoundError) as error:
                log.debug("mirror of %s: %s", self._run_id, error)
                pause = min(2 * pause, max(LONGEST_PAUSE_SECONDS, self._seconds))
            except Exception:
                log.exception("mirror of %s", self._run_id)

    def _push(self) -> None:
        self._storage.push_run(self._folder, self._run_id)

    def _pulse(self) -> None:
        self._renew()
        if self.lost:
            return
        self._follow_stop()
        heartbeat = self._folder / HEARTBEAT
        if heartbeat.exists() and (made := heartbeat.stat().st_mtime_ns) != self._beaten:
            self._storage.push_pulse(self._run_id, made, heartbeat.read_text())
            self._beaten = made

    def _renew(self) -> None:
        try:
            self._lease.renew()
        except LeaseLostError as error:
            log.warning("%s", error)
            self.lost = True
            (self._folder / STOP).touch()

    def _renew_and_push(self) -> None:
        self._renew()
        if not self.lost:
            self._push()

    def _follow_stop(self) -> None:
        if self._storage.is_asked_to_stop(self._run_id):
            self._asked = True
            (self._folder / STOP).touch()

    def _let_go(self) -> None:
        try:
            if self._asked:  # done: whoever runs this next isn't asked
                self._storage.withdraw_stop([self._run_id])
            self._lease.release()
        except StorageError as error:  # it goes stale by itself
            log.debug("mirror of %s: %s", self._run_id, error)

    def _insist(self, action: Callable[[], T]) -> T:
        """Do it, trying again for as long as there is patience."""
        end, pause = time.monotonic() + self._patience, 1.0
        while True:
            try:
                return action()
            except (StorageError, FileNotFoundError) as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise StorageError(str(error)) from error
                log.debug("mirror of %s: %s", self._run_id, error)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
