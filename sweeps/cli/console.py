"""Output of the commands on the terminal: stages of the work and time left, results, corpora."""

import codecs
import io
import locale
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isoloop.sweeps.messages import Progress, format_duration

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.text import Text

    from isoloop.sweeps.paths import SweepResults
    from isoloop.trainer.data.corpus import Corpus

LOG_SECONDS = 60.0
SHORT_SECONDS = 2.0
LEAST_SHARE = 0.01  # of a stage, before its time left is estimated
BAR_WIDTH = 12
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


def new_console(*, stderr: bool = False) -> "Console":
    """Return a console as wide as the terminal, or with 110 columns if there is no terminal."""
    from rich.console import Console

    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 110
    return Console(highlight=False, soft_wrap=True, markup=False, stderr=stderr, width=width)


@contextmanager
def show_progress(console: "Console | None" = None, *, transient: bool = False) -> "Iterator[Progress]":
    """Show the stages of the work on stderr: a bar with the time so far and the time left, and a line for each event.

    A stage that took seconds leaves a line, unless `transient`. Where stderr is no terminal, as in the log of a batch
    job, there are lines alone, see `_Log`. `console` is for tests.
    """
    console = console or new_console(stderr=True)
    stages = _Bar(console, keep=not transient) if console.is_terminal else _Log(console, keep=True)
    try:
        yield stages
        stages.end()
    finally:
        stages.stop()


class _Stages(Progress):
    """The present stage: what is being done, the share that is done, the time since its beginning, and the time left.

    The time left follows from the mean speed since the share began to grow, so that starting up doesn't count; it is
    unknown at first, and again where the work takes longer than that.
    """

    def __init__(self, console: "Console", *, keep: bool) -> None:
        self.console, self.keep = console, keep
        self.stage, self.label = "", ""
        self.share: float | None = None
        self.began, self.ends_at = time.monotonic(), 0.0
        self.first: tuple[float, float] | None = None  # when the share began to grow, and from what

    def begin(self, stage: str) -> None:
        self.end()
        self.stage, self.label, self.share, self.first = stage, "", None, None
        self.began, self.ends_at = time.monotonic(), 0.0

    def update(self, label: str, done: float, total: float) -> None:
        now, share = time.monotonic(), done / total if total else None
        if share is None or self.share is None or share < self.share:
            self.first, self.ends_at = None, 0.0
        elif self.first is None:
            self.first = (now, share) if share > self.share else None
        elif share > self.share and now - self.first[0] >= SHORT_SECONDS and share - self.first[1] >= LEAST_SHARE:
            self.ends_at = now + (now - self.first[0]) * (1 - share) / (share - self.first[1])
        self.label, self.share = label, share

    def event(self, line: str) -> None:
        self.console.print(line, markup=False)

    def end(self) -> None:
        """End the present stage, and leave a line of it if it took seconds."""
        seconds = time.monotonic() - self.began
        if self.stage and self.keep and seconds >= SHORT_SECONDS:
            counts = f" {self.label}" if self.label[:1].isdigit() else ""
            self.event(f"{self.stage}{counts}: {format_duration(seconds)}")
        self.stage = ""

    def stop(self) -> None:
        """Stop showing the stages, also where an error ends one."""

    def text(self) -> str:
        """Return the stage and what is being done in it: 'Training 3/16 runs', 'Fitting: unified law'."""
        if not self.label or self.label.casefold() == self.stage.casefold():
            return self.stage
        return f"{self.stage}{' ' if self.label[:1].isdigit() else ': '}{self.label}"

    def left(self) -> str:
        """Return the share that is done and the time left, as far as they are known."""
        seconds = self.ends_at - time.monotonic()
        left = f"{format_duration(seconds)} left" if seconds >= 1 else ""
        return ", ".join(filter(None, ["" if self.share is None else f"{self.share:.0%}", left]))


class _Bar(_Stages):
    """A line with a bar in a terminal."""

    def __init__(self, console: "Console", *, keep: bool) -> None:
        from rich.live import Live

        super().__init__(console, keep=keep)
        # Standard output isn't redirected to stderr: it may be a file for programs.
        self.live = Live(
            get_renderable=self._line, console=console, transient=True, redirect_stdout=False, refresh_per_second=4
        )

    def begin(self, stage: str) -> None:
        super().begin(stage)
        self.live.start(refresh=True)

    def stop(self) -> None:
        self.live.stop()

    def _line(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self.stage:
            return ""
        seconds = int(time.monotonic() - self.began)
        times = ", ".join(filter(None, [f"{seconds // 60}:{seconds % 60:02d}", self.left()]))
        label = Text(self.text())
        label.truncate(max(self.console.width - BAR_WIDTH - len(times) - 3, 10), overflow="ellipsis")
        line = Table.grid(padding=(0, 1))
        line.add_row(
            label,
            ProgressBar(total=None if self.share is None else 1.0, completed=self.share or 0.0, width=BAR_WIDTH),
            times,
        )
        return line


class _Log(_Stages):
    """Lines in a log: of a stage that takes seconds, as it is noticed, one a minute, and one as it ends."""

    def __init__(self, console: "Console", *, keep: bool) -> None:
        super().__init__(console, keep=keep)
        self.next_line = 0.0
        self.stopped = threading.Event()
        threading.Thread(target=self._work, name="isoloop-progress", daemon=True).start()

    def begin(self, stage: str) -> None:
        super().begin(stage)
        self.next_line = self.began + SHORT_SECONDS

    def update(self, label: str, done: float, total: float) -> None:
        if not total and label != self.label:  # a wait
            self.next_line = 0.0
        super().update(label, done, total)
        self.write_if_due()

    def stop(self) -> None:
        self.stopped.set()

    def write_if_due(self) -> None:
        """Write how far the present stage is, if that wasn't written lately."""
        now = time.monotonic()
        if self.stage and now >= self.next_line:
            self.next_line = now + LOG_SECONDS
            self.event(", ".join(filter(None, [self.text(), self.left()])))

    def _work(self) -> None:
        while not self.stopped.wait(SHORT_SECONDS / 4):
            self.write_if_due()


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
        return webbrowser.open_new_tab(page.resolve().as_uri())
    except webbrowser.Error:
        return False


def print_results(console: "Console", results: "SweepResults") -> None:
    """Print the main results, and the errors at the held-out runs."""
    from isoloop.sweeps.report.headline import headline

    for label, group in results.groups.items():
        console.print(f"\n{label}", style="bold", markup=False)
        print_results(console, group)
    if results.groups and results.any_fit is None:
        return
    together = "sizes" if results.joint is not None else "runs" if results.groups else None
    console.print(*[f"\nAll {together} together"] if together else [], style="bold")
    for line in headline(results):
        console.print(line)
    held_out = results.hold_out.held_out if results.hold_out else None  # of several sizes the page lists the runs
    rows = [] if held_out is None else [row for row in held_out.rows if row.recurrence == row.mean_recurrence]
    if held_out is not None and rows:
        console.print(f"\nFitted without the largest {held_out.quantity}, then compared with it:")
        for row in sorted(rows, key=lambda row: (row.method, row.mean_recurrence)):
            span = f" ({row.interval[0]:.4f} to {row.interval[1]:.4f})" if row.interval else ""
            console.print(
                f"  µ = {row.mean_recurrence:<3g} {row.method}: predicted {row.predicted:.4f}{span}, "
                f"measured {row.measured:.4f}, error {row.error:+.2f}%"
            )


def describe_corpus(corpus: "Corpus", *, context: int, is_new: bool, packing: str = "contiguous") -> str:
    """Return the facts of a corpus in words, and of its rows if they are packed; `is_new` if this call prepared it."""
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
    if packing == "best-fit":
        from isoloop.trainer.data.packing import SAMPLED_DOCUMENTS, cropped_share

        share, estimated = cropped_share(corpus.train.documents, context + 1), facts.train_documents > SAMPLED_DOCUMENTS
        lines.append(
            f"best-fit     rows of {context} + 1 tokens crop {100 * share:.3g}% of the training text in a pass"
            + (f", as in its first {SAMPLED_DOCUMENTS:,} documents" if estimated else "")
        )
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
