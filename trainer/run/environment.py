"""What a run was executed with and where: versions, commit, host, device."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT_VARIABLE = "ISOLOOP_COMMIT"
_PACKAGES = ("isoloop", "torch", "numpy")
_SOURCE = Path(__file__).resolve().parents[2]


def environment(device: str = "cpu") -> dict[str, str | None]:
    """Versions of what computes, the commit of the code, host and device; None where there is nothing to tell.

    Args:
        device: torch device; torch is asked only where it is a GPU.
    """
    return {
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "commit": source_commit(),
        "host": platform.node() or None,
        "device_name": _gpu_name(device) if device.startswith("cuda") else _processor_name(),
    }


def source_commit(source: Path = _SOURCE) -> str | None:
    """The commit that the code in `source` is of, read from its repository; None if it has none.

    `ISOLOOP_COMMIT` goes before, for code that was brought to a worker without its repository. Changes that were not
    committed don't show.
    """
    return os.environ.get(COMMIT_VARIABLE) or _head(source / ".git")


def _head(git: Path) -> str | None:
    """The commit checked out in the repository at `git`: a folder or, in a linked worktree, a file that names it."""
    try:
        if git.is_file():
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
    except OSError:
        return None
    if not head.startswith("ref:"):
        return head
    name, common = head.removeprefix("ref:").strip(), git / "commondir"
    if common.exists():
        git = git / common.read_text().strip()
    if (git / name).exists():
        return (git / name).read_text().strip()
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor_name() -> str | None:
    """The processor's name as Linux tells it, else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or None)


def _gpu_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)
