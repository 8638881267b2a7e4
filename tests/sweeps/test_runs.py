"""Run tables by name: of a sweep that was run, of a file, or drawn from a simulated sweep's law."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml

from isoloop.fitting import PUBLISHED_BUDGETS, CostModel, check_table, fit_sweep, law_optima, read_table, simulate_table
from isoloop.sweeps.config.loading import load_sweep, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import plan_sweep, simulated_corpus
from isoloop.sweeps.runs import load_runs, recount, simulated_table
from isoloop.sweeps.tracking.mlflow_store import TrackingStore
from isoloop.sweeps.tracking.uploader import Uploader
from isoloop.trainer.accounting import flops_per_token
from isoloop.trainer.config import SIZES, RecurrenceConfig
from tests.sweeps.conftest import SIMULATED

PUBLISHED = "parcae-140m-simulated"


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_a_simulated_table_is_that_of_the_store(simulated, tmp_path, new_database):
    plan = plan_sweep(simulated, simulated_corpus)
    folders = Folders(out=tmp_path / "out", name=simulated.name)
    for cell in plan.cells:
        simulate_run(cell.spec, simulated.simulation, cell.run_id, folders.run(cell.run_id))
    store = TrackingStore(new_database(tmp_path / "mlflow.db"), "isoloop", artifacts=folders.artifacts)
    Uploader(store, plan, folders).close()
    pd.testing.assert_frame_equal(simulated_table(simulated), check_table(store.read_table(simulated.name)))


def test_a_simulated_preset_needs_no_run_and_leaves_nothing_behind(tmp_path):
    runs = load_runs(PUBLISHED, tmp_path / "out")
    assert (runs.name, len(runs.table), runs.sweep) == (PUBLISHED, 42, load_sweep(PUBLISHED))
    assert runs.table["simulated"].all()
    assert not (tmp_path / "out").exists()


def test_what_was_run_comes_before_what_can_be_drawn(tmp_path):
    folders = Folders(out=tmp_path, name=PUBLISHED)
    folders.sweep.mkdir(parents=True)
    table = simulate_table(budgets=(1e18, 2e18))
    table.to_csv(folders.table, index=False)
    folders.config.write_text(config_text(load_sweep(PUBLISHED)))
    runs = load_runs(PUBLISHED, tmp_path)
    pd.testing.assert_frame_equal(runs.table, read_table(folders.table))
    assert runs.sweep == load_sweep(PUBLISHED)


def test_a_table_takes_the_configuration_beside_it(tmp_path):
    table = simulate_table(budgets=(1e18, 2e18))
    table.to_parquet(tmp_path / "mine.parquet")
    runs = load_runs(str(tmp_path / "mine.parquet"), tmp_path)
    assert (runs.name, runs.sweep) == ("mine", None)
    pd.testing.assert_frame_equal(runs.table, table)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SIMULATED))
    assert load_runs(str(tmp_path / "mine.parquet"), tmp_path).sweep == validate_sweep(SIMULATED, source="test")


def test_runs_of_several_groups_are_refused_by_default(tmp_path):
    table = simulate_table(budgets=(1e18, 2e18)).assign(group=["a", "b"] * 7)
    table.to_csv(tmp_path / "two.csv", index=False)
    target = str(tmp_path / "two.csv")
    with pytest.raises(ValueError, match=r"runs of one group, but .* has 2 \(a, b"):
        load_runs(target, tmp_path)
    assert len(load_runs(target, tmp_path, several_groups=True).table) == 14


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("demo", "must have been run under --out, but .* has no sweep 'demo'"),
        ("never-run", "has no sweep 'never-run'"),
        ("absent.csv", "there is none at absent.csv"),
    ],
)
def test_a_missing_sweep_or_table_is_reported(tmp_path, target, message):
    with pytest.raises(ValueError, match=message):
        load_runs(target, tmp_path)


def test_a_sweep_that_trains_cannot_be_drawn():
    with pytest.raises(ValueError, match="must be simulated, but 'demo' trains"):
        simulated_table(load_sweep("demo"))


@pytest.fixture(scope="module")
def published():
    return load_runs(PUBLISHED, "nowhere")


def test_recounting_changes_the_price_and_nothing_else(published):
    counted = recount(published, "parcae-release")
    assert set(counted["accounting"]) == {"parcae-release"}
    assert "budget" not in counted
    per_token = counted.groupby("mean_recurrence").apply(lambda rows: (rows["flops"] / rows["tokens"]).iloc[0])
    np.testing.assert_allclose(per_token[[1, 2, 4, 8]] / 1e6, [828, 869, 1033, 1360], atol=0.5)  # as published
    measured = ["run_id", "tokens", "loss", "loss_T8", "mean_recurrence", "effective_params_per_loop"]
    pd.testing.assert_frame_equal(counted[measured], published.table[measured])
    own = {mu: flops_per_token(SIZES["140m"], RecurrenceConfig(mean=mu), "parcae-release") for mu in (6, 12)}
    assert {mu: per_token[mu] for mu in own} == pytest.approx(own)


def test_recounting_twice_gives_the_first_table(published):
    there = dataclasses.replace(published, table=recount(published, "parcae-release"))
    back = recount(there, "exact")
    # The steps were whole, so the loops of a simulated run are those expected.
    # Budgets of another accounting are not kept: these are found by the FLOPs that the runs spent.
    pd.testing.assert_frame_equal(back.drop(columns="budget"), published.table.drop(columns="budget"))
    np.testing.assert_allclose(back["budget"], published.table["budget"], rtol=0.01)
    assert recount(published, "exact") is published.table


def test_the_same_law_has_other_exponents_under_another_accounting(published):
    fit = fit_sweep(published.table, name=published.name, draws=0, profiles=False)
    counted = recount(published, "parcae-release")
    again = fit_sweep(counted, name="counted", draws=0, profiles=False)
    assert again.training.vector == pytest.approx(fit.training.vector)
    exact, release = (
        law_optima(fit.training, CostModel.from_table(table), PUBLISHED_BUDGETS) for table in (published.table, counted)
    )
    assert release.tokens_law.exponent - exact.tokens_law.exponent > 0.03


def test_recounting_needs_the_models(published):
    with pytest.raises(ValueError, match=r"put its config\.yaml beside the table"):
        recount(dataclasses.replace(published, sweep=None), "parcae-release")
    other = load_sweep(PUBLISHED, ["model=370m"])
    with pytest.raises(ValueError, match="must be of the models of its configuration"):
        recount(dataclasses.replace(published, sweep=other), "parcae-release")


def test_recounting_finds_the_models_of_one_group_of_a_sweep():
    content = {**SIMULATED, "axes": {"model.injection": ["diagonal", "concat"]}}
    sweep = validate_sweep(content, source="test")
    table = simulated_table(sweep)
    for injection in ("diagonal", "concat"):
        mine = table[table["model.injection"] == injection].reset_index(drop=True)
        mine = dataclasses.replace(load_runs(PUBLISHED, "nowhere"), name="group", table=mine, sweep=sweep)
        model = sweep.model.model_copy(update={"injection": injection})
        due = flops_per_token(model, RecurrenceConfig(mean=4), "parcae-release")
        counted = recount(mine, "parcae-release")
        found = counted[counted["mean_recurrence"] == 4].iloc[0]
        assert found["flops"] / found["tokens"] == pytest.approx(due)
