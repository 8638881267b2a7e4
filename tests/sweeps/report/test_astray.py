"""A fit gone astray, whose law gives absurd losses, still has a report, stored numbers, predictions and a page."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from isoloop.fitting import SweepFit, fit_sweep, predict, simulate_table
from isoloop.fitting.figures import draw_one
from isoloop.fitting.result import MissingFit
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.report.calculator import calculator_table
from isoloop.sweeps.report.headline import headline
from isoloop.sweeps.report.page import SweepPage, write_report
from isoloop.sweeps.report.svg import figure_svg
from tests.commands import quick_figures
from tests.sweeps.conftest import SIMULATED


def astray(law, level, noise):
    """Return the fit with `level` nats as irreducible loss, in every refit too."""
    parameters = tuple(
        dataclasses.replace(each, value=level if each.name == "E" else each.value) for each in law.parameters
    )
    place = law.form.parameter_names.index("E")
    draws = tuple((*draw[:place], level, *draw[place + 1 :]) for draw in law.draws)
    return dataclasses.replace(law, parameters=parameters, draws=draws, noise=noise)


@pytest.fixture(scope="module")
def table():
    return simulate_table(budgets=(1e18, 4e18), mean_recurrences=(2, 4, 8), recurrences=(1, 4, 8))


@pytest.fixture(scope="module")
def fit(table):
    return fit_sweep(table, name="astray", draws=5)


def with_laws(fit, level, noise):
    return dataclasses.replace(
        fit, training=astray(fit.training, level, noise), unified=astray(fit.unified, level, noise), mixture=None
    )


@pytest.mark.parametrize(("level", "noise"), [(1e4, 1e-3), (1e200, 1e-3), (2.0, 1e3)])
def test_a_fit_gone_astray_can_be_read_stored_and_predicted_from(fit, level, noise):
    fit = with_laws(fit, level, noise)
    assert SweepFit.from_json(fit.to_json()) == fit
    assert fit.report().startswith("Fit of astray")
    prediction = predict(fit, flops=1e20)
    assert prediction.loss >= level
    assert prediction.perplexity == (math.exp(prediction.loss) if level < 700 else math.inf)
    assert not math.isnan(prediction.loss_interval[1])
    assert prediction.perplexity_interval[1] == math.inf
    assert "inf" in prediction.report()


def with_power_laws(fit, **changes):
    """Return the fit with changed power laws of mean recurrence and tokens."""
    isoflop = fit.isoflop
    laws = {
        name: dataclasses.replace(getattr(isoflop, name), **changes) for name in ("mean_recurrence_law", "tokens_law")
    }
    return dataclasses.replace(fit, isoflop=dataclasses.replace(isoflop, **laws))


def with_wide_minima(fit):
    minima = tuple(dataclasses.replace(each, log_error=1e3, loss_error=1e300) for each in fit.isoflop.minima)
    return dataclasses.replace(fit, isoflop=dataclasses.replace(fit.isoflop, minima=minima))


WIDE = ((-9e4, 0.3), (9e4, 0.3))
"""Draws of a power law whose interval leaves the floating-point range on both sides."""


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("predicted_against_measured", lambda fit: with_laws(fit, 1e4, 1e-3)),
        ("predicted_against_measured", lambda fit: with_laws(fit, 2.0, 1e3)),
        ("power_laws", lambda fit: with_power_laws(fit, draws=WIDE, interval=(-math.inf, math.inf))),
        ("isoflop_curves", with_wide_minima),
    ],
)
def test_what_was_measured_is_drawn_though_its_intervals_are_absurd(fit, table, name, change):
    usual, drawn = (draw_one(name, table, each) for each in (fit, change(fit)))
    if name != "predicted_against_measured":
        # The absurd intervals don't move the limits.
        assert [axes.get_ylim() for axes in drawn.axes] == [axes.get_ylim() for axes in usual.axes]
    assert all(np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all() for axes in drawn.axes)
    assert figure_svg(drawn).rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss_contours", lambda fit: with_laws(fit, 1.7e308, 1e-3)),
        ("predicted_against_measured", lambda fit: with_laws(fit, 1.7e308, 1e-3)),
        ("power_laws", lambda fit: with_power_laws(fit, exponent=100.0)),
        ("power_laws", lambda fit: with_power_laws(fit, log_coefficient=-2000.0)),
    ],
)
def test_a_figure_whose_values_can_not_be_drawn_is_refused_with_the_value(fit, table, name, change):
    with pytest.raises(ValueError, match=r"must be between 1e-100 and 1e\+100, but .* is .*(inf|0|e\+308) at one"):
        draw_one(name, table, change(fit))


@pytest.mark.parametrize("level", [1e200, math.inf])
def test_the_calculator_of_a_law_gone_astray_has_few_budgets(fit, level):
    table = calculator_table(with_laws(fit, level, 1e-3))
    assert len(table["budgets"]) < 100
    assert min(table["methods"][0]["loss"]) >= 1e200
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize(("coefficient", "value"), [(2000.0, 1e300), (-2000.0, 1e-300), (math.nan, None)])
def test_the_calculator_of_a_power_law_gone_astray_invents_no_number(fit, coefficient, value):
    astray = dataclasses.replace(with_power_laws(fit, log_coefficient=coefficient), training=None, unified=None)
    table = calculator_table(astray)
    assert set(table["methods"][0]["value"]) == {value}
    assert (table["whole"] is None) == (value != 1e-300)
    beyond = any("infinitely far beyond the largest fitted mean recurrence" in note for note in table["notes"][0])
    assert beyond == (value == 1e300)
    assert "infx" not in str(table["notes"])
    json.dumps(table, allow_nan=False)


def test_an_infinite_optimum_is_no_answer(fit):
    astray = dataclasses.replace(with_power_laws(fit, log_coefficient=2000.0, draws=()), training=None)
    results = SweepResults(fit=astray, hold_out=None, why_no_fit=None, why_no_hold_out=None, report=Path("report.html"))
    words = " ".join(headline(results))
    assert "Not determined by these runs: the best mean recurrence at 8e+18 FLOPs, because no model has" in words
    assert "the mean recurrence of inf that follows from the isoFLOP power laws" in words


def test_a_fit_that_is_not_finite_is_not_stored(fit):
    with pytest.raises(ValueError, match="a fit must consist of finite numbers"):
        with_laws(fit, math.inf, 1e-3).to_json()


def test_a_page_names_the_figures_that_can_not_be_drawn(fit, table, tmp_path):
    # Without other fits than the absurd law, no figure is drawn, which is fast.
    missing = tuple(MissingFit(name=name, reason="left out") for name in ("isoflop", "test-time", "unified"))
    astray = dataclasses.replace(
        with_laws(fit, 1e200, 1e-3),
        isoflop=None,
        parabola_bias=None,
        unified=None,
        test_time=(),
        missing_fits=missing,
    )
    sweep = validate_sweep(SIMULATED, source="test")
    folders = Folders(out=tmp_path, name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep), encoding="utf-8")
    results = SweepResults(fit=astray, hold_out=astray, why_no_fit=None, why_no_hold_out=None, report=folders.report)
    with quick_figures():
        write_report(SweepPage(places=folders, sweep=sweep), table=table, results=results, command="isoloop fit")
    page = folders.report.read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    for name in ("loss contours", "predicted against measured"):
        assert f"Not drawn, {name}: a figure&#39;s values must be between" in page
