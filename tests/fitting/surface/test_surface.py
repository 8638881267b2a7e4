"""The loss surface of a fit: equal to its laws and costs, and to the one-dimensional search where that exists."""

import numpy as np
import pytest

from isoloop.fitting import CostModel, fit_sweep, simulate_table
from isoloop.fitting.cost.family import FamilyMember, ModelFamily
from isoloop.fitting.result import SweepFit
from isoloop.fitting.surface.search import minimise_on_box


@pytest.fixture(scope="module")
def fit() -> SweepFit:
    return fit_sweep(simulate_table(), name="published", draws=40)


def test_a_surface_of_one_size_has_the_optimum_of_its_laws(fit: SweepFit) -> None:
    surface, laws = fit.surface, fit.laws_after_training
    assert surface is not None
    assert laws is not None
    assert surface.axes == ("mean_recurrence", "tokens")
    own = laws.optimum(fit.cost_model, 1e20)

    def tokens_for(params: np.ndarray, loops: np.ndarray) -> np.ndarray:
        return surface.family.tokens_for(1e20, params, loops)

    best, drawn = surface.best(tokens_for), surface.best_draws(tokens_for)
    assert best.mean_recurrence == pytest.approx(float(own.best.at), rel=1e-3)
    assert best.loss == pytest.approx(float(own.best.loss), rel=1e-9)
    assert drawn is not None
    assert own.draws is not None
    assert drawn.mean_recurrence == pytest.approx(own.draws.at, rel=2e-2)
    assert drawn.loss == pytest.approx(own.draws.loss, rel=1e-9)


def test_a_loss_at_other_loops_is_that_of_the_joint_law(fit: SweepFit) -> None:
    surface, law = fit.surface, fit.joint_test_time
    assert surface is not None
    assert law is not None
    at_mean = surface.loss(surface.own_params, 8.0, 1e10)
    assert surface.loss(surface.own_params, 8.0, 1e10, recurrence=8.0) == pytest.approx(at_mean)
    Z, z = law.vector
    change = Z * (np.exp(-z * 4 / 8) - np.exp(-z))
    assert surface.loss(surface.own_params, 8.0, 1e10, recurrence=4.0) - at_mean == pytest.approx(change, rel=1e-9)
    drawn = surface.loss_draws(surface.own_params, np.array([8.0]), np.array([1e10]), recurrence=4.0)
    assert drawn.shape == (surface.draws, 1)
    assert np.median(drawn) == pytest.approx(float(at_mean) + change, rel=1e-3)


def _member(label: str, factor: float) -> FamilyMember:
    cost = CostModel(
        flops_per_token_fixed=1e8 * factor,
        flops_per_token_forward_loop=3e7 * factor,
        flops_per_token_backward_loop=6e7 * factor,
        effective_params_fixed=3e7 * factor,
        effective_params_per_loop=1e7 * factor,
        mean_recurrences=(1.0, 2.0, 4.0),
        forward_loops=(1.0, 2.0, 4.0),
        backward_loops=(1.0, 1.0, 2.0),
    )
    return FamilyMember(label=label, cost=cost)


def test_a_family_is_exact_at_its_members_and_proportional_between() -> None:
    family = ModelFamily(members=(_member("small", 1.0), _member("large", 4.0)))
    small, large = family.members
    for member in family.members:
        assert family.flops_per_token(member.params, 3.0) == pytest.approx(member.cost.flops_per_token(3.0), rel=1e-12)
    # All numbers of these members are in proportion to the size, so everything else is, too, inside and outside.
    sizes = small.params * np.array([0.5, 2.0, 10.0])
    assert family.flops_per_token(sizes, 2.0) == pytest.approx(
        float(small.cost.flops_per_token(2.0)) * np.array([0.5, 2.0, 10.0]), rel=1e-9
    )
    columns = family.columns(sizes, 2.0, 1e9, {"unique_tokens": 1e8})
    assert columns["params"] == pytest.approx(sizes)
    assert columns["effective_params"] == pytest.approx(sizes * 5 / 4)
    assert columns["unique_tokens"].shape == sizes.shape
    assert family.label_of(large.params) == "large"
    assert family.label_of(2 * small.params) == "80M"


def test_members_of_equal_size_are_refused() -> None:
    with pytest.raises(ValueError, match="growing size"):
        ModelFamily(members=(_member("one", 1.0), _member("two", 1.0)))


def test_the_search_on_a_box_finds_the_minima_of_many_functions_at_once() -> None:
    centres = np.array([[0.3, -0.7], [0.9, 0.1], [5.0, 0.0]])

    def function(points: np.ndarray) -> np.ndarray:
        return ((points - centres[:, None, :]) ** 2).sum(axis=-1) + 0.5 * (points - centres[:, None, :]).prod(axis=-1)

    best, value = minimise_on_box(function, [(-1.0, 1.0), (-1.0, 1.0)])
    assert best[:2] == pytest.approx(centres[:2], abs=1e-6)
    assert value[:2] == pytest.approx(np.zeros(2), abs=1e-10)
    assert best[2, 0] == 1.0  # exactly the end of the box
