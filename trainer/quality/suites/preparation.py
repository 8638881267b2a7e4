"""Preparation of bundles: the data of a suite, unpacked, copied or fetched from Hugging Face, and checked.

These functions follow the documentation of Hugging Face's client; the tests replace it, and they are untested against
the real hub.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from isoloop.trainer import hub
from isoloop.trainer.files import open_atomically
from isoloop.trainer.quality.suites.bundle import DATA, Bundle
from isoloop.trainer.quality.suites.catalogue import VALIDATION_DOCUMENTS
from isoloop.trainer.quality.suites.task import FIELDS, Suite, Task
from isoloop.trainer.quality.suites.task_list import BASELINES, LIST, BundleError

WIKITEXT_REPOSITORY = "EleutherAI/wikitext_document_level"
# Parquet files of texts, by kind of task; validation text is that of the first five files.
PATTERNS = {"rolling": "wikitext-2-raw-v1/test*.parquet", "documents": "*val*.parquet"}
VALIDATION_FILES = 5
_ADVICE = "what was prepared before is as it was; name another source with --from that is whole"


def prepare_suite(
    suite: Suite,
    source: str | None,
    folder: Path,
    *,
    files: str | None = None,
    revision: str | None = None,
    waiting: hub.Waiting = hub.no_waiting,
) -> Bundle:
    """Put the data of a suite into a bundle's folder, after they were checked.

    Args:
        suite: a published suite.
        source: of questions, a bundle: a zip, a folder, or OWNER/NAME of a data set on Hugging Face that holds either.
            Of texts, parquet files: one of them, a folder, or OWNER/NAME. None: the public WikiText-2.
        folder: the bundle; what it holds of other suites stays, and all does if the source isn't whole.
        files: pattern of the parquet files in `source`; None: those of WikiText-2's test split, or `*val*.parquet`.
        revision: branch, tag or commit on Hugging Face.
        waiting: called with a line about what is waited for.

    Raises:
        ValueError: there is no such source; files are missing or short (each is named).
    """
    texts = [task for task in suite.tasks if not task.has_accuracy]
    if source is None and [task.kind for task in texts] == ["rolling"]:
        source = WIKITEXT_REPOSITORY
    if source is None:
        raise ValueError(
            f"the data of '{suite.name}' must come from somewhere; name it with --from: "
            + ("a folder of parquet files" if texts else "the zip or folder of a bundle")
            + ", or OWNER/NAME on Hugging Face"
        )
    if files is not None and not texts:
        raise ValueError(f"--files chooses parquet files, but '{suite.name}' is in a bundle; leave it out")
    if not texts:
        bundle = _local_bundle(source, revision, waiting)
        bundle.check(suite.tasks)
        _copy(bundle, suite, folder)
        return Bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=folder) as place:
        for task in texts:
            pattern = files or PATTERNS[task.kind]
            _write_texts(task, _local_parquet(source, pattern, revision, waiting), Path(place))
        bundle = Bundle(Path(place), _ADVICE)
        bundle.check(suite.tasks)
        _copy(bundle, suite, folder)
    return Bundle(folder)


def _local_bundle(source: str, revision: str | None, waiting: hub.Waiting) -> Bundle:
    """Return the bundle that `source` names, after fetching it from the hub unless it is on the disk."""
    path = Path(source).expanduser()
    if path.exists() or not hub.is_repository(source):
        return Bundle(path, _ADVICE)
    commit, listed = hub.list_files(source, revision, waiting)
    names = [file.path for file in listed]
    zips = [name for name in names if name.endswith(".zip")]
    if len(zips) == 1:
        return Bundle(hub.fetch_file(source, zips[0], kind="dataset", revision=commit, waiting=waiting), _ADVICE)
    wanted = [name for name in names if f"/{DATA}/" in f"/{name}" or PurePosixPath(name).name in (LIST, BASELINES)]
    if not wanted:
        raise BundleError(f"a bundle must hold {DATA}/ or be one zip, but {source} on Hugging Face has neither")
    return Bundle(_snapshot(source, wanted, commit, waiting), _ADVICE)


def _local_parquet(source: str, pattern: str, revision: str | None, waiting: hub.Waiting) -> list[Path]:
    """Return the parquet files that `source` names, in the order of their names."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.parquet") if fnmatch(file.relative_to(path).as_posix(), pattern))
    elif hub.is_repository(source):
        commit, listed = hub.list_files(source, revision, waiting)
        names = sorted(file.path for file in listed if fnmatch(file.path, pattern))
        root = _snapshot(source, names[:VALIDATION_FILES], commit, waiting) if names else path
        found = [root / name for name in names[:VALIDATION_FILES]]
    else:
        raise ValueError(f"--from must be a file or folder, or OWNER/NAME on Hugging Face, but there is no '{source}'")
    if not found:
        raise ValueError(f"there must be a parquet file, but {source} has none that fits '{pattern}'; set --files")
    return found


def _snapshot(repository: str, names: Iterable[str], commit: str, waiting: hub.Waiting) -> Path:
    """Fetch files of a data set, all at one commit, and return the folder in which they lie by their paths."""
    root = None
    for name in names:
        path = hub.fetch_file(repository, name, kind="dataset", revision=commit, waiting=waiting)
        root = path.parents[len(PurePosixPath(name).parts) - 1]
    assert root is not None, "a snapshot has a file"
    return root


def _copy(bundle: Bundle, suite: Suite, folder: Path) -> None:
    """Copy a suite's rows from a bundle, and its list and baselines if the suite has a mean, which needs them."""
    lists = [name for name in (LIST, BASELINES) if suite.score and bundle.has(name)]
    for name in [*dict.fromkeys(f"{DATA}/{task.file}" for task in suite.tasks), *lists]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = bundle.read(name)
        with open_atomically(path) as file:
            file.write(content)


def _write_texts(task: Task, paths: list[Path], folder: Path) -> None:
    """Write the rows of a task of texts from parquet files."""
    (field,) = FIELDS[task.kind]
    path = folder / DATA / task.file
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = VALIDATION_DOCUMENTS if task.kind == "documents" else None
    with open_atomically(path) as file:
        for number, text in enumerate(_texts(paths[:VALIDATION_FILES] if limit else paths, field)):
            if number == limit:
                break
            file.write(json.dumps({field: text}).encode() + b"\n")


def _texts(paths: list[Path], column: str) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    for path in paths:
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=256, columns=[column]):
                yield from batch.column(0).to_pylist()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise ValueError(f"{path} must be a parquet file with the column '{column}', but: {error}") from error
