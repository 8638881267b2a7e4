"""The places of a sweep's results. Corpora, runs and the tracking store belong to all sweeps of one output folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoloop.fitting import AnyFit, SizesFit, SweepFit

MLFLOW = "mlflow:"
"""The beginning of a command's target that is an MLflow experiment."""
SO_FAR = "so-far"
OUTPUT_SUFFIXES = (".csv", ".parquet")
"""Suffixes of the run tables that isoloop writes; it reads many more (`is_table_target`)."""
_STORED = re.compile(r'\s*\{\s*"format"\s*:\s*"isoloop-')
_FILE_SUFFIXES = (
    ".xlsx",
    ".xls",
    ".ods",
    ".pkl",
    ".feather",
    ".arrow",
    ".h5",
    ".npz",
    ".db",
    ".sqlite",
    ".html",
    ".pdf",
)


class _InSweepFolder:
    """An attribute that is the path of a file or folder within the sweep's own folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folders: "Folders", owner: type) -> Path:
        return folders.sweep / self.name


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The places of the sweep `name` under the output folder `out`.

    <out>/mlflow.db  artifacts/  corpora/<fingerprint>/  runs/<run id>/  quality/<run id>/  suites/
    <out>/sweeps/<name>/  config.yaml  left-out.txt  runs.csv  fit.json  fit.txt  hold-out.json  figures/  report.html
    """

    out: Path
    name: str

    table = _InSweepFolder("runs.csv")
    config = _InSweepFolder("config.yaml")  # the configuration of the run table
    left_out = _InSweepFolder("left-out.txt")  # cells of the grid that weren't run, a line each, with the reason
    notes = _InSweepFolder("notes.txt")  # sentences that the page begins with, for an answer before the end
    report = _InSweepFolder("report.html")
    figures = _InSweepFolder("figures")
    stability = _InSweepFolder("stability.txt")  # report of a stability study, beside stability.csv and dynamics.csv
    groups = _InSweepFolder("groups")  # the fits of each group of runs, if the sweep has several groups
    rates = _InSweepFolder("rates.json")  # the law of tuned learning rates, of a tuning or of a sweep that has it
    manifest = _InSweepFolder("plan.json")  # the cells of the plan, written before anything starts
    driver = _InSweepFolder("driver.json")  # the driver that is at work, or the last one
    state = _InSweepFolder("state.json")  # the running and failed runs, while a driver works on the sweep
    stop_file = _InSweepFolder("stop")  # while it exists, the sweep's runs save their state and end
    upload_cursors = _InSweepFolder("relay")  # how far each run's journal has reached the tracking store

    @property
    def sweep(self) -> Path:
        """The sweep's own folder."""
        return self.out / "sweeps" / self.name

    @property
    def corpora(self) -> Path:
        """Folder of the prepared corpora."""
        return self.out / "corpora"

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artifacts if the default store is used."""
        return self.out / "artifacts"

    def group(self, slug: str) -> "Folders":
        """Return the folders of one group of runs: `<name>/groups/<slug>` is a name that commands take."""
        return Folders(out=self.out, name=f"{self.name}/groups/{slug}")

    @property
    def so_far(self) -> "Folders":
        """The folders of what the ended runs of an unfinished sweep say: `<name>/so-far` is a name, too."""
        return Folders(out=self.out, name=f"{self.name}/{SO_FAR}")

    def run(self, run_id: str) -> Path:
        """Return the folder of one run."""
        return self.out / "runs" / run_id

    def quality(self, run_id: str) -> Path:
        """Return the folder of one run's results on evaluation suites."""
        return self.out / "quality" / run_id

    @property
    def suites(self) -> Path:
        """Folder of the suites' data, unless another one is named."""
        return self.out / "suites"

    def fit(self, *, hold_out: bool) -> Path:
        """Return the file of the stored fit, of all runs or without the largest budget."""
        return self.sweep / ("hold-out.json" if hold_out else "fit.json")

    @property
    def default_store(self) -> Path:
        """The sqlite store beside the results."""
        return self.out / "mlflow.db"

    def default_tracking_uri(self) -> str:
        """Return the URI of the sqlite store beside the results."""
        return f"sqlite:///{self.default_store.resolve()}"


@dataclass(frozen=True, kw_only=True)
class TablePlaces:
    """The places of the results of a table of runs, beside it.

    <stem>.fit.json  <stem>.fit.txt  <stem>.hold-out.json  <stem>.report.html  <stem>.figures/
    """

    stem: Path

    @classmethod
    def beside(cls, fit: Path) -> "TablePlaces":
        """Return the places that go with a table's stored fit, <stem>.fit.json."""
        return cls(stem=fit.with_name(fit.name.removesuffix(".fit.json")))

    def fit(self, *, hold_out: bool) -> Path:
        """Return the file of the stored fit, of all runs or without the largest budget."""
        return self._named(f"{'hold-out' if hold_out else 'fit'}.json")

    @property
    def report(self) -> Path:
        """The page."""
        return self._named("report.html")

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self._named("figures")

    def _named(self, ending: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{ending}")


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Both fits of a sweep, or of a table, and its page; a fit that can't be made is None, with the reason beside it.

    `joint` and `joint_hold_out` are the fits of runs of several sizes together; then `fit` is None. `groups` are the
    results of each group of runs, by its label, if the sweep has several groups. `stability` is the summary of a
    stability study, empty for other sweeps.
    """

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    why_no_hold_out: str | None
    report: Path
    groups: "Mapping[str, SweepResults]" = field(default_factory=dict)
    stability: str = ""
    joint: "SizesFit | None" = None
    joint_hold_out: "SizesFit | None" = None

    @property
    def any_fit(self) -> "AnyFit | None":
        """The fit of all runs, of one architecture or of several sizes."""
        return self.fit or self.joint

    @property
    def any_hold_out(self) -> "AnyFit | None":
        """That without the largest budget."""
        return self.hold_out or self.joint_hold_out


def folders_of(target: str, out: Path) -> Folders:
    """Return the folders of a sweep that was run, given by its name, its YAML file or `<name>/groups/<group>`.

    Raises:
        ValueError: no sweep of that name was run under `out`.
    """
    from isoloop.sweeps.config.loading import load_sweep
    from isoloop.sweeps.config.schema import SWEEP_NAME

    path = Path(target)
    is_config = path.suffix in {".yaml", ".yml"}
    if not is_config and (
        path.suffix.lower() in (*_FILE_SUFFIXES, ".json") or is_table_target(target) or path.is_file()
    ):
        raise ValueError(_why_no_sweep(path))
    name = load_sweep(target).name if is_config else target
    folders = Folders(out=out, name=name)
    if not folders.sweep.is_dir():
        names = sorted(folder.name for folder in folders.sweep.parent.glob("*") if folder.is_dir())
        start = f"start with 'isoloop run {name}'" if re.fullmatch(SWEEP_NAME, name) else "check the name"
        hint = f"there are {', '.join(names)}" if names else f"no sweep was run there; {start}"
        raise ValueError(f"a sweep must have been run under --out, but '{out}' has no sweep '{name}': {hint}")
    return folders


def is_table_target(target: str) -> bool:
    """Return True if a command's target is a file that holds a table by its name, and not a stored fit."""
    from isoloop.fitting.tables.reading import is_table_file

    return is_table_file(target) and not is_stored_fit(target)


def is_stored_fit(target: str) -> bool:
    """Return True for a .json file that isoloop stored, or that doesn't exist; a table in JSON is none."""
    path = Path(target)
    if path.suffix.lower() != ".json":
        return False
    if not path.is_file():
        return True
    with path.open(encoding="utf-8", errors="replace") as file:
        return _STORED.match(file.read(200)) is not None


def table_stem(path: Path) -> str:
    """Return the name of a table's file without suffix: runs for runs.csv and for runs.csv.gz."""
    from isoloop.fitting.tables.reading import COMPRESSIONS

    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def _why_no_sweep(path: Path) -> str:
    """Return why a file can't be the sweep that a command needs, and what to do."""
    if not path.is_file():
        return f"a table, a fit or a sweep must exist, but there is no file {path}; check the path"
    if is_table_target(str(path)) or is_stored_fit(str(path)):
        return f"this command needs a sweep that was run, but {path} is a table or a fit; name the sweep"
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return f"a table must be text, JSON or parquet, but {path} is a spreadsheet; save it as .csv"
    return (
        f"a table must be text (.csv, .tsv, ...), JSON or parquet, but {path} is another kind of file; convert it, or "
        "name a sweep"
    )
