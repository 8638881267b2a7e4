"""A figure of a design: the runs of each round among the candidates."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.design.design import Design
from isoloop.fitting.figures.axes import decade_ticks, value_ticks
from isoloop.fitting.figures.style import INK, STYLE, save_figure_as, series_styles

_AREA = 28.0
"""Area of the mark of one run, in square points; further runs of a cell add to it."""


def save_design(design: Design, path: str | Path, *, axis: str) -> Path:
    """Draw the runs of a design into a file of the kind that its suffix names; return the path."""
    with mpl.rc_context(STYLE):
        return save_figure_as(design_figure(design, axis=axis), path)


def design_figure(design: Design, *, axis: str) -> Figure:
    """Return a figure of the candidates (dots) and the chosen runs (marks by round, larger for several seeds)."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, cells = figure.add_subplot(), design.candidates
    axes.scatter(cells.flops, cells.values, s=2, color=INK, alpha=0.35, linewidths=0, label="candidates")
    for number, (played, style) in enumerate(
        zip(design.rounds, series_styles(len(design.rounds)), strict=True), start=1
    ):
        chosen = np.flatnonzero(played.counts)
        # Later rounds lie on top of earlier ones, so they are smaller.
        area = _AREA * played.counts[chosen] / number
        axes.scatter(
            cells.flops[chosen],
            cells.values[chosen],
            s=area,
            color=style.colour,
            marker=style.marker,
            label=f"round {number}: {played.counts.sum()} runs",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    decade_ticks(axes.xaxis)
    value_ticks(axes.yaxis, axis, cells.values)
    axes.set_xlabel("FLOPs of a run")
    axes.set_ylabel(AXES[axis].label)
    axes.set_title(f"Runs for {', '.join(map(str, design.targets))}")
    figure.legend(loc="outside right upper")
    return figure
