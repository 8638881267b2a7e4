"""Designs over several sizes: derivatives and widths against refits, and what they save against a regular grid."""

import dataclasses

import numpy as np
import pytest
from matplotlib import pyplot as plt

from isoloop.fitting import SIZES_TRUTH, fit_sizes, law_data, simulate_sizes
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.design import Belief, Candidates, Noise, Target, candidate_budgets, candidate_values, design_runs
from isoloop.fitting.design.information import Plausible
from isoloop.fitting.design.models import ModelsOfAnySize
from isoloop.fitting.design.report import design_report
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.figures.design import design_figure
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.mixture import law_mixture

LAW = law_named("iso-depth")
TRUTH = np.array([getattr(SIZES_TRUTH, name) for name in ("E", "X", "Y", "x", "y", "phi")])
NOISE = SIZES_TRUTH.run_noise
BUDGETS = (1e18, 4e18, 16e18)
LOOPS = (1.0, 2.0, 4.0, 8.0)
RANGE = BUDGETS[0], BUDGETS[-1]
TABLE = simulate_sizes(budgets=BUDGETS, mean_recurrences=LOOPS, seed=1)
FAMILY = ModelFamily.from_table(TABLE)
CANDIDATES = Candidates.of_sizes(
    FAMILY,
    FAMILY.sizes,
    candidate_values("mean_recurrence", 1, 16).tolist(),
    candidate_budgets(1e18, 64e18, BUDGETS).tolist(),
    seeds=2,
)


def runs_of(params, loops, flops, seed):
    """Runs of the truth with noise."""
    data = FAMILY.columns(params, loops, FAMILY.tokens_for(flops, params, loops))
    noise = np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(params)))
    return {**data, "loss": LAW.loss(TRUTH, data) * noise}


def regular(budgets, seed):
    """Runs of every size and mean recurrence at some budgets."""
    flops, params, loops = (each.ravel() for each in np.meshgrid(budgets, FAMILY.sizes, LOOPS))
    return runs_of(params, loops, flops, seed)


def chosen(design, seed):
    """Runs of all rounds of a design."""
    counts = sum(played.counts for played in design.rounds)
    cells = CANDIDATES.columns["params"], CANDIDATES.values, CANDIDATES.flops
    return runs_of(*(np.repeat(each, counts) for each in cells), seed)


def together(*parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def belief_after(data):
    laws = law_mixture([fit_law(LAW, data, draws=30, seed=0)])
    noise = Noise(level=NOISE, source="a test")
    return Belief.of_runs(laws, data, FAMILY, CANDIDATES.columns, flops=RANGE, noise=noise)


def scatter(targets, samples):
    """95% widths of targets over fits to samples of runs (targets,)."""
    vectors = np.array([fit_law(LAW, data, draws=0, seed=0).vector for data in samples])
    drawn, models = Plausible.of(LAW, vectors, CANDIDATES.columns, sd=2.0), ModelsOfAnySize.of(FAMILY)
    return np.array([2 * 1.96 * drawn.target(target, models, RANGE)[0].std() for target in targets])


@pytest.mark.parametrize("target", ["N@256e18", "loss@256e18", "tokens@256e18", "gamma_N", "phi"])
def test_derivatives_are_those_of_differences(target):
    models = ModelsOfAnySize.of(FAMILY)
    plausible = Plausible.of(LAW, TRUTH[None], CANDIDATES.columns, sd=2.0)
    _, slopes = plausible.target(Target.parse(target), models, RANGE)
    for place in range(len(TRUTH)):
        ends = []
        for step in (0.05, -0.05):
            moved = plausible.vectors * np.exp(step * (np.arange(len(TRUTH)) == place))
            other = Plausible(law=LAW, problem=plausible.problem, vectors=moved, information=moved, weight=1.0)
            ends.append(other.target(Target.parse(target), models, RANGE)[0][0])
        assert slopes[0, 0, place] == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.15, abs=0.05)


def test_predicted_widths_are_those_of_refits_and_smaller_than_of_a_regular_grid_at_equal_cost():
    """Widths are .57 to .67 of those that the same FLOPs on budgets between those of the grid leave."""
    targets = [Target.parse(text) for text in ("params@256e18", "loss@256e18", "phi")]
    more = (2e18, 8e18)
    spend = len(LOOPS) * len(FAMILY.sizes) * sum(more)
    design = design_runs(belief_after(law_data(TABLE)), CANDIDATES, targets, spend, rounds=2)
    assert sum(played.cost for played in design.rounds) <= spend * (1 + 1e-9)
    samples = [(regular(BUDGETS, seed), chosen(design, seed + 100), regular(more, seed + 200)) for seed in range(30)]
    designed = scatter(targets, [together(old, new) for old, new, _ in samples])
    on_grid = scatter(targets, [together(old, new) for old, _, new in samples])
    np.testing.assert_allclose(design.rounds[-1].widths, designed, rtol=0.4)
    assert (designed < 0.8 * on_grid).all()


def test_a_joint_fit_is_designed_with_all_laws_of_its_mixture():
    fit = fit_sizes(TABLE, name="sizes", draws=40, through_budgets=False)
    belief = Belief.of_runs(fit.laws, law_data(TABLE), fit.family, CANDIDATES.columns, flops=fit.fitted.flops)
    names = [part.law.name for part in belief.parts]
    assert names[:2] == ["iso-depth", "iso-depth-six-parameter"]
    assert sum(part.weight for part in belief.parts) == pytest.approx(1)
    targets = [Target.parse(text) for text in ("N@256e18", "decision@256e18")]
    design = design_runs(belief, CANDIDATES, targets, 2e20, rounds=2)
    # What is known now is what the fit's own refits say.
    point = fit.point(256e18)
    low, high = design.interval(0, design.before)
    assert point.params.value == pytest.approx(design.values[0], rel=0.1)
    assert np.log(high / low) == pytest.approx(np.log(point.params.interval[1] / point.params.interval[0]), rel=0.5)
    assert design.before.nats_lost > design.rounds[0].nats_lost > design.rounds[1].nats_lost > 0
    report = design_report(design, axis="mean_recurrence")
    assert "Runs for N@2.56e20, decision@2.56e20" in report
    assert "140m, mu = " in report
    assert max(map(len, report.splitlines())) <= 100
    figure = design_figure(design, axis="mean_recurrence")
    assert [axes.get_ylabel() for axes in figure.axes] == [f"{size}: µ (loops)" for size in ("770m", "370m", "140m")]
    plt.close(figure)


def test_the_laws_beside_the_best_one_have_a_quarter_together_at_least():
    laws = fit_sizes(TABLE, name="sizes", draws=5, through_budgets=False).laws
    first, richer, *_ = laws.laws
    for weights, shares in (((0.97, 0.03), (0.75, 0.25)), ((0.4, 0.6), (0.4, 0.6)), ((0.0, 1.0), (0.25, 0.75))):
        mixture = dataclasses.replace(laws, laws=(first, richer), weights=weights)
        belief = Belief.of_runs(mixture, law_data(TABLE), FAMILY, CANDIDATES.columns, flops=RANGE)
        assert [part.weight for part in belief.parts] == pytest.approx(shares)


def test_a_design_over_sizes_from_nothing_determines_the_law():
    belief = Belief.of_published(FAMILY, CANDIDATES.columns, flops=RANGE)
    targets = [Target.parse("phi"), Target.parse("loss@256e18")]
    design = design_runs(belief, CANDIDATES, targets, 300e18, rounds=2)
    fit = fit_law(LAW, chosen(design, 0), draws=0, seed=0)
    assert fit.value("phi") == pytest.approx(SIZES_TRUTH.phi, abs=0.05)
    assert fit.value("alpha") == pytest.approx(SIZES_TRUTH.x, abs=0.05)
    assert design.before.widths > design.rounds[0].widths > design.rounds[1].widths
    assert design.before.nats_lost <= 1.0


def test_targets_that_nothing_can_move_are_refused():
    belief = belief_after(law_data(TABLE))
    free = dataclasses.replace(belief.parts[0], vectors=belief.parts[0].vectors * np.array([1, 1, 1, 1, 1, 0.0]))
    one_loop = dataclasses.replace(belief, parts=(free,))
    with pytest.raises(ValueError, match="at the end of what is searched, such as a single loop"):
        design_runs(one_loop, CANDIDATES, [Target.parse("mu@256e18")], 1e20)
    with pytest.raises(ValueError, match=r"must be one of mu@FLOPS, N@FLOPS, .*gamma_N.*phi, but got 'charm'"):
        design_runs(belief, CANDIDATES, [Target.parse("charm")], 1e20)
