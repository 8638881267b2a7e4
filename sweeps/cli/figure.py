"""The command `isoloop figure`: parse, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.options import DEFAULT_OUT, Out, Target
from isoloop.sweeps.paths import folders_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from isoloop.fitting import SweepFit

    Sources = tuple[pd.DataFrame, SweepFit]

_TABLES = (".csv", ".parquet")


def figure(
    target: Target,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Figures to draw; all of them if left out.")
    ] = None,
    out: Out = DEFAULT_OUT,
    to: Annotated[
        Path | None, typer.Option("--to", help="A file (.svg, .pdf or .png) for one figure, or a folder.")
    ] = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Of the fit without the largest budget, with its errors there.")
    ] = False,
    width: Annotated[
        float | None, typer.Option(help="Inches; 3.3 fits a journal's column. Texts keep their size.")
    ] = None,
) -> None:
    """Draw figures of a stored fit for a paper, or list them: of a sweep, a run table, or a fit's .json."""
    from isoloop.fitting import figures
    from isoloop.fitting.figures.style import save_figure, save_figure_as

    for name in names or []:
        if name not in figures.FIGURES:
            raise ValueError(f"a figure must be one of {', '.join(figures.FIGURES)}, but got {name!r}; choose one")
    if names and to is None:
        raise ValueError("a figure needs a place, but there is no --to; give --to NAME.svg, .pdf, .png or a folder")
    sources = _sources(target, out, hold_out)
    if to is None:
        print("\n".join(_listed(sources[1], hold_out)))
        return
    if to.suffix and not to.is_dir():
        if len(names or []) != 1:
            got = f"{len(names)} figures" if names else "no figure's name"
            raise ValueError(f"a file holds one figure, but got {got} for {to}; name one, or give a folder")
        print(save_figure_as(_drawn((names or [])[0], sources, width, hold_out), to))
        return
    for name in names or figures.FIGURES:
        reason = figures.why_unavailable(name, sources[1])
        if not names and reason:
            print(f"not drawn: {name}: {_how(reason, name, hold_out)}")
            continue
        print(*save_figure(_drawn(name, sources, width, hold_out), to, name))


def _drawn(name: str, sources: "Sources", width: float | None, hold_out: bool) -> "Figure":
    from isoloop.fitting import figures

    table, fit = sources
    reason = figures.why_unavailable(name, fit)
    if reason:
        raise ValueError(f"{name} has nothing to show in this fit: {_how(reason, name, hold_out)}")
    return figures.draw_one(name, table, fit, width=width)


def _sources(target: str, out: Path, hold_out: bool) -> "Sources":
    """The run table and the stored fit."""
    from isoloop.fitting import SweepFit, read_table

    path = Path(target)
    if path.suffix == ".json":
        if hold_out:
            raise ValueError(f"--hold-out is for a sweep or a run table, but {path} is one fit already; name its file")
        fit = SweepFit.read(path)
        return read_table(_table_of(path)), fit
    if path.suffix in _TABLES:
        stored = path.with_name(f"{path.stem}.{'hold-out' if hold_out else 'fit'}.json")
        table = path
    else:
        folders = folders_of(target, out)
        table, stored = folders.table, folders.fit(hold_out=hold_out)
    if not stored.is_file():
        option = " --hold-out" if hold_out else ""
        raise ValueError(
            f"a figure needs a stored fit, but there is none at {stored}; make it with: isoloop fit {target}{option}"
        )
    return read_table(table), SweepFit.read(stored)


def _table_of(stored: Path) -> Path:
    """The run table that lies beside a stored fit: runs.csv of fit.json, mine.csv of mine.fit.json."""
    stem = stored.stem.rpartition(".")[0] or "runs"
    beside = [stored.with_name(f"{stem}{suffix}") for suffix in _TABLES]
    for table in beside:
        if table.is_file():
            return table
    raise ValueError(
        f"a fit's run table must lie beside it, but there is no {' or '.join(table.name for table in beside)} at "
        f"{stored.parent}; put it there, or name the sweep"
    )


def _listed(fit: "SweepFit", hold_out: bool) -> list[str]:
    from isoloop.fitting import figures

    lines = [f"Figures of {fit.name}; draw them with --to FOLDER, or one with its name and --to FILE"]
    for name, kind in figures.FIGURES.items():
        reason = figures.why_unavailable(name, fit)
        lines.append(
            f"  {name:<27}{kind.about}"
            if reason is None
            else f"  {name:<27}can't be drawn: {_how(reason, name, hold_out)}"
        )
    return lines


def _how(reason: str, name: str, hold_out: bool) -> str:
    return f"{reason} (give --hold-out)" if name == "held_out_errors" and not hold_out else reason
