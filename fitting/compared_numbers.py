"""The numbers of one fit that can stand beside another fit's: exponents, parameters, optima at a compute."""

from __future__ import annotations

import numpy as np

from fitting.catalogue import law_named
from fitting.difference import Counts, Quantity, widened
from fitting.law_fit import LawFit
from fitting.laws import TrainingLaw
from fitting.power_law import PowerLaw
from fitting.predict import searched
from fitting.result import SweepFit
from fitting.uncertainty import interval

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
        found[POWER_LAWS] = (fit.isoflop.reason if fit.isoflop else None) or fit.why_absent("isoflop")
    laws = {"training": fit.training, "unified": fit.unified, "joint-test-time": fit.joint_test_time}
    found |= {LAW_SECTIONS[what]: fit.why_absent(what) for what, law in laws.items() if law is None}
    if fit.training is None:
        found[BEST_MODEL] = fit.why_absent("training")
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
    bounds = searched(fit)
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
