"""The page's calculator shows what `predict` predicts, for every kind of fit."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from jinja2.utils import htmlsafe_json_dumps

from isoloop.fitting import fit_sweep, predict
from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.report.calculator import MULTIPLES, calculator_table
from tests.sweeps.report.browser import in_javascript

SCRIPT = (Path(__file__).resolve().parents[3] / "sweeps" / "report" / "calculator.js").read_text()
CHANGES = ("none", "no training law", "no draws", "widened, on loss", "training law alone")
BETWEEN = (2.7e17, 1.7e18, 2.9e18, 2.1e19, 7.1e19, 5e20, 1.3e22)


@pytest.fixture(scope="module")
def fit():
    table = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1)
    return fit_sweep(table, name="x", draws=20)


@pytest.fixture(scope="module")
def tables(fit):
    """A table of predictions for a fit of each kind."""
    return {change: calculator_table(_changed(fit, change)) for change in CHANGES}


def _changed(fit, change):
    if change == "no training law":
        return dataclasses.replace(fit, training=None, mixture=None, parabola_bias=None)
    if change == "training law alone":
        return dataclasses.replace(fit, isoflop=None, parabola_bias=None)
    if change == "widened, on loss":
        return dataclasses.replace(
            fit, training=dataclasses.replace(fit.training, widening=1.7, on="loss"), mixture=None
        )
    if change == "no draws":
        table = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=3)
        return fit_sweep(table, name="x", draws=0)
    return fit


def interpolated(table, flops):
    """Loss, mean recurrence and tokens for a budget between two of the table, computed as the page does."""
    best = table["methods"][0]
    logs = np.log(table["budgets"])
    return [float(np.exp(np.interp(np.log(flops), logs, np.log(best[field])))) for field in ("loss", "value", "tokens")]


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_holds_what_predict_predicts(fit, tables, change):
    fit, table = _changed(fit, change), tables[change]
    assert table["budgets"] == sorted(set(table["budgets"]))
    assert {times * fit.fitted.flops[1] for times in MULTIPLES} <= set(table["budgets"])
    assert {fit.fitted.flops[0], *table["fitted"]} <= set(table["budgets"])
    for place in range(0, len(table["budgets"]), 23):
        flops, best = table["budgets"][place], table["methods"][0]
        if fit.training is None:
            _check_power_law(fit, flops, best, place)
            continue
        due = predict(fit, flops=flops)
        assert (best["name"], table["reason"]) == (due.method, due.reason)
        for field in ("value", "tokens", "loss"):
            assert best[field][place] == getattr(due, field)
            span = best[f"{field}_interval"]
            assert (None if span is None else tuple(span[place])) == getattr(due, f"{field}_interval")
        others = table["methods"][1:]
        assert [method["name"] for method in others] == [other.method for other in due.others]
        for method, other in zip(others, due.others, strict=True):
            for field in ("value", "tokens", "loss", "extra_loss"):
                assert method[field][place] == getattr(other, field)
            assert method["value_interval"] is None
        undetermined = [f"Because {each.reason}. {each.next_step}" for each in due.verdict.answer]
        assert table["undetermined"][place] == undetermined
        notes = [note.removeprefix("about ") for note in table["notes"][place]]
        assert [note for note in notes if "a loop runs at least once" not in note] == list(due.notes)


def _check_power_law(fit, flops, best, place):
    law = fit.isoflop.mean_recurrence_law
    assert best["value"][place] == pytest.approx(law.at(flops))
    assert best["tokens"][place] == pytest.approx(float(fit.cost_model.tokens_for(flops, law.at(flops))))
    assert (best["value_interval"], best["tokens_interval"]) == (None, None)
    assert best["loss"][place] == pytest.approx(float(fit.isoflop.loss_floor_law.at(flops)))
    assert best["loss_interval"][place] == pytest.approx(fit.isoflop.loss_floor_law.interval_at(flops))


@pytest.mark.parametrize("change", [change for change in CHANGES if change != "no training law"])
def test_losses_between_the_budgets_of_a_table_are_exact_to_one_in_ten_thousand(fit, tables, change):
    fit, table = _changed(fit, change), tables[change]
    laws = [dataclasses.replace(law, draws=()) for law in fit.laws_after_training.laws]
    mixture = fit.mixture and dataclasses.replace(fit.mixture, laws=tuple(laws))
    without_draws = dataclasses.replace(fit, training=laws[0], mixture=mixture)
    budgets = np.exp(np.random.default_rng(0).uniform(*np.log([table["budgets"][0], table["budgets"][-1]]), 60))
    near = 0
    for flops in budgets:
        loss, mean_recurrence, _ = interpolated(table, flops)
        due = predict(without_draws, flops=float(flops))
        assert loss == pytest.approx(due.loss, rel=1e-4)
        near += abs(mean_recurrence / due.mean_recurrence - 1) < 0.01
    assert near >= 57  # the others are next to a jump of the best mean recurrence


def test_the_page_interpolates_the_table(fit, tables):
    budgets = [*BETWEEN, *tables["none"]["budgets"][::20]]
    ask = f"(table) => {budgets}.map(calculator(table))"
    found = in_javascript(f"{SCRIPT}\nconst tables = {htmlsafe_json_dumps(list(tables.values()))};\ntables.map({ask})")
    for (change, table), answers in zip(tables.items(), found, strict=True):
        for flops, answer in zip(budgets, answers, strict=True):
            best = answer["methods"][0]
            assert [best["loss"], best["value"], best["tokens"]] == pytest.approx(interpolated(table, flops), rel=1e-12)
            whole = answer["whole"]
            tokens = _changed(fit, change).cost_model.tokens_for(flops, whole["mu"])
            assert whole["tokens"] == pytest.approx(float(tokens), rel=1e-9)
            assert abs(whole["mu"] - max(best["value"], 1)) <= 1
            if change == "no training law":
                assert whole["loss"] is None
            else:
                assert best["loss"] * (1 - 1e-4) <= whole["loss"] <= best["loss"] * 1.01
    # At a budget of the table the page shows the numbers that are stored.
    for place, answer in zip(range(0, len(tables["none"]["budgets"]), 20), found[0][len(BETWEEN) :], strict=True):
        for method, stored in zip(answer["methods"], tables["none"]["methods"], strict=True):
            for shown, column in (("valueInterval", "value_interval"), ("tokensInterval", "tokens_interval")):
                due = stored[column] and pytest.approx(stored[column][place], rel=1e-12)
                assert method[shown] == due
            assert method["extraLoss"] == (stored["extra_loss"] and stored["extra_loss"][place])
        assert answer["methods"][0]["lossInterval"] == pytest.approx(
            tables["none"]["methods"][0]["loss_interval"][place], rel=1e-12
        )
        assert answer["notes"] == tables["none"]["notes"][place]
        assert answer["undetermined"] == tables["none"]["undetermined"][place]


def test_a_budget_outside_the_table_is_refused(tables):
    read = (
        "const read = (flops) => { try { return calculator(table)(flops); } catch (error) { return error.message; } };"
    )
    script = f"{SCRIPT}\nconst table = {htmlsafe_json_dumps(tables['none'])};\n{read}\n[1e10, 1e30].map(read)"
    for message, flops in zip(in_javascript(script), ("1e+10", "1e+30"), strict=True):
        assert f"must be between 1e+17 and 1.6e+22 FLOPs, but got {flops}; use isoloop predict for others." in message


def test_power_laws_that_want_less_than_one_loop_are_noted(fit):
    law = fit.isoflop.mean_recurrence_law
    exponent = math.log(2) / math.log(4)
    through_a_half = dataclasses.replace(
        law, exponent=exponent, log_coefficient=math.log(0.5) - exponent * math.log(4e18)
    )
    changed = dataclasses.replace(
        fit,
        training=None,
        mixture=None,
        parabola_bias=None,
        isoflop=dataclasses.replace(fit.isoflop, mean_recurrence_law=through_a_half),
    )
    table = calculator_table(changed)
    place = int(np.argmin(np.abs(np.log(table["methods"][0]["value"]) - math.log(0.5))))
    assert "ask for a mean recurrence of 0.5" in table["notes"][place][0]
    assert "but a loop runs at least once" in table["notes"][place][0]
    assert table["whole"]["mean_recurrence"][place] == 1


def test_typed_numbers_are_read_or_refused():
    read = "const read = (text) => { try { return readFlops(text); } catch (error) { return error.message; } };"
    good = {"1e20": 1e20, "3.2e19": 3.2e19, " 2E+12 ": 2e12, "1 000 000": 1e6, "64_000": 64e3, ".5e3": 500.0}
    bad = ["", "0", "-1e20", "abc", "1e999", "1,5e3", "0x10", "Infinity", "1e20 FLOPs", "--", "<b>"]
    found = in_javascript(f"{SCRIPT}\n{read}\n{json.dumps([*good, *bad])}.map(read)")
    assert found[: len(good)] == list(good.values())
    for message in found[len(good) :]:
        assert message.startswith("A budget must be a positive number of FLOPs, but got ")


def test_numbers_are_written_as_python_writes_them():
    values = [*np.random.default_rng(0).lognormal(0, 12, 60).tolist(), 1.0, 10.0, 99995.0, 1e-5, 0.0, 6.4e19]
    found = in_javascript(f"{SCRIPT}\n{json.dumps(values)}.map((value) => [general(value, 4), general(value, 6)])")
    assert found == [[f"{value:.4g}", f"{value:.6g}"] for value in values]


def test_a_table_stays_small(tables):
    assert max(len(json.dumps(table)) for table in tables.values()) < 200_000
