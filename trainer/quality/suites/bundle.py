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
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isoloop.trainer.quality.suites.catalogue import SUITES
from isoloop.trainer.quality.suites.task import FIELDS, Suite, Task
from isoloop.trainer.quality.suites.task_list import (
    BASELINES,
    LIST,
    BundleError,
    listed_tasks,
    own_task,
    rule_problems,
    setting_notes,
)

SHUFFLE_SEED = 1337
DATA = "eval_data"
_ADVICE = "`isoloop data prepare-suite` with --from puts a suite's data into a bundle and checks them"
Row = dict[str, Any]


class Bundle:
    """A folder or zip with the data of suites.

    Args:
        source: it, or a folder that holds it, such as an unpacked `eval_bundle.zip`.
        advice: what to do about missing data, the end of a message.

    Files are read and checked once.

    Raises:
        BundleError: there is no such folder or zip, or it holds no `eval_data`.
    """

    def __init__(self, source: Path, advice: str = _ADVICE) -> None:
        self.source, self._advice = source, advice
        self._read: dict[str, tuple[Any, int]] = {}  # of files: their sha256, to be gone on with, and size
        self._rows: dict[tuple[str, str], list[Row]] = {}
        if source.is_dir():
            folders = [source / DATA, *sorted(source.glob(f"*/{DATA}"))]
            folder = next((folder.parent for folder in folders if folder.is_dir()), source)
            files = [path for path in (*folder.glob("*"), *(folder / DATA).rglob("*")) if path.is_file()]
            names = [path.relative_to(source).as_posix() for path in files]
        elif zipfile.is_zipfile(source):
            try:
                with zipfile.ZipFile(source) as archive:
                    names = [name for name in archive.namelist() if not name.endswith("/")]
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                raise BundleError(f"a bundle must be a whole zip, but {source} is broken; fetch it again") from error
        else:
            reason = (
                f"{source} is neither, or a zip that was cut off" if source.exists() else f"there is none at {source}"
            )
            raise BundleError(f"a bundle must be a folder or a zip that holds {DATA}/, but {reason}; {advice}")
        roots = {f"/{name}".partition(f"/{DATA}/")[0] for name in names if f"/{DATA}/" in f"/{name}"}
        if not roots:
            raise BundleError(f"a bundle must hold {DATA}/, but {source} doesn't; {advice}")
        root = f"{min(roots, key=lambda name: (name.count('/'), name))}/"[1:]
        self._names = {name.removeprefix(root): name for name in names if name.startswith(root)}

    def has(self, name: str) -> bool:
        """Return whether the bundle holds a file of this path."""
        return name in self._names

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises BundleError where it is missing or a zip's part is broken."""
        if not self.has(name):
            raise BundleError(f"{name} is missing")
        if self.source.is_dir():
            return (self.source / self._names[name]).read_bytes()
        try:
            with zipfile.ZipFile(self.source) as archive:
                return archive.read(self._names[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise BundleError(
                f"{name} is broken: it can't be unpacked from {self.source} ({error}); fetch the zip again"
            ) from error

    def rows(self, task: Task) -> list[Row]:
        """Return a task's rows; those of questions in the order that Random(1337) shuffles them to.

        Raises:
            BundleError: the file is missing, short, or has a line that is no row of this kind.
        """
        rows = list(self._parse(task))
        if task.has_accuracy:
            random.Random(SHUFFLE_SEED).shuffle(rows)
        return rows

    def size(self, task: Task) -> int:
        """Return the bytes of a task's file."""
        return self._facts(f"{DATA}/{task.file}")[1]

    def answers_digest(self, task: Task) -> str:
        """Return a hash of a task's file and of all settings that decide its prompts, and so the answers."""
        hashed = self._facts(f"{DATA}/{task.file}")[0].copy()
        hashed.update(task.model_dump_json(exclude={"baselines", "rows"}).encode())
        return str(hashed.hexdigest()[:16])

    def digest(self, task: Task) -> str:
        """Return a hash of all that decides a task's measures: its file, its settings and its baselines."""
        return task.digest(self.answers_digest(task))

    def check(self, tasks: Iterable[Task]) -> None:
        """Raise BundleError that names each file that is missing, short or broken."""
        problems, distinct = [], {(task.file, task.kind): task for task in tasks}
        for task in distinct.values():
            try:
                self._parse(task)
            except BundleError as error:
                problems.append(str(error))
        if problems:
            raise BundleError(
                "every file of a suite must be there and whole, as a mean over the others would be another number, but "
                f"of {self.source}\n  " + "\n  ".join(problems) + f"\n{self._advice}"
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
        """Return sentences about the bundle's own list of tasks and baselines, where they differ from the suite's.

        A published suite needs neither, so what can't be read there is a sentence, too.
        """
        if suite.is_own:
            return []
        notes = []
        if self.has(LIST):
            try:
                notes += setting_notes(suite, listed_tasks(self.read(LIST), LIST))
            except BundleError as error:
                notes.append(f"the bundle's list of tasks wasn't compared with the suite's, which was used: {error}")
        if self.has(BASELINES) and len(suite.versions) > 1:
            try:
                version = self.baseline_version(suite)
                notes.append(f"{BASELINES} of the bundle has the baselines {version or 'of neither version'}")
            except BundleError as error:
                notes.append(f"the bundle's baselines weren't compared with the suite's, which were used: {error}")
        return notes

    def own_suite(self, path: Path) -> Suite:
        """Read a suite of the user's own: the tasks of a YAML file, with the baselines of eval_meta_data.csv.

        It has the file's name, and the folder's before it where that is the name of a published suite. It has a mean if
        all its tasks have an accuracy.

        Raises:
            BundleError: a file is missing or malformed, a task has no baseline, or a key is unknown.
        """
        name = f"{path.resolve().parent.name}-{path.stem}" if path.stem.lower() in SUITES else path.stem
        entries = listed_tasks(path.read_bytes(), path.name, is_own=True)
        baselines = self._baselines() if self.has(BASELINES) else {}
        tasks = tuple(
            own_task(entry, baselines, f"task {n} of {path.name}") for n, entry in enumerate(entries, start=1)
        )
        try:
            score = "Mean" if all(task.has_accuracy for task in tasks) else None
            return Suite(name=name, tasks=tasks, score=score, is_own=True)
        except ValidationError as error:
            raise BundleError(f"{path} must be a suite, but: {rule_problems(error)}") from error

    def _parse(self, task: Task) -> list[Row]:
        name = f"{DATA}/{task.file}"
        if not self.has(name):
            raise BundleError(f"{name} is missing (task {task.name})")
        if (rows := self._rows.get((name, task.kind))) is None:
            content = self.read(name)
            rows = _parse(content, name, task)
            self._rows[name, task.kind], self._read[name] = rows, (hashlib.sha256(content), len(content))
        least = max(task.rows or 1, task.shots + 1)
        if len(rows) < least:
            raise BundleError(f"{name} is short: {len(rows)} of {least} rows (task {task.name})")
        return rows

    def _facts(self, name: str) -> tuple[Any, int]:
        if name not in self._read:
            content = self.read(name)
            self._read[name] = hashlib.sha256(content), len(content)
        return self._read[name]

    def _baselines(self) -> dict[str, float]:
        try:
            table = csv.DictReader(io.StringIO(self.read(BASELINES).decode("utf-8-sig")))
            lines = [(table.line_num, row) for row in table]
        except (UnicodeDecodeError, csv.Error) as error:
            raise BundleError(
                f"{BASELINES} of {self.source} must be a table in UTF-8, but it isn't: {error}"
            ) from error
        baselines = {}
        for number, row in lines:
            try:
                baselines[row["Eval Task"]] = float(row["Random baseline"])
            except (KeyError, ValueError, TypeError) as error:
                raise BundleError(
                    f"{BASELINES} must have the columns 'Eval Task' and 'Random baseline', a number in percent, but "
                    f"line {number} of that of {self.source} doesn't"
                ) from error
        return baselines


def is_own_suite(name: str) -> bool:
    """Return whether the name of a suite is that of a YAML file, a suite of the user's own."""
    return name.endswith((".yaml", ".yml"))


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
    if not is_own_suite(name):
        raise ValueError(f"a suite must be one of {', '.join(SUITES)}, or a YAML file of your own, but got '{name}'")
    if not path.is_file():
        raise ValueError(f"a suite's YAML file must exist, but there is none at {path}; check the path")
    source = bundle or path.parent
    data = Bundle(source, f"put the rows of your own tasks into {DATA}/ of {source}, or take the task out of {path}")
    return data.own_suite(path), data


def _parse(content: bytes, name: str, task: Task) -> list[Row]:
    """Return the rows of a file; raise BundleError with the line of a broken one."""
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BundleError(f"{name} is broken: line {number} is not JSON ({error})") from error
        if (problem := _problem(task, row)) is not None:
            raise BundleError(f"{name} is broken: line {number} {problem}")
        rows.append(row)
    return rows


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
        if type(row["gold"]) is not int or not 0 <= row["gold"] < len(row[options]):
            return f"must have a gold that is the number of one of its {options}, from 0 on"
    kinds = (str, int, float) if task.has_accuracy else (str,)  # a question may have a number as its text
    if not all(isinstance(text, kinds) for text in texts):
        return f"must have text in {', '.join(FIELDS[task.kind])}"
    try:
        "".join(map(str, texts)).encode()
    except UnicodeEncodeError:
        return "has half a character, a lone surrogate such as \\ud800, which no text in UTF-8 holds"
    if "continuation" in FIELDS[task.kind] and not str(row["continuation"]).strip():
        return "must have a continuation"
    if not task.has_accuracy and not all(texts):
        return f"must have text in {', '.join(FIELDS[task.kind])}"
    return None
