"""What uncertain learning rates cost is told in nats, and in the optimum."""

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import fit_sweep, simulate_table, verdict
from isoloop.fitting.cost import cost_of
from isoloop.fitting.isoflop.minima import fit_isoflop
from isoloop.fitting.isoflop.rates import TUNED_RATES, rate_caveats


@pytest.fixture(scope="module")
def table():
    """Parabolas in log µ with minima at 4 and 6 loops, and 0.01 nats of excess by wrong rates at 8 loops or more."""
    table = simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2, 4, 8, 16), recurrences=())
    best = np.where(table["budget"] < 2e18, 4.0, 6.0)
    excess = np.where(table["mean_recurrence"] >= 8, 0.01, 0.0)
    losses = 3 + 0.02 * np.log(table["mean_recurrence"] / best) ** 2 + excess
    beyond = np.where(table["mean_recurrence"] >= 8, table["mean_recurrence"] / 4, 1.0)
    return table.assign(loss=losses, rate_nats=excess + 0.001, rate_extrapolated=beyond)


def caveats(table):
    cost = cost_of(table)
    return rate_caveats(table, fit_isoflop(table, cost, draws=0), cost)


def test_the_cost_and_the_moved_optimum_are_told(table):
    (text,) = caveats(table)
    assert text.startswith(
        f"{TUNED_RATES}, and those of 4 of 10 runs are extrapolated, up to 4 times beyond its range. "
        "If the best rates are as uncertain as their intervals say, losses are too high by up to 0.011 nats (expected) "
        "in extrapolated runs and up to 0.001 nats (expected) in other runs."
    )
    assert "mu* at 4e+18 FLOPs is 6 instead of 5.28" in text  # the truth, from a minimum that the excess had moved
    assert "exponent 0.292 instead of" in text  # log(6 / 4) / log(4)


def test_an_unknown_cost_is_no_number(table):
    (text,) = caveats(table.drop(columns="rate_nats"))
    assert "nats" not in text
    assert "For 10 of 10 runs the cost of a wrong rate is unknown" in text


def test_runs_without_tuned_rates_have_no_such_caveat(table):
    assert caveats(table.drop(columns="rate_extrapolated")) == []
    assert caveats(table.assign(rate_extrapolated=pd.NA)) == []
    (text,) = caveats(table.assign(rate_extrapolated=1.0))
    assert "whose range holds them all" in text


def test_the_cost_stands_beside_the_answer(table):
    fit = fit_sweep(table, name="rates", draws=0)
    assert [text for text in verdict(fit).caveats if text.startswith(TUNED_RATES)] == caveats(table)
