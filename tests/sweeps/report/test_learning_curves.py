"""Learning curves: what the page draws of a run is what its journal holds, and what is not drawn is said."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.report.learning_curves import (
    CURVE_POINTS,
    MOST_CURVES,
    MOST_PANELS,
    read_curve,
    read_learning_curves,
    thinned,
)
from isoloop.sweeps.report.page import SweepPage, page_is_of, write_report
from isoloop.trainer.run.journal import Journal
from tests.commands import quick_figures
from tests.sweeps.conftest import SIMULATED, SMALL
from tests.sweeps.report.browser import in_page
from tests.sweeps.report.test_page import HERE, Page

STEP_TOKENS = 64


def _journal(folders, run_id, losses, *, validations=()):
    """A journal with a loss at each step and validation losses at some, and its planned tokens."""
    journal = Journal(folders.run(run_id) / "journal.jsonl")
    journal.event("started", step=0)
    for step, loss in enumerate(losses, start=1):
        values = {"train_loss": float(loss), "tokens": float(step * STEP_TOKENS)}
        journal.metrics(step, values | ({"validation_loss": float(loss) - 0.1} if step in validations else {}))
    journal.close()
    (folders.run(run_id) / "spec.json").write_text(json.dumps({"tokens": 400 * STEP_TOKENS}))


def _losses(count, *, end=2.0, seed=0):
    steps = np.arange(1, count + 1)
    return end + 3.0 * np.exp(-4.0 * np.sqrt(steps / 400)) + np.random.default_rng(seed).normal(0, 0.05, count)


def _row(run_id, mu, *, status="finished", budget=1e17, steps=400, **axes):
    loss = 2.0 if status == "finished" else math.nan
    return {
        "run_id": run_id, "status": status, "seed": 0, "mean_recurrence": mu, "params": 1e6, "budget": budget,
        "tokens": steps * STEP_TOKENS, "loss": loss, "flops": budget, "accounting": "exact", "simulated": False, **axes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two budgets of three runs, of which one diverged, one failed, and one left no journal."""
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="small")
    folders.sweep.mkdir(parents=True)
    _journal(folders, "fine", _losses(400), validations=(100, 200))
    _journal(folders, "other", _losses(400, seed=1))
    _journal(folders, "up", [*_losses(120, seed=2), 9.0, 15.0])
    _journal(folders, "half", _losses(200, end=2.7, seed=3))
    table = pd.DataFrame(
        [
            _row("fine", 1), _row("other", 4), _row("lost", 4),
            _row("up", 1, budget=4e17, status="diverged", steps=123), _row("half", 4, budget=4e17, status="failed"),
        ]
    )  # fmt: skip
    table.to_csv(folders.table, index=False)
    return folders, table


def _page(folders, table, *, simulated=False):
    data = {"data": {"corpus": "stdlib"}}
    results = SweepResults(
        fit=None, hold_out=None, why_no_fit="not tried", why_no_hold_out="not tried", report=folders.report
    )
    page = SweepPage(places=folders, sweep=validate_sweep(SIMULATED if simulated else {**SMALL, **data}, source="test"))
    with quick_figures():
        write_report(page, table=table, results=results, command="isoloop report small")
    return folders.report.read_text()


@pytest.fixture(scope="module")
def page(sweep):
    return _page(*sweep)


def test_points_are_means_of_what_the_journal_holds_near_them(sweep):
    folders, _ = sweep
    curve = read_curve(folders.run("fine") / "journal.jsonl")
    logged = _losses(400)
    assert (curve.tokens[0], curve.losses[0]) == (STEP_TOKENS, pytest.approx(logged[0]))
    for at in (50, len(curve.tokens) - 1):
        step = curve.tokens[at] / STEP_TOKENS
        near = [loss for place, loss in enumerate(logged, start=1) if 0.95 * step <= place <= 1.05 * step]
        assert len(near) >= 3
        assert curve.losses[at] == pytest.approx(np.mean(near))
    assert (curve.last_step, curve.last_loss) == (400, logged[-1])
    assert curve.validations == ((6400.0, logged[99] - 0.1), (12800.0, logged[199] - 0.1))
    assert len(curve.tokens) <= CURVE_POINTS[1] + 4


def test_thinning_keeps_the_ends_and_the_extremes():
    tokens, losses = np.arange(1.0, 5001.0), np.full(5000, 3.0)
    losses[[3211, 4444]] = 9.0, 1.0
    kept = thinned(tokens, losses, 50)
    assert {0, 3211, 4444, 4999} <= set(kept)
    assert len(kept) <= 54
    gaps = np.diff(np.log(tokens[kept[tokens[kept] > 200]]))
    assert gaps.max() < 2 * np.log(5000) / 49
    assert list(thinned(tokens[:30], losses[:30], 50)) == list(range(30))


def test_panels_are_budgets_and_colours_mean_recurrences(sweep):
    curves = read_learning_curves(*sweep)
    assert curves.panels == ["10¹⁷ FLOPs", "4×10¹⁷ FLOPs"]
    assert curves.series_label == "mean recurrence µ"
    runs = curves.runs.set_index("run_id")
    assert runs["panel"].to_dict() == {
        "fine": "10¹⁷ FLOPs", "other": "10¹⁷ FLOPs", "up": "4×10¹⁷ FLOPs", "half": "4×10¹⁷ FLOPs"
    }  # fmt: skip
    assert runs["series"].to_dict() == {"fine": 1, "other": 4, "up": 1, "half": 4}
    assert "1 run left no losses in this output folder." in curves.caption()


def test_panels_without_budgets_are_the_planned_tokens(sweep):
    folders, table = sweep
    curves = read_learning_curves(folders, table.drop(columns="budget"))
    assert curves.panels == ["2.56×10⁴ tokens"]


def test_a_study_has_panels_by_variant_and_colours_by_learning_rate(sweep):
    folders, table = sweep
    axes = {"optimizer.learning_rate": [0.1, 0.2, 0.2, 0.1, 0.2], "variant": ["b", "b", "b", "a", "a"]}
    study = table.assign(**axes, mean_recurrence=4, budget=1e17)
    curves = read_learning_curves(folders, study, axes=[*axes, "seed"])
    assert (curves.panels, curves.series_label) == (["b", "a"], "learning rate")
    assert curves.runs["series"].tolist() == [0.1, 0.2, 0.1, 0.2]
    # With mean recurrences, another axis and a budget name a panel.
    curves = read_learning_curves(folders, table.assign(width=[8, 8, 8, 16, 16]), axes=["width"])
    assert curves.panels == ["width = 8, 10¹⁷ FLOPs", "width = 16, 4×10¹⁷ FLOPs"]


def test_many_runs_are_a_fair_share_of_every_panel_and_outcome(tmp_path):
    folders = Folders(out=tmp_path, name="many")
    rows = [_row(f"r{place}", place % 5, budget=1e17 * (1 + place // 20)) for place in range(MOST_CURVES + 100)]
    rows[7] |= {"status": "diverged"}
    for row in rows:
        _journal(folders, row["run_id"], [3.0, 2.0])
    curves = read_learning_curves(folders, pd.DataFrame(rows))
    assert len(curves.curves) == MOST_CURVES
    assert "r7" in curves.curves
    assert curves.left_out == 100
    assert "100 more runs are not drawn" in curves.caption()
    # Fifteen budgets share the panels.
    assert len(curves.panels) == MOST_PANELS
    assert curves.panels[0] == "10¹⁷ to 2×10¹⁷ FLOPs"
    cells = curves.runs.groupby(["panel", "series"]).size()
    assert len(cells) == 5 * MOST_PANELS
    assert (cells.min(), cells.max()) == (3, 5)  # the diverged one comes on top


def test_the_page_draws_every_run_and_marks_how_it_ended(page):
    figure = page[page.index('id="figure-learning_curves"') :]
    wide = figure[: figure.index('class="figure narrow"')]
    assert re.findall(r'<path d="[^"]+"[^>]* data-run="(\w+)"', wide) == ["fine", "other", "up", "half"]
    ends = dict(re.findall(r'<use [^>]*data-run="(\w+)" data-last-loss="([^"]+)"', wide))
    assert ends["up"] == "15.0000 in step 122"
    assert set(ends) == {"fine", "other", "up", "half"}
    words = " ".join(" ".join(Page(page).texts).split())
    assert "A cross is the last loss that was logged before a run diverged." in words
    assert "A hollow circle is the last loss of a run that did not finish." in words
    assert "small markers are those during training" in words
    # Two decimals of a point are enough.
    assert not re.search(r' d="[^"]*\d\.\d{3}', page)


def test_a_line_that_is_tapped_on_a_phone_says_which_run_it_is(page):
    tap = """
        const line = document.querySelector("#figure-learning_curves .narrow path[data-run='up']");
        line.scrollIntoView({ block: "center" });
        await new Promise((done) => setTimeout(done, 100));
        const spot = line.getPointAtLength(line.getTotalLength() * 0.4).matrixTransform(line.getScreenCTM());
        const where = { clientX: spot.x + 2, clientY: spot.y, bubbles: true, pointerType: "touch" };
        line.dispatchEvent(new PointerEvent("click", where));
        const card = document.querySelector("#card"), box = card.getBoundingClientRect();
        const pair = (term) => [term.textContent, term.nextSibling.textContent];
        const tapped = {
          facts: Object.fromEntries([...card.querySelectorAll("dt")].map(pair)),
          lit: [...document.querySelectorAll("path.lit")].map((each) => each.dataset.run),
          onScreen: box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight,
          rings: document.querySelectorAll(".narrow .ring").length,
        };
    """
    look = (HERE / "report_phone.js").read_text().replace("return {", "return { tapped,")
    found, wrong = in_page(page, tap + look, width=360)
    assert wrong == []
    tapped = found["tapped"]
    assert (tapped["facts"]["run"], tapped["facts"]["status"]) == ("up", "diverged")
    assert tapped["facts"]["last training loss"] == "15.0000 in step 122"
    assert set(tapped["lit"]) == {"up"}
    assert tapped["onScreen"]
    assert tapped["rings"] == 1
    assert found["width"] == [360, 360, []]
    assert [plot["fits"] for plot in found["plots"]] == [True]


def test_a_page_without_journals_has_no_empty_section(sweep, tmp_path):
    _, table = sweep
    folders = Folders(out=tmp_path, name="gone")
    folders.sweep.mkdir(parents=True)
    words = " ".join(Page(_page(folders, table)).texts)
    assert "There are no learning curves: the output folder has no journal of these runs." in words
    assert "Learning curves" not in words
    # Simulated losses are no learning curves, though there are journals.
    assert "earning curves" not in " ".join(Page(_page(sweep[0], table, simulated=True)).texts)


def test_a_page_knows_its_table(sweep, page):
    folders, table = sweep
    copy = folders.sweep / "page.html"
    copy.write_text(page)
    assert page_is_of(copy, folders.table)
    other = folders.sweep / "other.csv"
    table.head(4).to_csv(other, index=False)
    assert not page_is_of(copy, other)
    assert not page_is_of(folders.sweep / "missing.html", folders.table)
