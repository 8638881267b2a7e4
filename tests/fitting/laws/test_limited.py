"""Laws of text that runs out: limits, recovery of known truths, the best split given the text, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import LAWS, check_table, fit_sweep, law_named, point_estimate, predict, simulate_table
from isoloop.fitting.cost import DenseCost
from isoloop.fitting.laws.dense import ChinchillaLaw
from isoloop.fitting.laws.iso_depth import IsoDepthLaw
from isoloop.fitting.laws.limited import EffectiveTokensLaw, repetitions
from isoloop.fitting.laws.looped import TrainingLaw
from isoloop.fitting.selection.choose import choose_table, default_laws
from isoloop.fitting.simulate import published_cost_model
from isoloop.fitting.tables.runs import law_data, read_runs
from tests.fitting.laws.test_laws import DATA, EXAMPLES

DATA_CONSTRAINED = Path(__file__).resolve().parents[4] / "shared" / "data" / "data_constrained_train.csv"
LIMITED = [law for law in LAWS if law.reads_unique_tokens]
EFFECTIVE = [law for law in LIMITED if isinstance(law, EffectiveTokensLaw)]
FRESH = {"params": ChinchillaLaw(), "effective_params": TrainingLaw(), "": IsoDepthLaw()}
TEXTS = (5e7, 5e8, 5e9)
SIZED = np.array([1.8, 400.0, 1800.0, 0.34, 0.36, 6e7, 0.75])
"""R* of 60 at 1e8 parameters, 11 at 1e9."""
LOOPED = np.array([2.2, 32.0, 34.0, 0.26, 0.19, 8.0])


def named(laws):
    return pytest.mark.parametrize("law", laws, ids=lambda law: law.name)


def rows_of(law):
    """Rows of models that saw text of three sizes 0.2 to 400 times, with the columns of `law`."""
    grid = np.meshgrid([2e7, 8e7, 3e8], [1.0, 3.0, 9.0], np.geomspace(1e9, 2e10, 4), TEXTS, indexing="ij")
    once, mu, tokens, unique = (axis.ravel() for axis in grid)
    # Prelude and coda in another proportion to the block in each size
    recurrent = 0.3 * once * (once / 1e8) ** 0.2
    columns = {"params": once * mu, "effective_params": once + mu * recurrent, "params_once": once}
    columns |= {"params_recurrent": recurrent, "mean_recurrence": mu, "tokens": tokens, "unique_tokens": unique}
    return {name: columns[name] for name in law.columns}


def dense_runs(truth=SIZED, noise=2e-3, law="sized-effective-tokens", seed=0):
    rows = rows_of(law_named(law))
    scatter = np.exp(np.random.default_rng(seed).normal(0, noise, len(rows["tokens"])))
    return pd.DataFrame({**rows, "loss": law_named(law).loss(truth, rows) * scatter})


def looped_runs(unique, law="looped-effective-tokens", truth=LOOPED, noise=3e-4, seed=0):
    """The published grid on texts of `unique` tokens, its losses by a law of repeated text."""
    rng, tables = np.random.default_rng(seed), []
    for text in unique:
        table = simulate_table(recurrences=()).assign(unique_tokens=text)
        data = law_data(table)
        losses = law_named(law).loss(truth, data) * np.exp(rng.normal(0, noise, len(table)))
        tables.append(table.assign(loss=losses, run_id=table["run_id"] + f" of {text:g}"))
    return check_table(pd.concat(tables, ignore_index=True))


# Limits


@named(LIMITED)
def test_text_that_does_not_run_out_is_new_to_the_end(law):
    at, columns = np.array(EXAMPLES[law.name]), {name: DATA[name] for name in law.columns}
    endless = {**columns, "unique_tokens": np.full(4, np.inf)}
    once = {**columns, "unique_tokens": columns["tokens"]}
    absent = {name: values for name, values in columns.items() if name != "unique_tokens"}
    expected, slopes = law.loss_and_gradient(at, endless)
    assert np.isfinite(slopes).all()
    for data in (once, absent):
        np.testing.assert_array_equal(law.loss(at, data), expected)
        np.testing.assert_array_equal(law.loss_and_gradient(at, data)[1], slopes)
    if isinstance(law, EffectiveTokensLaw):
        fresh = FRESH[law.size]
        np.testing.assert_allclose(expected, fresh.loss(at[: len(fresh.parameters)], DATA), rtol=1e-14)


@named(EFFECTIVE)
def test_a_huge_worth_of_repetition_is_new_text(law):
    at = np.array(EXAMPLES[law.name])
    at[law.parameter_names.index("R")] = 1e30
    fresh = FRESH[law.size]
    np.testing.assert_allclose(law.loss(at, DATA), fresh.loss(at[: len(fresh.parameters)], DATA), rtol=1e-12)


def test_effective_tokens_are_those_of_muennighoff():
    """Their R* of 15.4: 4 epochs are worth 93% of new text, 40 epochs 38%, and no number of epochs over 16.4 U."""
    law, at = law_named("effective-tokens"), np.array([0.0, 0.0, 1.0, 0.3, 1.0, 15.4])
    epochs = np.array([1.0, 4.0, 40.0, 1e9])
    loss = law.loss(at, {"params": np.ones(4), "tokens": 1e6 * epochs, "unique_tokens": np.full(4, 1e6)})
    worth = 1 / loss / 1e6
    by_hand = 1 + 15.4 * (1 - np.exp(-(epochs - 1) / 15.4))
    np.testing.assert_allclose(worth, by_hand, rtol=1e-12)
    np.testing.assert_allclose(worth / epochs, [1, 0.93, 0.38, 0], atol=0.005)


def test_the_bounded_loss_stays_within_its_bounds_and_rises_with_the_size_on_little_text():
    law, at = law_named("bounded-loss"), np.array(EXAMPLES["bounded-loss"])
    sizes = np.geomspace(1e3, 1e13, 60)
    loss = law.loss(at, {"params": sizes, "tokens": np.full(60, 1e10), "unique_tokens": np.full(60, 1e6)})
    assert (loss > at[0]).all()
    assert (loss < at[1]).all()
    assert 0 < np.argmin(loss) < 59


# Recovery of known truths


@named(LIMITED)
def test_a_law_is_found_again(law):
    truth, rows = np.array(EXAMPLES[law.name]), rows_of(law)
    found = point_estimate(law, {**rows, "loss": law.loss(truth, rows)})
    assert found.converged
    assert found.objective < 1e-12
    np.testing.assert_allclose(found.parameters, truth, rtol=2e-2)


@pytest.mark.parametrize("name", ["effective-tokens", "sized-effective-tokens"])
def test_intervals_hold_the_truth_and_its_loss_beyond_the_runs(name):
    truth = np.array([*SIZED[:5], 12.0]) if name == "effective-tokens" else SIZED
    fit = fit_sweep(dense_runs(truth, law=name), name="dense", law=name, draws=60)
    for parameter, due in zip(fit.training.parameters, truth, strict=True):
        low, high = parameter.interval
        assert low - 0.5 * (high - low) <= due <= high + 0.5 * (high - low), parameter
    for unique in (1e9, np.inf):
        beyond = predict(fit, params=2e9, tokens=1e11, unique_tokens=unique)
        data = {"params": np.array([2e9]), "tokens": np.array([1e11]), "unique_tokens": np.array([unique])}
        due = law_named(name).loss(truth, data)[0]
        low, high = beyond.loss_interval
        assert low <= due <= high
        assert high / low < 1.04


def test_the_best_size_given_the_text_is_that_of_the_truth():
    runs = dense_runs()
    assert default_laws(check_table(runs))[0] == "effective-tokens"
    fit, law = fit_sweep(runs, name="dense", draws=40), law_named("sized-effective-tokens")
    assert fit.laws_after_training.best.law == "sized-effective-tokens"
    best = {}
    for unique in (1e8, 1e9, 1e10, np.inf):
        cost = DenseCost(unique_tokens=None if np.isinf(unique) else unique)
        due = law.optimum(SIZED, cost, 1e21, (1e7, 1e11))
        best[unique] = predict(fit, flops=1e21, unique_tokens=unique)
        assert best[unique].params == pytest.approx(float(due.at), rel=0.1)
        assert best[unique].params_interval[0] <= float(due.at) <= best[unique].params_interval[1]
        assert best[unique].loss == pytest.approx(float(due.loss), rel=0.005)
    new = ChinchillaLaw().optimum(SIZED[:5], DenseCost(), 1e21, (1e7, 1e11))
    assert best[np.inf].params == pytest.approx(float(new.at), rel=0.1)
    assert "this is for text that never repeats; unique_tokens says how much text there is" in best[np.inf].notes
    losses = [one.loss for one in best.values()]
    assert losses == sorted(losses, reverse=True)


def test_more_loops_are_best_where_text_runs_out():
    """mu*(C, U): loops see fewer tokens at a budget, so less of the budget is spent on text seen before."""
    fit = fit_sweep(looped_runs([2e8, 2e9]), name="looped", draws=0)
    assert fit.training.law == "looped-effective-tokens"
    assert "isoFLOP curves are of runs that see the same text" in fit.why_missing("isoflop")
    best = []
    for unique in (np.inf, 1e9, 3e8):
        cost = replace(published_cost_model(), unique_tokens=None if np.isinf(unique) else unique)
        due = law_named("looped-effective-tokens").optimum(LOOPED, cost, 3.2e19)
        found = predict(fit, flops=3.2e19, unique_tokens=unique)
        assert found.mean_recurrence == pytest.approx(float(due.at), rel=0.05)
        best.append(found.mean_recurrence)
    assert best[0] < best[1] < best[2]


def test_runs_of_one_text_predict_for_that_text():
    fit = fit_sweep(looped_runs([3e8]), name="one text", draws=0)
    assert fit.cost_model.unique_tokens == 3e8
    assert predict(fit, flops=1e19) == predict(fit, flops=1e19, unique_tokens=3e8)
    assert predict(fit, flops=1e19).loss > predict(fit, flops=1e19, unique_tokens=np.inf).loss
    surface = fit.surface
    best = surface.best(lambda params, mu: surface.family.tokens_for(1e19, params, mu))
    assert float(best.loss) == pytest.approx(predict(fit, flops=1e19).loss)
    (note,) = (note for note in predict(fit, flops=1e19).notes if "text" in note)
    assert note.startswith("this is for a text of 3e+08 tokens, which is seen ")


@pytest.mark.parametrize(("k", "law"), [(0.0, "looped-effective-tokens"), (1.2, "looped-sized-effective-tokens")])
def test_weights_say_which_parameters_overfitting_goes_with(k, law):
    """Unique parameters, which all loops share (k = 0), or effective ones."""
    truth = np.array([*LOOPED[:5], 8.0 * 1e8**k, k])
    runs = looped_runs([2e8, 2e9], "looped-sized-effective-tokens", truth)
    mixture = fit_sweep(runs, name="looped", draws=0).mixture
    weight = dict(zip((each.law for each in mixture.laws), mixture.weights, strict=True))[law]
    assert weight > (0.5 if k == 0 else 0.99)


def test_sizes_tell_which_parameters_overfitting_goes_with():
    """Three sizes with 1 to 8 loops: unique parameters here, and the law of effective ones fits far worse."""
    names = ("iso-depth-unique-effective-tokens", "iso-depth-sized-effective-tokens")
    truth, rows = np.array(EXAMPLES[names[0]]), rows_of(law_named(names[0]))
    losses = law_named(names[0]).loss(truth, rows)
    losses *= np.exp(np.random.default_rng(0).normal(0, 5e-4, len(losses)))
    unique, effective = (point_estimate(law_named(name), {**rows, "loss": losses}).objective for name in names)
    assert unique < 0.5 * effective


def test_choose_prefers_the_law_that_losses_follow():
    laws = ["effective-tokens", "sized-effective-tokens"]
    assert set(laws) < set(default_laws(check_table(dense_runs())))
    runs = dense_runs()
    choice = choose_table(runs[runs["params"].isin([2e7, 8e7, 3e8])], laws=laws, by=["row"], draws=0)
    assert choice.preferred.law == "sized-effective-tokens"
    errors = {error.method: error.mean_absolute_error for error in choice.cross_validations[0].errors}
    assert errors["sized-effective-tokens law"] < 0.5 * errors["effective-tokens law"]


# What is refused, or said


def test_text_that_nobody_saw_often_is_said_to_determine_little():
    rows = rows_of(law_named("effective-tokens"))
    few = {name: values[repetitions(rows) < 2] for name, values in rows.items()}
    law = law_named("effective-tokens")
    (reason,) = law.undetermined(np.array(EXAMPLES["effective-tokens"]), few)
    assert reason.endswith("hardly determines an R* of 15")
    assert not law.undetermined(np.array(EXAMPLES["effective-tokens"]), rows)
    new = {**rows, "unique_tokens": rows["tokens"]}
    assert "no run saw its text again" in law.undetermined(np.array(EXAMPLES["effective-tokens"]), new)[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unique_tokens": np.nan}, r"1 of 108 runs have neither `unique_tokens` nor `epochs`"),
        ({"unique_tokens": 1e12}, ""),
    ],
)
def test_a_run_of_unknown_text_leaves_laws_of_new_text(change, reason):
    runs = dense_runs()
    runs.loc[3, list(change)] = list(change.values())
    fit = fit_sweep(runs, name="dense", draws=0)
    assert fit.training.law == ("chinchilla" if reason else "effective-tokens")
    assert any(f"No law of repeated text was fitted: {reason}" in caveat for caveat in fit.caveats) == bool(reason)
    if reason:
        with pytest.raises(ValueError, match="reads unique_tokens; use another law"):
            fit_sweep(runs, name="dense", draws=0, law="effective-tokens")
        with pytest.raises(ValueError, match=r"unique_tokens need a law of repeated text.* chinchilla law"):
            predict(fit, flops=1e20, unique_tokens=1e9)
    else:
        with pytest.raises(ValueError, match="unique_tokens must be positive, but got 0"):
            predict(fit, flops=1e20, unique_tokens=0.0)


def test_epochs_take_the_place_of_unique_tokens():
    runs = dense_runs()
    epochs = runs.assign(epochs=runs["tokens"] / runs["unique_tokens"]).drop(columns="unique_tokens")
    by_epochs, by_tokens = (fit_sweep(each, name="one", draws=0).training for each in (epochs, runs))
    np.testing.assert_allclose(by_epochs.vector, by_tokens.vector, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("unique_tokens", 0.0, "`unique_tokens` must be finite and greater than 0"),
        ("epochs", 7.0, r"`epochs` must be tokens / unique_tokens, but row 3 has epochs=7.0 \(which is 0.2\)"),
    ],
)
def test_impossible_text_is_refused(column, value, words):
    runs = dense_runs()
    runs = runs.assign(epochs=runs["tokens"] / runs["unique_tokens"])
    runs.loc[2, column] = value
    with pytest.raises(ValueError, match=words):
        check_table(runs)


def test_text_seen_equally_often_by_all_is_no_ground_for_a_law_of_repetition():
    runs = dense_runs()
    fit = fit_sweep(runs.assign(unique_tokens=runs["tokens"] / 5), name="5 epochs", draws=0)
    assert fit.training.law == "chinchilla"
    assert any("all runs saw their text about as often" in caveat for caveat in fit.caveats)


@pytest.mark.skipif(not DATA_CONSTRAINED.exists(), reason="the published table is not there")
def test_published_runs_beyond_a_compute_are_predicted_better_than_by_new_text():
    """Of 161 runs, the 31 of 3e20 FLOPs and more: 8.7% off by Chinchilla's law, 5.3% by one R*, 3.4% by R* of N."""
    data = law_data(read_runs(DATA_CONSTRAINED).frame)
    held_out = data["flops"] >= 3e20
    errors = []
    for name in ("chinchilla", "effective-tokens", "sized-effective-tokens"):
        rows = {column: values[~held_out] for column, values in data.items()}
        law = law_named(name)
        predicted = law.loss(point_estimate(law, rows).parameters, data)
        errors.append(float(np.mean(abs(predicted / data["loss"] - 1)[held_out])))
    assert errors[0] > 0.08
    assert errors[1] < 0.06
    assert errors[2] < 0.036
