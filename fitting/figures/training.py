"""Figures of the training law: its contours, predicted against measured losses, errors at runs that were held out."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.figures.axes import (
    band_handle,
    bar_handle,
    decade_ticks,
    grid_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    row_ticks,
    series_handle,
    set_title,
)
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, MUTED, run_points, series_styles
from isoloop.fitting.predict import recurrence_bounds
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows, law_data

_CELLS = 120
_LEVELS = 9
_FRONTIER_POINTS = 40
_FRONTIER_DRAWS = 200


def draw_loss_contours(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Lines of equal loss of the training law over mean recurrence and tokens, its best split of compute, the runs.

    The loss of each line stands at its right end. The best split's 95% band comes from the law's refits.

    Raises ValueError without a training law.
    """
    law = _training(fit)
    runs = finished_rows(table)
    mu, tokens = (runs[name].to_numpy(dtype=float) for name in ("mean_recurrence", "tokens"))
    across, up = (mu.min() / 1.15, mu.max() * 1.15), (tokens.min() / 1.4, tokens.max() * 1.4)
    handles = _series_of_runs(axes, runs, fit)
    grid_ticks(axes.xaxis, np.unique(mu))
    decade_ticks(axes.yaxis)
    axes.set(xlim=across, ylim=up, xlabel="mean recurrence µ (loops)", ylabel="training length D (tokens)")
    _contours(axes, law, fit, across, up)
    handles += _frontier(axes, law, fit, across, up)
    handles.append(mark_handle("equal loss", line="-", colour=MUTED))
    budgets = "budget" in runs and runs["budget"].notna().any()
    place_legend(axes, handles, "budget (FLOPs)" if budgets else None, aside=46)
    set_title(axes, f"Loss by the {law.form.name} law, T = µ", simulated=fit.simulated)


def draw_predicted_against_measured(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss predicted by the training law against the measured one at T = µ, with 95% bars; held-out runs are hollow.

    Raises ValueError without a training law.
    """
    law = _training(fit)
    data = law_data(table)
    predicted, measured = law.loss(data), data["loss"]
    held_ids = {row.run_id for row in fit.held_out.rows} if fit.held_out else set()
    held = np.array([run_id in held_ids for run_id in data["run_id"]])
    ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), measured.max())])
    ends += 0.05 * np.ptp(ends) * np.array([-1, 1])
    axes.plot(ends, ends, color=MUTED, lw=0.9, zorder=1)
    error = 100 * np.abs(predicted / measured - 1)
    bounds = law.loss_interval(data)
    handles: list[Artist] = []
    looks = (("fitted", ~held, BLUE, "o", False), ("held out", held, ACCENT, "D", True))
    for name, these, colour, marker, hollow in looks:
        if not these.any():
            continue
        if bounds is not None:
            axes.vlines(measured[these], bounds[0][these], bounds[1][these], color=colour, lw=0.9, alpha=0.6, zorder=2)
        run_points(
            axes,
            measured[these],
            predicted[these],
            data["run_id"][these],
            colour=colour,
            marker=marker,
            hollow=hollow,
        )
        label = f"{name}: {error[these].mean():.2g}%"
        handles.append(mark_handle(label, marker=marker, colour=colour, hollow=hollow))
    handles.append(bar_handle("95% of a loss") if bounds else mark_handle("no intervals: no refits"))
    handles.append(mark_handle("equal", line="-", colour=MUTED))
    axes.set(xlim=ends, ylim=ends)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="measured loss (nats per token)", ylabel="predicted loss (nats per token)")
    place_legend(axes, handles, "mean absolute error")
    set_title(axes, f"{law.form.name.capitalize()} law, T = µ", simulated=fit.simulated)


def draw_held_out_errors(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """The error of each held-out prediction with its 95%, a part for each way of predicting, a line for each µ.

    On a line, the loops T at test time grow downwards. A bar that holds no 0 is a loss outside its interval: it is
    marked. Each part says its mean absolute error and what share of the losses lies inside.

    Raises ValueError where nothing was held out, or nothing could predict it.
    """
    if fit.held_out is None or not fit.held_out.rows:
        raise ValueError(
            "this figure needs predictions of runs that were held out, but there are none; fit with "
            "hold_out_largest_budget, on the command line with --hold-out"
        )
    parts = _held_out_parts(fit)
    labels: list[tuple[float, str]] = []
    for part in parts:
        _heading(axes, part)
        labels += part.labels
        inside, outside = part.bounded & (part.low * part.high <= 0), part.bounded & (part.low * part.high > 0)
        looks = ((inside, BLUE, "o", False), (outside, ACCENT, "D", True), (~part.bounded, MUTED, "s", False))
        for these, colour, marker, hollow in looks:
            axes.hlines(part.y[these], part.low[these], part.high[these], color=colour, lw=0.7, alpha=0.7, zorder=2)
            if these.any():
                size = 4.0 if hollow else 2.4
                error, y, ids = part.error[these], part.y[these], part.run_ids[these]
                run_points(axes, error, y, ids, colour=colour, marker=marker, hollow=hollow, size=size)
    axes.axvline(0.0, color=INK, lw=0.8, zorder=1)
    row_ticks(axes.yaxis, dict(labels))
    axes.grid(axis="y", visible=False)
    axes.set_ylim(parts[-1].bottom, parts[0].top + 1.5)
    axes.set(xlabel="predicted / measured - 1 (%)", ylabel="mean recurrence µ of the run (loops)")
    handles: list[Artist] = []
    if any(part.bounded.any() for part in parts):
        handles.append(mark_handle("inside its 95%", marker="o", line="-", colour=BLUE))
        handles.append(mark_handle("outside its 95%", marker="D", line="-", colour=ACCENT, hollow=True))
    if not all(part.bounded.all() for part in parts):
        handles.append(mark_handle("without interval", marker="s", colour=MUTED))
    place_legend(axes, handles)
    column, value = fit.held_out.column, power_of_ten(fit.held_out.value)
    unit = "FLOPs" if column == "budget" else "tokens"
    set_title(axes, f"Held out: {value} {unit}", simulated=fit.simulated)


def held_out_lines(fit: SweepFit) -> int:
    """How many lines `draw_held_out_errors` draws, those above its parts included; 0 where it has nothing to show."""
    if fit.held_out is None or not fit.held_out.rows:
        return 0
    return sum(len(part.labels) + 2 for part in _held_out_parts(fit))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One way of predicting: its heading, its lines' labels at their heights, and a point per loss."""

    said: str
    top: float
    bottom: float
    labels: list[tuple[float, str]]
    y: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bounded: np.ndarray
    run_ids: np.ndarray


def _held_out_parts(fit: SweepFit) -> list[_Part]:
    assert fit.held_out is not None
    parts, top = [], 0.0
    for summary in fit.held_out.errors:
        rows = [row for row in fit.held_out.rows if row.method == summary.method]
        rows.sort(key=lambda row: (row.mean_recurrence, row.run_id, row.recurrence))
        runs = list(dict.fromkeys(row.run_id for row in rows))
        y, labels = np.empty(len(rows)), []
        for line, run_id in enumerate(runs):
            mine = [place for place, row in enumerate(rows) if row.run_id == run_id]
            centre = top - line - 0.5
            y[mine] = centre + np.linspace(0.4, -0.4, len(mine) + 2)[1:-1]
            labels.append((centre, f"{rows[mine[0]].mean_recurrence:g}"))
        ends = [row.interval if row.interval else (np.nan, np.nan) for row in rows]
        measured = np.array([row.measured for row in rows])
        low, high = (100 * (np.array([end[side] for end in ends]) / measured - 1) for side in (0, 1))
        covered = "no intervals" if summary.coverage is None else f"{summary.coverage:.0%} inside 95%"
        parts.append(
            _Part(
                said=f"{_short(summary.method)}: {summary.mean_absolute_error:.2g}%, {covered}",
                top=top,
                bottom=top - len(runs) - 0.3,
                labels=labels,
                y=y,
                error=np.array([row.error for row in rows]),
                low=low,
                high=high,
                bounded=np.isfinite(low),
                run_ids=np.array([row.run_id for row in rows]),
            )
        )
        top -= len(runs) + 2
    return parts


def _heading(axes: Axes, part: _Part) -> None:
    """What a part says, above its first line and clear of the lines behind it."""
    axes.annotate(
        part.said,
        (0.0, part.top),
        (4, 1),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="bottom",
        color=INK,
        fontsize=mpl.rcParams["legend.fontsize"],
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=4,
    )


def _short(method: str) -> str:
    return method.replace("mu", "µ").replace("the loss at T = µ", "L(µ)").replace("test-time law", "law")


def _training(fit: SweepFit) -> LawFit:
    if fit.training is None:
        raise ValueError(f"this figure needs the training law, but there is none: {fit.why_missing('training')}")
    return fit.training


def _series_of_runs(axes: Axes, runs: pd.DataFrame, fit: SweepFit) -> list[Artist]:
    """The runs, a series for each budget where there are budgets."""
    held_ids = {row.run_id for row in fit.held_out.rows} if fit.held_out else set()
    has_budgets = "budget" in runs and runs["budget"].notna().any()
    parts = (
        [(power_of_ten(float(budget)), part) for budget, part in runs.groupby("budget")]
        if has_budgets
        else [("runs", runs)]
    )
    handles: list[Artist] = []
    for (label, part), style in zip(parts, series_styles(len(parts)), strict=True):
        held = np.array([run_id in held_ids for run_id in part["run_id"]])
        for these, hollow in ((~held, False), (held, True)):
            if not these.any():
                continue
            shown = part[these]
            run_points(
                axes,
                shown["mean_recurrence"],
                shown["tokens"],
                shown["run_id"],
                colour=style.colour,
                marker=style.marker,
                hollow=hollow,
                size=4,
            )
            said = f"{label}, held out" if hollow else label
            handles.append(series_handle(style, said, line=False, hollow=hollow))
    return handles


def _contours(axes: Axes, law: LawFit, fit: SweepFit, across: tuple[float, float], up: tuple[float, float]) -> None:
    """Lines of equal loss at round losses, each with its loss on the right-hand edge where it ends there."""
    mu, tokens = np.geomspace(*across, _CELLS), np.geomspace(*up, _CELLS)
    columns, rows = np.meshgrid(mu, tokens)
    loss = law.loss(fit.cost_model.model_columns(columns.ravel(), rows.ravel())).reshape(columns.shape)
    levels = [float(level) for level in MaxNLocator(_LEVELS).tick_values(float(loss.min()), float(loss.max()))]
    levels = [level for level in levels if loss.min() < level < loss.max()]
    axes.contour(columns, rows, loss, levels=levels, colors=MUTED, linewidths=0.8, zorder=1.5)
    # Loss falls with tokens, so that along the edge each level is met once at most.
    edge = {level: float(np.interp(-level, -loss[:, -1], tokens)) for level in levels}
    ends = {tokens_there: level for level, tokens_there in edge.items() if up[0] < tokens_there < up[1]}
    digits = max(2, *(len(f"{level:.10g}".partition(".")[2]) for level in levels)) if levels else 2
    right = axes.secondary_yaxis("right")
    right.set_yscale("log")
    grid_ticks(right.yaxis, list(ends))
    right.yaxis.set_major_formatter(lambda value, _: f"{ends[min(ends, key=lambda end: abs(end - value))]:.{digits}f}")
    right.set_ylabel("loss of the line (nats per token)")


def _frontier(
    axes: Axes, law: LawFit, fit: SweepFit, across: tuple[float, float], up: tuple[float, float]
) -> list[Artist]:
    """The best split of each compute by the law, with its 95% band along the line of that compute."""
    cost = fit.cost_model
    compute = np.geomspace(
        float(cost.flops_for(up[0], across[0])), float(cost.flops_for(up[1], across[1])), _FRONTIER_POINTS
    )
    bounds = recurrence_bounds(fit)
    best = np.array([float(law.form.optimum(law.vector, cost, float(flops), bounds).at) for flops in compute])
    axes.plot(best, cost.tokens_for(compute, best), color=INK, lw=1.6, zorder=2.5)
    handles: list[Artist] = [mark_handle("best split", line="-")]
    if not law.draws:
        return [*handles, mark_handle("no band: no refits")]
    drawn = law.draw_matrix[:_FRONTIER_DRAWS]
    ends = []
    for flops, at in zip(compute, best, strict=True):
        low, high = interval(law.form.optimum(drawn, cost, float(flops), bounds).at, float(at), law.widening)
        ends.append((max(low, bounds[0]), min(high, bounds[1])))
    low_mu, high_mu = np.array(ends).T
    x = np.concatenate([low_mu, high_mu[::-1]])
    y = cost.tokens_for(np.concatenate([compute, compute[::-1]]), x)
    axes.fill(x, y, color=INK, alpha=BAND, lw=0, zorder=1)
    return [*handles, band_handle("95% of best split")]
