"""Summaries of suites: accuracies, also centred by each version of the baselines, Core, perplexities, as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from isoloop.trainer.config import Config
from isoloop.trainer.quality.suites.resampling import interval, resampled_sums
from isoloop.trainer.quality.suites.result import Identity, TaskResult
from isoloop.trainer.quality.suites.task import Suite


class Estimate(Config):
    """A value with its deviation over seeds and its interval over rows.

    Attributes:
        value: mean over the seeds.
        deviation: population standard deviation over the seeds; None where the seeds change nothing.
        low: lower end of the 95% bootstrap interval over rows.
        high: upper end.
    """

    value: float
    deviation: float | None = None
    low: float
    high: float


class TaskSummary(Config):
    """Measures of one task at each T.

    Attributes:
        name: of the task.
        shots: solved examples before each question.
        rows: number of rows.
        measures: estimates by measure and T: `accuracy`, `centred v1`, `perplexity`, `word_perplexity`, ...
        baselines: accuracy at chance in percent, by version; empty for texts.
        gold_nats: nats per scored token of the right option by T, mean over questions and seeds; empty for texts.
        cropped: questions that lost the beginning of a prompt, at most over the seeds.
        cut: those of which not all tokens were scored.
        left_out: documents that have too few tokens to be scored.
    """

    name: str
    shots: int
    rows: int
    measures: dict[str, dict[int, Estimate]]
    baselines: dict[str, float] = Field(default_factory=dict)
    gold_nats: dict[int, float]
    cropped: int
    cut: int
    left_out: int = 0


class SuiteSummary(Config):
    """Measures of a model on a suite.

    Attributes:
        suite: its name.
        score: name of the mean of centred accuracies, such as Core; None: there is none.
        of: the model.
        recurrences: every T.
        seeds: of the few-shot examples.
        scores: the mean of the centred accuracies, by version of the baselines and T.
        tasks: the tasks.
        data: a hash of each task's data, settings and baselines, by its name (`Bundle.digest`).
        notes: sentences about the data.
    """

    suite: str
    score: str | None
    of: Identity
    recurrences: tuple[int, ...]
    seeds: tuple[int, ...]
    scores: dict[str, dict[int, Estimate]]
    tasks: tuple[TaskSummary, ...]
    data: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Return a table of all tasks, with the mean and its baselines first."""
        seeds = ", ".join(map(str, self.seeds))
        lines = [f"{self.suite} of {self.of.name} ({self.of.precision}; examples by the seeds {seeds})", ""]
        header = ("", *(f"T = {recurrence}" for recurrence in self.recurrences))
        rows = [
            (f"{self.score}, baselines {version}", *(cell(by_depth[depth], 100) for depth in self.recurrences))
            for version, by_depth in self.scores.items()
        ]
        lines += [*aligned([header, *rows]), ""] if rows else []
        measured = [
            (f"{task.name} ({task.shots} shots, {task.rows} rows)" if not number else "", measure, by_depth)
            for task in self.tasks
            for number, (measure, by_depth) in enumerate(task.measures.items())
        ]
        cells = [
            (name, measure, *(cell(by_depth[depth], scale_of(measure)) for depth in self.recurrences))
            for name, measure, by_depth in measured
        ]
        lines += aligned([("task", "measure", *header[1:]), *cells])
        lines += [
            "",
            "Accuracies and their means are in percent. ± is the standard deviation over the seeds, and the brackets",
            "hold the 95% bootstrap interval over rows.",
        ]
        for task in self.tasks:
            if task.cropped:
                what = f"{task.name}: {task.cropped} of {task.rows} prompts were longer than the context of "
                lines.append(f"{what}{self.of.context} tokens and lost their beginning")
            if task.cut:
                lines.append(f"{task.name}: of {task.cut} of them the scored tokens themselves were too many")
            if task.left_out:
                lines.append(
                    f"{task.name}: {task.left_out} of {task.rows + task.left_out} documents have fewer than two tokens "
                    "and were left out"
                )
        return "\n".join([*lines, *self.notes]) + "\n"


class Measure(NamedTuple):
    """A measure of a task as sums over rows: value = map(sum of numerators / sum of denominators).

    `numerators` is [seeds, recurrences, rows], `denominators` [rows].
    """

    name: str
    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]
    scale: float = 1.0
    offset: float = 0.0
    is_log: bool = False

    def of(self, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of ratios."""
        return np.exp(ratio) if self.is_log else (ratio - self.offset) * self.scale


def measures_of(result: TaskResult, seeds: Sequence[int], recurrences: Sequence[int]) -> list[Measure]:
    """Return the measures of a task's result: accuracies first, perplexities after them."""
    task, measures = result.task, []
    if task.has_accuracy:
        correct = np.stack([result.correct(seeds, recurrence) for recurrence in recurrences], axis=1)
        ones = np.ones(result.rows)
        measures.append(Measure("accuracy", correct, ones))
        for version, percent in sorted(task.baselines.items()):
            chance = percent / 100
            measures.append(Measure(centred_name(version), correct, ones, 1 / (1 - chance), chance))
    if task.perplexity or not task.has_accuracy:
        nats = np.stack([result.nats(recurrence) for recurrence in recurrences])[None]
        units = {name: np.array(values, np.float64) for name, values in result.units.items()}
        if task.kind == "language_modeling":
            measures.append(Measure("perplexity", nats, np.ones(result.rows), is_log=True))
        elif task.kind == "rolling":
            measures.append(Measure("word_perplexity", nats, units["words"], is_log=True))
            measures.append(Measure("byte_perplexity", nats, units["bytes"], is_log=True))
        else:
            measures.append(Measure("loss", nats, units["tokens"]))
            measures.append(Measure("perplexity", nats, units["tokens"], is_log=True))
        if "bytes" in units:
            measures.append(Measure("bits_per_byte", nats, units["bytes"], 1 / math.log(2)))
    return measures


def centred_name(version: str) -> str:
    """Return the name of the centred accuracy by a version of the baselines."""
    return f"centred {version}"


def summarise(
    suite: Suite,
    results: Mapping[str, TaskResult],
    *,
    seeds: Sequence[int],
    recurrences: Sequence[int],
    notes: Sequence[str] = (),
) -> SuiteSummary:
    """Summarise the results of a suite's tasks, by name; all must be there, with these seeds and recurrences."""
    depths = sorted(set(recurrences))
    values: dict[str, list[NDArray[np.float64]]] = {version: [] for version in suite.versions}  # [seeds, recurrences]
    draws: dict[str, list[NDArray[np.float64]]] = {version: [] for version in suite.versions}  # [draws, recurrences]
    tasks = []
    for task in suite.tasks:
        result, measures = results[task.name], {}
        measured = measures_of(result, seeds, depths)
        for measure, drawn in zip(measured, resampled_values(measured, task.file), strict=True):
            by_seed = measure.of(measure.numerators.sum(-1) / measure.denominators.sum())
            measures[measure.name] = _estimates(by_seed, drawn, depths, varies=task.shots > 0)
            for version in suite.versions:
                if measure.name == centred_name(version):
                    values[version].append(by_seed)
                    draws[version].append(drawn)
        answers = [result.seeds[task.seed(seed)] for seed in seeds]
        tasks.append(
            TaskSummary(
                name=task.name,
                shots=task.shots,
                rows=result.rows,
                measures=measures,
                baselines=task.baselines,
                gold_nats={depth: float(np.mean([each.gold_nats[depth] for each in answers])) for depth in depths}
                if task.has_accuracy
                else {},
                cropped=max(each.cropped for each in answers),
                cut=max(each.cut for each in answers),
                left_out=result.left_out,
            )
        )
    varies = any(task.shots for task in suite.tasks)
    return SuiteSummary(
        suite=suite.name,
        score=suite.score,
        of=results[suite.tasks[0].name].of,
        recurrences=tuple(depths),
        seeds=tuple(seeds),
        scores={
            version: _estimates(
                np.mean(values[version], axis=0), np.mean(draws[version], axis=0), depths, varies=varies
            )
            for version in (suite.versions if suite.score else ())
        },
        tasks=tuple(tasks),
        data={task.name: task.digest(results[task.name].data) for task in suite.tasks},
        notes=tuple(notes),
    )


def resampled_values(measures: Sequence[Measure], file: str) -> list[NDArray[np.float64]]:
    """Return each measure, mean over the seeds, on the same resampled rows of its file, [draws, recurrences]."""
    parts = {id(measure.numerators): measure.numerators.mean(0) for measure in measures}
    parts |= {id(measure.denominators): measure.denominators[None] for measure in measures}
    ends = np.cumsum([len(part) for part in parts.values()])
    sums = dict(
        zip(parts, np.split(resampled_sums(np.concatenate(list(parts.values())), file), ends[:-1], 1), strict=True)
    )
    return [measure.of(sums[id(measure.numerators)] / sums[id(measure.denominators)]) for measure in measures]


def _estimates(
    by_seed: NDArray[np.float64], draws: NDArray[np.float64], depths: Sequence[int], *, varies: bool
) -> dict[int, Estimate]:
    """Return the estimate at each T from the values [seeds, recurrences] and those of draws [draws, recurrences]."""
    estimates = {}
    for column, depth in enumerate(depths):
        low, high = interval(draws[:, column])
        deviation = float(by_seed[:, column].std()) if varies and len(by_seed) > 1 else None
        estimates[depth] = Estimate(value=float(by_seed[:, column].mean()), deviation=deviation, low=low, high=high)
    return estimates


def scale_of(measure: str) -> float:
    """Return the factor with which a measure is printed: 100 for fractions, as percent."""
    return 100 if measure == "accuracy" or measure.startswith("centred") else 1


def cell(estimate: Estimate, scale: float) -> str:
    """Return an estimate as text: value, deviation over seeds, interval."""
    spread = "" if estimate.deviation is None else f" ±{scale * estimate.deviation:.2f}"
    return f"{scale * estimate.value:.2f}{spread} [{scale * estimate.low:.2f}, {scale * estimate.high:.2f}]"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
