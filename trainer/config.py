"""Frozen configurations of one training run, and the run's identity.

A `RunSpec` holds everything that determines a run's result and nothing else: no folder, no machine, no sweep's name.
Its content hash is the run's id, so two sweeps that ask for the same run share it.
"""

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number(value: Any) -> Any:
    """Refuse what pydantic would quietly turn into a number."""
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number, but got {value!r}")
    return value


Number = BeforeValidator(_number)
PositiveInt = Annotated[int, Number, Field(ge=1)]
Recurrence = Annotated[int, Number, Field(ge=1, le=4096)]
NonNegativeInt = Annotated[int, Number, Field(ge=0)]
PositiveFloat = Annotated[float, Number, Field(gt=0)]
NonNegativeFloat = Annotated[float, Number, Field(ge=0)]
Fraction = Annotated[float, Number, Field(ge=0, le=1)]
Momentum = Annotated[float, Number, Field(ge=0, lt=1)]

BYTE_VOCABULARY = 256
VOCABULARY_MULTIPLE = 64
FIXED_DEPTH = "none"
INJECTIONS = ("diagonal", "concat", "addition", FIXED_DEPTH)
BLOCKS = ("pre-norm", "residual-norm")
_OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _variant(known: tuple[str, ...]) -> AfterValidator:
    """A variant's name: one of `known`, or `module:Class` for a class of the user's own."""

    def check(value: str) -> str:
        if value not in known and not _OWN_CLASS.fullmatch(value):
            raise ValueError(f"must be one of {', '.join(known)}, or module:Class for your own, but got '{value}'")
        return value

    return AfterValidator(check)


class Config(BaseModel):
    """A frozen, keyword-only configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Config):
    """Shape of a looped model: prelude, recurrent core, coda (SPEC "The model"; Parcae, arXiv:2604.12946).

    The attributes are layers (counts), `width` (channels), `context` and `vocabulary` (tokens).

    Args:
        injection: how the prelude's output enters the loop: `diagonal` (Parcae), `concat` (RDM, Geiping et al. 2025),
            `addition` (Yang et al. 2024). `none` is the fixed-depth Transformer: the same blocks, each run once.
            `module:Class` is an injection of the user's own.
        block: `pre-norm`, or `residual-norm` with a second norm behind each residual sum (Geiping et al. 2025).
            `module:Class` is a block of the user's own.
        prelude_norm: whether the prelude's output is normalised before it is injected (RDM: it isn't).
    """

    width: PositiveInt = 16
    heads: PositiveInt = 2
    prelude_layers: PositiveInt = 1
    core_layers: PositiveInt = 1
    coda_layers: PositiveInt = 1
    context: PositiveInt = 64
    vocabulary: PositiveInt = BYTE_VOCABULARY
    injection: Annotated[str, _variant(INJECTIONS)] = "diagonal"
    block: Annotated[str, _variant(BLOCKS)] = "pre-norm"
    prelude_norm: bool = True
    state_init: Literal["zero", "normal", "like-init"] = "like-init"
    rotary_base: PositiveFloat = 50_000.0
    norm_eps: PositiveFloat = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                "width must be an even multiple of heads (rotary pairs channels within a head), "
                f"but got width={self.width}, heads={self.heads}; choose a width divisible by {2 * self.heads}"
            )
        return self

    @model_validator(mode="after")
    def _check_loopless(self) -> Self:
        if not self.is_looped and not (self.prelude_norm and self.state_init == "like-init"):
            raise ValueError(
                "a fixed-depth Transformer (injection: none) has no prelude norm and no initial state to choose, but "
                f"got prelude_norm={self.prelude_norm}, state_init='{self.state_init}'; leave them out, or set them to "
                "true and like-init"
            )
        return self

    @property
    def is_looped(self) -> bool:
        """Whether the core is looped; the fixed-depth Transformer runs each block once."""
        return self.injection != FIXED_DEPTH

    @property
    def head_width(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def layers(self) -> int:
        """Distinct layers: L_P + L_R + L_C."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the token table: the vocabulary rounded up to a multiple of 64."""
        return math.ceil(self.vocabulary / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def init_std(self) -> float:
        """Standard deviation of the truncated-normal initialisation, sqrt(2 / (5 d))."""
        return math.sqrt(2 / (5 * self.width))

    def has_value_embedding(self, layer: int) -> bool:
        """Whether distinct layer `layer` (0-based) has a value embedding: every other one, counted from the last."""
        return (self.layers - 1 - layer) % 2 == 0


class DepthConfig(Config):
    """How loop counts are drawn around a mean, and which loops carry gradient.

    Args:
        backprop_depth: µ_bwd; the last min(T, µ_bwd) loops carry gradient. By default ceil(µ_rec / 2).
        sampling: `per-sequence` draws T ~ Poisson(µ_rec) clamped to >= 1 for each sequence, `per-batch` draws one such
            T for the whole global batch, `fixed` runs T = µ_rec.
        curriculum_start: the mean at the first step, from where it grows linearly to µ_rec; None: no curriculum.
        curriculum_fraction: share of the steps over which it grows. µ_bwd stays what it is throughout.
    """

    backprop_depth: PositiveInt | None = None
    sampling: Literal["per-sequence", "per-batch", "fixed"] = "per-sequence"
    curriculum_start: Recurrence | None = None
    curriculum_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _check_curriculum(self) -> Self:
        if (self.curriculum_start is None) != (self.curriculum_fraction == 0):
            raise ValueError(
                "a curriculum needs both its start and its share of the steps, but got curriculum_start="
                f"{self.curriculum_start}, curriculum_fraction={self.curriculum_fraction}; give both or neither"
            )
        return self


class RecurrenceConfig(DepthConfig):
    """How many loops each sequence runs in training: `mean` is µ_rec."""

    mean: Recurrence = 4

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.curriculum_start is not None and self.curriculum_start > self.mean:
            raise ValueError(
                f"a curriculum must grow, but curriculum_start={self.curriculum_start} is over the mean {self.mean}; "
                "start lower"
            )
        return self

    def mean_at(self, progress: float) -> float:
        """The mean in force when `progress`, 0 to 1, of the steps is done."""
        if self.curriculum_start is None or progress >= self.curriculum_fraction:
            return float(self.mean)
        return self.curriculum_start + (self.mean - self.curriculum_start) * progress / self.curriculum_fraction

    @property
    def gradient_loops(self) -> int:
        """µ_bwd: the most loops of one sequence that carry gradient."""
        return self.backprop_depth or math.ceil(self.mean / 2)


class DataConfig(Config):
    """Which text, and what its tokens are (docs/data.md).

    Args:
        corpus: `stdlib` (the Python standard library's source files), a text file or a folder of text files, a parquet
            file, a folder or glob of them, or OWNER/NAME, a data set on Hugging Face. A path that exists wins.
        suffixes: files of a text folder that are read.
        column: the parquet column that holds the text.
        files: glob of the parquet files within the folder or data set; `*` also crosses folders. None is all of them.
        revision: of the data set on Hugging Face: branch, tag or commit; None is `main`.
        validation_fraction: share held out: of the bytes, in whole files (text), or of the rows (parquet).
        max_tokens: training tokens after which reading stops, at the end of a document; None reads all.
        tokenizer: `bytes`; `bpe`, trained on this corpus's training split; a tokenizer.json; or OWNER/NAME, a
            tokenizer on Hugging Face. All but `bytes` must be byte-level.
        tokenizer_vocabulary: token ids of a tokenizer that is trained, the separator among them.
        tokenizer_sample_bytes: bytes of text, from the start of the training split, that it is trained on.
        separator: the token that closes each document; with `bytes` it is byte 0.
    """

    corpus: Annotated[str, Field(min_length=1)] = "stdlib"
    suffixes: tuple[str, ...] = (".py", ".txt", ".md", ".rst")
    column: Annotated[str, Field(min_length=1)] = "text"
    files: Annotated[str, Field(min_length=1)] | None = None
    revision: Annotated[str, Field(min_length=1)] | None = None
    validation_fraction: Annotated[float, Number, Field(gt=0, lt=1)] = 0.05
    max_tokens: PositiveInt | None = None
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    tokenizer_vocabulary: Annotated[int, Number, Field(ge=BYTE_VOCABULARY + 1)] = 32_768
    tokenizer_sample_bytes: PositiveInt = 200_000_000
    separator: Annotated[str, Field(min_length=1)] = "<|endoftext|>"

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        if self.corpus == "stdlib":
            self.refuse("the standard library", "suffixes", "column", "files", "revision")
        if self.tokenizer == "bytes":
            self.refuse("tokenizer 'bytes'", "tokenizer_vocabulary", "tokenizer_sample_bytes", "separator")
        elif self.tokenizer != "bpe":
            self.refuse("a tokenizer that is not trained", "tokenizer_vocabulary", "tokenizer_sample_bytes")
        return self

    def is_set(self, name: str) -> bool:
        """Whether the argument differs from its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse arguments that were set and that `kind` has no use for.

        Raises:
            ValueError: one of `names` differs from its default.
        """
        for name in names:
            if self.is_set(name):
                raise ValueError(
                    f"an argument must have a use, but {kind} has none for data.{name}={getattr(self, name)!r}; "
                    "leave it out"
                )


class OptimizerConfig(Config):
    """Muon for the matrices of the blocks, AdamW for all else (SPEC "Training")."""

    learning_rate: PositiveFloat = 8e-3
    muon_learning_rate: PositiveFloat | None = None
    muon_momentum: Momentum = 0.95
    muon_weight_decay: NonNegativeFloat = 0.2
    adam_betas: tuple[Momentum, Momentum] = (0.8, 0.95)
    adam_eps: PositiveFloat = 1e-10
    gradient_clip: PositiveFloat = 1.0

    @property
    def matrix_learning_rate(self) -> float:
        """Peak learning rate of Muon; AdamW's unless set apart."""
        return self.muon_learning_rate or self.learning_rate


class ScheduleConfig(Config):
    """Trapezoid without warm-up: constant, then linear to 0 over the last `decay_fraction` of the steps."""

    decay_fraction: Fraction = 0.5


class EvaluationConfig(Config):
    """Validation: `sequences` fixed sequences, at the mean recurrence and at each of `recurrences` (loops)."""

    sequences: PositiveInt = 256
    recurrences: tuple[Recurrence, ...] = (1, 2, 4, 8)


def check_fixed_depth(
    model: ModelConfig, means: tuple[int, ...], depth: DepthConfig, evaluation: EvaluationConfig
) -> None:
    """Refuse loops for a model that has none.

    Raises:
        ValueError: `model` is the fixed-depth Transformer, and a mean, the sampling or a test-time recurrence isn't 1.
    """
    if not model.is_looped and depth.backprop_depth is not None:
        raise ValueError(
            "a fixed-depth Transformer (injection: none) has no loops to carry gradient, but got backprop_depth="
            f"{depth.backprop_depth}; leave it out"
        )
    if not model.is_looped and (set(means), depth.sampling, set(evaluation.recurrences)) != ({1}, "fixed", {1}):
        raise ValueError(
            "a fixed-depth Transformer (injection: none) runs each block once, so its mean recurrence must be 1, its "
            f"sampling 'fixed' and evaluation.recurrences [1], but got {list(means)}, '{depth.sampling}' and "
            f"{list(evaluation.recurrences)}; change these or choose an injection"
        )


class RunSpec(Config):
    """All that determines one run's result on a given kind of machine.

    `data_fingerprint` is the content hash of the prepared corpus.

    Args:
        batch: sequences per optimizer step.
        steps: optimizer steps.
        precision: `bfloat16` runs the matrix products under autocast; weights stay float32.
    """

    model: ModelConfig = ModelConfig()
    recurrence: RecurrenceConfig = RecurrenceConfig()
    data: DataConfig = DataConfig()
    data_fingerprint: str
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    batch: PositiveInt = 32
    steps: PositiveInt
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_fixed_depth(self) -> Self:
        check_fixed_depth(self.model, (self.recurrence.mean,), self.recurrence, self.evaluation)
        return self

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimizer step."""
        return self.batch * self.model.context

    @property
    def tokens(self) -> int:
        """D: training tokens of the whole run."""
        return self.tokens_per_step * self.steps

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of the hash of what determines the result.

        Where the text lies does not, what it says does: the corpus enters by its fingerprint alone.
        """
        content = self.model_dump(mode="json", exclude={"data"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class ExecutionSettings(Config):
    """How a run is executed, whatever it is executed on. None of this enters the run's identity.

    The numbers are the same to the bit for the same values on CPU, and the same up to rounding for others.

    Args:
        micro_batch: most sequences of one forward and backward pass of one process; gradients add up to those of the
            whole batch. None: the whole share of the process at once.
        activation_checkpointing: keep a loop's input alone and compute the loop again in the backward pass.
        compile: put the blocks through torch.compile.
        checkpoint_seconds: time between two checkpoints.
        keep_checkpoints: how many of them to keep.
        validations: evaluations during the training, evenly spaced and apart from the one at the end; the loss at
            T = µ_rec goes into the journal as `validation_loss`.
        peak_flops: FLOPs per second of one process that utilisation refers to; None: the matrix rate measured at the
            start.
    """

    micro_batch: PositiveInt | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    checkpoint_seconds: PositiveFloat = 30.0
    keep_checkpoints: PositiveInt = 2
    validations: NonNegativeInt = 0
    peak_flops: PositiveFloat | None = None


class ExecutionConfig(ExecutionSettings):
    """How and on what one process executes a run: a torch `device`, and threads of one operation on the CPU."""

    device: str = "cpu"
    cpu_threads: PositiveInt = 1
