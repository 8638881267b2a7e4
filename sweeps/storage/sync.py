"""A worker's side of the storage: a run's local folder is fetched, held by a lease, and published while it trains."""

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
from isoloop.sweeps.storage.run_store import HEARTBEAT_FILE, STOP_FILE, RunStore

SYNC_SECONDS = 15.0
TIMEOUT_SECONDS = 600.0
LONGEST_SYNC_PAUSE_SECONDS = 30.0

Returned = TypeVar("Returned")
log = logging.getLogger("isoloop.sync")


class RunSync:
    """A run's local folder kept in step with the storage, for the `with` block that trains the run.

    On entry the lease on the run is taken and everything published is fetched: `finished` says whether that is a
    result. In the block one thread publishes what is new, and another renews the lease, passes the heartbeat on, and
    makes the stop file in the folder when the driver requests it in the storage, or when the lease is lost. A storage
    that is away delays this and never disturbs the training. However the block ends, what is new is published and the
    lease released.

    Args:
        store: the storage; no other thread may use this object meanwhile.
        run_id: the run.
        folder: its local folder, made if missing; whoever trains in it must stop when the stop file appears.
        owner: the driver's id (sweeps/storage/lease.py).
        seconds: time between two rounds.
        timeout: seconds to keep trying on entry and at the end while the storage is away.
        stale_seconds: time without renewal after which another worker may take the lease over.

    Raises:
        FolderBusyError: another worker trains this run, or took it over when this one didn't renew its lease.
        StorageError: the storage stayed away. What was trained is in `folder`, from where the run can resume.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        folder: Path,
        *,
        owner: str | None = None,
        seconds: float = SYNC_SECONDS,
        timeout: float = TIMEOUT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self.finished, self.lease_lost = False, False
        self._store, self._run_id, self._folder = store, run_id, folder
        self._lease = store.lease(run_id, owner=owner, stale_seconds=stale_seconds)
        self._seconds, self._timeout = min(seconds, stale_seconds / 3), timeout
        self._sent_heartbeat, self._stop_requested = 0, False
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(action,), name=f"isoloop-{name}-{run_id}", daemon=True)
            for name, action in (("publish", self._publish), ("heartbeat", self._exchange_signals))
        ]

    def __enter__(self) -> "RunSync":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._retry(self._lease.acquire)
        try:
            (self._folder / STOP_FILE).unlink(missing_ok=True)  # of an earlier attempt
            self._retry(self._follow_stop_request)
            self.finished = self._retry(lambda: self._store.pull_run(self._run_id, self._folder))
        except BaseException:
            self._release()
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
            if not self.lease_lost:
                self._retry(self._renew_and_publish)
        except StorageError as cause:
            unpublished = StorageError(
                f"what run {self._run_id} has trained must reach the storage, but it stayed away for "
                f"{self._timeout:g} s; nothing is lost: it is in {self._folder} on {socket.gethostname()}, and the "
                f"run resumes from there or from what was published ({cause})"
            )
            if error is None:
                raise unpublished from cause
            error.add_note(str(unpublished))
        finally:
            self._release()
        if self.lease_lost and error is None:
            raise LeaseLostError(
                f"one worker at a time may train a run, but another took {self._run_id} over when this one didn't "
                f"renew its lease in time; what this one has trained is in {self._folder}"
            )

    def _repeat(self, action: Callable[[], None]) -> None:
        """Call `action` every few seconds until the end, less often while it fails."""
        pause = self._seconds
        while not self._ending.wait(pause) and not self.lease_lost:
            try:
                action()
                pause = self._seconds
            except (StorageError, FileNotFoundError) as error:
                log.debug("run %s: %s", self._run_id, error)
                pause = min(2 * pause, max(LONGEST_SYNC_PAUSE_SECONDS, self._seconds))
            except Exception:
                log.exception("run %s", self._run_id)

    def _publish(self) -> None:
        self._store.push_run(self._folder, self._run_id)

    def _exchange_signals(self) -> None:
        """Renew the lease, fetch a stop request, and send the heartbeat."""
        self._renew()
        if self.lease_lost:
            return
        self._follow_stop_request()
        heartbeat = self._folder / HEARTBEAT_FILE
        if heartbeat.exists() and (made := heartbeat.stat().st_mtime_ns) != self._sent_heartbeat:
            self._store.push_heartbeat(self._run_id, made)
            self._sent_heartbeat = made

    def _renew(self) -> None:
        try:
            self._lease.renew()
        except LeaseLostError as error:
            log.warning("%s", error)
            self.lease_lost = True
            (self._folder / STOP_FILE).touch()

    def _renew_and_publish(self) -> None:
        self._renew()
        if not self.lease_lost:
            self._publish()

    def _follow_stop_request(self) -> None:
        if self._store.stop_requested(self._run_id):
            self._stop_requested = True
            (self._folder / STOP_FILE).touch()

    def _release(self) -> None:
        try:
            if self._stop_requested:  # fulfilled: the run's next attempt must not stop
                self._store.clear_stop_request([self._run_id])
            self._lease.release()
        except StorageError as error:  # the lease becomes stale
            log.debug("run %s: %s", self._run_id, error)

    def _retry(self, action: Callable[[], Returned]) -> Returned:
        """Return what `action` returns, trying again until the timeout."""
        end, pause = time.monotonic() + self._timeout, 1.0
        while True:
            try:
                return action()
            except (StorageError, FileNotFoundError) as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise StorageError(str(error)) from error
                log.debug("run %s: %s", self._run_id, error)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_SYNC_PAUSE_SECONDS)
