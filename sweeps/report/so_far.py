"""The answer of a sweep before its end: from the runs that have ended, and the curves of those that still train."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from isoloop.fitting import check_table
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.estimation.bootstrap import interval
from isoloop.fitting.estimation.unfinished import ExtrapolatedLoss, TrainingCurve, extrapolated_losses
from isoloop.fitting.surface.quick import quick_surface
from isoloop.sweeps.execution.status import planned_rows
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import spec_columns
from isoloop.sweeps.report.learning_curves import SMOOTHING, read_curve
from isoloop.sweeps.tracking.schema import (
    OUTCOME,
    RUN_ID,
    SIMULATED,
    column_tags,
    result_metrics,
    run_table,
)
from isoloop.trainer.accounting import expected_loops, flops_spent
from isoloop.trainer.config import RunSpec
from isoloop.trainer.run.result import read_result

if TYPE_CHECKING:
    from isoloop.fitting.surface.surface import LossSurface

MOST_RUNS = 1000
"""Ended runs that an early answer is fitted to; of more, a random sample."""
_MOST_CURVES = 100
_FEWEST_RUNS = 8
_DRAWS = 200
_MOST_OF_SEARCH = 0.9
EXTRAPOLATED = "extrapolated"
"""The column of a table so far that marks a running run, whose loss is extrapolated from its curve."""
LOSS_ERROR = "loss_error"
"""The column with the standard deviation of the logarithm of an extrapolated loss."""


@dataclass(frozen=True, kw_only=True)
class EarlyAnswer:
    """The best model at a budget by the runs so far: `sentence` says it, or why there is none yet.

    `ended` of `runs` have ended, and `curves` more were extrapolated. Intervals are 95%. `values` are the best size
    (parameters), mean recurrence, tokens and loss, without those that the models don't have.
    """

    label: str
    ended: int
    runs: int
    curves: int
    flops: float | None
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class TableSoFar:
    """The run table of the runs that have ended, of `runs` in all, and the losses extrapolated for running ones.

    `table` has a row for each ended run, `with_curves` also one for each running run whose curve says where it ends,
    marked in the column `extrapolated`. `budget` is the largest planned one (FLOPs).
    """

    table: pd.DataFrame
    with_curves: pd.DataFrame
    runs: int
    budget: float | None

    @property
    def note(self) -> str:
        """A sentence that no answer from this table may go without."""
        return (
            f"So far: {len(self.table)} of {self.runs} runs have ended, and the final answer will differ. Runs that "
            "take long are missing more often than others, so the largest budgets say least."
        )


def read_table_so_far(folders: Folders) -> TableSoFar:
    """Read the runs of a sweep that have ended, and those that train, from their folders.

    Raises:
        ValueError: the sweep was never started, or none of its runs has ended.
    """
    if not folders.manifest.is_file():
        raise ValueError(
            f"an answer so far needs a sweep that was started, but {folders.sweep} has no {folders.manifest.name}; "
            f"start it with 'isoloop run {folders.name}'"
        )
    planned = planned_rows(folders)
    ended, running = [], []
    for run_id, columns in planned.items():
        folder = folders.run(run_id)
        spec = _spec(folder)
        if spec is None:
            continue
        result = read_result(folder)
        all_columns = {**columns, **spec_columns(spec, columns["accounting"])}
        tags = {RUN_ID: run_id, **column_tags(spec, all_columns)}
        if result is None:
            running.append((spec, tags))
        else:
            tags |= {OUTCOME: result.status, SIMULATED: str(result.simulated).lower()}
            ended.append((tags, result_metrics(result)))
    if not ended:
        raise ValueError(
            f"an answer so far needs one run that has ended, but none of the {len(planned)} runs of "
            f"'{folders.name}' has; wait, and look at 'isoloop status {folders.name}'"
        )
    table = check_table(run_table(ended))
    budgets = [columns["budget"] for columns in planned.values() if columns.get("budget")]
    return TableSoFar(
        table=table,
        with_curves=_with_curves(folders, table, running, bool(table["simulated"].iloc[0])),
        runs=len(planned),
        budget=max(budgets) if budgets else None,
    )


def early_answers(so_far: TableSoFar) -> list[EarlyAnswer]:
    """Return the answer at the largest planned budget, one for each group of runs that has its own law."""
    if "group" not in so_far.table:
        return [_answer("", so_far.table, so_far.with_curves, so_far)]
    return [
        _answer(str(label), part, so_far.with_curves[so_far.with_curves["group"] == label], so_far)
        for label, part in so_far.table.groupby("group", sort=False)
    ]


def _answer(label: str, table: pd.DataFrame, with_curves: pd.DataFrame, so_far: TableSoFar) -> EarlyAnswer:
    finished = int((table["status"] == "finished").sum())
    extrapolated = len(with_curves) - len(table)
    prefix = f"so far, {label}" if label else "so far"
    make = partial(EarlyAnswer, label=label, ended=len(table), runs=so_far.runs, curves=extrapolated)
    none = partial(make, flops=None, values={}, intervals={})
    if finished < _FEWEST_RUNS:
        return none(sentence=f"{prefix}: {finished} finished runs, and an answer needs {_FEWEST_RUNS}")
    sample = table.sample(min(len(table), MOST_RUNS), random_state=0).sort_index()
    try:
        surface = quick_surface(check_table(sample.drop(columns="group", errors="ignore")), draws=_DRAWS)
        used = surface
        if extrapolated:
            more = pd.concat([sample, with_curves[with_curves[EXTRAPOLATED].astype(bool)]], ignore_index=True)
            errors = more.set_index("run_id")[LOSS_ERROR].dropna().to_dict()
            more = check_table(more.drop(columns=["group", EXTRAPOLATED, LOSS_ERROR], errors="ignore"))
            used = quick_surface(more, errors=errors, draws=_DRAWS)
    except ValueError as error:
        return none(sentence=f"{prefix}: no fit of {finished} finished runs yet ({error})")
    flops = so_far.budget or surface.flops[1]
    values, spans = _best(used, flops)
    source = f"{finished} of {so_far.runs} runs" + (f" and the curves of {extrapolated} more" if extrapolated else "")
    answer = make(flops=flops, values=values, intervals=spans, sentence="")
    text = _sentence(values, spans, used)
    if extrapolated:
        alone = _sentence(*_best(surface, flops), surface)
        text += f" (from the finished runs alone: {alone})"
    return replace(answer, sentence=f"{prefix}, at {flops:.3g} FLOPs: {text}; from {source}")


def _best(surface: "LossSurface", flops: float) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the best size, mean recurrence, tokens and loss at a budget, as far as models differ in them."""
    tokens_for = partial(surface.family.tokens_for, flops)
    best, drawn = surface.best(tokens_for), surface.best_draws(tokens_for)
    names = [*surface.axes, "loss"]
    values = {name: float(getattr(best, name)) for name in names}
    spans = {} if drawn is None else {name: interval(getattr(drawn, name)) for name in names}
    return values, {name: (float(low), float(high)) for name, (low, high) in spans.items()}


def _sentence(values: dict[str, float], spans: dict[str, tuple[float, float]], surface: "LossSurface") -> str:
    """Return the best values in words, and which of them are not determined yet."""
    parts = []
    for name in (name for name in surface.axes if name != "tokens"):
        low, high = spans.get(name, (values[name], values[name]))
        measured = getattr(surface, name)
        if high / low > (measured[1] / measured[0]) ** _MOST_OF_SEARCH:
            parts.append(f"the best {AXES[name].name} is not determined yet ({low:.3g} to {high:.3g})")
        else:
            parts.append(f"best {AXES[name].name} {values[name]:.3g} ({low:.3g} to {high:.3g})")
    low, high = spans.get("loss", (values["loss"], values["loss"]))
    return ", ".join([*parts, f"loss {values['loss']:.4g} ({low:.4g} to {high:.4g}) nats per token"])


def _spec(folder: Path) -> RunSpec | None:
    path = folder / "spec.json"
    return RunSpec.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _with_curves(
    folders: Folders, table: pd.DataFrame, running: Sequence[tuple[RunSpec, dict[str, str]]], simulated: bool
) -> pd.DataFrame:
    """Return the table with a row for each running run whose loss after training can be extrapolated."""
    marked = table.assign(**{EXTRAPOLATED: False, LOSS_ERROR: float("nan")})
    finished = table[(table["status"] == "finished") & table["loss"].notna()]
    rows: list[Any] = []
    groups = finished.groupby("group", sort=False) if "group" in finished else [(None, finished)]
    for label, part in groups:
        shown = part.sample(min(len(part), _MOST_CURVES), random_state=0)
        ended = [
            _curve(folders, str(row.run_id), float(row.tokens), float(row.mean_recurrence), float(row.loss))
            for row in shown.itertuples()
        ]
        own = {
            tags[RUN_ID]: (spec, tags)
            for spec, tags in running
            if label is None or tags.get("isoloop.column.group") == label
        }
        curves = [
            _curve(folders, run_id, float(spec.tokens), float(spec.recurrence.mean), None)
            for run_id, (spec, _) in own.items()
        ]
        known, going = ([curve for curve in each if curve is not None] for each in (ended, curves))
        rows += [_row(*own[one.run_id], one, simulated) for one in extrapolated_losses(going, known)]
    if not rows:
        return marked
    extra = run_table([(tags, metrics) for tags, metrics, _ in rows])
    errors = {tags[RUN_ID]: error for tags, _, error in rows}
    extra = extra.assign(**{EXTRAPOLATED: True, LOSS_ERROR: extra["run_id"].map(errors)})
    return pd.concat([marked, extra], ignore_index=True)


def _curve(
    folders: Folders, run_id: str, planned: float, mean_recurrence: float, final: float | None
) -> TrainingCurve | None:
    """Return the learning curve of a run up to where its smoothed losses don't look ahead; None without losses."""
    journal = folders.run(run_id) / "journal.jsonl"
    curve = read_curve(journal) if journal.is_file() else None
    if curve is None:
        return None
    settled = curve.tokens <= curve.tokens[-1] / (1 + SMOOTHING)
    if not settled.any():
        return None
    return TrainingCurve(
        run_id=run_id,
        tokens=curve.tokens[settled],
        losses=curve.losses[settled],
        planned_tokens=planned,
        mean_recurrence=mean_recurrence,
        final=final,
    )


def _row(
    spec: RunSpec, tags: dict[str, str], loss: ExtrapolatedLoss, simulated: bool
) -> tuple[dict[str, str], dict[str, float], float]:
    """Return tags and metrics of a running run as if it had ended with the extrapolated loss, and the loss's error."""
    forward, backward = expected_loops(spec.recurrence, "exact")
    metrics = {"tokens": float(spec.tokens), "forward_loops": forward, "backward_loops": backward, "loss": loss.loss}
    metrics |= flops_spent(spec.model, spec.recurrence, spec.tokens, forward, backward)
    return {**tags, OUTCOME: "finished", SIMULATED: str(simulated).lower()}, metrics, loss.error


class EarlyAnswerReader:
    """A reader of early answers that works beside a live display: in a thread, again when more runs have ended.

    It reads anew at most a twentieth of the time, so that it takes little from the runs of the same machine.
    """

    _REST = 19.0

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.sentences: list[str] = []
        self._thread: threading.Thread | None = None
        self._ended, self._next = -1, 0.0

    def update(self, ended: int) -> list[str]:
        """Return the sentences that are known, and begin to read new ones if `ended` runs are more than before."""
        is_busy = self._thread is not None and self._thread.is_alive()
        if ended and ended != self._ended and not is_busy and time.monotonic() >= self._next:
            self._ended = ended
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        return self.sentences

    def _read(self) -> None:
        started = time.monotonic()
        self.sentences = early_sentences(self.folders)
        self._next = time.monotonic() + self._REST * (time.monotonic() - started)


def early_sentences(folders: Folders) -> list[str]:
    """Return the sentences of the early answers of a sweep, or the reason why there are none."""
    try:
        return [answer.sentence for answer in early_answers(read_table_so_far(folders))]
    except (ValueError, OSError) as error:  # a folder on a shared disk may be away for a while
        return [f"so far: no answer ({error})"]
