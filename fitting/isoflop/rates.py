"""The cost of uncertain learning rates, for runs whose rates come from a tuning: in nats, and in the minima."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoloop.fitting.cost import Cost
from isoloop.fitting.isoflop.minima import IsoflopFit, fit_isoflop

TUNED_RATES = "Learning rates come from a tuning"
"""Start of the caveat that is part of the answer."""
EXTRAPOLATED, NATS = "rate_extrapolated", "rate_nats"
"""Columns: the factor by which a run lies outside the range of the tuning (1 inside), and the expected excess loss in
nats per token because the best rates are uncertain (missing where unknown)."""


def rate_caveats(table: pd.DataFrame, isoflop: IsoflopFit | None = None, cost_model: Cost | None = None) -> list[str]:
    """Return what uncertain learning rates cost the finished runs, and how they move the optimum; none without tuning.

    The excess is a mean over the uncertainty of the best rates: each run has more or less. The moved optimum is that of
    the losses less their expected excess.
    """
    if EXTRAPOLATED not in table:
        return []
    runs = table[(table["status"] == "finished") & pd.to_numeric(table[EXTRAPOLATED], errors="coerce").notna()]
    if runs.empty:
        return []
    # The runs whose rates are extrapolated.
    factor = runs[EXTRAPOLATED].to_numpy(dtype=float)
    nats = np.full(len(runs), np.nan)
    if NATS in runs:
        nats = pd.to_numeric(runs[NATS], errors="coerce").to_numpy(dtype=float)
    beyond = factor > 1
    text = f"{TUNED_RATES}, whose range holds them all."
    if beyond.any():
        text = (
            f"{TUNED_RATES}, and those of {beyond.sum()} of {len(runs)} runs are extrapolated, up to "
            f"{factor.max():.3g} times beyond its range."
        )
    # Their cost in nats, and in the optimum.
    costs = [
        f"up to {np.nanmax(part):.2g} nats (expected) in {kind} runs"
        for kind, part in (("extrapolated", nats[beyond]), ("other", nats[~beyond]))
        if np.isfinite(part).any()
    ]
    if costs:
        text += " If the best rates are as uncertain as their intervals say, losses are too high by "
        text += f"{' and '.join(costs)}.{_moved_optimum(table, nats, runs.index, isoflop, cost_model)}"
    if unknown := int(np.isnan(nats).sum()):
        text += (
            f" For {unknown} of {len(runs)} runs the cost of a wrong rate is unknown: the tuning doesn't tell how the "
            "best rate changes towards them."
        )
    return [text]


def _moved_optimum(
    table: pd.DataFrame, nats: np.ndarray, index: pd.Index, isoflop: IsoflopFit | None, cost_model: Cost | None
) -> str:
    """Return how the best mean recurrence (or parameter count) would move without the expected excess."""
    if isoflop is None or cost_model is None or not isoflop.included:
        return ""
    excess = pd.Series(np.nan_to_num(nats), index=index).reindex(table.index, fill_value=0.0)
    pairs = [fit_isoflop(each, cost_model, draws=0) for each in (table, table.assign(loss=table["loss"] - excess))]
    name = "mu*" if isoflop.axis == "mean_recurrence" else "N*"
    budgets = [{minimum.budget: getattr(minimum, fit.axis) for minimum in fit.included} for fit in pairs]
    both = sorted(budgets[0].keys() & budgets[1].keys())
    if not both:
        return f" Without that excess no isoFLOP curve has its minimum inside the grid: {name} rests on the rates."
    old, new = (each[both[-1]] for each in budgets)
    text = f" Without that excess {name} at {both[-1]:.3g} FLOPs is {new:.3g} instead of {old:.3g}"
    laws = [fit.axis_law for fit in pairs]
    if laws[0] is not None and laws[1] is not None:
        text += f", and its exponent {laws[1].exponent:.3f} instead of {laws[0].exponent:.3f}"
    return f"{text}."
