"""Models of Transformers as readers, to compare with: any causal language model that `AutoModelForCausalLM` loads.

Nothing is shared between the options of a question here: each is read with its whole prompt.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloop.trainer import hub
from isoloop.trainer.data.sources import Document
from isoloop.trainer.data.tokenizer import Tokenizer
from isoloop.trainer.model.exported import MODEL_TYPE
from isoloop.trainer.quality.suites.evaluation import Subject, weights_digest
from isoloop.trainer.quality.suites.reader import Precision, Reader
from isoloop.trainer.quality.suites.result import Identity

DEFAULT_CONTEXT = 2048
# Logits that a pass holds: those of each token of each prompt.
LOGITS_OF_A_PASS = {"cpu": 2**27, "cuda": 2**30}


class TransformersTokenizer(Tokenizer):
    """A tokenizer of Transformers; its separator is the token that begins a text (BOS), or else the one that ends it.

    `token_bytes` is empty: the bytes of a token are unknown.

    Raises:
        ValueError: it has neither of these tokens.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name, self._tokenizer = name, tokenizer
        self.vocabulary = len(tokenizer)
        separator = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if separator is None:
            raise ValueError(
                f"a prompt begins with a token, but the tokenizer of '{name}' has no bos_token and no eos_token; set "
                "one in its tokenizer_config.json"
            )
        self.separator = int(separator)
        self.token_bytes = np.zeros(0, np.int64)
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        self.digest = hashlib.sha256(f"{vocabulary} {self.separator}".encode()).hexdigest()

    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """Encode documents, each followed by the separator, as `Tokenizer.encode` says."""
        texts = [document.text.decode(errors="replace") for document in documents]
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = [np.array([*ids, self.separator], np.int64) for ids in encoded]
        return np.concatenate(tokens), np.array([len(ids) for ids in tokens])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the text of ids as UTF-8; characters that they don't hold whole are replaced."""
        return str(self._tokenizer.decode([int(id_) for id_ in ids if id_ != self.separator])).encode()


class TransformersReader(Reader):
    """A model of Transformers, on the device on which it is. Its only T is 1: what loops it has, it runs by itself."""

    is_looped = False

    def __init__(self, model: Any, context: int, precision: Precision = "float32") -> None:
        self.model, self.context, self.precision = model.eval(), context, precision
        self.device = model.device

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def tokens_at_once(self) -> int:
        """Positions of one pass; all their logits are held."""
        return max(LOGITS_OF_A_PASS["cpu" if self.device.type == "cpu" else "cuda"] // self.vocabulary, 1)

    @torch.no_grad()
    def states(self, tokens: Tensor, recurrences: Sequence[int], seeds: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, logits)."""
        with self._autocast():
            logits = self.model(input_ids=tokens, use_cache=False).logits
        yield 1, logits

    def logits(self, states: Tensor) -> Tensor:
        """Return the states, which are logits already."""
        return states

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def is_transformers_model(source: str, revision: str | None = None) -> bool:
    """Return whether a folder or OWNER/NAME on Hugging Face is a model of Transformers, and not one of ours.

    Raises:
        HubError: Hugging Face can't be reached, or has no config.json of that name.
    """
    path = Path(source).expanduser()
    if not path.is_dir() and hub.is_repository(source):
        path = hub.fetch_file(source, "config.json", kind="model", revision=revision)
    else:
        path = path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict):
        return False
    return config.get("model_type") not in (None, MODEL_TYPE) and "_class_name" not in config


def load_transformers(
    source: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    context: int | None = None,
) -> Subject:
    """Load a model of Transformers and its tokenizer.

    Args:
        source: a folder, or OWNER/NAME on Hugging Face. Code that comes with a model is not run.
        revision: branch, tag or commit on Hugging Face.
        device: a torch device.
        precision: of the matrix products; the weights are float32.
        context: most tokens of a prompt; None: the model's, but at most 2,048, as the published models have.

    Raises:
        ValueError: Transformers isn't installed, or can't load the model; the model has fewer positions.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"'{source}' is a model of Transformers, which isn't installed; pip install 'isoloop[huggingface]'"
        ) from error
    is_folder = Path(source).expanduser().is_dir()
    name = Path(source).expanduser().resolve().name if is_folder else source
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=torch.float32)
        library_tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"Transformers must be able to load the model '{source}', but: {error}") from error
    longest = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    if context is not None and context > longest:
        raise ValueError(f"a prompt may have as many tokens as '{source}' has positions, {longest}, but got {context}")
    tokenizer = TransformersTokenizer(library_tokenizer, name)
    reader = TransformersReader(model.to(device), context or min(longest, DEFAULT_CONTEXT), precision)
    weights = weights_digest(model)
    identity = Identity(
        name=name if revision is None and not is_folder else f"{name}-{weights[:8]}",  # two may have one name
        weights=weights,
        tokenizer=tokenizer.digest[:16],
        context=reader.context,
        precision=precision,
    )
    return Subject(reader=reader, tokenizer=tokenizer, identity=identity)
