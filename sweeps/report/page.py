"""One self-contained HTML page per sweep: the answer, curves, runs, the held-out test, what to doubt, origin."""

import importlib.metadata
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from isoloop.fitting import figures
from isoloop.sweeps.config.schema import SweepConfig, config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.privacy import redacted
from isoloop.sweeps.report.calculator import MULTIPLES, calculator_table, why_no_calculator
from isoloop.sweeps.report.headline import AHEAD, Results, answer
from isoloop.sweeps.report.provenance import Origin, read_origin
from isoloop.sweeps.report.svg import Palette, inline_svg, svg_of
from isoloop.sweeps.report.tables import errors_table, groups_table, held_out_table, run_labels, runs_table

FROM_HOLD_OUT = ("predicted_against_measured", "held_out_errors")
"""Figures that show the fit without the largest budget, where there is one."""
_NOTHING = {
    False: "Nothing was fitted.",
    True: "No law is fitted to all of these runs together: each group's page has its own caveats.",
}
_HERE = Path(__file__).parent
_LABELS = {"commit": "commit", "device_name": "processor", "python": "Python", "platform": "system"}


def write_report(
    folders: Folders,
    *,
    sweep: SweepConfig,
    table: pd.DataFrame,
    results: Results,
    left_out: list[str],
    command: str,
    group: str | None = None,
) -> None:
    """Write the page of a sweep with everything inside it; figures also go to files beside it.

    Args:
        folders: where the page and the figures go.
        sweep: the configuration that was run.
        table: the checked run table.
        results: the fits, or why there are none.
        left_out: cells that didn't run, each with its reason.
        command: how to make the page again.
        group: which of the sweep's groups of runs the page is about, None if all.
    """
    fit = results.fit
    held = results.hold_out.held_out if results.hold_out else None
    palette = Palette()
    drawn, not_drawn = _draw(folders.figures, table, results, palette)
    predictions = calculator_table(fit)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isoloop.sweeps.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=sweep.name if group is None else f"{sweep.name}: {group}",
        sweep_name=sweep.name,
        target=folders.name,
        is_group=folders.sweep.parent.name == "groups",
        simulated=sweep.simulation is not None,
        runs=_counted(table),
        flops=float(table["flops"].sum()),
        accounting=sweep.accounting,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=importlib.metadata.version("isoloop"),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")) + "\n" + palette.css(),
        script=Markup("\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("calculator.js", "report.js"))),
        predictions=predictions,
        predictions_json=None if predictions is None else htmlsafe_json_dumps(predictions, dumps=_compact_json),
        multiples=MULTIPLES,
        first_budget=None if fit is None else f"{AHEAD * fit.fitted.flops[1]:.3g}".replace("e+", "e"),
        largest=None if fit is None else f"{fit.fitted.flops[1]:.3g}".replace("e+", "e"),
        why_no_calculator=why_no_calculator(fit),
        answer=answer(results),
        groups=_groups(folders, results),
        held_out=held,
        held_out_runs=None if held is None else held_out_table(held),
        errors=None if held is None else errors_table(held),
        why_no_hold_out=results.why_no_hold_out,
        caveats=[_NOTHING[bool(results.groups)]] if fit is None else fit.caveats,
        hold_out_caveats=_hold_out_caveats(results),
        figures=drawn,
        not_drawn=not_drawn,
        table=runs_table(table),
        left_out=left_out,
        fit_text="" if fit is None else fit.report(),
        origin=_versions(read_origin(folders, table["run_id"].astype(str))),
        command=redacted(command),
        configuration=config_text(sweep),
    )
    folders.report.write_text(page, encoding="utf-8")


def _compact_json(data: Any, **options: Any) -> str:
    return json.dumps(data, allow_nan=False, separators=(",", ":"), **options)


def _counted(table: pd.DataFrame) -> str:
    """How many runs there are, and how many of them didn't finish."""
    counts = table["status"].value_counts()
    rest = ", ".join(f"{counts[status]} {status}" for status in ("diverged", "failed") if counts.get(status))
    return f"{len(table)} runs" + (f" ({rest})" if rest else "")


def _hold_out_caveats(results: Results) -> list[str]:
    """Return the caveats of the fit without the largest budget that the other fit doesn't have."""
    known = () if results.fit is None else results.fit.caveats
    return [] if results.hold_out is None else [caveat for caveat in results.hold_out.caveats if caveat not in known]


def _groups(folders: Folders, results: Results) -> dict[str, Any] | None:
    if not results.groups:
        return None
    pages = {label: found.report.relative_to(folders.sweep).as_posix() for label, found in results.groups.items()}
    compared = groups_table(results.groups, pages)
    return {
        "table": None if compared is None else compared[0],
        "flops": None if compared is None else f"{compared[1]:.3g}",
        "pages": pages,
        "answers": {label: answer(found)[0] for label, found in results.groups.items()},
    }


def _draw(
    folder: Path, table: pd.DataFrame, results: Results, palette: Palette
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the fit's figures; those about held-out runs come from the fit that held them out, where there is one."""
    if results.fit is None:
        return [], []
    skipped = dict(figures.draw_all(table, results.fit, folder).skipped)
    drawn = {name: (results.fit, folder) for name in figures.FIGURES if name not in skipped}
    for name in FROM_HOLD_OUT:
        if results.hold_out is not None and not figures.why_unavailable(name, results.hold_out):
            drawn[name] = results.hold_out, folder / "hold-out"
            figures.save_figure(figures.draw_one(name, table, results.hold_out), folder / "hold-out", name)
            skipped.pop(name, None)
    labels = run_labels(table)
    shown = []
    for name in (name for name in figures.FIGURES if name in drawn):
        fit, where = drawn[name]
        # What a journal's column has room for, a phone has, too.
        narrow = figures.draw_one(name, table, fit, width=figures.COLUMN_WIDTH)
        texts = {"wide": (where / f"{name}.svg").read_text(encoding="utf-8"), "narrow": svg_of(narrow)}
        inlined = {
            kind: inline_svg(
                text, name=f"{name}-{kind}", label=figures.FIGURES[name].about, palette=palette, runs=labels
            )
            for kind, text in texts.items()
        }
        shown.append({"name": name, "caption": figures.FIGURES[name].about, **inlined})
    return shown, [f"Not drawn, {name.replace('_', ' ')}: {reason}" for name, reason in skipped.items()]


def _versions(origin: Origin) -> dict[str, Any]:
    """The versions of runs and page side by side, and what is to be said of them."""
    names = list(dict.fromkeys([*origin.facts, *origin.here]))
    rows = [
        {
            "name": _LABELS.get(name, name),
            "runs": _values(origin.facts.get(name, {}), origin.recorded) or "-",
            "differs": name in origin.differ,
            "here": origin.here.get(name, "-"),
        }
        for name in names
    ]
    if not origin.recorded:
        said = "No run's own record of its versions is in this output folder; those of this page are known."
    else:
        missing = origin.runs - origin.recorded
        differ = ", ".join(_LABELS.get(name, name) for name in origin.differ)
        said = f"The runs differ in: {differ}." if differ else "All runs were made with the same versions."
        said += f" {missing} of {origin.runs} left no record here." if missing else ""
    commits = list(origin.facts.get("commit", {}))
    return {
        "rows": rows,
        "said": said,
        "commit": commits[0] if len(commits) == 1 and len(commits[0]) == 40 else None,
        "corpora": _values(origin.corpora, origin.runs),
    }


def _values(counts: Mapping[str, int], runs: int) -> str:
    """The one value of all runs, or each with how many runs have it."""
    if len(counts) == 1 and next(iter(counts.values())) == runs:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} {'run' if count == 1 else 'runs'})" for value, count in counts.items())
