"""The commands `isoloop fit`, `predict` and `choose`: from a run table to laws and predictions."""

from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    DEFAULT_REFITS,
    Out,
    Refits,
    Target,
    files_of,
)

if TYPE_CHECKING:
    from isoloop.fitting import Objective

Delta = Annotated[float, typer.Option(help="Huber's delta; inf for squared errors.")]
On = Annotated[str, typer.Option(help="Quantity whose residuals are minimised: 'log loss' or 'loss'.")]


def fit(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: Annotated[
        str | None, typer.Option("--law", help="The law of the loss after training: a law's name, or module:Class.")
    ] = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Fit without the largest budget, and report the error there.")
    ] = False,
    draws: Refits = DEFAULT_REFITS,
    seed: Annotated[int, typer.Option(help="Seed of the refits.")] = 0,
    bootstrap: Annotated[
        str, typer.Option(help="Resampling of the table: parametric, rows or budgets.")
    ] = "parametric",
    delta: Delta = 1e-3,
    on: On = "log loss",
    independent: Annotated[
        bool, typer.Option("--independent", help="Fit separate parabolas in log tokens, too.")
    ] = False,
) -> None:
    """Fit laws to a run table and print the report. The table is a sweep's, or any .csv or .parquet file."""
    from isoloop.fitting import BOOTSTRAP_KINDS, fit_sweep, read_table
    from isoloop.sweeps.analysis import store_fit

    # Check the options, and read the table.
    if bootstrap not in BOOTSTRAP_KINDS:
        raise ValueError(f"--bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {bootstrap!r}; choose one")
    files = files_of(target, out, hold_out=hold_out)
    if files.table is None:
        raise ValueError(f"a fit requires a run table, but {target} is a fit; name a sweep, a .csv or a .parquet file")
    table = read_table(files.table)

    # Fit, store and print.
    with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
        fitted = fit_sweep(
            table,
            name=files.name,
            law=law,
            hold_out_largest_budget=hold_out,
            draws=draws,
            seed=seed,
            objective=_objective(delta, on),
            kind=bootstrap,  # type: ignore[arg-type]
            profiles=True,
            independent=independent,
            progress=progress.update,
        )
    store_fit(fitted, files.fit)
    print(fitted.report())
    print(f"stored in {files.fit}; predict with: isoloop predict {files.fit} --flops ...")


def predict(
    target: Target,
    out: Out = DEFAULT_OUT,
    mean_recurrence: Annotated[float | None, typer.Option(help="Mean loops in training (mu_rec).")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, the training tokens.")] = None,
    flops: Annotated[
        float | None, typer.Option(help="C, the training FLOPs; alone, the best model for them is predicted.")
    ] = None,
    recurrence: Annotated[float | None, typer.Option(help="Loops at test time (T); by default mu_rec.")] = None,
    loss_at_mean: Annotated[
        float | None,
        typer.Option(help="The measured loss at T = mu_rec, nats per token, for a far better prediction at other T."),
    ] = None,
) -> None:
    """Predict the loss of an untrained model from a stored fit."""
    from isoloop.fitting import SweepFit
    from isoloop.fitting import predict as predict_loss

    prediction = predict_loss(
        SweepFit.read(files_of(target, out).fit),
        mean_recurrence=mean_recurrence,
        tokens=tokens,
        flops=flops,
        recurrence=recurrence,
        loss_at_mean=loss_at_mean,
    )
    print(prediction.report().rstrip())


def choose(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: Annotated[list[str], typer.Option("--law", help="A law to compare, or module:Class; by default all.")] = [],  # noqa: B006
    experiment: Annotated[
        str | None, typer.Option(help="Keep only the rows with this value in the column `experiment`.")
    ] = None,
    outliers: Annotated[bool, typer.Option(help="Keep the rows that the column `outlier` marks.")] = True,
    hold_out: Annotated[
        list[str],
        typer.Option("--hold-out", help="Rows to hold out: 'largest budget', budget, size or row; can be repeated."),
    ] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Fit each law by L-BFGS from many starts, too.")] = False,
    draws: Refits = 200,
    delta: Delta = 1e-3,
    on: On = "log loss",
) -> None:
    """Compare laws on a table of runs or of dense models. The latter has params, tokens, loss and budget."""
    from isoloop.fitting import choose_table, read_runs

    table = files_of(target, out).table
    if table is None:
        raise ValueError(f"choose requires a table, but {target} is a fit; name a sweep, a .csv or a .parquet file")
    choice = choose_table(
        read_runs(table, experiment=experiment, outliers=outliers),
        laws=law,
        by=hold_out,  # type: ignore[arg-type]
        objective=_objective(delta, on),
        draws=draws,
        check=check,
    )
    print(choice.report(), end="")


def _objective(delta: float, on: str) -> "Objective":
    from isoloop.fitting import Objective

    return Objective(delta=delta, on=on)  # type: ignore[arg-type]
