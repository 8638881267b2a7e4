"""Whether the best learning rates hold where the sweep goes: half and twice of them at its least and most recurrence.

Both rates are scaled together. The noise to judge a difference by comes from the best settings with another seed. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isoloop.sweeps.plan.axes import SEED
from isoloop.sweeps.plan.grid import Cell
from isoloop.sweeps.tuning.search_space import MUON_RATE, RATE, Search, Trial, own_value
from isoloop.trainer.run.result import RunResult

FACTORS = (0.5, 1.0, 2.0)
SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """One run of the check.

    Attributes:
        mean: µ_rec.
        factor: of both learning rates.
        seed: of the run.
        cell: the run, None where there can't be one.
        loss: validation loss at T = µ_rec, nats per token; None if it has none.
        outcome: `finished`, `diverged`, `failed` or `left out`; None before it ran.
        reason: why it has no loss.
    """

    mean: int
    factor: float
    seed: int
    cell: Cell | None
    loss: float | None = None
    outcome: str | None = None
    reason: str | None = None

    def ended(self, result: RunResult | None, failed: str | None) -> "CheckRun":
        """The same with how it ended."""
        if self.cell is None:
            return self
        if result is None:
            return replace(self, outcome="failed", reason=failed)
        return replace(self, outcome=result.status, loss=result.loss, reason=result.reason)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the best holds at one mean recurrence, in words; `holds` is None where nobody can say."""

    mean: int
    holds: bool | None
    said: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """All runs of the check, and what they say.

    Attributes:
        runs: by mean recurrence, factor and seed.
        noise: standard deviation of a run's loss between seeds, nats per token; None where it wasn't measured.
        pairs: pairs of seeds that it was measured on.
    """

    runs: tuple[CheckRun, ...]
    noise: float | None
    pairs: int

    @classmethod
    def of(cls, runs: Sequence[CheckRun]) -> "Check":
        """The check of runs that have ended."""
        differences = []
        for mean in {run.mean for run in runs}:
            losses = [run.loss for run in runs if run.mean == mean and run.factor == 1 and run.loss is not None]
            if len(losses) == 2:
                differences.append(losses[0] - losses[1])
        squares = sum(difference**2 for difference in differences)
        noise = math.sqrt(squares / (2 * len(differences))) if differences else None
        return cls(runs=tuple(runs), noise=noise, pairs=len(differences))

    @property
    def margin(self) -> float | None:
        """What a difference of two losses must pass to count: two of its standard deviations."""
        return None if self.noise is None else SIGMAS * math.sqrt(2) * self.noise

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each mean recurrence."""
        first = min(run.seed for run in self.runs)
        return [
            self._verdict(mean, {run.factor: run for run in self.runs if run.mean == mean and run.seed == first})
            for mean in sorted({run.mean for run in self.runs})
        ]

    def _verdict(self, mean: int, runs: Mapping[float, CheckRun]) -> Verdict:
        best = runs[1.0]
        others = [run for factor, run in runs.items() if factor != 1 and run.loss is not None]
        if best.loss is None:
            how = f"{best.outcome}: {best.reason}"
            return Verdict(mean=mean, holds=None if best.cell is None else False, said=f"no loss at the best ({how})")
        if not others:
            return Verdict(mean=mean, holds=None, said="nothing to compare it with: neither half nor twice has a loss")
        rival = min(others, key=lambda run: run.loss or 0.0)
        assert rival.loss is not None, "others have a loss"
        gap = best.loss - rival.loss
        direction = "lower" if rival.factor < 1 else "higher"
        lost = "".join(f"; x{run.factor:g} {run.outcome}" for run in runs.values() if run.loss is None)
        if gap <= 0:
            said = f"holds: the next best, x{rival.factor:g}, is {-gap:.4f} worse"
            return Verdict(mean=mean, holds=True, said=said + lost)
        if self.margin is not None and gap <= self.margin:
            said = f"holds within the noise: a {direction} rate is {gap:.4f} better, less than {self.margin:.4f}"
            return Verdict(mean=mean, holds=True, said=said + lost)
        unsure = "" if self.margin is not None else "; the noise was not measured"
        return Verdict(
            mean=mean, holds=False, said=f"a {direction} rate is better by {gap:.4f} nats at µ = {mean}{unsure}{lost}"
        )


def check_runs(search: Search, best: Trial) -> list[CheckRun]:
    """What to run: each factor at the least and the most recurrence, and the best there with another seed."""
    seed = search.base.spec.seed
    asked = [
        *((mean, factor, seed) for mean in _ends(search.means) for factor in FACTORS),
        *((mean, 1.0, seed + 1) for mean in _ends(search.means)),
    ]
    return [_run(search, best, *one) for one in asked]


def _run(search: Search, best: Trial, mean: int, factor: float, seed: int) -> CheckRun:
    values = dict(best.values)
    if factor != 1:
        values[RATE] = _scaled(values.get(RATE, search.settings.optimizer.learning_rate), factor)
        if MUON_RATE in values or search.settings.optimizer.muon_learning_rate is not None:
            values[MUON_RATE] = _scaled(values.get(MUON_RATE, own_value(search.settings, MUON_RATE)), factor)
    if seed != search.base.spec.seed:
        values[SEED] = seed
    cell = search.cell(values, labels={"check": f"x{factor:g}"}, mean=mean)
    if isinstance(cell, str):
        return CheckRun(mean=mean, factor=factor, seed=seed, cell=None, outcome="left out", reason=cell)
    return CheckRun(mean=mean, factor=factor, seed=seed, cell=cell)


def _ends(means: Sequence[int]) -> list[int]:
    return sorted({means[0], means[-1]})


def _scaled(rate: float, factor: float) -> float:
    return float(f"{rate * factor:.6g}")
