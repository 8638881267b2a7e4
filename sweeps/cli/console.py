"""Output of the commands on the terminal: bars with the time left, the state of a sweep, results, corpora."""

import codecs
import io
import locale
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isoloop.sweeps.messages import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.text import Text

    from isoloop.sweeps.execution.status import SweepStatus
    from isoloop.sweeps.paths import SweepResults
    from isoloop.trainer.data.corpus import Corpus

LOG_SECONDS = 60.0


_FALLBACKS = "isoloop-fallbacks"
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_SYMBOLS = {
    "µ": "mu", "μ": "mu", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "λ": "lambda", "ρ": "rho",
    "σ": "sigma", "χ": "chi", "Δ": "Delta", "Ā": "A_bar", "\u0304": "_bar", "‖": "||", "×": "x", "·": "*", "−": "-",
    "–": "-", "—": "-", "…": "...", "≈": "~", "≤": "<=", "≥": ">=", "±": "+-", "∞": "inf", "→": "->", "√": "sqrt",
    "‘": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


def use_terminal_encoding() -> None:
    """Let this process print whatever the terminal's encoding is: a symbol that it lacks is spelled out.

    Python prints UTF-8 where the locale is plain ASCII (`LC_ALL=C`); unless the environment asks for that, the locale
    counts. Where names of files aren't in UTF-8, the process starts itself anew in Python's UTF-8 mode, as its workers
    will.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        settings = {"PYTHONUTF8": "1", "PYTHONIOENCODING": sys.stdout.encoding}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], {**os.environ, **settings})
    codecs.register_error(_FALLBACKS, _spell_out)
    is_chosen = os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") == "1"
    is_ascii = not is_chosen and codecs.lookup(locale.getencoding()).name == "ascii"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if is_ascii else None, errors=_FALLBACKS)


def _spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the text in place of characters that can't be encoded, and where to go on.

    Symbols get their names, other characters a code such as \\u4f60, and undecodable bytes of a file's name stay.
    """
    assert isinstance(error, UnicodeEncodeError), "only output is spelled out"
    character, end = error.object[error.start], error.start + 1
    if character in _SUPERSCRIPTS:
        while end < error.end and error.object[end] in _SUPERSCRIPTS:
            end += 1
        return "^" + "".join(_SUPERSCRIPTS[digit] for digit in error.object[error.start : end]), end
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), end
    code = character.encode("ascii", "backslashreplace").decode("ascii")
    return _SYMBOLS.get(character, code), end


def as_printed(text: str) -> str:
    """Return a text as standard output prints it: with the characters that its encoding lacks spelled out."""
    encoding, errors = sys.stdout.encoding or "utf-8", sys.stdout.errors or "surrogateescape"
    return text.encode(encoding, errors).decode(encoding, "surrogateescape")


def new_console() -> "Console":
    """Return a console as wide as the terminal, or with 110 columns if there is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 110)


@contextmanager
def progress_bar(
    console: "Console", *, prefix: str = "", in_bytes: bool = False, transient: bool = False
) -> "Iterator[Progress]":
    """Show a bar with the time left, from the first report on, and a line for each event.

    Where the output is no terminal, as in the log of a batch job, print a line a minute and the last one instead.

    Args:
        console: the terminal or the log.
        prefix: text before each label.
        in_bytes: show bytes and their speed instead of a percentage.
        transient: remove the bar at the end.
    """
    # A log.
    if not console.is_terminal:
        logged = _LoggedProgress(console, prefix)
        try:
            yield logged
        finally:
            if not transient and logged.text:
                logged.event(logged.text)
        return

    # A terminal.
    from rich import progress as rich_progress

    columns = (
        (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
        if in_bytes
        else (rich_progress.TaskProgressColumn(),)
    )
    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        *columns,
        rich_progress.TimeRemainingColumn(elapsed_when_finished=not in_bytes),
        console=console,
        transient=transient,
        speed_estimate_period=120,
    )
    try:
        yield _BarProgress(bar, prefix)
    finally:
        bar.stop()


class _BarProgress(Progress):
    """A bar in a terminal; each stage has a speed and a time left of its own."""

    def __init__(self, bar: "RichProgress", prefix: str) -> None:
        self.bar, self.prefix, self.stage = bar, prefix, ""
        self.task: TaskID | None = None

    def update(self, label: str, done: float, total: float) -> None:
        stage, text = label.partition(" ")[0], f"{self.prefix}{label}"
        if self.task is None:
            self.bar.start()
        if self.task is None or stage != self.stage:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.stage, self.task = stage, self.bar.add_task(text, total=None)
        self.bar.update(self.task, description=text, completed=done, total=total or None)

    def event(self, line: str) -> None:
        self.bar.console.print(line, markup=False)


class _LoggedProgress(Progress):
    """A line a minute, and one for each event."""

    def __init__(self, console: "Console", prefix: str) -> None:
        self.console, self.prefix, self.last_line, self.text = console, prefix, time.monotonic(), ""

    def update(self, label: str, done: float, total: float) -> None:
        self.text = f"{self.prefix}{label}" + (f", {done / total:.0%}" if total else "")
        if time.monotonic() - self.last_line >= LOG_SECONDS or not total:
            self.last_line = time.monotonic()
            self.event(self.text)

    def event(self, line: str) -> None:
        self.console.print(line, markup=False)


def page_link(page: "Path") -> "Text":
    """Return the path of a page, which a terminal shows as a link; printed elsewhere, it is the path alone."""
    from rich.style import Style
    from rich.text import Text

    return Text(str(page), style=Style(link=page.resolve().as_uri()), end="")


def open_in_browser(page: "Path") -> bool:
    """Open a page in the user's browser, and return False if there is none, as on a machine without a screen.

    A browser in the terminal can't show a page that computes, so it counts only if the user chose it (`BROWSER`).
    """
    import webbrowser

    is_remote = sys.platform.startswith("linux") or "SSH_CONNECTION" in os.environ
    if is_remote and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))):
        return False
    try:
        return webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        return False


def print_status(console: "Console", status: "SweepStatus", *, every_run: bool) -> None:
    """Print the progress of a sweep: counts, and a row for each run that is running or failed, or for every run."""
    from rich.table import Table

    from isoloop.sweeps.plan.summary import format_duration

    counts = ", ".join(f"{number} {state}" for state, number in status.counts().items())
    driver = "" if status.at_work or status.is_complete else "; no driver is running: rerun the sweep to go on"
    console.print(f"{status.name}: {status.share:.0%} of the compute done; of {len(status.runs)} runs {counts}{driver}")
    shown = [run for run in status.runs if every_run or run.state not in ("done", "waiting")]
    if not shown:
        return
    table = Table("run", "", "state", "step", "loss", "time", "why", box=None, pad_edge=False)
    for run in shown:
        left = "" if run.seconds is None else format_duration(run.seconds) + (" left" if run.state == "running" else "")
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        table.add_row(
            run.run_id, run.label, run.state, f"{run.step}/{run.steps}", loss, left, (run.reason or "").split("\n")[0]
        )
    console.print(table)


def print_results(console: "Console", results: "SweepResults") -> None:
    """Print the main results, and the errors at the held-out runs."""
    from isoloop.sweeps.report.headline import headline

    for label, group in results.groups.items():
        console.print(f"\n{label}", style="bold", markup=False)
        print_results(console, group)
    if results.groups:
        return
    console.print()
    for line in headline(results):
        console.print(line)
    held_out = results.hold_out.held_out if results.hold_out else None
    if held_out is not None:
        console.print(f"\nFitted without the largest {held_out.quantity}, then compared with it:")
        for row in sorted(held_out.rows, key=lambda row: (row.method, row.mean_recurrence)):
            if row.recurrence == row.mean_recurrence:
                span = f" ({row.interval[0]:.4f} to {row.interval[1]:.4f})" if row.interval else ""
                console.print(
                    f"  µ = {row.mean_recurrence:<3g} {row.method}: predicted {row.predicted:.4f}{span}, "
                    f"measured {row.measured:.4f}, error {row.error:+.2f}%"
                )


def describe_corpus(corpus: "Corpus", *, context: int, is_new: bool) -> str:
    """Return the facts of a corpus in words; `is_new` if this call prepared it."""
    facts = corpus.facts
    lines = [
        f"{facts.name}: {'prepared' if is_new else 'already prepared'}",
        f"folder       {corpus.folder}",
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
    lines.append(f"held out     {100 * facts.validation_share:.3g}% of the text")
    lines += [f"note         {note}" for note in corpus.notes]
    return "\n".join(lines)


def describe_corpora(corpora: Iterable["Corpus"]) -> list[str]:
    """Return a line for each corpus of a plan with its size and its held-out share, and its notes."""
    lines = []
    for corpus in corpora:
        facts = corpus.facts
        share = f"{100 * facts.validation_share:.3g}% of the text held out"
        lines.append(f"corpus      {facts.name}, {facts.train_tokens:.4g} training tokens, {share}")
        lines += [f"note        {note}" for note in corpus.notes]
    return lines
