"""The driver of a sweep, as any machine that shares the sweep's folder sees it: at work, ended, or gone."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from isoloop.sweeps.paths import Folders
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
def sole_driver(
    folders: Folders, *, command: str | None = None, on_sign: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Own a sweep's folder as its driver, and leave a sign of life there every `SIGN_SECONDS`, for `isoloop status`.

    Args:
        folders: the sweep's folders.
        command: the command that started the driver, without secrets.
        on_sign: called after each sign, in a thread.

    Raises:
        FolderBusyError: another process owns the folder.
    """
    ended = threading.Event()

    def sign(driver: Driver) -> None:
        # A full or absent disk must not end the driver: those who look see it as gone until it is back.
        with suppress(OSError):
            write_atomically(folders.driver, json.dumps(asdict(replace(driver, last_sign=time.time()))))
            on_sign()

    def keep_signing(driver: Driver) -> None:
        while not ended.wait(SIGN_SECONDS):
            sign(driver)

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
            sign(replace(driver, at_work=False))


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
    if driver.host == socket.gethostname():
        with suppress(OSError):  # somebody else's folder, whose lock may not be opened
            return replace(driver, at_work=is_owned(folders.sweep))
    return replace(driver, at_work=abs(time.time() - driver.last_sign) < STALE_SECONDS)
