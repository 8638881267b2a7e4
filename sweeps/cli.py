"""The `isoloop` command: parse, call, print. Heavy libraries are imported by the command that needs them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from sweeps.config import SweepConfig
    from sweeps.execute import Progress
    from sweeps.folders import Folders
    from sweeps.grid import Cell, Plan
    from sweeps.results import Results
    from trainer.result import RunResult

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

Sweep = Annotated[str, typer.Argument(help="A preset's name or a sweep's YAML file.")]
Target = Annotated[str, typer.Argument(help="A sweep that was run (its name or YAML file), or a file.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Set = Annotated[list[str], typer.Option("--set", help="Change one value: --set batch=16 --set data.corpus=/my/text")]
DEFAULT_OUT = Path("isoloop-out")
BROKEN_RULE, RUNS_FAILED, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command; a broken rule is one message on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        print(f"isoloop: {error}", file=sys.stderr)
        sys.exit(BROKEN_RULE)
    except OSError as error:
        print(f"isoloop: files must be readable and writable, but {error}; nothing done is lost", file=sys.stderr)
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
    from sweeps import config

    print("\n".join(config.presets()) if name is None else config.preset_text(name).rstrip())


@app.command()
def plan(sweep: Sweep, out: Out = DEFAULT_OUT, override: Set = []) -> None:  # noqa: B006  typer copies defaults
    """Show the grid and what it will cost; nothing is started."""
    from sweeps.corpus import corpus_bar
    from sweeps.execute import finished_results
    from sweeps.pipeline import prepare

    config, folders = _load(sweep, out, override)
    with corpus_bar(_console()) as progress:
        planned = prepare(config, folders, progress).plan
    _print_plan(planned, done=set(finished_results(planned, folders)))


@app.command()
def run(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006
    address: Annotated[str | None, typer.Option(help="A Ray cluster's host:port; a local Ray if left out.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="Any MLflow tracking URI; sqlite in --out if left out.")
    ] = None,
) -> None:
    """Train what is missing on Ray, record it in MLflow, fit it and write the report. Run it again to go on."""
    from sweeps.corpus import corpus_bar
    from sweeps.pipeline import fit_and_report, prepare, train_and_record

    config, folders = _load(sweep, out, override, tracking_uri)
    console = _console()
    with corpus_bar(console) as corpus_progress:
        prepared = prepare(config, folders, corpus_progress)
    cells = prepared.plan.cells
    console.print(f"{config.name}: {len(cells)} runs, {prepared.plan.flops:.3g} FLOPs, results in {folders.sweep}")
    try:
        with _progress_bar(console, prepared.plan) as progress:
            recorded = train_and_record(prepared, folders, address=address, progress=progress)
    except KeyboardInterrupt:
        from sweeps.execute import finished_results, saved_states

        done, saved = len(finished_results(prepared.plan, folders)), saved_states(prepared.plan, folders)
        console.print(
            f"Stopped: {done} of {len(cells)} runs are done, and {saved} saved their state. Run it again to go on."
        )
        sys.exit(INTERRUPTED)
    with _fit_progress(console) as progress:
        results = fit_and_report(config, folders, recorded.table, command=_command(), progress=progress)
    _print_results(console, results)
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


@data.command("prepare")
def prepare_data(sweep: Sweep, out: Out = DEFAULT_OUT, override: Set = []) -> None:  # noqa: B006
    """Tokenise the text of a sweep, once for all its runs, and say what it holds. Run it again to go on."""
    from sweeps.corpus import corpus_bar, describe_corpus
    from trainer.data import CorpusRequest

    config, folders = _load(sweep, out, override)
    if config.simulation is not None:
        raise ValueError(
            f"a sweep must train to have a corpus, but '{config.name}' draws its losses from a law; name another sweep"
        )
    console = _console()
    with corpus_bar(console) as progress:
        request = CorpusRequest(config.data, folders.corpora, progress)
        found = request.find()
        corpus = found or request.build(progress)
    console.print(describe_corpus(corpus, context=config.model.context, was_there=found is not None))
    corpus.check(config.model.context, config.model.vocabulary)


@app.command()
def fit(
    target: Target,
    out: Out = DEFAULT_OUT,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Keep the largest budget out; report the error there.")
    ] = False,
    draws: Annotated[int, typer.Option(min=20, help="Refits behind each interval.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the refits.")] = 0,
) -> None:
    """Fit a sweep's run table, or any run table (.csv or .parquet), and print what was found."""
    from fitting import fit_sweep, read_table
    from sweeps.pipeline import store_fit

    path = Path(target)
    if path.suffix in {".csv", ".parquet"}:
        table_path, name = path, path.stem
        stored = path.with_name(f"{path.stem}.{'hold-out' if hold_out else 'fit'}.json")
    else:
        folders = _folders_of(target, out)
        table_path, name, stored = folders.table, folders.name, folders.fit(hold_out=hold_out)
    table = read_table(table_path)
    with _fit_progress(_console()) as progress:
        found = fit_sweep(table, name=name, hold_out_largest_budget=hold_out, draws=draws, seed=seed, progress=progress)
    store_fit(found, stored)
    print(found.report())
    print(f"stored in {stored}; ask it with: isoloop predict {stored} --flops ...")


@app.command()
def predict(
    target: Target,
    out: Out = DEFAULT_OUT,
    mean_recurrence: Annotated[float | None, typer.Option(help="µ_rec, mean loops in training.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, training tokens.")] = None,
    flops: Annotated[float | None, typer.Option(help="C, training FLOPs; alone, it asks for the best model.")] = None,
    recurrence: Annotated[float | None, typer.Option(help="T, loops at test time; µ_rec if left out.")] = None,
) -> None:
    """Predict the loss of a model nobody has trained, from a stored fit."""
    from fitting import SweepFit
    from fitting import predict as predict_loss

    path = Path(target)
    stored = SweepFit.read(path if path.suffix == ".json" else _folders_of(target, out).fit(hold_out=False))
    print(
        predict_loss(stored, mean_recurrence=mean_recurrence, tokens=tokens, flops=flops, recurrence=recurrence)
        .report()
        .rstrip()
    )


@app.command()
def report(target: Target, out: Out = DEFAULT_OUT) -> None:
    """Fit a finished sweep's table again and write its page anew."""
    from fitting import read_table
    from sweeps.pipeline import fit_and_report

    folders = _folders_of(target, out)
    table = read_table(folders.table)
    config, _ = _load(str(folders.config), out, [])
    with _fit_progress(_console()) as progress:
        results = fit_and_report(config, folders, table, command=_command(), progress=progress)
    print(results.report)


def _load(sweep: str, out: Path, override: list[str], tracking_uri: str | None = None) -> "tuple[SweepConfig, Folders]":
    from sweeps.config import load_sweep
    from sweeps.folders import Folders

    config = load_sweep(sweep, override, tracking_uri=tracking_uri)
    return config, Folders(out=out, name=config.name)


def _folders_of(target: str, out: Path) -> "Folders":
    """The folders of a sweep given by its name or its YAML file."""
    from sweeps.config import load_sweep
    from sweeps.folders import Folders

    name = load_sweep(target).name if Path(target).suffix in {".yaml", ".yml"} else target
    folders = Folders(out=out, name=name)
    if not folders.sweep.is_dir():
        known = sorted(folder.name for folder in folders.sweep.parent.glob("*") if folder.is_dir())
        there = f"there are {', '.join(known)}" if known else f"no sweep was run there; start with 'isoloop run {name}'"
        raise ValueError(f"a sweep must have been run under --out, but '{out}' has no sweep '{name}': {there}")
    return folders


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)


def _print_plan(plan: "Plan", done: set[str]) -> None:
    from rich.table import Table

    from trainer.accounting import count_parameters

    sweep, console = plan.sweep, _console()
    parameters = count_parameters(sweep.model)
    table = Table("µ", "µ_bwd", "budget", "tokens", "steps", "FLOPs", "epochs", "time", "", box=None, pad_edge=False)
    for cell in sorted(plan.cells, key=lambda cell: (cell.budget or cell.spec.tokens, cell.mean_recurrence)):
        table.add_row(
            str(cell.mean_recurrence),
            str(cell.spec.recurrence.gradient_loops),
            f"{cell.budget:.3g}" if cell.budget else "-",
            f"{cell.spec.tokens:.3g}",
            str(cell.spec.steps),
            f"{cell.flops:.4g}",
            f"{cell.epochs:.2f}" if cell.epochs else "-",
            _duration(cell.flops / sweep.resources.flops_per_second),
            "done" if cell.run_id in done else "",
        )
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    console.print(f"{sweep.name}: {len(plan.cells)} runs{' (simulated)' if sweep.simulation else ''}, {len(done)} done")
    console.print(table)
    for missing in plan.left_out:
        console.print(f"left out: {missing.asked}, µ = {missing.mean_recurrence}: {missing.reason}")
    resources = sweep.resources
    parallel = 1 if resources.gpus else max(1, (os.cpu_count() or 1) // (resources.cpus * resources.processes))
    where = "one run at a time" if resources.gpus else f"on this machine, {parallel} runs at a time"
    console.print(
        f"model       {parameters.total:,} parameters, N(µ) = {parameters.effective_fixed:,} + "
        f"{parameters.effective_per_loop:,} µ effective\n"
        f"compute     {plan.flops:.4g} FLOPs in all, counted as {sweep.accounting}\n"
        f"time        about {_duration(plan.hours(parallel) * 3600)}, {where}, if "
        f"each does the stated {sweep.resources.flops_per_second:.3g} FLOPs per second"
    )


def _duration(seconds: float) -> str:
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:,.0f} h"


@contextmanager
def _progress_bar(console: "Console", plan: "Plan") -> "Iterator[Progress]":
    """A bar over the sweep's FLOPs with the time left, and a line for each run that ends."""
    from rich import progress as rich_progress

    from sweeps import execute

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(f"0/{len(plan.cells)} runs", total=1.0)
        ended = 0

        class Bar(execute.Progress):
            def share_done(self, share: float) -> None:
                bar.update(task, completed=share)

            def run_ended(self, cell: "Cell", result: "RunResult | None", reason: str | None) -> None:
                nonlocal ended
                ended += 1
                bar.update(task, description=f"{ended}/{len(plan.cells)} runs")
                asked = f"C = {cell.budget:.3g}" if cell.budget else f"D = {cell.spec.tokens:.3g}"
                if result is None:
                    said = f"failed: {reason}"
                elif result.loss is None:
                    said = f"diverged: {result.reason}"
                else:
                    took = " (simulated)" if result.simulated else f" in {_duration(result.seconds)}"
                    said = f"loss {result.loss:.4f}{took}"
                bar.console.print(f"  {cell.run_id}  µ = {cell.mean_recurrence:<2}  {asked}  {said}")

        yield Bar()


@contextmanager
def _fit_progress(console: "Console") -> "Iterator[Callable[[str, int, int], None]]":
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, object] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"fitting {what}", total=total)
            bar.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield tell


def _print_results(console: "Console", results: "Results") -> None:
    from sweeps.report import answer

    console.print()
    for line in answer(results):
        console.print(line)
    held_out = results.hold_out.held_out if results.hold_out else None
    if held_out is not None:
        console.print(f"\nFitted without the largest {held_out.column}, then compared with it:")
        for row in sorted(held_out.rows, key=lambda row: (row.method, row.mean_recurrence)):
            if row.recurrence == row.mean_recurrence:
                span = f" ({row.interval[0]:.4f} to {row.interval[1]:.4f})" if row.interval else ""
                console.print(
                    f"  µ = {row.mean_recurrence:<3g} {row.method}: predicted {row.predicted:.4f}{span}, "
                    f"measured {row.measured:.4f}, error {row.error:+.2f}%"
                )


def _mlflow_hint(config: "SweepConfig", folders: "Folders") -> str:
    return config.tracking.uri or f"mlflow ui --backend-store-uri {folders.default_tracking_uri()}"


def _command() -> str:
    return " ".join(["isoloop", *sys.argv[1:]])


if __name__ == "__main__":
    main()
