"""The columns of quality that a run table may have: benchmark scores of its runs, beside their losses.

| column | meaning, unit |
| --- | --- |
| `core`, `core_extended` | mean centred score of the suite, in points (chance 0, perfect 100), as papers print it |
| `core_se`, `core_extended_se` | standard error over the items, in points |
| `core_baselines` | version of the chance baselines behind both: v1 or v2 |
| `<task>_accuracy`, `<task>_accuracy_se` | share of right answers, 0 to 1, and its standard error over the items |
| `<task>_loss` | mean loss of the right continuation, nats per token or per byte |
| `<task>_chance` | accuracy of guessing, 0 to 1 |
| `<task>_ppl` | perplexity beside an accuracy; its logarithm is the task's loss, where there is no `<task>_loss` |
| `lambada_ppl` | that of `lambada_accuracy`, or of `lambada_openai_accuracy` |
| `<suite>_mean`, `<suite>_mean_se` | mean centred score of one's own suite, in points, beside tasks' accuracies |
| `scored_weights` | `last` or `best`: of which step the scores are, where a loss rose after its lowest value |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

SUITES = {"core": "Core", "core_extended": "Core-Extended"}
"""Columns of the suites' mean scores, with their names."""
BASELINES, SCORED_WEIGHTS = "core_baselines", "scored_weights"
POINTS = 100.0
"""A perfect mean score."""
_SIZE = ("effective_params_fixed", "effective_params_per_loop")
_PERPLEXITIES = {"lambada_openai": "lambada_ppl"}
_PARTS = ("accuracy_se", "accuracy", "loss", "chance", "ppl")
_OTHER_NAMES = {
    "acc": "accuracy",
    "acc_se": "accuracy_se",
    "acc_stderr": "accuracy_se",
    "accuracy_stderr": "accuracy_se",
}
_NO_TASKS = ("train", "training", "val", "valid", "validation", "eval", "test", "heldout", "best", "final", "mean")


@dataclass(frozen=True, kw_only=True)
class ScoreColumns:
    """The columns of one score: its `values`, and those beside it, None where the table has none.

    `perfect` is the best score, in the score's unit; `logarithm` says that the task's loss is the logarithm of its
    column, a perplexity.
    """

    name: str
    label: str
    unit: str
    perfect: float
    values: str
    error: str | None = None
    loss: str | None = None
    chance: str | None = None
    logarithm: bool = False


def score_columns(names: Iterable[str]) -> tuple[ScoreColumns, ...]:
    """Return the scores that a table with these column names has, in the table's order: first suites, then tasks."""
    present = [str(name) for name in names]

    def beside(name: str) -> str | None:
        return name if name in present else None

    suites = [
        ScoreColumns(name=name, label=label, unit="points", perfect=POINTS, values=name, error=beside(f"{name}_se"))
        for name, label in (SUITES | {name: name for name in _own_means(present)}).items()
        if name in present
    ]
    tasks = []
    for task in (name.removesuffix("_accuracy") for name in present if name.endswith("_accuracy")):
        loss = beside(f"{task}_loss")
        tasks.append(
            ScoreColumns(
                name=task,
                label=task,
                unit="accuracy",
                perfect=1.0,
                values=f"{task}_accuracy",
                error=beside(f"{task}_accuracy_se"),
                loss=loss or beside(_PERPLEXITIES.get(task, "")) or beside(f"{task}_ppl"),
                chance=beside(f"{task}_chance"),
                logarithm=loss is None,
            )
        )
    return (*suites, *tasks)


def quality_names(keys: Iterable[str]) -> dict[str, str]:
    """Return our name of each column that holds quality, by its plain name (see `mapping.column_key`).

    A column `<task>_loss`, `_ppl` or `_chance` is one of a task only beside that task's accuracy.
    """
    split = {key: _split(key) for key in keys}
    tasks = {task for task, part in filter(None, split.values()) if part == "accuracy"}
    found = {key: f"{task}_{part}" for key, (task, part) in _items(split) if task in tasks}
    means = [*SUITES, *(_own_means(split) if tasks else ())]
    suites = {*means, *(f"{name}_se" for name in means), BASELINES, SCORED_WEIGHTS}
    suites |= {column for task, column in _PERPLEXITIES.items() if task in tasks}
    return found | {key: key for key in split if key in suites}


def best_and_fixed_depth(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the run of least loss of each budget, and those of one loop of its size, both by growing budget."""
    runs = runs[runs["budget"].notna()].sort_values("loss")
    best = runs.drop_duplicates("budget").sort_values("budget")
    if "mean_recurrence" not in runs:
        return best, best.iloc[:0]
    keys = ["budget", *(name for name in _SIZE if name in runs)]
    once = runs[runs["mean_recurrence"] == 1].drop_duplicates(keys)
    return best, best[keys].merge(once, on=keys, how="inner")


def _own_means(names: Iterable[str]) -> list[str]:
    """Return the columns of the mean scores of suites of one's own, which stand beside accuracies and have errors."""
    present = [str(name) for name in names]
    if not any(name.endswith(("_accuracy", "_acc")) for name in present):
        return []
    return [name for name in present if name.endswith("_mean") and f"{name}_se" in present]


def _items(split: dict[str, tuple[str, str] | None]) -> list[tuple[str, tuple[str, str]]]:
    return [(key, parts) for key, parts in split.items() if parts is not None]


def _split(key: str) -> tuple[str, str] | None:
    """Return the task and the part of a plain name, such as arc_easy and accuracy; None if it has none."""
    match = re.fullmatch(rf"(.+?)_({'|'.join([*_OTHER_NAMES, *_PARTS])})", key)
    if match is None or match[1] in _NO_TASKS:
        return None
    return match[1], _OTHER_NAMES.get(match[2], match[2])
