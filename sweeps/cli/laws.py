"""The commands `isoloop fit`, `predict` and `choose`: from a table of runs to laws and predictions."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import as_printed, show_progress
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
from isoloop.sweeps.cli.stored_fits import StoredFit, fit_now, fit_target, stored_fit
from isoloop.sweeps.paths import is_table_target

if TYPE_CHECKING:
    import numpy as np

    from isoloop.fitting import AnyFit, Objective
    from isoloop.fitting.estimation.bootstrap import BootstrapKind

Delta = Annotated[float, typer.Option(help="Huber's delta; inf for squared errors.")]
On = Annotated[str, typer.Option(help="Quantity whose residuals are minimised: 'log loss' or 'loss'.")]


Bootstrap = Annotated[
    str | None,
    typer.Option(
        help="Resampling of the table: parametric, rows or budgets; by default rows for dense models, else parametric."
    ),
]


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
    bootstrap: Bootstrap = None,
    delta: Delta = 1e-3,
    on: On = "log loss",
    independent: Annotated[
        bool, typer.Option("--independent", help="Fit separate parabolas in log tokens, too.")
    ] = False,
    mean_recurrence: Annotated[
        float | None,
        typer.Option(help="Mean loops in training (mu) of the one model whose losses at several T a file holds."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print the whole report instead of one screen of it.")] = False,
) -> None:
    """Fit scaling laws to a table of runs, and print the answer.

    One screen holds the answer, the parameters and what to doubt. The table is a sweep's, a file's, or that
    of an MLflow experiment.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Reading the table")
        import numpy as np

        from isoloop.fitting import fit_curve
        from isoloop.fitting.report.layout import columns_of
        from isoloop.fitting.report.screen import COLUMNS, LINES

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        files = files_of(target, out, hold_out=hold_out)
        curve = None if options.given else _curve_of(files)
    if curve is not None:
        if mean_recurrence is not None:
            curve["mean_recurrence"] = np.full(len(curve["loss"]), mean_recurrence)
        print(fit_curve(curve, draws=draws, seed=seed, objective=_objective(delta, on)).report(), end="")
        return
    if mean_recurrence is not None:
        raise ValueError(
            f"--mean-recurrence is for a file with the losses of one model at several T (recurrence and loss), but "
            f"{target} is a table of runs; leave it out"
        )
    stored = fit_target(
        files,
        out,
        options,
        law=law,
        hold_out_largest_budget=hold_out,
        draws=draws,
        seed=seed,
        objective=_objective(delta, on),
        kind=_bootstrap_kind(bootstrap),
        independent=independent,
    )
    ending = [*_quality_lines(stored.fit), *_where_stored(stored), f"next: {_next_command(stored, files)}"]
    # A path that is longer than a line takes several of the screen.
    rows = sum(math.ceil(columns_of(as_printed(line)) / COLUMNS) for line in ending)
    if full:
        print(stored.fit.report())
    else:
        print(stored.fit.summary(lines=LINES - rows - 1, printable=as_printed))
    print("\n".join(ending))


def _curve_of(files: TargetFiles) -> "dict[str, np.ndarray] | None":
    """Return the losses of one model at several T, None if the target is not a file with such losses alone."""
    from isoloop.fitting.curve import curve_columns
    from isoloop.fitting.tables.reading import read_raw

    if not is_table_target(files.target) or not Path(files.target).is_file():
        return None
    return curve_columns(read_raw(files.target).frame)


def _quality_lines(fit: "AnyFit") -> list[str]:
    """Return the line about the benchmark scores of the table; none if it has none."""
    if fit.quality is None:
        return []
    fitted, refused = ([score.label for score in part] for part in (fit.quality.fitted, fit.quality.refused))
    parts = [f"no prediction of {_few(refused)} (--full has the reasons)"] if refused else []
    if fitted:
        parts.append(f"isoloop predict gives {_few(fitted)}")
    return [f"quality: {'; '.join(parts)}"]


def _few(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} and {len(labels) - 2} more scores"


def _where_stored(stored: StoredFit) -> list[str]:
    """Return where a fit and its whole report are, and why they are not beside the table."""
    if stored.path is None:
        return [f"not stored: {stored.problem}; give --out a folder of yours"]
    place = f"stored in {stored.path}; the whole report: {stored.path.with_suffix('.txt').name}, or --full"
    return [f"{stored.problem}:", place] if stored.problem else [place]


def _next_command(stored: StoredFit, files: TargetFiles) -> str:
    """Return the command that predicts the best model for a budget beyond the runs."""
    from isoloop.fitting.answer.recommendation import ANSWER_MULTIPLE

    target = files.target if stored.path is None else str(stored.path)
    return shlex.join(["isoloop", "predict", target, "--flops", f"{ANSWER_MULTIPLE * stored.fit.fitted.flops[1]:.3g}"])


def predict(
    target: Target,
    out: Out = DEFAULT_OUT,
    mean_recurrence: Annotated[float | None, typer.Option(help="Mean loops in training (mu_rec).")] = None,
    params: Annotated[
        float | None, typer.Option(help="Parameters (N), for dense models or several sizes; embeddings apart.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Name of a size of a joint fit, such as 370m.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, the training tokens.")] = None,
    flops: Annotated[
        float | None, typer.Option(help="C, the training FLOPs; alone, the best model for them is predicted.")
    ] = None,
    recurrence: Annotated[float | None, typer.Option(help="Loops at test time (T); by default mu_rec.")] = None,
    loss_at_mean: Annotated[
        float | None,
        typer.Option(help="The measured loss at T = mu_rec, nats per token, for a far better prediction at other T."),
    ] = None,
    unique_tokens: Annotated[
        float | None, typer.Option(help="Tokens of the text that there is (U): more are repetitions.")
    ] = None,
    columns: Columns = None,
    mapping: MapFile = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    outliers: Outliers = True,
    budget_tolerance: BudgetTolerance = None,
) -> None:
    """Predict the loss of a model that nobody has trained. A table that has no fit yet is fitted first."""
    with show_progress(transient=True) as progress:
        progress.begin("Reading the fit")
        from isoloop.fitting import fit_curve, predict_any

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        files = files_of(target, out)
        curve = None if options.given else _curve_of(files)
        fitted = None if curve is not None else stored_fit(files, out, options)
    if curve is not None:
        if recurrence is None or any(value is not None for value in (mean_recurrence, params, size, tokens, flops)):
            raise ValueError(
                f"{target} holds the losses of one model at several T, which predict its loss at another T alone; "
                "give --recurrence T and no other model"
            )
        print(fit_curve(curve).prediction(recurrence), end="")
        return
    if flops is None and tokens is None:
        raise ValueError(
            "a prediction needs --flops, or --tokens with --mean-recurrence or --params, but got neither; give one"
        )
    if fitted is None:
        fitted, made = fit_now(files, out, options)
        print(made, end="")
    prediction = predict_any(
        fitted,
        size=size,
        mean_recurrence=mean_recurrence,
        params=params,
        tokens=tokens,
        flops=flops,
        recurrence=recurrence,
        loss_at_mean=loss_at_mean,
        unique_tokens=unique_tokens,
    )
    print_reading(fitted.reading)
    print(prediction.report().rstrip())
    if fitted.quality is not None:
        print(fitted.quality.predict(prediction).report().rstrip())
        if recurrence not in (None, prediction.mean_recurrence):
            print("  Note: the runs' scores are those at T = mu, and the loss is that at another T.")


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
        typer.Option(
            "--hold-out",
            help="Rows to hold out: 'larger budgets', 'largest budget', budget, size or row; can be repeated.",
        ),
    ] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Fit each law by L-BFGS from many starts, too.")] = False,
    draws: Refits = 200,
    bootstrap: Bootstrap = None,
    delta: Delta = 1e-3,
    on: On = "log loss",
) -> None:
    """Compare laws by how well they predict a table's runs. The models may be looped or dense."""
    with show_progress(transient=True) as progress:
        progress.begin("Reading the table")
        from isoloop.fitting import choose_table
        from isoloop.sweeps.runs import load_table

        options = table_options(columns, mapping, tracking_uri, experiment, outliers, budget_tolerance)
        files_of(target, out).check_table("choose")
        table = load_table(target, out, options)
        progress.begin("Comparing laws")
        choice = choose_table(
            table,
            laws=law,
            by=hold_out,  # type: ignore[arg-type]
            objective=_objective(delta, on),
            draws=draws,
            kind=_bootstrap_kind(bootstrap),
            check=check,
            budget_tolerance=options.tolerance,
            progress=progress.update,
        )
    print(choice.report(), end="")


def _bootstrap_kind(bootstrap: str | None) -> "BootstrapKind | None":
    """Return the kind of bootstrap of an option. Raises ValueError for another one."""
    from isoloop.fitting import BOOTSTRAP_KINDS

    if bootstrap is not None and bootstrap not in BOOTSTRAP_KINDS:
        raise ValueError(f"--bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {bootstrap!r}; choose one")
    return bootstrap  # type: ignore[return-value]


def _objective(delta: float, on: str) -> "Objective":
    from isoloop.fitting import Objective

    return Objective(delta=delta, on=on)  # type: ignore[arg-type]
