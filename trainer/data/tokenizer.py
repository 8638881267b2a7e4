"""Text -> token ids, and the number of bytes that each id stands for: bytes themselves, or byte-level BPE.

Byte-level means that the tokens of any text, put together, are its bytes again. Only then can a loss in nats per token
be turned into bits per byte, so any other tokenizer is refused.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer import hub
from isoloop.trainer.config import BYTE_VOCABULARY, DataConfig
from isoloop.trainer.data.sources import Document

if TYPE_CHECKING:
    import tokenizers

# Characters of the longest piece that is encoded in one go, and of the pieces that are encoded together.
_PIECE = 2**20
_AT_ONCE = 2**22

# What a byte-level tokenizer must give back byte for byte: scripts, spaces, digits, marks, controls.
_PROBE = (
    "Hello  world,\t don't!\r\n\n   x = 1234567.89;\0\x1b\x7f "
    "äöü ß ﬁ e\u0301 Å \u00a0\u2009\ufeff Привет 你好，世界 こんにちは 한국어 مرحبا नमस्ते 👩\u200d👩\u200d👧 𝔘 "
    + "".join(map(chr, range(32, 384)))
)


class Tokenizer(ABC):
    """Ids 0 .. `vocabulary` - 1.

    `token_bytes`, shape [vocabulary], int64, is the number of UTF-8 bytes of each id. The token that closes a document
    counts as one byte, as it does where bytes are the tokens. `digest` is a hash of what each id means.
    """

    name: str
    vocabulary: int
    token_bytes: NDArray[np.int64]
    digest: str

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return np.dtype("u1" if self.vocabulary <= 2**8 else "<u2" if self.vocabulary <= 2**16 else "<u4")

    @abstractmethod
    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """Ids of all documents, each closed by the separator, shape [tokens], and tokens of each, shape [documents].

        Raises:
            ValueError: a document isn't UTF-8 and the tokenizer needs it to be.
        """


class ByteTokenizer(Tokenizer):
    """Each byte is its own id, and byte 0 closes a document."""

    def __init__(self) -> None:
        self.name = "bytes"
        self.vocabulary = BYTE_VOCABULARY
        self.token_bytes = np.ones(BYTE_VOCABULARY, np.int64)
        self.digest = hashlib.sha256(b"bytes, closed by 0").hexdigest()

    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """As `Tokenizer.encode`; any bytes will do."""
        packed = b"".join(part for document in documents for part in (document.text, b"\0"))
        lengths = np.array([len(document.text) + 1 for document in documents], np.int64)
        return np.frombuffer(packed, np.uint8), lengths


class BpeTokenizer(Tokenizer):
    """Byte-level BPE of a `tokenizer.json`'s `content`.

    Args:
        name: for messages and for people.
        content: the JSON.
        separator: the special token that closes a document.

    Raises:
        ValueError: not a tokenizer, not byte-level, or without that special token.
    """

    def __init__(self, name: str, content: str, separator: str) -> None:
        self.name = name
        self._tokenizer = _parse(name, content)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        special = sorted(token.content for token in added.values() if token.special)
        if separator not in special:
            raise ValueError(
                f"data.separator must be one of the tokenizer's special tokens, but '{name}' has no '{separator}'; it "
                f"has {', '.join(special) if special else 'none'}"
            )
        self._separator: int = vocabulary[separator]
        self.vocabulary = max(vocabulary.values()) + 1
        meaning = _meanings(name, vocabulary, {id_: token.content for id_, token in added.items()})
        self.token_bytes = np.array([len(meaning.get(id_, b"")) for id_ in range(self.vocabulary)], np.int64)
        self.token_bytes[[id_ for id_, token in added.items() if token.special]] = 0  # these no text is encoded as
        self.token_bytes[self._separator] = 1
        digest = hashlib.sha256(f"bpe, closed by {self._separator}".encode())
        for id_ in sorted(meaning):
            digest.update(f"\0{id_}\0{len(meaning[id_])}\0".encode() + meaning[id_])
        self.digest = digest.hexdigest()
        try:
            self.encode([Document("a probe", _PROBE.encode(), "train", 0)])
        except ValueError as error:
            raise _not_byte_level(name, str(error)) from error

    def encode(self, documents: Sequence[Document]) -> tuple[NDArray, NDArray[np.int64]]:
        """As `Tokenizer.encode`, on all cores. A separator written out in a text is text."""
        end = np.array([self._separator], self.dtype)
        pieces = ((number, piece) for number, document in enumerate(documents) for piece in _pieces(_decode(document)))
        of_document: list[list[NDArray]] = [[] for _ in documents]
        for some in _few(pieces):
            encoded = self._tokenizer.encode_batch_fast([piece for _, piece in some], add_special_tokens=False)
            for (number, _), encoding in zip(some, encoded, strict=True):
                of_document[number].append(np.array(encoding.ids, self.dtype))
        closed = [np.concatenate([*ids, end]) for ids in of_document]
        lengths = np.array([len(ids) for ids in closed], np.int64)
        tokens = np.concatenate(closed)
        got, text = self.token_bytes[tokens].sum(), sum(len(document.text) + 1 for document in documents)
        if got != text:
            raise ValueError(
                f"the tokens must be as many bytes as the text, but the tokenizer '{self.name}' makes {got} of "
                f"the {text} bytes from {documents[0].name} on; it changes text, use another"
            )
        return tokens, lengths


@dataclass(frozen=True, kw_only=True)
class TokenizerRequest:
    """What a configuration asks for. `identity` (plain data) is the same as long as the answer is.

    `content` makes the content of a tokenizer.json, and may have to read the documents for it; None means bytes.
    """

    identity: Any
    content: Callable[[Iterable[Document]], str | None]


def request_tokenizer(config: DataConfig) -> TokenizerRequest:
    """Find the tokenizer that `config` names, without reading the corpus.

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
    loaded = _load(config.tokenizer)
    identity = ["json", hashlib.sha256(loaded.encode()).hexdigest(), separator]
    return TokenizerRequest(identity=identity, content=lambda _: loaded)


def make_tokenizer(name: str, content: str | None, separator: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json's content, or that of bytes where there is none.

    Raises:
        ValueError: see `BpeTokenizer`.
    """
    return ByteTokenizer() if content is None else BpeTokenizer(name, content, separator)


def train_bpe(documents: Iterable[Document], *, vocabulary: int, sample_bytes: int, separator: str) -> str:
    """Train byte-level BPE on the first `sample_bytes` bytes of training documents; the content of a tokenizer.json.

    The same documents give the same tokenizer.

    Args:
        documents: in their order; those held out for validation are passed over, very long ones taken in pieces.
        vocabulary: ids: 256 bytes, the separator, and merges.
        sample_bytes: reading stops at the end of the piece that reaches it.
        separator: the special token that closes a document; its id is 0.

    Raises:
        ValueError: the sample is too small for that many ids, or isn't UTF-8.
    """
    library = _library()
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[separator],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for document in documents:
            for piece in _pieces(_decode(document)) if document.split == "train" else ():
                read += len(piece.encode())
                yield piece
                if read >= sample_bytes:
                    return

    trained.train_from_iterator(texts(), trainer)
    got = trained.get_vocab_size()
    if got < vocabulary:
        raise ValueError(
            f"the sample must be large enough for the tokenizer's vocabulary, but {read:,} bytes of text gave {got} "
            f"ids of data.tokenizer_vocabulary={vocabulary}; ask for fewer, or give more text"
        )
    return trained.to_str()


def _load(name: str) -> str:
    path, said = Path(name).expanduser(), ""
    if not path.is_file() and hub.is_repository(name) and path.suffix != ".json":
        try:
            path = hub.fetch_file(name, "tokenizer.json", kind="model")
        except hub.HubError as error:
            said = f", and Hugging Face has no tokenizer.json of that name to give ({error})"
    if not path.is_file():
        raise ValueError(
            "data.tokenizer must be 'bytes', 'bpe', a tokenizer.json that exists, or the OWNER/NAME of a tokenizer on "
            f"Hugging Face, but got '{name}': no such file{said}; relative paths start at {Path.cwd()}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.tokenizer must be a tokenizer.json that can be read, but {path} is not: {error}"
        ) from error


def _library() -> Any:
    # Said aloud, because the library otherwise prints a warning into every process that is started after it was used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


def _parse(name: str, content: str) -> "tokenizers.Tokenizer":
    try:
        parsed = _library().Tokenizer.from_str(content)
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
    parsed.encode_special_tokens = True  # a special token written out in a text is text
    return parsed


def _meanings(name: str, vocabulary: dict[str, int], added: dict[int, str]) -> dict[int, bytes]:
    """The bytes of each id. Byte-level vocabularies write each byte as one printable character."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted(set(range(256)) - set(shown))
    alphabet = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    missing = [character for character in alphabet if character not in vocabulary]
    if missing:
        raise _not_byte_level(name, f"{len(missing)} of the 256 bytes are no token of it")
    meanings = {}
    for token, id_ in vocabulary.items():
        if id_ in added:
            meanings[id_] = added[id_].encode()
        elif alphabet.keys() >= set(token):
            meanings[id_] = bytes(alphabet[character] for character in token)
        else:
            raise _not_byte_level(name, f"its token {id_}, {token!r}, is not written in bytes")
    return meanings


def _not_byte_level(name: str, why: str) -> ValueError:
    return ValueError(
        f"a tokenizer must be byte-level BPE, so that a loss can be told per byte, but '{name}' is not: {why}; use "
        "another, or 'bpe' to train one"
    )


def _pieces(text: str) -> Iterator[str]:
    """A text as it is, or, where it is very long, cut behind lines: memory and cores are used by the piece."""
    start = 0
    while len(text) - start > _PIECE:
        cut = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def _few(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Numbered pieces, so many at a time that their encodings can be held: a hundred times the text and more."""
    some: list[tuple[int, str]] = []
    size = 0
    for number, piece in pieces:
        some.append((number, piece))
        size += len(piece)
        if size >= _AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _decode(document: Document) -> str:
    try:
        return document.text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text must be UTF-8 for a tokenizer other than 'bytes', but {document.name} is not, at byte "
            f"{error.start}; convert it, leave it out, or set data.tokenizer=bytes"
        ) from error
