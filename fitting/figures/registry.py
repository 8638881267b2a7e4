"""The figures of a fit by name, from a run table and the fit's result. Nothing is fitted for a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.figures.axes import fit_height
from isoloop.fitting.figures.isoflop import draw_isoflop_curves, draw_power_law
from isoloop.fitting.figures.quality import draw_quality_against_flops, draw_quality_against_loss
from isoloop.fitting.figures.rollouts import draw_rollouts
from isoloop.fitting.figures.sizes import draw_frontier, draw_sizes_surface
from isoloop.fitting.figures.style import STYLE, rasterize_many, save_figure
from isoloop.fitting.figures.test_time import draw_test_time, draw_test_time_collapse
from isoloop.fitting.figures.training import (
    draw_held_out_errors,
    draw_loss_contours,
    draw_predicted_against_measured,
    held_out_lines,
)
from isoloop.fitting.result import SweepFit
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.sizes.result import SizesFit

COLUMN_WIDTH = 3.3
"""Width of a journal's column in inches."""
_WIDTHS = (2.5, 20.0)
_SIDE_BY_SIDE_WIDTH = 5.0
"""Width in inches from which two panels stand side by side."""
_HELD_OUT_LINE_HEIGHT = 0.135
"""Height in inches of a line of the held-out errors."""
_MOST_HELD_OUT_LINES = 200


@dataclass(frozen=True, kw_only=True)
class FigureFiles:
    """The figures that `draw_all` wrote: `paths`, and those it `skipped`, each as name and reason."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class FigureKind:
    """A figure that a fit may have: a sentence `about` it, how to draw it, and the name of the fit that it `needs`.

    The sentence has {axis} for the name of the fit's axis and {laws} for those of its laws after training. `size` is
    the default size in inches; the axes are `shape` times as high as wide or higher.
    """

    about: str
    draw: Callable[[Figure, pd.DataFrame, Any], None]
    needs: str = ""
    size: tuple[float, float] = (6.0, 3.6)
    shape: float = 0.6

    def caption(self, fit: AnyFit) -> str:
        """Return the sentence about the figure of a fit."""
        if isinstance(fit, SizesFit):
            return self.about.format(laws=fit.laws.name)
        laws = fit.laws_after_training
        return self.about.format(axis=AXES[fit.axis].name, laws="training law" if laws is None else laws.name)


def draw_all(
    table: pd.DataFrame, fit: AnyFit, folder: str | Path, progress: Callable[[int], None] = lambda number: None
) -> FigureFiles:
    """Draw every figure that the fit has data for into `folder`, as PNG, SVG and PDF each.

    `table` is the checked table of the fit, held-out runs included. A figure whose values can't be drawn is skipped.
    `progress` is called with the number of figures done before each of `figures_of(fit)`.
    """
    paths: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for number, name in enumerate(figures_of(fit)):
        progress(number)
        reason = why_unavailable(name, fit)
        if not reason:
            try:
                paths += save_figure(draw_one(name, table, fit), folder, name)
            except (ValueError, OverflowError) as error:
                reason = str(error)
        if reason:
            skipped.append((name, reason))
    return FigureFiles(paths=tuple(paths), skipped=tuple(skipped))


def draw_one(name: str, table: pd.DataFrame, fit: AnyFit, *, width: float | None = None) -> Figure:
    """Draw one figure, to be written by `save_figure`.

    Args:
        name: one of `figures_of(fit)`.
        table: the checked table of the fit, held-out runs included.
        fit: the result of fitting it.
        width: in inches; `COLUMN_WIDTH` fits one column of a journal. Texts keep their size, and the height follows.

    Raises:
        ValueError: there is no figure of that name, the fit has no data for it, its values can't be drawn, or the
            width is out of range.
    """
    kinds = figures_of(fit)
    if name not in kinds:
        raise ValueError(f"a figure must be one of {', '.join(kinds)}, but got {name!r}; choose one")
    if width is not None and not _WIDTHS[0] <= width <= _WIDTHS[1]:
        raise ValueError(
            f"a figure's width must be {_WIDTHS[0]:g} to {_WIDTHS[1]:g} inches, but got {width:g}; a journal's column "
            f"is {COLUMN_WIDTH} inches wide"
        )
    kind = kinds[name]
    usual, height = kind.size
    try:
        with mpl.rc_context(STYLE), np.errstate(over="raise", divide="raise", invalid="raise"):
            figure = Figure(figsize=(width or usual, height * min(1.0, (width or usual) / usual)), layout="constrained")
            FigureCanvasAgg(figure)
            kind.draw(figure, table, fit)
            rasterize_many(figure)
            fit_height(figure, figure.get_figheight(), kind.shape)
    except (FloatingPointError, OverflowError) as error:
        raise ValueError(
            f"a figure's values must be numbers that can be drawn, but some of {name} exceed the floating-point range; "
            "the fit has gone astray, so read its caveats"
        ) from error
    return figure


def figures_of(fit: AnyFit) -> dict[str, FigureKind]:
    """Return the figures of a fit by name: those of one architecture, or of several sizes, and those of scores."""
    of_fit = SIZES_FIGURES if isinstance(fit, SizesFit) else FIGURES
    return of_fit | QUALITY_FIGURES if fit.quality else of_fit


def why_unavailable(name: str, fit: AnyFit) -> str | None:
    """Return the reason why a fit has no data for a figure, None if it has."""
    if name in QUALITY_FIGURES:
        if fit.quality is None:
            return "the run table has no benchmark scores"
        of_loss = name == "quality_against_loss" and not fit.quality.fitted
        return "; ".join(f"{score.label}: {score.reason}" for score in fit.quality.refused) if of_loss else None
    if isinstance(fit, SizesFit):
        if name == "rollouts":
            return None if fit.rollouts else fit.why_no_rollouts
        few = len(fit.frontier) < 2
        return "the fit without the largest budget has no best models through budgets" if few else None
    if name == "held_out_errors":
        lines = held_out_lines(fit)
        if lines > _MOST_HELD_OUT_LINES:
            return f"it has a line for each held-out run and method, and {lines} are too many to be read"
        return None if lines else "no run was held out of this fit, or nothing could predict it"
    needs = FIGURES[name].needs
    if not {**fit.laws, "isoflop": fit.isoflop, "test-time": fit.test_time, "rollouts": fit.rollouts}[needs]:
        return fit.why_missing(needs)
    if name == "power_laws" and fit.isoflop and not fit.isoflop.axis_law:
        return fit.isoflop.reason
    return None


def draw_power_laws(figure: Figure, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw the power laws of µ* (or N*) and D*: side by side on a wide figure, one above the other on a narrow one."""
    shape = (1, 2) if figure.get_figwidth() >= _SIDE_BY_SIDE_WIDTH else (2, 1)
    first, second = figure.subplots(*shape)
    draw_power_law(first, table, fit)
    draw_power_law(second, table, fit, tokens=True)


def _draw_held_out_errors(figure: Figure, table: pd.DataFrame, fit: SweepFit) -> None:
    figure.set_figheight(max(figure.get_figheight(), 1.0 + _HELD_OUT_LINE_HEIGHT * held_out_lines(fit)))
    draw_held_out_errors(figure.add_subplot(), table, fit)


def _on_axes(draw: Callable[[Axes, pd.DataFrame, Any], None]) -> Callable[[Figure, pd.DataFrame, Any], None]:
    return lambda figure, table, fit: draw(figure.add_subplot(), table, fit)


_ROLLOUTS = FigureKind(
    about="Errors of the laws after training, fitted below each budget, on all runs above it, by distance.",
    draw=_on_axes(draw_rollouts),
    needs="rollouts",
)
FIGURES: dict[str, FigureKind] = {
    "isoflop_curves": FigureKind(
        about="Loss against {axis} at each budget, with parabolas and minima.",
        draw=_on_axes(draw_isoflop_curves),
        needs="isoflop",
    ),
    "power_laws": FigureKind(
        about="Best {axis} and best tokens against compute, with the fitted power laws.",
        draw=draw_power_laws,
        needs="isoflop",
        size=(6.9, 3.4),
    ),
    "loss_contours": FigureKind(
        about="Lines of equal loss of the {laws} over {axis} and tokens, and the best split.",
        draw=_on_axes(draw_loss_contours),
        needs="training",
        shape=0.8,
    ),
    "predicted_against_measured": FigureKind(
        about="Loss predicted by the {laws} against the measured one, run by run.",
        draw=_on_axes(draw_predicted_against_measured),
        needs="training",
        size=(5.0, 3.6),
        shape=1.0,
    ),
    "held_out_errors": FigureKind(
        about="Error of each prediction for a held-out run, and the share of losses inside their intervals.",
        draw=_draw_held_out_errors,
        needs="training",
        size=(6.0, 3.0),
    ),
    "rollouts": _ROLLOUTS,
    "test_time_curves": FigureKind(
        about="Loss against loops at test time, with the fit of each model of the largest budget.",
        draw=_on_axes(draw_test_time),
        needs="test-time",
    ),
    "test_time_collapse": FigureKind(
        about="Loss that further loops remove against T/µ: one curve for all models, if the unified law holds.",
        draw=_on_axes(draw_test_time_collapse),
        needs="unified",
    ),
}
"""Every figure of one architecture by its file's name. Texts are meant to be printed at the default size."""

SIZES_FIGURES: dict[str, FigureKind] = {
    "sizes_surface": FigureKind(
        about="Loss of the {laws} over size and mean recurrence at the largest budget, its runs, and the best model.",
        draw=_on_axes(draw_sizes_surface),
        size=(6.0, 4.2),
        shape=0.7,
    ),
    "frontier": FigureKind(
        about="Best size, mean recurrence and tokens through budgets by the {laws}, with 95% intervals.",
        draw=draw_frontier,
        size=(6.9, 2.9),
    ),
    "rollouts": _ROLLOUTS,
}
"""Every figure of a joint fit over sizes."""

QUALITY_FIGURES: dict[str, FigureKind] = {
    "quality_against_loss": FigureKind(
        about="Benchmark scores against validation loss, with the fitted curves and 95% of one model's score.",
        draw=draw_quality_against_loss,
        size=(6.9, 3.4),
    ),
    "quality_against_flops": FigureKind(
        about="Benchmark scores against compute: the run of least loss at each budget, beside that of one loop.",
        draw=draw_quality_against_flops,
        size=(6.9, 3.4),
    ),
}
"""Figures of a fit whose run table has benchmark scores."""
