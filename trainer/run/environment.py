"""Environment of a run: versions, commit, host, device."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COMMIT_VARIABLE = "ISOLOOP_COMMIT"
_REPORTED_PACKAGES = ("isoloop", "torch", "numpy")
_SOURCE = Path(__file__).resolve().parents[2]


def environment(device: str = "cpu") -> dict[str, str | None]:
    """Return versions, the commit of the code, host and device; None for what is unknown.

    Args:
        device: torch device; torch is imported only for a GPU.
    """
    return {
        **{package: package_version(package) for package in _REPORTED_PACKAGES},
        "python": platform.python_version(),
        "commit": source_commit(),
        "host": platform.node() or None,
        "device_name": _gpu_name(device) if device.startswith("cuda") else _processor_name(),
    }


def usable_device(name: str | None = None) -> str:
    """Return the torch device of that name; by default a GPU, if there is one.

    Raises:
        ValueError: torch can't use it here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()  # a meta tensor has no number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"a device (--device) must be one that torch can use here, but got '{name}': {reason}; leave it out, or "
            "name another one"
        ) from error
    return name


def source_commit(source: Path = _SOURCE) -> str | None:
    """Return the commit checked out in the repository at `source`, or None if there is none.

    `ISOLOOP_COMMIT` takes precedence, for code that was shipped to a worker without its repository. Uncommitted changes
    don't show.
    """
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit
    command = ["git", f"--git-dir={source / '.git'}", "rev-parse", "--quiet", "--verify", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, no commit
        return None


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor_name() -> str | None:
    """Return the processor's name from Linux, or else from Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or None)


def _gpu_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)
