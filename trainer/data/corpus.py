"""A corpus, tokenised once and shared: found again by what was asked for, named by what its tokens are.

    <cache>/<fingerprint>/   corpus.json  train-00000.bin ...  validation-00000.bin ...  token-bytes.npy  tokenizer.json
                             part-00000.json ...
    <cache>/requests/<key>/  prepared.json (the fingerprint)   lock   building/ (while it is)

The fingerprint is a hash of the tokens of each split and of what they mean; it enters a run's identity. The key is a
hash of the configuration and of the files' content (text) or names, sizes and times (parquet): it only saves work.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.shards import SPLITS, Shard, Tokens, build_part, read_part
from isoloop.trainer.data.sources import CorpusProgress, Document, Part, Split, no_progress, open_source
from isoloop.trainer.data.tokenizer import Tokenizer, make_tokenizer, request_tokenizer
from isoloop.trainer.files import open_atomically, owner_in_turn, write_atomically

# Part of every key: raised when the same request would give other tokens or other files.
_FORMAT = 1
_FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a prepared corpus holds. Bytes are of text, one per separator among them."""

    name: str
    fingerprint: str
    tokenizer: str
    vocabulary: int
    train_documents: int
    validation_documents: int
    train_tokens: int
    validation_tokens: int
    train_bytes: int
    validation_bytes: int


class Corpus:
    """A prepared corpus: `train` and `validation` are its tokens, `token_bytes` the bytes of each id, [vocabulary].

    Raises:
        ValueError: a file of it is missing or torn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "corpus.json").read_text())
        shards = content.pop("shards")
        dtype = np.dtype(content.pop("dtype"))
        self.facts = CorpusFacts(**content)
        self.train = Tokens(folder, dtype, [Shard(**shard) for shard in shards["train"]])
        self.validation = Tokens(folder, dtype, [Shard(**shard) for shard in shards["validation"]])

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each token id, shape [vocabulary]; the separator counts as one."""
        return np.load(self.folder / "token-bytes.npy")

    def check(self, context: int, vocabulary: int) -> None:
        """Refuse a model that can't read this corpus.

        Raises:
            ValueError: `vocabulary` is under the corpus's, or a split is shorter than `context` + 1 tokens.
        """
        facts = self.facts
        if vocabulary < facts.vocabulary:
            raise ValueError(
                f"model.vocabulary must hold every token, and the tokenizer of '{facts.name}', {facts.tokenizer}, has "
                f"{facts.vocabulary}, but got {vocabulary}; set model.vocabulary={facts.vocabulary}"
            )
        for split, tokens in (("training", self.train), ("validation", self.validation)):
            if tokens.count_windows(context) < 1:
                raise ValueError(
                    f"the {split} split must hold at least context + 1 = {context + 1} tokens, but that of the corpus "
                    f"'{facts.name}' has {len(tokens)}; use more text, a shorter context or another "
                    "validation_fraction"
                )


def prepare_corpus(config: DataConfig, cache: Path, progress: CorpusProgress = no_progress) -> Corpus:
    """Open the corpus that `config` names; tokenise it first where `cache` doesn't hold it.

    Processes that ask for the same at once build it once: one works, the others wait for it. A build that was stopped
    goes on with the part that it was at.

    Args:
        config: which text, which tokens.
        cache: the folder of prepared corpora.
        progress: told (what, done, total) in bytes of input; total 0 is not known.

    Raises:
        ValueError: no such corpus or tokenizer, no text in it, too little to hold anything out, or text that can't be
            read or tokenised.
    """
    request = CorpusRequest(config, cache, progress)
    return request.find() or request.build(progress)


class CorpusRequest:
    """What a configuration asks for, as it is on disk (or on Hugging Face) now.

    Args:
        config, cache, progress: as for `prepare_corpus`; text files are read here once, for their hash.

    Raises:
        ValueError: no such corpus or tokenizer, or no text in it.
    """

    def __init__(self, config: DataConfig, cache: Path, progress: CorpusProgress = no_progress) -> None:
        self._config, self._cache = config, cache
        self._tokenizer = request_tokenizer(config)
        self._source = open_source(config, progress)
        asked = [
            _FORMAT,
            self._source.identity,
            self._tokenizer.identity,
            config.column,
            config.validation_fraction,
            config.max_tokens,
        ]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:_FINGERPRINT_DIGITS]
        self.folder = cache / "requests" / key

    @property
    def _answer(self) -> Path:
        return self.folder / "prepared.json"

    def find(self) -> Corpus | None:
        """The prepared corpus, if there is one; no text and no token is read."""
        if not self._answer.exists():
            return None
        folder = self._cache / json.loads(self._answer.read_text())["fingerprint"]
        return Corpus(folder) if (folder / "corpus.json").exists() else None

    def build(self, progress: CorpusProgress = no_progress) -> Corpus:
        """Tokenise, unless another process has done so by the time that it is this one's turn.

        Raises:
            ValueError: see `prepare_corpus`.
        """
        with owner_in_turn(
            self.folder, waiting=lambda: progress("another process prepares this corpus; waiting", 0, 0)
        ):
            found = self.find()
            if found is not None:
                return found
            building = self.folder / "building"
            building.mkdir(exist_ok=True)
            parts = self._source.list_parts()
            tokenizer = self._make_tokenizer(building, parts, progress)
            shards = _build_parts(parts, tokenizer, building, self._config.max_tokens, progress)
            folder = self._cache / self._finish(building, tokenizer, shards)
            # The answer counts from when the folder is there, so nothing is lost whenever this ends.
            write_atomically(self._answer, json.dumps({"fingerprint": folder.name, "corpus": self._source.name}))
            _move(building, folder)
            return Corpus(folder)

    def _make_tokenizer(self, building: Path, parts: Sequence[Part], progress: CorpusProgress) -> Tokenizer:
        """The tokenizer; one that was trained before a stop is read back."""
        stored = building / "tokenizer.json"
        if stored.exists():
            content: str | None = stored.read_text(encoding="utf-8")
        else:
            content = self._tokenizer.content(_watched(parts, progress, self._config.tokenizer_sample_bytes))
            if content is not None:
                write_atomically(stored, content)
        return make_tokenizer(self._config.tokenizer, content, self._config.separator)

    def _finish(self, building: Path, tokenizer: Tokenizer, shards: dict[Split, list[Shard]]) -> str:
        """Write what the corpus holds; its fingerprint."""
        documents, tokens, text = (
            {split: sum(getattr(shard, name) for shard in shards[split]) for split in SPLITS}
            for name in ("documents", "tokens", "bytes")
        )
        if not (documents["train"] and documents["validation"]):
            raise ValueError(
                "training and validation must have a document each, but of the corpus "
                f"'{self._source.name}' {documents['train']} go to training and {documents['validation']} to "
                f"validation; use more text, another validation_fraction than {self._config.validation_fraction}"
                + (f", or a max_tokens above {limit}" if (limit := self._config.max_tokens) else "")
            )
        said: dict[str, Any] = {split: [s.digest for s in shards[split] if s.tokens] for split in SPLITS}
        canonical = json.dumps({"tokenizer": tokenizer.digest, **said}, sort_keys=True)
        facts = CorpusFacts(
            name=self._source.name,
            fingerprint=hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_DIGITS],
            tokenizer=tokenizer.name,
            vocabulary=tokenizer.vocabulary,
            **{f"{s}_documents": documents[s] for s in SPLITS},
            **{f"{s}_tokens": tokens[s] for s in SPLITS},
            **{f"{s}_bytes": text[s] for s in SPLITS},
        )
        with open_atomically(building / "token-bytes.npy") as file:
            np.save(file, tokenizer.token_bytes)
        listed = {split: [asdict(shard) for shard in shards[split]] for split in SPLITS}
        content = {**asdict(facts), "dtype": tokenizer.dtype.str, "shards": listed}
        write_atomically(building / "corpus.json", json.dumps(content, indent=1))
        return facts.fingerprint


def _build_parts(
    parts: Sequence[Part], tokenizer: Tokenizer, folder: Path, max_tokens: int | None, progress: CorpusProgress
) -> dict[Split, list[Shard]]:
    """Tokenise part after part until all are done or `max_tokens` training tokens are reached."""
    whole = sum(part.size for part in parts)
    done = tokens = 0
    shards: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
    for number, part in enumerate(parts):
        if max_tokens is not None and tokens >= max_tokens:
            break

        def tell(
            read: int, made: int, name: str = part.name, done_before: int = done, tokens_before: int = tokens
        ) -> None:
            at = done_before + read
            progress(f"tokenising {name}", at, _expected(at, whole, tokens_before + made, max_tokens))

        tell(0, 0)
        built = read_part(folder, number)
        if built is None:
            left = None if max_tokens is None else max_tokens - tokens
            built = build_part(part, number, tokenizer, folder, max_train_tokens=left, progress=tell)
        for split in SPLITS:
            shards[split].append(built[split])
        tokens += built["train"].tokens
        done += part.size
    progress("tokenised", done, done)
    return shards


def _watched(parts: Sequence[Part], progress: CorpusProgress, sample_bytes: int) -> Iterator[Document]:
    """The documents of all parts, told as they are read by the training of a tokenizer."""
    whole, done, text = sum(part.size for part in parts), 0, 0
    for part in parts:
        for document in part.read():
            if document.split == "train":
                text += len(document.text)
                at = done + document.position
                progress("training the tokenizer", at, _expected(at, whole, text, sample_bytes))
            yield document
        done += part.size


def _expected(done: int, whole: int, got: int, wanted: int | None) -> int:
    """Bytes of input that will have been read when `wanted` is got, if the rest gives what the `done` gave."""
    if wanted is None or not got:
        return whole
    return min(whole, max(done * wanted // got, done))


def _move(building: Path, folder: Path) -> None:
    """Put what was built in its place, unless the same tokens lie there already: then that stays, and this goes."""
    try:
        os.replace(building, folder)
    except OSError as error:
        if not (folder / "corpus.json").exists():
            raise ValueError(
                f"a prepared corpus must be whole, but {folder} lacks its corpus.json; delete that folder and give the "
                "same command again: what was tokenised is kept"
            ) from error
        shutil.rmtree(building)
