"""What `isoloop tune` is asked for: which settings it may change, in which ranges, and how many trials it has."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from isoloop.sweeps.config.uri import SecretUri
from isoloop.trainer.config import Config, NonNegativeInt, Number, PositiveFloat, PositiveInt, Recurrence


class Range(Config):
    """From `low` to `high`, both included, evenly in the value or, with `log`, in its logarithm; `step` apart."""

    low: Annotated[float, Number]
    high: Annotated[float, Number]
    log: bool = False
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low < high must hold, but got low={self.low:g}, high={self.high:g}; swap or widen them")
        if self.log and self.low <= 0:
            raise ValueError(f"a range even in the logarithm must start above 0, but got low={self.low:g}; raise it")
        if self.log and self.step is not None:
            raise ValueError(f"a range has either log or a step, but got log and step={self.step:g}; leave one out")
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

    def holds(self, value: float) -> bool:
        """Whether `value` may be proposed."""
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def place(self, value: float) -> float:
        """Where `value` lies, 0 at `low` and 1 at `high`."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"choices must be distinct, but got {list(values)}; drop one")
    return values


Choices = Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(_distinct)]
Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(lambda value: "range" if isinstance(value, Mapping | Range) else "choices"),
]


class TuneConfig(Config):
    """How `isoloop tune` looks for the settings of a sweep, at its smallest budget.

    Args:
        space: a setting's path to the range or the list of choices that it is drawn from. By default both learning
            rates within 8 times of what the sweep has, Muon's weight decay and the batch.
        trials: runs with different settings, those of earlier calls among them.
        parallel: trials at a time; by default what the cluster holds, but a quarter of the trials at most, as a
            proposal learns only from trials that have ended.
        mean_recurrence: of the trials; by default the middle one of the sweep's.
        seed: of the proposals; the runs' own is the sweep's.
        validations: evaluations during each run, which pruning goes by.
        pruner: `median` ends a run whose validation loss is above the median of the others at the same share of their
            steps, from `prune_from` on; `none` ends no run.
        prune_from: share of the steps before which no run is pruned: high learning rates look bad until they decay.
        storage: where trials are kept, any database that Optuna knows; by default an sqlite file beside the results.
    """

    space: Annotated[Mapping[str, Dimension], Field(min_length=1)] | None = None
    trials: PositiveInt = 24
    parallel: PositiveInt | None = None
    mean_recurrence: Recurrence | None = None
    seed: NonNegativeInt = 0
    validations: NonNegativeInt = 4
    pruner: Literal["median", "none"] = "median"
    prune_from: Annotated[float, Number, Field(ge=0, lt=1)] = 0.5
    storage: Annotated[SecretUri, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_pruner(self) -> Self:
        if self.pruner != "none" and not self.validations:
            raise ValueError(
                f"pruning goes by evaluations during a run, but got pruner='{self.pruner}', validations=0; raise "
                "validations, or set pruner to none"
            )
        return self
