"""The figure of rollouts: errors of the laws after training by distance beyond the fitted compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from isoloop.fitting.figures.axes import grid_ticks, mark_handle, place_legend, power_of_ten, series_handle, set_title
from isoloop.fitting.figures.style import INK, run_points, series_styles
from isoloop.fitting.selection.distance import errors_by_distance
from isoloop.fitting.sizes.any_fit import AnyFit

_DODGE = 0.35
"""Width, in octaves, over which the points of one distance are spread, a place for each cutoff."""


def draw_rollouts(axes: Axes, table: pd.DataFrame, fit: AnyFit) -> None:
    """Draw the error of each run above a cutoff, predicted by the laws fitted below it, by distance.

    A series for each cutoff; a loss outside its 95% interval is hollow. A bar marks the mean error, the bias, of each
    distance, and above it stands the share of losses inside their intervals. Raises ValueError without rollouts.
    """
    if fit.rollouts is None or not (errors := errors_by_distance(fit.rollouts.rows)):
        raise ValueError(f"this figure needs rollouts, but there are none: {fit.why_no_rollouts}")
    # The predictions, a series for each cutoff.
    rows = fit.rollouts.rows
    cutoffs = sorted({row.fitted_to for row in rows if row.fitted_to is not None})
    places = np.linspace(-0.5, 0.5, len(cutoffs)) if len(cutoffs) > 1 else np.zeros(1)
    handles: list[Artist] = []
    for cutoff, place, style in zip(cutoffs, places, series_styles(len(cutoffs)), strict=True):
        own = [row for row in rows if row.fitted_to == cutoff]
        outside = [row.interval is not None and not row.interval[0] <= row.measured <= row.interval[1] for row in own]
        for hollow in (False, True):
            part = [row for row, out in zip(own, outside, strict=True) if out is hollow]
            x = [row.beyond * 2 ** (_DODGE * place) for row in part]
            run_points(
                axes,
                x,
                [row.error for row in part],
                [row.run_id for row in part],
                colour=style.colour,
                marker=style.marker,
                hollow=hollow,
                size=3.5,
            )
        handles.append(series_handle(style, power_of_ten(cutoff), line=False))
    # Bias and coverage of each distance.
    axes.axhline(0.0, color=INK, lw=0.8, zorder=1)
    for error in errors:
        ends = error.low * 2 ** (-0.75 * _DODGE), error.high * 2 ** (0.75 * _DODGE)
        axes.hlines(error.bias, *ends, color=INK, lw=1.8, zorder=4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))
    for error in errors:
        text = "" if error.coverage is None else f"{error.coverage:.0%}"
        middle = np.sqrt(error.low * error.high)
        axes.text(middle, 0.99, text, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=7.5)
    # Ticks, labels and legend.
    axes.set_xlim(min(e.low for e in errors) * 2**-0.6, max(e.high for e in errors) * 2**0.6)
    grid_ticks(axes.xaxis, [2.0**octave for octave in range(1, 1 + int(np.ceil(np.log2(errors[-1].high))))])
    axes.set(xlabel="compute (multiples of the largest fitted)", ylabel="predicted / measured - 1 (%)")
    handles.append(mark_handle("mean error (bias)", line="-"))
    if all(error.coverage is None for error in errors):
        handles.append(mark_handle("no intervals: few refits"))
    else:
        handles.append(mark_handle("outside its 95%", marker="o", hollow=True))
        handles.append(mark_handle("at the top: share inside"))
    place_legend(axes, handles, "fitted up to (FLOPs)")
    set_title(axes, "Predicted from smaller budgets", simulated=fit.simulated)
