"""One of two sweeps that are compared: its fit, its run table, and what its losses were measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoloop.fitting.compare.difference import Counts, Quantity, widened
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.power_law import PowerLaw
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.predict import recurrence_bounds
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.runs import check_table, finished_rows


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


# MERGED compared_numbers
POWER_LAWS = "isoFLOP power laws"
BEST_MODEL = "Best models by the training laws"
LAW_SECTIONS = {"training": "Training law", "unified": "Unified law", "joint-test-time": "Joint test-time law"}
SECTIONS = (POWER_LAWS, *LAW_SECTIONS.values(), BEST_MODEL)
LEAST_LOSS = "least loss"
_ALSO_IN_TRAINING = {"E", "X", "Y", "x", "y"}
_TERM_OF = {"x": "X", "y": "Y", "z": "Z"}
_COUNTED: dict[str, Counts] = {"E": "losses", "X": "losses", "Y": "losses and tokens", "Z": "losses"}


def quantities(fit: SweepFit, middle: float, computes: tuple[float, ...]) -> list[Quantity]:
    """Every number of the fit that can be compared: the power laws' level at `middle` FLOPs, optima at `computes`."""
    found = _power_laws(fit, middle, computes)
    for what, law in (("training", fit.training), ("unified", fit.unified), ("joint-test-time", fit.joint_test_time)):
        if law is not None:
            found += _parameters(law, LAW_SECTIONS[what], skip=set() if what == "training" else _ALSO_IN_TRAINING)
    if fit.training is not None:
        for flops in computes:
            found += _optimum(fit, fit.training, flops)
    return found


def absent_sections(fit: SweepFit | None, why_no_fit: str) -> dict[str, str]:
    """Which of the sections this sweep has nothing for, and why."""
    if fit is None:
        return dict.fromkeys(SECTIONS, why_no_fit)
    found = {}
    if fit.isoflop is None or fit.isoflop.axis_law is None:
        found[POWER_LAWS] = (fit.isoflop.reason if fit.isoflop else None) or fit.why_missing("isoflop")
    laws = {"training": fit.training, "unified": fit.unified, "joint-test-time": fit.joint_test_time}
    found |= {LAW_SECTIONS[what]: fit.why_missing(what) for what, law in laws.items() if law is None}
    if fit.training is None:
        found[BEST_MODEL] = fit.why_missing("training")
    return found


def _power_laws(fit: SweepFit, middle: float, computes: tuple[float, ...]) -> list[Quantity]:
    if fit.isoflop is None:
        return []
    found = []
    named: list[tuple[str, str, Counts, PowerLaw | None]] = [
        ("mu*", "loops", "nothing", fit.isoflop.mean_recurrence_law),
        ("D*", "tokens", "tokens", fit.isoflop.tokens_law),
    ]
    for symbol, _, _, law in named:
        if law is not None:
            found.append(_exponent(f"exponent of {symbol}", law))
    bias = fit.parabola_bias
    if bias is not None:
        for symbol, one in (("mu*", bias.axis_exponent), ("D*", bias.tokens_exponent)):
            found.append(_exponent(f"exponent of {symbol}, without the parabola's bias", one.corrected))
    for symbol, unit, counts, law in named:
        if law is None:
            continue
        for flops in dict.fromkeys((middle, *computes)):
            found.append(_level(symbol, unit, counts, law, flops))
    return found


def _exponent(name: str, law: PowerLaw) -> Quantity:
    draws = np.array(law.draws)[:, 1] if law.draws else None
    return Quantity(
        section=POWER_LAWS,
        name=name,
        unit="1",
        change="difference",
        counts="nothing",
        value=law.exponent,
        interval=law.interval,
        draws=draws,
    )


def _level(name: str, unit: str, counts: Counts, law: PowerLaw, flops: float) -> Quantity:
    draws = None
    if law.draws:
        log_coefficient, exponent = np.array(law.draws).T
        draws = np.exp(log_coefficient + exponent * np.log(flops))
    return Quantity(
        section=POWER_LAWS,
        name=name,
        unit=unit,
        change="ratio",
        counts=counts,
        value=law.at(flops),
        interval=law.interval_at(flops),
        draws=draws,
        flops=flops,
    )


def _parameters(law: LawFit, section: str, *, skip: set[str]) -> list[Quantity]:
    found = []
    names, values = [parameter.name for parameter in law.parameters], law.vector
    bounds = [(parameter.lower, parameter.upper) for parameter in law_named(law.law).parameters]
    for place, parameter in enumerate(law.parameters):
        if parameter.name in skip:
            continue
        amplitude = parameter.name in ("X", "Y", "Z")
        draws, why = (law.draw_matrix[:, place], "") if law.draws else (None, "no refits")
        if draws is not None:
            # A ratio to a term that is not there says nothing, nor does the exponent of one.
            term = _TERM_OF.get(parameter.name)
            if amplitude and (parameter.value <= 0 or bool((draws <= 0).any())):
                why = f"refits reach {parameter.name} = 0"
            elif term in names and values[names.index(term)] <= 0:
                why = f"{parameter.name} says nothing, {term} being 0,"
            limits = bounds[place]
            in_logs = parameter.value > 0 and bool((draws > 0).all())
            draws = None if why else np.clip(widened(parameter.value, draws, law.widening, in_logs=in_logs), *limits)
        found.append(
            Quantity(
                section=section,
                name=parameter.name,
                unit=parameter.unit,
                change="ratio" if amplitude else "difference",
                counts=_COUNTED.get(parameter.name, "nothing"),
                value=parameter.value,
                interval=parameter.interval,
                draws=draws,
                why_no_draws=why,
                note=f"{parameter.name} is at its bound" if parameter.at_bound else "",
            )
        )
    return found


def _optimum(fit: SweepFit, law: LawFit, flops: float) -> list[Quantity]:
    """The training law's best model for `flops`; the loss is the law's own, without the scatter of one more run."""
    bounds = recurrence_bounds(fit)
    best = TrainingLaw().optimum(law.vector, fit.cost_model, flops, bounds)
    drawn = TrainingLaw().optimum(law.draw_matrix, fit.cost_model, flops, bounds) if law.draws else None
    note = "the best mean recurrence is at the end of the search" if bool(best.at_bound) else ""
    numbers: list[tuple[str, str, Counts, float, np.ndarray | None]] = [
        ("mu*", "loops", "nothing", float(best.mean_recurrence), drawn.mean_recurrence if drawn else None),
        ("D*", "tokens", "tokens", float(best.tokens), drawn.tokens if drawn else None),
        (LEAST_LOSS, "nats per token", "losses", float(best.loss), drawn.loss if drawn else None),
    ]
    found = []
    for name, unit, counts, value, draws in numbers:
        wider = None if draws is None else widened(value, draws, law.widening, in_logs=True)
        if wider is not None and name == "mu*":
            wider = np.clip(wider, *bounds)
        for change in ("difference", "ratio") if name == LEAST_LOSS else ("ratio",):
            found.append(
                Quantity(
                    section=BEST_MODEL,
                    name=name,
                    unit=unit,
                    change=change,
                    counts=counts,
                    value=value,
                    interval=None if wider is None else interval(wider),
                    draws=wider,
                    flops=flops,
                    note=note,
                )
            )
    return found
