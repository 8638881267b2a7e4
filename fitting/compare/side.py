"""One side of a comparison: a sweep's fit and run table, and the numbers of the fit that can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from isoloop.fitting.answer.recommendation import axis_bounds
from isoloop.fitting.compare.difference import CountedIn, Quantity, widened
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import POWER_LAWS, WITHOUT_BIAS, PowerLaw
from isoloop.fitting.result import SweepFit
from isoloop.fitting.selection.mixture import LawMixture
from isoloop.fitting.tables.contract import check_table, is_dense
from isoloop.fitting.tables.runs import finished_rows

BEST_MODEL = "Best models by the laws after training"
LAW_SECTIONS = {"training": "Training law", "unified": "Unified law", "joint-test-time": "Joint test-time law"}
LOOPED_SECTIONS = (LAW_SECTIONS["unified"], LAW_SECTIONS["joint-test-time"])
"""Sections that dense models can't have."""
SECTIONS = (POWER_LAWS, *LAW_SECTIONS.values(), BEST_MODEL)
LEAST_LOSS = "least loss"
_ALSO_IN_TRAINING = {"E", "X", "Y", "x", "y"}


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
    fit: SweepFit | None = None
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
    def accounting(self) -> str:
        """Accounting of its FLOPs."""
        return self.fit.accounting if self.fit else str(self._rows["accounting"].iloc[0])

    @property
    def axis(self) -> str:
        """The column in which its models differ: `mean_recurrence`, or `params` for dense models."""
        return self.fit.axis if self.fit else "params" if is_dense(self._rows) else "mean_recurrence"

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


def quantities(fit: SweepFit, middle: float, flops: tuple[float, ...]) -> list[Quantity]:
    """Return the comparable numbers of a fit: its parameters, power laws at `middle` FLOPs, and optima at `flops`."""
    numbers = _power_law_quantities(fit, middle, flops)
    for name, law in fit.laws.items():
        if law is not None:
            skip = set() if name == "training" else _ALSO_IN_TRAINING
            numbers += _parameter_quantities(law, LAW_SECTIONS[name], skip=skip)
    if fit.laws_after_training is not None:
        for budget in flops:
            numbers += _optimum_quantities(fit, fit.laws_after_training, budget)
    return numbers


def missing_sections(fit: SweepFit | None, why_no_fit: str) -> dict[str, str]:
    """Return the sections for which this sweep has no numbers, and the reasons."""
    if fit is None:
        return dict.fromkeys(SECTIONS, why_no_fit)
    missing = {}
    if fit.isoflop is None or fit.isoflop.axis_law is None:
        missing[POWER_LAWS] = (fit.isoflop.reason if fit.isoflop else None) or fit.why_missing("isoflop")
    missing |= {LAW_SECTIONS[name]: fit.why_missing(name) for name, law in fit.laws.items() if law is None}
    if fit.training is None:
        missing[BEST_MODEL] = fit.why_missing("training")
    return missing


def _power_law_quantities(fit: SweepFit, middle: float, flops: tuple[float, ...]) -> list[Quantity]:
    if fit.isoflop is None:
        return []
    numbers = []
    # The power laws, and their exponents
    laws: list[tuple[str, str, CountedIn, PowerLaw]] = []
    best = f"{AXES[fit.axis].plain_symbol}*"
    if fit.isoflop.axis_law is not None:
        laws.append((best, AXES[fit.axis].unit, "nothing", fit.isoflop.axis_law))
    if fit.isoflop.tokens_law is not None:
        laws.append(("D*", "tokens", "tokens", fit.isoflop.tokens_law))
    exponents = [(f"exponent of {symbol}", law) for symbol, _, _, law in laws]
    if fit.parabola_bias is not None:
        for symbol, bias in ((best, fit.parabola_bias.axis_exponent), ("D*", fit.parabola_bias.tokens_exponent)):
            exponents.append((f"exponent of {symbol}, {WITHOUT_BIAS}", bias.corrected))
    for name, law in exponents:
        numbers.append(
            Quantity(
                section=POWER_LAWS,
                name=name,
                unit="1",
                change="difference",
                counted_in="nothing",
                value=law.exponent,
                interval=law.interval,
                draws=np.array(law.draws)[:, 1] if law.draws else None,
            )
        )
    # Their levels
    for symbol, unit, counted_in, law in laws:
        for budget in dict.fromkeys((middle, *flops)):
            numbers.append(
                Quantity(
                    section=POWER_LAWS,
                    name=symbol,
                    unit=unit,
                    change="ratio",
                    counted_in=counted_in,
                    value=law.at(budget),
                    interval=law.interval_at(budget),
                    draws=np.exp(law.log_draws_at(budget)) if law.draws else None,
                    flops=budget,
                )
            )
    return numbers


def _parameter_quantities(law: LawFit, section: str, *, skip: set[str]) -> list[Quantity]:
    numbers = []
    values = {parameter.name: parameter.value for parameter in law.parameters}
    in_tokens = law.form.rescaled(np.ones(len(values)), {"tokens": 2.0}) != 1
    for place, (parameter, bounds) in enumerate(zip(law.parameters, law.form.parameters, strict=True)):
        name = parameter.name
        if name in skip:
            continue
        # Parameters that the loss is linear in have its unit; the law says which depend on that of tokens.
        linear = place < law.form.linear_count
        amplitude = linear and name != "E"
        units = [unit for unit, used in (("losses", linear), ("tokens", in_tokens[place])) if used]
        draws, reason = (law.draw_matrix[:, place], "") if law.draws else (None, "no refits")
        if draws is not None:
            # A ratio to a term that is zero means nothing, and neither does the exponent of one.
            if amplitude and (parameter.value <= 0 or bool((draws <= 0).any())):
                reason = f"refits reach {name} = 0"
            elif name.islower() and values.get(name[0].upper(), 1.0) <= 0:
                reason = f"{name} means nothing, {name[0].upper()} being 0,"
            in_logs = parameter.value > 0 and bool((draws > 0).all())
            draws = widened(parameter.value, draws, law.widening, in_logs=in_logs)
            draws = None if reason else np.clip(draws, bounds.lower, bounds.upper)
        numbers.append(
            Quantity(
                section=section,
                name=name,
                unit=parameter.unit,
                change="ratio" if amplitude else "difference",
                counted_in=cast(CountedIn, " and ".join(units) or "nothing"),
                value=parameter.value,
                interval=parameter.interval,
                draws=draws,
                no_draws_reason=reason,
                note=f"{name} is at its bound" if parameter.at_bound else "",
            )
        )
    return numbers


def _optimum_quantities(fit: SweepFit, laws: LawMixture, flops: float) -> list[Quantity]:
    """Return the numbers of the best model for `flops` by the laws after training.

    The loss is the laws' own, without the noise of one more run.
    """
    axis = AXES[fit.axis]
    optimum = laws.optimum(fit.cost_model, flops, axis_bounds(fit))
    best, drawn = optimum.best, optimum.draws
    optima: list[tuple[str, str, CountedIn, float, np.ndarray | None]] = [
        (f"{axis.plain_symbol}*", axis.unit, "nothing", float(best.at), drawn.at if drawn else None),
        ("D*", "tokens", "tokens", float(best.tokens), drawn.tokens if drawn else None),
        (LEAST_LOSS, "nats per token", "losses", float(best.loss), drawn.loss if drawn else None),
    ]
    numbers = []
    for name, unit, counted_in, value, draws in optima:
        for change in ("difference", "ratio") if name == LEAST_LOSS else ("ratio",):
            numbers.append(
                Quantity(
                    section=BEST_MODEL,
                    name=name,
                    unit=unit,
                    change=change,
                    counted_in=counted_in,
                    value=value,
                    interval=None if draws is None else interval(draws),
                    draws=draws,
                    flops=flops,
                    note=f"the best {axis.name} is at the end of the search" if bool(best.at_bound) else "",
                )
            )
    return numbers
