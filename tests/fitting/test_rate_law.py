"""The law of the best learning rates recovers known exponents, and tells what it doesn't know."""

import math

import numpy as np
import pytest

from isoloop.fitting.rate_law import RateLaw, fit_rate_law

CELLS = [(budget, mean) for budget in (1e10, 4e10) for mean in (1, 4)]
OF_C, OF_MU, CURVATURE = -0.1, -0.3, 0.08


def best_rate(budget, mean):
    return 0.01 * (budget / 4e10) ** OF_C * (mean / 2) ** OF_MU


def trials(*, noise, seed=0, cells=CELLS, per_cell=6, spread=1.5):
    """Rates around 0.01 and their losses, a parabola whose minimum follows the power law."""
    rng = np.random.default_rng(seed)
    budgets, means = np.repeat(cells, per_cell, axis=0).T
    rates = 0.01 * np.exp(rng.uniform(-spread, spread, len(budgets)))
    off = np.log(rates / best_rate(budgets, means))
    losses = 3 - 0.1 * np.log(budgets / 1e10) + CURVATURE / 2 * off**2 + rng.normal(0, noise, len(budgets))
    features = {"flops": budgets, "mean_recurrence": means, "params": np.full(len(budgets), 1e5)}
    return {"lr": rates}, features, losses


def test_without_noise_the_law_is_exact():
    law = fit_rate_law(*trials(noise=0))
    assert [(each.feature, round(each.value, 6)) for each in law.exponents] == [
        ("flops", OF_C), ("mean_recurrence", OF_MU),
    ]  # fmt: skip
    best = law.at({"flops": 3.2e11, "mean_recurrence": 8, "params": 1e5})
    assert best.rates["lr"] == pytest.approx(best_rate(3.2e11, 8))
    assert best.beyond == pytest.approx({"flops": 8, "mean_recurrence": 2})
    assert best.unknown == ()
    assert not law.at({"flops": 2e10, "mean_recurrence": 3, "params": 1e5}).beyond
    assert law.nats_off(2) == law.nats_off(0.5) == pytest.approx(CURVATURE / 2 * math.log(2) ** 2)
    assert RateLaw.from_json(law.to_json()) == law


def test_intervals_hold_the_truth_and_the_expected_cost_is_the_cost():
    """Over 40 tunings 95% intervals may miss 6 times at most (1 in 100 by chance)."""
    misses, cost, expected = np.zeros(3), [], []
    target = {"flops": 3.2e11, "mean_recurrence": 8, "params": 1e5}
    for seed in range(40):
        law = fit_rate_law(*trials(noise=0.003, seed=seed))
        best, truth = law.at(target), best_rate(3.2e11, 8)
        pairs = [
            *((each.interval, value) for each, value in zip(law.exponents, (OF_C, OF_MU), strict=True)),
            (best.intervals["lr"], truth),
        ]
        misses += [not low <= value <= high for (low, high), value in pairs]
        cost.append(CURVATURE / 2 * math.log(best.rates["lr"] / truth) ** 2)
        expected.append(best.nats)
    assert (misses <= 6).all()
    assert np.mean(cost) == pytest.approx(np.mean(expected), rel=0.5)


def test_two_rates_with_a_common_valley():
    """AdamW's and Muon's rate: one law each, from a loss that depends on their product, too."""
    rng = np.random.default_rng(1)
    budgets, means = np.repeat(CELLS, 9, axis=0).T
    logs = math.log(0.01) + rng.uniform(-0.6, 0.6, (2, len(budgets)))
    best = np.log([best_rate(budgets, means), 3 * best_rate(budgets, 2.0)])
    curvature = np.array([[0.08, 0.05], [0.05, 0.10]])
    off = logs - best
    losses = 2.5 + 0.5 * np.einsum("in,ij,jn->n", off, curvature, off)
    features = {"flops": budgets, "mean_recurrence": means, "params": np.full(len(budgets), 1e5)}
    law = fit_rate_law({"lr": np.exp(logs[0]), "muon": np.exp(logs[1])}, features, losses, window=1e3)
    assert law.curvature == pytest.approx(curvature)
    assert [each.value for each in law.exponents] == pytest.approx([OF_C, OF_MU, OF_C, 0.0], abs=1e-9)
    assert law.nats_off(2) == pytest.approx(0.5 * math.log(2) ** 2 * curvature.sum())


def test_far_trials_do_not_count():
    """Beyond 4 times the best rate the loss rises steeply, as no parabola does."""
    rates, features, losses = trials(noise=0.002, per_cell=9, spread=2.3)
    off = rates["lr"] / best_rate(features["flops"], features["mean_recurrence"])
    losses = np.where(off > 4.5, losses + 0.5, losses)
    law = fit_rate_law(rates, features, losses)
    assert (off > 4.5).sum() >= 2
    assert law.trials - law.trials_used >= (off > 4.5).sum()
    for each, truth in zip(law.exponents, (OF_C, OF_MU), strict=True):
        assert each.interval[0] < truth < each.interval[1]


def test_best_rates_that_are_no_power_law_are_told():
    """With three mean recurrences a bend in log µ shows; on the law itself 5% of the tests say so by chance."""
    cells = [(budget, mean) for budget in (1e10, 4e10) for mean in (1, 4, 16)]
    rates, features, losses = trials(noise=0.002, cells=cells)
    assert fit_rate_law(rates, features, losses).misfit > 0.05
    bend = 0.25 * np.log(features["mean_recurrence"] / 4) ** 2
    off = np.log(rates["lr"] / best_rate(features["flops"], features["mean_recurrence"]))
    bent = losses + CURVATURE / 2 * ((off + bend) ** 2 - off**2)
    law = fit_rate_law(rates, features, bent)
    assert law.misfit < 1e-3
    assert "the best rates of the cells are no power law" in "\n".join(law.report())


def test_one_cell_knows_no_exponent():
    law = fit_rate_law(*trials(noise=0.002, cells=[(4e10, 2)], per_cell=12))
    assert law.exponents == []
    here = law.at({"flops": 4e10, "mean_recurrence": 2, "params": 1e5})
    assert here.intervals["lr"][0] < 0.01 < here.intervals["lr"][1]
    elsewhere = law.at({"flops": 4e11, "mean_recurrence": 2, "params": 1e5})
    assert (elsewhere.nats, elsewhere.unknown, dict(elsewhere.intervals)) == (None, ("flops",), {})
    assert "not known: how the best rates depend on C and µ and N" in "\n".join(law.report())


def test_too_few_trials_and_losses_without_a_minimum_are_refused():
    rates, features, losses = trials(noise=0.002, per_cell=1)
    with pytest.raises(ValueError, match="must have more trials with a loss than 8"):
        fit_rate_law(rates, features, losses)
    rates, features, losses = trials(noise=0)
    with pytest.raises(ValueError, match="must have a minimum in lr"):
        fit_rate_law(rates, features, -losses)
