"""A stability study as two small files: a row per run, and what each run logged over training, thinned.

`stability.csv` has what `StabilityStudy.frame` has, `dynamics.csv` run_id, step, spectral_radius, state_norm and
train_loss (nats per token) at about sixty steps of each run. Outcomes were judged before anything was left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders, folders_of
from isoloop.sweeps.runs import load_runs
from isoloop.sweeps.stability.study import (
    LEARNING_RATE,
    Curve,
    Rule,
    StabilityRun,
    StabilityStudy,
    study_stability,
    variant_axis,
    variant_names,
)
from isoloop.trainer.run.journal import read_journal

if TYPE_CHECKING:
    import pandas as pd

RUNS, DYNAMICS = "stability.csv", "dynamics.csv"
POINTS = 60
_DIGITS = "%.6g"
_CURVE = {"step": "steps", "spectral_radius": "spectral_radii", "state_norm": "state_norms", "train_loss": "losses"}
_STUDY = ("study", "mean_recurrence", "within", "spike_limit")


def write_study(study: StabilityStudy, folder: Path) -> None:
    """Write both files into `folder`; the same study gives the same bytes."""
    import pandas as pd

    about = dict(zip(_STUDY, (study.name, study.mean_recurrence, study.rule.within, study.rule.spike), strict=True))
    study.frame().assign(**about).to_csv(folder / RUNS, index=False)
    parts = [_thinned(run) for run in study.runs if run.curve.steps]
    columns = ["run_id", *_CURVE]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    frame[columns].to_csv(folder / DYNAMICS, index=False, float_format=_DIGITS)


def read_study(folder: str | Path) -> StabilityStudy:
    """The study that `write_study` wrote into `folder`, with curves as thin and as rounded as they were written.

    Raises:
        ValueError: a file is missing, or isn't one of these.
    """
    from isoloop.fitting.tables.runs import loss_columns, read_frame

    folder = Path(folder)
    for name in (RUNS, DYNAMICS):
        if not (folder / name).is_file():
            raise ValueError(
                f"a stored stability study must have {RUNS} and {DYNAMICS}, but {folder} has no {name}; write them "
                "with 'isoloop stability'"
            )
    text = ["run_id", "variant", "outcome", "reason", "study"]
    frame, logged = read_frame(folder / RUNS, text=text), read_frame(folder / DYNAMICS, text=["run_id"])
    missing = [name for name in (*text, *_STUDY, LEARNING_RATE) if name not in frame]
    missing += [name for name in ("run_id", *_CURVE) if name not in logged]
    if missing or frame.empty:
        raise ValueError(
            f"a stored stability study must have a run and the columns of one, but {folder} lacks "
            f"{', '.join(missing) or 'runs'}; write it anew with 'isoloop stability'"
        )
    curves = {str(run_id): _curve(rows) for run_id, rows in logged.groupby("run_id", sort=False)}
    columns = loss_columns(frame)
    runs = tuple(_run(row, columns, curves) for row in frame.to_dict("records"))
    first = frame.iloc[0]
    return StabilityStudy(
        name=str(first["study"]),
        mean_recurrence=float(first["mean_recurrence"]),
        variants=tuple(dict.fromkeys(run.variant for run in runs)),
        learning_rates=tuple(sorted({run.learning_rate for run in runs})),
        seeds=tuple(sorted({run.seed for run in runs})),
        rule=Rule(within=float(first["within"]), spike=float(first["spike_limit"])),
        runs=runs,
    )


def load_study(target: str, out: str | Path, *, stored: str | Path | None = None) -> StabilityStudy:
    """The stability study of a sweep that was run; else the one that lies in a folder.

    Args:
        target: a sweep that was run under `out`, its run table, or a folder that `write_study` wrote into.
        out: the output folder, with the runs' journals.
        stored: such a folder, for where `target` was not run; it must be of a study of that name.

    Raises:
        ValueError: there is neither, or the sweep isn't a study (sweeps/stability/study.py).
    """
    out = Path(out)
    if (Path(target) / DYNAMICS).is_file():
        return read_study(target)
    is_table = Path(target).suffix in (".csv", ".parquet")
    if stored is not None and not is_table and not Folders(out=out, name=target).table.is_file():
        study = read_study(stored)
        if study.name == target:
            return study
    if not is_table:
        folders_of(target, out)  # says which sweeps there are
    runs = load_runs(target, out, several_groups=True)
    if runs.sweep is None:
        raise ValueError(
            f"a stability study must have its configuration, but there is no config.yaml beside the table of "
            f"'{target}'; put it there"
        )
    folders = Folders(out=out, name=runs.name)
    return judged_study(runs.table, runs.sweep, folders)


def judged_study(table: "pd.DataFrame", sweep: SweepConfig, folders: Folders) -> StabilityStudy:
    """A sweep's runs judged by its run table and the journals in the output folder.

    Raises:
        ValueError: the sweep isn't a study (sweeps/stability/study.py).
    """
    journals = {run_id: read_journal(folders.run(run_id) / "journal.jsonl")[0] for run_id in table["run_id"]}
    return study_stability(table, journals, name=sweep.name, variant=variant_axis(sweep), variants=variant_names(sweep))


def _thinned(run: StabilityRun) -> "pd.DataFrame":
    """About `POINTS` of the steps that a run logged, evenly spaced, the first and the last among them."""
    import pandas as pd

    count = len(run.curve.steps)
    kept = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
    values = {name: np.array(getattr(run.curve, of))[kept] for name, of in _CURVE.items()}
    return pd.DataFrame({"run_id": run.run_id, **values})


def _curve(rows: "pd.DataFrame") -> Curve:
    values = {of: tuple(rows[name].astype(int if name == "step" else float).tolist()) for name, of in _CURVE.items()}
    return Curve(**values)


def _run(row: Mapping[Any, Any], columns: Mapping[str, float], curves: Mapping[str, Curve]) -> StabilityRun:
    there = {name: value for name, value in row.items() if value is not None and value == value}
    return StabilityRun(
        run_id=there["run_id"],
        variant=there["variant"],
        learning_rate=float(there[LEARNING_RATE]),
        seed=int(there["seed"]),
        outcome=there["outcome"],
        reason=there.get("reason", ""),
        steps=int(there["steps"]),
        loss=there.get("loss"),
        losses={recurrence: float(there[name]) for name, recurrence in columns.items() if name in there},
        spectral_radius=there.get("spectral_radius"),
        greatest_radius=there.get("greatest_spectral_radius"),
        norm_growth=there.get("state_norm_growth"),
        spike=there.get("spike"),
        curve=curves.get(there["run_id"], Curve()),
    )
