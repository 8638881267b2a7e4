"""The figure of two compared sweeps: optima against compute, and what changes from A to B, with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from isoloop.fitting.answer.recommendation import BUDGET_ROUNDING
from isoloop.fitting.compare.comparison import SweepComparison
from isoloop.fitting.compare.difference import BEST_RUNS, LEAST_LOSSES, Difference, best_runs
from isoloop.fitting.compare.multiplier import ComputeMultiplier
from isoloop.fitting.compare.quantities import BEST_MODEL, GROWTH, LAW_SECTIONS
from isoloop.fitting.compare.side import ComparedSweep
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.figures.axes import decade_ticks, mark_handle, place_legend, power_of_ten, series_handle
from isoloop.fitting.figures.isoflop import draw_law_and_minima, finish_optimum_axes
from isoloop.fitting.figures.style import ACCENT, BLUE, INK, STYLE, SeriesStyle, escape_dollars, run_points, save_figure
from isoloop.fitting.isoflop.power_law import POWER_LAWS, PowerLaw
from isoloop.fitting.surface.quantity import Quantity

_SIZE = (7.2, 5.4)
_MULTIPLIER_HEIGHT = 1.9
"""Height in inches of the panel of the compute multiplier."""
_STYLES = (SeriesStyle(colour=BLUE, marker="o", line="-"), SeriesStyle(colour=ACCENT, marker="s", line="--"))
_OFFSETS = (0.98, 1.02)
"""Factors on budgets that put points of equal budgets side by side, so that neither hides the other."""
_SHORT_NAMES = {
    "exponent of mu*": "γµ",
    "exponent of N*": "γN",
    "exponent of D*": "γD",
    ", without the parabola's bias": ", without bias",
}
_OPTIMUM_UNITS = {axis.unit for axis in AXES.values()}
_MOST_BUDGETS = 8
_SHORT_RATIO = 2.0
"""Ratio of its ends below which a log axis has no round numbers in it."""

Pair = tuple[ComparedSweep, ComparedSweep]


def save_comparison(pair: Pair, comparison: SweepComparison, folder: str | Path) -> tuple[Path, ...]:
    """Draw the comparison of a pair of sweeps into `folder` as compare.png, .svg and .pdf, and return the paths."""
    with mpl.rc_context(STYLE):
        width, height = _SIZE
        height += 0.0 if comparison.multiplier is None else _MULTIPLIER_HEIGHT
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw_comparison(figure, pair, comparison)
    return save_figure(figure, folder, "compare")


def draw_comparison(figure: Figure, pair: Pair, comparison: SweepComparison) -> None:
    """Draw the best models against compute above, µ* (or N*) and D*, and the changes from A to B below.

    The best runs stand above instead of what the two don't share: power laws, or the axis. Between them stands the
    compute multiplier, if there is one.
    """
    changes = {
        "Exponents": _exponent_changes(pair, comparison),
        "Optima": _optimum_changes(comparison),
        "Losses at equal FLOPs": _loss_changes(comparison),
    }
    changes = {title: shown for title, shown in changes.items() if shown}
    multiplier = comparison.multiplier
    heights = [1.15, *([_MULTIPLIER_HEIGHT / 2.4] if multiplier else []), *([1.0] if changes else [])]
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    above = parts[0, 0]
    # Optima, or best runs.
    left, right = above.subplots(1, 2)
    laws = [_optimum_laws(sweep) is not None for sweep in pair]
    same_axis = pair[0].axis == pair[1].axis
    tokens_differ = comparison.incomparable.get("tokens")
    if all(sweep.joint for sweep in pair):
        bare = [name for name, sweep in zip("AB", pair, strict=True) if sweep.joint and not sweep.joint.frontier]
        have = "has" if len(bare) == 1 else "have"
        why_not = f"{' and '.join(bare)} {have} no best models through budgets" if bare else ""
        _panel(left, lambda: draw_pair_frontiers(left, pair, "params"), why_not)
        _panel(right, lambda: draw_pair_frontiers(right, pair, "mean_recurrence"), why_not)
    elif all(laws) and same_axis:
        draw_pair_optima(left, pair)
        _panel(right, lambda: draw_pair_optima(right, pair, tokens=True), tokens_differ)
    else:
        without = [f"{name} has no run table" for name, sweep in zip("AB", pair, strict=True) if sweep.table is None]
        _panel(left, lambda: draw_best_runs(left, pair), comparison.incomparable.get("losses") or ", ".join(without))
        if all(laws):
            _panel(right, lambda: draw_pair_optima(right, pair, tokens=True), tokens_differ)
        else:
            lone = "" if any(laws) else "neither has power laws"
            one_joint = "best models of any size are not read from isoFLOP curves"
            one = one_joint if any(sweep.joint for sweep in pair) else lone
            _panel(right, lambda: draw_pair_optima(right, pair), one)
    handles = [
        series_handle(style, f"{letter}: {escape_dollars(sweep.name)}{' (simulated)' if sweep.simulated else ''}")
        for letter, sweep, style in zip("AB", pair, _STYLES, strict=True)
    ]
    above.legend(handles=handles, loc="outside upper left", ncols=2, title="bars and bands: 95%")
    # The multiplier, and changes.
    if multiplier is not None:
        draw_multiplier(parts[1, 0].subplots(), multiplier)
    if not changes:
        return
    below = parts[-1, 0]
    for axes, (title, shown) in zip(np.ravel(below.subplots(1, len(changes))), changes.items(), strict=True):
        draw_changes(axes, shown, ratio=title == "Optima")
        axes.set_title(title, loc="left", color=INK)
    handles = [
        mark_handle("95% interval excludes no change", marker="o"),
        mark_handle("interval includes no change, or no interval", marker="o", hollow=True),
    ]
    below.legend(handles=handles, loc="outside lower center", ncols=2)


def _panel(axes: Axes, draw: Callable[[], None], why_not: str | None) -> None:
    """Draw a panel, or write the reason why it isn't drawn."""
    if not why_not:
        draw()
        return
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(f"not drawn: {why_not}", 40), ha="center", va="center", transform=axes.transAxes)


def draw_pair_optima(axes: Axes, pair: Pair, *, tokens: bool = False) -> None:
    """Draw the best value on the axis (or tokens) of both sweeps against compute, as far as they have power laws."""
    shown: list[float] = []
    column = "tokens"
    for sweep, style, offset in zip(pair, _STYLES, _OFFSETS, strict=True):
        laws = _optimum_laws(sweep)
        if laws is None or sweep.single is None:
            continue
        column = column if tokens else sweep.axis
        low, high = sweep.flops_range
        shown += draw_law_and_minima(
            axes,
            sweep.single,
            laws[tokens],
            np.geomspace(low / 1.3, high * 1.3, 60),
            tokens=tokens,
            law_style={"color": style.colour, "ls": style.line},
            marker=style.marker,
            colour=style.colour,
            offset=offset,
        )
    finish_optimum_axes(axes, column, shown)


def draw_pair_frontiers(axes: Axes, pair: Pair, column: str) -> None:
    """Draw the best size or mean recurrence of two joint fits through budgets, with 95% bars.

    Points beyond the compute that was run are hollow.
    """
    shown: list[float] = []
    for sweep, style, offset in zip(pair, _STYLES, _OFFSETS, strict=True):
        assert sweep.joint is not None
        points = sweep.joint.frontier
        budgets = [point.budget * offset for point in points]
        best: list[Quantity] = [getattr(point, column) for point in points]
        axes.plot(budgets, [each.value for each in best], color=style.colour, ls=style.line, zorder=2)
        for point, at, each in zip(points, budgets, best, strict=True):
            face = "white" if point.budget > sweep.flops_range[1] * BUDGET_ROUNDING else style.colour
            axes.plot(at, each.value, ls="", marker=style.marker, color=style.colour, mfc=face, zorder=4)
            if each.interval:
                axes.plot([at, at], each.interval, color=style.colour, lw=0.9, zorder=3)
            shown += [each.value, *(each.interval or ())]
    finish_optimum_axes(axes, column, shown)


def draw_best_runs(axes: Axes, pair: Pair) -> None:
    """Draw the loss of each budget's best run of both sweeps, with 95% bars where several seeds give them."""
    for sweep, style in zip(pair, _STYLES, strict=True):
        best = best_runs(sweep.table) if sweep.table is not None else {}
        budgets = sorted(best)
        losses = [best[budget].loss for budget in budgets]
        values, run_ids = [loss.value for loss in losses], [best[budget].run_ids[0] for budget in budgets]
        axes.plot(budgets, values, color=style.colour, ls=style.line)
        run_points(axes, budgets, values, run_ids, colour=style.colour, marker=style.marker)
        for budget, loss in zip(budgets, losses, strict=True):
            if loss.interval is not None:
                axes.plot([budget, budget], loss.interval, color=style.colour, lw=0.9)
    axes.set(xlabel="compute C (FLOPs)", ylabel="best run's loss (nats per token)")
    decade_ticks(axes.xaxis)


def draw_multiplier(axes: Axes, multiplier: ComputeMultiplier) -> None:
    """Draw how many times the FLOPs of B sweep A needs for B's loss, at B's budgets, with 95% bars.

    Hollow points are extrapolated. An arrow marks an interval without an upper end, or a loss that A never reaches.
    """
    rows = multiplier.at_budgets
    known = [row.value for row in rows if row.value is not None]
    top = 1.5 * max([*known, *(end or 0.0 for row in rows for end in row.interval or ()), 1.0])
    axes.axhline(1.0, color=INK, lw=0.8, zorder=1)
    for row in rows:
        low, high = row.interval or (row.value, row.value)
        if low is not None:
            axes.plot([row.flops] * 2, [low, top if high is None else high], color=BLUE, lw=1.2, solid_capstyle="butt")
        if high is None:
            axes.plot(row.flops, top, "^", color=BLUE, ms=4.5)
        if row.value is not None:
            axes.plot(
                row.flops, row.value, "o", color=BLUE, mfc="white" if row.extrapolated else BLUE, ms=4.5, zorder=3
            )
    decade_ticks(axes.xaxis)
    decade_ticks(axes.yaxis, text="{:g}".format)
    axes.set(xlabel="compute of B (FLOPs)", ylabel="FLOPs of A / FLOPs of B")
    axes.set_title("Compute that A needs for B's loss, as a multiple of B's", loc="left", color=INK)
    bottom, top = axes.get_ylim()
    if top / bottom < _SHORT_RATIO:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    handles = []
    if not all(row.extrapolated for row in rows):
        handles.append(mark_handle("measured range", marker="o", colour=BLUE))
    if any(row.extrapolated for row in rows):
        handles.append(mark_handle("extrapolated", marker="o", colour=BLUE, hollow=True))
    if any(row.interval and row.interval[1] is None for row in rows) or len(known) < len(rows):
        handles.append(mark_handle("no upper limit, or never", marker="^", colour=BLUE))
    handles.append(mark_handle("equal compute;\nabove, B needs less", line="-"))
    place_legend(axes, handles, "bars: 95%")


def draw_changes(axes: Axes, differences: Sequence[Difference], *, ratio: bool) -> None:
    """Draw a dot for each change from A to B with its 95% interval, from the top.

    A dot is filled if its interval excludes that nothing changes.
    """
    axes.axvline(1.0 if ratio else 0.0, color=INK, lw=0.8, zorder=1)
    for place, difference in enumerate(differences):
        assert difference.change is not None
        if difference.interval is not None:
            axes.plot(difference.interval, [place, place], color=INK, lw=1.2, solid_capstyle="butt")
        face = INK if difference.differs else "white"
        axes.plot(difference.change, place, "o", color=INK, mfc=face, ms=4.5, zorder=3)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_yticks(range(len(differences)), [_label(difference) for difference in differences])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    in_nats = {difference.unit for difference in differences} == {"nats per token"}
    unit = " (nats per token)\nleft of the line: B is better" if in_nats else ""
    axes.set_xlabel("B / A" if ratio else f"B − A{unit}")
    if ratio:
        decade_ticks(axes.xaxis, text="{:g}".format)
    low, high = axes.get_xlim()
    if not ratio or high / low < _SHORT_RATIO:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _optimum_laws(sweep: ComparedSweep) -> tuple[PowerLaw, PowerLaw] | None:
    """Return the power laws of µ* (or N*) and of D*, None unless the sweep has both."""
    isoflop = sweep.single.isoflop if sweep.single is not None else None
    if isoflop is None or isoflop.axis_law is None or isoflop.tokens_law is None:
        return None
    return isoflop.axis_law, isoflop.tokens_law


def _exponent_changes(pair: Pair, comparison: SweepComparison) -> list[Difference]:
    """Return the changes of the power laws' exponents, and of the training law's parameters that it isn't linear in."""
    law = next((sweep.law for sweep in pair if sweep.law), None)
    names = law.form.parameter_names[law.form.linear_count :] if law else ()
    exponents = [change for change in comparison.of(POWER_LAWS) if change.kind == "difference"]
    exponents += comparison.of(GROWTH)
    of_laws = [*comparison.of(LAW_SECTIONS["training"]), *comparison.of(LAW_SECTIONS["sizes"])]
    return exponents + [change for change in of_laws if change.name in names]


def _optimum_changes(comparison: SweepComparison) -> list[Difference]:
    """Return the ratios of µ* (or N*) and D* by the power laws, or else by the laws after training."""
    for section in (POWER_LAWS, BEST_MODEL):
        changes = [change for change in comparison.of(section) if change.kind == "ratio" and change.change is not None]
        ratios = [x for x in changes if x.unit in _OPTIMUM_UNITS and x.flops in comparison.optima_flops]
        if ratios:
            return ratios
    return []


def _loss_changes(comparison: SweepComparison) -> list[Difference]:
    """Return the changes of losses: of the curves' minima, or else of runs, and of the laws' best models."""
    measured = comparison.of(LEAST_LOSSES) or comparison.of(BEST_RUNS)
    best = [change for change in comparison.of(BEST_MODEL) if change.kind == "difference"]
    return [change for change in (*measured[-_MOST_BUDGETS:], *best) if change.change is not None]


def _label(difference: Difference) -> str:
    """Return a short name for a row of the changes."""
    if difference.section == BEST_RUNS:
        name = "run"
    elif difference.section == BEST_MODEL and difference.unit == "nats per token":
        name = "law"
    else:
        name = difference.name
        for long, short in _SHORT_NAMES.items():
            name = name.replace(long, short)
        name = name.replace("mu*", "µ*").replace("loss", "curve" if difference.section == LEAST_LOSSES else "loss")
    return name if difference.flops is None else f"{name}, {power_of_ten(difference.flops)}"
