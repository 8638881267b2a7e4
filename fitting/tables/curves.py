"""Checks of the losses of each run at several test-time recurrences T: blown up, copied."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import loss_columns

_LARGEST_LOSS = 100.0
"""Nats per token above which a loss is no loss of a language model: uniform guessing has ln(vocabulary), about 12."""
_FACTOR = 2.0
_FACTOR_BELOW_MEAN = 10.0
"""Ratio to the loss at T = mu above which a loss at a smaller T has blown up; losses there may be 3 times higher."""
_DISAGREEMENT = 0.01
_PERPLEXITY_TOLERANCE = 0.1
"""Relative distance of a perplexity's logarithm from the run's loss: losses at the T nearest to mu are as close."""
_PERPLEXITY_SHARE = 0.9
_COPY_DECIMALS = 3
"""Decimals up to which losses that saturate in T may be equal without being a copy."""
_NAMED = 5
_FEWEST_COPIES = 3


def blown_up_losses(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a mask (rows, loss columns) of the losses at T that can't be those of the run, for looped runs.

    At T >= mu that is a loss above twice the loss at T = mu. At smaller T it is one above twice the largest of that
    loss and those at T smaller still, or above 10 times the loss at T = mu. At any T it is a loss below half of that
    at T = mu, or above 100 nats.
    """
    columns = loss_columns(runs)
    mean = runs["mean_recurrence"].to_numpy(dtype=float)
    at_mean = runs["loss"].to_numpy(dtype=float)
    mask = pd.DataFrame(False, index=runs.index, columns=list(columns))
    largest = np.full(len(runs), -np.inf)  # of the good losses at smaller T
    for name, recurrence in columns.items():
        loss = runs[name].to_numpy(dtype=float)
        below_mean = np.where(largest > 0, _FACTOR * np.fmax(largest, at_mean), np.inf)
        below_mean = np.minimum(below_mean, _FACTOR_BELOW_MEAN * at_mean)
        limit = np.minimum(np.where(recurrence >= mean, _FACTOR * at_mean, below_mean), _LARGEST_LOSS)
        bad = (loss > limit) | (loss < at_mean / _FACTOR)
        largest = np.fmax(largest, np.where(bad, -np.inf, loss))
        mask[name] = bad
    return mask


def curve_caveats(runs: pd.DataFrame) -> list[str]:
    """Return what is wrong with the losses at T of the fitted runs (`finished_rows`) of a checked table."""
    if "mean_recurrence" not in runs or not loss_columns(runs):
        return []
    blown_up = blown_up_losses(runs)
    usable = runs.assign(**{name: runs[name].mask(blown_up[name]) for name in blown_up})
    return [*_blown_up(runs, blown_up), *_disagreements(usable), *_copies(usable)]


def _blown_up(runs: pd.DataFrame, mask: pd.DataFrame) -> list[str]:
    places = np.argwhere(mask.to_numpy())
    if not len(places):
        return []
    recurrences = list(loss_columns(runs).values())
    named = [
        f"{runs[mask.columns[place]].iloc[row]:.4g} at T = {recurrences[place]:g} in run {runs['run_id'].iloc[row]!r}"
        for row, place in places[:_NAMED]
    ]
    more = len(places) - len(named)
    count = "1 loss is" if len(places) == 1 else f"{len(places)} losses are"
    return [
        f"{count} left out of the test-time, joint and unified laws and their held-out errors, being far from the "
        f"other losses of the run: {', '.join(named)}{f', and {more} more' if more else ''}."
        f"{_perplexity_text(runs, mask)}"
    ]


def _perplexity_text(runs: pd.DataFrame, mask: pd.DataFrame) -> str:
    """Return a sentence if losses at T are the perplexities of their runs: at T nearest to mu, close to exp(loss)."""
    recurrences = np.array(list(loss_columns(runs).values()), dtype=float)
    distance = np.abs(np.log(recurrences / runs["mean_recurrence"].to_numpy(dtype=float)[:, None]))
    nearest = np.where(runs[mask.columns].notna(), distance, np.inf).argmin(axis=1)
    values = runs[mask.columns].to_numpy(dtype=float)[np.arange(len(runs)), nearest]
    are_left_out = mask.to_numpy()[np.arange(len(runs)), nearest]
    logs = np.log(np.where(values > 0, values, np.nan))
    are_perplexities = are_left_out & (np.abs(logs / runs["loss"].to_numpy(dtype=float) - 1) < _PERPLEXITY_TOLERANCE)
    if are_perplexities.sum() < max(1, _PERPLEXITY_SHARE * len(runs)):
        return ""
    return " They look like perplexities: give their logarithms, which are nats per token."


def _disagreements(runs: pd.DataFrame) -> list[str]:
    """Return a caveat if losses in the column of T = mu are not those of the column `loss`."""
    differences = pd.Series(0.0, index=runs.index)
    for name, recurrence in loss_columns(runs).items():
        at_mean = (runs["mean_recurrence"] == recurrence) & runs[name].notna()
        differences = differences.mask(at_mean, runs[name] / runs["loss"] - 1)
    disagree = differences.abs() > _DISAGREEMENT
    if not disagree.any():
        return []
    worst = differences.abs().idxmax()
    count = int(disagree.sum())
    return [
        f"In {count} {'run' if count == 1 else 'runs'} the loss in the column of T = mu differs from `loss` by over "
        f"{100 * _DISAGREEMENT:g}%, most in {runs['run_id'].loc[worst]!r} ({100 * differences.loc[worst]:+.3g}%): are "
        "both from the same model, text and T?"
    ]


def _copies(runs: pd.DataFrame) -> list[str]:
    """Return a caveat for each column of losses that equals another one in every run."""
    columns = loss_columns(runs)
    caveats = []
    for name, recurrence in columns.items():
        other = runs[(runs["mean_recurrence"] != recurrence) & runs[name].notna()]
        if _are_copies(other["loss"], other[name]):
            caveats.append(
                f"`{name}` equals `loss`, the loss at T = mu, in all {len(other)} runs with another mu: was it copied?"
            )
    for first, second in combinations(columns, 2):
        both = runs[runs[first].notna() & runs[second].notna()]
        if _are_copies(both[first], both[second]):
            caveats.append(f"`{second}` equals `{first}` in all {len(both)} runs: was it copied?")
    return caveats


def _are_copies(first: pd.Series, second: pd.Series) -> bool:
    """Return whether two columns are equal in all rows, though their losses differ and have more than a few digits."""
    is_rounded = np.allclose(first, first.round(_COPY_DECIMALS), rtol=0, atol=1e-9)
    return bool(first.nunique() >= _FEWEST_COPIES and not is_rounded and (first == second).all())
