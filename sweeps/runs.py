"""The run table of a sweep that was run, a file, an MLflow experiment or a simulated sweep; and its FLOPs recounted."""

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.config.loading import load_sweep, preset_names
from isoloop.sweeps.config.schema import RunSettings, SweepConfig
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import MLFLOW, Folders, folders_of, is_table_target, table_stem
from isoloop.sweeps.plan.axes import SIZE, UNIQUE_TOKENS, grid_points
from isoloop.sweeps.plan.grid import cost_model_columns, plan_sweep, simulated_corpus
from isoloop.sweeps.tracking.schema import OUTCOME, RUN_ID, SWEEP, cell_tags, result_metrics, run_table
from isoloop.trainer.accounting import Accounting, expected_loops, loop_cost
from isoloop.trainer.config import RecurrenceConfig

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.fitting.tables.contract import RunTable
    from isoloop.fitting.tables.reading import RawTable
    from isoloop.sweeps.tracking.import_runs import RunMapping

GROUP = "group"
_COST_TOLERANCE = 1e-9  # relative, within which two costs are the same


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The way to read a table of somebody's runs.

    Attributes:
        columns: `tokens=D_billions*1e9,loss=val/loss`: the source of each column that isn't found by its name.
        mapping: a YAML file with the sources (docs/sweeps.md).
        tracking_uri: the MLflow store of an experiment; None for the sqlite file in the output folder.
        experiment: keep only the rows with this value in the column `experiment`.
        outliers: keep the rows that the column `outlier` marks.
        budget_tolerance: budgets within this fraction of one another are one; None for 1%.
    """

    columns: str | None = None
    mapping: Path | None = None
    tracking_uri: str | None = None
    experiment: str | None = None
    outliers: bool = True
    budget_tolerance: float | None = None

    @property
    def tolerance(self) -> float:
        """The fraction within which budgets are one."""
        from isoloop.fitting.tables.budgets import SAME_BUDGET

        return SAME_BUDGET if self.budget_tolerance is None else self.budget_tolerance

    @property
    def given(self) -> str:
        """The options that say how a table is read, as they are typed; empty if there are none."""
        words = [] if self.columns is None else ["--columns", self.columns]
        words += [] if self.mapping is None else ["--map", str(self.mapping)]
        words += [] if self.experiment is None else ["--experiment", self.experiment]
        words += [] if self.outliers else ["--no-outliers"]
        words += [] if self.budget_tolerance is None else ["--budget-tolerance", f"{self.budget_tolerance:g}"]
        return shlex.join(words)


def load_table(target: str, out: str | Path, options: TableOptions | None = None) -> "RunTable":
    """Return the checked run table of a target, with notes about what was guessed.

    Args:
        target: a file that holds a table, `mlflow:NAME` for an MLflow experiment, or a sweep that was run under `out`
            (its name, its YAML file or `<name>/groups/<group>`).
        out: the output folder.
        options: how to read a table of somebody's runs.

    Raises:
        ValueError: there is no such file, experiment or sweep, the table breaks a rule, or an option doesn't apply.
    """
    from isoloop.fitting.tables.mapping import parse_columns
    from isoloop.fitting.tables.runs import runs_of
    from isoloop.sweeps.tracking.import_runs import map_runs, read_mapping

    options = options or TableOptions()
    in_mlflow, is_file = target.startswith(MLFLOW), is_table_target(target)
    if options.tracking_uri is not None and not in_mlflow:
        raise ValueError(
            f"--tracking-uri is for an MLflow experiment, but got {target!r}; name it {MLFLOW}NAME, or leave it out"
        )
    if not (in_mlflow or is_file) and (options.columns is not None or options.mapping is not None):
        raise ValueError(
            f"--columns and --map are for tables of others, but '{target}' is a sweep of isoloop; leave them out"
        )
    # The table as it is, and its columns by our names.
    columns = parse_columns(options.columns or "")
    mapping = None if options.mapping is None else read_mapping(options.mapping)
    raw = _experiment(target, Path(out), options, mapping) if in_mlflow else _file(target, Path(out), mapping)
    mapped = map_runs(raw, mapping, columns)
    # The rows, and the rules of a run table.
    return runs_of(mapped, experiment=options.experiment, outliers=options.outliers, budget_tolerance=options.tolerance)


def _file(target: str, out: Path, mapping: "RunMapping | None") -> "RawTable":
    """Return the table in a file, or that of a sweep that was run."""
    from isoloop.fitting.tables.reading import read_raw
    from isoloop.sweeps.tracking.import_runs import tracker_table

    if mapping is not None and (mapping.experiment is not None or mapping.filter):
        raise ValueError(
            f"experiment and filter of a mapping are for MLflow, but {target} is a file; leave them out, or name "
            f"{MLFLOW}{mapping.experiment or 'EXPERIMENT'} instead of the file"
        )
    if not is_table_target(target):
        return read_raw(folders_of(target, out).table)
    return tracker_table(read_raw(target), Path(target))


def _experiment(target: str, out: Path, options: TableOptions, mapping: "RunMapping | None") -> "RawTable":
    """Return the runs of an MLflow experiment that have ended."""
    from isoloop.sweeps.tracking.import_runs import experiment_table
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    name = target.removeprefix(MLFLOW) or (mapping.experiment if mapping else None)
    if not name:
        raise ValueError(f"an MLflow experiment must have its name, but got {target!r}; write {MLFLOW}NAME")
    folders = Folders(out=out, name="")
    if options.tracking_uri is None and not folders.default_store.is_file():
        raise ValueError(
            f"{target} must be in an MLflow store, but there is no {folders.default_store}; give its URI with "
            "--tracking-uri, or the folder of its mlflow.db with --out"
        )
    uri = options.tracking_uri or folders.default_tracking_uri()
    runs = TrackingStore(uri, name, artifacts=None).foreign_runs(mapping.filter if mapping else "")
    sweeps = sorted({run.data.tags[SWEEP] for run in runs if SWEEP in run.data.tags})
    if sweeps:
        raise ValueError(
            f"{MLFLOW}NAME is for runs that other tools logged, but '{name}' has sweeps of isoloop "
            f"({', '.join(sweeps[:3])}); name one of them, or get its table with: isoloop export {sweeps[0]}"
        )
    return experiment_table(runs, mapping)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A sweep's name, its checked run table with notes about it, and its configuration; None for a file without one."""

    name: str
    table: "pd.DataFrame"
    sweep: SweepConfig | None
    notes: tuple[str, ...] = ()


def load_runs(target: str, out: str | Path, *, several_groups: bool = False) -> Runs:
    """Return the runs of a sweep or of a file; a simulated sweep that was not run is drawn at once, and not stored.

    Args:
        target: a sweep that was run under `out` (its name, its YAML file or `<name>/groups/<group>`); or a file with a
            run table, whose configuration is the `config.yaml` beside it, if there is one; or a simulated sweep (a
            preset's name or a YAML file).
        out: the output folder.
        several_groups: allow runs of several groups, to which no single law can be fitted.

    Raises:
        ValueError: there is no such sweep or table, it breaks a rule, or its runs are of several groups.
    """
    runs = _load_all_groups(target, Path(out))
    groups = list(dict.fromkeys(runs.table[GROUP])) if GROUP in runs.table else []
    if len(groups) > 1 and not several_groups:
        if (joint := joint_runs(runs.table)) is not None:
            return replace(runs, table=joint)
        raise ValueError(
            f"a law is fitted to the runs of one group, but '{target}' has {len(groups)} ({', '.join(groups[:3])}, "
            f"...); name one of the folders in {Folders(out=Path(out), name=runs.name).groups}, as "
            f"'{runs.name}/groups/<folder>'"
        )
    return runs


def joint_runs(table: "pd.DataFrame") -> "pd.DataFrame | None":
    """Return the runs of all groups as one, without the column `group`, if one law takes them all; None otherwise.

    It does where groups differ in the size of their models alone, or in the unique tokens of their text alone: laws of
    several sizes, and of repeated text, have terms for these.
    """
    if GROUP not in table:
        return None
    for axis in (SIZE, UNIQUE_TOKENS):
        if axis not in table:
            continue
        by_value = table.groupby(axis, dropna=False)[GROUP].nunique()
        is_alone = all(str(group).count(" = ") == 1 for group in table[GROUP].unique())
        if len(by_value) > 1 and by_value.max() == 1 and is_alone:
            return table.drop(columns=GROUP)
    return None


def simulated_table(sweep: SweepConfig) -> "pd.DataFrame":
    """Return the checked run table of a simulated sweep, as 'isoloop run' makes it, without Ray, MLflow or a file.

    Raises:
        ValueError: the sweep isn't simulated, or can't be planned.
    """
    from isoloop.fitting import check_table

    if sweep.simulation is None:
        raise ValueError(
            f"a sweep that was not run must be simulated, but '{sweep.name}' trains; start it with 'isoloop run "
            f"{sweep.name}'"
        )
    plan = plan_sweep(sweep, simulated_corpus)
    runs = []
    with TemporaryDirectory() as folder:
        for cell in plan.cells:
            result = simulate_run(cell.spec, sweep.simulation, cell.run_id, Path(folder) / cell.run_id)
            assert result is not None  # nothing stops it
            tags = cell_tags(plan, cell) | {RUN_ID: cell.run_id, OUTCOME: result.status}
            runs.append((tags, result_metrics(result)))
    return check_table(run_table(runs))


def _load_all_groups(target: str, out: Path) -> Runs:
    path = Path(target)
    if is_table_target(target):
        table = load_table(target, out)
        configuration = _configuration(path.with_name("config.yaml"))
        return Runs(name=table_stem(path), table=table.frame, sweep=configuration, notes=table.notes)
    is_sweep = path.suffix in (".yaml", ".yml") or target in preset_names()
    sweep = load_sweep(target) if is_sweep else None
    folders = Folders(out=out, name=target if sweep is None else sweep.name)
    if folders.table.is_file():
        return Runs(name=folders.name, table=load_table(folders.name, out).frame, sweep=_configuration(folders.config))
    if sweep is not None and sweep.simulation is not None:
        return Runs(name=sweep.name, table=simulated_table(sweep), sweep=sweep)
    # One of these raises ValueError and says what is missing: the sweep, or its table.
    return Runs(name=folders.name, table=load_table(target, out).frame, sweep=None)


def _configuration(path: Path) -> SweepConfig | None:
    return load_sweep(str(path)) if path.is_file() else None


def recount(runs: Runs, accounting: Accounting) -> "pd.DataFrame":
    """Return the checked run table of `runs` under an accounting: compute, cost per token and loops that count.

    Runs of equal budgets have unequal ones when counted otherwise. The column `budget` is then gone, unless the
    recounted FLOPs cluster, and without it there are no isoFLOP curves: a law must be fitted. Loops are the nominal
    ones under `parcae-release`, and under `exact` those that the sampler is expected to draw.

    Raises:
        ValueError: there is no configuration, or the table is of other models than its configuration.
    """
    from isoloop.fitting import check_table

    table = runs.table
    if table["accounting"].iloc[0] == accounting:
        return table
    if runs.sweep is None:
        raise ValueError(
            f"recounting compute needs the models' shape, but the run table of '{runs.name}' only has the cost of a "
            "token; name its sweep instead, or put its config.yaml beside the table"
        )
    settings = _settings_of(table, runs.sweep)
    cost = loop_cost(settings.model, accounting)
    loops = [expected_loops(_recurrence_of(settings, mean), accounting) for mean in table["mean_recurrence"]]
    forward, backward = zip(*loops, strict=True)
    recounted = table.assign(
        accounting=accounting,
        flops=table["tokens"] * [cost.flops_per_token(*each) for each in loops],
        forward_loops=forward,
        backward_loops=backward,
        flops_per_token_fixed=cost.fixed,
        flops_per_token_forward_loop=cost.per_forward_loop,
        flops_per_token_backward_loop=cost.per_backward_loop,
    )
    return check_table(recounted.drop(columns="budget", errors="ignore"))


def _settings_of(table: "pd.DataFrame", sweep: SweepConfig) -> RunSettings:
    """Return the settings of the sweep whose models have the costs in the table."""
    row: dict[str, Any] = table.iloc[0].dropna().to_dict()
    for point in grid_points(sweep):
        same_axes = all(row.get(name, value) == value for name, value in point.axes.items())
        if same_axes and point.mean_recurrence == row["mean_recurrence"] and _costs_agree(row, point.settings):
            return point.settings
    raise ValueError(
        f"a table must be of the models of its configuration, but none of '{sweep.name}' costs what its first run "
        f"({row['run_id']}) did; use the configuration that was run"
    )


def _costs_agree(row: dict[str, Any], settings: RunSettings) -> bool:
    recurrence = _recurrence_of(settings, row["mean_recurrence"])
    expected = cost_model_columns(settings.model, recurrence, row["accounting"])
    return all(
        math.isclose(row.get(name, math.nan), value, rel_tol=_COST_TOLERANCE) for name, value in expected.items()
    )


def _recurrence_of(settings: RunSettings, mean: float) -> RecurrenceConfig:
    return RecurrenceConfig(mean=mean, **settings.depth.model_dump())
