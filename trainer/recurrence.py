"""How many loops each sequence of a training step runs: a pure function of (seed, step)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import RecurrenceConfig

_DEPTH_STREAM = 1


def sample_recurrences(
    recurrence: RecurrenceConfig, *, batch: int, seed: int, step: int, steps: int
) -> NDArray[np.int64]:
    """Draw T_i >= 1 for each sequence of the global batch of `step` (0-based, of `steps`).

    The whole global batch is drawn at once, so that a rank's share is a part of it and doesn't depend on how many
    ranks there are.

    Returns:
        Loops, shape [batch].
    """
    mean = recurrence.mean_at(step / steps)
    if recurrence.sampling == "fixed":
        return np.full(batch, round(mean), dtype=np.int64)
    generator = np.random.Generator(_bits(seed, step))
    drawn = generator.poisson(mean, size=batch if recurrence.sampling == "per-sequence" else 1)
    return np.broadcast_to(np.maximum(drawn, 1).astype(np.int64), (batch,)).copy()


class Draws:
    """The loops of many steps at once, as `sample_recurrences` draws them one by one, for plans of many short runs.

    To set a generator up costs more than to draw from it, and all means start from the same one: each is kept.
    """

    def __init__(self) -> None:
        self._starts: dict[tuple[int, int], Any] = {}

    def of(self, recurrence: RecurrenceConfig, *, batch: int, seed: int, steps: range) -> NDArray[np.int64]:
        """Loops of the sequences of `steps`, shape [steps, batch], or [steps, 1] where a batch shares its draw."""
        assert recurrence.curriculum_start is None, "under a curriculum, loops depend on how many steps a run has"
        if recurrence.sampling == "fixed":
            return np.full((len(steps), 1), recurrence.mean, dtype=np.int64)
        drawn = np.empty((len(steps), batch if recurrence.sampling == "per-sequence" else 1), dtype=np.int64)
        bits = np.random.PCG64()
        generator, size, mean = np.random.Generator(bits), drawn.shape[1], float(recurrence.mean)
        for row, step in zip(drawn, steps, strict=True):
            start = self._starts.get((seed, step))
            if start is None:
                start = self._starts[seed, step] = _bits(seed, step).state
            bits.state = start
            row[:] = generator.poisson(mean, size)
        return np.maximum(drawn, 1, out=drawn)


def _bits(seed: int, step: int) -> np.random.PCG64:
    return np.random.PCG64([seed, step, _DEPTH_STREAM])
