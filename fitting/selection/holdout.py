"""Predicting runs that a fit never saw: errors in percent, and how often they lie in their 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from isoloop.fitting.estimation.bootstrap import BootstrapKind
from isoloop.fitting.estimation.law_fit import estimate_law
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named

By = Literal["largest budget", "budget", "size", "row"]
WAYS: tuple[str, ...] = get_args(By)
_ROW_FOLDS = 10
_MOST_FOLDS = 40
"""Of more budgets or sizes than this, neighbours are held out together."""
LEAST_DRAWS = 20
"""The fewest refits that say anything of 95%."""
_SAME = 0.01
"""Budgets and sizes that differ by less are one: of a sweep's runs each spends its budget to within a step."""

Predicted = tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]
"""Losses (rows,) in nats per token and their 95% interval, (rows,) each."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """One loss that the fit never saw, nats per token; `error` is (predicted - measured) / measured in percent.

    `recurrence` is the T of the loss, and NaN like `mean_recurrence` for a dense model.
    """

    method: str
    run_id: str
    mean_recurrence: float
    tokens: float
    recurrence: float
    measured: float
    predicted: float
    interval: tuple[float, float] | None
    error: float


@dataclass(frozen=True, kw_only=True)
class HeldOutError:
    """Mean absolute error of one way of predicting, in percent, over `rows` losses.

    `coverage` is the share of the losses inside their 95% intervals, None where there are no intervals.
    """

    method: str
    mean_absolute_error: float
    rows: int
    coverage: float | None


class Method(Protocol):
    """A way of predicting runs from other runs."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def predict(self, shown: Data, hidden: Data) -> Predicted:
        """Fit to the rows `shown`, predict the rows `hidden`. Raises ValueError where it can't."""


@dataclass(frozen=True, kw_only=True)
class LawMethod:
    """A law, fitted and bootstrapped. Raises ValueError for fewer draws than say anything, and a negative seed."""

    law: str
    objective: Objective = HUBER
    kind: BootstrapKind = "parametric"
    draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws != 0 and self.draws < LEAST_DRAWS:
            raise ValueError(f"draws must be 0 or at least {LEAST_DRAWS}, but got {self.draws}; 200 is usual")
        if self.seed < 0:
            raise ValueError(f"a seed must be 0 or more, but got {self.seed}; take another")

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"{law_named(self.law).name} law"

    def predict(self, shown: Data, hidden: Data) -> Predicted:
        """See `Method.predict`; raises ValueError as `estimate_law` does."""
        fit = estimate_law(
            law_named(self.law),
            shown,
            draws=self.draws,
            seed=self.seed,
            objective=self.objective,
            kind=self.kind,
            name=self.law,
        )
        return fit.loss(hidden), fit.loss_interval(hidden)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several ways of predicting the same held-out runs; `absent` are (method, why) of those that could not."""

    by: str
    folds: int
    errors: tuple[HeldOutError, ...]
    rows: tuple[HeldOutRow, ...]
    absent: tuple[tuple[str, str], ...]

    def report(self) -> str:
        """The comparison as readable lines, the smallest error first."""
        lines = [f"Held out: {self._held_out()}"]
        lines.append(f"  {'mean absolute error':>19}  {'inside 95%':>10}  {'losses':>6}")
        for error in sorted(self.errors, key=lambda error: error.mean_absolute_error):
            covered = "-" if error.coverage is None else f"{error.coverage:.0%}"
            lines.append(f"  {error.mean_absolute_error:>18.3f}%  {covered:>10}  {error.rows:>6}  {error.method}")
        return "\n".join([*lines, *(f"  {method}: {why}" for method, why in self.absent)])

    def _held_out(self) -> str:
        if self.by == "largest budget":
            return "the largest budget (1 fold)"
        if self.by == "row":
            return f"a part of the rows in turn ({self.folds} folds)"
        together = ", neighbours together where there are more" if self.folds == _MOST_FOLDS else ""
        return f"each {self.by} in turn ({self.folds} folds{together})"


def compare(data: Data, methods: Sequence[Method], by: By = "largest budget") -> Comparison:
    """Predict runs by every method from the other runs: the largest budget's, or each budget's, size's or tenth's.

    A method that can't fit one of the folds is left out, and said. Raises ValueError where there is nothing to hold
    out, and for two methods of one name.
    """
    check_names([method.name for method in methods])
    held_out = folds(data, by)
    rows: list[HeldOutRow] = []
    absent: list[tuple[str, str]] = []
    for method in methods:
        try:
            of_method = [row for hidden in held_out for row in _predicted(method, data, hidden)]
        except ValueError as error:
            absent.append((method.name, str(error)))
            continue
        rows += of_method
    return Comparison(by=by, folds=len(held_out), errors=errors_of(rows), rows=tuple(rows), absent=tuple(absent))


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError where two ways of predicting have one name: their errors could not be told apart."""
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"what is compared must differ in name, but {twice[0]!r} is there twice; drop or rename one")


def folds(data: Data, by: By) -> list[np.ndarray]:
    """Which rows (rows,) each fold holds out: see `compare`. Of very many budgets or sizes, neighbours are held out
    together.

    Raises ValueError where there is nothing to hold out.
    """
    if by not in WAYS:
        raise ValueError(f"runs are held out by one of {', '.join(WAYS)}, but got {by!r}; choose one")
    count = len(data["loss"])
    if by == "row":
        place = np.random.default_rng(0).permutation(count) % min(_ROW_FOLDS, count)
        return [place == fold for fold in range(place.max() + 1)]
    column = "params" if by == "size" else "budget"
    if column not in data or np.isnan(data[column]).any():
        raise ValueError(f"holding out by {by} needs the column `{column}` in every row; hold out by row instead")
    order = np.unique(data[column])
    starts = order[np.concatenate([[True], order[1:] > order[:-1] * (1 + _SAME)])]
    group = np.searchsorted(starts, data[column], side="right") - 1
    if len(starts) < 2:
        raise ValueError(
            f"holding out by {by} needs 2 different ones, but all runs have {column} {order[0]:.4g}; add other runs"
        )
    if by == "largest budget":
        return [group == len(starts) - 1]
    if len(starts) > _MOST_FOLDS:
        group = group * _MOST_FOLDS // len(starts)
    return [group == fold for fold in range(group.max() + 1)]


def errors_of(rows: Sequence[HeldOutRow]) -> tuple[HeldOutError, ...]:
    """The mean absolute error and coverage of each method among the rows."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        inside = [row.interval[0] <= row.measured <= row.interval[1] for row in mine if row.interval is not None]
        found.append(
            HeldOutError(
                method=method,
                mean_absolute_error=float(np.mean([abs(row.error) for row in mine])),
                rows=len(mine),
                coverage=float(np.mean(inside)) if inside else None,
            )
        )
    return tuple(found)


def held_out_rows(method: str, hidden: Data, predicted: Predicted) -> list[HeldOutRow]:
    """The predictions of the rows `hidden`, beside what was measured."""
    loss, bounds = predicted
    unknown = np.full(len(loss), np.nan)
    mean_recurrence = hidden.get("mean_recurrence", unknown)
    recurrence = hidden.get("recurrence", unknown)
    return [
        HeldOutRow(
            method=method,
            run_id=str(hidden["run_id"][i]),
            mean_recurrence=float(mean_recurrence[i]),
            tokens=float(hidden["tokens"][i]),
            recurrence=float(recurrence[i]),
            measured=float(hidden["loss"][i]),
            predicted=float(loss[i]),
            interval=(float(bounds[0][i]), float(bounds[1][i])) if bounds else None,
            error=float(100 * (loss[i] / hidden["loss"][i] - 1)),
        )
        for i in range(len(loss))
    ]


def _predicted(method: Method, data: Data, hidden: np.ndarray) -> list[HeldOutRow]:
    shown = {name: values[~hidden] for name, values in data.items()}
    kept_out = {name: values[hidden] for name, values in data.items()}
    return held_out_rows(method.name, kept_out, method.predict(shown, kept_out))
