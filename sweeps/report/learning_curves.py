"""The learning curves of a sweep: each run's training loss by its journal, small multiples with one legend."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isoloop.fitting import is_dense
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.figures.axes import decade_ticks, mark_handle, power_of_ten
from isoloop.fitting.figures.style import (
    STYLE,
    SeriesStyle,
    escape_dollars,
    run_line,
    run_points,
    series_styles,
)
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.axes import SEED
from isoloop.trainer.run.journal import read_journal

SMOOTHING = 0.05
"""Share of a point's tokens within which logged losses are averaged."""
MOST_CURVES = 200
"""Most runs that are drawn; each of them takes about two kilobytes of a page."""
CURVE_POINTS = (40, 160)
"""Fewest and most points of a run's line, of which many runs have fewer."""
MOST_POINTS = 10_000
"""Points of all lines together, unless each has its fewest."""
MOST_PANELS = 12
LEARNING_WIDTH = 6.9
"""Usual width of the figure in inches."""
_MOST_LABELS = 10
_TEXT_SIZE = 8
_CHARACTERS = 13
"""Characters of a panel's title for each inch of its width."""
_END_MARKS = {"diverged": "x", "failed": "o"}


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The training loss of one run (nats per token), smoothed and thinned, and its validation losses during training.

    Attributes:
        tokens: training tokens of each point, ascending.
        losses: at each point.
        validations: tokens and validation loss at T = µ, for each evaluation during training.
        last_step: the last step with a logged loss, which is `last_loss`, as it was logged.
    """

    tokens: np.ndarray
    losses: np.ndarray
    validations: tuple[tuple[float, float], ...]
    last_step: int
    last_loss: float


def read_curve(journal: Path, points: int = CURVE_POINTS[1]) -> LearningCurve | None:
    """Read the learning curve of a run from its journal, with about so many points; None if it logged no loss."""
    metrics = [record for record in read_journal(journal)[0] if record["kind"] == "metrics"]
    logged = [each for each in metrics if math.isfinite(each["values"].get("train_loss", math.nan))]
    if not logged:
        return None
    tokens = np.array([each["values"]["tokens"] for each in logged], dtype=float)
    losses = np.array([each["values"]["train_loss"] for each in logged], dtype=float)
    smooth = smooth_losses(tokens, losses)
    kept = thinned(tokens, smooth, points)
    per_step = tokens[-1] / logged[-1]["step"]
    return LearningCurve(
        tokens=tokens[kept],
        losses=smooth[kept],
        validations=tuple(
            (each["step"] * per_step, each["values"]["validation_loss"])
            for each in metrics
            if "validation_loss" in each["values"]
        ),
        last_step=logged[-1]["step"],
        last_loss=float(losses[-1]),
    )


def smooth_losses(tokens: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return, at each of the ascending `tokens`, the mean of the losses that were logged within 5% of them.

    So the window is equally wide everywhere on a log axis: the first steps stay as they are, and the noise of the last
    ones is averaged out.
    """
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    first = np.searchsorted(tokens, tokens * (1 - SMOOTHING))
    end = np.searchsorted(tokens, tokens * (1 + SMOOTHING), side="right")
    return (sums[end] - sums[first]) / (end - first)


def thinned(tokens: np.ndarray, losses: np.ndarray, points: int) -> np.ndarray:
    """Return the indices of about `points` of a curve's points, evenly spaced in log tokens, with its extremes."""
    if len(tokens) <= points:
        return np.arange(len(tokens))
    spaced = np.searchsorted(tokens, np.geomspace(tokens[0], tokens[-1], points) * (1 - 1e-12))
    return np.unique([*np.minimum(spaced, len(tokens) - 1), len(tokens) - 1, losses.argmin(), losses.argmax()])


@dataclass(frozen=True, kw_only=True)
class LearningCurves:
    """The learning curves of a sweep and their layout.

    Attributes:
        curves: by run id.
        runs: a row for each curve: run_id, status, tokens and loss as in the run table, `panel` (the title of its
            panel) and `series` (the value that its colour stands for).
        panels: the titles in their order.
        series_label: the name of the values of `series`.
        left_out: number of runs that are not drawn because they are too many.
        missing: number of runs without a journal, or that logged no loss.
    """

    curves: Mapping[str, LearningCurve]
    runs: pd.DataFrame
    panels: Sequence[str]
    series_label: str
    left_out: int
    missing: int

    def caption(self) -> str:
        """Return what the figure shows, in sentences."""
        during = any(curve.validations for curve in self.curves.values())
        sentences = [
            f"Training loss of {len(self.curves)} runs against training tokens: each point is the mean of the losses "
            f"logged within {SMOOTHING:.0%} of its tokens.",
            "The marker at a line's end is the validation loss after training, which may lie off the line"
            + ("; small markers are those during training." if during else "."),
        ]
        statuses = set(self.runs["status"])
        if "diverged" in statuses:
            sentences.append("A cross is the last loss that was logged before a run diverged.")
        if "failed" in statuses:
            sentences.append("A hollow circle is the last loss of a run that did not finish.")
        if self.left_out:
            sentences.append(
                f"{self.left_out} more runs are not drawn, to keep the page small. Those that are were chosen by lot, "
                "of every panel, colour and outcome alike, so that rare outcomes show more often than they occurred."
            )
        if self.missing:
            runs = "run" if self.missing == 1 else "runs"
            sentences.append(f"{self.missing} {runs} left no losses in this output folder.")
        return " ".join(sentences)

    def last_losses(self) -> dict[str, str]:
        """Return the last logged loss of each run in words, by run id."""
        return {run: f"{curve.last_loss:.4f} in step {curve.last_step:,}" for run, curve in self.curves.items()}


def read_learning_curves(folders: Folders, table: pd.DataFrame, axes: Iterable[str] = ()) -> LearningCurves | None:
    """Read the learning curves of a sweep, of all its runs or of `MOST_CURVES`; None if no journal has any losses.

    Args:
        folders: the sweep's folders; the journals lie in those of its runs.
        table: the run table.
        axes: the axes of the sweep besides budget, tokens and mean recurrence.
    """
    sizes, unit = _sizes(folders, table)
    is_known = np.isfinite(sizes)  # a run that failed before it began may have no size, and it has no curve
    if not is_known.any():
        return None
    runs, panels, series_label = _layout(table[is_known], sizes[is_known], unit, axes)
    # Of many runs, each panel, colour and outcome has its first before any has its second.
    count = len(runs)
    if count > MOST_CURVES:
        mixed = runs.sample(frac=1.0, random_state=0)
        turn = mixed.groupby(["panel", "series", "status"], sort=False, dropna=False).cumcount()
        runs = runs.loc[sorted(turn.sort_values(kind="stable").index[:MOST_CURVES])]
    points = int(np.clip(MOST_POINTS // max(len(runs), 1), *CURVE_POINTS))
    read = {run_id: read_curve(folders.run(run_id) / "journal.jsonl", points) for run_id in runs["run_id"]}
    curves = {run_id: curve for run_id, curve in read.items() if curve is not None}
    if not curves:
        return None
    return LearningCurves(
        curves=curves,
        runs=runs[runs["run_id"].isin(curves.keys())],
        panels=panels,
        series_label=series_label,
        left_out=count - len(runs),
        missing=len(runs) - len(curves) + int((~is_known).sum()),
    )


def _layout(
    table: pd.DataFrame, sizes: np.ndarray, unit: str, axes: Iterable[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Return the runs with `panel` and `series`, the titles of the panels in their order, and the name of the series.

    Colours stand for mean recurrences (or parameters), panels for budgets (or tokens) and other axes; if all runs have
    one mean recurrence, colours stand for another axis. Neighbouring budgets share a panel if there are too many.
    """
    runs = table[["run_id", "status", "tokens", "loss"]].astype({"run_id": str}).reset_index(drop=True)
    varied = [name for name in axes if name in table and name != SEED and table[name].nunique(dropna=False) > 1]
    # Colours.
    series = "params" if is_dense(table) else "mean_recurrence"
    label = f"{AXES[series].quantity} {AXES[series].symbol}"
    if table[series].nunique() == 1 and varied:
        series = next((name for name in varied if pd.api.types.is_numeric_dtype(table[name])), varied[-1])
        varied.remove(series)
        label = series.rpartition(".")[2].replace("_", " ")
    runs["series"] = table[series].to_numpy()
    # Panels: the other axes, if there are few, and budgets.
    distinct = np.unique(sizes)
    others = [
        ", ".join(str(row[name]) if isinstance(row[name], str) else f"{name} = {row[name]}" for name in varied)
        for row in table[varied].to_dict("records")
    ]
    if len(set(others)) * len(distinct) > MOST_PANELS:
        others = [""] * len(table)
    parts = np.array_split(distinct, min(len(distinct), MOST_PANELS))
    titles = [f"{' to '.join(dict.fromkeys(map(power_of_ten, part[[0, -1]])))} {unit}" for part in parts]
    place = np.searchsorted([part[-1] for part in parts], sizes)
    names = []
    for other, at in zip(others, place, strict=True):
        size = titles[at] if len(titles) > 1 or not other else ""
        names.append(", ".join(filter(None, [other, size])))
    runs["panel"] = names
    rank = {other: position for position, other in enumerate(dict.fromkeys(others))}
    order = sorted(range(len(runs)), key=lambda row: (rank[others[row]], place[row]))
    return runs, list(dict.fromkeys(names[row] for row in order)), label


def _sizes(folders: Folders, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return the budget of each run and its unit, or the tokens that it was to train on; NaN if they are unknown.

    The run table has the tokens of an early end, so those of a run that didn't finish are read from its spec.
    """
    if "budget" in table and table["budget"].notna().any():
        return table["budget"].to_numpy(dtype=float), "FLOPs"
    planned = table["tokens"].to_numpy(dtype=float, copy=True)
    for place in np.flatnonzero(table["status"] != "finished"):
        spec = folders.run(str(table["run_id"].iloc[place])) / "spec.json"
        if spec.is_file():
            planned[place] = json.loads(spec.read_text(encoding="utf-8"))["tokens"]
    return planned, "tokens"


def draw_learning_curves(learning: LearningCurves, *, width: float = LEARNING_WIDTH) -> Figure:
    """Draw small multiples with common axes and one legend: loss against tokens, both logarithmic.

    Losses above those at a twentieth of the training are cut off, so that the ends can be told apart.
    """
    is_wide = width > 5
    count = len(learning.panels)
    columns = min(count, 2 if count == 4 or not is_wide else 4 if count in (7, 8) or count > 9 else 3)
    rows = math.ceil(count / columns)
    values = sorted(learning.runs["series"].unique())
    styles = dict(zip(values, series_styles(len(values)), strict=True))
    first, top = _limits(learning)
    with mpl.rc_context(STYLE):
        height = 0.7 + rows * 1.75 if is_wide else 1.2 + rows * 1.5
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        # The panels.
        for axes, panel in zip(grid, learning.panels, strict=False):
            for row in learning.runs[learning.runs["panel"] == panel].itertuples():
                _draw_run(axes, row, learning.curves[row.run_id], styles[row.series], top)
            title = textwrap.fill(panel, int(_CHARACTERS * width / columns))
            axes.set_title(escape_dollars(title), loc="left", fontsize=_TEXT_SIZE)
        for axes in grid[count:]:
            axes.set_axis_off()
        for axes in grid[(rows - 1) * columns : count]:
            axes.set_xlabel("training tokens")
        # What they share.
        decade_ticks(grid[0].xaxis)
        decade_ticks(grid[0].yaxis, text="{:g}".format)
        grid[0].set_xlim(left=first)
        grid[0].set_ylim(top=top)
        figure.supylabel("training loss (nats per token)", fontsize=_TEXT_SIZE)
        handles = _legend_handles(learning, styles)
        figure.legend(
            handles=handles,
            title=learning.series_label,
            alignment="left",
            loc="outside right center" if is_wide else "outside lower center",
            ncols=1 if is_wide else min(len(handles), 4),
        )
        # One layout for all of the files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _draw_run(axes: Axes, run: Any, curve: LearningCurve, style: SeriesStyle, top: float) -> None:
    """Draw a run's line, its validation losses, and a mark at its end, which stays inside the axes."""
    run_line(axes, curve.tokens, curve.losses, run.run_id, colour=style.colour, width=0.8)
    if curve.validations:
        at, losses = zip(*curve.validations, strict=True)
        axes.plot(at, losses, ls="", marker=style.marker, ms=2, color=style.colour)
    tokens, loss, marker, size = run.tokens, run.loss, style.marker, 3.5
    if run.status != "finished":
        tokens, loss, marker, size = curve.tokens[-1], min(curve.last_loss, top), _END_MARKS[run.status], 5.0
    hollow = run.status == "failed"
    end = run_points(axes, [tokens], [loss], [run.run_id], colour=style.colour, marker=marker, hollow=hollow, size=size)
    end.set_clip_on(False)
    if marker == "x":
        end.set_markeredgewidth(1.6)


def _limits(learning: LearningCurves) -> tuple[float, float]:
    """Return the first tokens and the largest loss that are shown.

    The loss is the largest of finished runs at a twentieth of their training or at a validation, and of all runs if
    none finished; the tokens are where the first curve falls below it.
    """
    finished = learning.runs[learning.runs["status"] == "finished"]
    tops = [
        max(np.interp(curve.tokens[-1] / 20, curve.tokens, curve.losses), row.loss, *(v for _, v in curve.validations))
        for row in finished.itertuples()
        for curve in [learning.curves[row.run_id]]
    ]
    top = 1.02 * max(tops, default=max(curve.losses.max() for curve in learning.curves.values()))
    return min(curve.tokens[np.argmax(curve.losses <= top)] for curve in learning.curves.values()), top


def _legend_handles(learning: LearningCurves, styles: Mapping[Any, SeriesStyle]) -> list[Line2D]:
    """Return an entry for each series, or for some of many, and for the ends that occur."""
    places = np.linspace(0, len(styles) - 1, min(len(styles), _MOST_LABELS)).round().astype(int)
    series = list(styles.items())
    handles = [
        mark_handle(_text(value), marker=style.marker, line="-", colour=style.colour)
        for value, style in (series[place] for place in places)
    ]
    for status, marker in _END_MARKS.items():
        if (learning.runs["status"] == status).any():
            handles.append(mark_handle(status, marker=marker, hollow=status == "failed"))
    return handles


def _text(value: Any) -> str:
    return escape_dollars(value) if isinstance(value, str) else f"{value:.4g}"
