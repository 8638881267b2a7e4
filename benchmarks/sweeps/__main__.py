"""`python -m benchmarks.sweeps`: benchmarks of planning and scheduling, written into RESULTS.md."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.results import Results, processor

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS = Results(
    title="# Sweeps, measured",
    introduction="Every number is from `python -m benchmarks.sweeps`; each section says when and on what it was made.",
    sections={
        "ray": "On Ray",
        "shared": "On a Ray that others use",
        "virtual": "In virtual time",
        "planning": "Planning",
        "proposals": "Proposals",
        "rates": "Rates that travel",
        "trunks": "Trunks",
    },
    module="benchmarks.sweeps",
)
File = Annotated[Path, typer.Option("--results", help="file that gets the section")]
Runs = Annotated[int, typer.Option("--runs", min=20, help="runs of the sweep")]
Seconds = Annotated[float, typer.Option("--seconds", min=1, help="total work divided by the GPUs")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="sweeps drawn from each mix")]
Studies = Annotated[int, typer.Option("--studies", min=10, help="studies of each method")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="repetitions of planning each grid")]


@app.command()
def ray(
    results: File = RESULTS,
    runs: Runs = 500,
    seconds: Seconds = 300.0,
    more: Annotated[bool, typer.Option("--more", help="measure grid order and Ray Tune, too (20 minutes)")] = False,
) -> None:
    """Measure makespans on a local Ray with 64 declared GPUs, beside a window, and with --more two other peers."""
    from benchmarks.sweeps import on_ray

    _write(results, "ray", on_ray.run(runs=runs, seconds=seconds, more=more))


@app.command()
def shared(results: File = RESULTS, runs: Runs = 40, seconds: Seconds = 30.0) -> None:
    """Measure idle GPUs beside another job, and two drivers at once, on a local Ray of two nodes."""
    from benchmarks.sweeps import shared as benchmark

    _write(results, "shared", benchmark.run(runs=runs, seconds=seconds))


@app.command()
def virtual(results: File = RESULTS, seeds: Seeds = 20) -> None:
    """Compute makespans in virtual time, for many mixes of runs."""
    from benchmarks.sweeps import virtual as benchmark

    _write(results, "virtual", benchmark.run(seeds=seeds))


@app.command()
def planning(results: File = RESULTS, repeats: Repeats = 3) -> None:
    """Measure planning 10,000 and 160,000 runs, and starting again over 20,000 finished ones."""
    from benchmarks.sweeps import planning as benchmark

    _write(results, "planning", benchmark.run(repeats=repeats))


@app.command()
def proposals(results: File = RESULTS, studies: Studies = 100) -> None:
    """Measure the gain in a tuning from reporting diverged runs as a loss above all others."""
    from benchmarks.sweeps import proposals as benchmark

    _write(results, "proposals", benchmark.run(studies=studies))


@app.command()
def rates(results: File = RESULTS, studies: Studies = 100) -> None:
    """Measure how well the best rate at 8 times the compute is known from a tuning in several cells, and in one."""
    from benchmarks.sweeps import rates as benchmark

    _write(results, "rates", benchmark.run(studies=studies))


@app.command()
def trunks(
    results: File = RESULTS,
    seeds: Annotated[int, typer.Option("--seeds", help="seeds of the runs with another weight decay; 0: none")] = 0,
) -> None:
    """Train a small sweep with trunks and without, and compare CPU time, FLOPs and losses."""
    from benchmarks.sweeps import trunks as benchmark

    _write(results, "trunks", benchmark.run(seeds=seeds))


@app.command("all")
def everything(results: File = RESULTS) -> None:
    """Run all benchmarks."""
    planning(results)
    proposals(results)
    rates(results)
    virtual(results)
    trunks(results)
    ray(results)
    shared(results)


def _write(results: Path, command: str, body: str) -> None:
    machine = f"{processor()}; Ray {version('ray')}, Python {platform.python_version()}"
    SECTIONS.write(results, command, body, machine)
    typer.echo(f"{body}\nwritten to {results}")


if __name__ == "__main__":
    app()
