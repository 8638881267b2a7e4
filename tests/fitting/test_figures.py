"""Every figure is drawn, labelled and marked; what can't be shown is skipped with its reason."""

import dataclasses

import pytest
from matplotlib.figure import Figure

from fitting import PUBLISHED_TRUTH, figure_style, figures, fit_sweep, simulate_table

NAMES = ["isoflop_curves", "power_laws", "test_time_curves", "predicted_against_measured"]


@pytest.fixture(scope="module")
def table():
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=3e-4, evaluation_noise=3e-5)
    return simulate_table(truth, seed=4, recurrences=(1, 2, 4, 8, 12, 16))


@pytest.fixture(scope="module")
def fit(table):
    return fit_sweep(table, name="figures", hold_out_largest_budget=True, draws=40)


def test_all_figures_are_written_thrice(table, fit, tmp_path):
    drawn = figures.draw_all(table, fit, tmp_path / "figures")
    assert drawn.skipped == ()
    assert [path.name for path in drawn.paths] == [
        f"{name}{suffix}" for name in NAMES for suffix in figure_style.SUFFIXES
    ]
    for path in drawn.paths:
        assert path.stat().st_size > 5000
    for path in drawn.paths[1::3]:
        assert "simulated" in path.read_text(encoding="utf-8")


def test_what_cannot_be_shown_is_skipped_with_its_reason(tmp_path):
    table = simulate_table(budgets=(1e18, 2e18), mean_recurrences=(1, 2), recurrences=(1, 2, 3, 4))
    drawn = figures.draw_all(table, fit_sweep(table, name="tiny", draws=0), tmp_path)
    assert [path.stem for path in drawn.paths] == ["isoflop_curves"] * 3 + ["test_time_curves"] * 3
    assert {name: reason[:24] for name, reason in drawn.skipped} == {
        "power_laws": "power laws need 2 budget",
        "predicted_against_measured": "the training law has 5 p",
    }


def test_axes_are_labelled_with_units(table, fit):
    for draw in (
        figures.draw_isoflop_curves,
        figures.draw_power_law,
        figures.draw_test_time,
        figures.draw_predicted_against_measured,
    ):
        axes = Figure().add_subplot()
        draw(axes, table, fit)
        assert "(" in axes.get_xlabel()
        assert "(" in axes.get_ylabel()
        assert "simulated" in axes.get_title(loc="left")


def test_held_out_runs_are_marked(table, fit):
    axes = Figure().add_subplot()
    figures.draw_predicted_against_measured(axes, table, fit)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(label.startswith("held out: ") for label in labels)


def test_a_figure_without_its_fit_is_refused():
    table = simulate_table(budgets=(1e18, 2e18), mean_recurrences=(1, 2), recurrences=(1, 2, 3, 4))
    fit = fit_sweep(table, name="tiny", draws=0)
    with pytest.raises(ValueError, match="needs the training law, but there is none"):
        figures.draw_predicted_against_measured(Figure().add_subplot(), table, fit)
