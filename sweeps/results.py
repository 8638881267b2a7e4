"""What a sweep's folder holds after fitting."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitting import SweepFit


@dataclass(frozen=True, kw_only=True)
class Results:
    """Both fits of a sweep and its page; a fit that can't be made is None, and there is a reason why."""

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    why_no_hold_out: str | None
    report: Path
