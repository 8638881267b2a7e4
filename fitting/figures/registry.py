"""Figures of a fit: table + result -> matplotlib Axes. Nothing is fitted here, and no global state is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from isoloop.fitting.figures.axes import fit_height
from isoloop.fitting.figures.isoflop import draw_isoflop_curves, draw_power_law
from isoloop.fitting.figures.style import STYLE, save_figure
from isoloop.fitting.figures.test_time import draw_test_time, draw_test_time_collapse
from isoloop.fitting.figures.training import (
    draw_held_out_errors,
    draw_loss_contours,
    draw_predicted_against_measured,
    held_out_lines,
)
from isoloop.fitting.result import SweepFit

COLUMN = 3.3
"""Width of a journal's column in inches."""
_SIDE_BY_SIDE = 5.0
"""From so many inches on, two panels stand side by side."""
_LINE_HEIGHT = 0.135
_USUAL_SHAPE = 0.6
"""Height of axes as a share of their width, at least."""
_SHAPES = {"predicted_against_measured": 1.0, "loss_contours": 0.8}
_WIDTHS = (2.5, 20.0)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `draw_all` made: `paths` of the files, and why each other figure was `skipped` (name, reason)."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


def draw_all(table: pd.DataFrame, fit: SweepFit, folder: str | Path) -> Drawn:
    """Draw every figure that has something to show into `folder`, as PNG, SVG and PDF each.

    `table` is the checked table of the fit, held-out runs included.
    """
    paths: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for name in FIGURES:
        reason = nothing_to_show(name, fit)
        if reason:
            skipped.append((name, reason))
        else:
            paths += save_figure(draw_one(name, table, fit), folder, name)
    return Drawn(paths=tuple(paths), skipped=tuple(skipped))


def draw_one(name: str, table: pd.DataFrame, fit: SweepFit, *, width: float | None = None) -> Figure:
    """One figure by its name in `FIGURES`, whole, to be written by `save_figure`.

    Args:
        name: one of `FIGURES`.
        table: the checked table of the fit, held-out runs included.
        fit: what was fitted to it.
        width: in inches; `COLUMN` fits one column of a journal. Texts keep their size, and the height follows.

    Raises:
        ValueError: there is no figure of that name, the fit has nothing for it, or the width is out of range.
    """
    if name not in FIGURES:
        raise ValueError(f"a figure must be one of {', '.join(FIGURES)}, but got {name!r}; choose one")
    if width is not None and not _WIDTHS[0] <= width <= _WIDTHS[1]:
        raise ValueError(
            f"a figure's width must be {_WIDTHS[0]:g} to {_WIDTHS[1]:g} inches, but got {width:g}; a column is {COLUMN}"
        )
    (usual, height), draw = FIGURES[name]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width or usual, height * min(1.0, (width or usual) / usual)), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, table, fit)
        fit_height(figure, figure.get_figheight(), _SHAPES.get(name, _USUAL_SHAPE))
    return figure


def nothing_to_show(name: str, fit: SweepFit) -> str | None:
    """Why the fit has nothing for this figure, None where it has."""
    if name == "isoflop_curves" and fit.isoflop is None:
        return fit.why_missing("isoflop")
    if name == "power_laws" and (fit.isoflop is None or fit.isoflop.mean_recurrence_law is None):
        return fit.isoflop.reason if fit.isoflop else fit.why_missing("isoflop")
    if name in ("loss_contours", "predicted_against_measured") and fit.training is None:
        return fit.why_missing("training")
    if name == "held_out_errors" and not held_out_lines(fit):
        return "no run was held out of this fit, or nothing could predict it"
    if name == "test_time_curves" and not fit.test_time:
        return fit.why_missing("test-time")
    if name == "test_time_collapse" and fit.unified is None:
        return fit.why_missing("unified")
    return None


def draw_power_laws(figure: Figure, table: pd.DataFrame, fit: SweepFit) -> None:
    """Both power laws, recurrence and tokens: side by side on a wide figure, one above the other on a narrow one."""
    if figure.get_figwidth() >= _SIDE_BY_SIDE:
        first, second = figure.subplots(1, 2)
    else:
        first, second = figure.subplots(2, 1)
    draw_power_law(first, table, fit)
    draw_power_law(second, table, fit, tokens=True)


def _one(draw: Callable[[Axes, pd.DataFrame, SweepFit], None]) -> Callable[[Figure, pd.DataFrame, SweepFit], None]:
    return lambda figure, table, fit: draw(figure.add_subplot(), table, fit)


def _held_out_errors(figure: Figure, table: pd.DataFrame, fit: SweepFit) -> None:
    figure.set_figheight(max(figure.get_figheight(), 1.0 + _LINE_HEIGHT * held_out_lines(fit)))
    draw_held_out_errors(figure.add_subplot(), table, fit)


FIGURES: dict[str, tuple[tuple[float, float], Callable[[Figure, pd.DataFrame, SweepFit], None]]] = {
    "isoflop_curves": ((6.0, 3.6), _one(draw_isoflop_curves)),
    "power_laws": ((6.9, 3.4), draw_power_laws),
    "loss_contours": ((6.0, 3.6), _one(draw_loss_contours)),
    "predicted_against_measured": ((5.0, 3.6), _one(draw_predicted_against_measured)),
    "held_out_errors": ((6.0, 3.0), _held_out_errors),
    "test_time_curves": ((6.0, 3.6), _one(draw_test_time)),
    "test_time_collapse": ((6.0, 3.6), _one(draw_test_time_collapse)),
}
"""Every figure by file name: its size in inches and what draws it. Texts are meant to be printed at this size."""

ABOUT: dict[str, str] = {
    "isoflop_curves": "Loss against mean recurrence at each budget, with parabolas and minima.",
    "power_laws": "Best mean recurrence and best tokens against compute, with the fitted power laws.",
    "loss_contours": "Lines of equal loss of the training law over mean recurrence and tokens, and its best split.",
    "predicted_against_measured": "Loss predicted by the training law against the measured one, run by run.",
    "held_out_errors": "Error of each prediction of a run that was held out, and what share lies inside its interval.",
    "test_time_curves": "Loss against loops at test time, with the fit of each model of the largest budget.",
    "test_time_collapse": "What loops have yet to gain against T/µ: one curve for all models, by the unified law.",
}
"""What each figure shows, in a sentence."""
