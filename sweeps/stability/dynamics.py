"""Stored stability studies: a table with a row per run, and a table of what each run logged, thinned.

`stability.csv` has the columns of `StabilityStudy.frame`; `dynamics.csv` has run_id, step, spectral_radius, state_norm
and train_loss (nats per token) at about sixty steps of each run. Outcomes are judged before the curves are thinned.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders, folders_of, is_table_target
from isoloop.sweeps.plan.axes import ENTRY_NAME, LEARNING_RATE
from isoloop.sweeps.runs import load_runs
from isoloop.sweeps.stability.study import (
    RUN_COLUMNS,
    StabilityRule,
    StabilityRun,
    StabilityStudy,
    judge_runs,
    present_values,
    variant_axis,
)
from isoloop.trainer.run.journal import read_journal

if TYPE_CHECKING:
    import pandas as pd

RUNS_FILE, DYNAMICS_FILE = "stability.csv", "dynamics.csv"
CURVE_POINTS = 60
_FLOAT_FORMAT = "%.6g"
_CURVE_COLUMNS = {
    "step": "steps",
    "spectral_radius": "spectral_radii",
    "state_norm": "state_norms",
    "train_loss": "losses",
}
_STUDY_COLUMNS = ("study", "mean_recurrence", "within", "spike_limit")


def write_study(study: StabilityStudy, folder: Path) -> None:
    """Write both files into `folder`; equal studies give equal bytes."""
    import pandas as pd

    values = (study.name, study.mean_recurrence, study.rule.within, study.rule.spike)
    frame = study.frame().assign(**dict(zip(_STUDY_COLUMNS, values, strict=True)))
    frame.to_csv(folder / RUNS_FILE, index=False)
    columns = ["run_id", *_CURVE_COLUMNS]
    curves = [_thin(run) for run in study.runs if run.curve.steps]
    logged = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=columns)
    logged[columns].to_csv(folder / DYNAMICS_FILE, index=False, float_format=_FLOAT_FORMAT)


def read_study(folder: str | Path) -> StabilityStudy:
    """Read a study that `write_study` wrote into `folder`, with the curves as thinned and rounded.

    Raises:
        ValueError: a file is missing, or lacks columns.
    """
    import pandas as pd

    from isoloop.fitting.tables.contract import loss_columns

    # Read and check the files.
    folder = Path(folder)
    for name in (RUNS_FILE, DYNAMICS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"a stored stability study must have {RUNS_FILE} and {DYNAMICS_FILE}, but {folder} has no {name}; "
                "write them with 'isoloop stability'"
            )
    text = ["run_id", "variant", "outcome", "reason", "study"]
    # The Python engine reads floats exactly as they were written.
    frame, logged = (
        pd.read_csv(folder / name, dtype=dict.fromkeys(text, str), engine="python")
        for name in (RUNS_FILE, DYNAMICS_FILE)
    )
    missing = [name for name in (*text, *_STUDY_COLUMNS, LEARNING_RATE) if name not in frame]
    missing += [name for name in ("run_id", *_CURVE_COLUMNS) if name not in logged]
    if missing or frame.empty:
        raise ValueError(
            f"a stored stability study must have runs and all columns, but {folder} lacks "
            f"{', '.join(missing) or 'runs'}; write it anew with 'isoloop stability'"
        )

    # Build the runs; pydantic turns whole floats into integers.
    adapter, recurrences = TypeAdapter(StabilityRun), loss_columns(frame)
    curves = {str(run_id): rows for run_id, rows in logged.groupby("run_id", sort=False)}
    runs = []
    for row in frame.to_dict("records"):
        values = present_values(row)
        curve = {}
        if values["run_id"] in curves:
            rows = curves[values["run_id"]]
            curve = {attribute: rows[column].tolist() for column, attribute in _CURVE_COLUMNS.items()}
        run = {attribute: values.get(column) for column, attribute in RUN_COLUMNS.items()}
        losses = {recurrence: values[column] for column, recurrence in recurrences.items() if column in values}
        runs.append(
            adapter.validate_python({**run, "reason": values.get("reason", ""), "losses": losses, "curve": curve})
        )
    first = frame.iloc[0]
    return StabilityStudy(
        name=str(first["study"]),
        mean_recurrence=float(first["mean_recurrence"]),
        variants=tuple(dict.fromkeys(run.variant for run in runs)),
        rule=StabilityRule(within=float(first["within"]), spike=float(first["spike_limit"])),
        runs=tuple(runs),
    )


def load_study(target: str, out: str | Path, *, stored: str | Path | None = None) -> StabilityStudy:
    """Return the stability study of a sweep that was run, else a stored one.

    Args:
        target: a sweep that was run under `out`, its run table, or a folder that `write_study` wrote into.
        out: the output folder, with the runs' journals.
        stored: such a folder, used if `target` was not run; the study in it must have that name.

    Raises:
        ValueError: there is neither, or the sweep isn't a study (sweeps/stability/study.py).
    """
    out = Path(out)
    if (Path(target) / DYNAMICS_FILE).is_file():
        return read_study(target)
    is_table = is_table_target(target)
    if stored is not None and not is_table and not Folders(out=out, name=target).table.is_file():
        study = read_study(stored)
        if study.name == target:
            return study
    if not is_table:
        folders_of(target, out)  # raises with the names of the sweeps that were run
    runs = load_runs(target, out, several_groups=True)
    if runs.sweep is None:
        raise ValueError(
            f"a stability study must have its configuration, but there is no config.yaml beside the table of "
            f"'{target}'; put it there"
        )
    return judge_sweep(runs.table, runs.sweep, Folders(out=out, name=runs.name))


def judge_sweep(table: "pd.DataFrame", sweep: SweepConfig, folders: Folders) -> StabilityStudy:
    """Judge a sweep's runs by its run table and the journals in the output folder.

    Raises:
        ValueError: the sweep isn't a study (sweeps/stability/study.py).
    """
    journals = {run_id: read_journal(folders.run(run_id) / "journal.jsonl")[0] for run_id in table["run_id"]}
    axis = variant_axis(sweep)
    variants = [str(entry[ENTRY_NAME] if isinstance(entry, Mapping) else entry) for entry in sweep.axes[axis]]
    return judge_runs(table, journals, name=sweep.name, variant=axis, variants=variants)


def _thin(run: StabilityRun) -> "pd.DataFrame":
    """Return `CURVE_POINTS` of the logged steps at most, evenly spaced, with the first and the last."""
    import pandas as pd

    count = len(run.curve.steps)
    kept = np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).round().astype(int))
    values = {column: np.array(getattr(run.curve, attribute))[kept] for column, attribute in _CURVE_COLUMNS.items()}
    return pd.DataFrame({"run_id": run.run_id, **values})
