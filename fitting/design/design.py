"""The next runs of a sweep: cells chosen in rounds, and the certainty about targets that each round would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoloop.fitting.cost import Cost
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.design.belief import Belief
from isoloop.fitting.design.selection import Scores, choose_cells
from isoloop.fitting.design.targets import Target
from isoloop.fitting.laws.base import Data

_NORMAL = 1.96
_NO_VARIANCE = 1e-20
_MOST_LOST = 1.0
"""Nats that a wrong choice counts as at most: the square of its error means nothing so far from the best model."""
_PER_OCTAVE = 2
_SAME = 0.01
_APART = 0.17
"""Distance in logarithms, half of half an octave, within which a measured budget takes the place of another one."""
_WHOLE = np.array(
    [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512]
)
"""Mean recurrences of candidates, loops."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Cells that can be run: `values` on the cost's axis, `flops`, and `costs` in the unit of the money, (cells,) each.

    `columns` are those that laws read; a cell can be run `most` (cells,) more times. Where models are of several sizes,
    `values` are mean recurrences, and `sizes` has the name of each cell's size.
    """

    values: np.ndarray
    flops: np.ndarray
    costs: np.ndarray
    columns: Data
    most: np.ndarray
    sizes: tuple[str, ...] = ()

    @classmethod
    def grid(
        cls, cost: Cost, values: Sequence[float], budgets: Sequence[float], *, seeds: int, price_per_flop: float = 1.0
    ) -> Candidates:
        """Return the product of values on the cost's axis and budgets (FLOPs), each to be run up to `seeds` times."""
        flops, at = (each.ravel() for each in np.meshgrid(budgets, values, indexing="ij"))
        return cls(
            values=at,
            flops=flops,
            costs=flops * price_per_flop,
            columns=cost.columns(flops, at),
            most=np.full(len(at), seeds),
        )

    @classmethod
    def of_sizes(
        cls,
        family: ModelFamily,
        sizes: Sequence[float],
        values: Sequence[float],
        budgets: Sequence[float],
        *,
        seeds: int,
    ) -> Candidates:
        """Return the product of sizes (parameters), mean recurrences and budgets; see `grid`."""
        flops, params, at = (each.ravel() for each in np.meshgrid(budgets, sizes, values, indexing="ij"))
        return cls(
            values=at,
            flops=flops,
            costs=flops,
            columns=family.columns(params, at, family.tokens_for(flops, params, at)),
            most=np.full(len(at), seeds),
            sizes=tuple(family.label_of(size) for size in params),
        )


def candidate_values(axis: str, low: float, high: float, measured: Sequence[float] = ()) -> np.ndarray:
    """Return values on an axis from `low` to `high`: whole loops and those that were measured, or parameters in half
    octaves.

    Raises ValueError if there is none.
    """
    values = _octaves(low, high)
    if axis == "mean_recurrence":
        values = np.union1d(_WHOLE, np.asarray(measured, dtype=float))
        values = values[(low <= values) & (high >= values)]
    if not len(values):
        raise ValueError(
            f"candidates must have mean recurrences of whole loops, but {low:g} to {high:g} has none; widen it"
        )
    return values


def candidate_budgets(low: float, high: float, measured: Sequence[float] = ()) -> np.ndarray:
    """Return budgets (FLOPs) from `low` to at most `high`: those that were measured, and half octaves between them."""
    kept = [budget for budget in sorted(set(measured)) if low <= budget * (1 + _SAME) and budget <= high * (1 + _SAME)]
    between = [
        float(f"{budget:.3g}")
        for budget in _octaves(low, high)
        if all(abs(np.log(budget / other)) > _APART for other in kept)
    ]
    return np.array(sorted([*kept, *between]))


def _octaves(low: float, high: float) -> np.ndarray:
    count = int(np.floor(_PER_OCTAVE * np.log2(high / low) + 1e-9)) + 1 if high >= low else 0
    return np.asarray(low * 2.0 ** (np.arange(count) / _PER_OCTAVE))


@dataclass(frozen=True, kw_only=True)
class Round:
    """The runs of one round, `counts` (cells,) of each candidate, what they cost, and what is known after them.

    `widths` are those of the 95% intervals of the targets, of a logarithm where the target is a ratio: the geometric
    mean over what is plausible now. `nats_lost` is what choosing the best model for the first target's budget by the
    fit would cost on average; None without a budget.
    """

    counts: np.ndarray
    cost: float
    flops: float
    widths: tuple[float, ...]
    nats_lost: float | None


@dataclass(frozen=True, kw_only=True)
class Design:
    """Rounds of runs for `targets`, and what is known before them: see `Round`.

    `values` are the targets as known now in their own unit; `ratios` says which are known by their logarithm.
    `gain_per_flop` is what more FLOPs would bring the best model at the first target's budget, nats per FLOP.
    """

    targets: tuple[Target, ...]
    candidates: Candidates
    values: tuple[float, ...]
    ratios: tuple[bool, ...]
    before: Round
    rounds: tuple[Round, ...]
    gain_per_flop: float | None
    laws: tuple[str, ...]
    noise: float
    noise_source: str

    def interval(self, place: int, known: Round) -> tuple[float, float]:
        """Return the 95% interval of the target at `place` that a round leaves, in the target's own unit."""
        half, value = known.widths[place] / 2, self.values[place]
        if self.ratios[place]:
            return value * float(np.exp(-half)), value * float(np.exp(half))
        return value - half, value + half

    def rounds_to(self, width: float) -> int | None:
        """Return after how many rounds the first target's interval is at most `width` wide, None if after none."""
        for number, known in enumerate((self.before, *self.rounds)):
            low, high = self.interval(0, known)
            if high - low <= width:
                return number
        return None

    @property
    def useful_rounds(self) -> int | None:
        """The rounds after which a FLOP would bring more where the answer is trained; None without a budget."""
        if self.gain_per_flop is None:
            return None
        known = self.before
        for number, each in enumerate(self.rounds):
            assert known.nats_lost is not None
            assert each.nats_lost is not None
            if known.nats_lost - each.nats_lost < self.gain_per_flop * each.flops:
                return number
            known = each
        return len(self.rounds)


def design_runs(
    belief: Belief, candidates: Candidates, targets: Sequence[Target], spend: float, *, rounds: int = 1
) -> Design:
    """Choose the runs that leave the least uncertainty about `targets` for `spend`, in rounds of equal cost.

    The sum of the targets' log variances is lessened, on average over the parameter vectors that are plausible now.
    `spend` has the unit of the candidates' costs. Raises ValueError for a target that the laws don't have, and where
    the money of a round does not pay for the cheapest cell.
    """
    for target in targets:
        target.check([part.law for part in belief.parts], belief.models.axes)
    cheapest = float(candidates.costs.min())
    if not spend / rounds >= cheapest * (1 - 1e-9):
        of = f"a round of {spend / rounds:.3g} (1 of {rounds})" if rounds > 1 else f"{spend:.3g}"
        raise ValueError(
            f"the spend must pay for the cheapest cell, which costs {cheapest:.3g}, but got {of}; spend more, or allow "
            "smaller budgets"
        )
    budget = next((target.flops for target in targets if target.flops is not None), None)
    tracked = [*targets, *([Target(name="decision", flops=budget)] if budget is not None else [])]
    found = belief.targets(tracked)
    chosen = [
        Scores(
            slopes=part.slopes(candidates.columns) / belief.effective_noise,
            gradients=slopes[: len(targets)],
            covariance=np.linalg.inv(part.information),
            shares=part.shares,
        )
        for part, (_, slopes) in zip(belief.parts, found, strict=True)
    ]

    # The share of each vector in each target (targets, s), of those by which runs can tell more about it
    all_shares = [np.stack([part.shares * target.is_of(part.law) for target in targets]) for part in belief.parts]
    moving = [part.variances > _NO_VARIANCE for part in chosen]
    _check_moving(targets, moving)
    moving_shares = [shares * moves for shares, moves in zip(all_shares, moving, strict=True)]
    total = sum(shares.sum(axis=1) for shares in moving_shares)

    def known(counts: np.ndarray) -> Round:
        typical, expected = np.zeros(len(targets)), 0.0
        for scores, (_, slopes), shares in zip(chosen, found, moving_shares, strict=True):
            variances = replace(scores, gradients=slopes).variances
            typical += (shares * np.log(variances[: len(targets)])).sum(axis=1) / total
            expected += float(np.minimum(variances[-1], _MOST_LOST) @ scores.shares)
        return Round(
            counts=counts,
            cost=float(counts @ candidates.costs),
            flops=float(counts @ candidates.flops),
            widths=tuple(float(width) for width in 2 * _NORMAL * np.exp(typical / 2)),
            nats_lost=None if budget is None else expected,
        )

    before = known(np.zeros(len(candidates.costs), dtype=int))
    left, most, made = 0.0, candidates.most.copy(), []
    for _ in range(rounds):
        left += spend / rounds
        choice = choose_cells(chosen, candidates.costs, left, most)
        left, most = choice.left, most - choice.counts
        made.append(known(choice.counts))
    laws = [part.law for part in belief.parts]
    ratios = [target.is_ratio(next(law for law in laws if target.is_of(law))) for target in targets]
    sums = [
        (shares * of_part[: len(targets)]).sum(axis=1) for shares, (of_part, _) in zip(all_shares, found, strict=True)
    ]
    means = sum(sums) / sum(shares.sum(axis=1) for shares in all_shares)
    values = np.where(ratios, np.exp(means), means)
    return Design(
        targets=tuple(targets),
        candidates=candidates,
        values=tuple(float(value) for value in values),
        ratios=tuple(ratios),
        before=before,
        rounds=tuple(made),
        gain_per_flop=None if budget is None else belief.gain_per_flop(budget),
        laws=tuple(part.law.name for part in belief.parts),
        noise=belief.noise.level,
        noise_source=belief.noise.source,
    )


def _check_moving(targets: Sequence[Target], moving: Sequence[np.ndarray]) -> None:
    """Raise ValueError for a target that is the same whatever the runs show, by the flags (targets, s) of each law."""
    for place, target in enumerate(targets):
        if not any(of_law[place].any() for of_law in moving):
            raise ValueError(
                f"a target must depend on what runs show, but by every plausible law {target} is at the end of what is "
                "searched, such as a single loop; choose another, such as the loss at that budget"
            )
