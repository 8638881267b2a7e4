"""The reference sweeps in results/: each table is of the configuration beside it, the stored fits are of the table, and
the prose says what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from isoloop.fitting import SweepFit, fit_sweep, is_dense, predict, read_table
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep

RESULTS = Path(__file__).resolve().parents[1] / "results"
PYTHON = RESULTS / "python"
SWEEPS = sorted(path.parent for path in RESULTS.glob("*/*/config.yaml"))
FITTED = sorted(path.parent for path in RESULTS.glob("*/*/fit.json"))
TABLES = {
    "automaton": {"automaton": "looped"} | {name: name for name in ("largest", "largest-seeds")},
    "automaton-width-32": {"automaton": "looped"} | {name: name for name in ("largest", "more-loops", "places")},
    "limited-text": {"limited-text": "sweep"}
    | {name: name for name in ("fresh-text", "fresh-text-width-12", "largest", "seeds", "seeds-800k", "wider-models")},
}
"""The configurations that a reader runs, and the folders of their tables."""
STUDIES = [(f"{study}/{file}.yaml", f"{study}/{to}") for study, files in TABLES.items() for file, to in files.items()]
PROSE = [folder for folder in FITTED if folder.parent == PYTHON]


def name(folder):
    """Return a folder's name for a test's id."""
    return str(folder.relative_to(RESULTS))


def cells_of(row):
    """Return the cells of a row of a Markdown table, without the marks of bold ones."""
    return row.replace("*", "").split(" | ")


def within_seeds(losses, *, more=8.0):
    """Return the mean difference of `more` loops and one within three seeds, and its 95% interval (Student's t)."""
    difference = losses[more] - losses[1.0]
    half = 4.3027 * difference.std() / 3**0.5
    return difference.mean(), difference.mean() - half, difference.mean() + half


def planned_runs(source, folder):
    """Return the ids of the runs that a configuration plans on the text that the folder's runs were trained on."""
    sweep = load_sweep(str(source))
    found = json.loads((folder.parent / "corpora.json").read_text(encoding="utf-8"))
    wanted = sweep.data.corpus, sweep.data.tokenizer
    facts = next(each for each in found if (each["name"], each["tokenizer"]) == wanted)
    text = PlannedCorpus(facts["fingerprint"], facts["train_tokens"])
    return {cell.run_id for cell in plan_sweep(sweep, lambda _: text).cells}


@pytest.mark.parametrize("folder", SWEEPS, ids=name)
def test_the_runs_are_those_of_the_configuration(folder):
    """Run ids are hashes of all that determines a result: planned anew, they are the table's."""
    assert planned_runs(folder / "config.yaml", folder) == set(read_table(folder / "runs.csv")["run_id"])


@pytest.mark.parametrize(("source", "folder"), STUDIES)
def test_the_configurations_that_a_reader_runs_are_those_of_the_tables(source, folder):
    folder = RESULTS / folder
    assert planned_runs(RESULTS / source, folder) == set(pd.read_csv(folder / "runs.csv")["run_id"])


def test_the_preset_demo_loops_is_a_part_of_the_study():
    folder = RESULTS / "automaton" / "looped"
    table = pd.read_csv(folder / "runs.csv")
    shared = (table["seed"] == 6) & (table["budget"] < 1e12) & (table["mean_recurrence"] <= 16)
    assert planned_runs("demo-loops", folder) == set(table[shared]["run_id"])


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*/prediction.txt")), ids=lambda page: page.parent.name)
def test_the_predictions_that_were_written_down_are_the_stored_fits(page):
    number = r"([\d.e+]+)"
    cells = re.findall(
        rf"^\$ isoloop predict (\S+) --flops {number}(?: --unique-tokens {number})? --mean-recurrence (\d+)\n"
        rf"(?:.*\n)*?  loss +{number} ",
        page.read_text(encoding="utf-8"), flags=re.MULTILINE,
    )  # fmt: skip
    assert len(cells) >= 3
    for file, flops, unique, mean, loss in cells:
        text = {"unique_tokens": float(unique)} if unique else {}
        again = predict(SweepFit.read(page.parent / file), mean_recurrence=float(mean), flops=float(flops), **text)
        assert f"{again.loss:.5g}" == loss


@pytest.mark.parametrize("folder", [RESULTS / "automaton", RESULTS / "automaton-width-32"], ids=name)
def test_what_was_predicted_is_held_against_what_was_measured(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| loss, µ = (\d+) \| (\S+) \((\S+) to (\S+)\) \| (\S+) \| (\S+?)%(.*) \|$", page, re.MULTILINE
    )
    measured = pd.read_csv(folder / "largest" / "runs.csv").set_index("mean_recurrence")["loss"]
    assert len(rows) == len(measured)
    for mean, predicted, low, high, loss, error, outside in rows:
        mine = measured[float(mean)]
        assert loss.strip("*") == f"{mine:.4f}".removeprefix("0")
        assert float(error) == pytest.approx(100 * (mine / float(predicted) - 1), abs=0.06)
        assert ("outside" in outside) == (not float(low) <= mine <= float(high))


@pytest.mark.parametrize("folder", FITTED, ids=name)
def test_the_stored_fit_is_of_the_table(folder):
    """The estimates after training are; intervals and the laws of T are a matter of the tests of fits."""
    stored = SweepFit.read(folder / "fit.json")
    table = read_table(folder / "runs.csv")
    table = table.drop(columns=[column for column in table if "loss_T" in column])
    again = fit_sweep(table, name=folder.name, draws=0, profiles=False)
    for law in ("mean_recurrence_law", "tokens_law"):
        mine, theirs = getattr(again.isoflop, law), getattr(stored.isoflop, law)
        assert (mine and mine.exponent) == (theirs and pytest.approx(theirs.exponent, abs=1e-6))
    for mine, theirs in zip(again.training.parameters, stored.training.parameters, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-2)


@pytest.mark.parametrize("folder", PROSE, ids=name)
def test_the_losses_in_the_prose_are_the_tables(folder):
    page = (PYTHON / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {folder.name} \| (\S+) \| (\d) \| (.*) \|$", page, flags=re.MULTILINE)
    table = read_table(folder / "runs.csv")
    assert sum(len(losses.split(" | ")) for *_, losses in rows) == len(table)
    for budget, seed, losses in rows:
        mine = table[(table["budget"] == float(budget)) & (table["seed"] == int(seed))].sort_values("mean_recurrence")
        assert [f"{loss:.4f}" for loss in mine["loss"]] == cells_of(losses)


LIMITED = [RESULTS / "limited-text" / name for name in ("fresh-text", "800k", "200k")]
BOLD = re.compile(r"\*\*([\d.]+)\*\*")


@pytest.mark.parametrize("folder", LIMITED, ids=name)
def test_the_losses_on_limited_text_are_the_tables(folder):
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {folder.name} \| (\S+) \| (.*) \| \S+ \|$", page, flags=re.MULTILINE)
    table = pd.read_csv(folder / "runs.csv").sort_values("mean_recurrence")
    assert len(rows) == table["budget"].nunique() == 5
    for budget, losses in rows:
        mine = table[table["budget"] == float(budget)]["loss"]
        assert [f"{loss:.4f}" for loss in mine] == cells_of(losses)
        assert BOLD.findall(losses) == [f"{mine.min():.4f}"]


@pytest.mark.parametrize(
    ("start", "table"),
    [
        ("Fresh text at width 12", "fresh-text-width-12"),
        ("Three seeds on 200,000", "three-seeds"),
        ("Three seeds on 800,000", "three-seeds-800k"),
    ],
)
def test_the_means_over_seeds_are_the_tables(start, table):
    """Means and standard deviations of each cell, and the difference of eight loops and one within seeds."""
    page = (RESULTS / "limited-text" / "README.md").read_text(encoding="utf-8")
    part = page[page.index(f"\n{start}") :].split("\n\n")[1]
    rows = re.findall(r"^\| (\S+) \| (.*\)) \| (\S+) \((\S+) to (\S+)\) \|$", part, flags=re.MULTILINE)
    runs = pd.read_csv(RESULTS / "limited-text" / table / "runs.csv")
    assert len(rows) == runs["budget"].nunique()
    for budget, losses, *difference in rows:
        mine = runs[runs["budget"] == float(budget)].pivot(index="seed", columns="mean_recurrence", values="loss")
        cells = zip(mine.mean(), mine.std(), strict=True)
        assert cells_of(losses) == [f"{mean:.4f} ({std:.4f})" for mean, std in cells]
        assert BOLD.findall(losses) == [f"{mine.mean().min():.4f}"]
        assert [float(each) for each in difference] == [pytest.approx(each, abs=6e-4) for each in within_seeds(mine)]


def test_the_tuned_runs_have_the_best_decay(tmp_path):
    """`tuned.py` chooses them again from the whole sweep."""
    limited = RESULTS / "limited-text"
    subprocess.run([sys.executable, limited / "tuned.py", limited / "sweep" / "runs.csv", tmp_path], check=True)
    for size in ("200k", "800k"):
        again, stored = (pd.read_csv(place / size / "runs.csv") for place in (tmp_path, limited))
        pd.testing.assert_frame_equal(again, stored)


@pytest.mark.parametrize("folder", [RESULTS / "automaton", RESULTS / "automaton-width-32"], ids=name)
def test_the_losses_on_the_automaton_are_the_tables(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    table = pd.read_csv(folder / "looped" / "runs.csv")
    minima = SweepFit.read(folder / "looped" / "fit.json").isoflop.minima
    rows = re.findall(r"^\| (\S+e\d+) \| (.*\(0\.\d+\).*) \|$", page, flags=re.MULTILINE)
    assert len(rows) == table["budget"].nunique()
    for (budget, text), minimum in zip(rows, minima, strict=True):
        cells = table[table["budget"] == float(budget)].groupby("mean_recurrence")["loss"].agg(["mean", "std"])
        losses = [f"{mean:.4f} ({std:.4f})" for mean, std in cells.itertuples(index=False)]
        written = [each for each in cells_of(text) if each]
        assert written[: len(losses)] == losses
        for vertex in written[len(losses) :]:
            assert vertex == f"{minimum.mean_recurrence:.2f} ({minimum.log_error:.2f})"
        assert BOLD.findall(text) == [f"{cells['mean'].min():.4f}"]


def test_the_losses_by_t_are_the_tables():
    folder = RESULTS / "limited-text"
    table = pd.read_csv(folder / "200k" / "runs.csv")
    largest = table[table["budget"] == table["budget"].max()].set_index("mean_recurrence")
    rows = re.findall(r"^\| µ = (\d+) \| (.*) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for mean, losses in rows:
        mine = largest.loc[float(mean), [f"loss_T{loops}" for loops in (1, 2, 4, 8, 16, 24)]]
        assert cells_of(losses) == [f"{loss:.4f}" for loss in mine]


@pytest.mark.parametrize("folder", [RESULTS / "automaton", RESULTS / "automaton-width-32"], ids=name)
def test_the_means_by_t_on_the_automaton_are_the_tables(folder):
    """They are means of three seeds at the largest budget."""
    runs = pd.read_csv(folder / "looped" / "runs.csv")
    runs = runs[runs["budget"] == runs["budget"].max()]
    answers = pd.read_csv(folder / "looped" / "answers.csv").merge(runs[["run_id", "mean_recurrence"]])
    page = (folder / "README.md").read_text(encoding="utf-8")
    loops = re.findall(r"^\| \| T = (1 \| 2 \| .*) \|$", page, flags=re.MULTILINE)[0].split(" | ")
    rows = re.findall(r"^\| (loss|exact, k = (\d)), µ = (\d+) \| ([^(\n]*) \|$", page, flags=re.MULTILINE)
    assert len(rows) >= 8
    for kind, k, mean, values in rows:
        if kind == "loss":
            mine = runs[runs["mean_recurrence"] == int(mean)][[f"loss_T{t}" for t in loops]].mean()
            expected = [f"{value:.4f}".removeprefix("0") for value in mine]
        else:
            chosen = answers[(answers["mean_recurrence"] == int(mean)) & (answers["k"] == int(k))]
            expected = [f"{value:.3f}".removeprefix("0") for value in chosen[[f"T{t}" for t in loops]].mean()]
        assert cells_of(values) == expected


def test_the_table_of_fixed_depth_is_that_of_its_widths():
    folder = RESULTS / "limited-text"
    wider = pd.read_csv(folder / "wider-models" / "runs.csv")
    fixed = wider[wider["shape"].str.startswith("fixed depth")].drop(columns=["group", "shape"])
    table = pd.read_csv(folder / "fixed-depth.csv")
    pd.testing.assert_frame_equal(table, fixed.reset_index(drop=True))
    assert is_dense(read_table(folder / "fixed-depth.csv"))


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("limited-text/tuned.csv", ["200k", "800k", "fresh-text"]),
        ("limited-text/three-seeds/runs.csv", ["200k", "seeds"]),
        ("limited-text/three-seeds-800k/runs.csv", ["800k", "seeds-800k"]),
        ("automaton/six-budgets/runs.csv", ["looped", "largest", "largest-seeds"]),
    ],
)
def test_a_table_of_several_sweeps_is_that_of_each(table, parts):
    folder = RESULTS / table.split("/")[0]
    rows = pd.concat([pd.read_csv(folder / part / "runs.csv") for part in parts])[["run_id", "loss"]]
    together = pd.read_csv(RESULTS / table)[["run_id", "loss"]]
    pd.testing.assert_frame_equal(*(each.sort_values("run_id", ignore_index=True) for each in (together, rows)))


def test_the_three_seeds_at_the_largest_budget_are_the_tables():
    table = pd.read_csv(RESULTS / "automaton" / "six-budgets" / "runs.csv")
    cells = table[table["budget"] == table["budget"].max()].pivot(
        index="seed", columns="mean_recurrence", values="loss"
    )
    page = (RESULTS / "automaton" / "README.md").read_text(encoding="utf-8")
    losses = cells_of(re.search(r"^\| loss \| (.*) \|$", page, flags=re.MULTILINE)[1])
    expected = zip(cells.mean(), cells.std(), strict=True)
    assert losses == [f"{mean:.4f} ({std:.4f})"[1:].replace("(0", "(") for mean, std in expected]
    gains = cells_of(re.search(r"^\| minus one loop \(95%\) \| \| (.*) \|$", page, flags=re.MULTILINE)[1])
    for text, more in zip(gains, (4.0, 8.0, 16.0), strict=True):
        numbers = within_seeds(cells, more=more)
        assert [float(each) for each in re.findall(r"-?\.\d+", text)] == [pytest.approx(x, abs=6e-4) for x in numbers]


def test_the_exponents_in_the_findings_are_the_stored_fits():
    page = (RESULTS.parent / "docs" / "findings.md").read_text(encoding="utf-8")
    links = r"^\|[^|]*\[([\w-]+)\]\(\.\./results/([\w-]+)/README\.md\)\)"
    rows = re.findall(links + r" \|[^|]*\|[^|]*\| ([^|]*) \|", page, flags=re.MULTILINE)
    assert len(rows) == 9
    for folder, study, text in rows:
        law = SweepFit.read(RESULTS / study / folder / "fit.json").isoflop.mean_recurrence_law
        expected = "none" if law is None else f"{law.exponent:.2f} ({law.interval[0]:.2f} to {law.interval[1]:.2f})"
        assert text == expected
