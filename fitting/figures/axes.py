"""Ticks that never overlap: on a log axis, as many labels as there is room for at the size that is drawn."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, Locator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from isoloop.fitting.figures.style import BAND, INK, SeriesStyle

Candidates = Callable[[float, float], list[list[float]]]
"""Lists of ticks between two limits, the one to try first in front."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CHARACTER = 0.62
"""Width of a character as a share of the font's size, a wide one's."""
_LINE, _ROW = 1.35, 1.05
"""Heights of a label as shares of the font's size: with air about it, and without."""
_STEPS = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
_ENOUGH = 9


def power_of_ten(value: float) -> str:
    """A positive number as text: 10¹⁸, 6.4×10¹⁹."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = f"{value / 10.0**exponent:.3g}"
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return power if factor == "1" else f"{factor}×{power}"


def grid_ticks(axis: Axis, values: Sequence[float] | np.ndarray) -> None:
    """A log axis with ticks at `values` (positive), those with room for their label: powers of two before others."""
    distinct = sorted({float(value) for value in values})
    first = sorted(distinct, key=lambda value: (not np.log2(value).is_integer(), value))
    _log_axis(axis, lambda low, high: [first], lambda value: f"{value:g}", all_or_none=False)


def decade_ticks(axis: Axis, *, text: Callable[[float], str] = power_of_ten) -> None:
    """A log axis with ticks at round numbers, as fine as there is room for."""
    _log_axis(axis, _round_numbers, text, all_or_none=True)


def row_ticks(axis: Axis, labels: Mapping[float, str]) -> None:
    """A linear axis with the labels at their places, from the top down those that have room."""
    places = sorted(labels, reverse=True)

    def text(value: float) -> str:
        return labels.get(value, "")

    axis.set_major_locator(_RoomyLocator(axis, lambda low, high: [places], text, at=lambda value: value, line=_ROW))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _log_axis(axis: Any, candidates: Candidates, text: Callable[[float], str], *, all_or_none: bool) -> None:
    # Setting the scale puts its own locators in place, so it comes first.
    axis.axes.set_xscale("log") if axis is axis.axes.xaxis else axis.axes.set_yscale("log")
    axis.set_major_locator(_RoomyLocator(axis, candidates, text, all_or_none=all_or_none))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


class _RoomyLocator(Locator):
    """Of several lists of ticks the first whose labels all have room; or of one list, those that have."""

    def __init__(
        self,
        axis: Any,
        candidates: Candidates,
        text: Callable[[float], str],
        *,
        all_or_none: bool = False,
        at: Callable[[float], float] = math.log,
        line: float = _LINE,
    ) -> None:
        self.of, self.across = axis, axis is axis.axes.xaxis
        self.candidates, self.text, self.all_or_none = candidates, text, all_or_none
        self.at, self.line = at, line

    def __call__(self) -> list[float]:
        """The ticks at the axis's present limits and size."""
        low, high = sorted(self.of.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The ticks between two limits."""
        window = self.of.axes.get_window_extent()
        points = (window.width if self.across else window.height) * 72 / self.of.axes.figure.dpi
        low, high = self.at(vmin), self.at(vmax)
        per_unit, rounding = points / (high - low), 1e-9 * (high - low)
        kept: list[float] = []
        for values in self.candidates(vmin, vmax):
            inside = [value for value in values if low - rounding <= self.at(value) <= high + rounding]
            kept = []
            for value in inside:
                if all(abs(self.at(value) - self.at(other)) * per_unit >= self._room(value, other) for other in kept):
                    kept.append(value)
            if not self.all_or_none or len(kept) == len(inside):
                break
        return sorted(kept)

    def _room(self, one: float, other: float) -> float:
        """Points between the centres of two labels, at least."""
        size = float(self.of.get_major_ticks(1)[0].label1.get_size())
        if not self.across:
            return self.line * size
        return _CHARACTER * size * (len(self.text(one)) + len(self.text(other))) / 2 + 0.4 * size


def _round_numbers(low: float, high: float) -> list[list[float]]:
    """Lists of round numbers between two positive ones, the finest that isn't too many first."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    lists = [[float(f"{step}e{power}") for power in range(first, last + 1) for step in steps] for steps in _STEPS]
    lists += [[10.0**power for power in range(first, last + 1) if power % every == 0] for every in (2, 3, 5, 10)]
    inside = [[value for value in values if low <= value <= high] for values in lists]
    return [values for values in inside if len(values) <= _ENOUGH] or [inside[-1]]


# MERGED figure_legend
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
