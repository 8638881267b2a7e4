"""From a run table to everything that is fitted to it, with the held-out error and what to doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from isoloop.fitting.caveats import BUDGET_TOLERANCE, fit_caveats
from isoloop.fitting.cost import CostModel
from isoloop.fitting.estimation.bootstrap import BootstrapKind, widening
from isoloop.fitting.estimation.law_fit import LawFit, estimate_law
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.isoflop.bias import ParabolaBias, parabola_bias
from isoloop.fitting.isoflop.minima import IsoflopFit, fit_isoflop
from isoloop.fitting.laws.base import Law
from isoloop.fitting.laws.looped import JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw
from isoloop.fitting.result import FittedRange, HeldOut, MissingFit, SweepFit
from isoloop.fitting.selection.holdout import HeldOutRow, errors_of, held_out_rows
from isoloop.fitting.tables.runs import check_table, finished_rows, law_data, test_time_law_data

Progress = Callable[[str, int, int], None]


def fit_sweep(
    table: pd.DataFrame,
    *,
    name: str,
    hold_out_largest_budget: bool = False,
    draws: int = 1000,
    seed: int = 0,
    objective: Objective = HUBER,
    kind: BootstrapKind = "parametric",
    profiles: bool = False,
    independent: bool = False,
    progress: Progress | None = None,
) -> SweepFit:
    """Fit isoFLOP curves, training law, test-time law per model and jointly, and unified law to a run table.

    The laws are fitted by `objective`, and `draws` refits of that `kind` give each interval (see `bootstrap`), with
    `profiles` the profile likelihood another; the same seed gives the same fit. With `independent`, parabolas in
    log(tokens) are fitted apart as well. With `hold_out_largest_budget`, nothing is fitted to the runs of the largest
    budget (of the largest token count where the sweep was over tokens), and the errors there are in `held_out`.
    `progress` is called with a stage, how much of it is done, and its total. Raises ValueError as `check_table` and
    `CostModel.from_table` do, and where nothing at all can be fitted; a single fit that can't be made is None in the
    result, with its reason in `missing_fits`.
    """
    if draws < 0 or seed < 0:
        raise ValueError(f"draws and seed must be 0 or more, but got {draws} and {seed}; 1000 draws are usual")
    checked = check_table(table)
    shown, hidden, column = _split(checked) if hold_out_largest_budget else (checked, None, "")
    if finished_rows(shown).empty:
        raise ValueError(
            f"a fit needs finished runs, but {name!r} has none among {len(shown)} rows; finish a run first"
        )
    if draws:
        widening(kind, law_data(shown))  # refuses budgets that can't be redrawn, before anything is fitted
    fit = _Fitting(
        table=shown,
        cost_model=CostModel.from_table(checked),
        draws=draws,
        seed=seed,
        objective=objective,
        kind=kind,
        profiles=profiles,
        independent=independent,
        tell=progress or (lambda stage, done, total: None),
        missing_fits=[],
    ).everything(name)
    if hidden is not None:
        fit = dataclasses.replace(fit, held_out=_held_out(fit, hidden, column))
    return dataclasses.replace(fit, caveats=tuple(fit_caveats(fit, checked)))


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    """How every fit to one table is made, and which of them could not be."""

    table: pd.DataFrame
    cost_model: CostModel
    draws: int
    seed: int
    objective: Objective
    kind: BootstrapKind
    profiles: bool
    independent: bool
    tell: Progress
    missing_fits: list[MissingFit]

    def everything(self, name: str) -> SweepFit:
        """All fits, without hold-out and caveats; raises ValueError where nothing can be fitted."""
        isoflop = self.isoflop()
        training = self.law(TrainingLaw(), "training law")
        bias = self.parabola_bias(isoflop, training)
        test_time = self.test_time()
        joint = self.law(JointTestTimeLaw(), "joint test-time law", by_run=True)
        unified = self.unified(training)
        if training is None and unified is None and not test_time and not (isoflop and isoflop.included):
            reasons = [f"{one.name}: {one.reason}" for one in self.missing_fits]
            if isoflop is not None:
                reasons.insert(0, f"isoflop: {isoflop.reason}")
            raise ValueError(
                f"a sweep needs enough runs for one fit at least, but {name!r} allows none ({'; '.join(reasons)})"
            )
        return SweepFit(
            name=name,
            simulated=bool(self.table["simulated"].iloc[0]),
            accounting=str(self.table["accounting"].iloc[0]),
            finished_runs=len(finished_rows(self.table)),
            fitted=FittedRange.of(self.table),
            cost_model=self.cost_model,
            isoflop=isoflop,
            parabola_bias=bias,
            training=training,
            unified=unified,
            joint_test_time=joint,
            test_time=test_time,
            held_out=None,
            missing_fits=tuple(self.missing_fits),
            caveats=(),
        )

    def isoflop(self) -> IsoflopFit | None:
        """The isoFLOP curves; None, and said in `missing_fits`, where there are none."""
        try:
            found = fit_isoflop(
                self.table, self.cost_model, draws=self.draws, seed=self.seed, independent=self.independent
            )
        except ValueError as error:
            self.missing_fits.append(MissingFit(name="isoflop", reason=str(error)))
            found = None
        self.tell("isoFLOP curves", 1, 1)
        return found

    def parabola_bias(self, isoflop: IsoflopFit | None, training: LawFit | None) -> ParabolaBias | None:
        """What the parabolas miss, if the losses follow the training law; None where it or a power law is missing."""
        if isoflop is None or isoflop.axis_law is None or training is None:
            return None
        draws = training.draw_matrix if training.draws else None
        try:
            return parabola_bias(
                isoflop,
                self.table,
                TrainingLaw(),
                training.vector,
                self.cost_model,
                draws,
                widening=training.widening,
            )
        except ValueError as error:
            self.missing_fits.append(MissingFit(name="parabola bias", reason=str(error)))
            return None

    def law(self, law: Law, stage: str, *, by_run: bool = False) -> LawFit | None:
        """One law over all runs; None, and said in `missing_fits`, where it can't be fitted."""
        data = test_time_law_data(self.table) if by_run else law_data(self.table)
        if isinstance(law, JointTestTimeLaw):
            # At T = mu its prediction is what it was given.
            elsewhere = data["recurrence"] != data["mean_recurrence"]
            data = {name: values[elsewhere] for name, values in data.items()}
        try:
            found = self._estimate(law, data, by_run=by_run, profiles=self.profiles)
        except ValueError as error:
            self.missing_fits.append(MissingFit(name=law.name, reason=str(error)))
            found = None
        self.tell(stage, 1, 1)
        return found

    def unified(self, training: LawFit | None) -> LawFit | None:
        """The unified law, where there is a training law for it to hold."""
        if training is not None:
            return self.law(UnifiedLaw(), "unified law", by_run=True)
        self.missing_fits.append(
            MissingFit(name="unified", reason="it holds the training law, which could not be fitted")
        )
        self.tell("unified law", 1, 1)
        return None

    def test_time(self) -> tuple[LawFit, ...]:
        """The test-time law of each model."""
        data = test_time_law_data(self.table)
        runs = list(dict.fromkeys(data["run_id"]))
        fits = []
        reason = "no run was evaluated at other recurrences; fill the columns loss_T1, loss_T2 and so on"
        for done, run_id in enumerate(runs, start=1):
            rows = {name: values[data["run_id"] == run_id] for name, values in data.items()}
            try:
                found = self._estimate(TestTimeLaw(), rows, by_run=False, profiles=False)
                # Draws of each model are not kept: its intervals are, and predictions use the unified law.
                mu = float(rows["mean_recurrence"][0])
                fits.append(dataclasses.replace(found, draws=(), run_id=str(run_id), mean_recurrence=mu))
            except ValueError as error:
                reason = str(error)
            self.tell("test-time laws", done, len(runs))
        if len(fits) < max(1, len(runs)):
            missing = f"{len(runs) - len(fits)} of {len(runs)} models: {reason}"
            self.missing_fits.append(MissingFit(name="test-time", reason=missing))
        return tuple(fits)

    def _estimate(self, law: Law, data: dict[str, np.ndarray], *, by_run: bool, profiles: bool) -> LawFit:
        # One model's losses have no budgets to draw from.
        kind = "parametric" if isinstance(law, TestTimeLaw) else self.kind
        return estimate_law(
            law,
            data,
            draws=self.draws,
            seed=self.seed,
            by_run=by_run,
            objective=self.objective,
            kind=kind,
            profiles=profiles,
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
    top = table[column] >= runs[column].max() * (1 - BUDGET_TOLERANCE)
    return table[~top].reset_index(drop=True), table[top].reset_index(drop=True), column


def _held_out(fit: SweepFit, hidden: pd.DataFrame, column: str) -> HeldOut:
    rows: list[HeldOutRow] = []
    if fit.training is not None:
        data = law_data(hidden)
        rows += held_out_rows(
            "training law at T = mu", data, (fit.training.loss(data), fit.training.loss_interval(data))
        )
    data = test_time_law_data(hidden)
    elsewhere = data["recurrence"] != data["mean_recurrence"]
    rest = {name: values[elsewhere] for name, values in data.items()}
    if fit.unified is not None and len(data["loss"]):
        unified = fit.unified.loss(data)
        rows += held_out_rows("unified law", data, (unified, fit.unified.loss_interval(data)))
        at_mean = fit.unified.loss({**data, "recurrence": data["mean_recurrence"]})
        given = (unified - at_mean + data["loss_at_mean"])[elsewhere]
        rows += held_out_rows("unified law, given the loss at T = mu", rest, (given, None))
    if fit.joint_test_time is not None and len(rest["loss"]):
        predicted_given = fit.joint_test_time.loss(rest), fit.joint_test_time.loss_interval(rest)
        rows += held_out_rows("joint test-time law, given the loss at T = mu", rest, predicted_given)
    runs = finished_rows(hidden)
    value, fitted = float(runs[column].max()), fit.fitted.flops if column == "budget" else fit.fitted.tokens
    return HeldOut(
        column=column,
        value=value,
        runs=len(runs),
        times_beyond=value / fitted[1],
        errors=errors_of(rows),
        rows=tuple(rows),
    )
