"""The table of predictions that a page's calculator interpolates: `predict()` at a range of budgets."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from isoloop.fitting import BestModel, Prediction, SweepFit, predict
from isoloop.fitting.answer.recommendation import why_no_recommendation
from isoloop.fitting.cost.axis import AXES

MULTIPLES = (1, 2, 10, 100)
"""Budgets that the page offers, as multiples of the largest fitted compute."""
_RANGE = (0.1, 1000.0)
"""Ends of the table: the smallest fitted compute times the first, the largest times the second."""
_FIRST_BUDGETS = 17
_TOLERANCES = {"loss": 3e-4, "value": 0.02, "value_interval": 0.05}
"""Relative errors half-way between two budgets above which more are added; with the middle one, a quarter remains."""
_SHORTEST_STEP = 1.03
"""Ratio of neighbouring budgets below which none is added: there the best mean recurrence jumps."""
_INTERPOLATED = (1e-150, 1e150)
"""Range outside of which a value isn't followed closely: it is absurd, and a product of two would overflow."""
_ENDS = (1e-300, 1e300)
"""Numbers that stand for 0 and infinity, which have no logarithm; the page shows them as such."""
_MOST_LOOPS = 1e5
"""Mean recurrence above which the page doesn't list the cost of each whole number of loops."""
_FIELDS = ("value", "value_interval", "tokens", "tokens_interval", "loss", "loss_interval")


def calculator_table(fit: SweepFit | None) -> dict[str, Any] | None:
    """Return the predictions that calculator.js reads; None if the fit has neither law nor power law.

    `budgets` (FLOPs) grow. Each entry of `methods` has a name and, for each quantity, a value per budget; a quantity
    that has no values, such as an interval without refits, is None. `value` is that on the fit's `axis`. The first
    method is the recommended one, for the `reason`; its `notes`, and what the runs do not determine (`undetermined`),
    are lists per budget. `extra_loss` is what another method's choice would cost. `whole` has the best models whose
    mean recurrence is a whole number, and is None for dense models.

    Between two neighbouring budgets the page interpolates logarithms, so a loss is within 1e-4 of that of `predict`.
    Where the best mean recurrence jumps, the page shows values in between for budgets within 2% of the jump.
    """
    if fit is None or why_no_recommendation(fit) is not None:
        return None
    # A power law with a wide interval may leave the range of floating-point numbers.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        answers = _answers(fit)
    budgets, best = list(answers), list(answers.values())
    others = list(zip(*(answer.others for answer in best), strict=True))
    return {
        "axis": fit.axis,
        "fitted": fit.fitted.flops,
        "budgets": budgets,
        "reason": best[0].reason,
        "methods": [
            {"name": best[0].method, **_columns(best), "extra_loss": None},
            *({"name": other[0].method, **_columns(other), "extra_loss": _extra_losses(other)} for other in others),
        ],
        "whole": None if fit.axis == "params" else _whole_loops(fit, budgets, [answer.value for answer in best]),
        "notes": [_notes(answer) for answer in best],
        "undetermined": [
            [f"Because {each.reason}. {each.next_step}" for each in answer.verdict.answer] for answer in best
        ],
    }


def why_no_calculator(fit: SweepFit | None) -> str:
    """Return the reason why a page has no calculator; empty if it has one."""
    if fit is None:
        return "nothing could be fitted to these runs"
    axis = AXES[fit.axis]
    return (why_no_recommendation(fit) or "").replace(f"{axis.plain_symbol}*", f"{axis.symbol}*")


def _answers(fit: SweepFit) -> dict[float, Prediction]:
    """Return the answers for growing budgets that are so close that those for budgets between can be interpolated."""
    low, high = fit.fitted.flops
    first = np.geomspace(low * _RANGE[0], high * _RANGE[1], _FIRST_BUDGETS)
    budgets = sorted({*first.tolist(), low, *(high * times for times in MULTIPLES)})
    answers = {flops: predict(fit, flops=flops) for flops in budgets}
    steps = list(pairwise(budgets))
    while steps:
        low, high = steps.pop()
        middle = float(np.sqrt(low * high))
        answers[middle] = predict(fit, flops=middle)
        if high > low * _SHORTEST_STEP and not _interpolates(*(answers[flops] for flops in (low, middle, high))):
            steps += [(low, middle), (middle, high)]
    return dict(sorted(answers.items()))


def _interpolates(low: Prediction, middle: Prediction, high: Prediction) -> bool:
    """Return whether loss and best value half-way between two budgets are near their interpolation."""
    for field, tolerance in _TOLERANCES.items():
        values = [getattr(answer, field) for answer in (low, middle, high)]
        if None not in values:
            first, at, last = (np.clip(value, *_INTERPOLATED) for value in values)
            if np.any(abs(np.sqrt(first * last) / at - 1) > tolerance):
                return False
    return True


def _notes(answer: Prediction) -> list[str]:
    """Return the notes of all methods; a note is shown for budgets about this one, so its multiple is approximate."""
    notes = [f"about {note}" if note[0].isdigit() else note for note in answer.notes]
    return notes + [note for other in answer.others for note in other.notes]


def _columns(models: Sequence[Prediction | BestModel]) -> dict[str, list[Any] | None]:
    return {field: _column([getattr(model, field) for model in models]) for field in _FIELDS}


def _extra_losses(models: Sequence[BestModel]) -> list[float | None]:
    """Return the loss that a method's choice would cost at each budget, None where it is unknown or infinite."""
    losses = [math.nan if model.extra_loss is None else model.extra_loss for model in models]
    return [loss if math.isfinite(loss) else None for loss in losses]


def _whole_loops(fit: SweepFit, budgets: list[float], best: list[float]) -> dict[str, Any] | None:
    """Return the better of the two whole mean recurrences next to the best one, and the cost of each whole number.

    A power law that asks for absurdly many loops has none.
    """
    if not np.max(best) <= _MOST_LOOPS:
        return None
    laws = fit.laws_after_training
    loops, losses = [], []
    for flops, mean_recurrence in zip(budgets, best, strict=True):
        beside = np.maximum(1.0, [np.floor(mean_recurrence), np.ceil(mean_recurrence)])
        if laws is None:
            away = abs(beside - mean_recurrence)
        else:
            away = laws.loss(fit.cost_model.columns(flops, beside))
            losses.append(float(away.min()))
        loops.append(float(beside[np.argmin(away)]))
    costs = fit.cost_model.flops_per_token(np.arange(1, max(loops) + 1))
    return {"mean_recurrence": loops, "loss": _column(losses) if losses else None, "flops_per_token": costs.tolist()}


def _column(values: list[Any]) -> list[Any] | None:
    """Return a column with values that JSON and logarithms can hold, None where missing, or None if it has none."""
    if all(value is None for value in values):
        return None
    return [None if value is None else _clipped(value) for value in values]


def _clipped(value: float | tuple[float, ...]) -> Any:
    """Return a number, or the ends of an interval, within the numbers that the page can show; None for none."""
    if isinstance(value, tuple):
        return [_clipped(end) for end in value]
    return None if math.isnan(value) else min(max(value, _ENDS[0]), _ENDS[1])
