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

from fitting.figure_style import STYLE, ordered_colours
from sweeps.stability import Curve, StabilityRun, StabilityStudy

NAME = "stability"
SUFFIXES = (".png", ".svg", ".pdf")
_INK = "#222222"
_TOP_RADIUS, _TOP_NORM = 100.0, 1e10
_BOTTOM_RADIUS, _BOTTOM_NORM = 0.1, 0.1
_DATE = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def save_stability(study: StabilityStudy, folder: str | Path) -> tuple[Path, ...]:
    """Draw the study into `folder` as PNG (150 dpi), SVG and PDF, and return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{NAME}{suffix}" for suffix in SUFFIXES)
    # Hundreds of points a line: what is under half a pixel is left out.
    with mpl.rc_context({**STYLE, "path.simplify_threshold": 0.5}):
        figure = Figure(figsize=(2.3 * len(study.variants) + 1.6, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        draw_stability(figure, study)
        for path in paths:
            # No date: the same study gives the same file.
            figure.savefig(path, dpi=150, metadata=_DATE[path.suffix])
    return paths


def draw_stability(figure: Figure, study: StabilityStudy) -> None:
    """ρ(Ā) above, ‖h_T‖ below, on common log axes, a column for each variant and a colour for each learning rate."""
    grid = figure.subplots(2, len(study.variants), sharex=True, sharey="row", squeeze=False)
    colours = dict(zip(study.learning_rates, ordered_colours(len(study.learning_rates)), strict=True))
    for column, variant in enumerate(study.variants):
        runs = [run for run in study.runs if run.variant == variant]
        draw_spectral_radii(grid[0][column], runs, colours)
        draw_state_norms(grid[1][column], runs, colours)
        grid[0][column].set_title(variant, loc="left", color=_INK)
        for axes in (grid[0][column], grid[1][column]):
            axes.label_outer()
    handles = [Line2D([], [], color=colours[rate], lw=1.6, label=f"{rate:g}") for rate in study.learning_rates]
    handles += [
        Line2D([], [], ls="", marker="x", color=_INK, ms=6, label="diverges"),
        Line2D([], [], ls="", marker="o", color=_INK, mfc="white", ms=4.5, label="spikes"),
    ]
    figure.legend(handles=handles, title="learning rate", loc="outside right center")


def draw_spectral_radii(axes: Axes, runs: list[StabilityRun], colours: Mapping[float, tuple[float, ...]]) -> None:
    """ρ(Ā) by step, with a line at 1."""
    _draw(axes, runs, colours, lambda curve: curve.spectral_radii, (_BOTTOM_RADIUS, _TOP_RADIUS))
    axes.axhline(1.0, color=_INK, lw=0.9, ls="--", zorder=1.5)
    axes.set_ylabel("ρ(Ā)")


def draw_state_norms(axes: Axes, runs: list[StabilityRun], colours: Mapping[float, tuple[float, ...]]) -> None:
    """‖h_T‖ by step, the mean over the batch's tokens; what overflows leaves at the top."""
    _draw(axes, runs, colours, lambda curve: curve.state_norms, (_BOTTOM_NORM, _TOP_NORM))
    axes.set_ylabel(r"$\Vert h_T \Vert$")
    axes.set_xlabel("step")


def _draw(
    axes: Axes,
    runs: list[StabilityRun],
    colours: Mapping[float, tuple[float, ...]],
    values_of: Callable[[Curve], tuple[float, ...]],
    limits: tuple[float, float],
) -> None:
    bottom, top = limits
    for run in runs:
        # What is beyond the axes is drawn at their edge: the line is seen to leave, and its end stays in sight.
        values = [min(max(value, bottom), top) if isfinite(value) else top for value in values_of(run.curve)]
        if not values:
            continue
        colour = colours[run.learning_rate]
        axes.plot(run.curve.steps, values, color=colour, lw=1.1)
        if run.outcome == "diverges":
            axes.plot(run.curve.steps[-1], values[-1], "x", color=colour, ms=7, mew=1.8, zorder=4, clip_on=False)
        elif run.outcome == "spikes":
            axes.plot(run.curve.steps[-1], values[-1], "o", color=colour, mfc="white", ms=4.5, zorder=4, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
