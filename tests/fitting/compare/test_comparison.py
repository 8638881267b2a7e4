"""Two sweeps compared: intervals of changes hold the true change, and what makes a comparison wrong is reported."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    ComparedSweep,
    TrainingLaw,
    compare_sweeps,
    fit_isoflop,
    fit_sweep,
    published_cost_model,
    simulate_table,
)
from isoloop.fitting.compare.difference import BEST_RUNS, LEAST_LOSSES, Quantity, difference, paired
from isoloop.fitting.compare.quantities import BEST_MODEL
from isoloop.fitting.figures import compare as figures_compare
from isoloop.fitting.isoflop.power_law import POWER_LAWS
from tests.commands import only_svg

NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=5e-4, evaluation_noise=5e-5)
# Fewer tokens pay less: mu* grows more slowly, and the least loss is higher throughout.
OTHER = dataclasses.replace(NOISY, E=2.4, x=0.30, X=64.0, y=0.16)
GRID = {"budgets": (1e18, 2e18, 4e18, 8e18, 16e18), "mean_recurrences": (1, 2, 4, 8, 16), "recurrences": ()}
PARAMETERS = ("E", "x", "y")


def sweep(truth, seed, name="sweep", *, draws=60, fit_seed=0, **changes):
    table = simulate_table(truth, seed=seed, **{**GRID, **changes})
    # At other T in the largest budget alone: each model with losses there is a fit of its own.
    table.loc[table["budget"] < table["budget"].max(), [name for name in table if "loss_T" in name]] = np.nan
    return ComparedSweep(name=name, fit=fit_sweep(table, name=name, draws=draws, seed=fit_seed), table=table)


@pytest.fixture(scope="module")
def one():
    return sweep(NOISY, 1, "one", recurrences=(1, 2, 4, 8, 12, 16))


@pytest.fixture(scope="module")
def other():
    return sweep(OTHER, 2, "other", recurrences=(1, 2, 4, 8, 12, 16))


@pytest.fixture(scope="module")
def one_to_other(one, other):
    return compare_sweeps(one, other)


def named(comparison, section, name, *, kind=None, flops=None):
    (found,) = [
        one
        for one in comparison.of(section)
        if one.name == name and (kind is None or one.kind == kind) and one.flops == flops
    ]
    return found


def exact_exponents(truth):
    """What parabolas give on this grid without noise."""
    table = simulate_table(dataclasses.replace(truth, run_noise=0.0, evaluation_noise=0.0), **GRID)
    found = fit_isoflop(table, published_cost_model(), draws=0)
    return {"exponent of mu*": found.mean_recurrence_law.exponent, "exponent of D*": found.tokens_law.exponent}


def best_loss(truth, flops):
    return float(TrainingLaw().optimum(truth_vector(truth), published_cost_model(), flops).loss)


def truth_vector(truth):
    return np.array([getattr(truth, name) for name in TrainingLaw().parameter_names])


def test_large_differences_are_found_and_held_by_their_intervals(one_to_other):
    found = one_to_other
    exact, exact_other = exact_exponents(NOISY), exact_exponents(OTHER)
    for name in exact:
        change = named(found, POWER_LAWS, name)
        low, high = change.interval
        assert low < exact_other[name] - exact[name] < high
        assert abs(exact_other[name] - exact[name]) > 0.08
        assert change.differs
    assert found.optima_flops == (16e18, 64e18)
    for flops in found.optima_flops:
        true = best_loss(OTHER, flops) - best_loss(NOISY, flops)
        change = named(found, BEST_MODEL, "least loss", kind="difference", flops=flops)
        assert change.interval[0] < true < change.interval[1]
        assert change.differs
        assert change.change == pytest.approx(change.second - change.first)
        ratio = named(found, BEST_MODEL, "least loss", kind="ratio", flops=flops)
        assert ratio.change == pytest.approx(ratio.second / ratio.first)
    y = named(found, "Training law", "y")
    assert y.interval[0] < OTHER.y - NOISY.y < y.interval[1]
    assert any("by the laws after training, the best loss of A is lower" in verdict for verdict in found.verdicts)


def test_a_sweep_trained_again_shows_no_difference(one):
    again = compare_sweeps(one, sweep(NOISY, 3, "again"))
    low, high = again.multiplier.overall.interval
    assert low < 1 < high
    assert again.verdicts[0].endswith("(geometric mean): neither is shown to need less.")
    for name in ("exponent of mu*", "exponent of D*"):
        assert named(again, POWER_LAWS, name).differs is False
    assert named(again, BEST_MODEL, "least loss", kind="difference", flops=16e18).differs is False
    assert any("neither is significantly better" in verdict for verdict in again.verdicts)


@pytest.fixture(scope="module")
def hungry():
    """A model that needs 1.5 times the tokens at every recurrence, so 1.5 times the FLOPs at every loss."""
    return sweep(dataclasses.replace(NOISY, Y=NOISY.Y * 1.5**NOISY.y), 11, "hungry")


def test_the_compute_multiplier_is_that_of_the_truth_in_both_directions(one, hungry):
    found, back = compare_sweeps(hungry, one), compare_sweeps(one, hungry)
    for comparison, true, who in ((found, 1.5, "B"), (back, 1 / 1.5, "A")):
        multiplier = comparison.multiplier
        for row in (multiplier.overall, *multiplier.at_budgets):
            low, high = row.interval
            assert low < true < high
            assert row.never == 0
        assert multiplier.overall.interval[1] < 1.1 * multiplier.overall.interval[0]
        assert multiplier.overall.value == pytest.approx(true, rel=0.03)
        assert comparison.verdicts[0].endswith(f"FLOPs of B (geometric mean): {who} needs less.")
        assert comparison.verdicts[0] in " ".join(comparison.report().split())
    assert found.verdicts[0].startswith(f"A needs {found.multiplier.overall.value:.3g} times (95%: ")
    budgets = [*GRID["budgets"], 64e18]
    assert [row.flops for row in found.multiplier.at_budgets] == pytest.approx(budgets)
    row = found.multiplier.at_budgets[1]
    assert row.first_flops == pytest.approx(row.value * row.flops)
    assert row.loss == pytest.approx(best_loss(NOISY, 2e18), abs=2e-3)
    assert [bool(row.extrapolated) for row in found.multiplier.at_budgets] == [False] * 4 + [True] * 2
    assert found.multiplier.at_budgets[4].extrapolated == f"A {found.multiplier.at_budgets[4].value:.3g}x beyond"
    assert found.multiplier.at_budgets[5].extrapolated.startswith("B 4x beyond, A ")
    entry = json.loads(found.to_json())["multiplier"]["overall"]
    assert entry["interval"] == list(found.multiplier.overall.interval)


def test_a_sweep_needs_its_own_compute(one):
    multiplier = compare_sweeps(one, one).multiplier
    assert [row.value for row in (multiplier.overall, *multiplier.at_budgets)] == pytest.approx([1.0] * 7)
    assert multiplier.no_overlap == ""


def test_a_loss_below_the_floor_is_never_reached(one):
    floor = sweep(dataclasses.replace(NOISY, E=NOISY.E + 0.6), 12, "floor")
    found = compare_sweeps(floor, one)
    *_, last = found.multiplier.at_budgets
    assert (last.value, last.first_flops, last.never) == (None, None, 1.0)
    assert found.verdicts[0].startswith("A does not reach the loss that B has at 8e+18 FLOPs, at any compute (")
    assert "do not overlap, so every multiplier is extrapolated" in found.verdicts[1]
    assert "never (in 100% of the draws A never reaches it)" in found.report()
    json.loads(found.to_json())  # finite numbers only
    (panel,) = draw(floor, one, found).subfigs[1].axes
    assert panel.get_ylabel() == "FLOPs of A / FLOPs of B"
    assert sum(line.get_marker() == "^" for line in panel.get_lines()) >= 2
    # The other way round, the loss is one that B's first runs would have had at far less compute.
    back = compare_sweeps(one, floor).multiplier
    assert all(row.value < 0.03 and row.interval[1] < 0.05 for row in back.at_budgets)


def draw(a, b, found):
    figure = Figure(layout="constrained")
    figures_compare.draw_comparison(figure, (a, b), found)
    return figure


def test_without_refits_or_comparable_losses_there_is_no_interval_or_no_multiplier(one, hungry):
    quiet = compare_sweeps(sweep(NOISY, 1, draws=0), hungry)
    assert quiet.multiplier.overall.interval is None
    assert quiet.verdicts[0].endswith("no interval, for lack of refits.")
    sides = [dataclasses.replace(side, validation=text) for side, text in ((one, "a"), (hungry, "b"))]
    found = compare_sweeps(*sides)
    assert found.multiplier is None
    assert ("Compute multiplier", "measured on other text") in {(x.section, x.reason) for x in found.missing_sections}


def test_intervals_hold_the_true_change_as_often_as_they_say(monkeypatch):
    """10 pairs of 5 sweeps each, all fitted with the same seed; 95% intervals of five numbers."""
    # The compute multiplier is half of the time, and none of the five.
    monkeypatch.setattr("isoloop.fitting.compare.comparison._multiplier", lambda *_: (None, []))
    exact, exact_other = exact_exponents(NOISY), exact_exponents(OTHER)
    true = {name: exact_other[name] - exact[name] for name in exact}
    true |= {name: getattr(OTHER, name) - getattr(NOISY, name) for name in PARAMETERS}
    held = []
    ones, others = ([sweep(truth, 100 + 2 * i + k) for i in range(5)] for k, truth in enumerate((NOISY, OTHER)))
    for one, other in [*zip(ones, others, strict=True), *zip(ones, others[1:] + others[:1], strict=True)]:
        changes = {change.name: change for change in compare_sweeps(one, other, flops=4e18).differences}
        held += [changes[name].interval[0] <= value <= changes[name].interval[1] for name, value in true.items()]
    assert 0.88 <= np.mean(held) <= 0.99  # of 50, not all independent; 95% are meant


def test_draws_of_one_seed_are_taken_apart():
    """The same draws in the same order, as two fits with one seed have: their differences still scatter as two do."""
    draws = np.random.default_rng(3).normal(0.4, 0.01, 1000)
    quantity = Quantity(
        section="s",
        name="n",
        unit="1",
        change="difference",
        counted_in="nothing",
        value=0.4,
        interval=None,
        draws=draws,
    )
    low, high = difference(quantity, quantity).interval
    assert high - low == pytest.approx(2 * 1.96 * 0.01 * math.sqrt(2), rel=0.1)
    first, second = paired(draws, draws[:300])
    assert len(first) == len(second) == 10_000
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_other_accounting_is_refused(one):
    table = simulate_table(NOISY, seed=5, accounting="parcae-release", **GRID)
    with pytest.raises(ValueError, match=r"must count FLOPs alike.*'exact'.*'parcae-release'.*refit both"):
        compare_sweeps(one, ComparedSweep(name="released", table=table))


def test_losses_that_count_other_things_are_not_compared(one, other):
    marked = [dataclasses.replace(side, validation=text) for side, text in ((one, "corpus a"), (other, "corpus b"))]
    found = compare_sweeps(*marked)
    for section, name in (("Training law", "E"), ("Training law", "Y")):
        assert named(found, section, name).change is None
        assert named(found, section, name).reason == "measured on other text"
    assert not found.of(BEST_RUNS)
    assert not found.of(LEAST_LOSSES)
    assert found.verdicts == ()
    assert named(found, POWER_LAWS, "exponent of mu*").differs
    assert named(found, POWER_LAWS, "D*", flops=16e18).change is not None
    assert "corpus a, B's on corpus b: losses can't be compared; exponents, mu* and D* can" in " ".join(found.caveats)
    assert "These sweeps can't tell." in found.report()


def test_tokens_of_two_tokenizers_are_not_compared(one, other):
    found = compare_sweeps(
        *(
            ComparedSweep(name=side.name, fit=side.fit, table=side.table.assign(tokenizer=tokenizer))
            for side, tokenizer in ((one, "bytes"), (other, "bpe 32768"))
        )
    )
    assert named(found, POWER_LAWS, "D*", flops=16e18).reason == "counted in other tokens"
    assert named(found, POWER_LAWS, "mu*", flops=16e18).change is not None
    assert named(found, "Training law", "x").change is not None
    assert named(found, "Training law", "E").change is None
    assert {(one.section, one.reason) for one in found.missing_sections} >= {
        (section, "counted in other tokens") for section in (BEST_RUNS, LEAST_LOSSES)
    }
    assert "per token of 'bytes', B's of 'bpe 32768'" in " ".join(found.caveats)


def test_shared_runs_are_reported(one):
    found = compare_sweeps(one, one)
    assert any(caveat.startswith("The same runs are in both sweeps") for caveat in found.caveats)
    assert all(change.differs is False for change in found.differences if change.interval)
    part = one.table[one.table["budget"] < 4e18]
    found = compare_sweeps(one, ComparedSweep(name="part", table=part, why_no_fit="two budgets"))
    assert any(caveat.startswith("10 runs are in both sweeps") for caveat in found.caveats)


def test_power_laws_over_other_budgets_are_reported(one):
    """Without any noise, the exponents of two ranges of budgets differ: their intervals know nothing of it."""
    part = sweep(NOISY, 4, "part", budgets=GRID["budgets"][1:])
    caveats = " ".join(compare_sweeps(one, part).caveats)
    assert "are fitted to different budgets (A: 5 budgets, 1e+18 to 1.6e+19; B: 4 budgets, 2e+18 to 1.6e+19)" in caveats
    assert "Each fit has caveats of its own" in caveats


def test_ranges_that_do_not_meet_are_reported(one):
    found = compare_sweeps(
        one, sweep(NOISY, 6, "large", budgets=(64e18, 128e18, 256e18), mean_recurrences=(4, 8, 16, 24))
    )
    caveats = " ".join(found.caveats)
    assert "The two share no compute: A spent 1e+18 to 1.6e+19 FLOPs, B 6.4e+19 to 2.56e+20." in caveats
    assert "At 1.6e+19 FLOPs B is extrapolated 4.0x below its smallest." in caveats
    assert "The grids differ (A: mu = 1, 2, 4, 8, 16; B: 4, 8, 16, 24)" in caveats
    assert [missing.reason for missing in found.missing_sections if missing.section == BEST_RUNS] == [
        "it shares no budget with A (within 1%)"
    ]


def fixed_depth(seeds):
    tables = [simulate_table(OTHER, **{**GRID, "mean_recurrences": (1,)}, seed=seed) for seed in seeds]
    return ComparedSweep(
        name="fixed depth", table=pd.concat(tables), why_no_fit="its runs have one recurrence, so no law can be fitted"
    )


def test_looped_against_fixed_depth_goes_by_the_runs(one):
    """Where one side has no law, the best runs measured are compared; seeds on both sides give an interval."""
    found = compare_sweeps(fixed_depth([21]), one)
    rows = found.of(BEST_RUNS)
    assert [row.flops for row in rows] == list(GRID["budgets"])
    assert all(row.interval is None and row.differs is None and row.change < 0 for row in rows)
    assert "no cell was trained with several seeds in A and B" in rows[0].reason
    budgets = "1e+18, 2e+18, 4e+18, 8e+18, 1.6e+19"
    assert f"B is lower, but not significantly, at {budgets}; there are no intervals" in found.verdicts[-1]
    assert {missing.section for missing in found.missing_sections if missing.side == "A"} >= {POWER_LAWS, BEST_MODEL}
    assert found.report().count("A has none: its runs have one recurrence") == 1  # for all sections together

    looped = pd.concat([simulate_table(NOISY, seed=seed, **GRID) for seed in (31, 32, 33)])
    looped = ComparedSweep(name="looped", table=looped)
    found = compare_sweeps(fixed_depth([21, 22, 23]), looped)
    for row in found.of(BEST_RUNS):
        assert row.differs
        alone = OTHER.loss(1, published_cost_model().tokens_for(row.flops, 1), 1)
        assert row.first_interval[0] < alone < row.first_interval[1]
        assert row.first_note == "mu = 1, best of 1, 3 seeds"
        assert row.second_note.endswith("best of 5, 3 seeds")
    assert f"B is lower at {budgets}." in found.verdicts[-1]


def test_seed_noise_gives_intervals_that_hold():
    """The 95% interval of the difference of two best runs, both of one cell: 8 pairs, 10 budgets, 3 seeds each."""
    held = []
    grid = {**GRID, "budgets": np.geomspace(1e18, 16e18, 10), "mean_recurrences": (1,)}
    for pair in range(8):
        sides = [
            pd.concat(simulate_table(truth, seed=1000 + 6 * pair + 3 * i + seed, **grid) for seed in range(3))
            for i, truth in enumerate((NOISY, OTHER))
        ]
        found = compare_sweeps(*(ComparedSweep(name="fixed", table=table) for table in sides))
        for row in found.of(BEST_RUNS):
            tokens = float(published_cost_model().tokens_for(row.flops, 1))
            true = OTHER.loss(1, tokens, 1) - NOISY.loss(1, tokens, 1)
            held.append(row.interval[0] <= true <= row.interval[1])
    assert len(held) == 80
    assert 0.90 <= np.mean(held) <= 0.99


def test_without_refits_there_are_changes_but_no_intervals(other):
    found = compare_sweeps(sweep(NOISY, 1, draws=0), other)
    change = named(found, POWER_LAWS, "exponent of mu*")
    assert change.change is not None
    assert change.interval is None
    assert change.reason == "no refits of A"
    assert "no interval: no refits of A" in found.report()


def test_two_fits_alone_can_be_compared(one, other):
    found = compare_sweeps(one.fit, other.fit, flops=5e18)
    assert found.optima_flops == (5e18,)
    assert {missing.reason for missing in found.missing_sections} >= {"only its fit was given, no run table"}
    caveats = " ".join(found.caveats)
    for words in (
        "whether the two share runs",
        "whether both count losses in the same tokens",
        "Both sweeps are simulated",
    ):
        assert words in caveats


def test_the_report_and_json_hold_every_number(one, other, one_to_other):
    found = one_to_other
    text = found.report()
    for words in ("A  one: 25 runs", "isoFLOP power laws", "Training law", "Which is better", "Caveats", " *"):
        assert words in text
    content = json.loads(found.to_json())
    assert content["format"] == "isoloop-comparison/2"
    assert len(content["differences"]) == len(found.differences)
    for entry, change in zip(content["differences"], found.differences, strict=True):
        assert f"{change.first:.4g}" in text or f"{change.first:.4f}" in text
        assert (entry["change"], entry["differs"]) == (change.change, change.differs)
        assert entry["interval"] == (None if change.interval is None else list(change.interval))
    assert found.to_json() == compare_sweeps(one, other).to_json()


@pytest.mark.parametrize("flops", [0, -1e18, math.inf, math.nan])
def test_a_compute_that_is_none_is_refused(one, flops):
    with pytest.raises(ValueError, match="flops must be positive and finite"):
        compare_sweeps(one, one, flops=flops)


def test_a_sweep_of_nothing_is_refused(one):
    with pytest.raises(ValueError, match="must have a fit or a run table, but 'none' has neither"):
        ComparedSweep(name="none")
    failed = one.table.assign(status="failed", loss=np.nan, **{name: np.nan for name in one.table if "loss_T" in name})
    with pytest.raises(ValueError, match="must have finished runs, but 'failed' has none"):
        compare_sweeps(one, ComparedSweep(name="failed", table=failed))


def test_the_figure_shows_both_sweeps_and_what_changes(one, other, one_to_other, tmp_path):
    found = one_to_other
    with only_svg():
        (path,) = figures_compare.save_comparison((one, other), found, tmp_path / "figure")
        (again,) = figures_compare.save_comparison((one, other), found, tmp_path / "again")
    svg = path.read_text(encoding="utf-8")
    for words in (
        "A: one (simulated)",
        "B: other (simulated)",
        "Exponents",
        "Losses at equal FLOPs",
        "left of the line",
    ):
        assert words in svg
    assert again.read_text(encoding="utf-8") == svg


def test_the_figure_without_laws_shows_the_best_runs(one, tmp_path):
    fixed = fixed_depth([21, 22])
    paths = figures_compare.save_comparison((fixed, one), compare_sweeps(fixed, one), tmp_path)
    assert [path.name for path in paths] == ["compare.png", "compare.svg", "compare.pdf"]
    svg = paths[1]
    text = svg.read_text(encoding="utf-8")
    assert "best run's loss (nats per token)" in text
    assert f"runs:{fixed.table['run_id'].iloc[0]}" in text
    neither = (fixed, dataclasses.replace(fixed, name="again"))
    figure = Figure()
    figures_compare.draw_comparison(figure, neither, compare_sweeps(*neither))
    assert [axes.get_title(loc="left") for part in figure.subfigs for axes in part.axes] == [
        "",
        "",
        "Losses at equal FLOPs",
    ]


def test_the_figure_draws_nothing_that_is_refused(one, other):
    """Neither token counts nor losses of two tokenizers stand on one axis."""
    tokens = [
        dataclasses.replace(side, table=side.table.assign(tokenizer=tokenizer))
        for side, tokenizer in ((one, "bytes"), (fixed_depth([21]), "bpe 32768"))
    ]
    for pair, left in (((tokens[0], dataclasses.replace(tokens[0], name="again")), True), (tuple(tokens), False)):
        figure = Figure()
        figures_compare.draw_comparison(figure, pair, compare_sweeps(*pair))
        panels = [axes for part in figure.subfigs for axes in part.axes][:2]
        caveats = [text.get_text().replace("\n", " ") for axes in panels for text in axes.texts]
        assert caveats == ([] if left else ["not drawn: counted in other tokens"])
    pair = one, dataclasses.replace(other, table=other.table.assign(tokenizer="bytes"))
    pair = dataclasses.replace(one, table=one.table.assign(tokenizer="bpe 32768")), pair[1]
    figure = Figure()
    figures_compare.draw_comparison(figure, pair, compare_sweeps(*pair))
    (text,) = figure.subfigs[0].axes[1].texts
    assert text.get_text().replace("\n", " ") == "not drawn: counted in other tokens"


def test_bars_reach_as_far_as_those_of_the_sweeps_own_figure(one):
    """Student's t by the freedom of the noise, as in `isoloop figure`."""
    axes = Figure().add_subplot()
    figures_compare.draw_pair_optima(axes, (one, one))
    minimum = one.fit.isoflop.included[0]
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    half = stats.t.ppf(0.975, one.fit.isoflop.noise_dof) * minimum.log_error
    assert (low, high) == pytest.approx(minimum.mean_recurrence * np.exp([-half, half]))


def test_runs_of_several_groups_are_no_seeds(one):
    groups = one.table.assign(group=["a", "b"] * 12 + ["a"])
    with pytest.raises(ValueError, match=r"the runs of one group, but 'mixed' has 2 \(a, b\); keep the rows of one"):
        ComparedSweep(name="mixed", table=groups)


def test_a_term_that_is_not_there_has_no_exponent_to_compare(one):
    law = one.fit.training
    gone = [dataclasses.replace(p, value=0.0) if p.name == "X" else p for p in law.parameters]
    fit = dataclasses.replace(one.fit, training=dataclasses.replace(law, parameters=tuple(gone)))
    found = compare_sweeps(dataclasses.replace(one, name="without", fit=fit), one)
    assert named(found, "Training law", "x").interval is None
    assert named(found, "Training law", "x").reason == "x means nothing, X being 0, of A"
    assert named(found, "Training law", "X").change is None
    assert named(found, "Training law", "X").reason == "A's is 0, and nothing can be divided by it"
    assert named(found, "Training law", "y").interval is not None


def test_dots_are_hollow_where_nothing_is_shown_to_change(one_to_other):
    axes = Figure().add_subplot()
    rows = [change for change in one_to_other.of(POWER_LAWS) if change.kind == "difference"]
    figures_compare.draw_changes(axes, rows, ratio=False)
    faces = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [face != "white" for face in faces] == [row.differs for row in rows]
