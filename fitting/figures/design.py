"""A figure of a design: the runs of each round among the candidates."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
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
    """Return a figure of the candidates (dots) and the chosen runs (marks by round, larger for several seeds).

    Several sizes have a panel each, one above the other, the largest first.
    """
    cells = design.candidates
    sizes = list(dict.fromkeys(cells.sizes))[::-1] or [""]
    figure = Figure(figsize=(5.5, 3.4 if len(sizes) == 1 else 1.2 + 1.5 * len(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sizes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, size in zip(panels, sizes, strict=True):
        _draw_cells(axes, design, np.array([name == size for name in cells.sizes or [""] * len(cells.values)]))
        value_ticks(axes.yaxis, axis, cells.values)
        axes.set_ylabel(AXES[axis].label if not size else f"{size}: {AXES[axis].symbol} ({AXES[axis].unit})")
    decade_ticks(panels[-1].xaxis)
    panels[-1].set_xlabel("FLOPs of a run")
    panels[0].set_title(f"Runs for {', '.join(map(str, design.targets))}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _draw_cells(axes: Axes, design: Design, of_panel: np.ndarray) -> None:
    """Draw the candidates at the flags `of_panel` (cells,), and the runs of each round among them."""
    cells = design.candidates
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.scatter(
        cells.flops[of_panel], cells.values[of_panel], s=2, color=INK, alpha=0.35, linewidths=0, label="candidates"
    )
    styles = series_styles(len(design.rounds))
    for number, (played, style) in enumerate(zip(design.rounds, styles, strict=True), start=1):
        chosen = np.flatnonzero(played.counts * of_panel)
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
