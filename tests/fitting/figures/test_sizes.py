"""Figures of a joint fit over sizes: readable at both widths, with the runs, the best models and what lies beyond."""

import re

import numpy as np
import pytest

from isoloop.fitting import figures, fit_sizes, simulate_sizes
from tests.fitting.figures.test_figures import crowded, drawn_texts

BUDGETS = (1e18, 4e18, 16e18, 64e18)


@pytest.fixture(scope="module")
def table():
    return simulate_sizes(budgets=BUDGETS, mean_recurrences=(1.0, 2.0, 4.0, 8.0), recurrences=())


@pytest.fixture(scope="module")
def fit(table):
    return fit_sizes(table, name="sizes", draws=20, rollouts=True)


@pytest.mark.parametrize("name", list(figures.SIZES_FIGURES))
@pytest.mark.parametrize("width", [None, figures.COLUMN_WIDTH])
def test_no_text_overlaps_another_or_leaves_the_canvas(table, fit, name, width, monkeypatch):
    figure = figures.draw_one(name, table, fit, width=width)
    texts = drawn_texts(figure, monkeypatch)
    assert any("(simulated)" in text.replace("\n", " ") for text, _ in texts)
    assert crowded(texts, figure.bbox) == ([], [])


def test_lines_of_equal_loss_are_labelled_along_the_lines_as_drawn(table, fit):
    figure = figures.draw_one("sizes_surface", table, fit)
    figure.draw_without_rendering()
    axes, loss = figure.axes[0], fit.surface.loss
    labels = [text for text in axes.texts if re.fullmatch(r"\+[0-9.]+", text.get_text())]
    assert len(labels) >= 3
    best = fit.point(BUDGETS[-1]).loss.value
    for label in labels:
        loops, params = label.get_position()
        tokens = fit.surface.family.tokens_for(BUDGETS[-1], params, loops)
        assert float(loss(params, loops, tokens)) - best == pytest.approx(float(label.get_text()), rel=0.02, abs=2e-4)
        assert label.get_bbox_patch() is not None
    runs = [group for group in axes.lines if str(group.get_gid()).startswith("runs:")]
    assert sum(len(group.get_xdata()) for group in runs) == int((table["budget"] == BUDGETS[-1]).sum())


def test_best_models_beyond_the_runs_are_hollow(table, fit):
    panels = figures.draw_one("frontier", table, fit).axes
    for panel, name in zip(panels, ("params", "mean_recurrence", "tokens"), strict=True):
        points = {line.get_markerfacecolor(): line for line in panel.lines if line.get_marker() == "o"}
        hollow = points.pop("white")
        (full,) = points.values()
        drawn = np.concatenate([full.get_ydata(), hollow.get_ydata()])
        np.testing.assert_array_equal(drawn, [getattr(point, name).value for point in fit.frontier])
        assert list(full.get_xdata()) == list(BUDGETS)
        assert min(hollow.get_xdata()) > BUDGETS[-1]
