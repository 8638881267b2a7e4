"""The runs that a name stands for: of a sweep that was run, in a run table's file, or of a simulated sweep."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sweeps.config import SweepConfig
from sweeps.folders import Folders, folders_of
from sweeps.grid import plan_sweep, simulated_text
from sweeps.loading import load_sweep, presets
from sweeps.record import OUTCOME, RUN_ID, cell_tags, result_metrics, run_table
from sweeps.simulated import simulate_run

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
_CONFIGURATIONS = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A sweep's name, its checked run table, and its configuration, None where a table's file stands alone."""

    name: str
    table: "pd.DataFrame"
    sweep: SweepConfig | None


def load_runs(target: str, out: str | Path, *, several_groups: bool = False) -> Runs:
    """The runs of a sweep or a run table; a simulated sweep that was not run is drawn on the spot, and not kept.

    Args:
        target: a sweep that was run under `out` (its name, its YAML file or `<name>/groups/<group>`); or a run table
            (.csv, .parquet), whose configuration is the `config.yaml` beside it, if there is one; or a simulated sweep
            (a preset's name or a YAML file).
        out: the output folder.
        several_groups: take a table whose runs one law can't be fitted to.

    Raises:
        ValueError: there is no such sweep or table, it isn't as it must be, or its runs are of several groups.
    """
    runs = _load(target, Path(out))
    groups = list(dict.fromkeys(runs.table["group"])) if "group" in runs.table else []
    if len(groups) > 1 and not several_groups:
        raise ValueError(
            f"a law is fitted to the runs of one group, but '{target}' has {len(groups)} ({', '.join(groups[:3])}, "
            f"...); name one of the folders in {Folders(out=Path(out), name=runs.name).groups}, as "
            f"'{runs.name}/groups/<folder>'"
        )
    return runs


def simulated_table(sweep: SweepConfig) -> "pd.DataFrame":
    """The checked run table of a simulated sweep, as 'isoloop run' makes it, without Ray, MLflow or a file.

    Raises:
        ValueError: the sweep isn't simulated, or can't be planned.
    """
    from fitting import check_table

    if sweep.simulation is None:
        raise ValueError(
            f"a sweep that was not run must be simulated, but '{sweep.name}' trains; start it with 'isoloop run "
            f"{sweep.name}'"
        )
    plan = plan_sweep(sweep, simulated_text)
    found = []
    with TemporaryDirectory() as folder:
        for cell in plan.cells:
            result = simulate_run(cell.spec, sweep.simulation, cell.run_id, Path(folder) / cell.run_id)
            assert result is not None  # nothing stops it
            tags = cell_tags(plan, cell) | {RUN_ID: cell.run_id, OUTCOME: result.status}
            found.append((tags, result_metrics(result)))
    return check_table(run_table(found))


def _load(target: str, out: Path) -> Runs:
    from fitting import read_table

    path = Path(target)
    if path.suffix in SUFFIXES:
        return Runs(name=path.stem, table=read_table(path), sweep=_configuration(path.with_name("config.yaml")))
    is_sweep = path.suffix in _CONFIGURATIONS or target in presets()
    sweep = load_sweep(target) if is_sweep else None
    folders = Folders(out=out, name=target if sweep is None else sweep.name)
    if folders.table.is_file():
        return Runs(name=folders.name, table=read_table(folders.table), sweep=_configuration(folders.config))
    if sweep is not None and sweep.simulation is not None:
        return Runs(name=sweep.name, table=simulated_table(sweep), sweep=sweep)
    return Runs(name=folders.name, table=read_table(folders_of(target, out).table), sweep=None)  # says what is missing


def _configuration(path: Path) -> SweepConfig | None:
    return load_sweep(str(path)) if path.is_file() else None
