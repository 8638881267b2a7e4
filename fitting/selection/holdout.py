"""Predictions of held-out runs: errors in percent, and the share of losses inside their 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.tables.budgets import group_values

HoldOutBy = Literal["larger budgets", "largest budget", "budget", "size", "row"]
HOLD_OUT_BY: tuple[str, ...] = get_args(HoldOutBy)
_ROW_FOLDS = 10
_MAX_FOLDS = 40
"""If there are more budgets or sizes than this, neighbours are held out together."""
_MAX_ROLLOUTS = 8
"""Cutoffs of a rollout at most, neighbouring budgets together where there are more."""
_ROLLOUT_ROWS, _ROLLOUT_BUDGETS = 12, 2
"""Runs and budgets that a rollout fits at least: fewer can hardly tell one form of a law from another."""
MIN_DRAWS = 20
"""Fewest refits from which a 95% interval can be taken."""

PredictedLosses = tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]
"""Losses (rows,) in nats per token and their 95% interval, (rows,) each."""


class Split(NamedTuple):
    """Masks (rows,) of the rows that are fitted, and of those that are predicted from them."""

    fitted: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """One held-out loss in nats per token; `error` is (predicted - measured) / measured in percent.

    `recurrence` is the T of the loss. It and `mean_recurrence` are None for a dense model, which has `params` instead.
    `budget` is the run's and `fitted_to` the largest one that was fitted (FLOPs), None where there are no budgets.
    """

    method: str
    run_id: str
    mean_recurrence: float | None
    tokens: float
    recurrence: float | None
    measured: float
    predicted: float
    interval: tuple[float, float] | None
    error: float
    params: float | None = None
    budget: float | None = None
    fitted_to: float | None = None

    @property
    def beyond(self) -> float:
        """The distance of the prediction: the run's budget as a multiple of the largest fitted one; NaN without."""
        return float("nan") if self.budget is None or self.fitted_to is None else self.budget / self.fitted_to

    @property
    def value(self) -> float:
        """The mean recurrence in loops, or of a dense model the parameters; NaN where a table has neither."""
        value = self.params if self.mean_recurrence is None else self.mean_recurrence
        return float("nan") if value is None else value


@dataclass(frozen=True, kw_only=True)
class HeldOutError:
    """Mean absolute error of one method of predicting, in percent, over `rows` losses.

    `coverage` is the share of the losses inside their 95% intervals, None where there are no intervals.
    """

    method: str
    mean_absolute_error: float
    rows: int
    coverage: float | None


class Predictor(Protocol):
    """A method of predicting the losses of runs from other runs."""

    @property
    def name(self) -> str:
        """Name in reports."""

    def predict(self, fitted: Data, held_out: Data) -> PredictedLosses:
        """Return predictions of the rows `held_out` from a fit to the rows `fitted`. Raises ValueError if it can't."""


@dataclass(frozen=True, kw_only=True)
class LawPredictor:
    """A law with its bootstrap, by default of the `default_kind`.

    Raises ValueError for a negative seed, and for too few draws (but 0 is allowed).
    """

    law: str
    objective: Objective = HUBER
    kind: BootstrapKind | None = None
    draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws != 0 and self.draws < MIN_DRAWS:
            raise ValueError(f"draws must be 0 or at least {MIN_DRAWS}, but got {self.draws}; 200 is usual")
        if self.seed < 0:
            raise ValueError(f"a seed must be 0 or more, but got {self.seed}; use another")

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{law_named(self.law).name} law"

    def predict(self, fitted: Data, held_out: Data) -> PredictedLosses:
        """See `Predictor.predict`; raises ValueError as `fit_law` does."""
        fit = fit_law(
            self.law,
            fitted,
            draws=self.draws,
            seed=self.seed,
            objective=self.objective,
            kind=self.kind or default_kind(fitted),
        )
        return fit.loss(held_out), fit.loss_interval(held_out)


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Errors of several methods on the same held-out runs; `missing` are methods that failed, each with the reason."""

    by: str
    folds: int
    errors: tuple[HeldOutError, ...]
    rows: tuple[HeldOutRow, ...]
    missing: tuple[tuple[str, str], ...]

    def report(self) -> str:
        """Return the errors as text, the smallest first."""
        lines = [f"Held out: {self._held_out()}"]
        lines.append(f"  {'mean absolute error':>19}  {'inside 95%':>10}  {'losses':>6}")
        for error in sorted(self.errors, key=lambda error: error.mean_absolute_error):
            covered = "-" if error.coverage is None else f"{error.coverage:.0%}"
            lines.append(f"  {error.mean_absolute_error:>18.3f}%  {covered:>10}  {error.rows:>6}  {error.method}")
        return "\n".join([*lines, *(f"  {method}: {reason}" for method, reason in self.missing)])

    def _held_out(self) -> str:
        if self.by == "larger budgets":
            cutoffs = "1 cutoff" if self.folds == 1 else f"{self.folds} cutoffs"
            return f"all budgets above a cutoff, from those below ({cutoffs})"
        if self.by == "largest budget":
            return "the largest budget (1 fold)"
        if self.by == "row":
            return f"a part of the rows in turn ({self.folds} folds)"
        together = ", neighbours together where there are more" if self.folds == _MAX_FOLDS else ""
        return f"each {self.by} in turn ({self.folds} folds{together})"


def cross_validate(
    data: Data,
    predictors: Sequence[Predictor],
    by: HoldOutBy = "largest budget",
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> CrossValidation:
    """Predict the held-out runs of each split by every method, fitted to the other runs of that split.

    See `splits` for what is held out. A method that fails on one of the splits is listed in `missing`. Raises
    ValueError if there is nothing to hold out, and if two methods have the same name. `progress` is called before each
    method.
    """
    check_unique_names([method.name for method in predictors])
    parts = splits(data, by)
    rows: list[HeldOutRow] = []
    missing: list[tuple[str, str]] = []
    for done, method in enumerate(predictors):
        progress(f"{by} held out", done, len(predictors))
        try:
            rows += [row for split in parts for row in _predicted_rows(method, data, split)]
        except ValueError as error:
            missing.append((method.name, str(error)))
    return CrossValidation(by=by, folds=len(parts), errors=errors_of(rows), rows=tuple(rows), missing=tuple(missing))


def check_unique_names(names: Sequence[str]) -> None:
    """Raise ValueError if two methods have the same name, so that their errors could not be told apart."""
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(
            f"methods to compare must differ in name, but there are two called {twice[0]!r}; drop or rename one"
        )


def splits(data: Data, by: HoldOutBy) -> list[Split]:
    """Return what is fitted and what is held out, one split after another.

    Held out are the budgets above a growing number of smaller ones (see `rollouts`), the largest budget, or each
    budget, each size, or tenths of the rows in turn. If there are more than 40 budgets or sizes, neighbours are held
    out together. Raises ValueError if there is nothing to hold out.
    """
    if by not in HOLD_OUT_BY:
        raise ValueError(f"runs must be held out by one of {', '.join(HOLD_OUT_BY)}, but got {by!r}; choose one")
    if by == "larger budgets":
        return rollouts(data)
    count = len(data["loss"])
    if by == "row":
        group = np.random.default_rng(0).permutation(count) % min(_ROW_FOLDS, count)
    else:
        group = _groups(data, "params" if by == "size" else "budget", by)
        if by == "largest budget":
            return [Split(group < group.max(), group == group.max())]
        group = _merged(group, _MAX_FOLDS)
    return [Split(group != fold, group == fold) for fold in range(group.max() + 1)]


def rollouts(data: Data) -> list[Split]:
    """Return one split for each cutoff: all runs of the k smallest budgets are fitted, and all larger ones held out.

    At least 2 budgets and 12 runs are fitted. Of more than 9 budgets, neighbours are taken together. Raises ValueError
    if the runs have no budgets, or too few budgets or runs for one split.
    """
    group = _merged(_groups(data, "budget", "larger budgets"), _MAX_ROLLOUTS + 1)
    parts = [Split(group < k, group >= k) for k in range(_ROLLOUT_BUDGETS, group.max() + 1)]
    parts = [split for split in parts if split.fitted.sum() >= _ROLLOUT_ROWS]
    if not parts:
        raise ValueError(
            f"holding out larger budgets needs {_ROLLOUT_BUDGETS} smaller ones with {_ROLLOUT_ROWS} runs or more, but "
            f"there are {len(group)} runs at {group.max() + 1} budgets; add budgets"
        )
    return parts


def _groups(data: Data, column: str, by: HoldOutBy) -> np.ndarray:
    """Return the group (rows,) of each row by its near-equal values in a column, counted from 0 by growing value."""
    if column not in data or np.isnan(data[column]).any():
        raise ValueError(f"holding out by {by} needs the column `{column}` in every row; hold out by row instead")
    group = group_values(data[column])
    if group.max() < 1:
        raise ValueError(
            f"holding out by {by} needs 2 different ones, but all runs have {column} {data[column][0]:.4g}; add other "
            "runs"
        )
    return group


def _merged(group: np.ndarray, most: int) -> np.ndarray:
    """Return groups (rows,), counted from 0, with neighbours joined where there are more than `most`."""
    count = group.max() + 1
    return group * most // count if count > most else group


def errors_of(rows: Sequence[HeldOutRow]) -> tuple[HeldOutError, ...]:
    """Return the mean absolute error and coverage of each method among the rows."""
    errors = []
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        inside = [row.interval[0] <= row.measured <= row.interval[1] for row in of_method if row.interval is not None]
        errors.append(
            HeldOutError(
                method=method,
                mean_absolute_error=float(np.mean([abs(row.error) for row in of_method])),
                rows=len(of_method),
                coverage=float(np.mean(inside)) if inside else None,
            )
        )
    return tuple(errors)


def held_out_rows(
    method: str, held_out: Data, predicted: PredictedLosses, fitted_to: float | None = None
) -> list[HeldOutRow]:
    """Return the predictions of the rows `held_out` with the measured losses, by a fit to budgets up to `fitted_to`."""
    loss, bounds = predicted
    mean_recurrence, recurrence = held_out.get("mean_recurrence"), held_out.get("recurrence")
    params = held_out.get("params") if mean_recurrence is None else None
    return [
        HeldOutRow(
            method=method,
            run_id=str(held_out["run_id"][i]),
            mean_recurrence=None if mean_recurrence is None else float(mean_recurrence[i]),
            tokens=float(held_out["tokens"][i]),
            recurrence=None if recurrence is None else float(recurrence[i]),
            measured=float(held_out["loss"][i]),
            predicted=float(loss[i]),
            interval=(float(bounds[0][i]), float(bounds[1][i])) if bounds else None,
            error=float(100 * (loss[i] / held_out["loss"][i] - 1)),
            params=None if params is None else float(params[i]),
            budget=None if fitted_to is None else float(held_out["budget"][i]),
            fitted_to=fitted_to,
        )
        for i in range(len(loss))
    ]


def _predicted_rows(method: Predictor, data: Data, split: Split) -> list[HeldOutRow]:
    fitted, held_out = ({name: values[mask] for name, values in data.items()} for mask in split)
    budgets = fitted.get("budget", np.array([np.nan]))
    fitted_to = None if np.isnan(budgets).any() or np.isnan(held_out["budget"]).any() else float(budgets.max())
    return held_out_rows(method.name, held_out, method.predict(fitted, held_out), fitted_to)
