"""Where a sweep is driven from: what its record says of this process."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from trainer.environment import environment

_PACKAGES = ("ray", "mlflow", "scipy", "pandas")


@cache
def driver_environment() -> dict[str, str | None]:
    """Versions, the commit of the code, machine and platform; None where there is nothing to tell."""
    return {**environment(), "platform": platform.platform(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
