"""The commands `isoloop evaluate` and `isoloop data prepare-suite`: quality beside loss."""

import json
import math
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
from isoloop.sweeps.cli.options import DEFAULT_OUT, Out, file_name
from isoloop.sweeps.paths import folders_of

if TYPE_CHECKING:
    from isoloop.trainer.quality.suites.evaluation import Subject
    from isoloop.trainer.quality.suites.summary import SuiteSummary

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
    # Evaluate
    with show_progress() as progress:
        progress.begin("Loading the model")
        from isoloop.sweeps.models import trained_runs
        from isoloop.sweeps.plan.quality import compared_weights
        from isoloop.trainer.quality.suites.bundle import find_suite
        from isoloop.trainer.quality.suites.difference import compare_models
        from isoloop.trainer.quality.suites.evaluation import evaluate_suite, read_results

        chosen = recurrences_of(recurrences)
        drawn = tuple(_numbers(seeds, "--seeds"))
        found, data = find_suite(suite, bundle or (None if suite.endswith((".yaml", ".yml")) else out / "suites"))
        data.check(found.tasks)

        def evaluated(target: str, weights_are_best: bool, label: str) -> "tuple[Path, SuiteSummary]":
            """Evaluate a model; return the folder of its results, and the summary."""
            subject, mean = _load(
                target, out, weights_are_best, revision, tokenizer, own_classes, device, precision, progress.event
            )
            folder = quality_folder(out, subject.identity.name)
            progress.begin(label)
            depths = chosen if chosen and (subject.reader.is_looped or not every_run) else [mean]
            return folder, evaluate_suite(
                subject, found, data, folder, recurrences=depths, seeds=drawn, progress=progress.update
            )

        if every_run:
            given = {"--against": against, "--best": best, "--tokenizer": tokenizer, "--revision": revision}
            if used := [name for name, value in given.items() if value]:
                raise ValueError(f"--all evaluates the runs of a sweep as they are, but got {used[0]}; leave it out")
            folders = folders_of(model, out)
            runs = trained_runs(folders)
            summaries = [
                evaluated(str(run), compared_weights(folders, run.name) == "best", f"Evaluating run {n}/{len(runs)}")[1]
                for n, run in enumerate(runs, start=1)
            ]
        else:
            folder, summary = evaluated(model, best, "Evaluating")

    # All runs of a sweep
    if every_run:
        losses = [result.compared_loss for result in runs.values()]
        content = [each.model_dump(mode="json") for each in summaries]
        print(json.dumps(content, indent=1) if as_json else "\n".join(runs_table(summaries, losses)))
        return

    # One model, and another one to compare it with
    print(summary.model_dump_json(indent=1) if as_json else summary.report(), end="\n" if as_json else "")
    if against is not None:
        name, _, depth = against.partition("@")
        other = read_results(quality_folder(out, name), found)
        theirs = _numbers(depth, "--against")[0] if depth else max(next(iter(other.values())).recurrences)
        differences = compare_models(
            found,
            read_results(folder, found),
            other,
            recurrences=(max(summary.recurrences), theirs),
            seeds=summary.seeds,
        )
        print(differences.model_dump_json(indent=1) if as_json else f"\n{differences.report()}", end="")


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


def quality_folder(out: Path, name: str) -> Path:
    """Return the folder of a model's results."""
    return out / "quality" / file_name(name)


def recurrences_of(text: str | None) -> list[int]:
    """Return the recurrences in a text such as '1,2,4,8' or '1-24'; none for None.

    Raises:
        ValueError: the text is something else.
    """
    if text is None:
        return []
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = _numbers(f"{first},{last}" if dash else part, "--recurrences")
        chosen += range(ends[0], ends[-1] + 1)
    return chosen


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
    from isoloop.trainer.quality.suites.evaluation import Subject
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
    subject = Subject.of(
        trained.model,
        trained.require_tokenizer(),
        name=f"{trained.name}-best" if trained.weights == "best" else trained.name,
        precision=precision or ("float32" if place.startswith("cpu") else trained.precision),
    )
    return subject, default_recurrence(trained)
