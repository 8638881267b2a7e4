"""The 95% intervals of one simulated sweep, each with the truth that it should hold."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from benchmarks.fitting.cases import BEYOND, Case
from isoloop.fitting.estimation.bootstrap import BOOTSTRAP_KINDS, interval
from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.isoflop.bias import ParabolaBias, parabola_bias
from isoloop.fitting.isoflop.minima import IsoflopFit, fit_isoflop
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.laws.test_time import UnifiedLaw
from isoloop.fitting.simulate import PUBLISHED_BUDGETS
from isoloop.fitting.tables.runs import law_data, test_time_law_data

Held = tuple[float, float, float]
"""Both ends of an interval and the truth; an end is infinite where the interval is open."""
Found = dict[str, dict[str, Held | None]]
"""Intervals by method and by quantity; None where there is no interval."""

TRAINING = "Training law, "
PROFILE, UNIFIED = f"{TRAINING}profile likelihood", "Unified law, parametric by run"
POWER_LAWS = "isoFLOP power laws, against parabolas without noise"
SAME_BUDGETS = f"{POWER_LAWS} at the budgets that count in the sweep"
CORRECTED = "isoFLOP power laws without the parabolas' bias, against the true law's own"
_BUDGETS_TO_REDRAW = 3
SLOW_EVERY = 4
"""Profiles and the unified law take most of the time, so they are made of only one sweep in so many."""
SLOW = PROFILE, UNIFIED
LOSS, MEASURED = "L beyond", "L beyond, measured"


def intervals(case: Case, number: int, draws: int) -> Found:
    """Return all intervals of one sweep."""
    table = case.sweep(number)
    found: Found = {}
    slow_too = number % SLOW_EVERY == 0
    parametric = _training(found, case, number, draws, table, profiles=slow_too)
    if slow_too:
        _unified(found, case, number, draws, table)
    _isoflop(found, case, number, draws, table, parametric)
    return found


def _training(found: Found, case: Case, number: int, draws: int, table: pd.DataFrame, *, profiles: bool) -> LawFit:
    data = law_data(table)
    fits = {
        kind: fit_law(
            TrainingLaw(), data, draws=draws, seed=number, kind=kind, profiles=profiles and kind == "parametric"
        )
        for kind in BOOTSTRAP_KINDS
        if kind != "budgets" or case.budgets >= _BUDGETS_TO_REDRAW
    }
    measured = case.measured_beyond(number)
    for kind, fit in fits.items():
        held = _parameters(fit, case.training)
        for quantity, truth, one in ((LOSS, float(case.optimum.loss), False), (MEASURED, measured, True)):
            bounds = fit.loss_interval(case.beyond, measured=one)
            held[quantity] = (float(bounds[0][0]), float(bounds[1][0]), truth) if bounds else None
        law = TrainingLaw()
        best, drawn = (law.optimum(at, case.cost, BEYOND) for at in (fit.vector, fit.draw_matrix))
        for quantity, name in (("mu* beyond", "mean_recurrence"), ("D* beyond", "tokens")):
            ends = interval(getattr(drawn, name), float(getattr(best, name)), fit.widening)
            held[quantity] = (*ends, float(getattr(case.optimum, name)))
        found[f"{TRAINING}{kind}"] = held
    if profiles:
        found[PROFILE] = _profiles(fits["parametric"], case.training)
    return fits["parametric"]


def _profiles(fit: LawFit, truth: np.ndarray) -> dict[str, Held | None]:
    held: dict[str, Held | None] = {}
    for parameter, true in zip(fit.parameters, truth, strict=True):
        assert parameter.profile is not None
        low, high = parameter.profile
        held[parameter.name] = (-np.inf if low is None else low, np.inf if high is None else high, float(true))
    return held


def _unified(found: Found, case: Case, number: int, draws: int, table: pd.DataFrame) -> None:
    fit = fit_law(UnifiedLaw(), test_time_law_data(table), draws=draws, seed=number, by_run=True)
    found[UNIFIED] = _parameters(fit, case.truth.parameters)


def _parameters(fit: LawFit, truth: np.ndarray) -> dict[str, Held | None]:
    held: dict[str, Held | None] = {}
    for parameter, true in zip(fit.parameters, truth, strict=True):
        assert parameter.interval is not None
        held[parameter.name] = (*parameter.interval, float(true))
    return held


def _isoflop(found: Found, case: Case, number: int, draws: int, table: pd.DataFrame, parametric: LawFit) -> None:
    fit = fit_isoflop(table, case.cost, draws=draws, seed=number)
    silent, true_bias = _without_noise(case)
    found[POWER_LAWS] = _power_laws(fit, silent)
    # A minimum that noise takes out of the grid is missing, and the laws rest on the others.
    included = tuple(minimum.budget for minimum in fit.included)
    found[SAME_BUDGETS] = _power_laws(fit, _without_noise_at(case, included))
    found[CORRECTED] = {"exponent of mu*": None, "exponent of D*": None}
    if true_bias is not None and (bias := _bias(fit, table, case, parametric)) is not None:
        for name, of in (("mu", "axis_exponent"), ("D", "tokens_exponent")):
            ends = getattr(bias, of).corrected.interval
            found[CORRECTED][f"exponent of {name}*"] = _held(ends, getattr(true_bias, of).exact)


def _power_laws(fit: IsoflopFit, silent: IsoflopFit | None) -> dict[str, Held | None]:
    """Return the intervals of the power laws, with their values without noise as truth."""
    held: dict[str, Held | None] = {}
    for symbol, law in (("mu", "mean_recurrence_law"), ("D", "tokens_law")):
        fitted, true = getattr(fit, law), getattr(silent, law, None)
        known = fitted is not None and true is not None
        held[f"exponent of {symbol}*"] = _held(fitted.interval, true.exponent) if known else None
        for budget in (PUBLISHED_BUDGETS[-1], BEYOND):
            name = f"{symbol}* {'beyond' if budget == BEYOND else 'at the top'}"
            held[name] = _held(fitted.interval_at(budget), true.at(budget)) if known else None
    for form, law in (("k C^-g", "loss_law"), ("E + k C^-g", "loss_floor_law")):
        fitted, true = getattr(fit, law), getattr(silent, law, None)
        known = fitted is not None and true is not None
        held[f"L* beyond, {form}"] = _held(fitted.interval_at(BEYOND), float(true.at(BEYOND))) if known else None
    return held


@cache
def _without_noise_at(case: Case, budgets: tuple[float, ...]) -> IsoflopFit | None:
    """Return the noise-free parabolas of these budgets; None if not all of them have a minimum."""
    rows = case.noiseless[case.noiseless["budget"].isin(budgets)]
    if not len(rows):
        return None
    fit = fit_isoflop(rows, case.cost, draws=0)
    return fit if len(fit.included) == len(budgets) else None


def _bias(fit: IsoflopFit, table: pd.DataFrame, case: Case, law: LawFit) -> ParabolaBias | None:
    try:
        return parabola_bias(fit, table, TrainingLaw(), law.vector, case.cost, law.draw_matrix, widening=law.widening)
    except ValueError:  # fewer than two budgets with a minimum
        return None


@cache
def _without_noise(case: Case) -> tuple[IsoflopFit, ParabolaBias | None]:
    """Return the noise-free parabolas of the sweep, and their bias from the true law's optima."""
    fit = fit_isoflop(case.noiseless, case.cost, draws=0)
    if fit.axis_law is None:
        return fit, None
    return fit, parabola_bias(fit, case.noiseless, TrainingLaw(), case.training, case.cost)


def _held(ends: tuple[float, float] | None, truth: float) -> Held | None:
    return None if ends is None else (float(ends[0]), float(ends[1]), float(truth))
