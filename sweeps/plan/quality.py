"""The evaluation of a sweep's runs by suites: which ones, on what data, and what of it is done."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isoloop.sweeps.config.schema import SweepEvaluationConfig
from isoloop.sweeps.paths import Folders
from isoloop.trainer.config import Config, RunSpec
from isoloop.trainer.run.result import read_result


class QualityTask(Config):
    """The evaluation of one run, as it is sent to a worker.

    Attributes:
        suites: published names, or paths of YAML files.
        bundle: folder or zip of their data; None: the folder of the YAML file.
        weights: those of the loss that runs are compared by, the last ones or the best.
        folder: of the results.
        recurrences: every T.
        seeds: of the few-shot examples.
    """

    suites: tuple[str, ...]
    bundle: Path | None
    weights: Literal["last", "best"] = "last"
    folder: Path
    recurrences: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """The suites of a sweep, whose data were there and whole when this was made.

    Attributes:
        evaluation: the configuration.
        folders: the places of the results.
        bundle: see `QualityTask`.
        data: hashes of the data by the suite's name and the task's, with which results count as done.
    """

    evaluation: SweepEvaluationConfig
    folders: Folders
    bundle: Path | None
    data: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, evaluation: SweepEvaluationConfig, folders: Folders) -> "QualityPlan | None":
        """Return the plan of a sweep's evaluation; None if it names no suites.

        Raises:
            ValueError: there is no such suite, or its data are missing or short.
        """
        if not evaluation.suites:
            return None
        from isoloop.trainer.quality.suites.bundle import find_suite

        bundle = None if all(map(_is_own, evaluation.suites)) else folders.suites
        if evaluation.bundle is not None:
            bundle = Path(evaluation.bundle).expanduser()
        data = {}
        for name in evaluation.suites:
            suite, source = find_suite(name, bundle)
            source.check(suite.tasks)
            data[suite.name] = {task.name: source.digest(task) for task in suite.tasks}
        return cls(
            evaluation=evaluation, folders=folders, bundle=None if bundle is None else bundle.resolve(), data=data
        )

    def task(self, spec: RunSpec) -> QualityTask:
        """Return the evaluation of one run."""
        further = self.evaluation.suite_recurrences if spec.model.is_looped else ()
        names = [
            str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name for name in self.evaluation.suites
        ]
        return QualityTask(
            suites=tuple(names),
            bundle=self.bundle,
            weights=compared_weights(self.folders, spec.run_id),
            folder=results_folder(self.folders, spec.run_id).resolve(),
            recurrences=tuple(sorted({table_recurrence(spec), *further})),
            seeds=self.evaluation.suite_seeds,
        )

    def is_done(self, spec: RunSpec) -> bool:
        """Return whether a run was evaluated on all suites, with these data, seeds and recurrences."""
        task = self.task(spec)
        for name, data in self.data.items():
            try:
                summary = json.loads((task.folder / f"{name}.summary.json").read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                return False
            if not (
                summary.get("data") == data
                and set(task.recurrences) <= set(summary["recurrences"])
                and list(task.seeds) == summary["seeds"]
            ):
                return False
        return True


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
    return max(1, round(spec.recurrence.mean)) if spec.model.is_looped else 1


def _is_own(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
