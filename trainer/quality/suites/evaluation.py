"""Evaluation of a model on a suite: task by task and seed by seed, each stored as it is done."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from isoloop.trainer.config import SUITE_SEEDS
from isoloop.trainer.data.tokenizer import Tokenizer
from isoloop.trainer.files import sole_owner, write_atomically
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.quality.suites.bundle import Bundle, Row
from isoloop.trainer.quality.suites.prompts import Question, make_questions
from isoloop.trainer.quality.suites.reader import LoopedReader, Precision, Reader
from isoloop.trainer.quality.suites.result import Answers, Identity, TaskResult, read_result
from isoloop.trainer.quality.suites.scoring import Score, score_questions
from isoloop.trainer.quality.suites.summary import SuiteSummary, summarise
from isoloop.trainer.quality.suites.task import Suite, Task
from isoloop.trainer.quality.suites.text import document_units, make_documents, make_pages, page_units

QUESTIONS_AT_ONCE = 2048

SuiteProgress = Callable[[str, float, float], None]
"""Called with what is being evaluated, the work that is done, and all work, in bytes of prompts."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate, with the tokenizer that it was trained with."""

    reader: Reader
    tokenizer: Tokenizer
    identity: Identity

    @classmethod
    def of(
        cls, model: LanguageModel, tokenizer: Tokenizer, *, name: str, precision: Precision = "float32"
    ) -> "Subject":
        """Return the subject of a model of ours, on the device on which it is."""
        identity = Identity(
            name=name,
            weights=weights_digest(model),
            tokenizer=tokenizer.digest[:16],
            context=model.config.context,
            precision=precision,
        )
        return cls(reader=LoopedReader(model, precision), tokenizer=tokenizer, identity=identity)


def weights_digest(model: nn.Module) -> str:
    """Return a hash of a model's weights, on any device."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Unit(NamedTuple):
    """A task with one seed, and every T at which its rows are still to be answered."""

    task: Task
    seed: int
    recurrences: list[int]
    work: int


def evaluate_suite(
    subject: Subject,
    suite: Suite,
    bundle: Bundle,
    folder: Path,
    *,
    recurrences: Sequence[int],
    seeds: Sequence[int] = SUITE_SEEDS,
    share_prefixes: bool = True,
    progress: SuiteProgress = lambda label, done, total: None,
) -> SuiteSummary:
    """Evaluate a model on a suite, and return the summary, which is also written to <folder>/<suite>.summary.json.

    Each task's answers are stored in <folder>/<task>.json after each seed, those of a suite of the user's own in
    <folder>/<suite>/. What is stored of this model and data is not
    computed again, so an interrupted evaluation goes on, and another T or seed costs only itself.

    Args:
        subject: the model.
        suite: its tasks.
        bundle: their data.
        folder: of the results of this model.
        recurrences: T, each >= 1; [1] for a fixed-depth model.
        seeds: of the few-shot examples.
        share_prefixes: read what the options of a question share only once.
        progress: called as the evaluation goes on.

    Raises:
        ValueError: data are missing or short (each file is named); recurrences aren't possible; another process
            evaluates into this folder.
    """
    _check(subject, recurrences, seeds)
    bundle.check(suite.tasks)
    notes, place = bundle.notes(suite), suite.results_in(folder)
    with sole_owner(folder):
        # What is stored already, and what is to do
        results = {task.name: _stored(subject, bundle, place, task) for task in suite.tasks}
        units = [
            _Unit(task, seed, missing, bundle.size(task) * (task.shots + 1))
            for task in suite.tasks
            for seed in dict.fromkeys(map(task.seed, seeds))
            if (missing := results[task.name].missing(seed, recurrences))
        ]
        total, done = sum(unit.work for unit in units), 0

        # Each task with each seed
        for number, unit in enumerate(units, start=1):
            label = f"{number}/{len(units)} {unit.task.name}"
            before = done
            result, answers = _answer(
                subject,
                results[unit.task.name],
                bundle.rows(unit.task),
                unit,
                share_prefixes,
                lambda share, label=label, before=before, work=unit.work: progress(  # type: ignore[misc]
                    label, before + share * work, total
                ),
            )
            results[unit.task.name] = result.with_answers(unit.seed, answers)
            results[unit.task.name].write(place)
            done += unit.work
            progress(label, done, total)
        summary = summarise(suite, results, seeds=seeds, recurrences=recurrences, notes=notes)
        write_atomically(folder / f"{suite.name}.summary.json", summary.model_dump_json(indent=1))
    return summary


def read_results(folder: Path, suite: Suite) -> dict[str, TaskResult]:
    """Read the stored results of a suite's tasks, by name.

    Raises:
        ValueError: a task has none.
    """
    results: dict[str, TaskResult] = {}
    for task in suite.tasks:
        if (result := read_result(suite.results_in(folder), task)) is not None:
            # Answers don't depend on the baselines, which may have been corrected since
            stored = result.task.model_copy(update={"baselines": task.baselines})
            results[task.name] = result.model_copy(update={"task": stored})
    if missing := [task.name for task in suite.tasks if task.name not in results]:
        raise ValueError(
            f"every task of a suite must have been evaluated, but {folder} has no result of {', '.join(missing)}; run "
            f"`isoloop evaluate` with --suite {suite.name}"
        )
    return results


def _check(subject: Subject, recurrences: Sequence[int], seeds: Sequence[int]) -> None:
    if not recurrences or min(recurrences) < 1:
        raise ValueError(f"recurrences must be whole numbers of loops from 1 on, but got {list(recurrences)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, but got {list(seeds)}")
    if not subject.reader.is_looped and set(recurrences) != {1}:
        raise ValueError(
            f"a model without a loop runs each layer once, so its only T is 1, but '{subject.identity.name}' is to be "
            f"evaluated at T = {', '.join(map(str, recurrences))}; leave --recurrences out"
        )


def _stored(subject: Subject, bundle: Bundle, folder: Path, task: Task) -> TaskResult:
    """Return the stored result of a task, or an empty one if there is none of this model and data."""
    data = bundle.answers_digest(task)
    result = read_result(folder, task)
    if result is not None and (result.of, result.data) == (subject.identity, data):
        return result.model_copy(update={"task": task})
    return TaskResult(task=task, data=data, of=subject.identity, rows=0)


def _answer(
    subject: Subject,
    result: TaskResult,
    rows: Sequence[Row],
    unit: _Unit,
    share_prefixes: bool,
    progress: Callable[[float], None],
) -> tuple[TaskResult, Answers]:
    """Answer all rows, some thousand at a time. Returns the result with the units of texts, and the answers."""
    all_rows = len(rows)
    rows, units = _units(subject, unit.task, rows)
    scores: list[list[Score]] = []
    questions: list[_Facts] = []
    for start in range(0, len(rows), QUESTIONS_AT_ONCE):
        numbers = range(start, min(start + QUESTIONS_AT_ONCE, len(rows)))
        part, scored = _prompts(subject, unit.task, rows, numbers, unit.seed), 0
        size = sum(len(option.tokens) for question in part for option in question.options)

        def advance(tokens: int) -> None:
            nonlocal scored
            scored += tokens
            progress((start + len(numbers) * scored / size) / len(rows))  # noqa: B023  called within this turn

        scores += score_questions(
            subject.reader, part, unit.recurrences, share_prefixes=share_prefixes, progress=advance
        )
        questions += [_Facts.of(question) for question in part]
    finite = np.all([np.isfinite(score.nats) for options in scores for score in options], axis=0)
    if not finite.all():
        bad = [depth for depth, is_finite in zip(unit.recurrences, finite.tolist(), strict=True) if not is_finite]
        advice = "leave these T out" if finite.any() else "it has diverged, so evaluate another model"
        raise ValueError(
            f"a model's losses must be finite to tell which option is likelier, but those of '{subject.identity.name}' "
            f"on {unit.task.name} aren't at T = {', '.join(map(str, bad))}; {advice}"
        )
    columns = {name: tuple(each[name] for each in units) for name in (units[0] if units else {})}
    result = result.model_copy(update={"rows": len(rows), "left_out": all_rows - len(rows), "units": columns})
    return result, _answers(unit.task, questions, scores, unit.recurrences)


def _units(subject: Subject, task: Task, rows: Sequence[Row]) -> tuple[Sequence[Row], list[dict[str, int]]]:
    """Return the rows that can be read, and what the nats of each are divided by, if they are texts."""
    if task.kind == "rolling":
        return rows, [page_units(row["page"]) for row in rows]
    if task.kind == "documents":
        return document_units(rows, tokenizer=subject.tokenizer, context=subject.reader.context)
    return rows, []


def _prompts(subject: Subject, task: Task, rows: Sequence[Row], numbers: range, seed: int) -> list[Question]:
    """Return the prompts of some rows: questions with options, or the windows of texts."""
    tokenizer, context = subject.tokenizer, subject.reader.context
    if task.kind == "rolling":
        return make_pages(rows[numbers.start : numbers.stop], tokenizer=tokenizer, context=context)
    if task.kind == "documents":
        part = rows[numbers.start : numbers.stop]
        return make_documents(part, numbers.start, tokenizer=tokenizer, context=context)
    return make_questions(task, rows, numbers, seed=seed, tokenizer=tokenizer, context=context)


class _Facts(NamedTuple):
    """What is kept of a question once its options are scored."""

    gold: int
    is_cropped: bool
    is_cut: bool

    @classmethod
    def of(cls, question: Question) -> "_Facts":
        options = question.options
        return cls(
            question.gold, any(option.is_cropped for option in options), any(option.is_cut for option in options)
        )


def _answers(
    task: Task, questions: Sequence[_Facts], scores: Sequence[Sequence[Score]], recurrences: Sequence[int]
) -> Answers:
    """Return the answers of all rows from the scores of their options."""
    if not task.has_accuracy:
        sums = np.stack([np.sum([score.nats for score in page], axis=0) for page in scores])
        return Answers(nats={depth: tuple(sums[:, place].tolist()) for place, depth in enumerate(recurrences)})
    gold = [options[question.gold] for question, options in zip(questions, scores, strict=True)]
    if task.kind == "language_modeling":
        correct = np.stack([score.greedy for score in gold])
    else:
        picked = [np.argmin([score.mean_nats for score in options], axis=0) for options in scores]
        correct = np.stack(picked) == np.array([[question.gold] for question in questions])
    gold_nats = np.mean([score.mean_nats for score in gold], axis=0)
    sums = np.stack([score.nats for score in gold])
    return Answers(
        correct={
            depth: "".join("1" if right else "0" for right in correct[:, place])
            for place, depth in enumerate(recurrences)
        },
        gold_nats={depth: float(gold_nats[place]) for place, depth in enumerate(recurrences)},
        nats={depth: tuple(sums[:, place].tolist()) for place, depth in enumerate(recurrences)}
        if task.perplexity
        else {},
        cropped=sum(question.is_cropped for question in questions),
        cut=sum(question.is_cut for question in questions),
    )
