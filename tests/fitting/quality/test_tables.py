"""Scores from anybody's table to the stored fit, its predictions, figures and the command line."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isoloop.fitting import (
    SweepFit,
    figures,
    fit_quality,
    fit_table,
    predict_any,
    read_fit,
    simulate_sizes,
    simulate_table,
)
from isoloop.fitting.tables.mapping import map_table
from isoloop.fitting.tables.quality import best_and_fixed_depth, score_columns
from isoloop.fitting.tables.reading import RawTable
from tests.commands import isoloop
from tests.fitting.quality import sweeps

BUDGETS, MEANS = (1e18, 4e18, 16e18, 64e18), (1, 2, 4, 8, 12)


@pytest.fixture(scope="module")
def table():
    drawn = simulate_table(budgets=BUDGETS, mean_recurrences=MEANS, recurrences=(), seed=1)
    return sweeps.scored(drawn, np.random.default_rng(1))


@pytest.fixture(scope="module")
def fit(table):
    return fit_table(table, name="scored", draws=20)


def mapped(**columns):
    return map_table(RawTable(frame=pd.DataFrame({"N": [1e8, 2e8], "D": [2e9, 3e9], "val_loss": [3.2, 3.1]} | columns)))


def test_usual_names_of_scores_become_ours():
    table = mapped(
        **{
            "Core": [12.0, 13.0],
            "CORE-Extended": [8.0, 9.0],
            "HellaSwag acc": [0.3, 0.31],
            "hellaswag_acc_stderr": [0.01, 0.01],
            "metrics/piqa_accuracy": [0.6, 0.61],
            "metrics/piqa_loss": [1.1, 1.0],
        }
    )
    assert list(table.frame)[3:] == [
        "core", "core_extended", "hellaswag_accuracy", "hellaswag_accuracy_se", "piqa_accuracy", "piqa_loss",
    ]  # fmt: skip
    assert "core from 'Core'" in " ".join(table.notes)


def test_losses_of_tasks_are_no_validation_losses():
    # Its name would do for a loss on one of several texts.
    table = mapped(agi_eval_lsat_ar_loss=[1.5, 1.4], agi_eval_lsat_ar_accuracy=[0.2, 0.21], val_acc=[0.4, 0.41])
    assert table.frame["loss"].tolist() == [3.2, 3.1]
    assert table.frame["agi_eval_lsat_ar_loss"].tolist() == [1.5, 1.4]
    notes = " ".join(table.notes)
    assert "agi_eval_lsat_ar_loss" not in notes
    assert "Not used" not in notes
    assert [score.name for score in score_columns(table.frame)] == ["agi_eval_lsat_ar"]
    # Without an accuracy beside it, it is what it was before: another loss that is not used.
    assert "agi_eval_lsat_ar_loss" in " ".join(mapped(agi_eval_lsat_ar_loss=[1.5, 1.4]).notes)


def test_a_fit_of_a_table_with_scores_has_their_fits(table, fit):
    assert fit.quality == fit_quality(table)
    assert {score.name for score in fit.quality.fitted} == {"core", "task"}
    assert SweepFit.from_json(fit.to_json()) == fit
    assert fit.report().endswith(fit.quality.report())
    assert fit_table(table[list(simulate_table(recurrences=()))], name="plain", draws=20).quality is None


def test_a_fit_without_the_largest_budget_has_not_seen_its_scores(table):
    held = fit_table(table, name="held", draws=20, hold_out_largest_budget=True)
    alone = fit_quality(table[table["budget"] < 64e18])
    for score, without in zip(held.quality.scores, alone.scores, strict=True):
        assert dataclasses.replace(score, held_out_with_loss=()) == without
        # The whole way: from the laws' losses to the scores that were measured.
        assert [row.run_id for row in score.held_out_with_loss] == list(table["run_id"][table["budget"] == 64e18])
        for row in score.held_out_with_loss:
            loss = next(each for each in held.held_out.rows if each.run_id == row.run_id)
            assert row.loss == loss.predicted
            assert row.interval == without.predict(loss.predicted, loss.interval).interval
            assert row.measured == table.set_index("run_id")[score.column][row.run_id]
        assert np.mean([row.inside for row in score.held_out_with_loss]) >= 0.8
    assert "held out: 5 runs that no fit has seen" in held.report()
    assert SweepFit.from_json(held.to_json()) == held


def test_a_stored_fit_with_another_law_is_refused(fit, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(fit.to_json().replace("quality.laws:SigmoidLaw", "quality.laws:NoLaw"))
    with pytest.raises(ValueError, match="has no NoLaw"):
        read_fit(path)


def test_the_core_of_an_untrained_model_has_the_interval_of_its_loss(fit):
    loss = predict_any(fit, flops=1e21)
    predicted = fit.quality.predict(loss)
    assert (predicted.loss, predicted.loss_interval) == (loss.loss, loss.loss_interval)
    core = predicted.scores[0]
    assert core.interval[0] < sweeps.core(loss.loss) < core.interval[1]
    assert core == fit.quality.predict(loss.loss, loss.loss_interval).scores[0]


def test_sizes_fitted_together_predict_scores_too():
    drawn = simulate_sizes(budgets=(8e18, 32e18, 64e18, 128e18), mean_recurrences=(1, 4, 8), seed=0)
    fit = fit_table(sweeps.scored(drawn, np.random.default_rng(2)), name="sizes", draws=20)
    assert type(fit).from_json(fit.to_json()) == fit
    assert fit.report().endswith(fit.quality.report())
    assert {"quality_against_loss", "quality_against_flops"} <= set(figures.figures_of(fit))
    loss = predict_any(fit, flops=1e21)
    assert fit.quality.predict(loss).scores[0].value == pytest.approx(sweeps.core(loss.loss), abs=2)


def test_figures_of_scores_are_there_with_scores_alone(table, fit):
    plain = fit_table(table[list(simulate_table(recurrences=()))], name="plain", draws=20)
    assert set(figures.figures_of(fit)) - set(figures.figures_of(plain)) == set(figures.QUALITY_FIGURES)
    assert figures.why_unavailable("quality_against_loss", plain) == "the run table has no benchmark scores"
    with pytest.raises(ValueError, match="needs benchmark scores"):
        figures.draw_quality_against_loss(Figure(), table, plain)


@pytest.mark.parametrize("width", [None, figures.COLUMN_WIDTH])
def test_quality_against_loss_shows_every_run_and_its_band(table, fit, width):
    figure = figures.draw_one("quality_against_loss", table, fit, width=width)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Core (simulated)", "task (simulated)"]
    for axes, column in zip(figure.axes, ("core", "task_accuracy"), strict=True):
        (points,) = (line for line in axes.lines if str(line.get_gid()).startswith("runs:"))
        np.testing.assert_allclose(points.get_xydata(), table[["loss", column]])
        low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
        inside = (table[column] >= low) & (table[column] <= high)
        assert inside.mean() > 0.9
        assert axes.xaxis_inverted()


def test_quality_against_flops_compares_the_least_loss_with_one_loop(table, fit):
    figure = figures.draw_one("quality_against_flops", table, fit)
    best = table.loc[table.groupby("budget")["loss"].idxmin()]
    once = table[table["mean_recurrence"] == 1].sort_values("budget")
    points = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("runs:")]
    np.testing.assert_allclose(points[0].get_xydata(), once[["flops", "core"]])
    np.testing.assert_allclose(points[1].get_xydata(), best[["flops", "core"]])
    # The later one is on top; where both are of one run, the mark around it is seen, too.
    assert points[0].get_markersize() > points[1].get_markersize() + 2
    assert points[0].get_markerfacecolor() == "white"


def test_scores_that_can_be_predicted_have_the_first_panels(table):
    guessed = np.random.default_rng(3).binomial(100, 0.25, len(table)) / 100
    scored = table.assign(guess_accuracy=guessed, guess_accuracy_se=0.0433, guess_chance=0.25).drop(columns="core")
    scored = scored[["guess_accuracy", *(name for name in scored if name != "guess_accuracy")]]
    fit = fit_table(scored, name="any", draws=20)
    assert [score.name for score in fit.quality.scores] == ["guess", "task"]
    figure = figures.draw_one("quality_against_flops", scored, fit)
    assert [axes.get_title(loc="left").split()[0] for axes in figure.axes] == ["task", "guess"]


def test_the_mean_of_an_own_suite_is_a_score_in_points_and_comes_first(table):
    own = table.rename(columns={"core": "words_mean", "core_se": "words_mean_se"}).drop(columns="core_baselines")
    score, task = score_columns(own)
    assert (score.name, score.unit, score.perfect, score.error, task.name) == (
        "words_mean", "points", 100.0, "words_mean_se", "task",
    )  # fmt: skip
    fit, core = fit_quality(own, draws=20), fit_quality(table, draws=20).scores[0]
    assert fit.scores[0].column == "words_mean"
    assert fit.scores[0].predict(3.0).value == core.predict(3.0).value
    assert fit.scores[0].caveats == ()
    assert {"words_mean", "words_mean_se"} <= set(map_table(RawTable(frame=own)).frame)
    # Other means aren't scores: without an error, or without any accuracy beside them.
    assert [each.name for each in score_columns(own.drop(columns="words_mean_se"))] == ["task"]
    assert score_columns(own.drop(columns="task_accuracy")) == ()


def test_lambada_is_paired_as_sweeps_and_papers_name_it():
    paired = {"lambada_accuracy": "lambada", "lambada_openai_accuracy": "lambada_openai"}
    for accuracy, name in paired.items():
        (score,) = score_columns(["loss", accuracy, "lambada_ppl"])
        assert (score.name, score.loss, score.logarithm) == (name, "lambada_ppl", True)
    (score,) = score_columns(["lambada_openai_accuracy", "lambada_openai_loss", "lambada_ppl"])
    assert (score.loss, score.logarithm) == ("lambada_openai_loss", False)


def test_scores_that_are_still_missing_leave_the_figure_out(table):
    empty = table.assign(core=np.nan).drop(columns="task_accuracy")
    fit = fit_table(empty, name="empty", draws=20)
    assert fit.quality.predict(3.0).report().startswith("No prediction of Core: a fit needs 4 runs")
    with pytest.raises(ValueError, match="all are missing"):
        figures.draw_one("quality_against_flops", empty, fit)


def test_fixed_depth_is_compared_within_a_size():
    small, large = [10.0, 5.0], [20.0, 9.0]
    rows = [
        ("a", 1.0, 3.0, 4, *large),
        ("b", 1.0, 3.1, 1, *large),
        ("c", 1.0, 3.05, 1, *small),
        ("d", 2.0, 2.9, 2, *small),
        ("e", 2.0, 2.95, 1, *large),
    ]
    names = ["run_id", "budget", "loss", "mean_recurrence", "effective_params_fixed", "effective_params_per_loop"]
    best, fixed = best_and_fixed_depth(pd.DataFrame(rows, columns=names))
    assert best["run_id"].tolist() == ["a", "d"]
    assert fixed["run_id"].tolist() == ["b"]
    assert best_and_fixed_depth(pd.DataFrame(rows, columns=names).drop(columns="mean_recurrence"))[1].empty


def test_the_command_line_predicts_scores(table, tmp_path):
    guessed = np.random.default_rng(3).binomial(100, 0.25, len(table)) / 100
    scored = table.assign(guess_accuracy=guessed, guess_accuracy_se=0.0433, guess_chance=0.25)
    scored.rename(columns={"core": "Core"}).to_csv(tmp_path / "mine.csv", index=False)
    fitted = isoloop("fit", "mine.csv", "--draws", 20, cwd=tmp_path).stdout
    assert "quality: no prediction of guess (--full has the reasons); isoloop predict gives Core, task" in fitted
    said = isoloop("predict", "mine.csv", "--flops", "1e21", cwd=tmp_path).stdout
    quality = said[said.index("No prediction of guess (at chance)") :]
    core = next(line for line in quality.splitlines() if line.startswith("  Core"))
    assert "points" in core
    assert "95%:" in core
    assert said.index("loss  ") < said.index("No prediction") < said.index("  Core")
    other = isoloop("predict", "mine.csv", "--mean-recurrence", 8, "--tokens", "1e10", cwd=tmp_path).stdout
    assert "  task  " in other
