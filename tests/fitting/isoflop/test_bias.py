"""What parabolas miss: nothing on parabolas, the known amount on the published law, and power laws without it."""

import dataclasses
import json
import types
import typing

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    PUBLISHED_BUDGETS,
    PUBLISHED_TRUTH,
    ChinchillaLaw,
    DenseCost,
    Optimum,
    ParabolaBias,
    TrainingLaw,
    check_table,
    fit_isoflop,
    parabola_bias,
    point_estimate,
    published_cost_model,
    simulate_table,
)
from isoloop.fitting.isoflop.report import parabola_bias_text
from isoloop.fitting.tables.runs import law_data

COST = published_cost_model()
QUIET = dataclasses.replace(PUBLISHED_TRUTH, run_noise=0.0, evaluation_noise=0.0)
PARAMETERS = np.array([getattr(PUBLISHED_TRUTH, name) for name in ("E", "X", "Y", "x", "y")])


def exact_exponents(budgets):
    optima = [TrainingLaw().optimum(PARAMETERS, COST, budget) for budget in budgets]
    columns = [[float(one.mean_recurrence) for one in optima], [float(one.tokens) for one in optima]]
    return [np.polyfit(np.log(budgets), np.log(column), 1)[0] for column in columns]


class Parabolas:
    """A law whose curves are parabolas in log mu, with mu* = p C^0.4."""

    name = "parabolic"

    def best(self, parameters, budget):
        return parameters[..., 0, None] * (np.asarray(budget) / 1e18) ** 0.4

    def loss(self, parameters, data):
        budget = COST.flops_for(data["tokens"], data["mean_recurrence"])
        return 3 + 0.03 * np.log(data["mean_recurrence"] / self.best(parameters, budget)) ** 2

    def optimum(self, parameters, cost_model, budget, bounds):
        best = self.best(parameters, budget)[..., 0]
        tokens = cost_model.tokens_for(budget, best)
        loss = np.full(best.shape, 3.0)
        return Optimum(axis="mean_recurrence", at=best, tokens=tokens, loss=loss, at_bound=best < 0)


def test_parabolas_miss_nothing_on_parabolas():
    table = simulate_table(budgets=(1e18, 2e18, 4e18), recurrences=())
    draws = np.linspace(2.0, 3.0, 20)[:, None]
    bias = parabola_bias(fit_isoflop(table, COST), table, Parabolas(), np.array([2.5]), COST, draws)
    for one in bias.budgets:
        assert one.log_bias == pytest.approx(0.0, abs=1e-9)
        assert one.log_bias_interval == pytest.approx((0.0, 0.0), abs=1e-9)
    assert (bias.axis_exponent.parabola, bias.axis_exponent.exact) == pytest.approx((0.4, 0.4), abs=1e-9)
    assert bias.tokens_exponent.bias == pytest.approx(0.0, abs=1e-9)


def test_on_the_published_law_the_correction_gives_its_own_exponents():
    table = simulate_table(QUIET, recurrences=())
    fit = fit_isoflop(table, COST)
    bias = parabola_bias(fit, table, TrainingLaw(), PARAMETERS, COST)
    budgets = [minimum.budget for minimum in fit.included]
    assert [one.budget for one in bias.budgets] == budgets == list(PUBLISHED_BUDGETS[:5])
    exact = exact_exponents(budgets)
    assert exact == pytest.approx((0.333, 0.823), abs=1e-3)  # README and docs/fitting.md
    for one, true, raw in zip((bias.axis_exponent, bias.tokens_exponent), exact, (0.4055, 0.787), strict=True):
        assert one.exact == pytest.approx(true, abs=1e-6)
        # The unified law that the table is drawn from adds a constant at T = mu, which moves no minimum.
        assert one.parabola == pytest.approx(raw, abs=1e-3)
        assert one.corrected.exponent == pytest.approx(true, abs=1e-6)
        assert one.bias_interval is None
    assert bias.axis_exponent.bias > 0.05
    assert bias.budgets[0].log_bias < 0 < bias.budgets[-1].log_bias
    text = parabola_bias_text(bias, fit.axis)
    assert f"bias {bias.axis_exponent.bias:+.4f}" in text
    assert "without the parabola's bias: D* ~ C^0.82" in text


def test_corrected_intervals_cover_the_laws_own_exponents():
    """Two exponents of 15 sweeps."""
    quiet = simulate_table(QUIET, recurrences=())
    raw, corrected = [], []
    for seed in range(15):
        noise = np.random.default_rng(seed).standard_normal(len(quiet))
        table = quiet.assign(loss=quiet["loss"] * np.exp(2e-4 * noise))
        fit = fit_isoflop(table, COST, seed=seed, draws=400)
        law = point_estimate(TrainingLaw(), law_data(table)).parameters
        bias = parabola_bias(fit, table, TrainingLaw(), law, COST)
        exact = exact_exponents([minimum.budget for minimum in fit.included])
        for one, fitted, true in zip(
            (bias.axis_exponent, bias.tokens_exponent), (fit.axis_law, fit.tokens_law), exact, strict=True
        ):
            low, high = one.corrected.interval
            corrected.append(low <= true <= high)
            raw.append(fitted.interval[0] <= true <= fitted.interval[1])
    assert np.mean(corrected) >= 0.84
    assert np.mean(raw) < 0.3


def test_draws_of_the_law_widen_the_corrected_interval():
    table = simulate_table(dataclasses.replace(PUBLISHED_TRUTH, run_noise=5e-4), recurrences=())
    fit = fit_isoflop(table, COST)
    rng = np.random.default_rng(0)
    draws = PARAMETERS * np.exp(np.array([0.0, 0.3, 0.3, 0.1, 0.1]) * rng.standard_normal((60, 5)))
    known = parabola_bias(fit, table, TrainingLaw(), PARAMETERS, COST)
    drawn = parabola_bias(fit, table, TrainingLaw(), PARAMETERS, COST, draws)
    assert drawn.axis_exponent.bias == pytest.approx(known.axis_exponent.bias, rel=1e-9)
    assert np.ptp(drawn.axis_exponent.bias_interval) > 0.01
    assert np.ptp(drawn.axis_exponent.corrected.interval) > np.ptp(known.axis_exponent.corrected.interval)
    assert drawn.axis_exponent.corrected.interval_at(128e18) is not None
    wider = parabola_bias(fit, table, TrainingLaw(), PARAMETERS, COST, draws, widening=2.0)
    for narrow, wide in ((drawn.axis_exponent, wider.axis_exponent), (drawn.budgets[1], wider.budgets[1])):
        name = "bias_interval" if narrow is drawn.axis_exponent else "log_bias_interval"
        assert np.ptp(getattr(wide, name)) == pytest.approx(2 * np.ptp(getattr(narrow, name)), rel=0.05)


def test_dense_optima_are_those_of_the_closed_form():
    E, A, B, alpha, beta = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
    rows = []
    for budget in (1e19, 3e19, 1e20, 3e20):
        best = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (budget / 6) ** (beta / (alpha + beta))
        for params in best * np.geomspace(0.25, 6, 8):
            tokens = budget / (6 * params)
            loss = E + A * params**-alpha + B * tokens**-beta
            rows.append({"params": params, "tokens": tokens, "budget": budget, "loss": loss})
    table = check_table(pd.DataFrame(rows))
    fit = fit_isoflop(table, DenseCost())
    bias = parabola_bias(fit, table, ChinchillaLaw(), np.array([E, A, B, alpha, beta]), DenseCost())
    assert bias.axis_exponent.exact == pytest.approx(beta / (alpha + beta), abs=1e-5)
    assert bias.axis_exponent.corrected.exponent == pytest.approx(beta / (alpha + beta), abs=1e-5)
    assert abs(bias.budgets[0].log_bias) > 0.005


def test_a_fit_without_power_laws_has_no_bias():
    table = simulate_table(budgets=(1e18,), recurrences=())
    with pytest.raises(ValueError, match="needs power laws, but there are none"):
        parabola_bias(fit_isoflop(table, COST), table, TrainingLaw(), PARAMETERS, COST)


def test_two_budgets_are_a_caveat():
    table = simulate_table(QUIET, budgets=(1e18, 2e18), recurrences=())
    bias = parabola_bias(fit_isoflop(table, COST), table, TrainingLaw(), PARAMETERS, COST)
    assert "Two budgets hardly determine the law" in bias.notes[0]
    assert "note: Two budgets" in parabola_bias_text(bias, "mean_recurrence")


def test_another_table_than_the_fitted_is_refused():
    table = simulate_table(budgets=(1e18, 2e18, 4e18), recurrences=())
    fit = fit_isoflop(table, COST)
    with pytest.raises(ValueError, match="must be the one that was fitted, but its budget of 4e"):
        parabola_bias(fit, table[table["budget"] < 4e18], TrainingLaw(), PARAMETERS, COST)


def test_a_law_without_minima_near_the_grid_has_no_bias():
    table = simulate_table(QUIET, budgets=(1e18, 2e18), recurrences=())
    with pytest.raises(ValueError, match="the training law's own losses have a minimum near the grid, but 0 have"):
        parabola_bias(fit_isoflop(table, COST), table, TrainingLaw(), PARAMETERS * [1, 0, 0, 1, 1], COST)


def test_only_kinds_that_a_stored_fit_can_hold():
    def kinds(kind):
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen
            return set().union(*(kinds(part) for part in typing.get_type_hints(kind).values()))
        if typing.get_origin(kind) in (tuple, types.UnionType):
            return set().union(*(kinds(part) for part in typing.get_args(kind) if part is not Ellipsis))
        return {kind}

    assert kinds(ParabolaBias) <= {float, str, bool, int, type(None)}
    table = simulate_table(recurrences=())
    bias = parabola_bias(fit_isoflop(table, COST, draws=5), table, TrainingLaw(), PARAMETERS, COST)
    assert json.loads(json.dumps(dataclasses.asdict(bias), allow_nan=False))["law"] == "training"
