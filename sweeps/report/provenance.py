"""Where a sweep's runs come from: the versions, commits, devices and corpora that they recorded themselves."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoloop.sweeps.paths import Folders
from isoloop.sweeps.tracking.schema import driver_environment

FACTS = ("isoloop", "commit", "python", "torch", "numpy", "device_name")
"""What a run's journal says of where it was trained, without its host: names of machines stay at home."""
_STARTS = ("started", "resumed")
_OF_A_SWEEP = ("ray", "mlflow", "scipy", "pandas", "platform")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the runs recorded: for each fact, how many runs have each of its values.

    `recorded` of `runs` runs have their record here; the others were trained elsewhere, or are simulated. `corpora` are
    fingerprints. `here` is the environment of the process that asked.
    """

    runs: int
    recorded: int
    facts: Mapping[str, Mapping[str, int]]
    corpora: Mapping[str, int]
    here: Mapping[str, str]

    @property
    def differ(self) -> tuple[str, ...]:
        """The facts in which runs differ."""
        return tuple(name for name, values in self.facts.items() if len(values) > 1)


def read_origin(folders: Folders, run_ids: Iterable[str]) -> Origin:
    """Read what each run recorded in its folder; what isn't there is left out."""
    ids = list(run_ids)
    facts: dict[str, Counter[str]] = {name: Counter() for name in FACTS}
    corpora: Counter[str] = Counter()
    recorded = 0
    for run_id in ids:
        starts = _starts(folders.run(run_id) / "journal.jsonl")
        recorded += any(start.get("torch") for start in starts)
        for name in FACTS:
            # A run that was resumed elsewhere has two values, in their order.
            values = dict.fromkeys(str(start[name]) for start in starts if start.get(name))
            if values:
                facts[name][", then ".join(values)] += 1
        fingerprint = _fingerprint(folders.run(run_id) / "spec.json")
        if fingerprint:
            corpora[fingerprint] += 1
    here = {name: value for name in (*FACTS, *_OF_A_SWEEP) if (value := driver_environment().get(name))}
    return Origin(
        runs=len(ids),
        recorded=recorded,
        facts={name: dict(values) for name, values in facts.items() if values},
        corpora=dict(corpora),
        here=here,
    )


def _starts(journal: Path) -> list[dict[str, object]]:
    """The starts and resumptions in a journal; its many metrics aren't parsed."""
    if not journal.exists():
        return []
    with journal.open("rb") as file:
        lines = [line for line in file if b'"event"' in line and line.endswith(b"\n")]
    events = [json.loads(line) for line in lines]
    return [event for event in events if event.get("kind") == "event" and event.get("name") in _STARTS]


def _fingerprint(spec: Path) -> str | None:
    if not spec.exists():
        return None
    found = json.loads(spec.read_text()).get("data_fingerprint")
    return None if found in (None, "simulated") else str(found)
