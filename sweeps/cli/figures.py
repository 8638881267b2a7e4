"""The commands `isoloop compare`, `figure` and `stability`: two sweeps side by side, and figures of stored results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import show_progress
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    DEFAULT_REFITS,
    BudgetTolerance,
    Columns,
    Experiment,
    MapFile,
    Out,
    Outliers,
    RunTarget,
    Target,
    TargetFiles,
    TrackingUri,
    file_name,
    files_of,
    load_config,
    print_reading,
    reading_text,
    table_options,
)
from isoloop.sweeps.cli.stored_fits import stored_fit
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import MLFLOW, Folders, folders_of, is_table_target, table_stem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from isoloop.fitting import AnyFit, ComparedSweep
    from isoloop.sweeps.runs import TableOptions

    TableWithFit = tuple[pd.DataFrame, AnyFit]

_RESULT_SUFFIXES = (".json", ".txt", ".csv", ".parquet", ".html", ".png", ".svg", ".pdf", ".xlsx")


def compare(
    a: Annotated[str, typer.Argument(help="A sweep (name or YAML), <name>/groups/<group>, any table, or a fit.")],
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
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
) -> None:
    """Compare two sweeps or tables by their laws. Differences at equal FLOPs have intervals."""
    # The two sides.
    if to is not None and to.suffix.lower() in _RESULT_SUFFIXES:
        raise ValueError(f"--to must be a folder, but {to} is the name of a file; name a folder")
    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    if options.given and not any(target.startswith(MLFLOW) or is_table_target(target) for target in (a, b)):
        raise ValueError(f"{options.given} says how a table is read, but neither {a} nor {b} is one; leave it out")
    newly_fitted: list[str] = []
    refits = draws or DEFAULT_REFITS
    with show_progress(transient=True) as progress:
        sides = [_compared_side(target, out, refits, options, newly_fitted, progress) for target in (a, b)]
    if draws is not None and not newly_fitted:
        raise ValueError(
            f"--draws is for a side that is fitted here, but {a} and {b} have stored fits; leave it out, or "
            "fit them again with: isoloop fit NAME --draws N"
        )
    # What differs, stored and printed.
    pair = sides[0][0], sides[1][0]
    folder = to or out / "compared" / "-to-".join(file_name(side.name) for side in pair)
    with show_progress(transient=True) as progress:
        progress.begin("Comparing")
        from isoloop.fitting import compare_sweeps
        from isoloop.fitting.figures.compare import save_comparison

        comparison = compare_sweeps(*pair, flops=flops)
        folder.mkdir(parents=True, exist_ok=True)
        progress.begin("Drawing the figure")
        save_comparison(pair, comparison, folder)
    reading = "".join(reading_text(notes, f"How the table of {side.name} was read") for side, notes in sides)
    text = f"{reading}\n{comparison.report()}" if reading else comparison.report()
    (folder / "compare.json").write_text(_with_reading(comparison.to_json(), sides), encoding="utf-8")
    (folder / "compare.txt").write_text(text, encoding="utf-8")
    print(text)
    print(f"stored in {folder}: compare.txt, compare.json, and the figure as compare.png, .svg and .pdf")


def _with_reading(comparison_json: str, sides: "list[tuple[ComparedSweep, tuple[str, ...]]]") -> str:
    """Return a comparison's JSON with the notes on both sides, if there are any, as `reading`."""
    if not any(notes for _, notes in sides):
        return comparison_json
    return json.dumps({**json.loads(comparison_json), "reading": [list(notes) for _, notes in sides]}, indent=1) + "\n"


def _compared_side(
    target: str, out: Path, draws: int, options: "TableOptions", newly_fitted: list[str], progress: Progress
) -> "tuple[ComparedSweep, tuple[str, ...]]":
    """Return a side of the comparison with the notes on its table; a target that is fitted is added to `newly_fitted`.

    A side is a table and its stored fit, or a new one. Groups that one law is fitted to, such as sizes, are one side.
    """
    progress.begin(f"Reading {target}")
    from isoloop.fitting import ComparedSweep, fit_table, read_fit
    from isoloop.sweeps.runs import GROUP, TableOptions, joint_runs, load_table

    # A stored fit alone.
    files = files_of(target, out)
    if files.table is None:
        stored = read_fit(files.fit)
        return ComparedSweep(name=stored.name, fit=stored), stored.reading
    # A table, with the stored fit of a sweep or a new one.
    files.check_table("a comparison")
    own_options = options if files.folders is None else TableOptions()
    table = load_table(target, out, own_options if files.in_mlflow else replace(own_options, tracking_uri=None))
    groups: list[str] = []
    if files.folders is not None:
        groups = sorted(group.name for group in files.folders.groups.glob("*") if group.is_dir())
    if groups or (GROUP in table.frame and table.frame[GROUP].nunique() > 1):
        together = joint_runs(table.frame)
        if together is None:
            names = ", ".join(f"{files.name}/groups/{group}" for group in groups)
            advice = f"name one of: {names}" if groups else "keep the rows of one in a file of their own"
            raise ValueError(f"a comparison takes one group of runs, but '{target}' has several; {advice}")
        table = replace(table, frame=together)
    validation = None if files.folders is None else _validation_text(table.frame, files.folders)
    fit, why_no_fit = None, ""
    if files.folders is not None and files.fit.exists():
        fit = read_fit(files.fit)
    else:
        newly_fitted.append(target)
        progress.begin(f"Fitting {target}")
        try:
            fit = fit_table(
                table.frame,
                name=files.name,
                draws=draws,
                progress=progress.update,
                reading=table.notes,
                budget_tolerance=options.tolerance,
            )
        except ValueError as error:
            why_no_fit = str(error)
    side = ComparedSweep(name=files.name, fit=fit, table=table.frame, why_no_fit=why_no_fit, validation=validation)
    return side, table.notes


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
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
) -> None:
    """Draw figures of a fit. Without --to they are listed."""
    with show_progress(transient=True) as progress:
        progress.begin("Loading matplotlib")
        from isoloop.fitting import figures
        from isoloop.fitting.figures.style import SUFFIXES, save_figure, save_figure_as

    for name in names or []:
        known = {**figures.FIGURES, **figures.SIZES_FIGURES, **figures.QUALITY_FIGURES}
        if name not in known:
            raise ValueError(f"a figure must be one of {', '.join(known)}, but got {name!r}; choose one")
    if names and to is None:
        raise ValueError("a figure must have a place, but there is no --to; give --to NAME.svg, .pdf, .png or a folder")
    is_file = to is not None and bool(to.suffix) and not to.is_dir()
    if is_file and len(names or []) != 1:
        got = f"{len(names)} figures" if names else "no figure's name"
        raise ValueError(f"a file must hold one figure, but got {got} for {to}; name one, or give a folder")
    if to is not None and is_file and to.suffix not in SUFFIXES:
        raise ValueError(f"a figure's file must end in {', '.join(SUFFIXES)}, but got {to.name!r}; rename it")
    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    lines = []
    with show_progress(transient=True) as progress:
        progress.begin("Reading the fit")
        source = _table_with_fit(target, out, options, hold_out)
        progress.begin("Drawing")
        chosen = [] if to is None else list(names or figures.figures_of(source[1]))
        for done, name in enumerate(chosen):
            progress.update(f"{done + 1}/{len(chosen)} {name}", done, len(chosen))
            reason = figures.why_unavailable(name, source[1])
            if reason and not names:
                lines.append(f"not drawn: {name}: {_with_hint(reason, name, hold_out)}")
                continue
            assert to is not None
            drawn = _draw_figure(name, source, width, hold_out)
            paths = [save_figure_as(drawn, to)] if is_file else save_figure(drawn, to, name)
            lines.append(" ".join(map(str, paths)))
    print_reading(source[1].reading)
    print("\n".join(_figure_list(source[1], hold_out) if to is None else lines))


def _draw_figure(name: str, source: "TableWithFit", width: float | None, hold_out: bool) -> "Figure":
    from isoloop.fitting import figures

    table, fit = source
    reason = figures.why_unavailable(name, fit)
    if reason:
        raise ValueError(f"{name} has nothing to show in this fit: {_with_hint(reason, name, hold_out)}")
    return figures.draw_one(name, table, fit, width=width)


def _table_with_fit(target: str, out: Path, options: "TableOptions", hold_out: bool) -> "TableWithFit":
    """Read the stored fit of a target and the run table that it is of."""
    from isoloop.sweeps.runs import load_table

    files = files_of(target, out, hold_out=hold_out)
    if files.folders is not None and not files.fit.is_file():
        raise ValueError(_no_fit(files, hold_out))
    fit = stored_fit(files, out, options, hold_out=hold_out)
    if fit is None:
        raise ValueError(_no_fit(files, hold_out))
    if files.in_mlflow:
        assert files.table is not None  # the copy that is written with the fit
        return load_table(str(files.table), out).frame, fit
    table = load_table(target if files.table is not None else str(_table_beside(files.fit, fit)), out, options)
    if files.folders is None and fit.reading[: len(table.notes)] != table.notes:
        raise ValueError(
            f"a figure must show the table that was fitted, but for {files.fit} it was read in another way "
            f"({' '.join(fit.reading) or 'nothing had to be guessed'}); name the table with the options of that fit, "
            "such as --columns"
        )
    return table.frame, fit


def _no_fit(files: TargetFiles, hold_out: bool) -> str:
    option = " --hold-out" if hold_out else ""
    return (
        f"a figure requires a stored fit, but there is none at {files.fit}; make it with: isoloop fit "
        f"{files.target}{option}"
    )


def _table_beside(path: Path, fit: "AnyFit") -> Path:
    """Return the run table beside a stored fit: runs.csv for fit.json, mine.csv or mine.csv.gz for mine.fit.json."""
    if fit.file is not None and path.with_name(fit.file.name).is_file():
        return path.with_name(fit.file.name)
    stem = path.stem.rpartition(".")[0] or "runs"
    tables = [
        each
        for each in sorted(path.parent.iterdir(), key=lambda each: (len(each.name), each.name))
        if each.is_file() and table_stem(each) == stem and is_table_target(str(each))
    ]
    if not tables:
        raise ValueError(
            f"a fit's run table must lie beside it, but there is no {stem}.csv, {stem}.parquet or other table of that "
            f"name in {path.parent}; put it there, or name the sweep"
        )
    return tables[0]


def _figure_list(fit: "AnyFit", hold_out: bool) -> list[str]:
    from isoloop.fitting import figures

    lines = [f"Figures of {fit.name}; draw them with --to FOLDER, or one with its name and --to FILE"]
    for name, kind in figures.figures_of(fit).items():
        reason = figures.why_unavailable(name, fit)
        text = kind.caption(fit) if reason is None else f"can't be drawn: {_with_hint(reason, name, hold_out)}"
        lines.append(f"  {name:<27}{text}")
    return lines


def _with_hint(reason: str, name: str, hold_out: bool) -> str:
    if name == "rollouts" and hold_out:
        return f"{reason} (leave out --hold-out)"
    return f"{reason} (give --hold-out)" if name == "held_out_errors" and not hold_out else reason


def stability(target: RunTarget, out: Out = DEFAULT_OUT) -> None:
    """Show at which learning rates each injection converges. Also draw the loop's spectral radius and state norm."""
    folders = folders_of(target, out)
    with show_progress(transient=True) as progress:
        progress.begin("Evaluating the runs")
        from isoloop.fitting import read_table
        from isoloop.sweeps.analysis import store_stability

        config, _ = load_config(str(folders.config), out)
        study = store_stability(config, folders, read_table(folders.table))
    print(study.report(), end="")
