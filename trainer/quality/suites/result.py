"""Results of tasks, row by row, as they are stored: one JSON file for each task of a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from isoloop.trainer.config import Config
from isoloop.trainer.files import write_atomically
from isoloop.trainer.quality.suites.task import Task


class Identity(Config):
    """What a result is of; results of another identity are not reused.

    Attributes:
        name: of the model.
        weights: a hash of them.
        tokenizer: a hash of what its tokens stand for.
        context: most tokens of a prompt.
        precision: of the matrix products.
    """

    name: str
    weights: str
    tokenizer: str
    context: int
    precision: str


class Answers(Config):
    """Answers to a task's rows, in their shuffled order, with one seed of the examples; dictionaries are by T.

    Attributes:
        correct: `1` where a question was answered rightly, else `0`, for each row; empty for texts.
        gold_nats: mean over the questions of the nats per scored token of the right option; empty for texts.
        nats: sum over the scored tokens of each row, where a perplexity is made of them.
        cropped: questions of which an option was longer than the context and lost its beginning.
        cut: those of which so much was lost that not all tokens were scored.
    """

    correct: dict[int, str] = Field(default_factory=dict)
    gold_nats: dict[int, float] = Field(default_factory=dict)
    nats: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    cropped: int = 0
    cut: int = 0

    @property
    def recurrences(self) -> set[int]:
        """Every T at which the rows were answered."""
        return set(self.correct) | set(self.nats)

    def joined(self, other: "Answers") -> "Answers":
        """Return these answers with those at other T."""
        return other.model_copy(
            update={
                name: dict(sorted((getattr(self, name) | getattr(other, name)).items()))
                for name in ("correct", "gold_nats", "nats")
            }
        )


class TaskResult(Config):
    """A model's answers to one task.

    Attributes:
        task: the task.
        data: a hash of its rows and of the settings that decide its prompts.
        of: the model.
        rows: number of rows that were answered.
        left_out: documents that have too few tokens to be scored.
        units: what a text's nats are divided by, such as its words and bytes, by row.
        seeds: answers by the seed of the few-shot examples; those without examples are under `ANY_SEED`.
    """

    task: Task
    data: str
    of: Identity
    rows: int
    left_out: int = 0
    units: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    seeds: dict[int, Answers] = Field(default_factory=dict)

    @property
    def recurrences(self) -> set[int]:
        """Every T at which the rows were answered with some seed."""
        return {depth for answers in self.seeds.values() for depth in answers.recurrences}

    def missing(self, seed: int, recurrences: Sequence[int]) -> list[int]:
        """Return every T of `recurrences` at which there are no answers with this seed, ascending."""
        answers = self.seeds.get(self.task.seed(seed), Answers())
        return sorted(set(recurrences) - answers.recurrences)

    def with_answers(self, seed: int, answers: Answers) -> "TaskResult":
        """Return the result with further answers."""
        key = self.task.seed(seed)
        joined = self.seeds[key].joined(answers) if key in self.seeds else answers
        return self.model_copy(update={"seeds": {**self.seeds, key: joined}})

    def correct(self, seeds: Sequence[int], recurrence: int) -> NDArray[np.float64]:
        """Return 1 for each right and 0 for each wrong answer, [seeds, rows]."""
        texts = [self.seeds[self.task.seed(seed)].correct[recurrence] for seed in seeds]
        return np.array([np.frombuffer(text.encode(), np.uint8) - ord("0") for text in texts], np.float64)

    def nats(self, recurrence: int) -> NDArray[np.float64]:
        """Return the nats of each row, [rows]; they don't depend on a seed, as a perplexity has no examples."""
        (answers,) = self.seeds.values()
        return np.array(answers.nats[recurrence])

    def write(self, folder: Path) -> None:
        """Write the result to <folder>/<task>.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.task.name}.json", self.model_dump_json())


def read_result(folder: Path, task: Task) -> TaskResult | None:
    """Read the result of a task; None if there is none."""
    path = folder / f"{task.name}.json"
    try:
        return TaskResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{path} must be the result of a task, but it can't be read; delete it and rerun") from error
