"""The table of predictions that a page's calculator interpolates: `predict()` at a range of budgets."""

from itertools import pairwise
from typing import Any

import numpy as np

from isoloop.fitting import SweepFit, predict
from isoloop.fitting.axis import AXES
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.predict import extrapolation_notes, named_power_laws, repetition_notes

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

Row = dict[str, Any]


def calculator_table(fit: SweepFit | None) -> dict[str, Any] | None:
    """Return the predictions that calculator.js reads; None if the fit has neither law nor power law.

    `budgets` (FLOPs) grow. Each entry of `methods` has a name and, for each quantity, a value per budget; a quantity
    that has no values, such as an interval without refits, is None. `value` is that on the fit's `axis`. The first
    method is that of the answer, with its `notes` per budget. `whole` has the best models whose mean recurrence is a
    whole number, and is None for dense models.

    Between two neighbouring budgets the page interpolates logarithms, so a loss is within 1e-4 of that of `predict`.
    Where the best mean recurrence jumps, the page shows values in between for budgets within 2% of the jump.
    """
    if fit is None or (fit.training is None and not named_power_laws(fit)):
        return None
    # A power law with a wide interval may leave the range of floating-point numbers.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        answers = _answers(fit)
    budgets, rows = list(answers), list(answers.values())
    return {
        "axis": fit.axis,
        "fitted": fit.fitted.flops,
        "budgets": budgets,
        "methods": [
            {"name": method[0]["name"], **{field: _column([row[field] for row in method]) for field in _FIELDS}}
            for method in zip(*rows, strict=True)
        ],
        "whole": None
        if fit.axis == "params"
        else _whole_loops(fit, budgets, [methods[0]["value"] for methods in rows]),
        "notes": [[note for row in methods for note in row["notes"]] for methods in rows],
    }


def why_no_calculator(fit: SweepFit | None) -> str:
    """Return the reason why a page has no calculator, for a sweep without training law and power law."""
    if fit is None:
        return "nothing could be fitted to these runs"
    curves = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
    law = "law of the loss" if fit.axis == "params" else "training law"
    return f"there is no {law} ({fit.why_missing('training')}) and no power law of {AXES[fit.axis].symbol}* ({curves})"


def _answers(fit: SweepFit) -> dict[float, list[Row]]:
    """Return the answers for growing budgets that are so close that those for budgets between can be interpolated."""
    low, high = fit.fitted.flops
    first = np.geomspace(low * _RANGE[0], high * _RANGE[1], _FIRST_BUDGETS)
    budgets = sorted({*first.tolist(), low, *(high * times for times in MULTIPLES)})
    answers = {flops: _methods(fit, flops) for flops in budgets}
    steps = list(pairwise(budgets))
    while steps:
        low, high = steps.pop()
        middle = float(np.sqrt(low * high))
        answers[middle] = _methods(fit, middle)
        if high > low * _SHORTEST_STEP and not _interpolates(*(answers[flops][0] for flops in (low, middle, high))):
            steps += [(low, middle), (middle, high)]
    return dict(sorted(answers.items()))


def _interpolates(low: Row, middle: Row, high: Row) -> bool:
    """Return whether loss and best value half-way between two budgets are near their interpolation."""
    for field, tolerance in _TOLERANCES.items():
        if middle[field] is not None:
            first, at, last = (np.clip(row[field], *_INTERPOLATED) for row in (low, middle, high))
            if np.any(abs(np.sqrt(first * last) / at - 1) > tolerance):
                return False
    return True


def _methods(fit: SweepFit, flops: float) -> list[Row]:
    """Return the answers for `flops`: the training law's, if there is one, and those of the isoFLOP power laws."""
    rows = [_by_power_law(fit, name, law, flops) for name, law in named_power_laws(fit)]
    if fit.training is None:
        best = rows[0]
        rows[0]["notes"] += extrapolation_notes(fit, flops, best["tokens"], best["value"]) + repetition_notes(fit)
    else:
        prediction = predict(fit, flops=flops)
        values = {field: getattr(prediction, field) for field in _FIELDS}
        rows.insert(0, values | {"name": f"{fit.training.form.name} law", "notes": list(prediction.notes)})
    # A note is shown for budgets about this one, so its multiple is approximate.
    rows[0]["notes"] = [f"about {note}" if note[0].isdigit() else note for note in rows[0]["notes"]]
    return rows


def _by_power_law(fit: SweepFit, name: str, law: PowerLaw, flops: float) -> Row:
    """Return the model that a power law finds best; its loss is the training law's, or that of the minima."""
    value, span = law.at(flops), law.interval_at(flops)
    tokens = fit.cost_model.tokens_for(flops, [value, *(span or ())])
    loss, loss_interval = None, None
    minimal = None if fit.isoflop is None else fit.isoflop.loss_floor_law or fit.isoflop.loss_law
    if fit.training is not None:
        loss = float(fit.training.loss(fit.cost_model.columns(flops, np.array([value])))[0])
    elif minimal is not None:
        loss, loss_interval = float(minimal.at(flops)), minimal.interval_at(flops)
    notes = []
    if fit.axis == "mean_recurrence" and value < 1:
        notes.append(f"the {name} ask for a mean recurrence of {value:.3g}, but a loop runs at least once")
    return {
        "name": name,
        "value": value,
        "value_interval": span,
        "tokens": float(tokens[0]),
        # More loops, or parameters, leave fewer tokens.
        "tokens_interval": (float(tokens[2]), float(tokens[1])) if span else None,
        "loss": loss,
        "loss_interval": loss_interval,
        "notes": notes,
    }


def _whole_loops(fit: SweepFit, budgets: list[float], best: list[float]) -> dict[str, Any] | None:
    """Return the better of the two whole mean recurrences next to the best one, and the cost of each whole number.

    A power law that asks for absurdly many loops has none.
    """
    if not np.max(best) <= _MOST_LOOPS:
        return None
    loops, losses = [], []
    for flops, mean_recurrence in zip(budgets, best, strict=True):
        beside = np.maximum(1.0, [np.floor(mean_recurrence), np.ceil(mean_recurrence)])
        if fit.training is None:
            away = abs(beside - mean_recurrence)
        else:
            away = fit.training.loss(fit.cost_model.columns(flops, beside))
            losses.append(float(away.min()))
        loops.append(float(beside[np.argmin(away)]))
    costs = fit.cost_model.flops_per_token(np.arange(1, max(loops) + 1))
    return {"mean_recurrence": loops, "loss": _column(losses) if losses else None, "flops_per_token": costs.tolist()}


def _column(values: list[Any]) -> list[Any] | None:
    """Return a column with values that JSON and logarithms can hold, None where missing, or None if it has none."""
    if values[0] is None:
        return None
    column = np.clip(np.asarray(values, dtype=float), *_ENDS).astype(object)
    column[np.isnan(np.asarray(values, dtype=float))] = None
    return list(column.tolist())
