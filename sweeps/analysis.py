"""What is made of a finished sweep: fits of each group of its runs, the stability table, figures and the page."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.fitting import SweepFit
    from isoloop.sweeps.stability.study import StabilityStudy

GROUP = "group"
FEWEST_RUNS = 4


def fit_and_report(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    *,
    command: str,
    law: str = "training",
    draws: int = 1000,
    progress: Progress | None = None,
) -> SweepResults:
    """Fit a sweep's table, store the fits, draw and write the page. What was made of an earlier table goes first.

    Laws hold for runs that differ in budget, tokens, mean recurrence and seed alone. Where other axes tell runs apart,
    the column `group` says so, and each group is fitted in a folder and on a page of its own. `law` is that of
    the loss after training, and `draws` are the refits behind each interval.
    """
    shutil.rmtree(folders.groups, ignore_errors=True)
    for stale in (folders.fit(hold_out=False), folders.fit(hold_out=True)):
        stale.unlink(missing_ok=True)
        stale.with_suffix(".txt").unlink(missing_ok=True)
    shutil.rmtree(folders.figures, ignore_errors=True)
    if GROUP not in table:
        return _fit_group(sweep, folders, table, command=command, law=law, draws=draws, progress=progress)
    parts = {
        str(label): part.drop(columns=GROUP).reset_index(drop=True) for label, part in table.groupby(GROUP, sort=False)
    }
    slugs = _slugs(list(parts))
    found: dict[str, SweepResults] = {}
    for label, part in parts.items():
        if (part["status"] == "finished").sum() < FEWEST_RUNS:
            continue
        own = folders.group(slugs[label])
        own.sweep.mkdir(parents=True)
        part.to_csv(own.table, index=False)
        own.config.write_text(folders.config.read_text())
        found[label] = _fit_group(
            sweep, own, part, command=command, law=law, draws=draws, progress=progress, label=label
        )
    few = len(parts) - len(found)
    said = f"its runs are of {len(parts)} groups, and a law is fitted to each apart" + (
        f", but {few} of them have fewer than {FEWEST_RUNS} finished runs" if few else ""
    )
    return _write_page(sweep, folders, table, {}, dict.fromkeys((False, True), said), command, found)


def _slugs(labels: list[str]) -> dict[str, str]:
    """A folder's name for each group."""
    found: dict[str, str] = {}
    for label in labels:
        slug = re.sub(r"[^A-Za-z0-9+.=]+", "-", label.replace(" = ", "=")).strip("-.")[:80] or "group"
        while slug in found.values():
            slug += "+"
        found[label] = slug
    return found


def _fit_group(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    *,
    command: str,
    law: str,
    draws: int,
    progress: Progress | None,
    label: str | None = None,
) -> SweepResults:
    """Fit the table with and without its largest budget. One that can't be fitted gets a page that says why."""
    from isoloop.fitting import fit_sweep

    name = sweep.name if label is None else f"{sweep.name}, {label}"
    fits: dict[bool, SweepFit | None] = {}
    why: dict[bool, str | None] = {}
    for hold_out in (False, True):
        try:
            found = fit_sweep(
                table,
                name=name,
                law=law,
                hold_out_largest_budget=hold_out,
                draws=draws,
                profiles=True,
                progress=(progress or Progress()).update,
            )
        except ValueError as error:
            fits[hold_out], why[hold_out] = None, str(error)
        else:
            store_fit(found, folders.fit(hold_out=hold_out))
            fits[hold_out], why[hold_out] = found, None
    return _write_page(sweep, folders, table, fits, why, command, {}, label=label)


def _write_page(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    fits: Mapping[bool, "SweepFit | None"],
    why: Mapping[bool, str | None],
    command: str,
    groups: Mapping[str, SweepResults],
    label: str | None = None,
) -> SweepResults:
    from isoloop.sweeps.report.page import write_report

    results = SweepResults(
        fit=fits.get(False),
        hold_out=fits.get(True),
        why_no_fit=why[False],
        why_no_hold_out=why[True],
        report=folders.report,
        groups=groups,
    )
    left_out = folders.left_out.read_text().splitlines() if folders.left_out.exists() else []
    write_report(folders, sweep=sweep, table=table, results=results, left_out=left_out, command=command, group=label)
    return results


def store_fit(fit: "SweepFit", path: Path) -> None:
    """Write a fit to `path` as JSON and, beside it, as readable text."""
    path.write_text(fit.to_json())
    path.with_suffix(".txt").write_text(fit.report())


def store_stability(sweep: SweepConfig, folders: Folders, table: "pd.DataFrame") -> "StabilityStudy":
    """Judge a stability study by its run table and the runs' journals; write its tables, report and figure.

    Raises:
        ValueError: the sweep isn't one (sweeps/stability/study.py).
    """
    from isoloop.sweeps.stability.dynamics import judged_study, write_study
    from isoloop.sweeps.stability.figure import save_stability

    study = judged_study(table, sweep, folders)
    write_study(study, folders.sweep)
    folders.stability.write_text(study.report())
    save_stability(study, folders.figures)
    return study
