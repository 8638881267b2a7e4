"""The figure of a stability study: ρ(Ā) and ‖h_T‖ over training, a column for each variant. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from isoloop.fitting.figures.style import INK, STYLE, SeriesStyle, escape_dollars, save_figure, series_styles
from isoloop.sweeps.stability.study import LoggedCurve, StabilityRun, StabilityStudy

NAME = "stability"
_TOP_RADIUS, _TOP_NORM = 100.0, 1e10
_BOTTOM_RADIUS, _BOTTOM_NORM = 0.1, 0.1


def save_stability(study: StabilityStudy, folder: str | Path) -> tuple[Path, ...]:
    """Draw the study into `folder` as PNG, SVG and PDF, and return the paths."""
    # Hundreds of points a line: what is under half a pixel is left out.
    with mpl.rc_context({**STYLE, "path.simplify_threshold": 0.5}):
        figure = Figure(figsize=(1.9 * len(study.variants) + 1.3, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw_stability(figure, study)
        return save_figure(figure, folder, NAME)


def draw_stability(figure: Figure, study: StabilityStudy) -> None:
    """ρ(Ā) above, ‖h_T‖ below, on common log axes: a column for each variant, a look for each learning rate.

    Each line is one run, so it has no interval; the legend says so.
    """
    grid = figure.subplots(2, len(study.variants), sharex=True, sharey="row", squeeze=False)
    styles = dict(zip(study.learning_rates, series_styles(len(study.learning_rates)), strict=True))
    for column, variant in enumerate(study.variants):
        runs = [run for run in study.runs if run.variant == variant]
        draw_spectral_radii(grid[0][column], runs, styles)
        draw_state_norms(grid[1][column], runs, styles)
        grid[0][column].set_title(escape_dollars(variant), loc="left", color=INK)
        for axes in (grid[0][column], grid[1][column]):
            axes.label_outer()
    handles = [
        Line2D([], [], color=style.colour, ls=style.line, lw=1.4, label=f"{rate:g}") for rate, style in styles.items()
    ]
    handles += [
        Line2D([], [], ls="", marker="x", color=INK, ms=6, label="diverges"),
        Line2D([], [], ls="", marker="o", color=INK, mfc="white", ms=4.5, label="spikes"),
    ]
    figure.legend(handles=handles, title="learning rate\n(a line is one run)", loc="outside right center")


def draw_spectral_radii(axes: Axes, runs: list[StabilityRun], styles: Mapping[float, SeriesStyle]) -> None:
    """ρ(Ā) by step, with a line at 1."""
    _draw(axes, runs, styles, lambda curve: curve.spectral_radii, (_BOTTOM_RADIUS, _TOP_RADIUS))
    axes.axhline(1.0, color=INK, lw=0.9, ls="--", zorder=1.5)
    axes.set_ylabel("spectral radius ρ(Ā) (per loop)")


def draw_state_norms(axes: Axes, runs: list[StabilityRun], styles: Mapping[float, SeriesStyle]) -> None:
    """‖h_T‖ by step, the mean over the batch's tokens; what overflows leaves at the top."""
    _draw(axes, runs, styles, lambda curve: curve.state_norms, (_BOTTOM_NORM, _TOP_NORM))
    axes.set_ylabel(r"state $\Vert h_T \Vert$ (no unit)")
    axes.set_xlabel("step (updates)")


def _draw(
    axes: Axes,
    runs: list[StabilityRun],
    styles: Mapping[float, SeriesStyle],
    values_of: Callable[[LoggedCurve], tuple[float, ...]],
    limits: tuple[float, float],
) -> None:
    bottom, top = limits
    for run in runs:
        # What is beyond the axes is drawn at their edge: the line is seen to leave, and its end stays in sight.
        values = [min(max(value, bottom), top) if isfinite(value) else top for value in values_of(run.curve)]
        if not values:
            continue
        style = styles[run.learning_rate]
        colour = style.colour
        axes.plot(run.curve.steps, values, color=colour, ls=style.line, lw=1.1)
        if run.outcome == "diverges":
            axes.plot(run.curve.steps[-1], values[-1], "x", color=colour, ms=7, mew=1.8, zorder=4, clip_on=False)
        elif run.outcome == "spikes":
            axes.plot(run.curve.steps[-1], values[-1], "o", color=colour, mfc="white", ms=4.5, zorder=4, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
