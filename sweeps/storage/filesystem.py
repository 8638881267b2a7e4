"""A folder on any file system that pyarrow or fsspec knows: listing, small files, large files.

    folder, /folder, file:///folder                      a local disk or a shared one (NFS)
    s3://bucket/folder  gs://bucket/folder  abfs://...   pyarrow's own
    anything://...                                       fsspec, if its package for that scheme is installed

On an object store a file appears when its last byte has arrived; on a disk it is written beside its place and renamed.
Elsewhere, and where an upload fails half-way, a file may be incomplete: a reader must know its size, or how it ends.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from isoloop.sweeps.privacy import HIDDEN, redacted
from isoloop.trainer.files import open_atomically

_CHUNK_BYTES = 16 * 2**20
_OBJECT_STORES = {"s3", "gcs", "abfs"}


class StorageError(OSError):
    """A storage that couldn't be used; it may be away for a while, so a retry can help."""


@dataclass(frozen=True)
class FileInfo:
    """A file's size in bytes and its last change in nanoseconds since 1970, None where the store has no times."""

    size: int
    changed: int | None


class RemoteFolder:
    """The folder at `uri`; all paths are relative to it and can't leave it.

    Raises:
        ValueError: no file system is known for the URI, or the URI can't be read.
    """

    def __init__(self, uri: str) -> None:
        self.name, self._uri = redacted(uri), uri
        self._system, base = _open(uri)
        self._base = base.rstrip("/")
        self._kind = self._system.type_name
        self._token = uuid.uuid4().hex[:8]

    def list(self, folder: str = "") -> dict[str, FileInfo]:
        """Return the files below `folder` by their paths relative to it, without those in or of hidden names."""
        from pyarrow.fs import FileSelector, FileType

        top = self._path(folder) if folder else self._base
        with self._translate_errors(f"listing {folder or 'it'}"):
            infos = self._system.get_file_info(FileSelector(top, recursive=True, allow_not_found=True))
        files = {}
        for info in infos:
            path = info.path.strip("/").removeprefix(top.strip("/")).strip("/")
            if info.type == FileType.File and not any(part.startswith(".") for part in path.split("/")):
                files[path] = FileInfo(info.size, info.mtime_ns if info.mtime is not None else None)
        return files

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""
        place = self._path(path)
        with (
            self._translate_errors(f"reading {path}"),
            suppress(FileNotFoundError),
            self._system.open_input_stream(place) as stream,
        ):
            return bytes(stream.read())
        return None

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, replacing an earlier one."""
        place = self._path(path)
        with self._translate_errors(f"writing {path}"), self._open_for_writing(place) as stream:
            stream.write(content)

    def upload(self, source: Path, path: str) -> int:
        """Copy the local file `source` to `path`, and return the number of bytes.

        Raises:
            FileNotFoundError: `source` doesn't exist (any more).
        """
        place = self._path(path)
        with (
            source.open("rb") as file,
            self._translate_errors(f"writing {path}"),
            self._open_for_writing(place) as stream,
        ):
            shutil.copyfileobj(file, stream, _CHUNK_BYTES)
            return file.tell()

    def download(self, path: str, target: Path, *, size: int) -> None:
        """Copy the file at `path` to the local `target`, whole or not at all.

        Raises:
            StorageError: it doesn't exist, or hasn't `size` bytes.
        """
        place = self._path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._translate_errors(f"reading {path}"), open_atomically(target) as file:
            with self._system.open_input_stream(place) as stream:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
            if file.tell() != size:
                raise OSError(f"it must have {size} bytes, but has {file.tell()}")

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        place = self._path(path)
        with self._translate_errors(f"removing {path}"), suppress(FileNotFoundError):
            self._system.delete_file(place)

    def remove_folder(self, path: str) -> None:
        """Remove a folder with all its files, if it exists."""
        place = self._path(path)
        with self._translate_errors(f"removing {path}"), suppress(FileNotFoundError):
            self._system.delete_dir(place)

    def _path(self, path: str) -> str:
        if any(part in {"", ".", ".."} for part in path.split("/")) or "\\" in path:
            raise ValueError(f"a path in the storage must stay inside it, but got '{path}'; check who wrote it")
        return f"{self._base}/{path}"

    @contextmanager
    def _open_for_writing(self, final: str) -> Iterator[Any]:
        """Yield a stream whose content is at the place `final` after the block."""
        writing = final
        folder, _, name = final.rpartition("/")
        if self._kind not in _OBJECT_STORES:
            self._system.create_dir(folder, recursive=True)
        if self._kind == "local":
            writing = f"{folder}/.{name}.{self._token}.partial"
        stream = self._system.open_output_stream(writing)
        try:
            yield stream
        except BaseException:
            with suppress(Exception):  # pyarrow can't abort an upload: closing makes a file of what was sent
                stream.close()
                if writing != final:
                    self._system.delete_file(writing)
            raise
        stream.close()
        if writing != final:
            self._system.move(writing, final)

    @contextmanager
    def _translate_errors(self, action: str) -> Iterator[None]:
        """Raise any error of the file system as a StorageError without the URI's secrets."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  each fsspec package has errors of its own
            text = _without_secrets(str(error) or type(error).__name__, self._uri)
            raise StorageError(f"the storage {self.name} must be readable and writable, but {action}: {text}") from None


def _open(uri: str) -> tuple[Any, str]:
    """Return the file system and the path on it."""
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        if "Unrecognized filesystem type" not in str(error):
            raise _unusable(uri, str(error)) from None
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, path = url_to_fs(uri, use_listings_cache=False)
    except Exception as error:  # noqa: BLE001  ValueError: unknown; ImportError: not installed; the package's own
        raise _unusable(uri, str(error)) from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _unusable(uri: str, reason: str) -> ValueError:
    return ValueError(
        "a storage must be a folder or a URI that pyarrow or fsspec can open (s3://, gs://, abfs://, file://, or an "
        f"fsspec scheme whose package is installed), but got {redacted(uri)}: {_without_secrets(reason, uri)}"
    )


def _without_secrets(text: str, uri: str) -> str:
    try:
        password = urlsplit(uri).password or ""
    except ValueError:
        password = ""
    text = text.replace(uri, redacted(uri))
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, HIDDEN)
    return redacted(text)
