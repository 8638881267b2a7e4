"""A sweep's page: it holds everything, reads without a script, and what its scripts compute is what Python computes."""

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from isoloop.fitting import answer, predict
from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.analysis import fit_and_report
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.report.provenance import read_origin
from isoloop.sweeps.report.svg import Palette, inline_svg, lightened
from tests.commands import quick_figures
from tests.sweeps.conftest import SIMULATED
from tests.sweeps.report.browser import in_page

HERE = Path(__file__).resolve().parent
SWEEPS = HERE.parents[2] / "sweeps" / "report"
ODD = "odd<b>&,1"
LABEL = "variant = <i>a&b"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep of a group that can be fitted and one that can't; the runs of the first left their records."""
    sweep = validate_sweep(SIMULATED, source="test")
    folders = Folders(out=tmp_path_factory.mktemp("out"), name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep))
    good = simulate_table(
        budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4, 8, 12), recurrences=(1, 2, 4, 8), seed=1
    ).assign(group=LABEL)
    # Test-time laws of a few models are enough.
    good.loc[good["budget"] < 16e18, ["loss_T1", "loss_T2", "loss_T4", "loss_T8"]] = math.nan
    good.loc[3, "run_id"] = ODD
    bad = simulate_table(budgets=(1e18,), mean_recurrences=(1, 2, 4), recurrences=(), seed=2)
    bad = pd.concat([bad, bad.assign(seed=7)], ignore_index=True).assign(group="variant = few")
    bad["run_id"] = [f"few-{place}" for place in bad.index]
    bad.loc[bad["mean_recurrence"] == 4, ["status", "loss"]] = ["diverged", math.nan]
    for place, run_id in enumerate(good["run_id"]):
        _record(folders.run(run_id), torch="2.9.0" if place else "2.8.0")
    table = pd.concat([good, bad], ignore_index=True)
    with quick_figures():
        return fit_and_report(sweep, folders, table, command="isoloop run 'x y.yaml'", draws=20), folders


@pytest.fixture(scope="module")
def fit(made):
    return made[0].groups[LABEL].fit


@pytest.fixture(scope="module")
def pages(made):
    """The text of the three pages, and what is in each."""
    results, _ = made
    texts = {"sweep": results.report.read_text(), "good": results.groups[LABEL].report.read_text()}
    texts["bad"] = results.groups["variant = few"].report.read_text()
    return texts, {name: Page(text) for name, text in texts.items()}


def _record(folder, *, torch):
    folder.mkdir(parents=True)
    start = {
        "kind": "event",
        "name": "started",
        "host": "secret-host",
        "torch": torch,
        "python": "3.11.7",
        "commit": "c" * 40,
    }
    metrics = {"kind": "metrics", "step": 0, "values": {"loss": 1.0}}
    lines = [{"kind": "journal", "id": "x"}, start, metrics]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn "event"')
    (folder / "spec.json").write_text(json.dumps({"data_fingerprint": "abc123"}))


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text by line without scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._hidden = [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, text):
        if not self._hidden:
            self.texts.append(text)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", ["sweep", "good", "bad"])
def test_a_page_opens_without_a_network(pages, name):
    texts, parsed = pages
    page = parsed[name]
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(key) or ""
            assert not re.match(r"(?i)([a-z][a-z0-9+.-]*:|//)", value), (tag, key, value)
    assert not {"link", "iframe", "object", "embed", "img", "image"} & {tag for tag, _ in page.elements}
    assert "@import" not in texts[name]
    assert not re.search(r"url\((?!#)", texts[name])
    assert "http" not in texts[name].replace("http-equiv", "")


@pytest.mark.parametrize("name", ["sweep", "good", "bad"])
def test_a_page_is_well_made(pages, name):
    page = pages[1][name]
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("title")) == 1 + len([None for _ in page.of("use") if "data-run" in _])
    assert len(page.of("h1")) == len(page.of("main")) == 1
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [key for key, count in ids.items() if count > 1] == []
    for _, attributes in page.elements:
        for key in ("for", "aria-labelledby", "aria-describedby"):
            assert all(one in ids for one in attributes.get(key, "").split())
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
        assert all(one in ids for one in re.findall(r"url\(#([^)]+)\)", str(attributes.get("clip-path"))))
    assert all(svg["aria-label"] and svg["role"] for svg in page.of("svg"))
    assert all(region["aria-label"] for region in page.of("div") if region.get("role") == "region")
    text = " ".join(page.texts)
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", re.sub(r"inf(inite)?ly", "", text))


def test_names_are_escaped(pages):
    texts, parsed = pages
    for name in ("sweep", "good"):
        assert "<i>a&b" not in texts[name]
        assert "<b>&,1" not in texts[name]
        assert not parsed[name].of("i")
        assert not parsed[name].of("b")
    assert LABEL in " ".join(parsed["sweep"].texts)
    assert any(row.get("data-run") == ODD for row in parsed["good"].of("tr"))


def test_every_doubt_is_there(made, pages):
    items = [" ".join(text.split()) for text in pages[1]["good"].texts]
    for found in (made[0].groups[LABEL].fit, made[0].groups[LABEL].hold_out):
        assert found.caveats
        assert [doubt for doubt in found.caveats if doubt not in items] == []


def test_what_is_not_there_is_said(made, pages):
    texts, parsed = pages
    bad = " ".join(" ".join(parsed["bad"].texts).split())
    assert made[0].groups["variant = few"].why_no_fit in bad
    assert "No calculator: nothing could be fitted to these runs." in bad
    assert parsed["bad"].of("form") == []
    assert 'id="predictions"' not in texts["bad"] + texts["sweep"]
    assert "2 diverged" in bad
    good = " ".join(" ".join(parsed["good"].texts).split())
    assert f"isoloop predict {made[1].name}/groups/" in good
    assert parsed["good"].of("noscript")


def test_the_held_out_runs_are_all_there(made, pages):
    held = made[0].groups[LABEL].hold_out.held_out
    cells = set(pages[1]["good"].texts)
    rows = [row for row in held.rows if row.method.startswith("training law")]
    assert len(rows) == held.runs == 5
    for row in rows:
        assert {f"{row.predicted:.4f}", f"{row.measured:.4f}", f"{row.error:+.2f}%"} <= cells
        assert f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" in cells
    for error in held.errors:
        assert f"{error.mean_absolute_error:.3g}%" in cells
    assert "training law at T = µ" in cells
    assert f"{round(held.errors[0].coverage * 5)} of 5 ({held.errors[0].coverage:.0%})" in cells


def test_the_groups_are_compared(made, pages):
    text = " ".join(pages[1]["sweep"].texts)
    law = made[0].groups[LABEL].fit.isoflop.mean_recurrence_law
    assert f"{law.exponent:.3f}" in pages[1]["sweep"].texts
    assert f"{law.interval[0]:.3f} to {law.interval[1]:.3f}" in text
    best = predict(made[0].groups[LABEL].fit, flops=2 * made[0].groups[LABEL].fit.fitted.flops[1])
    assert f"{best.tokens:.3g}" in pages[1]["sweep"].texts
    assert "not fitted" in text
    links = {link["href"] for link in pages[1]["sweep"].of("a")}
    assert {link for link in links if link.startswith("groups/")} == {
        found.report.relative_to(made[1].sweep).as_posix() for found in made[0].groups.values()
    }
    assert "../../report.html" in {link["href"] for link in pages[1]["good"].of("a")}


def test_the_page_says_what_the_runs_were_made_with(made, pages):
    origin = read_origin(made[1], [ODD, "never-ran"])
    assert (origin.runs, origin.recorded) == (2, 1)
    assert origin.facts["torch"] == {"2.9.0": 1}
    assert origin.corpora == {"abc123": 1}
    text = " ".join(" ".join(pages[1]["good"].texts).split())
    assert "2.8.0 (1 run); 2.9.0 (14 runs)" in text
    assert "The runs differ in: torch." in text
    assert f"git checkout {'c' * 40}" in text
    assert "abc123" in text
    assert "isoloop run 'x y.yaml'" in text
    assert "secret-host" not in pages[0]["good"]


def test_a_run_that_went_on_under_other_versions_says_both(tmp_path):
    folders = Folders(out=tmp_path, name="x")
    _record(folders.run("a"), torch="2.8.0")
    journal = folders.run("a") / "journal.jsonl"
    resumed = {"kind": "event", "name": "resumed", "torch": "2.9.0", "commit": "c" * 40}
    journal.write_text(journal.read_text().rpartition("\n")[0] + "\n" + json.dumps(resumed) + "\n")
    facts = read_origin(folders, ["a"]).facts
    assert facts["torch"] == {"2.8.0, then 2.9.0": 1}
    assert facts["commit"] == {"c" * 40: 1}


def test_every_run_of_the_curves_is_known(made, pages):
    table = pd.read_csv(made[0].groups[LABEL].report.parent / "runs.csv")
    points = {point["data-run"] for point in pages[1]["good"].of("use") if "data-run" in point}
    assert points == set(table["run_id"])


def test_points_of_unknown_runs_are_left_alone():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10pt" viewBox="0 0 1 1"><g id="runs:a,b">{}</g></svg>'
    palette = Palette()
    one, two = '<use href="#m" style="fill: #440154"/>', '<use href="#m" x="1"/><use href="#m" x="2"/>'
    shown = inline_svg(svg.format(two), name="f", label="l", palette=palette, runs={"b": "run b"})
    assert re.findall(r'data-run="(.)"', shown) == ["a", "b"]
    assert 'href="#f-m"' in shown
    shown = inline_svg(svg.format(one), name="f", label="l", palette=palette, runs={})
    assert "data-run" not in shown
    assert "var(--c-440154)" in shown
    assert "--c-440154: #440154" in palette.css()


@pytest.fixture(scope="module")
def desktop(pages):
    found, wrong = in_page(pages[0]["good"], (HERE / "report_desktop.js").read_text())
    assert wrong == []
    return found


def test_a_page_says_what_the_next_flops_should_buy_unless_the_runs_do_not_determine_it(pages, fit):
    expected, parsed = answer(fit), pages[1]
    texts = [text.strip() for text in parsed["good"].texts]
    assert not expected.verdict.answer
    assert expected.question in texts
    assert all(re.sub(r"\bmu\b", "µ", sentence) in texts for sentence in expected.sentences[1:])
    assert all(gain.nats.text(".3g") in texts for gain in expected.marginal.axes)
    assert expected.question not in [text.strip() for text in parsed["bad"].texts]


def test_the_calculator_answers_in_the_page(desktop, fit):
    due = predict(fit, flops=2 * fit.fitted.flops[1])
    mu, loss, interval = desktop["best"]
    assert float(mu) == pytest.approx(due.mean_recurrence, rel=2e-3)
    assert float(loss) == pytest.approx(due.loss, abs=6e-5)
    assert [float(end) for end in interval.split(" to ")] == pytest.approx(due.mean_recurrence_interval, rel=2e-3)
    assert "About 2.0x beyond the largest fitted compute" in desktop["notes"]
    message, hidden = desktop["refused"]
    assert message == 'A budget must be a positive number of FLOPs, but got "2e"; type a number such as 3.2e19.'
    assert hidden
    mu, source, error, notes = desktop["inside"]
    assert float(mu) == pytest.approx(predict(fit, flops=4e18).mean_recurrence, rel=1e-3)
    assert "inside the measured compute" in source
    assert (error, notes) == ("", 0)
    assert desktop["times"][0] == "1.6e20"
    assert "10 times the largest measured compute: an extrapolation" in desktop["times"][1]


def test_tables_sort(desktop):
    assert set(desktop["sorts"]) == {"none"}
    for name, descending in (("up", False), ("down", True)):
        said, losses = desktop[name]
        assert said == ("descending" if descending else "ascending")
        assert [float(loss) for loss in losses] == sorted(map(float, losses), reverse=descending)
    assert desktop["byRun"][0] == ODD
    assert len(desktop["byRun"]) == 15


def test_a_point_says_which_run_it_is(desktop, made):
    run_id, hidden, facts, lit = desktop["hover"]
    table = pd.read_csv(made[0].groups[LABEL].report.parent / "runs.csv").set_index("run_id")
    assert not hidden
    assert lit == run_id
    said = dict(facts)
    assert said["run"] == run_id
    assert float(said["µ"]) == table.loc[run_id, "mean_recurrence"]
    assert float(said["loss at T = µ, nats/token"]) == pytest.approx(table.loc[run_id, "loss"], abs=1e-4)
    assert {"status", "seed", "budget, FLOPs", "tokens"} <= set(said)
    assert desktop["onScreen"]
    assert desktop["rings"] == 1
    assert desktop["left"] == [True, 0]
    focused, second, hidden, label = desktop["keys"]
    assert (focused, hidden) == (second, False)
    assert second in label
    assert desktop["escaped"]
    hidden, first, tapped, link = desktop["tapped"]
    assert (hidden, first, link) == (False, tapped, f"#run-{tapped}")
    assert desktop["stops"] == 1


@pytest.mark.parametrize(("name", "dark"), [("good", True), ("sweep", False)])
def test_a_phone_shows_the_page_in_light_and_dark(pages, name, dark):
    found, wrong = in_page(pages[0][name], (HERE / "report_phone.js").read_text(), width=360, dark=dark)
    assert wrong == []
    assert found["width"] == [360, 360, []]
    assert found["dark"] == dark
    paper, ink = ("rgb(20, 24, 29)", "rgb(230, 234, 238)") if dark else ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    assert found["colours"] == [paper, ink]
    if name == "good":
        assert found["letters"] == ink
        assert len(found["plots"]) >= 5
        assert all(plot["fits"] and plot["enlarged"] >= 0.9 for plot in found["plots"])


def test_text_can_be_read_on_its_ground():
    css = (SWEEPS / "report.css").read_text()
    light, dark = (
        dict(re.findall(r"(--[a-z-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    )
    for colours in (light, dark):
        for ink in ("--ink", "--soft", "--accent", "--good", "--bad", "--warn"):
            for ground in ("--paper", "--tint"):
                assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert _contrast(colours["--warn"], colours["--warn-paper"]) >= 4.5
        assert _contrast(colours["--ink"], colours["--warn-paper"]) >= 4.5
    series = ["#440154", "#3b528b", "#21918c", "#5ec962", "#d55e00", "#0072b2"]
    shown = [lightened(colour) for colour in series]
    assert all(_contrast(colour, dark["--paper"]) >= 3 for colour in shown)
    order = [_luminance(colour) for colour in shown[:4]]
    assert order == sorted(order)


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
