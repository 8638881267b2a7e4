"""The command `isoloop answer`: should the next FLOP buy more loops, more tokens or more parameters?"""

import math
import re
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from isoloop.fitting import SizesFit, SweepFit


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
    size: Annotated[str | None, typer.Option(help="Name of your model's size among the runs', such as 140m.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, the training tokens of your model.")] = None,
    percent: Annotated[float, typer.Option(help="The next FLOPs, in percent of those of the model.")] = 10.0,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the device that serves the model, such as 24GB; see --context.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of context at inference.")] = 2048,
    inference_batch: Annotated[int, typer.Option(help="Sequences at a time at inference.")] = 1,
    bytes_per_number: Annotated[float, typer.Option(help="Bytes of a weight, and of a cached number.")] = 2.0,
    unique_tokens: Annotated[float | None, typer.Option(help="Training tokens that exist.")] = None,
    assume_repetition: Annotated[
        float | None,
        typer.Option(
            help="R* of repeated text, for a fit without a law of it; 15.4 is published. By default no repeats."
        ),
    ] = None,
    served_tokens: Annotated[
        float | None, typer.Option(help="Tokens to be served; --flops then pay for training and for them.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Wall time of training, as fast as the table's runs.")] = None,
    devices: Annotated[int, typer.Option(help="Devices that train, of the runs' kind.")] = 1,
    flops_per_second: Annotated[
        float | None, typer.Option(help="Training FLOPs per second of a device, in place of the runs' seconds.")
    ] = None,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what the next FLOPs should buy, and how sure that is.

    Loops, tokens or parameters, in three sentences: the best model for --flops, what the next 10% of FLOPs should buy,
    and how sure that is. One table: the nats that each way of spending them buys. Give the numbers of your model
    (--mean-recurrence 8 --tokens 2e10) to start from it, and not from the best one. A table that has no fit yet is
    fitted first.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Reading the fit")
        from isoloop.fitting import answer as answer_question
        from isoloop.fitting.answer.device import DeviceNeeds
        from isoloop.fitting.answer.limits import Limits
        from isoloop.sweeps.runs import load_table

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        files = files_of(target, out)
        fit, news = fit_or_stored(files, out, options)
        needs = None
        if memory is not None or (seconds is not None and flops_per_second is None):
            files.check_table("a limit of memory or seconds")
            needs = DeviceNeeds.of_table(load_table(target, out, options).frame)
        limits = Limits(
            memory=None if memory is None else _bytes(memory),
            context=context,
            inference_batch=inference_batch,
            bytes_per_number=bytes_per_number,
            unique_tokens=unique_tokens,
            repetition=assume_repetition,
            served_tokens=served_tokens,
            seconds=seconds,
            devices=devices,
            flops_per_second=flops_per_second,
            needs=needs,
        )
        progress.begin("Answering")
        result = answer_question(
            fit,
            flops,
            mean_recurrence=mean_recurrence,
            params=_params(fit, params, size),
            tokens=tokens,
            percent=percent,
            limits=limits,
        )
    print(result.to_json() if as_json else news + result.report(), end="")


def _bytes(text: str) -> float:
    """Return the bytes of a text such as 24GB; units are powers of 1000. Raises ValueError for another text."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kKMGT]?)B?\s*", text)
    try:
        return float(match[1]) * 1000.0 ** " KMGT".index(match[2].upper() or " ") if match else math.nan
    except ValueError:
        return math.nan


def _params(fit: "SweepFit | SizesFit", params: float | None, size: str | None) -> float | None:
    """Return the parameters of the model that a user names by them, or by a size of the runs."""
    from isoloop.fitting import SizesFit

    if size is None:
        return params
    if params is not None or not isinstance(fit, SizesFit):
        why = "--params says it already" if params is not None else "the fit has one size"
        raise ValueError(f"--size names one of several sizes, but {why}; leave it out")
    return fit.params_of(size)
