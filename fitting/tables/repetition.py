"""Runs that saw their training text more than once: caveats, since laws L(N, D) take every token for a new one."""

from __future__ import annotations

import numpy as np
import pandas as pd

REPEATED_TEXT = "Text was repeated"
"""Start of the caveat that is part of the answer."""
_NEARLY_FRESH = 4.0
_SAME_EPOCHS = 0.01


def epochs_of(table: pd.DataFrame) -> np.ndarray:
    """Return the passes of each run over its text, (rows,): `epochs`, or else tokens / `unique_tokens`, or NaN."""
    epochs = np.full(len(table), np.nan)
    if "unique_tokens" in table:
        epochs = (table["tokens"] / table["unique_tokens"]).to_numpy(dtype=float)
    if "epochs" in table:
        given = table["epochs"].to_numpy(dtype=float)
        epochs = np.where(np.isnan(given), epochs, given)
    return epochs


def epochs_range(runs: pd.DataFrame) -> tuple[float, float] | None:
    """Return the fewest and the most passes of runs over their text, None if no run saw any of it again."""
    epochs = epochs_of(runs)
    epochs = epochs[~np.isnan(epochs)]
    return (float(epochs.min()), float(epochs.max())) if (epochs > 1).any() else None


def epochs_text(epochs: float) -> str:
    """Return passes over the text as a reader wants them: three digits, without an exponent."""
    return f"{epochs:.3g}" if epochs < 1000 else f"{epochs:,.0f}"


def repetition_caveats(table: pd.DataFrame) -> list[str]:
    """Return the caveats of fitted runs (rows of a checked table) that saw text more than once, none if no run did.

    About 4 epochs are nearly as good as new text, and more are worth less and less (Muennighoff et al. 2023,
    arXiv:2305.16264).
    """
    epochs = epochs_of(table)
    runs = table[(table["status"] == "finished").to_numpy() & ~np.isnan(epochs)]
    epochs = epochs_of(runs)
    repeated = epochs > 1
    if not repeated.any():
        return []
    least, most, count = epochs[repeated].min(), epochs.max(), int(repeated.sum())
    span = " to ".join(dict.fromkeys((epochs_text(least), epochs_text(most))))
    worth = (
        "up to about 4 epochs are nearly as good as new text"
        if most <= _NEARLY_FRESH
        else "beyond about 4 epochs repeated text is worth clearly less than new text"
    )
    caveats = [
        f"{REPEATED_TEXT}: {count} of {len(runs)} fitted runs saw their training text {span} times. Losses then "
        f"depart from a law L(N, D), which takes every token for a new one ({worth}, Muennighoff et al. 2023), and "
        "overfitting may move the optimum towards more loops or a larger model, which see fewer tokens at a budget."
    ]
    if not repeated.all():
        caveats.append(
            f"{len(runs) - count} of them saw each token at most once and {count} saw some more often: their losses do "
            "not lie on one law, and exponents across them may be wrong. Use more text, or fit the former alone."
        )
    if "budget" in runs:
        by_budget = pd.Series(epochs).groupby(runs["budget"].to_numpy())
        mixed = int((by_budget.max() > np.maximum(by_budget.min() * (1 + _SAME_EPOCHS), 1)).sum())
        if mixed:
            at = "1 budget" if mixed == 1 else f"{mixed} budgets"
            caveats.append(
                f"At {at} the epochs differ from run to run (more at fewer loops or parameters), so the minimum of "
                "the isoFLOP curve mixes the effect of the model with that of repetition."
            )
    return caveats
