"""Tasks of evaluation suites: the kind of question, its data, and how a prompt is made of it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from isoloop.trainer.config import Config, NonEmptyText, NonNegativeInt, PositiveInt

Kind = Literal["multiple_choice", "schema", "language_modeling", "rolling", "documents"]
# The fields of a row, by kind of task.
FIELDS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
    "rolling": ("page",),
    "documents": ("text",),
}
ANY_SEED = 0
# `best_loss`, `validation_loss` and the like are columns of the run table, so a task must not be called so.
NO_TASKS = ("train", "training", "val", "valid", "validation", "eval", "test", "heldout", "best", "final", "mean")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            "the name of a task or suite is that of files, columns and metrics, so it must begin with a letter or a "
            f"digit and go on with letters, digits, '_', '-' or '.', but got '{name}'; rename it"
        )
    return name


def _column(name: str) -> str:
    """Return a task's name as run tables read it: without case and punctuation."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_.")


Name = Annotated[str, AfterValidator(_check_name)]


class Task(Config):
    """A task of a suite.

    Args:
        name: of letters, digits, `_`, `-` and `.`; unique in its suite.
        kind: `multiple_choice` (one question, several answers), `schema` (several beginnings, one end),
            `language_modeling` (the continuation must be predicted token by token), `rolling` (log-likelihood of whole
            pages) or `documents` (validation loss).
        file: path of its rows below `eval_data/`, JSON objects line by line.
        shots: solved examples before each question.
        delimiter: between a question and its answer.
        baselines: accuracy at chance in percent, by version of the table that it is from.
        rows: rows of the whole file; None: unknown. A shorter file is refused.
        perplexity: keep the log-likelihood of each continuation, whose mean gives a perplexity.
    """

    name: Name
    kind: Kind
    file: NonEmptyText
    shots: NonNegativeInt = 0
    delimiter: str = " "
    baselines: dict[str, Annotated[float, Field(ge=0, lt=100)]] = Field(default_factory=dict)
    rows: PositiveInt | None = None
    perplexity: bool = False

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.has_accuracy != bool(self.baselines):
            raise ValueError(
                f"a task needs a baseline exactly if it has an accuracy, but '{self.name}' ({self.kind}) has "
                f"{self.baselines or 'none'}"
            )
        if self.has_accuracy and _column(self.name) in NO_TASKS:
            raise ValueError(
                f"a task's columns in a run table must not be those of its runs, but '{self.name}' would have the "
                f"column {self.name}_loss; rename it"
            )
        if self.shots and not self.has_accuracy:
            raise ValueError(f"texts are read without examples, but '{self.name}' is to have {self.shots}; set 0")
        if self.perplexity and (self.shots or self.kind != "language_modeling"):
            raise ValueError(
                "a perplexity of continuations is that of language_modeling without examples, but "
                f"'{self.name}' is {self.kind} with {self.shots}; leave perplexity out"
            )
        return self

    @property
    def has_accuracy(self) -> bool:
        """True for questions that are answered rightly or wrongly."""
        return self.kind in ("multiple_choice", "schema", "language_modeling")

    def centred(self, accuracy: float, version: str) -> float:
        """Return (accuracy - b) / (1 - b), which is 0 at the baseline b of that version and 1 at best."""
        chance = self.baselines[version] / 100
        return (accuracy - chance) / (1 - chance)

    def digest(self, data: str) -> str:
        """Return a hash of the hash `data` of what was answered, and of the baselines that answers are centred by."""
        return hashlib.sha256(f"{data} {json.dumps(self.baselines, sort_keys=True)}".encode()).hexdigest()[:16]

    def seed(self, seed: int) -> int:
        """Return the seed under which a result is kept: the same one for all where no examples are drawn."""
        return seed if self.shots else ANY_SEED


class Suite(Config):
    """Tasks that are evaluated together.

    Args:
        score: name of the mean of their centred accuracies, such as `Core`; None: there is no such mean.
        is_own: it is of the user's own, so that its tasks may be called as those of other suites.
    """

    name: Name
    tasks: tuple[Task, ...] = Field(min_length=1)
    score: NonEmptyText | None = None
    is_own: bool = False

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        columns = [_column(task.name) for task in self.tasks]
        if twice := [task.name for task in self.tasks if columns.count(_column(task.name)) > 1]:
            raise ValueError(
                "tasks of a suite must differ in their names, not only in punctuation or capital letters, but got "
                f"{', '.join(twice)}; rename them"
            )
        if self.score and not all(task.has_accuracy for task in self.tasks):
            raise ValueError(f"a mean of accuracies needs tasks that have one, but '{self.name}' has others")
        return self

    def results_in(self, folder: Path) -> Path:
        """Return where the answers to its tasks are, in the folder of a model's results."""
        return folder / self.name if self.is_own else folder

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of the baselines that all tasks with an accuracy have."""
        known = [set(task.baselines) for task in self.tasks if task.has_accuracy]
        return tuple(sorted(set.intersection(*known))) if known else ()
