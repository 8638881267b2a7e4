"""Sanity checks on a table of runs: diverged unnoticed, repeated, of one budget."""

from __future__ import annotations

import numpy as np

from isoloop.fitting.laws.base import Data
from isoloop.fitting.tables.trend import fitted_trend, trend_basis

IMPLAUSIBLE_FACTOR = 2.0
IMPLAUSIBLE_LOSS = (
    f"above {IMPLAUSIBLE_FACTOR:g} times or below 1/{IMPLAUSIBLE_FACTOR:g} of the lower quartile of its budget's losses"
)
"""The rule of `implausible_losses`, in words."""
FEW_RUNS = 12
"""Runs below which a fit carries a warning: twice the parameters of the larger laws."""
_QUARTILE = 0.25
_RUNS_FOR_A_QUARTILE = 3
_RUNS_FOR_A_TREND = 6
_TREND_FACTOR = 1.5
"""The same factor for the distance from a trend, which is closer to the losses than a quartile."""


def implausible_losses(
    losses: np.ndarray,
    budgets: np.ndarray | None = None,
    size: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> np.ndarray:
    """Return a mask (rows,) of the losses (rows,) that only a divergence, another unit or a slip explains.

    They are above 2 times, or below half of, the lower quartile of their budget's losses. The lower quartile still is
    that of good runs if half of a budget diverged. Budgets (rows,) with fewer than 3 rows, and tables without budgets,
    are compared with the quartile of the whole table. In the public isoFLOP tables losses are 0.98 to 1.70 times the
    quartile of their budget; the largest is that of a run far off the optimum.

    Where models differ much in `size` and `tokens` (rows,), the loss of a small one may be as far from the quartile.
    So a run counts only if it is also 1.5 times off the trend of the other runs, extrapolated to it. A trend needs 6 of
    them.
    """
    if not len(losses):
        return np.zeros(0, dtype=bool)
    budgets = np.full(len(losses), np.nan) if budgets is None else np.asarray(budgets, dtype=float)
    quartiles = np.full(len(losses), np.quantile(losses, _QUARTILE))
    for budget in np.unique(budgets[~np.isnan(budgets)]):
        same = budgets == budget
        if same.sum() >= _RUNS_FOR_A_QUARTILE:
            quartiles[same] = np.quantile(losses[same], _QUARTILE)
    far = _is_far(losses, quartiles)
    if size is None or tokens is None or not far.any() or (~far).sum() < _RUNS_FOR_A_TREND:
        return far
    trend = fitted_trend(trend_basis(size, tokens), losses[None], (~far)[None].astype(float))[0]
    return far & _is_far(losses, trend, _TREND_FACTOR)


def _is_far(losses: np.ndarray, expected: np.ndarray, factor: float = IMPLAUSIBLE_FACTOR) -> np.ndarray:
    return np.asarray((losses > factor * expected) | (losses < expected / factor))


def provenance_caveats(*, simulated: bool, accounting: str, dense: bool = False) -> list[str]:
    """Return what a reader should know of the origin of the runs in a run table.

    FLOPs that a table of `dense` models gives are not remarked on: such models have one way to run, and its count
    shows in the cost.
    """
    drawn = ["Every run is simulated: drawn from a law, not trained."] if simulated else []
    counted = {
        "own": "Compute is the table's own count of FLOPs, which no cost model checks; under another the exponents "
        "differ.",
        "6ND": "Compute is taken to be C = 6 N D, since no FLOPs are given; attention and output head are not in it.",
    }
    if dense and accounting == "own":
        return drawn
    other = f"Compute is counted by `{accounting}`; under another accounting the exponents differ."
    return [*drawn, counted.get(accounting, other)]


def few_runs_caveats(runs: int) -> list[str]:
    """Return a caveat if the fitted runs are fewer than 12."""
    if runs >= FEW_RUNS:
        return []
    few = "1 run is" if runs == 1 else f"{runs} runs are"
    return [f"Only {few} fitted: so few can hardly tell one form of a law from another."]


def row_caveats(data: Data) -> list[str]:
    """Return what a reader of any fit to these rows should know, as plain sentences."""
    return [
        *_repeated_rows(data),
        *_single_budget(data),
    ]


def _repeated_rows(data: Data) -> list[str]:
    size = next(name for name in ("effective_params", "mean_recurrence", "params") if name in data)
    _, counts = np.unique(np.stack([data[size], data["tokens"], data["loss"]]), axis=1, return_counts=True)
    repeated = int((counts - 1).sum())
    if not repeated:
        return []
    rows = "1 row repeats" if repeated == 1 else f"{repeated} rows repeat"
    return [
        f"{rows} the parameters, tokens and loss of another: a run given twice counts twice and narrows the intervals."
    ]


def _single_budget(data: Data) -> list[str]:
    budgets = np.asarray(data.get("budget", []), dtype=float)
    if not len(budgets) or np.isnan(budgets).any() or len(np.unique(budgets)) > 1:
        return []
    return [
        f"All runs spend one budget ({budgets[0]:.3g} FLOPs): more parameters always came with fewer tokens, so a law "
        "can't separate the two, nor say anything about other budgets."
    ]
