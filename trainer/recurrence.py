"""Loop counts of the sequences of a training step, a pure function of (seed, step), and the loss at their mean."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.config import LOG_NORMAL_SIGMA, ModelConfig, RecurrenceConfig

_DEPTH_STREAM = 1


def sample_recurrences(
    recurrence: RecurrenceConfig, *, batch: int, seed: int, step: int, steps: int
) -> NDArray[np.int64]:
    """Draw T_i >= 1 for each sequence of the global batch of `step` (0-based, of `steps`); see `DepthConfig`.

    The whole global batch is drawn at once, so the loops don't depend on the number of ranks.

    Returns:
        Loops, shape [batch].
    """
    mean = recurrence.mean_at(step / steps)
    if recurrence.sampling == "fixed":
        return np.full(batch, round(mean), dtype=np.int64)
    generator = np.random.Generator(_bit_generator(seed, step))
    loops = _drawn(recurrence, generator, mean, batch if recurrence.sampling == "per-sequence" else 1)
    return np.broadcast_to(loops, (batch,)).copy()


class RecurrenceSampler:
    """Fast sampler of the loops of many steps, equal to those of `sample_recurrences`, for planning many short runs.

    Seeding a generator costs more than drawing from it, and all means start from the same state, so states are kept.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], Any] = {}

    def sample(self, recurrence: RecurrenceConfig, *, batch: int, seed: int, steps: range) -> NDArray[np.int64]:
        """Return the loops of `steps`, shape [steps, batch], or [steps, 1] where all sequences of a batch share one."""
        assert recurrence.is_constant, "where the mean changes, loops depend on the number of steps of a run"
        if recurrence.sampling == "fixed":
            return np.full((len(steps), 1), recurrence.mean, dtype=np.int64)
        loops = np.empty((len(steps), batch if recurrence.sampling == "per-sequence" else 1), dtype=np.int64)
        bits = np.random.PCG64()
        generator, size, mean = np.random.Generator(bits), loops.shape[1], float(recurrence.mean)
        for row, step in zip(loops, steps, strict=True):
            state = self._states.get((seed, step))
            if state is None:
                state = self._states[seed, step] = _bit_generator(seed, step).state
            bits.state = state
            row[:] = _drawn(recurrence, generator, mean, size)
        return loops


def usual_recurrence(model: ModelConfig, recurrence: RecurrenceConfig) -> int:
    """Return the T that a model is used at unless another is asked for: µ_rec, rounded, and 1 for fixed depth."""
    return max(1, round(recurrence.mean)) if model.is_looped else 1


def recurrences_around(mean: float) -> tuple[int, ...]:
    """Return the whole numbers of loops T whose losses give the loss at T = `mean` loops: it, or the two around it."""
    low = math.floor(mean)
    return (low,) if low == mean else (low, low + 1)


def loss_at_mean(losses: Mapping[int, float], mean: float) -> float:
    """Return the loss in nats per token at T = `mean` loops, given those at `recurrences_around` it.

    A fraction, such as 1.5, is the loss where as many sequences run 2 loops, and the others 1, that the mean is 1.5.
    """
    low, share = math.floor(mean), mean - math.floor(mean)
    return losses[low] if share == 0 else (1 - share) * losses[low] + share * losses[low + 1]


def _drawn(recurrence: RecurrenceConfig, generator: np.random.Generator, mean: float, size: int) -> NDArray[np.int64]:
    """Draw loops around `mean`, [size]."""
    if recurrence.distribution == "poisson":
        return np.maximum(generator.poisson(mean, size), 1).astype(np.int64)
    rates = generator.lognormal(math.log(mean) - LOG_NORMAL_SIGMA**2 / 2, LOG_NORMAL_SIGMA, size)
    return 1 + generator.poisson(rates).astype(np.int64)


def _bit_generator(seed: int, step: int) -> np.random.PCG64:
    return np.random.PCG64([seed, step, _DEPTH_STREAM])
