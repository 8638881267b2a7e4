"""`isoloop report TABLE`: the page of somebody's runs beside their file, of dense models and of looped ones."""

import dataclasses
import hashlib
import io
import json
import math
import re
from collections import Counter

import pandas as pd
import pytest
from rich.console import Console

from isoloop.fitting import SweepFit, fit_sweep, predict
from isoloop.fitting.cost.axis import AXES
from isoloop.fitting.result import MissingFit
from isoloop.fitting.tables.contract import check_table
from isoloop.sweeps.cli.console import page_link
from isoloop.sweeps.paths import SweepResults, TablePlaces
from isoloop.sweeps.report.calculator import calculator_table, why_no_calculator
from isoloop.sweeps.report.headline import headline
from isoloop.sweeps.report.page import TablePage, write_report
from isoloop.sweeps.report.provenance import table_origin
from isoloop.sweeps.report.tables import held_out_table
from tests.commands import isoloop, quick_figures
from tests.run_tables import dense_table, own_flops_table
from tests.sweeps.report.browser import in_page
from tests.sweeps.report.test_page import Page

LOOPS = re.compile(r"µ|\bmu\b|loop(?!\.)|recurrence", re.IGNORECASE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a dense table and all that `isoloop report` makes of it, and what it printed."""
    folder = tmp_path_factory.mktemp("dense")
    table = dense_table(budgets=(6e18, 1.2e19, 2.4e19)).rename(columns={"params": "N", "loss": "val_loss"})
    table.to_csv(folder / "mine.csv", index=False)
    with quick_figures():
        return folder, isoloop("report", "mine.csv", "--draws", 20, cwd=folder).stdout


@pytest.fixture(scope="module")
def page(made):
    return (made[0] / "mine.report.html").read_text(encoding="utf-8")


def test_everything_is_stored_beside_the_table(made):
    folder, printed = made
    assert printed.endswith("mine.report.html\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "mine.csv",
        "mine.figures",
        "mine.fit.json",
        "mine.fit.txt",
        "mine.hold-out.json",
        "mine.hold-out.txt",
        "mine.report.html",
    ]
    assert {path.stem for path in (folder / "mine.figures").glob("*.svg")} == {
        "isoflop_curves",
        "power_laws",
        "loss_contours",
        "predicted_against_measured",
        "rollouts",
    }
    hold_out = SweepFit.read(folder / "mine.hold-out.json")
    assert (hold_out.axis, hold_out.held_out.runs) == ("params", 7)
    # The other commands find the fit.
    best = isoloop("predict", "mine.csv", "--flops", "1e20", cwd=folder).stdout
    assert re.search(r"parameters +\d", best)


def test_a_page_that_is_there_is_opened_and_not_made_again(made, monkeypatch):
    folder, _ = made
    path, opened = folder / "mine.report.html", []
    before = path.stat().st_mtime_ns
    monkeypatch.setattr("webbrowser.open_new_tab", lambda uri: opened.append(uri) or True)
    monkeypatch.setenv("BROWSER", "firefox")
    done = isoloop("report", "mine.csv", "--open", cwd=folder)
    assert (done.stdout, done.stderr) == ("mine.report.html\n", "")
    assert opened == [path.resolve().as_uri()]
    # Without a screen, the path is all that can be given.
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "here 1 there 22")
    done = isoloop("report", "mine.csv", "--open", cwd=folder)
    assert done.stdout == "mine.report.html\n"
    assert f":{path.resolve()} ." in done.stderr
    assert (len(opened), path.stat().st_mtime_ns) == (1, before)


def test_a_path_is_a_link_on_a_terminal_alone(tmp_path):
    path = tmp_path / "a b.html"
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, soft_wrap=True, width=20)
        console.print(page_link(path))
        text = console.file.getvalue()
        assert (f";{path.as_uri()}\x1b\\{path}\x1b]8;;" in text) == is_terminal
        assert (text == f"{path}\n") == (not is_terminal)


def test_the_page_of_dense_models_speaks_of_parameters(made, page):
    texts = [" ".join(text.split()) for text in Page(page).texts]
    of_loops = {text.partition(":")[0] for text in texts if LOOPS.search(text) and "isoloop" not in text}
    assert of_loops == {"Not drawn, test time curves", "Not drawn, test time collapse"}
    assert {"size N*, parameters", "loss, nats per token", "N*", "N", "Each run:"} <= set(texts)
    words = " ".join(texts)
    assert "the best parameter count grows as C^" in words
    assert "The best model for" in words
    assert "2 times the largest measured compute, has a parameter count of" in words
    fit = SweepFit.read(made[0] / "mine.fit.json")
    assert all(caveat in texts for caveat in fit.caveats)
    for note in fit.reading:
        assert note in texts
        assert note in " ".join(made[1].split())
    assert any("val_loss" in note for note in fit.reading)


def test_the_page_says_which_file_its_runs_are_in(made, page):
    words = " ".join(" ".join(Page(page).texts).split())
    digest = hashlib.sha256((made[0] / "mine.csv").read_bytes()).hexdigest()
    assert f"SHA-256 is {digest}" in words
    assert "isoloop report mine.csv --draws 20" in words
    assert "isoloop predict mine.fit.json --flops" in words
    for of_a_sweep in ("run this sweep again", "configuration", "corpus", "git checkout"):
        assert of_a_sweep not in words
    assert "mine.figures" in words


def test_the_page_is_well_made_and_opens_without_a_network(page):
    parsed = Page(page)
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert [key for key, count in ids.items() if count > 1] == []
    for tag, attributes in parsed.elements:
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids, (tag, attributes)
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", " ".join(parsed.texts))
    runs = {row["data-run"] for row in parsed.of("tr") if "data-run" in row}
    assert {point["data-run"] for point in parsed.of("use") if "data-run" in point} == runs
    assert len(runs) == 21


def test_the_calculator_of_dense_models_answers_as_predict_does(made, page):
    fit = SweepFit.read(made[0] / "mine.fit.json")
    table = json.loads(re.search(r'id="predictions">(.*?)</script>', page, re.DOTALL).group(1))
    assert table["axis"] == "params"
    assert table["whole"] is None
    for place in range(0, len(table["budgets"]), 12):
        best, due = table["methods"][0], predict(fit, flops=table["budgets"][place])
        for field in ("value", "tokens", "loss"):
            assert best[field][place] == pytest.approx(getattr(due, field), rel=1e-12)
            assert best[f"{field}_interval"][place] == pytest.approx(getattr(due, f"{field}_interval"), rel=1e-12)
        for method, other in zip(table["methods"][1:], due.others, strict=True):
            assert method["value"][place] == pytest.approx(other.value)
    shown, wrong = in_page(
        page,
        "const text = (id) => document.querySelector(id).textContent;"
        "return ['#best-value', '#best-value-interval', '#best-loss', '#best-source', '#best-methods'].map(text);",
    )
    assert wrong == []
    due = predict(fit, flops=2 * fit.fitted.flops[1])
    assert shown[0] == f"{due.params / 1e6:.3g} million"
    low, high = (float(end) for end in shown[1].split(" to "))
    assert (low, high) == pytest.approx(due.params_interval, rel=2e-3)
    assert float(shown[2]) == pytest.approx(due.loss, abs=6e-5)
    assert "whole number" not in shown[3]
    assert not LOOPS.search(" ".join(shown))


def test_a_second_page_takes_the_place_of_the_first_and_keeps_other_files(tmp_path):
    """Three runs allow no fit; of the earlier results only the files that isoloop made are removed."""
    dense_table().head(3).to_csv(tmp_path / "few.csv", index=False)
    figures = tmp_path / "few.figures"
    figures.mkdir()
    for name in ("isoflop_curves.png", "mine.png"):
        (figures / name).write_text("earlier")
    (tmp_path / "few.fit.json").write_text("earlier")
    isoloop("report", "few.csv", cwd=tmp_path)
    text = " ".join(Page((tmp_path / "few.report.html").read_text(encoding="utf-8")).texts)
    assert "No calculator: nothing could be fitted to these runs." in text
    assert "Not fitted: " in text
    assert [path.name for path in figures.iterdir()] == ["mine.png"]
    assert not (tmp_path / "few.fit.json").exists()


def test_the_page_of_a_users_own_flops_has_loops(tmp_path):
    fit = fit_sweep(own_flops_table(), name="own", draws=0)
    table = calculator_table(fit)
    assert (table["axis"], table["methods"][0]["name"]) == ("mean_recurrence", "loops law")
    place = table["budgets"].index(fit.fitted.flops[1])
    due = predict(fit, flops=fit.fitted.flops[1])
    assert table["methods"][0]["value"][place] == due.mean_recurrence
    assert abs(table["whole"]["mean_recurrence"][place] - due.mean_recurrence) < 1
    results = SweepResults(fit=fit, hold_out=None, why_no_fit=None, why_no_hold_out="not tried", report=tmp_path)
    words = " ".join(headline(results))
    assert "the best mean recurrence grows as C^" in words
    assert "(own accounting)" in words
    assert "Loops law L(µ, D) = E + X (q + µ)^-x + Y D^-y" in words


def test_the_headline_and_the_calculator_name_repeated_text(tmp_path):
    table = dense_table()
    fit = fit_sweep(table.assign(unique_tokens=table["tokens"].max() / 6), name="repeated", draws=0)
    results = SweepResults(fit=fit, hold_out=None, why_no_fit=None, why_no_hold_out=None, report=tmp_path)
    (sentence,) = [words for words in headline(results) if "fitted runs saw their training text" in words]
    count = int((table["tokens"] > table["tokens"].max() / 6).sum())
    assert sentence.startswith(f"Text was repeated: {count} of {len(table)} fitted runs saw")
    assert " to 6 times" in sentence
    notes = calculator_table(fit)["notes"]
    assert all(any("this is for a text of" in note for note in budget) for budget in notes)
    once = fit_sweep(table.assign(unique_tokens=table["tokens"].max()), name="once", draws=0)
    assert not any("Text was repeated" in words for words in headline(dataclasses.replace(results, fit=once)))


def test_why_dense_models_have_no_calculator():
    fit = fit_sweep(dense_table(budgets=(6e18,)).head(4), name="few", draws=0)
    assert calculator_table(fit) is None
    reason = why_no_calculator(fit)
    assert reason.startswith("there is no law of the loss (")
    assert "no power law of N* (power laws need 2 budgets" in reason


def test_what_a_report_is_not_made_of_is_refused(made, tmp_path):
    folder, _ = made
    said = isoloop("report", "mine.fit.json", cwd=folder, check=2).stderr
    assert "a report requires a run table, but mine.fit.json is a fit" in said
    (tmp_path / "out" / "sweeps" / "demo").mkdir(parents=True)
    said = isoloop("report", "demo", "--out", "out", "--columns", "tokens=D", cwd=tmp_path, check=2).stderr
    assert "say how a table is read, but demo is a sweep; leave them out" in said
    places = TablePlaces.beside(tmp_path / "a b.fit.json")
    assert (places.report.name, places.figures.name) == ("a b.report.html", "a b.figures")
    assert places.fit(hold_out=True).name == "a b.hold-out.json"


def test_a_page_of_many_runs_stays_small_and_says_what_it_leaves_out(tmp_path):
    rows = pd.concat([dense_table(budgets=(6e18, 1.2e19), seed=seed) for seed in range(150)], ignore_index=True)
    table = check_table(rows)
    fit = fit_sweep(table, name="many", draws=0, profiles=False)
    # Without a law of the loss, two figures are drawn, which is fast.
    missing = (*fit.missing_fits, MissingFit(name="training", reason="left out"))
    results = SweepResults(
        fit=dataclasses.replace(fit, training=None, parabola_bias=None, missing_fits=missing),
        hold_out=None, why_no_fit=None, why_no_hold_out="not tried", report=tmp_path / "many.report.html",
    )  # fmt: skip
    table.to_csv(tmp_path / "many.csv", index=False)
    subject = TablePage(
        places=TablePlaces.beside(tmp_path / "many.fit.json"),
        name="many",
        origin=table_origin(tmp_path / "many.csv"),
    )
    with quick_figures():
        write_report(subject, table=table, results=results, command="isoloop report many.csv")
    text = (tmp_path / "many.report.html").read_text(encoding="utf-8")
    assert len(text) < 2e6
    page = Page(text)
    assert {row["data-run"] for row in page.of("tr") if "data-run" in row} == set(table["run_id"].iloc[:1000])
    assert [point for point in page.of("use") if "data-run" in point] == []
    assert len(page.of("image")) == 2  # the isoFLOP curves, wide and narrow
    words = " ".join(" ".join(page.texts).split())
    assert "These are the first 1000 runs, and 1100 more are in many.csv ." in words
    assert "In figures of more than 2000 points or bars they are an image" in words


def test_the_total_counts_steps_that_runs_share_once(tmp_path):
    table = check_table(dense_table(budgets=(6e18, 1.2e19)))
    table.to_csv(tmp_path / "alone.csv", index=False)
    whole, branches = float(table["flops"].sum()), [0, 3]
    shared = table.assign(flops_trained=math.nan)
    shared.loc[branches, "flops_trained"] = 0.25 * shared.loc[branches, "flops"]
    trained = whole - 0.75 * float(shared.loc[branches, "flops"].sum())
    places = TablePlaces.beside(tmp_path / "alone.fit.json")
    results = SweepResults(fit=None, hold_out=None, why_no_fit="x", why_no_hold_out="x", report=places.report)
    subject = TablePage(places=places, name="alone", origin=table_origin(tmp_path / "alone.csv"))
    for each, total in ((table, f"{whole:.3g}"), (shared, f"{trained:.3g}")):
        write_report(subject, table=each, results=results, command="isoloop report alone.csv")
        text = " ".join(places.report.read_text(encoding="utf-8").split())
        assert f"with {total} training FLOPs in total" in text
        assert (f"; {whole:.3g}, had no run branched off another" in text) is (each is shared)


def test_of_many_held_out_runs_those_with_the_largest_errors_are_shown():
    fit = fit_sweep(dense_table(), name="few", draws=0, profiles=False, hold_out_largest_budget=True)
    first = fit.held_out.rows[0]
    rows = tuple(dataclasses.replace(first, run_id=f"run {i}", error=(-1) ** i * i / 1e3) for i in range(2001))
    shown = held_out_table(dataclasses.replace(fit.held_out, rows=rows), AXES["params"], {"run 2000"}).rows
    assert {row[0].text for row in shown} == {f"run {i}" for i in range(1001, 2001)}
    assert [row[0].link for row in shown if row[0].link] == ["#run-run 2000"]
