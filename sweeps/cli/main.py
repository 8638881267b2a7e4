"""The `isoloop` command: parse, call, print. Heavy libraries are imported by the command that needs them."""

import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.compare import compare
from isoloop.sweeps.cli.console import new_console, print_results, progress_bar
from isoloop.sweeps.cli.figure import figure
from isoloop.sweeps.cli.laws import choose, fit, predict
from isoloop.sweeps.cli.options import (
    BROKEN_RULE,
    DEFAULT_DRAWS,
    DEFAULT_LAW,
    DEFAULT_OUT,
    INTERRUPTED,
    RUNS_FAILED,
    Address,
    Draws,
    Out,
    Set,
    StorageUri,
    Sweep,
    Target,
    TrackingUri,
    TrainingLaw,
)
from isoloop.sweeps.cli.tune import tune
from isoloop.sweeps.paths import folders_of
from isoloop.sweeps.privacy import redacted, switch_telemetry_off

if TYPE_CHECKING:
    from isoloop.sweeps.config.schema import SweepConfig
    from isoloop.sweeps.paths import Folders

app = typer.Typer(
    name="isoloop",
    help="Plan, train, track and fit the scaling laws of looped language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data = typer.Typer(help="Prepare the text that sweeps are trained on.", no_args_is_help=True)
app.add_typer(data, name="data")
for command in (tune, fit, choose, predict, compare, figure):
    app.command()(command)


def main() -> None:
    """Run the command; a broken rule is one message on stderr and exit code 2. SIGTERM is taken as Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    switch_telemetry_off()
    try:
        app()
    except ValueError as error:
        print(f"isoloop: {redacted(str(error))}", file=sys.stderr)
        sys.exit(BROKEN_RULE)
    except OSError as error:
        print(
            f"isoloop: files must be readable and writable, but {redacted(str(error))}; nothing done is lost",
            file=sys.stderr,
        )
        sys.exit(BROKEN_RULE)
    except KeyboardInterrupt:
        print("isoloop: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


@app.callback(invoke_without_command=True)
def _isoloop(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"isoloop {installed('isoloop')}")
        raise typer.Exit


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset's YAML, to start your own.")] = None,
) -> None:
    """List the sweeps that come with isoloop, or print one."""
    from isoloop.sweeps.config import loading

    print("\n".join(loading.preset_names()) if name is None else loading.preset_text(name).rstrip())


@app.command()
def plan(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006  typer copies defaults
    every_run: Annotated[bool, typer.Option("--all", help="A row for each run, however many there are.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write a row for each run to this .csv file.")] = None,
) -> None:
    """Show the grid and what it will cost: time, memory, price; nothing is started."""
    from isoloop.sweeps.execution.engine import finished_results
    from isoloop.sweeps.pipeline import prepare
    from isoloop.sweeps.plan.summary import plan_rows, print_plan

    config, folders = _load(sweep, out, override)
    with progress_bar(new_console(), in_bytes=True, transient=True) as progress:
        planned = prepare(config, folders, progress).plan
    print_plan(new_console(), planned, finished_results(planned.cells, folders), every_run=every_run)
    if to is not None:
        import pandas as pd

        pd.DataFrame(plan_rows(planned)).to_csv(to, index=False)


@app.command()
def run(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006
    address: Address = None,
    tracking_uri: TrackingUri = None,
    storage: StorageUri = None,
    draws: Draws = DEFAULT_DRAWS,
) -> None:
    """Train what is missing on Ray, record it in MLflow, fit it and write the report. Run it again to go on."""
    from isoloop.sweeps.analysis import fit_and_report, store_stability
    from isoloop.sweeps.pipeline import prepare, train_sweep
    from isoloop.sweeps.stability.study import is_study

    config, folders = _load(sweep, out, override, tracking_uri, storage)
    console = new_console()
    with progress_bar(console, in_bytes=True, transient=True) as progress:
        prepared = prepare(config, folders, progress)
    cells = prepared.plan.cells
    console.print(f"{config.name}: {len(cells)} runs, {prepared.plan.flops:.3g} FLOPs, results in {folders.sweep}")
    try:
        with progress_bar(console) as progress:
            recorded = train_sweep(prepared, folders, address=address, progress=progress)
    except KeyboardInterrupt:
        from isoloop.sweeps.execution.engine import count_saved_runs, finished_results

        done, saved = len(finished_results(cells, folders)), count_saved_runs(prepared.plan, folders)
        console.print(
            f"Stopped: {done} of {len(cells)} runs are done, and {saved} saved their state. Run it again to go on."
        )
        sys.exit(INTERRUPTED)
    with progress_bar(console, prefix="fitting ", transient=True) as progress:
        results = fit_and_report(config, folders, recorded.table, command=_command(), draws=draws, progress=progress)
    print_results(console, results)
    if is_study(config):
        print("\n" + store_stability(config, folders, recorded.table).summary(), end="")
    console.print(
        f"\nrun table   {folders.table}\nreport      {results.report}\nMLflow      {_mlflow_hint(config, folders)}"
    )
    trouble = recorded.store.save_files(recorded.parent, folders.sweep)
    if trouble:
        print(f"isoloop: the results were not copied into MLflow's artifacts: {trouble}", file=sys.stderr)
    if recorded.failed:
        for run_id, reason in recorded.failed.items():
            print(f"isoloop: run {run_id} failed: {reason}", file=sys.stderr)
        sys.exit(RUNS_FAILED)


@app.command()
def status(
    target: Target,
    out: Out = DEFAULT_OUT,
    every_run: Annotated[bool, typer.Option("--all", help="A row for each run, done and waiting ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how far a sweep is, also while another terminal runs it."""
    from isoloop.sweeps.cli.console import print_status
    from isoloop.sweeps.execution.status import read_status

    found = read_status(folders_of(target, out))
    if as_json:
        print(found.to_json())
    else:
        print_status(new_console(), found, every_run=every_run)


@data.command("prepare")
def prepare_data(sweep: Sweep, out: Out = DEFAULT_OUT, override: Set = []) -> None:  # noqa: B006
    """Tokenise the text of a sweep, once for all its runs, and say what it holds. Run it again to go on."""
    from isoloop.sweeps.cli.console import describe_corpus
    from isoloop.trainer.data.corpus import CorpusRequest

    config, folders = _load(sweep, out, override)
    if config.simulation is not None:
        raise ValueError(
            f"a sweep must train to have a corpus, but '{config.name}' draws its losses from a law; name another sweep"
        )
    console = new_console()
    with progress_bar(console, in_bytes=True, transient=True) as progress:
        request = CorpusRequest(config.data, folders.corpora, progress.update)
        found = request.find()
        corpus = found or request.build(progress.update)
    console.print(describe_corpus(corpus, context=config.model.context, was_there=found is not None))
    corpus.check(config.model.context, config.model.vocabulary)


@app.command()
def export(
    target: Annotated[
        str | None, typer.Argument(help="The name of a sweep that was recorded; none with --map.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="The run table's file, .csv or .parquet.")] = Path("runs.csv"),
    mapping: Annotated[Path | None, typer.Option("--map", help="A YAML that maps runs logged by others.")] = None,
    tracking_uri: TrackingUri = None,
    experiment: Annotated[str | None, typer.Option(help="The MLflow experiment.")] = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Write a run table from MLflow alone; with --map, of runs that others logged."""
    from isoloop.sweeps.tracking.export import export_mapped, export_sweep

    if (target is None) == (mapping is None):
        got = "neither" if target is None else "both"
        raise ValueError(f"one of a sweep's name and --map must be given, but got {got}; keep one")
    if mapping is not None:
        table = export_mapped(mapping, to, out=out, tracking_uri=tracking_uri, experiment=experiment)
    else:
        table = export_sweep(str(target), to, out=out, tracking_uri=tracking_uri, experiment=experiment)
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    print(f"{len(table)} runs ({counts}) in {to}")


@app.command()
def report(
    target: Target, out: Out = DEFAULT_OUT, law: TrainingLaw = DEFAULT_LAW, draws: Draws = DEFAULT_DRAWS
) -> None:
    """Fit a finished sweep's table again and write its page anew."""
    from isoloop.fitting import read_table
    from isoloop.sweeps.analysis import fit_and_report, store_stability
    from isoloop.sweeps.stability.study import is_study

    folders = folders_of(target, out)
    table = read_table(folders.table)
    config, _ = _load(str(folders.config), out, [])
    with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
        results = fit_and_report(config, folders, table, command=_command(), law=law, draws=draws, progress=progress)
    if is_study(config):
        store_stability(config, folders, table)
    print(results.report)


@app.command()
def stability(target: Target, out: Out = DEFAULT_OUT) -> None:
    """Show at which learning rates each injection of a sweep converged, and draw ρ(Ā) and ‖h_T‖ over training."""
    from isoloop.fitting import read_table
    from isoloop.sweeps.analysis import store_stability

    folders = folders_of(target, out)
    config, _ = _load(str(folders.config), out, [])
    print(store_stability(config, folders, read_table(folders.table)).report(), end="")


def _load(
    sweep: str, out: Path, override: list[str], tracking_uri: str | None = None, storage: str | None = None
) -> "tuple[SweepConfig, Folders]":
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.paths import Folders

    config = load_sweep(sweep, override, settings={"tracking.uri": tracking_uri, "storage": storage})
    return config, Folders(out=out, name=config.name)


def _mlflow_hint(config: "SweepConfig", folders: "Folders") -> str:
    if config.tracking.uri is not None:
        return str(config.tracking.uri)
    return f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri {folders.default_tracking_uri()}"


def _command() -> str:
    # A secret is taken out before quoting: quotation marks would end it too early.
    return shlex.join(["isoloop", *(redacted(argument) for argument in sys.argv[1:])])


if __name__ == "__main__":
    main()
