"""Best models under limits, held against brute force on closed-form laws: each limit alone and together."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import simulate_table
from isoloop.fitting.answer.constrained import best_under
from isoloop.fitting.answer.device import DeviceNeeds, Held, TrainingTime
from isoloop.fitting.answer.limits import Limits
from isoloop.fitting.cost.family import FamilyMember, ModelFamily
from isoloop.fitting.cost.looped import MeasuredCost
from isoloop.fitting.selection.mixture import law_mixture
from tests.fitting.answer.surfaces import ISO_DEPTH, TEST_TIME, dense_surface, known_law, looped_surface
from tests.run_tables import CHINCHILLA, dense_table

C = 1e20
DEEP = np.array([*ISO_DEPTH[:5], 1.0])
"""A law by which a loop is worth as much as layers of its own, so that best models have many."""
E, A, B, ALPHA, BETA = CHINCHILLA


def needs(**settings):
    """Return needs that grow in proportion to the size, 1e8 and 1e9 parameters."""
    held = tuple(
        Held(weights=size, cache_fixed=size * 1e-5, cache_per_loop=size * 1e-5, activations=size * 2e-5)
        for size in (1e8, 1e9)
    )
    return DeviceNeeds(sizes=(1e8, 1e9), held=held, **settings)


def looped_loss(params, loops, tokens, recurrence=None, vector=DEEP):
    e, a, b, alpha, beta, phi = vector
    at_mean = e + a * (params / 2 * (1 + loops**phi)) ** -alpha + b * tokens**-beta
    Z, z = TEST_TIME
    return at_mean if recurrence is None else at_mean + Z * (np.exp(-z * recurrence / loops) - np.exp(-z))


def test_without_limits_and_with_loose_ones_the_best_model_is_that_of_the_budget():
    surface = dense_surface(scatter=0.01)
    optimum = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (C / 6) ** (BETA / (ALPHA + BETA))
    found = best_under(surface, Limits(unique_tokens=1e15, seconds=1e15, flops_per_second=1e12), C)
    for each in (found.best, found.unlimited, *found.alone.values()):
        assert each.model.params == pytest.approx(optimum, rel=1e-4)
        assert each.model.flops == pytest.approx(C)
    assert found.best.binding == ("flops",)
    assert found.costs["all"].value == pytest.approx(0, abs=1e-9)


def test_tokens_to_be_served_make_dense_models_smaller_as_a_grid_says():
    served = 5e11
    found = best_under(dense_surface(scatter=0.01), Limits(served_tokens=served), C)
    params = np.geomspace(1e7, 1e10, 200_001)
    tokens = (C - 2 * params * served) / (6 * params)
    losses = np.where(tokens > 0, E + A * params**-ALPHA + B * np.abs(tokens) ** -BETA, np.inf)
    best = losses.argmin()
    assert found.best.model.params == pytest.approx(params[best], rel=1e-3)
    assert found.best.loss.value == pytest.approx(losses[best], rel=1e-9)
    assert found.best.flops == pytest.approx(C)
    assert found.best.model.params < found.unlimited.model.params
    # The training-optimal model of that loss, by its closed form: its training takes fewer FLOPs, and all of it more.
    budgets = np.geomspace(C / 100, C, 200_001)
    optimal = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budgets / 6) ** (BETA / (ALPHA + BETA))
    reached = (E + A * optimal**-ALPHA + B * (budgets / 6 / optimal) ** -BETA <= losses[best]).argmax()
    total = budgets[reached] + 2 * optimal[reached] * served
    assert found.saving.value == pytest.approx(1 - C / total, rel=1e-2)
    low, high = found.saving.interval
    assert 0 < low <= found.saving.value <= high
    assert found.training_optimal.flops < found.best.model.flops


def test_tokens_to_be_served_choose_the_loops_at_test_time_as_a_grid_says():
    surface, served = looped_surface(DEEP, one_size=True, scatter=0.01), 1e11
    found = best_under(surface, Limits(served_tokens=served), C)
    loops, tested = np.meshgrid(np.geomspace(1, 1024, 20_001), np.arange(1, 33))
    params = 1e8
    tokens = (C - served * (params + params * tested)) / (3 * params * (1 + loops))
    losses = np.where(tokens > 0, looped_loss(params, loops, np.maximum(tokens, 1.0), tested), np.inf)
    best = np.unravel_index(losses.argmin(), losses.shape)
    assert found.best.recurrence == tested[best]
    assert found.best.model.mean_recurrence == pytest.approx(loops[best], rel=1e-2)
    assert found.best.loss.value == pytest.approx(losses[best], rel=1e-8)
    assert found.best.flops == pytest.approx(C)
    low, high = found.best.spans["recurrence"]
    assert low <= found.best.recurrence <= high


def test_memory_is_filled_exactly_by_the_largest_model_and_shared_between_size_and_loops():
    vector = np.array([*ISO_DEPTH[:5], 0.8])
    surface = looped_surface(vector, scatter=0.01)
    limits = Limits(memory=4e8, context=10_000, needs=needs())
    found = best_under(surface, limits, C)
    held = found.best
    assert held.memory == pytest.approx(4e8, rel=1e-9)
    assert "memory" in held.binding
    per_number = 1 + 10_000 * (1e-5 + 1e-5 * held.recurrence + 2e-5)
    assert held.memory == pytest.approx(2 * held.model.params * per_number)
    assert found.costs["all"].value > 0
    assert held.model.params < found.unlimited.model.params
    assert held.model.mean_recurrence > found.unlimited.model.mean_recurrence  # loops take the place of parameters
    # Brute force over sizes, loops and T; the fewest T within a thousandth of a nat of the best is chosen
    tested = np.arange(1, 33)[:, None, None]
    loops = np.geomspace(1, 1024, 401)[None, :, None]
    cap = 4e8 / 2 / (1 + 10_000 * (3e-5 + 1e-5 * tested))
    params = np.exp(np.linspace(math.log(1e8 / 16), np.log(cap[:, 0, 0]), 401)).T[:, None, :]
    losses = looped_loss(params, loops, C / (3 * params * (1 + loops)), tested, vector).min(axis=(1, 2))
    best = int(np.flatnonzero(losses <= losses.min() + 1e-3)[0])
    assert held.recurrence == best + 1
    assert held.loss.value == pytest.approx(losses[best], abs=2e-5)


def test_memory_below_the_smallest_model_is_refused_with_what_it_needs():
    with pytest.raises(ValueError, match=r"they leave none: the smallest model holds .* bytes at one loop; loosen one"):
        best_under(looped_surface(DEEP), Limits(memory=1e6, needs=needs()), C)
    with pytest.raises(ValueError, match=r"serving 1e.18 tokens by the smallest model at one loop takes"):
        best_under(looped_surface(DEEP), Limits(served_tokens=1e18), C)


def test_a_device_on_which_loops_take_twice_the_time_moves_the_best_model_to_fewer_loops():
    surface = looped_surface(DEEP, one_size=True, scatter=0.01)
    alike = TrainingTime(fixed=3e8 / 1e14, per_loop=3e8 / 1e14)
    loops = np.geomspace(1, 1024, 200_001)
    best = {}
    for name, per_loop in (("alike", 1.0), ("twice", 2.0)):
        time = replace(alike, per_loop=per_loop * alike.per_loop)
        limits = Limits(seconds=5e5, needs=DeviceNeeds(sizes=(1e8,), times=(time,)), devices=2)
        found = best_under(surface, limits, None).best
        tokens = 2 * 5e5 / (time.fixed + time.per_loop * loops)
        losses = looped_loss(1e8, loops, tokens)
        assert found.model.mean_recurrence == pytest.approx(loops[losses.argmin()], rel=1e-3)
        assert found.seconds == pytest.approx(5e5)
        assert found.binding == ("seconds",)
        best[name] = found.model.mean_recurrence
    assert best["twice"] < best["alike"]
    # At FLOPs per second loops and width cost alike
    assert best["alike"] == pytest.approx(
        best_under(surface, Limits(seconds=5e5, devices=2, flops_per_second=1e14), None).best.model.mean_recurrence,
        rel=1e-4,
    )


def test_text_that_runs_out_ends_the_tokens_or_is_worth_less_when_repeated():
    surface, unique = dense_surface(scatter=0.01), 2e9
    fresh = best_under(surface, Limits(unique_tokens=unique), C)
    assert fresh.best.model.tokens == pytest.approx(unique)
    assert fresh.best.model.params == pytest.approx(C / 6 / unique, rel=1e-6)
    assert fresh.best.binding == ("flops", "unique_tokens")
    repeated = best_under(surface, Limits(unique_tokens=unique, repetition=15.4), C)
    params = np.geomspace(1e8, 1e11, 200_001)
    repeats = np.maximum(C / 6 / params / unique - 1, 0)
    worth = np.where(repeats > 0, unique * (1 + 15.4 * (1 - np.exp(-repeats / 15.4))), C / 6 / params)
    losses = E + A * params**-ALPHA + B * worth**-BETA
    assert repeated.best.model.params == pytest.approx(params[losses.argmin()], rel=1e-3)
    assert repeated.best.loss.value == pytest.approx(losses.min())
    assert fresh.unlimited.loss.value < repeated.best.loss.value < fresh.best.loss.value


def test_a_law_of_repeated_text_takes_the_place_of_the_assumption():
    fitted = known_law("effective-tokens", np.array([*CHINCHILLA, 15.4]), scatter=0.01, draws=20)
    surface = replace(dense_surface(), laws=law_mixture([fitted]))
    by_law = best_under(surface, Limits(unique_tokens=2e9), C)
    assumed = best_under(dense_surface(draws=20), Limits(unique_tokens=2e9, repetition=15.4), C)
    assert by_law.best.model.tokens > 2e9
    assert by_law.best.model.params == pytest.approx(assumed.best.model.params, rel=1e-6)
    assert by_law.best.loss.value == pytest.approx(assumed.best.loss.value)
    assert by_law.unlimited.model.tokens > by_law.best.model.tokens  # without the limit all text is new


def test_limits_together_cost_at_least_what_each_costs_alone():
    surface = looped_surface(DEEP, scatter=0.01, draws=40)
    limits = Limits(memory=1e9, context=10_000, unique_tokens=3e9, needs=needs())
    found = best_under(surface, limits, C)
    assert set(found.alone) == {"memory", "unique_tokens"}
    assert found.costs["all"].value >= max(found.costs[name].value for name in found.alone) - 1e-9
    assert found.best.model.tokens <= 3e9 * (1 + 1e-9)
    assert found.best.memory <= 1e9 * (1 + 1e-9)
    for cost in found.costs.values():
        assert cost.interval[0] <= cost.value <= cost.interval[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory": -1}, "memory must be positive"),
        ({"served_tokens": float("nan")}, "served_tokens must be positive and finite"),
        ({"repetition": 15.4}, "there are no unique_tokens"),
        ({"memory": 1e9}, "got none; name a run table"),
        ({"seconds": 10, "needs": DeviceNeeds(sizes=(), why_no_time="the runs were simulated")}, "runs were simulated"),
    ],
)
def test_limits_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Limits(**given)


def test_needs_come_from_the_columns_of_the_runs():
    table = simulate_table(mean_recurrences=(1, 2, 4, 8), recurrences=())
    bare = DeviceNeeds.of_table(table)
    assert bare.why_no_time == "the table has no column `seconds`"
    with pytest.raises(ValueError, match="needs the columns inference_weights"):
        bare.memory(1e8, 4, context=2048, batch=1, bytes_per_number=2)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, len(table)))
    full = table.assign(
        simulated=False, seconds=table["tokens"] * (2e-6 + 5e-7 * table["mean_recurrence"]) * noise,
        inference_weights=1.4e8, inference_cache_per_token_fixed=6144, inference_cache_per_token_loop=3072,
        inference_activations_per_token=13_824,
    )  # fmt: skip
    told = DeviceNeeds.of_table(full)
    assert told.seconds_per_token(1e8, np.array([1.0, 8.0])) == pytest.approx([2.5e-6, 6e-6], rel=0.03)
    assert told.times[0].scatter == pytest.approx(0.01, rel=0.6)
    bytes_held = told.memory(1e8, np.array([1.0, 8.0]), context=100, batch=2, bytes_per_number=4)
    assert bytes_held == pytest.approx(4 * (1.4e8 + 200 * (6144 + 3072 * np.array([1, 8]) + 13_824)))
    dense = DeviceNeeds.of_table(dense_table().assign(simulated=False, status="finished"))
    assert dense.memory(1e9, 1, context=2048, batch=1, bytes_per_number=2) == pytest.approx(2e9)


def test_a_table_without_cost_model_can_not_serve():
    surface = looped_surface(one_size=True)
    measured = pd.DataFrame({"mean_recurrence": [1.0, 2.0], "tokens": 1e9, "flops": [1e18, 2e18], "params": 1e8})
    cost = MeasuredCost.from_table(measured.drop(columns="params"))
    family = ModelFamily(members=(FamilyMember(label="", cost=cost),))
    with pytest.raises(ValueError, match="FLOPs of a forward pass need the columns of the cost model"):
        best_under(replace(surface, family=family), Limits(served_tokens=1e9), C)
