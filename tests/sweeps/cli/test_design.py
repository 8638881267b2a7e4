"""The command `isoloop design`: sweeps that `run` takes, from nothing and from runs, and what it refuses."""

import re

import pytest
import yaml

from isoloop.fitting import fit_sizes, fit_sweep
from isoloop.fitting.design import candidate_values
from isoloop.fitting.simulate import PUBLISHED_TRUTH, simulate_sizes, simulate_table
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.next_runs import next_cells, next_sweep
from isoloop.sweeps.runs import simulated_table
from tests.commands import isoloop

SWEEP = "parcae-140m-simulated"


def test_from_nothing_to_a_plan(tmp_path):
    said = isoloop(
        "design", SWEEP, "--target", "gamma_mu", "--spend", "1e20", "--rounds", "2", "--to", "next.yaml", cwd=tmp_path
    ).stdout
    runs = int(re.search(r"^Round 1: (\d+) runs", said, re.MULTILINE)[1])
    assert "round 2" in said
    plan = plan_sweep(load_sweep(str(tmp_path / "next.yaml")), simulated_corpus)
    assert len(plan.cells) == runs
    assert plan.flops <= 0.5e20 * 1.01
    assert plan.sweep.name == f"{SWEEP}-designed"


def test_further_runs_of_a_sweep_are_new_runs():
    sweep = load_sweep(SWEEP)
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    planned = next_cells(sweep, [4, 12, 24], [1e18, 2e18], simulated_corpus, run=True)
    assert dict(zip([cell.mean_recurrence for cell in planned.cells], planned.trained, strict=True)) == {
        4: 1,
        12: 1,
        24: 0,
    }
    more = next_sweep(sweep, [(cell, 2) for cell in planned.cells], extend=True)
    after = {cell.run_id for cell in plan_sweep(more, simulated_corpus).cells}
    assert before < after
    assert len(after - before) == 2 * len(planned.cells)
    # Also where seeds are an axis, which would multiply points
    seeds = sweep.model_copy(update={"axes": {"seed": (0, 1)}})
    before = {cell.run_id for cell in plan_sweep(seeds, simulated_corpus).cells}
    more = next_sweep(seeds, [(planned.cells[0], 2)], extend=True)
    after = {cell.run_id for cell in plan_sweep(more, simulated_corpus).cells}
    assert before < after
    assert len(after - before) == 2


def test_cells_for_a_table_of_others(tmp_path):
    table = simulate_table(PUBLISHED_TRUTH, budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4, 8), recurrences=())
    table.to_csv(tmp_path / "mine.csv", index=False)
    isoloop("fit", "mine.csv", "--draws", "30", cwd=tmp_path)
    said = isoloop(
        "design", "mine.csv", "--target", "mu@3e19", "--spend", "2e19", "--noise", "0.001", cwd=tmp_path
    ).stdout
    assert "nats lost" in said
    assert "--noise" in said
    lines = (tmp_path / "next.csv").read_text().splitlines()
    assert lines[0] == "mean_recurrence,tokens,budget,runs,cost_of_a_run"
    assert len(lines) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "gamma_mu", "--spend", "1e17"], "must pay for the cheapest"),
        (["--target", "charm", "--spend", "1e20"], "a target must be one of"),
        (["--target", "gamma_mu", "--spend", "1e20", "--budgets", "big"], "--budgets must be LOW:HIGH"),
        (["--target", "gamma_mu", "--spend", "1e20", "--money"], "cluster.price_per_hour"),
        (["--target", "gamma_mu", "--spend", "1e20", "--sizes", " ,"], "--sizes must name one size or more"),
    ],
)
def test_what_is_refused(options, message, tmp_path):
    refused = isoloop("design", SWEEP, *options, cwd=tmp_path, check=2)
    assert message in refused.stderr
    assert not list(tmp_path.glob("*.yaml"))


def test_the_written_sweep_is_plain_yaml(tmp_path):
    isoloop(
        "design", SWEEP, "--target", "mu@1e20", "--spend", "3e19", "--rounds", "1", "--figure", "x.svg", cwd=tmp_path
    )
    assert "round 1" in (tmp_path / "x.svg").read_text()
    content = yaml.safe_load((tmp_path / f"{SWEEP}-next.yaml").read_text())
    assert all({"budget", "mean_recurrence"} <= set(point) for point in content["points"])
    assert "budgets" not in content


def test_a_fraction_of_loops_that_was_run_is_a_candidate():
    assert list(candidate_values("mean_recurrence", 1, 3, [1.5, 2.0, 3.5])) == [1, 1.5, 2, 3]
    sweep = load_sweep(SWEEP).model_copy(update={"mean_recurrences": (1, 1.5, 2, 4)})
    planned = next_cells(sweep, candidate_values("mean_recurrence", 1, 1.5, [1.5]), [1e18], simulated_corpus, run=True)
    assert [cell.label for cell in planned.cells] == ["µ = 1, C = 1e+18", "µ = 1.5, C = 1e+18"]
    assert planned.trained == (1, 1)
    written = config_text(next_sweep(sweep, [(planned.cells[1], 1)], extend=False))
    assert yaml.safe_load(written)["points"] == [{"budget": 1e18, "mean_recurrence": 1.5}]


def test_excluded_cells_that_a_design_chooses_are_run():
    sweep = load_sweep(SWEEP).model_copy(update={"exclude": ({"mean_recurrence": 12},)})
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    (cell,) = next_cells(sweep, [12], [1e18], simulated_corpus, run=True).cells
    after = {each.run_id for each in plan_sweep(next_sweep(sweep, [(cell, 1)], extend=True), simulated_corpus).cells}
    assert before < after
    assert len(after - before) == 1


SIZES = "parcae-sizes-simulated"


def test_several_sizes_from_nothing_to_a_plan(tmp_path):
    said = isoloop(
        *("design", SIZES, "--target", "params@256e18", "--target", "phi", "--spend", "1e20", "--rounds", "1"),
        *("--sizes", "140m,370m,1.3b", "--to", "next.yaml", "--figure", "x.svg"),
        cwd=tmp_path,
    ).stdout
    assert "by the laws iso-depth and iso-depth-six-parameter" in said
    assert "1.3b: " in (tmp_path / "x.svg").read_text()
    plan = plan_sweep(load_sweep(str(tmp_path / "next.yaml")), simulated_corpus)
    assert len(plan.cells) == int(re.search(r"^Round 1: (\d+) runs", said, re.MULTILINE)[1])
    assert plan.flops <= 1e20 * 1.01
    assert {cell.axes["model.size"] for cell in plan.cells} == {"140m", "370m", "1.3b"}


def test_further_runs_of_several_sizes_are_new_runs():
    sweep = load_sweep(SIZES)
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    planned = next_cells(sweep, [4, 24], [1e18, 3e18], simulated_corpus, run=True, sizes=["140m", "1.3b"])
    trained = dict(zip([cell.label for cell in planned.cells], planned.trained, strict=True))
    assert sum(trained.values()) == trained["µ = 4, C = 1e+18, model.size = 140m"] == 1
    assert planned.sizes == ("140m", "140m", "1.3b", "1.3b") * 2
    assert planned.params[0] == pytest.approx(42.5e6, rel=0.01)
    more = next_sweep(sweep, [(cell, 2) for cell in planned.cells], extend=True)
    cells = plan_sweep(more, simulated_corpus).cells
    assert before < {cell.run_id for cell in cells}
    assert len(cells) == len(before) + 2 * len(planned.cells)


def test_a_design_of_a_sweep_over_sizes_keeps_its_runs(tmp_path):
    sweep = load_sweep(
        SIZES, ["budgets=[1e18, 4e18, 16e18]", "mean_recurrences=[1, 2, 4, 8]", "evaluation.recurrences=[1]"]
    )
    table, folders = simulated_table(sweep), Folders(out=tmp_path / "isoloop-out", name=SIZES)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep))
    table.assign(group="model.size = " + table["model.size"]).to_csv(folders.table, index=False)
    fit = fit_sizes(table, name=SIZES, draws=30, through_budgets=False)
    folders.fit(hold_out=False).write_text(fit.to_json())
    said = isoloop(
        "design",
        SIZES,
        "--target",
        "params@256e18",
        "--spend",
        "3e19",
        "--rounds",
        "1",
        "--values",
        "1:12",
        cwd=tmp_path,
    ).stdout
    assert "(the runs that it has are kept)" in said
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    after = {
        cell.run_id for cell in plan_sweep(load_sweep(str(tmp_path / f"{SIZES}-next.yaml")), simulated_corpus).cells
    }
    assert before < after
    assert len(after - before) == int(re.search(r"^Round 1: (\d+) runs", said, re.MULTILINE)[1])


def test_cells_of_several_sizes_for_a_table_of_others(tmp_path):
    table = simulate_sizes(budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4, 8))
    table.to_csv(tmp_path / "mine.csv", index=False)
    isoloop("fit", "mine.csv", "--draws", "30", cwd=tmp_path)
    options = ("--target", "loss@256e18", "--spend", "2e19", "--rounds", "1", "--sizes")
    isoloop("design", "mine.csv", *options, "140m,770m", cwd=tmp_path)
    rows = (tmp_path / "next.csv").read_text().splitlines()
    assert rows[0] == "model.size,params,mean_recurrence,tokens,budget,runs,cost_of_a_run"
    assert {row.split(",")[0] for row in rows[1:]} <= {"140m", "770m"}
    (tmp_path / "mine.fit.json").unlink()
    refused = isoloop("design", "mine.csv", *options, "13b,", cwd=tmp_path, check=2)
    assert "--sizes must name some of 140m, 370m, 770m, but got '13b'; correct the name" in refused.stderr
    assert not (tmp_path / "mine.fit.json").exists()  # nothing was fitted


def test_a_sweep_with_other_axes_is_refused_before_it_is_run():
    sweep = load_sweep(SWEEP).model_copy(update={"axes": {"model.injection": ("diagonal", "concat")}})
    with pytest.raises(ValueError, match=r"differ in model\.injection, too"):
        next_cells(sweep, [4], [1e18], simulated_corpus, run=False)


def test_a_group_of_one_size_is_designed_at_its_own_size(tmp_path):
    sweep = load_sweep(
        SIZES, ["budgets=[1e18, 4e18, 16e18]", "mean_recurrences=[1, 2, 4, 8]", "evaluation.recurrences=[1]"]
    )
    table = simulated_table(sweep)
    group = Folders(out=tmp_path / "isoloop-out", name=SIZES).group("model.size=370m")
    group.sweep.mkdir(parents=True)
    group.config.write_text(config_text(sweep))
    own = table[table["model.size"] == "370m"].reset_index(drop=True)
    own.to_csv(group.table, index=False)
    group.fit(hold_out=False).write_text(fit_sweep(own, name=group.name, draws=20).to_json())
    options = ("--target", "mu@32e18", "--spend", "3e19", "--rounds", "1", "--values", "1:12", "--to", "next.yaml")
    isoloop("design", f"{SIZES}/groups/model.size=370m", *options, cwd=tmp_path)
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    cells = plan_sweep(load_sweep(str(tmp_path / "next.yaml")), simulated_corpus).cells
    assert {cell.axes["model.size"] for cell in cells if cell.run_id not in before} == {"370m"}


def test_a_design_of_one_size_from_nothing_names_it(tmp_path):
    options = ("--target", "mu@1e20", "--spend", "3e19", "--rounds", "1", "--sizes", "370m,", "--to", "next.csv")
    said = isoloop("design", SIZES, *options, cwd=tmp_path).stdout
    assert "FLOPs: 370m, mu = " in said
    rows = (tmp_path / "next.csv").read_text().splitlines()
    assert rows[0].startswith("model.size,")
    assert {row.split(",")[0] for row in rows[1:]} == {"370m"}
