"""How many loops each sequence of a training step runs: a pure function of (seed, step)."""

import numpy as np
from numpy.typing import NDArray

from trainer.config import RecurrenceConfig

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
    generator = np.random.default_rng([seed, step, _DEPTH_STREAM])
    drawn = generator.poisson(mean, size=batch if recurrence.sampling == "per-sequence" else 1)
    return np.broadcast_to(np.maximum(drawn, 1).astype(np.int64), (batch,)).copy()
