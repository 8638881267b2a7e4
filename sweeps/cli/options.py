"""Arguments, options and exit codes that several commands share, and the files that a command's target names."""

import json
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.paths import MLFLOW, Folders, folders_of, is_stored_fit, is_table_target, table_stem
from isoloop.sweeps.privacy import redacted

if TYPE_CHECKING:
    from isoloop.sweeps.config.schema import SweepConfig
    from isoloop.sweeps.runs import TableOptions

Sweep = Annotated[str, typer.Argument(help="Name of a preset, or a sweep's YAML file.")]
Target = Annotated[
    str,
    typer.Argument(
        help="A sweep that was run (its name or YAML file), any table of runs, mlflow:EXPERIMENT, or a fit."
    ),
]
RunTarget = Annotated[str, typer.Argument(help="A sweep that was run: its name or YAML file.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Set = Annotated[list[str], typer.Option("--set", help="Change a value: --set batch=16 --set data.corpus=/my/text")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="A Ray cluster: host:port, auto, or local for a Ray on this machine, which is the default without "
        "RAY_ADDRESS.",
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="Any MLflow tracking URI; by default an sqlite file in --out.")
]
StorageUri = Annotated[
    str | None,
    typer.Option("--storage", help="Folder of the runs if workers can't see --out: s3://, gs://, or a path."),
]
Refits = Annotated[int, typer.Option("--draws", min=20, help="Refits behind each interval.")]
Columns = Annotated[
    str | None,
    typer.Option(help="Columns that aren't found by their names: --columns tokens=D_billions*1e9,loss=val/loss"),
]
MapFile = Annotated[
    Path | None, typer.Option("--map", help="A YAML file that maps columns or MLflow runs, and gives the model.")
]
Experiment = Annotated[str | None, typer.Option(help="Keep only the rows with this value in the column `experiment`.")]
Outliers = Annotated[bool, typer.Option(help="Keep the rows that the column `outlier` marks.")]
BudgetTolerance = Annotated[
    float | None, typer.Option(help="Budgets within this fraction of one another are one budget; by default 0.01.")
]
TableLaw = Annotated[
    str | None,
    typer.Option(
        "--law",
        help="The law of the loss after training: a law's name, or module:Class; by default one that fits the table.",
    ),
]
DEFAULT_REFITS = 1000
DEFAULT_OUT = Path("isoloop-out")
RUNS_FAILED, BROKEN_RULE, FAULT, INTERRUPTED = 1, 2, 3, 130  # exit codes, which docs/clusters.md explains
EXIT_CODES = (
    "Exit codes: 0 all is done; 1 runs have failed for good, and there are results of the others; 2 nothing was done, "
    "for a reason that the message gives; 3 a fault of isoloop; 130 stopped, rerun the command to go on."
)


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
        target: the target.
        name: name of the sweep or experiment, or of the file without suffix.
        table: the run table; for an MLflow experiment, the copy that is written beside its fit; None if the target is a
            fit.
        fit_beside: the stored fit's place, beside the table or in the sweep's folder.
        spare_fit: its place in the output folder where that of the table can't be written; None for other targets.
        folders: the sweep's folders; None if the target is something else.
    """

    target: str
    name: str
    table: Path | None
    fit_beside: Path
    spare_fit: Path | None = None
    folders: Folders | None = None

    @property
    def fit(self) -> Path:
        """The stored fit, which need not exist."""
        return self.spare_fit if self.spare_fit is not None and self.spare_fit.is_file() else self.fit_beside

    @property
    def in_mlflow(self) -> bool:
        """True if the target is an MLflow experiment."""
        return self.target.startswith(MLFLOW)

    def check_table(self, command: str) -> Path:
        """Return the run table. Raises ValueError if the target is a fit, or there is no such file."""
        if self.table is None:
            raise ValueError(
                f"{command} requires a run table, but {self.target} is a fit; name a sweep, a table's file or "
                f"{MLFLOW}EXPERIMENT"
            )
        if not (self.in_mlflow or self.table.is_file()):
            if self.folders is not None:
                raise ValueError(
                    f"a sweep must have a run table, but '{self.name}' has none yet: its driver writes one when all "
                    f"runs have ended; rerun the sweep's command, and see `isoloop status {self.target}`"
                )
            raise ValueError(f"a table must be a file, but there is none at {self.table}; check the path")
        return self.table


def files_of(target: str, out: Path, *, hold_out: bool = False) -> TargetFiles:
    """Return the files of a sweep that was run, a table of runs, an MLflow experiment or a stored fit.

    Args:
        target: name or YAML file of a sweep, <name>/groups/<group>, a table's file, mlflow:EXPERIMENT, or a fit's .json
            file.
        out: the output folder.
        hold_out: name the fit without the largest budget.

    Raises:
        ValueError: no sweep of that name was run under `out`, or a single fit can't be that without a budget.
    """
    path, kind = Path(target), "hold-out" if hold_out else "fit"
    if is_stored_fit(target):
        if hold_out:
            raise ValueError(f"--hold-out is for a sweep or a run table, but {path} is one fit already; name its file")
        return TargetFiles(target=target, name=path.stem, table=None, fit_beside=path)
    if target.startswith(MLFLOW):
        name = target.removeprefix(MLFLOW) or "experiment"
        stem = out / "mlflow" / file_name(name)
        fit = stem.with_name(f"{stem.name}.{kind}.json")
        return TargetFiles(target=target, name=name, table=stem.with_name(f"{stem.name}.csv"), fit_beside=fit)
    if is_table_target(target):
        return TargetFiles(
            target=target,
            name=table_stem(path),
            table=path,
            fit_beside=_fit_beside(path, kind),
            spare_fit=_spare_fit(path, out, kind),
        )
    folders = folders_of(target, out)
    return TargetFiles(
        target=target,
        name=folders.name,
        table=folders.table,
        fit_beside=folders.fit(hold_out=hold_out),
        folders=folders,
    )


def _fit_beside(table: Path, kind: str) -> Path:
    """Return the place of a table's fit beside it: mine.fit.json for mine.csv.

    Where that is the fit of another table that is there, such as mine.parquet, it is mine.csv.fit.json.
    """
    by_stem, by_name = (table.with_name(f"{name}.{kind}.json") for name in (table_stem(table), table.name))
    if by_name.is_file():
        return by_name
    fitted = _fitted_file(by_stem)
    is_of_another = fitted not in (None, table.name) and table.with_name(str(fitted)).is_file()
    return by_name if is_of_another else by_stem


def _fitted_file(fit: Path) -> str | None:
    """Return the name of the file that a stored fit is of, if it is stored in it."""
    try:
        return str(json.loads(fit.read_text(encoding="utf-8"))["file"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _spare_fit(table: Path, out: Path, kind: str) -> Path | None:
    """Return the place of a table's fit in the output folder, by its name and content; None if there is no table."""
    from isoloop.fitting.result import FittedFile

    if not table.is_file():
        return None
    return out / "fits" / f"{file_name(table.name)}-{FittedFile.of(table).sha256[:8]}.{kind}.json"


def file_name(name: str) -> str:
    """Return a name that a file or folder can have."""
    return re.sub(r"[^A-Za-z0-9+.=_-]+", "-", name).strip("-.")[:80] or "sweep"


def table_options(
    columns: str | None,
    mapping: Path | None,
    tracking_uri: str | None,
    experiment: str | None,
    outliers: bool,
    budget_tolerance: float | None,
) -> "TableOptions":
    """Return the options that say how a table is read."""
    from isoloop.sweeps.runs import TableOptions

    return TableOptions(
        columns=columns,
        mapping=mapping,
        tracking_uri=tracking_uri,
        experiment=experiment,
        outliers=outliers,
        budget_tolerance=budget_tolerance,
    )


def print_reading(notes: Sequence[str]) -> None:
    """Print what was guessed in reading a table, if anything was."""
    if notes:
        print(reading_text(notes))


def reading_text(notes: Sequence[str], title: str = "How the table was read") -> str:
    """Return what was guessed in reading a table as lines of text; empty if nothing was."""
    fill = partial(textwrap.fill, width=100, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join([title, *map(fill, notes), ""]) if notes else ""
