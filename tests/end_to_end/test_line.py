"""The command as its user has it: every station, on real input, and what it says of bad input."""

import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml

from isoloop.fitting.figures import FIGURES, style
from tests.commands import ISOLOOP, coarse_calculator, isoloop, isoloop_process, quick_pages, without_profiles

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
RECORDS = {"driver.json", "plan.json", "state.json"}
"""JSON of a sweep that is not fitted."""
DRAWN = ("isoflop_curves", "power_laws", "test_time_curves", "predicted_against_measured")
"""Figures of the simulated sweep; the others would be half of its time."""


@pytest.fixture(scope="module")
def work(tmp_path_factory, text_folder):
    """A folder with a sweep of 2 budgets x 2 recurrences on the small corpus."""
    folder = tmp_path_factory.mktemp("line")
    sweep = {
        "name": "two-by-two",
        "budgets": [2e9, 3e9],
        "mean_recurrences": [1, 2],
        "model": {"width": 16, "heads": 1, "context": 32},
        "batch": 8,
        "data": {"corpus": str(text_folder)},
        "evaluation": {"sequences": 32, "recurrences": [1, 2, 4]},
        "maximum_epochs": 20,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder


@pytest.fixture(scope="module")
def ran(work, shared_ray, new_database):
    new_database(work / "out" / "mlflow.db")
    with shared_ray.for_commands():
        return isoloop("run", "sweep.yaml", "--out", "out", "--draws", 20, cwd=work)


def test_plan_starts_nothing(work):
    said = isoloop("plan", "sweep.yaml", "--out", "elsewhere", cwd=work).stdout
    assert "4 runs, 0 done" in said
    assert "accounting: exact" in said
    assert [path.name for path in (work / "elsewhere").iterdir()] == ["corpora"]


def test_run_trains_records_and_reports(work, ran):
    table = pd.read_csv(work / "out/sweeps/two-by-two/runs.csv")
    assert len(table) == 4
    assert (table["status"] == "finished").all()
    assert not table["simulated"].any()
    assert ((table["flops"] / table["budget"] - 1).abs() < 0.01).all()
    assert (work / "out/mlflow.db").exists()
    page = (work / "out/sweeps/two-by-two/report.html").read_text()
    assert "two-by-two" in page
    assert "Training 4/4 runs" in ran.stderr
    assert len(re.findall(r"loss \d\.\d+ in \d+ (?:s|min)", ran.stderr)) == 4, "a line for each run"
    # Four runs are too few for a law of five parameters, and the line says so instead of failing.
    assert "Not fitted" in ran.stdout
    assert "Not fitted" in page
    assert {path.name for path in (work / "out/sweeps/two-by-two").glob("*.json")} == RECORDS


def test_running_it_again_trains_nothing(work, ran):
    results = sorted((work / "out/runs").glob("*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    table = (work / "out/sweeps/two-by-two/runs.csv").read_bytes()
    isoloop("run", "sweep.yaml", "--out", "out", "--draws", 20, cwd=work)
    assert [path.stat().st_mtime_ns for path in results] == before
    assert (work / "out/sweeps/two-by-two/runs.csv").read_bytes() == table


def test_too_few_runs_for_a_fit(work, ran):
    said = isoloop("fit", "two-by-two", "--out", "out", "--hold-out", cwd=work, check=2).stderr
    assert said.startswith("isoloop: ")


def test_ctrl_c_leaves_everything_in_order(work, ran, new_database, commands_share_ray):
    """Stopped in the middle, then the same command: the table is that of a sweep that was never stopped."""
    out = work / "stopped"
    new_database(out / "mlflow.db")
    arguments = ["run", "sweep.yaml", "--out", out, "--set", "resources.checkpoint_seconds=0.2", "--draws", 20]
    process = subprocess.Popen(
        [*ISOLOOP, *map(str, arguments)], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/checkpoints/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stdout + stderr
    assert "Stopped" in stdout
    assert "Traceback" not in stdout + stderr
    assert not (out / "sweeps/two-by-two/stop").exists()
    with quick_pages():
        isoloop(*arguments, cwd=work)
    clock = "seconds"
    undisturbed = pd.read_csv(work / "out/sweeps/two-by-two/runs.csv").drop(columns=clock)
    pd.testing.assert_frame_equal(pd.read_csv(out / "sweeps/two-by-two/runs.csv").drop(columns=clock), undisturbed)


@pytest.fixture(scope="module")
def published(tmp_path_factory, shared_ray, new_database):
    folder = tmp_path_factory.mktemp("published")
    new_database(folder / "isoloop-out" / "mlflow.db")
    with (
        pytest.MonkeyPatch.context() as patch,
        coarse_calculator(),
        without_profiles(),
        mock.patch.dict(FIGURES, {name: FIGURES[name] for name in DRAWN}, clear=True),
        mock.patch.object(style, "SUFFIXES", (".png", ".svg")),
        shared_ray.for_commands(),
    ):
        patch.setattr("isoloop.sweeps.report.page.HOLD_OUT_FIGURES", ())
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where no Ray is
        ran = isoloop("run", "parcae-140m-simulated", "--draws", 40, "--address", "local", cwd=folder)
    return folder, ran


def test_the_published_grid_gives_back_its_exponents(published):
    folder, ran = published
    assert ran.stdout.splitlines()[0] == "Ray on this machine"
    sweep = folder / "isoloop-out/sweeps/parcae-140m-simulated"
    fit = json.loads((sweep / "fit.json").read_text())
    exponents = pd.read_csv(PUBLISHED / "exponents.csv").set_index("exponent")["value"]
    for law, exponent in (("mean_recurrence_law", "gamma_mu"), ("tokens_law", "gamma_D")):
        assert abs(fit["isoflop"][law]["exponent"] - exponents[exponent]) < 0.02
        low, high = fit["isoflop"][law]["interval"]
        # Published to two digits.
        assert low - 0.005 < exponents[exponent] < high + 0.005
    # At the top budget this law's best recurrence lies beyond the published grid, and the fit says so.
    left_out = [minimum for minimum in fit["isoflop"]["minima"] if not minimum["included"]]
    assert [minimum["budget"] for minimum in left_out] == [64e18]
    assert "grid's edge" in left_out[0]["reason"]
    assert "simulated" in ran.stdout
    page = (sweep / "report.html").read_text()
    assert "<strong>Simulated.</strong>" in page
    assert "<svg " in page
    assert pd.read_csv(sweep / "runs.csv")["simulated"].all()
    for figure in DRAWN:
        assert (sweep / f"figures/{figure}.png").stat().st_size > 10_000


def test_the_published_140m_model_is_predicted_within_the_published_error(published):
    """A real model's loss, from its published perplexity, that no fit here has seen."""
    folder, _ = published
    perplexities = pd.read_csv(PUBLISHED / "perplexity.csv")
    looped = perplexities[(perplexities["model"] == "Parcae") & (perplexities["size"] == "140m")]
    measured = math.log(looped[looped["quantity"] == "validation perplexity"]["value"].iloc[0])
    errors = pd.read_csv(PUBLISHED / "held_out_errors.csv")
    allowed = errors[(errors["law"] == "training") & (errors["size"] == "140m")]["value"].iloc[0]
    said = isoloop("predict", "parcae-140m-simulated", "--mean-recurrence", 8, "--tokens", "11.2e9", cwd=folder).stdout
    predicted = float(next(line for line in said.splitlines() if line.strip().startswith("loss")).split()[1])
    assert abs(100 * (predicted / measured - 1)) < allowed


def test_laws_are_compared_on_a_table_of_dense_models(tmp_path):
    budgets = np.repeat([1e19, 3e19, 1e20, 3e20], 6)
    points = pd.DataFrame({"params": np.tile(np.geomspace(1e8, 1e9, 6), 4), "budget": budgets})
    points["tokens"] = points["budget"] / 6 / points["params"]
    points["loss"] = 1.8 + 480 * points["params"] ** -0.35 + 2085 * points["tokens"] ** -0.37
    points.to_csv(tmp_path / "points.csv", index=False)
    said = isoloop("choose", "points.csv", "--draws", 20, "--delta", "inf", cwd=tmp_path).stdout
    assert "chinchilla: E = 1.8 " in said
    assert "squared error on log loss" in said
    said = isoloop("fit", "points.csv", "--draws", 20, "--delta", "inf", cwd=tmp_path).stdout
    for words in ("law: L(N, D)", "N* ~ C^", "stored in points.fit.json"):
        assert words in said


def test_two_sweeps_are_compared(published, tmp_path):
    """A sweep, and the table of its largest budgets: the report, its files, and what is to be doubted."""
    folder, _ = published
    table = pd.read_csv(folder / "isoloop-out/sweeps/parcae-140m-simulated/runs.csv")
    table[table["budget"] > 1e18].to_csv(tmp_path / "large.csv", index=False)
    ask = ["compare", "parcae-140m-simulated", tmp_path / "large.csv", "--draws", 20, "--flops", "3e18"]
    said = isoloop(*ask, "--to", tmp_path / "found", cwd=folder).stdout
    for words in ("isoFLOP power laws", "exponent of mu*", "at 3e+18 FLOPs", "35 runs are in both", "Which is better"):
        assert words in said
    names = {"compare.txt", "compare.json", "compare.png", "compare.svg", "compare.pdf"}
    assert {path.name for path in (tmp_path / "found").iterdir()} == names
    assert (tmp_path / "found/compare.txt").read_text() in said
    assert json.loads((tmp_path / "found/compare.json").read_text())["optima_flops"] == [3e18]
    fit = folder / "isoloop-out/sweeps/parcae-140m-simulated/fit.json"
    isoloop("compare", fit, fit, cwd=folder)
    assert [path.name for path in (folder / "isoloop-out/compared").iterdir()] == [
        "parcae-140m-simulated-to-parcae-140m-simulated"
    ]
    other = table[table["budget"] < 3e18].assign(accounting="parcae-release")
    other.to_csv(tmp_path / "other.csv", index=False)
    said = isoloop("compare", fit, tmp_path / "other.csv", "--draws", 20, cwd=folder, check=2).stderr
    assert "must count FLOPs alike" in said


def test_sweeps_too_small_for_laws_are_compared_by_their_runs(work, ran):
    said = isoloop("compare", "two-by-two", "sweep.yaml", "--out", "out", "--draws", 20, cwd=work).stdout
    assert "Best runs measured at equal FLOPs" in said
    assert "The same runs are in both sweeps" in said
    stored = json.loads((work / "out/compared/two-by-two-to-two-by-two/compare.json").read_text())
    assert stored["first"]["validation"].startswith("32 sequences of 32 tokens of the corpus ")


def test_predict_answers_for_any_configuration(published):
    folder, _ = published
    ask = ["predict", "parcae-140m-simulated"]
    one = isoloop(*ask, "--mean-recurrence", 6, "--tokens", "5e9", cwd=folder).stdout
    assert "nats per token" in one
    assert "simulated" in one
    deeper = isoloop(*ask, "--mean-recurrence", 6, "--tokens", "5e9", "--recurrence", 2, cwd=folder).stdout
    assert "unified" in deeper
    best = isoloop(*ask, "--flops", "1e20", cwd=folder).stdout
    assert "95%" in best
    assert isoloop(*ask, "--mean-recurrence", 6, "--flops", "1e19", cwd=folder).stdout


def test_report_can_be_made_again(work, ran):
    page = work / "out/sweeps/two-by-two/report.html"
    page.unlink()
    isoloop("report", "two-by-two", "--out", "out", "--draws", 20, cwd=work)
    assert "two-by-two" in page.read_text()
    assert "http://" not in page.read_text()


SMALL_TEXT = ["--set", "data.corpus=text", "--set", "maximum_epochs=1e6"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "no-such-preset"], "a sweep must be a preset or a .yaml file"),
        (["run", "demo", "--set", "model.widht=8"], "did you mean 'width'"),
        (["run", "demo", "--set", "mean_recurrences=[0,2]"], "greater than or equal to 1"),
        (["plan", "demo", *SMALL_TEXT, "--set", "budgets=[10]"], "of one step (64 x 32 tokens)"),
        (["plan", "demo", "--set", "data.corpus=/no/such/folder"], "data.corpus must be"),
        (["run", "parcae-140m-simulated", "--address", "127.0.0.1:9"], "must answer at --address"),
        (["run", "parcae-140m-simulated", "--tracking-uri", "http://127.0.0.1:9"], "must answer at the tracking URI"),
        (["fit", "never-run"], "a sweep must have been run under --out"),
        (["fit", "absent.csv"], "absent.csv"),
        (["fit", "absent.csv", "--bootstrap", "jackknife"], "--bootstrap must be one of parametric, rows, budgets"),
        (["choose", "absent.csv"], "there is none at absent.csv"),
        (["choose", "never-run"], "a sweep must have been run under --out"),
        (["compare", "never-run", "absent.csv"], "a sweep must have been run under --out"),
        (["plan", "demo", "--set", "budgets=[1e9"], "must be YAML"),
        (["plan", "demo", "--set", "batch=true"], "must be a number"),
        (["plan", "demo", *SMALL_TEXT, "--set", "model.vocabulary=64"], "model.vocabulary must hold every token"),
        (["predict", "absent.json", "--flops", "1e9"], "a stored fit must exist"),
        (["predict", "broken.json", "--flops", "1e9"], "broken.json"),
        (["report", "never-run"], "a sweep must have been run under --out"),
        (["run", "demo", "--colour", "red"], "No such option"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(tmp_path, text_folder, arguments, said):
    (tmp_path / "text").symlink_to(text_folder)
    (tmp_path / "broken.json").write_text('{"a": 1')
    done = isoloop(*arguments, cwd=tmp_path, check=2)
    assert said in done.stderr
    assert done.stderr.count("\n") < 8


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = isoloop("run", "parcae-140m-simulated", "--out", "file/out", cwd=tmp_path, check=2)
    assert "file/out" in done.stderr


def test_help_and_version(tmp_path):
    commands = ("plan", "run", "fit", "choose", "compare", "predict", "figure", "report", "presets")
    for command in ([], *([name] for name in commands)):
        assert "Usage" in isoloop(*command, "--help", cwd=tmp_path).stdout
    assert isoloop_process("--version", cwd=tmp_path).stdout.startswith("isoloop ")
    assert "demo" in isoloop("presets", cwd=tmp_path).stdout
    assert "budgets" in isoloop("presets", "demo", cwd=tmp_path).stdout


def test_the_environment_is_left_alone(tmp_path):
    """A preset printed, changed and planned from a file, from another working folder."""
    text = isoloop("presets", "parcae-140m-simulated", cwd=tmp_path).stdout
    (tmp_path / "mine.yaml").write_text(text.replace("name: parcae-140m-simulated", "name: mine"))
    assert "42 runs" in isoloop("plan", tmp_path / "mine.yaml", cwd=os.sep).stdout
