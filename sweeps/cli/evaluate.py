"""The commands `isoloop evaluate` and `isoloop data prepare-suite`: quality beside loss."""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isoloop.sweeps.cli.console import show_progress
from isoloop.sweeps.cli.generate import (
    Best,
    Device,
    Model,
    OwnClasses,
    Revision,
    TokenizerName,
    load_model,
)
from isoloop.sweeps.cli.options import DEFAULT_OUT, RUNS_FAILED, Out, file_name
from isoloop.sweeps.paths import Folders, folders_of

if TYPE_CHECKING:
    from isoloop.trainer.quality.suites.bundle import Bundle
    from isoloop.trainer.quality.suites.evaluation import Subject
    from isoloop.trainer.quality.suites.result import TaskResult
    from isoloop.trainer.quality.suites.summary import SuiteSummary
    from isoloop.trainer.quality.suites.task import Suite

MOST_RECURRENCES = 4096

SuiteName = Annotated[
    str,
    typer.Option("--suite", help="core, core-extended, lambada, wikitext, validation, or your own YAML file."),
]


def evaluate(
    model: Model,
    suite: SuiteName = "core",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder or zip of the suite's data; by default that of prepare-suite in --out."),
    ] = None,
    recurrences: Annotated[
        str | None, typer.Option(help="T, all in one pass: 1,2,4,8 or 1-24; by default the mean in training.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the few-shot examples.")] = "1234,2345,3456",
    against: Annotated[
        str | None,
        typer.Option(help="Compare, row by row, with a model that was evaluated in --out: its name, or NAME@T."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the matrix products; by default that of training on a GPU, else float32."),
    ] = None,
    every_run: Annotated[bool, typer.Option("--all", help="All runs of a sweep, instead of its best one.")] = False,
    best: Best = False,
    revision: Revision = None,
    tokenizer: TokenizerName = None,
    own_classes: OwnClasses = False,
    device: Device = None,
    out: Out = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Measure a model by Core, Lambada or WikiText, at any T.

    MODEL may also be a model of Transformers, to compare with. Results are stored task by task: rerun the command to go
    on after an interruption, and only what is missing is computed.
    """
    # The suite, its data, and what is asked of them
    with show_progress() as progress:
        progress.begin("Loading the model")
        from isoloop.sweeps.models import trained_runs, untrained_runs
        from isoloop.sweeps.plan.quality import compared_weights
        from isoloop.trainer.quality.suites.bundle import find_suite, is_own_suite
        from isoloop.trainer.quality.suites.difference import compare_models
        from isoloop.trainer.quality.suites.evaluation import evaluate_suite, read_results

        chosen = recurrences_of(recurrences)
        drawn = tuple(_numbers(seeds, "--seeds"))
        if every_run:
            given = {"--against": against, "--best": best, "--tokenizer": tokenizer, "--revision": revision}
            if used := [name for name, value in given.items() if value]:
                raise ValueError(f"--all evaluates the runs of a sweep as they are, but got {used[0]}; leave it out")
        found, data = find_suite(suite, bundle or (None if is_own_suite(suite) else out / "suites"))
        data.check(found.tasks)  # before a model is fetched; the evaluation finds what was read here

        def load(target: str, weights_are_best: bool) -> "tuple[Subject, list[int], Path]":
            """Load a model; return it, its T, and the folder of its results."""
            subject, mean = _load(
                target, out, weights_are_best, revision, tokenizer, own_classes, device, precision, progress.event
            )
            depths = chosen if chosen and (subject.reader.is_looped or not every_run) else [mean]
            return subject, depths, _results_folder(out, subject.identity.name)

        # All runs of a sweep: one that can't be evaluated is named, and the others go on
        summaries, losses, failures = [], [], dict[str, str]()
        if every_run:
            folders = folders_of(model, out)
            runs = trained_runs(folders)
            for number, (run, result) in enumerate(runs.items(), start=1):
                try:
                    subject, depths, folder = load(str(run), compared_weights(folders, run.name) == "best")
                    progress.begin(f"Evaluating run {number}/{len(runs)}")
                    summaries.append(
                        evaluate_suite(
                            subject, found, data, folder, recurrences=depths, seeds=drawn, progress=progress.update
                        )
                    )
                    losses.append(result.compared_loss)
                except (ValueError, OSError, RuntimeError) as error:
                    failures[run.name] = str(error)

        # One model, and another one to compare it with, whose answers are looked at first
        else:
            subject, depths, folder = load(model, best)
            rival = None if against is None else _rival(against, out, found, data, subject, depths, folder, drawn)
            progress.begin("Evaluating")
            summary = evaluate_suite(
                subject, found, data, folder, recurrences=depths, seeds=drawn, progress=progress.update
            )

    if every_run:
        left_out = untrained_runs(folders)
        if as_json:
            print(json.dumps([each.model_dump(mode="json") for each in summaries], indent=1))
        elif summaries:
            print("\n".join(runs_table(summaries, losses)))
        for run_id, reason in left_out.items():
            print(f"run {run_id} was left out: {reason}", file=sys.stderr)
        for run_id, reason in failures.items():
            print(f"run {run_id} was not evaluated: {reason}", file=sys.stderr)
        if failures:
            sys.exit(RUNS_FAILED)
        return
    if not as_json:
        print(summary.report(), end="")
    elif rival is None:
        print(summary.model_dump_json(indent=1))
    if rival is None:
        return
    place, theirs = rival
    ours = read_results(folder, found)
    other = ours if place == folder else read_results(place, found)
    differences = compare_models(
        found, ours, other, recurrences=(max(summary.recurrences), theirs), seeds=summary.seeds
    )
    if as_json:
        both = {"summary": summary.model_dump(mode="json"), "differences": differences.model_dump(mode="json")}
        print(json.dumps(both, indent=1))
    else:
        print(f"\n{differences.report()}", end="")


def _rival(
    against: str,
    out: Path,
    suite: "Suite",
    bundle: "Bundle",
    subject: "Subject",
    recurrences: Sequence[int],
    folder: Path,
    seeds: Sequence[int],
) -> tuple[Path, int]:
    """Return the folder and the T of the model to compare with; raise ValueError unless its answers can be compared.

    It may be the subject itself at another T, also at one that is to be evaluated.
    """
    from isoloop.trainer.quality.suites.difference import check_answers, check_texts
    from isoloop.trainer.quality.suites.evaluation import read_results

    name, _, depth = against.partition("@")
    wanted = recurrences_of(depth or None, "T of --against")
    if len(wanted) > 1:
        raise ValueError(f"--against takes one T, as NAME@T, but got '{against}'; name one")
    place = _results_folder(out, name)
    if place == folder and (not wanted or wanted[0] in recurrences):
        return place, wanted[0] if wanted else max(recurrences)
    results = read_results(place, suite)
    theirs = wanted[0] if wanted else _deepest(results, seeds)
    data = {task.name: bundle.answers_digest(task) for task in suite.tasks}
    check_answers(suite, results, data, recurrence=theirs, seeds=seeds)
    check_texts(suite, subject.identity, results, has_bytes=len(subject.tokenizer.token_bytes) > 0)
    return place, theirs


def _deepest(results: "dict[str, TaskResult]", seeds: Sequence[int]) -> int:
    """Return the largest T at which all tasks are answered with these seeds, or else the first task's largest."""
    first = next(iter(results.values()))
    complete = [
        depth
        for depth in first.recurrences
        if not any(result.missing(seed, [depth]) for result in results.values() for seed in seeds)
    ]
    return max(complete or first.recurrences)


def runs_table(summaries: Sequence["SuiteSummary"], losses: Sequence[float | None]) -> list[str]:
    """Return a line for each run and T: its loss, and its scores, or else the first measure of each task."""
    from isoloop.trainer.quality.suites.summary import aligned, cell, scale_of

    rows = []
    for summary, loss in zip(summaries, losses, strict=True):
        measures = {f"{summary.score} {version}": (by_depth, 100.0) for version, by_depth in summary.scores.items()}
        if not measures:
            firsts = {task.name: next(iter(task.measures.items())) for task in summary.tasks}
            measures = {f"{task} {name}": (values, scale_of(name)) for task, (name, values) in firsts.items()}
        rows += [
            (
                summary.of.name,
                f"{loss or math.nan:.4f}",
                str(depth),
                *(cell(by_depth[depth], scale) for by_depth, scale in measures.values()),
            )
            for depth in summary.recurrences
        ]
        header = ("run", "loss", "T", *measures)
    return aligned([header, *rows])


def prepare_suite(
    suite: SuiteName,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="A bundle's zip or folder, parquet files (wikitext, validation), or OWNER/NAME on Hugging Face.",
        ),
    ] = None,
    files: Annotated[str | None, typer.Option(help="Pattern of the parquet files, such as 'sample/*val*'.")] = None,
    revision: Revision = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Fetch the data of an evaluation suite, and check them.

    A missing or short file is named, and nothing is evaluated without it.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Preparing the suite")
        from isoloop.trainer.quality.suites.catalogue import SUITES
        from isoloop.trainer.quality.suites.preparation import prepare_suite as prepare

        if suite not in SUITES:
            raise ValueError(f"--suite must be one of {', '.join(SUITES)}, but got '{suite}'; name one of these")
        prepare(
            SUITES[suite],
            source,
            out / "suites",
            files=files,
            revision=revision,
            waiting=lambda line: progress.update(line, 0, 0),
        )
    print(f"{out / 'suites'} has the data of {suite}: {len(SUITES[suite].tasks)} tasks, all files whole")


def _results_folder(out: Path, name: str) -> Path:
    return Folders(out=out, name="").quality(file_name(name))


def recurrences_of(text: str | None, option: str = "--recurrences") -> list[int]:
    """Return the recurrences in a text such as '1,2,4,8' or '1-24', at most 4,096; none for None.

    Raises:
        ValueError: the text is something else.
    """
    chosen: list[int] = []
    for part in [] if text is None else text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last if dash else first]
        if not all(re.fullmatch(r"\d{1,9}", end.strip(), re.ASCII) for end in ends):
            raise _bad_recurrences(part, option)
        low, high = map(int, ends)
        if not 1 <= low <= high <= MOST_RECURRENCES:
            raise _bad_recurrences(part, option)
        chosen += range(low, high + 1)
    return list(dict.fromkeys(chosen))


def _bad_recurrences(part: str, option: str) -> ValueError:
    return ValueError(
        f"{option} must be whole numbers from 1 to {MOST_RECURRENCES:,} with commas between them, or ranges of them "
        f"such as 1-24, the smaller number first, but got '{part}'"
    )


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be whole numbers with commas between them, but got '{text}'") from error


def _load(
    target: str,
    out: Path,
    best: bool,
    revision: str | None,
    tokenizer: str | None,
    own_classes: bool,
    device: str | None,
    precision: Literal["float32", "bfloat16"] | None,
    say: Callable[[str], None],
) -> "tuple[Subject, int]":
    """Load the model to evaluate; return it, and the T at which it is used."""
    from isoloop.trainer.quality.generation import default_recurrence
    from isoloop.trainer.quality.suites.evaluation import Subject, weights_digest
    from isoloop.trainer.quality.suites.transformers_reader import is_transformers_model, load_transformers
    from isoloop.trainer.run.environment import usable_device

    place = usable_device(device)
    if is_transformers_model(target, revision):
        if best or tokenizer is not None:
            raise ValueError(
                f"--best and --tokenizer are for models of isoloop, but '{target}' is none; leave them out"
            )
        if revision is not None and Path(target).expanduser().is_dir():
            raise ValueError(f"--revision is of a model on Hugging Face, but '{target}' is a folder; leave it out")
        return load_transformers(target, revision=revision, device=place, precision=precision or "float32"), 1
    trained = load_model(target, out, best, revision, tokenizer, own_classes, device, say)
    name = f"{trained.name}-best" if trained.weights == "best" else trained.name
    if trained.spec is None and (revision is not None or Path(target).expanduser().is_dir()):
        name = f"{name}-{weights_digest(trained.model)[:8]}"  # two folders or revisions may have one name
    subject = Subject.of(
        trained.model,
        trained.require_tokenizer(),
        name=name,
        precision=precision or ("float32" if place.startswith("cpu") else trained.precision),
    )
    return subject, default_recurrence(trained)
