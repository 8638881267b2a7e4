"""Errors of rollouts by distance: how far beyond the fitted compute a law can be trusted, and the best law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoloop.fitting.estimation.bootstrap import t_quantile
from isoloop.fitting.selection.holdout import HeldOutRow

_ROUNDING = 0.03
"""Octaves by which a distance may exceed the end of its bin: runs meet their budgets within 1%."""
_HELD = 0.8
"""Share of losses in their 95% intervals below which these are called too narrow: few predictions, which share fits,
scatter below 95%."""


@dataclass(frozen=True, kw_only=True)
class DistanceError:
    """Errors of one method at distances `low` to `high`: compute as a multiple of the largest fitted one.

    Errors are in percent: `bias` is the mean of predicted / measured - 1, `largest` the largest one.
    `coverage` is the share of losses inside their 95% intervals, None without. A run counts once for each of `cutoffs`
    that predicted it.
    """

    method: str
    low: float
    high: float
    bias: float
    mean_absolute_error: float
    largest: float
    coverage: float | None
    rows: int
    cutoffs: int

    @property
    def distance(self) -> str:
        """The distance in words, such as '4x' or '3 to 4x'."""
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        return f"{high}x" if self.low > self.high * 2**-_ROUNDING else f"{low} to {high}x"


def errors_by_distance(rows: Sequence[HeldOutRow]) -> tuple[DistanceError, ...]:
    """Return the errors of each method by distance: up to 2 times the fitted compute, up to 4, and so on.

    Rows without budgets, and runs that are not beyond the fitted compute, are left out.
    """
    errors = []
    rows = [row for row in rows if row.beyond > 2**_ROUNDING]
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        octaves = _octaves(of_method)
        for octave in np.unique(octaves):
            part = [row for row, own in zip(of_method, octaves, strict=True) if own == octave]
            error = np.array([row.error for row in part])
            inside = [row.interval[0] <= row.measured <= row.interval[1] for row in part if row.interval is not None]
            errors.append(
                DistanceError(
                    method=method,
                    low=min(row.beyond for row in part),
                    high=max(row.beyond for row in part),
                    bias=float(error.mean()),
                    mean_absolute_error=float(np.abs(error).mean()),
                    largest=float(np.abs(error).max()),
                    coverage=float(np.mean(inside)) if inside else None,
                    rows=len(part),
                    cutoffs=len({row.fitted_to for row in part}),
                )
            )
    return tuple(errors)


def distance_table(rows: Sequence[HeldOutRow]) -> list[str]:
    """Return lines of a table: the errors by distance, each method in turn; empty for rows without distances."""
    errors = errors_by_distance(rows)
    if not errors:
        return []
    width = max(len(error.distance) for error in errors)
    lines = [f"  {'beyond':>{max(width, 6)}}  {'mean abs. error':>15}  {'bias':>8}  {'inside 95%':>10}  {'losses':>6}"]
    for error in sorted(errors, key=lambda error: error.high):
        covered = "-" if error.coverage is None else f"{error.coverage:.0%}"
        lines.append(
            f"  {error.distance:>{max(width, 6)}}  {error.mean_absolute_error:>14.3f}%  {error.bias:>+7.3f}%  "
            f"{covered:>10}  {error.rows:>6}  {error.method}"
        )
    return lines


def _octaves(rows: Sequence[HeldOutRow]) -> np.ndarray:
    """Return the octave of each row's distance, counted from 1: up to 2 times, up to 4."""
    return np.maximum(1, np.ceil(np.log2([row.beyond for row in rows]) - _ROUNDING)).astype(int)


@dataclass(frozen=True, kw_only=True)
class RolloutScore:
    """One method's mean absolute error by rollouts, in percent: the mean over distances, each counting the same.

    `behind` is by how much it exceeds that of the best method on the same predictions, and `behind_error` the standard
    error of that, by leaving out each of the `cutoffs` in turn; None with one cutoff. Both are 0 for the best method.
    """

    error: float
    behind: float
    behind_error: float | None
    cutoffs: int

    @property
    def clearly_behind(self) -> bool:
        """True if the best method is better at the 95% level, by Student's t with the cutoffs as the sample."""
        if self.behind_error is None:
            return False
        return self.behind > t_quantile(self.cutoffs - 1) * self.behind_error


def rollout_scores(rows: Sequence[HeldOutRow]) -> dict[str, RolloutScore]:
    """Return the score of each method, by its name, from rollouts in which all methods predicted the same runs."""
    rows = [row for row in rows if row.beyond > 2**_ROUNDING]
    names = list(dict.fromkeys(row.method for row in rows))
    if not names:
        return {}
    by_method = {name: [row for row in rows if row.method == name] for name in names}
    first = by_method[names[0]]
    octaves, cutoffs = _octaves(first), np.array([row.fitted_to for row in first])
    errors = np.array([[abs(row.error) for row in by_method[name]] for name in names])

    def score(kept: np.ndarray) -> np.ndarray:
        return np.mean([errors[:, kept & (octaves == each)].mean(axis=1) for each in np.unique(octaves[kept])], axis=0)

    scores = score(np.ones(len(first), dtype=bool))
    best = int(np.argmin(scores))
    behind_errors: list[float | None] = [None] * len(names)
    if len(np.unique(cutoffs)) > 1:
        without = np.array([score(cutoffs != cutoff) for cutoff in np.unique(cutoffs)])
        behind = without - without[:, best : best + 1]
        behind_errors = [float(each) for each in np.sqrt((len(without) - 1) * behind.var(axis=0))]
    return {
        name: RolloutScore(
            error=float(scores[place]),
            behind=float(scores[place] - scores[best]),
            behind_error=behind_errors[place],
            cutoffs=len(np.unique(cutoffs)),
        )
        for place, name in enumerate(names)
    }


def trust_sentences(rows: Sequence[HeldOutRow]) -> list[str]:
    """Return how far beyond the fitted compute the one method of these rollouts can be trusted, in words.

    Its intervals are trusted up to the first distance at which they held clearly less than 95% of the losses.
    """
    errors = errors_by_distance(rows)
    if not errors:
        return []
    narrow = [error.coverage is not None and error.coverage < _HELD for error in errors]
    trusted = errors[: narrow.index(True)] if True in narrow else errors
    beyond = errors[len(trusted) :]
    sentences = []
    if trusted:
        sentences.append(
            f"Rollouts: up to {trusted[-1].high:.3g} times beyond the fitted compute, {_errors_text(trusted)}."
        )
    if beyond:
        where = f"{'From' if trusted else 'Rollouts: from'} {beyond[0].low:.3g} to {beyond[-1].high:.3g} times beyond"
        sentences.append(f"{where}, {_errors_text(beyond)}: too few, so don't trust the intervals there.")
    return sentences


def _errors_text(errors: Sequence[DistanceError]) -> str:
    """Return the errors over several distances together, in words."""
    counts = [error.rows for error in errors]
    size = np.average([error.mean_absolute_error for error in errors], weights=counts)
    bias = np.average([error.bias for error in errors], weights=counts)
    most = max(error.largest for error in errors)
    text = f"losses were off by {size:.2g}% on average (at most {most:.2g}%, bias {bias:+.2g}%)"
    coverage = [error.coverage for error in errors if error.coverage is not None]
    if len(coverage) < len(errors):
        return f"{text}; there are no intervals to test"
    return f"{text}, and 95% intervals held {np.average(coverage, weights=counts):.0%} of {sum(counts)}"
