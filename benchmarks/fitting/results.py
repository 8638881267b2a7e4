"""RESULTS.md, section by section: each command writes its own and leaves the others as they are."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS = {"speed": "Speed", "optimum": "Optimum", "coverage": "Coverage", "held-out": "Held-out"}
"""Command and title of each section, in their order in the file."""

_TITLE = "# Fitting, measured"
_SAID = (
    "Every number is from `python -m benchmarks.fitting`; each section says when and on what it was made. Times are of "
    "one thread, in CPU seconds."
)


def write_section(path: Path, command: str, body: str) -> None:
    """Put `body` in the place of the section of `command`, dated and with the machine that it was made on."""
    found = _sections(path.read_text() if path.is_file() else "")
    made = f"Measured {datetime.date.today().isoformat()} on {machine()}, by `python -m benchmarks.fitting {command}`."
    found[SECTIONS[command]] = f"{made}\n\n{body.strip()}\n"
    parts = [f"## {title}\n\n{found[title]}" for title in SECTIONS.values() if title in found]
    path.write_text("\n".join([f"{_TITLE}\n\n{_SAID}\n", *parts]))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine() -> str:
    """What the numbers were made on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    model = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = model[0] if model else platform.processor()
    return (
        f"one of {os.cpu_count()} cores ({name}); numpy {np.__version__}, scipy {scipy.__version__}, "
        f"Python {platform.python_version()}"
    )


def _sections(text: str) -> dict[str, str]:
    """Bodies of the sections by title."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return {title: body.strip() + "\n" for title, body in zip(parts[::2], parts[1::2], strict=True)}
