"""One style for all figures: fonts, colours, markers that are told apart in grey, points that know their run, files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

SUFFIXES = (".png", ".svg", ".pdf")
"""The files that a figure is written to."""
DOTS_PER_INCH = 300

_FILES = {
    # Text stays text, so that it can be searched and read aloud; TrueType is what journals take.
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
"""Matplotlib's settings for every figure. No text is under 7.5 points, so nothing is lost in a column of 3.3 inches."""

INK, ACCENT, BLUE, MUTED = "#222222", "#d55e00", "#0072b2", "#767676"
BAND = 0.18
"""How opaque a 95% band is."""

_LIGHTEST = 0.78
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">", "p", "h", "d")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1, 1.4)), (0, (1, 1.2)), (0, (2.5, 1.2)))
_PLAIN = "+:=@/"
"""What a run's id may hold unquoted, beside letters, digits and _.-~."""
_METADATA: dict[str, dict[str, None] | None] = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True, kw_only=True)
class SeriesStyle:
    """How one of several series looks: any two neighbours differ in marker and line, so colour isn't needed."""

    colour: Any
    marker: str
    line: Any


def series_styles(count: int) -> list[SeriesStyle]:
    """The looks of `count` series in their order: darker colours first, which grey and the colour-blind keep."""
    return [
        SeriesStyle(colour=colour, marker=_MARKERS[i % len(_MARKERS)], line=_LINES[i % len(_LINES)])
        for i, colour in enumerate(ordered_colours(count))
    ]


def ordered_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Ordered colours, dark to light, that keep their order in grey and for the colour-blind; none is too pale."""
    return [tuple(colour) for colour in mpl.colormaps["viridis"](np.linspace(0.0, _LIGHTEST, max(count, 1)))][:count]


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
    label: str | None = None,
    zorder: float = 3.0,
) -> Line2D:
    """Draw a marker for each run; in SVG, the group of markers tells which run each is of.

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
        label: for the legend.
        zorder: what is drawn above what.

    Raises:
        ValueError: the three differ in length.
    """
    across, up, ids = np.asarray(x, dtype=float), np.asarray(y, dtype=float), list(run_ids)
    if not len(across) == len(up) == len(ids):
        raise ValueError(
            f"points need a run each, but got {len(across)} x, {len(up)} y and {len(ids)} runs; give one of each"
        )
    there = np.isfinite(across) & np.isfinite(up)
    (line,) = axes.plot(
        across[there],
        up[there],
        ls="",
        marker=marker,
        ms=size,
        color=colour,
        mfc="white" if hollow else colour,
        mec=colour,
        mew=1.1 if hollow else 0.5,
        label=label,
        zorder=zorder,
    )
    line.set_gid(run_group([run_id for run_id, kept in zip(ids, there, strict=True) if kept]))
    return line


def plain(text: str) -> str:
    """A name as it is: matplotlib takes what stands between two dollar signs for mathematics."""
    return text.replace("$", r"\$")


def run_group(run_ids: Sequence[str]) -> str:
    """The SVG id of a group of points that stand for these runs."""
    return "runs:" + ",".join(quote(str(run_id), safe=_PLAIN) for run_id in run_ids)


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, ...]:
    """Write `name`.png (300 dots per inch), .svg and .pdf into `folder`; the same figure gives the same bytes.

    Args:
        figure: drawn under `matplotlib.rc_context(STYLE)`.
        folder: made where it isn't there.
        name: of the files, without suffix.

    Returns:
        The paths, in the order of `SUFFIXES`.
    """
    return tuple(save_figure_as(figure, Path(folder) / f"{name}{suffix}") for suffix in SUFFIXES)


def save_figure_as(figure: Figure, path: str | Path) -> Path:
    """Write one file, by its suffix; see `save_figure`. Raises ValueError for a suffix that isn't in `SUFFIXES`."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a figure's file must end in {', '.join(SUFFIXES)}, but got {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_FILES):
        # No date: the same figure gives the same file.
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=_METADATA[path.suffix])
    return path
