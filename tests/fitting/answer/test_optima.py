"""A law's optima at budgets: they spend them, they are least, and their exponents are those of a law that has one."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from isoloop.fitting import (
    PUBLISHED_BUDGETS,
    CostModel,
    TrainingLaw,
    exponent_shift,
    fit_law,
    law_optima,
    simulate_table,
)
from isoloop.fitting.figures.isoflop import draw_optima
from isoloop.fitting.tables.runs import law_data

BUDGETS = PUBLISHED_BUDGETS[:5]


@pytest.fixture(scope="module")
def table():
    return simulate_table(recurrences=())


@pytest.fixture(scope="module")
def fit(table):
    return fit_law(TrainingLaw(), law_data(table), draws=60, seed=0)


@pytest.fixture(scope="module")
def optima(fit, table):
    return law_optima(fit, CostModel.from_table(table), BUDGETS)


def test_optima_spend_their_budget_and_are_least(fit, table, optima):
    cost = CostModel.from_table(table)
    for best in optima.optima:
        assert cost.flops_for(best.tokens, best.mean_recurrence) == pytest.approx(best.budget, rel=1e-9)
        around = best.mean_recurrence * np.array([0.8, 0.95, 1.05, 1.25])
        assert (fit.loss(cost.columns(best.budget, around)) > best.loss).all()
        for name in ("mean_recurrence", "tokens"):
            low, high = getattr(best, f"{name}_interval")
            # Where the cost has a kink, at mu = 4 here, every draw may have the same optimum.
            assert low * (1 - 1e-9) <= getattr(best, name) <= high * (1 + 1e-9)
        assert not best.at_bound
    assert sum(best.tokens_interval[1] > 1.001 * best.tokens for best in optima.optima) >= 3
    assert list(optima.frame()["budget"]) == sorted(BUDGETS)


def test_a_cost_in_proportion_to_loops_gives_the_exponents_of_theory(fit):
    """With all parameters and all compute in the loop, D mu = C / c, so that mu* ~ C^(y / (x + y))."""
    cost = CostModel(
        flops_per_token_fixed=0.0, flops_per_token_forward_loop=3e8, flops_per_token_backward_loop=0.0,
        effective_params_fixed=0.0, effective_params_per_loop=1e7,
        mean_recurrences=(1.0, 1000.0), forward_loops=(1.0, 1000.0), backward_loops=(1.0, 1.0),
    )  # fmt: skip
    found = law_optima(fit, cost, BUDGETS)
    x, y = fit.value("x"), fit.value("y")
    assert found.mean_recurrence_law.exponent == pytest.approx(y / (x + y), abs=1e-6)
    assert found.tokens_law.exponent == pytest.approx(x / (x + y), abs=1e-6)
    assert found.mean_recurrence_law.at(1e18) == pytest.approx(found.optima[0].mean_recurrence, rel=1e-6)


def test_the_intervals_are_those_of_the_draws_widened(fit, table, optima):
    cost = CostModel.from_table(table)
    wide = law_optima(dataclasses.replace(fit, widening=2.0), cost, BUDGETS)
    for name in ("mean_recurrence_law", "tokens_law"):
        narrow, wider = getattr(optima, name), getattr(wide, name)
        assert wider.exponent == narrow.exponent
        assert np.subtract(*wider.interval) == pytest.approx(2 * np.subtract(*narrow.interval), rel=1e-9)
    without = law_optima(dataclasses.replace(fit, draws=()), cost, BUDGETS)
    assert without.optima[0].tokens_interval is None
    assert without.optima[0].tokens == optima.optima[0].tokens


def test_a_shift_of_exponents_is_taken_draw_by_draw(fit, table, optima):
    cost = CostModel.from_table(table)
    dearer = dataclasses.replace(cost, flops_per_token_fixed=2 * cost.flops_per_token_fixed)
    other = law_optima(fit, dearer, BUDGETS)
    shift, (low, high) = exponent_shift(optima.tokens_law, other.tokens_law)
    assert low < shift < high
    assert shift == other.tokens_law.exponent - optima.tokens_law.exponent
    # What both share cancels: the interval is narrower than either law's own.
    assert high - low < 0.6 * abs(np.subtract(*optima.tokens_law.interval))
    assert exponent_shift(optima.tokens_law, optima.tokens_law) == (0, (0, 0))
    with pytest.raises(ValueError, match="there are 60 and 0 draws"):
        exponent_shift(optima.tokens_law, dataclasses.replace(other.tokens_law, draws=()))


def test_without_draws_there_is_no_interval(fit, table):
    bare = law_optima(dataclasses.replace(fit, draws=()), CostModel.from_table(table), [1e18, 4e18, 16e18])
    assert bare.mean_recurrence_law.interval is None
    assert bare.tokens_law.interval is None


def test_one_budget_has_no_exponent(fit, table):
    with pytest.raises(ValueError, match="2 different budgets or more, but got 1"):
        law_optima(fit, CostModel.from_table(table), [1e18, 1e18])


@pytest.mark.parametrize("tokens", [False, True])
def test_figure_has_a_line_and_its_exponent_per_accounting(optima, tokens):
    axes = Figure(layout="constrained").add_subplot()
    draw_optima(axes, {"exact": optima, "other": optima}, tokens=tokens, simulated=True)
    assert "simulated" in axes.get_title(loc="left")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    law = optima.tokens_law if tokens else optima.mean_recurrence_law
    assert [label.split(":")[0] for label in labels] == ["exact", "other", "bars and ranges"]
    assert all(f"{law.exponent:.3f}" in label and f"{law.interval[1]:.3f}" in label for label in labels[:2])
    assert "(FLOPs" in axes.get_xlabel()
    assert ("(tokens)" if tokens else "(loops)") in axes.get_ylabel()
    assert len(axes.containers) == 2
