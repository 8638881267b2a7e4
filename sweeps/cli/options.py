"""Arguments, options and exit codes that several commands share, and the files that a command's target names."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.paths import TABLE_SUFFIXES, Folders, folders_of
from isoloop.sweeps.privacy import redacted

if TYPE_CHECKING:
    from isoloop.sweeps.config.schema import SweepConfig

Sweep = Annotated[str, typer.Argument(help="Name of a preset, or a sweep's YAML file.")]
Target = Annotated[str, typer.Argument(help="A sweep that was run (its name or YAML file), a run table, or a fit.")]
RunTarget = Annotated[str, typer.Argument(help="A sweep that was run: its name or YAML file.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Set = Annotated[list[str], typer.Option("--set", help="Change a value: --set batch=16 --set data.corpus=/my/text")]
Address = Annotated[
    str | None, typer.Option("--address", help="host:port of a Ray cluster, or auto; by default a local Ray.")
]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="Any MLflow tracking URI; by default an sqlite file in --out.")
]
StorageUri = Annotated[
    str | None,
    typer.Option("--storage", help="Folder of the runs if workers can't see --out: s3://, gs://, or a path."),
]
Refits = Annotated[int, typer.Option("--draws", min=20, help="Refits behind each interval.")]
LawOption = Annotated[
    str, typer.Option("--law", help="The law of the loss after training: a law's name, or module:Class.")
]
DEFAULT_LAW = "training"
DEFAULT_REFITS = 1000
DEFAULT_OUT = Path("isoloop-out")
BROKEN_RULE, RUNS_FAILED, INTERRUPTED = 2, 1, 130


def load_config(
    sweep: str, out: Path, overrides: Sequence[str] = (), settings: Mapping[str, str | int | None] | None = None
) -> "tuple[SweepConfig, Folders]":
    """Return the configuration of a sweep and its folders; `settings` are values by path, taken literally."""
    from isoloop.sweeps.config.loading import load_sweep

    config = load_sweep(sweep, overrides, settings=settings)
    return config, Folders(out=out, name=config.name)


def command_line() -> str:
    """Return the command as it was typed, without secrets."""
    # Secrets are removed before quoting, as quotation marks would end them too early.
    return shlex.join(["isoloop", *(redacted(argument) for argument in sys.argv[1:])])


@dataclass(frozen=True, kw_only=True)
class TargetFiles:
    """The files that a command's target names; they need not exist.

    Attributes:
        name: name of the sweep, or of the file without suffix.
        table: the run table; None if the target is a fit.
        fit: the stored fit.
        folders: the sweep's folders; None if the target is a file.
    """

    name: str
    table: Path | None
    fit: Path
    folders: Folders | None = None


def files_of(target: str, out: Path, *, hold_out: bool = False) -> TargetFiles:
    """Return the files of a sweep that was run, a run table or a stored fit.

    Args:
        target: name or YAML file of a sweep, <name>/groups/<group>, a .csv or .parquet table, or a fit's .json file.
        out: the output folder.
        hold_out: name the fit without the largest budget.

    Raises:
        ValueError: no sweep of that name was run under `out`, or a single fit can't be that without a budget.
    """
    path = Path(target)
    if path.suffix == ".json":
        if hold_out:
            raise ValueError(f"--hold-out is for a sweep or a run table, but {path} is one fit already; name its file")
        return TargetFiles(name=path.stem, table=None, fit=path)
    if path.suffix in TABLE_SUFFIXES:
        fit = path.with_name(f"{path.stem}.{'hold-out' if hold_out else 'fit'}.json")
        return TargetFiles(name=path.stem, table=path, fit=fit)
    folders = folders_of(target, out)
    return TargetFiles(name=folders.name, table=folders.table, fit=folders.fit(hold_out=hold_out), folders=folders)
