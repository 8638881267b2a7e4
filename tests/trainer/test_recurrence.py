import math

import numpy as np
import pytest
from pydantic import ValidationError

from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.recurrence import RecurrenceSampler, sample_recurrences


def draw(mean=4, batch=4000, seed=0, step=0, steps=100, **config):
    recurrence = RecurrenceConfig(mean=mean, **config)
    return sample_recurrences(recurrence, batch=batch, seed=seed, step=step, steps=steps)


@pytest.mark.parametrize("sampling", ["per-sequence", "per-batch"])
def test_a_function_of_seed_and_step_alone(sampling):
    def several(seed, first):
        return np.array([draw(mean=8, seed=seed, step=first + s, batch=5, sampling=sampling) for s in range(20)])

    np.testing.assert_array_equal(several(1, 7), several(1, 7))
    assert (several(1, 7) != several(1, 8)).any()
    assert (several(1, 7) != several(2, 7)).any()


@pytest.mark.parametrize("mean", [1, 3, 8])
@pytest.mark.parametrize("sampling", ["per-sequence", "per-batch"])
def test_poisson_clamped_at_one(mean, sampling):
    """Every frequency within five standard errors of the Poisson's, whose 0 has moved to 1."""
    if sampling == "per-sequence":
        loops = draw(mean=mean, batch=4_000)
    else:
        loops = np.array([draw(mean=mean, batch=1, step=step, sampling=sampling)[0] for step in range(4_000)])
    assert loops.min() == 1
    for count in range(1, 3 * mean + 4):
        probability = math.exp(-mean) * mean**count / math.factorial(count) + (math.exp(-mean) if count == 1 else 0)
        error = math.sqrt(probability * (1 - probability) / len(loops))
        assert abs((loops == count).mean() - probability) < 5 * error + 1e-6, count


@pytest.mark.parametrize("mean", [1.5, 8])
def test_log_normal_poisson_has_the_published_moments(mean):
    """T - 1 is Poisson about a log-normal rate of mean µ: its variance is µ + µ² (exp(σ²) - 1), σ = .5."""
    loops = draw(mean=mean, batch=100_000, distribution="log-normal-poisson")
    assert loops.min() == 1
    assert loops.mean() == pytest.approx(mean + 1, rel=0.02)
    assert loops.var() == pytest.approx(mean + mean**2 * (math.exp(0.25) - 1), rel=0.05)


def test_one_draw_for_the_batch():
    assert len({tuple(draw(mean=8, batch=6, step=step, sampling="per-batch")) for step in range(30)}) > 3
    assert all(len(set(draw(mean=8, batch=6, step=step, sampling="per-batch"))) == 1 for step in range(30))


@pytest.mark.parametrize(
    ("sampling", "distribution"),
    [
        ("per-sequence", "poisson"),
        ("per-batch", "poisson"),
        ("fixed", "poisson"),
        ("per-sequence", "log-normal-poisson"),
        ("per-batch", "log-normal-poisson"),
    ],
)
def test_many_steps_at_once_are_drawn_as_one_by_one(sampling, distribution):
    """Whatever was drawn before, for other means as well."""
    draws = RecurrenceSampler()
    for mean, seed, steps in [(3, 0, range(12)), (8, 0, range(4, 20)), (3, 1, range(12)), (20, 0, range(5))]:
        recurrence = RecurrenceConfig(mean=mean, sampling=sampling, distribution=distribution)
        found = draws.sample(recurrence, batch=6, seed=seed, steps=steps)
        kind = {"sampling": sampling, "distribution": distribution}
        one_by_one = [draw(mean=mean, batch=6, seed=seed, step=step, **kind) for step in steps]
        np.testing.assert_array_equal(np.broadcast_to(found, (len(steps), 6)), one_by_one)


def test_fixed():
    np.testing.assert_array_equal(draw(mean=5, batch=4, sampling="fixed"), [5, 5, 5, 5])


def test_a_curriculum_grows_to_the_mean_and_stays():
    config = RecurrenceConfig(mean=9, curriculum_start=1, curriculum_fraction=0.5)
    assert [config.mean_at(progress) for progress in (0, 0.25, 0.5, 0.9)] == [1, 5, 9, 9]
    growing = {"mean": 9, "curriculum_start": 1, "curriculum_fraction": 0.5}
    means = [draw(step=step, **growing).mean() for step in (0, 25, 50, 99)]
    assert means == pytest.approx([1 + math.exp(-1), 5, 9, 9], abs=0.25)
    assert [draw(step=step, batch=1, sampling="fixed", **growing)[0] for step in (0, 25, 50)] == [1, 5, 9]


def test_a_curriculum_grows_with_the_root_of_the_steps():
    config = RecurrenceConfig(mean=9, curriculum_start=1, curriculum_fraction=0.5, curriculum_shape="sqrt")
    assert [config.mean_at(progress) for progress in (0, 0.125, 0.5, 0.9)] == [1, 5, 9, 9]


def test_phases_have_their_means_and_then_the_rest():
    config = RecurrenceConfig(mean=2, phases=({"until": 0.5, "mean": 1}, {"until": 0.7, "mean": 1.5}))
    assert [config.mean_at(progress) for progress in (0, 0.49, 0.5, 0.69, 0.7, 0.99)] == [1, 1, 1.5, 1.5, 2, 2]


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"mean": 1.5, "sampling": "fixed"}, "whole loops, but µ_rec is 1.5"),
        (
            {"mean": 2, "sampling": "fixed", "phases": ({"until": 0.5, "mean": 1.5},)},
            r"the phases have the means \[1.5\]",
        ),
        (
            {"mean": 2, "sampling": "fixed", "distribution": "log-normal-poisson"},
            "a distribution is for loops that are",
        ),
        ({"mean": 2, "phases": ({"until": 0.5, "mean": 1}, {"until": 0.3, "mean": 4})}, "one after the other"),
        (
            {"mean": 2, "phases": ({"until": 0.5, "mean": 1},), "curriculum_start": 1, "curriculum_fraction": 0.5},
            "phases or a curriculum",
        ),
        ({"mean": 2, "curriculum_shape": "sqrt"}, "is for a curriculum"),
        ({"mean": 0.5}, "greater than or equal to 1"),
    ],
)
def test_depths_that_contradict_themselves_are_refused(depth, message):
    with pytest.raises(ValidationError, match=message):
        RecurrenceConfig(**depth)


def test_whole_means_are_integers_and_new_fields_no_part_of_an_older_identity():
    assert RecurrenceConfig(mean=2.0).model_dump_json() == RecurrenceConfig(mean=2).model_dump_json()
    assert RecurrenceConfig(mean=2.5).mean == 2.5
    assert not {"distribution", "curriculum_shape", "phases"} & RecurrenceConfig().model_dump().keys()
    round_trip = RecurrenceConfig(mean=2, phases=({"until": 0.5, "mean": 1.5},))
    assert RecurrenceConfig.model_validate_json(round_trip.model_dump_json()) == round_trip


@pytest.mark.parametrize("half", [{"curriculum_start": 1}, {"curriculum_fraction": 0.5}])
def test_half_a_curriculum_is_refused(half):
    with pytest.raises(ValidationError, match="needs both its start and its fraction"):
        RecurrenceConfig(mean=4, **half)
