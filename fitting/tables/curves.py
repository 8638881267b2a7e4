"""Checks of the losses of each run at several test-time recurrences T: blown up, rising with T, copied."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from isoloop.fitting.laws.base import Data
from isoloop.fitting.tables.contract import loss_columns

RISES = "loss rises with T"
"""Start of the reason that a law has for being unable to follow rising losses."""
_LARGEST_LOSS = 100.0
"""Nats per token above which a loss is no loss of a language model: uniform guessing has ln(vocabulary), about 12."""
_FACTOR = 2.0
_FACTOR_BELOW_MEAN = 10.0
"""Ratio to the loss at T = mu above which a loss at a smaller T has blown up; losses there may be 3 times higher."""
_CLEAR_RISE = 0.02
"""Relative rise that counts in a single model; 7 standard deviations of a difference of losses with noise of 0.2%."""
_SMALLEST_RISE = 1e-3
"""Mean relative rise that counts if all models together show it beyond their scatter."""
_FALSE_ALARMS = 1e-4
"""Chance that models whose losses don't rise count as rising together."""
_DISAGREEMENT = 0.01
_PERPLEXITY_TOLERANCE = 0.1
"""Relative distance of a perplexity's logarithm from the run's loss: losses at the T nearest to mu are as close."""
_PERPLEXITY_SHARE = 0.9
_COPY_DECIMALS = 3
"""Decimals up to which losses that saturate in T may be equal without being a copy."""
_NAMED = 5
_FEWEST_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class LossRise:
    """Losses that rise with T: run ids of the models where they do, out of `models` with several T.

    `turn` and `turn_ratio` are the medians of T, and of T / mu, at which these models have their lowest loss; `largest`
    is the largest relative rise above it.
    """

    runs: tuple[str, ...]
    models: int
    turn: float
    turn_ratio: float
    largest: float

    @property
    def reason(self) -> str:
        """The reason why a law that saturates in T can't follow the losses."""
        share = "1 model" if self.models == 1 else f"{len(self.runs)} of {self.models} models"
        return f"the {RISES} in {share}, {self._place}, by up to {100 * self.largest:.2g}%, which it can't follow"

    @property
    def caveat(self) -> str:
        """The rise as a sentence of a fit's caveats."""
        share = "the only model" if self.models == 1 else f"{len(self.runs)} of {self.models} models"
        return (
            f"The {RISES} in {share}, {self._place}, by up to {100 * self.largest:.2g}%. A law that saturates in T "
            "can't follow that: don't use the test-time, joint and unified laws there."
        )

    @property
    def _place(self) -> str:
        times = "mu" if self.turn_ratio == 1 else f"{self.turn_ratio:.3g} mu"
        median = " at the median" if len(self.runs) > 1 else ""
        return f"beyond T = {times} (T = {self.turn:g}{median})"


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


def loss_rise(data: Data) -> LossRise | None:
    """Return how losses rise with T, from one entry per run and T (see `test_time_law_data`); None if they don't.

    A rise counts in a model if its loss is 2% above the lowest at a smaller T. If the losses at the largest T exceed
    those nearest to T = mu by 0.1% on average, and beyond their scatter between models (a t test with a false alarm in
    10,000), it counts wherever it is 0.1%.
    """
    frame = pd.DataFrame({name: data[name] for name in ("run_id", "mean_recurrence", "recurrence", "loss")})
    frame = frame.sort_values("recurrence", kind="stable")
    # Rise of every loss above the lowest of its run at a smaller T
    frame["lowest"] = frame.groupby("run_id")["loss"].cummin()
    frame["rise"] = frame["loss"] / frame["lowest"] - 1
    by_run = frame.groupby("run_id", sort=False)
    several = by_run.size() > 1
    rise = by_run["rise"].max()[several]
    if rise.empty:
        return None
    # Rise from the T nearest to mu, at or above it, to the largest
    beyond = frame[frame["recurrence"] >= frame["mean_recurrence"]].groupby("run_id")["loss"]
    change = np.log(beyond.last() / beyond.first())[beyond.size() > 1].to_numpy(dtype=float)
    together = False
    if len(change) > 1:
        error = float(np.std(change, ddof=1)) / np.sqrt(len(change))
        limit = max(_SMALLEST_RISE, float(student_t.isf(_FALSE_ALARMS, len(change) - 1)) * error)
        together = bool(np.mean(change) > limit)
    rising = rise[rise > (_SMALLEST_RISE if together else _CLEAR_RISE)]
    if rising.empty:
        return None
    # The T from which they rise: that of the last loss below every later one
    turns = frame[frame["run_id"].isin(rising.index)]
    worst = turns.loc[turns.groupby("run_id")["rise"].idxmax(), ["run_id", "lowest"]]
    turns = turns.merge(worst, on=["run_id"], suffixes=("", "_of_rise"))
    turns = turns[turns["loss"] == turns["lowest_of_rise"]].groupby("run_id").last()
    return LossRise(
        runs=tuple(map(str, rising.index)),
        models=int(several.sum()),
        turn=float(turns["recurrence"].quantile(interpolation="lower")),
        turn_ratio=float((turns["recurrence"] / turns["mean_recurrence"]).quantile(interpolation="lower")),
        largest=float(rising.max()),
    )


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
