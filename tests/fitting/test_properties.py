"""What must hold for any table: units, row order, noiseless truths, and noise that never makes a fit surer."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoloop.fitting import (
    HUBER,
    PUBLISHED_TRUTH,
    SQUARED,
    ChinchillaLaw,
    SixParameterLaw,
    TrainingLaw,
    bootstrap,
    fit_isoflop,
    point_estimate,
    published_cost_model,
    simulate_table,
)
from isoloop.fitting.tables.runs import law_data

# Seeded and without a deadline: the same examples on every machine, however slow.
STEADY = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
units = st.floats(min_value=-9, max_value=9).map(lambda power: 10.0**power)
seeds = st.integers(min_value=0, max_value=10_000)
laws = st.sampled_from([(ChinchillaLaw(), 5), (SixParameterLaw(), 6)])
truths = st.tuples(
    st.floats(min_value=0.5, max_value=3.0),  # E
    st.floats(min_value=0.05, max_value=1.0),  # N's term at the middle of the data, nats
    st.floats(min_value=0.05, max_value=1.0),  # D's term
    st.floats(min_value=0.15, max_value=0.9),  # alpha
    st.floats(min_value=0.15, max_value=0.9),  # beta
)
MIDDLE_N, MIDDLE_D = 1e9, 2e10


def dense_table(truth, seed, noise=0.0, rows=40):
    E, from_size, from_tokens, alpha, beta = truth
    rng = np.random.default_rng(seed)
    data = {"params": MIDDLE_N * 10 ** rng.uniform(-1, 1, rows), "tokens": MIDDLE_D * 10 ** rng.uniform(-1, 1, rows)}
    at = np.array([E, from_size * MIDDLE_N**alpha, from_tokens * MIDDLE_D**beta, alpha, beta])
    data["loss"] = ChinchillaLaw().loss(at, data) * np.exp(noise * rng.standard_normal(rows))
    return data, at


@STEADY
@given(truth=truths, seed=seeds)
@pytest.mark.parametrize("objective", [HUBER, SQUARED], ids=["huber", "squared"])
def test_noiseless_tables_give_back_the_truth(objective, truth, seed):
    data, at = dense_table(truth, seed)
    estimate = point_estimate(ChinchillaLaw(), data, objective)
    np.testing.assert_allclose(estimate.parameters[[0, 3, 4]], at[[0, 3, 4]], rtol=1e-6)
    np.testing.assert_allclose(estimate.law.loss(estimate.parameters, data), data["loss"], rtol=1e-9)


@STEADY
@given(law=laws, truth=truths, seed=seeds, of_size=units, of_tokens=units)
def test_units_change_the_parameters_as_algebra_says_and_predictions_not_at_all(law, truth, seed, of_size, of_tokens):
    law, _ = law
    data, _ = dense_table(truth, seed, noise=5e-3)
    other = {"params": data["params"] * of_size, "tokens": data["tokens"] * of_tokens, "loss": data["loss"]}
    before, after = point_estimate(law, data), point_estimate(law, other)
    assert after.objective == pytest.approx(before.objective, rel=1e-6)
    np.testing.assert_allclose(law.loss(after.parameters, other), law.loss(before.parameters, data), rtol=1e-5)
    same_scale = law.rescaled(after.parameters, {"params": 1 / of_size, "tokens": 1 / of_tokens})
    np.testing.assert_allclose(law.loss(same_scale, data), law.loss(before.parameters, data), rtol=1e-5)
    np.testing.assert_allclose(after.parameters[3:5], before.parameters[3:5], rtol=0.02)


@STEADY
@given(seed=seeds, unit=units)
def test_the_unit_of_compute_shifts_a_power_law_and_leaves_its_exponent(seed, unit):
    table, cost = simulate_table(seed=seed, recurrences=()), published_cost_model()
    scaled_costs = ("flops_per_token_fixed", "flops_per_token_forward_loop", "flops_per_token_backward_loop")
    other_cost = dataclasses.replace(cost, **{name: getattr(cost, name) * unit for name in scaled_costs})
    other = table.assign(**{name: table[name] * unit for name in ("budget", "flops", *scaled_costs)})
    before, after = fit_isoflop(table, cost, draws=0), fit_isoflop(other, other_cost, draws=0)
    for law in ("mean_recurrence_law", "tokens_law"):
        a, b = getattr(before, law), getattr(after, law)
        assert b.exponent == pytest.approx(a.exponent, abs=1e-6)
        assert b.at(4e18 * unit) == pytest.approx(a.at(4e18), rel=1e-6)


@STEADY
@given(truth=truths, seed=seeds, data=st.data())
def test_row_order_does_not_matter(truth, seed, data):
    table, _ = dense_table(truth, seed, noise=5e-3)
    order = data.draw(st.permutations(range(len(table["loss"]))))
    shuffled = {name: values[list(order)] for name, values in table.items()}
    before, after = point_estimate(ChinchillaLaw(), table), point_estimate(ChinchillaLaw(), shuffled)
    assert after.objective == pytest.approx(before.objective, rel=1e-9)
    np.testing.assert_allclose(after.parameters[3:], before.parameters[3:], rtol=1e-4)


@pytest.mark.parametrize("kind", ["parametric", "rows", "budgets"])
def test_more_noise_never_gives_a_narrower_interval_on_average(kind):
    """On average over 5 sweeps at each of three levels, of which each is three times the one before."""
    law, widths = TrainingLaw(), []
    for noise in (2e-4, 6e-4, 2e-3):
        truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=noise)
        spreads = []
        for seed in range(5):
            data = law_data(simulate_table(truth, seed=seed, recurrences=()))
            draws = bootstrap(point_estimate(law, data), data, draws=60, seed=seed, kind=kind)
            spreads.append(np.ptp(np.percentile(draws[:, 4], [2.5, 97.5])))
        widths.append(np.mean(spreads))
    assert all(later > before for before, later in pairwise(widths)), widths
