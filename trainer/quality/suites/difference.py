"""Differences between two models on the same rows, with intervals of the pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import Config
from isoloop.trainer.quality.suites.resampling import interval
from isoloop.trainer.quality.suites.result import Identity, TaskResult
from isoloop.trainer.quality.suites.summary import (
    Estimate,
    aligned,
    cell,
    centred_name,
    measures_of,
    resampled_values,
    scale_of,
)
from isoloop.trainer.quality.suites.task import Suite, Task


class Differences(Config):
    """The first model's measures minus the second's: `scores` by version of the baselines, `tasks` by task and measure.

    An interval is over rows, each with its two answers. A deviation is over seeds. `notes` are sentences about what is
    not compared.
    """

    first: str
    second: str
    recurrences: tuple[int, int]
    scores: dict[str, Estimate]
    tasks: dict[str, dict[str, Estimate]]
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Return a table of the differences, the mean and its baselines first."""
        rows = [
            ("mean of centred accuracies", f"baselines {name}", cell(each, 100)) for name, each in self.scores.items()
        ]
        rows += [
            (task if not number else "", measure, cell(estimate, scale_of(measure)))
            for task, measures in self.tasks.items()
            for number, (measure, estimate) in enumerate(measures.items())
        ]
        title = (
            f"{self.first} at T = {self.recurrences[0]} minus {self.second} at T = {self.recurrences[1]}, row by row"
        )
        return "\n".join([title, *aligned(rows), *self.notes]) + "\n"


def compare_models(
    suite: Suite,
    first: Mapping[str, TaskResult],
    second: Mapping[str, TaskResult],
    *,
    recurrences: tuple[int, int],
    seeds: Sequence[int],
) -> Differences:
    """Compare two models, each at a T of its own, by the results of a suite's tasks, by name.

    Raises:
        ValueError: they have answered other rows or prompts, or one of them not at its T with these seeds.
    """
    data = {task.name: first[task.name].data for task in suite.tasks}
    check_answers(suite, first, data, recurrence=recurrences[0], seeds=seeds)
    check_answers(suite, second, data, recurrence=recurrences[1], seeds=seeds)
    has_bytes = all("bytes" in first[task.name].units for task in suite.tasks if task.kind == "documents")
    notes = check_texts(suite, first[suite.tasks[0].name].of, second, has_bytes=has_bytes)
    values: dict[str, list[NDArray[np.float64]]] = {version: [] for version in suite.versions}
    draws: dict[str, list[NDArray[np.float64]]] = {version: [] for version in suite.versions}
    tasks: dict[str, dict[str, Estimate]] = {}
    for task in suite.tasks:
        tasks[task.name] = {}
        measured = [
            measures_of(results[task.name], seeds, [recurrence])
            for results, recurrence in zip((first, second), recurrences, strict=True)
        ]
        if task.kind == "documents" and first[task.name].of.tokenizer != second[task.name].of.tokenizer:
            measured = [[each for each in part if each.name == "bits_per_byte"] for part in measured]
            if first[task.name].left_out:
                raise ValueError(_incomparable(task, None))
        if task.kind == "documents" and not np.array_equal(measured[0][-1].denominators, measured[1][-1].denominators):
            notes.append(
                f"{task.name}: documents are cut to the context, so of long ones the models have read parts of "
                "different lengths"
            )
        drawn_of = resampled_values([*measured[0], *measured[1]], task.file)
        drawn_pairs = zip(drawn_of[: len(measured[0])], drawn_of[len(measured[0]) :], strict=True)
        for ours, theirs, (our_draws, their_draws) in zip(*measured, drawn_pairs, strict=True):
            by_seed, other = (
                measure.of(measure.numerators.sum(-1) / measure.denominators.sum())[:, 0] for measure in (ours, theirs)
            )
            by_seed, drawn = by_seed - other, (our_draws - their_draws)[:, 0]
            tasks[task.name][ours.name] = _estimate(by_seed, drawn, varies=task.shots > 0)
            for version in suite.versions:
                if ours.name == centred_name(version):
                    values[version].append(by_seed)
                    draws[version].append(drawn)
    varies = any(task.shots for task in suite.tasks)
    return Differences(
        first=first[suite.tasks[0].name].of.name,
        second=second[suite.tasks[0].name].of.name,
        recurrences=recurrences,
        scores={
            version: _estimate(np.mean(values[version], axis=0), np.mean(draws[version], axis=0), varies=varies)
            for version in (suite.versions if suite.score else ())
        },
        tasks=tasks,
        notes=tuple(notes),
    )


def check_answers(
    suite: Suite,
    results: Mapping[str, TaskResult],
    data: Mapping[str, str],
    *,
    recurrence: int,
    seeds: Sequence[int],
) -> None:
    """Raise ValueError where a model has not answered these prompts at T with these seeds.

    Args:
        suite: its tasks.
        results: of the tasks, by name.
        data: hashes of the rows and settings of each task, by name (`Bundle.answers_digest`).
        recurrence: T.
        seeds: of the few-shot examples.
    """
    differing = [task.name for task in suite.tasks if results[task.name].data != data[task.name]]
    if differing:
        raise ValueError(
            f"models are compared row by row, so both must have answered the same data, but {', '.join(differing)} "
            "differ in rows or settings; evaluate both with one bundle"
        )
    for task in suite.tasks:
        lacking = [seed for seed in seeds if results[task.name].missing(seed, [recurrence])]
        if lacking:
            raise ValueError(
                f"models are compared on the same prompts, but '{results[task.name].of.name}' has no answers to "
                f"{task.name} at T = {recurrence} with the seeds {', '.join(map(str, lacking))}; evaluate it so"
            )


def check_texts(suite: Suite, of: Identity, other: Mapping[str, TaskResult], *, has_bytes: bool = True) -> list[str]:
    """Return sentences about measures of documents that two tokenizers don't share; only their bits per byte compare.

    Args:
        suite: its tasks.
        of: the one model.
        other: results of the other one, by the task's name.
        has_bytes: the bytes of the one model's tokens are known.

    Raises:
        ValueError: the bytes of a model's tokens are unknown, or the other one has left out documents.
    """
    differing = [
        task for task in suite.tasks if task.kind == "documents" and other[task.name].of.tokenizer != of.tokenizer
    ]
    for task in differing:
        theirs = other[task.name]
        unknown = of.name if not has_bytes else theirs.of.name if "bytes" not in theirs.units else None
        if unknown is not None or theirs.left_out:
            raise ValueError(_incomparable(task, unknown))
    return [
        f"{task.name}: the tokenizers differ, and so do their tokens, so only bits per byte are compared"
        for task in differing
    ]


def _incomparable(task: Task, unknown: str | None) -> str:
    reason = (
        f"the bytes of the tokens of '{unknown}' are unknown" if unknown else "documents of one token were left out"
    )
    return (
        "losses per token of two tokenizers can't be subtracted, and bits per byte only if both models have read all "
        f"documents, but for {task.name} {reason}; compare models of one tokenizer, or on --suite wikitext"
    )


def _estimate(by_seed: NDArray[np.float64], draws: NDArray[np.float64], *, varies: bool) -> Estimate:
    low, high = interval(draws)
    deviation = float(by_seed.std()) if varies and len(by_seed) > 1 else None
    return Estimate(value=float(by_seed.mean()), deviation=deviation, low=low, high=high)
