"""The result of fitting runs of several sizes together: frozen, and equal after a round trip through JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, with_config

from isoloop.fitting.answer.constrained import Limited
from isoloop.fitting.answer.recommendation import ANSWER_MULTIPLE
from isoloop.fitting.answer.verdict import Verdict
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.quality.fit import QualityFit
from isoloop.fitting.result import (
    FittedFile,
    FittedRange,
    HeldOut,
    MissingFit,
    check_stored_law,
    check_stored_quality,
    from_file,
    read_stored,
    stored_text,
)
from isoloop.fitting.selection.holdout import CrossValidation, HeldOutError
from isoloop.fitting.selection.misfit import Misfit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.surface.surface import LossSurface

SIZES_FORMAT = "isoloop-sizes/1"


@dataclass(frozen=True, kw_only=True)
class SizeAtBudget:
    """The best model of one measured size at a budget: its mean recurrence, tokens and loss after training.

    `extra_loss` is what this size costs (nats per token) beside the best of the measured ones, with its interval.
    `chance` is the share of the refits by which it is the best of them, None without draws.
    """

    label: str
    params: float
    mean_recurrence: Quantity
    tokens: Quantity
    loss: Quantity
    extra_loss: Quantity
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The best model of any size for `budget` FLOPs, and the best of each measured size.

    The intervals of losses are those of the law, without the noise of one run. `at_bound` names the axes whose best
    value is an end of the search.
    """

    budget: float
    params: Quantity
    mean_recurrence: Quantity
    tokens: Quantity
    loss: Quantity
    at_bound: tuple[str, ...]
    sizes: tuple[SizeAtBudget, ...]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The exponents of C with which the best size, mean recurrence and tokens grow over the measured budgets.

    The cost has steps and so have the optima: they follow no exact power law, and the intervals hold no such deviation.
    """

    params: Quantity
    mean_recurrence: Quantity
    tokens: Quantity


@dataclass(frozen=True, kw_only=True)
class LawComparison:
    """Errors of several laws on runs held out by the largest budget, or by each size in turn (`by`).

    `missing` are the laws that could not predict them, each with the reason.
    """

    by: str
    errors: tuple[HeldOutError, ...]
    missing: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class FittedSize:
    """One size among the fitted runs: its label, parameters (each counted once, embeddings apart), number of runs."""

    label: str
    params: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class SizeAlone:
    """The best model of one measured size at `budget` by the laws of its own `runs` alone; `method` names them.

    It is evidence on the joint law's form, which the joint fit takes for granted; of few runs it is the noisier one.
    """

    label: str
    runs: int
    budget: float
    method: str
    mean_recurrence: Quantity
    tokens: Quantity
    loss: Quantity


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class SizesFit:
    """One fit of looped models of several sizes.

    `laws` are the laws of the loss after training with their weights, `joint_test_time` that of test-time loops over
    all sizes. `comparisons` are errors of further laws on held-out runs, which the weights do not follow. The frontier
    has a point per measured budget, and one each for 2 and 10 times the largest compute. `alone` are the best models of
    the sizes at the largest measured budget, each by its own runs. See `SweepFit` for the rest.
    """

    name: str
    simulated: bool
    accounting: str
    finished_runs: int
    fitted: FittedRange
    family: ModelFamily
    sizes: tuple[FittedSize, ...]
    laws: LawMixture
    joint_test_time: LawFit | None
    frontier: tuple[FrontierPoint, ...]
    growth: Growth | None
    comparisons: tuple[LawComparison, ...]
    held_out: HeldOut | None
    noise: NoiseModel | None
    misfits: tuple[Misfit, ...]
    missing_fits: tuple[MissingFit, ...]
    caveats: tuple[str, ...]
    reading: tuple[str, ...] = ()
    file: FittedFile | None = None
    rollouts: CrossValidation | None = None
    why_no_rollouts: str = "this fit was made without rollouts"
    alone: tuple[SizeAlone, ...] = ()
    quality: QualityFit | None = None

    @property
    def surface(self) -> LossSurface:
        """The loss as a function of size, mean recurrence, tokens and test-time loops."""
        return LossSurface(
            family=self.family,
            laws=self.laws,
            loops_law=self.joint_test_time,
            params=self.fitted.params,
            mean_recurrence=self.fitted.mean_recurrence,
            tokens=self.fitted.tokens,
            flops=self.fitted.flops,
            recurrence=self.fitted.recurrence,
        )

    @property
    def phi(self) -> Quantity | None:
        """The worth of a loop, by the laws that have one with their weights (`phi_weight`); None if others weigh more.

        Where loops without gradient have a worth of their own, it is that at a constant share of loops with gradient.
        """
        if self.phi_weight < 0.5:
            return None
        value, drawn = 0.0, []
        for law, weight in self._laws_with_phi:
            place, own = law.form.parameter_names.index("phi"), weight / self.phi_weight
            bounds = law.form.parameters[place]
            value += own * law.vector[place]
            draws = law.draw_matrix[: round(own * len(law.draws)), place]
            widened = law.vector[place] + law.widening * (draws - law.vector[place])
            drawn.append(np.clip(widened, bounds.lower, bounds.upper))
        return Quantity.of(value, np.concatenate(drawn))

    @property
    def phi_weight(self) -> float:
        """The weight, of 1, that the laws with a worth of a loop have together."""
        return sum(weight for _, weight in self._laws_with_phi)

    @property
    def _laws_with_phi(self) -> list[tuple[LawFit, float]]:
        pairs = zip(self.laws.laws, self.laws.weights, strict=True)
        return [(law, weight) for law, weight in pairs if "phi" in law.form.parameter_names]

    @property
    def answer_budget(self) -> float:
        """The budget of the first answer of a report or a page: twice the largest fitted compute."""
        return ANSWER_MULTIPLE * self.fitted.flops[1]

    def point(self, flops: float) -> FrontierPoint:
        """Return the best models for a budget, from the stored frontier if it is there."""
        from isoloop.fitting.sizes.frontier import frontier_point

        stored = [point for point in self.frontier if abs(point.budget / flops - 1) < 1e-9]
        return stored[0] if stored else frontier_point(self.surface, flops)

    def at_size(self, size: str, flops: float) -> SizeAtBudget:
        """Return the best model of a measured size for a budget. Raises ValueError for another name."""
        params = self.params_of(size)
        return min(self.point(flops).sizes, key=lambda each: abs(each.params - params))

    def params_of(self, size: str) -> float:
        """Return the parameters of a measured size. Raises ValueError for another name."""
        for each in self.sizes:
            if each.label == size:
                return each.params
        labels = ", ".join(each.label for each in self.sizes)
        raise ValueError(f"a size must be one of {labels}, but got {size!r}; name one, or give params, a number")

    def verdict(self, flops: float | None = None, limited: Limited | None = None) -> Verdict:
        """Return what the runs do not determine of the best model for `flops`, by default the answer's budget.

        With `limited` it is the best model under limits that is judged.
        """
        from isoloop.fitting.sizes.verdict import verdict_on, verdict_under

        if limited is not None:
            return verdict_under(self, limited)
        return verdict_on(self, self.point(self.answer_budget if flops is None else flops))

    def report(self) -> str:
        """Return the whole fit as text. Intervals are 95%."""
        from isoloop.fitting.sizes.report import full_report

        return full_report(self) + ("" if self.quality is None else f"\n{self.quality.report()}")

    def summary(self, *, lines: int = 40, printable: Callable[[str], str] = str) -> str:
        """Return the answer, the estimates and what to doubt; see `SweepFit.summary`."""
        from isoloop.fitting.sizes.report import screen

        return screen(self, lines=lines, printable=printable)

    def to_json(self) -> str:
        """Return JSON text that `from_json` reads back into an equal fit. Raises ValueError for infinite numbers."""
        return stored_text(SIZES_FORMAT, self.name, dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SizesFit:
        """Return the fit that `to_json` wrote. Raises ValueError for any other text, or another format's version."""
        fit = read_stored(text, SIZES_FORMAT, _stored_fit())
        for law in (*fit.laws.laws, *([fit.joint_test_time] if fit.joint_test_time else [])):
            check_stored_law(law.law, law)
        check_stored_quality(fit.quality)
        return fit

    @classmethod
    def read(cls, path: str | Path) -> SizesFit:
        """Return the fit stored at `path`. Raises ValueError if there is none, or the file is something else."""
        return from_file(path, cls.from_json)


@cache
def _stored_fit() -> TypeAdapter[SizesFit]:
    return TypeAdapter(SizesFit)
