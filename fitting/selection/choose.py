"""Competing laws on one table: information criteria, and errors on held-out runs beside those of isoFLOP minima."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from isoloop.fitting.cost import Cost, cost_of
from isoloop.fitting.estimation.bootstrap import BootstrapKind, default_kind
from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.lbfgs import fit_by_lbfgs
from isoloop.fitting.estimation.objective import HUBER, Objective
from isoloop.fitting.estimation.outliers import outlier_caveats
from isoloop.fitting.isoflop.minima import fit_isoflop, predict_from_minima
from isoloop.fitting.laws.base import Data
from isoloop.fitting.laws.registry import law_named, richer_law
from isoloop.fitting.selection.distance import distance_table, rollout_scores
from isoloop.fitting.selection.holdout import (
    CrossValidation,
    HoldOutBy,
    LawPredictor,
    PredictedLosses,
    Predictor,
    check_unique_names,
    cross_validate,
    splits,
)
from isoloop.fitting.selection.misfit import law_misfit
from isoloop.fitting.selection.preference import Criteria, Preference, preferred_law
from isoloop.fitting.tables.best_loss import best_loss_notes
from isoloop.fitting.tables.budgets import SAME_BUDGET
from isoloop.fitting.tables.checks import IMPLAUSIBLE_LOSS, few_runs_caveats, provenance_caveats, row_caveats
from isoloop.fitting.tables.contract import RunTable, check_runs, is_dense
from isoloop.fitting.tables.repetition import repetition_caveats, sees_text_again, why_repetition_not_fitted
from isoloop.fitting.tables.runs import finished_rows, implausible_rows, law_data
from isoloop.fitting.tables.units import unit_caveats

_ROWS_AT_MOST = 5000
"""Runs on which laws are compared; of more, a random sample."""
DENSE_LAWS = ("chinchilla", "six-parameter")
REPEATED_DENSE_LAWS = ("effective-tokens", "sized-effective-tokens", "bounded-loss")
REPEATED_LOOPED_LAWS = ("looped-effective-tokens", "looped-sized-effective-tokens", "looped-bounded-loss")
REPEATED_SIZES_LAWS = (
    "iso-depth-effective-tokens",
    "iso-depth-sized-effective-tokens",
    "iso-depth-unique-effective-tokens",
    "looped-effective-tokens",
)
LOOPED_LAWS = ("training", "looped-six-parameter", "iso-depth", "chinchilla", "six-parameter")
SIZES_LAWS = ("iso-depth", "iso-depth-six-parameter", "iso-depth-truncated", "loop-term", "training", "chinchilla")
"""Laws of looped models of several sizes: a worth of loops, three other forms, and phi = 1 and 0."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One law's fit to the whole table, with its information criteria (smaller is better; only differences count).

    `by_lbfgs` is the objective that `fit_by_lbfgs` reached, None if it was not run or can't fit such a law.
    """

    fit: LawFit
    log_likelihood: float
    aic: float
    bic: float
    by_lbfgs: float | None = None

    @classmethod
    def of(cls, fit: LawFit, *, by_lbfgs: float | None = None) -> Candidate:
        """Return the candidate of a fit; the scale of the noise counts as one more parameter."""
        free = len(fit.parameters) + 1
        return cls(
            fit=fit,
            log_likelihood=fit.log_likelihood,
            aic=fit.aic,
            bic=free * math.log(fit.rows) - 2 * fit.log_likelihood,
            by_lbfgs=by_lbfgs,
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Competing laws on one table; `missing` are the laws that could not be fitted, each with the reason.

    `preferred` is the law to use, and why; `bootstrap` the kind behind the intervals. `reading` says how the table was
    read, where that had to be guessed.
    """

    rows: int
    preferred: Preference
    bootstrap: BootstrapKind
    objective: str
    candidates: tuple[Candidate, ...]
    missing: tuple[tuple[str, str], ...]
    cross_validations: tuple[CrossValidation, ...]
    caveats: tuple[str, ...]
    reading: tuple[str, ...] = ()

    def report(self) -> str:
        """Return the choice as text: the law to use, and then all of them, that of least AIC first."""
        lines = ["How the table was read", *(f"  - {note}" for note in self.reading), ""] if self.reading else []
        lines += [
            self.preferred.reason,
            "",
            f"Competing laws on {self.rows} runs, {self.objective}; intervals by the {self.bootstrap} bootstrap",
            f"  {'AIC - least':>11}  {'BIC - least':>11}  {'objective':>11}  {'free':>4}  law",
        ]
        least_aic = min(candidate.aic for candidate in self.candidates)
        least_bic = min(candidate.bic for candidate in self.candidates)
        for candidate in sorted(self.candidates, key=lambda candidate: candidate.aic):
            fit = candidate.fit
            lines.append(
                f"  {candidate.aic - least_aic:>11.1f}  {candidate.bic - least_bic:>11.1f}  {fit.objective:>11.5g}  "
                f"{len(fit.parameters):>4}  {fit.form.name}: {fit.form.formula}"
            )
        lines += [f"  {law}: not fitted. {reason}" for law, reason in self.missing]
        for candidate in self.candidates:
            fit = candidate.fit
            values = ", ".join(
                f"{p.name} = {p.value:.5g}" + (f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})" if p.interval else "")
                for p in fit.parameters
            )
            lines += ["", f"{fit.form.name}: {values}", f"  in effect: {fit.form.effective(fit.vector)}"]
            lines += [f"  warning: {reason}" for reason in fit.reasons]
            if candidate.by_lbfgs is not None:
                difference = candidate.by_lbfgs / fit.objective - 1
                lines.append(
                    f"  check: the best of many starts of L-BFGS ends {difference:+.1e} (relative) from this objective"
                )
        for cross_validation in self.cross_validations:
            lines += ["", cross_validation.report()]
            lines += distance_table(cross_validation.rows) if cross_validation.by == "larger budgets" else []
        if self.caveats:
            lines += ["", "Caveats", *(f"  - {caveat}" for caveat in self.caveats)]
        return "\n".join(lines) + "\n"


def choose(
    data: Data,
    laws: Sequence[str],
    *,
    others: Sequence[Predictor] = (),
    by: Sequence[HoldOutBy] = (),
    objective: Objective = HUBER,
    draws: int = 200,
    seed: int = 0,
    kind: BootstrapKind | None = None,
    check: bool = False,
    caveats: Sequence[str] = (),
    reading: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Choice:
    """Fit every law to the rows of `data`, and compare their errors on runs held out by each of `by`.

    `others` are further predictors, compared by held-out errors alone. `by` defaults to all larger budgets, the
    largest one and each in turn; without two budgets, to tenths of the rows. The law to use follows from AIC, BIC and
    the errors on all larger budgets: see `preferred_law`. `kind` is that of the bootstrap, by default that of
    `default_kind`. With `check`, each law is also fitted by L-BFGS. `progress` is called before each law and each
    held-out test. Raises ValueError as `LawPredictor` and `law_named` do, for two laws of the same name, and if no law
    can be fitted.
    """
    # A fit of each law to all rows
    kind = kind or default_kind(data)
    predictors = {name: LawPredictor(law=name, objective=objective, kind=kind, draws=draws, seed=seed) for name in laws}
    check_unique_names([*(predictors[name].name for name in laws), *(other.name for other in others)])
    candidates: list[Candidate] = []
    missing: list[tuple[str, str]] = []
    for done, name in enumerate(laws):
        progress(f"law {name}", done, len(laws))
        try:
            fit = fit_law(name, data, draws=draws, seed=seed, objective=objective, kind=kind)
        except ValueError as error:
            missing.append((name, str(error)))
            continue
        candidates.append(Candidate.of(fit, by_lbfgs=_by_lbfgs(name, data, objective) if check else None))
    if not candidates:
        raise ValueError(f"no law could be fitted: {'; '.join(f'{law}: {reason}' for law, reason in missing)}")
    # Errors on held-out runs
    compared: list[Predictor] = [*(predictors[candidate.fit.law] for candidate in candidates), *others]
    rollouts_missing = ""
    try:
        splits(data, "larger budgets")
    except ValueError as error:
        rollouts_missing = str(error)
    if not by:
        try:
            splits(data, "budget")
            by = (*(() if rollouts_missing else ("larger budgets",)), "largest budget", "budget")
        except ValueError:
            by = ("row",)
    cross_validations = tuple(cross_validate(data, compared, held_out_by, progress) for held_out_by in by)
    # The law to use
    rollouts = next((one for one in cross_validations if one.by == "larger budgets"), None)
    if rollouts is None and not rollouts_missing:
        quick = [replace(predictors[candidate.fit.law], draws=0) for candidate in candidates]
        rollouts = cross_validate(data, quick, "larger budgets", progress)
    preferred = _preferred(candidates, predictors, rollouts, rollouts_missing)
    best = next(candidate for candidate in candidates if candidate.fit.law == preferred.law)
    return Choice(
        rows=len(data["loss"]),
        preferred=preferred,
        bootstrap=kind,
        objective=str(objective),
        candidates=tuple(candidates),
        missing=tuple(missing),
        cross_validations=cross_validations,
        caveats=(
            *_misfit_caveats(best, candidates, data),
            *caveats,
            *few_runs_caveats(len(data["loss"])),
            *outlier_caveats(best.fit, data),
        ),
        reading=tuple(reading),
    )


def _preferred(
    candidates: Sequence[Candidate],
    predictors: Mapping[str, LawPredictor],
    rollouts: CrossValidation | None,
    rollouts_missing: str,
) -> Preference:
    """Return the law to use among the candidates."""
    methods = {predictors[candidate.fit.law].name for candidate in candidates}
    scores = {} if rollouts is None else rollout_scores([row for row in rollouts.rows if row.method in methods])
    if rollouts is not None:
        rollouts_missing = next((reason for _, reason in rollouts.missing), "")
    criteria = {
        candidate.fit.law: Criteria(
            name=candidate.fit.form.name,
            aic=candidate.aic,
            bic=candidate.bic,
            rollouts=scores.get(predictors[candidate.fit.law].name),
        )
        for candidate in candidates
    }
    return preferred_law(criteria, no_rollouts=rollouts_missing)


def _misfit_caveats(best: Candidate, candidates: Sequence[Candidate], data: Data) -> list[str]:
    """Return the sentence of a misfit of the law to use, if it departs from the losses in a regular way."""
    richer = richer_law(best.fit.form)
    fits = {candidate.fit.form.name: candidate.fit for candidate in candidates}
    misfit = law_misfit(best.fit, data, better_fit=None if richer is None else fits.get(richer.name))
    return [misfit.sentence] if misfit.significant else []


def choose_table(
    table: RunTable | pd.DataFrame,
    *,
    laws: Sequence[str] = (),
    by: Sequence[HoldOutBy] = (),
    objective: Objective = HUBER,
    draws: int = 200,
    seed: int = 0,
    kind: BootstrapKind | None = None,
    check: bool = False,
    budget_tolerance: float = SAME_BUDGET,
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Choice:
    """Compare laws on a run table, of looped or of dense models.

    `laws` defaults to those that apply to its columns, and `progress` is that of `choose`. Raises
    ValueError as `check_runs` and `choose` do.
    """
    # The table and its cost
    reading = table.notes if isinstance(table, RunTable) else ()
    runs = check_runs(table.frame if isinstance(table, RunTable) else table, budget_tolerance=budget_tolerance)
    checked, data = runs.frame, law_data(runs.frame)
    rows = len(data["loss"])
    caveats = provenance_caveats(
        simulated=bool(checked["simulated"].iloc[0]),
        accounting=str(checked["accounting"].iloc[0]),
        dense=is_dense(checked),
    )
    implausible = int(implausible_rows(checked).sum())
    if implausible:
        caveats.append(f"Left out, with a loss {IMPLAUSIBLE_LOSS}: {implausible} of {len(checked)} rows.")
    unfinished = int((checked["status"] != "finished").sum())
    if unfinished:
        caveats.append(f"Left out, since they did not finish or have no loss: {unfinished} of {len(checked)} rows.")
    laws = laws or default_laws(checked)
    repeated = next((law for law in laws if law_named(law).reads_unique_tokens), "")
    caveats += [*best_loss_notes(checked), *repetition_caveats(finished_rows(checked), repeated)]
    cost: Cost | None = None
    try:
        cost = cost_of(checked)
    except ValueError as error:
        caveats.append(f"There are no isoFLOP minima to compare with: {error}.")
    if rows > _ROWS_AT_MOST:
        sample = np.sort(np.random.default_rng(0).choice(rows, _ROWS_AT_MOST, replace=False))
        data = {name: values[sample] for name, values in data.items()}
        caveats.append(f"The laws are compared on {_ROWS_AT_MOST} runs, drawn at random from the {rows} of the table.")
    # The laws, beside the minima of the isoFLOP curves
    others: list[Predictor] = []
    if cost is not None and "budget" in data and np.isnan(data["budget"]).any():
        without = int(np.isnan(data["budget"]).sum())
        caveats.append(
            f"There are no isoFLOP minima to compare with: {without} of {len(data['loss'])} runs have no budget."
        )
    elif cost is not None and "budget" in data:
        others = [MinimaPredictor(floor=floor, cost=cost) for floor in (False, True)]
    return choose(
        data,
        laws,
        others=others,
        by=by,
        objective=objective,
        draws=draws,
        seed=seed,
        kind=kind,
        check=check,
        caveats=[*unit_caveats(checked), *caveats, *row_caveats(data)],
        reading=[*reading, *(note for note in runs.notes if note not in reading)],
        progress=progress,
    )


def default_laws(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the laws of the loss after training that apply to the columns of a checked run table, the usual one first.

    Without effective parameters, looped models have the loops law only. Where runs saw their text again, and often
    enough to tell, laws of repeated text come first.
    """
    runs = finished_rows(table)
    repeated = sees_text_again(runs) and not why_repetition_not_fitted(runs)
    if is_dense(table):
        return (*(REPEATED_DENSE_LAWS if repeated else ()), *DENSE_LAWS)
    if "effective_params_fixed" not in table:
        return ("loops",)
    several = len(runs[["effective_params_fixed", "effective_params_per_loop"]].drop_duplicates()) > 1
    if several:
        return (*(REPEATED_SIZES_LAWS if repeated else ()), *SIZES_LAWS)
    return (*(REPEATED_LOOPED_LAWS if repeated else ()), *LOOPED_LAWS)


@dataclass(frozen=True, kw_only=True)
class MinimaPredictor:
    """Predictions from isoFLOP minima and the power laws through them: see `predict_from_minima`.

    A held-out run is taken to spend its budget exactly.
    """

    floor: bool
    cost: Cost

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"isoFLOP minima, L* = {'E + ' if self.floor else ''}k C^-g"

    def predict(self, fitted: Data, held_out: Data) -> PredictedLosses:
        """See `Predictor.predict`; there are no intervals."""
        missing = [name for name in ("budget", self.cost.axis) if name not in fitted]
        if missing:
            raise ValueError(f"isoFLOP minima need the columns {', '.join(missing)}, but the runs have none; add them")
        columns = {name: fitted[name] for name in ("budget", self.cost.axis, "tokens", "loss")}
        fit = fit_isoflop(pd.DataFrame(columns), self.cost, draws=0)
        return predict_from_minima(fit, held_out["budget"], held_out[self.cost.axis], floor=self.floor), None


def _by_lbfgs(law: str, data: Data, objective: Objective) -> float | None:
    try:
        return fit_by_lbfgs(law_named(law), data, objective).objective
    except ValueError:  # not a sum of terms
        return None
