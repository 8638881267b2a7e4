"""Trained models of a sweep: the one that a command's target names."""

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from isoloop.sweeps.paths import Folders, folders_of
from isoloop.sweeps.plan.quality import compared_weights
from isoloop.trainer.hub import is_repository
from isoloop.trainer.run.result import RunResult, read_result

_MODEL_FILES = ("spec.json", "result.json", "config.json")


class FoundModel(NamedTuple):
    """The model that a target names.

    Attributes:
        source: as `load_trained` takes it.
        weights: as `load_trained` takes them.
        note: how it was chosen, if it was.
    """

    source: str
    weights: Literal["last", "best"] = "last"
    note: str = ""


def find_model(target: str, out: Path, *, best: bool = False) -> FoundModel:
    """Find the model that `target` names: a folder, a run's id, a sweep that was run, or OWNER/NAME on Hugging Face.

    Of a sweep it is the run with the lowest validation loss, with the weights that have this loss if the run kept them;
    else the weights are the last ones, unless `best` asks for those of the best step. A folder that holds no model
    hides neither run nor sweep.

    Raises:
        ValueError: there is no such model, or no run of the sweep has one.
    """
    folder, run, weights = Path(target).expanduser(), Folders(out=out, name="").run(target), _weights(best)
    is_name = folder.name == target != ".."
    is_run, is_sweep = is_name and run.is_dir(), is_name and (out / "sweeps" / target).is_dir()
    if any((folder / name).is_file() for name in _MODEL_FILES):
        other = f"run of that id in {run}" if is_run else f"sweep of that name in {out / 'sweeps' / target}"
        is_hidden = (is_run or is_sweep) and run.resolve() != folder.resolve()
        note = f"'{target}' is the model in {folder.resolve()} here, not the {other}" if is_hidden else ""
        return FoundModel(target, weights, note)
    if is_run:
        return FoundModel(str(run), weights)
    if is_sweep or folder.suffix in (".yaml", ".yml"):
        return _best_of_sweep(target, folders_of(target, out), best)
    if folder.is_dir() or is_repository(target):
        return FoundModel(target, weights)
    names = sorted(path.name for path in (out / "sweeps").glob("*") if path.is_dir())
    raise ValueError(
        "a model must be the folder of a run or of a checkpoint, a run's id, a sweep that was run, or OWNER/NAME on "
        f"Hugging Face, but got '{target}'; "
        + (f"the sweeps under {out} are {', '.join(names)}" if names else f"no sweep was run under {out}")
    )


def _weights(best: bool) -> Literal["last", "best"]:
    return "best" if best else "last"


def _best_of_sweep(target: str, folders: Folders, best: bool) -> FoundModel:
    """Return the best run of a sweep, with a note that has the loss of the weights that are used."""
    folder, result = best_run(folders)
    weights = "best" if best else compared_weights(folders, result.run_id)
    note = f"the best run of '{target}', {result.run_id}: validation loss "
    if weights == "best" and result.best_loss is not None:
        note += f"{result.best_loss:.4f} in its best step, {result.best_step:,} of {result.steps:,}"
    else:
        note += f"{result.loss:.4f}"
        if result.compared_loss != result.loss:
            note += (
                f" in its last step; it was {result.compared_loss:.4f} in step {result.best_step:,}, whose weights it "
                "didn't keep"
            )
    return FoundModel(str(folder), weights, note)


def sweep_of(source: Path) -> str | None:
    """Return the name of the sweep that planned a run, by its folder or that of its weights in it.

    It is None if no sweep or several did.
    """
    run = source.resolve()
    run = run.parent if (run.parent / "spec.json").is_file() else run
    found = []
    for manifest in run.parent.parent.glob("sweeps/*/plan.json"):
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
