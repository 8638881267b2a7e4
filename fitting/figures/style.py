"""The style of all figures: fonts, colours, markers that differ in grey, points marked with their run, and files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

SUFFIXES = (".png", ".svg", ".pdf")
"""Suffixes of the files that a figure is written to."""
DOTS_PER_INCH = 300
MOST_SHAPES = 2000
"""Number of a figure's points, or of its bars, above which SVG and PDF hold them as one image, not as shapes."""

_FILES = {
    # Text stays text, so that it can be searched and read aloud; journals ask for TrueType.
    "svg.fonttype": "none",
    "svg.hashsalt": "isoloop",
    "pdf.fonttype": 42,
}
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    **_FILES,
}
"""Matplotlib's settings for every figure. No text is under 7.5 points, so all is legible in a column of 3.3 inches."""

INK, ACCENT, BLUE, MUTED = "#222222", "#d55e00", "#0072b2", "#767676"
BAND = 0.18
"""Opacity of a 95% band."""

_LIGHTEST = 0.78
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">", "p", "h", "d")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (1, 1.2)), (0, (2.5, 1.2)))
RUN_GROUP = "runs:"
"""Start of the SVG id of a group of points that stand for runs."""
RUN_LINE = "run:"
"""Start of the SVG id of a line that stands for a run."""
_UNQUOTED = "+:=@/"
"""Characters of a run's id that aren't percent-encoded, beside letters, digits and _.-~."""
_METADATA: dict[str, dict[str, None] | None] = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True, kw_only=True)
class SeriesStyle:
    """The look of one of several series: neighbours differ in marker and line, so colour isn't needed."""

    colour: Any
    marker: str
    line: Any


def series_styles(count: int) -> list[SeriesStyle]:
    """Return the looks of `count` series from dark to light, an order that grey print and the colour-blind keep."""
    colours = mpl.colormaps["viridis"](np.linspace(0.0, _LIGHTEST, max(count, 1)))[:count]
    return [
        SeriesStyle(colour=tuple(colour), marker=_MARKERS[i % len(_MARKERS)], line=_LINES[i % len(_LINES)])
        for i, colour in enumerate(colours)
    ]


def run_points(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    run_ids: Iterable[str],
    *,
    colour: object,
    marker: str = "o",
    hollow: bool = False,
    size: float = 4.5,
) -> Line2D:
    """Draw a marker for each run; in SVG, the id of the group of markers lists the runs.

    Args:
        axes: where to draw.
        x: a position per run; a run whose position isn't finite is left out.
        y: likewise.
        run_ids: the runs, in order. The SVG group has the id `runs:<id>,<id>,...` with one `<use>` per run in the same
            order. In an id, whatever isn't a letter, digit or one of _.-~+:=@/ is percent-encoded, commas too.
        colour: of the markers.
        marker: matplotlib's name of the shape.
        hollow: white inside.
        size: in points.

    Raises:
        ValueError: the three differ in length.
    """
    across, up, ids = np.asarray(x, dtype=float), np.asarray(y, dtype=float), list(run_ids)
    if not len(across) == len(up) == len(ids):
        raise ValueError(
            f"points need a run each, but got {len(across)} x, {len(up)} y and {len(ids)} runs; give one of each"
        )
    finite = np.isfinite(across) & np.isfinite(up)
    (line,) = axes.plot(
        across[finite],
        up[finite],
        ls="",
        marker=marker,
        ms=size,
        color=colour,
        mfc="white" if hollow else colour,
        mec=colour,
        mew=1.1 if hollow else 0.5,
        zorder=3.0,
    )
    kept = (quote(str(run_id), safe=_UNQUOTED) for run_id, shown in zip(ids, finite, strict=True) if shown)
    line.set_gid(RUN_GROUP + ",".join(kept))
    return line


def run_line(
    axes: Axes, x: ArrayLike, y: ArrayLike, run_id: str, *, colour: object, line: Any = "-", width: float = 1.1
) -> None:
    """Draw a run's line; in SVG, its group has the id `run:<id>`, with the run's id encoded as by `run_points`."""
    (drawn,) = axes.plot(x, y, color=colour, ls=line, lw=width)
    drawn.set_gid(RUN_LINE + quote(run_id, safe=_UNQUOTED))


def rasterize_many(figure: Figure) -> None:
    """Turn a figure's points and bars into images if they are more than `MOST_SHAPES`, without the ids of the runs.

    As shapes, 100,000 of them would take minutes and tens of megabytes. Text, curves and bands stay shapes.
    """
    points = [line for axes in figure.axes for line in axes.lines if str(line.get_gid()).startswith(RUN_GROUP)]
    bars = [each for axes in figure.axes for each in axes.collections if isinstance(each, LineCollection)]
    point_count = sum(np.size(line.get_xdata()) for line in points)
    bar_count = sum(len(each.get_paths()) for each in bars)
    if max(point_count, bar_count) <= MOST_SHAPES:
        return
    for line in points:
        line.set_gid(None)
    for mark in (*points, *bars):
        mark.set_rasterized(True)
        # The axes clip them, so that the layout needn't measure each.
        mark.set_in_layout(False)


def escape_dollars(text: str) -> str:
    """Return a name with its dollar signs escaped: between two of them, matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, ...]:
    """Write `name`.png (300 dots per inch), .svg and .pdf into `folder`; the same figure gives the same bytes.

    Args:
        figure: drawn under `matplotlib.rc_context(STYLE)`.
        folder: made if it doesn't exist.
        name: name of the files, without suffix.

    Returns:
        The paths, in the order of `SUFFIXES`.
    """
    return tuple(save_figure_as(figure, Path(folder) / f"{name}{suffix}") for suffix in SUFFIXES)


def save_figure_as(figure: Figure, path: str | Path) -> Path:
    """Write one file in the format of its suffix, and return its path; see `save_figure`.

    Raises ValueError for a suffix that isn't in `SUFFIXES`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure's file must end in {', '.join(SUFFIXES)}, but got {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_FILES):
        # No date: the same figure gives the same file.
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=_METADATA[path.suffix])
    return path
