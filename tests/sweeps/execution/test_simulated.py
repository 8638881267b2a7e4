"""Simulated runs: their losses are those of the law, at the T at which a trained run is evaluated."""

import pytest

from isoloop.fitting.simulate import Truth
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.trainer.accounting import count_parameters
from tests.sweeps.conftest import SIMULATED


def test_the_loss_at_a_fraction_of_loops_is_that_of_the_mixture(tmp_path):
    content = {**SIMULATED, "budgets": [1e10], "mean_recurrences": [1.25], "evaluation": {"recurrences": [1, 4]}}
    content["simulation"] = {**SIMULATED["simulation"], "run_noise": 0.0, "evaluation_noise": 0.0}
    sweep = validate_sweep(content, source="test")
    (cell,) = plan_sweep(sweep, simulated_corpus).cells
    result = simulate_run(cell.spec, sweep.simulation, cell.run_id, tmp_path)
    parameters = count_parameters(cell.spec.model)
    law = Truth(
        **sweep.simulation.model_dump(exclude={"flops_per_second"}),
        effective_params_fixed=parameters.effective_fixed,
        effective_params_per_loop=parameters.effective_per_loop,
    )
    expected = {loops: law.loss(1.25, result.tokens, loops) for loops in (1, 2, 4)}
    assert result.losses == pytest.approx(expected)
    assert result.loss == pytest.approx(0.75 * expected[1] + 0.25 * expected[2])
    assert result.loss > law.loss(1.25, result.tokens, 1.25)  # the law is convex in T
