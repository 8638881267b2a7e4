"""The tables of a page: runs, held-out runs and groups, each cell with the number that it is sorted by."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from isoloop.fitting import SweepFit, predict
from isoloop.fitting.result import HeldOut
from isoloop.sweeps.report.headline import AHEAD, Results

_RUNS = {
    "run_id": "run",
    "status": "status",
    "seed": "seed",
    "mean_recurrence": "µ",
    "budget": "budget, FLOPs",
    "tokens": "tokens",
    "loss": "loss at T = µ, nats/token",
    "bits_per_byte": "bits/byte",
    "flops": "spent, FLOPs",
    "steps": "steps",
    "spectral_radius": "ρ(Ā)",
    "seconds": "seconds",
}
_ON_THE_CARD = ("run_id", "status", "seed", "mean_recurrence", "budget", "tokens", "loss")
_AFTER_SEED = 3
_NATS = ("loss", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell shows, with `under` in a second line; `value` is what it is sorted by, `kind` how it looks."""

    text: str
    value: float | None = None
    kind: str = ""
    link: str | None = None
    under: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading; `on_card` says that a point's card shows the column, `kind` how its cells look."""

    label: str
    on_card: bool = False
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names its rows."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def runs_table(table: pd.DataFrame) -> Table:
    """Every run with its axes, by growing budget and mean recurrence."""
    axes = [name for name in table.columns if "." in name or name == "group"]
    varied = [name for name in axes if name not in _RUNS and table[name].nunique(dropna=False) > 1]
    names = [name for name in _RUNS if name in table.columns and table[name].notna().any()]
    names[_AFTER_SEED:_AFTER_SEED] = varied
    has_budgets = "budget" in table.columns and table["budget"].notna().any()
    order = table.sort_values(["budget" if has_budgets else "tokens", "mean_recurrence"], kind="stable")
    return Table(
        columns=tuple(
            Column(
                label=_RUNS.get(name, name),
                on_card=name in _ON_THE_CARD or name in varied,
                kind="text" if name == "status" or not pd.api.types.is_numeric_dtype(table[name]) else "",
            )
            for name in names
        ),
        rows=tuple(
            tuple(_run_cell(name, value) for name, value in zip(names, row, strict=True))
            for row in order[names].itertuples(index=False)
        ),
    )


def run_labels(table: pd.DataFrame) -> dict[str, str]:
    """Each run in a few words, by its id."""
    return {
        str(run.run_id): f"{run.run_id}: µ = {run.mean_recurrence:g}, {_shown(run.tokens)} tokens, "
        f"loss {_shown(run.loss)} ({run.status})"
        for run in table.itertuples()
    }


def held_out_table(held: HeldOut) -> Table:
    """The held-out runs at T = µ: predicted, measured, and whether the interval holds the measured loss."""
    labels = ("run", "predicted by", "µ", "tokens", "predicted", "95% interval", "measured", "error", "inside")
    at_mean = [row for row in held.rows if row.recurrence == row.mean_recurrence]
    rows = []
    for row in sorted(at_mean, key=lambda row: (row.method, row.mean_recurrence)):
        span = row.interval
        inside = None if span is None else span[0] <= row.measured <= span[1]
        rows.append(
            (
                Cell(text=row.run_id, kind="id", link=f"#run-{row.run_id}"),
                Cell(text=row.method, kind="text"),
                number(row.mean_recurrence, "g"),
                number(row.tokens, ".4g"),
                number(row.predicted, ".4f"),
                Cell(text="-")
                if span is None
                else Cell(text=f"{span[0]:.4f} to {span[1]:.4f}", value=span[1] - span[0]),
                number(row.measured, ".4f"),
                number(row.error, "+.2f", "%"),
                Cell(
                    text="-" if inside is None else "yes" if inside else "no", kind="" if inside is not False else "bad"
                ),
            )
        )
    return Table(columns=_headings(labels), rows=tuple(rows))


def errors_table(held: HeldOut) -> Table:
    """Each way of predicting: over how many losses, how far off, and how many lay in their intervals."""
    rows = []
    for error in held.errors:
        inside = None if error.coverage is None else round(error.coverage * error.rows)
        rows.append(
            (
                Cell(text=error.method, kind="text"),
                number(float(error.rows), "g"),
                number(error.mean_absolute_error, ".3g", "%"),
                Cell(text="-")
                if inside is None
                else Cell(text=f"{inside} of {error.rows} ({error.coverage:.0%})", value=error.coverage),
            )
        )
    labels = ("predicted by", "losses", "mean absolute error", "inside their 95% intervals")
    return Table(columns=_headings(labels), rows=tuple(rows))


def groups_table(groups: Mapping[str, Results], pages: Mapping[str, str]) -> tuple[Table, float] | None:
    """The groups' answers side by side, and the FLOPs that they are about: as many for all; None without a fit.

    `pages` are the addresses of the groups' pages.
    """
    fits = [found.fit for found in groups.values() if found.fit is not None]
    if not fits:
        return None
    flops = AHEAD * max(fit.fitted.flops[1] for fit in fits)
    columns = (
        "group", "runs fitted", "exponent of µ*", "exponent of D*",
        "best µ", "best D, tokens", "loss there", "held-out error",
    )  # fmt: skip
    rows = tuple(
        (Cell(text=label, link=pages[label], kind="text"), *_of_group(found, flops)) for label, found in groups.items()
    )
    return Table(columns=_headings(columns), rows=rows), flops


def _of_group(found: Results, flops: float) -> list[Cell]:
    fit = found.fit
    missing = Cell(text="-")
    if fit is None:
        return [Cell(text="not fitted"), *[missing] * 6]
    laws = (fit.isoflop.mean_recurrence_law, fit.isoflop.tokens_law) if fit.isoflop else (None, None)
    exponents = [missing if law is None else _spanned(law.exponent, law.interval, ".3f") for law in laws]
    return [number(float(fit.finished_runs), "g"), *exponents, *_best(fit, flops), _error(found.hold_out)]


def _best(fit: SweepFit, flops: float) -> list[Cell]:
    if fit.training is None:
        return [Cell(text="-")] * 3
    best = predict(fit, flops=flops)
    found = (
        (best.mean_recurrence, best.mean_recurrence_interval, ".3g"),
        (best.tokens, best.tokens_interval, ".3g"),
        (best.loss, best.loss_interval, ".4f"),
    )
    return [_spanned(value, span, form) for value, span, form in found]


def _spanned(value: float, span: tuple[float, float] | None, form: str) -> Cell:
    """A number above its interval."""
    under = f"{format(span[0], form)} to {format(span[1], form)}" if span else ""
    return Cell(text=format(value, form), value=value, under=under)


def _error(hold_out: SweepFit | None) -> Cell:
    if hold_out is None or hold_out.held_out is None or not hold_out.held_out.errors:
        return Cell(text="-")
    return number(hold_out.held_out.errors[0].mean_absolute_error, ".3g", "%")


def _headings(labels: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(label=label, kind="text" if label == "predicted by" else "") for label in labels)


def number(value: float, form: str, unit: str = "") -> Cell:
    """A number in Python's format; one that isn't there is a dash."""
    return Cell(text=format(value, form) + unit, value=value) if math.isfinite(value) else Cell(text="-")


def _run_cell(name: str, value: Any) -> Cell:
    if name == "run_id":
        return Cell(text=str(value), kind="id")
    if name == "status":
        return Cell(text=str(value), kind="text" if value == "finished" else "text bad")
    if pd.isna(value):
        return Cell(text="-")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(text=str(value), kind="text")
    return Cell(text=f"{value:.4f}" if name in _NATS else _shown(value), value=float(value))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.5g}".replace("e+", "e")
    return str(value)
