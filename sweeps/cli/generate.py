"""The command `isoloop generate`: text from a trained model."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isoloop.sweeps.cli.console import new_console
from isoloop.sweeps.cli.options import DEFAULT_OUT, Out
from isoloop.sweeps.messages import broken_rule, distinct_problems

if TYPE_CHECKING:
    from pydantic import ValidationError

    from isoloop.trainer.quality.trained_model import TrainedModel

Model = Annotated[
    str,
    typer.Argument(
        help="A run's folder or id, a sweep that was run (its best run), a checkpoint's folder, or OWNER/NAME on "
        "Hugging Face."
    ),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best", help="The weights of the best step, if the run kept them. A sweep's overfitted run has them anyway."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on Hugging Face.")]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="bytes, a tokenizer.json, or OWNER/NAME on Hugging Face; by default the model's own."
    ),
]
Device = Annotated[str | None, typer.Option(help="A torch device; by default a GPU, if there is one.")]
OwnClasses = Annotated[
    bool, typer.Option("--own-classes", help="Import classes that the checkpoint names; this runs their code.")
]


def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="Text to continue; may be repeated.")] = [],  # noqa: B006
    prompt_file: Annotated[
        list[Path],
        typer.Option(help="A file whose whole content, to the byte, is a prompt; may be repeated."),
    ] = [],  # noqa: B006
    recurrence: Annotated[
        int | None, typer.Option(min=1, help="T, loops for each token, at most 4096; by default the mean in training.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of each text.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the most probable token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the most probable tokens that together have this probability.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Texts for each prompt.")] = 1,
    cache: Annotated[
        Literal["full", "shared", "none"],
        typer.Option(help="Keys and values: of every loop, one set for all loops (less memory), or none (slow)."),
    ] = "full",
    exit_tolerance: Annotated[
        float | None, typer.Option(help="End a token's loop when its state changes by less than this fraction.")
    ] = None,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", help="Go on where the model ends a document.")] = False,
    continue_text: Annotated[
        bool, typer.Option("--continue-text", help="The prompt isn't the beginning of a document.")
    ] = False,
    best: Best = False,
    revision: Revision = None,
    tokenizer: TokenizerName = None,
    own_classes: OwnClasses = False,
    device: Device = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Continue prompts with a trained model.

    The text goes to standard output, as it is written if it is one; all else goes to standard error.
    """
    from pydantic import ValidationError

    from isoloop.trainer.quality.generation import (
        GenerationConfig,
        completion_of,
        make_writer,
        pieces,
        recurrence_notes,
    )

    console = new_console(stderr=True)
    try:
        config = GenerationConfig(
            max_tokens=max_tokens,
            recurrence=recurrence,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            samples=samples,
            cache=cache,
            exit_tolerance=exit_tolerance,
            stop_at_separator=not ignore_end,
            begin_document=not continue_text,
        )
    except ValidationError as error:
        raise ValueError(_broken_options(error)) from error
    prompts = [*prompt, *map(_read_prompt, prompt_file)] or [""]
    trained = load_model(model, out, best, revision, tokenizer, own_classes, device, console.print)
    writer = make_writer(trained, prompts, config)

    # What the reader must know before the text
    for note in recurrence_notes(trained, writer.recurrence):
        console.print(f"note: {note}")
    context = trained.model.config.context
    for number, text in enumerate(writer.texts[::samples], start=1):
        if text.cut_tokens:
            console.print(
                f"note: prompt {number} has {text.prompt_tokens:,} tokens, more than the context of {context:,}; its "
                f"first {text.cut_tokens:,} are left out"
            )

    # The text
    began = time.monotonic()
    try:
        if len(writer.texts) == 1:
            _write(prompts[0])
            for piece in pieces(trained, writer):
                _write(piece)
        else:
            for _ in writer.write():
                pass
    finally:  # also what was written before Ctrl-C
        seconds = time.monotonic() - began
        if len(writer.texts) == 1:
            _write("\n")
        else:
            for number, text in enumerate(writer.texts):
                written = completion_of(trained, prompts[number // samples], text, writer.recurrence)
                _write(f"{written.prompt}{written.text}\n" + "-" * 8 + "\n")
        tokens, read = (sum(len(text.tokens) for text in writer.texts), sum(text.read_tokens for text in writer.texts))
        if tokens:
            share = 1 - sum(text.run_loops for text in writer.texts) / (read * writer.recurrence)
            saved = f", {share:.0%} of the loops of all tokens read saved" if exit_tolerance else ""
            speed = f"{seconds:.3g} s, {tokens / seconds:.3g} a second"
            stopped = "" if all(text.finish for text in writer.texts) else "stopped after "
            console.print(f"{stopped}{tokens:,} tokens at T = {writer.recurrence} in {speed}{saved}")


def load_model(
    target: str,
    out: Path,
    best: bool,
    revision: str | None,
    tokenizer: str | None,
    own_classes: bool,
    device: str | None,
    say: Callable[[str], None],
) -> "TrainedModel":
    """Load the model that a command's target names, onto a device, and say which one it is if that was chosen."""
    from isoloop.sweeps.models import find_model
    from isoloop.trainer.quality.trained_model import load_trained
    from isoloop.trainer.run.environment import usable_device

    found, place = find_model(target, out, best=best), usable_device(device)
    if found.note:
        say(found.note)
    trained = load_trained(
        found.source,
        weights=found.weights,
        revision=revision,
        tokenizer=tokenizer,
        own_classes=own_classes,
    )
    trained.model.to(place)
    return trained


def _broken_options(error: "ValidationError") -> str:
    """Return the rules that options break, by the options' names."""
    rules = []
    for problem in distinct_problems(error):
        if problem["loc"]:
            option = "--" + str(problem["loc"][0]).replace("_", "-")
            rules.append(broken_rule({**problem, "loc": (option,)}))
        else:  # a rule about several of them names them itself
            rules.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(rules)


def _read_prompt(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt-file must be a text file in UTF-8, but {path} can't be read: {error}") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
