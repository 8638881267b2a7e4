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
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from isoloop.fitting.compare.comparison import SweepComparison
from isoloop.fitting.compare.difference import BEST_RUNS, LEAST_LOSSES, Difference, best_runs
from isoloop.fitting.compare.side import BEST_MODEL, LAW_SECTIONS, POWER_LAWS, ComparedSweep
from isoloop.fitting.estimation.bootstrap import reach
from isoloop.fitting.figures.axes import decade_ticks, grid_ticks, power_of_ten
from isoloop.fitting.figures.style import ACCENT, BAND, BLUE, INK, STYLE, plain, run_points, save_figure
from isoloop.fitting.isoflop.power_law import PowerLaw

NAME = "compare"
_COLOURS, _MARKERS, _LINES = (BLUE, ACCENT), ("o", "s"), ("-", "--")
_RECURRENCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_HEADROOM = 2.0
_ASIDE = (0.98, 1.02)
"""Points of equal budgets stand side by side, so that neither hides the other."""
_FARTHEST = 20.0
_SHORT = {"exponent of mu*": "γµ", "exponent of D*": "γD", ", without the parabola's bias": ", without bias"}
_MOST_BUDGETS = 8
_SHORT_RATIO = 2.0
_SIZE = (7.2, 5.4)

Pair = tuple[ComparedSweep, ComparedSweep]


def save_comparison(pair: Pair, comparison: SweepComparison, folder: str | Path) -> tuple[Path, ...]:
    """Draw the comparison of a pair of sweeps into `folder` as compare.png, .svg and .pdf, and return the paths."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        draw_comparison(figure, pair, comparison)
    return save_figure(figure, folder, NAME)


def draw_comparison(figure: Figure, pair: Pair, comparison: SweepComparison) -> None:
    """Above, mu* and D* against compute, or the best runs where a sweep has no power laws; below, the changes."""
    changes = [
        (title, kind, shown)
        for title, kind, shown in (
            ("Exponents", "difference", _exponents(comparison)),
            ("Optima", "ratio", _optima(comparison)),
            ("Losses at equal FLOPs", "difference", _losses(comparison)),
        )
        if shown
    ]
    if changes:
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        above, below = parts
    else:
        above = figure.subfigures()
    left, right = above.subplots(1, 2)
    laws = [_laws(sweep) is not None for sweep in pair]
    if all(laws):
        draw_optima(left, pair)
        _panel(right, lambda: draw_optima(right, pair, tokens=True), comparison.incomparable.get("tokens"))
    else:
        without = [f"{letter} has no run table" for letter, one in zip("AB", pair, strict=True) if one.table is None]
        _panel(left, lambda: draw_best_runs(left, pair), comparison.incomparable.get("losses") or ", ".join(without))
        _panel(right, lambda: draw_optima(right, pair), "" if any(laws) else "neither has power laws")
    for letter, sweep, colour, marker, line in zip("AB", pair, _COLOURS, _MARKERS, _LINES, strict=True):
        simulated = " (simulated)" if sweep.simulated else ""
        left.plot([], [], color=colour, marker=marker, ls=line, label=f"{letter}: {plain(sweep.name)}{simulated}")
    above.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, title="bars and bands: 95%")
    if not changes:
        return
    for axes, (title, kind, shown) in zip(np.ravel(below.subplots(1, len(changes))), changes, strict=True):
        draw_changes(axes, shown, ratio=kind == "ratio")
        axes.set_title(title, loc="left", color=INK)
    told = (("95% interval excludes no change", INK), ("it doesn't, or there is none", "white"))
    dots = [Line2D([], [], ls="", marker="o", color=INK, mfc=face, label=label) for label, face in told]
    below.legend(handles=dots, loc="outside lower center", ncols=2)


def _panel(axes: Axes, draw: Callable[[], None], why_not: str | None) -> None:
    """Draw a panel, or say why there is none."""
    if not why_not:
        draw()
        return
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(f"not drawn: {why_not}", 40), ha="center", va="center", transform=axes.transAxes)


def draw_optima(axes: Axes, pair: Pair, *, tokens: bool = False) -> None:
    """The best mean recurrence (or tokens) of both against compute: minima with 95% bars, power laws with bands.

    A sweep without a power law is left out.
    """
    shown: list[float] = []
    for sweep, colour, marker, line, aside in zip(pair, _COLOURS, _MARKERS, _LINES, _ASIDE, strict=True):
        laws = _laws(sweep)
        if laws is None or sweep.fit is None or sweep.fit.isoflop is None:
            continue
        law = laws[tokens]
        low, high = sweep.flops_range
        compute = np.geomspace(low / 1.3, high * 1.3, 60)
        middle = np.exp(law.log_at(compute))
        axes.plot(compute, middle, color=colour, ls=line)
        shown += list(middle)
        if law.draws:
            band = np.array([law.interval_at(budget) for budget in compute])
            axes.fill_between(compute, band[:, 0], band[:, 1], color=colour, alpha=BAND, lw=0)
        for minimum in sweep.fit.isoflop.included:
            assert minimum.mean_recurrence is not None
            half = min(reach(sweep.fit.isoflop.noise_dof) * (minimum.log_error or 0.0), _FARTHEST)
            ends = minimum.mean_recurrence * np.exp(half * np.array([-1, 0, 1]))
            least, best, most = np.sort(sweep.fit.cost_model.tokens_for(minimum.budget, ends)) if tokens else ends
            bars = [[best - least], [most - best]]
            axes.errorbar(minimum.budget * aside, best, bars, fmt=marker, color=colour, capsize=2, lw=0.9)
            shown.append(float(best))
    axes.set_xlabel("compute C (FLOPs)")
    axes.set_ylabel("best training length D* (tokens)" if tokens else "best mean recurrence µ* (loops)")
    decade_ticks(axes.xaxis)
    if tokens:
        decade_ticks(axes.yaxis)
    else:
        grid_ticks(axes.yaxis, _RECURRENCES)
    # A band that says nothing must not press everything else flat.
    axes.set_ylim(min(shown) / _HEADROOM, max(shown) * _HEADROOM)


def draw_best_runs(axes: Axes, pair: Pair) -> None:
    """The loss of the best run of each budget, of both sweeps, with 95% bars where seeds give such."""
    for sweep, colour, marker, line in zip(pair, _COLOURS, _MARKERS, _LINES, strict=True):
        best = best_runs(sweep.table) if sweep.table is not None else {}
        budgets = sorted(best)
        losses = [best[budget].loss for budget in budgets]
        axes.plot(budgets, [loss.value for loss in losses], color=colour, ls=line)
        run_points(
            axes,
            budgets,
            [loss.value for loss in losses],
            [best[budget].run_ids[0] for budget in budgets],
            colour=colour,
            marker=marker,
        )
        for budget, loss in zip(budgets, losses, strict=True):
            if loss.interval is not None:
                axes.plot([budget, budget], loss.interval, color=colour, lw=0.9)
    axes.set(xlabel="compute C (FLOPs)", ylabel="best run's loss (nats per token)")
    decade_ticks(axes.xaxis)


def draw_changes(axes: Axes, differences: Sequence[Difference], *, ratio: bool) -> None:
    """A dot for each change from A to B with its 95% interval, from the top; hollow where there is no interval."""
    none = 1.0 if ratio else 0.0
    axes.axvline(none, color=INK, lw=0.8, zorder=1)
    for place, one in enumerate(differences):
        assert one.change is not None
        if one.interval is not None:
            axes.plot(one.interval, [place, place], color=INK, lw=1.2, solid_capstyle="butt")
        axes.plot(one.change, place, "o", color=INK, mfc=INK if one.differs else "white", ms=4.5, zorder=3)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(differences))))
    axes.set_yticklabels([_label(one) for one in differences])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    units = {one.unit for one in differences}
    unit = " (nats per token)" if units == {"nats per token"} else ""
    better = "\nleft of the line: B is better" if units == {"nats per token"} else ""
    axes.set_xlabel("B / A" if ratio else f"B − A{unit}{better}")
    if ratio:
        decade_ticks(axes.xaxis, text=lambda value: f"{value:g}")
    low, high = axes.get_xlim()
    if not ratio or high / low < _SHORT_RATIO:  # so short a log axis has no round numbers in it
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _laws(sweep: ComparedSweep) -> tuple[PowerLaw, PowerLaw] | None:
    """The power laws of mu* and of D*."""
    isoflop = sweep.fit.isoflop if sweep.fit is not None else None
    if isoflop is None or isoflop.mean_recurrence_law is None or isoflop.tokens_law is None:
        return None
    return isoflop.mean_recurrence_law, isoflop.tokens_law


def _exponents(comparison: SweepComparison) -> list[Difference]:
    of_law = [one for one in comparison.of(LAW_SECTIONS["training"]) if one.unit == "1"]
    return [one for one in comparison.of(POWER_LAWS) if one.kind == "difference"] + of_law


def _optima(comparison: SweepComparison) -> list[Difference]:
    """Ratios of mu* and D*, at the computes that were asked for: by power laws, or else by the training laws."""
    for section in (POWER_LAWS, BEST_MODEL):
        found = [one for one in comparison.of(section) if one.kind == "ratio" and one.unit in ("loops", "tokens")]
        found = [one for one in found if one.flops in comparison.optima_flops and one.change is not None]
        if found:
            return found
    return []


def _losses(comparison: SweepComparison) -> list[Difference]:
    """Differences of losses: of curves where both have them, else of runs, and of the training laws' best models."""
    measured = comparison.of(LEAST_LOSSES) or comparison.of(BEST_RUNS)
    best = [one for one in comparison.of(BEST_MODEL) if one.kind == "difference"]
    return [one for one in (*measured[-_MOST_BUDGETS:], *best) if one.change is not None]


def _label(one: Difference) -> str:
    name = one.name
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    name = name.replace("mu*", "µ*").replace("loss", "curve" if one.section == LEAST_LOSSES else "loss")
    if one.section == BEST_MODEL and one.unit == "nats per token":
        name = "law"
    if one.section == BEST_RUNS:
        name = "run"
    return name if one.flops is None else f"{name}, {power_of_ten(one.flops)}"
