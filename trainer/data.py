"""Text -> one file of tokens per split -> batches. Bytes are the tokens; a position is a step, nothing more.

A prepared corpus is a folder named by its fingerprint, the hash of what the text says:

    <cache>/<fingerprint>/train.bin  validation.bin  corpus.json

Documents are packed, each closed by byte 0. Their order, and which of them are held out for validation, follow from the
hash of each file's name relative to its folder, so they are the same on every machine that holds the same files.
"""

import hashlib
import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.config import BYTE_VOCABULARY, DataConfig

SEPARATOR = b"\0"
STDLIB = "stdlib"
# Left out of `stdlib`: what is not the library itself, or what differs from one installation to the next.
_NOT_STDLIB = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
}
_SHUFFLE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a prepared corpus holds. Tokens are bytes here, so nats per token and per byte are the same."""

    name: str
    fingerprint: str
    train_documents: int
    validation_documents: int
    train_tokens: int
    validation_tokens: int


class Corpus:
    """A prepared corpus, memory-mapped: `train` and `validation` are token ids, shape [tokens], uint8."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = CorpusFacts(**json.loads((folder / "corpus.json").read_text()))
        self.train: NDArray[np.uint8] = np.memmap(folder / "train.bin", np.uint8, mode="r")
        self.validation: NDArray[np.uint8] = np.memmap(folder / "validation.bin", np.uint8, mode="r")

    def check(self, context: int, vocabulary: int) -> None:
        """Refuse a model that can't read this corpus.

        Raises:
            ValueError: a split is shorter than one window of `context` + 1 tokens, or `vocabulary` is under 256.
        """
        if vocabulary < BYTE_VOCABULARY:
            raise ValueError(
                f"model.vocabulary must hold every token, and bytes are {BYTE_VOCABULARY}, but got {vocabulary}; "
                "leave it out"
            )
        for split, tokens in (("training", self.train), ("validation", self.validation)):
            if count_windows(tokens, context) < 1:
                raise ValueError(
                    f"the {split} split must hold at least context + 1 = {context + 1} tokens, but that of the corpus "
                    f"'{self.facts.name}' has {len(tokens)}; use more text, a shorter context or another "
                    "validation_fraction"
                )


@dataclass(frozen=True)
class _Document:
    name: str
    text: bytes

    @property
    def key(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()


def prepare_corpus(config: DataConfig, cache: Path) -> Corpus:
    """Read the text that `config` names and open it as tokens; build the token files only where they are missing.

    Raises:
        ValueError: no such path, no text in it, or too little of it to hold anything out.
    """
    documents = sorted(_read_documents(config), key=lambda document: document.key)
    total = sum(len(document.text) for document in documents)
    if total < 2:
        raise ValueError(
            f"a corpus must hold text, but '{config.corpus}' has {len(documents)} file(s) ending in "
            f"{', '.join(config.suffixes)} with {total} bytes in all; name a file, or a folder with such files"
        )
    train, validation = _split(documents, config.validation_fraction * total)
    digest = hashlib.sha256(f"bytes, closed by 0, held out {config.validation_fraction!r}".encode())
    for document in documents:
        digest.update(document.key + hashlib.sha256(document.text).digest())
    fingerprint = digest.hexdigest()[:12]
    folder = cache / fingerprint
    if not (folder / "corpus.json").exists():
        facts = CorpusFacts(
            name=config.corpus if config.corpus == STDLIB else Path(config.corpus).name,
            fingerprint=fingerprint,
            train_documents=len(train),
            validation_documents=len(validation),
            train_tokens=_packed_length(train),
            validation_tokens=_packed_length(validation),
        )
        _write_corpus(folder, facts, train, validation)
    return Corpus(folder)


def batch_windows(corpus: Corpus, *, context: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """The global batch of `step`: windows of context + 1 tokens, shape [batch, context + 1].

    Every window is seen once an epoch, in an order drawn from (seed, epoch).
    """
    windows = count_windows(corpus.train, context)
    first = step * batch
    rows = []
    for epoch in range(first // windows, (first + batch - 1) // windows + 1):
        start, stop = max(first - epoch * windows, 0), min(first + batch - epoch * windows, windows)
        rows.append(_epoch_order(windows, seed, epoch)[start:stop])
    return _take(corpus.train, np.concatenate(rows), context)


def validation_windows(corpus: Corpus, *, context: int, sequences: int) -> NDArray[np.int64]:
    """Fixed validation windows spread evenly over the split: at most `sequences`, shape [n, context + 1]."""
    windows = count_windows(corpus.validation, context)
    chosen = np.linspace(0, windows - 1, min(sequences, windows)).round().astype(np.int64)
    return _take(corpus.validation, chosen, context)


def count_windows(tokens: NDArray[np.uint8], context: int) -> int:
    """Windows of context + 1 tokens, each beginning where the one before predicts its last token."""
    return (len(tokens) - 1) // context


_order_cache: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _epoch_order(windows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch, kept while it is in use."""
    key = (windows, seed, epoch)
    if key not in _order_cache:
        if len(_order_cache) >= 2:
            _order_cache.pop(next(iter(_order_cache)))
        _order_cache[key] = np.random.default_rng([seed, epoch, _SHUFFLE_STREAM]).permutation(windows)
    return _order_cache[key]


def _take(tokens: NDArray[np.uint8], windows: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    positions = windows[:, None] * context + np.arange(context + 1)
    return tokens[positions].astype(np.int64)


def _read_documents(config: DataConfig) -> Iterator[_Document]:
    if config.corpus == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = (f for f in root.rglob("*.py") if _is_stdlib(f.relative_to(root)))
    else:
        root = Path(config.corpus).expanduser()
        if not root.exists():
            raise ValueError(
                f"data.corpus must be '{STDLIB}' or a file or folder that exists, but got '{config.corpus}'; "
                f"relative paths start at {Path.cwd()}"
            )
        if root.is_file():
            yield _Document(root.name, _read(root))
            return
        files = (f for f in root.rglob("*") if f.suffix in config.suffixes)
    for file in files:
        if file.is_file():
            yield _Document(file.relative_to(root).as_posix(), _read(file))


def _is_stdlib(relative: Path) -> bool:
    generated = relative.name.startswith("_sysconfigdata")
    return not generated and _NOT_STDLIB.isdisjoint(relative.parts)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"every file of a corpus must be readable, but {file} is not: {error.strerror}") from error


def _split(documents: list[_Document], validation_bytes: float) -> tuple[list[_Document], list[_Document]]:
    """Hold out the first documents, whole, until they reach `validation_bytes`; a lone document is cut instead."""
    if len(documents) == 1:
        text = documents[0].text
        cut = len(text) - max(1, round(validation_bytes))
        return [_Document("head", text[:cut])], [_Document("tail", text[cut:])]
    held_out, count = 0, 0
    while count < len(documents) - 1 and (held_out < validation_bytes or count == 0):
        held_out += len(documents[count].text)
        count += 1
    return documents[count:], documents[:count]


def _packed_length(documents: list[_Document]) -> int:
    return sum(len(document.text) + len(SEPARATOR) for document in documents)


def _write_corpus(folder: Path, facts: CorpusFacts, train: list[_Document], validation: list[_Document]) -> None:
    """Write beside the final place and rename, so that a corpus is whole or absent whoever else builds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, documents in (("train.bin", train), ("validation.bin", validation)):
            with (building / name).open("wb") as file:
                file.writelines(document.text + SEPARATOR for document in documents)
        (building / "corpus.json").write_text(json.dumps(asdict(facts), indent=1))
        building.chmod(0o755)
        if not (folder / "corpus.json").exists():
            os.replace(building, folder)
    except OSError:
        if not (folder / "corpus.json").exists():  # else another process has just built the same corpus
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
