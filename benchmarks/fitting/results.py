"""The sections of RESULTS.md."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import scipy

from benchmarks.results import Results, processor, table

__all__ = ["RESULTS", "machine", "table", "write_section"]
RESULTS = Path(__file__).with_name("RESULTS.md")
_RESULTS = Results(
    title="# Fitting, measured",
    introduction="Every number is from `python -m benchmarks.fitting`; each section says when and on what it was made. "
    "Times are of one thread, in CPU seconds.",
    sections={
        "speed": "Speed",
        "optimum": "Optimum",
        "worlds": "Coverage where the world is not the law",
        "sizes": "Coverage of joint fits over sizes",
        "coverage": "Coverage",
        "held-out": "Held-out",
        "limited": "Text that runs out",
        "rollouts": "Choosing a law by rollouts",
        "design": "Next runs, designed",
        "design-sizes": "Next runs over sizes, designed",
        "design-farseer": "Next runs of a public pool, designed",
        "quality": "From loss to quality",
    },
    module="benchmarks.fitting",
)


def write_section(path: Path, command: str, body: str) -> None:
    """Replace the section of `command` by `body`, with the date and the machine."""
    _RESULTS.write(path, command, body, machine())


def machine() -> str:
    """Describe the machine and versions."""
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, Python {platform.python_version()}"
    return f"one of {processor()}; {versions}"
