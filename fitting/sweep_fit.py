"""Every fit to one run table: isoFLOP curves, the laws, the errors on held-out runs, and caveats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import pandas as pd

from isoloop.fitting.caveats import fit_caveats
from isoloop.fitting.cost import Cost, cost_of
from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind, widening
from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.rise import RISES, LossRise, loss_rise
from isoloop.fitting.isoflop.bias import parabola_bias
from isoloop.fitting.isoflop.minima import IsoflopFit, fit_isoflop
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named, richer_law
from isoloop.fitting.result import FittedRange, HeldOut, MissingFit, SweepFit
from isoloop.fitting.selection.choose import default_laws
from isoloop.fitting.selection.holdout import CrossValidation, HeldOutRow, cross_validate, errors_of, held_out_rows
from isoloop.fitting.selection.misfit import LEVEL_AT_TEST_TIME, Misfit, law_misfit, misfit_of_models
from isoloop.fitting.selection.mixture import LawMixture, MixturePredictor, mixture_beside, noise_about
from isoloop.fitting.selection.overthinking import Overthinking, overthinking
from isoloop.fitting.tables.best_loss import best_loss_notes, with_best_losses
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.contract import check_runs, is_dense
from isoloop.fitting.tables.repetition import mixed_text_budgets, only_text
from isoloop.fitting.tables.runs import finished_rows, law_data, test_time_law_data

FitProgress = Callable[[str, float, float], None]
"""Called with the part that is being fitted, and how much of all parts is done, and their sum."""

Arguments = ParamSpec("Arguments")
Fitted = TypeVar("Fitted")

_TEST_TIME_LAWS = ("test-time", "joint-test-time", "unified")
_MODELS_AT_MOST, _SOME_MODELS = 200, 20
"""Models that each get a test-time law; of more, some that are spread evenly over the table."""
# Parts of a fit in their order, with their shares of its time, as measured on sweeps of 16 to 42 runs.
_PARTS = {
    "isoFLOP curves": 2.0,
    "law after training": 3.0,
    "richer law after training": 2.0,
    "test-time laws": 4.0,
    "joint test-time law": 3.0,
    "unified law": 8.0,
}
_ROLLOUT_DRAWS, _ROLLOUT_RUNS = 200, 500
"""Refits behind the intervals of rollouts, and runs at most, of more a random sample."""
_NOT_EVALUATED = "no run was evaluated at other recurrences; fill the columns loss_T1, loss_T2 and so on"
_NO_EFFECTIVE_PARAMS = (
    "it extends the training law in N(mu), which needs effective parameters (params_once, params_recurrent), and the "
    "table has none; the loops law takes the place of the training law"
)


def fit_sweep(
    table: pd.DataFrame,
    *,
    name: str,
    law: str | None = None,
    hold_out_largest_budget: bool = False,
    draws: int = 1000,
    seed: int = 0,
    objective: Objective = HUBER,
    kind: BootstrapKind | None = None,
    profiles: bool = False,
    rollouts: bool = False,
    independent: bool = False,
    progress: FitProgress | None = None,
    reading: Sequence[str] = (),
    budget_tolerance: float = SAME_BUDGET,
) -> SweepFit:
    """Fit isoFLOP curves, the law of the loss after training, and the laws of test-time loops to a run table.

    The laws of test-time loops are the test-time law per model and jointly, and the unified law; dense models have
    none.

    Args:
        table: the run table, of looped or of dense models.
        name: name of the sweep, for reports.
        law: the law of the loss after training: the name of one that depends on tokens, or `module:Class`. By default
            the training law, the loops law if the table has no effective parameters, or Chinchilla's for dense models;
            where runs saw their text again, and often enough to tell, these with effective tokens.
        hold_out_largest_budget: fit nothing to the runs of the largest budget (the largest token count, if the runs
            have no budgets), and report the errors there in `held_out`.
        draws: refits behind each interval; 0 for no intervals.
        seed: seed of the refits.
        objective: the function that the fits of laws minimise.
        kind: the kind of bootstrap, see `bootstrap`; by default rows for dense models, for the reasons in
            `default_kind`, and parametric for looped ones.
        profiles: add the interval by profile likelihood of each parameter.
        rollouts: fit the laws after training below each budget, too, and report their errors above it.
        independent: fit parabolas in log(tokens) too, separately.
        progress: called as the stages are done.
        reading: sentences about how the table was read, for the report.
        budget_tolerance: see `check_runs`.

    Raises:
        ValueError: as `check_runs`, `cost_of` and `law_named` do, for a law that a run table can't be
            fitted by, and where nothing at all can be fitted. Any single fit that can't be made is None in the result,
            with its reason in `missing_fits`.
    """
    # Arguments, and the runs to hold out
    if draws < 0 or seed < 0:
        raise ValueError(f"draws and seed must be 0 or more, but got {draws} and {seed}; 1000 draws are usual")
    runs = check_runs(table, budget_tolerance=budget_tolerance)
    checked = with_best_losses(runs.frame)
    if law is None:
        law = default_laws(checked)[0]
    _check_law(law, checked)
    fitted, held_out, column = split_largest(checked) if hold_out_largest_budget else (checked, None, "")
    if finished_rows(fitted).empty:
        raise ValueError(
            f"a fit needs finished runs, but {name!r} has none among {len(fitted)} rows; finish a run first"
        )
    kind = kind or default_kind(law_data(fitted))
    if draws:
        widening(kind, law_data(fitted))  # refuses budgets that can't be resampled, before anything is fitted
    # The fits, their errors on the held-out runs, and their caveats
    fit = _SweepFitter(
        table=fitted,
        cost_model=_cost_with_text(law, checked),
        draws=draws,
        seed=seed,
        objective=objective,
        kind=kind,
        profiles=profiles,
        progress=progress or (lambda stage, done, total: None),
        missing_fits=[],
    ).fit(name, law, independent=independent)
    if held_out is not None:
        fit = dataclasses.replace(fit, held_out=_held_out(fit, held_out, column))
    found = (*runs.notes, *best_loss_notes(runs.frame))
    if rollouts:
        found_rollouts, why_none = law_rollouts(fitted, law, objective=objective, kind=kind, draws=draws)
        fit = dataclasses.replace(fit, rollouts=found_rollouts, why_no_rollouts=why_none)
    notes = (*reading, *(note for note in found if note not in reading))
    return dataclasses.replace(fit, caveats=tuple(fit_caveats(fit, checked)), reading=notes)


def _cost_with_text(law: str, table: pd.DataFrame) -> Cost:
    """Return the cost of a table's models, on the text of its runs where a law of repeated text knows only that one."""
    text = only_text(finished_rows(table)) if law_named(law).reads_unique_tokens else None
    return dataclasses.replace(cost_of(table), unique_tokens=text)


def _check_law(name: str, table: pd.DataFrame) -> None:
    """Raise ValueError unless the law gives the loss after training from columns that a run table has."""
    law = law_named(name)
    if name in _TEST_TIME_LAWS or "tokens" not in law.columns:
        raise ValueError(
            f"the law of a sweep must give the loss after training from tokens and more, but got {name!r}; "
            "choose a law such as training; the laws of test-time loops are fitted anyway"
        )
    missing = [column for column in law.columns if column not in law_data(table)]
    if missing:
        raise ValueError(
            f"the law of a sweep must read columns of a run table, but the {law.name} law reads {', '.join(missing)}; "
            "use another law"
        )


@dataclass(frozen=True, kw_only=True)
class _SweepFitter:
    """The settings that every fit to one table shares, and the reasons of fits that could not be made."""

    table: pd.DataFrame
    cost_model: Cost
    draws: int
    seed: int
    objective: Objective
    kind: BootstrapKind
    profiles: bool
    progress: FitProgress
    missing_fits: list[MissingFit]

    def fit(self, name: str, law: str, *, independent: bool) -> SweepFit:
        """Return all fits, without held-out errors and caveats. Raises ValueError where nothing can be fitted."""
        self._report("isoFLOP curves")
        # The noise, isoFLOP curves, the law of the loss after training, and the bias of the curves if losses follow it
        noise = noise_about(law_named(law), law_data(self.table), self.objective)
        isoflop = self._attempt("isoflop", self._isoflop, independent, noise)
        training = self._attempt(
            "training", self._law, law, law_data(self.table), noise=noise, part="law after training"
        )
        self._report("richer law after training")
        mixture = None if training is None else self._mixture(training, noise)
        bias = None
        if isoflop is not None and isoflop.axis_law is not None and training is not None:
            follows = training if mixture is None else mixture.best
            bias = self._attempt(
                "parabola bias",
                parabola_bias,
                isoflop,
                self.table,
                follows.form,
                follows.vector,
                self.cost_model,
                follows.draw_matrix if follows.draws else None,
                widening=follows.widening,
            )
        misfits = [] if mixture is None else self._misfits_after_training(mixture, noise)
        # The laws of test-time loops
        test_time: tuple[LawFit, ...] = ()
        joint = unified = rising = None
        if not is_dense(self.table):
            data = test_time_law_data(self.table)
            test_time = self._test_time(data)
            if len(data["loss"]):
                joint = self._attempt(
                    "joint-test-time",
                    self._law,
                    "joint-test-time",
                    off_mean(data),
                    by_run=True,
                    part="joint test-time law",
                )
            else:
                self._add_missing("joint-test-time", _NOT_EVALUATED)
            if "effective_params" not in data:
                self._add_missing("unified", _NO_EFFECTIVE_PARAMS)
            elif training is None:
                self._add_missing("unified", "it contains the training law, which could not be fitted")
            elif training.law != "training":
                other = f"this sweep is fitted by the {training.form.name} law"
                self._add_missing("unified", f"it extends the built-in training law, and {other}")
            elif not len(data["loss"]):
                self._add_missing("unified", _NOT_EVALUATED)
            else:
                unified = self._attempt(
                    "unified", self._law, "unified", data, by_run=True, noise=noise, part="unified law"
                )
            rise = loss_rise(data) if len(data["loss"]) else None
            if rise is not None:
                test_time = tuple(_flagged(law, RISES) if law.run_id in rise.runs else law for law in test_time)
                joint, unified = (law and _flagged(law, rise.reason) for law in (joint, unified))
                rising = self._overthinking(rise, data, joint, unified, noise)
            misfits += self._misfits_at_test_time(
                data,
                [own for law in test_time if (own := rising.law_of(law) if rising else law)],
                (rising and rising.extension("unified")) or unified,
                (rising and rising.extension("joint-test-time")) or joint,
            )
        # The result
        if training is None and unified is None and not test_time and not (isoflop and isoflop.included):
            reasons = [f"{missing.name}: {missing.reason}" for missing in self.missing_fits]
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
            cost_model=self.cost_model,  # type: ignore[arg-type]
            isoflop=isoflop,
            parabola_bias=bias,
            noise=noise,
            training=training,
            unified=unified,
            joint_test_time=joint,
            test_time=test_time,
            held_out=None,
            missing_fits=tuple(self.missing_fits),
            caveats=(),
            misfits=tuple(misfits),
            mixture=mixture,
            overthinking=rising,
        )

    def _isoflop(self, independent: bool, noise: NoiseModel | None) -> IsoflopFit:
        """Return the isoFLOP curves. Raises ValueError as `fit_isoflop` does, and where texts of a budget differ."""
        mixed = mixed_text_budgets(finished_rows(self.table))
        if mixed:
            raise ValueError(
                f"isoFLOP curves are of runs that see the same text, but at {mixed[0]:.3g} FLOPs unique tokens differ "
                "and some runs repeat theirs; fit the runs of each text alone"
            )
        return fit_isoflop(
            self.table,
            self.cost_model,
            draws=self.draws,
            seed=self.seed,
            independent=independent,
            noise=noise,
            kind=self.kind,
        )

    def _mixture(self, training: LawFit, noise: NoiseModel | None) -> LawMixture:
        """Return the mixture of the law after training and the one that extends it, if that can be fitted."""
        fitter, data = dataclasses.replace(self, profiles=False), law_data(self.table)
        columns = self.cost_model.columns(1.0, np.ones(1))
        return mixture_beside(training, lambda law: fitter._law(law.name, data, noise=noise), columns)

    def _overthinking(
        self, rise: LossRise, data: Data, joint: LawFit | None, unified: LawFit | None, noise: NoiseModel | None
    ) -> Overthinking:
        """Return the laws that can follow losses which rise with T, beside the published ones."""
        published = [law for law in (joint, unified) if law is not None]
        extensions = []
        for law in published:
            richer = richer_law(law.form)
            assert richer is not None
            rows = off_mean(data) if law is joint else data
            fitter, own = dataclasses.replace(self, profiles=False), None if law is joint else noise
            fit = self._attempt(richer.name, fitter._law, richer.name, rows, by_run=True, noise=own)
            extensions += [fit] if fit is not None else []
        result = overthinking(rise, data, published, extensions)
        # Laws of single models, where they have enough losses
        of_models = []
        for model in rise.least[:_SOME_MODELS]:
            rows = _of_run(data, model.run_id)
            if len(rows["loss"]) > len(law_named("overthinking").parameters):
                fit = fit_law("overthinking", rows, draws=self.draws, seed=self.seed, objective=self.objective)
                of_models.append(_of_model(fit, rows))
        return dataclasses.replace(result, test_time=tuple(of_models))

    def _misfits_after_training(self, mixture: LawMixture, noise: NoiseModel | None) -> list[Misfit]:
        """Return the misfit of each law of the loss after training, the simplest first."""
        data = law_data(self.table)
        misfits: list[Misfit] = []
        richer: LawFit | None = None
        for fit in reversed(mixture.laws):
            misfits.insert(0, law_misfit(fit, data, better_fit=richer, noise=noise))
            richer = fit
        return misfits

    def _misfits_at_test_time(
        self, data: Data, test_time: Sequence[LawFit], unified: LawFit | None, joint: LawFit | None
    ) -> list[Misfit]:
        """Return the misfit of each law of test-time loops."""
        level = LEVEL_AT_TEST_TIME
        of_models = misfit_of_models([law_misfit(fit, _of_run(data, fit.run_id)) for fit in test_time], level)
        return [
            *([law_misfit(unified, data, by_run=True, level=level)] if unified else []),
            *([law_misfit(joint, off_mean(data), by_run=True, level=level)] if joint else []),
            *([of_models] if of_models else []),
        ]

    def _attempt(
        self, name: str, fit: Callable[Arguments, Fitted], *args: Arguments.args, **options: Arguments.kwargs
    ) -> Fitted | None:
        """Return what `fit` returns; None, with the reason among the missing fits, where it raises ValueError."""
        try:
            return fit(*args, **options)
        except ValueError as error:
            self._add_missing(name, str(error))
            return None

    def _report(self, part: str, share: float = 0.0) -> None:
        """Report that `share` of a part of the fit is done."""
        parts = list(_PARTS)[: 3 if is_dense(self.table) else None]
        done = sum(_PARTS[before] for before in parts[: parts.index(part)]) + share * _PARTS[part]
        self.progress(part, done, sum(_PARTS[name] for name in parts))

    def _law(
        self, law: str, data: Data, *, by_run: bool = False, noise: NoiseModel | None = None, part: str | None = None
    ) -> LawFit:
        if part is not None:
            self._report(part)
        return fit_law(
            law,
            data,
            draws=self.draws,
            seed=self.seed,
            by_run=by_run,
            objective=self.objective,
            kind=self.kind,
            profiles=self.profiles,
            check_rise=False,  # rises are looked for in all models together
            noise=noise,
            progress=lambda share: None if part is None else self._report(part, share),
        )

    def _test_time(self, data: Data) -> tuple[LawFit, ...]:
        """Return the test-time law of each model."""
        runs = list(dict.fromkeys(data["run_id"]))
        fits = []
        models = len(runs)
        if models > _MODELS_AT_MOST:
            runs = [runs[i] for i in np.linspace(0, models - 1, _SOME_MODELS).astype(int)]
        reason = _NOT_EVALUATED
        for done, run_id in enumerate(runs):
            self._report("test-time laws", done / len(runs))
            rows = _of_run(data, run_id)
            try:
                # The parametric bootstrap, since one model's losses have no budgets to resample.
                fit = fit_law(
                    "test-time",
                    rows,
                    draws=self.draws,
                    seed=self.seed,
                    objective=self.objective,
                    check_rise=False,
                )
                # Draws of each model are not kept: its intervals are, and predictions use the unified law.
                fits.append(_of_model(fit, rows))
            except ValueError as error:
                reason = str(error)
        if models > len(runs):
            self._add_missing(
                "test-time", f"{models - len(runs)} of {models} models, since {len(runs)} show the spread"
            )
        if len(fits) < max(1, len(runs)):
            count = f"{len(runs) - len(fits)} of {len(runs)} models: " if runs else ""
            self._add_missing("test-time", f"{count}{reason}")
        return tuple(fits)

    def _add_missing(self, name: str, reason: str) -> None:
        self.missing_fits.append(MissingFit(name=name, reason=reason))


def _of_run(data: Data, run_id: str | None) -> dict[str, np.ndarray]:
    """Return the rows of one run."""
    return {name: values[data["run_id"] == run_id] for name, values in data.items()}


def _of_model(fit: LawFit, data: Data) -> LawFit:
    """Return the fit as that of the one model which `data` are of, without its draws."""
    return dataclasses.replace(
        fit, draws=(), run_id=str(data["run_id"][0]), mean_recurrence=float(data["mean_recurrence"][0])
    )


def _flagged(law: LawFit, reason: str) -> LawFit:
    """Return the fit with another reason not to trust it."""
    return dataclasses.replace(law, reasons=(*law.reasons, reason))


def split_largest(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the table without, and with only, the runs of the largest budget or token count, and that column."""
    runs = finished_rows(table)
    column = "budget" if "budget" in runs and runs["budget"].notna().any() else "tokens"
    if runs[column].nunique() < 2:
        raise ValueError(
            f"holding out the largest {column} needs 2 different ones among the finished runs, but there are "
            f"{runs[column].nunique()}; fit without holding out"
        )
    # Token counts of one sweep point may differ by a step's rounding.
    # A run without a budget counts by what it spent.
    values = table["budget"].fillna(table["flops"]) if column == "budget" else table[column]
    largest = values >= runs[column].max() * (1 - SAME_BUDGET)
    return table[~largest].reset_index(drop=True), table[largest].reset_index(drop=True), column


def off_mean(data: Data) -> dict[str, np.ndarray]:
    """Return the rows at T other than mu; at T = mu the joint law predicts the very loss that it was given."""
    others = data["recurrence"] != data["mean_recurrence"]
    return {name: values[others] for name, values in data.items()}


def law_rollouts(
    table: pd.DataFrame, law: str, *, objective: Objective, kind: BootstrapKind, draws: int
) -> tuple[CrossValidation | None, str]:
    """Return the rollouts of a law and of the one that extends it, or None and the reason why there are none.

    They have intervals if the fit has `draws` enough: fewer refits would be too narrow to be judged by.
    """
    enough = _ROLLOUT_DRAWS if draws >= _ROLLOUT_DRAWS else 0
    predictor = MixturePredictor(law=law, objective=objective, kind=kind, draws=enough)
    data = law_data(table)
    if len(data["loss"]) > _ROLLOUT_RUNS:
        sample = np.sort(np.random.default_rng(0).choice(len(data["loss"]), _ROLLOUT_RUNS, replace=False))
        data = {name: values[sample] for name, values in data.items()}
    try:
        found = cross_validate(data, [predictor], "larger budgets")
    except ValueError as error:
        return None, str(error)
    if found.missing:
        (_, reason), *_ = found.missing
        return None, reason
    return found, ""


def _held_out(fit: SweepFit, table: pd.DataFrame, column: str) -> HeldOut:
    """Return the errors of every law on the runs of `table`, which were held out by their largest `column`."""
    rows: list[HeldOutRow] = []
    # At T = mu.
    laws = fit.laws_after_training
    if laws is not None:
        data = law_data(table)
        rows += held_out_rows(fit.method_after_training, data, (laws.loss(data), laws.loss_interval(data)))
    # At every T that was measured.
    data = {"loss": np.empty(0), **({} if is_dense(table) else test_time_law_data(table))}
    others = data if is_dense(table) else off_mean(data)
    unified, joint = fit.loops_law("unified"), fit.loops_law("joint-test-time")
    if unified is not None and len(data["loss"]):
        rows += held_out_rows("unified law", data, (unified.loss(data), unified.loss_interval(data)))
        at_mean = unified.loss({**others, "recurrence": others["mean_recurrence"]})
        given = unified.loss(others) - at_mean + others["loss_at_mean"]
        rows += held_out_rows("unified law, given the loss at T = mu", others, (given, None))
    if joint is not None and len(others["loss"]):
        predicted = joint.loss(others), joint.loss_interval(others)
        rows += held_out_rows("joint test-time law, given the loss at T = mu", others, predicted)
    runs = finished_rows(table)
    value, fitted = float(runs[column].max()), fit.fitted.flops if column == "budget" else fit.fitted.tokens
    return HeldOut(
        column=column,
        value=value,
        runs=len(runs),
        times_beyond=value / fitted[1],
        errors=errors_of(rows),
        rows=tuple(rows),
    )
