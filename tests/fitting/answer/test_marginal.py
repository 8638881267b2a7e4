"""What the next FLOPs buy: equal to closed forms, decided where it is and undecided where it is not."""

from dataclasses import replace

import numpy as np
import pytest

from isoloop.fitting import fit_law
from isoloop.fitting.answer.marginal import best_model, growth, marginal, model_at
from isoloop.fitting.selection.mixture import law_mixture
from tests.fitting.answer.surfaces import ISO_DEPTH, SYMMETRIC, dense_surface, looped_surface
from tests.run_tables import CHINCHILLA, dense_table

DEEP = np.array([*ISO_DEPTH[:5], 1.0])
"""A law by which a loop is worth as much as layers of its own, so that best models have many."""


def chinchilla_loss(params, tokens, vector=CHINCHILLA):
    E, A, B, alpha, beta = vector
    return E + A * params**-alpha + B * tokens**-beta


def test_gains_of_dense_models_are_those_of_the_closed_form():
    surface = dense_surface(scatter=0.01)
    start = model_at(surface, params=1e9, mean_recurrence=None, tokens=1e10)
    assert start.flops == pytest.approx(6e19)
    step = marginal(surface, start, percent=10)
    tokens, params = step.axes
    assert (tokens.axis, params.axis) == ("tokens", "params")
    now = chinchilla_loss(1e9, 1e10)
    assert tokens.nats.value == pytest.approx(now - chinchilla_loss(1e9, 1.1e10))
    assert params.nats.value == pytest.approx(now - chinchilla_loss(1.1e9, 1e10))
    assert params.model.params == pytest.approx(1.1e9)
    for gain in (*step.axes, step.more_flops):
        assert gain.model.flops == pytest.approx(6.6e19)
        low, high = gain.nats.interval
        assert low < gain.nats.value < high
    # The best split, by Hoffmann et al. 2022, equation 4.
    _, A, B, alpha, beta = CHINCHILLA
    best = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (6.6e19 / 6) ** (beta / (alpha + beta))
    assert step.more_flops.model.params == pytest.approx(best, rel=1e-4)
    assert step.more_flops.nats.value == pytest.approx(now - chinchilla_loss(best, 6.6e19 / 6 / best))
    assert step.same_flops.nats.value < step.more_flops.nats.value


def test_an_axis_wins_by_chance_where_both_are_worth_the_same_and_surely_far_from_there():
    surface = dense_surface(SYMMETRIC, scatter=0.01, draws=1000)
    even = marginal(surface, model_at(surface, params=4e9, mean_recurrence=None, tokens=4e9))
    assert [gain.wins for gain in even.axes] == pytest.approx([0.5, 0.5], abs=0.06)
    assert even.axes[0].nats.value == pytest.approx(even.axes[1].nats.value)
    short = marginal(surface, model_at(surface, params=4e10, mean_recurrence=None, tokens=4e8))
    assert short.winner.axis == "tokens"
    assert short.winner.wins > 0.99
    small = marginal(surface, model_at(surface, params=4e8, mean_recurrence=None, tokens=4e10))
    assert small.winner.axis == "params"
    assert small.winner.wins > 0.99


def test_gains_of_looped_models_of_several_sizes_are_those_of_their_law():
    surface = looped_surface()
    start = model_at(surface, params=2e8, mean_recurrence=4.0, tokens=1e10)
    step = marginal(surface, start, percent=20)
    E, A, B, alpha, beta, phi = ISO_DEPTH

    def loss(params, loops, tokens):
        return E + A * (params / 2 * (1 + loops**phi)) ** -alpha + B * tokens**-beta

    assert start.flops == pytest.approx(3 * 2e8 * (1 + 4) * 1e10)
    assert [gain.axis for gain in step.axes] == ["mean_recurrence", "tokens", "params"]
    loops, tokens, params = step.axes
    assert loops.model.mean_recurrence == pytest.approx(5.0)  # 1 + mu grows by a fifth
    assert params.model.params == pytest.approx(2.4e8)
    now = loss(2e8, 4, 1e10)
    assert loops.nats.value == pytest.approx(now - loss(2e8, 5, 1e10))
    assert tokens.nats.value == pytest.approx(now - loss(2e8, 4, 1.2e10))
    assert params.nats.value == pytest.approx(now - loss(2.4e8, 4, 1e10))
    assert all(gain.model.flops == pytest.approx(1.2 * start.flops) for gain in (*step.axes, step.more_flops))


def test_at_a_best_model_every_axis_is_worth_the_same():
    for surface in (dense_surface(), looped_surface(DEEP, one_size=True)):
        best, _, _ = best_model(surface, 1e20)
        step = marginal(surface, best, percent=0.1)
        assert step.axes[0].nats.value == pytest.approx(step.axes[1].nats.value, rel=5e-3)
        assert step.more_flops.nats.value == pytest.approx(step.axes[0].nats.value, rel=5e-3)
        assert step.same_flops.nats.value == pytest.approx(0, abs=1e-9)


def test_best_models_grow_as_the_exponents_of_the_law_say():
    grown = growth(dense_surface(scatter=0.01), 1e20)
    alpha, beta = CHINCHILLA[3:]
    exponents = {"params": beta / (alpha + beta), "tokens": alpha / (alpha + beta)}
    for axis, exponent in exponents.items():
        assert grown.factors[axis].value == pytest.approx(10**exponent, rel=1e-4)
        assert grown.shares[axis].value == pytest.approx(exponent, rel=1e-4)
        low, high = grown.shares[axis].interval
        assert low < exponent < high
    assert sum(grown.leads.values()) == pytest.approx(1)
    assert grown.leads["tokens"] > 0.95
    looped = growth(looped_surface(), 1e20)
    assert "mean_recurrence" not in looped.factors  # phi < 1 where a size costs as a loop does: one loop is best
    assert looped.shares["params"].value + looped.shares["tokens"].value == pytest.approx(1)
    one_size = growth(looped_surface(DEEP, one_size=True), 1e20)
    assert sum(share.value for share in one_size.shares.values()) == pytest.approx(1)


def test_intervals_of_gains_hold_the_truth_of_simulated_tables():
    held, tables, known = 0, 20, dense_surface()
    truth = chinchilla_loss(5e8, 2e10) - np.array([chinchilla_loss(5e8, 2.2e10), chinchilla_loss(5.5e8, 2e10)])
    for seed in range(tables):
        table = dense_table(seed=seed)
        data = {name: table[name].to_numpy() for name in ("params", "tokens", "loss")}
        law = fit_law("chinchilla", data, draws=100, seed=0)
        surface = replace(known, laws=law_mixture([law]))
        step = marginal(surface, model_at(surface, params=5e8, mean_recurrence=None, tokens=2e10))
        for value, gain in zip(truth, step.axes, strict=True):
            low, high = gain.nats.interval
            held += low <= value <= high
    assert held >= 0.85 * 2 * tables


@pytest.mark.parametrize("percent", [0, -5, 2000, float("nan")])
def test_a_percentage_that_is_none_is_refused(percent):
    surface = dense_surface()
    with pytest.raises(ValueError, match="percent must be"):
        marginal(surface, model_at(surface, params=1e9, mean_recurrence=None, tokens=1e10), percent=percent)
