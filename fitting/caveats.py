"""What a reader should not take on trust, as plain sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoloop.fitting.estimation.law_fit import LawFit
from isoloop.fitting.isoflop.bias import ParabolaBias
from isoloop.fitting.isoflop.minima import IsoflopFit
from isoloop.fitting.result import SweepFit
from isoloop.fitting.tables.checks import FAR_OFF, provenance, warnings
from isoloop.fitting.tables.runs import diverged_unnoticed, law_data

BUDGET_TOLERANCE = 0.01
_FEW_RUNS = 12
_FEW_FREEDOM = 10
_STRAY = 10.0
"""Times the median distance from the law beyond which a run is named."""
_STRAY_AT_LEAST = 5e-3
_STRAYS_NAMED = 5


def doubts(fit: SweepFit, table: pd.DataFrame) -> list[str]:
    """All there is to doubt about a fit to a checked table."""
    said = provenance(simulated=fit.simulated, accounting=fit.accounting)
    if not fit.simulated and not table.duplicated(["mean_recurrence", "backprop_depth", "tokens"]).any():
        said.insert(0, "Each cell was trained once: how a loss scatters from seed to seed was not measured.")
    for status in ("diverged", "failed"):
        count = int((table["status"] == status).sum())
        if count:
            said.append(f"{count} of {len(table)} runs {status} and {'is' if count == 1 else 'are'} not fitted.")
    said += _left_out(table)
    if fit.finished_runs < _FEW_RUNS:
        runs = "1 run is" if fit.finished_runs == 1 else f"{fit.finished_runs} runs are"
        said.append(f"Only {runs} fitted: a law's form can hardly be told from so few.")
    said += _budget_doubts(table)
    said += warnings(law_data(table))
    said += [f"There is no {one.what} fit: {one.reason}." for one in fit.absent]
    if fit.isoflop is not None:
        said += [
            f"The budget of {minimum.budget:.3g} FLOPs does not count: {minimum.reason}."
            for minimum in fit.isoflop.minima
            if not minimum.included
        ]
        said += _edge_doubts(fit.isoflop, table)
        said += fit.isoflop.notes
        if fit.isoflop.noise is not None and fit.isoflop.noise_freedom < _FEW_FREEDOM:
            said.append(
                f"The noise behind the exponents' intervals ({fit.isoflop.noise:.2g} nats) is how far curves are from "
                f"parabolas, known by {fit.isoflop.noise_freedom} degrees of freedom: where seeds scatter more, the "
                "intervals are too narrow."
            )
        if fit.isoflop.reason:
            said.append(f"isoFLOP: {fit.isoflop.reason}.")
    if fit.training is not None:
        said += _stray_doubts(fit.training, table)
    if fit.parabola_bias is not None:
        said += _bias_doubts(fit.parabola_bias)
    for law in (fit.training, fit.unified, fit.joint_test_time):
        if law is not None:
            said += [f"The {law.law} law: {reason}." for reason in law.reasons]
    bad = [law for law in fit.test_time if law.reasons]
    if bad:
        kinds = sorted({reason for law in bad for reason in law.reasons if not reason.startswith("the interval")})
        reasons = ", ".join(kinds or ["an interval ends at a bound"])
        said.append(f"{len(bad)} of {len(fit.test_time)} test-time laws: {reasons}.")
    if fit.held_out is not None:
        said.append(
            f"The largest {fit.held_out.column} ({fit.held_out.value:.4g}, {fit.held_out.times_beyond:.1f}x beyond the "
            f"rest, {fit.held_out.runs} {'run' if fit.held_out.runs == 1 else 'runs'}) was held out of every fit."
        )
        said += [
            f"Held out, {error.method}: mean absolute error {error.mean_absolute_error:.3g}% over {error.rows} losses."
            for error in fit.held_out.errors
        ]
    said.append(f"Beyond {fit.fitted.flops[1]:.3g} FLOPs, the largest fitted compute, every prediction extrapolates.")
    return said


def _stray_doubts(law: LawFit, table: pd.DataFrame) -> list[str]:
    """Runs that the training law misses by far more than it misses the others."""
    data = law_data(table)
    off = data["loss"] / law.loss(data) - 1
    typical = float(np.median(np.abs(off)))
    stray = np.flatnonzero(np.abs(off) > max(_STRAY * typical, _STRAY_AT_LEAST))
    more = len(stray) - _STRAYS_NAMED
    return [
        f"Run {str(data['run_id'][i])!r} lies {100 * off[i]:+.2g}% off the training law, where half of the runs lie "
        f"within {100 * typical:.2g}%: parabolas, which are least squares, may follow it."
        for i in stray[:_STRAYS_NAMED]
    ] + ([f"{more} more {'run lies' if more == 1 else 'runs lie'} as far off."] if more > 0 else [])


def _bias_doubts(bias: ParabolaBias) -> list[str]:
    """By how much the exponents are the parabola's own."""
    found = bias.axis_exponent
    corrected = f"mu* ~ C^{found.corrected.exponent:.3f} and D* ~ C^{bias.tokens_exponent.corrected.exponent:.3f}"
    said = (
        f"A parabola through skewed curves is drawn aside: on the {bias.law} law's own losses, mu* gets an exponent of "
        f"{found.parabola:.3f} where the law's is {found.exact:.3f}. Corrected: {corrected}, if the losses follow it."
    )
    return [said, *bias.notes]


def _left_out(table: pd.DataFrame) -> list[str]:
    """Runs called finished whose loss only a divergence, another unit or a slip explains."""
    return [
        f"Run {run.run_id!r} is left out of every fit: its loss of {run.loss:.4g} is {FAR_OFF}, so the "
        "run counts as diverged or as an error."
        for run in table[diverged_unnoticed(table)].itertuples()
    ]


def _edge_doubts(isoflop: IsoflopFit, table: pd.DataFrame) -> list[str]:
    """Minima inside the grid although the best run measured stands at its edge."""
    said = []
    for minimum in isoflop.minima:
        runs = table[table["budget"] == minimum.budget].dropna(subset=["loss"])
        best = float(runs.loc[runs["loss"].idxmin(), "mean_recurrence"]) if len(runs) else None
        if minimum.included and best in (runs["mean_recurrence"].min(), runs["mean_recurrence"].max()):
            said.append(
                f"At {minimum.budget:.3g} FLOPs the best run measured is that at {best:g} loops, the grid's edge: the "
                f"minimum at {minimum.mean_recurrence:.3g} rests on the parabola's shape."
            )
    return said


def _budget_doubts(table: pd.DataFrame) -> list[str]:
    if "budget" not in table:
        return []
    off = (table["flops"] / table["budget"] - 1).abs()
    far = (off > BUDGET_TOLERANCE) & (table["status"] == "finished")
    if not far.any():
        return []
    worst = table["run_id"].iloc[int(np.argmax(off.where(far, -1.0)))]
    count, most = int(far.sum()), f"{100 * float(off[far].max()):.1f}%"
    if count == 1:
        return [f"1 run spent over 1% more or less than its budget, {worst!r}: {most}."]
    return [f"{count} runs spent over 1% more or less than their budget, {worst!r} most: {most}."]
