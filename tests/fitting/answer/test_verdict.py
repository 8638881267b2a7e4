"""What runs do not determine is said in the place of the number, and nothing of the kind is said of good tables."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from isoloop.fitting import NOT_DETERMINED, answer, fit_sweep, predict, recommendation, verdict
from isoloop.fitting.answer.limits import Limits
from isoloop.fitting.answer.verdict import verdict_on
from isoloop.fitting.simulate import PUBLISHED_TRUTH, simulate_table
from isoloop.fitting.tables.contract import loss_columns
from isoloop.fitting.tables.runs import read_table
from tests.run_tables import dense_table

RESULTS = Path(__file__).resolve().parents[3] / "results" / "python"
NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3)


def grid(budgets=(1e18, 4e18, 16e18), recurrences=(1, 2, 4, 8, 12), truth=NOISY, seed=0):
    return simulate_table(truth, budgets=budgets, mean_recurrences=recurrences, recurrences=(), seed=seed)


def at_its_bound(column, value):
    """Return a grid whose losses depend on `column` no more."""
    table = grid(truth=PUBLISHED_TRUTH)
    truth = dataclasses.replace(PUBLISHED_TRUTH, **value)
    losses = [truth.loss(mu, tokens, mu) for mu, tokens in zip(table["mean_recurrence"], table["tokens"], strict=True)]
    noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(len(table)))
    assert column in table
    return table.assign(loss=losses * noise)


def constant_tokens():
    """Return runs of several mean recurrences that all see 1e9 tokens, evaluated at several T."""
    table = simulate_table(
        NOISY, budgets=(4e18,), mean_recurrences=(1, 2, 3, 4, 6, 8, 12), recurrences=(1, 2, 4, 8, 16)
    )
    return table.assign(tokens=1e9, budget=math.nan, flops=1e9 * table["flops"] / table["tokens"])


DEGENERATE = {
    "5 runs": (grid().head(5), "there is no training law .the training law has 5 parameters and needs at least 6 rows"),
    "7 runs": (grid().iloc[[0, 2, 4, 5, 7, 9, 12]], "7 runs for the 5 parameters of the training law leave 2 degrees"),
    "one budget": (grid((4e18,), (1, 2, 3, 4, 5, 6, 8, 10, 12)), r"all runs spent 4e\+18 FLOPs"),
    "minima above the grid": (
        grid((16e18, 32e18, 64e18), (1, 1.5, 2, 2.5, 3)),
        "3 of 3 isoFLOP curves have no minimum",
    ),
    "minima below the grid": (grid((1e18, 2e18, 4e18), (8, 10, 12, 16, 24)), "3 of 3 isoFLOP curves have no minimum"),
    "constant tokens": (
        constant_tokens(),
        "there is no training law .*needs `tokens` to vary",
    ),
    "no effect of loops": (at_its_bound("mean_recurrence", {"X": 1e-9}), "in the training law .* bound"),
    "loud noise": (
        grid((1e18, 2e18), truth=dataclasses.replace(PUBLISHED_TRUTH, run_noise=0.02), seed=1),
        "where 1 to 12 were measured|bound|end of the search|no minimum inside",
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_degenerate_table_has_no_answer_but_a_reason_and_the_runs_to_make(name):
    table, words = DEGENERATE[name]
    fit = fit_sweep(table, name=name, draws=30)
    found = verdict(fit)
    assert found.answer
    sentences = [str(each) for each in found.answer]
    assert all(text.startswith(f"{NOT_DETERMINED.capitalize()}: the best m") for text in sentences)
    assert all(". Run next: " in text and text.endswith(".") for text in sentences)
    assert any(re.search(words, text) for text in sentences), sentences
    flops = 2 * fit.fitted.flops[1]
    if name in ("5 runs", "constant tokens"):
        with pytest.raises(ValueError, match="Not determined by these runs: the best model for a budget, because"):
            predict(fit, flops=flops)
        return
    report = predict(fit, flops=flops).report()
    assert report.startswith("Not determined by these runs: the best mean recurrence at ")
    assert "Best model" not in report
    assert "Details: what the " in report


def test_a_good_table_has_its_answer():
    for fit in (
        fit_sweep(simulate_table(recurrences=()), name="published", draws=30),
        fit_sweep(grid((1e18, 2e18, 4e18, 8e18), seed=3), name="seeds scatter by .1%", draws=30),
        fit_sweep(dense_table(), name="dense", draws=30),
    ):
        assert verdict(fit).sentences == ()
        assert recommendation(fit, 2 * fit.fitted.flops[1]).value_interval is not None


def test_one_loop_is_an_answer_and_not_the_end_of_a_search():
    table = read_table(RESULTS / "looped-bpe" / "runs.csv")
    fit = fit_sweep(table.drop(columns=loss_columns(table)), name="trained", draws=0)
    at_one = dataclasses.replace(recommendation(fit, 1e13), value=1.0, value_interval=(1.0, 1.5), at_bound=True)
    assert verdict_on(fit, at_one).answer == ()
    at_most = dataclasses.replace(at_one, value=1024.0, value_interval=(1000.0, 1024.0))
    (reason,) = verdict_on(fit, at_most).answer
    assert "at the end of the search from 1 to 1024 loops" in str(reason)


def test_an_interval_is_compared_with_the_grid():
    fit = fit_sweep(grid(), name="x", draws=30)
    best = recommendation(fit, 32e18)
    (reason,) = verdict_on(fit, dataclasses.replace(best, value_interval=(1.0, 300.0))).answer
    assert "its 95% interval is 1 to 300 loops, where 1 to 12 were measured" in str(reason)
    assert "a budget between 1.6e+19 and 3.2e+19 FLOPs, such as 2.3e+19" in str(reason)
    assert verdict_on(fit, dataclasses.replace(best, value_interval=(1.0, 11.9))).answer
    assert verdict_on(fit, dataclasses.replace(best, value_interval=(10.0, 60.0))).answer == ()


def test_under_limits_the_model_under_them_is_judged():
    """Minima above the grid leave the best recurrence open, but tokens to be served pin it down inside the grid."""
    fit = fit_sweep(DEGENERATE["minima above the grid"][0], name="x", draws=30)
    assert answer(fit, 64e18).verdict.answer
    served = answer(fit, 64e18, limits=Limits(served_tokens=2e11))
    assert 1 < served.limited.best.model.mean_recurrence < 3
    assert served.verdict.answer == ()
    assert served.sentences[0].startswith("The best model for 6.4e+19 FLOPs serving 2e+11 tokens has a mean recurrence")
    little = answer(fit, 64e18, limits=Limits(unique_tokens=2e10))  # so little text that loops take the rest
    assert little.limited.best.model.mean_recurrence > 30
    assert "at 6.4e+19 training FLOPs from 2e+10 tokens of text, because 3 of 3 isoFLOP" in little.sentences[0]


def test_two_budgets_give_an_answer_but_no_exponents():
    fit = fit_sweep(grid((1e18, 8e18), (1, 2, 3, 4, 6, 8, 12), truth=PUBLISHED_TRUTH), name="two", draws=30)
    found = verdict(fit)
    assert found.answer == ()
    (exponents,) = found.exponents
    assert "a line through the minima of 2 budgets leaves no degree of freedom" in str(exponents)
    assert "Run next: 3 more budgets" in str(exponents)


def test_losses_without_noise_are_named():
    table = grid(truth=dataclasses.replace(PUBLISHED_TRUTH, Z=0.0, run_noise=0.0, evaluation_noise=0.0))
    (caveat,) = verdict(fit_sweep(table, name="computed", draws=30)).caveats
    assert caveat.startswith("The losses lie on the law exactly, as in a table without noise")


def test_losses_in_two_units_stand_before_what_follows_from_them():
    table = dense_table()
    bits = table["loss"].where(np.arange(len(table)) % 2 == 0, table["loss"] / math.log(2))
    (found,) = verdict(fit_sweep(table.assign(loss=bits), name="bits", draws=20)).answer
    assert found.reason.startswith("the losses seem to be in two units: those of")
    assert str(found).endswith("If so, multiply them by ln 2 = 0.693, and fit again.")
