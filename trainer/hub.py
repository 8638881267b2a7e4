"""Files of repositories on Hugging Face: listed at one revision, downloaded one by one into Hugging Face's own cache.

Only these functions use the hub. They follow its client's documentation; the tests replace them, and they are untested
against the real hub.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 2.0
ATTEMPTS = 3

Waiting = Callable[[str], None]
"""Called with a line about what is waited for."""


def no_waiting(line: str) -> None:
    """Ignore a wait."""


class HubError(ValueError):
    """Error raised where Hugging Face can't be reached, or has no such file or repository."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository: its path there, size in bytes, and the hash of its content."""

    path: str
    size: int
    digest: str


def is_repository(name: str) -> bool:
    """Return whether `name` has the form OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def is_commit(revision: str) -> bool:
    """Return whether `revision` is a full commit hash, whose files never change."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def list_files(repository: str, revision: str | None, waiting: Waiting = no_waiting) -> tuple[str, list[HubFile]]:
    """Return the commit of a data set's `revision` (None: main), and its files.

    Raises:
        HubError: there is no network, no such data set or revision, or no permission to read it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub = HfApi()
    wait_for_answer(waiting)
    with _translated_errors():
        commit = hub.dataset_info(repository, revision=revision).sha
        tree = list(hub.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset"))
    return str(commit), [
        HubFile(path=entry.path, size=entry.size, digest=entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    ]


def fetch_file(
    repository: str,
    path: str,
    *,
    kind: Literal["dataset", "model"],
    revision: str | None = None,
    waiting: Waiting = no_waiting,
) -> Path:
    """Return the local path of a repository's file, after downloading it if Hugging Face's cache lacks it.

    Raises:
        HubError: as for `list_files`, or there is no such file.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        wait_for_answer(waiting)
    except HubError:
        cached = try_to_load_from_cache(repository, path, revision=revision, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached)
        raise
    waiting(f"downloading {path}")
    with _translated_errors():
        return Path(hf_hub_download(repository, path, repo_type=kind, revision=revision))


def fetch_model(repository: str, revision: str | None) -> Path:
    """Return the local folder of a model's configuration, weights and tokenizer.

    What the cache lacks is downloaded.

    Raises:
        HubError: as for `list_files`.
    """
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "tokenizer.json", "tokenizer_config.json", "*.safetensors", "*.bin", "*.index.json"]
    download = partial(snapshot_download, repository, revision=revision, allow_patterns=patterns)
    try:
        wait_for_answer(no_waiting)
    except HubError as no_answer:
        try:
            return Path(download(local_files_only=True))
        except Exception:  # noqa: BLE001  it is not in the cache, for which the client has several errors
            raise no_answer from None
    with _translated_errors():
        return Path(download())


def wait_for_answer(waiting: Waiting) -> None:
    """Return once Hugging Face answers: its client would wait for ever for a server that accepts and says nothing.

    Raises:
        HubError: it doesn't answer, after several attempts.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    host = constants.ENDPOINT.partition("://")[2]
    for attempt in range(1, ATTEMPTS + 1):
        waiting(f"waiting for {host}" + (f", try {attempt} of {ATTEMPTS}" if attempt > 1 else ""))
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
            return
        except OfflineModeIsEnabled:  # the client uses its cache, or says so
            return
        except Exception as error:  # the errors of connections have no base that stays the same
            if attempt == ATTEMPTS:
                reason = str(error).strip() or type(error).__name__
                raise HubError(
                    f"{host} did not answer in {ATTEMPTS} attempts: {reason}; check the network, proxy and HF_ENDPOINT"
                ) from error
            time.sleep(PAUSE_SECONDS)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise any error of the hub's client as a HubError with its first line."""
    try:
        yield
    except Exception as error:  # the client's errors have no common base
        lines = str(error).strip().splitlines()
        raise HubError(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}") from error
