"""The joint fit of runs of several sizes: the law, its rivals, the best models through budgets, and caveats."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from isoloop.fitting.caveats import BUDGET_TOLERANCE, implausible_caveats, run_caveats
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind, widening
from isoloop.fitting.estimation.law_fit import EXACT, LawFit, fit_law
from isoloop.fitting.estimation.noise import NoiseModel
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.outliers import outlier_caveats
from isoloop.fitting.isoflop.rates import rate_caveats
from isoloop.fitting.laws.base import Data, Law
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.result import FittedRange, HeldOut, MissingFit
from isoloop.fitting.selection.choose import REPEATED_SIZES_LAWS, SIZES_LAWS, default_laws
from isoloop.fitting.selection.holdout import (
    HeldOutRow,
    HoldOutBy,
    LawPredictor,
    cross_validate,
    errors_of,
    held_out_rows,
)
from isoloop.fitting.selection.misfit import Misfit, law_misfit
from isoloop.fitting.selection.mixture import NAMED_WEIGHT, LawMixture, mixture_beside, noise_about
from isoloop.fitting.sizes.alone import alone_caveats, sizes_alone
from isoloop.fitting.sizes.frontier import frontier
from isoloop.fitting.sizes.result import FittedSize, LawComparison, SizeAlone, SizesFit
from isoloop.fitting.sweep_fit import FitProgress, law_rollouts, off_mean, split_largest
from isoloop.fitting.tables.best_loss import best_loss_notes
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.checks import few_runs_caveats, row_caveats
from isoloop.fitting.tables.contract import check_runs, is_dense
from isoloop.fitting.tables.repetition import only_text, repetition_caveats
from isoloop.fitting.tables.runs import finished_rows, law_data, test_time_law_data
from isoloop.fitting.tables.units import unit_caveats

SHAPE = ("effective_params_fixed", "effective_params_per_loop")
_CLEARLY_BETTER = 0.9
"""Ratio of held-out errors up to which a rival law is said to predict better."""
_MOST_BUDGETS = 12
"""Points of the frontier within the runs; of more budgets, some that are spread evenly."""
_BEYOND = (2.0, 10.0)
"""Points of the frontier beyond the runs, as multiples of the largest fitted compute."""
# Parts of a fit in their order, with their shares of its time, as measured on 126 runs of three sizes.
_PARTS = {
    "joint law over sizes": 3.0,
    "laws beside it": 8.0,
    "rival laws": 3.0,
    "best models": 12.0,
    "each size alone": 3.0,
}


def several_sizes(table: pd.DataFrame) -> bool:
    """Return True if a checked run table has finished looped runs of several sizes with their effective parameters."""
    if not set(SHAPE) <= set(table) or is_dense(table):
        return False
    return len(finished_rows(table)[list(SHAPE)].drop_duplicates()) > 1


def fit_sizes(
    table: pd.DataFrame,
    *,
    name: str,
    law: str | None = None,
    hold_out_largest_budget: bool = False,
    through_budgets: bool = True,
    draws: int = 1000,
    seed: int = 0,
    objective: Objective = HUBER,
    kind: BootstrapKind | None = None,
    profiles: bool = False,
    rollouts: bool = False,
    progress: FitProgress | None = None,
    reading: Sequence[str] = (),
    budget_tolerance: float = SAME_BUDGET,
) -> SizesFit:
    """Fit one law to runs that differ in size, mean recurrence and tokens, and find the best models through budgets.

    Arguments are those of `fit_sweep`; the law is by default the iso-depth law, or where runs saw their text again, its
    form with effective tokens. The law that extends it and its alternatives join, weighed. Raises ValueError as
    `check_runs` does, for a table without several sizes and their effective parameters, and where the law can't be
    fitted.
    """
    # The table, its sizes, and the runs to hold out
    if draws < 0 or seed < 0:
        raise ValueError(f"draws and seed must be 0 or more, but got {draws} and {seed}; 1000 draws are usual")
    runs = check_runs(table, budget_tolerance=budget_tolerance)
    checked = runs.frame
    _check_sizes(checked, name)
    family = ModelFamily.from_table(finished_rows(checked))
    fitted, held_out, column = split_largest(checked) if hold_out_largest_budget else (checked, None, "")
    if held_out is not None:
        _check_sizes(fitted, f"{name} without its largest {column}")
    form = law_named(law or default_laws(checked)[0])
    if form.reads_unique_tokens:
        family = family.on_text(only_text(finished_rows(checked)))
    data = law_data(fitted)
    missing = [each for each in form.columns if each not in data]
    if missing or "tokens" not in form.columns:
        raise ValueError(
            "the law of a joint fit must give the loss after training from tokens and other columns of the table, but "
            f"the {form.name} law reads {', '.join(form.columns)}; use {SIZES_LAWS[0]}"
        )
    fitter = _SizesFitter(
        data=data,
        columns=family.columns(*(np.ones(1),) * 3),
        draws=draws,
        seed=seed,
        objective=objective,
        kind=kind or default_kind(data),
        profiles=profiles,
        progress=progress or (lambda part, done, total: None),
    )
    if draws:
        widening(fitter.kind, data)  # refuses budgets that can't be resampled, before anything is fitted
    # The fits
    noise = noise_about(form, data, objective)
    laws = fitter.mixture(form, law or form.name, noise)
    joint, missing_fits = fitter.joint_test_time(test_time_law_data(fitted))
    fit = SizesFit(
        name=name,
        simulated=bool(checked["simulated"].iloc[0]),
        accounting=str(checked["accounting"].iloc[0]),
        finished_runs=len(finished_rows(fitted)),
        fitted=_fitted_range(fitted, data),
        family=family,
        sizes=_fitted_sizes(family, data),
        laws=laws,
        joint_test_time=joint,
        frontier=(),
        growth=None,
        comparisons=(),
        held_out=None,
        noise=noise,
        misfits=tuple(fitter.misfits(laws, noise)),
        missing_fits=missing_fits,
        caveats=(),
    )
    # Errors on held-out runs; or rival laws, and the best models through budgets
    if held_out is not None:
        fit = dataclasses.replace(fit, held_out=_held_out(fit, held_out, column))
    elif through_budgets:
        budgets = _budgets(data)
        compared = fitter.comparisons(laws)
        fitter.report("best models")
        points, growth = frontier(fit.surface, [*budgets, *(times * budgets[-1] for times in _BEYOND)], len(budgets))
        fit = dataclasses.replace(fit, comparisons=compared, frontier=tuple(points), growth=growth)
        alone, no_fits = fitter.alone(fitted, family, budgets[-1], kind)
        fit = dataclasses.replace(fit, alone=alone, missing_fits=(*missing_fits, *no_fits))
    if rollouts:
        found, why_none = law_rollouts(fitted, law or form.name, objective=objective, kind=fitter.kind, draws=draws)
        fit = dataclasses.replace(fit, rollouts=found, why_no_rollouts=why_none)
    notes = (*reading, *(note for note in (*runs.notes, *best_loss_notes(checked)) if note not in reading))
    return dataclasses.replace(fit, caveats=tuple(_caveats(fit, checked, fitted)), reading=notes)


def _check_sizes(table: pd.DataFrame, name: str) -> None:
    if is_dense(table):
        raise ValueError(f"a joint fit takes looped models, but {name!r} holds dense ones; use fit_sweep")
    if not set(SHAPE) <= set(table):
        raise ValueError(
            f"a joint fit over sizes needs the columns {' and '.join(SHAPE)} (or params_once and params_recurrent), "
            f"but {name!r} lacks them; add what runs once and what is looped, embeddings apart"
        )
    if finished_rows(table).empty:
        raise ValueError(f"a fit needs finished runs, but {name!r} has none among {len(table)} rows; finish a run")
    if not several_sizes(table):
        raise ValueError(
            f"a joint fit takes finished runs of several sizes, but those of {name!r} have one; fit that size alone"
        )


def _fitted_range(table: pd.DataFrame, data: Data) -> FittedRange:
    params = float(data["params"].min()), float(data["params"].max())
    return dataclasses.replace(FittedRange.of(table), params=params)


def _fitted_sizes(family: ModelFamily, data: Data) -> tuple[FittedSize, ...]:
    """Return the sizes that have finished runs."""
    counts = [int(np.isclose(data["params"], member.params).sum()) for member in family.members]
    members = zip(family.members, counts, strict=True)
    return tuple(FittedSize(label=each.label, params=each.params, runs=count) for each, count in members if count)


def _budgets(data: Data) -> list[float]:
    """Return the measured budgets by growing FLOPs, or some computes within the runs where there are none."""
    budgets = np.unique(data["budget"][~np.isnan(data["budget"])]) if "budget" in data else np.empty(0)
    if not len(budgets):
        budgets = np.geomspace(data["flops"].min(), data["flops"].max(), 5)
    if len(budgets) > _MOST_BUDGETS:
        budgets = budgets[np.linspace(0, len(budgets) - 1, _MOST_BUDGETS).round().astype(int)]
    return [float(budget) for budget in budgets]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SizesFitter:
    """The settings that every fit to one table shares; `columns` are those of a model to predict."""

    data: Data
    columns: Collection[str]
    draws: int
    seed: int
    objective: Objective
    kind: BootstrapKind
    profiles: bool
    progress: FitProgress

    def report(self, part: str, share: float = 0.0) -> None:
        """Report that `share` of a part of the fit is done."""
        parts = list(_PARTS)
        done = sum(_PARTS[before] for before in parts[: parts.index(part)]) + share * _PARTS[part]
        self.progress(part, done, sum(_PARTS.values()))

    def law(self, name: str, noise: NoiseModel | None, part: str, *, profiles: bool = False) -> LawFit:
        """Return the fit of one law of the loss after training."""
        self.report(part)
        return fit_law(
            name,
            self.data,
            draws=self.draws,
            seed=self.seed,
            objective=self.objective,
            kind=self.kind,
            profiles=profiles,
            noise=noise,
            progress=lambda share: self.report(part, share),
        )

    def mixture(self, form: Law, name: str, noise: NoiseModel | None) -> LawMixture:
        """Return the law with those beside it that can be fitted."""
        first = self.law(name, noise, "joint law over sizes", profiles=self.profiles)
        return mixture_beside(first, lambda other: self.law(other.name, noise, "laws beside it"), self.columns)

    def misfits(self, laws: LawMixture, noise: NoiseModel | None) -> list[Misfit]:
        """Return the misfit of each law, which says if the law of the largest weight fits better."""
        best = laws.best
        return [law_misfit(fit, self.data, better_fit=None if fit is best else best, noise=noise) for fit in laws.laws]

    def joint_test_time(self, data: Data) -> tuple[LawFit | None, tuple[MissingFit, ...]]:
        """Return the law of test-time loops of all sizes together, or the reason why there is none."""
        name, reason = (
            "joint-test-time",
            "no run was evaluated at other recurrences; fill the columns loss_T1 and so on",
        )
        rows = off_mean(data)
        if len(rows["loss"]):
            try:
                fit = fit_law(
                    name,
                    rows,
                    draws=self.draws,
                    seed=self.seed,
                    by_run=True,
                    objective=self.objective,
                    kind=self.kind,
                )
            except ValueError as error:
                reason = str(error)
            else:
                return fit, ()
        return None, (MissingFit(name=name, reason=reason),)

    def alone(
        self, table: pd.DataFrame, family: ModelFamily, budget: float, kind: BootstrapKind | None
    ) -> tuple[tuple[SizeAlone, ...], tuple[MissingFit, ...]]:
        """Return the best model of each size by its own runs, refitted by the `kind` that was asked for."""
        return sizes_alone(
            table,
            family,
            budget,
            draws=self.draws,
            seed=self.seed,
            objective=self.objective,
            kind=kind,
            progress=lambda share: self.report("each size alone", share),
        )

    def comparisons(self, laws: LawMixture) -> tuple[LawComparison, ...]:
        """Return the errors of the rival laws on runs held out by the largest budget and by size."""
        repeated = REPEATED_SIZES_LAWS if laws.best.form.reads_unique_tokens else ()
        names = dict.fromkeys([*(law.law for law in laws.laws), *repeated, *SIZES_LAWS])
        predictors = [LawPredictor(law=name, objective=self.objective, kind=self.kind, draws=0) for name in names]
        results: list[LawComparison] = []
        held_out: tuple[HoldOutBy, ...] = ("largest budget", "size")
        for by in held_out:
            self.report("rival laws", len(results) / 2)
            try:
                compared = cross_validate(self.data, predictors, by)
            except ValueError as error:
                results.append(LawComparison(by=by, errors=(), missing=(("all laws", str(error)),)))
            else:
                errors = tuple(sorted(compared.errors, key=lambda error: error.mean_absolute_error))
                results.append(LawComparison(by=by, errors=errors, missing=compared.missing))
        return tuple(results)


def _held_out(fit: SizesFit, table: pd.DataFrame, column: str) -> HeldOut:
    """Return the errors on the runs of `table`, which were held out by their largest `column`."""
    data = law_data(table)
    predicted = fit.laws.loss(data), fit.laws.loss_interval(data)
    rows: list[HeldOutRow] = held_out_rows(f"{fit.laws.name} at T = mu", data, predicted)
    joint, others = fit.joint_test_time, off_mean(test_time_law_data(table))
    if joint is not None and len(others["loss"]):
        given = joint.loss(others), joint.loss_interval(others)
        rows += held_out_rows("joint test-time law, given the loss at T = mu", others, given)
    runs = finished_rows(table)
    value = float(runs[column].max())
    beyond = fit.fitted.flops if column == "budget" else fit.fitted.tokens
    return HeldOut(
        column=column,
        value=value,
        runs=len(runs),
        times_beyond=value / beyond[1],
        errors=errors_of(rows),
        rows=tuple(rows),
    )


def _caveats(fit: SizesFit, table: pd.DataFrame, fitted: pd.DataFrame) -> list[str]:
    """Return every caveat of a joint fit, the most important first."""
    data, best = law_data(fitted), fit.laws.best
    used = [law.form.name for law in fit.laws.laws if law is best or law is fit.laws.laws[0]]
    caveats = [*unit_caveats(table)]
    caveats += [misfit.sentence for misfit in fit.misfits if misfit.significant and misfit.law in used]
    caveats += row_caveats(data)
    for law in (best, *([fit.joint_test_time] if fit.joint_test_time else [])):
        caveats += [f"The {law.form.name} law: {reason}." for reason in (*law.reasons, *([EXACT] if law.exact else []))]
    caveats += _rival_caveats(fit)
    caveats += alone_caveats(fit)
    caveats += few_runs_caveats(fit.finished_runs)
    caveats += implausible_caveats(table)
    form = fit.laws.best.form
    caveats += repetition_caveats(finished_rows(fitted), form.name if form.reads_unique_tokens else "")
    caveats += rate_caveats(table)
    if len(fit.sizes) < 3:
        caveats.append(
            f"There are {len(fit.sizes)} sizes: nothing shows whether the loss follows a power of the size, or another "
            "curve through them."
        )
    caveats += _cost_caveats(fit, fitted)
    caveats += outlier_caveats(best, data)
    cell = [name for name in (*SHAPE, "mean_recurrence", "backprop_depth", "tokens") if name in table]
    return [*caveats, *run_caveats(fit, table, cell)]


def _rival_caveats(fit: SizesFit) -> list[str]:
    """Return a caveat for each way of holding out by which another form predicts clearly better than the laws used."""
    caveats = []
    weighed = zip(fit.laws.laws, fit.laws.weights, strict=True)
    used = {f"{law.form.name} law" for law, weight in weighed if weight >= NAMED_WEIGHT}
    for comparison in fit.comparisons:
        own = [error.mean_absolute_error for error in comparison.errors if error.method in used]
        best = min(comparison.errors, key=lambda error: error.mean_absolute_error, default=None)
        if own and best is not None and best.mean_absolute_error <= _CLEARLY_BETTER * min(own):
            caveats.append(
                f"Held out by {comparison.by}, the {best.method} predicts losses to {best.mean_absolute_error:.2g}%, "
                f"against {min(own):.2g}% by the laws used: fit with it by --law, and compare the best models."
            )
    return caveats


def _cost_caveats(fit: SizesFit, table: pd.DataFrame) -> list[str]:
    """Return a caveat on runs whose FLOPs per token are not those of the family, and what other sizes assume."""
    data = law_data(table)
    per_token = fit.family.flops_per_token(data["params"], data["mean_recurrence"])
    off = np.abs(data["flops"] / data["tokens"] / per_token - 1)
    caveats = []
    if (off > BUDGET_TOLERANCE).any():
        caveats.append(
            f"{int((off > BUDGET_TOLERANCE).sum())} of {len(off)} runs spent over 1% more or less FLOPs per token than "
            f"the cost of their size (by up to {100 * off.max():.3g}%): best models for a budget are as uncertain."
        )
    shares = fit.family.recurrent_shares
    looped = f"{shares[0]:.0%}" if np.ptp(shares) < 0.005 else f"{shares.min():.0%} to {shares.max():.0%}"
    caveats.append(
        f"Between and beyond the measured sizes, FLOPs per token and the looped share of the parameters ({looped}) are "
        "interpolated in log parameters: another shape costs differently."
    )
    return caveats
