"""Results on evaluation suites as columns of the run table and metrics of MLflow (docs/quality.md#columns)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from isoloop.trainer.quality.suites.summary import SuiteSummary

_POINTS = 100.0
_NORMAL_WIDTH = 2 * 1.959964  # of a 95% interval, in standard errors
_PERPLEXITIES = {"lambada_openai": "lambada_ppl", "wikitext": "wikitext_ppl", "validation": "validation_ppl"}


class QualityRecord(NamedTuple):
    """What is recorded of a run's quality: its `columns` in the run table, and `curves`, (metric, value, T)."""

    columns: dict[str, float | str]
    curves: list[tuple[str, float, int]]


def summary_files(folder: Path) -> list[Path]:
    """Return the stored summaries of a run's suites."""
    return sorted(folder.glob("*.summary.json"))


def digest_of(files: Sequence[Path]) -> str:
    """Return a hash of summaries, which tells whether they were recorded as they are."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def read_quality(files: Sequence[Path], recurrence: int, baselines: str) -> QualityRecord:
    """Return what is recorded of stored summaries.

    Args:
        files: the summaries.
        recurrence: T of the columns.
        baselines: version of the baselines of the columns; suites that don't have it have their only one.
    """
    from isoloop.trainer.quality.suites.summary import SuiteSummary

    columns: dict[str, float | str] = {}
    curves: list[tuple[str, float, int]] = []
    for file in files:
        summary = SuiteSummary.model_validate_json(file.read_bytes())
        if recurrence in summary.recurrences:
            columns |= _score_columns(summary, recurrence, baselines) | _task_columns(summary, recurrence, baselines)
        for version, by_depth in summary.scores.items():
            name = f"quality/{_score_name(summary)}_{version}_at_T"
            curves += [(name, _POINTS * estimate.value, depth) for depth, estimate in by_depth.items()]
    return QualityRecord(columns, curves)


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
    return columns | ({"core_baselines": version} if summary.score != "Mean" else {})


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
