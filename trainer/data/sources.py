"""Sources of text: the parts of a corpus, and their documents, each with the split that it belongs to.

A text corpus is one part; each parquet file is a part of its own and is streamed. A document's split follows from
names, never from places: from the hash of its file's name relative to the corpus and, for parquet, its row number, or
from the file's name alone where `validation_files` says which are held out. A synthetic text is one part, whose lines
are split by the hash of what they say.
"""

import codecs
import fnmatch
import glob
import hashlib
import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path, PurePath
from typing import Any, Literal

from isoloop.trainer import hub
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.synthetic import SyntheticText, synthetic_text

Split = Literal["train", "validation"]
# Called with (activity, bytes of input done, bytes in total); a total of 0 is unknown.
CorpusProgress = Callable[[str, int, int], None]

STDLIB = "stdlib"
# Left out of `stdlib`: files that are not the library itself, or that differ between installations.
_NOT_STDLIB = {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests"}
_FOREIGN = "__MACOSX"  # what an archiver puts beside the files of others
SHARE_TOLERANCE = 0.1  # relative; whole files that hold out more or less are replaced by a cut within one
_PARQUET = ".parquet"
_DECODED_BYTES = 2**24
_LISTED = 3
_BATCH_ROWS = 256
_BATCH_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its name in messages, UTF-8 text, split, and the bytes of its part that end with it."""

    name: str
    text: bytes
    split: Split
    position: int


@dataclass(frozen=True, kw_only=True)
class Part(ABC):
    """A part of a corpus that is tokenised in one go; `size` is in bytes of input."""

    name: str
    size: int
    validation_fraction: float

    @abstractmethod
    def read(self) -> Iterator[Document]:
        """Yield the documents, always in the same order.

        Raises:
            ValueError: the part can't be read, or has changed since it was listed.
        """


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """A corpus before it is tokenised.

    `identity` (plain data) is the same as long as the text is. `list_parts` is called only if tokens must be built.
    `held_out` is what is held out whole; the size of `rows` may correct the split by their hashes. `notes` are
    sentences about what the text is, what was left out, or is perhaps no text; those about a data set on Hugging Face
    may come with `list_parts`.
    """

    name: str
    identity: Any
    list_parts: Callable[[], Sequence[Part]]
    held_out: Literal["files", "rows", "lines"] = "files"
    notes: list[str] = field(default_factory=list)

    @property
    def has_rows(self) -> bool:
        """True if the documents are rows, each of which may be held out."""
        return self.held_out == "rows"


def no_progress(activity: str, done: int, total: int) -> None:
    """Ignore progress."""


def open_source(config: DataConfig, progress: CorpusProgress = no_progress) -> CorpusSource:
    """Find the text that `config` names. Text files are read once, for their hash; parquet files are only listed.

    Raises:
        ValueError: the corpus doesn't exist or holds no text, or an argument is of no use for this kind of corpus.
    """
    name = config.corpus
    if (synthetic := synthetic_text(config)) is not None:
        return _synthetic_source(config, synthetic)
    if name == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return _text_source(config, root, filter(_is_stdlib, root.rglob("*.py")), progress)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_source(config, path, progress)
    if path.suffix == _PARQUET and path.is_file():
        config.refuse("one parquet file", "suffixes", "files", "revision", "validation_files")
        return _parquet_source(config, path.parent, [path])
    if path.exists():
        config.refuse("one text file", "suffixes", "column", "files", "revision", "validation_files", "max_tokens")
        return _text_source(config, path.parent, [path], progress)
    if glob.has_magic(name):
        config.refuse("a glob", "suffixes", "files", "revision", "validation_files")
        root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        return _parquet_source(config, root, map(Path, glob.glob(str(path), recursive=True)))
    if hub.is_repository(name) and path.suffix not in {_PARQUET, *config.suffixes}:
        return _hub_source(config, lambda line: progress(line, 0, 0))
    raise _no_corpus(name)


def _no_corpus(name: str, hub_error: str | None = None) -> ValueError:
    on_hub = f", nor can it be had from Hugging Face ({hub_error})" if hub_error else ""
    return ValueError(
        f"data.corpus must be '{STDLIB}', a file, folder or glob that exists, or the OWNER/NAME of a data set on "
        f"Hugging Face, but got '{name}': nothing is there{on_hub}; relative paths start at {Path.cwd()}"
    )


def _folder_source(config: DataConfig, folder: Path, progress: CorpusProgress) -> CorpusSource:
    """Read a folder as parquet if `files` is set or there is no text, as text if `suffixes` is set or all is text."""
    files, notes = _list_folder(
        folder, with_hidden=_names_hidden(config.files) or _names_hidden(config.validation_files)
    )
    parquet = [file for file in files if file.suffix == _PARQUET]
    text = [file for file in files if file.suffix in config.suffixes]
    if config.files is None and not config.is_set("suffixes") and parquet and text:
        raise ValueError(
            f"a folder must hold one kind of text, but '{folder}' has {len(parquet)} parquet files and {len(text)} "
            f"files ending in {', '.join(config.suffixes)}; set data.files='*{_PARQUET}', or data.suffixes to those of "
            "the text"
        )
    if config.files is None and (not parquet or config.is_set("suffixes")):
        config.refuse("a folder of text files", "column", "revision", "validation_files")
        source = _text_source(config, folder, text, progress)
        return replace(source, notes=[*notes, *_others(files, config.suffixes), *source.notes])
    config.refuse("a folder of parquet files", "suffixes", "revision")
    matching = [file for file in files if _split_of(config, file.relative_to(folder).as_posix()) is not None]
    return replace(_parquet_source(config, folder, matching), notes=notes)


def _list_folder(folder: Path, *, with_hidden: bool) -> tuple[list[Path], list[str]]:
    """Return the files in a folder and the folders in it, and notes about what was left out."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"every folder of a corpus must be readable, but {error.filename} is not: {error.strerror}; change its "
            "permissions, or move it elsewhere"
        ) from error

    files, hidden, broken, linked = [], [], [], []
    for place, folders, names in os.walk(folder, onerror=refuse):
        linked += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
        for path in (Path(place, name) for name in names):
            if not with_hidden and _is_hidden(path.relative_to(folder)):
                hidden.append(path)
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                broken.append(path)
    linked = [path for path in linked if with_hidden or not _is_hidden(path.relative_to(folder))]
    notes = [_hidden_note(len(hidden))] if hidden else []
    if broken:
        notes.append(f"{_count(broken, 'broken link')} {_were(broken)} left out: {_listed(broken, folder)}")
    if linked:
        notes.append(
            f"{_count(linked, 'linked folder')} {_were(linked)} not read: {_listed(linked, folder)}; if that text "
            "belongs to the corpus, move it there"
        )
    return files, notes


def _others(files: Sequence[Path], suffixes: Sequence[str]) -> list[str]:
    """Return a note about files that have none of the suffixes, if there are any."""
    others = [file for file in files if file.suffix not in suffixes]
    if not others:
        return []
    kinds = sorted({file.suffix or "no suffix" for file in others})
    more = ", ..." if len(kinds) > _LISTED else ""
    return [
        f"{_count(others, 'file')} with other suffixes ({', '.join(kinds[:_LISTED])}{more}) {_were(others)} left out; "
        "data.suffixes names those that are read"
    ]


def _hidden_note(count: int) -> str:
    files, were = ("file", "was") if count == 1 else ("files", "were")
    return f"{count} hidden {files} (or in hidden folders, or {_FOREIGN}) {were} left out; data.files may name them"


def _count(paths: Sequence[Path], noun: str) -> str:
    return f"{len(paths)} {noun}" + ("" if len(paths) == 1 else "s")


def _were(paths: Sequence[Path]) -> str:
    return "was" if len(paths) == 1 else "were"


def _listed(paths: Sequence[Path], folder: Path) -> str:
    """Return the names of a few of the paths, relative to the corpus."""
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return ", ".join([*names[:_LISTED], *(["..."] if len(names) > _LISTED else [])])


def _is_hidden(name: PurePath) -> bool:
    """Return whether a file, or a folder that it is in, is hidden; `name` is relative to the corpus."""
    return any(part.startswith(".") or part == _FOREIGN for part in name.parts)


def _names_hidden(pattern: str | None) -> bool:
    return pattern is not None and _is_hidden(PurePath(pattern))


# Synthetic texts


@dataclass(frozen=True, kw_only=True)
class _SyntheticPart(Part):
    """Lines that are made as they are read. Each is a document, and held out by the hash of its text.

    So a line that is drawn several times is always on the same side, and no line that is held out is trained on.
    """

    text: SyntheticText

    def read(self) -> Iterator[Document]:
        below, position = self.validation_fraction * 2**64, 0
        for number, line in enumerate(self.text.lines()):
            hashed = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big")
            position += len(line)
            yield Document(f"line {number}", line, "validation" if hashed < below else "train", position)


def _synthetic_source(config: DataConfig, text: SyntheticText) -> CorpusSource:
    settings = text.settings.model_dump(mode="json")
    name = f"{config.corpus} (synthetic)"
    part = _SyntheticPart(name=name, size=text.most_bytes, validation_fraction=config.validation_fraction, text=text)
    return CorpusSource(
        name=name,
        identity=["synthetic", config.corpus, settings],
        list_parts=lambda: [part],
        held_out="lines",
        notes=[f"a synthetic text, made by isoloop: {text.description}"],
    )


# Text files


@dataclass(frozen=True)
class _TextFile:
    name: str
    path: Path
    size: int
    digest: str

    def read(self) -> bytes:
        text = _read_file(self.path)
        if hashlib.sha256(text).hexdigest() != self.digest:
            raise _file_changed(self.path)
        return text


@dataclass(frozen=True, kw_only=True)
class _TextPart(Part):
    """All files of a text corpus: `held_out` whole files first, then perhaps one of which `cut_bytes` are held out."""

    files: Sequence[_TextFile]
    held_out: int
    cut_bytes: int

    def read(self) -> Iterator[Document]:
        position = 0
        for number, file in enumerate(self.files):
            if number == self.held_out and self.cut_bytes:
                yield from self._cut(file, position)
            else:
                split: Split = "validation" if number < self.held_out else "train"
                yield Document(str(file.path), file.read(), split, position + file.size)
            position += file.size

    def _cut(self, file: _TextFile, position: int) -> Iterator[Document]:
        """Hold out the end of a file, cut between two lines of several files' text, or else two characters."""
        text = file.read()
        slack = int(SHARE_TOLERANCE / 2 * self.validation_fraction * self.size) if len(self.files) > 1 else 0
        cut = _place_of_cut(text, self.cut_bytes, slack)
        yield Document(str(file.path), text[cut:], "validation", position + len(text) - cut)
        yield Document(str(file.path), text[:cut], "train", position + len(text))


def _place_of_cut(text: bytes, held_out_bytes: int, slack: int) -> int:
    """Return where a text is cut so that its end is held out: after a line within `slack` bytes, or any character."""
    cut = max(1, len(text) - held_out_bytes)
    line = max(text.rfind(b"\n", max(0, cut - slack), cut), text.find(b"\n", cut, min(len(text) - 1, cut + slack)))
    if line >= 0:
        cut = line + 1
    while cut > 1 and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _held_out(sizes: Sequence[int], fraction: float, *, whole: bool) -> tuple[int, int]:
    """Return how many whole files (or rows) are held out, and how many bytes of the next one; 0 if it is not cut.

    Whole ones are held out in their order until they reach the fraction. If the share is then off by more than a
    tenth, and not `whole`, the one with which they reach it is cut instead, as a lone file always is.
    """
    wanted = fraction * sum(sizes)
    if len(sizes) == 1:
        return 0, max(1, round(wanted)) if sizes[0] > 1 else 0
    ends = list(accumulate(sizes))
    count = min(next(number for number, end in enumerate(ends, 1) if end >= wanted), len(sizes) - 1)
    if whole or abs(ends[count - 1] - wanted) <= SHARE_TOLERANCE * wanted:
        return count, 0
    reaching = next(number for number, end in enumerate(ends) if end >= wanted)
    bytes_held = min(max(1, round(wanted) - (ends[reaching] - sizes[reaching])), sizes[reaching] - 1)
    return (reaching, bytes_held) if bytes_held >= 1 else (count, 0)


def _text_source(config: DataConfig, root: Path, paths: Iterable[Path], progress: CorpusProgress) -> CorpusSource:
    paths = [path for path in paths if path.is_file()]
    total, done = sum(path.stat().st_size for path in paths), 0
    files, binary, not_utf8 = [], [], []
    for path in paths:
        text = _read_file(path)
        name = path.relative_to(root).as_posix()
        if b"\0" in text:
            binary.append(path)
        elif not _is_utf8(text):
            not_utf8.append(path)
        files.append(_TextFile(name, path, len(text), hashlib.sha256(text).hexdigest()))
        done += len(text)
        progress("reading", done, total)
    if done < 2:
        raise ValueError(
            f"a corpus must hold text, but '{config.corpus}' has {len(files)} file(s) ending in "
            f"{', '.join(config.suffixes)} with {done} bytes in all; name a file, or a folder with such files"
        )
    files.sort(key=lambda file: hashlib.sha256(file.name.encode(errors="surrogateescape")).digest())
    name = config.corpus if config.corpus == STDLIB else Path(config.corpus).name
    fraction = config.validation_fraction
    held_out, cut = _held_out([file.size for file in files], fraction, whole=config.corpus == STDLIB)
    part = _TextPart(name=name, size=done, validation_fraction=fraction, files=files, held_out=held_out, cut_bytes=cut)
    identity = ["text", *((file.name, file.digest) for file in files)]
    if cut and len(files) > 1:
        identity.append(("cut", f"{held_out}, {cut} bytes"))
    notes = []
    if config.corpus != STDLIB:
        copies = _copies(files[:held_out], files[held_out:])
        empty = [file.path for file in files if not file.size]
        notes = _text_notes(root, empty=empty, copies=copies, binary=binary, not_utf8=not_utf8)
    return CorpusSource(name=name, identity=identity, list_parts=lambda: [part], notes=notes)


def _copies(held_out: Sequence[_TextFile], trained: Sequence[_TextFile]) -> list[Path]:
    """Return the training files whose text is held out, too."""
    texts = {file.digest for file in held_out if file.size}
    return [file.path for file in trained if file.digest in texts]


def _text_notes(
    root: Path, *, empty: Sequence[Path], copies: Sequence[Path], binary: Sequence[Path], not_utf8: Sequence[Path]
) -> list[str]:
    """Return notes about files that are empty, both trained on and held out, or perhaps no text."""
    notes = []
    if empty:
        notes.append(f"{_count(empty, 'empty file')} {_were(empty)} read as text without a character")
    if copies:
        notes.append(
            f"{_count(copies, 'file')} {_were(copies)} kept for training although the same text is held out under "
            f"another name: {_listed(copies, root)}; remove such copies"
        )
    if binary:
        notes.append(
            f"{_count(binary, 'file')} with NUL bytes, as binary files and UTF-16 have them, {_were(binary)} read as "
            f"text: {_listed(binary, root)}; convert or remove such files"
        )
    if not_utf8:
        notes.append(
            f"{_count(not_utf8, 'file')} that {'is' if len(not_utf8) == 1 else 'are'} not UTF-8 {_were(not_utf8)} "
            f"read byte by byte: {_listed(not_utf8, root)}; convert or remove such files"
        )
    return notes


def _is_utf8(text: bytes) -> bool:
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(text)
    try:
        for start in range(0, len(text), _DECODED_BYTES):
            decoder.decode(view[start : start + _DECODED_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _is_stdlib(file: Path) -> bool:
    parts = file.relative_to(sysconfig.get_paths()["stdlib"]).parts
    return not file.name.startswith("_sysconfigdata") and _NOT_STDLIB.isdisjoint(parts)


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"every file of a corpus must be readable, but {file} is not: {error.strerror}") from error


# Parquet files


@dataclass(frozen=True, kw_only=True)
class _RowSplit:
    """Rows whose hash is less than `below` are held out, and of the row whose hash it is the last `cut_bytes`."""

    below: float
    cut_bytes: int = 0
    slack: int = 0


@dataclass(frozen=True, kw_only=True)
class _ParquetPart(Part):
    """One parquet file. `fetch` returns its path on this disk, after downloading it if necessary."""

    column: str
    fetch: Callable[[], Path]
    split: _RowSplit

    def read(self) -> Iterator[Document]:
        for row, text, position in self.rows():
            name, hashed = f"{self.name}, row {row}", self.hash_row(row)
            if hashed == self.split.below and self.split.cut_bytes:
                cut = _place_of_cut(text, self.split.cut_bytes, self.split.slack)
                yield Document(name, text[cut:], "validation", position)
                yield Document(name, text[:cut], "train", position)
            else:
                yield Document(name, text, "validation" if hashed < self.split.below else "train", position)

    def rows(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield the number of each row that has text, the text, and the bytes of the file that end with it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.fetch()
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self._check_column(path, file.schema_arrow)
                rows, row = file.metadata.num_rows, 0
                for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), columns=[self.column]):
                    for text in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                        row += 1
                        if text:  # rows without text are no documents
                            yield row - 1, text, self.size * row // rows
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"every file must be parquet that can be read, but {path} is not: {error}; fetch it again or leave it "
                "out with data.files"
            ) from error

    def hash_row(self, row: int) -> int:
        """Return 64 bits that depend on the file's name in the corpus and the row's number."""
        return int.from_bytes(hashlib.blake2b(f"{self.name}\0{row}".encode(), digest_size=8).digest(), "big")

    def _check_column(self, path: Path, schema: Any) -> None:
        import pyarrow as pa

        columns = schema.names.count(self.column)
        if columns > 1:
            raise ValueError(
                f"data.column must name one column, but {path} has {columns} called '{self.column}'; rename the others"
            )
        if not columns:
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


def _batch_rows(metadata: Any) -> int:
    """Return the number of rows to read together: a few hundred, or fewer if they are long."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES * metadata.num_rows // max(size, 1)))


def _split_of(config: DataConfig, name: str) -> Literal["train", "validation", "both"] | None:
    """Return where the rows of a file go by its name in the corpus; None if the file isn't part of it."""
    if config.validation_files is not None and fnmatch.fnmatchcase(name, config.validation_files):
        return "validation"
    if not fnmatch.fnmatchcase(name, config.files or f"*{_PARQUET}"):
        return None
    return "both" if config.validation_files is None else "train"


def _in_order(config: DataConfig, names: Iterable[str]) -> list[str]:
    """Return the names of a corpus's files in their order, those that are held out whole first.

    Raises:
        ValueError: there are none, or those held out, or the others, are missing.
    """
    ordered = sorted(names, key=lambda name: (_split_of(config, name) != "validation", name))
    splits = {_split_of(config, name) for name in ordered}
    if not splits:
        raise _no_parquet(config, config.files or f"*{_PARQUET}")
    if "train" in splits and "validation" not in splits:
        raise _no_parquet(config, str(config.validation_files))
    if splits == {"validation"}:
        raise ValueError(
            f"a corpus must have files to train on, but all {len(ordered)} under '{config.corpus}' match "
            f"data.validation_files='{config.validation_files}'; narrow it, or check data.files"
        )
    return ordered


def _parquet_part(config: DataConfig, name: str, size: int, fetch: Callable[[], Path]) -> _ParquetPart:
    fraction = config.validation_fraction
    below = {"train": 0.0, "validation": 2.0**64}.get(_split_of(config, name) or "", fraction * 2**64)
    split = _RowSplit(below=below)
    return _ParquetPart(
        name=name, size=size, column=config.column, validation_fraction=fraction, fetch=fetch, split=split
    )


def split_rows_by_size(parts: Sequence[Part], documents: int | None) -> Sequence[Part]:
    """Return the parts of a corpus of rows with another split: whole rows in the order of their hashes, until they
    make up the fraction of the text that is held out, and if they miss it by far the end of one row.

    A split by hashes alone may miss the fraction where rows are few or of unequal size. Only the first `documents`
    rows with text are counted (None: all); later ones, if they are read, are split at the same hash.
    """
    files = [part for part in parts if isinstance(part, _ParquetPart)]
    assert len(files) == len(parts), "the documents are rows"
    rows = ((file.hash_row(row), len(text)) for file in files for row, text, _ in file.rows())
    in_order = sorted(islice(rows, documents))
    if not in_order:
        return parts
    fraction, sizes = files[0].validation_fraction, [size for _, size in in_order]
    held_out, cut = _held_out(sizes, fraction, whole=False)
    slack = int(SHARE_TOLERANCE / 2 * fraction * sum(sizes)) if cut else 0
    split = _RowSplit(below=in_order[held_out][0], cut_bytes=cut, slack=slack)
    return [replace(file, split=split) for file in files]


def _parquet_source(config: DataConfig, root: Path, paths: Iterable[Path]) -> CorpusSource:
    """Read local files in the order of their names; their paths, sizes and times identify them."""
    files = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    names = _in_order(config, files)
    stamps = {name: _stamp(files[name]) for name in names}
    parts = [
        _parquet_part(config, name, stamps[name][0], partial(_check_stamp, files[name], stamps[name])) for name in names
    ]
    identity = ["parquet", str(root.resolve()), *((name, *stamps[name]) for name in names), *_held_out_files(config)]
    return CorpusSource(
        name=Path(config.corpus).name,
        identity=identity,
        list_parts=lambda: parts,
        held_out="rows" if config.validation_files is None else "files",
    )


def _held_out_files(config: DataConfig) -> list[str]:
    """Return what the files held out whole, if there are any, add to a corpus's identity."""
    return [] if config.validation_files is None else [f"held out: {config.validation_files}"]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_stamp(path: Path, stamp: tuple[int, int]) -> Path:
    if not path.exists() or _stamp(path) != stamp:
        raise _file_changed(path)
    return path


def _file_changed(path: Path) -> ValueError:
    return ValueError(
        f"the files of a corpus must not change while it is tokenised, but {path} was changed or removed; rerun the "
        "command"
    )


def _no_parquet(config: DataConfig, pattern: str) -> ValueError:
    setting = "data.validation_files" if pattern == config.validation_files else "data.files"
    return ValueError(
        f"a corpus must hold text, but under '{config.corpus}' no parquet file matches '{pattern}'; check data.corpus "
        f"and {setting}"
    )


def _hub_source(config: DataConfig, waiting: hub.Waiting) -> CorpusSource:
    """Open a data set on Hugging Face. With a full commit hash as its revision, a prepared one needs no network."""
    config.refuse("a data set on Hugging Face", "suffixes")
    repository, pattern = config.corpus, config.files or f"*{_PARQUET}"
    notes: list[str] = []
    held_out: Literal["rows", "files"] = "rows" if config.validation_files is None else "files"

    def list_files() -> tuple[str, list[hub.HubFile]]:
        try:
            commit, files = hub.list_files(repository, config.revision, waiting)
        except hub.HubError as error:
            raise _no_corpus(repository, str(error)) from error
        matching = {file.path: file for file in files if _split_of(config, file.path) is not None}
        named = _names_hidden(pattern) or _names_hidden(config.validation_files)
        shown = _in_order(config, (path for path in matching if named or not _is_hidden(PurePath(path))))
        notes[:] = [_hidden_note(len(matching) - len(shown))] if len(shown) < len(matching) else []
        return commit, [matching[path] for path in shown]

    def make_parts(commit: str, files: Sequence[hub.HubFile]) -> list[Part]:
        return [
            _parquet_part(config, f.path, f.size, partial(_download, repository, f.path, commit, waiting))
            for f in files
        ]

    if config.revision is not None and hub.is_commit(config.revision):
        identity: Any = ["hub", repository, config.revision, pattern, *_held_out_files(config)]
        list_parts: Callable[[], Sequence[Part]] = lambda: make_parts(*list_files())
        return CorpusSource(name=repository, identity=identity, list_parts=list_parts, held_out=held_out, notes=notes)
    commit, files = list_files()
    identity = ["hub", repository, *((file.path, file.digest) for file in files), *_held_out_files(config)]
    list_parts = lambda: make_parts(commit, files)
    return CorpusSource(name=repository, identity=identity, list_parts=list_parts, held_out=held_out, notes=notes)


def _download(repository: str, path: str, commit: str, waiting: hub.Waiting) -> Path:
    try:
        return hub.fetch_file(repository, path, kind="dataset", revision=commit, waiting=waiting)
    except hub.HubError as error:
        raise ValueError(
            f"each file of a data set must be available on Hugging Face, but '{path}' of '{repository}' is not "
            f"({error}); rerun the command: what was tokenised is kept"
        ) from error
