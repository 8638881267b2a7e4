"""Checkpoints of a run: one folder per step, written atomically.

    <run>/checkpoints/00000400/state.pt     weights, optimizer state, counts, best step so far, position in the text

All that is random in a run is a function of (seed, step). Packed rows follow from those before them, so their position
is kept, too; without it, they would be packed again from the start.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isoloop.trainer.run.best import BestStep

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_STATE_FORMAT = "isoloop-checkpoint-1"


def save_checkpoint(
    folder: Path,
    *,
    run_id: str,
    step: int,
    model: "nn.Module",
    optimizers: "list[Optimizer]",
    counts: dict[str, float],
    best: BestStep | None = None,
    position: dict[str, Any] | None = None,
    keep: int | None = 2,
) -> Path:
    """Write the state after `step` steps under `folder`, whole or not at all; then remove older ones.

    The newest `keep` stay, and all of them if it is None.

    Raises:
        OSError: the disk is full, or the like; older checkpoints are unchanged.
    """
    import torch

    # Write into a folder beside the final one, then rename it
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{step:08d}"
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    state = {
        "format": _STATE_FORMAT,
        "run_id": run_id,
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "counts": counts,
        "best": None if best is None else best.content(),
        "position": position,
    }
    try:
        with (building / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(building, final)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer hides it behind its own error
            raise error.__context__ from None
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)

    # Remove older checkpoints
    for old in checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)
    return final


def drop_checkpoints(folder: Path, *, unfinished_only: bool = False) -> None:
    """Remove the checkpoints under `folder`, or only those that a killed process left unfinished."""
    for path in folder.glob(".building-*" if unfinished_only else "*"):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


class SavedState(NamedTuple):
    """The part of a checkpoint that isn't loaded into a model or an optimizer."""

    steps: int
    counts: dict[str, float]
    best: BestStep | None = None
    position: dict[str, Any] | None = None


def load_checkpoint(checkpoint: Path, *, run_id: str, model: "nn.Module", optimizers: "list[Optimizer]") -> SavedState:
    """Load one checkpoint into `model` and `optimizers`, and return the rest of it.

    Raises:
        ValueError: the checkpoint is torn, isn't one of ours, or belongs to another run.
    """
    import torch

    file = checkpoint / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        is_known, owner = state["format"] == _STATE_FORMAT, state["run_id"]
    except Exception as error:  # torn files make the unpickler fail in many ways
        raise ValueError(
            f"a checkpoint must hold a whole state.pt, but {file} can't be read ({error}); delete it"
        ) from error
    if not is_known or owner != run_id:
        raise ValueError(f"a checkpoint must belong to run {run_id}, but {file} is of {owner}; move or delete it")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    best = state.get("best")  # older versions wrote none
    best = None if best is None else BestStep(**best)
    return SavedState(state["step"], state["counts"], best, state.get("position"))
