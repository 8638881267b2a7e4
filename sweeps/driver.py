"""Where a sweep is driven from: what its record says of this process."""

import importlib.metadata
import platform
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

_VERSIONS = ("isoloop", "torch", "ray", "mlflow", "numpy", "scipy", "pandas")


@cache
def driver_environment() -> dict[str, str]:
    """Versions, machine and, where isoloop runs from a checkout, its git commit."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "host": socket.gethostname()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return found | {"executable": sys.executable} | ({"git_commit": commit} if commit else {})


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with `+changes` where it isn't what is run."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--match", ""],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
