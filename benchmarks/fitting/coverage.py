"""Coverage and width of 95% intervals in simulated sweeps; a call that was stopped is continued by the next."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.fitting import intervals, sizes, worlds
from benchmarks.fitting.cases import CASES, Case
from benchmarks.fitting.intervals import SLOW, SLOW_EVERY, Found
from benchmarks.fitting.results import table

_ROOT = Path(__file__).resolve().parents[2]
_OURS = re.compile(r"^from ((?:benchmarks|isoloop)\.fitting\.[\w.]+) import", re.MULTILINE)
_WANTED = 0.90, 0.99
SweepCase = TypeVar("SweepCase")
_SAVE_EVERY = 10.0
"""Seconds."""


@dataclass(kw_only=True)
class Cell:
    """The finished sweeps of one case and their CPU seconds, kept in a file."""

    path: Path
    made_with: str
    sweeps: list[Any]
    seconds: float

    @classmethod
    def of(cls, name: str, folder: Path, made_with: str) -> Cell:
        """Return the stored sweeps of the case of that name, if they were made with the same code and draws."""
        path = folder / f"{re.sub('[^a-zA-Z0-9.]+', '-', name)}.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept.get("made_with") != made_with:
            kept = {"sweeps": [], "seconds": 0.0}
        return cls(path=path, made_with=made_with, sweeps=kept["sweeps"], seconds=kept["seconds"])

    def save(self) -> None:
        """Write the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"made_with": self.made_with, "seconds": self.seconds, "sweeps": self.sweeps})
        beside = self.path.with_suffix(".tmp")
        beside.write_text(text)
        beside.replace(self.path)


def run(cache: Path, *, sweeps: int = 200, draws: int = 400, of: Iterable[Case] = CASES) -> str:
    """Return the section of RESULTS.md; sweeps in the cache are not simulated again."""
    made_with = f"{draws} draws, {fingerprint(intervals)}"
    found, seconds = simulate({case: case.name for case in of}, intervals.intervals, cache, made_with, sweeps, draws)
    return _section(found, sweeps, draws, seconds)


def run_worlds(cache: Path, *, sweeps: int = 100, draws: int = 200) -> str:
    """Return the section about sweeps that are not as the fit assumes: see `worlds`."""
    made_with = f"{draws} draws, {fingerprint(worlds)}"
    names = {world: world.name for world in worlds.WORLDS}
    found, seconds = simulate(names, worlds.held, cache, made_with, sweeps, draws)
    return worlds.section(found, sweeps, draws, seconds)


def run_sizes(cache: Path, *, sweeps: int = 200, draws: int = 200) -> str:
    """Return the section about joint fits over sizes: see `sizes`."""
    made_with = f"{draws} draws, {fingerprint(sizes)}"
    names = {world: world.name for world in sizes.WORLDS}
    found, seconds = simulate(names, sizes.held, cache, made_with, sweeps, draws)
    return sizes.section(found, sweeps, draws, seconds)


def simulate(
    cases: dict[SweepCase, str],
    held: Callable[[SweepCase, int, int], Any],
    cache: Path,
    made_with: str,
    sweeps: int,
    draws: int,
) -> tuple[dict[SweepCase, list[Any]], float]:
    """Return what `held(case, number, draws)` gives for each sweep of the cases, by name in the cache, and CPU seconds.

    Sweeps in the cache that were made with the same code and draws are not simulated again.
    """
    cells = {case: Cell.of(name, cache, made_with) for case, name in cases.items()}
    _fill(cells, cases, held, sweeps, draws)
    seconds = sum(cell.seconds * sweeps / len(cell.sweeps) for cell in cells.values())
    return {case: cell.sweeps[:sweeps] for case, cell in cells.items()}, seconds


def fingerprint(module: ModuleType) -> str:
    """Return a hash of the code that a module runs; sweeps of other code are not taken from the cache."""
    seen, ahead = set(), [Path(str(module.__file__))]
    while ahead:
        path = ahead.pop()
        if path in seen:
            continue
        seen.add(path)
        imported = _OURS.findall(path.read_text())
        ahead += [file for name in imported if (file := _ROOT / f"{name.replace('.', '/')}.py").is_file()]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(seen))).hexdigest()[:12]


def _fill(
    cells: dict[SweepCase, Cell],
    names: dict[SweepCase, str],
    held: Callable[[SweepCase, int, int], Any],
    sweeps: int,
    draws: int,
) -> None:
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("sweeps", total=sum(max(0, sweeps - len(cell.sweeps)) for cell in cells.values()))
        for case, cell in cells.items():
            progress.update(task, description=names[case])
            kept, saved = len(cell.sweeps), time.monotonic()
            try:
                for number in range(kept, sweeps):
                    began = time.process_time()
                    found = held(case, number, draws)
                    cell.seconds += time.process_time() - began
                    cell.sweeps.append(found)
                    progress.advance(task)
                    if time.monotonic() - saved > _SAVE_EVERY:
                        cell.save()
                        saved = time.monotonic()
            finally:
                cell.save()
            if not console.is_terminal:
                console.print(f"{names[case]}: {sweeps} sweeps, {kept} kept, {cell.seconds:.0f} CPU-s in all")


def _section(found: dict[Case, list[Found]], sweeps: int, draws: int, seconds: float) -> str:
    ways = list(next(iter(found.values()))[0])
    bodies, outside, all_shares = [], [], []
    for way in ways:
        quantities = list(
            dict.fromkeys(name for records in found.values() for one in records for name in one.get(way, {}))
        )
        shares, widths = [], []
        for case, records in found.items():
            shown = [_share(records, way, quantity) for quantity in quantities]
            outside += [
                f"{way}: {q} at {case.name}, {s[0]:.1%}" for q, s in zip(quantities, shown, strict=True) if s[2]
            ]
            shares.append((case.name, *(text for _, text, _ in shown)))
            all_shares.append([text for _, text, _ in shown])
            widths.append((case.name, *(_width(records, way, quantity) for quantity in quantities)))
        bodies.append(
            f"### {way}\n\n{table(('run noise', *quantities), shares)}\n"
            f"Median width, in percent of the truth{_growth(found, way, quantities)}:\n\n"
            f"{table(('run noise', *quantities), widths)}"
        )
    cells = sum(text != "" for line in all_shares for text in line)
    low, high = (f"{share:.0%}" for share in _WANTED)
    listed = "".join(f"\n- {one}" for one in outside) or " None."
    return (
        f"In how many percent of {sweeps} simulated sweeps of the published grid the 95% interval holds the truth, "
        f"with one binomial standard error, from {draws} draws; {seconds / 60:.1f} CPU-minutes. "
        f"{' and '.join(SLOW)}: of one sweep in {SLOW_EVERY}. An interval without an end holds what lies on that side. "
        "In brackets, of how many sweeps, where some gave no interval; empty where the truth has none, since a minimum "
        "at the grid's edge gives no parabola. Outliers are 5% of the runs, with ten times the noise; few budgets are "
        "the last of the six. *Beyond* is 128e18 FLOPs, twice the largest budget (*the top*): *L* at the true law's "
        "optimum there, without noise and as one run's with it, and *mu\\** and *D\\** the law's own best.\n\n"
        f"Wanted: {low} to {high}; {len(outside)} of {cells} cells are outside, in bold:{listed}"
        "\n\n" + "\n".join(bodies)
    )


def _ends(records: list[Found], way: str, quantity: str) -> np.ndarray:
    """Return low, high and truth (sweeps with an interval, 3)."""
    held = [one[way].get(quantity) for one in records if way in one]
    return np.array([ends for ends in held if ends is not None], dtype=float).reshape(-1, 3)


def _share(records: list[Found], way: str, quantity: str) -> tuple[float, str, bool]:
    """Return the share of sweeps whose interval holds the truth, as number and text, and whether it is off 95%."""
    low, high, truth = _ends(records, way, quantity).T
    count = len(truth)
    if not count:
        return float("nan"), "", False
    share = float(np.mean((low <= truth) & (truth <= high)))
    error = np.sqrt(share * (1 - share) / count)
    text = f"{100 * share:.1f} ± {100 * error:.1f}" + (
        f" ({count})" if count < sum(way in one for one in records) else ""
    )
    outside = not _WANTED[0] <= share <= _WANTED[1]
    return share, f"**{text}**" if outside else text, outside


def _median_width(records: list[Found], way: str, quantity: str) -> float:
    low, high, truth = _ends(records, way, quantity).T
    return float(np.median(high - low) / np.median(np.abs(truth))) if len(truth) else float("nan")


def _width(records: list[Found], way: str, quantity: str) -> str:
    width = _median_width(records, way, quantity)
    return "" if np.isnan(width) else "open" if np.isinf(width) else f"{100 * width:.3g}"


def _growth(found: dict[Case, list[Found]], way: str, quantities: list[str]) -> str:
    """Say in half a sentence whether more noise gives wider intervals."""
    noisier = sorted((case for case in found if case.only_noise), key=lambda case: case.run_noise)
    if len(noisier) < 2:
        return ""
    widths = {q: [_median_width(found[case], way, q) for case in noisier] for q in quantities}
    not_wider = [q for q, each in widths.items() if not all(a < b for a, b in pairwise(each))]
    if not not_wider:
        return "; each step of noise widens every one"
    return f"; more noise does not always widen {', '.join(not_wider)}"
