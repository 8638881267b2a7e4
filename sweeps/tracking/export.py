"""The run table as a file, from MLflow alone: of a sweep, or of runs that others logged."""

from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import Tracking
from isoloop.sweeps.paths import TABLE_SUFFIXES, Folders
from isoloop.trainer.files import open_atomically

if TYPE_CHECKING:
    import pandas as pd


def export_sweep(
    name: str, to: Path, *, out: Path, tracking_uri: str | None = None, experiment: str | None = None
) -> "pd.DataFrame":
    """Write the run table of the sweep `name` to `to` and return it.

    Args:
        name: the sweep's name; neither its configuration nor its output folder need to exist.
        to: a .csv or .parquet file.
        out: the output folder; the sweep's configuration there says where the sweep is recorded.
        tracking_uri: the store, if not that of the configuration.
        experiment: the MLflow experiment, if not that of the configuration.

    Raises:
        ValueError: the store or the sweep doesn't exist, or no run has ended; the table can't be written.
    """
    from isoloop.fitting import check_table
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    _check_suffix(to)
    folders = Folders(out=out, name=name)
    tracking = load_sweep(str(folders.config)).tracking if folders.config.is_file() else Tracking()
    uri = tracking_uri or tracking.full_uri(default=folders.default_tracking_uri())
    store = TrackingStore(uri, experiment or tracking.experiment, artifacts=None)
    return _write(check_table(store.read_table(name)), to)


def export_mapped(
    mapping: Path, to: Path, *, out: Path, tracking_uri: str | None = None, experiment: str | None = None
) -> "pd.DataFrame":
    """Write the run table of the runs that the YAML file `mapping` maps to `to` and return it.

    Raises:
        ValueError: the mapping, the store or a run breaks a rule.
    """
    from isoloop.sweeps.tracking.import_runs import map_runs, read_mapping
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    _check_suffix(to)
    run_mapping = read_mapping(mapping)
    uri = tracking_uri or Folders(out=out, name="").default_tracking_uri()
    store = TrackingStore(uri, experiment or run_mapping.experiment, artifacts=None)
    return _write(map_runs(run_mapping, store.foreign_runs(run_mapping.filter)), to)


def _check_suffix(to: Path) -> None:
    if to.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"--to must end in .csv or .parquet, but got '{to}'; rename it")


def _write(table: "pd.DataFrame", to: Path) -> "pd.DataFrame":
    to.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(to) as file:
        table.to_csv(file, index=False) if to.suffix == ".csv" else table.to_parquet(file, index=False)
    return table
