"""Figures of test-time recurrence: the loss of each model at every T, and all models on one curve in T/µ."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from isoloop.fitting.estimation.bootstrap import interval, t_quantile
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.figures.axes import (
    LARGEST,
    band_handle,
    decade_ticks,
    grid_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    series_handle,
    set_title,
)
from isoloop.fitting.figures.style import BAND, INK, run_points, series_styles
from isoloop.fitting.laws.base import Data
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows, test_time_law_data

_SMOOTH_POINTS = 200
_MANY_LOOPS = 1e9


def draw_test_time(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw loss against test-time recurrence for the models of the largest fitted budget, with the fitted curves.

    Without budgets, the models are those of the largest token count. A band is 95% for one loss about its curve, from
    the losses' scatter about it. Raises ValueError without test-time fits.
    """
    if not fit.test_time:
        raise ValueError(f"this figure needs test-time fits, but there are none: {fit.why_missing('test-time')}")
    # The models at the largest budget (or token count).
    runs = finished_rows(table)
    runs = runs[runs["run_id"].isin({model.run_id for model in fit.test_time})]
    column = "budget" if "budget" in runs and runs["budget"].notna().all() else "tokens"
    largest = float(runs[column].max())
    run_ids = set(runs.loc[runs[column] >= 0.99 * largest, "run_id"])
    models = [model for model in fit.test_time if model.run_id in run_ids]
    models.sort(key=lambda model: model.mean_recurrence or 0.0)
    # A curve for each.
    data = test_time_law_data(table)
    handles: list[Artist] = []
    names: set[str] = set()
    for model, style in zip(models, series_styles(len(models)), strict=True):
        rows = data["run_id"] == model.run_id
        recurrence, loss = data["recurrence"][rows], data["loss"][rows]
        smooth = np.geomspace(recurrence.min(), recurrence.max(), _SMOOTH_POINTS)
        law, fixed = _law_of_model(fit, model, {name: values[rows] for name, values in data.items()})
        names.add(law.form.name)
        fitted = law.loss({**fixed, "recurrence": smooth})
        axes.plot(smooth, fitted, color=style.colour, ls=style.line)
        axes.fill_between(smooth, *_one_loss_band(law, fitted), color=style.colour, alpha=BAND, lw=0)
        run_points(axes, recurrence, loss, data["run_id"][rows], colour=style.colour, marker=style.marker, size=4)
        handles.append(series_handle(style, f"µ = {model.mean_recurrence:g}"))
    handles += [mark_handle(f"lines: {', '.join(sorted(names))} law"), band_handle("95% of one loss")]
    grid_ticks(axes.xaxis, np.unique(data["recurrence"]))
    axes.set(xlabel="test-time recurrence T (loops)", ylabel="loss (nats per token)")
    place_legend(axes, handles, "mean recurrence (loops)")
    unit = "FLOPs" if column == "budget" else "tokens"
    set_title(axes, f"Test-time recurrence at {power_of_ten(largest)} {unit}", simulated=fit.simulated)


def draw_test_time_collapse(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw the loss that further loops remove, of every run, against T/µ: one curve if the unified law holds.

    A point is L(T) - L(µ) of a run, so that the run's own noise cancels, plus what the law says that loops remove
    beyond T = µ (up to the best T, where losses rise beyond it). The curve's band is 95%, from the law's refits. Raises
    ValueError without a unified law.
    """
    law = None if fit.unified is None else fit.loops_law("unified")
    if law is None:
        raise ValueError(f"this figure needs the unified law, but there is none: {fit.why_missing('unified')}")
    # A series for each mean recurrence.
    data = test_time_law_data(table)
    loops = data["recurrence"] / data["mean_recurrence"]
    best = _MANY_LOOPS if law is fit.unified or fit.overthinking is None else fit.overthinking.best_ratio
    removable = data["loss"] - data["loss_at_mean"] + _removable_loss(law, law.vector, data, np.ones(1), best)
    recurrences = np.unique(data["mean_recurrence"])
    handles: list[Artist] = []
    for mu, style in zip(recurrences, series_styles(len(recurrences)), strict=True):
        rows = data["mean_recurrence"] == mu
        x, y, run_ids = loops[rows], removable[rows], data["run_id"][rows]
        run_points(axes, x, y, run_ids, colour=style.colour, marker=style.marker, size=4)
        handles.append(series_handle(style, f"µ = {mu:g}", line=False))
    # The law with its band.
    smooth = np.geomspace(loops.min(), loops.max(), _SMOOTH_POINTS)
    curve = _removable_loss(law, law.vector, data, smooth, best)
    axes.plot(smooth, curve, color=INK, lw=1.0, zorder=2.5)
    handles.append(mark_handle(f"{law.form.name} law", line="-"))
    if law.draws:
        drawn = _removable_loss(law, law.draw_matrix, data, smooth, best)
        band = [interval(column, float(at), law.widening) for column, at in zip(drawn.T, curve, strict=True)]
        axes.fill_between(smooth, *np.transpose(band), color=INK, alpha=BAND, lw=0, zorder=2)
        handles.append(band_handle("95% of the law"))
    else:
        handles.append(mark_handle("no band: no refits"))
    # Limits, ticks and labels.
    top, bottom = float(max(removable.max(), curve.max())), min(0.0, float(removable.min()))
    margin = 0.06 * (top - bottom)
    axes.set_ylim(bottom - margin, top + margin)
    decade_ticks(axes.xaxis, text="{:g}".format)
    axes.set(xlabel="loops at test time / in training, T/µ (no unit)", ylabel="removable loss (nats per token)")
    place_legend(axes, handles, "mean recurrence (loops)")
    set_title(axes, "Loss that further loops remove", simulated=fit.simulated)


def _one_loss_band(fit: LawFit, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of 95% for one loss about its curve, without the curve's own uncertainty, which isn't stored."""
    half = min(t_quantile(fit.noise_dof) * fit.noise, np.log(LARGEST) if fit.on == "log loss" else LARGEST)
    if fit.on == "log loss":
        return fitted * np.exp(-half), fitted * np.exp(half)
    return fitted - half, fitted + half


def _removable_loss(fit: LawFit, parameters: np.ndarray, data: Data, loops: np.ndarray, best: float) -> np.ndarray:
    """Return the loss that loops from `loops` = T/µ (rows,) up to `best` remove under the unified law: (..., rows).

    It is the same for every model, so the first of `data` serves, with T counted in units of µ.
    """
    model = {name: np.full_like(loops, data[name][0]) for name in fit.form.columns}
    model |= {"mean_recurrence": np.ones_like(loops), "recurrence": loops}
    return fit.form.loss(parameters, model) - fit.form.loss(
        parameters, model | {"recurrence": np.full_like(loops, best)}
    )


def _law_of_model(fit: SweepFit, model: LawFit, data: Data) -> tuple[LawFit, dict[str, np.ndarray]]:
    """Return the law to draw for one model, and its columns but T.

    It is the model's own law; where losses rise with T, one that can follow them.
    """
    rising = fit.overthinking
    own = rising.of_run(model.run_id) if rising else None
    joint = rising.extension("joint-test-time") if rising else None
    if own is None and joint is not None:
        return joint, {name: data[name][:1] for name in ("mean_recurrence", "loss_at_mean")}
    return own or model, {}
