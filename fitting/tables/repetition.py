"""Runs that saw their training text more than once: if laws of repeated text can be fitted to them, and caveats."""

from __future__ import annotations

import numpy as np
import pandas as pd

REPEATED_TEXT = "Text was repeated"
"""Start of the caveat that is part of the answer."""
_NEARLY_FRESH = 4.0
_SAME_EPOCHS = 0.01
_FEWEST_REPEATED, _LEAST_EPOCHS, _LEAST_SPREAD = 3, 2.0, 1.5
"""Runs that saw their text again, the most epochs, and their ratio to the fewest, from which repetition can be told."""


def epochs_of(table: pd.DataFrame) -> np.ndarray:
    """Return the passes of each run over its text, (rows,): `epochs`, or else tokens / `unique_tokens`, or NaN."""
    epochs = np.full(len(table), np.nan)
    if "unique_tokens" in table:
        epochs = (table["tokens"] / table["unique_tokens"]).to_numpy(dtype=float)
    if "epochs" in table:
        given = table["epochs"].to_numpy(dtype=float)
        epochs = np.where(np.isnan(given), epochs, given)
    return epochs


def unique_tokens_of(table: pd.DataFrame) -> np.ndarray:
    """Return the distinct tokens of each run's text, (rows,): `unique_tokens`, or else tokens / `epochs`, or NaN."""
    unique = np.full(len(table), np.nan)
    if "epochs" in table:
        unique = (table["tokens"] / table["epochs"]).to_numpy(dtype=float)
    if "unique_tokens" in table:
        given = table["unique_tokens"].to_numpy(dtype=float)
        unique = np.where(np.isnan(given), unique, given)
    return unique


def only_text(runs: pd.DataFrame) -> float | None:
    """Return the distinct tokens of the one text of all runs, None where they are unknown or differ."""
    unique = np.unique(unique_tokens_of(runs))
    return float(unique[0]) if len(unique) == 1 and np.isfinite(unique[0]) else None


def sees_text_again(runs: pd.DataFrame) -> bool:
    """Return True if a run saw some of its text more than once."""
    return bool((epochs_of(runs) > 1).any())


def why_repetition_not_fitted(runs: pd.DataFrame) -> str:
    """Return why a law of repeated text can't be fitted to finished runs, empty where it can.

    The laws need to know the text of every run, and runs that differ in how often they saw it.
    """
    epochs, unique = epochs_of(runs), unique_tokens_of(runs)
    unknown = int(np.isnan(unique).sum())
    if unknown:
        return f"{unknown} of {len(runs)} runs have neither `unique_tokens` nor `epochs`; fill them in"
    if "mean_recurrence" in runs and "effective_params_fixed" not in runs:
        return (
            "those of looped models need effective parameters (params_once, params_recurrent), and the table has none"
        )
    seen = np.maximum(epochs, 1.0)
    repeated = int((epochs > 1).sum())
    if repeated < _FEWEST_REPEATED or seen.max() < _LEAST_EPOCHS:
        return (
            f"{repeated} runs saw text again, at most {epochs_text(seen.max())} times in all; it takes "
            f"{_FEWEST_REPEATED} runs, up to {_LEAST_EPOCHS:g} times or more"
        )
    if seen.max() < _LEAST_SPREAD * seen.min():
        return "all runs saw their text about as often, so that repetition can't be told from training; vary the epochs"
    return ""


def mixed_text_budgets(runs: pd.DataFrame) -> list[float]:
    """Return the budgets at which some runs saw text again and the distinct tokens differ from run to run."""
    if "budget" not in runs:
        return []
    unique, repeated = pd.Series(unique_tokens_of(runs)), pd.Series(epochs_of(runs) > 1)
    budgets = runs["budget"].to_numpy(dtype=float)
    groups = unique.groupby(budgets)
    mixed = repeated.groupby(budgets).any() & (groups.max() > groups.min() * (1 + _SAME_EPOCHS))
    return [float(budget) for budget in mixed.index[mixed]]


def epochs_range(runs: pd.DataFrame) -> tuple[float, float] | None:
    """Return the fewest and the most passes of runs over their text, None if no run saw any of it again."""
    epochs = epochs_of(runs)
    epochs = epochs[~np.isnan(epochs)]
    return (float(epochs.min()), float(epochs.max())) if (epochs > 1).any() else None


def epochs_text(epochs: float) -> str:
    """Return passes over the text as a reader wants them: three digits, without an exponent."""
    return f"{epochs:.3g}" if epochs < 1000 else f"{epochs:,.0f}"


def repetition_caveats(table: pd.DataFrame, law: str = "") -> list[str]:
    """Return the caveats of fitted runs (rows of a checked table) that saw text more than once, none if no run did.

    `law` is the name of the law of repeated text that was fitted to them, empty for laws of new text. About 4 epochs
    are nearly as good as new text, and more are worth less and less (Muennighoff et al. 2023, arXiv:2305.16264).
    """
    epochs = epochs_of(table)
    runs = table[(table["status"] == "finished").to_numpy() & ~np.isnan(epochs)]
    epochs = epochs_of(runs)
    repeated = epochs > 1
    if not repeated.any():
        return []
    least, most, count = epochs[repeated].min(), epochs.max(), int(repeated.sum())
    span = " to ".join(dict.fromkeys((epochs_text(least), epochs_text(most))))
    start = f"{REPEATED_TEXT}: {count} of {len(runs)} fitted runs saw their training text {span} times."
    if law:
        last = "" if "best_loss" in table else ": if losses are those of overfitted last steps, add `best_loss`"
        caveats = [
            f"{start} The {law} law counts repeated text by what it is worth, and takes no loss to rise with more "
            f"epochs{last}."
        ]
    else:
        worth = (
            "up to about 4 epochs are nearly as good as new text"
            if most <= _NEARLY_FRESH
            else "beyond about 4 epochs repeated text is worth clearly less than new text"
        )
        caveats = [
            f"{start} Losses then depart from a law L(N, D), which takes every token for a new one ({worth}, "
            "Muennighoff et al. 2023), and overfitting may move the optimum towards more loops or a larger model, "
            "which see fewer tokens at a budget."
        ]
        if not repeated.all():
            caveats.append(
                f"{len(runs) - count} of them saw each token at most once and {count} saw some more often: their "
                "losses do not lie on one law, and exponents across them may be wrong. Use more text, or fit the "
                "former alone."
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
