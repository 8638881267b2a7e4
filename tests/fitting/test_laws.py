"""One contract for every law, and the compute-optimal split."""

import numpy as np
import pytest

from fitting import LAWS, PUBLISHED_TRUTH, TrainingLaw, law_named, published_cost_model
from fitting.simulate import poisson_loops

EXAMPLES = {
    "training": [2.28, 32.3, 34.65, 0.26, 0.19],
    "test-time": [2.9, 0.84, 0.9],
    "unified": [2.28, 32.3, 34.65, 0.84, 0.26, 0.19, 7.5],
}
DATA = {
    "effective_params": np.array([42e6, 85e6, 1.4e8, 2e8]),
    "tokens": np.array([1e9, 3e9, 2e9, 8e9]),
    "mean_recurrence": np.array([1.0, 4.0, 8.0, 12.0]),
    "recurrence": np.array([1.0, 2.0, 8.0, 20.0]),
}


@pytest.fixture(params=LAWS, ids=lambda law: law.name)
def law(request):
    return request.param


def test_gradient_is_the_derivative_of_the_loss(law):
    at = np.array(EXAMPLES[law.name])
    gradient = law.gradient(at, DATA)
    assert gradient.shape == (4, len(at))
    for i, value in enumerate(at):
        step = np.zeros_like(at)
        step[i] = 1e-6 * value
        slope = (law.loss(at + step, DATA) - law.loss(at - step, DATA)) / (2 * step[i])
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-6, atol=1e-9)


def test_loss_is_linear_in_its_amplitudes(law):
    at, k = np.array(EXAMPLES[law.name]), law.linear_count
    np.testing.assert_allclose(law.loss(at, DATA), law.basis(at[k:], DATA) @ at[:k], rtol=1e-13)


def test_many_parameter_vectors_at_once_are_each_alone(law):
    rng = np.random.default_rng(0)
    many = np.array(EXAMPLES[law.name]) * rng.uniform(0.8, 1.2, size=(2, 3, len(law.parameters)))
    assert law.loss(many, DATA).shape == (2, 3, 4)
    assert law.gradient(many, DATA).shape == (2, 3, 4, len(law.parameters))
    np.testing.assert_allclose(law.loss(many, DATA)[1, 2], law.loss(many[1, 2], DATA), rtol=1e-14)
    np.testing.assert_allclose(law.gradient(many, DATA)[1, 2], law.gradient(many[1, 2], DATA), rtol=1e-14)


def test_law_reads_no_column_that_it_does_not_name(law):
    named = {name: DATA[name] for name in law.columns}
    law.loss(np.array(EXAMPLES[law.name]), named)


def test_law_describes_itself(law):
    assert law.formula.startswith("L(")
    assert law.source
    assert len(set(law.parameter_names)) == len(law.parameters)
    assert all(parameter.lower < parameter.upper and parameter.meaning for parameter in law.parameters)
    assert all(parameter.starts for parameter in law.parameters[law.linear_count :])
    assert law_named(law.name) is law


def test_an_unknown_law_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="training, test-time, unified, but got 'chinchilla'"):
        law_named("chinchilla")


def test_unified_law_at_its_mean_recurrence_is_the_training_law():
    for mu in (1.0, 8.0, 12.0):
        size = PUBLISHED_TRUTH.effective_params_fixed + mu * PUBLISHED_TRUTH.effective_params_per_loop
        data = {"effective_params": np.array([size]), "tokens": np.array([1e9])}
        at = np.array([getattr(PUBLISHED_TRUTH, name) for name in TrainingLaw().parameter_names])
        training = TrainingLaw().loss(at, data)[0]
        assert PUBLISHED_TRUTH.loss(mu, 1e9, mu) == pytest.approx(training, abs=1e-3)


@pytest.mark.parametrize("budget", [1e18, 1.6e19, 6.4e19])
def test_optimum_is_the_least_loss_and_spends_the_budget(budget):
    law, cost, at = TrainingLaw(), published_cost_model(), np.array(EXAMPLES["training"])
    best = law.optimum(at, cost, budget)
    assert float(cost.flops_for(best.tokens, best.mean_recurrence)) == pytest.approx(budget, rel=1e-12)
    mu = np.geomspace(1, 100, 20_001)
    data = {"effective_params": cost.effective_params(mu), "tokens": cost.tokens_for(budget, mu)}
    losses = law.loss(at, data)
    assert float(best.loss) <= losses.min() + 1e-12
    assert float(best.mean_recurrence) == pytest.approx(mu[losses.argmin()], rel=1e-3)
    assert not best.at_bound


def test_optimum_at_the_end_of_the_search_is_said():
    best = TrainingLaw().optimum(np.array(EXAMPLES["training"]), published_cost_model(), 1e18, bounds=(6.0, 12.0))
    assert best.at_bound
    assert float(best.mean_recurrence) == pytest.approx(6)


def test_optimum_of_many_laws_is_each_alone():
    law, cost = TrainingLaw(), published_cost_model()
    many = np.array([EXAMPLES["training"], [2.0, 40, 30, 0.3, 0.2]])
    both = law.optimum(many, cost, 4e18)
    for i in range(2):
        assert both.mean_recurrence[i] == pytest.approx(float(law.optimum(many[i], cost, 4e18).mean_recurrence))


@pytest.mark.parametrize("bounds", [(0.0, 4.0), (4.0, 2.0), (1.0, np.inf)])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds of the mean recurrence"):
        TrainingLaw().optimum(np.array(EXAMPLES["training"]), published_cost_model(), 1e18, bounds)


def test_poisson_loops_against_drawn_depths():
    depths = np.maximum(1, np.random.default_rng(0).poisson(6, size=400_000))
    forward, backward = poisson_loops(6.0, 3)
    assert forward == pytest.approx(depths.mean(), abs=0.02)
    assert backward == pytest.approx(np.minimum(depths, 3).mean(), abs=0.005)
