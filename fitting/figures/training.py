"""Figures of the laws after training: contours of the loss, predicted against measured losses, held-out errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from isoloop.fitting.answer.recommendation import axis_bounds
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.figures.axes import (
    LARGEST,
    band_handle,
    bar_handle,
    check_range,
    decade_ticks,
    grid_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    row_ticks,
    series_handle,
    set_title,
    value_ticks,
)
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, MUTED, run_points, series_styles
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.tables.runs import finished_rows, law_data

_CELLS = 120
_LEVELS = 9
_FRONTIER_POINTS = 40
_FRONTIER_DRAWS = 200
_SECONDARY_AXIS_GAP = 46
"""Points between axes with a second scale at the right and their legend."""

Limits = tuple[float, float]


def draw_loss_contours(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw lines of equal loss of the laws after training over their axis and tokens, the best split, and the runs.

    The loss of each line stands at its right end. The best split's 95% band comes from the laws' refits. Raises
    ValueError without a law.
    """
    laws = _laws(fit)
    runs = finished_rows(table)
    values, tokens = (runs[name].to_numpy(dtype=float) for name in (fit.axis, "tokens"))
    across, up = (values.min() / 1.15, values.max() * 1.15), (tokens.min() / 1.4, tokens.max() * 1.4)
    handles = _draw_runs(axes, runs, fit)
    axes.set(xlim=across, ylim=up, xlabel=AXES[fit.axis].label, ylabel=AXES["tokens"].label)
    value_ticks(axes.xaxis, fit.axis, np.unique(values))
    decade_ticks(axes.yaxis)
    _draw_contours(axes, laws, fit, across, up)
    handles += _draw_best_split(axes, laws, fit, across, up)
    handles.append(mark_handle("equal loss", line="-", colour=MUTED))
    budgets = "budget" in runs and runs["budget"].notna().any()
    place_legend(axes, handles, "budget (FLOPs)" if budgets else None, gap=_SECONDARY_AXIS_GAP)
    set_title(axes, AXES[fit.axis].title_of(f"Loss by the {laws.name}"), simulated=fit.simulated)


def draw_predicted_against_measured(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw the loss by the laws after training against the measured one, with 95% bars; held-out runs are hollow.

    Raises ValueError without a law.
    """
    laws = _laws(fit)
    data = law_data(table)
    predicted, measured = laws.loss(data), data["loss"]
    check_range(predicted, f"a loss by the {laws.name}")
    held = np.isin(data["run_id"], list(_held_out_ids(fit)))
    # The line of equality.
    ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), measured.max())])
    ends += 0.05 * np.ptp(ends) * np.array([-1, 1])
    axes.plot(ends, ends, color=MUTED, lw=0.9, zorder=1)
    # Fitted and held-out runs.
    error = 100 * np.abs(predicted / measured - 1)
    bounds = laws.loss_interval(data)
    handles: list[Artist] = []
    for name, rows, colour, marker, hollow in (
        ("fitted", ~held, BLUE, "o", False),
        ("held out", held, ACCENT, "D", True),
    ):
        if not rows.any():
            continue
        x, y, run_ids = measured[rows], predicted[rows], data["run_id"][rows]
        if bounds is not None:
            low, high = (np.clip(end[rows], -LARGEST, LARGEST) for end in bounds)
            axes.vlines(x, low, high, color=colour, lw=0.9, alpha=0.6, zorder=2)
        run_points(axes, x, y, run_ids, colour=colour, marker=marker, hollow=hollow)
        label = f"{name}: {error[rows].mean():.2g}%"
        handles.append(mark_handle(label, marker=marker, colour=colour, hollow=hollow))
    handles.append(bar_handle("95% of a loss") if bounds else mark_handle("no intervals: no refits"))
    handles.append(mark_handle("equal", line="-", colour=MUTED))
    # Limits, ticks and labels.
    axes.set(xlim=ends, ylim=ends)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="measured loss (nats per token)", ylabel="predicted loss (nats per token)")
    place_legend(axes, handles, "mean absolute error")
    set_title(axes, AXES[fit.axis].title_of(laws.name.capitalize()), simulated=fit.simulated)


def draw_held_out_errors(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw the error of each held-out prediction with its 95%: a block for each method, a line for each run.

    On a line, the loops T at test time grow downwards. A loss outside its interval, whose bar misses 0, is marked. A
    block's heading has the mean absolute error and the share of losses inside their intervals. Raises ValueError if
    nothing was held out, or nothing could predict it.
    """
    if fit.held_out is None or not fit.held_out.rows:
        raise ValueError(
            "this figure needs predictions of runs that were held out, but there are none; fit with "
            "hold_out_largest_budget, on the command line with --hold-out"
        )
    # Predictions inside their intervals, outside, and without, then the headings of the blocks.
    layout = _held_out_layout(fit)
    rows = layout.rows
    bounded = rows["low"].notna()
    inside = bounded & (rows["low"] * rows["high"] <= 0)
    for chosen, colour, marker, hollow in (
        (inside, BLUE, "o", False),
        (bounded & ~inside, ACCENT, "D", True),
        (~bounded, MUTED, "s", False),
    ):
        part = rows[chosen]
        axes.hlines(part["y"], part["low"], part["high"], color=colour, lw=0.7, alpha=0.7, zorder=2)
        if len(part):
            size = 4.0 if hollow else 2.4
            x, y, run_ids = part["error"], part["y"], part["run_id"]
            run_points(axes, x, y, run_ids, colour=colour, marker=marker, hollow=hollow, size=size)
    axes.axvline(0.0, color=INK, lw=0.8, zorder=1)
    for y, heading in layout.headings.items():
        _draw_heading(axes, y, heading)
    # Ticks, limits and legend.
    axes.set_ylim(min(layout.labels) - 0.8, max(layout.headings) + 1.5)
    row_ticks(axes.yaxis, layout.labels)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="predicted / measured - 1 (%)", ylabel=AXES[fit.axis].of_run_label)
    handles: list[Artist] = []
    if bounded.any():
        handles.append(mark_handle("inside its 95%", marker="o", line="-", colour=BLUE))
        handles.append(mark_handle("outside its 95%", marker="D", line="-", colour=ACCENT, hollow=True))
    if not bounded.all():
        handles.append(mark_handle("without interval", marker="s", colour=MUTED))
    place_legend(axes, handles)
    unit = "FLOPs" if fit.held_out.column == "budget" else "tokens"
    set_title(axes, f"Held out: {power_of_ten(fit.held_out.value)} {unit}", simulated=fit.simulated)


def held_out_lines(fit: SweepFit) -> int:
    """Return the number of lines that `draw_held_out_errors` draws, headings included: 0 without held-out runs."""
    if fit.held_out is None or not fit.held_out.rows:
        return 0
    lines = {(row.method, row.mean_recurrence, row.params, row.run_id) for row in fit.held_out.rows}
    return len(lines) + 2 * len(fit.held_out.errors)


@dataclass(frozen=True, kw_only=True)
class _HeldOutLayout:
    """The held-out predictions with their heights `y`, and the labels of lines and headings of blocks by height.

    Errors and ends of intervals (`low`, `high`) are in percent of the measured loss.
    """

    rows: pd.DataFrame
    labels: dict[float, str]
    headings: dict[float, str]


def _held_out_layout(fit: SweepFit) -> _HeldOutLayout:
    assert fit.held_out is not None
    rows = pd.DataFrame(fit.held_out.rows).assign(value=[row.value for row in fit.held_out.rows])
    ends = np.array([span or (np.nan, np.nan) for span in rows["interval"]], dtype=float)
    for name, end in zip(("low", "high"), ends.T, strict=True):
        rows[name] = 100 * (end / rows["measured"] - 1)
    rows["y"] = np.nan
    labels, headings, top = {}, {}, 0.0
    for summary in fit.held_out.errors:
        covered = "no intervals" if summary.coverage is None else f"{summary.coverage:.0%} inside 95%"
        headings[top] = f"{_short_method(summary.method)}: {summary.mean_absolute_error:.2g}%, {covered}"
        of_method = rows[rows["method"] == summary.method].sort_values("recurrence", kind="stable")
        for (value, _), line in of_method.groupby(["value", "run_id"], dropna=False):
            labels[top - 0.5] = f"{value:g}" if fit.axis == "mean_recurrence" else power_of_ten(value)
            rows.loc[line.index, "y"] = top - 0.5 + np.linspace(0.4, -0.4, len(line) + 2)[1:-1]
            top -= 1
        top -= 2
    return _HeldOutLayout(rows=rows, labels=labels, headings=headings)


def _draw_heading(axes: Axes, y: float, text: str) -> None:
    """Write a block's heading above its first line and clear of the lines behind it."""
    axes.annotate(
        text,
        (0.0, y),
        (4, 1),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="bottom",
        color=INK,
        fontsize=mpl.rcParams["legend.fontsize"],
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=4,
    )


def _short_method(method: str) -> str:
    """Return the name of a method of predicting, short enough for a narrow figure."""
    method = re.sub(r"(\S+, )*\S+ and \S+ laws", "laws by weight", method)
    return method.replace("the loss at T = mu", "L(µ)").replace("T = mu", "T = µ").replace("test-time law", "law")


def _laws(fit: SweepFit) -> LawMixture:
    laws = fit.laws_after_training
    if laws is None:
        raise ValueError(f"this figure needs the training law, but there is none: {fit.why_missing('training')}")
    return laws


def _held_out_ids(fit: SweepFit) -> set[str]:
    return {row.run_id for row in fit.held_out.rows} if fit.held_out else set()


def _draw_runs(axes: Axes, runs: pd.DataFrame, fit: SweepFit) -> list[Artist]:
    """Draw the runs, a series for each budget if there are budgets, and return the legend's entries."""
    has_budgets = "budget" in runs and runs["budget"].notna().any()
    series = (
        [(power_of_ten(float(budget)), part) for budget, part in runs.groupby("budget")]
        if has_budgets
        else [("runs", runs)]
    )
    held_ids = list(_held_out_ids(fit))
    handles: list[Artist] = []
    for (label, part), style in zip(series, series_styles(len(series)), strict=True):
        held = part["run_id"].isin(held_ids)
        for shown, hollow in ((part[~held], False), (part[held], True)):
            if len(shown):
                x, y, marker = shown[fit.axis], shown["tokens"], style.marker
                run_points(axes, x, y, shown["run_id"], colour=style.colour, marker=marker, hollow=hollow, size=4)
                text = f"{label}, held out" if hollow else label
                handles.append(series_handle(style, text, line=False, hollow=hollow))
    return handles


def _draw_contours(axes: Axes, laws: LawMixture, fit: SweepFit, across: Limits, up: Limits) -> None:
    """Draw lines of equal loss at round losses, each with its loss on the right-hand edge if it ends there."""
    values, tokens = np.geomspace(*across, _CELLS), np.geomspace(*up, _CELLS)
    columns, rows = np.meshgrid(values, tokens)
    loss = laws.loss(fit.cost_model.model_columns(columns.ravel(), rows.ravel())).reshape(columns.shape)
    check_range(loss[~(loss <= LARGEST)], f"a loss by the {laws.name}")
    levels = [float(level) for level in MaxNLocator(_LEVELS).tick_values(float(loss.min()), float(loss.max()))]
    levels = [level for level in levels if loss.min() < level < loss.max()]
    axes.contour(columns, rows, loss, levels=levels, colors=MUTED, linewidths=0.8, zorder=1.5)
    # Loss falls with tokens, so each line reaches the edge at one height at most.
    heights = {float(np.interp(-level, -loss[:, -1], tokens)): level for level in levels}
    ends = {height: level for height, level in heights.items() if up[0] < height < up[1]}
    digits = max(2, *(len(f"{level:.10g}".partition(".")[2]) for level in levels)) if levels else 2
    right = axes.secondary_yaxis("right")
    right.set_yscale("log")
    grid_ticks(right.yaxis, list(ends))
    right.yaxis.set_major_formatter(lambda value, _: f"{ends[min(ends, key=lambda end: abs(end - value))]:.{digits}f}")
    right.set_ylabel("loss of the line (nats per token)")


def _draw_best_split(axes: Axes, laws: LawMixture, fit: SweepFit, across: Limits, up: Limits) -> list[Artist]:
    """Draw the best split of each compute by the laws, with its 95% band along the line of that compute."""
    cost, bounds = fit.cost_model, axis_bounds(fit)
    low, high = (float(cost.flops_for(tokens, value)) for tokens, value in zip(up, across, strict=True))
    compute = np.geomspace(low, high, _FRONTIER_POINTS)
    few = replace(laws, laws=tuple(replace(law, draws=law.draws[:_FRONTIER_DRAWS]) for law in laws.laws))
    optima = [few.optimum(cost, float(flops), bounds) for flops in compute]
    best = np.array([float(optimum.best.at) for optimum in optima])
    axes.plot(best, cost.tokens_for(compute, best), color=INK, lw=1.6, zorder=2.5)
    handles: list[Artist] = [mark_handle("best split", line="-")]
    band = [optimum.interval_of("at") for optimum in optima]
    if None in band:
        return [*handles, mark_handle("no band: no refits")]
    first, last = np.array(band, dtype=float).T
    x = np.concatenate([first, last[::-1]])
    y = cost.tokens_for(np.concatenate([compute, compute[::-1]]), x)
    axes.fill(x, y, color=INK, alpha=BAND, lw=0, zorder=1)
    return [*handles, band_handle("95% of best split")]
