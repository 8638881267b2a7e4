"""Frozen configurations of one training run, the published model sizes, and the run's identity.

A `RunSpec` holds everything that determines a run's result and nothing else: no folder, no machine, no sweep name. The
hash of its content is the run's id, so two sweeps that need the same run share it.
"""

import hashlib
import importlib
import json
import math
import re
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import to_jsonable_python


def _refuse_non_number(value: Any) -> Any:
    """Raise ValueError for booleans and text, which pydantic would silently convert."""
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number, but got {value!r}")
    return value


def _refuse_beyond_64_bits(value: Any) -> Any:
    """Raise ValueError for a number that run tables, databases and torch can't hold as an integer."""
    if isinstance(value, int | float) and LARGEST_INTEGER < value < math.inf:
        raise ValueError(f"must be at most {LARGEST_INTEGER} (2^63 - 1), but got {value}; choose a smaller number")
    return value


def whole_as_integer(value: float) -> float:
    """Return a whole number as an integer, so that 2.0 and 2 give the same run the same id."""
    return int(value) if float(value).is_integer() else value


LARGEST_INTEGER = 2**63 - 1
StrictNumber = BeforeValidator(_refuse_non_number)
# -0.0 would give the same run another id.
_PositiveZero = AfterValidator(lambda value: value + 0.0)
StrictInt = Annotated[int, StrictNumber, BeforeValidator(_refuse_beyond_64_bits)]
PositiveInt = Annotated[StrictInt, Field(ge=1)]
LARGEST_RECURRENCE = 4096
Recurrence = Annotated[int, StrictNumber, Field(ge=1, le=LARGEST_RECURRENCE)]
MeanRecurrence = Annotated[
    int | float, StrictNumber, Field(ge=1, le=LARGEST_RECURRENCE), AfterValidator(whole_as_integer)
]
NonNegativeInt = Annotated[StrictInt, Field(ge=0)]
PositiveFloat = Annotated[float, StrictNumber, Field(gt=0)]
NonNegativeFloat = Annotated[float, StrictNumber, Field(ge=0), _PositiveZero]
Fraction = Annotated[float, StrictNumber, Field(ge=0, le=1), _PositiveZero]
Momentum = Annotated[float, StrictNumber, Field(ge=0, lt=1), _PositiveZero]
NonEmptyText = Annotated[str, Field(min_length=1)]
Digit = Annotated[StrictInt, Field(ge=1, le=9)]
# Left out where it is the default, so that runs keep their ids.
Initialisation = Annotated[Literal["paper", "released"], Field(exclude_if=lambda value: value == "paper")]

BYTE_VOCABULARY = 256
SYNTHETIC_TEXTS = ("automaton", "depo")
VOCABULARY_MULTIPLE = 64
GATE_CHANNELS = 32
FIXED_DEPTH = "none"
# Standard deviation of the log of the rate of log-normal Poisson loops (Geiping et al. 2025, arXiv:2502.05171).
LOG_NORMAL_SIGMA = 0.5
# Muon's momentum in Parcae's release rises from the first of these to `muon_momentum` over so many steps.
_FIRST_MOMENTUM, _MOMENTUM_STEPS = 0.85, 300
_RELEASED_DIVERGENCE_STEPS = 10
# Evaluations during a run that sees its text again, besides that of its last step.
BEST_LOSS_EVALUATIONS = 15
# Seeds of the few-shot examples of evaluation suites, as in Parcae's release.
SUITE_SEEDS = (1234, 2345, 3456)
INJECTIONS = ("diagonal", "concat", "addition", FIXED_DEPTH)
BLOCKS = ("pre-norm", "residual-norm")
CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _variant(names: tuple[str, ...]) -> AfterValidator:
    """Return a validator for one of `names`, or for `module:Class`, a class of the user's own."""

    def check(value: str) -> str:
        if value not in names and not CLASS_PATH.fullmatch(value):
            raise ValueError(f"must be one of {', '.join(names)}, or module:Class for your own, but got '{value}'")
        return value

    return AfterValidator(check)


def import_class(path: str, contract: type | None = None) -> Any:
    """Import the user's own class that `path`, of the form `module:Class`, names.

    Raises:
        ValueError: the module or the class can't be imported, or the class isn't a subclass of `contract`.
    """
    module, _, name = path.partition(":")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a class of your own must be importable as module:Class, but '{path}' is not ({error}); start isoloop "
            "with PYTHONPATH set to the folder of the module"
        ) from error
    if contract is not None and not (isinstance(imported, type) and issubclass(imported, contract)):
        raise ValueError(
            f"'{path}' must be a subclass of {contract.__module__}.{contract.__name__}, but is {imported!r}; "
            "docs/extending.md shows one"
        )
    return imported


class Config(BaseModel):
    """A frozen, keyword-only configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def all_fields(self) -> dict[str, Any]:
        """Return every field as in JSON, also those that `model_dump` leaves out at their defaults."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value.all_fields() if isinstance(value, Config) else to_jsonable_python(value)
            for name, value in values.items()
        }


class ModelConfig(Config):
    """Shape of a looped model: prelude, recurrent core, coda (Parcae, arXiv:2604.12946).

    `width` is in channels, `context` and `vocabulary` in tokens.

    Args:
        injection: the way in which the prelude's output enters the loop: `diagonal` (Parcae), `concat` (RDM, Geiping et
            al. 2025), `addition` (Yang et al. 2024), or `module:Class` for your own. `none` is the fixed-depth
            Transformer: the same blocks, each run once.
        block: `pre-norm`; `residual-norm`, which adds a norm after each residual sum (Geiping et al. 2025); or
            `module:Class` for your own.
        prelude_norm: normalise the prelude's output before it is injected (RDM doesn't).
        state_init: distribution of h_0. `like-init`: N(0, 2 / 5d), as the weights; `normal`: N(0, 1); `embed`: N(0, 1 /
            d); `unit`: N(0, 1) whose channels are then standardised for each token; `zero`.
        embedding_scale: factor of the token embedding, and of h_0 where it is `like-init` (RDM as published: sqrt(d)).
        loop_norm: apply the final norm also to h_T, in front of W_C (RDM as published).
        residual_scale: λ by which each residual branch of the core is scaled to λ / (µ_rec sqrt(L_R)), for pre-norm
            blocks. The best learning rate then doesn't depend on the number of loops (Wang et al. 2026,
            arXiv:2606.18524). By default branches aren't scaled.
        key_value_heads: heads of keys and values, each shared by heads / key_value_heads query heads (grouped-query
            attention, arXiv:2305.13245). None: as many as heads.
        tied_head: the output head is the token table. False gives the head a matrix of its own.
        logit_soft_cap: c of logits c tanh(logits / c), in training and evaluation (Gemma 2, arXiv:2408.00118). None: no
            cap.
        z_loss: coefficient of the mean square of log(sum(exp(logits))), which is added to what training minimises
            (PaLM, arXiv:2204.02311). Losses that are reported are cross-entropies without it.
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
    state_init: Literal["zero", "normal", "like-init", "embed", "unit"] = "like-init"
    embedding_scale: PositiveFloat | None = Field(default=None, exclude_if=lambda value: value is None)
    loop_norm: bool = Field(default=False, exclude_if=lambda value: not value)
    rotary_base: PositiveFloat = 50_000.0
    norm_eps: PositiveFloat = 1e-5
    residual_scale: PositiveFloat | None = Field(default=None, exclude_if=lambda value: value is None)
    key_value_heads: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)
    tied_head: bool = Field(default=True, exclude_if=lambda value: value)
    logit_soft_cap: PositiveFloat | None = Field(default=None, exclude_if=lambda value: value is None)
    z_loss: NonNegativeFloat = Field(default=0.0, exclude_if=lambda value: value == 0)

    @model_validator(mode="after")
    def _check_residual_scale(self) -> Self:
        if self.residual_scale is not None and not (self.is_looped and self.block == "pre-norm"):
            raise ValueError(
                "residual_scale is for the loop of pre-norm blocks, but got "
                f"residual_scale={self.residual_scale:g}, injection='{self.injection}', block='{self.block}'; leave it "
                "out, or choose an injection and block: pre-norm"
            )
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                "width must be an even multiple of heads (rotary pairs channels within a head), "
                f"but got width={self.width}, heads={self.heads}; choose a width divisible by {2 * self.heads}"
            )
        return self

    @model_validator(mode="after")
    def _check_key_value_heads(self) -> Self:
        if self.key_value_heads is not None and (self.heads % self.kv_heads or self.kv_heads == self.heads):
            raise ValueError(
                "key_value_heads must divide heads and be fewer, "
                f"but got key_value_heads={self.key_value_heads}, heads={self.heads}; "
                + ("leave it out" if self.kv_heads == self.heads else "choose a divisor of heads")
            )
        return self

    @model_validator(mode="after")
    def _check_loopless(self) -> Self:
        if not self.is_looped and (not self.prelude_norm or self.state_init != "like-init" or self.loop_norm):
            raise ValueError(
                "a fixed-depth Transformer (injection: none) has no norm around a loop and no initial state to choose, "
                f"but got prelude_norm={self.prelude_norm}, state_init='{self.state_init}', "
                f"loop_norm={self.loop_norm}; leave them out, or set them to true, like-init and false"
            )
        return self

    @property
    def is_looped(self) -> bool:
        """False for the fixed-depth Transformer, which runs each block once."""
        return self.injection != FIXED_DEPTH

    @property
    def head_width(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.key_value_heads or self.heads

    @property
    def kv_width(self) -> int:
        """Channels of keys, of values and of value embeddings."""
        return self.kv_heads * self.head_width

    @property
    def layers(self) -> int:
        """Distinct layers: L_P + L_R + L_C."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def core(self) -> range:
        """Distinct layers (0-based) of the core."""
        return range(self.prelude_layers, self.prelude_layers + self.core_layers)

    @property
    def gate_channels(self) -> int:
        """Channels of a block's input that the gate of its value embedding reads."""
        return min(GATE_CHANNELS, self.width)

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the token table: the vocabulary rounded up to a multiple of 64."""
        return math.ceil(self.vocabulary / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def init_std(self) -> float:
        """Standard deviation of the truncated-normal initialisation, sqrt(2 / (5 d))."""
        return math.sqrt(2 / (5 * self.width))

    def has_value_embedding(self, layer: int) -> bool:
        """Return True for every other layer (0-based), counted from the last."""
        return (self.layers - 1 - layer) % 2 == 0


def _published_size(width: int, layers: int) -> ModelConfig:
    return ModelConfig(
        width=width, heads=width // 128, prelude_layers=layers, core_layers=layers, coda_layers=layers, context=2048,
        vocabulary=32_768,
    )  # fmt: skip


# The published sizes of Parcae: heads of 128, context 2048, vocabulary 32,768.
SIZES = {
    "140m": _published_size(768, 2),
    "370m": _published_size(1024, 4),
    "770m": _published_size(1280, 6),
    "1.3b": _published_size(1536, 8),
}
# The fields of a model that its size fixes.
SHAPE_FIELDS = frozenset({"width", "heads", "prelude_layers", "core_layers", "coda_layers", "context", "vocabulary"})


class DepthPhase(Config):
    """A part of training with a `mean` recurrence of its own, up to the fraction `until` of the steps."""

    until: Annotated[float, StrictNumber, Field(gt=0, lt=1)]
    mean: MeanRecurrence


class DepthConfig(Config):
    """Distribution of loop counts around a mean, and the loops that carry gradient.

    Args:
        backprop_depth: µ_bwd; the last min(T, µ_bwd) loops carry gradient. By default ceil(µ_rec / 2).
        sampling: `per-sequence` draws T for each sequence, `per-batch` one T for the whole global batch, `fixed` runs
            T = µ_rec.
        distribution: `poisson` draws T ~ Poisson(µ_rec) clamped to >= 1; `log-normal-poisson` draws T = 1 +
            Poisson(rate) with log(rate) ~ N(log(µ_rec) - σ²/2, σ), σ = .5 (Geiping et al. 2025, arXiv:2502.05171,
            section 3.3). Its mean is µ_rec + 1.
        curriculum_start: the mean at the first step, from which it grows to µ_rec; None: no curriculum.
        curriculum_fraction: fraction of the steps over which the mean grows. µ_bwd is constant.
        curriculum_shape: growth with the steps (`linear`) or with their square root (`sqrt`).
        phases: means of the first parts of training, such as 1 up to .7 of the steps; µ_rec follows.
    """

    backprop_depth: PositiveInt | None = None
    sampling: Literal["per-sequence", "per-batch", "fixed"] = "per-sequence"
    curriculum_start: MeanRecurrence | None = None
    curriculum_fraction: Fraction = 0.0
    # Left out at their defaults, so that runs keep their ids.
    distribution: Annotated[
        Literal["poisson", "log-normal-poisson"], Field(exclude_if=lambda value: value == "poisson")
    ] = "poisson"
    curriculum_shape: Annotated[Literal["linear", "sqrt"], Field(exclude_if=lambda value: value == "linear")] = "linear"
    phases: Annotated[tuple[DepthPhase, ...], Field(exclude_if=lambda value: not value)] = ()

    @property
    def is_constant(self) -> bool:
        """True where the mean is µ_rec from the first step to the last."""
        return self.curriculum_start is None and not self.phases

    @model_validator(mode="after")
    def _check_distribution(self) -> Self:
        if self.sampling == "fixed" and self.distribution != "poisson":
            raise ValueError(
                f"a distribution is for loops that are drawn, but got distribution='{self.distribution}' with "
                "sampling='fixed'; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if any(second <= first for first, second in pairwise(ends)):
            raise ValueError(f"phases must end one after the other, but got until={ends}; sort them")
        if self.phases and self.curriculum_start is not None:
            raise ValueError(
                f"depth must have phases or a curriculum, but got phases up to {ends} and curriculum_start="
                f"{self.curriculum_start}; keep one"
            )
        if self.sampling == "fixed" and not all(isinstance(phase.mean, int) for phase in self.phases):
            means = [phase.mean for phase in self.phases]
            raise ValueError(
                f"sampling: fixed runs whole loops, but the phases have the means {means}; round them, or draw loops"
            )
        return self

    @model_validator(mode="after")
    def _check_curriculum(self) -> Self:
        if self.curriculum_start is None and self.curriculum_shape != "linear":
            raise ValueError(
                f"curriculum_shape='{self.curriculum_shape}' is for a curriculum, but there is none; give "
                "curriculum_start and curriculum_fraction, or leave it out"
            )
        if (self.curriculum_start is None) != (self.curriculum_fraction == 0):
            raise ValueError(
                "a curriculum needs both its start and its fraction of the steps, but got curriculum_start="
                f"{self.curriculum_start}, curriculum_fraction={self.curriculum_fraction}; give both or neither"
            )
        return self


class RecurrenceConfig(DepthConfig):
    """Loop counts in training, with their mean µ_rec (`mean`)."""

    mean: MeanRecurrence = 4

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if self.sampling == "fixed" and not isinstance(self.mean, int):
            raise ValueError(
                f"sampling: fixed runs T = µ_rec whole loops, but µ_rec is {self.mean}; choose a whole number, or draw "
                "loops per-sequence or per-batch"
            )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.curriculum_start is not None and self.curriculum_start > self.mean:
            raise ValueError(
                f"a curriculum must grow, but curriculum_start={self.curriculum_start} is above the mean {self.mean}; "
                "lower it"
            )
        return self

    def mean_at(self, progress: float) -> float:
        """Return the mean once the fraction `progress` of the steps is done."""
        for phase in self.phases:
            if progress < phase.until:
                return float(phase.mean)
        if self.curriculum_start is None or progress >= self.curriculum_fraction:
            return float(self.mean)
        if self.curriculum_shape == "sqrt":
            grown = math.sqrt(progress / self.curriculum_fraction)
            return self.curriculum_start + (self.mean - self.curriculum_start) * grown
        return self.curriculum_start + (self.mean - self.curriculum_start) * progress / self.curriculum_fraction

    @property
    def gradient_loops(self) -> int:
        """Largest number of loops of one sequence that carry gradient, µ_bwd."""
        return self.backprop_depth or math.ceil(self.mean / 2)


# Settings that decide what a run reads of a prepared corpus, but not what the corpus holds.
READING = ("unique_tokens", "packing", "document_mask", "answers_only")


class AutomatonConfig(Config):
    """Lines of the synthetic text `automaton` (docs/synthetic.md): a digit k, a row of cells, and rows that follow.

    The first row is random. Each row after it is k steps of an elementary cellular automaton after the one before.

    Args:
        rule: the automaton's rule, in Wolfram's numbering. Beyond both ends of a row stand zeros.
        cells: cells of a row.
        rows: computed rows of a line.
        largest_k: k is one of 1 .. largest_k.
        exponent: a of the weights k^-a of each k; 0: all are as frequent.
        lines: lines drawn, those for validation among them. Fewer are the first of more.
        seed: seed of the lines.
    """

    rule: Annotated[StrictInt, Field(ge=0, le=255)] = 110
    cells: Annotated[StrictInt, Field(ge=1, le=64)] = 12
    rows: PositiveInt = 4
    largest_k: Digit = 8
    exponent: NonNegativeFloat = 0.0
    lines: Annotated[StrictInt, Field(ge=2)] = 500_000
    seed: NonNegativeInt = 0


class DepoConfig(Config):
    """Lines of the synthetic text `depo` (docs/synthetic.md): a cycle's edges, and queries for k-th successors.

    After task Depo of Allen-Zhu, 'Physics of language models', part 4.1.

    Args:
        largest_n: N of the n = 3 .. N nodes of a cycle, with weights 1 / (n + sqrt(N)).
        queries: queries of a line.
        largest_k: k is one of 1 .. largest_k.
        exponent: a of the weights k^-a of each k; 0: all are as frequent.
        lines: lines drawn, those for validation among them. Fewer are the first of more.
        seed: seed of the lines.
    """

    largest_n: Annotated[StrictInt, Field(ge=3, le=52)] = 8
    queries: PositiveInt = 8
    largest_k: Digit = 7
    exponent: NonNegativeFloat = 0.0
    lines: Annotated[StrictInt, Field(ge=2)] = 500_000
    seed: NonNegativeInt = 0


class DataConfig(Config):
    """Training text and its tokens (docs/data.md).

    Args:
        corpus: `stdlib` (the Python standard library's source files), a text file or a folder of text files, a parquet
            file, a folder or glob of them, or OWNER/NAME of a data set on Hugging Face. An existing path comes first.
            `automaton` and `depo` are synthetic texts.
        automaton: the lines of the corpus `automaton`.
        depo: the lines of the corpus `depo`.
        suffixes: suffixes of the files that are read from a folder of text.
        column: the parquet column that holds the text.
        files: glob of the parquet files within the folder or data set; `*` also matches `/`. None: all of them.
        revision: branch, tag or commit of the data set on Hugging Face; None: `main`.
        validation_files: glob of the parquet files, of a folder or data set, that are held out whole; the others of
            `files` are trained on. None: a fraction of all is held out.
        validation_fraction: fraction held out: of the bytes, in whole files (text), or of the rows (parquet).
        max_tokens: reading stops at the end of the document with which the training tokens reach this; None: never.
        unique_tokens: the run sees only the first so many tokens of the training split, again and again where it trains
            on more; None: all of them. The corpus and its validation split are the same for any number.
        tokenizer: `bytes`; `bpe`, trained on this corpus's training split; a tokenizer.json; or OWNER/NAME of a
            tokenizer on Hugging Face. All but `bytes` must be byte-level.
        tokenizer_vocabulary: token ids of a tokenizer that is trained, including the separator.
        tokenizer_sample_bytes: bytes from the start of the training split that it is trained on.
        separator: the token that ends each document; byte 0 with `bytes`.
        packing: the rows of a batch. `contiguous` cuts the text, one document after the other, into windows; `best-fit`
            puts documents into rows that begin with one, pads nothing and crops what doesn't fit.
        document_mask: attention doesn't cross documents.
        answers_only: of a synthetic text, predict in training and validation only the tokens that follow from those
            before them, its answers; the others are read. Losses are then in nats per answer token.
    """

    corpus: NonEmptyText = "stdlib"
    automaton: AutomatonConfig = Field(default=AutomatonConfig(), exclude_if=lambda value: value == AutomatonConfig())
    depo: DepoConfig = Field(default=DepoConfig(), exclude_if=lambda value: value == DepoConfig())
    suffixes: tuple[str, ...] = (".py", ".txt", ".md", ".rst")
    column: NonEmptyText = "text"
    files: NonEmptyText | None = None
    revision: NonEmptyText | None = None
    validation_files: NonEmptyText | None = Field(default=None, exclude_if=lambda value: value is None)
    validation_fraction: Annotated[float, StrictNumber, Field(gt=0, lt=1)] = 0.05
    max_tokens: PositiveInt | None = None
    unique_tokens: PositiveInt | None = None
    tokenizer: NonEmptyText = "bytes"
    tokenizer_vocabulary: Annotated[StrictInt, Field(ge=BYTE_VOCABULARY + 1)] = 32_768
    tokenizer_sample_bytes: PositiveInt = 200_000_000
    separator: NonEmptyText = "<|endoftext|>"
    packing: Literal["contiguous", "best-fit"] = Field(
        default="contiguous", exclude_if=lambda value: value == "contiguous"
    )
    document_mask: bool = Field(default=False, exclude_if=lambda value: not value)
    answers_only: bool = Field(default=False, exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _check_synthetic(self) -> Self:
        kind = (
            f"the synthetic text '{self.corpus}'" if self.is_synthetic else f"'{self.corpus}', which isn't synthetic,"
        )
        self.refuse(kind, *(name for name in SYNTHETIC_TEXTS if name != self.corpus))
        if self.is_synthetic:
            self.refuse(kind, "suffixes", "column", "files", "revision", "validation_files")
            if self.tokenizer != "bytes":
                raise ValueError(
                    f"the tokens of a synthetic text are its bytes, but got corpus='{self.corpus}' and tokenizer="
                    f"'{self.tokenizer}'; leave the tokenizer out"
                )
        return self

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if self.answers_only and not self.is_synthetic:
            raise ValueError(
                f"data.answers_only needs a text with answers, {' or '.join(SYNTHETIC_TEXTS)}, but got corpus="
                f"'{self.corpus}', of which no token is known to follow from those before it; set it to false"
            )
        if self.answers_only and self.packing != "best-fit":
            raise ValueError(
                "data.answers_only needs rows that begin with a line, but got packing="
                f"'{self.packing}', which cuts the text anywhere; set data.packing to best-fit"
            )
        return self

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        if self.corpus == "stdlib":
            self.refuse("the standard library", "suffixes", "column", "files", "revision", "validation_files")
        if self.validation_files is not None:
            self.refuse("a split into files (data.validation_files)", "validation_fraction")
        if self.tokenizer == "bytes":
            self.refuse("tokenizer 'bytes'", "tokenizer_vocabulary", "tokenizer_sample_bytes", "separator")
        elif self.tokenizer != "bpe":
            self.refuse("a tokenizer that is not trained", "tokenizer_vocabulary", "tokenizer_sample_bytes")
        return self

    @property
    def whole(self) -> "DataConfig":
        """The same corpus with all of its training text, as any run may read it."""
        read = {name: type(self).model_fields[name].default for name in READING if self.is_set(name)}
        return self.model_copy(update=read) if read else self

    @property
    def reading(self) -> dict[str, Any]:
        """The settings, other than defaults, that decide what a run reads of a prepared corpus."""
        return {name: getattr(self, name) for name in READING if self.is_set(name)}

    @property
    def is_synthetic(self) -> bool:
        """True if the text is made by isoloop."""
        return self.corpus in SYNTHETIC_TEXTS

    @property
    def needs_documents(self) -> bool:
        """True if a run must know where documents begin."""
        return self.packing == "best-fit" or self.document_mask

    def is_set(self, name: str) -> bool:
        """Return whether a field differs from its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def refuse(self, kind: str, *names: str) -> None:
        """Raise ValueError if one of the fields `names`, which `kind` has no use for, differs from its default."""
        for name in names:
            if self.is_set(name):
                raise ValueError(
                    f"an argument must have a use, but {kind} has none for data.{name}={getattr(self, name)!r}; "
                    "leave it out"
                )


class OptimizerConfig(Config):
    """Muon for the matrices of the blocks, AdamW for everything else.

    Args:
        muon: the variant of Muon: `torch`, that of torch.optim; or `released`, that of Parcae's release (Polar Express,
            NorMuon's variance, cautious weight decay).
        muon_momentum: momentum of Muon. `released` starts at .85 and rises linearly to this over the first 300 steps.
        divergence_steps: number of steps in a row whose loss or gradient norm isn't finite after which the run has
            diverged. Such steps are skipped: the weights stay. None: 1 with `torch`, so that the first one ends the
            run, and 10 with `released`, whose published code skips any number.
        muon_weight_decay_schedule: `run` lets Muon's weight decay fall linearly to 0 over the whole run, as published;
            `rate` lets it fall as the learning rate does, so that no step before that depends on the run's length.
    """

    learning_rate: PositiveFloat = 8e-3
    # Left out where they aren't set, so that runs keep their ids.
    muon: Annotated[Literal["torch", "released"], Field(exclude_if=lambda value: value == "torch")] = "torch"
    divergence_steps: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)
    muon_learning_rate: PositiveFloat | None = None
    muon_momentum: Momentum = 0.95
    muon_weight_decay: NonNegativeFloat = 0.2
    muon_weight_decay_schedule: Annotated[Literal["run", "rate"], Field(exclude_if=lambda value: value == "run")] = (
        "run"
    )
    adam_betas: tuple[Momentum, Momentum] = (0.8, 0.95)
    adam_eps: PositiveFloat = 1e-10
    gradient_clip: PositiveFloat = 1.0

    @property
    def matrix_learning_rate(self) -> float:
        """Peak learning rate of Muon; AdamW's unless it is set."""
        return self.muon_learning_rate or self.learning_rate

    @property
    def skips_to_divergence(self) -> int:
        """Skipped steps in a row with which the run has diverged."""
        return self.divergence_steps or (_RELEASED_DIVERGENCE_STEPS if self.muon == "released" else 1)

    def momentum_at(self, step: int) -> float:
        """Return Muon's momentum at `step` (0-based)."""
        if self.muon == "torch" or step >= _MOMENTUM_STEPS:
            return self.muon_momentum
        start = min(_FIRST_MOMENTUM, self.muon_momentum)
        return start + (self.muon_momentum - start) * step / _MOMENTUM_STEPS


class ScheduleConfig(Config):
    """Learning rate without warm-up: constant, then linear to 0 over the last `decay_fraction` of the steps."""

    decay_fraction: Fraction = 0.5

    def rate_factor(self, step: int, steps: int) -> float:
        """Return the fraction of the peak learning rate at `step` (0-based) of a run of `steps` steps."""
        decay_steps = self.decay_fraction * steps
        return min(1.0, (steps - step) / decay_steps) if decay_steps else 1.0


class EvaluationConfig(Config):
    """Validation on `sequences` fixed sequences, at T = µ_rec and at each T of `recurrences`.

    Args:
        during_training: evaluations at T = µ_rec before the last step, evenly spaced. The result has the lowest of
            their losses and the last beside the last. None: 15 if the run sees text again or `keep_best`, else 0.
        keep_best: keep the weights of the step with the lowest loss, too, if it isn't the last.
        documents: after the last step, also evaluate so many documents, the first of the validation split, each by
            itself: the published perplexity is that of 1,000. None: no such evaluation.
    """

    sequences: PositiveInt = 256
    recurrences: tuple[Recurrence, ...] = (1, 2, 4, 8)
    # At their defaults these don't enter a run's identity, which older versions computed without them.
    during_training: NonNegativeInt | None = Field(default=None, exclude_if=lambda value: value is None)
    keep_best: bool = Field(default=False, exclude_if=lambda value: not value)
    documents: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _check_keep_best(self) -> Self:
        if self.keep_best and self.during_training == 0:
            raise ValueError(
                "evaluation.keep_best requires evaluations during training, but got during_training=0; raise it or "
                "leave it out"
            )
        return self

    def evaluations(self, *, sees_text_again: bool) -> int:
        """Return the number of evaluations before the last step."""
        if self.during_training is not None:
            return self.during_training
        return BEST_LOSS_EVALUATIONS if sees_text_again or self.keep_best else 0


def check_fixed_depth(
    model: ModelConfig, means: tuple[float, ...], depth: DepthConfig, evaluation: EvaluationConfig
) -> None:
    """Raise ValueError if `model` is the fixed-depth Transformer and the other arguments ask for loops."""
    if model.is_looped:
        return
    if depth.backprop_depth is not None:
        raise ValueError(
            "a fixed-depth Transformer (injection: none) has no loops to carry gradient, but got backprop_depth="
            f"{depth.backprop_depth}; leave it out"
        )
    if depth.phases:
        raise ValueError(
            "a fixed-depth Transformer (injection: none) runs each block once from the first step to the last, but got "
            f"phases={[phase.model_dump() for phase in depth.phases]}; leave them out"
        )
    if (set(means), depth.sampling, set(evaluation.recurrences)) != ({1}, "fixed", {1}):
        raise ValueError(
            "a fixed-depth Transformer (injection: none) runs each block once, so its mean recurrence must be 1, its "
            f"sampling 'fixed' and evaluation.recurrences [1], but got {list(means)}, '{depth.sampling}' and "
            f"{list(evaluation.recurrences)}; change these or choose an injection"
        )


@lru_cache(maxsize=4096, typed=True)  # the many runs of a sweep share nearly all values
def _canonical_json(value: Config | str | int) -> str:
    content = value.model_dump(mode="json") if isinstance(value, Config) else value
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


class RunSpec(Config):
    """Everything that determines one run's result on a given kind of machine.

    Args:
        data_fingerprint: content hash of the prepared corpus.
        initialisation: of the weights: `paper`, as the paper's text has it, or `released`, as its code does.
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
    initialisation: Initialisation = "paper"
    batch: PositiveInt = 32
    steps: PositiveInt
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_fixed_depth(self) -> Self:
        check_fixed_depth(self.model, (self.recurrence.mean,), self.recurrence, self.evaluation)
        return self

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if self.data.answers_only and self.evaluation.documents is not None:
            raise ValueError(
                "evaluation.documents predicts every token of a document, but with data.answers_only a model learns "
                f"only some, and got documents={self.evaluation.documents}; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.tokens > LARGEST_INTEGER:
            raise ValueError(
                f"a run must have at most {LARGEST_INTEGER} (2^63 - 1) tokens, but {self.steps} steps of "
                f"{self.tokens_per_step} tokens are {self.tokens:.3g}; lower the steps, the batch or the context"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimizer step."""
        return self.batch * self.model.context

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run, D."""
        return self.tokens_per_step * self.steps

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits of a hash of the spec.

        Of the data only the corpus's fingerprint counts, and what of it is read and how, not its path.
        """
        left_out = ("data", "initialisation") if self.initialisation == "paper" else ("data",)
        parts = [f'"{name}":{_canonical_json(value)}' for name, value in sorted(self) if name not in left_out]
        parts += [f'"{name}":{json.dumps(value)}' for name, value in self.data.reading.items()]
        canonical = "{" + ",".join(parts) + "}"
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class ExecutionSettings(Config):
    """Settings of a run's execution on any device. They don't enter the run's identity.

    On the CPU the same values give the same losses to the bit; other values give the same up to rounding.

    Args:
        micro_batch: largest number of sequences in one forward and backward pass of one process; gradients add up to
            those of the whole batch. None: the process's whole share at once.
        activation_checkpointing: keep only the input of each loop and compute the loop again in the backward pass.
        compile: run the blocks through torch.compile.
        tf32: on a GPU, round the operands of float32 matrix products to TensorFloat-32 (11 bits), which its matrix
            units take.
        checkpoint_seconds: time between two checkpoints; None: 30 s, or where writing one takes longer than .9 s, as
            long as writing takes 3% of the time.
        keep_checkpoints: number of checkpoints to keep.
        validations: number of evaluations at T = µ_rec during training, evenly spaced, besides the one at the end; the
            journal records them as `validation_loss`.
        peak_flops: FLOPs per second of one process to which utilisation refers; None: the rate of a matrix product
            measured at the start.
    """

    micro_batch: PositiveInt | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    tf32: bool = False
    checkpoint_seconds: PositiveFloat | None = None
    keep_checkpoints: PositiveInt = 2
    validations: NonNegativeInt = 0
    peak_flops: PositiveFloat | None = None


class ExecutionConfig(ExecutionSettings):
    """Execution of a run by one process: on a torch `device`, with `cpu_threads` for each operation on the CPU."""

    device: str = "cpu"
    cpu_threads: PositiveInt = 1

    @model_validator(mode="after")
    def _check_tf32(self) -> Self:
        if self.tf32 and self.device.startswith("cpu"):
            raise ValueError(f"tf32 applies to GPUs only, but got tf32=true and device={self.device}; leave it out")
        return self
