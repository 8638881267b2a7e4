"""Comparisons of joint fits over sizes: the true compute multiplier along the frontier, and what can't be compared."""

import dataclasses
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.optimize import brentq

from isoloop.fitting import (
    SIZES_TRUTH,
    ChinchillaLaw,
    ComparedSweep,
    IsoDepthLaw,
    compare_sweeps,
    fit_sizes,
    fit_sweep,
    simulate_sizes,
)
from isoloop.fitting.compare.difference import BEST_RUNS, best_runs
from isoloop.fitting.compare.quantities import BEST_MODEL, GROWTH, LAW_SECTIONS
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.figures import compare as figures_compare
from isoloop.fitting.isoflop.power_law import POWER_LAWS
from isoloop.fitting.result import MissingFit
from isoloop.fitting.surface.search import minimise_on_box
from tests.run_tables import CHINCHILLA, dense_table

BUDGETS = (1e18, 4e18, 16e18, 64e18)
GRID = {"budgets": BUDGETS, "mean_recurrences": (1.0, 2.0, 4.0, 8.0)}
HUNGRY = dataclasses.replace(SIZES_TRUTH, Y=SIZES_TRUTH.Y * 1.5**SIZES_TRUTH.y)
"""Models that need 1.5 times the tokens at every size and recurrence, so 1.5 times the FLOPs at every loss."""


def joint(name, truth=SIZES_TRUTH, seed=1, **settings):
    table = simulate_sizes(truth, seed=seed, **GRID)
    settings = {"draws": 40, "through_budgets": False} | settings
    return ComparedSweep(name=name, fit=fit_sizes(table, name=name, **settings), table=table)


@pytest.fixture(scope="module")
def one():
    return joint("one", through_budgets=True)


@pytest.fixture(scope="module")
def hungry():
    return joint("hungry", HUNGRY, seed=2)


@pytest.fixture(scope="module")
def bare():
    """The same runs as those of `one`, fitted without refits."""
    return joint("one", draws=0, through_budgets=True)


@pytest.fixture(scope="module")
def one_to_hungry(one, hungry):
    return compare_sweeps(one, hungry)


@pytest.fixture(scope="module")
def middle():
    """Models of one size of the same truth, of other runs."""
    table = simulate_sizes(sizes=("370m",), seed=3, **GRID)
    return ComparedSweep(name="370m", fit=fit_sweep(table, name="370m", draws=60), table=table)


def true_loss(family, budget, sizes=(1e6, 2e10)):
    """The least loss of the truth at a budget, of sizes within a range."""
    at = np.array([getattr(SIZES_TRUTH, name) for name in ("E", "X", "Y", "x", "y", "phi")])

    def loss(logs):
        size, loops = np.moveaxis(np.exp(logs), -1, 0)
        return IsoDepthLaw().loss(at, family.columns(size, loops, family.tokens_for(budget, size, loops)))

    return float(minimise_on_box(loss, [np.log(sizes), (0.0, np.log(1024.0))])[1])


def dense_loss(budget):
    """The least loss of Chinchilla's law at 6 N D FLOPs."""
    params = np.geomspace(1e6, 1e12, 20_000)
    return float(ChinchillaLaw().loss(CHINCHILLA, {"params": params, "tokens": budget / 6 / params}).min())


def true_multiplier(of_a, of_b, budget):
    """How many times the FLOPs A needs for B's loss at a budget."""
    loss = of_b(budget)
    return float(np.exp(brentq(lambda log: of_a(budget * np.exp(log)) - loss, -5, 5, xtol=1e-5)))


def test_the_multiplier_of_joint_fits_is_that_of_the_truth_in_both_directions(one, hungry, one_to_hungry):
    for found, true, who in ((compare_sweeps(hungry, one), 1.5, "B"), (one_to_hungry, 1 / 1.5, "A")):
        multiplier = found.multiplier
        for row in (multiplier.overall, *multiplier.at_budgets):
            assert row.interval[0] < true < row.interval[1]
            assert row.never == 0
        assert multiplier.overall.value == pytest.approx(true, rel=0.03)
        assert multiplier.overall.interval[1] < 1.1 * multiplier.overall.interval[0]
        assert found.verdicts[0].endswith(f"FLOPs of B (geometric mean): {who} needs less.")
        assert (multiplier.overall.low, multiplier.overall.high) == (1e18, 64e18)


def test_what_a_free_size_is_worth_is_that_of_the_truth_in_both_directions(one, middle):
    family = ModelFamily.from_table(one.table)
    free, kept = partial(true_loss, family), partial(true_loss, family, sizes=(family.sizes[1], family.sizes[1]))
    for a, b, of_a, of_b in ((one, middle, free, kept), (middle, one, kept, free)):
        found = compare_sweeps(a, b)
        for row in found.multiplier.at_budgets:
            true = true_multiplier(of_a, of_b, row.flops)
            assert row.interval[0] * 0.99 < true < row.interval[1] * 1.01
            assert row.value == pytest.approx(true, rel=0.05)
        caveat = f"{'A' if a is one else 'B'}'s best models are of any size"
        assert any(caveat in each for each in found.caveats)
        assert {each.name for each in found.of(BEST_MODEL)} == {"mu*", "D*", "least loss"}
        missing = {each.section: each for each in found.missing_sections}
        assert missing[LAW_SECTIONS["sizes"]].reason == "its fit is not over sizes"
        assert "compare groups of one size" in missing[POWER_LAWS].reason


def test_dense_models_and_several_sizes_are_compared_where_flops_are_counted_alike(one):
    dense = dense_table(budgets=BUDGETS)
    side = ComparedSweep(name="dense", fit=fit_sweep(dense, name="dense", draws=60), table=dense)
    bare = one.table.drop(
        columns=[name for name in one.table if name.startswith(("flops_per", "forward", "backward_l"))]
    )
    bare = bare.assign(accounting="own")
    several = ComparedSweep(name="own", fit=fit_sizes(bare, name="own", draws=60, through_budgets=False), table=bare)
    found, family = compare_sweeps(side, several), ModelFamily.from_table(bare)
    for row in found.multiplier.at_budgets:
        true = true_multiplier(dense_loss, partial(true_loss, family), row.flops)
        assert row.interval[0] * 0.99 < true < row.interval[1] * 1.01
    assert "N* counts a looped block once" in found.caveats[1 if found.caveats[0].startswith("Sweep B") else 0]
    assert {each.name for each in found.of(BEST_MODEL)} == {"N*", "D*", "least loss"}
    other = compare_sweeps(side, one)
    assert other.multiplier is None
    assert "its FLOPs are counted by `exact`, those of A by `own`" in {each.reason for each in other.missing_sections}


def test_a_joint_fit_needs_its_own_compute(bare):
    found = compare_sweeps(bare.fit, bare.fit, flops=128e18)
    assert [row.value for row in found.multiplier.at_budgets] == pytest.approx([1.0] * 8)
    assert found.optima_flops == (128e18,)


def test_two_joint_fits_are_compared_in_law_growth_and_best_models(one, one_to_hungry):
    found = one_to_hungry
    numbers = {(each.section, each.name): each for each in found.differences if each.kind == "difference"}
    for name, true in (("alpha", 0.0), ("beta", 0.0), ("phi", 0.0), ("E", 0.0)):
        low, high = numbers[LAW_SECTIONS["sizes"], name].interval
        assert low < true < high
    assert {name for section, name in numbers if section == GROWTH} == {f"exponent of {s}*" for s in ("N", "mu", "D")}
    (ratio,) = [each for each in found.of(LAW_SECTIONS["sizes"]) if each.name == "B"]
    assert ratio.interval[0] < 1.5**SIZES_TRUTH.y < ratio.interval[1]
    loss = numbers[BEST_MODEL, "least loss"]
    family = one.fit.family
    assert loss.first == pytest.approx(true_loss(family, loss.flops), abs=5e-3)
    size = {each.flops: each for each in found.of(BEST_MODEL) if each.name == "N*"}
    assert size[64e18].differs  # fewer parameters where tokens do less
    assert size[256e18].first_note.startswith("the best size is extrapolated, 1.")
    assert any(caveat.startswith("A: the best size is extrapolated") for caveat in found.caveats)
    text = found.report()
    assert "A  one: 48 runs of 3 sizes (140m, 370m, 770m), 1e+18 to 6.4e+19 FLOPs, simulated" in text
    assert "isoFLOP power laws, Training law, Unified law: A has none: its fit is of several sizes together" in text
    assert json.loads(found.to_json())["first"]["sizes"] == ["140m", "370m", "770m"]


def test_sizes_and_laws_that_differ_are_said(bare):
    two = simulate_sizes(sizes=("140m", "770m"), seed=5, **GRID)
    other = fit_sizes(two, name="two", law="iso-depth-truncated", draws=0, through_budgets=False)
    found = compare_sweeps(bare.fit, other)
    assert any("The sizes differ (A: 140m, 370m, 770m; B: 140m, 770m)" in caveat for caveat in found.caveats)
    assert found.of(LAW_SECTIONS["sizes"]) == ()
    assert "it is fitted by another law than A" in {each.reason for each in found.missing_sections}
    plain = bare.fit
    wider = plain.family.members[0]
    cost = dataclasses.replace(wider.cost, flops_per_token_fixed=2 * wider.cost.flops_per_token_fixed)
    family = ModelFamily(members=(dataclasses.replace(wider, cost=cost), *plain.family.members[1:]))
    changed = compare_sweeps(plain, dataclasses.replace(plain, family=family))
    assert any("The two have different architectures" in caveat for caveat in changed.caveats)


def test_the_best_run_of_a_budget_may_be_of_any_size(one):
    for budget, best in best_runs(one.table).items():
        runs = one.table[one.table["budget"] == budget]
        row = runs.loc[runs["loss"].idxmin()]
        assert best.loss.value == pytest.approx(row["loss"])
        assert best.note == f"{row['model.size']}, mu = {row['mean_recurrence']:.4g}, best of 12"
    seeds = pd.concat(
        simulate_sizes(seed=seed, **GRID).assign(run_id=lambda t, s=seed: t["run_id"] + f"-{s}") for seed in (1, 2, 3)
    ).reset_index(drop=True)
    best = best_runs(seeds)[64e18]
    assert (best.seeds, best.cells) == (3, 12)
    # Noise of .1% of one run, and so of the mean of three; sizes are no scatter.
    assert best.loss.error == pytest.approx(best.loss.value * SIZES_TRUTH.run_noise / np.sqrt(3), rel=0.2)


def test_the_figure_has_best_sizes_or_says_why_not(bare):
    one, hungry = bare, joint("hungry", draws=0)
    of_one = one.table[one.table["model.size"] == "370m"].reset_index(drop=True)
    middle = ComparedSweep(name="370m", fit=fit_sweep(of_one, name="370m", draws=0), table=of_one)

    def labels(a, b):
        figure, found = Figure(layout="constrained"), compare_sweeps(a, b, flops=64e18)
        figures_compare.draw_comparison(figure, (a, b), found)
        axes = [each for part in figure.subfigs for each in part.axes]
        return [each.get_ylabel() or " ".join(text.get_text() for text in each.texts) for each in axes[:2]]

    assert labels(one, one) == ["best size N* (parameters)", "best mean recurrence µ* (loops)"]
    assert "B has no best models through budgets" in labels(one, hungry)[0].replace("\n", " ")
    assert "A and B have no best models through budgets" in labels(hungry, hungry)[0].replace("\n", " ")
    alone = labels(one, middle)
    assert alone[0] == "best run's loss (nats per token)"
    assert "not read from isoFLOP curves" in alone[1].replace("\n", " ")


def test_without_refits_there_is_a_multiplier_and_no_interval(hungry, bare):
    missing = (*bare.fit.missing_fits, MissingFit(name="370m alone", reason="a test"))
    bare = dataclasses.replace(bare, fit=dataclasses.replace(bare.fit, missing_fits=missing))
    found = compare_sweeps(hungry, bare)
    assert found.multiplier.overall.interval is None
    assert found.multiplier.overall.value == pytest.approx(1.5, rel=0.05)
    assert BEST_RUNS in {each.section for each in found.differences}
