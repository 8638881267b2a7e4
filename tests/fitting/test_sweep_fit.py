"""A whole sweep: recovery, holding out, caveats, storing, predicting."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import PUBLISHED_TRUTH, SweepFit, draw_losses, fit_sweep, predict, simulate_table

# Each model with losses at other T is a fit of its own: what is of none of them leaves these losses out.
SMALL = {"budgets": (1e18, 2e18, 4e18, 8e18), "mean_recurrences": (1, 2, 4, 8), "recurrences": (1, 2, 4, 8, 12, 16)}
AT_MEAN = {**SMALL, "recurrences": ()}
SMALLER = {**SMALL, "budgets": (1e18, 2e18, 4e18), "mean_recurrences": (1, 2, 4)}


@pytest.fixture(scope="module")
def published():
    return fit_sweep(simulate_table(seed=1), name="published", draws=40)


@pytest.fixture(scope="module")
def held_out():
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3, evaluation_noise=1e-4)
    table = simulate_table(truth, seed=1, **SMALL)
    return fit_sweep(table, name="held", hold_out_largest_budget=True, draws=30)


def test_the_truth_is_found_again(published):
    for fit in (published.training, published.unified):
        for parameter in fit.parameters:
            assert parameter.value == pytest.approx(getattr(PUBLISHED_TRUTH, parameter.name), rel=0.1)
    assert published.unified.value("z") == pytest.approx(7.5, rel=1e-2)
    deep = [fit for fit in published.test_time if fit.mean_recurrence == 8]
    assert len(deep) == 6
    assert all(fit.value("z") == pytest.approx(7.5 / 8, rel=0.02) for fit in deep)


def test_caveats_are_reported(published):
    text = " ".join(published.caveats)
    for words in (
        "simulated",
        "`exact`",
        "6.4e+19 FLOPs is left out",
        "every prediction extrapolates",
    ):
        assert words in text


def test_the_report_holds_every_number(published):
    text = published.report()
    assert text.startswith("Fit of published  (simulated)")
    for words in (
        "mu* ~ C^0.",
        "D*  ~ C^0.",
        "E + X N(mu)^-x",
        "left out: the minimum is at the grid's edge",
        "Caveats",
    ):
        assert words in text
    for parameter in published.training.parameters:
        assert f"{parameter.value:.5g}" in text


def test_json_gives_an_equal_fit_back(published, held_out, tmp_path):
    for fit in (published, held_out):
        path = tmp_path / "fit.json"
        path.write_text(fit.to_json())
        back = SweepFit.read(path)
        assert back == fit
        assert back.report() == fit.report()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ("[]", "must have the format"),
        ('{"format": "isoloop-fit/0"}', "but got 'isoloop-fit/0'"),
        ('{"format": "isoloop-fit/4"}', "must be whole"),
    ],
)
def test_a_stored_fit_that_is_none_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        SweepFit.from_json(text)


def test_a_stored_fit_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is none at"):
        SweepFit.read(tmp_path / "fit.json")


def test_the_same_seed_gives_the_same_fit():
    table = simulate_table(**SMALLER)
    assert fit_sweep(table, name="a", draws=20).to_json() == fit_sweep(table, name="a", draws=20).to_json()


def test_nothing_is_fitted_to_the_held_out_budget(held_out):
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3, evaluation_noise=1e-4)
    table = simulate_table(truth, seed=1, **SMALL)
    without = fit_sweep(table[table["budget"] < 8e18], name="held", draws=30)
    assert held_out.training == without.training
    assert held_out.unified == without.unified
    assert held_out.isoflop == without.isoflop
    assert held_out.fitted.flops[1] == pytest.approx(4e18)


def test_the_error_of_held_out_runs_is_reported(held_out):
    held = held_out.held_out
    assert (held.column, held.value, held.runs) == ("budget", 8e18, 4)
    assert held.times_beyond == pytest.approx(2)
    errors = {error.method: error for error in held.errors}
    assert errors["training law at T = mu"].rows == 4
    assert errors["unified law"].rows == 24
    assert errors["unified law, given the loss at T = mu"].rows == 20
    assert errors["unified law"].mean_absolute_error < 0.5
    given = errors["unified law, given the loss at T = mu"].mean_absolute_error
    assert given < errors["unified law"].mean_absolute_error
    for row in held.rows:
        assert row.error == pytest.approx(100 * (row.predicted / row.measured - 1))
    assert "was held out of every fit" in " ".join(held_out.caveats)


def test_token_sweeps_hold_out_the_largest_token_count():
    table = token_sweep()
    fit = fit_sweep(table, name="tokens", hold_out_largest_budget=True, draws=0)
    assert fit.isoflop is None
    assert "no run has a `budget`" in fit.why_missing("isoflop")
    assert (fit.held_out.column, fit.held_out.value, fit.held_out.runs) == ("tokens", 8e9, 4)
    assert fit.training is not None


def token_sweep():
    table = simulate_table(**SMALL).drop(columns="budget")
    rng = np.random.default_rng(0)
    for row in table.index:
        tokens = 1e9 * 2 ** (row // 4)
        mu = table.loc[row, "mean_recurrence"]
        losses = draw_losses(PUBLISHED_TRUTH, mu, tokens, [1, 2, 4, 8, 12, 16], rng)
        table.loc[row, "flops"] *= tokens / table.loc[row, "tokens"]
        table.loc[row, "tokens"] = tokens
        table.loc[row, "loss"] = losses[mu]
        table.loc[row, [f"loss_T{T}" for T in losses]] = list(losses.values())
    return table


def test_unfinished_runs_are_counted_and_not_fitted():
    table = simulate_table(**AT_MEAN)
    table.loc[[3, 5], "status"] = ["diverged", "failed"]
    table.loc[[3, 5], "loss"] = np.nan
    fit = fit_sweep(table, name="some", draws=0)
    assert fit.finished_runs == 14
    assert fit.training.runs == 14
    assert "1 of 16 runs diverged and is not fitted." in fit.caveats
    assert "1 of 16 runs failed and is not fitted." in fit.caveats


def test_a_missed_budget_is_a_caveat():
    table = simulate_table(**AT_MEAN)
    table.loc[0, "budget"] *= 1.5
    fit = fit_sweep(table.drop(index=[1, 2, 3]), name="missed", draws=0)
    assert any("spent over 1% more or less than its budget" in caveat for caveat in fit.caveats)


def test_a_tiny_sweep_has_what_it_allows_and_says_the_rest():
    table = simulate_table(budgets=(1e18, 2e18), mean_recurrences=(1, 2), recurrences=(1, 2, 3, 4, 6))
    fit = fit_sweep(table, name="tiny", draws=10)
    assert fit.training is None
    assert fit.unified is None
    assert len(fit.test_time) == 4
    assert "needs at least 6 rows, but got 4" in fit.why_missing("training")
    assert SweepFit.from_json(fit.to_json()) == fit
    assert "training law: not fitted" in fit.report()
    with pytest.raises(ValueError, match="needs the training law, but 'tiny' has no fit of it"):
        predict(fit, mean_recurrence=2, tokens=1e9)


def test_a_sweep_that_allows_nothing_is_refused():
    with pytest.raises(ValueError, match="needs enough runs for one fit at least, but 'one' allows none"):
        fit_sweep(simulate_table(budgets=(1e18,), mean_recurrences=(2,), recurrences=()), name="one")


def test_no_finished_run_is_refused():
    table = simulate_table(**SMALL).assign(status="diverged", loss=np.nan)
    with pytest.raises(ValueError, match="needs finished runs, but 'none' has none"):
        fit_sweep(table, name="none")


def test_holding_out_the_only_budget_is_refused():
    with pytest.raises(ValueError, match="needs 2 different ones"):
        fit_sweep(simulate_table(budgets=(1e18,)), name="one", hold_out_largest_budget=True)


def test_progress_counts_the_parts_of_the_fit():
    calls = []
    fit_sweep(simulate_table(**SMALL), name="p", draws=0, progress=lambda *stage: calls.append(stage))
    stages = dict.fromkeys(stage for stage, _, _ in calls)
    laws = ["law after training", "richer law after training", "test-time laws", "joint test-time law", "unified law"]
    assert list(stages) == ["isoFLOP curves", *laws]
    shares = [done / total for _, done, total in calls]
    assert shares == sorted(shares)
    assert 0 == shares[0] < shares[-1] < 1
    assert sum(stage == "test-time laws" for stage, _, _ in calls) == 16


def test_prediction_by_tokens_and_by_flops_agree(published):
    by_tokens = predict(published, mean_recurrence=6, tokens=3e9)
    by_flops = predict(published, mean_recurrence=6, flops=by_tokens.flops)
    assert by_flops.tokens == pytest.approx(3e9, rel=1e-12)
    assert by_flops.loss == pytest.approx(by_tokens.loss, rel=1e-12)
    assert by_tokens.loss == pytest.approx(PUBLISHED_TRUTH.loss(6, 3e9, 6), rel=1e-3)
    assert by_tokens.loss_interval[0] < by_tokens.loss < by_tokens.loss_interval[1]
    assert by_tokens.perplexity == pytest.approx(np.exp(by_tokens.loss))
    assert by_tokens.notes == ()


def test_prediction_at_other_recurrences_is_the_unified_laws(published):
    shallow = predict(published, mean_recurrence=8, tokens=3e9, recurrence=2)
    assert (shallow.method, shallow.recurrence) == ("unified law", 2)
    assert shallow.loss == pytest.approx(PUBLISHED_TRUTH.loss(8, 3e9, 2), rel=1e-3)


def test_what_cannot_be_redrawn_is_refused_before_anything_is_fitted():
    with pytest.raises(ValueError, match="needs the column `budget`"):
        fit_sweep(token_sweep(), name="tokens", draws=20, kind="budgets")
    with pytest.raises(ValueError, match="draws and seed must be 0 or more, but got 20 and -1"):
        fit_sweep(simulate_table(**SMALL), name="seed", draws=20, seed=-1)


def test_a_measured_loss_predicts_the_loss_at_other_recurrences(published):
    truth = PUBLISHED_TRUTH
    luck = 1.01  # a run one percent worse than its law says
    measured = luck * truth.loss(8, 5e9, 8)
    given = predict(published, mean_recurrence=8, tokens=5e9, recurrence=4, loss_at_mean=measured)
    assert given.method == "joint-test-time law"
    gained = truth.loss(8, 5e9, 4) - truth.loss(8, 5e9, 8)
    assert given.loss == pytest.approx(measured + gained, rel=1e-4)
    ungiven = predict(published, mean_recurrence=8, tokens=5e9, recurrence=4)
    assert ungiven.loss < given.loss - 0.02


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean_recurrence": 8, "tokens": 5e9}, "but recurrence is missing"),
        ({"flops": 1e18, "recurrence": 4}, "but mean_recurrence is missing"),
    ],
)
def test_a_measured_loss_needs_both_recurrences(published, arguments, words):
    with pytest.raises(ValueError, match=words):
        predict(published, loss_at_mean=3.0, **arguments)
    with pytest.raises(ValueError, match="loss_at_mean must be positive and finite"):
        predict(published, loss_at_mean=float("nan"), mean_recurrence=8, tokens=5e9, recurrence=4)


def test_prediction_for_compute_alone_is_the_optimum(published):
    best = predict(published, flops=4e18)
    assert best.optimal
    assert float(published.cost_model.flops_for(best.tokens, best.mean_recurrence)) == pytest.approx(4e18, rel=1e-12)
    for mu in (0.8 * best.mean_recurrence, 1.25 * best.mean_recurrence):
        assert predict(published, mean_recurrence=mu, flops=4e18).loss > best.loss
    assert best.mean_recurrence_interval[0] <= best.mean_recurrence <= best.mean_recurrence_interval[1]
    fitted, corrected = best.others[-2:]
    assert fitted.value == pytest.approx(4.9, abs=0.4)
    # Without the parabola's bias, it says about what the law says, whose optimum has kinks.
    assert corrected.value == pytest.approx(best.mean_recurrence, rel=0.1)
    others = best.report().partition("Other methods, and the loss that their choice would cost\n")[2]
    assert "  isoFLOP power laws: mu* = " in others


def test_extrapolation_is_reported(published):
    assert "4.0x beyond the largest fitted compute (6.4e+19 FLOPs)" in predict(published, flops=2.56e20).notes
    notes = predict(published, mean_recurrence=8, tokens=3e9, recurrence=48).notes
    assert notes == ("2.0x beyond the largest fitted recurrence T (24 loops)",)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({}, "but got nothing"),
        ({"tokens": 1e9}, "but got tokens"),
        ({"recurrence": 4}, "but got recurrence"),
        ({"tokens": 1e9, "flops": 1e18}, "but got tokens and flops"),
        ({"mean_recurrence": 4}, "either tokens or flops, but got neither"),
        ({"mean_recurrence": 4, "tokens": 1e9, "flops": 1e18}, "but got both"),
        ({"mean_recurrence": 0, "tokens": 1e9}, "mean_recurrence must be positive"),
        ({"mean_recurrence": 4, "tokens": -1}, "tokens must be positive"),
        ({"flops": float("nan")}, "flops must be positive"),
        ({"mean_recurrence": 4, "tokens": 1e9, "recurrence": 0.5}, "recurrence must be at least 1"),
    ],
)
def test_a_wrong_question_is_refused(published, question, words):
    with pytest.raises(ValueError, match=words):
        predict(published, **question)


def test_noise_of_a_run_is_common_to_its_recurrences():
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-2, evaluation_noise=1e-5)
    losses = draw_losses(truth, 8, 1e10, [1, 4, 8], np.random.default_rng(0))
    off = [np.log(loss / truth.loss(8, 1e10, T)) for T, loss in losses.items()]
    assert np.ptp(off) < 1e-4 < abs(np.mean(off))


@pytest.mark.parametrize("arguments", [(0, 1e9, [1]), (4, -1, [1]), (4, 1e9, [0])])
def test_a_run_that_cannot_be_is_not_drawn(arguments):
    with pytest.raises(ValueError, match="but got"):
        draw_losses(PUBLISHED_TRUTH, *arguments, np.random.default_rng(0))


def test_importing_fitting_is_light():
    code = "import sys, json, isoloop.fitting; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    absent = {"matplotlib", "torch", "ray", "mlflow", "isoloop.trainer", "isoloop.sweeps"}
    assert not absent & set(json.loads(done.stdout))


def ragged(stored, change):
    data = json.loads(stored)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fit: fit["training"]["draws"][3].pop(), "each refit of the training law has 5 values, where one has 4"),
        (lambda fit: fit["fitted"]["flops"].append(1.0), "`fitted.flops` has too many values"),
        (lambda fit: fit["fitted"]["flops"].pop(), "`fitted.flops.1` is missing"),
        (
            lambda fit: fit["unified"]["parameters"].pop(),
            "the unified law has the parameters E, X, Y, Z, x, y, z, where",
        ),
        (lambda fit: fit["training"].pop("noise"), "`training.noise` is missing"),
        (lambda fit: fit["training"]["parameters"][0].pop("value"), "`training.parameters.0.value` is missing"),
        (lambda fit: fit["training"].update(noise="much"), '`training.noise` must be a valid number, and is "much"'),
        (lambda fit: fit["training"].update(noise="0.1"), '`training.noise` must be a valid number, and is "0.1"'),
        (lambda fit: fit["training"].update(parameters=3), "`training.parameters` must be a valid array, and is 3"),
        (lambda fit: fit["training"].update(mood="good"), "`training.mood` is unknown"),
        (lambda fit: fit["cost_model"]["forward_loops"].pop(), "needs loops forward and backward at each"),
        (lambda fit: fit.update(fitted=[1]), r"`fitted` must be an object, and is \[1\]"),
        (lambda fit: fit.update(finished_runs=True), "`finished_runs` must be a valid integer, and is true"),
    ],
)
def test_a_stored_fit_that_is_not_whole_is_refused(published, change, words):
    with pytest.raises(ValueError, match=f"a stored fit must be whole, but .*{words}.*; fit the sweep again"):
        SweepFit.from_json(ragged(published.to_json(), change))


@pytest.mark.parametrize(
    ("law", "words"),
    [
        ("os:path", "the law 'os:path' must be a class that derives from .*; derive it"),
        ("no_such_module:Law", "the law 'no_such_module:Law' can't be imported: .*; put its folder on PYTHONPATH"),
    ],
)
def test_a_stored_fit_by_a_law_that_cannot_be_loaded_is_refused(published, law, words):
    with pytest.raises(ValueError, match=f"a stored fit needs the laws that it names, but {words}$"):
        SweepFit.from_json(ragged(published.to_json(), lambda fit: fit["training"].update(law=law)))


def test_an_interval_that_ends_with_the_search_is_reported(published):
    far = predict(published, flops=1.95e24)
    assert far.mean_recurrence < 1020
    assert far.mean_recurrence_interval[1] == pytest.approx(1024)
    assert any("95% interval of the mean recurrence ends at the end of the search" in note for note in far.notes)
    near = predict(published, flops=1e19)
    assert not any("end of the search" in note for note in near.notes)


def test_less_than_one_loop_is_refused(published):
    with pytest.raises(
        ValueError, match=r"mean_recurrence must be at least 1, but got 0\.5; a loop runs at least once"
    ):
        predict(published, mean_recurrence=0.5, tokens=1e9)


def test_rows_of_dense_models_are_redrawn_by_default_and_noise_where_they_are_few():
    rng = np.random.default_rng(0)
    budgets = np.repeat([1e19, 1e20, 1e21], 6)
    params = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.25, 4, 6), 3)
    table = pd.DataFrame({"params": params, "tokens": budgets / 6 / params, "budget": budgets})
    table["loss"] = (1.8 + 480 * params**-0.35 + 2085 * table["tokens"] ** -0.37) * np.exp(rng.normal(0, 5e-3, 18))
    fit = fit_sweep(table, name="dense", draws=20)
    assert fit.training.bootstrap == "rows"
    assert "20 refits, rows" in fit.report()
    assert fit_sweep(table, name="dense", draws=20, kind="parametric").training.bootstrap == "parametric"
    assert fit_sweep(table.iloc[:11], name="few", draws=20).training.bootstrap == "parametric"
    looped = simulate_table(recurrences=(), budgets=(1e18, 2e18))
    assert fit_sweep(looped, name="looped", draws=20).training.bootstrap == "parametric"
