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
from isoloop.fitting.figures.style import INK, STYLE, SeriesStyle, escape_dollars, run_line, save_figure, series_styles
from isoloop.sweeps.stability.study import LoggedCurve, StabilityRun, StabilityStudy

STABILITY_CAPTION = (
    "Spectral radius ρ(Ā) and norm of the state ‖h_T‖ over training, by injection. A line is one run, and the dashed "
    "line is ρ(Ā) = 1. A cross marks the end of a run that diverged, a circle that of one whose loss spiked."
)
_RADIUS_LIMITS, _NORM_LIMITS = (0.1, 100.0), (0.1, 1e10)
_STEPS = "step (updates)"
_END_MARKS: dict[str, dict[str, Any]] = {
    "diverges": {"marker": "x", "ms": 7, "mew": 1.8},
    "spikes": {"marker": "o", "ms": 4.5, "mfc": "white"},
}


def save_stability(study: StabilityStudy, folder: str | Path) -> tuple[Path, ...]:
    """Draw the study into `folder` as PNG, SVG and PDF, and return the paths."""
    # A line has hundreds of points; steps under half a pixel are left out.
    with mpl.rc_context({"path.simplify_threshold": 0.5}):
        return save_figure(stability_figure(study, width=usual_width(study)), folder, "stability")


def usual_width(study: StabilityStudy) -> float:
    """Return the width in inches that has room for all variants side by side."""
    return 1.9 * len(study.variants) + 1.3


def stability_figure(study: StabilityStudy, *, width: float) -> Figure:
    """Draw the study: its variants side by side, or below one another if the figure is too narrow for that."""
    stacked = width < usual_width(study)
    with mpl.rc_context(STYLE):
        height = 2.2 * len(study.variants) + 1.0 if stacked else 4.2
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw_stability(figure, study, stacked=stacked)
    return figure


def draw_stability(figure: Figure, study: StabilityStudy, *, stacked: bool = False) -> None:
    """Draw ρ(Ā) above and ‖h_T‖ below on log axes: a column for each variant, a line style for each learning rate.

    A dashed line marks ρ(Ā) = 1; ‖h_T‖ is the mean over the batch's tokens. As a line is one run, there are no
    intervals. `stacked` draws a row for each variant, with ρ(Ā) at the left and the legend below.
    """
    if stacked:
        grid = figure.subplots(len(study.variants), 2, sharex=True, sharey="col", squeeze=False).T
    else:
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
        lower.set_ylabel(r"state $\Vert h_T \Vert$ (no unit)")
        if not stacked:
            lower.set_xlabel(_STEPS)
            upper.label_outer()
            lower.label_outer()
    if stacked:
        for axes in grid[:, -1]:
            axes.set_xlabel(_STEPS)
    handles = [mark_handle(f"{rate:g}", line=style.line, colour=style.colour) for rate, style in styles.items()]
    handles += [mark_handle("diverges", marker="x"), mark_handle("spikes", marker="o", hollow=True)]
    figure.legend(
        handles=handles,
        title="learning rate\n(a line is one run)",
        loc="outside lower center" if stacked else "outside right center",
        ncols=3 if stacked else 1,
    )


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
        run_line(axes, run.curve.steps, values, run.run_id, colour=style.colour, line=style.line)
        if run.outcome in _END_MARKS:
            end = run.curve.steps[-1], values[-1]
            axes.plot(*end, ls="", color=style.colour, zorder=4, clip_on=False, **_END_MARKS[run.outcome])
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
