"""Figures of a fit: table + result -> matplotlib Axes. Nothing is fitted here, and no global state is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fitting.figure_style import ACCENT, BLUE, INK, MUTED, STYLE, ordered_colours, run_points, save_figure
from fitting.power_law import PowerLaw
from fitting.result import SweepFit
from fitting.table import finished_rows, law_data, test_time_law_data

_CURVE_POINTS = 200
_HEADROOM = 2.0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `draw_all` made: `paths` of the files, and why each other figure was `skipped` (name, reason)."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


def draw_all(table: pd.DataFrame, fit: SweepFit, folder: str | Path) -> Drawn:
    """Draw every figure that has something to show into `folder`, as PNG, SVG and PDF each.

    `table` is the checked table of the fit, held-out runs included.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for name, (size, draw) in FIGURES.items():
        reason = _nothing_to_show(name, table, fit)
        if reason:
            skipped.append((name, reason))
            continue
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, table, fit)
        paths += save_figure(figure, folder, name)
    return Drawn(paths=tuple(paths), skipped=tuple(skipped))


def draw_isoflop_curves(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss against mean recurrence at each budget, with parabolas and minima; a star is hollow where it doesn't count.

    Raises ValueError without isoFLOP curves.
    """
    if fit.isoflop is None:
        raise ValueError(f"this figure needs isoFLOP curves, but there are none: {fit.why_absent('isoflop')}")
    runs = finished_rows(table)
    minima = fit.isoflop.minima
    budgets = sorted({float(budget) for budget in runs["budget"].dropna()})
    colours = dict(zip(budgets, ordered_colours(len(budgets)), strict=True))
    handles = []
    for budget in reversed(budgets):
        points = runs[runs["budget"] == budget].sort_values("mean_recurrence")
        held = fit.held_out is not None and budget not in [minimum.budget for minimum in minima]
        run_points(
            axes, points["mean_recurrence"], points["loss"], points["run_id"], colour=colours[budget], hollow=held
        )
        handles.append(Line2D([], [], color=colours[budget], marker="o", ms=5, mfc="none" if held else None))
        handles[-1].set_label(f"{_power_of_ten(budget)} FLOPs{', held out' if held else ''}")
    grid = np.unique(runs["mean_recurrence"])
    log_mu = np.linspace(np.log(grid[0]), np.log(grid[-1]), _CURVE_POINTS)
    for minimum in minima:
        if minimum.curve is None:
            continue
        axes.plot(np.exp(log_mu), np.polyval(minimum.curve, log_mu), color=colours[minimum.budget], lw=1.4)
        # A minimum outside the grid is marked where its parabola leaves the grid: further out nothing was measured.
        vertex = -minimum.curve[1] / (2 * minimum.curve[0])
        if minimum.included or minimum.curve[0] > 0:
            at = float(np.clip(vertex, log_mu[0], log_mu[-1]))
            face = colours[minimum.budget] if minimum.included else "white"
            _star(axes, np.exp(at), float(np.polyval(minimum.curve, at)), face, colours[minimum.budget])
    handles.append(Line2D([], [], ls="", marker="*", ms=12, mfc=INK, mec=INK, label="minimum"))
    if any(not minimum.included for minimum in minima):
        handles.append(Line2D([], [], ls="", marker="*", ms=12, mfc="white", mec=INK, label="at the edge: left out"))
    _log_ticks(axes, grid)
    axes.set(xlabel="mean recurrence µ (loops)", ylabel="validation loss at T = µ (nats per token)")
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _title(axes, "isoFLOP curves", fit)


def draw_power_law(axes: Axes, table: pd.DataFrame, fit: SweepFit, *, tokens: bool = False) -> None:
    """The best mean recurrence (or tokens) against compute: minima with 95% bars, power law with its band.

    Raises ValueError without a power law.
    """
    if fit.isoflop is None:
        raise ValueError(f"this figure needs isoFLOP curves, but there are none: {fit.why_absent('isoflop')}")
    law = fit.isoflop.tokens_law if tokens else fit.isoflop.mean_recurrence_law
    if law is None:
        raise ValueError(f"this figure needs a power law, but there is none: {fit.isoflop.reason}")
    included = [minimum for minimum in fit.isoflop.minima if minimum.included]
    budgets = np.array([minimum.budget for minimum in fit.isoflop.minima])
    compute = np.geomspace(budgets.min() / 1.3, budgets.max() * 1.3, 60)
    axes.plot(compute, [law.at(budget) for budget in compute], color=INK, lw=1.5)
    if law.draws:
        band = np.array([law.interval_at(budget) for budget in compute])
        axes.fill_between(compute, band[:, 0], band[:, 1], color=INK, alpha=0.12, lw=0)
    middles = []
    for minimum in included:
        assert minimum.mean_recurrence is not None
        ends = minimum.mean_recurrence * np.exp(1.96 * (minimum.log_error or 0.0) * np.array([-1, 0, 1]))
        low, middle, high = np.sort(fit.cost_model.tokens_for(minimum.budget, ends)) if tokens else ends
        middles.append(middle)
        axes.errorbar(
            minimum.budget, middle, [[middle - low], [high - middle]], fmt="o", color=ACCENT, ms=5, capsize=3, lw=1.2
        )
    symbol, quantity = ("D", "best training length D* (tokens)") if tokens else ("µ", "best mean recurrence µ* (loops)")
    said = _exponent(symbol, law)
    if fit.parabola_bias is not None:
        bias = fit.parabola_bias
        corrected = (bias.tokens_exponent if tokens else bias.axis_exponent).corrected
        axes.plot(compute, [corrected.at(budget) for budget in compute], color=MUTED, lw=1.2, ls="--")
        said += f"\nbroken line, without the\nparabola's bias: {corrected.exponent:.3f}"
    axes.text(0.04, 0.95, said, transform=axes.transAxes, va="top", color=INK)
    axes.set(xscale="log", yscale="log", xlabel="compute C (FLOPs)", ylabel=quantity)
    if not tokens:
        axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    # Few decades need labels between the powers of ten; many have no room for them.
    short = budgets.max() / budgets.min() < 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    # A band that says nothing must not press everything else flat: the axis follows the minima and the line.
    shown = [*(law.at(budget) for budget in compute), *middles]
    axes.set_ylim(min(shown) / _HEADROOM, max(shown) * _HEADROOM)
    _title(axes, "Tokens" if tokens else "Recurrence", fit)


def draw_test_time(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss against test-time recurrence with the fitted curves, for the models of the largest budget or token count.

    Raises ValueError without test-time fits.
    """
    if not fit.test_time:
        raise ValueError(f"this figure needs test-time fits, but there are none: {fit.why_absent('test-time')}")
    column, value, run_ids = _largest_fitted(table, fit)
    fits = sorted((one for one in fit.test_time if one.run_id in run_ids), key=lambda one: one.mean_recurrence or 0.0)
    data = test_time_law_data(table)
    for one, colour in zip(fits, ordered_colours(len(fits)), strict=True):
        mine = data["run_id"] == one.run_id
        recurrence, loss = data["recurrence"][mine], data["loss"][mine]
        smooth = np.linspace(recurrence.min(), recurrence.max(), _CURVE_POINTS)
        axes.plot(smooth, one.loss({"recurrence": smooth}), color=colour, lw=1.4)
        axes.plot(recurrence, loss, "o", color=colour, ms=4, label=f"µ = {one.mean_recurrence:g}")
    axes.set(xlabel="test-time recurrence T (loops)", ylabel="validation loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="dots: measured\nlines: $L_\\infty + Z\\,e^{-zT}$", loc="center left", bbox_to_anchor=(1.0, 0.5))
    unit = "FLOPs" if column == "budget" else "tokens"
    _title(axes, f"Test-time recurrence at {_power_of_ten(value)} {unit}", fit)


def draw_predicted_against_measured(axes: Axes, table: pd.DataFrame, fit: SweepFit) -> None:
    """Loss predicted by the training law against the measured one at T = mu; runs held out are marked.

    Raises ValueError without a training law.
    """
    if fit.training is None:
        raise ValueError(f"this figure needs the training law, but there is none: {fit.why_absent('training')}")
    data = law_data(table)
    predicted, measured = fit.training.loss(data), data["loss"]
    held_ids = {row.run_id for row in fit.held_out.rows} if fit.held_out else set()
    held = np.array([run_id in held_ids for run_id in data["run_id"]])
    ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), measured.max())])
    ends += 0.05 * np.ptp(ends) * np.array([-1, 1])
    axes.plot(ends, ends, color=MUTED, lw=1)
    error = 100 * np.abs(predicted / measured - 1)
    said = f"fitted: {error[~held].mean():.2g}%"
    run_points(axes, measured[~held], predicted[~held], data["run_id"][~held], colour=BLUE, label=said)
    if held.any():
        label = f"held out: {error[held].mean():.2g}%"
        bounds = fit.training.loss_interval({name: values[held] for name, values in data.items()})
        if bounds is not None:
            axes.vlines(measured[held], *bounds, color=ACCENT, lw=1.2)
        ids = data["run_id"][held]
        run_points(axes, measured[held], predicted[held], ids, colour=ACCENT, marker="D", hollow=True, label=label)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="measured loss (nats per token)", ylabel="predicted loss (nats per token)")
    axes.legend(title="mean absolute error", loc="upper left")
    _title(axes, "Training law, T = µ", fit)


def _one(draw: Callable[[Axes, pd.DataFrame, SweepFit], None]) -> Callable[[Figure, pd.DataFrame, SweepFit], None]:
    return lambda figure, table, fit: draw(figure.add_subplot(), table, fit)


def _draw_power_laws(figure: Figure, table: pd.DataFrame, fit: SweepFit) -> None:
    left, right = figure.subplots(1, 2)
    draw_power_law(left, table, fit)
    draw_power_law(right, table, fit, tokens=True)


FIGURES: dict[str, tuple[tuple[float, float], Callable[[Figure, pd.DataFrame, SweepFit], None]]] = {
    "isoflop_curves": ((7.4, 4.6), _one(draw_isoflop_curves)),
    "power_laws": ((8.4, 3.8), _draw_power_laws),
    "test_time_curves": ((7.0, 4.4), _one(draw_test_time)),
    "predicted_against_measured": ((4.8, 4.8), _one(draw_predicted_against_measured)),
}
"""Every figure by file name: its size in inches and what draws it."""


def _nothing_to_show(name: str, table: pd.DataFrame, fit: SweepFit) -> str | None:
    if name == "isoflop_curves" and fit.isoflop is None:
        return fit.why_absent("isoflop")
    if name == "power_laws" and (fit.isoflop is None or fit.isoflop.mean_recurrence_law is None):
        return fit.isoflop.reason if fit.isoflop else fit.why_absent("isoflop")
    if name == "test_time_curves" and not fit.test_time:
        return fit.why_absent("test-time")
    if name == "predicted_against_measured" and fit.training is None:
        return fit.why_absent("training")
    return None


def _largest_fitted(table: pd.DataFrame, fit: SweepFit) -> tuple[str, float, set[str]]:
    """The largest budget (or token count) with test-time fits, and the runs there."""
    fitted = {one.run_id for one in fit.test_time}
    runs = finished_rows(table)
    runs = runs[runs["run_id"].isin(fitted)]
    column = "budget" if "budget" in runs and runs["budget"].notna().all() else "tokens"
    top = float(runs[column].max())
    return column, top, set(runs.loc[runs[column] >= 0.99 * top, "run_id"])


def _title(axes: Axes, text: str, fit: SweepFit) -> None:
    axes.set_title(f"{text} - simulated" if fit.simulated else text, loc="left", color=INK)


def _star(axes: Axes, x: float, y: float, face: object, edge: object) -> None:
    hollow = face != edge
    axes.plot(
        x,
        y,
        "*",
        ms=14,
        mfc=face,
        mec=edge if hollow else "white",
        mew=1.4 if hollow else 0.8,
        zorder=4,
        clip_on=False,
    )


def _log_ticks(axes: Axes, values: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    return rf"${value / 10.0**exponent:.3g} \times 10^{{{exponent}}}$"


def _exponent(symbol: str, law: PowerLaw) -> str:
    text = rf"${symbol}^* \propto C^{{{law.exponent:.3f}}}$"
    return f"{text}\n95%: {law.interval[0]:.3f} to {law.interval[1]:.3f}" if law.interval else text
