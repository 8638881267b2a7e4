import numpy as np

from trainer.config import RecurrenceConfig
from trainer.recurrence import sample_recurrences


def draw(mean=4, batch=4000, seed=0, step=0):
    return sample_recurrences(RecurrenceConfig(mean=mean), batch=batch, seed=seed, step=step)


def test_a_function_of_seed_and_step_alone():
    np.testing.assert_array_equal(draw(seed=1, step=7), draw(seed=1, step=7))
    assert (draw(seed=1, step=7) != draw(seed=1, step=8)).any()
    assert (draw(seed=1, step=7) != draw(seed=2, step=7)).any()


def test_poisson_clamped_at_one():
    loops = draw(mean=1)
    assert loops.min() == 1
    # P(T = 1) is P(0) + P(1) = 2/e before the clamp moves 0 to 1.
    assert abs((loops == 1).mean() - 2 / np.e) < 0.03
    assert abs(draw(mean=8).var() - 8) < 0.8
