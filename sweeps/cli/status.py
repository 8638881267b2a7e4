"""The command `isoloop status`: the state of a sweep or a tuning as one screen, once or live, or as JSON."""

import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloop.sweeps.cli.console import LOG_SECONDS, as_printed, new_console, show_progress
from isoloop.sweeps.cli.options import DEFAULT_OUT, Out
from isoloop.sweeps.messages import align_columns, counted_runs, first_line, format_duration
from isoloop.sweeps.paths import SO_FAR, Folders, folders_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from isoloop.sweeps.execution.status import RunStatus, StatusReader, SweepStatus
    from isoloop.sweeps.report.so_far import EarlyAnswerReader
    from isoloop.sweeps.storage.run_store import RunStore

FRAME_SECONDS = 1.0
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-~=*%#"
_CURVE_WIDTHS = 12, 40  # at least, at most
_STYLES = {"failed": "red", "again": "yellow", "diverged": "magenta"}


def status(
    target: Annotated[
        str,
        typer.Argument(
            help="A sweep that was run or is being tuned: its name or YAML file. NAME/tune always means its tuning."
        ),
    ],
    out: Out = DEFAULT_OUT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it live until the sweep ends. Ctrl-C leaves; the sweep goes on.")
    ] = False,
    every_run: Annotated[bool, typer.Option("--all", help="Show a row for each run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    answer: Annotated[
        bool | None,
        typer.Option(
            "--answer/--no-answer",
            help="Say what the runs that have ended answer so far; a few seconds. By default yes, but not in JSON.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Storage of the sweep, on a machine that can't see its --out: what is new is copied to --out."
        ),
    ] = None,
) -> None:
    """Show the progress of a sweep or a tuning. Any terminal that sees --out will do, also on another machine."""
    from isoloop.sweeps.execution.status import StatusReader

    if watch and (every_run or as_json):
        raise ValueError("--watch shows one screen, so it can't be combined with --all or --json; leave one out")
    store = None if storage is None else _fetch_from(storage, target, out)
    reader = StatusReader(_sweep_or_tuning(folders_of(target, out)), store)
    if watch:
        watch_status(reader, answer=answer is not False)
        return
    state = reader.read()
    if as_json:
        print(state.to_json(so_far=_answers_so_far(reader.folders) if answer else None))
        return
    print_status(new_console(), state, every_run=every_run)
    if answer or (answer is None and has_early_answer(state)):
        _print_answer_so_far(reader.folders)


def has_early_answer(status: "SweepStatus") -> bool:
    """Return True if runs of an unfinished sweep have ended, so that there may be an answer so far."""
    return not status.is_complete and status.trials is None and bool(status.counts().get("done"))


def _answers_so_far(folders: Folders) -> list[dict[str, Any]]:
    from isoloop.sweeps.report.so_far import early_answers, read_table_so_far

    try:
        return [asdict(answer) for answer in early_answers(read_table_so_far(folders))]
    except ValueError:  # none has ended, which the counts say
        return []


def _print_answer_so_far(folders: Folders) -> None:
    """Print what the runs that have ended answer, below the status, which is there at once."""
    with show_progress(transient=True) as progress:
        progress.begin("Fitting what has ended so far; Ctrl-C leaves")
        from isoloop.sweeps.report.so_far import early_sentences

        sentences = early_sentences(folders)
    print("", *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences), sep="\n")
    print(f"The final answer will differ. A page of it so far: isoloop report {folders.name}/{SO_FAR}")


def _fetch_from(storage: str, target: str, out: Path) -> "RunStore":
    """Return a storage whose sweep was fetched into `out`.

    Raises:
        ValueError: the storage can't be used or has no such sweep, or a driver has worked in `out`.
    """
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.storage.filesystem import StorageError
    from isoloop.sweeps.storage.run_store import RunStore

    store = RunStore(storage)
    name = load_sweep(target).name if Path(target).suffix in {".yaml", ".yml"} else target
    for folders in (Folders(out=out, name=name), Folders(out=out, name=f"{name}/tune")):
        if (folders.sweep / "lock").exists():
            raise ValueError(
                f"--storage is for a machine without the sweep's --out, but a driver has worked in {folders.sweep}; "
                "leave it out, or name another --out"
            )
        try:
            store.fetch_status(folders.name, folders.sweep)
        except StorageError as error:
            raise ValueError(f"{error}; check the URI and the credentials") from error
    if not Folders(out=out, name=name).sweep.is_dir():
        raise ValueError(
            f"a sweep must have been run with --storage to be found there, but {store.remote.name} has no sweep "
            f"'{name}'; check both"
        )
    return store


def _sweep_or_tuning(folders: Folders) -> Folders:
    """Return the folders of a sweep, or of its tuning if that is at work or alone there and the sweep isn't."""
    from isoloop.sweeps.execution.presence import last_driver

    tuning = replace(folders, name=f"{folders.name}/tune")
    if not tuning.manifest.exists():
        return folders
    drivers = last_driver(tuning), last_driver(folders)
    tunes, runs = (driver is not None and driver.at_work for driver in drivers)
    return tuning if not runs and (tunes or not folders.manifest.exists()) else folders


def print_status(
    console: "Console", status: "SweepStatus", *, every_run: bool = False, height: int | None = None
) -> None:
    """Print one frame that fits into `height` lines, how the sweep ended, and with `every_run` a row for each run."""
    from rich.table import Table

    ending = describe_ending(status)
    for line in frame(status, width=console.width, height=height and height - 3):
        console.print(line)
    if ending is not None:
        console.print(f"\n{ending}", soft_wrap=True)  # a command that is cut into lines can't be copied
    if not every_run:
        return
    table = Table("run", "", "state", "step", "loss", "time", "why", box=None, pad_edge=False)
    for run in status.runs:
        left = "" if run.seconds is None else format_duration(run.seconds) + (" left" if run.state == "running" else "")
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        table.add_row(run.run_id, run.label, run.state, f"{run.step}/{run.steps}", loss, left, _first_line(run.reason))
    console.print()
    console.print(table)


def watch_status(reader: "StatusReader", *, answer: bool = True) -> None:
    """Show the state live until the sweep is complete, its driver is gone, or Ctrl-C; the last frame stays.

    With `answer`, it also says what the ended runs answer so far. Where the output is no terminal, print a line a
    minute instead.
    """
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    try:
        if not console.is_terminal:
            _watch_in_lines(new_console(), reader)
            return
        status, early = None, _early_reader(reader) if answer else None
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while status is None or describe_ending(status) is None:
                    started = time.monotonic()
                    status = _read_again(reader, status)
                    width, height = console.size
                    sentences = early.update(status.counts().get("done", 0)) if early else []
                    lines = frame(status, width=width, height=height, is_live=True, so_far=sentences)
                    live.update(Group(*lines), refresh=True)
                    time.sleep(max(FRAME_SECONDS, 4 * (time.monotonic() - started)))  # a slow disk isn't kept busy
        finally:
            if status is not None:
                print_status(console, status, height=console.height)
    except KeyboardInterrupt:
        return


def _early_reader(reader: "StatusReader") -> "EarlyAnswerReader | None":
    """Return a reader of early answers of a sweep; None for a tuning."""
    from isoloop.sweeps.report.so_far import EarlyAnswerReader

    return EarlyAnswerReader(reader.folders) if reader.read().trials is None else None


def _watch_in_lines(console: "Console", reader: "StatusReader") -> None:
    """Print a line a minute, and one for each run that fails, diverges or is to start again."""
    status, printed, last_line = None, set[tuple[str, str]](), -math.inf
    while True:
        status = _read_again(reader, status)
        for run in status.runs:
            if run.state in _STYLES and (run.run_id, run.state) not in printed:
                printed.add((run.run_id, run.state))
                console.print(f"  {run.run_id}  {run.label}  {run.state}: {_first_line(run.reason)}")
        ending = describe_ending(status)
        if ending is not None or time.monotonic() - last_line >= LOG_SECONDS:
            last_line = time.monotonic()
            clock, parts = _clock(status.time), (f"{status.share:.0%}", _counts(status), _speed(status))
            console.print(f"{clock}  {status.name}: {'; '.join(filter(None, parts))}")
        if ending is not None:
            console.print(ending)
            return
        time.sleep(FRAME_SECONDS)


def _read_again(reader: "StatusReader", last: "SweepStatus | None") -> "SweepStatus":
    """Return the present state; where the disk is away for a while, the last one, which says so."""
    try:
        return reader.read()
    except OSError as error:
        if last is None:
            raise
        return replace(last, note=f"the sweep's folder can't be read now, it is tried again ({first_line(error)})")


def describe_ending(status: "SweepStatus") -> str | None:
    """Return how the sweep ended and how to go on; None while a driver is at work on it."""
    driver = status.driver
    if status.is_complete:
        kind = "runs have ended" if status.trials else "runs are done"
        rest = "; its driver goes on with what follows: the table, the fits, the report" if status.at_work else ""
        return f"complete: all {len(status.runs)} {kind}{rest}"
    if driver is None:
        return "no driver is at work\nto go on: rerun the sweep's command"
    if driver.at_work:
        return None
    moment = f"{_clock(driver.last_sign)} on {driver.host}"
    command = "rerun the sweep's command" if driver.command is None else driver.command
    return f"no driver is at work; the last one was at {moment}\nto go on: {command}"


def frame(
    status: "SweepStatus",
    *,
    width: int,
    height: int | None = None,
    is_live: bool = False,
    so_far: Sequence[str] = (),
) -> "list[RenderableType]":
    """Return the lines of one screen, none longer than `width`; `height` limits the runs that are shown.

    `so_far` are sentences about what the ended runs answer; the first stands below the summary.
    """
    from rich.text import Text

    # What is always there.
    lines = _summary(status, width)
    lines += [Text(line, no_wrap=True) for sentence in so_far[:1] for line in _wrap(sentence, width, most=3)]
    footer = [Text(""), Text(_cut("Ctrl-C leaves; the sweep goes on", width), style="dim")] if is_live else []
    running = [run for run in status.runs if run.state == "running"]
    problems = _problems(status.runs, width)
    if height is None:
        return [*lines, *_running_table(running, len(running), width), *_first(problems, 40, width)]
    # The room is shared: a third for what failed, or what running runs leave.
    room = height - len(lines) - len(footer)
    wanted = sum(map(len, problems)) + 1 if problems else 0
    table_room = min(len(running) + 2, max(room - wanted, room - room // 3)) if running else 0
    table = _running_table(running, table_room - 2, width)
    return [*lines, *table, *_first(problems, room - len(table) - 1, width), *footer]


def _summary(status: "SweepStatus", width: int) -> "list[RenderableType]":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    # Name, driver and clock.
    driver, name, right = status.driver, as_printed(status.name), _clock(status.time)
    if driver is not None and driver.at_work:
        place = as_printed(f"driver at work on {driver.host} since {_clock(driver.started)[:-3]}  {right}")
        right = place if len(name) + 2 + len(place) <= width else right
    title = Text(_cut(name, width - len(right) - 2), style="bold")
    title.append(" " * (width - title.cell_len - len(right)) + right, style="not bold dim")
    # The share that is done.
    text = f"{status.share:.0%} of {status.flops:.3g} FLOPs"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=1.0, completed=status.share, width=max(1, width - len(text) - 1)), text)
    # Counts, speed, what waits.
    texts = [_counts(status), _speed(status)]
    if status.trials is not None:
        best = status.trials.best or "none has finished yet"
        texts.insert(1, f"{status.trials.ended} of {status.trials.trials} trials have ended; best: {best}")
    texts += [status.note] if status.note else []
    wrapped = [line for text in filter(None, texts) for line in _wrap(text, width)]
    return [title, bar, *(Text(line, no_wrap=True) for line in wrapped)]


def _counts(status: "SweepStatus") -> str:
    counts = status.counts()
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    return f"{counted_runs(sum(counts.values()))}: {states}"


def _speed(status: "SweepStatus") -> str:
    """Return the FLOPs per second and the time left in words; empty if no driver is at work."""
    if not status.at_work or status.is_complete:
        return ""
    if status.flops_per_second is None or status.seconds_left is None:
        return "time left is not known until runs have made some steps"
    recent = format_duration(status.speed_seconds)
    left = format_duration(status.seconds_left)
    return f"{status.flops_per_second:.3g} FLOPs per second over the last {recent}; at that speed {left} left"


def _running_table(runs: "Sequence[RunStatus]", room: int, width: int) -> "list[RenderableType]":
    """Return rows of the first runs with their loss curves, after an empty line and the names of the columns."""
    from rich.cells import set_cell_size
    from rich.text import Text

    if not runs or room < 1:
        return []
    shown = runs if len(runs) <= room else runs[: room - 1]
    is_wide = width >= 110
    # The columns of numbers are as wide as they must be; the label and the curve share the rest.
    rows = [["step", "loss", "left", "FLOPs/s", *(["node"] if is_wide else [])]]
    for run in shown:
        numbers = (
            f"{run.step}/{run.steps}",
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.seconds is None else format_duration(run.seconds),
            "" if run.flops_per_second is None else f"{run.flops_per_second:.2g}",
        )
        rows.append([*numbers, *([run.node or ""] if is_wide else [])])
    numbers_width = max(map(len, align_columns(rows, right=True)))
    labels = [as_printed(f"{run.run_id}  {run.label}" if is_wide else run.label) for run in shown]
    rest = width - numbers_width - 4
    label_width = min(max(map(len, [*labels, "running"])), rest - _CURVE_WIDTHS[0])
    curves = [sparkline(run.losses, min(rest - label_width, _CURVE_WIDTHS[1])) for run in shown]
    lines = align_columns([[*row, curve] for row, curve in zip(rows, ["loss curve", *curves], strict=True)], right=True)
    names = [set_cell_size(_cut(label, label_width), label_width) for label in ["running", *labels]]
    table = [Text(_cut(f"{name}  {line}", width), no_wrap=True) for name, line in zip(names, lines, strict=True)]
    table[0].stylize("bold")
    more = [Text(f"+{len(runs) - len(shown)} more")] if len(shown) < len(runs) else []
    return [Text(""), *table, *more]


def sparkline(losses: "Sequence[float]", width: int) -> str:
    """Return a loss curve in one line: the mean of the log loss in each of up to `width` parts, from low to high.

    The steep beginning, an eighth of the curve, doesn't count for the scale.
    """
    if len(losses) < 2 or width < 1:
        return ""
    bars = _BARS if as_printed(_BARS) == _BARS else _ASCII_BARS
    logs = [math.log(max(loss, 1e-9)) for loss in losses]
    parts = min(width, len(logs))
    edges = [len(logs) * part // parts for part in range(parts + 1)]
    means = [sum(logs[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means[-(-parts // 8) if parts > 3 else 0 :])
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[min(round((mean - low) * scale), len(bars) - 1)] for mean in means)


def _problems(runs: "Sequence[RunStatus]", width: int) -> "list[list[Text]]":
    """Return the lines of each reason for which runs failed, start again or diverged."""
    from rich.text import Text

    by_reason: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.state in _STYLES:
            by_reason.setdefault((run.state, _first_line(run.reason)), []).append(run.label)
    problems = []
    for (state, reason), labels in sorted(by_reason.items(), key=lambda item: list(_STYLES).index(item[0][0])):
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        lines = _wrap(f"{state:<8}  {labels[0]}{others}: {reason}", width, indent=10, most=3)
        problems.append([Text(line, style=_STYLES[state], no_wrap=True) for line in lines])
    return problems


def _first(problems: "Sequence[list[Text]]", room: int, width: int) -> "list[RenderableType]":
    """Return the lines of the first problems, as many as fit into `room` lines after an empty one."""
    from rich.text import Text

    if not problems or room < 1:
        return []
    shown: list[Text] = []
    for index, lines in enumerate(problems):
        is_last = index == len(problems) - 1
        if len(shown) + len(lines) + (not is_last) > room:
            more = f"+{len(problems) - index} more reasons; --all shows every run" if shown else lines[0].plain
            return [Text(""), *shown, Text(_cut(more, width))]
        shown += lines
    return [Text(""), *shown]


def _wrap(text: str, width: int, *, indent: int = 0, most: int = 2) -> list[str]:
    """Return a text in at most `most` lines, as the terminal prints it."""
    return textwrap.wrap(
        as_printed(text), width, subsequent_indent=" " * indent, max_lines=most, placeholder=as_printed(" …")
    )


def _cut(text: str, width: int) -> str:
    """Return a text of at most `width` columns, with an ellipsis where it is cut."""
    from rich.cells import cell_len, set_cell_size

    ellipsis = as_printed("…")
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - len(ellipsis))) + ellipsis


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _first_line(reason: str | None) -> str:
    return (reason or "").split("\n")[0]
