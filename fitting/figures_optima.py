"""The figure of a law's optima: the best mean recurrence or tokens against compute, counted in several ways."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fitting.figure_legend import bar_handle, place_legend, series_handle, set_title
from fitting.figure_style import series_styles
from fitting.figure_ticks import decade_ticks
from fitting.figures_isoflop import exponent_text
from fitting.optima import LawOptima


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
