"""Figures of dense models speak of parameters, and those of looped models with FLOPs of their own are drawn alike."""

import dataclasses
import re
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure

from isoloop.fitting import check_table, figures, fit_sweep, predict
from isoloop.fitting.figures.style import RUN_GROUP
from tests.fitting.figures.test_figures import crowded, drawn_texts
from tests.run_tables import dense_table, own_flops_table

DRAWN = ["isoflop_curves", "power_laws", "loss_contours", "predicted_against_measured", "held_out_errors", "rollouts"]
LOOPS = re.compile(r"µ|\bmu\b|loop|recurrence", re.IGNORECASE)


@pytest.fixture(scope="module")
def dense():
    table = check_table(dense_table())
    return table, fit_sweep(table, name="dense", draws=20, hold_out_largest_budget=True, rollouts=True)


@pytest.fixture(scope="module")
def own():
    table = check_table(own_flops_table())
    return table, fit_sweep(table, name="own", draws=20)


def points(axes):
    """The positions of the runs drawn on axes, by run."""
    lines = [line for line in axes.lines if str(line.get_gid()).startswith(RUN_GROUP)]
    ids = [unquote(run_id) for line in lines for run_id in line.get_gid().removeprefix(RUN_GROUP).split(",")]
    return dict(zip(ids, np.concatenate([line.get_xydata() for line in lines]).tolist(), strict=True))


@pytest.mark.parametrize(("width", "names"), [(None, DRAWN[:1]), (figures.COLUMN_WIDTH, DRAWN)])
def test_no_figure_of_dense_models_speaks_of_loops(dense, width, names, monkeypatch):
    for name in names:
        figure = figures.draw_one(name, *dense, width=width)
        texts = drawn_texts(figure, monkeypatch)
        assert crowded(texts, figure.bbox) == ([], []), name
        assert [text for text, _ in texts if LOOPS.search(text)] == []
        assert LOOPS.search(figures.FIGURES[name].caption(dense[1])) is None
        labels = [axes.get_xlabel() for axes in figure.axes] + [axes.get_ylabel() for axes in figure.axes]
        assert all(re.search(r" \(.+\)$", label) for label in labels), labels
        if name not in ("predicted_against_measured", "rollouts"):
            assert any(re.search(r"\bN\b.*\(parameters\)", label) for label in labels), labels


def test_figures_of_a_users_own_flops_are_those_of_looped_models(own, monkeypatch):
    figure = figures.draw_one("loss_contours", *own, width=figures.COLUMN_WIDTH)
    texts = drawn_texts(figure, monkeypatch)
    assert crowded(texts, figure.bbox) == ([], [])
    assert any(LOOPS.search(text) for text, _ in texts)
    assert figures.FIGURES["loss_contours"].caption(own[1]).startswith("Lines of equal loss of the loops law over mean")


def test_figures_of_test_time_loops_say_why_they_are_not_drawn(dense, own):
    for name in set(figures.FIGURES) - set(DRAWN):
        assert "dense models have no loops" in figures.why_unavailable(name, dense[1])
    assert "no run was evaluated at other recurrences" in figures.why_unavailable("test_time_curves", own[1])
    assert "needs effective parameters" in figures.why_unavailable("test_time_collapse", own[1])
    with pytest.raises(ValueError, match="needs test-time fits, but there are none: dense models have no loops"):
        figures.draw_test_time(Figure().add_subplot(), *dense)


def test_points_lines_and_optima_are_where_the_numbers_are(dense):
    table, fit = dense
    rows = table.set_index("run_id")
    for draw, columns in (
        (figures.draw_isoflop_curves, ["params", "loss"]),
        (figures.draw_loss_contours, ["params", "tokens"]),
    ):
        axes = Figure().add_subplot()
        draw(axes, table, fit)
        drawn = points(axes)
        assert set(drawn) == set(rows.index)
        for run_id, position in drawn.items():
            assert position == pytest.approx(rows.loc[run_id, columns].tolist())
    # The best split, from the contours just drawn
    (split,) = [line for line in axes.lines if len(line.get_xdata()) == 40]
    params, tokens = split.get_xydata()[20]
    best = predict(fit, flops=float(fit.cost_model.flops_for(tokens, params)))
    assert (params, tokens) == pytest.approx((best.params, best.tokens), rel=1e-6)
    for tokens, law in ((False, fit.isoflop.params_law), (True, fit.isoflop.tokens_law)):
        axes = Figure().add_subplot()
        figures.draw_power_law(axes, table, fit, tokens=tokens)
        optima = [minimum.tokens if tokens else minimum.params for minimum in fit.isoflop.included]
        assert [bar.lines[0].get_ydata()[0] for bar in axes.containers] == pytest.approx(optima)
        x, y = axes.lines[0].get_xydata()[7]
        assert y == pytest.approx(law.at(x))


def test_each_held_out_model_has_a_line_with_its_parameters(dense):
    table, fit = dense
    axes = Figure().add_subplot()
    figures.draw_held_out_errors(axes, table, fit)
    held = table[table["budget"] == table["budget"].max()].sort_values("params")
    drawn = points(axes)
    assert sorted(drawn, key=lambda run_id: -drawn[run_id][1]) == held["run_id"].tolist()
    errors = {row.run_id: row.error for row in fit.held_out.rows}
    assert {run_id: error for run_id, (error, _) in drawn.items()} == pytest.approx(errors)
    largest = float(f"{held['params'].iloc[-1]:.3g}")
    assert f"{largest / 1e9:g}×10⁹" in [label.get_text() for label in axes.get_yticklabels()]


def test_a_long_label_beside_a_low_panel_stays_on_the_canvas(dense, monkeypatch):
    table, fit = dense
    few = dataclasses.replace(fit, held_out=dataclasses.replace(fit.held_out, rows=fit.held_out.rows[:2]))
    figure = figures.draw_one("held_out_errors", table, few, width=figures.COLUMN_WIDTH)
    assert crowded(drawn_texts(figure, monkeypatch), figure.bbox) == ([], [])


def test_exponents_of_dense_and_looped_fits_share_a_figure(dense, own):
    axes = Figure(layout="constrained").add_subplot()
    figures.draw_exponents(axes, {"dense": dense[1], "own": own[1]})
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["N* or µ*", "D*"]
    drawn = {float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"}
    assert {dense[1].isoflop.params_law.exponent, own[1].isoflop.mean_recurrence_law.exponent} <= drawn


def test_held_out_runs_by_the_hundred_are_no_figure(dense):
    rows = dense[1].held_out.rows
    many = tuple(dataclasses.replace(rows[0], run_id=str(number)) for number in range(250))
    fit = dataclasses.replace(dense[1], held_out=dataclasses.replace(dense[1].held_out, rows=many))
    assert "252 are too many to be read" in figures.why_unavailable("held_out_errors", fit)
    assert figures.why_unavailable("held_out_errors", dense[1]) is None
