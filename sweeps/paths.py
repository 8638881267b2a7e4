"""The places of a sweep's results. Corpora, runs and the tracking store belong to all sweeps of one output folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoloop.fitting import SweepFit

TABLE_SUFFIXES = (".csv", ".parquet")


class _InSweepFolder:
    """An attribute that is the path of a file or folder within the sweep's own folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folders: "Folders", owner: type) -> Path:
        return folders.sweep / self.name


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The places of the sweep `name` under the output folder `out`.

    <out>/mlflow.db  artifacts/  corpora/<fingerprint>/  runs/<run id>/
    <out>/sweeps/<name>/  config.yaml  left-out.txt  runs.csv  fit.json  fit.txt  hold-out.json  figures/  report.html
    """

    out: Path
    name: str

    table = _InSweepFolder("runs.csv")
    config = _InSweepFolder("config.yaml")  # the configuration of the run table
    left_out = _InSweepFolder("left-out.txt")  # cells of the grid that weren't run, a line each, with the reason
    report = _InSweepFolder("report.html")
    figures = _InSweepFolder("figures")
    stability = _InSweepFolder("stability.txt")  # report of a stability study, beside stability.csv and dynamics.csv
    groups = _InSweepFolder("groups")  # the fits of each group of runs, if the sweep has several groups
    manifest = _InSweepFolder("plan.json")  # the cells of the plan, written before anything starts
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

    def run(self, run_id: str) -> Path:
        """Return the folder of one run."""
        return self.out / "runs" / run_id

    def fit(self, *, hold_out: bool) -> Path:
        """Return the file of the stored fit, of all runs or without the largest budget."""
        return self.sweep / ("hold-out.json" if hold_out else "fit.json")

    def default_tracking_uri(self) -> str:
        """Return the URI of the sqlite store beside the results."""
        return f"sqlite:///{(self.out / 'mlflow.db').resolve()}"


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Both fits of a sweep and its page; a fit that can't be made is None, with the reason beside it.

    `groups` are the results of each group of runs, by its label, if the sweep has several groups.
    """

    fit: "SweepFit | None"
    hold_out: "SweepFit | None"
    why_no_fit: str | None
    why_no_hold_out: str | None
    report: Path
    groups: "Mapping[str, SweepResults]" = field(default_factory=dict)


def folders_of(target: str, out: Path) -> Folders:
    """Return the folders of a sweep that was run, given by its name, its YAML file or `<name>/groups/<group>`.

    Raises:
        ValueError: no sweep of that name was run under `out`.
    """
    from isoloop.sweeps.config.loading import load_sweep

    name = load_sweep(target).name if Path(target).suffix in {".yaml", ".yml"} else target
    folders = Folders(out=out, name=name)
    if not folders.sweep.is_dir():
        names = sorted(folder.name for folder in folders.sweep.parent.glob("*") if folder.is_dir())
        hint = f"there are {', '.join(names)}" if names else f"no sweep was run there; start with 'isoloop run {name}'"
        raise ValueError(f"a sweep must have been run under --out, but '{out}' has no sweep '{name}': {hint}")
    return folders
