"""Legends beside the axes, never on the data, titles that fit, and figures high enough for both."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from fitting.figure_style import BAND, INK, SeriesStyle

_WIDE = 3.4
"""From so many inches on, axes have room for a legend at their right."""
_CHARACTER = 0.56
"""Width of a character as a share of the font's size, on average."""
_SPARE = 4.0
_MARGIN = 0.3
"""Inches."""


def place_legend(axes: Axes, handles: Sequence[Artist], title: str | None = None, *, aside: float = 6.0) -> Legend:
    """A legend to the right of wide axes, below narrow ones; `aside` points further right than the axes' edge.

    The axes' figure must have a layout that makes room for it: `Figure(layout="constrained")`.
    """
    text = _points(mpl.rcParams["legend.fontsize"])
    wide = _inches(axes) >= _WIDE
    lines = [line for handle in handles for line in str(handle.get_label()).splitlines()]
    # Of a formula, what stands for a letter counts as one.
    longest = max(len(re.sub(r"\\[a-z]+|[${}\\^_]", "", line)) for line in lines)
    if wide:
        shift, place, anchor, columns = (aside, 0.0), "center left", (1.0, 0.5), 1
    else:
        # Beneath the tick labels and the axis label, which have their sizes in points.
        under = 1.2 * _points(mpl.rcParams["xtick.labelsize"]) + 1.3 * _points(axes.xaxis.label.get_fontsize()) + 13
        shift, place, anchor = (0.0, -under), "upper center", (0.5, 0.0)
        column = text * (_CHARACTER * longest + 4.4)
        columns = max(1, min(3, int(1.2 * 72 * _inches(axes) / column), len(handles)))
    offset = ScaledTranslation(shift[0] / 72, shift[1] / 72, axes.figure.dpi_scale_trans)
    legend = axes.legend(
        handles=list(handles),
        title=title,
        loc=place,
        bbox_to_anchor=anchor,
        bbox_transform=axes.transAxes + offset,
        ncols=columns,
        borderaxespad=0.0,
        alignment="left",
    )
    legend.set_zorder(6)
    return legend


def series_handle(style: SeriesStyle, label: str, *, line: bool = True, hollow: bool = False) -> Line2D:
    """A legend's entry for one series."""
    return Line2D(
        [],
        [],
        color=style.colour,
        marker=style.marker,
        ls=style.line if line else "",
        mfc="white" if hollow else style.colour,
        mec=style.colour,
        label=label,
    )


def mark_handle(label: str, *, marker: str = "", line: str = "", colour: object = INK, hollow: bool = False) -> Line2D:
    """A legend's entry for a marker or a line that stands for itself."""
    face = "white" if hollow else colour
    return Line2D([], [], color=colour, marker=marker, ls=line, mfc=face, mec=colour, label=label)


def bar_handle(label: str, *, colour: object = INK) -> Line2D:
    """A legend's entry for error bars."""
    return Line2D([], [], color=colour, ls="", marker="|", ms=8, mew=1.2, label=label)


def band_handle(label: str, *, colour: object = INK) -> Patch:
    """A legend's entry for a band."""
    return Patch(facecolor=colour, alpha=BAND, lw=0, label=label)


def set_title(axes: Axes, text: str, *, simulated: bool) -> None:
    """The title, at the left and in as many lines as the axes' width needs; simulated runs are said to be."""
    said = f"{text} (simulated)" if simulated else text
    room = int(72 * _inches(axes) / (0.6 * _points(axes.title.get_fontsize())))
    axes.set_title(textwrap.fill(said, max(room, 12)), loc="left", color=INK)


def fit_height(figure: Figure, least: float, shape: float) -> None:
    """Make a figure with a constrained layout as high as its titles and legends need for axes of a good shape.

    The figure is `least` inches high at least, and axes `shape` times as high as wide.
    """
    figure.set_figheight(least + _SPARE)
    figure.draw_without_rendering()
    height = least
    for axes in figure.axes:
        box, spec = axes.get_window_extent(), axes.get_subplotspec()
        rows = spec.get_gridspec().nrows if spec is not None else 1
        spare = rows * (box.height - shape * box.width) / figure.dpi
        height = max(height, figure.get_figheight() - spare)
        legend = axes.get_legend()
        if legend is not None:
            height = max(height, legend.get_window_extent().height / figure.dpi + _MARGIN)
    figure.set_figheight(height)


def _inches(axes: Axes) -> float:
    return float(axes.get_window_extent().width / axes.figure.dpi)


def _points(size: Any) -> float:
    return float(FontProperties(size=size).get_size_in_points())
