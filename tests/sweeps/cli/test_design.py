"""The command `isoloop design`: sweeps that `run` takes, from nothing and from runs, and what it refuses."""

import re

import pytest
import yaml

from isoloop.fitting.simulate import PUBLISHED_TRUTH, simulate_table
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.plan.next_runs import next_cells, next_sweep
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


def test_excluded_cells_that_a_design_chooses_are_run():
    sweep = load_sweep(SWEEP).model_copy(update={"exclude": ({"mean_recurrence": 12},)})
    before = {cell.run_id for cell in plan_sweep(sweep, simulated_corpus).cells}
    (cell,) = next_cells(sweep, [12], [1e18], simulated_corpus, run=True).cells
    after = {each.run_id for each in plan_sweep(next_sweep(sweep, [(cell, 1)], extend=True), simulated_corpus).cells}
    assert before < after
    assert len(after - before) == 1


def test_a_sweep_with_other_axes_is_refused_before_it_is_run():
    with pytest.raises(ValueError, match=r"differ in model\.size, too"):
        next_cells(load_sweep("parcae-sizes-simulated"), [4], [1e18], simulated_corpus, run=False)
