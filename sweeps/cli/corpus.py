"""What the command says of a corpus: how far its making is, and what it holds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from isoloop.trainer.data.corpus import Corpus
    from isoloop.trainer.data.sources import CorpusProgress

LINE_SECONDS = 60.0


@contextmanager
def corpus_bar(console: "Console") -> "Iterator[CorpusProgress]":
    """A bar over the bytes of input with the time left, shown from the first word on and gone at the end.

    Where nobody watches, as in the log of a batch job, a line a minute instead.
    """
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    bar = rich_progress.Progress(*columns, console=console, transient=True, speed_estimate_period=120)
    stage: rich_progress.TaskID | None = None
    verb = ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal stage, verb
        if stage is None:
            bar.start()
        first = what.partition(" ")[0]
        if first != verb:  # another station of the way: its speed and time left are its own
            if stage is not None:
                bar.remove_task(stage)
            stage, verb = bar.add_task(what, total=None), first
        assert stage is not None, "a stage was begun"
        bar.update(stage, description=what, completed=done, total=total or None)

    try:
        yield tell
    finally:
        bar.stop()


def _lines(console: "Console") -> "CorpusProgress":
    told = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_SECONDS or not total:
            told = time.monotonic()
            console.print(f"{what}, {done / total:.0%}" if total else what)

    return tell


def describe_corpus(corpus: "Corpus", *, context: int, was_there: bool) -> str:
    """What a corpus holds, for people; `was_there` says that it was prepared before this call."""
    facts = corpus.facts
    lines = [
        f"{facts.name}: {'was there already' if was_there else 'prepared'}",
        f"where        {corpus.folder}",
        f"fingerprint  {facts.fingerprint}",
        f"tokenizer    {facts.tokenizer}, {facts.vocabulary:,} ids",
    ]
    for name, tokens, documents, text in (
        ("training", corpus.train, facts.train_documents, facts.train_bytes),
        ("validation", corpus.validation, facts.validation_documents, facts.validation_bytes),
    ):
        lines.append(
            f"{name:<12} {len(tokens):,} tokens in {documents:,} documents, {text:,} bytes "
            f"({len(tokens) / text:.4g} tokens per byte); {tokens.count_windows(context):,} windows of {context} tokens"
        )
    return "\n".join(lines)
