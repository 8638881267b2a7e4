"""Any table of runs and any stored fit: of one architecture, or of several sizes together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from isoloop.fitting.answer.predict import Prediction, predict
from isoloop.fitting.quality.fit import fit_quality
from isoloop.fitting.result import FIT_FORMAT, SweepFit, format_of, from_file
from isoloop.fitting.sizes.fit import fit_sizes, several_sizes
from isoloop.fitting.sizes.predict import predict_sizes
from isoloop.fitting.sizes.result import SIZES_FORMAT, SizesFit
from isoloop.fitting.sweep_fit import fit_sweep, split_largest
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.contract import check_runs
from isoloop.fitting.tables.quality import score_columns

AnyFit = SweepFit | SizesFit


def fit_table(table: pd.DataFrame, *, independent: bool = False, **settings: Any) -> AnyFit:
    """Fit a run table: by `fit_sizes` if it holds looped models of several sizes, else by `fit_sweep`.

    If the table has benchmark scores, they are fitted against the loss as well (`fit_quality`), to the same runs.

    Args:
        table: the run table.
        independent: fit parabolas in log(tokens) separately, too; only for one architecture.
        settings: the other arguments of both.

    Raises:
        ValueError: as these do, and for `independent` with several sizes.
    """
    checked = check_runs(table, budget_tolerance=settings.get("budget_tolerance", SAME_BUDGET)).frame
    fit: AnyFit
    if not several_sizes(checked):
        fit = fit_sweep(table, independent=independent, **settings)
    elif independent:
        raise ValueError(
            "separate parabolas in log tokens are fitted to one architecture, but this table has several sizes; leave "
            "them out, or filter the table to one size"
        )
    else:
        fit = fit_sizes(table, **settings)
    if not score_columns(checked.columns):
        return fit
    if fit.held_out is None:
        return replace(fit, quality=fit_quality(checked))
    fitted, held_out, _ = split_largest(checked)
    after_training = fit.method_after_training if isinstance(fit, SweepFit) else f"{fit.laws.name} at T = mu"
    losses = {row.run_id: (row.predicted, row.interval) for row in fit.held_out.rows if row.method == after_training}
    return replace(fit, quality=fit_quality(fitted).with_predicted_losses(held_out, losses))


def read_fit(path: str | Path) -> AnyFit:
    """Return the fit stored at `path`. Raises ValueError if there is none, or the file is something else."""
    return from_file(path, _from_json)


def _from_json(text: str) -> AnyFit:
    stored_format = format_of(text)
    if stored_format == SIZES_FORMAT:
        return SizesFit.from_json(text)
    if stored_format == FIT_FORMAT:
        return SweepFit.from_json(text)
    raise ValueError(
        f"a stored fit must have the format {FIT_FORMAT!r} or {SIZES_FORMAT!r}, but got {stored_format!r}; fit the "
        "sweep again"
    )


def predict_any(fit: AnyFit, *, size: str | None = None, **model: float | None) -> Prediction:
    """Return the prediction of `predict`, or for a joint fit that of `predict_sizes`.

    Raises ValueError as these do, and for the name of a size with a fit of one architecture.
    """
    if isinstance(fit, SizesFit):
        return predict_sizes(fit, size=size, **model)
    if size is not None:
        raise ValueError(
            f"a size can be given for a joint fit over sizes, but {fit.name!r} is a fit of one architecture; leave out "
            f"the size {size}"
        )
    return predict(fit, **model)
