"""Caveats of a fit, as plain sentences: what in it, or in its table, a reader should not take on trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from isoloop.fitting.cost import Cost, CostModel, MeasuredCost
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.law_fit import EXACT, LawFit
from isoloop.fitting.estimation.outliers import outlier_caveats
from isoloop.fitting.isoflop.bias import ParabolaBias
from isoloop.fitting.isoflop.minima import PURE_POWER_LAW, IsoflopFit, Minimum
from isoloop.fitting.isoflop.power_law import WITHOUT_BIAS
from isoloop.fitting.isoflop.rates import rate_caveats
from isoloop.fitting.result import FittedRange, HeldOut, MissingFit, SweepFit
from isoloop.fitting.tables.checks import IMPLAUSIBLE_LOSS, few_runs_caveats, provenance_caveats, row_caveats
from isoloop.fitting.tables.contract import is_dense
from isoloop.fitting.tables.curves import curve_caveats
from isoloop.fitting.tables.repetition import repetition_caveats, why_repetition_not_fitted
from isoloop.fitting.tables.runs import finished_rows, implausible_rows, law_data
from isoloop.fitting.tables.units import unit_caveats

BUDGET_TOLERANCE = 0.01
_FEW_DOF = 10
_SAME_EXPONENT = 0.005
"""Difference of two exponents that no reader of two digits sees."""


def fit_caveats(fit: SweepFit, table: pd.DataFrame) -> list[str]:
    """Return every caveat of a fit to a checked table, the most important first."""
    runs, data = finished_rows(table), law_data(table)
    # What may make the answer wrong
    caveats = [*unit_caveats(table), *_misfit_caveats(fit)]
    if fit.overthinking is not None:
        caveats.append(f"{fit.overthinking.rise.caveat} {fit.overthinking.sentence}")
    caveats += row_caveats(data)
    laws = fit.laws_after_training
    if laws is not None:
        caveats += _law_caveats(laws.best)
    caveats += few_runs_caveats(fit.finished_runs)
    caveats += implausible_caveats(table)
    caveats += cost_caveats(table, fit.cost_model)
    caveats += continuation_caveats(fit.cost_model)
    repeated = laws.best.form.name if laws is not None and laws.best.form.reads_unique_tokens else ""
    caveats += repetition_caveats(runs, repeated)
    if fit.fitted.epochs is not None and not repeated:
        caveats += [f"No law of repeated text was fitted: {why}." for why in [why_repetition_not_fitted(runs)] if why]
    caveats += rate_caveats(table, fit.isoflop, fit.cost_model)
    # What is less certain than it seems
    if fit.held_out is not None:
        caveats += [
            f"Held out, {error.method}: mean absolute error {error.mean_absolute_error:.3g}% over {error.rows} losses."
            for error in fit.held_out.errors
        ]
    if laws is not None:
        caveats += outlier_caveats(laws.best, data)
    if fit.isoflop is not None:
        caveats += _isoflop_caveats(fit.isoflop, fit.axis, table)
    if fit.parabola_bias is not None:
        caveats += _bias_caveats(fit.parabola_bias)
    caveats += _missed_budgets(table)
    caveats += curve_caveats(runs)
    for law in (fit.unified, fit.joint_test_time):
        caveats += [] if law is None else _law_caveats(law)
    flawed = [law for law in fit.test_time if law.reasons]
    if flawed:
        every = {reason for law in flawed for reason in law.reasons if not reason.startswith("the interval")}
        kinds = sorted({reason.partition(":")[0] for reason in every} if len(every) > len(flawed[0].reasons) else every)
        reasons = ", ".join(kinds or ["an interval ends at a bound"])
        caveats.append(f"{len(flawed)} of {len(fit.test_time)} test-time laws: {reasons}.")
    cell = [name for name in (fit.axis, "backprop_depth", "tokens") if name in table]
    return [*caveats, *run_caveats(fit, table, cell)]


class _Fit(Protocol):
    """The part of a fit that caveats about its runs read."""

    @property
    def simulated(self) -> bool: ...
    @property
    def accounting(self) -> str: ...
    @property
    def fitted(self) -> FittedRange: ...
    @property
    def held_out(self) -> HeldOut | None: ...
    @property
    def missing_fits(self) -> tuple[MissingFit, ...]: ...


def run_caveats(fit: _Fit, table: pd.DataFrame, cell: Sequence[str]) -> list[str]:
    """Return what is missing in a fit, and what its runs are and are not; seeds repeat the columns `cell`."""
    caveats = []
    for reason in dict.fromkeys(missing.reason for missing in fit.missing_fits):
        names = [missing.name for missing in fit.missing_fits if missing.reason == reason]
        caveats.append(f"There is no {' and no '.join(names)} fit: {reason}.")
    # What the runs are, and what they are not
    for status in ("diverged", "failed"):
        count = int((table["status"] == status).sum())
        if count:
            caveats.append(f"{count} of {len(table)} runs {status} and {'is' if count == 1 else 'are'} not fitted.")
    if fit.held_out is not None:
        caveats.append(
            f"The largest {fit.held_out.quantity} ({fit.held_out.value:.4g}, {fit.held_out.times_beyond:.1f}x beyond "
            f"the rest, {fit.held_out.runs} {'run' if fit.held_out.runs == 1 else 'runs'}) was held out of every fit."
        )
    caveats.append(
        f"Beyond {fit.fitted.flops[1]:.3g} FLOPs, the largest fitted compute, every prediction extrapolates."
    )
    if not fit.simulated and not table.duplicated(list(cell)).any():
        caveats.append("Each cell was trained once: how a loss scatters from seed to seed was not measured.")
    caveats += provenance_caveats(simulated=fit.simulated, accounting=fit.accounting, dense=is_dense(table))
    return caveats


def _misfit_caveats(fit: SweepFit) -> list[str]:
    """Return the sentences of laws whose form is wrong; a richer law counts only where predictions rest on it."""
    laws = fit.laws_after_training
    unused = set() if laws is None else {law.form.name for law in laws.laws[1:] if law is not laws.best}
    return [misfit.sentence for misfit in fit.misfits if misfit.significant and misfit.law not in unused]


def _law_caveats(law: LawFit) -> list[str]:
    return [f"The {law.form.name} law: {reason}." for reason in (*law.reasons, *([EXACT] if law.exact else []))]


def implausible_caveats(table: pd.DataFrame) -> list[str]:
    """Return a caveat per run that is left out for its loss."""
    return [
        f"Run {run.run_id!r} is left out of every fit: its loss of {run.loss:.4g} is {IMPLAUSIBLE_LOSS}, so the "
        "run counts as diverged or as an error."
        for run in table[implausible_rows(table)].itertuples()
    ]


def cost_caveats(table: pd.DataFrame, cost: Cost) -> list[str]:
    """Return a caveat if the FLOPs per token of some runs differ from what their cost says by over 1%."""
    runs = finished_rows(table)
    off = (runs["flops"] / runs["tokens"] / cost.flops_per_token(runs[cost.axis]) - 1).abs()
    if not (off > BUDGET_TOLERANCE).any():
        return []
    count, most = int((off > BUDGET_TOLERANCE).sum()), f"{100 * off.max():.3g}%"
    return [
        f"{count} of {len(runs)} runs spent over 1% more or less FLOPs per token than {cost.formula} "
        f"(by up to {most}): D* and predictions at a budget are as uncertain."
    ]


def continuation_caveats(cost: Cost) -> list[str]:
    """Return what the cost of looped models with fewer or more loops than those of the runs assumes."""
    if not isinstance(cost, CostModel | MeasuredCost):
        return []
    low, high = cost.mean_recurrences[0], cost.mean_recurrences[-1]
    sides = [("Above", high, cost.assumption_at(2 * high))]
    if low > 1:
        sides.append(("Below", low, cost.assumption_at(1.0)))
    return [f"{side} {end:g} mean loops the cost assumes {what}." for side, end, what in sides if what]


def _missed_budgets(table: pd.DataFrame) -> list[str]:
    """Return a caveat if finished runs spent over 1% more or less than their budget."""
    if "budget" not in table:
        return []
    deviation = (table["flops"] / table["budget"] - 1).abs()
    missed = (deviation > BUDGET_TOLERANCE) & (table["status"] == "finished")
    if not missed.any():
        return []
    worst = table["run_id"].iloc[int(np.argmax(deviation.where(missed, -1.0)))]
    count, most = int(missed.sum()), f"{100 * float(deviation[missed].max()):.1f}%"
    if count == 1:
        return [f"1 run spent over 1% more or less than its budget, {worst!r}: {most}."]
    return [f"{count} runs spent over 1% more or less than their budget, {worst!r} most: {most}."]


def _isoflop_caveats(isoflop: IsoflopFit, axis: str, table: pd.DataFrame) -> list[str]:
    caveats = _left_out_caveats(isoflop)
    # Minima inside the grid although the best measured run is at its edge
    by_budget = dict(list(table.dropna(subset=["loss"]).groupby("budget"))) if isoflop.included else {}
    for minimum in isoflop.included:
        runs = by_budget[minimum.budget]
        best = float(runs.loc[runs["loss"].idxmin(), axis])
        if best in (runs[axis].min(), runs[axis].max()):
            unit = "parameters" if axis == "params" else "loop" if best == 1 else "loops"
            value = minimum.params if axis == "params" else minimum.mean_recurrence
            caveats.append(
                f"At {minimum.budget:.3g} FLOPs the best measured run has {best:.4g} {unit}, the grid's edge: the "
                f"minimum at {value:.3g} rests on the parabola's shape."
            )
    caveats += sorted(isoflop.notes, key=lambda note: note.startswith(PURE_POWER_LAW))  # which predicts nothing
    if isoflop.axis_law is not None and isoflop.noise is not None and isoflop.noise_dof < _FEW_DOF:
        caveats.append(
            f"The exponents' intervals take their noise ({isoflop.noise:.2g} nats) from how far the losses are from "
            f"parabolas, with {isoflop.noise_dof} degrees of freedom; if losses scatter more from seed to seed, the "
            "intervals are too narrow."
        )
    if isoflop.reason:
        caveats.append(f"isoFLOP: {isoflop.reason}.")
    return caveats


def _left_out_caveats(isoflop: IsoflopFit) -> list[str]:
    """Return one caveat per kind of reason for which budgets are left out of the power laws."""
    kinds: dict[str, list[Minimum]] = {}
    for minimum in isoflop.minima:
        if not minimum.included:
            kinds.setdefault(str(minimum.reason).partition(":")[0], []).append(minimum)
    caveats = []
    for kind, minima in kinds.items():
        *others, last = (f"{minimum.budget:.3g}" for minimum in minima)
        budgets = f"budgets of {', '.join(others)} and {last} FLOPs are" if others else f"budget of {last} FLOPs is"
        details = {minimum.reason for minimum in minima}
        caveats.append(f"The {budgets} left out of the power laws: {details.pop() if len(details) == 1 else kind}.")
    return caveats


def _bias_caveats(bias: ParabolaBias) -> list[str]:
    """Return how far the parabolas bias the exponents, and the exponents without that bias, if that shows."""
    axis = bias.axis_exponent
    if abs(axis.exact - axis.parabola) < _SAME_EXPONENT:
        return list(bias.notes)
    best = "N*" if axis.quantity == AXES["params"].name else "mu*"
    corrected = f"{best} ~ C^{axis.corrected.exponent:.3f} and D* ~ C^{bias.tokens_exponent.corrected.exponent:.3f}"
    return [
        f"The {bias.law} law's own {best} grows as C^{axis.exact:.3f}, but parabolas through its skewed curves read "
        f"C^{axis.parabola:.3f}. {WITHOUT_BIAS.capitalize()}: {corrected}, if losses follow the law.",
        *bias.notes,
    ]
