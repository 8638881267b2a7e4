"""Adapter of trained models for lm-evaluation-harness, as the model `isoloop`.

The harness finds a model once its module is imported. This module's own command does that, and passes everything on to
the command of the harness:

    python -m isoloop.trainer.quality.harness --model isoloop --model_args pretrained=RUN,recurrence=4 --tasks NAME
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import lm_eval.models  # noqa: F401  the harness registers its own models only if there is none yet
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from pydantic import ValidationError

from isoloop.trainer.evaluate import EVALUATION_BATCH, STATE_SEED
from isoloop.trainer.model.head import soft_capped
from isoloop.trainer.quality.generation import (
    GenerationConfig,
    Writer,
    check_recurrence,
    default_recurrence,
    recurrence_notes,
)
from isoloop.trainer.quality.trained_model import Weights, load_trained
from isoloop.trainer.rules import broken_rules
from isoloop.trainer.run.environment import usable_device

_LOG = logging.getLogger(__name__)
_DEFAULT_NEW_TOKENS = 256  # as the harness's own models
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
Scored = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request by its texts, if it has any, the tokens of its context and those of its continuation."""


@register_model("isoloop")
class IsoloopLM(TemplateLM):
    """A trained model for lm-evaluation-harness.

    Args:
        pretrained: a run's folder, or whatever `load_trained` takes.
        recurrence: T; by default that of an exported model, or else µ_rec, rounded.
        weights: as for `load_trained`, like `revision`, `tokenizer` and `own_classes`.
        revision: see there.
        tokenizer: see there.
        own_classes: see there.
        add_bos_token: begin every text with the token that ends a document. An empty context is that token anyway.
        precision: `bfloat16` runs matrix products under autocast.
        cache: of generation; see `GenerationConfig`.
        batch_size: texts at once; `auto` is 64.
        max_batch_size: not used; the harness passes it.
        device: a torch device; by default the GPU, if there is one.
        unknown: refused.

    Raises:
        ValueError: see `load_trained`; the model has no tokenizer; an argument isn't one of these, or has no such
            value.
    """

    def __init__(
        self,
        pretrained: str,
        recurrence: int | None = None,
        weights: Weights = "last",
        revision: str | None = None,
        tokenizer: str | None = None,
        own_classes: bool = False,
        add_bos_token: bool = False,
        precision: Literal["float32", "bfloat16"] = "float32",
        cache: Literal["full", "shared", "none"] = "full",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _check_arguments(unknown, precision, cache, batch_size)
        if recurrence is not None:
            check_recurrence(recurrence)
        self._device = torch.device(usable_device(device))
        self.trained = load_trained(
            pretrained, weights=weights, revision=revision, tokenizer=tokenizer, own_classes=own_classes
        )
        self.text_tokenizer = self.trained.require_tokenizer()
        self.recurrence = default_recurrence(self.trained) if recurrence is None else recurrence
        check_recurrence(self.recurrence, is_looped=self.trained.model.config.is_looped)
        for note in recurrence_notes(self.trained, self.recurrence):
            _LOG.warning(note)
        self.model = self.trained.model.to(self._device)
        self.add_bos_token, self.precision, self.cache = add_bos_token, precision, cache
        self.batch_size = EVALUATION_BATCH if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self.text_tokenizer.separator

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        return self.trained.model.config.context

    @property
    def tokenizer_name(self) -> str:
        """A name of the tokenizer for the harness's caches."""
        return f"isoloop-{self.text_tokenizer.digest[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode a text; a separator stands in front if `add_special_tokens` says so, or else `add_bos_token`."""
        begins = self.add_bos_token if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.text_tokenizer.encode_text(string).tolist()
        return [self.eot_token_id, *ids] if begins else ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, in windows of the context, its first token after a separator."""
        windows: list[Scored] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            tokens = self.tok_encode(text, add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings, the end of the document, or its number of tokens."""
        # A text that is asked for several times is drawn from another seed each time
        groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        times: Counter[tuple[str, str]] = Counter()
        for number, request in enumerate(requests):
            context, settings = request.args
            key = (context, repr(settings))
            groups[repr(settings), times[key]].append(number)
            times[key] += 1
        texts = [""] * len(requests)
        for (_, seed), numbers in groups.items():
            config, stops = self._generation(requests[numbers[0]].args[1], seed)
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                written = self._write([requests[number].args[0] for number in batch], config, stops)
                for number, text in zip(batch, written, strict=True):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _generation(self, settings: dict[str, Any], seed: int) -> tuple[GenerationConfig, list[str]]:
        """Return the settings of a task's generation, and its stop strings."""
        settings = dict(settings)
        stops = settings.pop("until", None) or []
        lengths = [value for name in _LENGTH_NAMES if (value := settings.pop(name, None)) is not None]
        temperature = settings.pop("temperature", None) or 0.0
        samples = settings.pop("do_sample", None)
        if samples is False:
            temperature = 0.0
        elif samples and not temperature:
            temperature = 1.0
        drawn = {name: settings.pop(name, None) for name in ("top_k", "top_p")}
        drawn["top_k"] = drawn["top_k"] or None  # 0 draws from all tokens
        if settings:
            raise ValueError(
                "a task's generation may set until, max_gen_toks, do_sample, temperature, top_k and top_p, but got "
                f"{', '.join(settings)}; export the model and use --model hf for others"
            )
        try:
            config = GenerationConfig(
                max_tokens=lengths[0] if lengths else _DEFAULT_NEW_TOKENS,
                recurrence=self.recurrence,
                temperature=temperature,
                seed=seed,
                cache=self.cache,
                **(drawn if temperature else {}),
            )
        except ValidationError as error:
            rules = broken_rules(error).replace("max_tokens", "max_gen_toks")
            raise ValueError(f"a task's generation breaks a rule: {rules}; correct generation_kwargs") from error
        return config, [stops] if isinstance(stops, str) else list(stops)

    def _write(self, contexts: Sequence[str], config: GenerationConfig, stops: Sequence[str]) -> list[str]:
        """Continue contexts, all at once, until each has a stop string or has ended by itself.

        As with the harness's own models, a context that leaves no room for the new tokens loses its beginning.
        """
        room = self.max_length - config.max_tokens
        prompts = [
            (self.tok_encode(context) or [self.eot_token_id])[-room if room > 0 else 0 :] for context in contexts
        ]
        writer = Writer(
            self.model,
            prompts,
            config,
            recurrence=self.recurrence,
            separator=self.eot_token_id,
            vocabulary=self.text_tokenizer.vocabulary,
        )
        ends, written = [stop.encode() for stop in stops if stop], [bytearray() for _ in contexts]
        stopped: set[int] = set()
        with self._autocast():
            for number, token in writer.write():
                written[number] += self.text_tokenizer.decode_bytes([token])
                if any(end in written[number] for end in ends):
                    stopped.add(number)
                if all(text.finish or i in stopped for i, text in enumerate(writer.texts)):
                    break
        texts = [text.decode("utf-8", "replace") for text in written]
        for stop in filter(None, stops):
            texts = [text.split(stop)[0] for text in texts]
        return texts

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Scored], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether each of its tokens is the most probable one.

        Of requests that are too long the model reads the last tokens. Inputs that several share are run once.
        """
        inputs: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation must fit into the context of {self.max_length} tokens, but one has "
                    f"{len(continuation)}; leave this task out, or use a model with a longer context"
                )
            inputs[tuple((context + continuation)[-(self.max_length + 1) : -1])].append(number)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        longest_first = sorted(inputs, key=len, reverse=True)
        for start in range(0, len(longest_first), self.batch_size):
            rows = longest_first[start : start + self.batch_size]
            for row, states in zip(rows, self._states(rows), strict=True):
                for number in inputs[row]:
                    results[number] = self._score(states[: len(row)], requests[number][2])
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _states(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the normed final states of rows of tokens, [rows, tokens, width], at T."""
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        h0 = self.model.initial_state([STATE_SEED], self.max_length)[:, : tokens.shape[1]].expand(len(rows), -1, -1)
        with self._autocast():
            ((_, states),) = self.model.final_states(tokens.to(self._device), [self.recurrence], h0)
        return states

    def _score(self, states: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
        """Return the log-likelihood of a continuation whose last token follows the last of `states`."""
        targets = torch.tensor(continuation, device=self._device)
        with self._autocast():
            logits = states[len(states) - len(targets) :] @ self.model.head_weight.T
        scores = soft_capped(logits, self.model.config.logit_soft_cap).float().log_softmax(-1)
        likelihood = scores.gather(1, targets[:, None]).sum().item()
        return likelihood, bool((scores.argmax(-1) == targets).all())

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def _check_arguments(unknown: dict[str, Any], precision: str, cache: str, batch_size: int | str) -> None:
    """Raise ValueError for an argument of the adapter that there isn't, or that has no such value."""
    if unknown:
        known = "pretrained, recurrence, weights, revision, tokenizer, own_classes, add_bos_token, precision and cache"
        raise ValueError(f"the arguments of the model isoloop are {known}, but got {', '.join(unknown)}; leave it out")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, but got '{precision}'; choose one of them")
    if cache not in ("full", "shared", "none"):
        raise ValueError(f"cache must be full, shared or none, but got '{cache}'; choose one of them")
    if not str(batch_size).startswith("auto") and not (str(batch_size).isdecimal() and int(batch_size) > 0):
        raise ValueError(f"batch_size must be a whole number from 1, or auto, but got {batch_size!r}; correct it")


def main() -> None:
    """Run the command of lm-evaluation-harness, which has `--model isoloop` now."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
