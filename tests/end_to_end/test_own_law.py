"""A law of a user's own on its whole way: fit, stored JSON, predict, choose, comparison, figures and page."""

import sys

import numpy as np
import pytest

from isoloop.fitting import SweepFit, choose_table, compare_sweeps, fit_sweep, law_optima, predict, simulate_table
from isoloop.fitting.figures import FIGURES
from isoloop.sweeps.analysis import fit_and_report
from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders
from tests.commands import coarse_calculator, isoloop, quick_figures, without_profiles

OWN_LAW = """
import numpy as np
from isoloop.fitting import Law, Parameter

class OneExponentLaw(Law):
    name, formula, source = "one-exponent", "L = floor + P N(mu)^-k + Q D^-k", "this test"
    columns, scaled = ("effective_params", "tokens"), (("effective_params",), ("tokens",))
    parameters = (
        Parameter(name="floor", meaning="irreducible loss", unit="nats per token"),
        Parameter(name="P", meaning="the term at N = 1", unit="nats per token"),
        Parameter(name="Q", meaning="the term at D = 1", unit="nats per token"),
        Parameter(name="k", meaning="exponent", unit="1", lower=0.01, upper=3.0, starts=(0.05, 0.1, 0.2, 0.4, 0.8)),
    )
    linear_count = 3

    def basis(self, nonlinear, data):
        size, amount = (np.exp(-nonlinear[..., 0, None] * np.log(data[name])) for name in self.columns)
        return np.stack([np.ones_like(size), size, amount], axis=-1)

    def nonlinear_gradient(self, parameters, data, basis):
        logs = np.stack([np.log(data[name]) for name in self.columns], axis=-1)
        return -np.sum(parameters[..., None, 1:3] * basis[..., 1:] * logs, axis=-1, keepdims=True)

    def rescaled(self, parameters, units):
        changed = np.array(parameters)
        for place, name in enumerate(self.columns, start=1):
            changed[..., place] *= units.get(name, 1.0) ** changed[..., 3]
        return changed

    def effective(self, parameters):
        return f"either term halves with {2 ** (1 / parameters[3]):.3g}x the parameters or tokens"
"""
LAW = "own_law:OneExponentLaw"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder on the path with the law's module and a run table of 4 budgets x 4 recurrences."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_law.py").write_text(OWN_LAW)
    sys.path.insert(0, str(folder))
    table = simulate_table(budgets=(1e18, 2e18, 4e18, 8e18), mean_recurrences=(1, 2, 4, 8), recurrences=(1, 2, 4, 8))
    table.to_csv(folder / "runs.csv", index=False)
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("own_law", None)


@pytest.fixture(scope="module")
def table(folder):
    from isoloop.fitting import read_table

    return read_table(folder / "runs.csv")


@pytest.fixture(scope="module")
def fit(table):
    return fit_sweep(table, name="own", law=LAW, hold_out_largest_budget=True, draws=20)


def test_a_fit_by_a_law_of_ones_own_is_stored_and_read_back(fit):
    assert fit.training.law == LAW
    assert [parameter.name for parameter in fit.training.parameters] == ["floor", "P", "Q", "k"]
    assert SweepFit.from_json(fit.to_json()) == fit
    report = fit.report()
    assert "one-exponent law: L = floor + P N(mu)^-k + Q D^-k" in report
    assert "one-exponent law at T = mu, 4 losses" in report
    assert "predicted                 95%   measured     error" in report
    assert fit.parabola_bias.law == "one-exponent"


def test_the_unified_law_is_left_out_and_said(fit):
    assert fit.unified is None
    assert fit.why_missing("unified") == (
        "it extends the built-in training law, and this sweep is fitted by the one-exponent law"
    )
    assert fit.joint_test_time is not None
    with pytest.raises(ValueError, match=r"needs the unified law.*fitted by the one-exponent law; change that"):
        predict(fit, mean_recurrence=4, tokens=1e9, recurrence=8)


def test_predictions_and_optima_are_the_laws_own(fit):
    best = predict(fit, flops=3e18)
    assert best.report().startswith("Best model for 3e+18 FLOPs by the one-exponent law")
    mu = np.geomspace(1, 64, 4001)
    losses = fit.training.loss(fit.cost_model.model_columns(mu, fit.cost_model.tokens_for(3e18, mu)))
    assert best.mean_recurrence == pytest.approx(mu[losses.argmin()], rel=5e-3)
    assert best.loss == pytest.approx(losses.min(), rel=1e-6)
    assert best.loss_interval[0] < best.loss < best.loss_interval[1]
    optima = law_optima(fit.training, fit.cost_model, [1e18, 3e18])
    assert optima.optima[1].mean_recurrence == pytest.approx(best.mean_recurrence)


def test_choose_compares_it(table):
    choice = choose_table(table, laws=["training", LAW], draws=20)
    assert {candidate.fit.law for candidate in choice.candidates} == {"training", LAW}


def test_a_comparison_holds_it_against_another_law(fit, table):
    other = fit_sweep(table, name="built in", draws=20)
    comparison = compare_sweeps(fit, other)
    assert not comparison.of("Training law")
    assert "fitted by another law" in comparison.report()
    assert comparison.of("Best models by the laws after training")
    same = compare_sweeps(fit, fit)
    assert {difference.name for difference in same.of("Training law")} == {"floor", "P", "Q", "k"}


def test_page_and_figures_are_the_laws_own(table, tmp_path):
    sweep = SweepConfig(name="own", budgets=(1e18,), mean_recurrences=(1,))
    folders = Folders(out=tmp_path, name="own")
    folders.sweep.mkdir(parents=True)
    table.to_csv(folders.table, index=False)
    folders.config.write_text("name: own\n")
    with quick_figures(), coarse_calculator(), without_profiles():
        results = fit_and_report(sweep, folders, table, command="isoloop report own", law=LAW, draws=20)
    assert results.fit.training.law == LAW
    page = results.report.read_text()
    assert "One-exponent law L = floor + P N(µ)^-k + Q D^-k" in page
    assert "E + X N(µ)^-x" not in page
    drawn = {path.stem: path.read_text() for path in folders.figures.rglob("*.svg")}
    assert set(drawn) == set(FIGURES) - {"test_time_collapse"}  # that one is of the unified law
    assert "one-exponent law" in drawn["loss_contours"]
    assert "One-exponent law" in drawn["predicted_against_measured"]


def test_the_command_takes_it(folder):
    done = isoloop("fit", "runs.csv", "--law", LAW, "--draws", 20, cwd=folder)
    assert "one-exponent law: L = floor" in done.stdout
    assert SweepFit.read(folder / "runs.fit.json").training.law == LAW


@pytest.mark.parametrize(
    ("law", "words"),
    [
        ("unified", "must give the loss after training from tokens and more, but got 'unified'"),
        ("test-time", "but got 'test-time'"),
        ("chilla", "a law must be one of training"),
    ],
)
def test_a_law_that_gives_no_loss_after_training_is_refused(table, law, words):
    with pytest.raises(ValueError, match=words):
        fit_sweep(table, name="refused", law=law, draws=0)
