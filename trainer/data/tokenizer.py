"""Tokenizers, bytes or byte-level BPE: token ids of a text, and the number of bytes that each id stands for.

Byte-level means that the tokens of any text, joined, are its bytes again. Only then can a loss in nats per token be
converted to bits per byte, so any other tokenizer is refused.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer import hub
from isoloop.trainer.config import BYTE_VOCABULARY, DataConfig
from isoloop.trainer.data.sources import Document

if TYPE_CHECKING:
    import tokenizers

Item = TypeVar("Item")

# Characters of the longest piece that is encoded in one go, and of the pieces that are encoded together: an encoding
# takes a hundred times the memory of its text.
_PIECE = 2**20
_BATCH = 2**22

# Text that a byte-level tokenizer must return byte for byte: scripts, spaces, digits, marks, controls.
_PROBE = (
    "Hello  world,\t don't!\r\n\n   x = 1234567.89;\0\x1b\x7f "
    "äöü ß ﬁ e\u0301 Å \u00a0\u2009\ufeff Привет 你好，世界 こんにちは 한국어 مرحبا नमस्ते 👩\u200d👩\u200d👧 𝔘 "
    + "".join(map(chr, range(32, 384)))
)


class SmallSampleError(ValueError):
    """The training text is too little for a tokenizer's vocabulary."""


class Tokenizer(ABC):
    """Contract of a tokenizer with the ids 0 .. `vocabulary` - 1.

    `token_bytes`, shape [vocabulary], int64, is the number of UTF-8 bytes of each id. The token that ends a document
    counts as one byte, as it does where bytes are the tokens. `separator` is the id of that token. `digest` is a hash
    of what each id stands for.
    """

    name: str
    vocabulary: int
    separator: int
    token_bytes: NDArray[np.int64]
    digest: str

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return np.dtype("u1" if self.vocabulary <= 2**8 else "<u2" if self.vocabulary <= 2**16 else "<u4")

    @abstractmethod
    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """Encode documents, each followed by the separator.

        Returns:
            The ids of all documents, shape [tokens], and the tokens of each, shape [documents].

        Raises:
            ValueError: a document isn't UTF-8 and the tokenizer needs it to be.
        """

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that `ids` stand for, which may end within a character; the separator stands for none."""

    def encode_text(self, text: str) -> NDArray:
        """Encode a text without a separator at its end; a separator written in it is text.

        Raises:
            ValueError: the text isn't UTF-8 and the tokenizer needs it to be.
        """
        raw = text.encode(errors="surrogateescape")  # a command line may hold any bytes
        return self.encode([Document("the text", raw, "train", 0)])[0][:-1]


class ByteTokenizer(Tokenizer):
    """Tokenizer whose ids are bytes; byte 0 ends a document."""

    def __init__(self) -> None:
        self.name = "bytes"
        self.vocabulary = BYTE_VOCABULARY
        self.separator = 0
        self.token_bytes = np.ones(BYTE_VOCABULARY, np.int64)
        self.digest = hashlib.sha256(b"bytes, closed by 0").hexdigest()

    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """Encode documents of any bytes as `Tokenizer.encode` says."""
        packed = b"".join(part for document in documents for part in (document.text, b"\0"))
        lengths = np.array([len(document.text) + 1 for document in documents], np.int64)
        return np.frombuffer(packed, np.uint8), lengths

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the ids themselves, except the separator and what is no byte."""
        return bytes(id_ for id_ in ids if 0 < id_ < BYTE_VOCABULARY)


class BpeTokenizer(Tokenizer):
    """Byte-level BPE.

    Args:
        name: its name in messages and reports.
        content: the JSON of a `tokenizer.json`.
        separator: the special token that ends a document.

    Raises:
        ValueError: `content` is not a tokenizer, not byte-level, or lacks that special token.
    """

    def __init__(self, name: str, content: str, separator: str) -> None:
        self.name = name
        self._tokenizer = _parse(name, content)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        special = _special_tokens(self._tokenizer)
        if separator not in special:
            raise ValueError(
                f"data.separator must be one of the tokenizer's special tokens, but '{name}' has no '{separator}'; it "
                f"has {', '.join(special) if special else 'none'}"
            )
        self.content = content
        self.separator_text, self.separator = separator, vocabulary[separator]
        self.vocabulary = max(vocabulary.values()) + 1

        # Bytes of each id; special tokens other than the separator never stand for text
        id_bytes = _bytes_by_id(name, vocabulary, {id_: token.content for id_, token in added.items()})
        self.token_bytes = np.array([len(id_bytes.get(id_, b"")) for id_ in range(self.vocabulary)], np.int64)
        self.token_bytes[[id_ for id_, token in added.items() if token.special]] = 0
        self.token_bytes[self.separator] = 1
        special_ids = {id_ for id_, token in added.items() if token.special}
        self._text_bytes = {id_: text for id_, text in id_bytes.items() if id_ not in special_ids}

        digest = hashlib.sha256(f"bpe, closed by {self.separator}".encode())
        for id_ in sorted(id_bytes):
            digest.update(f"\0{id_}\0{len(id_bytes[id_])}\0".encode() + id_bytes[id_])
        self.digest = digest.hexdigest()
        try:
            self.encode([Document("a probe", _PROBE.encode(), "train", 0)])
        except ValueError as error:
            raise _not_byte_level(name, str(error)) from error

    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """Encode UTF-8 documents as `Tokenizer.encode` says, on all cores; a separator written in a text is text."""
        separator = np.array([self.separator], self.dtype)
        pieces = ((number, piece) for number, document in enumerate(documents) for piece in _pieces(_decode(document)))
        ids: list[list[NDArray]] = [[] for _ in documents]
        for batch in batch_by_size(pieces, lambda numbered: len(numbered[1]), _BATCH):
            encodings = self._tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            for (number, _), encoding in zip(batch, encodings, strict=True):
                ids[number].append(np.array(encoding.ids, self.dtype))
        lengths = np.array([sum(map(len, parts)) + 1 for parts in ids], np.int64)
        tokens = np.concatenate([part for parts in ids for part in (*parts, separator)])
        encoded, text = self.token_bytes[tokens].sum(), sum(len(document.text) + 1 for document in documents)
        if encoded != text:
            raise ValueError(
                f"the tokens must be as many bytes as the text, but the tokenizer '{self.name}' encodes {text} bytes "
                f"from {documents[0].name} on as {encoded}; it changes text, so use another one"
            )
        return tokens, lengths

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids` as `Tokenizer.decode_bytes` says; no special token stands for text."""
        return b"".join(self._text_bytes.get(int(id_), b"") for id_ in ids)


@dataclass(frozen=True, kw_only=True)
class TokenizerRequest:
    """The tokenizer of a configuration, before it is trained. `identity` (plain data) is the same as long as it is.

    `content` returns the content of its tokenizer.json, and may read the documents to train it; None means bytes.
    """

    identity: Any
    content: Callable[[Iterable[Document]], str | None]


def request_tokenizer(config: DataConfig, waiting: hub.Waiting = hub.no_waiting) -> TokenizerRequest:
    """Find the tokenizer that `config` names, without reading the corpus; `waiting` is told of waits for the hub.

    Raises:
        ValueError: there is no such tokenizer.
    """
    separator = config.separator
    if config.tokenizer == "bytes":
        return TokenizerRequest(identity="bytes", content=lambda _: None)
    if config.tokenizer == "bpe":
        vocabulary, sample = config.tokenizer_vocabulary, config.tokenizer_sample_bytes
        return TokenizerRequest(
            identity=["bpe", vocabulary, sample, separator],
            content=lambda documents: train_bpe(
                documents, vocabulary=vocabulary, sample_bytes=sample, separator=separator
            ),
        )
    content = _read_json(config.tokenizer, waiting)
    identity = ["json", hashlib.sha256(content.encode()).hexdigest(), separator]
    return TokenizerRequest(identity=identity, content=lambda _: content)


def make_tokenizer(name: str, content: str | None, separator: str) -> Tokenizer:
    """Make the tokenizer of a tokenizer.json's content, or that of bytes if it is None.

    Raises:
        ValueError: see `BpeTokenizer`.
    """
    return ByteTokenizer() if content is None else BpeTokenizer(name, content, separator)


def special_tokens(name: str, content: str) -> list[str]:
    """Return the special tokens of a tokenizer.json's content, in alphabetical order.

    Raises:
        ValueError: it is not a tokenizer of byte-level BPE.
    """
    return _special_tokens(_parse(name, content))


def token_text(content: str, id_: int) -> str:
    """Return the text of a token of a tokenizer.json's content."""
    return str(_import_library().Tokenizer.from_str(content).id_to_token(id_))


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each printable character with which byte-level vocabularies write bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def train_bpe(documents: Iterable[Document], *, vocabulary: int, sample_bytes: int, separator: str) -> str:
    """Train byte-level BPE on the first `sample_bytes` bytes of training documents.

    The same documents give the same tokenizer.

    Args:
        documents: in their order; those held out for validation are skipped, very long ones are read in pieces.
        vocabulary: number of ids: 256 bytes, the separator, and merges.
        sample_bytes: reading stops at the end of the piece with which the text reaches this.
        separator: the special token that ends a document; its id is 0.

    Returns:
        The content of a tokenizer.json.

    Raises:
        ValueError: the sample is too small for that many ids, or isn't UTF-8.
    """
    # An untrained tokenizer, byte-level on both sides
    library = _import_library()
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[separator],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    # Training on the sample
    bytes_read = 0

    def texts() -> Iterator[str]:
        nonlocal bytes_read
        for document in documents:
            for piece in _pieces(_decode(document)) if document.split == "train" else ():
                bytes_read += len(piece.encode())
                yield piece
                if bytes_read >= sample_bytes:
                    return

    trained.train_from_iterator(texts(), trainer)
    ids = trained.get_vocab_size()
    if ids < vocabulary:
        raise SmallSampleError(
            f"the sample must be large enough for the tokenizer's vocabulary, but {bytes_read:,} bytes of text gave "
            f"{ids} ids of data.tokenizer_vocabulary={vocabulary}; lower it, or use more text"
        )
    return trained.to_str()


def batch_by_size(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Yield lists of consecutive items; each list ends with the item at which its total size reaches `limit`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _read_json(name: str, waiting: hub.Waiting) -> str:
    path, hub_error = Path(name).expanduser(), ""
    if not path.is_file() and hub.is_repository(name) and path.suffix != ".json":
        try:
            path = hub.fetch_file(name, "tokenizer.json", kind="model", waiting=waiting)
        except hub.HubError as error:
            hub_error = f", nor can it be had from Hugging Face ({error})"
    if not path.is_file():
        raise ValueError(
            "data.tokenizer must be 'bytes', 'bpe', a tokenizer.json that exists, or the OWNER/NAME of a tokenizer on "
            f"Hugging Face, but got '{name}': no such file{hub_error}; relative paths start at {Path.cwd()}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.tokenizer must be a tokenizer.json that can be read, but {path} is not: {error}"
        ) from error


def _import_library() -> Any:
    # Unless this is set, the library prints a warning in every process that is started after it was used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


def _parse(name: str, content: str) -> "tokenizers.Tokenizer":
    try:
        parsed = _import_library().Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"data.tokenizer must be a tokenizer.json, but '{name}' is not: {error}") from error
    parts = json.loads(content)
    if parts["model"].get("type", "BPE") != "BPE":
        raise _not_byte_level(name, f"its model is {parts['model']['type']}")
    if parts["model"].get("dropout"):
        raise ValueError(f"a tokenizer must give the same tokens every time, but '{name}' has dropout; set it to null")
    if parts.get("normalizer") is not None:
        raise _not_byte_level(name, f"its normalizer {parts['normalizer'].get('type')} may change the text")
    parsed.no_truncation()
    parsed.no_padding()
    parsed.encode_special_tokens = True  # a special token written in a text is text
    return parsed


def _special_tokens(tokenizer: "tokenizers.Tokenizer") -> list[str]:
    return sorted(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def _bytes_by_id(name: str, vocabulary: dict[str, int], added: dict[int, str]) -> dict[int, bytes]:
    """Return the bytes of each id."""
    alphabet = byte_alphabet()
    missing = len(alphabet.keys() - vocabulary.keys())
    if missing:
        raise _not_byte_level(name, f"it has no token for {missing} of the 256 bytes")
    id_bytes = {}
    for token, id_ in vocabulary.items():
        if id_ in added:
            id_bytes[id_] = added[id_].encode()
        elif alphabet.keys() >= set(token):
            id_bytes[id_] = bytes(alphabet[character] for character in token)
        else:
            raise _not_byte_level(name, f"its token {id_}, {token!r}, is not written in bytes")
    return id_bytes


def _not_byte_level(name: str, reason: str) -> ValueError:
    return ValueError(
        f"a tokenizer must be byte-level BPE, so that losses can be given per byte, but '{name}' is not: {reason}; use "
        "another, or 'bpe' to train one"
    )


def _pieces(text: str) -> Iterator[str]:
    """Yield a text whole or, if it is very long, in pieces cut after a line, to bound memory and occupy all cores."""
    start = 0
    while len(text) - start > _PIECE:
        cut = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def _decode(document: Document) -> str:
    try:
        return document.text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text must be UTF-8 for a tokenizer other than 'bytes', but {document.name} is not, at byte "
            f"{error.start}; convert it, leave it out, or set data.tokenizer=bytes"
        ) from error
