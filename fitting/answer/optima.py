"""The best models of a fitted law at several budgets under one accounting, and the power laws through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from isoloop.fitting.cost import CostModel
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import PowerLaw, fit_power_law
from isoloop.fitting.laws.base import LARGEST_RECURRENCE

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BudgetOptimum:
    """The best model for `budget` FLOPs: mean recurrence (loops), tokens, and its loss (nats per token).

    Intervals are 95% over the law's draws, None without draws. `at_bound` says that the best mean recurrence is at an
    end of the search range, so that a better one may lie outside.
    """

    budget: float
    mean_recurrence: float
    mean_recurrence_interval: Interval | None
    tokens: float
    tokens_interval: Interval | None
    loss: float
    at_bound: bool


@dataclass(frozen=True, kw_only=True)
class LawOptima:
    """The optima of one law at several budgets, counted by one cost model, and the power laws through them.

    The cost has kinks and so have the optima, which therefore follow no exact power law: the exponents hold for these
    budgets, and their intervals contain the law's uncertainty, but not that deviation.
    """

    law: str
    optima: tuple[BudgetOptimum, ...]
    mean_recurrence_law: PowerLaw
    tokens_law: PowerLaw

    def frame(self) -> pd.DataFrame:
        """Return a table with a row per budget."""
        return pd.DataFrame(self.optima)


def law_optima(fit: LawFit, cost: CostModel, budgets: Sequence[float]) -> LawOptima:
    """Return the best models at `budgets` (FLOPs, as `cost` counts them) by the law of `fit`.

    The mean recurrence is searched from 1 to 1024 loops. Raises ValueError for fewer than 2 budgets, and as
    `Law.optimum` does.
    """
    ordered = sorted(set(budgets))
    if len(ordered) < 2:
        raise ValueError(f"a power law needs 2 different budgets or more, but got {len(ordered)}; add one")
    # The optimum at each budget, by the fitted parameters (first row) and by each draw of them.
    vectors = np.vstack([fit.vector, fit.draw_matrix])
    optima = [fit.form.optimum(vectors, cost, budget, (1.0, LARGEST_RECURRENCE)) for budget in ordered]
    best = {
        "mean_recurrence": np.stack([optimum.mean_recurrence for optimum in optima], axis=-1),
        "tokens": np.stack([optimum.tokens for optimum in optima], axis=-1),
    }
    logs = {name: np.log(values) for name, values in best.items()}
    for rows in logs.values():
        rows[1:] = rows[0] + fit.widening * (rows[1:] - rows[0])
    power_laws = {name: fit_power_law(name, np.array(ordered), rows[0], rows[1:]) for name, rows in logs.items()}
    if not len(fit.draw_matrix):
        # The scatter about the line comes from the cost's kinks, not from noise, so no interval follows from it.
        power_laws = {name: replace(power_law, interval=None) for name, power_law in power_laws.items()}
    return LawOptima(
        law=fit.law,
        optima=tuple(
            BudgetOptimum(
                budget=budget,
                mean_recurrence=float(best["mean_recurrence"][0, i]),
                mean_recurrence_interval=_ends(logs["mean_recurrence"][1:, i]),
                tokens=float(best["tokens"][0, i]),
                tokens_interval=_ends(logs["tokens"][1:, i]),
                loss=float(optimum.loss[0]),
                at_bound=bool(optimum.at_bound[0]),
            )
            for i, (budget, optimum) in enumerate(zip(ordered, optima, strict=True))
        ),
        mean_recurrence_law=power_laws["mean_recurrence"],
        tokens_law=power_laws["tokens"],
    )


def exponent_shift(first: PowerLaw, second: PowerLaw) -> tuple[float, Interval | None]:
    """Return the exponent of `second` minus that of `first`, with its 95% interval, None without draws.

    The draws are paired, so both must come from the same draws of one law. Raises ValueError if their numbers differ.
    """
    if len(first.draws) != len(second.draws):
        raise ValueError(
            f"exponents are compared draw by draw, but there are {len(first.draws)} and {len(second.draws)} draws; "
            "take both from the same fit"
        )
    shift = second.exponent - first.exponent
    if not first.draws:
        return shift, None
    return shift, interval(np.array(second.draws)[:, 1] - np.array(first.draws)[:, 1])


def _ends(logs: np.ndarray) -> Interval | None:
    if not len(logs):
        return None
    low, high = interval(logs)
    return float(np.exp(low)), float(np.exp(high))
