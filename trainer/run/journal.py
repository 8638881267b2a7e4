"""The journal of a run: an append-only file of events and metrics, one JSON line per record.

A line is whole or absent. If a process dies within a line, reading stops before the torn line, and opening the journal
again removes it. If the disk fills up within a line, the journal is truncated to its former length and the error is
raised. A run that resumes from an older checkpoint repeats steps; those are not recorded twice.
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


class Journal:
    """Writer of the journal at `path`, of which there may be only one at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        records, end = read_journal(path)
        if path.exists() and path.stat().st_size > end:
            os.truncate(path, end)  # a torn last line
        self.last_step = max((r["step"] for r in records if r["kind"] == "metrics"), default=-1)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if not records:
            self._write({"kind": "journal", "id": uuid.uuid4().hex})

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record `values` at `step`, unless that step was recorded before a restart."""
        if step > self.last_step:
            self._write({"kind": "metrics", "step": step, "values": values})
            self.last_step = step

    def event(self, name: str, **details: Any) -> None:
        """Record an event such as a start, a resumption or a divergence."""
        self._write({"kind": "event", "name": name, **details})

    def close(self) -> None:
        """Close the file; all records have reached the operating system already."""
        os.close(self._file)

    def _write(self, record: dict[str, Any]) -> None:
        rest = (json.dumps({"time_ms": round(time.time() * 1000), **record}) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            while rest:  # a nearly full disk takes a part of a write, and only the next write fails
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the whole records of the journal from byte `offset` on, and the offset after the last of them.

    A missing journal has no records.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = whole_lines(content)
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def whole_lines(content: bytes) -> bytes:
    """Return a journal's content without a torn last line."""
    return content[: content.rfind(b"\n") + 1]


def journal_id(path: Path) -> str | None:
    """Return the id that distinguishes this journal from another at the same path; None if there is no journal."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        first = file.readline()
    return json.loads(first).get("id") if first.endswith(b"\n") else None
