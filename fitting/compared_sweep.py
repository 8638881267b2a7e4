"""One of two sweeps that are compared: its fit, its run table, and what its losses were measured on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from fitting.result import SweepFit
from fitting.table import check_table, finished_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedSweep:
    """What is known of one sweep: its fit, its run table, or both.

    Args:
        name: what it is called.
        fit: None where nothing could be fitted; `why_no_fit` then says why.
        table: the run table; without it, runs can't be compared at equal FLOPs, and what is counted isn't known.
        validation: in words, what the losses were measured on; sweeps that differ in it have no comparable losses.
            None where it isn't known.
        why_no_fit: the reason, where there is no fit.

    Raises:
        ValueError: neither fit nor table is given, or the table breaks its contract or has runs of several groups.
    """

    name: str
    fit: SweepFit | None = None
    table: pd.DataFrame | None = None
    validation: str | None = None
    why_no_fit: str = "it was not fitted"

    def __post_init__(self) -> None:
        if self.fit is None and self.table is None:
            raise ValueError(f"a sweep to compare must have a fit or a run table, but {self.name!r} has neither")
        if self.table is not None:
            object.__setattr__(self, "table", check_table(self.table))
            groups = [] if "group" not in self.table else list(dict.fromkeys(self.table["group"].astype(str)))
            if len(groups) > 1:
                raise ValueError(
                    f"a comparison takes the runs of one group, but {self.name!r} has {len(groups)} "
                    f"({', '.join(groups[:3])}{', ...' if len(groups) > 3 else ''}); keep the rows of one"
                )

    @property
    def accounting(self) -> str:
        """How its FLOPs are counted."""
        return self.fit.accounting if self.fit else str(self._rows["accounting"].iloc[0])

    @property
    def simulated(self) -> bool:
        """Whether its losses were drawn from a law."""
        return self.fit.simulated if self.fit else bool(self._rows["simulated"].iloc[0])

    @property
    def runs(self) -> int:
        """Finished runs."""
        return self.fit.finished_runs if self.fit else len(finished_rows(self._rows))

    @property
    def computes(self) -> tuple[float, float]:
        """The least and the largest compute measured, FLOPs: budgets where it has such.

        Raises ValueError without finished runs.
        """
        if self.table is not None:
            rows = finished_rows(self.table)
            if rows.empty:
                raise ValueError(f"a sweep to compare must have finished runs, but {self.name!r} has none")
            column = "budget" if "budget" in rows and rows["budget"].notna().all() else "flops"
            return float(rows[column].min()), float(rows[column].max())
        assert self.fit is not None
        return self.fit.fitted.flops

    @property
    def tokenizer(self) -> str | None:
        """What tokens and losses are counted in; None where the table doesn't say."""
        named = self.table is not None and "tokenizer" in self.table
        return str(self._rows["tokenizer"].iloc[0]) if named else None

    @property
    def _rows(self) -> pd.DataFrame:
        assert self.table is not None
        return self.table


@dataclass(frozen=True, kw_only=True)
class OneSide:
    """One of two compared sweeps, as the comparison tells it. `computes` are the least and the largest, FLOPs."""

    name: str
    simulated: bool
    runs: int
    computes: tuple[float, float]
    tokenizer: str | None
    validation: str | None


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A section that is not compared, because of `side` (A or B), and why."""

    section: str
    side: str
    reason: str
