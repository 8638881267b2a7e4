"""Generation of text, token by token, with a cache of keys and values.

A model reads at most `context` tokens at once. Where a text grows beyond them, its last half context is read again,
from position 0, and the text goes on from there; what stands before is forgotten. h_0 of a position is the same for
every text, so that a text is the same alone, in a batch, with a cache and without one, up to rounding.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from isoloop.trainer.config import (
    LARGEST_RECURRENCE,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Recurrence,
    StrictNumber,
)
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.model.build import check_cache
from isoloop.trainer.model.cache import KeyValueCache
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.quality.trained_model import TrainedModel
from isoloop.trainer.recurrence import usual_recurrence
from isoloop.trainer.run.telemetry import free_memory

# Of the memory that is free, the share that a cache may take.
_SHARE_OF_MEMORY = 0.9
# Noted are a T whose loss is so many nats above the lowest one, and one so many times µ_rec if no loss is known.
_NOTABLE_LOSS, _FAR_BEYOND = 0.01, 2


class GenerationConfig(Config):
    """The way in which texts are continued.

    Args:
        max_tokens: new tokens of each text, at most.
        recurrence: T, loops for each token, at most 4,096; None: that of an exported model, or else µ_rec, rounded.
        temperature: the logits are divided by it; 0 always takes the most probable token.
        top_k: draw from the k most probable tokens only; None: from all.
        top_p: draw from the most probable tokens that together have this probability (Holtzman et al. 2020,
            arXiv:1904.09751), after `top_k`; None: from all.
        seed: of the draws. Sample number n of any prompt has the same random numbers.
        samples: texts for each prompt.
        cache: `full` keeps keys and values of every unrolled layer; `shared` one set for all loops of a core layer, T
            times less of these, which changes what later tokens see of earlier ones; `none` reads the whole text again
            for each token.
        exit_tolerance: end the loop of a token as soon as its state changes by less than this fraction, |h_{t+1} - h_t|
            / |h_{t+1}|, at the latest after T loops; the prompt's tokens run them all. None: always T loops.
        stop_at_separator: end a text where the model ends the document.
        begin_document: the separator of documents stands before the prompt, as it does in training.
    """

    max_tokens: PositiveInt = 200
    recurrence: Recurrence | None = None
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, StrictNumber, Field(gt=0, le=1)] | None = None
    seed: NonNegativeInt = 0
    samples: PositiveInt = 1
    cache: Literal["full", "shared", "none"] = "full"
    exit_tolerance: PositiveFloat | None = None
    stop_at_separator: bool = True
    begin_document: bool = True

    @model_validator(mode="after")
    def _check_greedy(self) -> Self:
        values = {"top-k": self.top_k, "top-p": self.top_p, "samples": None if self.samples == 1 else self.samples}
        given = [f"{name} = {value}" for name, value in values.items() if value is not None]
        if self.temperature == 0 and given:
            raise ValueError(
                "a temperature of 0 always takes the most probable token, so top-k, top-p and several samples have no "
                f"use, but got {', '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out, or raise the "
                "temperature"
            )
        return self

    @model_validator(mode="after")
    def _check_exit(self) -> Self:
        if self.exit_tolerance is not None and self.cache == "none":
            raise ValueError(
                f"early exit needs a cache, but got an exit tolerance of {self.exit_tolerance:g} and the cache 'none'; "
                "leave one of them out"
            )
        return self


@dataclass(kw_only=True)
class Text:
    """A text that is being written, in token ids.

    Attributes:
        ids: the prompt, with the separator if there is one, and what was written so far.
        prompt_tokens: tokens of the prompt.
        cut_tokens: the first of them that the model doesn't see, because the prompt is longer than the context.
        window_start: tokens before those that the model sees now.
        read_tokens: tokens that the model has read for it: the prompt, what was written, and what was read again.
        run_loops: loops that it has run for these, T or fewer for each.
        finish: None while it is being written; `length` after `max_tokens`; `separator` where the document ended.
    """

    ids: list[int]
    prompt_tokens: int
    cut_tokens: int
    window_start: int
    read_tokens: int = 0
    run_loops: int = 0
    finish: Literal["length", "separator"] | None = None

    @classmethod
    def of(cls, prompt: Sequence[int], context: int) -> "Text":
        """Return the text of a prompt, of which the model sees the last `context` tokens."""
        cut = max(0, len(prompt) - context)
        return cls(ids=list(prompt), prompt_tokens=len(prompt), cut_tokens=cut, window_start=cut)

    @property
    def tokens(self) -> list[int]:
        """What was written so far."""
        return self.ids[self.prompt_tokens :]

    @property
    def window(self) -> list[int]:
        """The tokens that the model sees."""
        return self.ids[self.window_start :]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
        prompt: the prompt.
        text: what was written; bytes that aren't UTF-8 are replaced.
        tokens: the same as token ids, without a separator at the end.
        finish: the reason of its end: `length`, `separator`, or `stopped` from outside.
        cut_tokens: first tokens of the prompt that the model didn't see.
        recurrence: T.
        mean_loops: mean loops per token that was read, below T with `exit_tolerance`. The prompt, and half a context
            that is read again, run all T.
    """

    prompt: str
    text: str
    tokens: list[int]
    finish: Literal["length", "separator", "stopped"]
    cut_tokens: int
    recurrence: int
    mean_loops: float

    @property
    def saved_loops(self) -> float:
        """Fraction of the loops of all tokens that were read which early exit saved."""
        return 1 - self.mean_loops / self.recurrence


def generate(
    trained: TrainedModel, prompts: str | Sequence[str], config: GenerationConfig | None = None
) -> list[Completion]:
    """Continue prompts, all in one batch; `config.samples` completions of each, one after the other.

    Raises:
        ValueError: the model has no tokenizer; a setting isn't possible with this model; there is no memory for the
            cache.
    """
    config, prompts = config or GenerationConfig(), [prompts] if isinstance(prompts, str) else list(prompts)
    writer = make_writer(trained, prompts, config)
    for _ in writer.write():
        pass
    return [
        completion_of(trained, prompts[number // config.samples], text, writer.recurrence)
        for number, text in enumerate(writer.texts)
    ]


def stream(trained: TrainedModel, prompt: str, config: GenerationConfig | None = None) -> Iterator[str]:
    """Return the pieces of a prompt's continuation, as they are written; joined, they are what `generate` returns.

    Raises:
        ValueError: as `generate` does; or there are several samples, which can't be streamed.
    """
    config = config or GenerationConfig()
    if config.samples > 1:
        raise ValueError(f"one text is streamed at a time, but got samples={config.samples}; use generate for several")
    return pieces(trained, make_writer(trained, [prompt], config))


def make_writer(trained: TrainedModel, prompts: Sequence[str], config: GenerationConfig) -> "Writer":
    """Return what continues the prompts of a trained model. Raises ValueError as `generate` does."""
    if not prompts:
        raise ValueError("there must be a prompt, but got none; give one, which may be empty")
    tokenizer = trained.require_tokenizer()
    begin = [tokenizer.separator] if config.begin_document else []
    encoded = [begin + tokenizer.encode_text(prompt).tolist() for prompt in prompts]
    if not all(encoded):
        raise ValueError(
            "a text must begin with a token, but a prompt is empty and isn't the beginning of a document; give a "
            "prompt, or set begin_document to true (leave out --continue-text)"
        )
    return Writer(
        trained.model,
        encoded,
        config,
        recurrence=config.recurrence or default_recurrence(trained),
        separator=tokenizer.separator,
        vocabulary=tokenizer.vocabulary,
    )


def pieces(trained: TrainedModel, writer: "Writer") -> Iterator[str]:
    """Write the only text of `writer`, and yield its pieces. A piece ends where a character does."""
    tokenizer, decoder = trained.require_tokenizer(), codecs.getincrementaldecoder("utf-8")("replace")
    for _, token in writer.write():
        if piece := decoder.decode(tokenizer.decode_bytes([token])):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def completion_of(trained: TrainedModel, prompt: str, text: Text, recurrence: int) -> Completion:
    """Return what was written of a text; one that was stopped has finish `stopped`."""
    return Completion(
        prompt=prompt,
        text=trained.require_tokenizer().decode_bytes(text.tokens).decode("utf-8", "replace"),
        tokens=text.tokens,
        finish=text.finish or "stopped",
        cut_tokens=text.cut_tokens,
        recurrence=recurrence,
        mean_loops=text.run_loops / text.read_tokens if text.read_tokens else float(recurrence),
    )


def default_recurrence(trained: TrainedModel) -> int:
    """Return the T that a model is used at: that of an exported model, or else µ_rec, rounded."""
    exported = trained.exported_recurrence if trained.model.config.is_looped else None
    return exported or usual_recurrence(trained.model.config, trained.recurrence)


def check_recurrence(recurrence: object, *, is_looped: bool = True) -> None:
    """Raise ValueError unless T is a whole number of loops that a model can run."""
    if type(recurrence) is not int or not 1 <= recurrence <= LARGEST_RECURRENCE:
        raise ValueError(
            f"recurrence (T) must be a whole number of loops from 1 to {LARGEST_RECURRENCE:,}, but got {recurrence!r}; "
            "give another one"
        )
    if recurrence > 1 and not is_looped:
        raise ValueError(
            f"a fixed-depth model has no loop, so recurrence must be 1, but got {recurrence}; leave it out"
        )


def recurrence_notes(trained: TrainedModel, recurrence: int) -> list[str]:
    """Return what the model's measured losses say of T, as sentences; none if there is nothing to say."""
    losses, mean = {t: loss for t, loss in trained.losses.items() if math.isfinite(loss)}, trained.recurrence.mean
    notes = []
    if recurrence in trained.losses.keys() - losses.keys():
        finite = f"; it was finite at T = {', '.join(map(str, sorted(losses)))}" if losses else ""
        notes.append(f"at T = {recurrence} the validation loss was not a finite number{finite}")
    elif losses:
        best = min(losses, key=lambda t: losses[t])
        lowest = f"the lowest loss was measured at T = {best}: {losses[best]:.4f} nats per token"
        if recurrence not in losses:
            nearest = min(losses, key=lambda t: abs(math.log(t / recurrence)))
            if recurrence > max(losses) or recurrence < min(losses):
                notes.append(
                    f"T = {recurrence} is outside what was measured, T = {min(losses)} to {max(losses)}; at T = "
                    f"{nearest} the validation loss was {losses[nearest]:.4f}, and {lowest}"
                )
        elif losses[recurrence] > losses[best] + _NOTABLE_LOSS:
            notes.append(f"at T = {recurrence} the validation loss was {losses[recurrence]:.4f}; {lowest}")
    elif recurrence > _FAR_BEYOND * mean:
        notes.append(
            f"T = {recurrence} is far beyond the loops in training, {mean:g} on average, and no loss was measured there"
        )
    return notes


class Writer:
    """The writing of texts, all of them in one batch; `write` does it.

    Args:
        model: on any device.
        prompts: token ids of each prompt, [tokens], at least one.
        config: the way in which they are continued.
        recurrence: T.
        separator: the token that ends a document; None: there is none.
        vocabulary: ids at and above it are never written; None: those of the model.

    Raises:
        ValueError: a setting isn't possible with this model, or there is no memory for the cache.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        recurrence: int,
        separator: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        assert all(map(len, prompts)), "the first token is predicted from another one"
        check_recurrence(recurrence, is_looped=model.config.is_looped)
        if not model.config.is_looped and config.exit_tolerance is not None:
            raise ValueError(
                "a fixed-depth model has no loop to leave early, but got an exit tolerance of "
                f"{config.exit_tolerance:g}; leave it out"
            )
        self.model, self.config, self.recurrence, self.separator = model, config, recurrence, separator
        self.vocabulary = min(vocabulary or model.config.vocabulary, model.config.vocabulary)
        self.context = model.config.context
        self.texts = [Text.of(prompt, self.context) for prompt in prompts for _ in range(config.samples)]
        self._draws = [np.random.default_rng([config.seed, i % config.samples]) for i in range(len(self.texts))]
        self._h0 = model.initial_state([STATE_SEED], self.context)[0]
        self._cache = None if config.cache == "none" else self._make_cache()
        self._has_begun = False

    def write(self) -> Iterator[tuple[int, int]]:
        """Return (number of the text, token) for each token of all texts, as it is written.

        A separator at the end of a document isn't among them.

        Raises:
            ValueError: the texts were written before.
        """
        if self._has_begun:
            raise ValueError("texts are written once, but write was called before; make another Writer")
        self._has_begun = True
        return self._written_tokens()

    def _written_tokens(self) -> Iterator[tuple[int, int]]:
        cache = self._cache
        logits = self._read_windows(range(len(self.texts)))
        while True:
            # Choose a token for each text that isn't finished
            running = [i for i, text in enumerate(self.texts) if text.finish is None]
            uniform = torch.tensor([self._draws[i].random() for i in running], dtype=torch.float64)
            chosen = choose_tokens(logits[running], uniform, self.config).tolist()
            for i, token in zip(running, chosen, strict=True):
                text = self.texts[i]
                if token == self.separator and self.config.stop_at_separator:
                    text.finish = "separator"
                    continue
                text.ids.append(token)
                if len(text.ids) - text.prompt_tokens == self.config.max_tokens:
                    text.finish = "length"
                yield i, token
            running = [i for i in running if self.texts[i].finish is None]
            if not running:
                return

            # Read these tokens: one each with a cache, and half a context where a text has outgrown it
            outgrown = [i for i in running if len(self.texts[i].ids) - self.texts[i].window_start > self.context]
            for i in outgrown:
                self.texts[i].window_start = len(self.texts[i].ids) - max(1, self.context // 2)
            if cache is None:
                logits = self._read_windows(running)
                continue
            for i in (i for i, text in enumerate(self.texts) if text.finish is not None or i in outgrown):
                cache.clear(i)  # the pass takes all rows, and a text that fills its context has no position left
            if len(outgrown) < len(running):
                logits = self._read_last_tokens([i for i in running if i not in outgrown])
            if outgrown:
                logits[outgrown] = self._read_windows(outgrown)[outgrown]

    @torch.no_grad()
    def _read_windows(self, numbers: Sequence[int]) -> Tensor:
        """Read the windows of some texts from position 0; return logits of all texts, zeros of others."""
        windows = [self.texts[i].window for i in numbers]
        longest = max(map(len, windows))
        tokens = torch.tensor([window + [0] * (longest - len(window)) for window in windows]).to(self._h0.device)
        h0 = self._h0[:longest].expand(len(windows), -1, -1)
        view = None
        if self._cache is not None:
            view = self._cache.view(longest, None if len(numbers) == len(self.texts) else numbers)
        ((_, states),) = self.model.final_states(tokens, [self.recurrence], h0, cache=view)
        lengths = torch.tensor([len(window) for window in windows])
        for i, window in zip(numbers, windows, strict=True):
            self._count(i, len(window), self.recurrence)
        if self._cache is not None:
            counts = torch.zeros(len(self.texts), dtype=torch.int64)
            counts[list(numbers)] = lengths
            self._cache.advance(counts)
        places = torch.stack([torch.arange(len(windows)), lengths - 1]).to(states.device)
        return self._of_all(numbers, states[places[0], places[1]])

    @torch.no_grad()
    def _read_last_tokens(self, numbers: Sequence[int]) -> Tensor:
        """Read the last token of some texts with the cache; see `_read_windows`."""
        assert self._cache is not None
        is_read = torch.zeros(len(self.texts), dtype=torch.int64)
        is_read[list(numbers)] = 1
        last = [text.ids[-1] if read else 0 for text, read in zip(self.texts, is_read.tolist(), strict=True)]
        tokens = torch.tensor(last)[:, None].to(self._h0.device)
        h0 = self._h0[self._cache.lengths.to(self._h0.device)][:, None]
        view, loops = self._cache.view(1), [self.recurrence] * len(last)
        if self.config.exit_tolerance is not None:
            assert isinstance(self.model, Parcae)
            tolerance = self.config.exit_tolerance
            states, ran = self.model.states_at_convergence(tokens, self.recurrence, h0, view, tolerance)
            loops = ran.tolist()
        else:
            ((_, states),) = self.model.final_states(tokens, [self.recurrence], h0, cache=view)
        self._cache.advance(is_read)
        for i in numbers:
            self._count(i, 1, loops[i])
        return self._of_all(range(len(last)), states[:, -1])

    def _count(self, number: int, tokens: int, loops: int) -> None:
        """Count tokens that were read of a text, with the loops of each."""
        self.texts[number].read_tokens += tokens
        self.texts[number].run_loops += tokens * loops

    def _of_all(self, numbers: Sequence[int], states: Tensor) -> Tensor:
        """Return logits, [texts, vocabulary] on the CPU, where `states` [numbers, width] are those of some texts."""
        logits = self.model.logits_of(states).float()[:, : self.vocabulary].cpu()
        everybody = logits.new_zeros(len(self.texts), self.vocabulary)
        everybody[list(numbers)] = logits
        return everybody

    def _make_cache(self) -> KeyValueCache:
        """Make the cache. Raises ValueError if a block can't use one, or it would not fit into memory."""
        check_cache(self.model)
        config, batch = self.model.config, len(self.texts)
        prompt = min(self.context, max(text.prompt_tokens for text in self.texts))
        tokens, shared = min(self.context, prompt + self.config.max_tokens), self.config.cache == "shared"

        def needed(recurrence: int, tokens: int, shared: bool) -> int:
            return KeyValueCache.bytes_needed(config, [recurrence], batch=batch, tokens=tokens, shared_loops=shared)

        need = needed(self.recurrence, tokens, shared)
        room = _SHARE_OF_MEMORY * free_memory(str(self._h0.device))
        if need > room:
            new_tokens, texts = int(tokens * room / need) - prompt, int(batch * room / need)
            options = [f"{new_tokens:,} new tokens fit (--max-tokens)"] if new_tokens > 0 else []
            options += [f"{texts:,} of the {batch:,} texts fit at a time"] if texts > 0 else []
            if config.is_looped and not shared and needed(self.recurrence, tokens, True) <= room:
                gigabytes = needed(self.recurrence, tokens, True) / 1e9
                options.append(f"the cache 'shared' (--cache shared) takes {gigabytes:.3g} GB")
            smaller = [t for t in range(1, self.recurrence) if needed(t, tokens, shared) <= room]
            options += [f"T = {smaller[-1]} fits (--recurrence)"] if smaller else []
            if self.config.exit_tolerance is None:
                options.append("the cache 'none' (--cache none) keeps nothing, and takes more time")
            raise ValueError(
                f"the cache must fit into the memory that is free, {room / 1e9:.3g} GB, but {batch} x {tokens:,} "
                f"tokens at T = {self.recurrence} take {need / 1e9:.3g} GB; "
                + ("; ".join(options) or "leave early exit out and set the cache 'none' (--cache none)")
            )
        return KeyValueCache(config, batch=batch, capacity=tokens, device=self._h0.device, shared_loops=shared)


def choose_tokens(logits: Tensor, uniform: Tensor, config: GenerationConfig) -> Tensor:
    """Choose a token for each text.

    Args:
        logits: [texts, vocabulary].
        uniform: random numbers in [0, 1), [texts].
        config: temperature, top_k and top_p.

    Returns:
        Token ids, [texts].
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    ordered = (ordered - ordered[:, :1]) / config.temperature  # the largest is 0, however small the temperature
    probability = ordered[:, : config.top_k].softmax(dim=-1)
    if config.top_p is not None:
        before = probability.cumsum(dim=-1) - probability
        probability = probability.masked_fill(before >= config.top_p, 0)
    cumulated = probability.cumsum(dim=-1)
    place = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(dim=-1, keepdim=True)
    return ids.gather(1, place).squeeze(1)
