"""A fit on one screen: it fits, whatever the table, and holds the answer, every parameter, and what to doubt."""

import dataclasses
import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoloop.fitting import (
    ANSWER_MULTIPLE,
    PUBLISHED_TRUTH,
    fit_sweep,
    recommendation,
    simulate_table,
    verdict,
)
from isoloop.fitting.report.estimates import correlations, exponents, parameters
from isoloop.fitting.report.layout import columns_of, filled, shortened
from isoloop.fitting.report.screen import _beginning
from tests.run_tables import dense_table, own_flops_table

NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3, evaluation_noise=1e-4)
GRID = {"budgets": (1e18, 4e18, 16e18), "mean_recurrences": (1, 2, 4, 8, 16)}
NAME = "数字" * 60 + " a name of several words " + "x" * 90
NOTES = tuple(f"Column {name} was read as the tokens of run {name}, in billions." for name in "abcdefghijkl")


def looped(**changes):
    return simulate_table(NOISY, seed=1, **{**GRID, "recurrences": (), **changes})


def troubled():
    """Runs far off and left out, diverged and failed ones, a missed budget, long names."""
    table = looped().astype({"status": object})
    table["run_id"] = [f"{'run-' * 20}{row}" for row in range(len(table))]
    table.loc[[1, 7, 12], "loss"] *= 1.1
    table.loc[[3, 9], "loss"] *= 2.5
    table.loc[[4, 5], "status"] = ["diverged", "failed"]
    table.loc[[4, 5], "loss"] = np.nan
    table.loc[11, "budget"] *= 1.5
    return table


def thirty_parameters(table):
    fit = fit_sweep(table, name="own", draws=20)
    law = fit.training
    many = tuple(dataclasses.replace(law.parameters[0], name=f"a_long_name_{n}") for n in range(30))
    wide = dataclasses.replace(law, parameters=many, draws=tuple((*draw, *draw) * 3 for draw in law.draws))
    return dataclasses.replace(fit, training=wide, mixture=None)


FITS = {
    "looped": lambda: fit_sweep(looped(recurrences=(1, 4, 8)), name="looped", draws=20),
    "held out": lambda: fit_sweep(looped(), name="held", draws=20, hold_out_largest_budget=True),
    "dense": lambda: fit_sweep(dense_table(), name="dense", draws=20, reading=NOTES[:2]),
    "without refits": lambda: fit_sweep(dense_table(), name="dense", draws=0),
    "without effective parameters": lambda: fit_sweep(own_flops_table(), name="own", draws=20, reading=NOTES),
    "without budgets": lambda: fit_sweep(looped().drop(columns="budget"), name="tokens", draws=20),
    "one budget": lambda: fit_sweep(looped(budgets=(4e18,)), name="one", draws=20),
    "few runs": lambda: fit_sweep(looped().head(6), name="few", draws=20),
    "long names, many caveats": lambda: fit_sweep(
        troubled(), name=NAME, draws=20, hold_out_largest_budget=True, reading=NOTES
    ),
    "thirty parameters": lambda: thirty_parameters(looped()),
}


@functools.cache
def fit_of(what):
    return FITS[what]()


def on_screen(text, lines):
    rows = text.splitlines()
    assert len(rows) <= lines, text
    assert max(map(columns_of, rows)) <= 80, text
    return rows


@pytest.mark.parametrize("what", FITS)
def test_a_screen_has_at_most_40_lines_of_80_columns_with_the_answer_and_the_doubts(what):
    fit = fit_of(what)
    on_screen(fit.summary(lines=37), 37)
    rows = on_screen(fit.summary(), 40)
    words = " ".join(" ".join(rows).split())
    # The answer, or what is not determined
    judged = verdict(fit)
    if judged.answer:
        assert words.index(str(judged.answer[0])[:60]) < words.index("What to doubt")
    if fit.training is not None:
        best = recommendation(fit, ANSWER_MULTIPLE * fit.fitted.flops[1])
        low, high = best.value_interval or (None, None)
        assert f"{best.value:.5g}" in words
        assert low is None or f"({low:.5g} to {high:.5g})" in words
    # The caveats, the first of them first
    assert "What to doubt, the most important first" in words
    assert fit.caveats[0][:60] in words
    # How the table was read
    assert words.startswith("How the table was read: ") == bool(fit.reading)
    assert not fit.reading or words.split(": ", 1)[1].startswith(fit.reading[0])


@pytest.mark.parametrize("what", [what for what in FITS if what != "thirty parameters"])
def test_a_screen_holds_every_exponent_and_every_parameter_with_its_interval(what):
    fit = fit_of(what)
    rows = fit.summary().splitlines()
    law = fit.laws_after_training.best if fit.laws_after_training else None
    for estimate in (*exponents(fit), *(() if law is None else parameters(law))):
        span = "-" if estimate.interval is None else "{:.5g} to {:.5g}".format(*estimate.interval)
        cells = (estimate.name, f"{estimate.value:.5g}", span)
        assert any(re.match(r"\s+".join(map(re.escape, ("", *cells))), row) for row in rows), cells


def test_parameters_that_there_is_no_room_for_are_counted():
    text = fit_of("thirty parameters").summary()
    assert text.count("a_long_name_") >= 5
    shown = len(re.findall("^  a_long_name_", text, flags=re.MULTILINE))
    assert f"{30 - shown} more parameters, which --full shows" in text


def test_caveats_that_there_is_no_room_for_are_counted():
    fit = fit_of("long names, many caveats")
    hidden = int(re.search(r"important first \((\d+) more: --full\)", fit.summary()).group(1))
    assert 0 < hidden < len(fit.caveats)


def test_numbers_that_are_not_finite_fit_the_screen():
    fit = fit_of("dense")
    law = fit.isoflop.params_law
    astray = dataclasses.replace(law, exponent=1e308, interval=(-np.inf, np.inf))
    fit = dataclasses.replace(fit, isoflop=dataclasses.replace(fit.isoflop, params_law=astray), parabola_bias=None)
    text = fit.summary()
    on_screen(text, 40)
    assert "-inf to inf" in text


def test_a_terminal_without_the_characters_gets_them_spelled_out_within_its_width():
    fit = dataclasses.replace(fit_of("looped"), name="µ数" * 30, caveats=("数" * 200, "µ " * 200))
    rows = on_screen(fit.summary(printable=lambda text: text.encode("ascii", "backslashreplace").decode()), 40)
    assert all(row.isascii() for row in rows)
    assert r"Fit of \xb5\u" in rows[0]


def test_correlations_are_those_of_the_refits():
    law = fit_of("dense").training
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(500, 5))
    draws[:, 1] = 3 * draws[:, 0] + 0.1 * rng.normal(size=500)  # E with A: .9994
    draws[:, 3] = -draws[:, 2] + 0.4 * rng.normal(size=500)  # B with alpha: -1 / sqrt(1.16)
    draws[:, 4] = 0.3  # beta, at its bound in all of them
    pairs = correlations(dataclasses.replace(law, draws=tuple(map(tuple, draws))))
    assert [pair.parameters for pair in pairs] == [("E", "A"), ("B", "alpha")]
    assert [pair.value for pair in pairs] == pytest.approx([0.9994, -(1.16**-0.5)], abs=0.02)
    assert correlations(dataclasses.replace(law, draws=())) == ()
    assert str(pairs[1]).startswith("B with alpha -0.9")
    # The amplitudes of a power law go with their exponents.
    assert {("A", "alpha"), ("B", "beta")} <= {pair.parameters for pair in correlations(law)}
    for pair in correlations(fit_of("dense").laws_after_training.best):
        assert str(pair) in " ".join(fit_of("dense").summary().split())


@pytest.mark.parametrize("what", ["looped", "dense", "held out", "long names, many caveats"])
def test_the_whole_report_has_100_columns_the_answer_and_the_correlations(what):
    fit = fit_of(what)
    text = fit.report()
    assert max(map(len, text.splitlines())) <= 100
    assert ("Best model for" in text) == (not verdict(fit).answer)
    words = " ".join(text.split())
    assert all(str(pair) in words for pair in correlations(fit.training))
    assert all(" ".join(caveat.split()) in words for caveat in fit.caveats if "run-run" not in caveat)


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text("ab数\u0301 µ", min_size=1, max_size=30), max_size=12), width=st.integers(6, 40))
def test_lines_keep_every_character_within_their_width(words, width):
    text = " ".join(words)
    lines = filled(text, width, first="- ", rest="  ")
    assert all(columns_of(line) <= width for line in lines)
    assert "".join(line[2:] for line in lines).replace(" ", "") == "".join(text.split())
    assert columns_of(shortened(text, width)) <= width


def test_a_sentence_that_is_cut_ends_with_a_whole_word():
    (cut,) = _beginning("a sentence of whole words, " * 5, 1, "- ", "  ")
    assert columns_of(cut) <= 80
    assert cut.removesuffix("... (--full has the rest)").split()[-1] in ("a", "sentence", "of", "whole", "words,")


def test_budgets_that_are_left_out_for_one_reason_share_a_caveat():
    fit = fit_sweep(looped(mean_recurrences=(1, 1.5, 2, 2.5, 3)), name="edge", draws=0)
    assert [minimum.included for minimum in fit.isoflop.minima] == [False] * 3
    (caveat,) = (caveat for caveat in fit.caveats if "left out of the power laws" in caveat)
    assert caveat.startswith(
        "The budgets of 1e+18, 4e+18 and 1.6e+19 FLOPs are left out of the power laws: the minimum"
    )
