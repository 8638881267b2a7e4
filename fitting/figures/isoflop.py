"""Figures of isoFLOP curves: the curves, the power laws of their minima, exponents of several fits side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from isoloop.fitting.estimation.bootstrap import t_quantile
from isoloop.fitting.figures.axes import (
    band_handle,
    bar_handle,
    decade_ticks,
    grid_ticks,
    mark_handle,
    place_legend,
    power_of_ten,
    series_handle,
    set_title,
)
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, MUTED, SeriesStyle, run_points, series_styles
from isoloop.fitting.isoflop.minima import IsoflopFit, Minimum, isoflop_curves
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.optima import LawOptima
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import finished_rows

_CURVE_POINTS = 200
_HEADROOM = 2.0


def draw_isoflop_curves(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss against mean recurrence at each budget: runs, parabolas and minima, each with its 95%.

    A star is hollow where the minimum doesn't count; runs of a budget that was held out are hollow.

    Raises ValueError without isoFLOP curves.
    """
    isoflop = _isoflop(fit)
    minima = {minimum.budget: minimum for minimum in isoflop.minima}
    runs = finished_rows(table)
    budgets = sorted({float(budget) for budget in runs["budget"].dropna()})
    curves = {curve.budget: curve for curve in isoflop_curves(table, "mean_recurrence")}
    handles: list[Artist] = []
    for budget, style in zip(budgets, series_styles(len(budgets)), strict=True):
        points = runs[runs["budget"] == budget].sort_values("mean_recurrence")
        held = fit.held_out is not None and budget not in minima
        run_points(
            axes,
            points["mean_recurrence"],
            points["loss"],
            points["run_id"],
            colour=style.colour,
            marker=style.marker,
            hollow=held,
        )
        said = power_of_ten(budget) + (", held out" if held else "")
        handles.append(series_handle(style, said, line=not held, hollow=held))
        minimum = minima.get(budget)
        if minimum is None or minimum.curve is None:
            continue
        curve = curves[budget]
        log_mu = np.linspace(*curve.grid, _CURVE_POINTS)
        fitted = np.polyval(minimum.curve, log_mu)
        axes.plot(np.exp(log_mu), fitted, color=style.colour, ls=style.line)
        if isoflop.noise is not None:
            half = t_quantile(isoflop.noise_dof) * isoflop.noise * curve.errors(log_mu)
            axes.fill_between(np.exp(log_mu), fitted - half, fitted + half, color=style.colour, alpha=BAND, lw=0)
        _minimum(axes, minimum, style, curve.grid, isoflop)
    handles.append(mark_handle("minimum", marker="*"))
    if any(not minimum.included for minimum in minima.values()):
        handles.append(mark_handle("left out (edge)", marker="*", hollow=True))
    if isoflop.noise is None:
        handles.append(mark_handle("no intervals: too few runs"))
    else:
        handles += [bar_handle("95% of a minimum"), band_handle("95% of a parabola")]
    grid = np.unique(runs["mean_recurrence"])
    grid_ticks(axes.xaxis, grid)
    axes.set_xlim(grid[0] / 1.06, grid[-1] * 1.06)
    _limits(axes, runs["loss"].to_numpy(dtype=float))
    axes.set(xlabel="mean recurrence µ (loops)", ylabel="loss at T = µ (nats per token)")
    place_legend(axes, handles, "budget (FLOPs)")
    set_title(axes, "isoFLOP curves", simulated=fit.simulated)


def draw_power_law(axes: Axes, table: pd.DataFrame, fit: SweepFit, *, tokens: bool = False) -> None:
    """The best mean recurrence (or tokens) against compute: minima with 95% bars, power law with its band.

    Raises ValueError without a power law.
    """
    isoflop = _isoflop(fit)
    law = isoflop.tokens_law if tokens else isoflop.mean_recurrence_law
    if law is None:
        raise ValueError(f"this figure needs a power law, but there is none: {isoflop.reason}")
    budgets = np.array([minimum.budget for minimum in isoflop.minima])
    compute = np.geomspace(budgets.min() / 1.3, budgets.max() * 1.3, 60)
    axes.plot(compute, [law.at(budget) for budget in compute], color=INK, lw=1.5)
    symbol = "D" if tokens else "µ"
    handles: list[Artist] = [mark_handle(exponent_text(symbol, law), line="-")]
    if law.draws:
        band = np.array([law.interval_at(budget) for budget in compute])
        axes.fill_between(compute, band[:, 0], band[:, 1], color=INK, alpha=BAND, lw=0)
        handles.append(band_handle("95% of the power law"))
    else:
        handles.append(mark_handle("no band: fitted without refits"))
    if fit.parabola_bias is not None:
        bias = fit.parabola_bias
        corrected = (bias.tokens_exponent if tokens else bias.axis_exponent).corrected
        axes.plot(compute, [corrected.at(budget) for budget in compute], color=MUTED, ls="--")
        without = f"without the parabola's\nbias: {exponent_text(symbol, corrected)}"
        handles.append(mark_handle(without, line="--", colour=MUTED))
    middles = [_power_law_point(axes, minimum, fit, isoflop, tokens=tokens) for minimum in isoflop.included]
    label = "minimum" if isoflop.noise is None else "minimum with its 95%"
    handles.insert(0, mark_handle(label, marker="o", colour=ACCENT))
    decade_ticks(axes.xaxis)
    # A band that says nothing must not press everything else flat: the axis follows the minima and the line.
    shown = [*(law.at(budget) for budget in compute), *middles]
    decade_ticks(axes.yaxis, text=power_of_ten if tokens else lambda value: f"{value:g}")
    axes.set_ylim(min(shown) / _HEADROOM, max(shown) * _HEADROOM)
    quantity = "best training length D* (tokens)" if tokens else "best mean recurrence µ* (loops)"
    axes.set(xlabel="compute C (FLOPs)", ylabel=quantity)
    place_legend(axes, handles)
    set_title(axes, "Tokens" if tokens else "Recurrence", simulated=fit.simulated)


def draw_exponents(axes: Axes, fits: Mapping[str, SweepFit]) -> None:
    """The exponents of µ* and D* of several fits, each with its 95%, as fitted and without the parabola's bias.

    `fits` are by the label that each gets, from the top down. A fit without power laws has an empty row.

    Raises ValueError where no fit has a power law.
    """
    found = {label: fit.isoflop for label, fit in fits.items() if fit.isoflop and fit.isoflop.mean_recurrence_law}
    if not found:
        raise ValueError(f"exponents need a fit with power laws, but {', '.join(fits) or 'nothing'} has none; fit more")
    quantities = (("µ*", "o", BLUE, 0.16), ("D*", "s", ACCENT, -0.16))
    without_interval = False
    for row, fit in enumerate(fits.values()):
        for symbol, marker, colour, up in quantities:
            tokens = symbol == "D*"
            law = None if fit.isoflop is None else fit.isoflop.tokens_law if tokens else fit.isoflop.mean_recurrence_law
            laws = [law] if law is not None else []
            if law is not None and fit.parabola_bias is not None:
                bias = fit.parabola_bias
                laws.append((bias.tokens_exponent if tokens else bias.axis_exponent).corrected)
            for hollow, one in enumerate(laws):
                y = -row + up - 0.12 * hollow
                if one.interval is not None:
                    axes.plot(one.interval, [y, y], color=colour, lw=1.2)
                else:
                    without_interval = True
                face = "white" if hollow else colour
                axes.plot(one.exponent, y, marker=marker, color=colour, mfc=face, mec=colour, ls="", ms=5, zorder=3)
    axes.set_yticks([-row for row in range(len(fits))], list(fits))
    axes.set_ylim(-len(fits) + 0.4, 0.6)
    axes.set_xlabel("exponent of compute C (no unit)")
    handles: list[Artist] = [mark_handle(symbol, marker=m, line="-", colour=c) for symbol, m, c, _ in quantities]
    if any(fit.parabola_bias for fit in fits.values()):
        handles.append(mark_handle("without the parabola's bias", marker="o", colour=INK, hollow=True))
    handles.append(mark_handle("bars: 95%" + (", where there is one" if without_interval else "")))
    place_legend(axes, handles)
    set_title(axes, "Exponents", simulated=any(fit.simulated for fit in fits.values()))


def _isoflop(fit: SweepFit) -> IsoflopFit:
    if fit.isoflop is None:
        raise ValueError(f"this figure needs isoFLOP curves, but there are none: {fit.why_missing('isoflop')}")
    return fit.isoflop


def _minimum(axes: Axes, minimum: Minimum, style: SeriesStyle, grid: tuple[float, float], isoflop: IsoflopFit) -> None:
    """The star of a minimum and its bars. Outside the grid it stands where its parabola leaves it: further out nothing
    was measured.
    """
    assert minimum.curve is not None
    a, b, _ = minimum.curve
    if not (minimum.included or a > 0):
        return
    at = float(np.clip(-b / (2 * a), *grid))
    loss = float(np.polyval(minimum.curve, at))
    if minimum.included and minimum.log_error is not None and minimum.loss_error is not None:
        errors = t_quantile(isoflop.noise_dof)
        half, half_loss = errors * minimum.log_error, errors * minimum.loss_error
        axes.plot(np.exp([at - half, at + half]), [loss, loss], color=INK, lw=1.0, zorder=4)
        axes.plot(np.exp([at, at]), [loss - half_loss, loss + half_loss], color=INK, lw=1.0, zorder=4)
    face, edge = (style.colour, "white") if minimum.included else ("white", style.colour)
    axes.plot(np.exp(at), loss, "*", ms=10, mfc=face, mec=edge, mew=0.7 if minimum.included else 1.2, zorder=5)


def _limits(axes: Axes, losses: np.ndarray) -> None:
    """Limits about the losses: a wide band must not press them flat."""
    low, high = float(losses.min()), float(losses.max())
    margin = 0.08 * (high - low) or 0.01 * high
    axes.set_ylim(low - margin, high + margin)


def _power_law_point(axes: Axes, minimum: Minimum, fit: SweepFit, isoflop: IsoflopFit, *, tokens: bool) -> float:
    assert minimum.mean_recurrence is not None
    half = t_quantile(isoflop.noise_dof) * (minimum.log_error or 0.0)
    ends = minimum.mean_recurrence * np.exp(half * np.array([-1, 0, 1]))
    low, middle, high = np.sort(fit.cost_model.tokens_for(minimum.budget, ends)) if tokens else ends
    bars = [[middle - low], [high - middle]]
    axes.errorbar(minimum.budget, middle, bars, fmt="o", color=ACCENT, ms=4.5, capsize=2.5, lw=1.2, zorder=3)
    return float(middle)


def exponent_text(symbol: str, law: PowerLaw) -> str:
    """The power law of `symbol` as a formula, with the 95% interval of its exponent."""
    text = rf"${{{symbol}}}^* \propto C^{{{law.exponent:.3f}}}$"
    return f"{text} ({law.interval[0]:.3f} to {law.interval[1]:.3f})" if law.interval else text


# MERGED figures_optima
def draw_optima(axes: Axes, optima: Mapping[str, LawOptima], *, tokens: bool = False, simulated: bool = False) -> None:
    """The optima under each accounting, by its name: points with 95% bars and a power law, whose exponent is said."""
    name, symbol = ("tokens", "D") if tokens else ("mean_recurrence", "µ")
    handles: list[Artist] = []
    for (accounting, one), style in zip(optima.items(), series_styles(len(optima)), strict=True):
        frame = one.frame()
        budgets, best = frame["budget"].to_numpy(), frame[name].to_numpy()
        spans = frame[f"{name}_interval"]
        ends = np.array([span or (value, value) for span, value in zip(spans, best, strict=True)])
        law = one.tokens_law if tokens else one.mean_recurrence_law
        bars = np.abs(ends.T - best)
        axes.errorbar(budgets, best, bars, fmt=style.marker, color=style.colour, capsize=2.5, zorder=3)
        axes.plot(budgets, np.exp(law.log_at(budgets)), color=style.colour, ls=style.line)
        handles.append(series_handle(style, f"{accounting}: {exponent_text(symbol, law)}"))
    handles.append(bar_handle("bars and ranges: 95%"))
    decade_ticks(axes.xaxis)
    if tokens:
        decade_ticks(axes.yaxis)
    else:
        decade_ticks(axes.yaxis, text=lambda value: f"{value:g}")
    axes.set_xlabel("compute C (FLOPs, as counted)")
    axes.set_ylabel("best training length D* (tokens)" if tokens else "best mean recurrence µ* (loops)")
    place_legend(axes, handles)
    set_title(axes, "Tokens" if tokens else "Recurrence", simulated=simulated)
