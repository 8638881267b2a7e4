"""Figures of test-time recurrence: the loss of each model at every T, and all of them on one curve in T/µ."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from isoloop.fitting.estimation.bootstrap import interval, t_quantile
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.figures.axes import (
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
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows, test_time_law_data

_CURVE_POINTS = 200


def draw_test_time(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss against test-time recurrence with the fitted curves, for the models of the largest budget or token count.

    The band is the 95% of one loss about its curve, from how the losses scatter about it.

    Raises ValueError without test-time fits.
    """
    if not fit.test_time:
        raise ValueError(f"this figure needs test-time fits, but there are none: {fit.why_missing('test-time')}")
    column, value, run_ids = _largest_fitted(table, fit)
    fits = sorted((one for one in fit.test_time if one.run_id in run_ids), key=lambda one: one.mean_recurrence or 0.0)
    data = test_time_law_data(table)
    handles: list[Artist] = []
    for one, style in zip(fits, series_styles(len(fits)), strict=True):
        mine = data["run_id"] == one.run_id
        recurrence, loss = data["recurrence"][mine], data["loss"][mine]
        smooth = np.geomspace(recurrence.min(), recurrence.max(), _CURVE_POINTS)
        fitted = one.loss({"recurrence": smooth})
        axes.plot(smooth, fitted, color=style.colour, ls=style.line)
        axes.fill_between(smooth, *_scatter(one, fitted), color=style.colour, alpha=BAND, lw=0)
        run_points(axes, recurrence, loss, data["run_id"][mine], colour=style.colour, marker=style.marker, size=4)
        handles.append(series_handle(style, f"µ = {one.mean_recurrence:g}"))
    handles.append(mark_handle("lines: $L_\\infty + Z\\,e^{-zT}$"))
    handles.append(band_handle("95% of one loss"))
    grid_ticks(axes.xaxis, np.unique(data["recurrence"]))
    axes.set(xlabel="test-time recurrence T (loops)", ylabel="loss (nats per token)")
    place_legend(axes, handles, "mean recurrence (loops)")
    unit = "FLOPs" if column == "budget" else "tokens"
    set_title(axes, f"Test-time recurrence at {power_of_ten(value)} {unit}", simulated=fit.simulated)


def draw_test_time_collapse(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """What loops have yet to gain, of every run, against T/µ: one curve, if the unified law holds.

    That is L(T) - L(µ) + Z exp(-z), with the run's own loss at T = µ, so that its luck is out of it; the law says that
    it is Z exp(-z T/µ). The curve's band is 95%, from the law's refits.

    Raises ValueError without a unified law.
    """
    law = fit.unified
    if law is None:
        raise ValueError(f"this figure needs the unified law, but there is none: {fit.why_missing('unified')}")
    data = test_time_law_data(table)
    Z, z = law.value("Z"), law.value("z")
    loops = data["recurrence"] / data["mean_recurrence"]
    left = data["loss"] - data["loss_at_mean"] + Z * np.exp(-z)
    recurrences = np.unique(data["mean_recurrence"])
    handles: list[Artist] = []
    for mu, style in zip(recurrences, series_styles(len(recurrences)), strict=True):
        mine = data["mean_recurrence"] == mu
        # Models of one µ lie on one another.
        run_points(
            axes, loops[mine], left[mine], data["run_id"][mine], colour=style.colour, marker=style.marker, size=4
        )
        handles.append(series_handle(style, f"µ = {mu:g}", line=False))
    smooth = np.geomspace(loops.min(), loops.max(), _CURVE_POINTS)
    axes.plot(smooth, Z * np.exp(-z * smooth), color=INK, lw=1.0, zorder=2.5)
    handles.append(mark_handle("unified: $Z\\,e^{-zT/µ}$", line="-"))
    band = _band(law, smooth)
    if band is None:
        handles.append(mark_handle("no band: no refits"))
    else:
        axes.fill_between(smooth, *band, color=INK, alpha=BAND, lw=0, zorder=2)
        handles.append(band_handle("95% of the law"))
    decade_ticks(axes.xaxis, text=lambda value: f"{value:g}")
    top = float(max(left.max(), Z * np.exp(-z * loops.min())))
    bottom = min(0.0, float(left.min()))
    margin = 0.06 * (top - bottom)
    axes.set_ylim(bottom - margin, top + margin)
    axes.set(xlabel="loops at test time / in training, T/µ (no unit)", ylabel="left to gain (nats per token)")
    place_legend(axes, handles, "mean recurrence (loops)")
    set_title(axes, "What loops have yet to gain", simulated=fit.simulated)


def _scatter(fit: LawFit, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% of one loss about its curve; the curve's own uncertainty isn't stored, and isn't in it."""
    half = t_quantile(fit.freedom) * fit.noise
    if fit.on == "log loss":
        return fitted * np.exp(-half), fitted * np.exp(half)
    return fitted - half, fitted + half


def _band(law: LawFit, loops: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    if not law.draws:
        return None
    names = [parameter.name for parameter in law.parameters]
    Z, z = (law.draw_matrix[:, names.index(name), None] for name in ("Z", "z"))
    around = law.value("Z") * np.exp(-law.value("z") * loops)
    drawn = Z * np.exp(-z * loops)
    ends = [interval(column, float(at), law.widening) for column, at in zip(drawn.T, around, strict=True)]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def _largest_fitted(table: pd.DataFrame, fit: SweepFit) -> tuple[str, float, set[str]]:
    """The largest budget (or token count) with test-time fits, and the runs there."""
    fitted = {one.run_id for one in fit.test_time}
    runs = finished_rows(table)
    runs = runs[runs["run_id"].isin(fitted)]
    column = "budget" if "budget" in runs and runs["budget"].notna().all() else "tokens"
    top = float(runs[column].max())
    return column, top, set(runs.loc[runs[column] >= 0.99 * top, "run_id"])
