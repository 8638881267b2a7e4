"""Sources of text -> parts of documents, each document with the split that it belongs to.

A text corpus is one part; each parquet file is a part of its own, streamed. Which split a document goes to follows from
names, never from places: the hash of a file's name relative to the corpus, and the number of the row within it.
"""

import fnmatch
import glob
import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from isoloop.trainer import hub
from isoloop.trainer.config import DataConfig

Split = Literal["train", "validation"]
CorpusProgress = Callable[[str, int, int], None]

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
_PARQUET = ".parquet"
_ROWS = 256
_BYTES_AT_ONCE = 2**25


@dataclass(frozen=True, slots=True)
class Document:
    """One document: where it is from, its UTF-8 text, its split, and the bytes of the part read up to its end."""

    name: str
    text: bytes
    split: Split
    position: int


class Part(Protocol):
    """What is tokenised in one go: `name`, and `size` in bytes of input."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    def read(self) -> Iterator[Document]:
        """Yield the documents in their order, the same every time.

        Raises:
            ValueError: the part can't be read, or isn't what it was when it was listed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus before it is tokenised.

    `identity` (plain data) is the same as long as the text is; `list_parts` is asked only when tokens must be built.
    """

    name: str
    identity: Any
    list_parts: Callable[[], Sequence[Part]]


def no_progress(what: str, done: int, total: int) -> None:
    """Progress that nobody watches. Bytes of input: `done` of `total`; a total of 0 is one that isn't known."""


def open_source(config: DataConfig, progress: CorpusProgress = no_progress) -> Source:
    """Find the text that `config` names. Text files are read once, for their hash; parquet files are only listed.

    Raises:
        ValueError: nothing there, no text in it, or an argument that this kind of corpus has no use for.
    """
    name = config.corpus
    if name == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return _text_source(config, root, (f for f in root.rglob("*.py") if _is_stdlib(f.relative_to(root))), progress)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_source(config, path, progress)
    if path.suffix == _PARQUET and path.is_file():
        config.refuse("one parquet file", "suffixes", "files", "revision")
        return _parquet_source(config, path.parent, [path])
    if path.exists():
        config.refuse("one text file", "suffixes", "column", "files", "revision", "max_tokens")
        return _text_source(config, path.parent, [path], progress)
    if glob.has_magic(name):
        config.refuse("a glob", "suffixes", "files", "revision")
        fixed = path.parents[next(i for i, parent in enumerate(path.parents) if not glob.has_magic(str(parent)))]
        return _parquet_source(config, fixed, map(Path, glob.glob(str(path), recursive=True)))
    if hub.is_repository(name) and path.suffix not in {_PARQUET, *config.suffixes}:
        return _hub_source(config)
    raise _nothing_there(name)


def _nothing_there(name: str, said: str | None = None) -> ValueError:
    hub_said = f", and Hugging Face has no data set of that name to give ({said})" if said else ""
    return ValueError(
        f"data.corpus must be '{STDLIB}', a file, folder or glob that exists, or the OWNER/NAME of a data set on "
        f"Hugging Face, but got '{name}': nothing is there{hub_said}; relative paths start at {Path.cwd()}"
    )


def _folder_source(config: DataConfig, folder: Path, progress: CorpusProgress) -> Source:
    """Parquet if `files` asks for it or there is nothing else; text if `suffixes` asks for it or nothing else is."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    parquet = [f for f in files if f.suffix == _PARQUET]
    text = [f for f in files if f.suffix in config.suffixes]
    if config.files is None and not config.is_set("suffixes") and parquet and text:
        raise ValueError(
            f"a folder must say which of its files are the corpus, but '{folder}' has {len(parquet)} parquet files and "
            f"{len(text)} ending in {', '.join(config.suffixes)}; set data.files='*{_PARQUET}', or data.suffixes to "
            "those of the text"
        )
    if config.files is None and (not parquet or config.is_set("suffixes")):
        config.refuse("a folder of text files", "column", "revision")
        return _text_source(config, folder, text, progress)
    config.refuse("a folder of parquet files", "suffixes", "revision")
    pattern = config.files or f"*{_PARQUET}"
    return _parquet_source(
        config, folder, (f for f in files if fnmatch.fnmatchcase(f.relative_to(folder).as_posix(), pattern))
    )


# Text files


@dataclass(frozen=True)
class _TextFile:
    name: str
    path: Path
    size: int
    digest: str

    @property
    def key(self) -> bytes:
        return hashlib.sha256(self.name.encode(errors="surrogateescape")).digest()

    def read(self) -> bytes:
        text = _read(self.path)
        if hashlib.sha256(text).hexdigest() != self.digest:
            raise _changed(self.path)
        return text


@dataclass(frozen=True)
class _TextPart:
    """All files of a text corpus, those held out first."""

    name: str
    files: Sequence[_TextFile]
    validation_fraction: float

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def read(self) -> Iterator[Document]:
        wanted, position = self.validation_fraction * self.size, 0
        if len(self.files) == 1:
            yield from self._cut(self.files[0].read(), wanted)
            return
        for number, file in enumerate(self.files):
            last = number == len(self.files) - 1
            held_out = not last and (position < wanted or number == 0)
            position += file.size
            yield Document(str(file.path), file.read(), "validation" if held_out else "train", position)

    def _cut(self, text: bytes, wanted: float) -> Iterator[Document]:
        """A lone file is cut, not within a character, and its tail held out."""
        cut = max(1, len(text) - max(1, round(wanted)))
        while cut > 1 and text[cut] & 0xC0 == 0x80:
            cut -= 1
        path = str(self.files[0].path)
        yield Document(path, text[cut:], "validation", len(text) - cut)
        yield Document(path, text[:cut], "train", len(text))


def _text_source(config: DataConfig, root: Path, paths: Iterable[Path], progress: CorpusProgress) -> Source:
    found = [(path.relative_to(root).as_posix(), path) for path in paths if path.is_file()]
    total, done = sum(path.stat().st_size for _, path in found), 0
    files = []
    for name, path in found:
        text = _read(path)
        files.append(_TextFile(name, path, len(text), hashlib.sha256(text).hexdigest()))
        done += len(text)
        progress("reading", done, total)
    if done < 2:
        raise ValueError(
            f"a corpus must hold text, but '{config.corpus}' has {len(files)} file(s) ending in "
            f"{', '.join(config.suffixes)} with {done} bytes in all; name a file, or a folder with such files"
        )
    files.sort(key=lambda file: file.key)
    name = config.corpus if config.corpus == STDLIB else Path(config.corpus).name
    part = _TextPart(name, files, config.validation_fraction)
    identity = ["text", *((file.name, file.digest) for file in files)]
    return Source(name=name, identity=identity, list_parts=lambda: [part])


def _is_stdlib(relative: Path) -> bool:
    generated = relative.name.startswith("_sysconfigdata")
    return not generated and _NOT_STDLIB.isdisjoint(relative.parts)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"every file of a corpus must be readable, but {file} is not: {error.strerror}") from error


# Parquet files


@dataclass(frozen=True, kw_only=True)
class _ParquetPart:
    """One parquet file. `fetch` says where it lies on this disk, and may have to download it first."""

    name: str
    size: int
    column: str
    validation_fraction: float
    fetch: Callable[[], Path]

    def read(self) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.fetch()
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self._check_column(path, file.schema_arrow)
                rows, row = file.metadata.num_rows, 0
                for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=[self.column]):
                    texts = batch.column(0).cast(pa.large_string()).cast(pa.large_binary())
                    for text in texts.to_pylist():
                        row += 1
                        if text:  # a row without text is no document
                            name = f"{self.name}, row {row - 1}"
                            yield Document(name, text, self._split(row - 1), self.size * row // rows)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"every file must be parquet that can be read, but {path} is not: {error}; fetch it again or leave it "
                "out with data.files"
            ) from error

    def _split(self, row: int) -> Split:
        digest = hashlib.blake2b(f"{self.name}\0{row}".encode(), digest_size=8).digest()
        return "validation" if int.from_bytes(digest, "big") < self.validation_fraction * 2**64 else "train"

    def _check_column(self, path: Path, schema: Any) -> None:
        import pyarrow as pa

        if schema.names.count(self.column) > 1:
            raise ValueError(
                f"data.column must name one column, but {path} has {schema.names.count(self.column)} called "
                f"'{self.column}'; rename the others"
            )
        if self.column not in schema.names:
            raise ValueError(
                f"data.column must be a column of every parquet file, but {path} has no '{self.column}'; it has "
                f"{', '.join(schema.names)}"
            )
        kind = schema.field(self.column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ValueError(
                f"data.column must hold text, but '{self.column}' of {path} holds {kind}; name another of "
                f"{', '.join(schema.names)}"
            )


def _rows_at_once(metadata: Any) -> int:
    """Rows whose text is read together: a few hundred, fewer where they are long."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return min(_ROWS, max(1, _BYTES_AT_ONCE * metadata.num_rows // max(size, 1)))


def _parquet_source(config: DataConfig, root: Path, paths: Iterable[Path]) -> Source:
    """Local files, by name; their identity is where they lie, their sizes and their times."""
    found = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    if not found:
        raise _no_parquet(config)
    stamps = {name: _stamp(path) for name, path in found}
    parts = [
        _ParquetPart(
            name=name,
            size=stamps[name][0],
            column=config.column,
            validation_fraction=config.validation_fraction,
            fetch=_unchanged(path, stamps[name]),
        )
        for name, path in found
    ]
    identity = ["parquet", str(root.resolve()), *((name, *stamps[name]) for name, _ in found)]
    return Source(name=Path(config.corpus).name, identity=identity, list_parts=lambda: parts)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _unchanged(path: Path, stamp: tuple[int, int]) -> Callable[[], Path]:
    def fetch() -> Path:
        if not path.exists() or _stamp(path) != stamp:
            raise _changed(path)
        return path

    return fetch


def _changed(path: Path) -> ValueError:
    return ValueError(
        f"the files of a corpus must stay as they are while it is tokenised, but {path} was changed or taken away; "
        "give the same command again"
    )


def _no_parquet(config: DataConfig) -> ValueError:
    return ValueError(
        f"a corpus must hold text, but under '{config.corpus}' no parquet file matches "
        f"'{config.files or '*' + _PARQUET}'; check data.corpus and data.files"
    )


def _hub_source(config: DataConfig) -> Source:
    """A data set on Hugging Face. Under a whole commit hash it is known without asking, so a built one needs no net."""
    config.refuse("a data set on Hugging Face", "suffixes")
    repository, pattern = config.corpus, config.files or f"*{_PARQUET}"

    def listing() -> tuple[str, list[hub.HubFile]]:
        try:
            commit, files = hub.list_files(repository, config.revision)
        except hub.HubError as error:
            raise _nothing_there(repository, str(error)) from error
        chosen = sorted((f for f in files if fnmatch.fnmatchcase(f.path, pattern)), key=lambda file: file.path)
        if not chosen:
            raise _no_parquet(config)
        return commit, chosen

    def parts_of(commit: str, files: Sequence[hub.HubFile]) -> list[Part]:
        return [
            _ParquetPart(
                name=file.path,
                size=file.size,
                column=config.column,
                validation_fraction=config.validation_fraction,
                fetch=partial(_download, repository, file.path, commit),
            )
            for file in files
        ]

    if config.revision is not None and hub.is_commit(config.revision):
        identity: Any = ["hub", repository, config.revision, pattern]
        return Source(name=repository, identity=identity, list_parts=lambda: parts_of(*listing()))
    commit, files = listing()
    identity = ["hub", repository, *((file.path, file.digest) for file in files)]
    return Source(name=repository, identity=identity, list_parts=lambda: parts_of(commit, files))


def _download(repository: str, path: str, commit: str) -> Path:
    try:
        return hub.fetch_file(repository, path, kind="dataset", revision=commit)
    except hub.HubError as error:
        raise ValueError(
            f"Hugging Face must give each file of a data set, but gave no '{path}' of '{repository}' ({error}); "
            "give the same command again: what was tokenised is kept"
        ) from error
