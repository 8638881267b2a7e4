"""The page's script computes what `predict` computes, of every kind of fit."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from jinja2.utils import htmlsafe_json_dumps

from isoloop.fitting import fit_sweep, predict
from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.report.calculator import calculator_data
from tests.sweeps.report.browser import in_javascript

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps" / "report"
CHANGES = ("whole", "no training law", "no draws", "widened, on loss", "training law alone")
BUDGETS = (3e17, 1e18, 2.7e18, 1.6e19, 3.2e19, 1.6e21, 1e27)


@pytest.fixture(scope="module")
def fit():
    table = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1)
    return fit_sweep(table, name="x", draws=30)


@pytest.fixture(scope="module")
def answers(fit):
    """What the page's script says of fits of every kind: by kind, an answer for each of the budgets."""
    pages = {change: calculator_data(_changed(fit, change)) for change in CHANGES}
    ask = f"(page) => {list(BUDGETS)}.map((flops) => page.ask(flops))"
    script = (SWEEPS / "calculator.js").read_text()
    found = in_javascript(
        f"{script}\nconst pages = {htmlsafe_json_dumps(list(pages.values()))};\npages.map(calculator).map({ask})"
    )
    return dict(zip(pages, found, strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_the_calculator_says_what_predict_says(fit, answers, change):
    asked, found = _changed(fit, change), answers[change]
    for flops, said in zip(BUDGETS, found, strict=True):
        if asked.training is None:
            _check_power_law(asked, flops, said)
            continue
        due = predict(asked, flops=flops)
        best = said["best"]
        near = lambda value: pytest.approx(value, rel=1e-6)
        assert (best["mu"], best["tokens"], best["loss"]) == near((due.mean_recurrence, due.tokens, due.loss))
        for interval, mine in (
            (due.mean_recurrence_interval, best["muInterval"]),
            (due.tokens_interval, best["tokensInterval"]),
            (due.loss_interval, best["lossInterval"]),
        ):
            assert mine == (None if interval is None else near(list(interval)))
        others = [(way["name"], way["mu"], way["tokens"]) for way in said["ways"][1:]]
        assert [name for name, *_ in others] == [law.name for law in due.power_laws]
        for (_, mu, tokens), way, law in zip(others, said["ways"][1:], due.power_laws, strict=True):
            assert (mu, tokens) == near((law.mean_recurrence, law.tokens))
            span = law.mean_recurrence_interval
            assert way["muInterval"] == (None if span is None else near(list(span)))
        assert [note for note in said["notes"] if "a loop runs at least once" not in note] == list(due.notes)


def _changed(fit, change):
    if change == "no training law":
        return dataclasses.replace(fit, training=None, parabola_bias=None)
    if change == "training law alone":
        return dataclasses.replace(fit, isoflop=None, parabola_bias=None)
    if change == "widened, on loss":
        return dataclasses.replace(fit, training=dataclasses.replace(fit.training, widening=1.7, on="loss"))
    if change == "no draws":
        table = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=3)
        return fit_sweep(table, name="x", draws=0)
    return fit


def _check_power_law(fit, flops, said):
    law, best = fit.isoflop.mean_recurrence_law, said["best"]
    tokens = fit.cost_model.tokens_for(flops, [law.at(flops), *law.interval_at(flops)])
    assert best["mu"] == pytest.approx(law.at(flops))
    assert best["muInterval"] == pytest.approx(list(law.interval_at(flops)))
    assert [best["tokens"], *best["tokensInterval"][::-1]] == pytest.approx(list(tokens))
    assert best["loss"] == pytest.approx(float(fit.isoflop.loss_floor_law.at(flops)))
    assert best["lossInterval"] == pytest.approx(list(fit.isoflop.loss_floor_law.interval_at(flops)))


def test_few_loops_are_said_to_be_too_few(fit):
    law = fit.isoflop.mean_recurrence_law
    asked = dataclasses.replace(fit, training=None, parabola_bias=None)
    flops = math.exp((math.log(0.5) - law.log_coefficient) / law.exponent)
    script = (SWEEPS / "calculator.js").read_text()
    found = in_javascript(f"{script}\ncalculator({htmlsafe_json_dumps(calculator_data(asked))}).ask({flops})")
    assert found["best"]["mu"] == pytest.approx(0.5)
    assert "ask for a mean recurrence of 0.5, but a loop runs at least once" in found["notes"][0]
    assert found["whole"]["mu"] == 1


def test_what_is_typed_is_read_or_refused():
    script = (SWEEPS / "calculator.js").read_text()
    read = "const read = (text) => { try { return readFlops(text); } catch (error) { return error.message; } };"
    good = {"1e20": 1e20, "3.2e19": 3.2e19, " 2E+12 ": 2e12, "1 000 000": 1e6, "64_000": 64e3, ".5e3": 500.0}
    bad = ["", "0", "-1e20", "abc", "1e999", "1,5e3", "0x10", "Infinity", "1e20 FLOPs", "--", "<b>"]
    found = in_javascript(f"{script}\n{read}\n{json.dumps([*good, *bad])}.map(read)")
    assert found[: len(good)] == list(good.values())
    for said in found[len(good) :]:
        assert said.startswith("A budget must be a positive number of FLOPs, but got ")


def test_numbers_are_written_as_python_writes_them():
    values = [*np.random.default_rng(0).lognormal(0, 12, 60).tolist(), 1.0, 10.0, 99995.0, 1e-5, 0.0, 6.4e19]
    script = (SWEEPS / "calculator.js").read_text()
    found = in_javascript(f"{script}\n{json.dumps(values)}.map((value) => [general(value, 4), general(value, 6)])")
    assert found == [[f"{value:.4g}", f"{value:.6g}"] for value in values]


def test_a_page_of_many_refits_stays_small(fit):
    many = dataclasses.replace(fit.training, draws=fit.training.draws * 1000)
    data = json.dumps(calculator_data(dataclasses.replace(fit, training=many)))
    assert len(data) < 1_200_000
