"""Files of results: each command writes a section of its own and leaves the others unchanged."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Results:
    """A file of results: title and introduction, the title of each command's section in order, and their module."""

    title: str
    introduction: str
    sections: Mapping[str, str]
    module: str

    def write(self, path: Path, command: str, body: str, machine: str) -> None:
        """Write `body` as the section of `command`, with the date and the machine."""
        bodies = _sections(path.read_text() if path.is_file() else "")
        made = f"Measured {datetime.date.today().isoformat()} on {machine}, by `python -m {self.module} {command}`."
        bodies[self.sections[command]] = f"{made}\n\n{body.strip()}\n"
        parts = [f"## {title}\n\n{bodies[title]}" for title in self.sections.values() if title in bodies]
        path.write_text("\n".join([f"{self.title}\n\n{self.introduction}\n", *parts]))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def processor() -> str:
    """Describe the processor and its cores."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    model = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({model[0] if model else platform.processor()})"


def _sections(text: str) -> dict[str, str]:
    """Return the bodies of the sections by title."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return {title: body.strip() + "\n" for title, body in zip(parts[::2], parts[1::2], strict=True)}
