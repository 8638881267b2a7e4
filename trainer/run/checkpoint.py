"""Checkpoints of a run: one folder per step, written atomically.

    <run>/checkpoints/00000400/state.pt     weights, optimizer state, counts, best step so far, position in the text

All that is random in a run is a function of (seed, step). Packed rows follow from those before them, so their position
is kept, too; without it, they would be packed again from the start.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from isoloop.trainer.run.best import BestStep

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

_STATE_FORMAT = "isoloop-checkpoint-1"
# Without an interval of the user's own, checkpoints are this many seconds apart, or so far that writing them takes this
# share of the time.
SHORTEST_INTERVAL = 30.0
WRITING_SHARE = 0.03


def _save_checkpoint(folder: Path, state: dict[str, Any], keep: int | None) -> None:
    """Write `state` under `folder`, whole or not at all; then remove older checkpoints. See `CheckpointWriter.save`."""
    import torch

    # Write into a folder beside the final one, then rename it
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{state['step']:08d}"
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
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


class CheckpointWriter:
    """Writes a run's checkpoints: beside the training where it runs on an accelerator, one at a time.

    There a checkpoint is first copied into host memory, pinned if the accelerator is a GPU, and a thread writes the
    copy. On the CPU, which has no other processor to write with, it is written at once, without a copy. An error of the
    thread is raised by the next call of any method, or at the end of the `with` block.

    Args:
        device: the torch device of model and optimizers.
        interval: seconds between two checkpoints; None: as long as writing them takes `WRITING_SHARE` of the time, but
            at least `SHORTEST_INTERVAL`.
    """

    def __init__(self, device: str, interval: float | None = None) -> None:
        self.in_thread = not device.startswith("cpu")
        self.interval = interval
        self.write_seconds = 0.0
        self._last = time.monotonic()
        self._pending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last checkpoint. If the block has raised, its error stays, and one of the thread is a note."""
        self._pool.shutdown()
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            error.add_note(f"a checkpoint was not written either: {own!r}")

    def is_due(self) -> bool:
        """Return whether the time for the next checkpoint has come. Raises an error of the thread as soon as known."""
        if self._pending is not None and self._pending.done():
            self.wait()
        interval = self.interval or max(SHORTEST_INTERVAL, self.write_seconds / WRITING_SHARE)
        return time.monotonic() - self._last >= interval

    def save(
        self,
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
    ) -> None:
        """Save the state after `step` steps under `folder`, whole or not at all, once the one before is written.

        The newest `keep` stay. If it is None, the state is for other runs: all of them stay, it is on the disk when
        this returns, and the interval goes on.

        Raises:
            OSError: the disk is full, or the like; older checkpoints are unchanged.
        """
        self.wait()
        state = {
            "format": _STATE_FORMAT,
            "run_id": run_id,
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "counts": dict(counts),
            "best": None if best is None else best.content(),
            "position": position,
        }
        if self.in_thread:
            state, copied = _copy_to_host(state)
            self._pending = self._pool.submit(self._write, folder, state, keep, copied)
        else:
            self._write(folder, state, keep, lambda: None)
        if keep is None:
            self.wait()
        else:
            self._last = time.monotonic()

    def wait(self) -> None:
        """Wait until what was saved last is on the disk, and raise the error if it isn't."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, folder: Path, state: dict[str, Any], keep: int | None, copied: Callable[[], object]) -> None:
        copied()
        start = time.monotonic()
        _save_checkpoint(folder, state, keep)
        self.write_seconds = time.monotonic() - start


def _copy_to_host(state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Copy the tensors of `state` into host memory; return the copy and a function that waits until it is complete.

    The copies are queued on the GPU's stream before the next step, which therefore can't change what is copied.
    """
    import torch
    from torch.utils._pytree import tree_map_only

    devices = set()

    def copy(tensor: "Tensor") -> "Tensor":
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            return tensor.to("cpu", copy=True)
        devices.add(tensor.device)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    own = {part: tree_map_only(torch.Tensor, copy, state[part]) for part in ("model", "optimizers")}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]
    return {**state, **own}, lambda: [event.synchronize() for event in events]


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


def load_checkpoint(
    checkpoint: Path, *, run_id: str, model: "nn.Module", optimizers: "list[Optimizer] | None" = None
) -> SavedState:
    """Load one checkpoint into `model` and, unless only the model is wanted, `optimizers`; return the rest of it.

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
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True) if optimizers is not None else ():
        optimizer.load_state_dict(saved)
    best = state.get("best")  # older versions wrote none
    best = None if best is None else BestStep(**best)
    return SavedState(state["step"], state["counts"], best, state.get("position"))
