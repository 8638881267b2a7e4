"""The sweep's configuration: one YAML file, or a preset of that form, read into pydantic.

What isn't an axis every run inherits from the sections `model`, `data`, `optimizer`, ..., which are the trainer's own.
"""

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from trainer.config import (
    Config,
    DataConfig,
    DepthConfig,
    EvaluationConfig,
    ExecutionConfig,
    ExecutionSettings,
    Fraction,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    OptimizerConfig,
    PositiveFloat,
    PositiveInt,
    Recurrence,
    ScheduleConfig,
    check_fixed_depth,
)
from trainer.sizes import SHAPE, SIZES

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"values must be distinct, but got {list(values)}")
    return values


class Resources(ExecutionSettings):
    """What one run is given, how it is executed on that, and how fast it is expected to be (for the plan's time only).

    Args:
        cpus: CPU cores of one process of a run, and threads of one operation.
        gpus: GPUs of one process; above 0 the run trains on `cuda`.
        processes: processes of one run, each with its own `cpus` and `gpus`, that share every batch (data parallel).
        flops_per_second: training FLOPs per second of one run, stated or measured.
    """

    cpus: PositiveInt = 1
    gpus: Fraction = 0
    processes: PositiveInt = 1
    flops_per_second: PositiveFloat = 1e10

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.processes > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"processes that share a run need a GPU each, or none, but got processes={self.processes}, "
                f"gpus={self.gpus:g}; set gpus to 0 or 1"
            )
        return self

    @property
    def execution(self) -> ExecutionConfig:
        """How each process executes a run."""
        settings = {name: getattr(self, name) for name in ExecutionSettings.model_fields}
        return ExecutionConfig(device="cuda" if self.gpus else "cpu", cpu_threads=self.cpus, **settings)


class Tracking(Config):
    """Where runs are recorded. `uri` is any MLflow tracking URI; None is an sqlite file beside the results."""

    uri: str | None = None
    experiment: str = "isoloop"


class Simulation(Config):
    """The law that simulated losses are drawn from (SPEC "The laws", unified law), in nats per token.

    L(T | µ, D) = E + X N(µ)^-x + Y D^-y + Z exp(-z T / µ), with N the effective parameters of the sweep's model.

    Args:
        run_noise: relative standard deviation of a run's loss, one draw per run.
        evaluation_noise: relative standard deviation of each evaluation beside it.
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


class SweepConfig(Config):
    """A grid: `budgets` (FLOPs) or `tokens` (training tokens), times `mean_recurrences`, at one architecture.

    Args:
        accounting: how FLOPs are counted, `exact` or `parcae-release`.
        depth: how loops are drawn around each mean, and how many of them carry gradient.
        model: the architecture; also a published size (`140m`, `370m`, `770m`, `1.3b`), or `size:` and what differs
            from it.
        batch: sequences per optimizer step.
        minimum_steps: a cell that would train fewer steps is left out.
        simulation: draw the losses from this law and train nothing.
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    budgets: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    tokens: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    mean_recurrences: Annotated[tuple[Recurrence, ...], Field(min_length=1), AfterValidator(_distinct)]
    accounting: Literal["exact", "parcae-release"] = "exact"
    depth: DepthConfig = DepthConfig()
    model: Annotated[ModelConfig, BeforeValidator(_sized)] = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    batch: PositiveInt = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: NonNegativeInt = 0
    minimum_steps: PositiveInt = 50
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    simulation: Simulation | None = None

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        if (self.budgets is None) == (self.tokens is None):
            got = "neither" if self.budgets is None else "both"
            raise ValueError(f"one of budgets (FLOPs) and tokens must be given, but got {got}; keep one")
        return self

    @model_validator(mode="after")
    def _check_loops(self) -> Self:
        start = self.depth.curriculum_start
        if start is not None and start > min(self.mean_recurrences):
            raise ValueError(
                f"a curriculum must grow to every mean recurrence, but curriculum_start={start} is over "
                f"{min(self.mean_recurrences)}; start lower, or drop the smaller means"
            )
        check_fixed_depth(self.model, self.mean_recurrences, self.depth, self.evaluation)
        return self

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


def presets() -> list[str]:
    """Names of the sweeps that come with isoloop."""
    return sorted(file.name.removesuffix(".yaml") for file in _preset_folder().iterdir() if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    known = presets()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"presets are {', '.join(known)}"
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but got '{name}'; {hint}")
    return (_preset_folder() / f"{name}.yaml").read_text()


def load_sweep(name: str, overrides: Sequence[str] = (), *, tracking_uri: str | None = None) -> SweepConfig:
    """Read a preset by name or a YAML file by path, then apply `overrides` of the form `section.key=value`.

    `tracking_uri` replaces `tracking.uri` as it stands, whatever signs are in it.

    Raises:
        ValueError: unknown preset, missing file, bad YAML, unknown keys, wrong types, broken rules.
    """
    path = Path(name).expanduser()
    is_file = path.suffix in {".yaml", ".yml"} or path.is_file()
    if is_file and not path.is_file():
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but there is no file '{name}'")
    try:
        content = parse_yaml(path.read_text() if is_file else preset_text(name))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"a sweep's configuration must be YAML, but '{name}' isn't: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"a sweep's configuration must be a YAML mapping, but '{name}' is a {type(content).__name__}")
    for override in sorted(overrides, key=lambda override: not override.startswith(("model=", "model.size="))):
        _override(content, override)  # a size first: what else is said of the model changes it
    if tracking_uri is not None:
        tracking = content.setdefault("tracking", {})
        content["tracking"] = {**tracking, "uri": tracking_uri} if isinstance(tracking, dict) else tracking
    return validate_sweep(content, source=name)


def validate_sweep(content: dict[str, Any], *, source: str) -> SweepConfig:
    """Check a configuration; every broken rule is named in one ValueError."""
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ValueError(f"the sweep '{source}' breaks {error.error_count()} rule(s):\n{problems}") from error


def config_text(sweep: SweepConfig) -> str:
    """The whole configuration as YAML, defaults included; `isoloop run` takes it back."""
    return yaml.safe_dump(sweep.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e18 is one, too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML without building anything but plain data."""
    return yaml.load(text, Loader=_Loader)


def _preset_folder() -> Any:
    return resources.files("sweeps") / "presets"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override must read section.key=value, but got '{override}'")
    *sections, last = key.split(".")
    if sections[:1] == ["model"] and isinstance(content.get("model"), str):
        content["model"] = {"size": content["model"]}
    if key == "model.size" and isinstance(content.get("model"), dict):
        content["model"] = {name: value for name, value in content["model"].items() if name not in SHAPE}
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ValueError(f"an override must name a key of a section, but '{section}' in '{override}' is a value")
    try:
        place[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"an override's value must be YAML, but '{text}' in '{override}' isn't") from error


def _describe(problem: Any) -> str:
    """One line for one of pydantic's errors: where, the rule, what was got, what to do."""
    where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if problem["type"] == "extra_forbidden":
        *sections, key = problem["loc"]
        known = _known_keys(sections)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: must be a known key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: must be given, but is missing"
    message = problem["msg"].removeprefix("Value error, ")
    got = problem["input"]
    shown = "" if isinstance(got, dict) or problem["type"] == "value_error" else f", but got {got!r}"
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


def _known_keys(sections: Sequence[Any]) -> list[str]:
    model: Any = SweepConfig
    for section in sections:
        field = model.model_fields.get(str(section))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        if not nested:
            return []
        model = nested[0]
    return sorted([*model.model_fields, "size"] if model is ModelConfig else model.model_fields)
