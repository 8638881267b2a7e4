"""`python -m benchmarks.fitting`: the fitter against others and against known truths, written into RESULTS.md."""

import os
from pathlib import Path
from typing import Annotated

import typer

# Before numpy is there: more threads gain nothing on small matrices, and would add to the CPU time.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

_ROOT = Path(__file__).resolve().parents[2]
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option("--data", help="folder of the public tables")]
Results = Annotated[Path, typer.Option("--results", help="file whose section is written")]
Cache = Annotated[Path, typer.Option("--cache", help="folder where finished simulated sweeps are kept")]
Sweeps = Annotated[int, typer.Option("--sweeps", min=2, help="simulated sweeps per case")]
Draws = Annotated[int, typer.Option("--draws", min=40, help="bootstrap draws per fit")]
Resamples = Annotated[int, typer.Option("--resamples", min=2, help="bootstrap refits")]
Seeds = Annotated[int, typer.Option("--seeds", min=2, help="draws of the prior and of random choices")]
Careful = Annotated[int, typer.Option("--careful", min=1, help="resamples that brute force looks at too")]
DATA = _ROOT.parent / "shared" / "data"  # beside the repository
RESULTS = Path(__file__).with_name("RESULTS.md")
CACHE = _ROOT / "runs" / "coverage"


@app.command()
def speed(data: Folder = DATA, results: Results = RESULTS, resamples: Resamples = 1000, careful: Careful = 100) -> None:
    """Time a fit and 1,000 refits beside other fitters, and check that they reach the same minima."""
    from benchmarks.fitting import speed as benchmark

    _write(results, "speed", benchmark.run(data, resamples=resamples, careful=careful))


@app.command()
def optimum(data: Folder = DATA, results: Results = RESULTS) -> None:
    """Compare our minima with the lowest that any other fitter finds, on the public tables."""
    from benchmarks.fitting import optimum as benchmark

    if _there(data, "optimum"):
        _write(results, "optimum", benchmark.run(data))


@app.command()
def coverage(results: Results = RESULTS, sweeps: Sweeps = 200, draws: Draws = 400, cache: Cache = CACHE) -> None:
    """Count how often 95% intervals hold the truth in simulated sweeps; continue where a previous call stopped."""
    from benchmarks.fitting import coverage as benchmark

    worlds(results, cache=cache)
    _write(results, "coverage", benchmark.run(cache, sweeps=sweeps, draws=draws))


@app.command()
def worlds(results: Results = RESULTS, sweeps: Sweeps = 100, draws: Draws = 200, cache: Cache = CACHE) -> None:
    """Count the same, and misfits that are flagged, where noise or law are not as the fit assumes."""
    from benchmarks.fitting import coverage as benchmark

    _write(results, "worlds", benchmark.run_worlds(cache, sweeps=sweeps, draws=draws))


@app.command()
def sizes(results: Results = RESULTS, sweeps: Sweeps = 200, draws: Draws = 200, cache: Cache = CACHE) -> None:
    """Count how often the intervals of joint fits over two and three sizes hold the truth."""
    from benchmarks.fitting import coverage as benchmark

    _write(results, "sizes", benchmark.run_sizes(cache / "sizes", sweeps=sweeps, draws=draws))


@app.command()
def held_out(data: Folder = DATA, results: Results = RESULTS, draws: Draws = 400) -> None:
    """Measure error and coverage at the largest budget of the public tables, held out."""
    from benchmarks.fitting import held_out as benchmark

    if _there(data, "held-out"):
        _write(results, "held-out", benchmark.run(data, draws=draws))


@app.command()
def limited(data: Folder = DATA, results: Results = RESULTS, sweeps: Sweeps = 100) -> None:
    """Compare laws of text that runs out on published runs: errors beyond the compute, sizes and epochs of the fit."""
    from benchmarks.fitting import limited as benchmark

    if (data / benchmark.FILE).is_file():
        _write(
            results,
            "limited",
            "\n".join([benchmark.run(data), benchmark.coverage(sweeps=sweeps), benchmark.best_recurrences()]),
        )
    else:
        typer.echo(f"limited is skipped: the runs are not at {data / benchmark.FILE}; give their folder as --data")


@app.command()
def rollouts(data: Folder = DATA, results: Results = RESULTS, sweeps: Sweeps = 100) -> None:
    """Compare ways to choose a law by its error at 4 times the fitted compute, on simulated and on public tables."""
    from benchmarks.fitting import rollouts as benchmark

    _write(results, "rollouts", benchmark.run(data, sweeps=sweeps))


@app.command()
def design(results: Results = RESULTS, sweeps: Sweeps = 200, draws: Draws = 100, cache: Cache = CACHE) -> None:
    """Compare the intervals of sweeps that are designed in rounds with those of the published grid."""
    from benchmarks.fitting import next_runs as benchmark

    _write(results, "design", benchmark.run(cache, sweeps=sweeps, draws=draws))


@app.command()
def design_sizes(results: Results = RESULTS, sweeps: Sweeps = 40, draws: Draws = 100, cache: Cache = CACHE) -> None:
    """Compare the intervals of joint fits whose further runs are designed with those of further budgets of the grid."""
    from benchmarks.fitting import next_sizes as benchmark

    _write(results, "design-sizes", benchmark.run(cache / "design-sizes", sweeps=sweeps, draws=draws))


@app.command()
def design_farseer(data: Folder = DATA, results: Results = RESULTS, seeds: Seeds = 5) -> None:
    """Compare designs of 1, 5 and 10% of the cost of a public table's runs by the error at its largest runs."""
    from benchmarks.fitting import farseer as benchmark

    if benchmark.table_of(data).is_file():
        _write(results, "design-farseer", benchmark.run(data, seeds=seeds))
    else:
        typer.echo(f"design-farseer is skipped: there is no {benchmark.table_of(data)}")


@app.command()
def quality(results: Results = RESULTS, sweeps: Sweeps = 200, draws: Draws = 200) -> None:
    """Count how often the interval of a predicted benchmark score holds that of a new model, in simulated sweeps."""
    from benchmarks.fitting import quality as benchmark

    _write(results, "quality", benchmark.run(sweeps=sweeps, draws=draws))


@app.command("all")
def everything(
    data: Folder = DATA, results: Results = RESULTS, sweeps: Sweeps = 200, draws: Draws = 400, cache: Cache = CACHE
) -> None:
    """Run all benchmarks."""
    speed(data, results)
    optimum(data, results)
    coverage(results, sweeps, draws, cache)
    held_out(data, results, draws)
    limited(data, results, sweeps)
    rollouts(data, results)
    quality(results, sweeps)


def _there(folder: Path, command: str) -> bool:
    from benchmarks.fitting.tables import why_absent

    if reason := why_absent(folder):
        typer.echo(f"{command} is skipped: {reason}")
    return reason is None


def _write(results: Path, command: str, body: str) -> None:
    from benchmarks.fitting.results import write_section

    write_section(results, command, body)
    typer.echo(f"{body}\nwritten to {results}")


if __name__ == "__main__":
    app()
