"""One side of a comparison: a sweep's fit, of one architecture or of several sizes, and its run table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.result import SweepFit
from isoloop.fitting.sizes.any_fit import AnyFit
from isoloop.fitting.sizes.result import SizesFit
from isoloop.fitting.surface.surface import LossSurface
from isoloop.fitting.tables.contract import check_table, is_dense
from isoloop.fitting.tables.runs import finished_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedSweep:
    """One sweep of a comparison: its fit, its run table, or both.

    Args:
        name: name of the sweep in reports.
        fit: its fit; None if nothing could be fitted, for the reason in `why_no_fit`.
        table: its run table; without it, runs can't be compared at equal FLOPs, and the tokenizer isn't known.
        validation: the text that the losses were measured on, in words; None if it isn't known. Losses on different
            texts are not compared.
        why_no_fit: the reason for a missing fit.

    Raises:
        ValueError: neither fit nor table is given, or the table breaks its contract or has runs of several groups.
    """

    name: str
    fit: AnyFit | None = None
    table: pd.DataFrame | None = None
    validation: str | None = None
    why_no_fit: str = "it was not fitted"

    def __post_init__(self) -> None:
        if self.fit is None and self.table is None:
            raise ValueError(
                f"a sweep to compare must have a fit or a run table, but {self.name!r} has neither; give one"
            )
        if self.table is not None:
            object.__setattr__(self, "table", check_table(self.table))
            groups = [] if "group" not in self.table else list(dict.fromkeys(self.table["group"].astype(str)))
            if len(groups) > 1:
                raise ValueError(
                    f"a comparison takes the runs of one group, but {self.name!r} has {len(groups)} "
                    f"({', '.join(groups[:3])}{', ...' if len(groups) > 3 else ''}); keep the rows of one"
                )

    @property
    def single(self) -> SweepFit | None:
        """Its fit, if that is of one architecture or of dense models."""
        return self.fit if isinstance(self.fit, SweepFit) else None

    @property
    def joint(self) -> SizesFit | None:
        """Its fit, if that is of several sizes."""
        return self.fit if isinstance(self.fit, SizesFit) else None

    @property
    def law(self) -> LawFit | None:
        """The law after training that was asked for, None without one."""
        return self.joint.laws.laws[0] if self.joint else self.single.training if self.single else None

    @property
    def surface(self) -> LossSurface | None:
        """The loss of its models by the laws after training, None without a law."""
        return self.fit.surface if self.fit else None

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of its sizes, if its fit is of several."""
        return tuple(size.label for size in self.joint.sizes) if self.joint else ()

    @property
    def accounting(self) -> str:
        """Accounting of its FLOPs."""
        return self.fit.accounting if self.fit else str(self._rows["accounting"].iloc[0])

    @property
    def axis(self) -> str:
        """The column in which models of one architecture differ: `mean_recurrence`, or `params` for dense models."""
        if self.fit:
            return self.single.axis if self.single else "mean_recurrence"
        return "params" if is_dense(self._rows) else "mean_recurrence"

    @property
    def simulated(self) -> bool:
        """True if its losses were drawn from a law."""
        return self.fit.simulated if self.fit else bool(self._rows["simulated"].iloc[0])

    @property
    def runs(self) -> int:
        """Number of finished runs."""
        return self.fit.finished_runs if self.fit else len(finished_rows(self._rows))

    @property
    def flops_range(self) -> tuple[float, float]:
        """The smallest and the largest measured compute, FLOPs; the budgets if every run has one.

        Raises ValueError without finished runs.
        """
        if self.table is not None:
            rows = finished_rows(self.table)
            if rows.empty:
                raise ValueError(
                    f"a sweep to compare must have finished runs, but {self.name!r} has none; finish a run first"
                )
            column = "budget" if "budget" in rows and rows["budget"].notna().all() else "flops"
            return float(rows[column].min()), float(rows[column].max())
        assert self.fit is not None
        return self.fit.fitted.flops

    @property
    def tokenizer(self) -> str | None:
        """Tokenizer of its tokens and losses; None if the table doesn't have it."""
        known = self.table is not None and "tokenizer" in self.table
        return str(self._rows["tokenizer"].iloc[0]) if known else None

    @property
    def _rows(self) -> pd.DataFrame:
        assert self.table is not None
        return self.table


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """One of two compared sweeps as stored in the comparison: see `ComparedSweep`."""

    name: str
    accounting: str
    simulated: bool
    runs: int
    flops_range: tuple[float, float]
    tokenizer: str | None
    validation: str | None
    sizes: tuple[str, ...] = ()
