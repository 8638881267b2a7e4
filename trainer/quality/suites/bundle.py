"""Bundles, the data of suites: a folder, or a zip of one, that holds

eval_data/<category>/<file>.jsonl   rows, one JSON object on a line
core.yaml                           tasks (`icl_tasks`): label, dataset_uri, num_fewshot, icl_task_type, ...
eval_meta_data.csv                  baselines: columns `Eval Task` and `Random baseline` (in percent)
"""

import csv
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from isoloop.trainer.quality.suites.catalogue import SUITES
from isoloop.trainer.quality.suites.task import FIELDS, Suite, Task

SHUFFLE_SEED = 1337
DATA, TASKS, BASELINES = "eval_data", "core.yaml", "eval_meta_data.csv"
OWN = "own"
_ADVICE = "`isoloop data prepare-suite` makes a bundle and checks it"
Row = dict[str, Any]


class BundleError(ValueError):
    """Error raised where a bundle lacks data that a suite needs."""


class Bundle:
    """A folder or zip with the data of suites.

    Args:
        source: it, or a folder that holds it, such as an unpacked `eval_bundle.zip`.

    Raises:
        BundleError: there is no such folder or zip, or it holds no `eval_data`.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        if source.is_dir():
            folders = [source / DATA, *sorted(source.glob(f"*/{DATA}"))]
            folder = next((folder.parent for folder in folders if folder.is_dir()), source)
            files = [path for path in (*folder.glob("*"), *(folder / DATA).rglob("*")) if path.is_file()]
            names = [path.relative_to(source).as_posix() for path in files]
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
        else:
            raise BundleError(
                f"a bundle must be a folder or a zip that holds {DATA}/, but there is none at {source}; {_ADVICE}"
            )
        roots = {f"/{name}".partition(f"/{DATA}/")[0] for name in names if f"/{DATA}/" in f"/{name}"}
        if not roots:
            raise BundleError(f"a bundle must hold {DATA}/, but {source} doesn't; {_ADVICE}")
        root = f"{min(roots, key=lambda name: (name.count('/'), name))}/"[1:]
        self._names = {name.removeprefix(root): name for name in names if name.startswith(root)}

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of all its files."""
        return tuple(self._names)

    def has(self, name: str) -> bool:
        """Return whether the bundle holds a file of this path."""
        return name in self._names

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        if self.source.is_dir():
            return (self.source / self._names[name]).read_bytes()
        with zipfile.ZipFile(self.source) as archive:
            return archive.read(self._names[name])

    def rows(self, task: Task) -> list[Row]:
        """Return a task's rows; those of questions in the order that Random(1337) shuffles them to.

        Raises:
            BundleError: the file is missing, short, or has a line that is no row of this kind.
        """
        rows = self._parse(task)
        if task.has_accuracy:
            random.Random(SHUFFLE_SEED).shuffle(rows)
        return rows

    def digest(self, task: Task) -> str:
        """Return a hash of a task's file and of all settings that decide its prompts."""
        settings = task.model_dump_json(exclude={"baselines", "rows"})
        return hashlib.sha256(self.read(f"{DATA}/{task.file}") + settings.encode()).hexdigest()[:16]

    def check(self, tasks: Iterable[Task]) -> None:
        """Raise BundleError that names each file that is missing, short or broken."""
        problems, distinct = [], {(task.file, task.kind): task for task in tasks}
        for task in distinct.values():
            try:
                self._parse(task)
            except BundleError as error:
                problems.append(str(error))
        if problems:
            published = {task.file for suite in SUITES.values() for task in suite.tasks}
            is_published = any(file in published for file, _ in distinct)
            advice = _ADVICE if is_published else "add what is missing, or take the task out of the YAML file"
            raise BundleError(
                "every file of a suite must be there and whole, as a mean over the others would be another number, but "
                f"of {self.source}\n  " + "\n  ".join(problems) + f"\n{advice}"
            )

    def baseline_version(self, suite: Suite) -> str | None:
        """Return the version of the baselines in the bundle's own table; None if it has none, or others."""
        if not self.has(BASELINES):
            return None
        table = self._baselines()
        tasks = [task for task in suite.tasks if task.has_accuracy]
        for version in suite.versions:
            if all(table.get(task.name) == task.baselines[version] for task in tasks):
                return version
        return None

    def notes(self, suite: Suite) -> list[str]:
        """Return sentences about the bundle's own list of tasks and baselines, where they differ from the suite's."""
        notes = []
        if self.has(TASKS):
            own = {task.name: task for task in self._tasks(self.read(TASKS), TASKS)}
            for task in suite.tasks:
                other = own.get(task.name)
                names = ("kind", "file", "shots", "delimiter")
                differing = [name for name in names if other and getattr(other, name) != getattr(task, name)]
                notes += [
                    f"{TASKS} has {name} {getattr(other, name)!r} for {task.name}; the suite's {getattr(task, name)!r} "
                    "was used"
                    for name in differing
                ]
        if self.has(BASELINES) and len(suite.versions) > 1:
            version = self.baseline_version(suite)
            notes.append(f"{BASELINES} of the bundle has the baselines {version or 'of neither version'}")
        return notes

    def own_suite(self, path: Path) -> Suite:
        """Read a suite of the user's own: the tasks of a YAML file, with the baselines of eval_meta_data.csv.

        It has the file's name, and the folder's before it where that is the name of a published suite.

        Raises:
            ValueError: a file is missing or malformed, or a task has no baseline.
        """
        name = f"{path.resolve().parent.name}-{path.stem}" if path.stem in SUITES else path.stem
        return Suite(name=name, tasks=tuple(self._tasks(path.read_bytes(), path.name)), score="Mean")

    def _parse(self, task: Task) -> list[Row]:
        name = f"{DATA}/{task.file}"
        if not self.has(name):
            raise BundleError(f"{name} is missing (task {task.name})")
        rows = []
        for number, line in enumerate(self.read(name).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BundleError(f"{name} is broken: line {number} is not JSON ({error})") from error
            if (problem := _problem(task, row)) is not None:
                raise BundleError(f"{name} is broken: line {number} {problem}")
            rows.append(row)
        least = max(task.rows or 1, task.shots + 1)
        if len(rows) < least:
            raise BundleError(f"{name} is short: {len(rows)} of {least} rows (task {task.name})")
        return rows

    def _tasks(self, content: bytes, name: str) -> list[Task]:
        try:
            entries = yaml.safe_load(content)["icl_tasks"]
            baselines = self._baselines() if self.has(BASELINES) else {}
            return [self._task(entry, baselines) for entry in entries]
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{name} must list tasks as `icl_tasks`, each with label, dataset_uri, num_fewshot and icl_task_type, "
                f"but it has an error: {error!r}; see docs/quality.md"
            ) from error

    @staticmethod
    def _task(entry: dict[str, Any], baselines: dict[str, float]) -> Task:
        name, shots = entry["label"], entry["num_fewshot"]
        shots = shots[0] if isinstance(shots, list) else shots
        kind = entry["icl_task_type"]
        has_accuracy = kind not in ("rolling", "documents")
        if has_accuracy and name not in baselines:
            raise BundleError(f"every task needs a baseline in {BASELINES}, but {name} has none; add it, in percent")
        return Task(
            name=name,
            kind=kind,
            file=str(PurePosixPath(entry["dataset_uri"])).removeprefix("local_data/"),
            shots=shots,
            delimiter=entry.get("continuation_delimiter", " "),
            baselines={OWN: baselines[name]} if has_accuracy else {},
            rows=entry.get("rows"),
            perplexity=bool(entry.get("perplexity", False)),
        )

    def _baselines(self) -> dict[str, float]:
        try:
            table = csv.DictReader(io.StringIO(self.read(BASELINES).decode("utf-8-sig")))
            return {row["Eval Task"]: float(row["Random baseline"]) for row in table}
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(
                f"{BASELINES} must have the columns 'Eval Task' and 'Random baseline' (in percent), but that of "
                f"{self.source} has an error: {error!r}"
            ) from error


def find_suite(name: str, bundle: Path | None) -> tuple[Suite, Bundle]:
    """Return a published suite by its name, or one of the user's own by its YAML file, with the bundle of its data.

    Args:
        name: a published suite, or a YAML file in the format of core.yaml.
        bundle: folder or zip of the data; None: the folder of the YAML file.

    Raises:
        ValueError: there is no such suite or bundle.
    """
    path = Path(name)
    if name in SUITES:
        if bundle is None:
            raise BundleError(f"the suite '{name}' needs the bundle of its data; name its folder or zip")
        return SUITES[name], Bundle(bundle)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"a suite must be one of {', '.join(SUITES)}, or a YAML file of your own, but got '{name}'")
    if not path.is_file():
        raise ValueError(f"a suite's YAML file must exist, but there is none at {path}; check the path")
    data = Bundle(bundle or path.parent)
    return data.own_suite(path), data


def _problem(task: Task, row: Any) -> str | None:
    """Return what is wrong with a row, as the end of a sentence; None if nothing is."""
    if not isinstance(row, dict) or any(field not in row for field in FIELDS[task.kind]):
        return f"must have {', '.join(FIELDS[task.kind])}"
    options = {"multiple_choice": "choices", "schema": "context_options"}.get(task.kind)
    texts = [row[field] for field in FIELDS[task.kind] if field not in (options, "gold")]
    if options is not None:
        if not isinstance(row[options], list) or len(row[options]) < 2:
            return f"must have two or more {options}"
        texts += row[options]
        if not isinstance(row["gold"], int) or not 0 <= row["gold"] < len(row[options]):
            return f"must have a gold that is the number of one of its {options}, from 0 on"
    if not all(isinstance(text, str | int | float) for text in texts):
        return f"must have text in {', '.join(FIELDS[task.kind])}"
    if "continuation" in FIELDS[task.kind] and not str(row["continuation"]).strip():
        return "must have a continuation"
    if not task.has_accuracy and not all(texts):
        return f"must have text in {', '.join(FIELDS[task.kind])}"
    return None
