"""The tables of a page: runs, held-out runs, errors and groups."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pandas as pd

from isoloop.fitting import (
    ANSWER_MULTIPLE,
    NOT_DETERMINED,
    Answer,
    AnyFit,
    HeldOut,
    LawFit,
    SizesFit,
    is_dense,
    predict,
    verdict,
)
from isoloop.fitting.cost.axis import AXES, Axis
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.report.estimates import (
    HIGH_CORRELATION,
    correlations,
    exponents,
    parameters,
)
from isoloop.fitting.selection.holdout import HeldOutRow
from isoloop.fitting.tables.best_loss import overfitted_rows
from isoloop.fitting.tables.quality import best_and_fixed_depth
from isoloop.fitting.tables.runs import finished_rows, law_data
from isoloop.sweeps.paths import SweepResults
from isoloop.sweeps.report.headline import with_greek_mu

_RUN_HEADINGS = {
    "run_id": "run",
    "status": "status",
    "seed": "seed",
    "mean_recurrence": "µ",
    "params": "N",
    "budget": "budget, FLOPs",
    "tokens": "tokens",
    "loss": "{loss}, nats/token",
    "best_loss": "lowest {loss}",
    "bits_per_byte": "bits/byte",
    "flops": "spent, FLOPs",
    "steps": "steps",
    "skipped_steps": "skipped steps",
    "spectral_radius": "ρ(Ā)",
    "seconds": "seconds",
}
_CARD_COLUMNS = ("run_id", "status", "seed", "mean_recurrence", "params", "budget", "tokens", "loss")
_FIRST_COLUMNS = ("run_id", "status", "seed")
_LOSS_COLUMNS = ("loss", "best_loss", "bits_per_byte")
MOST_LISTED = 2000
"""Number of rows up to which a table is shown whole."""
LISTED = 1000
"""Rows that are shown of a longer table."""


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A cell's `text`, and `under` it a second line; `value` is what it is sorted by, `kind` its CSS classes."""

    text: str
    value: float | None = None
    kind: str = ""
    link: str | None = None
    under: str = ""


@dataclass(frozen=True, kw_only=True)
class TableHeading:
    """The heading of a column; `on_card` columns are shown on the card of a run's point, `kind` is its CSS classes."""

    label: str
    on_card: bool = False
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table whose first column names its rows."""

    columns: tuple[TableHeading, ...]
    rows: tuple[tuple[TableCell, ...], ...]


_MISSING = TableCell(text="-")


def next_flops_table(answer: Answer) -> PageTable:
    """Return the table of what the next FLOPs buy: a row per way to spend them."""
    rows = answer.rows()
    return PageTable(
        columns=tuple(TableHeading(label=name) for name in rows[0]),
        rows=tuple(tuple(TableCell(text=with_greek_mu(text) or "-") for text in row.values()) for row in rows),
    )


def listed_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the runs that a page lists: all, or of more than `MOST_LISTED` the first `LISTED`."""
    return table if len(table) <= MOST_LISTED else table.head(LISTED)


def runs_table(table: pd.DataFrame) -> PageTable:
    """Return the listed runs with the axes that runs vary in, by growing budget and mean recurrence, or parameters.

    Losses of overfitted runs are marked: fits read the lowest of such a run.
    """
    column = _axis_column(table)
    headings = {
        name: label.format(loss=AXES[column].loss)
        for name, label in _RUN_HEADINGS.items()
        if name not in AXES or name in (column, "tokens")
    }
    axes = [name for name in table.columns if "." in name or name == "group"]
    varied = [name for name in axes if name not in headings and table[name].nunique(dropna=False) > 1]
    known = [name for name in headings if name in table.columns and table[name].notna().any()]
    first = [name for name in known if name in _FIRST_COLUMNS]
    names = [*first, *varied, *known[len(first) :]]
    has_budgets = "budget" in table.columns and table["budget"].notna().any()
    rows = listed_runs(table).sort_values(["budget" if has_budgets else "tokens", column], kind="stable")
    return PageTable(
        columns=tuple(
            TableHeading(
                label=headings.get(name, name),
                on_card=name in _CARD_COLUMNS or name in varied,
                kind="text" if name == "status" or not pd.api.types.is_numeric_dtype(table[name]) else "",
            )
            for name in names
        ),
        rows=tuple(
            tuple(
                replace(cell, kind="bad", under=note) if name == "loss" and note else cell
                for name, cell in ((name, _run_cell(name, value)) for name, value in zip(names, row, strict=True))
            )
            for row, note in zip(rows[names].itertuples(index=False), _rises(rows), strict=True)
        ),
    )


def _rises(rows: pd.DataFrame) -> list[str]:
    """Return for each run a note if its loss rose after its best step, else an empty text."""
    steps = rows["best_step"] if "best_step" in rows else [math.nan] * len(rows)
    notes = (f"rose after step {step:g}" if math.isfinite(step) else "rose again" for step in steps)
    return [note if rose else "" for note, rose in zip(notes, overfitted_rows(rows), strict=True)]


def run_labels(table: pd.DataFrame) -> dict[str, str]:
    """Return a short description of each run, by its id."""
    column = _axis_column(table)
    return {
        str(run.run_id): f"{run.run_id}: {AXES[column].symbol} = {_value(getattr(run, column), column)}, "
        f"{_short(run.tokens)} tokens, loss {_short(run.loss)} ({run.status})"
        for run in table.itertuples()
    }


def _axis_column(table: pd.DataFrame) -> str:
    return "params" if is_dense(table) else "mean_recurrence"


def _value(value: float, column: str) -> str:
    return f"{value:g}" if column == "mean_recurrence" else _short(float(value))


def held_out_table(
    held: HeldOut, axis: Axis, listed: Collection[str], sizes: Mapping[str, str] = MappingProxyType({})
) -> PageTable:
    """Return the held-out runs: predicted and measured losses after training, and whether intervals hold the latter.

    Of more than `MOST_LISTED` predictions, these are the `LISTED` with the largest errors. `listed` runs get a link.
    `sizes` are the names of the models' sizes by run, where they differ.
    """
    numbers = ("tokens", "predicted", "95% interval", "measured", "error", "inside")
    labels = ("run", "predicted by", *(["size"] if sizes else []), axis.symbol, *numbers)
    shown = held_out_rows(held)
    if len(shown) > MOST_LISTED:
        shown = sorted(shown, key=lambda row: -abs(row.error))[:LISTED]
    rows = []
    for row in sorted(shown, key=lambda row: (row.method, row.value)):
        span, inside = _MISSING, _MISSING
        if row.interval is not None:
            low, high = row.interval
            span = TableCell(text=f"{low:.4f} to {high:.4f}", value=high - low)
            covered = low <= row.measured <= high
            inside = TableCell(text="yes" if covered else "no", kind="" if covered else "bad")
        rows.append(
            (
                TableCell(text=row.run_id, kind="id", link=f"#run-{row.run_id}" if row.run_id in listed else None),
                TableCell(text=with_greek_mu(row.method), kind="text"),
                *([TableCell(text=sizes[row.run_id])] if sizes else []),
                _number(row.value, "g" if row.params is None else ".4g"),
                _number(row.tokens, ".4g"),
                _number(row.predicted, ".4f"),
                span,
                _number(row.measured, ".4f"),
                _number(row.error, "+.2f", unit="%"),
                inside,
            )
        )
    return _page_table(labels, rows)


def held_out_rows(held: HeldOut) -> list[HeldOutRow]:
    """Return the predictions of losses after training, without those at other numbers of loops."""
    return [row for row in held.rows if row.recurrence == row.mean_recurrence]


def errors_table(held: HeldOut) -> PageTable:
    """Return, for each method of prediction, its losses, its mean error, and how many losses lay in their intervals."""
    rows = []
    for error in held.errors:
        inside = _MISSING
        if error.coverage is not None:
            text = f"{round(error.coverage * error.rows)} of {error.rows} ({error.coverage:.0%})"
            inside = TableCell(text=text, value=error.coverage)
        mean = _number(error.mean_absolute_error, ".3g", unit="%")
        rows.append((TableCell(text=with_greek_mu(error.method), kind="text"), _number(error.rows, "g"), mean, inside))
    return _page_table(("predicted by", "losses", "mean absolute error", "inside their 95% intervals"), rows)


def estimates_table(fit: AnyFit) -> PageTable:
    """Return the exponents of the isoFLOP power laws and the parameters of the law after training."""
    law = _law_of(fit)
    of_power_laws = () if isinstance(fit, SizesFit) else exponents(fit)
    rows = []
    for estimate in (*of_power_laws, *(() if law is None else parameters(law))):
        words = f"at its bound; {estimate.words}" if estimate.at_bound else estimate.words
        number = _number(estimate.value, ".5g", span=estimate.interval)
        name, method = (TableCell(text=with_greek_mu(text), kind="text") for text in (estimate.name, words))
        rows.append((name, number, method))
    labels = "quantity", "value and 95% interval", "by" if law is None else f"by, or in the {law.form.name} law"
    headings = (TableHeading(label=label, kind="text" if place == 2 else "") for place, label in enumerate(labels))
    return PageTable(columns=tuple(headings), rows=tuple(rows))


def correlation_text(fit: AnyFit) -> str:
    """Return the high correlations of the parameters of the law after training; empty if there are none."""
    law = _law_of(fit)
    pairs = () if law is None else correlations(law)
    return f"Correlations above {HIGH_CORRELATION:g}: {', '.join(map(str, pairs))}." if pairs else ""


def _law_of(fit: AnyFit) -> LawFit | None:
    laws = fit.laws if isinstance(fit, SizesFit) else fit.laws_after_training
    return laws.best if laws else None


def size_labels(table: pd.DataFrame, fit: SizesFit) -> dict[str, str]:
    """Return the name of each finished run's size, by run."""
    data = law_data(table)
    return {
        str(run_id): fit.family.label_of(params) for run_id, params in zip(data["run_id"], data["params"], strict=True)
    }


def frontier_table(fit: SizesFit) -> PageTable:
    """Return the best models through budgets, and the best of the measured sizes."""
    rows = []
    for point in fit.frontier:
        best = min(point.sizes, key=lambda size: size.loss.value)
        chance = "" if best.chance is None else f"by {best.chance:.0%} of the refits"
        span = point.params.interval
        under = "" if span is None else f"{short_count(span[0])} to {short_count(span[1])}"
        rows.append(
            (
                _number(point.budget, ".3g"),
                TableCell(text=short_count(point.params.value), value=point.params.value, under=under),
                _number(point.mean_recurrence.value, ".3g", span=point.mean_recurrence.interval),
                _number(point.tokens.value, ".3g", span=point.tokens.interval),
                _number(point.loss.value, ".4f", span=point.loss.interval),
                TableCell(text=best.label, value=best.params, under=chance),
                _number(best.mean_recurrence.value, ".3g", span=best.mean_recurrence.interval),
            )
        )
    labels = (
        "budget, FLOPs", "best size", "best µ", "best D, tokens", "its loss", "best measured size", "best µ of it",
    )  # fmt: skip
    return _page_table(labels, rows)


def sizes_table(fit: SizesFit) -> PageTable:
    """Return the best model of each size at the largest measured budget: by its own runs, and by the joint fit."""
    rows = []
    for own in fit.alone:
        joint = fit.at_size(own.label, own.budget)
        loops, losses = (
            [_number(getattr(each, name).value, form, span=getattr(each, name).interval) for each in (own, joint)]
            for name, form in (("mean_recurrence", ".3g"), ("loss", ".4f"))
        )
        rows.append((TableCell(text=own.label, value=joint.params), _number(own.runs, "g"), *loops, *losses))
    labels = ("size", "its runs", "best µ by them", "best µ by all", "loss by them", "loss by all")
    return _page_table(labels, rows)


def quality_table(table: pd.DataFrame, fit: AnyFit) -> PageTable | None:
    """Return the first score at each budget: of the run of least loss, and of the same size with one loop.

    Both have the same FLOPs and parameters, as in Parcae's table (arXiv:2604.12946). None without budgets or scores.
    """
    scores = [] if fit.quality is None else [score for score in fit.quality.scores if score.runs]
    runs = finished_rows(table)
    if not scores or "budget" not in runs or "mean_recurrence" not in runs:
        return None
    score = scores[0]
    best, once = best_and_fixed_depth(runs[runs[score.column].notna()])
    if best.empty:
        return None
    fixed = {row["budget"]: row for _, row in once.iterrows()}

    def cell(row: pd.Series | None) -> TableCell:
        if row is None:
            return _MISSING
        error = row.get(f"{score.column}_se", math.nan)
        under = "" if pd.isna(error) else f"± {error:.2g}"
        return TableCell(text=f"{row[score.column]:.4g}", value=float(row[score.column]), under=under)

    rows = [
        (_number(row["budget"], ".3g"), _number(row["mean_recurrence"], "g"), cell(row), cell(fixed.get(row["budget"])))
        for _, row in best.iterrows()
    ]
    baselines = f" (baselines {fit.quality.baselines})" if fit.quality and fit.quality.baselines else ""
    name = f"{score.label}{baselines if score.unit == 'points' else ''}"
    return _page_table(("budget, FLOPs", "best µ", f"{name}, best µ", f"{name}, one loop"), rows)


def groups_table(groups: Mapping[str, SweepResults], pages: Mapping[str, str]) -> tuple[PageTable, float] | None:
    """Return the results of the groups side by side and the compute (FLOPs) of their best models; None without a fit.

    `pages` are the addresses of the groups' pages.
    """
    largest = [group.any_fit.fitted.flops[1] for group in groups.values() if group.any_fit is not None]
    if not largest:
        return None
    flops = ANSWER_MULTIPLE * max(largest)
    labels = (
        "group", "runs fitted", "exponent of µ*", "exponent of D*",
        "best µ", "best D, tokens", "its loss", "held-out error",
    )  # fmt: skip
    rows = [
        (TableCell(text=label, link=pages[label], kind="text"), *_group_cells(group, flops))
        for label, group in groups.items()
    ]
    return _page_table(labels, rows), flops


def _group_cells(group: SweepResults, flops: float) -> list[TableCell]:
    fit, held = group.fit, group.any_hold_out.held_out if group.any_hold_out else None
    if group.joint is not None:
        return _joint_cells(group.joint, held, flops)
    if fit is None:
        return [TableCell(text="not fitted"), *[_MISSING] * 6]
    laws = (fit.isoflop.axis_law, fit.isoflop.tokens_law) if fit.isoflop else (None, None)
    best = [_MISSING] * 3
    if verdict(fit, flops).answer:
        best = [TableCell(text=NOT_DETERMINED), _MISSING, _MISSING]
    else:
        model = predict(fit, flops=flops)
        best = [
            _number(model.value, ".3g", span=model.value_interval),
            _number(model.tokens, ".3g", span=model.tokens_interval),
            _number(model.loss, ".4f", span=model.loss_interval),
        ]
    return [
        _number(fit.finished_runs, "g"),
        *(_MISSING if law is None else _number(law.exponent, ".3f", span=law.interval) for law in laws),
        *best,
        _number(held.errors[0].mean_absolute_error, ".3g", unit="%") if held and held.errors else _MISSING,
    ]


def _joint_cells(fit: SizesFit, held: HeldOut | None, flops: float) -> list[TableCell]:
    point = fit.point(flops)
    exponents = [_MISSING] * 2
    if fit.growth is not None:
        both = (fit.growth.mean_recurrence, fit.growth.tokens)
        exponents = [_number(each.value, ".3f", span=each.interval) for each in both]
    best = [_number(each.value, ".3g", span=each.interval) for each in (point.mean_recurrence, point.tokens)]
    return [
        _number(fit.finished_runs, "g"),
        *exponents,
        *best,
        _number(point.loss.value, ".4f", span=point.loss.interval),
        _number(held.errors[0].mean_absolute_error, ".3g", unit="%") if held and held.errors else _MISSING,
    ]


def _page_table(labels: tuple[str, ...], rows: Sequence[tuple[TableCell, ...]]) -> PageTable:
    headings = (TableHeading(label=label, kind="text" if label == "predicted by" else "") for label in labels)
    return PageTable(columns=tuple(headings), rows=tuple(rows))


def _number(value: float, form: str, *, unit: str = "", span: tuple[float, float] | None = None) -> TableCell:
    """Return a number in Python's format, above its interval; a dash if it isn't finite."""
    if not math.isfinite(value):
        return _MISSING
    under = f"{span[0]:{form}} to {span[1]:{form}}" if span else ""
    return TableCell(text=f"{value:{form}}{unit}", value=float(value), under=under)


def _run_cell(name: str, value: Any) -> TableCell:
    if name == "run_id":
        return TableCell(text=str(value), kind="id")
    if name == "status":
        return TableCell(text=str(value), kind="text" if value == "finished" else "text bad")
    if pd.isna(value):
        return _MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return TableCell(text=str(value), kind="text")
    return TableCell(text=f"{value:.4f}" if name in _LOSS_COLUMNS else _short(value), value=float(value))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.5g}".replace("e+", "e")
    return str(value)
