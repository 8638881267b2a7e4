"""The answer in words and numbers: of one size, of several sizes, of dense models, and where the runs do not tell."""

import json
import re
from dataclasses import replace

import pytest

from isoloop.fitting import answer, fit_sweep, predict, simulate_table
from isoloop.fitting.answer.device import DeviceNeeds, Held
from isoloop.fitting.answer.limits import Limits
from isoloop.fitting.answer.verdict import Undetermined
from isoloop.fitting.simulate import PUBLISHED_TRUTH
from tests.fitting.answer.surfaces import SurfaceFit, dense_surface, looped_surface

BUDGETS, RECURRENCES = (1e18, 4e18, 16e18, 64e18), (1, 2, 4, 8, 12)


@pytest.fixture(scope="module")
def fit():
    truth = replace(PUBLISHED_TRUTH, run_noise=3e-4)
    table = simulate_table(truth, budgets=BUDGETS, mean_recurrences=RECURRENCES, recurrences=())
    return fit_sweep(table, name="one size", draws=60)


def numbers(text):
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e[+-]?\d+)?", text)]


def test_the_best_model_is_the_one_that_predict_gives(fit):
    result, predicted = answer(fit, 2e20), predict(fit, flops=2e20)
    assert result.best.mean_recurrence == pytest.approx(predicted.mean_recurrence, rel=1e-4)
    assert result.best.tokens == pytest.approx(predicted.tokens, rel=1e-4)
    assert result.loss.value == pytest.approx(predicted.loss, rel=1e-9)
    assert result.loss.interval == pytest.approx(predicted.loss_interval, rel=1e-6)
    assert result.spans["mean_recurrence"] == pytest.approx(predicted.mean_recurrence_interval, rel=2e-3)
    assert result.best.flops == pytest.approx(2e20)


def test_an_answer_is_three_sentences_and_a_table_of_the_ways_to_spend_the_next_flops(fit):
    result = answer(fit, 2e20)
    best, following, doubt = result.sentences
    assert best.startswith("The best model for 2e+20 FLOPs has a mean recurrence of")
    assert "without loops as many FLOPs would lose" in best
    assert result.without_loops.nats.value < 0
    assert "with ten times the compute the best model has" in following
    assert "most of the next FLOPs should buy more tokens" in following
    assert result.growth.leads["tokens"] > 0.9
    assert "60 refits to 20 runs" in doubt
    assert "3.1x beyond the largest fitted compute (6.4e+19 FLOPs)" in doubt
    text = result.report()
    assert text.startswith(
        "Should the next FLOP buy more loops or more tokens? (one size, simulated, exact accounting)"
    )
    for gain in (*result.marginal.axes, result.marginal.more_flops):
        assert gain.nats.text(".3g") in text
    assert "All runs have one size, so they do not show what more parameters would buy." in text
    assert max(map(len, text.splitlines())) <= 120


def test_from_a_model_of_the_users_own_the_axis_that_buys_most_is_named(fit):
    shallow = answer(fit, mean_recurrence=2, tokens=4e10)
    assert shallow.flops == pytest.approx(shallow.marginal.start.flops)
    assert "the next 10% of FLOPs should buy more loops (probability over 0.983)" in shallow.sentences[1]
    assert shallow.marginal.same_flops.nats.value > 0
    deep = answer(fit, mean_recurrence=12, tokens=1e9, percent=50)
    assert "the next 50% of FLOPs should buy more tokens (probability over 0.983)" in deep.sentences[1]
    assert "beyond" not in deep.sentences[2]


def test_an_undecided_axis_is_said_to_be_one(fit):
    best = answer(fit, 1e19).best
    undecided = answer(fit, mean_recurrence=best.mean_recurrence, tokens=best.tokens, percent=0.01)
    chances = [gain.wins for gain in undecided.marginal.axes]
    assert max(chances) < 0.75
    assert "which these runs do not decide" in undecided.sentences[1]


def test_dense_models_have_no_loops_and_surfaces_of_several_sizes_have_all_axes():
    dense = answer(SurfaceFit(surface=dense_surface(scatter=0.01)), 1e20, params=1e9, tokens=1e10)
    assert dense.question == "Should the next FLOP buy more tokens or more parameters?"
    assert dense.without_loops is None
    assert "parameters" in dense.sentences[0]
    assert "no loops" in dense.report()
    looped = answer(SurfaceFit(surface=looped_surface(scatter=0.01)), 1e20, params=2e8, mean_recurrence=4, tokens=1e10)
    assert looped.question == "Should the next FLOP buy more loops, more tokens or more parameters?"
    assert {gain.axis for gain in looped.marginal.axes} == {"params", "mean_recurrence", "tokens"}
    assert sum(gain.wins for gain in looped.marginal.axes) == pytest.approx(1)


def test_what_the_runs_do_not_determine_is_said_in_place_of_the_best_model():
    missing = Undetermined(subject="the best size", reason="it is at the end of the search", advice="larger sizes")
    wild = answer(SurfaceFit(surface=looped_surface(), undetermined=(missing,)), 1e20)
    assert wild.sentences[0] == str(missing)
    assert "(details: it is not determined)" in wild.report()


def test_under_limits_an_answer_names_the_best_model_what_they_cost_and_what_more_would_break():
    held = (Held(weights=1e8, activations=1e3), Held(weights=1e9, activations=1e4))
    limits = Limits(memory=3e8, unique_tokens=1e10, needs=DeviceNeeds(sizes=(1e8, 1e9), held=held))
    result = answer(SurfaceFit(surface=looped_surface(scatter=0.01, draws=20)), 1e20, limits=limits)
    best, price, _ = result.sentences
    assert best.startswith("The best model for 1e+20 FLOPs in 0.3 GB at 2048 tokens of context, from 1e+10 tokens")
    assert "loops at test time" in best
    assert result.limited.best.flops < 1e20
    assert f"trained on 1e+10 tokens (1e+10 to 1e+10) with {result.limited.best.flops:.3g} FLOPs" in best
    assert re.search(
        r"The limits cost .* nats against the best model without them \(memory alone .*, text alone", price
    )
    assert "the model uses up its memory and text" in price
    rows = {row["the next FLOPs buy"]: row["buys most"] for row in result.rows()}
    assert rows["more parameters alone"] == "beyond the limit of memory"
    assert rows["more tokens alone"] == "beyond the limit of text"
    assert rows["more loops alone"] == ""  # the only way that is left
    assert json.loads(result.to_json())["limited"]["best"]["memory"] == pytest.approx(3e8)
    serving = Limits(served_tokens=5e11)
    served = answer(SurfaceFit(surface=dense_surface(scatter=0.01)), 1e20, limits=serving, percent=0.1)
    assert re.search(r"served as much, \d+% more FLOPs in all \(\d+% to \d+%\)", served.sentences[1])
    gains = [gain.nats.value for gain in served.marginal.axes]
    assert gains[0] == pytest.approx(gains[1], rel=0.01)  # the FLOPs of serving are bought, too
    timed = answer(SurfaceFit(surface=dense_surface()), limits=Limits(seconds=1e5, flops_per_second=1e15))
    assert timed.flops == pytest.approx(1e20)
    assert "Every FLOP takes the same time, whether of loops or of width." in timed.report()


def test_without_refits_there_are_numbers_and_no_chances():
    result = answer(SurfaceFit(surface=dense_surface(draws=0)), 1e20, params=1e9, tokens=1e10)
    assert result.loss.interval is None
    assert all(gain.wins is None for gain in result.marginal.axes)
    assert "Nothing was refitted" in result.report()
    assert "probability" not in result.report()


def test_an_answer_is_json(fit):
    result = answer(fit, 2e20)
    stored = json.loads(result.to_json())
    assert stored["sentences"] == list(result.sentences)
    assert stored["best"]["tokens"] == result.best.tokens
    assert [gain["axis"] for gain in stored["marginal"]["axes"]] == ["mean_recurrence", "tokens"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flops": -1}, "flops must be positive"),
        ({"mean_recurrence": 4}, "tokens is missing"),
        ({"mean_recurrence": 0.5, "tokens": 1e9}, "at least 1"),
        ({"params": 1e8, "mean_recurrence": 4, "tokens": 1e9}, "params, in which its models do not differ"),
        ({"mean_recurrence": 4, "tokens": float("inf")}, "tokens must be positive and finite"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(fit, given, message):
    with pytest.raises(ValueError, match=message):
        answer(fit, **given)


def test_a_fit_without_a_law_has_no_answer(fit):
    with pytest.raises(ValueError, match="needs a law of the loss, but 'known' has none"):
        answer(SurfaceFit(surface=None), 1e20)
