"""Rates that travel: a tuning in several cells, the law that it finds, and the sweep that takes it.

Most runs are made up, as in test_tune.py; the last test trains real ones.
"""

import csv
import math
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import yaml

from isoloop.sweeps.config.loading import load_sweep, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.sweeps.plan.axes import LEARNING_RATE as RATE
from isoloop.sweeps.plan.grid import planned_columns
from isoloop.sweeps.plan.rates import TunedRates, rate_lines
from isoloop.sweeps.plan.summary import plan_rows
from isoloop.sweeps.tuning.pipeline import prepare_tuning, run_tuning
from isoloop.sweeps.tuning.rate_design import STEP, fit_trials
from isoloop.trainer.accounting import expected_loops, loop_cost
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.loop import train
from tests.sweeps.conftest import SMALL
from tests.sweeps.tuning.test_tune import MUON_RATE, MadeUp, look_always, run  # noqa: F401  a fixture

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

OF_C, OF_MU = -0.1, -0.3
GRID = {"budgets": [2e8, 4e8, 8e8, 1.6e9], "mean_recurrences": [1, 2, 4, 8]}
CELLS = {"budgets": [2e8, 8e8], "mean_recurrences": [1, 4], "validations": 0, "pruner": "none"}


def best_rate(flops, mean):
    return 0.01 * (flops / 2e8) ** OF_C * mean**OF_MU


def loss_at(spec):
    """A parabola in log rate, whose minimum follows the power law; runs at 12 times the best rate diverge."""
    flops = spec.tokens * loop_cost(spec.model, "exact").flops_per_token(*expected_loops(spec.recurrence, "exact"))
    off = math.log(spec.optimizer.learning_rate / best_rate(flops, spec.recurrence.mean))
    return None if off > math.log(12) else 3 + 0.04 * off**2 + random.Random(f"{spec.run_id} 1").gauss(0, 0.002)


def sweep_of(text_folder, *, tune=None, **changes):
    base = {key: value for key, value in SMALL.items() if key != "tokens"}
    content = {**base, **GRID, "data": {"corpus": str(text_folder)}, "maximum_epochs": 1e9, **changes}
    return validate_sweep({**content, "tune": {**CELLS, "trials": 24, **(tune or {})}}, source="test")


@pytest.fixture
def folders(tmp_path):
    return Folders(out=tmp_path / "out", name="small")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, text_folder):
    """A finished tuning: (folders of the sweep, trials, the prepared tuning)."""
    folders = Folders(out=tmp_path_factory.mktemp("tuned"), name="small")
    tuning = prepare_tuning(sweep_of(text_folder), folders)
    trials = run(tuning, MadeUp(loss_at))
    law = fit_trials(tuning.space, trials)
    TunedRates.of_trials(law, tuning.space.sweep, tuning.space.base.spec).write(tuning.folders.rates)
    return folders, trials, tuning


def rates_of(plan):
    return {(cell.budget, cell.mean_recurrence): cell.spec.optimizer.learning_rate for cell in plan.cells}


def test_trials_are_spread_over_the_cells_and_end_near_the_best_rates(tuned):
    _, trials, tuning = tuned
    at = [(trial.values["budget"], trial.values["mean_recurrence"]) for trial in trials]
    assert {cell: at.count(cell) for cell in at} == dict.fromkeys([(2e8, 1), (2e8, 4), (8e8, 1), (8e8, 4)], 6)
    assert tuning.space.flops_per_trial == 5e8
    last = [trial.values[RATE] / best_rate(*cell) for trial, cell in zip(trials[-8:], at[-8:], strict=True)]
    assert all(0.35 * STEP < max(ratio, 1 / ratio) < 2 * STEP for ratio in last)
    assert min(last) < 1 < max(last)


def test_the_law_is_recovered(tuned):
    _, trials, tuning = tuned
    law = fit_trials(tuning.space, trials)
    for each, truth in zip(law.exponents, (OF_C, OF_MU), strict=True):
        assert each.interval[0] < truth < each.interval[1]
        assert each.interval[1] - each.interval[0] < 0.2
    assert law.nats_off(2) == pytest.approx(0.04 * math.log(2) ** 2, rel=0.3)


def test_a_sweep_takes_the_rates_and_names_the_runs_that_it_extrapolates_to(tuned, text_folder):
    folders, _, _ = tuned
    sweep = sweep_of(text_folder, optimizer={"learning_rate": "tuned"})
    assert validate_sweep(yaml.safe_load(config_text(sweep)), source="again") == sweep
    plan = prepare(sweep, folders).plan
    rates = rates_of(plan)
    for (budget, mean), rate in rates.items():
        assert abs(math.log(rate / best_rate(budget, mean))) < 0.25
        assert float(f"{rate:.3g}") == rate
    beyond = {(cell.budget, cell.mean_recurrence) for cell in plan.cells if cell.rates.best.beyond}
    assert beyond == {cell for cell in rates if cell[0] > 8e8 or cell[1] > 4}
    lines = "\n".join(rate_lines(plan.rates, plan.cells, every_run=True))
    assert all(cell.label in lines for cell in plan.cells if cell.rates.best.beyond)
    assert "2 times beyond in C and 2 times beyond in µ" in lines
    (far,) = [cell for cell in plan.cells if (cell.budget, cell.mean_recurrence) == (1.6e9, 8)]
    columns = planned_columns(plan, far)
    assert columns["rate_extrapolated"] == pytest.approx(2)
    assert 0 < columns["rate_nats"] < 0.01
    nats = [row["rate_nats"] for row in plan_rows(plan)]
    assert max(nats) == columns["rate_nats"]  # the farthest run is the least certain one


def test_a_sweep_that_has_begun_keeps_its_rates(tuned, text_folder, tmp_path):
    """More trials give another law; runs that are done would otherwise be other runs."""
    folders, trials, tuning = tuned
    sweep = sweep_of(text_folder, name="mine", optimizer={"learning_rate": "tuned"}, tuned=str(tuning.folders.rates))
    mine = replace(folders, name="mine")
    first = prepare(sweep, mine).plan
    mine.sweep.mkdir(parents=True)
    first.rates.write(mine.rates)  # as `isoloop run` does
    newer = tmp_path / "rates.json"
    law = fit_trials(tuning.space, trials[:-4])
    TunedRates.of_trials(law, tuning.space.sweep, tuning.space.base.spec).write(newer)
    again = prepare(sweep.model_copy(update={"tuned": str(newer)}), mine).plan
    assert rates_of(again) == rates_of(first)
    assert f"delete {mine.rates}" in "\n".join(rate_lines(again.rates, again.cells))
    mine.rates.unlink()
    assert rates_of(prepare(sweep.model_copy(update={"tuned": str(newer)}), mine).plan) != rates_of(first)


def test_other_settings_than_the_trials_are_named(tuned, text_folder):
    folders, _, _ = tuned
    sweep = sweep_of(text_folder, optimizer={"learning_rate": "tuned"}, batch=8)
    plan = prepare(sweep, folders).plan
    assert "batch = 8 instead of 4" in "\n".join(rate_lines(plan.rates, plan.cells))
    assert "instead of" not in "\n".join(rate_lines(plan.rates, plan.cells)).replace("batch = 8 instead of 4", "")
    phased = {"phases": [{"until": 0.5, "mean": 1}], "distribution": "log-normal-poisson"}
    other = {
        "optimizer": {"learning_rate": "tuned", "muon": "released"},
        "depth": phased,
        "data": {"corpus": str(text_folder), "document_mask": True},
    }
    lines = "\n".join(rate_lines((plan := prepare(sweep_of(text_folder, **other), folders).plan).rates, plan.cells))
    assert "optimizer.muon = released instead of torch" in lines
    assert "recurrence.distribution = log-normal-poisson instead of poisson" in lines
    assert "recurrence.phases = [{'until': 0.5, 'mean': 1}] instead of []" in lines
    assert "data.document_mask = True instead of False" in lines
    wider = sweep_of(text_folder, optimizer={"learning_rate": "tuned"}, model={**SMALL["model"], "width": 32})
    plan = prepare(wider, folders).plan
    assert {cell.rates.best.unknown for cell in plan.cells} == {("params",)}
    assert all("rate_nats" not in planned_columns(plan, cell) for cell in plan.cells)
    assert "at an unknown cost" in "\n".join(rate_lines(plan.rates, plan.cells))


def test_an_interrupted_tuning_goes_on_as_if_it_had_not_been(text_folder, folders, tmp_path):
    tune = {"trials": 10, "parallel": 1}
    expected = run(prepare_tuning(sweep_of(text_folder, tune=tune), folders), MadeUp(loss_at))
    tuning = prepare_tuning(sweep_of(text_folder, tune=tune), replace(folders, out=tmp_path / "again"))
    cluster = MadeUp(loss_at, polls=7)
    with pytest.raises(KeyboardInterrupt):
        run(tuning, cluster)
    assert run(tuning, cluster) == expected
    assert len(set(cluster.started)) == 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tune": {"space": {"batch": [2, 4]}}}, "log-uniform ranges of learning rates only, but tune.space has batch"),
        ({"tune": {"mean_recurrence": 2}}, "one of mean_recurrence and mean_recurrences, but got both"),
        ({"tune": {"budgets": [1.0]}}, "under the"),
        ({"axes": {RATE: [0.1, 0.2]}}, "must tune a learning rate, but all are axes"),
        ({"optimizer": {"learning_rate": 0.1}, "tuned": "small"}, "set optimizer.learning_rate to tuned, or drop"),
    ],
)
def test_what_cannot_be_tuned_in_cells_is_refused(text_folder, folders, changes, expected):
    with pytest.raises(ValueError, match=expected):
        prepare_tuning(sweep_of(text_folder, **changes), folders)


def test_tokens_have_no_budget_to_tune_at(text_folder, folders):
    sweep = sweep_of(text_folder, budgets=None, tokens=[2000], tune={"budgets": None})
    with pytest.raises(ValueError, match=r"needs budgets in FLOPs, but the sweep has tokens; set tune\.budgets"):
        prepare_tuning(sweep, folders)


def test_tuned_without_a_tuning_is_refused(text_folder, folders, tuned):
    sweep = sweep_of(text_folder, optimizer={"learning_rate": "tuned"})
    with pytest.raises(ValueError, match=r"need a tuning in several cells, but there is no .*run 'isoloop tune'"):
        prepare(sweep, folders)
    with pytest.raises(ValueError, match=f"tuned or varied, but {RATE} is both"):
        prepare(sweep.model_copy(update={"axes": {RATE: (0.1, 0.2)}}), tuned[0])
    with pytest.raises(ValueError, match="must train to have tuned learning rates"):
        load_sweep("parcae-140m-simulated", [f"{RATE}=tuned"])


def test_two_rates_are_tuned_where_muon_has_its_own(text_folder, folders):
    sweep = sweep_of(text_folder, optimizer={"muon_learning_rate": 0.02})
    space = prepare_tuning(sweep, folders).space
    assert list(space.dimensions) == ["budget", "mean_recurrence", RATE, MUON_RATE]


def test_real_models_from_the_tuning_to_the_sweep(text_folder, folders, new_database):
    """Two budgets x two mean recurrences, 10 trials of real models, all recorded; then the plan of a sweep."""
    grid = {"budgets": [9.8e7, 1.88e8], "mean_recurrences": [1, 3]}
    space = {RATE: {"low": 1e-3, "high": 0.3, "log": True}}
    sweep = sweep_of(text_folder, **grid, tune={**grid, "trials": 10, "parallel": 1, "space": space})
    new_database(folders.out / "mlflow.db")
    tuning = prepare_tuning(sweep, folders)
    corpus = prepare_corpus(sweep.data, folders.corpora)
    cluster = MadeUp(lambda spec: train(spec, corpus, folders.out / "real" / spec.run_id).loss)
    result = run_tuning(tuning, "small.yaml", command="isoloop tune", cluster=lambda *_: nullcontext(cluster))
    assert "10 trials in 4 cells: 10 finished" in "\n".join(result.summary())
    with (tuning.folders.sweep / "tune.csv").open() as file:
        losses = {row["run_id"]: float(row["loss"]) for row in csv.DictReader(file)}
    assert losses == {trial.run_id: trial.loss for trial in result.trials}
    # A sweep that extends the result runs at its rates.
    (folders.out / "small.yaml").write_text(config_text(sweep))
    tuned_yaml = folders.out / "small-tuned.yaml"
    tuned_yaml.write_text(f"extends: [small.yaml, {tuning.folders.sweep / 'tuned.yaml'}]\nname: small-tuned\n")
    plan = prepare(load_sweep(str(tuned_yaml)), replace(folders, name="small-tuned")).plan
    best = [result.law.at(features).rates[RATE] for features in tuning.space.features]
    assert sorted(cell.spec.optimizer.learning_rate for cell in plan.cells) == pytest.approx(sorted(best), rel=0.01)
    assert not any(cell.rates.best.beyond for cell in plan.cells)
