"""What in a table can't be meant: runs that diverged unnoticed, rows given twice, columns swapped."""

from __future__ import annotations

import numpy as np

from fitting.law import Data

FAR = 2.0
"""Times the median loss of its budget (of the table, where it has no budgets) above which a run counts as diverged."""
_RUNS_FOR_A_MEDIAN = 3


def far_off(losses: np.ndarray, budgets: np.ndarray | None = None) -> np.ndarray:
    """Which of `losses` (rows,) are above `FAR` times the median of their budget (rows,): diverged runs among finished
    ones.

    On the public isoFLOP tables the farthest is 1.7 times the median of its budget, a run far off the optimum.
    """
    budgets = np.full(len(losses), np.nan) if budgets is None else np.asarray(budgets, dtype=float)
    medians = np.full(len(losses), np.median(losses) if len(losses) else 0.0)
    for budget in np.unique(budgets[~np.isnan(budgets)]):
        same = budgets == budget
        if same.sum() >= _RUNS_FOR_A_MEDIAN:
            medians[same] = np.median(losses[same])
    return np.asarray(losses > FAR * medians)


def warnings(data: Data) -> list[str]:
    """What a reader of any fit to these rows should know, as plain sentences."""
    return [*_repeated(data), *_swapped(data), *_one_budget(data)]


def _repeated(data: Data) -> list[str]:
    size = "effective_params" if "effective_params" in data else "params"
    _, counts = np.unique(np.stack([data[size], data["tokens"], data["loss"]]), axis=1, return_counts=True)
    again = int((counts - 1).sum())
    if not again:
        return []
    said = "1 row repeats" if again == 1 else f"{again} rows repeat"
    return [
        f"{said} the parameters, tokens and loss of another: given twice, a run counts twice and narrows intervals."
    ]


def _swapped(data: Data) -> list[str]:
    if "params" not in data or "mean_recurrence" in data:
        return []
    ratio = float(np.median(np.asarray(data["tokens"]) / np.asarray(data["params"])))
    if ratio >= 1:
        return []
    return [
        f"Half of the runs have fewer than {ratio:.2g} tokens per parameter, an implausible optimum (published "
        "ones have about 20): were the columns params and tokens swapped?"
    ]


def _one_budget(data: Data) -> list[str]:
    budgets = np.asarray(data.get("budget", []), dtype=float)
    if not len(budgets) or np.isnan(budgets).any() or len(np.unique(budgets)) > 1:
        return []
    return [
        f"All runs spend one budget ({budgets[0]:.3g} FLOPs): more parameters always came with fewer tokens, so a law "
        "can't tell the two apart, nor say anything of other budgets."
    ]
