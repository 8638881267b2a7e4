"""Comparisons of dense models, of FLOPs that their owners counted, and of dense models with looped ones."""

import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from isoloop.fitting import ComparedSweep, compare_sweeps, fit_sweep, simulate_table
from isoloop.fitting.answer.recommendation import axis_bounds
from isoloop.fitting.compare.difference import BEST_RUNS, LEAST_LOSSES
from isoloop.fitting.compare.quantities import BEST_MODEL, LAW_SECTIONS
from isoloop.fitting.figures import compare as figures_compare
from isoloop.fitting.isoflop.power_law import POWER_LAWS
from tests.run_tables import BUDGETS, dense_table, own_flops_table

ABOVE = 0.05


def side(name, table, draws=40):
    return ComparedSweep(name=name, fit=fit_sweep(table, name=name, draws=draws), table=table)


@pytest.fixture(scope="module")
def dense():
    return side("dense", dense_table(seed=1))


@pytest.fixture(scope="module")
def worse():
    return side("worse", dense_table(seed=2, above=ABOVE))


@pytest.fixture(scope="module")
def own():
    return side("own", own_flops_table(factor=1.0, seed=3), draws=0)


def names_of(comparison, section):
    return {number.name for number in comparison.of(section)}


def panels(pair, comparison):
    figure = Figure(layout="constrained")
    figures_compare.draw_comparison(figure, pair, comparison)
    return [axes.get_ylabel() for axes in figure.subfigs[0].axes]


def test_two_dense_sweeps_are_compared_in_everything_that_they_have(dense, worse):
    found = compare_sweeps(dense, worse)
    assert names_of(found, POWER_LAWS) >= {"exponent of N*", "exponent of D*", "N*", "D*"}
    assert names_of(found, LAW_SECTIONS["training"]) == {"E", "A", "B", "alpha", "beta"}
    assert names_of(found, BEST_MODEL) == {"N*", "D*", "least loss"}
    assert {number.unit for number in found.differences if number.name == "N*"} == {"parameters"}
    # The true change of the loss is in the intervals, and no exponent changes.
    losses = [n for n in found.differences if n.kind == "difference" and n.unit == "nats per token" and n.flops]
    with_interval = [number for number in losses if number.interval]
    assert {number.section for number in losses} == {BEST_MODEL, LEAST_LOSSES, BEST_RUNS}
    assert sum(number.interval[0] < ABOVE < number.interval[1] for number in with_interval) >= len(with_interval) - 1
    exponents = [number for number in found.of(POWER_LAWS) if number.kind == "difference"]
    assert all(number.differs is False for number in exponents)
    # The best runs are those of least loss.
    for row in found.of(BEST_RUNS):
        runs = dense.table[(dense.table["budget"] / row.flops - 1).abs() < 0.01]
        best = runs.loc[runs["loss"].idxmin()]
        assert row.first == pytest.approx(best["loss"])
        assert row.first_note == f"N = {best['params']:.4g}, best of 7"
    text = found.report()
    assert re.search(r"\bmu\b", text) is None
    assert "recurrence" not in text
    assert found.missing_sections == ()
    assert found.multiplier.overall.interval[1] < 1  # B is worse by .05 nats
    assert panels((dense, worse), found) == ["best size N* (parameters)", "best training length D* (tokens)"]


def test_flops_that_their_owners_counted_are_compared_with_a_caveat(dense, own):
    found = compare_sweeps(own, side("other", own_flops_table(factor=1.0, seed=4), draws=0))
    assert names_of(found, POWER_LAWS) >= {"exponent of mu*", "exponent of D*", "mu*", "D*"}
    assert names_of(found, LAW_SECTIONS["training"]) == {"E", "X", "Y", "x", "y", "q"}
    assert [row.flops for row in found.of(BEST_RUNS)] == pytest.approx(list(BUDGETS))
    caveats = " ".join(found.caveats)
    assert "The FLOPs of A and B are their tables' own, perhaps counted in two ways" in caveats
    assert "It isn't known whether the two have the same architecture" in caveats
    assert "different architectures" not in caveats
    assert "architecture" not in " ".join(compare_sweeps(dense, dense).caveats)


def test_a_dense_and_a_looped_sweep_are_compared_in_what_both_have(dense, own):
    found = compare_sweeps(dense, own)
    assert names_of(found, POWER_LAWS) == {"exponent of D*", "exponent of D*, without the parabola's bias", "D*"}
    assert names_of(found, BEST_MODEL) == {"D*", "least loss"}
    assert found.of(LAW_SECTIONS["training"]) == ()
    assert len(found.of(LEAST_LOSSES)) >= 3
    assert {row.first_note[:3] for row in found.of(BEST_RUNS)} == {"N ="}
    assert {row.second_note[:4] for row in found.of(BEST_RUNS)} == {"mu ="}
    assert found.multiplier.overall.value > 0
    assert found.verdicts[0].startswith("A needs ")
    assert found.caveats[0].startswith("A's models are dense, B's looped: mu* and N* mean different things")
    assert panels((dense, own), found) == ["best run's loss (nats per token)", "best training length D* (tokens)"]


def test_two_ways_of_counting_flops_are_named(dense):
    exact = simulate_table(budgets=BUDGETS, mean_recurrences=(1, 2, 4, 8), recurrences=())
    six = dense_table(seed=1).drop(columns="flops")
    found = compare_sweeps(side("six", six, draws=0), side("looped", exact, draws=0))
    assert (found.accounting, found.first.accounting, found.second.accounting) == (None, "6ND", "exact")
    assert "Compute is counted by `6ND` in A and `exact` in B." in found.report()
    assert found.multiplier is None
    assert "its FLOPs are counted by `exact`, those of A by `6ND`" in {each.reason for each in found.missing_sections}
    assert "A counts FLOPs by `6ND`, B by `exact`" in " ".join(found.caveats)
    assert compare_sweeps(dense, dense).accounting == "own"


def test_sweeps_without_seeds_have_no_scatter_of_seeds(dense):
    assert "seed" not in dense.table
    (reason,) = {row.reason for row in compare_sweeps(dense, dense).of(BEST_RUNS)}
    assert reason.startswith("no cell was trained with several seeds in A and B")
    again = dense_table(seed=1).assign(seed=0)
    seeds = ComparedSweep(name="seeds", table=pd.concat([again, dense_table(seed=5).assign(seed=1)]))
    assert all(row.interval is not None for row in compare_sweeps(seeds, seeds).of(BEST_RUNS))


def test_far_beyond_the_runs_the_multiplier_is_searched_as_far_as_the_optima(dense, worse):
    row = compare_sweeps(dense, worse, flops=1e26).multiplier.at_budgets[-1]
    best = worse.fit.laws_after_training.optimum(worse.fit.cost_model, 1e26, axis_bounds(worse.fit)).best
    assert float(best.at) > 16 * worse.fit.fitted.params[1]
    assert row.loss == pytest.approx(float(best.loss), rel=1e-6)
    assert row.search_end == ""
    assert "the best size of B is at the end of the search" in compare_sweeps(dense, worse, flops=1e32).report()
