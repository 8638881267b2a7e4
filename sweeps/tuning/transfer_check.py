"""The check that the best learning rates of a tuning hold elsewhere in the sweep.

The best settings are run at the sweep's least and most recurrence, with both learning rates times 1/2, 1 and 2, and
once with another seed, which measures the noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isoloop.sweeps.plan.axes import LEARNING_RATE, SEED
from isoloop.sweeps.plan.grid import Cell
from isoloop.sweeps.tuning.search_space import MUON_RATE, SearchSpace, Trial, current_value
from isoloop.trainer.run.result import RunResult

FACTORS = (0.5, 1.0, 2.0)
SIGMAS = 2.0


@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """One run of the check.

    Attributes:
        mean_recurrence: µ_rec.
        factor: factor of both learning rates.
        seed: seed of the run.
        cell: the run, None if it can't be run.
        loss: validation loss at T = µ_rec, nats per token; None if there is none.
        outcome: `finished`, `diverged`, `failed` or `left out`; None before the run.
        reason: why there is no loss.
    """

    mean_recurrence: float
    factor: float
    seed: int
    cell: Cell | None
    loss: float | None = None
    outcome: str | None = None
    reason: str | None = None

    def with_result(self, result: RunResult | None, failure: str | None) -> "CheckRun":
        """Return the run with its result, or with the reason of its failure."""
        if self.cell is None:
            return self
        if result is None:
            return replace(self, outcome="failed", reason=failure)
        return replace(self, outcome=result.status, loss=result.compared_loss, reason=result.reason)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A statement on the best settings at one mean recurrence; `holds` is None if the check can't tell."""

    mean_recurrence: float
    holds: bool | None
    text: str


@dataclass(frozen=True, kw_only=True)
class TransferCheck:
    """The runs of the check and their noise.

    Attributes:
        runs: by mean recurrence, factor and seed.
        noise: standard deviation of the loss between seeds, nats per token; None if it wasn't measured.
        pairs: pairs of seeds that it was measured on.
    """

    runs: tuple[CheckRun, ...]
    noise: float | None
    pairs: int

    @classmethod
    def of(cls, runs: Sequence[CheckRun]) -> "TransferCheck":
        """Return the check of runs that have ended."""
        differences = []
        for mean in {run.mean_recurrence for run in runs}:
            at_best = [run for run in runs if run.mean_recurrence == mean and run.factor == 1]
            losses = [run.loss for run in at_best if run.loss is not None]
            if len(losses) == 2:
                differences.append(losses[0] - losses[1])
        squares = sum(difference**2 for difference in differences)
        noise = math.sqrt(squares / (2 * len(differences))) if differences else None
        return cls(runs=tuple(runs), noise=noise, pairs=len(differences))

    @property
    def margin(self) -> float | None:
        """The smallest significant difference of two losses: two of its standard deviations."""
        return None if self.noise is None else SIGMAS * math.sqrt(2) * self.noise

    @property
    def verdicts(self) -> list[Verdict]:
        """One verdict for each mean recurrence."""
        seed = min(run.seed for run in self.runs)
        return [
            self._verdict(mean, {r.factor: r for r in self.runs if r.mean_recurrence == mean and r.seed == seed})
            for mean in sorted({run.mean_recurrence for run in self.runs})
        ]

    def _verdict(self, mean: float, runs: Mapping[float, CheckRun]) -> Verdict:
        best = runs[1.0]
        rivals = [run for factor, run in runs.items() if factor != 1 and run.loss is not None]
        holds: bool | None = None
        if best.loss is None:
            holds = None if best.cell is None else False
            text = f"no loss at the best ({best.outcome}: {best.reason})"
        elif not rivals:
            text = "nothing to compare it with: neither half nor twice has a loss"
        else:
            rival = min(rivals, key=lambda run: run.loss or 0.0)
            assert rival.loss is not None, "rivals have a loss"
            gap = best.loss - rival.loss
            direction = "lower" if rival.factor < 1 else "higher"
            holds = gap <= (self.margin or 0.0)
            if gap <= 0:
                text = f"holds: the next best, x{rival.factor:g}, is {-gap:.4f} worse"
            elif holds:
                text = f"holds within the noise: a {direction} rate is {gap:.4f} better, less than {self.margin:.4f}"
            else:
                text = f"a {direction} rate is better by {gap:.4f} nats at µ = {mean}"
                text += "" if self.margin is not None else "; the noise was not measured"
            text += "".join(f"; x{run.factor:g} {run.outcome}" for run in runs.values() if run.loss is None)
        return Verdict(mean_recurrence=mean, holds=holds, text=text)


def runs_to_check(space: SearchSpace, best: Trial) -> list[CheckRun]:
    """Return the runs: each factor at the least and the most recurrence, and the best there with another seed."""
    seed = space.base.spec.seed
    means = sorted({space.grid_recurrences[0], space.grid_recurrences[-1]})
    return [
        *(_check_run(space, best, mean, factor, seed) for mean in means for factor in FACTORS),
        *(_check_run(space, best, mean, 1.0, seed + 1) for mean in means),
    ]


def _check_run(space: SearchSpace, best: Trial, mean: float, factor: float, seed: int) -> CheckRun:
    values = dict(best.values)
    if factor != 1:
        rates = [LEARNING_RATE]
        if MUON_RATE in values or space.settings.optimizer.muon_learning_rate is not None:
            rates.append(MUON_RATE)
        for path in rates:
            rate = values.get(path, current_value(space.settings, path))
            values[path] = float(f"{rate * factor:.6g}")
    if seed != space.base.spec.seed:
        values[SEED] = seed
    cell = space.cell(values, labels={"check": f"x{factor:g}"}, mean_recurrence=mean)
    if isinstance(cell, str):
        return CheckRun(mean_recurrence=mean, factor=factor, seed=seed, cell=None, outcome="left out", reason=cell)
    return CheckRun(mean_recurrence=mean, factor=factor, seed=seed, cell=cell)
