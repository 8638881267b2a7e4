"""How many loops each sequence of a training step runs: a pure function of (seed, step)."""

import numpy as np
from numpy.typing import NDArray

from trainer.config import RecurrenceConfig

_DEPTH_STREAM = 1


def sample_recurrences(recurrence: RecurrenceConfig, *, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Draw T_i ~ Poisson(µ) clamped to >= 1 for each sequence of the global batch of `step`.

    The whole global batch is drawn at once, so that a rank's share is a slice of it and doesn't depend on how many
    ranks there are.

    Returns:
        Loops, shape [batch].
    """
    generator = np.random.default_rng([seed, step, _DEPTH_STREAM])
    return np.maximum(generator.poisson(recurrence.mean, size=batch), 1).astype(np.int64)
