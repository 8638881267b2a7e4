"""Power laws: exact recovery, what is missing left out, a floor found and held at its bound."""

import numpy as np
import pytest

from isoloop.fitting.isoflop.power_law import fit_minimal_loss, fit_power_law, lines

BUDGETS = np.array([1e18, 2e18, 4e18, 8e18, 16e18])
NONE = np.empty((0, 5))
EVEN = np.ones(5)


def test_a_line_leaves_out_what_is_missing_and_weighs():
    x = np.arange(4.0)
    rows = np.array([1 + 2 * x, [1.0, np.nan, 5.0, np.nan], [1.0, 3.0, 5.0, 99.0]])
    assert lines(x, rows[:2]) == pytest.approx(np.array([[2.0, 1.0], [2.0, 1.0]]))
    assert lines(x, rows[2:], np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(np.array([[2.0, 1.0]]))


def test_an_interval_is_of_the_draws_and_grows_beyond_them():
    rng = np.random.default_rng(0)
    logs = 0.4 * np.log(BUDGETS)
    law = fit_power_law("quantity", BUDGETS, logs, logs + 0.1 * rng.standard_normal((2000, 5)))
    error = 0.1 / np.sqrt(((np.log(BUDGETS) - np.log(BUDGETS).mean()) ** 2).sum())
    assert np.ptp(law.interval) == pytest.approx(2 * 1.96 * error, rel=0.1)
    inside, beyond = (np.ptp(np.log(law.interval_at(budget))) for budget in (4e18, 1e20))
    assert beyond > 2 * inside


def test_without_draws_an_interval_is_that_of_the_scatter_of_the_minima_there_are():
    logs = 0.4 * np.log(BUDGETS) + np.array([0.01, -0.02, 0.0, 0.02, -0.01])
    missing = np.where([True, True, False, True, True], logs, np.nan)
    kept = ~np.isnan(missing)
    of_four = fit_power_law("quantity", BUDGETS[kept], logs[kept], NONE[:, kept])
    assert fit_power_law("quantity", BUDGETS, missing, NONE).interval == pytest.approx(of_four.interval)
    two = np.where([True, False, False, False, True], logs, np.nan)
    assert fit_power_law("quantity", BUDGETS, two, NONE).interval is None


@pytest.mark.parametrize(("floor", "exponent"), [(2.4, 0.17), (1.7, 0.05), (0.3, 1.2)])
def test_a_floor_is_recovered(floor, exponent):
    losses = floor + 0.6 * (BUDGETS / 4e18) ** -exponent
    law = fit_minimal_loss(BUDGETS, losses, np.vstack([losses, losses]), EVEN, floor=True)
    assert (law.floor, law.coefficient, law.exponent) == pytest.approx((floor, 0.6, exponent), rel=1e-4)
    assert law.at([1e20]) == pytest.approx([floor + 0.6 * 25.0**-exponent], rel=1e-6)
    assert law.interval_at(1e20) == pytest.approx((float(law.at(1e20)),) * 2)
    assert not law.at_bound


def test_losses_without_a_floor_hold_it_at_zero():
    losses = 3.0 * (BUDGETS / 4e18) ** -0.05 - 0.2
    law = fit_minimal_loss(BUDGETS, losses, NONE, EVEN, floor=True)
    assert (law.floor, law.at_bound) == (0.0, True)
    pure = fit_minimal_loss(BUDGETS, 3.0 * (BUDGETS / 4e18) ** -0.05, NONE, EVEN, floor=False)
    assert (pure.coefficient, pure.exponent) == pytest.approx((3.0, 0.05), rel=1e-9)
    assert (pure.has_floor, pure.interval, pure.interval_at(1e20)) == (False, None, None)


def test_minima_weigh_by_their_certainty():
    losses = 2.4 + 0.6 * (BUDGETS / 4e18) ** -0.17
    off = losses + np.array([0.0, 0.0, 0.0, 0.0, 0.01])
    law = fit_minimal_loss(BUDGETS, off, NONE, np.array([1.0, 1.0, 1.0, 1.0, 1e-9]), floor=True)
    assert law.floor == pytest.approx(2.4, rel=1e-4)


def test_a_floor_on_two_budgets_is_refused():
    with pytest.raises(ValueError, match="needs 3 budgets with a minimum, but there are 2"):
        fit_minimal_loss(BUDGETS[:2], np.array([3.0, 2.9]), np.empty((0, 2)), np.ones(2), floor=True)
