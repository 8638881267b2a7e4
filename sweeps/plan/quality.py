"""The evaluation of a sweep's runs by suites: which ones, on what data, and what of it is done."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isoloop.sweeps.config.schema import SweepEvaluationConfig
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import Cell
from isoloop.trainer.config import Config, RunSpec
from isoloop.trainer.files import write_atomically
from isoloop.trainer.recurrence import usual_recurrence
from isoloop.trainer.run.result import read_result

if TYPE_CHECKING:
    from isoloop.trainer.quality.suites.summary import SuiteSummary


class QualityTask(Config):
    """The evaluation of one run, as it is sent to a worker.

    Attributes:
        suites: published names, or paths of YAML files, each with the folder or zip of its data (None: the folder of
            the YAML file).
        weights: those of the loss that runs are compared by, the last ones or the best.
        folder: of the results.
        recurrences: every T.
        seeds: of the few-shot examples.
        precision: of the matrix products.
    """

    suites: dict[str, Path | None]
    weights: Literal["last", "best"] = "last"
    folder: Path
    recurrences: tuple[int, ...]
    seeds: tuple[int, ...]
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class PlannedSuite:
    """A suite whose data were there and whole when the plan was made.

    Attributes:
        given: its published name, or the path of its YAML file.
        bundle: folder or zip of its data; None: the folder of the YAML file.
        data: hashes of its data by the task's name, with which results count as done.
        rows: number of rows of all its tasks.
    """

    given: str
    bundle: Path | None
    data: Mapping[str, str]
    rows: int


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """The suites of a sweep.

    Attributes:
        evaluation: the configuration.
        folders: the places of the results.
        suites: the suites by name.
    """

    evaluation: SweepEvaluationConfig
    folders: Folders
    suites: Mapping[str, PlannedSuite]

    @classmethod
    def of(cls, evaluation: SweepEvaluationConfig, folders: Folders) -> "QualityPlan | None":
        """Return the plan of a sweep's evaluation; None if it names no suites.

        Raises:
            ValueError: there is no such suite, its data are missing or short, or two suites would fill in the
                same columns: they have one name, or a task of one name with other data.
        """
        from isoloop.trainer.quality.suites.bundle import find_suite, is_own_suite

        suites: dict[str, PlannedSuite] = {}
        names: dict[str, tuple[str, str]] = {}  # what suite a column's name is of, and its own name
        tasks: dict[str, tuple[str, str]] = {}  # what suite a task is of, and the hash of its data
        for given in evaluation.suites:
            bundle = None if is_own_suite(given) else folders.suites
            if evaluation.bundle is not None:
                bundle = Path(evaluation.bundle).expanduser()
            suite, source = find_suite(given, bundle)
            source.check(suite.tasks)
            first = names.setdefault(suite.name.replace("-", "_").lower(), (given, suite.name))
            if suite.name in suites or first != (given, suite.name):
                raise ValueError(
                    "suites of a sweep must have different names, not only in capital letters or - and _, since files "
                    f"and columns have their names, but {first[0]} is called '{first[1]}' and {given} '{suite.name}'; "
                    "rename a file, or leave one of them out"
                )
            data = {task.name: source.digest(task) for task in suite.tasks}
            for name, digest in data.items():
                other, known = tasks.setdefault(name, (given, digest))
                if known != digest:
                    raise ValueError(
                        "tasks of one name must have the same data, settings and baselines in all suites of a sweep, "
                        f"since columns have their names, but '{name}' of {other} and that of {given} differ; rename "
                        "one"
                    )
            suites[suite.name] = PlannedSuite(
                given=str(Path(given).resolve()) if is_own_suite(given) else given,
                bundle=None if bundle is None else bundle.resolve(),
                data=data,
                rows=sum(len(source.rows(task)) for task in suite.tasks),
            )
        return cls(evaluation=evaluation, folders=folders, suites=suites) if suites else None

    def describe(self) -> str:
        """Return which suites each run is evaluated on, and when, as a line of `isoloop plan`."""
        suites = ", ".join(
            f"{name} ({len(suite.data)} {'task' if len(suite.data) == 1 else 'tasks'}, {suite.rows:,} rows)"
            for name, suite in self.suites.items()
        )
        further = "".join(f", {depth}" for depth in self.evaluation.suite_recurrences)
        seeds = len(self.evaluation.suite_seeds)
        return (
            f"{suites} of each finished run, at T = µ{further}, with {seeds} {'seed' if seeds == 1 else 'seeds'} of "
            "examples, after all training; not in the times above"
        )

    def task(self, cell: Cell) -> QualityTask:
        """Return the evaluation of one run."""
        spec = cell.spec
        further = self.evaluation.suite_recurrences if spec.model.is_looped else ()
        return QualityTask(
            suites={suite.given: suite.bundle for suite in self.suites.values()},
            weights=compared_weights(self.folders, spec.run_id),
            folder=results_folder(self.folders, spec.run_id).resolve(),
            recurrences=tuple(sorted({table_recurrence(spec), *further})),
            seeds=self.evaluation.suite_seeds,
            precision=spec.precision if cell.resources.gpus else "float32",
        )

    def is_done(self, cell: Cell) -> bool:
        """Return whether a run was evaluated on all suites as this plan asks for it."""
        return self.summaries(cell) is not None

    def summaries(self, cell: Cell) -> "list[SuiteSummary] | None":
        """Return the summaries of a run on all suites; None if one is missing.

        What counts is what a worker has stored of these data, weights, seeds, recurrences and this precision; what
        `isoloop evaluate` stores beside it doesn't.
        """
        from isoloop.trainer.quality.suites.summary import SuiteSummary

        task, digest = self.task(cell), result_digest(self.folders.run(cell.run_id))
        if digest is None:
            return None
        summaries = []
        for name, suite in self.suites.items():
            try:
                stored = json.loads(summary_file(task.folder, name).read_text(encoding="utf-8"))
                summary, result = SuiteSummary.model_validate(stored["summary"]), stored["result"]
            except (FileNotFoundError, ValueError, LookupError, TypeError):  # none, cut off, or of another version
                return None
            stored_of = result, summary.data, summary.of.name, summary.of.precision
            asked_for = digest, suite.data, task.folder.name, task.precision
            if (stored_of, summary.recurrences, summary.seeds) != (asked_for, task.recurrences, task.seeds):
                return None
            summaries.append(summary)
        return summaries


def summary_file(folder: Path, suite: str) -> Path:
    """Return the file of a sweep's own summary of a run on a suite, which `isoloop evaluate` doesn't write."""
    return folder / f"{suite}.sweep.json"


def write_summary(folder: Path, summary: "SuiteSummary", result: str | None) -> None:
    """Store a summary with the digest of the result of the run that was evaluated, whole or not at all."""
    content = json.dumps({"result": result, "summary": summary.model_dump()}, indent=1)
    write_atomically(summary_file(folder, summary.suite), content)


def result_digest(folder: Path) -> str | None:
    """Return a hash of a run's result, which tells one training from another; None if there is no result."""
    try:
        return hashlib.sha256((folder / "result.json").read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return None


def compared_weights(folders: Folders, run_id: str) -> Literal["last", "best"]:
    """Return which weights of a run have the loss that runs are compared by: the best ones, if it kept them."""
    folder = folders.run(run_id)
    result = read_result(folder)
    if result is None or result.compared_loss == result.loss:
        return "last"
    if (folder / "best-model").is_dir():
        return "best"
    if (folder / "model").is_dir():
        return "last"
    # A model without the published layout has both in its last checkpoint
    spec = folder / "spec.json"
    keeps_best = spec.is_file() and RunSpec.model_validate_json(spec.read_bytes()).evaluation.keep_best
    return "best" if keeps_best else "last"


def results_folder(folders: Folders, run_id: str) -> Path:
    """Return the folder of a run's results on suites, those of the weights that runs are compared by."""
    return folders.quality(run_id if compared_weights(folders, run_id) == "last" else f"{run_id}-best")


def table_recurrence(spec: RunSpec) -> int:
    """Return the T whose results the run table has: µ_rec, rounded."""
    return usual_recurrence(spec.model, spec.recurrence)
