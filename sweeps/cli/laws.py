"""The commands `isoloop fit`, `predict` and `choose`: from a table of runs to laws and predictions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import (
    DEFAULT_OUT,
    DEFAULT_REFITS,
    BudgetTolerance,
    Columns,
    Experiment,
    MapFile,
    Out,
    Outliers,
    Refits,
    TableLaw,
    Target,
    TargetFiles,
    TrackingUri,
    files_of,
    print_reading,
    table_options,
)

if TYPE_CHECKING:
    from isoloop.fitting import Objective, RunTable, SweepFit
    from isoloop.sweeps.runs import TableOptions

Delta = Annotated[float, typer.Option(help="Huber's delta; inf for squared errors.")]
On = Annotated[str, typer.Option(help="Quantity whose residuals are minimised: 'log loss' or 'loss'.")]


def fit(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: TableLaw = None,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
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
    """Fit laws to a table of runs and print the report. It is a sweep's, a file's, or that of an MLflow experiment."""
    from isoloop.fitting import BOOTSTRAP_KINDS

    if bootstrap not in BOOTSTRAP_KINDS:
        raise ValueError(f"--bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {bootstrap!r}; choose one")
    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    files = files_of(target, out, hold_out=hold_out)
    fitted = fit_target(
        files,
        out,
        options,
        law=law,
        hold_out_largest_budget=hold_out,
        draws=draws,
        seed=seed,
        objective=_objective(delta, on),
        kind=bootstrap,
        independent=independent,
    )
    print(fitted.report())
    print(f"stored in {files.fit}; predict with: isoloop predict {files.fit} --flops ...")


def fit_target(
    files: TargetFiles, out: Path, options: "TableOptions", table: "RunTable | None" = None, **settings: Any
) -> "SweepFit":
    """Fit the table of a target, store the fit, and return it.

    Args:
        files: the files of the target.
        out: the output folder.
        options: how to read the table.
        table: the table, if it was read already.
        settings: further arguments of `fit_sweep`.
    """
    from isoloop.fitting import fit_sweep
    from isoloop.sweeps.analysis import store_fit
    from isoloop.sweeps.runs import load_table
    from isoloop.sweeps.tracking.export import write_table

    path = files.check_table("a fit")
    table = table or load_table(files.target, out, options)
    with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
        fitted = fit_sweep(
            table.frame,
            name=files.name,
            profiles=True,
            progress=progress.update,
            reading=table.notes,
            budget_tolerance=options.tolerance,
            **settings,
        )
    if files.in_mlflow:
        write_table(table.frame, path)
    files.fit.parent.mkdir(parents=True, exist_ok=True)
    store_fit(fitted, files.fit)
    return fitted


def stored_fit(files: TargetFiles, out: Path, options: "TableOptions", *, hold_out: bool = False) -> "SweepFit | None":
    """Return the stored fit of a target, None if there is none.

    Raises:
        ValueError: the fit is older than its table, or the table was read in another way.
    """
    from isoloop.fitting import SweepFit
    from isoloop.sweeps.runs import load_table

    if files.table is None or files.folders is not None:
        if options.given or options.tracking_uri:
            given = options.given or "--tracking-uri"
            raise ValueError(
                f"options such as {given} say how a table is read, but {files.target} is a "
                f"{'stored fit' if files.table is None else 'sweep'}; leave them out"
            )
        return SweepFit.read(files.fit)
    files.check_table("a fit")
    if not files.fit.is_file():
        return None
    again = " ".join(["isoloop fit", files.target, *filter(None, [options.given, "--hold-out" if hold_out else ""])])
    stored = SweepFit.read(files.fit)
    if not files.in_mlflow and files.fit.stat().st_mtime < files.table.stat().st_mtime:
        raise ValueError(
            f"a stored fit must be of its table as it is, but {files.table} changed after {files.fit} was made; fit "
            f"it again with: {again}"
        )
    if files.in_mlflow or options.given:
        table = load_table(files.target, out, options)
        if stored.reading[: len(table.notes)] != table.notes or (files.in_mlflow and not _is_copy(files.table, table)):
            way = " ".join(stored.reading) or "nothing had to be guessed"
            raise ValueError(
                f"a stored fit must be of the same table, but {files.fit} is of other runs, or of a table that was "
                f"read in another way ({way}); fit it again with: {again}"
            )
    return stored


def _is_copy(path: Path, table: "RunTable") -> bool:
    """Return True if a file is the copy of a table that was written beside its fit."""
    return path.is_file() and path.read_text(encoding="utf-8") == table.frame.to_csv(index=False)


def predict(
    target: Target,
    out: Out = DEFAULT_OUT,
    mean_recurrence: Annotated[float | None, typer.Option(help="Mean loops in training (mu_rec).")] = None,
    params: Annotated[float | None, typer.Option(help="Parameters (N), for a fit of dense models.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, the training tokens.")] = None,
    flops: Annotated[
        float | None, typer.Option(help="C, the training FLOPs; alone, the best model for them is predicted.")
    ] = None,
    recurrence: Annotated[float | None, typer.Option(help="Loops at test time (T); by default mu_rec.")] = None,
    loss_at_mean: Annotated[
        float | None,
        typer.Option(help="The measured loss at T = mu_rec, nats per token, for a far better prediction at other T."),
    ] = None,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
) -> None:
    """Predict the loss of an untrained model from a stored fit. A table without one is fitted first."""
    from isoloop.fitting import predict as predict_loss

    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    files = files_of(target, out)
    if flops is None and tokens is None:
        raise ValueError(
            "a prediction needs --flops, or --tokens with --mean-recurrence or --params, but got neither; give one"
        )
    fitted = stored_fit(files, out, options)
    if fitted is None:
        fitted = fit_target(files, out, options)
        print(f"No fit of {target} was stored: it was fitted now, with the defaults of 'isoloop fit', as {files.fit}\n")
    prediction = predict_loss(
        fitted,
        mean_recurrence=mean_recurrence,
        params=params,
        tokens=tokens,
        flops=flops,
        recurrence=recurrence,
        loss_at_mean=loss_at_mean,
    )
    print_reading(fitted.reading)
    print(prediction.report().rstrip())


def choose(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: Annotated[list[str], typer.Option("--law", help="A law to compare, or module:Class; by default all.")] = [],  # noqa: B006
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
    hold_out: Annotated[
        list[str],
        typer.Option("--hold-out", help="Rows to hold out: 'largest budget', budget, size or row; can be repeated."),
    ] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Fit each law by L-BFGS from many starts, too.")] = False,
    draws: Refits = 200,
    delta: Delta = 1e-3,
    on: On = "log loss",
) -> None:
    """Compare laws on a table of runs, of looped or of dense models."""
    from isoloop.fitting import choose_table
    from isoloop.sweeps.runs import load_table

    options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
    files_of(target, out).check_table("choose")
    choice = choose_table(
        load_table(target, out, options),
        laws=law,
        by=hold_out,  # type: ignore[arg-type]
        objective=_objective(delta, on),
        draws=draws,
        check=check,
        budget_tolerance=options.tolerance,
    )
    print(choice.report(), end="")


def _objective(delta: float, on: str) -> "Objective":
    from isoloop.fitting import Objective

    return Objective(delta=delta, on=on)  # type: ignore[arg-type]
