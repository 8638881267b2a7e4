"""The settings of a tuning: what is tuned, where in the grid, and by how many trials."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from isoloop.sweeps.config.fields import Distinct, NotEmpty, SecretUri
from isoloop.trainer.config import (
    Config,
    MeanRecurrence,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictNumber,
)


class Range(Config):
    """An interval to draw a setting from, uniformly or log-uniformly.

    Args:
        low: smallest value, included.
        high: largest value, included.
        log: draw log-uniformly.
        step: distance between neighbouring values; any value in the interval by default.
    """

    low: Annotated[float, StrictNumber]
    high: Annotated[float, StrictNumber]
    log: bool = False
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low < high must hold, but got low={self.low:g}, high={self.high:g}; swap or widen them")
        if self.log and self.low <= 0:
            raise ValueError(f"a log-uniform range must start above 0, but got low={self.low:g}; raise it")
        if self.log and self.step is not None:
            raise ValueError(f"a range must have either log or a step, but got log and step={self.step:g}; drop one")
        if self.step is not None and not math.isclose(self._steps, round(self._steps), abs_tol=1e-6):
            raise ValueError(
                f"a range must be whole steps wide, but {self.low:g} to {self.high:g} is {self._steps:.4g} times "
                f"{self.step:g}; move high"
            )
        return self

    @property
    def _steps(self) -> float:
        assert self.step is not None, "only a range with a step has steps"
        return (self.high - self.low) / self.step

    def contains(self, value: float) -> bool:
        """Return whether `value` can be drawn."""
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def position(self, value: float) -> float:
        """Return the position of `value` in the interval: 0 at `low`, 1 at `high`, on a log scale with `log`."""
        low, high, position = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (position - low) / (high - low)


Choices = Annotated[tuple[Any, ...], NotEmpty, Distinct]
Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(lambda value: "range" if isinstance(value, Mapping | Range) else "choices"),
]


class TuneConfig(Config):
    """Settings of a tuning, which trains at the sweep's smallest budget, or else in the cells that it names.

    With `budgets`, `mean_recurrences` or `sizes` it finds the best learning rate as a power law of them: the trials are
    spread over every combination, and only learning rates are tuned, without pruning.

    Args:
        budgets: training FLOPs of the trials.
        mean_recurrences: µ_rec of the trials.
        sizes: published sizes of the trials' models.
        space: maps the path of a setting to the range or the list of choices that it is drawn from. By default both
            learning rates from 1/8 to 8 times the sweep's, Muon's weight decay and the batch.
        trials: number of runs with different settings, including those of earlier calls.
        parallel: trials at a time; by default as many as the cluster holds, but at most a quarter of all, since a
            proposal learns only from trials that have ended.
        mean_recurrence: µ_rec of the trials; by default the middle one of the sweep's.
        seed: seed of the proposals; the runs have the sweep's seed.
        validations: evaluations during each run; pruning compares their losses.
        pruner: `median` stops a run whose validation loss is above the median of the others' at the same share of their
            steps, from `prune_from` on; `none` stops no run.
        prune_from: share of the steps before which no run is pruned: high learning rates look bad until they decay.
        storage: database of the trials, any that Optuna supports; by default an sqlite file beside the results.
    """

    budgets: Annotated[tuple[PositiveFloat, ...], NotEmpty, Distinct] | None = None
    mean_recurrences: Annotated[tuple[MeanRecurrence, ...], NotEmpty, Distinct] | None = None
    sizes: Annotated[tuple[str, ...], NotEmpty, Distinct] | None = None
    space: Annotated[Mapping[str, Dimension], Field(min_length=1)] | None = None
    trials: PositiveInt = 24
    parallel: PositiveInt | None = None
    mean_recurrence: MeanRecurrence | None = None
    seed: NonNegativeInt = 0
    validations: NonNegativeInt = 4
    pruner: Literal["median", "none"] = "median"
    prune_from: Annotated[float, StrictNumber, Field(ge=0, lt=1)] = 0.5
    storage: Annotated[SecretUri, Field(min_length=1)] | None = None

    @property
    def finds_law(self) -> bool:
        """True for a tuning in several cells, whose result is a law of the learning rates."""
        return any((self.budgets, self.mean_recurrences, self.sizes))

    @model_validator(mode="after")
    def _check_means(self) -> Self:
        if self.mean_recurrence is not None and self.mean_recurrences is not None:
            raise ValueError(
                "a tuning must have one of mean_recurrence and mean_recurrences, but got both; keep the latter to find "
                "how the best rate depends on µ"
            )
        return self

    @model_validator(mode="after")
    def _check_pruner(self) -> Self:
        if self.pruner != "none" and not self.validations:
            raise ValueError(
                f"pruning requires evaluations during a run, but got pruner='{self.pruner}', validations=0; raise "
                "validations, or set pruner to none"
            )
        return self
