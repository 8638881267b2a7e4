"""The next runs: information and choices against brute force, and predicted certainty against refits."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from isoloop.fitting.cost import DenseCost
from isoloop.fitting.design import Belief, Candidates, Noise, Target, candidate_budgets, candidate_values, design_runs
from isoloop.fitting.design.information import Plausible
from isoloop.fitting.design.models import ModelsOnAxis
from isoloop.fitting.design.report import design_report
from isoloop.fitting.design.selection import Scores, choose_cells
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.estimation.objective import SQUARED
from isoloop.fitting.laws.registry import law_named
from isoloop.fitting.selection.mixture import law_mixture
from isoloop.fitting.simulate import PUBLISHED_BUDGETS, PUBLISHED_RECURRENCES, published_cost_model

COST = published_cost_model()
TRUTH = np.array([2.28, 31.8, 34.65, 0.26, 0.19])
RANGE = 1e18, 64e18
NOISE = 1e-3
VALUES = candidate_values("mean_recurrence", 1, 24)
CANDIDATES = Candidates.grid(COST, VALUES, candidate_budgets(*RANGE), seeds=2)


def runs_of(values, flops, seed=None):
    data = COST.model_columns(values, COST.tokens_for(flops, values))
    noise = 0.0 if seed is None else NOISE * np.random.default_rng(seed).standard_normal(len(values))
    return {**data, "loss": law_named("training").loss(TRUTH, data) * np.exp(noise)}


def grid(seed=None):
    flops, values = (each.ravel() for each in np.meshgrid(PUBLISHED_BUDGETS, PUBLISHED_RECURRENCES))
    return runs_of(values, flops, seed)


def scores(seed=0, cells=7, parameters=3):
    rng = np.random.default_rng(seed)
    return Scores(
        slopes=rng.standard_normal((1, cells, parameters)),
        gradients=rng.standard_normal((1, 1, 1, parameters)),
        covariance=np.eye(parameters)[None] * 4.0,
        shares=np.ones(1),
    )


def test_choices_of_equal_costs_are_near_the_best_of_all():
    ratios = []
    for seed in range(12):
        one = scores(seed)
        slopes, gradient = one.slopes[0], one.gradients[0, 0, 0]

        def variance(cells, slopes=slopes, gradient=gradient):
            information = np.eye(3) / 4 + slopes[list(cells)].T @ slopes[list(cells)]
            return gradient @ np.linalg.solve(information, gradient)

        best = min(variance(cells) for cells in combinations_with_replacement(range(7), 4))
        chosen = choose_cells([one], np.ones(7), 4.0, np.full(7, 4))
        assert chosen.counts.sum() == 4
        found = variance(np.repeat(np.arange(7), chosen.counts))
        assert one.variances[0, 0] == pytest.approx(found)  # rank-one steps add up to the whole
        ratios.append(found / best)
    assert np.median(ratios) < 1.02
    assert max(ratios) < 1.3


def test_money_and_seeds_limit_a_choice():
    costs = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    chosen = choose_cells([scores()], costs, 11.0, np.full(7, 2))
    assert chosen.counts.max() <= 2
    assert chosen.counts @ costs + chosen.left == pytest.approx(11.0)
    assert chosen.left < 11.0


@pytest.mark.parametrize("target", ["mu@256e18", "loss@256e18", "tokens@1e20", "gamma_mu", "gamma_D", "X", "y"])
def test_derivatives_are_those_of_differences(target):
    law, models = law_named("training"), ModelsOnAxis.of(COST, VALUES)
    plausible = Plausible.of(law, TRUTH[None], CANDIDATES.columns, sd=2.0)
    _, slopes = plausible.target(Target.parse(target), models, RANGE)
    for place in range(len(TRUTH)):
        ends = []
        for step in (1e-3, -1e-3):
            moved = plausible.vectors * np.exp(step * (np.arange(len(TRUTH)) == place))
            other = Plausible(law=law, problem=plausible.problem, vectors=moved, information=moved, weight=1.0)
            ends.append(other.target(Target.parse(target), models, RANGE)[0][0])
        assert slopes[0, 0, place] == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2, abs=1e-3)


def test_predicted_widths_are_those_of_refits():
    """The width that a design predicts is that of fits to the runs which it chose."""
    law = fit_law("training", grid(), draws=0, seed=0, objective=SQUARED)
    noise = Noise(level=NOISE, source="a test")
    belief = Belief.of_runs(law_mixture([law]), grid(), COST, CANDIDATES.columns, flops=RANGE, noise=noise)
    targets = Target.parse("gamma_mu"), Target.parse("loss@256e18")
    design = design_runs(belief, CANDIDATES, targets, 200e18)
    counts = design.rounds[0].counts
    values, flops = np.repeat(CANDIDATES.values, counts), np.repeat(CANDIDATES.flops, counts)
    vectors = []
    for seed in range(40):
        old, new = grid(seed), runs_of(values, flops, seed + 1000)
        data = {name: np.concatenate([old[name], new[name]]) for name in old}
        vectors.append(fit_law("training", data, draws=0, seed=0, objective=SQUARED).vector)
    drawn = Plausible.of(law.form, np.array(vectors), CANDIDATES.columns, sd=2.0)
    for place, target in enumerate(targets):
        scatter = 2 * 1.96 * drawn.target(target, belief.models, RANGE)[0].std()
        assert design.rounds[0].widths[place] == pytest.approx(scatter, rel=0.3)
    assert design.rounds[0].widths[0] < 0.6 * design.before.widths[0]


def test_a_design_from_nothing_determines_the_law():
    belief = Belief.of_published(COST, CANDIDATES.columns, flops=RANGE)
    design = design_runs(belief, CANDIDATES, [Target.parse("gamma_mu"), Target.parse("loss@256e18")], 665e18, rounds=2)
    counts = sum(played.counts for played in design.rounds)
    assert (counts @ CANDIDATES.costs) <= 665e18 * (1 + 1e-9)
    data = runs_of(np.repeat(CANDIDATES.values, counts), np.repeat(CANDIDATES.flops, counts), 0)
    fit = fit_law("training", data, draws=0, seed=0)
    assert fit.value("x") == pytest.approx(0.26, abs=0.05)
    assert design.before.widths > design.rounds[0].widths > design.rounds[1].widths
    report = design_report(design, axis="mean_recurrence", width=10.0)
    assert "round 2" in report
    assert "stop" in report
    assert max(map(len, report.splitlines())) <= 100


def test_seeds_show_the_noise():
    values, flops = np.repeat([1.0, 2.0, 4.0, 8.0, 12.0], 6), np.tile(np.repeat([1e18, 8e18, 64e18], 2), 5)
    data = runs_of(values, flops, 0)
    fit = law_mixture([fit_law("training", data, draws=0, seed=0)])
    noise = Noise.of_runs(fit, data)
    assert "seeds" in noise.source
    assert noise.level == pytest.approx(NOISE, rel=0.5)
    assert noise.in_fits(None) == noise.level
    assert 1.0 < noise.in_fits(1e-3) / noise.level < 1.3  # Huber's function at one standard deviation: 1.1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mu", "must have a budget"),
        ("mu@none", "must be positive FLOPs"),
        ("gamma_mu@1e21", "at a budget must be one of"),
        ("charm", "must be one of mu@FLOPS"),
        ("N@1e21", "use mu or gamma_mu"),
    ],
)
def test_a_wrong_target_is_refused(target, message):
    belief = Belief.of_published(COST, CANDIDATES.columns, flops=RANGE)
    with pytest.raises(ValueError, match=message):
        design_runs(belief, CANDIDATES, [Target.parse(target)], 100e18)


def test_too_little_money_and_no_noise_are_refused():
    belief = Belief.of_published(COST, CANDIDATES.columns, flops=RANGE)
    with pytest.raises(ValueError, match="pay for the cheapest cell"):
        design_runs(belief, CANDIDATES, [Target.parse("gamma_mu")], 1e17)
    exact = law_mixture([fit_law("training", grid(), draws=0, seed=0)])
    with pytest.raises(ValueError, match="needs the noise"):
        Belief.of_runs(exact, grid(), COST, CANDIDATES.columns, flops=RANGE)


def test_dense_models_are_designed_along_their_parameters():
    """The best size and its derivatives are those of Hoffmann et al. 2022, eq. 4."""
    law, cost = law_named("chinchilla"), DenseCost()
    truth = np.array([1.7, 400.0, 2000.0, 0.34, 0.37])
    candidates = Candidates.grid(cost, candidate_values("params", 1e7, 1e9), candidate_budgets(1e18, 1e20), seeds=1)
    plausible = Plausible.of(law, truth[None], candidates.columns, sd=2.0)
    models = ModelsOnAxis.of(cost, candidates.values)
    value, slopes = plausible.target(Target.parse("N@1e21"), models, (1e18, 1e20))
    assert slopes[0, 0, 1] == pytest.approx(1 / (0.34 + 0.37), rel=1e-3)
    assert slopes[0, 0, 2] == pytest.approx(-1 / (0.34 + 0.37), rel=1e-3)
    by_hand = (np.log(0.34 * 400.0 / (0.37 * 2000.0)) + 0.37 * np.log(1e21 / 6)) / (0.34 + 0.37)
    assert value[0] == pytest.approx(by_hand, rel=1e-4)
    gamma, _ = plausible.target(Target.parse("gamma_N"), models, (1e18, 1e20))
    assert gamma[0] == pytest.approx(0.37 / (0.34 + 0.37), rel=1e-3)
    belief = Belief.of_prior(law, truth, cost, candidates.columns, flops=(1e18, 1e20))
    design = design_runs(belief, candidates, [Target.parse("N@1e21")], 5e20, rounds=2)
    assert design.before.widths[0] > 2 * design.rounds[0].widths[0] > 2 * design.rounds[1].widths[0]
    assert design.before.nats_lost > design.rounds[0].nats_lost > 0
    assert design.rounds_to(np.inf) == 0
    assert design.rounds_to(1.0) is None
