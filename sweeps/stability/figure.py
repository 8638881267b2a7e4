"""The figure of a stability study: ρ(Ā) and ‖h_T‖ over training, a column for each variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from isoloop.fitting.figures.axes import mark_handle
from isoloop.fitting.figures.style import INK, STYLE, SeriesStyle, escape_dollars, save_figure, series_styles
from isoloop.sweeps.stability.study import LoggedCurve, StabilityRun, StabilityStudy

_RADIUS_LIMITS, _NORM_LIMITS = (0.1, 100.0), (0.1, 1e10)
_END_MARKS: dict[str, dict[str, Any]] = {
    "diverges": {"marker": "x", "ms": 7, "mew": 1.8},
    "spikes": {"marker": "o", "ms": 4.5, "mfc": "white"},
}


def save_stability(study: StabilityStudy, folder: str | Path) -> tuple[Path, ...]:
    """Draw the study into `folder` as PNG, SVG and PDF, and return the paths."""
    # A line has hundreds of points; steps under half a pixel are left out.
    with mpl.rc_context({**STYLE, "path.simplify_threshold": 0.5}):
        figure = Figure(figsize=(1.9 * len(study.variants) + 1.3, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw_stability(figure, study)
        return save_figure(figure, folder, "stability")


def draw_stability(figure: Figure, study: StabilityStudy) -> None:
    """Draw ρ(Ā) above and ‖h_T‖ below on log axes: a column for each variant, a line style for each learning rate.

    A dashed line marks ρ(Ā) = 1; ‖h_T‖ is the mean over the batch's tokens. As a line is one run, there are no
    intervals.
    """
    grid = figure.subplots(2, len(study.variants), sharex=True, sharey="row", squeeze=False)
    styles = dict(zip(study.learning_rates, series_styles(len(study.learning_rates)), strict=True))
    for column, variant in enumerate(study.variants):
        runs = [run for run in study.runs if run.variant == variant]
        upper, lower = grid[0][column], grid[1][column]
        _draw_curves(upper, runs, styles, lambda curve: curve.spectral_radii, _RADIUS_LIMITS)
        upper.axhline(1.0, color=INK, lw=0.9, ls="--", zorder=1.5)
        upper.set_title(escape_dollars(variant), loc="left", color=INK)
        upper.set_ylabel("spectral radius ρ(Ā) (per loop)")
        _draw_curves(lower, runs, styles, lambda curve: curve.state_norms, _NORM_LIMITS)
        lower.set(xlabel="step (updates)", ylabel=r"state $\Vert h_T \Vert$ (no unit)")
        for axes in (upper, lower):
            axes.label_outer()
    handles = [mark_handle(f"{rate:g}", line=style.line, colour=style.colour) for rate, style in styles.items()]
    handles += [mark_handle("diverges", marker="x"), mark_handle("spikes", marker="o", hollow=True)]
    figure.legend(handles=handles, title="learning rate\n(a line is one run)", loc="outside right center")


def _draw_curves(
    axes: Axes,
    runs: list[StabilityRun],
    styles: Mapping[float, SeriesStyle],
    values_of: Callable[[LoggedCurve], tuple[float, ...]],
    limits: tuple[float, float],
) -> None:
    """Draw a line for each run, with a mark at its end if the run diverges or spikes.

    Values beyond the limits, infinite ones too, are drawn at the axes' edge, so that a line's end stays in sight.
    """
    bottom, top = limits
    for run in runs:
        values = [min(max(value, bottom), top) if isfinite(value) else top for value in values_of(run.curve)]
        if not values:
            continue
        style = styles[run.learning_rate]
        axes.plot(run.curve.steps, values, color=style.colour, ls=style.line, lw=1.1)
        if run.outcome in _END_MARKS:
            end = run.curve.steps[-1], values[-1]
            axes.plot(*end, ls="", color=style.colour, zorder=4, clip_on=False, **_END_MARKS[run.outcome])
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
