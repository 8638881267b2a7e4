"""A sweep's result as numbers: those of its fit, and none that its runs don't determine."""

import pytest

from isoloop.fitting import fit_sweep, recommendation
from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.report.answer import sweep_answer
from isoloop.sweeps.report.headline import headline


def results_of(table, folders):
    fits = [fit_sweep(table, name="x", draws=20, hold_out_largest_budget=hold_out) for hold_out in (False, True)]
    return SweepResults(
        fit=fits[0], hold_out=fits[1], why_no_fit=None, why_no_hold_out=None, report=folders.report, groups={}
    )


def test_the_answer_is_that_of_the_fit(tmp_path):
    table = simulate_table(budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4, 8, 12), recurrences=(), seed=1)
    results = results_of(table, Folders(out=tmp_path, name="x"))
    answer, fit = sweep_answer(table, results), results.fit
    best = recommendation(fit, fit.fitted.flops[1])
    expected = {
        "best_loss": table["loss"].min(),
        "gamma_mu": fit.isoflop.axis_law.exponent,
        "gamma_D": fit.isoflop.tokens_law.exponent,
        "optimal_mean_recurrence": best.value,
        "optimal_tokens": best.tokens,
        "optimal_loss": best.loss,
        "held_out_error_percent": results.hold_out.held_out.errors[0].mean_absolute_error,
    }
    assert answer.numbers == pytest.approx(expected)
    low, high = answer.intervals["gamma_mu"]
    assert low < expected["gamma_mu"] < high
    assert answer.sentences == headline(results)


def test_what_is_not_determined_is_left_out(tmp_path):
    table = simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2), recurrences=(), seed=1)
    whole = SweepResults(
        fit=None, hold_out=None, why_no_fit="it is too small", why_no_hold_out="too small", report=tmp_path, groups={}
    )
    answer = sweep_answer(table, whole)
    assert answer.numbers == {"best_loss": table["loss"].min()}
    assert answer.sentences == ["Not fitted: it is too small."]
