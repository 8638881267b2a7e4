"""Figures of isoFLOP curves: the curves, the power laws of their minima, exponents and optima of several fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from isoloop.fitting.answer.optima import LawOptima
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import t_quantile
from isoloop.fitting.figures.axes import (
    LARGEST,
    SMALLEST,
    band_handle,
    bar_handle,
    check_range,
    decade_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    series_handle,
    set_title,
    value_ticks,
)
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, MUTED, SeriesStyle, run_points, series_styles
from isoloop.fitting.isoflop.minima import IsoflopFit, Minimum, isoflop_curves
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows

_CURVE_POINTS = 200
_LAW_POINTS = 60
_LIMIT_FACTOR = 2.0
"""The axis of an optimum ends at the least and greatest value, divided and multiplied by this."""
_WIDEST_LOG_INTERVAL = 20.0


def draw_isoflop_curves(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Draw loss against mean recurrence, or parameters, at each budget: runs, parabolas, minima, with 95% intervals.

    A hollow star is a minimum at the edge of the grid, which the power laws leave out; hollow points are runs of a
    budget that was held out. Raises ValueError without isoFLOP curves.
    """
    isoflop = _isoflop(fit)
    minima = {minimum.budget: minimum for minimum in isoflop.minima}
    runs = finished_rows(table)
    budgets = sorted({float(budget) for budget in runs["budget"].dropna()})
    curves = {curve.budget: curve for curve in isoflop_curves(table, fit.axis, fit.noise)}
    handles: list[Artist] = []
    for budget, style in zip(budgets, series_styles(len(budgets)), strict=True):
        # The runs.
        points = runs[runs["budget"] == budget].sort_values(fit.axis)
        held = fit.held_out is not None and budget not in minima
        x, y = points[fit.axis], points["loss"]
        run_points(axes, x, y, points["run_id"], colour=style.colour, marker=style.marker, hollow=held)
        label = power_of_ten(budget) + (", held out" if held else "")
        handles.append(series_handle(style, label, line=not held, hollow=held))
        # The parabola with its band, and its minimum.
        minimum = minima.get(budget)
        if minimum is None or minimum.curve is None:
            continue
        curve = curves[budget]
        log_values = np.linspace(*curve.grid, _CURVE_POINTS)
        fitted = np.polyval(minimum.curve, log_values)
        axes.plot(np.exp(log_values), fitted, color=style.colour, ls=style.line)
        if isoflop.noise is not None:
            half = t_quantile(isoflop.noise_dof) * isoflop.noise * curve.errors(log_values)
            axes.fill_between(np.exp(log_values), fitted - half, fitted + half, color=style.colour, alpha=BAND, lw=0)
        _draw_minimum(axes, minimum, style, curve.grid, isoflop)
    # Legend, limits and labels. A wide band must not press the losses flat, so the limits follow the losses.
    handles.append(mark_handle("minimum", marker="*"))
    if any(not minimum.included for minimum in minima.values()):
        handles.append(mark_handle("left out (edge)", marker="*", hollow=True))
    if isoflop.noise is None:
        handles.append(mark_handle("no intervals: too few runs"))
    else:
        handles += [bar_handle("95% of a minimum"), band_handle("95% of a parabola")]
    grid = np.unique(runs[fit.axis])
    value_ticks(axes.xaxis, fit.axis, grid)
    margin = max(1.06, (grid[-1] / grid[0]) ** 0.02)
    axes.set_xlim(grid[0] / margin, grid[-1] * margin)
    low, high = float(runs["loss"].min()), float(runs["loss"].max())
    margin = 0.08 * (high - low) or 0.01 * high
    axes.set_ylim(low - margin, high + margin)
    axes.set(xlabel=AXES[fit.axis].label, ylabel=f"{AXES[fit.axis].loss} (nats per token)")
    place_legend(axes, handles, "budget (FLOPs)")
    set_title(axes, "isoFLOP curves", simulated=fit.simulated)


def draw_power_law(axes: Axes, table: pd.DataFrame, fit: SweepFit, *, tokens: bool = False) -> None:
    """Draw the best value on the fit's axis (or tokens) against compute: minima with 95% bars, power law with its band.

    Raises ValueError without a power law.
    """
    isoflop = _isoflop(fit)
    law = isoflop.tokens_law if tokens else isoflop.axis_law
    if law is None:
        raise ValueError(f"this figure needs a power law, but there is none: {isoflop.reason}")
    budgets = np.array([minimum.budget for minimum in isoflop.minima])
    compute = np.geomspace(budgets.min() / 1.3, budgets.max() * 1.3, _LAW_POINTS)
    shown = draw_law_and_minima(axes, fit, law, compute, tokens=tokens, law_style={"color": INK, "lw": 1.5})
    column = "tokens" if tokens else fit.axis
    symbol = AXES[column].symbol
    handles: list[Artist] = [
        mark_handle("minimum" if isoflop.noise is None else "minimum with its 95%", marker="o", colour=ACCENT),
        mark_handle(exponent_text(symbol, law), line="-"),
        band_handle("95% of the power law") if law.draws else mark_handle("no band: fitted without refits"),
    ]
    if fit.parabola_bias is not None:
        bias = fit.parabola_bias
        corrected = (bias.tokens_exponent if tokens else bias.axis_exponent).corrected
        axes.plot(compute, [corrected.at(budget) for budget in compute], color=MUTED, ls="--")
        label = f"without the parabola's\nbias: {exponent_text(symbol, corrected)}"
        handles.append(mark_handle(label, line="--", colour=MUTED))
    finish_optimum_axes(axes, column, shown)
    place_legend(axes, handles)
    set_title(axes, AXES[column].title, simulated=fit.simulated)


def draw_law_and_minima(
    axes: Axes,
    fit: SweepFit,
    law: PowerLaw,
    compute: np.ndarray,
    *,
    tokens: bool,
    law_style: Mapping[str, Any],
    marker: str = "o",
    colour: object = ACCENT,
    offset: float = 1.0,
) -> list[float]:
    """Draw a power law with its 95% band over `compute` (FLOPs), and the minima with 95% bars.

    The minima stand at their budgets times `offset`. Returns the values of line and minima, without intervals.
    """
    assert fit.isoflop is not None
    line = np.array([law.at(budget) for budget in compute])
    check_range(line, AXES["tokens" if tokens else fit.axis].symbol + "* of the power law")
    axes.plot(compute, line, **law_style)
    if law.draws:
        # A band may leave the range of the axis on both sides, and that of floating-point numbers too.
        band = np.clip([law.interval_at(budget) for budget in compute], SMALLEST, LARGEST)
        axes.fill_between(compute, band[:, 0], band[:, 1], color=law_style["color"], alpha=BAND, lw=0)
    shown = list(line)
    for minimum in fit.isoflop.included:
        half = min(t_quantile(fit.isoflop.noise_dof) * (minimum.log_error or 0.0), _WIDEST_LOG_INTERVAL)
        ends = getattr(minimum, fit.axis) * np.exp(half * np.array([-1, 0, 1]))
        low, best, high = np.sort(fit.cost_model.tokens_for(minimum.budget, ends)) if tokens else ends
        bars = [[best - low], [high - best]]
        x = minimum.budget * offset
        axes.errorbar(x, best, bars, fmt=marker, color=colour, ms=4.5, capsize=2.5, lw=1.2, zorder=3)
        shown.append(float(best))
    return shown


def finish_optimum_axes(axes: Axes, column: str, shown: list[float] | None = None) -> None:
    """Label the axes of the best value in `column` against compute, and put both on log scales.

    The limits follow the values `shown`: a wide band must not press everything else flat.
    """
    axes.set_xlabel("compute C (FLOPs)")
    axes.set_ylabel(AXES[column].best_label)
    if shown is not None:
        axes.set_ylim(min(shown) / _LIMIT_FACTOR, max(shown) * _LIMIT_FACTOR)
    decade_ticks(axes.xaxis)
    decade_ticks(axes.yaxis, text="{:g}".format if column == "mean_recurrence" else power_of_ten)


def draw_exponents(axes: Axes, fits: Mapping[str, SweepFit]) -> None:
    """Draw the exponents of µ* (or N*) and D* of several fits with 95% intervals, with and without the parabola's bias.

    `fits` are by their labels, from the top down. The row of a fit without power laws is empty. Raises ValueError if
    no fit has a power law.
    """
    if not any(fit.isoflop and fit.isoflop.axis_law for fit in fits.values()):
        raise ValueError(f"exponents need a fit with power laws, but {', '.join(fits) or 'nothing'} has none; fit more")
    best = " or ".join(dict.fromkeys(f"{AXES[fit.axis].symbol}*" for fit in fits.values()))
    quantities = ((best, "o", BLUE, 0.16), ("D*", "s", ACCENT, -0.16))
    without_interval = False
    for row, fit in enumerate(fits.values()):
        if fit.isoflop is None or fit.isoflop.axis_law is None or fit.isoflop.tokens_law is None:
            continue
        laws = [[fit.isoflop.axis_law], [fit.isoflop.tokens_law]]
        if fit.parabola_bias is not None:
            laws[0].append(fit.parabola_bias.axis_exponent.corrected)
            laws[1].append(fit.parabola_bias.tokens_exponent.corrected)
        for (_, marker, colour, up), versions in zip(quantities, laws, strict=True):
            for corrected, law in enumerate(versions):
                y = -row + up - 0.12 * corrected
                if law.interval is not None:
                    axes.plot(law.interval, [y, y], color=colour, lw=1.2)
                without_interval |= law.interval is None
                face = "white" if corrected else colour
                axes.plot(law.exponent, y, marker=marker, color=colour, mfc=face, mec=colour, ls="", ms=5, zorder=3)
    axes.set_yticks([-row for row in range(len(fits))], list(fits))
    axes.set_ylim(-len(fits) + 0.4, 0.6)
    axes.set_xlabel("exponent of compute C (no unit)")
    handles: list[Artist] = [mark_handle(symbol, marker=m, line="-", colour=c) for symbol, m, c, _ in quantities]
    if any(fit.parabola_bias for fit in fits.values()):
        handles.append(mark_handle("without the parabola's bias", marker="o", colour=INK, hollow=True))
    handles.append(mark_handle("bars: 95%" + (" (some have none)" if without_interval else "")))
    place_legend(axes, handles)
    set_title(axes, "Exponents", simulated=any(fit.simulated for fit in fits.values()))


def draw_optima(axes: Axes, optima: Mapping[str, LawOptima], *, tokens: bool = False, simulated: bool = False) -> None:
    """Draw the optima of each accounting, by its name: points with 95% bars, and a power law with its exponent."""
    column = "tokens" if tokens else "mean_recurrence"
    handles: list[Artist] = []
    for (accounting, law_optima), style in zip(optima.items(), series_styles(len(optima)), strict=True):
        frame = law_optima.frame()
        budgets, best = frame["budget"].to_numpy(), frame[column].to_numpy()
        spans = frame[f"{column}_interval"]
        ends = np.array([span or (value, value) for span, value in zip(spans, best, strict=True)])
        law = law_optima.tokens_law if tokens else law_optima.mean_recurrence_law
        bars = np.abs(ends.T - best)
        axes.errorbar(budgets, best, bars, fmt=style.marker, color=style.colour, capsize=2.5, zorder=3)
        axes.plot(budgets, np.exp(law.log_at(budgets)), color=style.colour, ls=style.line)
        handles.append(series_handle(style, f"{accounting}: {exponent_text(AXES[column].symbol, law)}"))
    handles.append(bar_handle("bars and ranges: 95%"))
    finish_optimum_axes(axes, column)
    axes.set_xlabel("compute C (FLOPs, as counted)")
    place_legend(axes, handles)
    set_title(axes, AXES[column].title, simulated=simulated)


def exponent_text(symbol: str, law: PowerLaw) -> str:
    """Return the power law of `symbol` as a formula, with the 95% interval of its exponent."""
    text = rf"${{{symbol}}}^* \propto C^{{{law.exponent:.3f}}}$"
    return f"{text} ({law.interval[0]:.3f} to {law.interval[1]:.3f})" if law.interval else text


def _isoflop(fit: SweepFit) -> IsoflopFit:
    if fit.isoflop is None:
        raise ValueError(f"this figure needs isoFLOP curves, but there are none: {fit.why_missing('isoflop')}")
    return fit.isoflop


def _draw_minimum(
    axes: Axes, minimum: Minimum, style: SeriesStyle, grid: tuple[float, float], isoflop: IsoflopFit
) -> None:
    """Draw the star of a minimum and its bars; a minimum outside the grid stands at the grid's edge."""
    assert minimum.curve is not None
    a, b, _ = minimum.curve
    if not (minimum.included or a > 0):
        return
    at = float(np.clip(-b / (2 * a), *grid))
    loss = float(np.polyval(minimum.curve, at))
    if minimum.included and minimum.log_error is not None and minimum.loss_error is not None:
        errors = t_quantile(isoflop.noise_dof)
        half = min(errors * minimum.log_error, _WIDEST_LOG_INTERVAL)
        half_loss = min(errors * minimum.loss_error, LARGEST)
        axes.plot(np.exp([at - half, at + half]), [loss, loss], color=INK, lw=1.0, zorder=4)
        axes.plot(np.exp([at, at]), [loss - half_loss, loss + half_loss], color=INK, lw=1.0, zorder=4)
    face, edge = (style.colour, "white") if minimum.included else ("white", style.colour)
    axes.plot(np.exp(at), loss, "*", ms=10, mfc=face, mec=edge, mew=0.7 if minimum.included else 1.2, zorder=5)
