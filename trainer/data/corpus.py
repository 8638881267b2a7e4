"""Prepared corpora: tokenised once, shared by all runs, and identified by their tokens.

    <cache>/<fingerprint>/   corpus.json  train-00000.bin ...  validation-00000.bin ...  token-bytes.npy  tokenizer.json
                             part-00000.json ...
    <cache>/requests/<key>/  prepared.json (the fingerprint)   lock   building/ (during a build)   building-by-size/

The fingerprint is a hash of the tokens of each split and of the bytes they stand for; it enters a run's identity. The
key is a hash of the configuration and of the files' content (text) or names, sizes and times (parquet). It only saves
work.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import Config, DataConfig
from isoloop.trainer.data.shards import SPLITS, Shard, Tokens, build_part, read_part
from isoloop.trainer.data.sources import (
    SHARE_TOLERANCE,
    CorpusProgress,
    Document,
    Part,
    Split,
    no_progress,
    open_source,
    split_rows_by_size,
)
from isoloop.trainer.data.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    SmallSampleError,
    Tokenizer,
    make_tokenizer,
    request_tokenizer,
    token_text,
)
from isoloop.trainer.files import open_atomically, owner_in_turn, write_atomically

# Part of every key: raised when the same request would give other tokens or other files.
_FORMAT = 1
_FINGERPRINT_DIGITS = 12


class CorpusFacts(Config):
    """Content of a prepared corpus, as in its corpus.json. Bytes are of text, including one per separator."""

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
    dtype: str
    shards: dict[Split, list[Shard]]

    @property
    def validation_share(self) -> float:
        """Held-out bytes as a fraction of all bytes."""
        return self.validation_bytes / (self.train_bytes + self.validation_bytes)


class Corpus:
    """A prepared corpus with the tokens of its splits, `train` and `validation`.

    `notes` are sentences about its text and its split; only a `CorpusRequest` knows them.

    Raises:
        ValueError: one of its files is missing or torn.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = CorpusFacts.model_validate_json((folder / "corpus.json").read_bytes())
        dtype = np.dtype(self.facts.dtype)
        self.train = Tokens(folder, dtype, self.facts.shards["train"])
        self.validation = Tokens(folder, dtype, self.facts.shards["validation"])

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each token id, shape [vocabulary]; the separator counts as one."""
        return np.load(self.folder / "token-bytes.npy")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids the tokens are.

        Raises:
            ValueError: its file is missing or torn.
        """
        stored = self.folder / "tokenizer.json"
        if not stored.exists() and self.facts.tokenizer == "bytes":
            return ByteTokenizer()
        try:
            content = stored.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"a prepared corpus must be whole, but its tokenizer can't be read ({error}); delete {self.folder} and "
                "rerun the command: it is prepared again"
            ) from error
        return BpeTokenizer(self.facts.tokenizer, content, token_text(content, self.train.separator))

    def first(self, unique_tokens: int | None) -> "Corpus":
        """Return the corpus with the first `unique_tokens` tokens of its training split, or with all if None.

        A smaller number gives a prefix of what a larger one gives; validation is the same.

        Raises:
            ValueError: the training split has no more tokens than these.
        """
        if unique_tokens is None:
            return self
        if unique_tokens >= len(self.train):
            raise ValueError(
                f"data.unique_tokens must be below the {len(self.train)} training tokens of the corpus "
                f"'{self.facts.name}', but got {unique_tokens}; lower it, use more text, or leave it out (null) to use "
                "all of them"
            )
        part = copy(self)
        part.train = self.train.first(unique_tokens)
        return part

    def check_documents(self, *, held_out_only: bool = False) -> None:
        """Index the documents of both splits, unless they are. Raises ValueError if they can't be told apart."""
        for split in (self.validation,) if held_out_only else (self.train, self.validation):
            assert len(split.documents) > 0, "a split has a document"

    def check(self, context: int, vocabulary: int) -> None:
        """Raise ValueError if `vocabulary` is below the corpus's, or a split is shorter than `context` + 1 tokens."""
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
    """Open the corpus that `config` names, after tokenising it if `cache` doesn't hold it yet.

    Of several processes that need the same corpus, one builds it and the others wait. A build that was interrupted
    continues with the part at which it stopped.

    Args:
        config: text and tokenizer.
        cache: the folder of prepared corpora.
        progress: called with (activity, bytes of input done, bytes in total); a total of 0 is unknown.

    Raises:
        ValueError: the corpus or tokenizer doesn't exist; it holds no text, or too little to hold anything out; the
            text can't be read or tokenised.
    """
    request = CorpusRequest(config, cache, progress)
    return request.find() or request.build()


class CorpusRequest:
    """The corpus that a configuration names, in its present state on disk or on Hugging Face.

    The arguments are those of `prepare_corpus`; text files are read here once, for their hash.

    Raises:
        ValueError: the corpus or tokenizer doesn't exist, or holds no text.
    """

    def __init__(self, config: DataConfig, cache: Path, progress: CorpusProgress = no_progress) -> None:
        self._config, self._cache, self._progress = config, cache, progress
        self._tokenizer = request_tokenizer(config, lambda line: progress(line, 0, 0))
        self._source = open_source(config, progress)
        request = [_FORMAT, self._source.identity, self._tokenizer.identity]
        request += [config.column, config.validation_fraction, config.max_tokens]
        key = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:_FINGERPRINT_DIGITS]
        self.folder = cache / "requests" / key
        self._prepared = self.folder / "prepared.json"

    def find(self) -> Corpus | None:
        """Open the prepared corpus, if there is one, without reading text or tokens."""
        if not self._prepared.exists():
            return None
        prepared = json.loads(self._prepared.read_text(encoding="utf-8"))
        folder = self._cache / prepared["fingerprint"]
        if not (folder / "corpus.json").exists():
            return None
        corpus = self._open(folder)
        facts = corpus.facts
        misses = self._misses_share(facts.train_bytes, facts.validation_bytes)
        return None if misses and not prepared.get("by_size") else corpus

    def build(self) -> Corpus:
        """Tokenise the corpus, unless another process has done so while this one waited for its turn.

        Raises:
            ValueError: see `prepare_corpus`.
        """
        waiting = partial(self._progress, "another process prepares this corpus; waiting", 0, 0)
        with owner_in_turn(self.folder, waiting=waiting):
            if (corpus := self.find()) is not None:
                return corpus
            # By the hashes of rows, or files; then by the size of the rows, if the hashes miss the share
            parts, building = self._source.list_parts(), self.folder / "building"
            documents = None
            try:
                tokenizer, shards = self._tokenise(parts, building)
                train, held_out = (sum(shard.bytes for shard in shards[split]) for split in SPLITS)
                by_size = self._misses_share(train, held_out)
                documents = sum(shard.documents for split in SPLITS for shard in shards[split])
            except SmallSampleError:  # perhaps because most of the text is held out
                if not self._source.has_rows:
                    raise
                by_size = True
            if by_size:
                parts = split_rows_by_size(parts, documents)
                building = self.folder / "building-by-size"
                tokenizer, shards = self._tokenise(parts, building)
            folder = self._cache / self._write_facts(building, tokenizer, shards)
            # `find` needs both this file and the folder, so nothing is lost if the process ends between the two.
            prepared = {"fingerprint": folder.name, "corpus": self._source.name}
            write_atomically(self._prepared, json.dumps({**prepared, "by_size": True} if by_size else prepared))
            _move(building, folder)
            if by_size:
                shutil.rmtree(self.folder / "building")
            return self._open(folder)

    def _open(self, folder: Path) -> Corpus:
        """Open a corpus with notes about its text and, where the share that is held out is another, about that."""
        corpus, asked = Corpus(folder), self._config.validation_fraction
        notes, share = list(self._source.notes), corpus.facts.validation_share
        if self._config.validation_files is None and abs(share - asked) > SHARE_TOLERANCE * asked:
            if self._config.max_tokens and self._source.held_out == "files":
                reason = "max_tokens ends the training text alone"
            else:
                reason = f"{self._source.held_out} are held out whole"
            notes.append(f"{100 * share:.3g}% of the text is held out, not {100 * asked:.3g}%: {reason}")
        corpus.notes = tuple(notes)
        return corpus

    def _misses_share(self, train_bytes: int, validation_bytes: int) -> bool:
        """Return whether either split of rows has less than half, or more than twice, the text that it should have."""
        total, fraction = train_bytes + validation_bytes, self._config.validation_fraction
        if not self._source.has_rows or not total:
            return False
        share = validation_bytes / total
        return not fraction / 2 <= share <= min(2 * fraction, (1 + fraction) / 2)

    def _tokenise(self, parts: Sequence[Part], building: Path) -> tuple[Tokenizer, dict[Split, list[Shard]]]:
        building.mkdir(exist_ok=True)
        tokenizer = self._train_or_read_tokenizer(building, parts)
        return tokenizer, _build_parts(parts, tokenizer, building, self._config.max_tokens, self._progress)

    def _train_or_read_tokenizer(self, building: Path, parts: Sequence[Part]) -> Tokenizer:
        stored = building / "tokenizer.json"
        if stored.exists():
            content: str | None = stored.read_text(encoding="utf-8")
        else:
            meter = _InputMeter(parts, self._progress, self._config.tokenizer_sample_bytes)
            content = self._tokenizer.content(_metered_documents(parts, meter))
            if content is not None:
                write_atomically(stored, content)
        return make_tokenizer(self._config.tokenizer, content, self._config.separator)

    def _write_facts(self, building: Path, tokenizer: Tokenizer, shards: dict[Split, list[Shard]]) -> str:
        """Write corpus.json and token-bytes.npy; return the fingerprint."""
        totals = {
            f"{split}_{name}": sum(getattr(shard, name) for shard in shards[split])
            for name in ("documents", "tokens", "bytes")
            for split in SPLITS
        }
        if not (totals["train_documents"] and totals["validation_documents"]):
            raise ValueError(
                "training and validation must have a document each, but of the corpus "
                f"'{self._source.name}' {totals['train_documents']} go to training and "
                f"{totals['validation_documents']} to validation; use "
                f"{'settings with more different lines' if self._source.held_out == 'lines' else 'more text'}, "
                "another validation_fraction than "
                f"{self._config.validation_fraction}"
                + (f", or a max_tokens above {limit}" if (limit := self._config.max_tokens) else "")
            )
        digests = {split: [shard.digest for shard in shards[split] if shard.tokens] for split in SPLITS}
        canonical = json.dumps({"tokenizer": tokenizer.digest, **digests}, sort_keys=True)
        facts = CorpusFacts(
            name=self._source.name,
            fingerprint=hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_DIGITS],
            tokenizer=tokenizer.name,
            vocabulary=tokenizer.vocabulary,
            **totals,
            dtype=tokenizer.dtype.str,
            shards=shards,
        )
        with open_atomically(building / "token-bytes.npy") as file:
            np.save(file, tokenizer.token_bytes)
        write_atomically(building / "corpus.json", facts.model_dump_json(indent=1))
        return facts.fingerprint


class _InputMeter:
    """Progress through several parts in bytes of input, of which only what gives `wanted` units will be read."""

    def __init__(self, parts: Sequence[Part], progress: CorpusProgress, wanted: int | None) -> None:
        self.size, self.progress, self.wanted = sum(part.size for part in parts), progress, wanted
        self.done = 0  # bytes of the parts that are finished

    def report(self, activity: str, units_before: int, position: int, units: int) -> None:
        """Report the position within the present part, and its units on top of those of the parts before."""
        done, total, gained = self.done + position, self.size, units_before + units
        if self.wanted is not None and gained:
            total = min(total, max(done * self.wanted // gained, done))
        self.progress(activity, done, total)


def _build_parts(
    parts: Sequence[Part], tokenizer: Tokenizer, folder: Path, max_tokens: int | None, progress: CorpusProgress
) -> dict[Split, list[Shard]]:
    """Tokenise part after part until all are done or `max_tokens` training tokens are reached."""
    meter, tokens = _InputMeter(parts, progress, max_tokens), 0
    shards: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
    for number, part in enumerate(parts):
        if max_tokens is not None and tokens >= max_tokens:
            break
        report = partial(meter.report, f"tokenising {part.name}", tokens)
        report(0, 0)
        remaining = None if max_tokens is None else max_tokens - tokens
        built = read_part(folder, number) or build_part(
            part, number, tokenizer, folder, max_train_tokens=remaining, progress=report
        )
        for split in SPLITS:
            shards[split].append(built[split])
        tokens += built["train"].tokens
        meter.done += part.size
    progress("tokenised", meter.done, meter.done)
    return shards


def _metered_documents(parts: Sequence[Part], meter: _InputMeter) -> Iterator[Document]:
    """Yield the documents of all parts for the training of a tokenizer, reporting the training text read."""
    text = 0
    for part in parts:
        for document in part.read():
            if document.split == "train":
                text += len(document.text)
                meter.report("training the tokenizer", 0, document.position, text)
            yield document
        meter.done += part.size


def _move(building: Path, folder: Path) -> None:
    """Move a finished build to its place; if the same tokens are there already, they stay and the build is removed."""
    try:
        os.replace(building, folder)
    except OSError as error:
        if not (folder / "corpus.json").exists():
            raise ValueError(
                f"a prepared corpus must be whole, but {folder} lacks its corpus.json; delete that folder and rerun "
                "the command: what was tokenised is kept"
            ) from error
        shutil.rmtree(building)
