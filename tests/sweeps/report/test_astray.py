"""A fit gone astray, whose law gives absurd losses, still has a report, stored numbers, predictions and a page."""

import dataclasses
import math

import pytest

from isoloop.fitting import SweepFit, fit_sweep, predict, simulate_table
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.report.page import SweepPage, write_report
from tests.commands import only_svg
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
        fit, training=astray(fit.training, level, noise), unified=astray(fit.unified, level, noise)
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


def test_a_fit_gone_astray_has_a_page(fit, table, tmp_path):
    fit = with_laws(fit, 1e4, 1e-3)
    sweep = validate_sweep(SIMULATED, source="test")
    folders = Folders(out=tmp_path, name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep), encoding="utf-8")
    results = SweepResults(fit=fit, hold_out=None, why_no_fit=None, why_no_hold_out="not tried", report=folders.report)
    with only_svg():
        write_report(SweepPage(places=folders, sweep=sweep), table=table, results=results, command="isoloop fit")
    assert folders.report.read_text(encoding="utf-8").rstrip().endswith("</html>")
