"""The command `isoloop tune`: parse, call, print."""

import sys
from typing import Annotated

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import DEFAULT_OUT, INTERRUPTED, Address, Out, Set, StorageUri, Sweep, TrackingUri


def tune(
    sweep: Sweep,
    out: Out = DEFAULT_OUT,
    override: Set = [],  # noqa: B006
    trials: Annotated[int | None, typer.Option(min=1, help="Runs with different settings, in all.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    storage_url: Annotated[
        str | None, typer.Option(help="Database that keeps the trials; an sqlite file in --out if left out.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Try half and twice the best rates at the least and the most recurrence.")
    ] = True,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    storage: StorageUri = None,
) -> None:
    """Search learning rates, decay and batch at a sweep's smallest budget, for a file that it extends."""
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.paths import Folders
    from isoloop.sweeps.privacy import redacted
    from isoloop.sweeps.tuning import pipeline as tune_pipeline

    stores = {"tracking.uri": tracking_uri, "storage": storage, "tune.storage": storage_url}
    config = load_sweep(sweep, override, settings={**stores, "tune.trials": trials, "tune.parallel": parallel})
    console = new_console()
    with progress_bar(console, in_bytes=True, transient=True) as progress:
        tuning = tune_pipeline.prepare_tuning(config, Folders(out=out, name=config.name), progress)
    space, wanted = tuning.space, config.tune.trials
    size, amount = space.size
    console.print(
        f"{config.name}: {wanted} trials at µ = {space.mean_recurrence}, {size} {amount:.3g}, results in "
        f"{tuning.folders.sweep}"
    )
    for line in space.describe():
        console.print(f"  {line}", markup=False)
    command = redacted(" ".join(["isoloop", *sys.argv[1:]]))
    try:
        with progress_bar(console) as progress:
            result = tune_pipeline.run_tuning(
                tuning, sweep, command=command, check=check, address=address, progress=progress
            )
    except KeyboardInterrupt:
        done, left = tune_pipeline.count_trials(tuning)
        console.print(
            f"Stopped: {done} of {wanted} trials are done, and {left} saved their state. Run it again to go on."
        )
        sys.exit(INTERRUPTED)
    console.print()
    for line in [*result.summary(), "", *result.advice(tuning.folders)]:
        console.print(line, markup=False)
