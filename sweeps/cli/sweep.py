"""The commands that plan, run and record a sweep: from `isoloop presets` to `isoloop export`."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import (
    describe_corpora,
    describe_corpus,
    new_console,
    open_in_browser,
    page_link,
    print_results,
    show_progress,
)
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    DEFAULT_REFITS,
    INTERRUPTED,
    RUNS_FAILED,
    Address,
    BudgetTolerance,
    Columns,
    Experiment,
    MapFile,
    Out,
    Outliers,
    Refits,
    Set,
    StorageUri,
    Sweep,
    TableLaw,
    Target,
    TargetFiles,
    TrackingUri,
    command_line,
    files_of,
    load_config,
    print_reading,
    table_options,
)
from isoloop.sweeps.messages import align_columns, counted_runs
from isoloop.sweeps.paths import MLFLOW, SO_FAR, TablePlaces, is_table_target

if TYPE_CHECKING:
    from isoloop.sweeps.config.schema import SweepConfig
    from isoloop.sweeps.paths import Folders
    from isoloop.sweeps.runs import TableOptions


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset's YAML, as a start for your own.")] = None,
) -> None:
    """List the sweeps that come with isoloop, or print one."""
    from isoloop.sweeps.config import loading

    if name is not None:
        print(loading.preset_text(name).rstrip())
        return
    print("\n".join(align_columns([(each, loading.preset_summary(each)) for each in loading.preset_names()])))


def prepare_data(sweep: Sweep, out: Out = DEFAULT_OUT, override: Set = []) -> None:  # noqa: B006
    """Tokenise a sweep's text, once for all its runs. Rerun it to go on after an interruption."""
    config, folders = load_config(sweep, out, override)
    if config.simulation is not None:
        raise ValueError(
            f"a sweep must train to have a corpus, but '{config.name}' draws its losses from a law; name another sweep"
        )
    console = new_console()
    with show_progress(transient=True) as progress:
        progress.begin("Preparing the corpus")
        from isoloop.trainer.data.corpus import CorpusRequest

        request = CorpusRequest(config.data, folders.corpora, progress.update)
        existing = request.find()
        corpus = existing or request.build()
    console.print(
        describe_corpus(corpus, context=config.model.context, packing=config.data.packing, is_new=existing is None)
    )
    corpus.check(config.model.context, config.model.vocabulary)


def plan(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006  typer copies defaults
    every_run: Annotated[bool, typer.Option("--all", help="Show a row for each run, however many there are.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write a row for each run to this .csv file.")] = None,
) -> None:
    """Show a sweep's runs, and what they will cost. No run is started."""
    if to is not None and to.suffix.lower() != ".csv":
        raise ValueError(f"--to must name a .csv file, but got '{to}'; choose that suffix")
    config, folders = load_config(sweep, out, override)
    with show_progress(transient=True) as progress:
        progress.begin("Planning")
        from isoloop.sweeps.execution.engine import finished_results
        from isoloop.sweeps.pipeline import prepare
        from isoloop.sweeps.plan.summary import plan_rows, print_plan

        prepared = prepare(config, folders, progress)
        planned, console = prepared.plan, new_console()
        done = finished_results(planned.cells, folders)
    print_plan(console, planned, done, every_run=every_run)
    if prepared.quality is not None:
        console.print(f"{'suites':<11} {prepared.quality.describe()}", markup=False)
    for line in describe_corpora(prepared.corpora.values()):
        console.print(line, markup=False)
    if to is not None:
        import pandas as pd

        pd.DataFrame(plan_rows(planned)).to_csv(to, index=False)


def tune(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006
    trials: Annotated[int | None, typer.Option(min=1, help="Number of runs with different settings, in all.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    storage_url: Annotated[
        str | None, typer.Option(help="Database of the trials; by default an sqlite file in --out.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Try half and twice the best learning rates at the least and the most recurrence.")
    ] = True,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    storage: StorageUri = None,
) -> None:
    """Search for better rates, weight decay and batch size. It trains at the sweep's smallest budget."""
    from isoloop.sweeps.execution.ray_address import RayAddress

    # Prepare.
    stores = {"tracking.uri": tracking_uri, "storage": storage, "tune.storage": storage_url}
    options = {**stores, "tune.trials": trials, "tune.parallel": parallel}
    config, folders = load_config(sweep, out, override, options)
    console = new_console()
    console.print(str(RayAddress.resolve(address)))
    with show_progress() as progress:
        progress.begin("Starting")
        from isoloop.sweeps.tuning.pipeline import NoTrialFinishedError, count_trials, prepare_tuning, run_tuning

        tuning = prepare_tuning(config, folders, progress)
    space, trial_count = tuning.space, config.tune.trials
    size, amount = space.size
    place = f"at µ = {space.mean_recurrence}, {size} {amount:.3g}"
    if space.grid_cells:
        place = f"in {len(space.grid_cells)} cells, {space.flops_per_trial:.3g} FLOPs each on average"
    console.print(f"{config.name}: {trial_count} trials {place}, results in {tuning.folders.sweep}")
    for line in space.describe():
        console.print(f"  {line}", markup=False)

    # Run.
    try:
        with show_progress() as progress:
            result = run_tuning(tuning, sweep, command=command_line(), check=check, address=address, progress=progress)
    except KeyboardInterrupt:
        done, saved = count_trials(tuning)
        console.print(
            f"Stopped: {done} of {trial_count} trials are done, and {saved} saved their state. "
            "Rerun the command to go on."
        )
        sys.exit(INTERRUPTED)
    except NoTrialFinishedError as error:
        print(f"isoloop: {error}", file=sys.stderr)
        sys.exit(RUNS_FAILED)
    console.print()
    for line in [*result.summary(), "", *result.advice(tuning.folders)]:
        console.print(line, markup=False)
    _exit_if_failed(result.failed)


def run(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006
    address: Address = None,
    tracking_uri: TrackingUri = None,
    storage: StorageUri = None,
    draws: Refits = DEFAULT_REFITS,
) -> None:
    """Train a sweep, record it, fit the laws and write a page. Runs that are done stay: rerun it to go on."""
    from isoloop.sweeps.execution.ray_address import RayAddress

    # Prepare.
    config, folders = load_config(sweep, out, override, {"tracking.uri": tracking_uri, "storage": storage})
    console = new_console()
    console.print(str(RayAddress.resolve(address)))
    with show_progress() as progress:
        progress.begin("Starting")
        from isoloop.sweeps.analysis import fit_and_report
        from isoloop.sweeps.pipeline import prepare, train_sweep
        from isoloop.sweeps.plan.rates import rate_lines
        from isoloop.sweeps.report.answer import sweep_answer

        prepared = prepare(config, folders, progress)
    cells, runs = prepared.plan.cells, counted_runs(len(prepared.plan.cells))
    console.print(f"{config.name}: {runs}, {prepared.plan.trained_flops:.3g} FLOPs, results in {folders.sweep}")
    for line in [*describe_corpora(prepared.corpora.values()), *prepared.plan.left_out_lines()]:
        console.print(line, markup=False)
    for line in rate_lines(prepared.plan.rates, cells):
        console.print(f"rates: {line}", markup=False)

    # Train and record.
    try:
        with show_progress() as progress:
            trained = train_sweep(prepared, folders, command=command_line(), address=address, progress=progress)
    except KeyboardInterrupt:
        from isoloop.sweeps.execution.engine import count_saved_runs, finished_results

        done, saved = len(finished_results(cells, folders)), count_saved_runs(prepared.plan, folders)
        console.print(
            f"Stopped: {done} of {len(cells)} runs are done, and {saved} saved their state. Rerun the command to go on."
        )
        sys.exit(INTERRUPTED)

    # Fit and report.
    with show_progress() as progress:
        results = fit_and_report(config, folders, trained.table, command=command_line(), draws=draws, progress=progress)
        progress.begin("Copying the results into MLflow")
        answer = sweep_answer(trained.table, results)
        problem = trained.store.record_answer(
            trained.parent,
            config,
            numbers=answer.numbers,
            intervals=answer.intervals,
            sentences=answer.sentences,
            results=folders.sweep,
        )
    print_results(console, results)
    if results.stability:
        print("\n" + results.stability, end="")
    console.print(f"\nrun table   {folders.table}")
    console.print("report     ", page_link(results.report))
    console.print(f"MLflow      {_mlflow_hint(config, folders)}\n            {trained.store.page_of(config.name)}")
    if problem:
        print(f"isoloop: the results were not copied into MLflow's artifacts: {problem}", file=sys.stderr)
    for run_id, reason in trained.unevaluated.items():
        print(f"isoloop: run {run_id} was not evaluated: {reason}", file=sys.stderr)
    _exit_if_failed(trained.failed)
    if trained.unevaluated:
        sys.exit(RUNS_FAILED)


def _exit_if_failed(failed: Mapping[str, str]) -> None:
    """Print the runs that have failed, with the reasons; if there are any, end with the exit code for that."""
    for run_id, reason in failed.items():
        print(f"isoloop: run {run_id} failed: {reason}", file=sys.stderr)
    if failed:
        sys.exit(RUNS_FAILED)


def report(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: TableLaw = None,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
    draws: Refits = DEFAULT_REFITS,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser; it is only made if the table has changed.")
    ] = False,
) -> None:
    """Fit a sweep or any table again, and write its page. The page of a table goes beside the table."""
    files = files_of(target, out)
    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    has_options = law is not None or draws != DEFAULT_REFITS or bool(options.given or options.tracking_uri)
    page = _present_page(files) if show and not has_options else None
    page = page or _write_report(files, out, options, law=law, draws=draws)
    new_console().print(page_link(page))
    if show and not open_in_browser(page):
        print(
            f"isoloop: no browser can be opened here; the page is one file, which you can copy to your computer: "
            f"scp {platform.node()}:{shlex.quote(str(page.resolve()))} .",
            file=sys.stderr,
        )


def _present_page(files: TargetFiles) -> Path | None:
    """Return the page of a target if it is there and of the table as it is now; an experiment's may have changed."""
    from isoloop.sweeps.report.page import page_is_of

    if files.table is None or files.in_mlflow:
        return None
    page = TablePlaces.beside(files.fit).report if files.folders is None else files.folders.report
    return page if page_is_of(page, files.table) else None


def _write_report(files: TargetFiles, out: Path, options: "TableOptions", *, law: str | None, draws: int) -> Path:
    """Fit the table of a target and write its page, and return the page's path."""
    if files.folders is None:
        return _report_table(files, out, options, law=law, draws=draws)
    if options.given or options.tracking_uri:
        raise ValueError(
            f"options such as {options.given or '--tracking-uri'} say how a table is read, but {files.target} is a "
            "sweep; leave them out"
        )
    folders = files.folders
    if folders.sweep.name == SO_FAR:
        with show_progress() as progress:
            progress.begin("Loading")
            from isoloop.sweeps.analysis import report_so_far

            whole = replace(folders, name=folders.name.removesuffix(f"/{SO_FAR}"))
            return report_so_far(whole, command=command_line(), law=law, draws=draws, progress=progress)
    if not folders.table.is_file() and folders.manifest.is_file():
        raise ValueError(
            f"a page needs the run table of a sweep that has ended, but {folders.name} has none yet; for a page of the "
            f"runs that have ended so far: isoloop report {folders.name}/{SO_FAR}"
        )
    with show_progress() as progress:
        progress.begin("Reading the table")
        from isoloop.fitting import read_table
        from isoloop.sweeps.analysis import fit_and_report

        table = read_table(folders.table)
        config, _ = load_config(str(folders.config), out)
        results = fit_and_report(
            config, folders, table, command=command_line(), law=law, draws=draws, progress=progress
        )
    return results.report


def _report_table(files: TargetFiles, out: Path, options: "TableOptions", *, law: str | None, draws: int) -> Path:
    """Fit the table of a target and write its page, and return the page's path."""
    with show_progress() as progress:
        progress.begin("Reading the table")
        from isoloop.fitting.result import FittedFile
        from isoloop.sweeps.analysis import fit_and_report_table
        from isoloop.sweeps.runs import load_table
        from isoloop.sweeps.tracking.export import write_table

        path = files.check_table("a report")
        file = None if files.in_mlflow else FittedFile.of(path)
        table = load_table(files.target, out, options)
        if files.in_mlflow:
            write_table(table.frame, path)
        # The page of a table whose folder can't be written goes to the output folder, as its fit does.
        fit = files.fit if files.spare_fit is None or os.access(path.parent, os.W_OK) else files.spare_fit
        results = fit_and_report_table(
            TablePlaces.beside(fit),
            path,
            table,
            fitted_file=file or FittedFile.of(path),
            name=files.name,
            command=command_line(),
            experiment=files.name if files.in_mlflow else None,
            law=law,
            draws=draws,
            budget_tolerance=options.budget_tolerance,
            progress=progress,
        )
    print_reading(table.notes if results.any_fit is None else results.any_fit.reading)
    return results.report


def export(
    target: Annotated[
        str | None, typer.Argument(help="Name of a recorded sweep, mlflow:EXPERIMENT, or a table; none with --map.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="File of the run table, .csv or .parquet.")] = Path("runs.csv"),
    mapping: MapFile = None,
    columns: Columns = None,
    tracking_uri: TrackingUri = None,
    experiment: Annotated[str | None, typer.Option(help="The MLflow experiment.")] = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Write a table of runs from MLflow to a file. Other tools may have logged the runs, or written the table."""
    from isoloop.sweeps.tracking.export import check_suffix, export_sweep, write_table

    check_suffix(to)
    notes: Sequence[str] = ()
    if target is None and mapping is None:
        raise ValueError(f"one of a sweep's name, {MLFLOW}EXPERIMENT and --map must be given, but got none; give one")
    if target is None:
        target = f"{MLFLOW}{experiment or ''}"
    if target.startswith(MLFLOW) or is_table_target(target):
        if experiment is not None and target != f"{MLFLOW}{experiment}":
            raise ValueError(f"one experiment must be given, but got {target} and --experiment {experiment}; keep one")
        with show_progress(transient=True) as progress:
            progress.begin(f"Reading {target}")
            from isoloop.sweeps.runs import TableOptions, load_table

            runs = load_table(target, out, TableOptions(columns=columns, mapping=mapping, tracking_uri=tracking_uri))
            table, notes = write_table(runs.frame, to), runs.notes
    elif mapping is not None or columns is not None:
        raise ValueError(
            f"--map and --columns are for tables of others, but '{target}' is the name of a sweep; leave them out, or "
            f"name {MLFLOW}EXPERIMENT or a file"
        )
    else:
        with show_progress(transient=True) as progress:
            progress.begin("Reading MLflow")
            table = export_sweep(target, to, out=out, tracking_uri=tracking_uri, experiment=experiment)
    print_reading(notes)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in table["status"].value_counts().items())
    print(f"{counted_runs(len(table))} ({counts}) in {to}")


def _mlflow_hint(config: "SweepConfig", folders: "Folders") -> str:
    """Return where MLflow has the sweep: the tracking URI, or the command that shows the sqlite file."""
    if config.tracking.uri is not None:
        return str(config.tracking.uri)
    return f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri {folders.default_tracking_uri()}"
