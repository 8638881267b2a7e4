"""The speed of runs, read from their journals while these grow."""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from isoloop.trainer.run.journal import read_journal

SPEED_WINDOW_SECONDS = 300.0
_SPEED_RECORDS = 20


@dataclass(frozen=True)
class Work:
    """Steps by time, in seconds since 1970, and what a step costs in FLOPs."""

    points: "deque[tuple[float, int]]"
    flops_per_step: float

    @property
    def end(self) -> float:
        """The time of the last step."""
        return self.points[-1][0] if self.points else 0.0

    def flops_between(self, start: float, end: float) -> float:
        """Return the FLOPs spent from `start` to `end`; steps that a resumed run repeats count, too."""
        steps = 0.0
        for (time_before, step_before), (time, step) in pairwise(self.points):
            if step > step_before:
                seconds, overlap = time - time_before, min(end, time) - max(start, time_before)
                share = overlap / seconds if seconds > 0 else float(start <= time <= end)
                steps += (step - step_before) * max(0.0, share)
        return steps * self.flops_per_step


@dataclass
class JournalReader:
    """A run's journal, read on from where it was read before.

    Attributes:
        path: the journal.
        step: steps done.
        losses: training losses.
        points: steps by time in the last `SPEED_WINDOW_SECONDS`, and the last before.
        attempt: the last points of the last attempt.
        offset: bytes that are read.
    """

    path: Path
    step: int = 0
    losses: list[float] = field(default_factory=list)
    points: "deque[tuple[float, int]]" = field(default_factory=deque)
    attempt: "deque[tuple[float, int]]" = field(default_factory=lambda: deque(maxlen=_SPEED_RECORDS))
    offset: int = 0

    def read(self, now: float) -> None:
        """Read what is new at the time `now`."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size < self.offset:  # another journal, of a run that was deleted and begun anew
            self.step = self.offset = 0
            for read in (self.losses, self.points, self.attempt):
                read.clear()
        if size == self.offset:
            return
        records, self.offset = read_journal(self.path, self.offset)
        for record in records:
            if "step" not in record:
                continue
            point = (record["time_ms"] / 1000, record["step"])
            if record["kind"] == "event":
                self.attempt.clear()
            self.attempt.append(point)
            self.points.append(point)
            self.step = max(self.step, record["step"])
            if "train_loss" in record.get("values", {}):
                self.losses.append(record["values"]["train_loss"])
        while len(self.points) > 1 and self.points[1][0] < now - SPEED_WINDOW_SECONDS:
            self.points.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """The speed of the last records of this attempt; None if there are too few."""
        if not self.attempt:
            return None
        (start, first), (end, last) = self.attempt[0], self.attempt[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def unrecorded_steps(self, start: float, end: float) -> float:
        """Return the steps from `start` to `end` since the last record: at its speed, and at most one interval's."""
        if self.steps_per_second is None:
            return 0.0
        last = self.attempt[-1][0]
        interval = (last - self.attempt[0][0]) / (len(self.attempt) - 1)
        return self.steps_per_second * max(0.0, min(end, last + interval) - max(start, last))
