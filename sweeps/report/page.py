"""The self-contained HTML page of a sweep or a table of runs: answer, curves, runs, held-out test, caveats, origin."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.figure import Figure

import isoloop
from isoloop.fitting import ANSWER_MULTIPLE, AnyFit, SizesFit, answer, figures, is_dense, verdict
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.figures.style import MOST_SHAPES
from isoloop.fitting.result import FittedFile
from isoloop.fitting.selection.distance import trust_sentences
from isoloop.sweeps.config.schema import SweepConfig, config_text
from isoloop.sweeps.messages import Progress, counted_runs
from isoloop.sweeps.paths import Folders, SweepResults, TablePlaces
from isoloop.sweeps.privacy import redacted
from isoloop.sweeps.report.calculator import MULTIPLES, calculator_table, why_no_calculator
from isoloop.sweeps.report.headline import headline, with_greek_mu
from isoloop.sweeps.report.learning_curves import draw_learning_curves, read_learning_curves
from isoloop.sweeps.report.provenance import Origin, TableOrigin, read_origin
from isoloop.sweeps.report.svg import Palette, figure_svg, inline_svg
from isoloop.sweeps.report.tables import (
    correlation_text,
    errors_table,
    estimates_table,
    frontier_table,
    groups_table,
    held_out_rows,
    held_out_table,
    listed_runs,
    next_flops_table,
    quality_table,
    run_labels,
    runs_table,
    size_labels,
    sizes_table,
)

HOLD_OUT_FIGURES = ("predicted_against_measured", "held_out_errors")
"""Figures that show the fit without the largest budget if there is one."""
_FACT_LABELS = {"commit": "commit", "device_name": "processor", "python": "Python", "platform": "system"}
_HEAD_LENGTH = 2000
"""Characters of a page within which its head names the table."""
_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class StudyPart:
    """The part of a page about a stability study, whose figure is already among the page's figures as stability.svg.

    `summary` is text, `caption` says what the figure shows, and `draw` draws it at another width in inches.
    """

    summary: str
    caption: str
    draw: Callable[[float], Figure]


@dataclass(frozen=True, kw_only=True)
class SweepPage:
    """A page about a sweep that was run.

    Args:
        places: the places of the page and the figures.
        sweep: the configuration that was run.
        left_out: cells of the grid that weren't run, each with its reason.
        group: the group of runs that the page is about; None for all runs.
        study: the part about the stability study, if the sweep is one.
    """

    places: Folders
    sweep: SweepConfig
    left_out: Sequence[str] = ()
    group: str | None = None
    study: StudyPart | None = None

    @property
    def target(self) -> str:
        """Name of the sweep for commands."""
        return self.places.name

    def facts(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return what the template says of a sweep alone."""
        return {
            "name": self.sweep.name if self.group is None else f"{self.sweep.name}: {self.group}",
            "sweep_name": self.sweep.name,
            "is_group": self.places.sweep.parent.name == "groups",
            "simulated": self.sweep.simulation is not None,
            "accounting": self.sweep.accounting,
            "left_out": self.left_out,
            "notes": self.places.notes.read_text(encoding="utf-8").splitlines() if self.places.notes.exists() else (),
            "source": None,
            "runs_file": self.places.table.name,
            "generator": _generator(_digest(self.places.table)),
            "origin": _origin(read_origin(self.places, table["run_id"].astype(str))),
            "configuration": config_text(self.sweep),
        }


@dataclass(frozen=True, kw_only=True)
class TablePage:
    """A page about a table of runs: its places, its `name`, and the origin of the table."""

    places: TablePlaces
    name: str
    origin: TableOrigin

    @property
    def target(self) -> str:
        """The stored fit, for commands."""
        return shlex.quote(str(self.places.fit(hold_out=False)))

    def facts(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return what the template says of a table alone."""
        versions = [{"name": _FACT_LABELS.get(name, name), "page": value} for name, value in self.origin.driver.items()]
        return {
            "name": self.name,
            "is_group": False,
            "simulated": bool(table["simulated"].iloc[0]),
            "accounting": table["accounting"].iloc[0],
            "left_out": (),
            "notes": (),
            "source": self.origin,
            "runs_file": self.origin.file,
            "generator": _generator(self.origin.sha256),
            "origin": {"rows": versions},
        }


def write_report(
    page: SweepPage | TablePage,
    *,
    table: pd.DataFrame,
    results: SweepResults,
    command: str,
    progress: Progress | None = None,
    reading: Sequence[str] = (),
) -> None:
    """Write a page as one file, and its figures as files beside it.

    Args:
        page: the subject of the page.
        table: the checked run table.
        results: the fits, or the reasons why there are none.
        command: the command that makes this page.
        progress: the watcher.
        reading: sentences about how the table was read.
    """
    # What the page holds.
    fit, progress = results.fit, progress or Progress()
    axis = AXES["params" if is_dense(table) else "mean_recurrence"]
    whole, hold_out = results.any_fit, results.any_hold_out
    held_out = hold_out.held_out if hold_out else None
    palette = Palette()
    progress.begin("Drawing figures")
    drawn, not_drawn = _draw_figures(page.places.figures, table, results, palette, progress)
    training = {}
    if isinstance(page, SweepPage):
        progress.begin("Drawing learning curves")
        training = _draw_training(page, table, palette)
    progress.begin("Writing the report")
    predictions = calculator_table(fit)
    runs, trained = runs_table(table), table["flops"]
    if "flops_trained" in table:  # of runs that branch off another, whose steps they don't train again
        trained = table["flops_trained"].fillna(trained)
    held_out_runs = None
    if held_out is not None:
        sizes = {} if results.joint_hold_out is None else size_labels(table, results.joint_hold_out)
        held_out_runs = held_out_table(held_out, axis, set(listed_runs(table)["run_id"].astype(str)), sizes)
    if whole is not None:
        caveats = list(whole.caveats)
    elif results.groups:
        caveats = ["No law is fitted to all of these runs together. Each group's page has the caveats of its fit."]
    else:
        caveats = ["Nothing was fitted."]
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    scripts = [(_HERE / name).read_text(encoding="utf-8") for name in ("calculator.js", "report.js")]
    # The page.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isoloop.sweeps.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        **page.facts(table),
        target=page.target,
        axis=axis,
        reading=reading,
        figures_folder=page.places.figures.name,
        runs=_run_counts(table),
        flops=float(trained.sum()),
        unshared_flops=None if trained.equals(table["flops"]) else float(table["flops"].sum()),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=isoloop.__version__,
        style=Markup(style) + "\n" + palette.css(),
        script=Markup("\n".join(scripts)),
        predictions=predictions,
        predictions_json=None
        if predictions is None
        else htmlsafe_json_dumps(predictions, allow_nan=False, separators=(",", ":")),
        multiples=MULTIPLES,
        first_budget=None if fit is None else _budget_text(ANSWER_MULTIPLE * fit.fitted.flops[1]),
        largest=None if fit is None else _budget_text(fit.fitted.flops[1]),
        why_no_calculator=why_no_calculator(fit),
        headline=headline(results),
        next_flops=None if whole is None else _next_flops(whole),
        undetermined=_is_undetermined(whole),
        frontier=None if results.joint is None else frontier_table(results.joint),
        sizes_alone=_sizes_alone(results.joint),
        quality=None if whole is None else quality_table(table, whole),
        groups=_groups(page.places, results),
        held_out=held_out,
        held_out_runs=held_out_runs,
        held_out_rows=0 if held_out is None else len(held_out_rows(held_out)),
        hold_out_file=page.places.fit(hold_out=True).name,
        errors=None if held_out is None else errors_table(held_out),
        why_no_hold_out=results.why_no_hold_out,
        caveats=caveats,
        hold_out_caveats=[text for text in hold_out.caveats if text not in caveats] if hold_out else [],
        figures=drawn,
        not_drawn=not_drawn,
        learning=training.get("learning"),
        why_no_learning=training.get("why_no_learning"),
        study=training.get("study"),
        table=runs,
        all_runs=len(table),
        most_shapes=MOST_SHAPES,
        has_images=any("<image" in figure["wide"] for figure in drawn),
        estimates=None if whole is None else estimates_table(whole),
        correlations="" if whole is None else correlation_text(whole),
        fit_text="" if whole is None else whole.report(),
        command=redacted(command),
    )
    page.places.report.write_text(text, encoding="utf-8")


def _is_undetermined(fit: AnyFit | None) -> bool:
    if fit is None:
        return False
    return bool((fit.verdict() if isinstance(fit, SizesFit) else verdict(fit)).answer)


def _next_flops(fit: AnyFit) -> dict[str, Any] | None:
    """Return what the next FLOPs should buy, in words and as a table; None where the runs do not determine it."""
    if fit.surface is None:
        return None
    answered = answer(fit)
    if answered.verdict.answer:
        return None
    return {
        "question": answered.question,
        "sentences": [with_greek_mu(sentence) for sentence in answered.sentences[1:]],
        "title": f"The next {answered.marginal.percent:g}% of FLOPs from the best model for {answered.flops:.3g} FLOPs",
        "table": next_flops_table(answered),
    }


def _sizes_alone(fit: SizesFit | None) -> dict[str, Any] | None:
    """Return the table of the sizes by their own runs, with its budget; None where nothing was fitted to them."""
    if fit is None or not fit.alone:
        return None
    return {"table": sizes_table(fit), "flops": f"{fit.alone[0].budget:.3g}"}


def page_is_of(page: Path, table: Path) -> bool:
    """Return True if there is a page that this version of isoloop made of a table's file as it is now."""
    if not (page.is_file() and table.is_file()):
        return False
    with page.open(encoding="utf-8") as file:
        return f'content="{_generator(_digest(table))}"' in file.read(_HEAD_LENGTH)


def _digest(table: Path) -> str:
    return FittedFile.of(table).sha256 if table.is_file() else "unknown"


def _generator(digest: str) -> str:
    """Return what made a page and of which table, for the page's head."""
    return f"isoloop {isoloop.__version__}, of the table {digest}"


def _budget_text(flops: float) -> str:
    return f"{flops:.3g}".replace("e+", "e")


def _run_counts(table: pd.DataFrame) -> str:
    """Return the number of runs, and of those that didn't finish."""
    counts = table["status"].value_counts()
    unfinished = ", ".join(f"{counts[status]} {status}" for status in ("diverged", "failed") if counts.get(status))
    return counted_runs(len(table)) + (f" ({unfinished})" if unfinished else "")


def _groups(places: Folders | TablePlaces, results: SweepResults) -> dict[str, Any] | None:
    """Return the table of the groups, or at least their pages and the first sentence of each."""
    if not results.groups:
        return None
    pages = {
        label: group.report.relative_to(places.report.parent).as_posix() for label, group in results.groups.items()
    }
    table, flops = groups_table(results.groups, pages) or (None, None)
    return {
        "table": table,
        "flops": None if flops is None else f"{flops:.3g}",
        "pages": pages,
        "headlines": {label: headline(group)[0] for label, group in results.groups.items()},
    }


def _draw_figures(
    folder: Path, table: pd.DataFrame, results: SweepResults, palette: Palette, progress: Progress
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the fit's figures into files and for the page, and give the reasons for those that are missing."""
    whole, hold_out = results.any_fit, results.any_hold_out
    if whole is None:
        return [], []
    kinds = figures.figures_of(whole)
    count = len(kinds)
    report = lambda number: progress.update(f"{number + 1}/{2 * count}", number, 2 * count)  # in two widths
    skipped = dict(figures.draw_all(table, whole, folder, report).skipped)
    sources = {name: (whole, folder) for name in kinds if name not in skipped}
    for name in HOLD_OUT_FIGURES:
        if hold_out is not None and name in kinds and not figures.why_unavailable(name, hold_out):
            try:
                figures.save_figure(figures.draw_one(name, table, hold_out), folder / "hold-out", name)
            except (ValueError, OverflowError) as error:
                sources.pop(name, None)
                skipped[name] = str(error)
            else:
                sources[name] = hold_out, folder / "hold-out"
                skipped.pop(name, None)
    labels = run_labels(table)
    drawn = []
    for number, (name, kind) in enumerate(kinds.items(), start=count):
        report(number)
        if name not in sources:
            continue
        fit, files = sources[name]
        # A figure that fits a journal's column fits a phone, too.
        try:
            narrow = figure_svg(figures.draw_one(name, table, fit, width=figures.COLUMN_WIDTH))
        except (ValueError, OverflowError) as error:
            skipped[name] = str(error)
            continue
        caption = kind.caption(fit)
        if name == "rollouts" and fit.rollouts is not None:
            caption = " ".join([caption, *trust_sentences(fit.rollouts.rows)])
        texts = {"wide": _svg(files, name), "narrow": narrow}
        inlined = {
            width: inline_svg(text, name=f"{name}-{width}", label=caption, palette=palette, runs=labels)
            for width, text in texts.items()
        }
        drawn.append({"name": name, "caption": caption, **inlined})
    return drawn, [f"Not drawn, {name.replace('_', ' ')}: {reason}" for name, reason in skipped.items()]


def _draw_training(page: SweepPage, table: pd.DataFrame, palette: Palette) -> dict[str, Any]:
    """Draw the learning curves into files and for the page, and the figure of a stability study for the page."""
    if page.sweep.simulation is not None:
        return {}

    def both_widths(name: str, wide: str, narrow: Figure, caption: str, losses: Mapping[str, str]) -> dict[str, Any]:
        inlined = {
            width: inline_svg(
                text, name=f"{name}-{width}", label=caption, palette=palette, runs=labels, last_losses=losses
            )
            for width, text in (("wide", wide), ("narrow", figure_svg(narrow)))
        }
        return {"caption": caption, **inlined}

    labels, folder = run_labels(table), page.places.figures
    parts: dict[str, Any] = {}
    curves = read_learning_curves(page.places, table, page.sweep.axes)
    if curves is None:
        parts["why_no_learning"] = "There are no learning curves: the output folder has no journal of these runs."
    else:
        figures.save_figure(draw_learning_curves(curves), folder, "learning_curves")
        wide, narrow = _svg(folder, "learning_curves"), draw_learning_curves(curves, width=figures.COLUMN_WIDTH)
        parts["learning"] = both_widths("learning_curves", wide, narrow, curves.caption(), curves.last_losses())
    if page.study is not None:
        wide, narrow = _svg(folder, "stability"), page.study.draw(figures.COLUMN_WIDTH)
        parts["study"] = both_widths("stability", wide, narrow, page.study.caption, {})
        parts["study"]["summary"] = page.study.summary
    return parts


def _svg(folder: Path, name: str) -> str:
    return (folder / f"{name}.svg").read_text(encoding="utf-8")


def _origin(origin: Origin) -> dict[str, Any]:
    """Return the versions of runs and page side by side, and a summary of them."""
    rows = [
        {
            "name": _FACT_LABELS.get(name, name),
            "runs": _counted_values(origin.facts.get(name, {}), origin.recorded) or "-",
            "differs": name in origin.differing,
            "page": origin.driver.get(name, "-"),
        }
        for name in dict.fromkeys([*origin.facts, *origin.driver])
    ]
    unknown = origin.runs - origin.recorded
    if not origin.recorded:
        summary = "The runs left no record of their versions in this output folder; those of this page are known."
    else:
        differing = ", ".join(_FACT_LABELS.get(name, name) for name in origin.differing)
        summary = f"The runs differ in: {differing}." if differing else "All runs were made with the same versions."
        summary += f" {unknown} of {origin.runs} left no record in this output folder." if unknown else ""
    commits = list(origin.facts.get("commit", {}))
    return {
        "rows": rows,
        "summary": summary,
        "commit": commits[0] if len(commits) == 1 and len(commits[0]) == 40 else None,
        "corpora": _counted_values(origin.corpora, origin.runs),
    }


def _counted_values(counts: Mapping[str, int], runs: int) -> str:
    """Return the one value of all runs, or each value with the number of its runs."""
    if len(counts) == 1 and next(iter(counts.values())) == runs:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} {'run' if count == 1 else 'runs'})" for value, count in counts.items())
