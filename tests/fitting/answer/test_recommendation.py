"""One recommended model per budget: the value that is nearest to the truth, with the loss that the others cost."""

import dataclasses
import math
import re

import numpy as np
import pytest

from isoloop.fitting import fit_sweep, predict, recommendation
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.result import MissingFit
from isoloop.fitting.simulate import PUBLISHED_TRUTH, published_cost_model, simulate_table
from tests.run_tables import CHINCHILLA, dense_table

TRUTH = np.array([getattr(PUBLISHED_TRUTH, name) for name in TrainingLaw().parameter_names])


def true_optimum(flops):
    return TrainingLaw().optimum(TRUTH, published_cost_model(), flops)


def true_loss(value, flops):
    return float(TrainingLaw().loss(TRUTH, published_cost_model().columns(flops, np.array([value])))[0])


@pytest.fixture(scope="module")
def published():
    # Without the small gain of loops beyond T = mu, the training law is the whole truth.
    truth = dataclasses.replace(PUBLISHED_TRUTH, Z=0.0)
    return fit_sweep(simulate_table(truth, recurrences=(), seed=1), name="published", draws=60)


@pytest.mark.parametrize("flops", [8e18, 128e18, 256e18])
def test_the_recommended_value_is_the_true_one_and_the_others_cost_what_they_truly_cost(published, flops):
    best, truth = recommendation(published, flops), true_optimum(flops)
    assert best.method.startswith("training ")
    low, high = best.value_interval
    assert low <= truth.mean_recurrence <= high
    assert low > 0.9 * best.value
    assert high < 1.1 * best.value
    assert best.tokens_interval[0] <= truth.tokens <= best.tokens_interval[1]
    assert best.loss_interval[0] <= float(truth.loss) <= best.loss_interval[1]
    assert [other.method for other in best.others[-2:]] == [
        "isoFLOP power laws",
        "isoFLOP power laws without the parabola's bias",
    ]
    for other in best.others:
        due = true_loss(other.value, flops) - float(truth.loss)
        assert other.extra_loss == pytest.approx(due, rel=0.4, abs=3e-5)
        # A difference below 1e-9 is rounding of the search, and counts as none.
        assert other.loss == pytest.approx(best.loss + other.extra_loss, abs=1e-9)
        assert (other.value_interval, other.tokens_interval) == (None, None)
    assert max(other.extra_loss for other in best.others) > (1e-4 if flops > 64e18 else 0)


def test_over_many_sweeps_the_recommended_value_misses_least():
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=2e-4)
    flops = 256e18
    due = math.log(float(true_optimum(flops).mean_recurrence))
    misses = []
    for seed in range(4):
        fit = fit_sweep(simulate_table(truth, recurrences=(), seed=seed), name="noisy", draws=0)
        best = recommendation(fit, flops)
        misses.append([math.log(model.value) - due for model in (best, *best.others[-2:])])
    recommended, *others = np.sqrt(np.mean(np.square(misses), axis=0))
    assert recommended < 0.08
    assert recommended < 0.6 * min(others)


def test_without_a_law_the_power_law_answers_without_an_interval(published):
    fit = dataclasses.replace(
        published,
        training=None,
        mixture=None,
        parabola_bias=None,
        missing_fits=(MissingFit(name="training", reason="left out by this test"),),
    )
    best = recommendation(fit, 128e18)
    assert (best.method, best.others, best.extra_loss) == ("isoFLOP power laws", (), None)
    assert best.value == pytest.approx(fit.isoflop.mean_recurrence_law.at(128e18))
    assert best.value_interval is None
    assert best.loss == pytest.approx(float(true_optimum(128e18).loss), abs=0.02)
    assert best.reason == "there is no law of the loss to use instead: left out by this test"
    prediction = predict(fit, flops=128e18)
    assert (prediction.value, prediction.loss, prediction.method) == (best.value, best.loss, best.method)
    assert "95%" not in prediction.report().split("loss")[0]


def test_the_report_has_one_value_with_one_interval_and_costs_beside_the_others(published):
    lines = predict(published, flops=128e18).report().splitlines()
    assert re.fullmatch(r"Best model for 1.28e\+20 FLOPs by the training .*laws?, from simulated runs", lines[0])
    assert lines[1].startswith("  mean recurrence   ")
    assert [line.split("95%")[0].split()[0] for line in lines if "95%" in line] == [
        "mean",
        "tokens",
        "loss",
        "perplexity",
    ]
    start = lines.index("Other methods, and the loss that their choice would cost")
    for line in lines[start + 1 : start + 3]:
        assert "nats" in line
        assert "95%" not in line
    assert "laws of the loss are fitted to every run and not to minima alone" in " ".join(" ".join(lines).split())


def test_dense_models_are_recommended_in_parameters():
    fit = fit_sweep(dense_table(), name="dense", draws=30)
    best = recommendation(fit, 1e20)
    truth = fit.training.form.optimum(CHINCHILLA, fit.cost_model, 1e20, (1e6, 1e12))
    assert best.value_interval[0] <= float(truth.at) <= best.value_interval[1]
    assert all(other.extra_loss >= -1e-9 for other in best.others)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(published, flops):
    with pytest.raises(ValueError, match="flops must be positive and finite"):
        recommendation(published, flops)
