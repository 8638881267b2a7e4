"""Lists of tasks in YAML: core.yaml of a bundle, and those of the user's own suites."""

from pathlib import PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError

from isoloop.trainer.quality.suites.task import Suite, Task

LIST, BASELINES = "core.yaml", "eval_meta_data.csv"
OWN = "own"
# The keys of a task in YAML, and the settings that they are.
_KEYS = {
    "label": "name",
    "dataset_uri": "file",
    "num_fewshot": "shots",
    "icl_task_type": "kind",
    "continuation_delimiter": "delimiter",
    "rows": "rows",
    "perplexity": "perplexity",
}
_REQUIRED = ("label", "dataset_uri", "num_fewshot", "icl_task_type")


class BundleError(ValueError):
    """Error raised where a bundle lacks data that a suite needs."""


def listed_tasks(content: bytes, name: str, *, is_own: bool = False) -> list[dict[str, Any]]:
    """Return the tasks that a YAML file lists, as they stand there.

    Raises:
        BundleError: it isn't such a file, or, if it `is_own`, it has something else beside its tasks.
    """
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError) as error:
        where = str(error).splitlines()[0]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            where = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise BundleError(f"{name} must be YAML, but it isn't: {where}") from error
    entries = document.get("icl_tasks") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise BundleError(
            f"{name} must list tasks as `icl_tasks`, each with {', '.join(_REQUIRED)}, but it doesn't; see "
            "docs/quality.md"
        )
    if is_own and (others := [str(key) for key in document if key != "icl_tasks"]):
        raise BundleError(
            f"{name} must have `icl_tasks` alone, but has {', '.join(others)}, which would change nothing; write it "
            "into the tasks, or remove it"
        )
    return entries


def own_task(entry: dict[str, Any], baselines: dict[str, float], place: str) -> Task:
    """Return a task of the user's own; a key that would change nothing is refused."""
    place = f"{place} ({entry['label']})" if "label" in entry else place
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise BundleError(f"a task must have {', '.join(_REQUIRED)}, but {place} has no {', '.join(missing)}; add it")
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        raise BundleError(
            f"a task may have {', '.join(_KEYS)}, but {place} has {', '.join(unknown)}, which would change nothing; "
            "correct or remove it"
        )
    values = {_KEYS[key]: value for key, value in entry.items()}
    if isinstance(values["shots"], list):
        if len(values["shots"]) != 1:
            raise BundleError(
                f"num_fewshot must be one number, but that of {place} is {values['shots']}; write a task with a label "
                "of its own for each number"
            )
        (values["shots"],) = values["shots"]
    if values["kind"] not in ("rolling", "documents"):
        if str(values["name"]) not in baselines:
            raise BundleError(f"every task needs a baseline in {BASELINES}, but {place} has none; add it, in percent")
        values["baselines"] = {OWN: baselines[str(values["name"])]}
    values["file"] = _file(values["file"])
    try:
        return Task.model_validate(values)
    except ValidationError as error:
        raise BundleError(f"{place} isn't as it must be: {rule_problems(error)}; see docs/quality.md") from error


def _file(uri: object) -> object:
    return str(PurePosixPath(uri)).removeprefix("local_data/") if isinstance(uri, str) else uri


def rule_problems(error: ValidationError) -> str:
    """Return what is wrong with a task or suite, by the names that it has in YAML."""
    keys = {setting: key for key, setting in _KEYS.items()}
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(keys.get(str(part), str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        is_ours = problem["type"] == "value_error"
        lines.append(message if is_ours else f"{place}: {message}, but got {problem['input']!r}")
    return "; ".join(lines)


def setting_notes(suite: Suite, entries: list[dict[str, Any]]) -> list[str]:
    """Return sentences about how a bundle's tasks differ from the suite's of the same names."""
    notes, unused = [], set()
    listed = {str(entry.get("label")): entry for entry in entries}
    for task in suite.tasks:
        if (entry := listed.get(task.name)) is None:
            continue
        unused |= {str(key) for key in entry if key not in _KEYS}
        shots = entry.get("num_fewshot", task.shots)
        others = {
            "kind": entry.get("icl_task_type", task.kind),
            "file": _file(entry.get("dataset_uri", task.file)),
            "shots": shots[0] if isinstance(shots, list) and len(shots) == 1 else shots,
            "delimiter": entry.get("continuation_delimiter", " "),
        }
        notes += [
            f"{LIST} has {name} {other!r} for {task.name}; the suite's {getattr(task, name)!r} was used"
            for name, other in others.items()
            if other != getattr(task, name)
        ]
    if unused:
        notes.append(f"{LIST} of the bundle has settings that aren't used here: {', '.join(sorted(unused))}")
    return notes
