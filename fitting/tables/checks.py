"""What in a table can't be meant: runs that diverged unnoticed, rows given twice, columns swapped, units mixed."""

from __future__ import annotations

import numpy as np

from isoloop.fitting.laws.base import Data

FAR = 2.0
"""Factor by which a loss may be off the lower quartile of its budget's losses before it is left out."""
FAR_OFF = f"above {FAR:g} times or below 1/{FAR:g} of the lower quartile of its budget's losses"
"""What `far_off` means, in words."""
_QUARTILE = 0.25
_RUNS_FOR_A_QUARTILE = 3
_MIXED = 3.0
_PLAUSIBLE = (3.0, 12.0)
"""FLOPs per parameter and token between which C = 6 N D is near enough."""


def far_off(losses: np.ndarray, budgets: np.ndarray | None = None) -> np.ndarray:
    """Which of `losses` (rows,) are above `FAR` times or below 1 / `FAR` of the lower quartile (the 25% quantile) of
    their budget (rows,).

    Above, only a divergence explains them; below, only another unit or a slip. The quartile stands although half of a
    budget diverged. It is the table's for budgets of fewer than 3 rows and where there are no budgets. On the public
    isoFLOP tables losses are 0.98 to 1.70 times the quartile of their budget, the farthest a run far off the optimum.
    """
    if not len(losses):
        return np.zeros(0, dtype=bool)
    budgets = np.full(len(losses), np.nan) if budgets is None else np.asarray(budgets, dtype=float)
    usual = np.full(len(losses), np.quantile(losses, _QUARTILE))
    for budget in np.unique(budgets[~np.isnan(budgets)]):
        same = budgets == budget
        if same.sum() >= _RUNS_FOR_A_QUARTILE:
            usual[same] = np.quantile(losses[same], _QUARTILE)
    return np.asarray((losses > FAR * usual) | (losses < usual / FAR))


def provenance(*, simulated: bool, accounting: str) -> list[str]:
    """What a reader should know of where the runs of a run table come from."""
    drawn = ["Every run is simulated: drawn from a law, not trained."] if simulated else []
    return [*drawn, f"Compute is counted by `{accounting}`; under another accounting the exponents differ."]


def warnings(data: Data) -> list[str]:
    """What a reader of any fit to these rows should know, as plain sentences."""
    return [*_repeated(data), *_swapped(data), *_off_six(data), *_one_budget(data)]


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


def _off_six(data: Data) -> list[str]:
    """Budgets of dense models that are not 6 N D, whatever the reason."""
    if "budget" not in data or "params" not in data or "mean_recurrence" in data:
        return []
    ratios = np.asarray(data["budget"]) / (np.asarray(data["params"]) * np.asarray(data["tokens"]))
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return []
    low, middle, high = float(ratios.min()), float(np.median(ratios)), float(ratios.max())
    if high > _MIXED * low:
        return [
            f"The budget is {low:.3g} to {high:.3g} times params x tokens, where one way of counting gives about one "
            "number: were units mixed?"
        ]
    if _PLAUSIBLE[0] <= middle <= _PLAUSIBLE[1]:
        return []
    return [
        f"The budget is {middle:.3g} times params x tokens in the median: C = 6 N D does not hold here, so D* from it "
        "is off."
    ]


def _one_budget(data: Data) -> list[str]:
    budgets = np.asarray(data.get("budget", []), dtype=float)
    if not len(budgets) or np.isnan(budgets).any() or len(np.unique(budgets)) > 1:
        return []
    return [
        f"All runs spend one budget ({budgets[0]:.3g} FLOPs): more parameters always came with fewer tokens, so a law "
        "can't tell the two apart, nor say anything of other budgets."
    ]
