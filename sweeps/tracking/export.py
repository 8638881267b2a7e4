"""The run table as a file, and that of a sweep from MLflow alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import Tracking
from isoloop.sweeps.paths import OUTPUT_SUFFIXES, Folders
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

    check_suffix(to)
    folders = Folders(out=out, name=name)
    tracking = load_sweep(str(folders.config)).tracking if folders.config.is_file() else Tracking()
    uri = tracking_uri or tracking.full_uri(default=folders.default_tracking_uri())
    store = TrackingStore(uri, experiment or tracking.experiment, artifacts=None)
    return write_table(check_table(store.read_table(name)), to)


def check_suffix(to: Path) -> None:
    """Raise ValueError unless a run table can be written to a file of this name."""
    if to.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(f"--to must end in .csv or .parquet, but got '{to}'; rename it")


def write_table(table: "pd.DataFrame", to: Path) -> "pd.DataFrame":
    """Write a run table to a .csv or .parquet file, whole or not at all, and return it."""
    check_suffix(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(to) as file:
        table.to_csv(file, index=False) if to.suffix.lower() == ".csv" else table.to_parquet(file, index=False)
    return table
