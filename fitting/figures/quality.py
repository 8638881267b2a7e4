"""Figures of benchmark scores: against the validation loss that predicts them, and against compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from isoloop.fitting.figures.axes import band_handle, decade_ticks, mark_handle, place_legend, set_title
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, MUTED, run_points
from isoloop.fitting.quality.fit import QualityFit
from isoloop.fitting.quality.score import ScoreFit
from isoloop.fitting.quality.scored_runs import scored_rows
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.tables.quality import best_and_fixed_depth
from isoloop.fitting.tables.runs import finished_rows

_MOST_PANELS = 4
_SIDE_BY_SIDE_WIDTH = 5.0
"""Width in inches from which two panels stand side by side."""
_CURVE_POINTS = 60
_BEYOND = 0.25
"""Share of the runs' range of losses by which a curve goes on below the smallest."""


def draw_quality_against_loss(figure: Figure, table: pd.DataFrame, fit: AnyFit) -> None:
    """Draw up to four scores against the validation loss, suites first, with curves and the band of one model's score.

    The loss falls to the right, as models get better, and the curve goes on beyond the runs. Raises ValueError if no
    score can be predicted.
    """
    quality = _quality_of(fit)
    if not quality.fitted:
        reasons = "; ".join(f"{score.label}: {score.reason}" for score in quality.refused)
        raise ValueError(f"this figure needs a score that can be predicted, but there is none: {reasons}")
    runs = scored_rows(table)
    for axes, score in zip(_panels(figure, len(quality.fitted)), quality.fitted, strict=False):
        assert score.losses is not None
        low, high = score.losses
        losses = np.linspace(low - min(_BEYOND * (high - low), 0.5 * low), high, _CURVE_POINTS)
        bands = np.array([score.predict(float(loss)).interval for loss in losses])
        axes.plot(losses, score.score(losses), color=INK, lw=1.0)
        axes.fill_between(losses, *bands.T, color=INK, alpha=BAND, lw=0)
        _draw_runs(axes, runs[runs[score.column].notna()], score, "loss", BLUE, "o")
        axes.invert_xaxis()
        axes.set_xlabel("validation loss (nats per token)")
        handles = [mark_handle("one run", marker="o", colour=BLUE), mark_handle("fit", line="-")]
        _finish(axes, score, [*handles, band_handle("95% of a score")], simulated=quality.simulated)


def draw_quality_against_flops(figure: Figure, table: pd.DataFrame, fit: AnyFit) -> None:
    """Draw up to four scores against compute: at each budget that of the run of least loss, and that of one loop.

    Scores that can be predicted come first. Where one loop has the least loss, its diamond is around the other mark.
    The run of one loop, the model of fixed depth, has the size of the run of least loss: both spend the same FLOPs with
    the same parameters. It is left out where the table has none. Bars are 95% of the items. Raises ValueError if the
    runs have no budgets, or no scores.
    """
    quality = _quality_of(fit)
    runs = finished_rows(table)
    if "budget" not in runs or runs["budget"].isna().all():
        raise ValueError("this figure needs budgets, but the run table has none; add the column `budget`")
    scores = [score for score in (*quality.fitted, *quality.refused) if score.runs]
    if not scores:
        raise ValueError("this figure needs runs with a benchmark score, but all are missing; evaluate the runs")
    for axes, score in zip(_panels(figure, len(scores)), scores, strict=False):
        looped, fixed = best_and_fixed_depth(runs[runs[score.column].notna()])
        handles: list[Artist] = []
        for rows, colour, marker, hollow, label in (
            (fixed, ACCENT, "D", True, "one loop (fixed depth)"),
            (looped, BLUE, "o", False, "least loss"),
        ):
            if rows.empty:
                continue
            axes.plot(rows["flops"], rows[score.column], color=colour, lw=2.2 if hollow else 0.9)
            _draw_runs(axes, rows, score, "flops", colour, marker, hollow=hollow)
            handles.insert(0, mark_handle(label, marker=marker, line="-", colour=colour, hollow=hollow))
        decade_ticks(axes.xaxis)
        axes.set_xlabel("compute C (FLOPs)")
        _finish(axes, score, handles, simulated=quality.simulated)


def _quality_of(fit: AnyFit) -> QualityFit:
    if fit.quality is None:
        raise ValueError("this figure needs benchmark scores, but the run table has none; evaluate the runs")
    return fit.quality


def _panels(figure: Figure, count: int) -> list[Axes]:
    """Return axes for up to four scores: side by side on a wide figure, one above the other on a narrow one."""
    count = min(count, _MOST_PANELS)
    columns = min(count, 2) if figure.get_figwidth() >= _SIDE_BY_SIDE_WIDTH else 1
    rows = -(-count // columns)
    figure.set_figheight(figure.get_figheight() * rows)
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for empty in axes[count:]:
        empty.remove()
    return axes[:count]


def _draw_runs(
    axes: Axes, runs: pd.DataFrame, score: ScoreFit, across: str, colour: str, marker: str, *, hollow: bool = False
) -> None:
    """Draw the scores of runs against a column, with 95% bars where the table has their errors; hollow marks larger."""
    x, y = (runs[name].to_numpy(dtype=float) for name in (across, score.column))
    error = f"{score.column}_se"
    if error in runs:
        half = 1.96 * runs[error].to_numpy(dtype=float)
        axes.vlines(x, y - half, y + half, color=colour, lw=2.2 if hollow else 0.9, alpha=0.5)
    size = 8.0 if hollow else 4.5
    run_points(axes, x, y, runs["run_id"].astype(str), colour=colour, marker=marker, hollow=hollow, size=size)


def _finish(axes: Axes, score: ScoreFit, handles: list[Artist], *, simulated: bool) -> None:
    """Add the line of chance where it is in view, limits, labels, legend and title."""
    low, high = axes.get_ylim()
    if low - 0.3 * (high - low) <= score.chance:
        axes.axhline(score.chance, color=MUTED, lw=0.9, ls=(0, (1, 1.2)))
        handles = [*handles, mark_handle("chance", line=(0, (1, 1.2)), colour=MUTED)]
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("score (points)" if score.unit == "points" else "accuracy (share of items)")
    place_legend(axes, handles)
    set_title(axes, score.label, simulated=simulated)
