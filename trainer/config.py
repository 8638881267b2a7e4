"""Frozen configurations of one training run, and the run's identity.

A `RunSpec` holds everything that determines a run's result and nothing else: no folder, no machine, no sweep's name.
Its content hash is the run's id, so two sweeps that ask for the same run share it.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


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


class Config(BaseModel):
    """A frozen, keyword-only configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Config):
    """Shape of a looped model: prelude, recurrent core, coda (SPEC "The model"; Parcae, arXiv:2604.12946).

    The attributes are layers (counts), `width` (channels), `context` and `vocabulary` (tokens).
    """

    width: PositiveInt = 16
    heads: PositiveInt = 2
    prelude_layers: PositiveInt = 1
    core_layers: PositiveInt = 1
    coda_layers: PositiveInt = 1
    context: PositiveInt = 64
    vocabulary: PositiveInt = BYTE_VOCABULARY
    injection: Literal["diagonal"] = "diagonal"
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


class RecurrenceConfig(Config):
    """How many loops each sequence runs in training: T ~ Poisson(`mean`) clamped to >= 1, per sequence.

    The last min(T, `backprop_depth`) loops carry gradient; by default µ_bwd = ceil(µ_rec / 2).
    """

    mean: Recurrence = 4
    backprop_depth: PositiveInt | None = None

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
