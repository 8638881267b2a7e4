"""The origin of runs: versions, commits, devices and corpora as runs recorded them, or the file of a table."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.tracking.schema import driver_environment
from isoloop.trainer.config import SYNTHETIC_TEXTS

_RECORDED = ("isoloop", "commit", "python", "torch", "numpy", "device_name")
"""The part of a run's recorded environment that a page shows; the host's name stays private."""
_START_EVENTS = ("started", "resumed")
_DRIVER_ONLY = ("ray", "mlflow", "scipy", "pandas", "platform")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The environment of the runs: for each recorded fact, the number of runs with each of its values.

    `recorded` of `runs` runs have their record in this output folder; the others were trained elsewhere, or are
    simulated. `corpora` counts the runs by fingerprint of their corpus. `driver` is this process's environment.
    """

    runs: int
    recorded: int
    facts: Mapping[str, Mapping[str, int]]
    corpora: Mapping[str, int]
    driver: Mapping[str, str]

    @property
    def differing(self) -> tuple[str, ...]:
        """The facts in which runs differ."""
        return tuple(name for name, values in self.facts.items() if len(values) > 1)


@dataclass(frozen=True, kw_only=True)
class TableOrigin:
    """The file that a table of runs was read from, by its name, with its SHA-256.

    `experiment` is the MLflow experiment that the file is a copy of, if it is one. `driver` is this process's
    environment.
    """

    file: str
    sha256: str
    experiment: str | None
    driver: Mapping[str, str]


def table_origin(file: Path, experiment: str | None = None) -> TableOrigin:
    """Return the origin of a table in a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return TableOrigin(file=file.name, sha256=digest, experiment=experiment, driver=_driver())


def read_origin(folders: Folders, run_ids: Iterable[str]) -> Origin:
    """Read the environment that each run recorded in its folder; runs without a record are left out."""
    ids = list(run_ids)
    facts: dict[str, Counter[str]] = {name: Counter() for name in _RECORDED}
    corpora: Counter[str] = Counter()
    recorded = 0
    for run_id in ids:
        starts = _start_events(folders.run(run_id) / "journal.jsonl")
        recorded += any(start.get("torch") for start in starts)
        for name in _RECORDED:
            # A run that was resumed elsewhere has two values, in their order.
            values = dict.fromkeys(str(start[name]) for start in starts if start.get(name))
            if values:
                facts[name][", then ".join(values)] += 1
        fingerprint = _fingerprint(folders.run(run_id) / "spec.json")
        if fingerprint:
            corpora[fingerprint] += 1
    return Origin(
        runs=len(ids),
        recorded=recorded,
        facts={name: dict(values) for name, values in facts.items() if values},
        corpora=dict(corpora),
        driver=_driver(),
    )


def _driver() -> dict[str, str]:
    """Return the part of this process's environment that a page shows."""
    environment = driver_environment()
    return {name: value for name in (*_RECORDED, *_DRIVER_ONLY) if (value := environment.get(name))}


def _start_events(journal: Path) -> list[dict[str, object]]:
    """Return the starts and resumptions in a journal, without parsing its many metrics."""
    if not journal.exists():
        return []
    with journal.open("rb") as file:
        lines = [line for line in file if b'"event"' in line and line.endswith(b"\n")]
    events = [json.loads(line) for line in lines]
    return [event for event in events if event.get("kind") == "event" and event.get("name") in _START_EVENTS]


def _fingerprint(spec: Path) -> str | None:
    """Return the fingerprint of a run's corpus, and its name if it is a synthetic text; None if there is none."""
    if not spec.exists():
        return None
    content = json.loads(spec.read_text(encoding="utf-8"))
    fingerprint, corpus = content.get("data_fingerprint"), content.get("data", {}).get("corpus")
    if fingerprint in (None, "simulated"):
        return None
    return f"{fingerprint} ({corpus}, a synthetic text)" if corpus in SYNTHETIC_TEXTS else str(fingerprint)
