"""Ticks, legends, titles and heights that suit the size at which axes are drawn."""

from __future__ import annotations

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
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from isoloop.fitting.figures.style import BAND, INK, SeriesStyle

LARGEST = 1e100
SMALLEST = 1e-100
"""Largest and smallest number that a figure shows; beyond them the distances on its axes would overflow."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CHARACTER_WIDTH = 0.62
"""Width of a wide character as a share of the font's size."""
_LINE_HEIGHT = 1.2
"""Height of a line of text as a share of the font's size."""
_ROUND_NUMBERS = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
"""Ticks in a decade, the finest first."""
_MOST_TICKS = 9
_WIDE = 3.4
"""Width in inches from which axes have room for a legend at their right."""
_LONG_LABEL = 24
"""Characters of a legend's label from which there is no room for two columns."""
_INITIAL_HEIGHT = 4.0
_LEGEND_MARGIN = 0.3


def check_range(values: np.ndarray, quantity: str) -> None:
    """Check that positive values of a quantity can be drawn: each finite, and between `SMALLEST` and `LARGEST`.

    Raises:
        ValueError: one of them can't; the fit has gone astray.
    """
    outside = values[~((values >= SMALLEST) & (values <= LARGEST))]
    if len(outside):
        raise ValueError(
            f"a figure's values must be between {SMALLEST:g} and {LARGEST:g}, but {quantity} is {outside[0]:.3g} at "
            "one of its points; the fit has gone astray, so read its caveats"
        )


def power_of_ten(value: float) -> str:
    """Return a positive number as text: 10¹⁸, 6.4×10¹⁹."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = f"{value / 10.0**exponent:.3g}"
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return power if factor == "1" else f"{factor}×{power}"


def grid_ticks(axis: Axis, values: Sequence[float] | np.ndarray) -> None:
    """Put an axis on a log scale with as many of the `values` as ticks as there is room for, powers of two first."""
    distinct = sorted({float(value) for value in values})
    _set_log_scale(axis)
    powers_first = sorted(distinct, key=lambda value: (not np.log2(value).is_integer(), value))
    _set_ticks(axis, _ThinningLocator(powers_first, "{:g}".format), "{:g}".format)


def value_ticks(axis: Axis, column: str, values: Sequence[float] | np.ndarray) -> None:
    """Put an axis on a log scale: mean recurrences with each of the `values` as tick, others with round numbers."""
    if column == "mean_recurrence":
        grid_ticks(axis, values)
    else:
        decade_ticks(axis)


def decade_ticks(axis: Axis, *, text: Callable[[float], str] = power_of_ten) -> None:
    """Put an axis on a log scale with round numbers as ticks, as fine as there is room for."""
    _set_log_scale(axis)
    _set_ticks(axis, _RoundNumberLocator(text), text)


def row_ticks(axis: Axis, labels: Mapping[float, str]) -> None:
    """Label rows of a linear axis at their places, from the top down as many as there is room for."""

    def text(value: float) -> str:
        return labels.get(value, "")

    _set_ticks(axis, _ThinningLocator(sorted(labels, reverse=True), text), text)


def _set_log_scale(axis: Any) -> None:
    # Setting the scale puts its own locators in place, so it comes before the ticks.
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")


def _set_ticks(axis: Axis, locator: Locator, text: Callable[[float], str]) -> None:
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


class _RoundNumberLocator(LogLocator):
    """Ticks at round numbers of a log axis, as fine as there is room for their labels."""

    axis: Any

    def __init__(self, text: Callable[[float], str]) -> None:
        super().__init__()
        self.text = text

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the ticks between two limits."""
        decades = abs(np.log10(vmax / vmin))
        powers = 10.0 ** np.floor(np.log10([vmin, vmax]))
        for steps in _ROUND_NUMBERS:
            longest = max((self.text(step * power) for step in steps for power in powers), key=len)
            gap = min(np.diff(np.log10([*steps, 10.0]))) * _length(self.axis) / decades
            if gap >= _room(self.axis, longest, longest) and decades * len(steps) <= _MOST_TICKS:
                break
        # If not even each decade has room, the locator leaves out some.
        self.set_params(subs=steps)
        return super().tick_values(vmin, vmax)


class _ThinningLocator(FixedLocator):
    """Ticks at given places; one whose label has no room beside those before it is left out."""

    axis: Any
    locs: Sequence[float]

    def __init__(self, places: Sequence[float], text: Callable[[float], str]) -> None:
        super().__init__(list(places))
        self.text = text

    def __call__(self) -> list[float]:
        """Return the ticks for the axis's present limits and length."""
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Return the ticks between two limits."""
        scale = self.axis.get_transform()
        low, high = sorted(scale.transform(np.array([vmin, vmax])))
        length = _length(self.axis)
        points = (scale.transform(np.array(self.locs)) - low) * length / (high - low)
        kept: dict[float, float] = {}
        for place, point in zip(self.locs, points, strict=True):
            distances = [
                (abs(point - other), _room(self.axis, self.text(place), self.text(key))) for key, other in kept.items()
            ]
            if -1e-6 <= point <= length + 1e-6 and all(distance >= room for distance, room in distances):
                kept[float(place)] = float(point)
        return sorted(kept)


def _room(axis: Any, label: str, neighbour: str) -> float:
    """Return the least distance of two labels' centres in points."""
    size = float(axis.get_major_ticks(1)[0].label1.get_size())
    if axis.axis_name == "y":
        return _LINE_HEIGHT * size
    return _CHARACTER_WIDTH * size * (len(label) + len(neighbour)) / 2 + 0.4 * size


def place_legend(axes: Axes, handles: Sequence[Artist], title: str | None = None, *, gap: float = 6.0) -> Legend:
    """Place a legend to the right of wide axes, `gap` points away, and below narrow ones.

    The axes' figure must have a layout that makes room for it: `Figure(layout="constrained")`.
    """
    text = _points(mpl.rcParams["legend.fontsize"])
    place: dict[str, Any]
    if _inches(axes) >= _WIDE:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "borderaxespad": gap / text}
    else:
        lines = [line for handle in handles for line in str(handle.get_label()).splitlines()]
        # A command of mathematical text stands for one character.
        longest = max(len(re.sub(r"\\[a-z]+|[${}\\^_]", "", line)) for line in lines)
        labels = 1.2 * _points(mpl.rcParams["xtick.labelsize"]) + 1.3 * _points(axes.xaxis.label.get_fontsize()) + 13
        columns = 1 if longest >= _LONG_LABEL else min(2, len(handles))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": labels / text, "ncols": columns}
    legend = axes.legend(handles=list(handles), title=title, alignment="left", **place)
    legend.set_zorder(6)
    return legend


def mark_handle(label: str, *, marker: str = "", line: Any = "", colour: object = INK, hollow: bool = False) -> Line2D:
    """Return a legend's entry for a marker, a line, or both."""
    face = "white" if hollow else colour
    return Line2D([], [], color=colour, marker=marker, ls=line, mfc=face, mec=colour, label=label)


def series_handle(style: SeriesStyle, label: str, *, line: bool = True, hollow: bool = False) -> Line2D:
    """Return a legend's entry for one series."""
    return mark_handle(label, marker=style.marker, line=style.line if line else "", colour=style.colour, hollow=hollow)


def bar_handle(label: str) -> Line2D:
    """Return a legend's entry for error bars."""
    return Line2D([], [], color=INK, ls="", marker="|", ms=8, mew=1.2, label=label)


def band_handle(label: str) -> Patch:
    """Return a legend's entry for a band."""
    return Patch(facecolor=INK, alpha=BAND, lw=0, label=label)


def set_title(axes: Axes, text: str, *, simulated: bool) -> None:
    """Set a title at the left, in as many lines as the axes' width needs, with a remark if the runs are simulated."""
    characters = int(72 * _inches(axes) / (0.6 * _points(axes.title.get_fontsize())))
    title = textwrap.fill(f"{text} (simulated)" if simulated else text, max(characters, 12))
    axes.set_title(title, loc="left", color=INK)


def fit_height(figure: Figure, least: float, shape: float) -> None:
    """Make a figure with a constrained layout as high as its titles and legends need.

    It becomes `least` inches high or higher, so that its axes are `shape` times as high as wide.
    """
    figure.set_figheight(least + _INITIAL_HEIGHT)
    figure.draw_without_rendering()
    height = least
    for axes in figure.axes:
        box, spec = axes.get_window_extent(), axes.get_subplotspec()
        rows = spec.get_gridspec().nrows if spec is not None else 1
        needed = shape * box.width
        if rows == 1:
            # The label at the left is centred on the axes and may be longer, but must not leave the figure.
            gap = min(box.y0, figure.bbox.height - box.y1)
            needed = max(needed, axes.yaxis.label.get_window_extent().height - 2 * gap)
        surplus = rows * (box.height - needed) / figure.dpi
        height = max(height, figure.get_figheight() - surplus)
        legend = axes.get_legend()
        if legend is not None:
            height = max(height, legend.get_window_extent().height / figure.dpi + _LEGEND_MARGIN)
    figure.set_figheight(height)


def _length(axis: Any) -> float:
    """Return the length of an axis in points."""
    box = axis.axes.get_window_extent()
    return float((box.width if axis.axis_name == "x" else box.height) * 72 / axis.axes.figure.dpi)


def _inches(axes: Axes) -> float:
    return _length(axes.xaxis) / 72


def _points(size: Any) -> float:
    return float(FontProperties(size=size).get_size_in_points())
