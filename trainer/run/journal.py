"""A run's own append-only record of metrics: one JSON line per record, whole or not there.

A process may die in the middle of a line. Opening the journal again cuts the torn line off; reading it stops before
it. A disk may be full in the middle of a line: the journal is then cut back to where it was, and the error is raised.
A run that goes on from an older checkpoint passes steps again that it has journaled already: those are not
written twice.
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


class Journal:
    """Append records to `path`; single writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        records, whole = read_journal(path)
        if path.exists() and path.stat().st_size > whole:
            os.truncate(path, whole)  # a torn last line
        self.last_step = max((r["step"] for r in records if r["kind"] == "metrics"), default=-1)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if not records:
            self._write({"kind": "journal", "id": uuid.uuid4().hex})

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record `values` at `step`, unless the journal holds that step from before a restart."""
        if step > self.last_step:
            self._write({"kind": "metrics", "step": step, "values": values})
            self.last_step = step

    def event(self, name: str, **details: Any) -> None:
        """Record that something happened: a start, a resumption, a divergence."""
        self._write({"kind": "event", "name": name, **details})

    def close(self) -> None:
        """Close the file; what was written is already with the operating system."""
        os.close(self._file)

    def _write(self, record: dict[str, Any]) -> None:
        rest = (json.dumps({"time_ms": round(time.time() * 1000), **record}) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            while rest:  # a disk that is nearly full takes a part; only the next write says why
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole records of the journal from byte `offset` on, and the offset behind the last of them.

    A missing journal has no records.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def journal_id(path: Path) -> str | None:
    """What tells this journal from another one at the same place; None while there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        first = file.readline()
    return json.loads(first).get("id") if first.endswith(b"\n") else None
