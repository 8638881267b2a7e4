"""The driver of a sweep, as any machine that shares the sweep's folder sees it: at work, ended, or gone."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.storage.run_store import RunStore
from isoloop.trainer.files import is_owned, sole_owner, write_atomically

SIGN_SECONDS = 15.0
STALE_SECONDS = 180.0  # clocks may differ by two minutes


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The process that works on a sweep, or the last one that did; times are in seconds since 1970.

    Attributes:
        host: its machine.
        pid: its process id there.
        command: the command that started it, without secrets; None if it was called from Python.
        started: the time when it began.
        last_sign: the time of its last sign of life.
        at_work: false once it has ended or is gone.
    """

    host: str
    pid: int
    command: str | None
    started: float
    last_sign: float
    at_work: bool


@contextmanager
def sole_driver(folders: Folders, *, command: str | None = None, storage: str | None = None) -> Iterator[None]:
    """Own a sweep's folder as its driver, and leave a sign of life there every `SIGN_SECONDS`, for `isoloop status`.

    Args:
        folders: the sweep's folders.
        command: the command that started the driver, without secrets.
        storage: URI of the sweep's storage, which gets the signs, the plan and the state of the runs, too.

    Raises:
        FolderBusyError: another process owns the folder.
        ValueError: no file system is known for the URI.
    """
    ended, store = threading.Event(), None if storage is None else RunStore(storage)

    def sign(driver: Driver) -> None:
        write_atomically(folders.driver, json.dumps(asdict(replace(driver, last_sign=time.time()))))

    def publish() -> None:
        if store is not None:
            store.push_status(folders.name, folders.sweep)

    def keep_signing(driver: Driver) -> None:
        while not ended.wait(SIGN_SECONDS):
            with suppress(OSError):  # a full disk, or a storage that is away: others see no driver until it is back
                sign(driver)
                publish()

    with sole_owner(folders.sweep):
        folders.state.unlink(missing_ok=True)  # what the last driver wrote about its runs
        now = time.time()
        driver = Driver(
            host=socket.gethostname(), pid=os.getpid(), command=command, started=now, last_sign=now, at_work=True
        )
        sign(driver)
        thread = threading.Thread(target=keep_signing, args=(driver,), name="isoloop-signs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):
                sign(replace(driver, at_work=False))
                publish()


def last_driver(folders: Folders) -> Driver | None:
    """Return the driver that is at work on a sweep, or the last one; None if the sweep had none.

    On the driver's own machine the lock on the folder tells whether it lives. Other machines need not see locks (not
    every shared disk passes them on): there a driver is gone after `STALE_SECONDS` without a sign.
    """
    if not folders.driver.exists():
        return None
    driver = Driver(**json.loads(folders.driver.read_text(encoding="utf-8")))
    if not driver.at_work:
        return driver
    if driver.host == socket.gethostname() and (folders.sweep / "lock").exists():  # no copy of a storage's files
        with suppress(OSError):  # somebody else's folder, whose lock may not be opened
            return replace(driver, at_work=is_owned(folders.sweep))
    return replace(driver, at_work=abs(time.time() - driver.last_sign) < STALE_SECONDS)
