"""The analysis of a finished sweep: fits of each group of its runs, the stability study, figures and the page."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import SO_FAR, Folders, SweepResults, TablePlaces
from isoloop.sweeps.runs import GROUP, joint_runs
from isoloop.sweeps.stability.study import is_study
from isoloop.trainer.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.fitting import AnyFit, RunTable
    from isoloop.fitting.result import FittedFile
    from isoloop.sweeps.stability.study import StabilityStudy

FEWEST_RUNS = 4
_DRAWS_OF_SIZES = 200
"""Refits at most behind the intervals of a single size, where all sizes are fitted together."""


def fit_and_report(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    *,
    command: str,
    law: str | None = None,
    draws: int = 1000,
    progress: Progress | None = None,
) -> SweepResults:
    """Fit a sweep's table, store the fits, draw the figures and write the page, replacing those of an earlier table.

    A law of one architecture holds for runs that differ only in budget, tokens, mean recurrence and seed. Where runs
    differ along other axes, the column `group` tells them apart, and each group is fitted in a folder and on a page of
    its own. Groups that differ in size alone, or in the unique tokens of their text alone, are fitted together, too; so
    are, in a folder of their own, the sizes of each combination of other axes. `law` is that of the loss after
    training, by default one that fits the table, and `draws` are the refits behind each interval. A stability study is
    evaluated and stored, too.
    """
    # Remove the results of an earlier table, and those before the end.
    shutil.rmtree(folders.groups, ignore_errors=True)
    shutil.rmtree(folders.so_far.sweep, ignore_errors=True)
    _remove_fits(folders)
    shutil.rmtree(folders.figures, ignore_errors=True)
    # Fit all runs together, or each group.
    progress = progress or Progress()
    fit = partial(_fit_table, sweep, command=command, law=law, progress=progress)
    study = None
    if is_study(sweep):
        progress.begin("Evaluating stability")
        study = store_stability(sweep, folders, table)
    if GROUP not in table:
        return fit(folders, table, draws=draws, study=study)
    groups = {str(label): part.drop(columns=GROUP) for label, part in table.groupby(GROUP, sort=False)}
    whole = joint_runs(table)
    own_draws = draws
    if whole is None:
        groups = _sizes_of_combinations(sweep, table) | groups
    elif whole["effective_params_fixed"].nunique() > 1:
        own_draws = min(draws, _DRAWS_OF_SIZES)
        groups = dict(sorted(groups.items(), key=lambda item: item[1]["effective_params_fixed"].iloc[0]))
    slugs = _slugs(list(groups))
    results: dict[str, SweepResults] = {}
    for label, part in groups.items():
        if (part["status"] == "finished").sum() < FEWEST_RUNS:
            continue
        own = folders.group(slugs[label])
        own.sweep.mkdir(parents=True)
        rows = part.reset_index(drop=True)
        rows.to_csv(own.table, index=False)
        own.config.write_text(folders.config.read_text(encoding="utf-8"), encoding="utf-8")
        if folders.notes.exists():
            own.notes.write_text(folders.notes.read_text(encoding="utf-8"), encoding="utf-8")
        results[label] = fit(own, rows, label=label, draws=own_draws)
    # Write the page of all runs: of their joint fit, or one that compares the groups.
    reason = f"its runs are of {table[GROUP].nunique()} groups, and a law is fitted to each of them"
    sizes = table.groupby(GROUP)["status"].agg(lambda statuses: (statuses == "finished").sum())
    if few := int((sizes < FEWEST_RUNS).sum()):
        reason += f", but {few} of them have fewer than {FEWEST_RUNS} finished runs"
    of_all = SweepResults(
        fit=None, hold_out=None, why_no_fit=reason, why_no_hold_out=reason, report=folders.report, groups=results
    )
    if whole is not None:
        fitted = _fits(folders, whole.reset_index(drop=True), name=sweep.name, law=law, draws=draws, progress=progress)
        of_all = replace(fitted, groups=results)
    return _write_page(sweep, table, folders, command, of_all, progress, study=study)


def _sizes_of_combinations(sweep: SweepConfig, table: "pd.DataFrame") -> "dict[str, pd.DataFrame]":
    """Return the runs of each combination of the axes but the size, by name, where they have several sizes."""
    from isoloop.fitting.sizes.fit import several_sizes
    from isoloop.sweeps.plan.axes import axis_texts, is_size, separates

    names = dict.fromkeys([*sweep.axes, *(name for point in sweep.points for name in point)])
    others = [name for name in names if name in table and separates(name) and not is_size(name)]
    if not others:
        return {}
    combinations = table.drop(columns=GROUP).groupby(others, sort=False, dropna=False)
    parts = {", ".join([*axis_texts(part[others].iloc[0].to_dict()), "all sizes"]): part for _, part in combinations}
    return {label: part for label, part in parts.items() if several_sizes(part)}


def report_so_far(
    folders: Folders, *, command: str, law: str | None = None, draws: int = 1000, progress: Progress | None = None
) -> Path:
    """Fit the runs of an unfinished sweep that have ended, in a folder of their own, and write and return the page.

    Raises:
        ValueError: as `read_table_so_far` does.
    """
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.report.so_far import early_answers, read_table_so_far

    progress = progress or Progress()
    progress.begin("Reading the runs that have ended")
    so_far, own = read_table_so_far(folders), folders.so_far
    sweep = load_sweep(str(own.config))
    progress.begin("Fitting")
    sentences = [answer.sentence for answer in early_answers(so_far)]
    own.notes.write_text("".join(f"{text}\n" for text in (so_far.note, *sentences)), encoding="utf-8")
    so_far.table.to_csv(own.table, index=False)
    named = sweep.model_copy(update={"name": f"{sweep.name}-{SO_FAR}"})
    return fit_and_report(named, own, so_far.table, command=command, law=law, draws=draws, progress=progress).report


def fit_and_report_table(
    places: TablePlaces,
    file: Path,
    table: "RunTable",
    *,
    fitted_file: "FittedFile",
    name: str,
    command: str,
    experiment: str | None = None,
    law: str | None = None,
    draws: int = 1000,
    budget_tolerance: float | None = None,
    progress: Progress | None = None,
) -> SweepResults:
    """Fit a table of runs, store the fits, draw the figures and write the page, replacing those of an earlier call.

    Args:
        places: where the results go.
        file: the file that the table is in, or a copy of it.
        table: the checked table, with notes about its reading.
        fitted_file: the name and digest of the file when the table was read.
        name: heading of the page.
        command: the command that makes the page.
        experiment: the MLflow experiment that `file` is a copy of.
        law: the law of the loss after training; by default one that fits the table.
        draws: refits behind each interval.
        budget_tolerance: budgets within this fraction of one another are one; by default 1%.
        progress: told of how far the fits are.
    """
    from isoloop.fitting.figures import FIGURES, QUALITY_FIGURES
    from isoloop.fitting.figures.style import SUFFIXES
    from isoloop.sweeps.report.page import TablePage, write_report
    from isoloop.sweeps.report.provenance import table_origin

    # Remove the results of an earlier call; other files in the folder of the figures stay.
    _remove_fits(places)
    for figure in (*places.figures.glob("*"), *places.figures.glob("hold-out/*")):
        if figure.stem in {*FIGURES, *QUALITY_FIGURES} and figure.suffix in SUFFIXES:
            figure.unlink()
    # Fit and report.
    progress = progress or Progress()
    options = {} if budget_tolerance is None else {"budget_tolerance": budget_tolerance}
    results = _fits(
        places,
        table.frame,
        name=name,
        law=law,
        draws=draws,
        progress=progress,
        reading=table.notes,
        file=fitted_file,
        **options,
    )
    page = TablePage(places=places, name=name, origin=table_origin(file, experiment))
    reading = results.any_fit.reading if results.any_fit is not None else table.notes
    write_report(page, table=table.frame, results=results, command=command, progress=progress, reading=reading)
    return results


def _remove_fits(places: Folders | TablePlaces) -> None:
    for stored in (places.fit(hold_out=False), places.fit(hold_out=True)):
        stored.unlink(missing_ok=True)
        stored.with_suffix(".txt").unlink(missing_ok=True)


def _slugs(labels: list[str]) -> dict[str, str]:
    """Return a folder name for each group."""
    slugs: dict[str, str] = {}
    for label in labels:
        slug = re.sub(r"[^A-Za-z0-9+.=]+", "-", label.replace(" = ", "=")).strip("-.")[:80] or "group"
        while slug in slugs.values():
            slug += "+"
        slugs[label] = slug
    return slugs


def _fit_table(
    sweep: SweepConfig,
    folders: Folders,
    table: "pd.DataFrame",
    *,
    command: str,
    law: str | None,
    draws: int,
    progress: Progress,
    label: str | None = None,
    study: "StabilityStudy | None" = None,
) -> SweepResults:
    """Fit the table with and without its largest budget, and write the page, which explains a missing fit."""
    name = sweep.name if label is None else f"{sweep.name}, {label}"
    results = _fits(folders, table, name=name, law=law, draws=draws, progress=progress)
    return _write_page(sweep, table, folders, command, results, progress, label=label, study=study)


def _fits(
    places: Folders | TablePlaces,
    table: "pd.DataFrame",
    *,
    name: str,
    law: str | None,
    draws: int,
    progress: Progress,
    file: "FittedFile | None" = None,
    **options: Any,
) -> SweepResults:
    """Fit a table with and without its largest budget, and store the fits; `options` are those of `fit_table`.

    `file` is the file that the table is in, if it is that of a target and not of a sweep.
    """
    from isoloop.fitting import SizesFit, SweepFit, fit_table

    fits: dict[bool, AnyFit] = {}
    reasons: dict[bool, str] = {}
    for hold_out in (False, True):
        progress.begin("Fitting without the largest budget" if hold_out else "Fitting")
        try:
            fit = fit_table(
                table,
                name=name,
                law=law,
                hold_out_largest_budget=hold_out,
                draws=draws,
                profiles=True,
                rollouts=not hold_out,
                progress=progress.update,
                **options,
            )
            store_fit(replace(fit, file=file), places.fit(hold_out=hold_out))
        except ValueError as error:
            reasons[hold_out] = str(error)
        else:
            fits[hold_out] = fit
    single = {hold_out: fit for hold_out, fit in fits.items() if isinstance(fit, SweepFit)}
    joint = {hold_out: fit for hold_out, fit in fits.items() if isinstance(fit, SizesFit)}
    return SweepResults(
        fit=single.get(False),
        hold_out=single.get(True),
        joint=joint.get(False),
        joint_hold_out=joint.get(True),
        why_no_fit=reasons.get(False),
        why_no_hold_out=reasons.get(True),
        report=places.report,
    )


def _write_page(
    sweep: SweepConfig,
    table: "pd.DataFrame",
    folders: Folders,
    command: str,
    results: SweepResults,
    progress: Progress,
    *,
    label: str | None = None,
    study: "StabilityStudy | None" = None,
) -> SweepResults:
    from isoloop.sweeps.report.page import StudyPart, SweepPage, write_report
    from isoloop.sweeps.stability.figure import STABILITY_CAPTION, stability_figure

    left_out = folders.left_out.read_text(encoding="utf-8").splitlines() if folders.left_out.exists() else []
    part = None
    if study is not None:
        part = StudyPart(
            summary=study.summary(),
            caption=STABILITY_CAPTION,
            draw=lambda width: stability_figure(study, width=width),
        )
    page = SweepPage(places=folders, sweep=sweep, left_out=left_out, group=label, study=part)
    write_report(page, table=table, results=results, command=command, progress=progress)
    return replace(results, stability="" if part is None else part.summary)


def store_fit(fit: "AnyFit", path: Path) -> None:
    """Write a fit to `path` as JSON and, beside it, as readable text: each whole, and never the text of another fit."""
    text, report = fit.to_json(), path.with_suffix(".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    write_atomically(path, text)
    write_atomically(report, fit.report())


def store_stability(sweep: SweepConfig, folders: Folders, table: "pd.DataFrame") -> "StabilityStudy":
    """Evaluate a stability study from its run table and journals, and write its tables, report and figure.

    Raises:
        ValueError: the sweep isn't a stability study (sweeps/stability/study.py).
    """
    from isoloop.sweeps.stability.dynamics import judge_sweep, write_study
    from isoloop.sweeps.stability.figure import save_stability

    study = judge_sweep(table, sweep, folders)
    write_study(study, folders.sweep)
    folders.stability.write_text(study.report(), encoding="utf-8")
    save_stability(study, folders.figures)
    return study
