"""Figures of a joint fit over sizes: the loss over size and mean recurrence, and the best models through budgets."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.figures.axes import (
    check_range,
    decade_ticks,
    grid_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    set_title,
)
from isoloop.fitting.figures.style import ACCENT, BLUE, INK, MUTED, run_points
from isoloop.fitting.sizes.result import FrontierPoint, SizesFit
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.tables.runs import law_data

_CELLS = 120
_STEPS = (0.0, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Lines of equal loss: nats per token above the best model."""
_REFITS = 200
_MARGIN = 1.35
_NEAR_BUDGET = 0.01
_SIDE_BY_SIDE_WIDTH = 5.0


def draw_sizes_surface(axes: Axes, table: pd.DataFrame, fit: SizesFit, *, budget: float | None = None) -> None:
    """Draw lines of equal loss over mean recurrence and size at a budget (FLOPs), by default the largest of the fit.

    Each line is labelled by the nats per token that it lies above the best model. The runs at that budget are marked,
    as are the best model and those by 200 refits.
    """
    point = _largest_measured(fit) if budget is None else fit.point(budget)
    surface, data = fit.surface, law_data(table)
    at_budget = np.abs(data["flops"] / point.budget - 1) < _NEAR_BUDGET
    tokens_for = partial(surface.family.tokens_for, point.budget)
    # The range: the measured sizes and loops, and the best model
    drawn = surface.best_draws(tokens_for)
    sizes = [*surface.family.sizes, point.params.value, *(point.params.interval or ())]
    loops = [*np.unique(data["mean_recurrence"]), point.mean_recurrence.value]
    across, up = ((min(values) / _MARGIN, max(values) * _MARGIN) for values in (loops, sizes))
    mu, params = np.geomspace(max(across[0], 0.9), across[1], _CELLS), np.geomspace(*up, _CELLS)
    loss = surface.loss(params[:, None], mu[None, :], tokens_for(params[:, None], mu[None, :]))
    check_range(loss, f"a loss by the {fit.laws.name}")
    # Axes; a line's label is placed and turned by them
    axes.set(xlim=(mu[0], mu[-1]), ylim=up, xlabel=AXES["mean_recurrence"].label, ylabel=AXES["params"].label)
    grid_ticks(axes.xaxis, np.unique(data["mean_recurrence"]))
    decade_ticks(axes.yaxis, text=short_count)
    # Lines of equal loss, runs, and the best model
    lines = axes.contour(mu, params, loss - point.loss.value, levels=_STEPS[1:], colors=MUTED, linewidths=0.8, zorder=1)
    labels = axes.clabel(lines, fmt="+%g", fontsize=7.5, colors=INK, inline=False, use_clabeltext=True, zorder=1.5)
    for label in labels:  # a patch behind the label instead of a gap in the line, which the layout would misplace
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    handles: list[Artist] = []
    if at_budget.any():
        ids = data["run_id"][at_budget]
        run_points(axes, data["mean_recurrence"][at_budget], data["params"][at_budget], ids, colour=BLUE)
        handles.append(mark_handle("run at this budget", marker="o", colour=BLUE))
    if drawn is not None:
        axes.plot(
            drawn.mean_recurrence[:_REFITS],
            drawn.params[:_REFITS],
            ls="",
            marker=".",
            ms=2.5,
            color=ACCENT,
            alpha=0.5,
            zorder=4,
        )
        handles.append(mark_handle("best by a refit", marker=".", colour=ACCENT))
    axes.plot(point.mean_recurrence.value, point.params.value, marker="*", ms=7, color=ACCENT, mec="white", zorder=5)
    handles += [mark_handle("best model", marker="*", colour=ACCENT), mark_handle("equal loss", line="-", colour=MUTED)]
    # Legend and title
    place_legend(axes, handles)
    set_title(axes, f"Nats above the best model at {power_of_ten(point.budget)} FLOPs", simulated=fit.simulated)


def draw_frontier(figure: Figure, table: pd.DataFrame, fit: SizesFit) -> None:
    """Draw the best size, mean recurrence and tokens through budgets with their 95% bars, and the measured ranges.

    Points beyond the largest fitted compute are hollow.
    """
    wide = figure.get_figwidth() >= _SIDE_BY_SIDE_WIDTH
    panels = figure.subplots(*((1, 3) if wide else (3, 1)))
    if not wide:
        figure.set_figheight(3 * figure.get_figheight())
    budgets = np.array([point.budget for point in fit.frontier])
    beyond = budgets > fit.fitted.flops[1] * (1 + _NEAR_BUDGET)
    for axes, name in zip(panels, ("params", "mean_recurrence", "tokens"), strict=True):
        best: list[Quantity] = [getattr(point, name) for point in fit.frontier]
        values = np.array([each.value for each in best])
        check_range(values, f"a best {AXES[name].quantity}")
        axes.plot(budgets, values, color=BLUE, lw=1.0, zorder=2)
        for chosen, hollow in ((~beyond, False), (beyond, True)):
            face = "white" if hollow else BLUE
            axes.plot(budgets[chosen], values[chosen], ls="", marker="o", color=BLUE, mfc=face, zorder=4)
        spans = [(budget, *each.interval) for budget, each in zip(budgets, best, strict=True) if each.interval]
        if spans:
            axes.vlines(*np.array(spans).T, color=BLUE, lw=1.4, zorder=3)
        measured = getattr(fit.fitted, name)
        for end in measured:
            axes.axhline(end, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
        axes.set(ylabel=AXES[name].best_label, xlabel="compute C (FLOPs)")
        low, high = min(values.min(), measured[0]), max(values.max(), measured[1])
        axes.set_ylim(low / _MARGIN, high * _MARGIN)
        decade_ticks(axes.xaxis)
        decade_ticks(
            axes.yaxis,
            text=short_count if name == "params" else "{:g}".format if name == "mean_recurrence" else power_of_ten,
        )
    if wide:
        simulated = " (simulated)" if fit.simulated else ""
        size = panels[0].title.get_fontsize()
        figure.suptitle(f"Best models through budgets{simulated}", x=0.01, ha="left", color=INK, fontsize=size)
    else:
        set_title(panels[0], "Best models through budgets", simulated=fit.simulated)
    place = {"loc": "lower center", "ncols": 3 if wide else 1}
    figure.legend(
        handles=[
            mark_handle("best, 95%", marker="o", line="-", colour=BLUE),
            mark_handle("beyond the runs", marker="o", colour=BLUE, hollow=True),
            mark_handle("smallest and largest measured", line=(0, (4, 2)), colour=MUTED),
        ],
        **{**place, "loc": f"outside {place['loc']}"},
    )


def _largest_measured(fit: SizesFit) -> FrontierPoint:
    """Return the best models at the largest fitted compute."""
    within = [point for point in fit.frontier if point.budget <= fit.fitted.flops[1] * (1 + _NEAR_BUDGET)]
    return within[-1] if within else fit.point(fit.fitted.flops[1])
