"""The commands `isoloop fit`, `choose` and `predict`: from a run table to laws to predictions. Parse, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import DEFAULT_DRAWS, DEFAULT_LAW, DEFAULT_OUT, Draws, Out, Target, TrainingLaw
from isoloop.sweeps.paths import folders_of

if TYPE_CHECKING:
    from isoloop.fitting import Objective

Delta = Annotated[float, typer.Option(help="Huber's delta; inf for squared error.")]
On = Annotated[str, typer.Option(help="What residuals are of: 'log loss' or 'loss'.")]


def fit(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: TrainingLaw = DEFAULT_LAW,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Keep the largest budget out; report the error there.")
    ] = False,
    draws: Draws = DEFAULT_DRAWS,
    seed: Annotated[int, typer.Option(help="Seed of the refits.")] = 0,
    bootstrap: Annotated[str, typer.Option(help="How tables are redrawn: parametric, rows or budgets.")] = "parametric",
    delta: Delta = 1e-3,
    on: On = "log loss",
    independent: Annotated[bool, typer.Option("--independent", help="Parabolas in log tokens too, apart.")] = False,
) -> None:
    """Fit a sweep's run table, or any run table (.csv or .parquet), and print what was found."""
    from isoloop.fitting import BOOTSTRAP_KINDS, fit_sweep, is_point_table, read_table
    from isoloop.sweeps.analysis import store_fit

    if bootstrap not in BOOTSTRAP_KINDS:
        raise ValueError(f"--bootstrap must be one of {', '.join(BOOTSTRAP_KINDS)}, but got {bootstrap!r}; choose one")
    path = Path(target)
    if path.suffix in {".csv", ".parquet"}:
        if is_point_table(path):
            raise ValueError(f"a fit takes a run table, but {path} holds dense models: use 'isoloop choose {path}'")
        table_path, name = path, path.stem
        stored = path.with_name(f"{path.stem}.{'hold-out' if hold_out else 'fit'}.json")
    else:
        folders = folders_of(target, out)
        table_path, name, stored = folders.table, folders.name, folders.fit(hold_out=hold_out)
    table = read_table(table_path)
    with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
        found = fit_sweep(
            table,
            name=name,
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
    store_fit(found, stored)
    print(found.report())
    print(f"stored in {stored}; ask it with: isoloop predict {stored} --flops ...")


def choose(
    target: Target,
    out: Out = DEFAULT_OUT,
    law: Annotated[list[str], typer.Option("--law", help="A law to compare, or module:Class; all if left out.")] = [],  # noqa: B006
    experiment: Annotated[str | None, typer.Option(help="Keep the rows with this in the column `experiment`.")] = None,
    outliers: Annotated[bool, typer.Option(help="Keep the rows marked in the column `outlier`.")] = True,
    hold_out: Annotated[
        list[str],
        typer.Option("--hold-out", help="What to hold out: 'largest budget', budget, size or row; may be repeated."),
    ] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Fit each law by L-BFGS from many starts as well.")] = False,
    draws: Draws = 200,
    delta: Delta = 1e-3,
    on: On = "log loss",
) -> None:
    """Compare laws on one table: a sweep's, a run table, or one of dense models (params, tokens, loss, budget)."""
    from isoloop.fitting import choose_table, is_point_table

    path = Path(target)
    if path.suffix not in {".csv", ".parquet"}:
        path = folders_of(target, out).table
    if not is_point_table(path) and (experiment is not None or not outliers):
        raise ValueError("--experiment and --no-outliers are for tables of dense models, but this is a run table")
    found = choose_table(
        path,
        laws=law,
        experiment=experiment,
        outliers=outliers,
        by=hold_out,  # type: ignore[arg-type]
        objective=_objective(delta, on),
        draws=draws,
        check=check,
    )
    print(found.report(), end="")


def predict(
    target: Target,
    out: Out = DEFAULT_OUT,
    mean_recurrence: Annotated[float | None, typer.Option(help="µ_rec, mean loops in training.")] = None,
    tokens: Annotated[float | None, typer.Option(help="D, training tokens.")] = None,
    flops: Annotated[float | None, typer.Option(help="C, training FLOPs; alone, it asks for the best model.")] = None,
    recurrence: Annotated[float | None, typer.Option(help="T, loops at test time; µ_rec if left out.")] = None,
    loss_at_mean: Annotated[
        float | None, typer.Option(help="The loss measured at T = µ_rec, nats per token: predicts other T far closer.")
    ] = None,
) -> None:
    """Predict the loss of a model nobody has trained, from a stored fit."""
    from isoloop.fitting import SweepFit
    from isoloop.fitting import predict as predict_loss

    path = Path(target)
    stored = SweepFit.read(path if path.suffix == ".json" else folders_of(target, out).fit(hold_out=False))
    print(
        predict_loss(
            stored,
            mean_recurrence=mean_recurrence,
            tokens=tokens,
            flops=flops,
            recurrence=recurrence,
            loss_at_mean=loss_at_mean,
        )
        .report()
        .rstrip()
    )


def _objective(delta: float, on: str) -> "Objective":
    from isoloop.fitting import Objective

    return Objective(delta=delta, on=on)  # type: ignore[arg-type]
