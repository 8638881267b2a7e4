"""Every figure is drawn, readable in print and in grey, labelled with units, with intervals, the same each time."""

import dataclasses
import functools
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from isoloop.fitting import PUBLISHED_TRUTH, SweepFit, figures, fit_sweep, simulate_table
from isoloop.fitting.figures import registry
from isoloop.fitting.figures import style as figure_style
from isoloop.fitting.figures.axes import decade_ticks, grid_ticks, power_of_ten
from isoloop.fitting.selection.distance import errors_by_distance
from tests.commands import only_svg

ROOT = Path(__file__).resolve().parents[3]
NAMES = [
    "isoflop_curves",
    "power_laws",
    "loss_contours",
    "predicted_against_measured",
    "held_out_errors",
    "rollouts",
    "test_time_curves",
    "test_time_collapse",
]
ON_AXES = {
    "isoflop_curves": figures.draw_isoflop_curves,
    "recurrence": figures.draw_power_law,
    "tokens": functools.partial(figures.draw_power_law, tokens=True),
    "loss_contours": figures.draw_loss_contours,
    "predicted_against_measured": figures.draw_predicted_against_measured,
    "held_out_errors": figures.draw_held_out_errors,
    "rollouts": figures.draw_rollouts,
    "test_time_curves": figures.draw_test_time,
    "test_time_collapse": figures.draw_test_time_collapse,
}
TRUTH = dataclasses.replace(PUBLISHED_TRUTH, run_noise=3e-4, evaluation_noise=3e-5)


def at_t_only_in(table, budgets):
    """The table with losses at other T for the runs of some budgets alone: each model with them is a fit of its own."""
    without = ~table["budget"].isin(budgets)
    table.loc[without, [name for name in table if name.startswith("loss_T")]] = np.nan
    return table


@pytest.fixture(scope="module")
def table():
    table = simulate_table(TRUTH, seed=4, recurrences=(1, 2, 4, 8, 12, 16))
    return at_t_only_in(table, table["budget"].unique()[-2:])


@pytest.fixture(scope="module")
def fit(table):
    """As stored and read again. Rollouts get intervals, of which half hold the loss: 200 refits would take long."""
    fit = fit_sweep(table, name="figures", hold_out_largest_budget=True, draws=20, rollouts=True)
    assert all(row.interval is None for row in fit.rollouts.rows)
    rows = tuple(
        dataclasses.replace(row, interval=(row.measured * (0.99 + 0.02 * (place % 2)), row.measured * 1.02))
        for place, row in enumerate(fit.rollouts.rows)
    )
    fit = dataclasses.replace(fit, rollouts=dataclasses.replace(fit.rollouts, rows=rows))
    return SweepFit.from_json(fit.to_json())


@pytest.fixture(scope="module")
def drawn(table, fit, tmp_path_factory):
    """What `draw_all` wrote, as SVG alone, and the figures themselves by their names."""
    figure_of, draw = {}, registry.draw_one
    with pytest.MonkeyPatch.context() as patch, only_svg():
        patch.setattr(registry, "draw_one", lambda name, *given: figure_of.setdefault(name, draw(name, *given)))
        files = figures.draw_all(table, fit, tmp_path_factory.mktemp("figures"))
    return files, figure_of


@pytest.fixture(scope="module")
def tiny():
    table = simulate_table(budgets=(1e18, 2e18), mean_recurrences=(1, 2), recurrences=(1, 2, 3, 4))
    return table, fit_sweep(table, name="tiny", draws=0)


@functools.cache
def many(curves):
    """A table and its fit with so many budgets, and so many mean recurrences at the largest two."""
    recurrences = range(1, max(curves, 4) + 1)
    budgets = [float(f"{budget:.2g}") for budget in np.geomspace(1e18, 6.4e19, curves)]
    table = simulate_table(TRUTH, budgets=budgets, mean_recurrences=recurrences, recurrences=(1, 2, 5, 16), seed=1)
    most = table["budget"].isin(budgets[-2:])
    table = at_t_only_in(table[most | table["mean_recurrence"].isin([1, 2, 4, curves])], budgets[-2:])
    table = table.reset_index(drop=True)
    return table, fit_sweep(table, name="many", draws=3, hold_out_largest_budget=curves > 1, rollouts=True)


def drawn_texts(figure, monkeypatch):
    """The texts that are really drawn, with their boxes in pixels."""
    found, draw = [], Text.draw

    def recorded(text, renderer, *args, **kwargs):
        draw(text, renderer, *args, **kwargs)
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), text.get_window_extent(renderer)))

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        FigureCanvasAgg(figure).draw()
    return found


def crowded(texts, canvas):
    """Pairs of texts that overlap by more than a pixel, and texts that leave the canvas."""
    pairs = [
        (one, other)
        for place, (one, box) in enumerate(texts)
        for other, other_box in texts[:place]
        if min(box.x1, other_box.x1) - max(box.x0, other_box.x0) > 1
        and min(box.y1, other_box.y1) - max(box.y0, other_box.y0) > 1
    ]
    out = [text for text, box in texts if min(box.x0, box.y0) < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1]
    return pairs, out


def test_all_figures_are_written(drawn):
    files, _ = drawn
    assert files.skipped == ()
    assert list(figures.FIGURES) == NAMES
    assert [path.name for path in files.paths] == [f"{name}.svg" for name in NAMES]
    for path in files.paths:
        assert path.stat().st_size > 5000
        assert "simulated" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("curves", "width"),
    [(1, figures.COLUMN_WIDTH), (2, None), (12, None), (12, figures.COLUMN_WIDTH)],
)
def test_no_text_overlaps_another_or_leaves_the_canvas(curves, width, monkeypatch):
    table, fit = many(curves)
    able = [name for name in NAMES if figures.why_unavailable(name, fit) is None]
    assert set(able) >= {"isoflop_curves", "test_time_curves"}
    assert curves < 12 or able == NAMES
    for name in able:
        figure = figures.draw_one(name, table, fit, width=width)
        texts = drawn_texts(figure, monkeypatch)
        assert len(texts) > 8
        assert crowded(texts, figure.bbox) == ([], []), name
        legend = figure.axes[0].get_legend()
        if name == "isoflop_curves":
            assert sum("10" in text.get_text() for text in legend.get_texts()) == curves
        if name == "test_time_curves":
            assert sum("µ" in text.get_text() for text in legend.get_texts()) == max(curves, 4)


def test_overlaps_are_seen(monkeypatch):
    figure = Figure(figsize=(2, 2))
    figure.text(0.3, 0.5, "one thing")
    figure.text(0.35, 0.5, "another")
    figure.text(0.95, 0.1, "outside")
    assert crowded(drawn_texts(figure, monkeypatch), figure.bbox) == ([("another", "one thing")], ["outside"])


def test_series_are_told_apart_without_colour():
    for count in range(1, 13):
        styles = figure_style.series_styles(count)
        assert len({style.marker for style in styles}) == count
        for one, following in pairwise(styles):
            assert one.marker != following.marker
            assert one.line != following.line
        greys = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b, _ in (style.colour for style in styles)]
        assert all(lighter > darker for darker, lighter in pairwise(greys))
        assert greys[-1] < 0.7  # paler would be lost on white paper


def test_neighbouring_curves_differ_in_what_is_drawn():
    table, fit = many(12)
    with mpl.rc_context(figures.STYLE):
        axes = Figure().add_subplot()
        figures.draw_isoflop_curves(axes, table, fit)
    points = [line for line in axes.lines if str(line.get_gid()).startswith("runs:")]
    assert len({line.get_marker() for line in points}) == 12
    curves = [line for line in axes.lines if len(line.get_xdata()) == 200]
    assert len(curves) == 11  # the twelfth budget is held out


@pytest.mark.parametrize("name", NAMES)
def test_axes_have_units_and_intervals_and_say_that_runs_are_simulated(drawn, name):
    for axes in drawn[1][name].axes:
        secondary = [child for child in axes.get_children() if isinstance(child, Axes)]
        labels = [axes.get_xlabel(), axes.get_ylabel(), *(child.get_ylabel() for child in secondary)]
        assert all(re.search(r"\w.* \(.+\)$", label) for label in labels), labels
        assert "simulated" in axes.get_title(loc="left")
        assert any("95%" in text.get_text() for text in axes.get_legend().get_texts())
        assert axes.collections or axes.patches


def test_without_refits_a_figure_says_that_it_has_no_band(tmp_path):
    table = simulate_table(TRUTH, seed=4, mean_recurrences=(1, 4, 8), recurrences=(1, 2, 4, 8))
    table = at_t_only_in(table, table["budget"].unique()[-2:])
    fit = fit_sweep(table, name="no draws", draws=0)
    for name in ("power_laws", "loss_contours", "predicted_against_measured", "test_time_collapse"):
        legend = figures.draw_one(name, table, fit).axes[0].get_legend()
        assert any(text.get_text().startswith("no ") for text in legend.get_texts()), name


def test_the_same_fit_gives_the_same_bytes(table, fit, drawn, tmp_path):
    """In another process too, whatever the order of sets there; one figure in each format, one as SVG."""
    table.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "fit.json").write_text(fit.to_json())
    code = (
        "from fitting import SweepFit, figures, read_table; from fitting.figures import style; "
        "table, fit = read_table('runs.csv'), SweepFit.read('fit.json'); "
        "figures.save_figure(figures.draw_one('held_out_errors', table, fit), 'there', 'held_out_errors'); "
        "figure = figures.draw_one('loss_contours', table, fit); "
        "style.save_figure_as(figure, 'there/loss_contours.svg')"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    here = {path.stem: path for path in drawn[0].paths}
    assert (tmp_path / "there" / "loss_contours.svg").read_bytes() == here["loss_contours"].read_bytes()
    for path in figures.save_figure(drawn[1]["held_out_errors"], tmp_path / "here", "held_out_errors"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name
    assert path.stat().st_size > 5000


def test_figures_go_on_the_axes_of_a_bigger_figure(table, fit, monkeypatch):
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(15, 16), layout="constrained")
        panels = figure.subplots(4, 3).ravel()
        for axes, draw in zip(panels, ON_AXES.values(), strict=False):
            draw(axes, table, fit)
        figures.draw_exponents(panels[9], {"exact": fit, "again": fit})
    texts = drawn_texts(figure, monkeypatch)
    assert crowded(texts, figure.bbox) == ([], [])
    assert all(axes.has_data() for axes in panels[:10])
    assert not any(axes.has_data() for axes in panels[10:])


def test_rollouts_stand_at_their_distance_with_bias_and_coverage(fit, drawn):
    axes = drawn[1]["rollouts"].axes[0]
    points = [line for line in axes.lines if str(line.get_gid()).startswith("runs:")]
    assert sum(len(line.get_xdata()) for line in points) == len(fit.rollouts.rows)
    hollow = sum(len(line.get_xdata()) for line in points if line.get_markerfacecolor() == "white")
    assert hollow == sum(row.interval[0] > row.measured for row in fit.rollouts.rows) == len(fit.rollouts.rows) // 2
    errors = errors_by_distance(fit.rollouts.rows)
    assert [bar.get_segments()[0][0][1] for bar in axes.collections] == pytest.approx([error.bias for error in errors])
    assert [text.get_text() for text in axes.texts] == [f"{error.coverage:.0%}" for error in errors]


def test_points_know_their_runs(table, drawn):
    path = drawn[0].paths[NAMES.index("isoflop_curves")]
    groups = re.findall(r'<g id="runs:([^"]*)">(.*?)</g>\s*</g>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert len(groups) == table["budget"].nunique()
    for ids, drawn in groups:
        runs = table.set_index("run_id").loc[ids.split(",")]
        assert runs["budget"].nunique() == 1
        places = [
            tuple(float(value) for value in pair) for pair in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn)
        ]
        assert len(places) == len(runs)
        assert list(np.argsort([x for x, _ in places])) == list(np.argsort(runs["mean_recurrence"].to_numpy()))
        assert list(np.argsort([-y for _, y in places])) == list(np.argsort(runs["loss"].to_numpy()))


def test_run_ids_are_quoted_and_missing_points_left_out():
    axes = Figure().add_subplot()
    line = figure_style.run_points(axes, [1, 2, np.nan], [1, 2, 3], ["a,b", "1e+18 x", "gone"], colour="k")
    assert line.get_gid() == "runs:a%2Cb,1e+18%20x"
    with pytest.raises(ValueError, match="points need a run each, but got 2 x, 2 y and 1 runs"):
        figure_style.run_points(axes, [1, 2], [1, 2], ["a"], colour="k")


def test_held_out_runs_are_hollow_and_losses_outside_their_interval_are_marked(table, fit, drawn):
    figure = drawn[1]["predicted_against_measured"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    held = {row.run_id for row in fit.held_out.rows}
    assert {line.get_gid() for line in hollow} == {"runs:" + ",".join(table.loc[table["run_id"].isin(held), "run_id"])}
    rows = list(fit.held_out.rows)
    place = next(place for place, row in enumerate(rows) if row.interval)
    row = rows[place]
    rows[place] = dataclasses.replace(row, interval=(row.measured * 1.001, row.measured * 1.002))
    far = dataclasses.replace(fit, held_out=dataclasses.replace(fit.held_out, rows=tuple(rows)))

    def outside(figure):
        lines = figure.axes[0].lines
        return sum(len(line.get_xdata()) for line in lines if line.get_color() == figure_style.ACCENT)

    assert outside(figures.draw_one("held_out_errors", table, far)) - outside(drawn[1]["held_out_errors"]) == 1


def test_exponents_of_several_fits_stand_in_their_rows(fit, tiny):
    axes = Figure().add_subplot()
    figures.draw_exponents(axes, {"a": fit, "without": tiny[1]})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "without"]
    points = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    law, corrected = fit.isoflop.mean_recurrence_law, fit.parabola_bias.axis_exponent.corrected
    assert {law.exponent, corrected.exponent} <= {line.get_xdata()[0] for line in points}
    assert all(line.get_ydata()[0] > -0.5 for line in points)
    assert any(tuple(line.get_xdata()) == law.interval for line in axes.lines)
    with pytest.raises(ValueError, match="exponents need a fit with power laws, but tiny has none"):
        figures.draw_exponents(axes, {"tiny": tiny[1]})


def test_what_cannot_be_shown_is_skipped_with_its_reason(tiny, tmp_path):
    drawn = figures.draw_all(*tiny, tmp_path)
    assert [path.stem for path in drawn.paths] == ["isoflop_curves"] * 3 + ["test_time_curves"] * 3
    assert {name: reason[:24] for name, reason in drawn.skipped} == {
        "power_laws": "power laws need 2 budget",
        "loss_contours": "the training law has 5 p",
        "predicted_against_measured": "the training law has 5 p",
        "held_out_errors": "no run was held out of t",
        "rollouts": "this fit was made withou",
        "test_time_collapse": "it contains the training",
    }


@pytest.mark.parametrize("name", [name for name in ON_AXES if name not in ("isoflop_curves", "test_time_curves")])
def test_a_figure_without_its_fit_is_refused(tiny, name):
    with pytest.raises(ValueError, match=r"this figure needs .*, but there "):
        ON_AXES[name](Figure().add_subplot(), *tiny)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "isoflop"}, "a figure must be one of isoflop_curves, .* but got 'isoflop'"),
        ({"name": "isoflop_curves", "width": 1}, "width must be 2.5 to 20 inches, but got 1"),
    ],
)
def test_bad_questions_are_refused(tiny, asked, said):
    name = asked.pop("name")
    with pytest.raises(ValueError, match=said):
        figures.draw_one(name, *tiny, **asked)
    with pytest.raises(ValueError, match=r"must end in .png, .svg, .pdf, but got 'a.jpg'"):
        figure_style.save_figure_as(Figure(), "a.jpg")


def test_ticks_thin_out_and_keep_powers_of_two():
    values = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    ticks = {}
    for width in (1.5, 3, 10):
        axes = Figure(figsize=(width, 2)).add_subplot()
        axes.set_xlim(1, 12)
        grid_ticks(axes.xaxis, values)
        ticks[width] = list(axes.get_xticks())
    assert ticks[10] == values
    assert {1, 2, 4, 8} <= set(ticks[3]) < set(values)
    assert len(ticks[1.5]) < len(ticks[3])
    axes = Figure(figsize=(3, 2)).add_subplot()
    for low, high in ((1e18, 1.3e18), (1e18, 6.4e19), (1.0, 1e40)):
        axes.set_xlim(low, high)
        decade_ticks(axes.xaxis)
        assert 2 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 9, (low, high)
    assert [power_of_ten(value) for value in (1e18, 6.4e19, 2.5, 3e-4)] == ["10¹⁸", "6.4×10¹⁹", "2.5×10⁰", "3×10⁻⁴"]
