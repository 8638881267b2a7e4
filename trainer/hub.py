"""Files of repositories on Hugging Face: listed at one revision, fetched one by one into Hugging Face's own cache.

These functions are all that talks to the hub. They have been written from its documentation and have not been run
against it: where this was built there is no network. The tests put others in their place.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(ValueError):
    """Hugging Face could not be asked, or has no such thing."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository: its path there, bytes, and the hash of its content."""

    path: str
    size: int
    digest: str


def is_repository(name: str) -> bool:
    """Whether `name` reads OWNER/NAME."""
    return _REPOSITORY.fullmatch(name) is not None


def is_commit(revision: str) -> bool:
    """Whether `revision` is a whole commit hash, whose files never change."""
    return _COMMIT.fullmatch(revision) is not None


def list_files(repository: str, revision: str | None) -> tuple[str, list[HubFile]]:
    """The commit that `revision` (None: main) of a data set stands for, and its files.

    Raises:
        HubError: no network, no such data set or revision, or no right to read it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub = HfApi()
    try:
        commit = hub.dataset_info(repository, revision=revision).sha
        tree = list(hub.list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset"))
    except Exception as error:  # the client's errors have no base in common
        raise HubError(_first_line(error)) from error
    return str(commit), [
        HubFile(path=entry.path, size=entry.size, digest=entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    ]


def fetch_file(repository: str, path: str, *, kind: Literal["dataset", "model"], revision: str | None = None) -> Path:
    """A file of a repository on this disk, downloaded where Hugging Face's cache doesn't hold it yet.

    Raises:
        HubError: as for `list_files`, or no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(hf_hub_download(repository, path, repo_type=kind, revision=revision))
    except Exception as error:  # as above
        raise HubError(_first_line(error)) from error


def fetch_model(repository: str, revision: str | None) -> Path:
    """The folder of a model's configuration and weights on this disk, downloaded where the cache doesn't hold them yet.

    Raises:
        HubError: as for `list_files`.
    """
    from huggingface_hub import snapshot_download

    try:
        wanted = ["config.json", "*.safetensors", "*.bin"]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # as above
        raise HubError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
