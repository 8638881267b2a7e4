"""What docs/fitting.md shows and says is run as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fitting import misleading
from isoloop.fitting import (
    LAWS,
    PUBLISHED_TRUTH,
    CostModel,
    TrainingLaw,
    choose_table,
    law_named,
    read_runs,
    simulate_table,
)
from isoloop.fitting.cost.backprop import poisson_loops
from isoloop.fitting.simulate import published_cost_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "fitting.md"


@pytest.fixture
def own_law(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (tmp_path / "product.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield law_named("product:ProductLaw")
    sys.modules.pop("product")


def test_a_law_of_ones_own_keeps_the_contract(own_law):
    data = {"effective_params": np.array([4e7, 9e7, 2e8]), "tokens": np.array([1e9, 8e9, 3e9])}
    at = np.array([1.9, 120.0, 0.12])
    loss, gradient = own_law.loss_and_gradient(at, data)
    for i, step in enumerate(np.diag(1e-6 * at)):
        slope = (own_law.loss(at + step, data) - own_law.loss(at - step, data)) / (2 * step[i])
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-6)
    units = {"effective_params": 7.0, "tokens": 1e9}
    smaller = {name: values / units[name] for name, values in data.items()}
    in_units = own_law.rescaled(at, {name: 1 / unit for name, unit in units.items()})
    np.testing.assert_allclose(own_law.loss(in_units, smaller), loss, rtol=1e-12)
    many = at * np.ones((2, 5, 1))
    assert own_law.loss(many, data).shape == (2, 5, 3)
    assert own_law.loss_and_gradient(many, data)[1].shape == (2, 5, 3, 3)


def test_a_law_of_ones_own_is_compared(own_law, tmp_path):
    simulate_table(recurrences=()).to_csv(tmp_path / "runs.csv", index=False)
    found = choose_table(read_runs(tmp_path / "runs.csv"), laws=["training", "product:ProductLaw"], draws=20)
    training, product = found.candidates
    assert found.missing == ()
    assert product.fit.law == "product:ProductLaw"
    assert training.aic < product.aic - 10  # the truth is a training law
    assert f"product: {own_law.formula}" in found.report()


def test_every_law_and_every_figure_is_there():
    text = DOCS.read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", text.split("### A law of your own")[0], flags=re.MULTILINE)
    assert sorted(rows) == sorted(law.name for law in LAWS)
    shown = re.findall(r"!\[[^\]]+\]\((fitting-[a-z-]+)\.png\)", text)
    assert sorted(shown) == sorted(f"fitting-{name}" for name in misleading.STUDIES)
    assert all((DOCS.parent / f"{name}.png").is_file() for name in shown)


@pytest.mark.parametrize(
    ("nodes", "best", "exponent"),
    [((1, 2, 4, 6, 8, 10, 12), [3.59, 4, 5.23, 6.73, 8.79], 0.33), (range(1, 17), [4, 4, 6, 6, 8], 0.26)],
)
def test_the_best_recurrence_sits_at_the_kinks_of_the_cost(nodes, best, exponent):
    published, loops = published_cost_model(), [poisson_loops(mu, -(-mu // 2)) for mu in nodes]
    cost = CostModel(
        **{name: value for name, value in vars(published).items() if "loops" not in name and "mean" not in name},
        mean_recurrences=tuple(map(float, nodes)),
        forward_loops=tuple(forward for forward, _ in loops),
        backward_loops=tuple(backward for _, backward in loops),
    )
    budgets = 1e18 * 2.0 ** np.arange(5)
    at = np.array([getattr(PUBLISHED_TRUTH, name) for name in TrainingLaw().parameter_names])
    found = [float(TrainingLaw().optimum(at, cost, budget).at) for budget in budgets]
    np.testing.assert_allclose(found, best, rtol=2e-3)
    assert np.polyfit(np.log(budgets), np.log(found), 1)[0] == pytest.approx(exponent, abs=0.005)
