"""Where a sweep's results lie. Corpora, runs and the tracking store are shared by all sweeps of one output folder."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_OUT = "isoloop-out"


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The places of sweep `name` under the output folder `out`.

    <out>/mlflow.db  artifacts/  corpora/<fingerprint>/  runs/<run id>/
    <out>/sweeps/<name>/  config.yaml  left-out.txt  runs.csv  fit.json  fit.txt  hold-out.json  figures/  report.html
    """

    out: Path
    name: str

    @property
    def corpora(self) -> Path:
        """Prepared corpora."""
        return self.out / "corpora"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, where the default store is used."""
        return self.out / "artifacts"

    @property
    def sweep(self) -> Path:
        """The sweep's own results."""
        return self.out / "sweeps" / self.name

    @property
    def table(self) -> Path:
        """The run table."""
        return self.sweep / "runs.csv"

    @property
    def config(self) -> Path:
        """The configuration that the run table is of."""
        return self.sweep / "config.yaml"

    @property
    def left_out(self) -> Path:
        """Cells of the grid that didn't run, a line each, with the reason."""
        return self.sweep / "left-out.txt"

    @property
    def figures(self) -> Path:
        """Figures as PNG, SVG and PDF."""
        return self.sweep / "figures"

    @property
    def upload_cursors(self) -> Path:
        """How far each run's journal has reached the tracking store."""
        return self.sweep / "relay"

    @property
    def stop_file(self) -> Path:
        """While it exists, runs of this sweep save their state and end."""
        return self.sweep / "stop"

    @property
    def stability(self) -> Path:
        """What a stability study found, readable; stability.csv and dynamics.csv lie beside it."""
        return self.sweep / "stability.txt"

    @property
    def manifest(self) -> Path:
        """What the sweep will run, written before it starts."""
        return self.sweep / "plan.json"

    @property
    def state(self) -> Path:
        """What is under way, while a driver is at work."""
        return self.sweep / "state.json"

    @property
    def groups(self) -> Path:
        """What is fitted to each group of runs, where a sweep has several."""
        return self.sweep / "groups"

    def group(self, slug: str) -> "Folders":
        """The folders of one group of runs: `<name>/groups/<slug>` is a name that commands take."""
        return Folders(out=self.out, name=f"{self.name}/groups/{slug}")

    @property
    def report(self) -> Path:
        """The sweep's page."""
        return self.sweep / "report.html"

    def run(self, run_id: str) -> Path:
        """One run's folder."""
        return self.out / "runs" / run_id

    def fit(self, *, hold_out: bool) -> Path:
        """The stored fit, of all runs or without the largest budget."""
        return self.sweep / ("hold-out.json" if hold_out else "fit.json")

    def default_tracking_uri(self) -> str:
        """The sqlite store beside the results."""
        return f"sqlite:///{(self.out / 'mlflow.db').resolve()}"


def folders_of(target: str, out: Path) -> Folders:
    """The folders of a sweep that was run, given by its name, its YAML file or `<name>/groups/<group>`.

    Raises:
        ValueError: none of that name was run under `out`.
    """
    from isoloop.sweeps.config.loading import load_sweep

    name = load_sweep(target).name if Path(target).suffix in {".yaml", ".yml"} else target
    folders = Folders(out=out, name=name)
    if not folders.sweep.is_dir():
        known = sorted(folder.name for folder in folders.sweep.parent.glob("*") if folder.is_dir())
        there = f"there are {', '.join(known)}" if known else f"no sweep was run there; start with 'isoloop run {name}'"
        raise ValueError(f"a sweep must have been run under --out, but '{out}' has no sweep '{name}': {there}")
    return folders
