"""The configuration of a sweep: its runs, the planned machines, where runs are recorded, and how they are tuned.

Every run inherits the sections `model`, `data`, `optimizer`, ..., which are the trainer's, except what an axis sets.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from isoloop.sweeps.config.fields import Distinct, NotEmpty, SecretUri
from isoloop.sweeps.config.resources import ClusterConfig, Resources
from isoloop.sweeps.config.tuning import TuneConfig
from isoloop.sweeps.config.yaml_text import dump_yaml
from isoloop.sweeps.messages import broken_rules
from isoloop.sweeps.privacy import redacted
from isoloop.trainer.config import (
    SIZES,
    SUITE_SEEDS,
    Config,
    DataConfig,
    DepthConfig,
    EvaluationConfig,
    Initialisation,
    MeanRecurrence,
    ModelConfig,
    NonEmptyText,
    NonNegativeFloat,
    NonNegativeInt,
    OptimizerConfig,
    PositiveFloat,
    PositiveInt,
    Recurrence,
    ScheduleConfig,
    StrictInt,
    StrictNumber,
    check_fixed_depth,
)

SWEEP_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
LONGEST_NAME = 200
_FILE_ENDINGS = (".yaml", ".yml", ".csv", ".tsv", ".parquet", ".json", ".jsonl", ".gz")
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
TUNED = "tuned"
"""The learning rate of a sweep whose runs take theirs from a tuning."""
STORAGE_VARIABLE = "ISOLOOP_STORAGE"
TUNE_STORAGE_VARIABLE = "ISOLOOP_TUNE_STORAGE"


def _refuse_file_name(name: str) -> str:
    """Raise ValueError for a sweep's name that commands would take for a file's, or that no folder can have."""
    if name.lower().endswith(_FILE_ENDINGS) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"must not end like a file ({', '.join(_FILE_ENDINGS)}), nor have more than {LONGEST_NAME} characters, but "
            f"got '{name}'; choose another name"
        )
    return name


class Tracking(Config):
    """The MLflow store that runs are recorded in.

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
    """The law that simulated losses are drawn from (docs/fitting.md, the unified law), in nats per token.

    L(T | µ, D) = E + X N(µ)^-x + Y D^-y + Z exp(-z T / µ), with N the effective parameters of the sweep's model.

    Args:
        phi: the worth of a loop, as in the iso-depth law: then N = N_once + µ^phi N_rec. By default 1.
        run_noise: relative standard deviation of a run's loss, drawn once per run.
        evaluation_noise: additional relative standard deviation of each evaluation.
        flops_per_second: a simulated run takes as long as at this speed, to test the scheduling; no time if None.
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
    phi: Annotated[float, StrictNumber] | None = Field(default=None, exclude_if=lambda value: value is None)
    flops_per_second: PositiveFloat | None = None


def _expand_size(value: Any) -> Any:
    """Return the whole section of `140m`, or of a mapping with `size: 140m` and what differs from it."""
    if isinstance(value, str):
        value = {"size": value}
    if not isinstance(value, dict) or "size" not in value:
        return value
    size = str(value["size"])
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, but got '{size}'")
    return SIZES[size].model_dump() | {key: entry for key, entry in value.items() if key != "size"}


class SweepEvaluationConfig(EvaluationConfig):
    """Evaluation of a sweep's runs: as in training (`EvaluationConfig`), and by suites once a run has finished.

    The suites don't enter a run's identity: they can be added to a sweep that was run.

    Args:
        suites: `core`, `core-extended`, `lambada`, `wikitext`, `validation`, or a YAML file of your own
            (docs/quality.md).
        bundle: folder or zip of their data, on a disk that all workers see; None: `suites` in the output folder, which
            `isoloop data prepare-suite` fills, or the folder of the YAML file.
        suite_recurrences: further T besides µ_rec, rounded, whose results are the run table's.
        suite_seeds: seeds of the few-shot examples.
        suite_baselines: version of the baselines of the run table's scores.
    """

    suites: tuple[NonEmptyText, ...] = Field(default=(), exclude_if=lambda value: not value)
    bundle: NonEmptyText | None = Field(default=None, exclude_if=lambda value: value is None)
    suite_recurrences: tuple[Recurrence, ...] = Field(default=(), exclude_if=lambda value: not value)
    suite_seeds: tuple[NonNegativeInt, ...] = Field(
        default=SUITE_SEEDS, min_length=1, exclude_if=lambda value: value == SUITE_SEEDS
    )
    suite_baselines: Literal["v1", "v2"] = Field(default="v1", exclude_if=lambda value: value == "v1")

    @model_validator(mode="after")
    def _check_suites(self) -> Self:
        given = [name for name in SUITE_SETTINGS[1:] if name in self.model_fields_set]
        if given and not self.suites:
            raise ValueError(
                f"settings of suites need one, but got evaluation.{given[0]} and no evaluation.suites; name suites, or "
                "leave it out"
            )
        return self

    @property
    def of_run(self) -> EvaluationConfig:
        """What enters a run's identity."""
        return EvaluationConfig(**{name: getattr(self, name) for name in EvaluationConfig.model_fields})


SUITE_SETTINGS = ("suites", "bundle", "suite_recurrences", "suite_seeds", "suite_baselines")
"""The settings of the evaluation by suites, which no run depends on."""


class RunSettings(Config):
    """The settings of a run: an axis may set them, else they are inherited. All but `resources` determine the result.

    Args:
        depth: how loop counts are drawn around each mean, and how many loops carry gradient.
        model: the architecture: its keys, a published size (`140m`, `370m`, `770m`, `1.3b`), or `size:` and the keys
            that differ from it.
        initialisation: of the weights, `paper` or `released` (docs/trainer.md).
        batch: sequences per optimizer step.
    """

    model: Annotated[ModelConfig, BeforeValidator(_expand_size)] = ModelConfig()
    depth: DepthConfig = DepthConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: SweepEvaluationConfig = SweepEvaluationConfig()
    initialisation: Initialisation = "paper"
    batch: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: NonNegativeInt = 0
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check_execution(self) -> Self:
        if self.resources.activation_checkpointing and not self.model.is_looped:
            raise ValueError(
                "resources.activation_checkpointing requires loops, but a fixed-depth Transformer (injection: none) "
                "has no loop; leave it out"
            )
        if self.resources.processes > self.batch:
            raise ValueError(
                f"each process of a run must have at least one sequence of a batch, but got resources.processes="
                f"{self.resources.processes}, batch={self.batch}; use fewer processes or a larger batch"
            )
        return self


class CentredGridConfig(Config):
    """Mean recurrences centred on the optimum that a stored fit predicts for each budget.

    Args:
        fit: name of a sweep in the output folder, or a fit's .json file.
        width: a budget's recurrences range from µ*(C) / width to µ*(C) x width, evenly spaced in log µ.
        count: recurrences per budget.
        law: the law that predicts µ*(C): the power law of the isoFLOP minima, or the optimum of the training law.
        centres: (budget, µ*) pairs, in FLOPs and loops. Filled in when the fit is read and kept from then on; a budget
            that is added later gets its own.
        centres_of: the law and the fit that gave the centres; they are computed anew if `law` or `fit` changes.
    """

    fit: Annotated[str, Field(min_length=1)]
    width: Annotated[float, StrictNumber, Field(gt=1)] = 3.0
    count: Annotated[StrictInt, Field(ge=3)] = 5
    law: Literal["isoflop", "training"] = "isoflop"
    centres: tuple[tuple[PositiveFloat, PositiveFloat], ...] | None = None
    centres_of: str | None = None

    @property
    def law_and_fit(self) -> str:
        """The law and the fit to take the centres from, in words."""
        return f"{self.law} of {self.fit}"


class _Place(Config):
    """A point's place in the grid."""

    budget: PositiveFloat | None = None
    tokens: PositiveInt | None = None
    mean_recurrence: MeanRecurrence | None = None


def _checked_point(point: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a point with its budget or tokens and its mean recurrence checked like those of the product."""
    given = {key: point[key] for key in _Place.model_fields if key in point}
    try:
        return {**point, **_Place.model_validate(given).model_dump(include=set(given))}
    except ValidationError as error:
        raise ValueError(broken_rules(error)) from None


AxisValues = Annotated[tuple[Any, ...], NotEmpty]


class SweepConfig(RunSettings):
    """A grid of runs: (`budgets` or `tokens`) x mean recurrences, and `points` besides, each times all `axes`.

    Args:
        budgets: training FLOPs; `tokens`: training tokens. Give one of the two, unless there are only `points`.
        mean_recurrences: the same for every budget; `around` instead centres them on the optimum of a stored fit.
        points: cells besides the product: `budget` or `tokens`, `mean_recurrence`, and settings as in `axes`.
        axes: settings that vary. A key is the path of a setting (`optimizer.learning_rate`, `seed`, `model.size`) with
            its values, or a name of your own with a list of mappings that have a `name` and set several settings.
        exclude: cells to leave out: each entry maps an axis, a path, `budget`, `tokens` or `mean_recurrence` to a value
            or a list of values.
        accounting: how FLOPs are counted, `exact` or `parcae-release`.
        trunk: let runs that differ in tokens alone share their first steps, up to the decay of the learning rate.
        minimum_steps: cells with fewer training steps are left out.
        maximum_epochs: cells that pass over the training text more often are left out.
        cluster: the machines that the plan assumes.
        storage: folder of runs and corpora if workers and driver share no disk: any URI of pyarrow or fsspec.
        simulation: the law to draw losses from instead of training.
        tune: settings of `isoloop tune`; no run depends on them.
        tuned: with `optimizer.learning_rate: tuned`, the sweep whose tuning gives each run its learning rates, or the
            file of the rates; by default the sweep itself.
    """

    name: Annotated[str, Field(pattern=f"^{SWEEP_NAME}$"), AfterValidator(_refuse_file_name)]
    budgets: Annotated[tuple[PositiveFloat, ...], NotEmpty, Distinct] | None = None
    tokens: Annotated[tuple[PositiveInt, ...], NotEmpty, Distinct] | None = None
    mean_recurrences: Annotated[tuple[MeanRecurrence, ...], NotEmpty, Distinct] | None = None
    around: CentredGridConfig | None = None
    points: tuple[Annotated[Mapping[str, Any], AfterValidator(_checked_point)], ...] = ()
    axes: Mapping[str, AxisValues] = {}
    exclude: tuple[Mapping[str, Any], ...] = ()
    accounting: Literal["exact", "parcae-release"] = "exact"
    trunk: bool = False
    minimum_steps: PositiveInt = 50
    maximum_epochs: PositiveFloat = 1.0
    cluster: ClusterConfig = ClusterConfig()
    tracking: Tracking = Tracking()
    storage: Annotated[SecretUri, Field(min_length=1)] | None = None
    simulation: Simulation | None = None
    tune: TuneConfig = TuneConfig()
    tuned: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_tuned(cls, content: Any) -> Any:
        """Turn the learning rate `tuned` into `tuned`, as the number depends on the run."""
        if not isinstance(content, Mapping):
            return content
        optimizer, tuned = content.get("optimizer"), content.get("tuned")
        if isinstance(optimizer, Mapping) and optimizer.get("learning_rate") == TUNED:
            rest = {key: value for key, value in optimizer.items() if key != "learning_rate"}
            return {**content, "optimizer": rest, "tuned": tuned or content.get("name")}
        if tuned is not None:
            raise ValueError(
                f"tuned must come with the learning rate that it is for, but got tuned={tuned} and another rate; set "
                "optimizer.learning_rate to tuned, or drop tuned"
            )
        return content

    @model_serializer(mode="wrap")
    def _write_tuned(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the learning rate `tuned` as it is read."""
        content: dict[str, Any] = handler(self)
        if self.tuned is not None and "optimizer" in content:
            content["optimizer"]["learning_rate"] = TUNED
        return content

    @model_validator(mode="after")
    def _check_tuned(self) -> Self:
        if self.tuned is not None and self.simulation is not None:
            raise ValueError(
                "a sweep must train to have tuned learning rates, but this one draws its losses from a law; drop "
                "optimizer.learning_rate or simulation"
            )
        return self

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.budgets is not None and self.tokens is not None:
            raise ValueError("one of budgets (FLOPs) and tokens must be given, but got both; keep one")
        if self.budgets is None and self.tokens is None and not self.points:
            raise ValueError(
                "one of budgets (FLOPs) and tokens must be given, but got neither; give one, or list single points"
            )
        has_product = self.budgets is not None or self.tokens is not None
        given = [name for name in ("mean_recurrences", "around") if getattr(self, name) is not None]
        if len(given) != has_product:
            raise ValueError(
                "a product must have budgets or tokens, and one of mean_recurrences and around, but got "
                f"{' and '.join(given) or 'neither'}; "
                + ("keep one" if len(given) > 1 else "add budgets or tokens" if given else "add mean_recurrences")
            )
        if self.around is not None and self.budgets is None:
            raise ValueError("around requires budgets, but got tokens; give budgets instead")
        return self

    @model_validator(mode="after")
    def _check_suites(self) -> Self:
        if not self.evaluation.suites:
            return self
        if self.simulation is not None:
            raise ValueError(
                "suites evaluate trained models, but this sweep draws its losses from a law; drop evaluation.suites or "
                "simulation"
            )
        if self.storage is not None:
            raise ValueError(
                "suites are evaluated where the runs' folders are, on a disk that all workers see, but this sweep has "
                "a storage; drop evaluation.suites, and call `isoloop evaluate` where its models are"
            )
        return self

    @model_validator(mode="after")
    def _check_loops(self) -> Self:
        if self.mean_recurrences is None or self.axes or self.points:
            return self  # each run is checked when the grid is planned
        start = self.depth.curriculum_start
        if start is not None and start > min(self.mean_recurrences):
            raise ValueError(
                f"a curriculum must start at or below every mean recurrence, but curriculum_start={start} is over "
                f"{min(self.mean_recurrences)}; start lower, or drop the smaller means"
            )
        check_fixed_depth(self.model, self.mean_recurrences, self.depth, self.evaluation)
        return self

    @property
    def settings(self) -> RunSettings:
        """The settings that every run inherits."""
        return RunSettings(**{name: getattr(self, name) for name in RunSettings.model_fields})


@cache
def setting_paths() -> frozenset[str]:
    """Return the path of each setting that an axis may set, such as `optimizer.learning_rate` and `model.size`."""
    paths = {"model", "model.size"}
    for name, field in RunSettings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Config):
            paths |= {f"{name}.{key}" for key in section.model_fields if key not in SUITE_SETTINGS}
        else:
            paths.add(name)
    return frozenset(paths)


def config_text(sweep: SweepConfig) -> str:
    """Return the whole configuration as YAML, with defaults and without secrets; `isoloop run` can read it."""
    content = sweep.model_dump(mode="json", exclude_none=True)
    for name in ("points", "axes", "exclude"):  # here null is a value, which must stay
        content[name] = sweep.model_dump(mode="json", include={name})[name]
    content = {key: value for key, value in content.items() if value not in ([], {})}
    return redacted(dump_yaml(content))
