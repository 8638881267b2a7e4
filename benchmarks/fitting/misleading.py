"""`python -m benchmarks.fitting.misleading`: the figures of docs/fitting.md on what can mislead in a fit."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.fitting import studies
from benchmarks.fitting.warm_start import WarmStart, warm_start
from isoloop.fitting.figures.style import STYLE

_INK, _MUTED, _ORANGE, _BLUE, _GREEN = "#222222", "#767676", "#d55e00", "#0072b2", "#009e73"


def draw_accounting(figure: Figure, rows: Sequence[studies.Counted]) -> None:
    """Draw the best loops and tokens against compute under two accountings, labelled with their exponents."""
    left, right = figure.subplots(1, 2)
    for row, colour, marker in zip(rows, (_BLUE, _ORANGE), ("o", "D"), strict=True):
        for axes, best, ends, symbol, (gamma, bounds) in (
            (
                left,
                row.mean_recurrence,
                row.mean_recurrence_ends,
                "µ",
                (row.gamma_recurrence, row.gamma_recurrence_interval),
            ),
            (right, row.tokens, row.tokens_ends, "D", (row.gamma_tokens, row.gamma_tokens_interval)),
        ):
            axes.fill_between(row.budgets, *ends, color=colour, alpha=0.2, lw=0)
            label = rf"{row.accounting}: ${symbol}^* \propto C^{{{gamma:.3f}}}$  ({bounds[0]:.3f} to {bounds[1]:.3f})"
            axes.plot(row.budgets, best, color=colour, marker=marker, ms=4, lw=1.4, label=label)
    for axes, name in ((left, "best mean recurrence µ* (loops)"), (right, "best training length D* (tokens)")):
        axes.set(xscale="log", yscale="log", xlabel="compute C (FLOPs, as counted)", ylabel=name)
        axes.legend(loc="upper left", handlelength=1.6)
    left.yaxis.set_major_locator(FixedLocator([2, 4, 6, 8, 12, 16, 24]))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    for axes in (left, right):
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.25)
    _title(figure, "One sweep, one fit, compute counted in two ways (exponents with 95%) - simulated")


def draw_grid_width(figure: Figure, rows: Sequence[studies.GridResult]) -> None:
    """Draw the error of the exponent on each grid: without noise, over sweeps, and over sweeps with the correction."""
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        for ends, middle, shift, colour, label in (
            (row.parabola, row.parabola_median, -0.16, _ORANGE, "parabolas: median and 95% of sweeps"),
            (row.corrected, row.corrected_median, 0.16, _BLUE, "the same, corrected for the bias"),
        ):
            _bar(axes, ends, middle, place + shift, colour, label if not place else None)
        bias = {"label": "parabolas without noise: the bias"} if not place else {}
        axes.plot(row.without_noise, place - 0.16, "D", color=_INK, mfc="white", ms=5, zorder=4, **bias)
        said = f"{row.included:.1f} of 5, {row.parabola_covered:.0%} / {row.corrected_covered:.0%}"
        axes.text(1.02, place, said, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=_INK)
    above = "budgets used;\n95% intervals that hold\n(parabolas / corrected)"
    axes.text(1.02, -0.75, above, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8.5, color=_MUTED)
    axes.axvline(0, color=_MUTED, lw=1)
    axes.set_yticks(range(len(rows)), [f"{row.grid}\n{row.runs} runs" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("exponent of µ* in C, minus the law's own exponent (0.33)")
    axes.set_ylabel("mean recurrences trained at each budget")
    figure.legend(loc="outside lower center", ncols=1)
    axes.set_title("The grid decides the exponent - simulated", loc="left", color=_INK)


def draw_few_budgets(figure: Figure, rows: Sequence[studies.BudgetsResult]) -> None:
    """Draw width and coverage of 95% intervals against the number of budgets."""
    left, right = figure.subplots(1, 2)
    named = {
        "y": ("law: exponent y of D", _BLUE, "o"),
        "gamma_mu": ("law: exponent of µ*", _GREEN, "s"),
        "gamma_mu, parabolas": ("parabolas: exponent of µ*", _ORANGE, "D"),
        "loss": ("law: loss at twice the compute (%)", _INK, "^"),
    }
    for offset, (quantity, (label, colour, marker)) in zip(np.linspace(-0.15, 0.15, 4), named.items(), strict=True):
        mine = [row for row in rows if row.quantity == quantity]
        counts = np.array([row.budgets for row in mine]) + offset
        widths, ends = np.array([row.width for row in mine]), np.array([row.widths for row in mine]).T
        style = {"color": colour, "marker": marker, "ms": 4.5, "lw": 1.2, "elinewidth": 1, "capsize": 2}
        left.errorbar(counts, widths, [widths - ends[0], ends[1] - widths], label=label, **style)
        share = np.array([row.covered / row.sweeps for row in mine])
        error = np.sqrt(share * (1 - share) / np.array([row.sweeps for row in mine]))
        right.errorbar(counts, 100 * share, 100 * error, **style)
    right.axhline(95, color=_MUTED, lw=1, ls="--")
    left.set(yscale="log", ylabel="width of the 95% interval")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(ylabel="intervals that hold the truth (%)", ylim=(None, 100.5))
    for axes in (left, right):
        axes.set_xticks(sorted({row.budgets for row in rows}))
        axes.set_xlabel("budgets in the sweep, each twice the last")
    figure.legend(
        loc="outside lower center",
        ncols=2,
        title="bars: 95% of the sweeps on the left, one standard error on the right",
    )
    _title(figure, "Few budgets - simulated")


def draw_outliers(figure: Figure, rows: Sequence[studies.OutlierResult]) -> None:
    """Draw exponent and held-out error over sweeps, by objective and kind of outlier."""
    left, right = figure.subplots(1, 2, sharey=True)
    cases = list(dict.fromkeys(row.case for row in rows))
    for row in rows:
        squared = row.objective == "squared error"
        place = cases.index(row.case) + (-0.14 if squared else 0.14)
        colour, label = (_ORANGE if squared else _BLUE), (row.objective if row.case == cases[0] else None)
        _bar(left, row.exponents, row.exponent, place, colour, label)
        _bar(right, row.errors, row.error, place, colour, None)
    left.axvline(studies.TRUTH[4], color=_MUTED, lw=1, ls="--")
    right.axvline(0, color=_MUTED, lw=1, ls="--")
    left.set_yticks(range(len(cases)), [case.replace(" with ", "\nwith ") for case in cases])
    left.set_ylim(len(cases) - 0.5, -0.5)
    left.set_xlabel("exponent y of the tokens")
    right.set_xlabel("error of the loss at twice the compute (%)")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center", ncols=2, title="median and 95% of sweeps; dashed: the truth")
    _title(figure, "Outliers, and what is minimised - simulated")


def draw_warm_start(figure: Figure, rows: Sequence[WarmStart]) -> None:
    """Draw the refitted values of each parameter by each way to refit, with their 95% intervals."""
    names, ways = (list(dict.fromkeys(getattr(row, what) for row in rows)) for what in ("parameter", "way"))
    panels = dict(zip(names, figure.subplots(1, len(names), sharey=True), strict=True))
    units = {"E": "E (nats per token)", "x": "exponent x of N(µ)", "y": "exponent y of D"}
    rng = np.random.default_rng(0)
    for row in rows:
        axes, place = panels[row.parameter], ways.index(row.way)
        colour = _ORANGE if "warm" in row.way else _BLUE
        jitter = place + 0.22 + 0.1 * rng.uniform(-1, 1, len(row.values))
        axes.plot(row.values, jitter, ".", color=colour, ms=4, alpha=0.6, mew=0)
        _bar(axes, row.interval, row.estimate, place - 0.1, colour, None)
        width = f"{row.interval[1] - row.interval[0]:.2g}"
        axes.text(row.estimate, place - 0.24, f"95%: {width} wide", ha="center", fontsize=8.5, color=_INK)
    for name, axes in panels.items():
        axes.set_xlabel(units[name])
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(ways) - 0.5, -0.55)
    first = panels[names[0]]
    first.set_yticks(range(len(ways)), [way.replace("one warm", "one warm\n").replace("\n-", "-\n") for way in ways])
    _title(figure, "The same resamples, refitted in three ways - simulated")


def draw_fitted_apart(figure: Figure, rows: Sequence[studies.Overspent]) -> None:
    """Draw how far the two minima of a budget are from spending it, without noise and over sweeps."""
    axes = figure.add_subplot()
    budgets = np.array([row.budget for row in rows])
    median, ends = np.array([row.median for row in rows]), np.array([row.span for row in rows]).T
    label = "median and 95% of sweeps"
    style = {"color": _ORANGE, "fmt": "o", "ms": 5, "lw": 1.2, "capsize": 3, "label": label}
    axes.errorbar(budgets, median, [median - ends[0], ends[1] - median], **style)
    alone = [(row.budget, row.without_noise) for row in rows if row.without_noise is not None]
    axes.plot(*zip(*alone, strict=True), "D", color=_INK, mfc="white", ms=5, label="without noise")
    axes.axhline(0, color=_MUTED, lw=1)
    axes.set(xscale="log", xlabel="budget C (FLOPs)", ylabel="compute of µ* and D* together,\nbeyond the budget (%)")
    axes.xaxis.set_major_locator(FixedLocator(list(budgets)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left")
    axes.set_title("Parabolas in µ and in D, fitted apart - simulated", loc="left", color=_INK)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One figure: its study, the function that draws it, and its size in inches."""

    make: Callable[..., list[Any]]
    draw: Callable[[Figure, Sequence[Any]], None]
    size: tuple[float, float]


STUDIES: dict[str, Study] = {
    "accounting": Study(make=studies.accounting, draw=draw_accounting, size=(8.4, 3.8)),
    "grid-width": Study(make=studies.grid_width, draw=draw_grid_width, size=(7.8, 5.6)),
    "few-budgets": Study(make=studies.few_budgets, draw=draw_few_budgets, size=(8.4, 4.0)),
    "outliers": Study(make=studies.outliers, draw=draw_outliers, size=(8.4, 3.6)),
    "warm-start": Study(make=warm_start, draw=draw_warm_start, size=(8.4, 3.6)),
    "fitted-apart": Study(make=studies.fitted_apart, draw=draw_fitted_apart, size=(5.6, 3.8)),
}
"""The figures by the last part of their file's name."""


def write(name: str, rows: Sequence[Any], folder: Path) -> Path:
    """Draw the rows of one study to `folder`/fitting-`name`.png (150 dpi)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fitting-{name}.png"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=STUDIES[name].size, layout="constrained")
        FigureCanvasAgg(figure)
        STUDIES[name].draw(figure, rows)
        figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def text(rows: Sequence[Any]) -> str:
    """Return the rows as text, without long arrays."""
    return "\n".join("  " + ", ".join(_cells(row)) for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every study, print its numbers and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the figures")
    out = parser.parse_args(arguments).out
    for name, study in STUDIES.items():
        rows = study.make()
        print(f"{write(name, rows, out)}\n{text(rows)}", flush=True)


def _cells(row: Any) -> list[str]:
    cells = []
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, tuple):
            cells.append(f"{field.name} {value[0]:.4g} to {value[1]:.4g}")
        elif not isinstance(value, np.ndarray):
            cells.append(f"{field.name} {value:.4g}" if isinstance(value, float) else f"{field.name} {value}")
    return cells


def _bar(axes: Axes, ends: tuple[float, float], middle: float, place: float, colour: str, label: str | None) -> None:
    axes.errorbar(
        middle,
        place,
        xerr=[[max(middle - ends[0], 0)], [max(ends[1] - middle, 0)]],
        fmt="o",
        color=colour,
        ms=4.5,
        lw=1.8,
        capsize=3,
        label=label,
    )


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", color=_INK, size=11)


def _power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    return rf"${value / 10.0**exponent:.3g} \times 10^{{{exponent}}}$"


if __name__ == "__main__":
    main()
