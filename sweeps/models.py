"""Trained models of a sweep: the one that a command's target names."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from isoloop.sweeps.paths import Folders, folders_of
from isoloop.trainer.hub import is_repository
from isoloop.trainer.run.result import RunResult, read_result


class FoundModel(NamedTuple):
    """The model that a target names: its `source` as `load_trained` takes it, and how it was `chosen`, if it was."""

    source: str
    chosen: str = ""


def find_model(target: str, out: Path) -> FoundModel:
    """Find the model that `target` names: a folder, a run's id, a sweep that was run, or OWNER/NAME on Hugging Face.

    Of a sweep it is the run with the lowest validation loss.

    Raises:
        ValueError: there is no such model, or no run of the sweep has one.
    """
    if Path(target).expanduser().is_dir():
        return FoundModel(target)
    run = Folders(out=out, name="").run(target)
    if run.is_dir():
        return FoundModel(str(run))
    if (out / "sweeps" / target).is_dir() or Path(target).suffix in (".yaml", ".yml"):
        folder, result = best_run(folders_of(target, out))
        label = f"the best run of '{target}', {result.run_id}: validation loss {result.compared_loss:.4f}"
        return FoundModel(str(folder), label)
    if is_repository(target):
        return FoundModel(target)
    names = sorted(path.name for path in (out / "sweeps").glob("*") if path.is_dir())
    raise ValueError(
        "a model must be the folder of a run or of a checkpoint, a run's id, a sweep that was run, or OWNER/NAME on "
        f"Hugging Face, but got '{target}'; "
        + (f"the sweeps under {out} are {', '.join(names)}" if names else f"no sweep was run under {out}")
    )


def sweep_of(run: Path) -> str | None:
    """Return the name of the sweep that planned the run in the folder `run`; None if none or several did."""
    found = []
    for manifest in run.resolve().parent.parent.glob("sweeps/*/plan.json"):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        cells = content if isinstance(content, list) else content["cells"]
        if run.name in {cell["run_id"] for cell in cells}:
            found.append(manifest.parent.name)
    return found[0] if len(found) == 1 else None


def trained_runs(folders: Folders) -> dict[Path, RunResult]:
    """Return the folders and results of a sweep's runs that have weights, in the order of its table.

    Raises:
        ValueError: the sweep has no run table yet, or no run with weights.
    """
    found = {}
    for folder in _run_folders(folders):
        result = read_result(folder) if folder.is_dir() else None
        if result is not None and _lack(folder, result) is None:
            found[folder] = result
    if not found:
        raise ValueError(
            f"a sweep must have a run whose weights are under --out, but '{folders.name}' has none: simulated runs "
            "have no weights, and those of runs with --storage are there; name a run's folder"
        )
    return found


def untrained_runs(folders: Folders) -> dict[str, str]:
    """Return the runs in a sweep's table that `trained_runs` leaves out, by id, and why, as the end of a sentence."""
    lacks = {
        folder.name: _lack(folder, read_result(folder) if folder.is_dir() else None) for folder in _run_folders(folders)
    }
    return {run_id: lack for run_id, lack in lacks.items() if lack is not None}


def _run_folders(folders: Folders) -> list[Path]:
    from isoloop.fitting.tables.reading import read_raw

    if not folders.table.is_file():
        raise ValueError(
            f"a sweep must have ended, but '{folders.name}' has no run table yet; rerun `isoloop run`, or name the "
            "folder of one of its runs"
        )
    return [folders.run(run_id) for run_id in read_raw(folders.table).frame["run_id"].astype(str)]


def _lack(folder: Path, result: RunResult | None) -> str | None:
    if result is None:
        return "its folder isn't under --out, or it has not ended"
    if result.status != "finished":
        return f"it has {result.status}"
    if not (folder / "model").is_dir() and not (folder / "checkpoints").is_dir():
        return "its weights aren't under --out"
    return None


def best_run(folders: Folders) -> tuple[Path, RunResult]:
    """Return folder and result of the run with the lowest validation loss. Raises ValueError as `trained_runs` does."""
    return min(trained_runs(folders).items(), key=lambda item: item[1].compared_loss or math.inf)
