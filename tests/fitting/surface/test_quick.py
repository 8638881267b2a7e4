"""The quick surface: that of the whole fit, and losses that count by what they are known with."""

import numpy as np
import pytest

from isoloop.fitting import fit_sweep, simulate_table
from isoloop.fitting.surface.quick import quick_surface


def test_a_quick_surface_is_that_of_the_whole_fit() -> None:
    table = simulate_table()
    whole = fit_sweep(table, name="whole", draws=0).surface
    assert whole is not None
    quick = quick_surface(table, draws=0)
    at = (np.nan, np.array([2.0, 8.0]), np.array([1e10, 1e11]))
    assert quick.loss(*at) == pytest.approx(whole.loss(*at), rel=1e-6)
    assert quick.mean_recurrence == whole.mean_recurrence


def test_an_extrapolated_loss_counts_by_its_error() -> None:
    table = simulate_table()
    wrong = table.assign(loss=table["loss"].where(table.index < 39, table["loss"] * 1.05))
    last = list(wrong["run_id"][39:])
    at = (np.nan, np.array([8.0]), np.array([1e11]))
    truth, trusted, doubted = (
        float(quick_surface(frame, errors=errors, draws=0).loss(*at)[0])
        for frame, errors in ((table, {}), (wrong, {}), (wrong, dict.fromkeys(last, 0.05)))
    )
    assert abs(doubted - truth) < 0.2 * abs(trusted - truth)
    # A refit draws their noise as large as their error, so they narrow no interval by more than they know.
    without = quick_surface(table[:39], draws=100)
    with_them = quick_surface(table, errors=dict.fromkeys(last, 0.05), draws=100)
    spread = [float(np.std(surface.loss_draws(*at))) for surface in (without, with_them)]
    assert spread[1] == pytest.approx(spread[0], rel=0.25)
