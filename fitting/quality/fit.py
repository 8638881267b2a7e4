"""The fit from loss to quality: every score of a run table against the validation loss, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd

from isoloop.fitting.estimation.law_fit import LawFit, fit_law
from isoloop.fitting.estimation.objective import SQUARED, Objective
from isoloop.fitting.quality.chance import NoPrediction, why_at_chance
from isoloop.fitting.quality.report import fit_lines, prediction_lines
from isoloop.fitting.quality.score import HeldOutScore, Interval, ScoreFit, ScorePrediction, binomial_scatter
from isoloop.fitting.quality.scored_runs import of_unknown_weights, scored_rows
from isoloop.fitting.selection.holdout import splits
from isoloop.fitting.selection.mixture import LawMixture, law_mixture
from isoloop.fitting.tables.contract import counted
from isoloop.fitting.tables.quality import (
    BASELINES,
    SCORED_WEIGHTS,
    SUITES,
    ScoreColumns,
    score_columns,
)
from isoloop.fitting.tables.runs import finished_rows

_LAWS = "isoloop.fitting.quality.laws"
_TASK_LOSS = (f"{_LAWS}:TaskLossLaw", f"{_LAWS}:TaskLossFloorLaw")
_WRONG = (f"{_LAWS}:SigmoidLaw", f"{_LAWS}:SigmoidCeilingLaw")
_WRONG_OF_UNKNOWN_CHANCE = (*_WRONG, f"{_LAWS}:SigmoidFreeLaw")
_ON_SCORES = Objective(delta=np.inf, on="loss")
_FEWEST_RUNS = 4
_LEAST_WRONG = 1e-6
"""A perfect score counts as this share of wrong answers, since a law's losses are positive."""
_LEAST_OF_RICHER = 0.25
"""Weight of the laws of a step that contain its simplest, together and at least."""
_DRAWS, _FEWEST_DRAWS = 200, 20


class LossPrediction(Protocol):
    """A predicted validation loss, as `predict` returns it: nats per token."""

    @property
    def loss(self) -> float:
        """The loss."""

    @property
    def loss_interval(self) -> Interval | None:
        """Its 95% interval, None without refits."""


@dataclass(frozen=True, kw_only=True)
class QualityPrediction:
    """The predicted scores of one model, and the scores that can't be predicted."""

    loss: float
    loss_interval: Interval | None
    scores: tuple[ScorePrediction, ...]
    refused: tuple[ScoreFit, ...]
    baselines: str | None

    def report(self) -> str:
        """Return the prediction as text: what can't be predicted first."""
        return "\n".join(prediction_lines(self.scores, self.refused, self.baselines)) + "\n"


@dataclass(frozen=True, kw_only=True)
class QualityFit:
    """Every score of a run table against the validation loss: suites in points, tasks as accuracies from 0 to 1.

    `baselines` is the version of the chance baselines behind the suites' scores, None if the table does not say.
    """

    scores: tuple[ScoreFit, ...]
    baselines: str | None
    simulated: bool

    @property
    def fitted(self) -> tuple[ScoreFit, ...]:
        """The scores that can be predicted."""
        return tuple(score for score in self.scores if score.status == "fitted")

    @property
    def refused(self) -> tuple[ScoreFit, ...]:
        """The scores that can't, each with its reason."""
        return tuple(score for score in self.scores if score.status != "fitted")

    def predict(self, loss: float | LossPrediction, loss_interval: Interval | None = None) -> QualityPrediction:
        """Predict the scores of a model from its validation loss (nats per token).

        A measured loss is a number. For a model that nobody has trained, pass the prediction of its loss (of `predict`,
        or `predict_any`), or a number and its 95% interval: the interval of each score then holds that of the loss.

        Raises ValueError for a loss that isn't positive and finite, and an interval that doesn't hold it.
        """
        if not isinstance(loss, float | int):
            return self.predict(*_with_loss_inside(loss.loss, loss.loss_interval))
        low, high = loss_interval or (loss, loss)
        if not 0 < low <= loss <= high < np.inf:
            raise ValueError(
                f"a validation loss must be positive and finite, and inside its interval, but got {loss:g}"
                + (f" with {low:g} to {high:g}" if loss_interval else "")
                + "; give nats per token"
            )
        return QualityPrediction(
            loss=float(loss),
            loss_interval=loss_interval,
            scores=tuple(score.predict(float(loss), loss_interval) for score in self.fitted),
            refused=self.refused,
            baselines=self.baselines,
        )

    def with_predicted_losses(
        self, table: pd.DataFrame, losses: Mapping[str, tuple[float, Interval | None]]
    ) -> QualityFit:
        """Return the fit with the scores of held-out runs of `table`, predicted from predicted losses by run id.

        What is predicted of an overfitted run is its lowest loss, so it is left out if its last weights were scored.
        """
        runs = finished_rows(table)
        runs = runs[runs["run_id"].isin(list(losses)) & (runs["loss"] == scored_rows(table)["loss"])]

        def with_rows(score: ScoreFit) -> ScoreFit:
            rows = tuple(
                score.held_out_row(str(run_id), float(measured), *_with_loss_inside(*losses[run_id]))
                for run_id, measured in zip(runs["run_id"], runs[score.column].astype(float), strict=True)
                if np.isfinite(measured)
            )
            return replace(score, held_out_with_loss=rows)

        scores = (with_rows(score) if score.status == "fitted" else score for score in self.scores)
        return replace(self, scores=tuple(scores))

    def report(self) -> str:
        """Return the fits as text: scores that can't be predicted first, then each score's laws and held-out error."""
        return "\n".join(fit_lines(self.scores, self.baselines, simulated=self.simulated)) + "\n"


def fit_quality(
    table: pd.DataFrame,
    *,
    draws: int = _DRAWS,
    seed: int = 0,
    hold_out: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> QualityFit:
    """Fit every score of a run table against the runs' validation loss (Bhagia et al. 2024, arXiv:2412.04403).

    A task with a loss of its own is fitted in two steps, task loss against validation loss and accuracy against task
    loss; a suite's mean score and other tasks in one. Each step weighs laws of growing freedom by Akaike's criterion
    for few runs. With `hold_out`, each score of the largest budget is predicted from the other runs, too.

    Args:
        table: a run table with columns of quality (`tables.quality`); of runs, those that are finished are read.
        draws: refits per law, by redrawing the scatter about it.
        seed: of the refits.
        hold_out: predict the largest budget from the others.
        progress: called with the name of each score before it is fitted.

    Raises:
        ValueError: the table has no column of quality, or fewer than 20 draws are asked for.
    """
    columns = score_columns(table.columns)
    if not columns:
        raise ValueError(
            f"a fit of quality needs a score, {', '.join(SUITES)} or <task>_accuracy, but the table has no such column;"
            " evaluate the runs, or name the columns so"
        )
    if draws < _FEWEST_DRAWS:
        raise ValueError(f"draws must be at least {_FEWEST_DRAWS}, but got {draws}; {_DRAWS} are usual")
    rows = scored_rows(table) if "status" in table else table.reset_index(drop=True)
    baselines = sorted(rows[BASELINES].dropna().astype(str).unique()) if BASELINES in rows else []
    scores = []
    for each in columns:
        progress(each.label)
        score = _fitted_score(rows, each, baselines, draws=draws, seed=seed, hold_out=hold_out)
        unknown = int(of_unknown_weights(table, each.values).sum())
        if unknown and score.status == "fitted":
            caveat = (
                f"the loss of {counted(unknown, 'run')} rose after its lowest value, which is what was read; if the "
                f"last weights were scored, add the column `{SCORED_WEIGHTS}` with `last`"
            )
            score = replace(score, caveats=(*score.caveats, caveat))
        scores.append(score)
    simulated = bool(rows["simulated"].any()) if "simulated" in rows else False
    return QualityFit(
        scores=tuple(scores), baselines=baselines[0] if len(baselines) == 1 else None, simulated=simulated
    )


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """The runs of one score: validation losses, scores and their errors, task losses, (runs,) each."""

    losses: np.ndarray
    scores: np.ndarray
    errors: np.ndarray | None
    task_losses: np.ndarray | None
    budgets: np.ndarray
    run_ids: tuple[str, ...]
    chance: float
    chance_known: bool

    def subset(self, mask: np.ndarray) -> _Runs:
        """Return the runs that a mask (runs,) marks."""
        return replace(
            self,
            losses=self.losses[mask],
            scores=self.scores[mask],
            errors=None if self.errors is None else self.errors[mask],
            task_losses=None if self.task_losses is None else self.task_losses[mask],
            budgets=self.budgets[mask],
            run_ids=tuple(np.array(self.run_ids)[mask].tolist()),
        )

    @property
    def why_not(self) -> NoPrediction | None:
        """The reason why nothing can be predicted from these runs, None if it can."""
        if (count := len(self.losses)) < _FEWEST_RUNS:
            reason = f"a fit needs {_FEWEST_RUNS} runs with a score, but there {'is' if count == 1 else 'are'} {count}"
            return NoPrediction(status="not usable", reason=reason)
        if np.ptp(self.losses) == 0:
            return NoPrediction(status="not usable", reason="all runs have the same validation loss")
        return why_at_chance(self.losses, self.scores, self.errors, self.chance)


def _fitted_score(
    rows: pd.DataFrame, columns: ScoreColumns, baselines: Sequence[str], *, draws: int, seed: int, hold_out: bool
) -> ScoreFit:
    """Return the fit of one score, or the reason why there is none."""
    runs, unusable = _runs_of(rows, columns, baselines)
    unfitted = ScoreFit(
        name=columns.name,
        label=columns.label,
        unit=columns.unit,
        perfect=columns.perfect,
        chance=runs.chance,
        status="not usable",
        reason=unusable,
        runs=len(runs.losses),
    )
    if unusable:
        return unfitted
    if len(runs.losses):
        unfitted = replace(unfitted, losses=_range(runs.losses), scores=_range(runs.scores))
    why_not = runs.why_not
    if why_not is not None:
        return replace(unfitted, status=why_not.status, reason=why_not.reason)
    try:
        fitted = _with_laws(unfitted, runs, draws, seed)
    except ValueError as error:
        return replace(unfitted, reason=str(error))
    held_out, why_not_held_out = _held_out(unfitted, runs, draws, seed) if hold_out else ((), "it was not asked for")
    return replace(
        fitted, held_out=held_out, why_not_held_out=why_not_held_out, caveats=tuple(_caveats(columns, baselines, runs))
    )


def _with_laws(score: ScoreFit, runs: _Runs, draws: int, seed: int) -> ScoreFit:
    """Return the score with the laws of its steps, fitted to `runs`."""
    chance = np.full_like(runs.losses, runs.chance / score.perfect)
    task_loss, at = None, runs.losses
    if runs.task_losses is not None:
        data = {"at": runs.losses, "loss": runs.task_losses}
        task_loss = _mixture(_TASK_LOSS, data, SQUARED, draws, seed)
        at = runs.task_losses
    data = {"at": at, "chance": chance, "loss": np.maximum(1 - runs.scores / score.perfect, _LEAST_WRONG)}
    typical_scatter, scales = None, None
    if score.unit != "points":
        scatter = binomial_scatter(fit_law(_WRONG[0], data, draws=0, seed=0, objective=_ON_SCORES).loss(data))
        typical_scatter = float(np.exp(np.log(scatter).mean()))
        scales = scatter / typical_scatter
    wrong = _mixture(
        _WRONG if runs.chance_known else _WRONG_OF_UNKNOWN_CHANCE, data, _ON_SCORES, draws, seed + 1, scales
    )
    return replace(
        score,
        status="fitted",
        reason="",
        losses=_range(runs.losses),
        task_loss=task_loss,
        wrong=wrong,
    )


def _mixture(
    laws: Sequence[str],
    data: dict[str, np.ndarray],
    objective: Objective,
    draws: int,
    seed: int,
    scales: np.ndarray | None = None,
) -> LawMixture:
    """Return the fits of laws of growing freedom, as far as there are runs for them, with their weights.

    The laws that contain the simplest have a quarter of the weight together at least: few runs far from a ceiling (or
    from a floor of the task loss) say little against it, and the simplest law's intervals alone are then too narrow
    (benchmarks/fitting/RESULTS.md).
    `scales` (rows,) say by what factor each row is more uncertain than others.
    """
    fits: list[LawFit] = []
    reason = ""
    for law in laws:
        try:
            fits.append(fit_law(law, data, draws=draws, seed=seed, objective=objective, scales=scales))
        except ValueError as error:
            if not fits:
                raise
            reason = str(error)
    mixture = law_mixture(fits, not_fitted=reason)
    if len(fits) == 1 or mixture.weights[0] <= 1 - _LEAST_OF_RICHER:
        return mixture
    # Infinite criteria, of too few runs, leave no proportion.
    richer = np.array(mixture.weights[1:]) + np.finfo(float).tiny
    weights = [1 - _LEAST_OF_RICHER, *(_LEAST_OF_RICHER * richer / richer.sum()).tolist()]
    reason = f"{mixture.reason}; the laws that contain the first one have {_LEAST_OF_RICHER:.0%} together at least"
    return replace(mixture, weights=tuple(weights), reason=reason)


def _with_loss_inside(loss: float, interval: Interval | None) -> tuple[float, Interval | None]:
    """Return a predicted loss and its interval, which holds it: that of a mixture may just not."""
    return loss, None if interval is None else (min(interval[0], loss), max(interval[1], loss))


def _range(values: np.ndarray) -> Interval:
    return float(values.min()), float(values.max())


def _held_out(score: ScoreFit, runs: _Runs, draws: int, seed: int) -> tuple[tuple[HeldOutScore, ...], str]:
    """Return the predictions of the largest budget's scores from the other runs, or why there are none."""
    try:
        (split,) = splits({"loss": runs.losses, "budget": runs.budgets}, "largest budget")
    except ValueError as error:
        return (), str(error)
    others, largest = runs.subset(split.fitted), runs.subset(split.held_out)
    why_not = others.why_not
    if why_not is not None:
        return (), f"without the largest budget, {why_not.reason}"
    try:
        fit = _with_laws(score, others, draws, seed)
    except ValueError as error:
        return (), f"without the largest budget, {error}"
    rows = zip(largest.run_ids, largest.scores, largest.losses, strict=True)
    return tuple(fit.held_out_row(run_id, float(measured), float(loss)) for run_id, measured, loss in rows), ""


def _runs_of(rows: pd.DataFrame, columns: ScoreColumns, baselines: Sequence[str]) -> tuple[_Runs, str]:
    """Return the runs that have this score, and the reason why their values can't be used, empty if they can."""
    names = [columns.values, *filter(None, (columns.error, columns.loss, columns.chance))]
    numbers = {name: pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float) for name in ("loss", *names)}
    kept = np.isfinite(numbers["loss"]) & np.isfinite(numbers[columns.values])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(numbers[columns.loss]) if columns.loss and columns.logarithm else None
    task_losses = logs if logs is not None else numbers[columns.loss] if columns.loss else None
    if task_losses is not None and not ((task_losses[kept] > 0).all() and np.ptp(task_losses[kept]) > 0):
        task_losses = None  # not of every run: then in one step
    errors = numbers[columns.error] if columns.error else None
    if errors is not None and not np.isfinite(errors[kept]).all():
        errors = None
    chances = numbers[columns.chance][kept] if columns.chance else np.zeros(0)
    chance = float(chances[0]) if len(chances) and np.isfinite(chances[0]) else 0.0
    budgets = rows["budget"].to_numpy(dtype=float) if "budget" in rows else np.full(len(rows), np.nan)
    ids = rows["run_id"].astype(str) if "run_id" in rows else (rows.index + 1).map("row {}".format)
    runs = _Runs(
        losses=numbers["loss"],
        scores=numbers[columns.values],
        errors=errors,
        task_losses=task_losses,
        budgets=budgets,
        run_ids=tuple(ids),
        chance=chance,
        chance_known=columns.unit == "points" or bool(len(chances) and np.isfinite(chances[0])),
    ).subset(kept)
    for name in names:
        texts = np.flatnonzero(rows[name].notna() & np.isnan(numbers[name]))
        if len(texts):
            return runs, f"`{name}` must hold numbers, but has {rows[name].iloc[texts[0]]!r}; correct it"
    return runs, _fault(columns, runs, chances, baselines)


def _fault(columns: ScoreColumns, runs: _Runs, chances: np.ndarray, baselines: Sequence[str]) -> str:
    """Return what is wrong with the values of a score, and what to do; empty if nothing is."""
    scores, suite = runs.scores, columns.unit == "points"
    low, high = (-columns.perfect if suite else 0.0), columns.perfect
    outside = np.flatnonzero((scores < low) | (scores > high))
    if len(outside):
        return (
            f"`{columns.values}` must be from {low:g} to {high:g}, but run {runs.run_ids[outside[0]]!r} has "
            f"{scores[outside[0]]:g}; {'give points' if suite else 'give the share of right answers'}"
        )
    if len(np.unique(chances)) > 1 or (len(chances) and not 0 <= runs.chance < 1):
        return f"`{columns.chance}` must be one number from 0 to 1 (without 1) for all runs; correct it"
    if columns.name in SUITES and len(baselines) > 1:
        return f"its runs were scored with different chance baselines ({', '.join(baselines)}); score all with one"
    return ""


def _caveats(columns: ScoreColumns, baselines: Sequence[str], runs: _Runs) -> list[str]:
    """Return what to doubt about the fit of a score."""
    caveats = []
    suite = columns.unit == "points"
    if columns.name in SUITES and not baselines:
        caveats.append(f"the table has no `{BASELINES}`, so the version of its chance baselines is not known")
    if suite and (runs.scores < 1).all():
        caveats.append(
            f"all scores are below 1 point; if they are shares from 0 to 1, multiply `{columns.values}` by 100"
        )
    if not runs.chance_known:
        caveats.append(
            f"`{columns.name}_chance` is not known: runs were held against chance 0, and the score at large losses "
            "is fitted, too; add it for a task with choices"
        )
    if not suite and columns.loss is None:
        caveats.append(f"the table has no `{columns.name}_loss`, so the accuracy was fitted to the validation loss")
    elif not suite and runs.task_losses is None:
        caveats.append(
            f"`{columns.loss}` is not a positive number in every run, or the same in all, so the accuracy was fitted "
            "to the validation loss"
        )
    if runs.errors is None:
        caveats.append("there are no standard errors of every score, so chance was judged by the scores' trend")
    return caveats
