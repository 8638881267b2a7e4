"""Results on evaluation suites as columns of the run table and metrics of MLflow (docs/quality.md#in-a-sweep)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from isoloop.fitting.tables.quality import BASELINES, SCORED_WEIGHTS
from isoloop.sweeps.tracking.schema import is_own_column

if TYPE_CHECKING:
    from isoloop.trainer.quality.suites.summary import SuiteSummary

_POINTS = 100.0
_NORMAL_WIDTH = 2 * 1.959964  # of a 95% interval, in standard errors
_PERPLEXITIES = {"lambada_openai": "lambada_ppl", "wikitext": "wikitext_ppl", "validation": "validation_ppl"}


class QualityRecord(NamedTuple):
    """What is recorded of a run's quality: its `columns` in the run table, and `curves`, (metric, value, T)."""

    columns: dict[str, float | str]
    curves: list[tuple[str, float, int]]


def read_quality(
    summaries: "Sequence[SuiteSummary]", recurrence: int, baselines: str, *, weights: str
) -> QualityRecord:
    """Return what is recorded of summaries; the run table's own columns stay as they are, whatever a task is called.

    Args:
        summaries: those of all suites.
        recurrence: T of the columns.
        baselines: version of the baselines of the columns; suites that don't have it have their only one.
        weights: those that were evaluated, the last or the best ones.
    """
    columns: dict[str, float | str] = {}
    curves: list[tuple[str, float, int]] = []
    for summary in summaries:
        if recurrence in summary.recurrences:
            columns |= _score_columns(summary, recurrence, baselines) | _task_columns(summary, recurrence, baselines)
        for version, by_depth in summary.scores.items():
            name = f"quality/{_score_name(summary)}_{version}_at_T"
            curves += [(name, _POINTS * estimate.value, depth) for depth, estimate in by_depth.items()]
    columns = {name: value for name, value in columns.items() if not is_own_column(name)}
    return QualityRecord(columns | ({SCORED_WEIGHTS: weights} if columns else {}), curves)


def _score_name(summary: "SuiteSummary") -> str:
    name = summary.suite.replace("-", "_")
    return name if summary.score != "Mean" else f"{name}_mean"


def _score_columns(summary: "SuiteSummary", recurrence: int, baselines: str) -> dict[str, float | str]:
    """Return the mean centred score in points, its standard error over rows, and the version of the baselines."""
    if not summary.scores:
        return {}
    name = _score_name(summary)
    version = baselines if baselines in summary.scores else next(iter(summary.scores))
    estimate = summary.scores[version][recurrence]
    error = (estimate.high - estimate.low) / _NORMAL_WIDTH
    columns: dict[str, float | str] = {name: _POINTS * estimate.value, f"{name}_se": _POINTS * error}
    return columns | ({BASELINES: version} if summary.score != "Mean" else {})


def _task_columns(summary: "SuiteSummary", recurrence: int, baselines: str) -> dict[str, float | str]:
    """Return accuracy, its standard error over rows, loss and chance of each task, and perplexities."""
    columns: dict[str, float | str] = {}
    for task in summary.tasks:
        if "accuracy" in task.measures:
            estimate = task.measures["accuracy"][recurrence]
            chance = task.baselines.get(baselines, next(iter(task.baselines.values()), 0.0))
            columns |= {
                f"{task.name}_accuracy": estimate.value,
                f"{task.name}_accuracy_se": (estimate.high - estimate.low) / _NORMAL_WIDTH,
                f"{task.name}_loss": task.gold_nats[recurrence],
                f"{task.name}_chance": chance / _POINTS,
            }
        perplexity = task.measures.get("perplexity", task.measures.get("word_perplexity"))
        if perplexity is not None:
            columns[_PERPLEXITIES.get(task.name, f"{task.name}_ppl")] = perplexity[recurrence].value
    return columns
