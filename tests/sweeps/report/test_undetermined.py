"""What the runs do not determine stands first, and no number in large type, in the commands and on the page."""

import dataclasses
import re

import pytest

from isoloop.fitting import fit_sweep
from isoloop.fitting.report.screen import screen
from isoloop.fitting.simulate import PUBLISHED_TRUTH, simulate_table
from isoloop.sweeps.paths import SweepResults, TablePlaces
from isoloop.sweeps.report.page import TablePage, write_report
from isoloop.sweeps.report.provenance import table_origin
from tests.commands import isoloop, quick_pages
from tests.sweeps.report.browser import in_page
from tests.sweeps.report.test_page import Page

TRUTH = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3)
GRID = {"budgets": (16e18, 32e18), "mean_recurrences": (1, 1.5, 2, 2.5, 3), "recurrences": (), "seed": 1}
STARTS = "Not determined by these runs: the best mean recurrence at 6.4e+19 FLOPs, because 2 of 2 isoFLOP curves have"
NEXT = "Run next: mean recurrences from 1 to 6, at the measured budgets and at 1.3e+20 FLOPs."


@pytest.fixture(scope="module")
def table():
    """Runs whose minima lie above their grid."""
    return simulate_table(TRUTH, **GRID)


@pytest.fixture(scope="module")
def fit(table):
    return fit_sweep(table, name="edge", draws=20)


@pytest.fixture(scope="module")
def folder(table, fit, tmp_path_factory):
    """The table, its stored fit and its page."""
    path = tmp_path_factory.mktemp("undetermined")
    table.to_csv(path / "edge.csv", index=False)
    (path / "edge.fit.json").write_text(fit.to_json())
    results = SweepResults(
        fit=fit, hold_out=None, why_no_fit=None, why_no_hold_out="not tried", report=path / "edge.report.html"
    )
    subject = TablePage(
        places=TablePlaces.beside(path / "edge.fit.json"), name="edge", origin=table_origin(path / "edge.csv")
    )
    with quick_pages():
        write_report(subject, table=table, results=results, command="isoloop report edge.csv")
    return path


def test_the_page_shows_the_reason_in_the_place_of_the_number(folder):
    page = (folder / "edge.report.html").read_text(encoding="utf-8")
    words = " ".join(" ".join(Page(page).texts).split())
    answer = words.index("The answer")
    assert words[answer:].removeprefix("The answer ").startswith(STARTS)
    assert NEXT in words
    shown, wrong = in_page(
        page,
        "const one = (id) => document.querySelector(id), seen = (id) => one(id).checkVisibility();"
        "const state = () => [seen('#best-value'), seen('#best-undetermined'), one('#best-why-not').textContent];"
        "return [state(), one('#best-source').textContent, seen('#best-methods')];",
    )
    assert wrong == []
    (number, reasons, text), source, details = shown
    assert (number, reasons, details) == (False, True, True)
    assert "Because 2 of 2 isoFLOP curves have no minimum inside the grid" in text
    assert source.startswith("The table has what each method alone would choose, ")


def test_predict_and_fit_say_it_first(folder, fit):
    for text in (isoloop("predict", "edge.fit.json", "--flops", 6.4e19, cwd=folder).stdout, screen(fit)):
        words = " ".join(text.split())
        assert words.index(STARTS) < words.index("Run next: mean rec") < words.index("Details: what the ")
        assert words.index("Details: what the ") < words.index("mean recurrence ", words.index("Details: what the "))
        assert "Best model" not in words


def test_five_runs_have_no_answer(tmp_path):
    table = simulate_table(TRUTH, budgets=(4e18,), mean_recurrences=(1, 2, 4, 8, 12), recurrences=())
    table.to_csv(tmp_path / "five.csv", index=False)
    printed = " ".join(isoloop("fit", "five.csv", "--draws", 20, cwd=tmp_path).stdout.split())
    assert "Not determined by these runs: the best model for a budget, because there is no training law" in printed
    refused = isoloop("predict", "five.csv", "--flops", 6.4e19, cwd=tmp_path, check=2).stderr
    assert re.search(r"Not determined by these runs: the best model for a budget.* Run next: ", refused)
