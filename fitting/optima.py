"""What a fitted law finds best at each budget under one way of counting compute, and the power laws through that."""

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
from isoloop.fitting.laws.registry import law_named

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BudgetOptimum:
    """The best model for `budget` FLOPs: mean recurrence (loops), tokens, and its loss (nats per token).

    Intervals are 95% over the law's draws, None without them. `at_bound` says that the best lies at an end of the
    search, and a better one perhaps beyond.
    """

    budget: float
    mean_recurrence: float
    mean_recurrence_interval: Span | None
    tokens: float
    tokens_interval: Span | None
    loss: float
    at_bound: bool


@dataclass(frozen=True, kw_only=True)
class LawOptima:
    """The optima of one law at several budgets, counted by one cost model, and the power laws through them.

    An optimum follows the cost, which has kinks, so these are lines through points that lie on no line: their exponents
    hold for these budgets, and their intervals carry the law's uncertainty and not that.
    """

    law: str
    optima: tuple[BudgetOptimum, ...]
    mean_recurrence_law: PowerLaw
    tokens_law: PowerLaw

    def frame(self) -> pd.DataFrame:
        """A row per budget, in natural units."""
        return pd.DataFrame(self.optima)


def law_optima(fit: LawFit, cost: CostModel, budgets: Sequence[float]) -> LawOptima:
    """The models that `fit` finds best at `budgets` (FLOPs), as `cost` counts them, each spending its budget exactly.

    The search for the mean recurrence is from 1 to 1024 loops. Raises ValueError with fewer than 2 budgets, and as
    `Law.optimum` does.
    """
    ordered = sorted(set(budgets))
    if len(ordered) < 2:
        raise ValueError(f"a power law needs 2 budgets or more, but got {list(budgets)}; add one")
    law = law_named(fit.law)
    vectors = np.vstack([fit.vector, fit.draw_matrix])
    found = [law.optimum(vectors, cost, budget, (1.0, LARGEST_RECURRENCE)) for budget in ordered]
    best = {name: np.stack([getattr(one, name) for one in found], axis=-1) for name in ("mean_recurrence", "tokens")}
    logs = {name: _widened(np.log(values), fit.widening) for name, values in best.items()}
    power_laws = {name: fit_power_law(name, np.array(ordered), of[0], of[1:]) for name, of in logs.items()}
    if not len(fit.draw_matrix):
        # What these points scatter about their line are the cost's kinks: no noise, and no interval follows from it.
        power_laws = {name: replace(one, interval=None) for name, one in power_laws.items()}
    return LawOptima(
        law=fit.law,
        optima=tuple(
            BudgetOptimum(
                budget=budget,
                mean_recurrence=float(best["mean_recurrence"][0, i]),
                mean_recurrence_interval=_ends(logs["mean_recurrence"][1:, i]),
                tokens=float(best["tokens"][0, i]),
                tokens_interval=_ends(logs["tokens"][1:, i]),
                loss=float(one.loss[0]),
                at_bound=bool(one.at_bound[0]),
            )
            for i, (budget, one) in enumerate(zip(ordered, found, strict=True))
        ),
        mean_recurrence_law=power_laws["mean_recurrence"],
        tokens_law=power_laws["tokens"],
    )


def exponent_shift(one: PowerLaw, other: PowerLaw) -> tuple[float, Span | None]:
    """How much larger the exponent of `other` is than that of `one`, with its 95% interval, None without draws.

    The draws are taken in pairs, so both must come from the same draws of one law: what they have in common cancels.
    Raises ValueError where they have not equally many.
    """
    if len(one.draws) != len(other.draws):
        raise ValueError(
            f"exponents are compared draw by draw, but there are {len(one.draws)} and {len(other.draws)} draws; take "
            "both from the same fit"
        )
    shift = other.exponent - one.exponent
    if not one.draws:
        return shift, None
    return shift, interval(np.array(other.draws)[:, 1] - np.array(one.draws)[:, 1])


def _widened(logs: np.ndarray, widening: float) -> np.ndarray:
    """`logs` (1 + draws, budgets), the draws moved away from the estimate in the first row as the law's intervals."""
    return np.vstack([logs[:1], logs[0] + widening * (logs[1:] - logs[0])])


def _ends(logs: np.ndarray) -> Span | None:
    if not len(logs):
        return None
    low, high = interval(logs)
    return float(np.exp(low)), float(np.exp(high))
