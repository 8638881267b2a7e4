"""The sweep's configuration, read into pydantic: what to run, on what, and where it is recorded.

What isn't an axis every run inherits from the sections `model`, `data`, `optimizer`, ..., which are the trainer's own.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from isoloop.sweeps.config.resources import ClusterConfig, Resources
from isoloop.sweeps.config.tuning import TuneConfig
from isoloop.sweeps.config.uri import TRACKING_VARIABLE, SecretUri
from isoloop.sweeps.privacy import redacted
from isoloop.trainer.config import (
    Config,
    DataConfig,
    DepthConfig,
    EvaluationConfig,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    OptimizerConfig,
    PositiveFloat,
    PositiveInt,
    Recurrence,
    ScheduleConfig,
    check_fixed_depth,
)
from isoloop.trainer.model.sizes import SIZES

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"values must be distinct, but got {list(values)}")
    return values


class Tracking(Config):
    """Where runs are recorded.

    Args:
        uri: any MLflow tracking URI; by default an sqlite file beside the results.
        experiment: name of the MLflow experiment.
    """

    uri: SecretUri | None = None
    experiment: str = "isoloop"

    def full_uri(self, *, default: str) -> str:
        """Return the tracking URI with its secret, or `default` if none was given.

        Raises:
            ValueError: the URI was stored without its secret, and the environment doesn't provide it.
        """
        return self.uri.with_secret(TRACKING_VARIABLE) if self.uri else default


class Simulation(Config):
    """The law that simulated losses are drawn from (SPEC "The laws", unified law), in nats per token.

    L(T | µ, D) = E + X N(µ)^-x + Y D^-y + Z exp(-z T / µ), with N the effective parameters of the sweep's model.

    Args:
        run_noise: relative standard deviation of a run's loss, one draw per run.
        evaluation_noise: relative standard deviation of each evaluation beside it.
        flops_per_second: a run takes as long as at this speed, for trials of the scheduling; None: no time at all.
    """

    E: PositiveFloat
    X: PositiveFloat
    x: PositiveFloat
    Y: PositiveFloat
    y: PositiveFloat
    Z: NonNegativeFloat
    z: PositiveFloat
    run_noise: NonNegativeFloat
    evaluation_noise: NonNegativeFloat
    flops_per_second: PositiveFloat | None = None

    @property
    def identity(self) -> str:
        """What of it determines a simulated run's result."""
        return self.model_dump_json(exclude={"flops_per_second"})


def _sized(value: Any) -> Any:
    """`140m`, or a mapping with `size: 140m` and what differs from it -> the whole mapping."""
    if isinstance(value, str):
        value = {"size": value}
    if not isinstance(value, dict) or "size" not in value:
        return value
    size = str(value["size"])
    if size not in SIZES:
        raise ValueError(f"a size must be one of {', '.join(SIZES)}, but got '{size}'")
    return SIZES[size].model_dump() | {key: entry for key, entry in value.items() if key != "size"}


class RunSettings(Config):
    """What an axis may change and a run otherwise inherits. All but `resources` determines the run's result.

    Args:
        depth: how loops are drawn around each mean, and how many of them carry gradient.
        model: the architecture; also a published size (`140m`, `370m`, `770m`, `1.3b`), or `size:` and what differs
            from it.
        batch: sequences per optimizer step.
    """

    model: Annotated[ModelConfig, BeforeValidator(_sized)] = ModelConfig()
    depth: DepthConfig = DepthConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    batch: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: NonNegativeInt = 0
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check_execution(self) -> Self:
        if self.resources.activation_checkpointing and not self.model.is_looped:
            raise ValueError(
                "resources.activation_checkpointing works loop by loop, but a fixed-depth Transformer (injection: "
                "none) has no loop; leave it out"
            )
        if self.resources.processes > self.batch:
            raise ValueError(
                f"each process of a run must have a sequence of a batch, but got resources.processes="
                f"{self.resources.processes}, batch={self.batch}; use fewer processes or a larger batch"
            )
        return self


class AroundConfig(Config):
    """Mean recurrences around the best ones that a stored fit predicts, instead of the same ones at every budget.

    Args:
        fit: a sweep of the output folder, or a fit's .json file.
        width: the recurrences of a budget reach from µ*(C) / width to µ*(C) x width, evenly in log µ.
        count: recurrences of a budget.
        law: what predicts µ*(C): the power law of the isoFLOP minima, or the training law's own optimum.
        centres: (budget, µ*) pairs, in FLOPs and loops. Filled in when the fit is read, and not changed after that:
            a budget that is added later gets its own.
        centres_of: the law and the fit that the centres are of; with others they are found anew.
    """

    fit: Annotated[str, Field(min_length=1)]
    width: Annotated[float, Number, Field(gt=1)] = 3.0
    count: Annotated[int, Number, Field(ge=3)] = 5
    law: Literal["isoflop", "training"] = "isoflop"
    centres: tuple[tuple[PositiveFloat, PositiveFloat], ...] | None = None
    centres_of: str | None = None

    @property
    def source(self) -> str:
        """The law and the fit that are asked for, in words."""
        return f"{self.law} of {self.fit}"


Axis = Annotated[tuple[Any, ...], Field(min_length=1)]


class SweepConfig(RunSettings):
    """A grid of runs: (`budgets` or `tokens`) x mean recurrences, and `points` besides, each times all `axes`.

    Args:
        budgets: training FLOPs; `tokens`: training tokens. One of the two, unless there are only `points`.
        mean_recurrences: the same at every budget; `around` instead centres them on a stored fit's optimum.
        points: cells besides the product: `budget` or `tokens`, `mean_recurrence`, and settings as in `axes`.
        axes: what else varies. A key is a setting's path (`optimizer.learning_rate`, `seed`, `model.size`) with its
            values, or a name of your own with mappings of `name` and several settings each.
        exclude: cells to leave out: mappings of an axis, a path, `budget`, `tokens` or `mean_recurrence` to a value or
            a list of values.
        accounting: how FLOPs are counted, `exact` or `parcae-release`.
        minimum_steps: a cell that would train fewer steps is left out.
        maximum_epochs: a cell that would pass over the training text more often is left out.
        cluster: what the plan reckons with.
        storage: where runs and corpora lie if workers and driver share no disk: any URI that pyarrow or fsspec knows.
        simulation: draw the losses from this law and train nothing.
        tune: what `isoloop tune` looks for; no run depends on it.
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    budgets: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    tokens: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    mean_recurrences: Annotated[tuple[Recurrence, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    around: AroundConfig | None = None
    points: tuple[Mapping[str, Any], ...] = ()
    axes: Mapping[str, Axis] = {}
    exclude: tuple[Mapping[str, Any], ...] = ()
    accounting: Literal["exact", "parcae-release"] = "exact"
    minimum_steps: PositiveInt = 50
    maximum_epochs: PositiveFloat = 1.0
    cluster: ClusterConfig = ClusterConfig()
    tracking: Tracking = Tracking()
    storage: Annotated[SecretUri, Field(min_length=1)] | None = None
    simulation: Simulation | None = None
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.budgets is not None and self.tokens is not None:
            raise ValueError("one of budgets (FLOPs) and tokens must be given, but got both; keep one")
        if self.budgets is None and self.tokens is None and not self.points:
            raise ValueError(
                "one of budgets (FLOPs) and tokens must be given, but got neither; give one, or list single points"
            )
        product = self.budgets is not None or self.tokens is not None
        ways = [name for name in ("mean_recurrences", "around") if getattr(self, name) is not None]
        if len(ways) != product:
            raise ValueError(
                "a product must have budgets or tokens, and one of mean_recurrences and around, but got "
                f"{' and '.join(ways) or 'neither'}; "
                + ("keep one" if len(ways) > 1 else "add budgets or tokens" if ways else "add mean_recurrences")
            )
        if self.around is not None and self.budgets is None:
            raise ValueError("around finds the best recurrence of a budget, but got tokens; give budgets instead")
        return self

    @model_validator(mode="after")
    def _check_loops(self) -> Self:
        if self.mean_recurrences is None or self.axes or self.points:
            return self  # each run is checked for itself when the grid is planned
        start = self.depth.curriculum_start
        if start is not None and start > min(self.mean_recurrences):
            raise ValueError(
                f"a curriculum must grow to every mean recurrence, but curriculum_start={start} is over "
                f"{min(self.mean_recurrences)}; start lower, or drop the smaller means"
            )
        check_fixed_depth(self.model, self.mean_recurrences, self.depth, self.evaluation)
        return self

    @property
    def settings(self) -> RunSettings:
        """What every run inherits."""
        return RunSettings(**{name: getattr(self, name) for name in RunSettings.model_fields})


def config_text(sweep: SweepConfig) -> str:
    """Return the whole configuration as YAML, with defaults and without secrets; `isoloop run` can read it."""
    content = sweep.model_dump(mode="json", exclude_none=True)
    for name in ("points", "axes", "exclude"):  # here null is a value
        content[name] = sweep.model_dump(mode="json", include={name})[name]
    content = {key: value for key, value in content.items() if value not in ([], {})}
    return redacted(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
