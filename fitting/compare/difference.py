"""Numbers of two sweeps side by side: of their fits, and measured at equal FLOPs, with 95% intervals of the change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.cost.family import short_count
from isoloop.fitting.estimation.bootstrap import interval, t_quantile
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.sizes.fit import SHAPE, several_sizes
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.contract import is_dense
from isoloop.fitting.tables.runs import finished_rows

BEST_RUNS = "Best runs measured at equal FLOPs"
LEAST_LOSSES = "Least losses of the isoFLOP curves at equal FLOPs"

ChangeKind = Literal["difference", "ratio"]
CountedIn = Literal["nothing", "losses", "tokens", "losses and tokens"]
"""Units of a number that two sweeps may not share; an exponent has neither."""

_ROUNDING = 1e-6
"""Distance within which a change counts as none: best models that two searches find may differ by their rounding."""
_PAIRINGS = 10
"""Draws of the other fit that each draw is paired with; more would only smooth the ends of the interval."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of one sweep, with its 95% `interval` and its `draws` (d,), widened as the interval is.

    `flops` is the compute it belongs to, None for a number of the whole sweep. `note` is a caveat about it, and
    `no_draws_reason` says why there are no draws.
    """

    section: str
    name: str
    unit: str
    change: ChangeKind
    counted_in: CountedIn
    value: float
    interval: tuple[float, float] | None
    draws: np.ndarray | None
    flops: float | None = None
    note: str = ""
    no_draws_reason: str = "no refits"

    @property
    def key(self) -> tuple[str, str, str, float | None]:
        """Key that identifies the number within its sweep, and is the same in another sweep."""
        return self.section, self.name, self.change, self.flops


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number of two sweeps: `change` is second - first, or second / first if `kind` is "ratio".

    `flops` is the compute it belongs to, None for a number of the whole sweep. `interval` is the 95% interval of the
    change; if it or the change itself is None, `reason` says why. The notes are caveats about either value.
    """

    section: str
    name: str
    unit: str
    flops: float | None
    kind: ChangeKind
    first: float
    first_interval: tuple[float, float] | None
    second: float
    second_interval: tuple[float, float] | None
    change: float | None
    interval: tuple[float, float] | None
    reason: str | None
    first_note: str = ""
    second_note: str = ""

    @property
    def differs(self) -> bool | None:
        """True if the change is significant, so that its interval leaves out 0, or 1 for a ratio; None without one."""
        if self.interval is None:
            return None
        no_change = 1.0 if self.kind == "ratio" else 0.0
        return not self.interval[0] - _ROUNDING <= no_change <= self.interval[1] + _ROUNDING


def difference(first: Quantity, second: Quantity, reason: str | None = None) -> Difference:
    """Return the change from `first` to `second`; no change is given if a `reason` forbids the comparison."""
    assert first.key == second.key, (first.key, second.key)
    change, bounds = None, None
    if reason is None and first.change == "ratio" and first.value == 0:
        reason = "A's is 0, and nothing can be divided by it"
    if reason is None:
        change = second.value / first.value if first.change == "ratio" else second.value - first.value
        if first.draws is None or second.draws is None:
            sides = (("A", first), ("B", second))
            lacking = {side: number.no_draws_reason for side, number in sides if number.draws is None}
            reason = "; ".join(
                f"{why} of {' and '.join(side for side in lacking if lacking[side] == why)}"
                for why in dict.fromkeys(lacking.values())
            )
        else:
            a, b = paired(first.draws, second.draws)
            bounds = interval(b / a if first.change == "ratio" else b - a)
    return Difference(
        section=first.section,
        name=first.name,
        unit=first.unit,
        flops=first.flops,
        kind=first.change,
        first=first.value,
        first_interval=first.interval,
        second=second.value,
        second_interval=second.interval,
        change=change,
        interval=bounds,
        reason=reason,
        first_note=first.note,
        second_note=second.note,
    )


def paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return draws (n,) of both, paired at random.

    Two fits with one seed draw the same noise in the same order, so their draws at one place rise and fall together.
    Paired at random they are independent, as the runs behind the two fits are.
    """
    a, b = paired_places(len(first), len(second))
    return first[a], second[b]


def paired_places(first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (n,) of draws of both, of so many each, that `paired` puts together."""
    rng = np.random.default_rng(0)
    count = _PAIRINGS * max(first, second)
    return rng.integers(first, size=count), rng.integers(second, size=count)


def widened(value: float, draws: np.ndarray, widening: float, *, in_logs: bool) -> np.ndarray:
    """Return the draws moved away from the estimate by the factor `widening`, as the interval of the fit is."""
    if widening == 1.0:
        return draws
    if in_logs:
        return np.asarray(value * (draws / value) ** widening)
    return np.asarray(value + widening * (draws - value))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measured number with its standard error, known with `dof` degrees of freedom; None if the error is unknown."""

    value: float
    error: float | None
    dof: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval by Student's t."""
        if self.error is None:
            return None
        half = t_quantile(self.dof) * self.error
        return self.value - half, self.value + half


def subtract(second: Measurement, first: Measurement) -> Measurement:
    """Return second - first, with the degrees of freedom of Welch and Satterthwaite; no error if one has none."""
    value = second.value - first.value
    if first.error is None or second.error is None:
        return Measurement(value=value, error=None)
    parts = ((first.error**2, first.dof), (second.error**2, second.dof))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / dof for part, dof in parts)
    dof = int(variance**2 / spread) if spread > 0 else min(dof for _, dof in parts)
    return Measurement(value=value, error=float(np.sqrt(variance)), dof=max(dof, 1))


@dataclass(frozen=True, kw_only=True)
class BestRun:
    """The best of the `cells` cells of one budget: its mean loss over seeds, nats per token, and its runs.

    `value` is that of its models in the column `axis`, and `size` the name of their size, empty where all have one.
    """

    loss: Measurement
    axis: str
    value: float
    size: str
    seeds: int
    cells: int
    run_ids: tuple[str, ...]

    @property
    def note(self) -> str:
        """Description for reports."""
        several = f", {self.seeds} seeds" if self.seeds > 1 else ""
        size = f"{self.size}, " if self.size else ""
        return f"{size}{AXES[self.axis].plain_symbol} = {self.value:.4g}, best of {self.cells}{several}"


def best_runs(table: pd.DataFrame) -> dict[float, BestRun]:
    """Return the cell of least measured loss at each budget (FLOPs), of any size; empty if the sweep was over tokens.

    The error comes from runs of one cell that differ in their seed, pooled over all cells as a share of the loss.
    Without such runs there is none.
    """
    runs = finished_rows(table)
    if "budget" not in runs:
        return {}
    axis = "params" if is_dense(table) else "mean_recurrence"
    sizes_differ = several_sizes(runs)
    model = [*SHAPE, axis] if sizes_differ else [axis]
    order = [name for name in ("budget", *model, "seed", "run_id") if name in runs]
    runs = runs[runs["budget"].notna()].sort_values(order)
    scatter, dof = _seed_scatter(runs, model)
    best_by_budget = {}
    for budget, budget_runs in runs.groupby("budget"):
        cells = list(budget_runs.groupby(model))
        values, best = min(cells, key=lambda cell: cell[1]["loss"].mean())
        loss = float(best["loss"].mean())
        error = None if scatter is None else float(loss * scatter / np.sqrt(len(best)))
        best_by_budget[float(budget)] = BestRun(
            loss=Measurement(value=loss, error=error, dof=dof),
            axis=axis,
            value=float(values[-1]),
            size=_size_name(best) if sizes_differ else "",
            seeds=len(best),
            cells=len(cells),
            run_ids=tuple(best["run_id"]),
        )
    return best_by_budget


def _size_name(cell: pd.DataFrame) -> str:
    if "model.size" in cell:
        return str(cell["model.size"].iloc[0])
    return short_count(float(cell[list(SHAPE)].iloc[0].sum()))


def shared_budgets(first: Iterable[float], second: Iterable[float]) -> list[tuple[float, float]]:
    """Return the budgets in both, within 1%, as growing pairs (first's, second's)."""
    return [(a, b) for a in sorted(first) for b in sorted(second) if abs(b / a - 1) <= SAME_BUDGET]


def compare_best_runs(first: dict[float, BestRun], second: dict[float, BestRun]) -> list[Difference]:
    """Return the loss of the second sweep's best run less the first's, at each shared budget."""
    why = "no cell was trained with several seeds in {}, so the scatter of its losses is not known"
    differences = []
    for budget, other_budget in shared_budgets(first, second):
        a, b = first[budget], second[other_budget]
        differences.append(_loss_difference(BEST_RUNS, budget, a.loss, b.loss, why, (a.note, b.note)))
    return differences


def compare_least_losses(first: IsoflopFit, second: IsoflopFit) -> list[Difference]:
    """Return the least loss of the second sweep's isoFLOP curve less the first's, where both have one."""
    why = "the curves of {} have too few points to estimate their noise"
    minima_a, minima_b = ({minimum.budget: minimum for minimum in fit.included} for fit in (first, second))
    differences = []
    for budget, other_budget in shared_budgets(minima_a, minima_b):
        minimum_a, minimum_b = minima_a[budget], minima_b[other_budget]
        assert minimum_a.loss is not None
        assert minimum_b.loss is not None
        a = Measurement(value=minimum_a.loss, error=minimum_a.loss_error, dof=max(first.noise_dof, 1))
        b = Measurement(value=minimum_b.loss, error=minimum_b.loss_error, dof=max(second.noise_dof, 1))
        differences.append(_loss_difference(LEAST_LOSSES, budget, a, b, why))
    return differences


def _loss_difference(
    section: str, budget: float, a: Measurement, b: Measurement, why: str, notes: tuple[str, str] = ("", "")
) -> Difference:
    """Return b - a; `why` there is no interval is completed by the side or sides without an error."""
    change = subtract(b, a)
    lacking = " and ".join(side for side, loss in (("A", a), ("B", b)) if loss.error is None)
    return Difference(
        section=section,
        name="loss",
        unit="nats per token",
        flops=budget,
        kind="difference",
        first=a.value,
        first_interval=a.interval,
        second=b.value,
        second_interval=b.interval,
        change=change.value,
        interval=change.interval,
        reason=why.format(lacking) if lacking else None,
        first_note=notes[0],
        second_note=notes[1],
    )


def _seed_scatter(runs: pd.DataFrame, model: list[str]) -> tuple[float | None, int]:
    """Return the relative standard deviation of a loss over seeds, pooled over cells, and its degrees of freedom."""
    squares, dof = 0.0, 0
    for _, cell in runs.groupby(["budget", *model]) if "seed" in runs else ():
        if cell["seed"].nunique() > 1:
            logs = np.log(cell["loss"].to_numpy(dtype=float))
            squares += float(((logs - logs.mean()) ** 2).sum())
            dof += len(logs) - 1
    return (float(np.sqrt(squares / dof)), dof) if dof else (None, 0)
