"""From a run table to everything that is fitted to it, with the held-out error and what to doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from fitting.cost import CostModel
from fitting.estimate import fit_law
from fitting.isoflop import IsoflopFit, fit_isoflop
from fitting.law import Law
from fitting.laws import TestTimeLaw, TrainingLaw, UnifiedLaw
from fitting.objective import HUBER, Objective
from fitting.result import Absent, FittedRange, HeldOut, HeldOutError, HeldOutRow, LawFit, ParameterEstimate, SweepFit
from fitting.table import check_table, finished_rows, law_data, test_time_law_data
from fitting.uncertainty import bootstrap, interval, noise_scale

Progress = Callable[[str, int, int], None]

_BUDGET_TOLERANCE = 0.01
_FEW_RUNS = 12
_MANY_LOST = 0.05


def fit_sweep(
    table: pd.DataFrame,
    *,
    name: str,
    hold_out_largest_budget: bool = False,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> SweepFit:
    """Fit isoFLOP curves, training law, test-time law per model and unified law to a run table.

    `draws` refits give each interval; the same seed gives the same fit. With `hold_out_largest_budget`, nothing is
    fitted to the runs of the largest budget (of the largest token count where the sweep was over tokens), and the
    errors there are in `held_out`. `progress` is called with a stage, how much of it is done, and its total. Raises
    ValueError as `check_table` and `CostModel.from_table` do, and where nothing at all can be fitted; a single fit that
    can't be made is None in the result, with its reason in `absent`.
    """
    if draws < 0:
        raise ValueError(f"draws must be 0 or more, but got {draws}; 200 is usual")
    checked = check_table(table)
    tell = progress or (lambda stage, done, total: None)
    shown, hidden, column = _split(checked) if hold_out_largest_budget else (checked, None, "")
    if finished_rows(shown).empty:
        raise ValueError(
            f"a fit needs finished runs, but {name!r} has none among {len(shown)} rows; finish a run first"
        )
    cost_model = CostModel.from_table(checked)
    absent: list[Absent] = []
    isoflop = _isoflop(shown, cost_model, draws, seed, absent, tell)
    training = _training(shown, draws, seed, absent, tell)
    test_time = _test_time(shown, draws, seed, absent, tell)
    unified = _unified(shown, training, draws, seed, absent, tell)
    has_minimum = isoflop is not None and any(minimum.included for minimum in isoflop.minima)
    if training is None and unified is None and not test_time and not has_minimum:
        reasons = [f"{one.what}: {one.reason}" for one in absent]
        if isoflop is not None:
            reasons.insert(0, f"isoflop: {isoflop.reason}")
        raise ValueError(
            f"a sweep needs enough runs for one fit at least, but {name!r} allows none ({'; '.join(reasons)})"
        )
    fit = SweepFit(
        name=name,
        simulated=bool(checked["simulated"].iloc[0]),
        accounting=str(checked["accounting"].iloc[0]),
        finished_runs=len(finished_rows(shown)),
        fitted=FittedRange.of(shown),
        cost_model=cost_model,
        isoflop=isoflop,
        training=training,
        unified=unified,
        test_time=test_time,
        held_out=None,
        absent=tuple(absent),
        doubts=(),
    )
    if hidden is not None:
        fit = dataclasses.replace(fit, held_out=_held_out(fit, hidden, column))
    return dataclasses.replace(fit, doubts=tuple(_doubts(fit, checked)))


def estimate_law(
    law: Law,
    data: Mapping[str, np.ndarray],
    *,
    draws: int,
    seed: int,
    by_run: bool = False,
    objective: Objective = HUBER,
) -> LawFit:
    """Fit one law with its bootstrap. `by_run` redraws noise run by run, for data with several rows per run.

    Raises ValueError as `fit_law` does.
    """
    estimate = fit_law(law, data, objective)
    runs = data["run_id"] if by_run else None
    drawn = bootstrap(estimate, data, draws=draws, seed=seed, runs=runs) if draws else np.empty((0, 0))
    parameters = tuple(
        ParameterEstimate(
            name=parameter.name,
            meaning=parameter.meaning,
            value=float(estimate.parameters[i]),
            interval=interval(drawn[:, i]) if draws else None,
            at_bound=parameter.name in estimate.at_bounds,
        )
        for i, parameter in enumerate(law.parameters)
    )
    reasons = [f"{name} is at its bound" for name in estimate.at_bounds]
    if not estimate.converged:
        reasons.append("the search ran out of steps")
    if estimate.degenerate:
        reasons.append("the losses do not tell its parameters apart")
    return LawFit(
        law=law.name,
        parameters=parameters,
        objective=estimate.objective,
        delta=objective.delta if np.isfinite(objective.delta) else None,
        rows=len(estimate.residuals),
        runs=len(np.unique(data["run_id"])),
        noise=noise_scale(estimate, runs),
        converged=estimate.converged,
        reasons=tuple(reasons),
        draws=tuple(tuple(float(value) for value in draw) for draw in drawn),
    )


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The table without, and with only, the runs of the largest budget or token count."""
    runs = finished_rows(table)
    column = "budget" if "budget" in runs and runs["budget"].notna().all() else "tokens"
    if runs[column].nunique() < 2:
        raise ValueError(
            f"holding out the largest {column} needs 2 different ones among the finished runs, but there are "
            f"{runs[column].nunique()}; fit without holding out"
        )
    # Token counts of one sweep point may differ by a step's rounding.
    top = table[column] >= runs[column].max() * (1 - _BUDGET_TOLERANCE)
    return table[~top].reset_index(drop=True), table[top].reset_index(drop=True), column


def _isoflop(
    table: pd.DataFrame, cost_model: CostModel, draws: int, seed: int, absent: list[Absent], tell: Progress
) -> IsoflopFit | None:
    try:
        found = fit_isoflop(table, cost_model, draws=draws, seed=seed)
    except ValueError as error:
        absent.append(Absent(what="isoflop", reason=str(error)))
        found = None
    tell("isoFLOP curves", 1, 1)
    return found


def _training(table: pd.DataFrame, draws: int, seed: int, absent: list[Absent], tell: Progress) -> LawFit | None:
    try:
        found = estimate_law(TrainingLaw(), law_data(table), draws=draws, seed=seed)
    except ValueError as error:
        absent.append(Absent(what="training", reason=str(error)))
        found = None
    tell("training law", 1, 1)
    return found


def _test_time(table: pd.DataFrame, draws: int, seed: int, absent: list[Absent], tell: Progress) -> tuple[LawFit, ...]:
    data = test_time_law_data(table)
    runs = list(dict.fromkeys(data["run_id"]))
    fits = []
    reason = "no run was evaluated at other recurrences; fill the columns loss_T1, loss_T2 and so on"
    for done, run_id in enumerate(runs, start=1):
        rows = {name: values[data["run_id"] == run_id] for name, values in data.items()}
        try:
            found = estimate_law(TestTimeLaw(), rows, draws=draws, seed=seed)
            # Draws of each model are not kept: its intervals are, and predictions use the unified law.
            mu = float(rows["mean_recurrence"][0])
            fits.append(dataclasses.replace(found, draws=(), run_id=str(run_id), mean_recurrence=mu))
        except ValueError as error:
            reason = str(error)
        tell("test-time laws", done, len(runs))
    if len(fits) < max(1, len(runs)):
        absent.append(Absent(what="test-time", reason=f"{len(runs) - len(fits)} of {len(runs)} models: {reason}"))
    return tuple(fits)


def _unified(
    table: pd.DataFrame, training: LawFit | None, draws: int, seed: int, absent: list[Absent], tell: Progress
) -> LawFit | None:
    found = None
    if training is None:
        absent.append(Absent(what="unified", reason="it holds the training law, which could not be fitted"))
    else:
        try:
            found = estimate_law(UnifiedLaw(), test_time_law_data(table), draws=draws, seed=seed, by_run=True)
        except ValueError as error:
            absent.append(Absent(what="unified", reason=str(error)))
    tell("unified law", 1, 1)
    return found


def _held_out(fit: SweepFit, hidden: pd.DataFrame, column: str) -> HeldOut:
    runs = finished_rows(hidden)
    measured_at_mu = dict(zip(runs["run_id"], runs["loss"], strict=True))
    rows: list[HeldOutRow] = []
    if fit.training is not None:
        data = law_data(hidden)
        rows += _compared("training law at T = mu", data, fit.training.loss(data), fit.training.loss_interval(data))
    data = test_time_law_data(hidden)
    if fit.unified is not None and len(data["loss"]):
        predicted = fit.unified.loss(data)
        rows += _compared("unified law", data, predicted, fit.unified.loss_interval(data))
        at_mu = fit.unified.loss({**data, "recurrence": data["mean_recurrence"]})
        known = np.array([measured_at_mu[run_id] for run_id in data["run_id"]])
        elsewhere = data["recurrence"] != data["mean_recurrence"]
        rest = {name: values[elsewhere] for name, values in data.items()}
        rows += _compared("unified law, given the loss at T = mu", rest, (predicted - at_mu + known)[elsewhere], None)
    errors = []
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [abs(row.error) for row in rows if row.method == method]
        errors.append(HeldOutError(method=method, mean_absolute_error=float(np.mean(of_method)), rows=len(of_method)))
    value, fitted = float(runs[column].max()), fit.fitted.flops if column == "budget" else fit.fitted.tokens
    return HeldOut(
        column=column,
        value=value,
        runs=len(runs),
        times_beyond=value / fitted[1],
        errors=tuple(errors),
        rows=tuple(rows),
    )


def _compared(
    method: str, data: dict[str, np.ndarray], predicted: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None
) -> list[HeldOutRow]:
    return [
        HeldOutRow(
            method=method,
            run_id=str(data["run_id"][i]),
            mean_recurrence=float(data["mean_recurrence"][i]),
            tokens=float(data["tokens"][i]),
            recurrence=float(data["recurrence"][i]),
            measured=float(data["loss"][i]),
            predicted=float(predicted[i]),
            interval=(float(bounds[0][i]), float(bounds[1][i])) if bounds else None,
            error=float(100 * (predicted[i] / data["loss"][i] - 1)),
        )
        for i in range(len(predicted))
    ]


def _doubts(fit: SweepFit, table: pd.DataFrame) -> list[str]:
    """What a reader should not take on trust, as plain sentences."""
    said = []
    if fit.simulated:
        said.append("Every run is simulated: drawn from a law, not trained.")
    elif not table.duplicated(["mean_recurrence", "backprop_depth", "tokens"]).any():
        said.append("Each cell was trained once: how a loss scatters from seed to seed was not measured.")
    said.append(f"Compute is counted by `{fit.accounting}`; under another accounting the exponents differ.")
    for status in ("diverged", "failed"):
        count = int((table["status"] == status).sum())
        if count:
            said.append(f"{count} of {len(table)} runs {status} and {'is' if count == 1 else 'are'} not fitted.")
    if fit.finished_runs < _FEW_RUNS:
        said.append(f"Only {fit.finished_runs} runs are fitted; intervals from so few are too narrow.")
    said += _budget_doubts(table)
    said += [f"There is no {one.what} fit: {one.reason}." for one in fit.absent]
    if fit.isoflop is not None:
        said += [
            f"The budget of {minimum.budget:.3g} FLOPs does not count: {minimum.reason}."
            for minimum in fit.isoflop.minima
            if not minimum.included
        ]
        said += _edge_doubts(fit.isoflop, table)
        lost = fit.isoflop.redraws_without_minimum
        if lost > _MANY_LOST:
            said.append(
                f"In {lost:.0%} of the redraws behind the exponents' intervals, noise took a budget's minimum away: "
                "the curves hardly show one, and the intervals are too narrow."
            )
        if fit.isoflop.reason:
            said.append(f"isoFLOP: {fit.isoflop.reason}.")
    for law in (fit.training, fit.unified):
        if law is not None:
            said += [f"The {law.law} law: {reason}." for reason in law.reasons]
    bad = [law for law in fit.test_time if law.reasons]
    if bad:
        reasons = ", ".join(sorted({reason for law in bad for reason in law.reasons}))
        said.append(f"{len(bad)} of {len(fit.test_time)} test-time laws: {reasons}.")
    if fit.held_out is not None:
        said.append(
            f"The largest {fit.held_out.column} ({fit.held_out.value:.4g}, {fit.held_out.times_beyond:.1f}x beyond the "
            f"rest, {fit.held_out.runs} runs) was held out of every fit."
        )
        said += [
            f"Held out, {error.method}: mean absolute error {error.mean_absolute_error:.3g}% over {error.rows} losses."
            for error in fit.held_out.errors
        ]
    said.append(f"Beyond {fit.fitted.flops[1]:.3g} FLOPs, the largest fitted compute, every prediction extrapolates.")
    said.append("The intervals' coverage has not been proven.")
    return said


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
    far = (off > _BUDGET_TOLERANCE) & (table["status"] == "finished")
    if not far.any():
        return []
    worst = table["run_id"].iloc[int(np.argmax(off.where(far, -1.0)))]
    return [
        f"{int(far.sum())} runs spent over 1% more or less than their budget, {worst!r} most: "
        f"{100 * float(off[far].max()):.1f}%."
    ]
