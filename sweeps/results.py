"""What a sweep's folder holds after fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitting import SweepFit


@dataclass(frozen=True, kw_only=True)
class Results:
    """Both fits of a sweep and its page; a fit that can't be made is None, and there is a reason why.

    `groups` are the same of each group of its runs, where there are several.
    """

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    why_no_hold_out: str | None
    report: Path
    groups: "Mapping[str, Results]" = field(default_factory=dict)
