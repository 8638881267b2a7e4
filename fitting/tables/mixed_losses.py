"""Losses of one table in two units: two groups of runs whose losses lie on one trend once one group is converted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import COLUMNS, counted, loss_columns, shown
from isoloop.fitting.tables.trend import expected_losses, fitted_trend, size_of, trend_basis

TWO_UNITS = "The losses seem to be in two units:"
"""The words with which the caveat of a mixture begins."""
_FACTORS = (1 / np.log(2), *np.geomspace(2.2, 5.0, 7))
"""Factors between two units that are tried: bits to nats, and bits or nats per token to bits per byte."""
_KINDS = {"bits": (1.38, 1.51), "nats and bits per byte": (2.0, 3.6), "bits and bits per byte": (3.6, 5.6)}
"""Factors by which losses in one of two units exceed those in the other: 1 / ln 2, as far as a trend tells it; ln 2 x
bytes per token, of which there are 2.9 to 5.2; and bytes per token.
"""
_ROWS_AT_MOST = 600
_FEWEST = 3
"""Runs in the smaller group, at least: one or two that are far off are errors rather than another unit."""
_FEWEST_IN_ALL = 8
_ROUNDS = 4
_COARSE = (0.15, 0.35, 0.7)
_FEW_REWEIGHTINGS = 2
"""Exponents and reweightings of the trend in the search, whose best end is refined."""
_ROUGH = 0.06
"""Root mean square of the relative distance from one trend up to which losses are taken to be in one unit."""
_APART = 8.0
"""Distance between the groups, in units of the scatter within them, from which they are two."""
_IMPROVEMENT = 3.0
"""Factor by which the scatter about the trend must fall when one group is converted."""
_SPREADS = 3.0
"""Largest ratio of the scatters within the two groups; one percent counts as none."""
_LEAST_SPREAD = 0.01
_TO_NORMAL = 1.4826
_TREND_FREE = 5
"""Numbers that the trend and the factor take from the losses."""
_FEW_VALUES = 12
_NAMED = 4
_NUMBERS = ("tokens", "params", "mean_recurrence", "flops")
_BUDGET = ("budget",)
_LEAST_PERPLEXITY = 1.01
_MUCH_TOO_LARGE = 2.2
"""Ratio to the usual loss of such a model from which losses are those of diverged runs, and no unit explains them."""
_CUTS = (0.2, 0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True, kw_only=True)
class LossMixture:
    """Two groups of finished runs whose losses seem to be in two units.

    `other` (rows,) marks the runs whose losses are the larger ones; `losses` (rows,) are all losses in the unit of the
    rest, NaN of unfinished runs. `caveat` names the runs, the factor and what to do.
    """

    other: np.ndarray
    losses: np.ndarray
    caveat: str


def loss_mixture(table: pd.DataFrame) -> LossMixture | None:
    """Return the two groups of a checked table whose losses differ by the factor of two units, None if there are none.

    A trend in size and tokens is fitted to all losses together with the group that each run belongs to, from many first
    guesses: runs above a trend, budgets, sizes, labels, and blocks of rows. They are two groups if each is as narrow
    about the trend as the other and far from it, by a factor between units that people use (bits, bits per byte), or if
    the logarithms of some losses lie on the trend of the rest (perplexities). Losses whose unit the table states are
    believed.
    """
    measured = table["loss"].between(0, np.inf, inclusive="neither")
    places = np.flatnonzero(((table["status"] == "finished") & measured).to_numpy())
    if len(places) < _FEWEST_IN_ALL or "loss_unit" in table:
        return None
    sample = places
    if len(places) > _ROWS_AT_MOST:
        sample = np.sort(np.random.default_rng(0).choice(places, _ROWS_AT_MOST, replace=False))
    few = table.iloc[sample]
    key = (few["loss"].to_numpy(dtype=float), size_of(few), few["tokens"].to_numpy(dtype=float), expected_losses(few))
    guesses = np.stack(list(_first_guesses(few, sample)))
    split = _best_split(*(values.tobytes() for values in (*key, np.unique(guesses, axis=0))))
    if split is None:
        return None
    # The same for the rows beyond the sample, by the trend of the sample
    rows = table.iloc[places]
    losses, basis = rows["loss"].to_numpy(dtype=float), trend_basis(size_of(rows), rows["tokens"].to_numpy(dtype=float))
    in_sample = np.isin(places, sample)
    on_trend = losses.copy()
    on_trend[in_sample] = np.where(split.other, split.convert(losses[in_sample]), losses[in_sample])
    trend = fitted_trend(basis, on_trend[None], in_sample[None].astype(float))[0]
    others = _nearer(split.convert(losses), losses, trend)
    other, in_one_unit = np.zeros(len(table), dtype=bool), np.full(len(table), np.nan)
    other[places] = others
    in_one_unit[places] = np.where(others, split.convert(losses), losses)
    return LossMixture(other=other, losses=in_one_unit, caveat=_caveat(table, places, other, split))


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Two groups of a sample: `other` (rows,), whose losses are `factor` times the rest's, or None for perplexities."""

    other: np.ndarray
    factor: float | None

    def convert(self, losses: np.ndarray) -> np.ndarray:
        """Return losses of the other group in the unit of the rest."""
        if self.factor is not None:
            return losses / self.factor
        return np.log(np.maximum(losses, _LEAST_PERPLEXITY))


def _nearer(converted: np.ndarray, losses: np.ndarray, trend: np.ndarray) -> np.ndarray:
    """Return a mask of the losses that are nearer to the trend once they are converted."""
    return np.asarray(np.abs(np.log(converted / trend)) < np.abs(np.log(losses / trend)))


@lru_cache(maxsize=16)
def _best_split(losses_: bytes, size_: bytes, tokens_: bytes, expected_: bytes, guesses_: bytes) -> _Split | None:
    """Return the two groups among finished runs, None for one group; arguments are arrays (rows,) as bytes.

    A fit asks many times which of its runs are implausible, always of the same table.
    """
    losses, size, tokens, expected = (np.frombuffer(each) for each in (losses_, size_, tokens_, expected_))
    guesses = np.frombuffer(guesses_, dtype=bool).reshape(-1, len(losses))
    # One trend for all
    basis = trend_basis(size, tokens)
    off = np.log(losses / fitted_trend(basis, losses[None])[0])
    if np.sqrt(np.mean(off**2)) < _ROUGH:
        return None
    order = np.sort(off)
    guesses = np.unique([*guesses, off > 0, off > order[int(np.argmax(np.diff(order)))]], axis=0)
    # Every conversion from every first guess, each run then going to the group that it is nearer to
    conversions = [_Split(other=losses > 0, factor=factor) for factor in (*_FACTORS, None)]
    which = np.repeat(np.arange(len(conversions)), len(guesses))
    converted = np.stack([one.convert(losses) for one in conversions])[which]
    other = np.tile(guesses, (len(conversions), 1))
    trend = np.empty(other.shape)
    coarse = trend_basis(size, tokens, _COARSE)
    for _ in range(_ROUNDS):
        trend = fitted_trend(coarse, np.where(other, converted, losses), reweightings=_FEW_REWEIGHTINGS)
        other = _nearer(converted, losses, trend)
    costs = np.abs(np.log(np.where(other, converted, losses) / trend)).mean(axis=1)
    enough = np.minimum(other.sum(axis=1), (~other).sum(axis=1)) >= _FEWEST
    costs = np.where(enough, costs, np.inf)
    best = [
        _refined(losses, basis, _Split(other=other[one], factor=conversions[which[one]].factor))
        for one in (
            np.argmin(np.where(which < len(_FACTORS), costs, np.inf)),
            np.argmin(np.where(which < len(_FACTORS), np.inf, costs)),
        )
    ]
    scatters = [np.abs(residuals).mean() for _, residuals in best]
    split, residuals = best[int(np.argmin(scatters))]
    if split.factor is not None and float(np.median((losses / expected)[split.other])) > _MUCH_TOO_LARGE:
        return None  # they diverged
    return split if _are_two(split, losses, residuals, off) else None


def _refined(losses: np.ndarray, basis: np.ndarray, split: _Split) -> tuple[_Split, np.ndarray]:
    """Return a split with the factor that fits best, and the residuals (rows,) of log loss in one unit."""
    for _ in range(_ROUNDS):
        converted = split.convert(losses)
        trend = fitted_trend(basis, np.where(split.other, converted, losses)[None])[0]
        other = _nearer(converted, losses, trend)
        if not _FEWEST <= other.sum() <= len(other) - _FEWEST:
            break
        factor = None if split.factor is None else float(np.median((losses / trend)[other]))
        split = _Split(other=other, factor=factor)
    return split, np.log(np.where(split.other, split.convert(losses), losses) / trend)


def _first_guesses(rows: pd.DataFrame, places: np.ndarray) -> Iterator[np.ndarray]:
    """Yield masks (rows,) of the runs that may be in another unit, by their `places` (rows,) and columns."""
    yield places % 2 == 0
    yield places % 2 == 1
    columns = [rows[name].to_numpy(dtype=float) for name in _NUMBERS if name in rows]
    for values in (places, *columns):
        for cut in np.unique(np.nanquantile(values, _CUTS)):
            yield values <= cut
            yield values > cut
    for values in (rows[name] for name in (*_labels(rows), *_BUDGET) if name in rows):
        for value in values.unique()[:_FEW_VALUES]:
            yield (values == value).to_numpy()
            yield (values != value).to_numpy()


def _labels(rows: pd.DataFrame) -> list[str]:
    """Return the columns of a table that are no numbers of the contract and have few values."""
    ours = {column.name for column in COLUMNS} - {"accounting", "tokenizer"}
    names = [name for name in rows if name not in ours and name not in loss_columns(rows)]
    return [name for name in names if 1 < rows[name].astype(str).nunique() <= _FEW_VALUES]


def _are_two(split: _Split, losses: np.ndarray, residuals: np.ndarray, off: np.ndarray) -> bool:
    """Return True if the groups are narrow, far apart by the factor of known units, and explain the scatter `off`."""
    smaller = min(split.other.sum(), (~split.other).sum())
    if smaller < _FEWEST or (split.factor is not None and not _kind_of(split.factor)):
        return False
    # Medians, since a run of either group may have diverged
    rows = len(residuals)
    size = np.abs(residuals)
    spread = _TO_NORMAL * float(np.median(size)) * rows / (rows - _TREND_FREE)
    spreads = [max(_TO_NORMAL * float(np.median(size[group])), _LEAST_SPREAD) for group in (split.other, ~split.other)]
    distance = float(np.median(np.log(losses / split.convert(losses))[split.other]))
    before, after = (float(np.minimum(np.abs(each), distance).mean()) for each in (off, residuals))
    return distance > _APART * spread and max(spreads) < _SPREADS * min(spreads) and before > _IMPROVEMENT * after


def _kind_of(factor: float) -> str:
    """Return the units of two groups that differ by a factor; empty if no two units do."""
    for kind, (low, high) in _KINDS.items():
        if low <= factor < high:
            return kind
    return ""


def _caveat(table: pd.DataFrame, places: np.ndarray, other: np.ndarray, split: _Split) -> str:
    """Return the question about the unit of one group: which runs, by which factor, and what to do."""
    rest = np.zeros(len(table), dtype=bool)
    rest[places] = ~other[places]
    high = _label_of(table, other, rest) or f"the {counted(int(other.sum()), 'run')} {_rows_text(other)}"
    low = _label_of(table, rest, other) or f"the other {int(rest.sum())}"
    if split.factor is None:
        return (
            f"{TWO_UNITS} those of {high} are perplexities, since their logarithms lie on the trend of {low}: if so, "
            "replace each of them by its logarithm, which is nats per token."
        )
    factor, kind = split.factor, _kind_of(split.factor)
    off = f"{TWO_UNITS} those of {high} are {factor:.3g} times what the trend of {low} gives, "
    if kind == "bits":
        return f"{off}as bits per token are of nats (1 / ln 2 = 1.443): if so, multiply them by ln 2 = 0.693."
    if kind == "nats and bits per byte":
        return (
            f"{off}as nats per token are of bits per byte (ln 2 x {factor / np.log(2):.2g} bytes per token): if so, "
            f"multiply the losses of {low} by {factor:.3g}."
        )
    return (
        f"{off}as bits per token are of bits per byte ({factor:.2g} bytes per token): if so, multiply them by ln 2 = "
        f"0.693, and the losses of {low} by {np.log(2) * factor:.3g}."
    )


def _label_of(table: pd.DataFrame, group: np.ndarray, rest: np.ndarray) -> str:
    """Return words for the runs of `group` (rows,) by a label or budget that the `rest` lacks; empty if none does."""
    for name in (*_labels(table), *_BUDGET):
        if name not in table:
            continue
        values = list(table.loc[group, name].unique())
        if len(values) <= _FEW_VALUES // 2 and not table.loc[rest, name].isin(values).any():
            listed = ", ".join(f"{value:.4g}" if isinstance(value, float) else shown(value) for value in values)
            return f"the {counted(int(group.sum()), 'run')} with {name} {listed}"
    return ""


def _rows_text(group: np.ndarray) -> str:
    """Return words for the rows of a table, counted from 1, that a mask (rows,) marks."""
    rows = np.flatnonzero(group) + 1
    steps = np.unique(np.diff(rows))
    if len(steps) == 1 and steps[0] == 1:
        return f"in rows {rows[0]} to {rows[-1]}"
    if len(steps) == 1 and steps[0] == 2:
        return f"in every second row from row {rows[0]} on"
    listed = ", ".join(str(row) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"in rows {listed}{more}"
