"""The cost of recurrences that nobody ran: the rule of the backprop depth goes on, as the trainer counts it."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import CostModel, MeasuredCost, SweepFit, check_table, fit_sweep, predict, read_table
from isoloop.fitting.caveats import continuation_caveats
from isoloop.fitting.cost.backprop import backprop_rule
from isoloop.fitting.estimation.law_fit import EXACT
from isoloop.trainer.accounting import expected_loops
from isoloop.trainer.config import RecurrenceConfig

CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "backprop-depth" / "trunc4.csv"
NODES = (1, 2, 3, 4, 6, 8, 12)
FIXED, FORWARD, BACKWARD = 39e7, 4e7, 8e7
RULES = {
    "ceil(mu/2)": lambda mu: math.ceil(mu / 2),
    "mu": lambda mu: mu,
    "3 at every mu": lambda mu: 3,
    "1 at every mu": lambda mu: 1,
    "min(mu, 4)": lambda mu: min(mu, 4),
    "min(ceil(mu/2), 3)": lambda mu: min(math.ceil(mu / 2), 3),
}


def counted(rule, mu, accounting="exact", **curriculum):
    """Return the trainer's own count of loops (forward, backward)."""
    return expected_loops(RecurrenceConfig(mean=mu, backprop_depth=rule(mu), **curriculum), accounting)


def cost_of_loops(loops, depths, nodes=NODES):
    forward, backward = zip(*loops, strict=True)
    return CostModel(
        flops_per_token_fixed=FIXED, flops_per_token_forward_loop=FORWARD, flops_per_token_backward_loop=BACKWARD,
        effective_params_fixed=4e7, effective_params_per_loop=2e7, mean_recurrences=nodes, forward_loops=forward,
        backward_loops=backward, backprop=backprop_rule(nodes, depths, (forward, backward)),
    )  # fmt: skip


def cost_under(rule, nodes=NODES, recorded=True, accounting="exact", **curriculum):
    loops = [counted(rule, mu, accounting, **curriculum) for mu in nodes]
    return cost_of_loops(loops, [rule(mu) for mu in nodes] if recorded else None, nodes)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("accounting", ["exact", "parcae-release"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_goes_on_as_the_trainer_counts(name, accounting, recorded):
    cost = cost_under(RULES[name], recorded=recorded, accounting=accounting)
    assert cost.backprop.recorded
    assert not recorded or cost.backprop.name == name
    assert not continuation_caveats(cost)
    for mu in (16, 24, 60, 900):
        # ceil(mu/2) goes on as mu/2, which leaves the little that sampling takes at 12.
        close = {"abs": 0.04} if name == "ceil(mu/2)" else {"rel": 1e-9}
        (forward, backward), expected = cost.loops(mu), counted(RULES[name], mu, accounting)
        assert forward == pytest.approx(expected[0], abs=1e-5)
        assert backward == pytest.approx(expected[1], **close)


@pytest.mark.parametrize("name", ["mu", "3 at every mu", "min(mu, 8)"])
def test_a_rule_goes_on_below_the_grid(name):
    rule = {**RULES, "min(mu, 8)": lambda mu: min(mu, 8)}[name]
    cost = cost_under(rule, nodes=(6, 7, 8, 12, 16))
    assert cost.backprop.name == name
    for mu in (2, 4):
        assert cost.loops(mu)[1] == pytest.approx(counted(rule, mu)[1], rel=1e-9)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("fraction", [0.3, 0.8])
def test_a_curriculum_goes_on(name, fraction):
    settings = {"curriculum_start": 1, "curriculum_fraction": fraction}
    cost = cost_under(RULES[name], **settings)
    assert cost.backprop.recorded
    assert cost.backprop.curriculum == pytest.approx((1, fraction), rel=1e-3)
    for mu in (24, 60):
        assert np.ravel(cost.loops(mu)) == pytest.approx(counted(RULES[name], mu, **settings), rel=0.01)


@pytest.mark.parametrize("sampling", ["per-sequence", "fixed"])
@pytest.mark.parametrize("until", [0.3, 0.7])
@pytest.mark.parametrize("name", RULES)
def test_a_phase_of_fewer_loops_goes_on(name, until, sampling):
    settings = {"phases": [{"until": until, "mean": 1}], "sampling": sampling}
    cost = cost_under(RULES[name], nodes=(2, 4, 6, 8), **settings)
    assert cost.backprop.recorded
    for mu in (12, 16, 60):
        assert np.ravel(cost.loops(mu)) == pytest.approx(counted(RULES[name], mu, **settings), rel=0.02), mu


def test_several_phases_go_on_as_one():
    settings = {"phases": [{"until": 0.3, "mean": 1}, {"until": 0.6, "mean": 1.5}]}
    cost = cost_under(RULES["ceil(mu/2)"], nodes=(2, 4, 6, 8), **settings)
    for mu in (12, 16):
        assert np.ravel(cost.loops(mu)) == pytest.approx(counted(RULES["ceil(mu/2)"], mu, **settings), rel=0.02), mu


def test_loops_with_gradient_below_the_depth_by_a_share_stay_so():
    shared = [(mu, 0.8 * math.ceil(mu / 2)) for mu in NODES]
    cost = cost_of_loops(shared, [math.ceil(mu / 2) for mu in NODES])
    assert cost.backprop.share == pytest.approx(0.8)
    assert np.ravel(cost.loops(40)) == pytest.approx((40, 16))
    assert cost.assumption_at(40) == ""


def test_half_of_the_loops_on_average_goes_on_as_half_of_them():
    nodes = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    halves = [max(1.0, mu / 2) for mu in nodes]
    rule = backprop_rule(nodes, [float(np.ceil(mu / 2)) for mu in nodes], (nodes, halves))
    assert (rule.shape, rule.share, rule.recorded) == ("half", None, True)
    assert rule.backward_loops(16.0) - rule.backward_loops(12.0) == pytest.approx(2.0)


def test_loops_that_were_drawn_show_the_sampling():
    rng = np.random.default_rng(0)
    drawn = [np.maximum(1, rng.poisson(mu, 2000)) for mu in NODES]
    cost = cost_of_loops([(loops.mean(), np.minimum(loops, mu).mean()) for loops, mu in zip(drawn, NODES)], NODES)  # noqa: B905
    assert cost.backprop.poisson
    assert np.ravel(cost.loops(100)) == pytest.approx(counted(lambda mu: mu, 100), rel=0.01)


@pytest.mark.parametrize(
    ("nodes", "depths", "chosen", "below", "above"),
    [
        ((1,), (1,), "ceil(mu/2)", (), ("mu", "1 at every mu")),
        ((1, 2), (1, 1), "ceil(mu/2)", (), ("1 at every mu",)),
        ((1, 2), (1, 2), "mu", (), ()),
        ((4, 8, 12), (4, 4, 4), "4 at every mu", ("min(mu, 4)",), ()),
        ((8, 12), (4, 4), "4 at every mu", ("min(mu, 4)", "min(ceil(mu/2), 4)"), ()),
        ((1, 4, 8), (1, 1, 1), "1 at every mu", (), ()),
    ],
)
def test_the_rule_is_named_where_several_fit(nodes, depths, chosen, below, above):
    cost = cost_of_loops([(mu, min(mu, depth)) for mu, depth in zip(nodes, depths, strict=True)], depths, nodes)
    rule = cost.backprop
    assert (rule.name, rule.also_below, rule.also_above) == (chosen, below, above)
    text = " ".join(continuation_caveats(cost))
    for others, assumption in ((below, cost.assumption_at(nodes[0] / 2)), (above, cost.assumption_at(2 * nodes[-1]))):
        assert bool(others) == bool(assumption)
        assert assumption in text
        assert all(name in assumption for name in (chosen, *others) if others)
    assert cost.assumption_at(nodes[0]) == ""


def test_depths_that_follow_no_rule_go_on_in_proportion():
    cost = cost_under(lambda mu: math.ceil(mu / 3))
    assert not cost.backprop.recorded
    assert cost.loops(36)[1] == pytest.approx(3 * cost.backward_loops[-1])
    assert continuation_caveats(cost)[0].startswith("Above 12 mean loops the cost assumes loops with gradient in prop")


# The best model beyond the grid, by a law and costs that are known


def law(mu, tokens):
    return 1.6 + 30 * (4e7 + 2e7 * mu) ** -0.22 + 300 * tokens**-0.28


def table_under(rule, own=False):
    """Return a table without noise whose FLOPs are those of the rule, with a cost model or only their owner's count."""
    rows = []
    for budget in 1e18 * 2.0 ** np.arange(6):
        for mu in NODES:
            tokens = budget / (FIXED + FORWARD * mu + BACKWARD * min(mu, rule(mu)))
            row = {
                "run_id": f"{budget:g}-{mu}", "status": "finished", "simulated": True, "accounting": "own", "seed": 0,
                "mean_recurrence": float(mu), "backprop_depth": float(rule(mu)), "tokens": tokens, "flops": budget,
                "budget": budget, "loss": law(mu, tokens), "params_once": 4e7, "params_recurrent": 2e7,
            }  # fmt: skip
            cost = {
                "accounting": "exact", "flops_per_token_fixed": FIXED, "flops_per_token_forward_loop": FORWARD,
                "flops_per_token_backward_loop": BACKWARD, "forward_loops": float(mu),
                "backward_loops": float(min(mu, rule(mu))), "effective_params_fixed": 4e7,
                "effective_params_per_loop": 2e7,
            }  # fmt: skip
            rows.append(row if own else row | cost)
    return check_table(pd.DataFrame(rows))


def true_optimum(rule, flops):
    mu = np.exp(np.linspace(0, math.log(1000), 200_001))
    tokens = flops / (FIXED + FORWARD * mu + BACKWARD * np.minimum(mu, rule(mu)))
    best = int(np.argmin(law(mu, tokens)))
    return mu[best], tokens[best]


@pytest.mark.parametrize(
    ("rule", "own"),
    [(lambda mu: mu, False), (lambda mu: np.minimum(mu, 4), False), (lambda mu: np.minimum(mu, 4), True)],
    ids=["mu", "min(mu, 4)", "min(mu, 4), own FLOPs"],
)
def test_the_best_model_beyond_the_grid_is_that_of_the_true_costs(rule, own):
    fit = fit_sweep(table_under(rule, own), name="known", draws=0)
    assert isinstance(fit.cost_model, MeasuredCost if own else CostModel)
    for flops in (6.4e19, 2.56e20, 1e21):
        best, (mu, tokens) = predict(fit, flops=flops), true_optimum(rule, flops)
        assert mu > 12
        assert best.mean_recurrence == pytest.approx(mu, rel=2e-3)
        assert best.tokens == pytest.approx(tokens, rel=2e-3)
        assert not any("assumes" in note for note in best.notes)


def test_own_flops_reach_the_limit_at_the_last_recurrence():
    """A single run at the limit shows no slope, so a loop with gradient counts as three."""
    nodes = (1.0, 2.0, 4.0, 12.0)
    cost = MeasuredCost(
        mean_recurrences=nodes,
        measured_flops_per_token=tuple(FIXED + FORWARD * mu + BACKWARD * min(mu, 10) for mu in nodes),
        backprop=backprop_rule(nodes, [min(mu, 10) for mu in nodes]),
    )
    assert cost.flops_per_token(50.0) == pytest.approx(FIXED + FORWARD * 50 + BACKWARD * 10)


def test_what_is_assumed_is_noted_with_a_prediction_beyond_the_grid():
    table = table_under(lambda mu: math.ceil(mu / 2))
    fit = fit_sweep(table[table["mean_recurrence"] <= 2], name="two", draws=0, law="loops")
    note = (
        "the compute of 24 loops assumes a backprop depth of ceil(mu/2), where 1 at every mu would fit the runs as well"
    )
    assert note in predict(fit, mean_recurrence=24, flops=1e19).notes
    assert not any("assumes" in each for each in predict(fit, mean_recurrence=1.5, flops=1e19).notes)
    own = fit_sweep(table_under(lambda mu: mu, own=True).drop(columns="backprop_depth"), name="own", draws=0)
    assert "the table records no backprop depth" in " ".join(own.caveats)


def test_an_interval_without_noise_says_so_and_is_stored():
    fit = fit_sweep(table_under(lambda mu: min(mu, 4)), name="exact", draws=20)
    assert fit.training.exact
    assert f"The training law: {EXACT}." in fit.caveats
    assert EXACT in predict(fit, mean_recurrence=24, flops=1e20).notes
    again = SweepFit.from_json(fit.to_json())
    assert again == fit
    assert again.cost_model.backprop.name == "min(mu, 4)"
    assert not dataclasses.replace(fit.training, noise=1e-4).exact


def test_the_case_with_a_backprop_depth_of_at_most_4():
    if not CASE.is_file():
        pytest.skip("the shared cases are not here")
    fit = fit_sweep(read_table(CASE), name="trunc4", draws=0)
    assert predict(fit, flops=6.4e19).mean_recurrence == pytest.approx(26.3, abs=0.05)
    assert predict(fit, mean_recurrence=24, flops=6.4e19).tokens == pytest.approx(3.83e10, rel=1e-3)
    assert predict(fit, flops=2.56e20).mean_recurrence == pytest.approx(42.0, abs=0.05)


def test_loops_of_half_the_recurrence_are_those_of_the_rule_that_goes_on_as_half():
    cost = cost_of_loops([(mu, max(1.0, mu / 2)) for mu in NODES], [math.ceil(mu / 2) for mu in NODES])
    assert cost.assumption_at(40) == ""
    assert np.ravel(cost.loops(40)) == pytest.approx((40, 20))
