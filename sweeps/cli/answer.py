"""The command `isoloop answer`: should the next FLOP buy more loops, more tokens or more parameters?"""

from typing import Annotated

import typer

from isoloop.sweeps.cli.console import show_progress
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    BudgetTolerance,
    Columns,
    Experiment,
    MapFile,
    Out,
    Outliers,
    Target,
    TrackingUri,
    files_of,
    table_options,
)
from isoloop.sweeps.cli.stored_fits import fit_or_stored


def answer(
    target: Target,
    out: Out = DEFAULT_OUT,
    flops: Annotated[
        float | None,
        typer.Option(help="C, the training FLOPs; by default those of your model, or twice the largest measured."),
    ] = None,
    mean_recurrence: Annotated[
        float | None, typer.Option(help="Mean loops in training (mu_rec) of your model.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Parameters of your model, embeddings apart.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, the training tokens of your model.")] = None,
    percent: Annotated[float, typer.Option(help="The next FLOPs, in percent of those of the model.")] = 10.0,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what the next FLOPs should buy: loops, tokens or parameters.

    Three sentences: the best model for --flops, what the next 10% of FLOPs should buy, and how sure that is. One table:
    the nats that each way of spending them buys. Give the numbers of your model (--mean-recurrence 8 --tokens 2e10) to
    start from it, and not from the best one. A table that has no fit yet is fitted first.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Reading the fit")
        from isoloop.fitting import answer as answer_question

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        fit, news = fit_or_stored(files_of(target, out), out, options)
        progress.begin("Answering")
        result = answer_question(
            fit, flops, mean_recurrence=mean_recurrence, params=params, tokens=tokens, percent=percent
        )
    print(result.to_json() if as_json else news + result.report(), end="")
