"""The commands `isoloop compare`, `figure` and `stability`: two sweeps side by side, and figures of stored results."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    DEFAULT_REFITS,
    Out,
    RunTarget,
    Target,
    files_of,
    load_config,
)
from isoloop.sweeps.paths import TABLE_SUFFIXES, Folders, folders_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from isoloop.fitting import ComparedSweep, SweepFit

    TableWithFit = tuple[pd.DataFrame, SweepFit]


def compare(
    a: Annotated[str, typer.Argument(help="A sweep (name or YAML), <name>/groups/<group>, a run table, or a fit.")],
    b: Annotated[str, typer.Argument(help="The other one; changes are from A to B.")],
    flops: Annotated[
        float | None, typer.Option(help="Compare the best models at these FLOPs, by default at two budgets.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of compare.json, .txt and the figure; by default one in --out.")
    ] = None,
    out: Out = DEFAULT_OUT,
    draws: Annotated[
        int | None,
        typer.Option(min=20, help=f"Refits behind each interval of a side fitted here; by default {DEFAULT_REFITS}."),
    ] = None,
) -> None:
    """Compare two sweeps by their laws and at equal FLOPs. Differences have intervals."""
    from isoloop.fitting import compare_sweeps
    from isoloop.fitting.figures.compare import save_comparison

    newly_fitted: list[str] = []
    refits = draws or DEFAULT_REFITS
    pair = _compared_sweep(a, out, refits, newly_fitted), _compared_sweep(b, out, refits, newly_fitted)
    if draws is not None and not newly_fitted:
        raise ValueError(
            f"--draws is for a side that is fitted here, but {a} and {b} have stored fits; leave it out, or "
            "fit them again with: isoloop fit NAME --draws N"
        )
    comparison = compare_sweeps(*pair, flops=flops)
    folder = to or out / "compared" / "-to-".join(_file_name(side.name) for side in pair)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(comparison.to_json(), encoding="utf-8")
    (folder / "compare.txt").write_text(comparison.report(), encoding="utf-8")
    save_comparison(pair, comparison, folder)
    print(comparison.report())
    print(f"stored in {folder}: compare.txt, compare.json, and the figure as compare.png, .svg and .pdf")


def _compared_sweep(target: str, out: Path, draws: int, newly_fitted: list[str]) -> "ComparedSweep":
    """Return a side of the comparison: its table and its stored fit, or a new one, which is added to `newly_fitted`."""
    from isoloop.fitting import ComparedSweep, SweepFit, fit_sweep, read_table

    files = files_of(target, out)
    if files.table is None:
        stored = SweepFit.read(files.fit)
        return ComparedSweep(name=stored.name, fit=stored)
    if files.folders is not None:
        groups = sorted(group.name for group in files.folders.groups.glob("*") if group.is_dir())
        if groups:
            names = ", ".join(f"{files.name}/groups/{group}" for group in groups)
            raise ValueError(f"a comparison takes one group of runs, but '{target}' has several; name one of: {names}")
    table = read_table(files.table)
    validation = None if files.folders is None else _validation_text(table, files.folders)
    fit, why_no_fit = None, ""
    if files.folders is not None and files.fit.exists():
        fit = SweepFit.read(files.fit)
    else:
        newly_fitted.append(target)
        try:
            with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
                fit = fit_sweep(table, name=files.name, draws=draws, progress=progress.update)
        except ValueError as error:
            why_no_fit = str(error)
    return ComparedSweep(name=files.name, fit=fit, table=table, why_no_fit=why_no_fit, validation=validation)


def _validation_text(table: "pd.DataFrame", folders: Folders) -> str | None:
    """Return the text that the runs' losses were measured on, by their specs; None if a spec is missing."""
    if bool(table["simulated"].iloc[0]):
        return None
    texts = set()
    for run_id in table.loc[table["status"] == "finished", "run_id"]:
        spec = folders.run(run_id) / "spec.json"
        if not spec.is_file():
            return None
        content = json.loads(spec.read_text(encoding="utf-8"))
        sequences, context = content["evaluation"]["sequences"], content["model"]["context"]
        texts.add(f"{sequences} sequences of {context} tokens of the corpus {content['data_fingerprint']}")
    return " and ".join(sorted(texts)) or None


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9+.=_-]+", "-", name).strip("-.")[:80] or "sweep"


def figure(
    target: Target,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Figures to draw; by default all.")] = None,
    out: Out = DEFAULT_OUT,
    to: Annotated[
        Path | None, typer.Option("--to", help="A file (.svg, .pdf or .png) for one figure, or a folder.")
    ] = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Draw the fit without the largest budget, with its errors there.")
    ] = False,
    width: Annotated[
        float | None, typer.Option(help="Width in inches; 3.3 fits a journal's column. Texts keep their size.")
    ] = None,
) -> None:
    """Draw figures of a stored fit, or list them without --to."""
    from isoloop.fitting import figures
    from isoloop.fitting.figures.style import save_figure, save_figure_as

    for name in names or []:
        if name not in figures.FIGURES:
            raise ValueError(f"a figure must be one of {', '.join(figures.FIGURES)}, but got {name!r}; choose one")
    if names and to is None:
        raise ValueError("a figure must have a place, but there is no --to; give --to NAME.svg, .pdf, .png or a folder")
    source = _table_with_fit(target, out, hold_out)
    if to is None:
        print("\n".join(_figure_list(source[1], hold_out)))
    elif to.suffix and not to.is_dir():
        if len(names or []) != 1:
            got = f"{len(names)} figures" if names else "no figure's name"
            raise ValueError(f"a file must hold one figure, but got {got} for {to}; name one, or give a folder")
        print(save_figure_as(_draw_figure((names or [])[0], source, width, hold_out), to))
    else:
        for name in names or figures.FIGURES:
            reason = figures.why_unavailable(name, source[1])
            if reason and not names:
                print(f"not drawn: {name}: {_with_hint(reason, name, hold_out)}")
            else:
                print(*save_figure(_draw_figure(name, source, width, hold_out), to, name))


def _draw_figure(name: str, source: "TableWithFit", width: float | None, hold_out: bool) -> "Figure":
    from isoloop.fitting import figures

    table, fit = source
    reason = figures.why_unavailable(name, fit)
    if reason:
        raise ValueError(f"{name} has nothing to show in this fit: {_with_hint(reason, name, hold_out)}")
    return figures.draw_one(name, table, fit, width=width)


def _table_with_fit(target: str, out: Path, hold_out: bool) -> "TableWithFit":
    """Read the stored fit of a target and the run table that it is of."""
    from isoloop.fitting import SweepFit, read_table

    files = files_of(target, out, hold_out=hold_out)
    if files.table is None:
        fit = SweepFit.read(files.fit)
        return read_table(_table_beside(files.fit)), fit
    if not files.fit.is_file():
        option = " --hold-out" if hold_out else ""
        raise ValueError(
            f"a figure requires a stored fit, but there is none at {files.fit}; make it with: isoloop fit "
            f"{target}{option}"
        )
    return read_table(files.table), SweepFit.read(files.fit)


def _table_beside(fit: Path) -> Path:
    """Return the run table beside a stored fit: runs.csv for fit.json, mine.csv for mine.fit.json."""
    stem = fit.stem.rpartition(".")[0] or "runs"
    tables = [fit.with_name(f"{stem}{suffix}") for suffix in TABLE_SUFFIXES]
    for table in tables:
        if table.is_file():
            return table
    raise ValueError(
        f"a fit's run table must lie beside it, but there is no {' or '.join(table.name for table in tables)} in "
        f"{fit.parent}; put it there, or name the sweep"
    )


def _figure_list(fit: "SweepFit", hold_out: bool) -> list[str]:
    from isoloop.fitting import figures

    lines = [f"Figures of {fit.name}; draw them with --to FOLDER, or one with its name and --to FILE"]
    for name, kind in figures.FIGURES.items():
        reason = figures.why_unavailable(name, fit)
        text = kind.about if reason is None else f"can't be drawn: {_with_hint(reason, name, hold_out)}"
        lines.append(f"  {name:<27}{text}")
    return lines


def _with_hint(reason: str, name: str, hold_out: bool) -> str:
    return f"{reason} (give --hold-out)" if name == "held_out_errors" and not hold_out else reason


def stability(target: RunTarget, out: Out = DEFAULT_OUT) -> None:
    """Show at which learning rates each injection converges. Also draw the loop's spectral radius and state norm."""
    from isoloop.fitting import read_table
    from isoloop.sweeps.analysis import store_stability

    folders = folders_of(target, out)
    config, _ = load_config(str(folders.config), out)
    print(store_stability(config, folders, read_table(folders.table)).report(), end="")
