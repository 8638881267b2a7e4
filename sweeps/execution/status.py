"""The state of a sweep, read from its folder: in any terminal, whether or not its driver is running."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Plan
from isoloop.trainer.files import is_owned, write_atomically
from isoloop.trainer.run.journal import read_journal
from isoloop.trainer.run.result import read_result

STATES = ("done", "diverged", "failed", "running", "again", "waiting")
_SPEED_RECORDS = 20


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of one run.

    Attributes:
        run_id: its identity; `label` describes it.
        state: `done`, `diverged`, `failed`, `running`, `again` (waits for a retry), `waiting`.
        step: steps done, of `steps`.
        loss: validation loss of a run that is done, the last training loss of one that is running; nats per token.
        seconds: time left of a running run, at its recent speed; time taken by a run that is done.
        reason: the first line of why it failed, diverged or is retried.
    """

    run_id: str
    label: str
    state: str
    step: int
    steps: int
    loss: float | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """The state of a sweep.

    Attributes:
        name: the sweep's name.
        at_work: whether a driver is running.
        share: the share of the FLOPs, 0 to 1, that is trained.
        runs: all runs.
    """

    name: str
    at_work: bool
    share: float
    runs: tuple[RunStatus, ...]

    @property
    def is_complete(self) -> bool:
        """True if every run has a result."""
        return all(run.state in ("done", "diverged") for run in self.runs)

    def counts(self) -> dict[str, int]:
        """Return the numbers of runs by state."""
        counts = Counter(run.state for run in self.runs)
        return {state: counts[state] for state in STATES if counts[state]}

    def to_json(self) -> str:
        """Return everything as JSON, for programs."""
        return json.dumps(asdict(self, dict_factory=_finite_or_none), indent=1, allow_nan=False)


def _finite_or_none(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a status with None for a number that isn't finite, which JSON has no name for."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields}


def write_manifest(plan: Plan, folders: Folders) -> None:
    """Write the list of the sweep's runs, before they start."""
    cells = [
        {"run_id": cell.run_id, "label": cell.label, "steps": cell.spec.steps, "flops": cell.flops}
        for cell in plan.cells
    ]
    folders.sweep.mkdir(parents=True, exist_ok=True)
    write_atomically(folders.manifest, json.dumps(cells))


def read_status(folders: Folders) -> SweepStatus:
    """Read the state of a sweep.

    Raises:
        ValueError: it was never started.
    """
    if not folders.manifest.exists():
        raise ValueError(
            f"a sweep must have been started to have a status, but {folders.sweep} has no {folders.manifest.name}; "
            f"start it with 'isoloop run {folders.name}'"
        )
    cells = json.loads(folders.manifest.read_text(encoding="utf-8"))
    at_work = is_owned(folders.sweep)
    state: dict[str, Any] = {"running": {}, "again": {}, "failed": {}}
    if folders.state.exists():
        state |= json.loads(folders.state.read_text(encoding="utf-8"))
    runs = [_run_status(cell, folders.run(cell["run_id"]), state, at_work) for cell in cells]
    shares = [1.0 if run.state in ("done", "diverged") else run.step / run.steps for run in runs]
    done = sum(share * cell["flops"] for share, cell in zip(shares, cells, strict=True))
    share = done / sum(cell["flops"] for cell in cells)
    return SweepStatus(name=folders.name, at_work=at_work, share=share, runs=tuple(runs))


def _run_status(cell: dict[str, Any], folder: Path, state: dict[str, Any], at_work: bool) -> RunStatus:
    # A run with a result.
    run_id, label, steps = cell["run_id"], cell["label"], cell["steps"]
    result = read_result(folder)
    if result is not None:
        return RunStatus(
            run_id=run_id, label=label, state="done" if result.status == "finished" else "diverged",
            step=result.steps, steps=steps, loss=result.loss, seconds=result.seconds, reason=result.reason,
        )  # fmt: skip
    # A run without one: its journal, and what the driver has written about it.
    records = [record for record in read_journal(folder / "journal.jsonl")[0] if "step" in record]
    losses = [record["values"].get("train_loss") for record in records if record["kind"] == "metrics"]
    running = at_work and run_id in state["running"]
    if run_id in state["failed"]:
        name = "failed"
    elif running:
        name = "running"
    else:
        name = "again" if at_work and run_id in state["again"] else "waiting"
    return RunStatus(
        run_id=run_id,
        label=label,
        state=name,
        step=max((record["step"] for record in records), default=0),
        steps=steps,
        loss=losses[-1] if losses else None,
        seconds=_seconds_left(records, steps) if running else None,
        reason=state["failed"].get(run_id) or state["again"].get(run_id),
    )


def _seconds_left(records: Sequence[dict[str, Any]], steps: int) -> float | None:
    """Return the time left at the speed of the last records of one attempt, None if there are too few."""
    starts = [i for i, record in enumerate(records) if record["kind"] == "event"]
    recent = records[(starts[-1] if starts else 0) :][-_SPEED_RECORDS:]
    if len(recent) < 2 or recent[-1]["step"] <= recent[0]["step"]:
        return None
    seconds_per_step = (recent[-1]["time_ms"] - recent[0]["time_ms"]) / 1000 / (recent[-1]["step"] - recent[0]["step"])
    return seconds_per_step * (steps - recent[-1]["step"])
