"""Two sweeps at equal FLOPs: the best run that each has measured at a shared budget, and the least loss of a curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoloop.fitting.compare.difference import Difference, Measured, minus
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.tables.runs import finished_rows

BEST_RUNS = "Best runs measured at equal FLOPs"
LEAST_LOSSES = "Least losses of the isoFLOP curves at equal FLOPs"
SAME_BUDGET = 0.01
_LOSS = "nats per token"


@dataclass(frozen=True, kw_only=True)
class BestRun:
    """The best cell of one budget: its mean loss over seeds, nats per token, and which of how many cells it is."""

    loss: Measured
    mean_recurrence: float
    seeds: int
    cells: int
    run_ids: tuple[str, ...]


def best_runs(table: pd.DataFrame) -> dict[float, BestRun]:
    """By budget (FLOPs) the mean recurrence of least loss, as measured; empty where the sweep was over tokens.

    The error comes from runs of one cell that differ in their seed, pooled over all cells: the same share of the loss
    everywhere. Without such runs there is none.
    """
    runs = finished_rows(table)
    if "budget" not in runs:
        return {}
    runs = runs[runs["budget"].notna()].sort_values(["budget", "mean_recurrence", "seed", "run_id"])
    scatter, freedom = _scatter_of_seeds(runs)
    found = {}
    for budget, of_budget in runs.groupby("budget"):
        cells = [(float(mu), cell) for mu, cell in of_budget.groupby("mean_recurrence")]
        mu, best = min(cells, key=lambda cell: cell[1]["loss"].mean())
        loss = float(best["loss"].mean())
        error = None if scatter is None else loss * scatter / np.sqrt(len(best))
        found[float(budget)] = BestRun(
            loss=Measured(value=loss, error=None if error is None else float(error), freedom=freedom),
            mean_recurrence=mu,
            seeds=len(best),
            cells=len(cells),
            run_ids=tuple(best["run_id"]),
        )
    return found


def shared_budgets(first: dict[float, BestRun], second: dict[float, BestRun]) -> list[tuple[float, float]]:
    """Budgets that both have, within 1%: (first's, second's), growing."""
    return [(one, other) for one in sorted(first) for other in sorted(second) if abs(other / one - 1) <= SAME_BUDGET]


def compare_best_runs(first: dict[float, BestRun], second: dict[float, BestRun]) -> list[Difference]:
    """What the second sweep's best run loses less or more than the first's, at each shared budget."""
    found = []
    for one, other in shared_budgets(first, second):
        a, b = first[one], second[other]
        lacking = " and ".join(side for side, best in (("A", a), ("B", b)) if best.loss.error is None)
        why = f"no cell was trained with several seeds in {lacking}, so nothing tells how far its losses scatter"
        found.append(
            _measured(BEST_RUNS, "loss", one, a.loss, b.loss, why if lacking else None, (_cells(a), _cells(b)))
        )
    return found


def compare_least_losses(first: IsoflopFit, second: IsoflopFit) -> list[Difference]:
    """The least loss of the second sweep's isoFLOP curve less the first's, at each budget where both have a minimum."""
    found = []
    for one in first.included:
        for other in second.included:
            if abs(other.budget / one.budget - 1) > SAME_BUDGET or one.loss is None or other.loss is None:
                continue
            a = Measured(value=one.loss, error=one.loss_error, freedom=max(first.noise_dof, 1))
            b = Measured(value=other.loss, error=other.loss_error, freedom=max(second.noise_dof, 1))
            lacking = " and ".join(side for side, loss in (("A", a), ("B", b)) if loss.error is None)
            why = f"the curves of {lacking} have too few points to tell their noise" if lacking else None
            found.append(_measured(LEAST_LOSSES, "loss", one.budget, a, b, why))
    return found


def _measured(
    section: str, name: str, budget: float, a: Measured, b: Measured, why: str | None, notes: tuple[str, str] = ("", "")
) -> Difference:
    change = minus(b, a)
    return Difference(
        section=section,
        name=name,
        unit=_LOSS,
        flops=budget,
        kind="difference",
        first=a.value,
        first_interval=a.interval,
        second=b.value,
        second_interval=b.interval,
        change=change.value,
        interval=change.interval,
        why_not=why,
        first_note=notes[0],
        second_note=notes[1],
    )


def _scatter_of_seeds(runs: pd.DataFrame) -> tuple[float | None, int]:
    """Relative standard deviation of a loss over seeds, pooled over cells, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for _, cell in runs.groupby(["budget", "mean_recurrence"]):
        if cell["seed"].nunique() > 1:
            logs = np.log(cell["loss"].to_numpy(dtype=float))
            squares += float(((logs - logs.mean()) ** 2).sum())
            freedom += len(logs) - 1
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (None, 0)


def _cells(best: BestRun) -> str:
    several = f", {best.seeds} seeds" if best.seeds > 1 else ""
    return f"mu = {best.mean_recurrence:g}, best of {best.cells}{several}"
