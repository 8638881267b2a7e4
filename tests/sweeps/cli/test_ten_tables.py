"""Tables as people have them, drawn from known laws: fitted by their path alone, and the laws come back."""

import csv
import gzip
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from isoloop.fitting import (
    ChinchillaLaw,
    SweepFit,
    TrainingLaw,
    UnifiedLaw,
    published_cost_model,
)
from tests.commands import isoloop

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
CHINCHILLA = np.array([1.8, 482.0, 2085.0, 0.35, 0.37])
UNIFIED = np.array([2.28, 32.3, 34.65, 0.84, 0.26, 0.19, 4.0])
"""E, X, Y, Z, x, y, z: the law that test-time losses follow; at T = mu it is the training law with a higher floor."""
TRAINING = np.array([UNIFIED[0] + UNIFIED[3] * np.exp(-UNIFIED[6]), *UNIFIED[[1, 2, 4, 5]]])
COST = published_cost_model()
NOISE = 5e-4
FEW_REFITS = ("--draws", 20)  # no test here is of the intervals


def noisy(loss, seed=0):
    return loss * np.exp(np.random.default_rng(seed).normal(0, NOISE, np.shape(loss)))


def dense(miss=0.0):
    """Dense models on 5 budgets that spend up to `miss` (relative) more than planned, C = 6 N D."""
    budget = np.repeat([1e19, 3e19, 1e20, 3e20, 1e21], 6)
    params = np.round(np.sqrt(budget / 6 / 20) * np.tile(np.geomspace(0.25, 4, 6), 5))
    flops = budget * (1 + miss * np.random.default_rng(1).uniform(0, 1, len(budget)))
    data = {"params": params, "tokens": np.round(flops / (6 * params))}
    loss = noisy(ChinchillaLaw().loss(CHINCHILLA, data))
    return pd.DataFrame({**data, "flops": flops, "budget": budget, "loss": loss})


def looped(recurrences=(), *, shape=True):
    """Looped models on 4 budgets, FLOPs of the published cost model; a row for each T if some are given.

    With `shape`, the parameters outside and inside the loop are known, too.
    """
    budgets, means = (1e18, 4e18, 16e18, 64e18), (1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
    mean, budget = (each.ravel() for each in np.meshgrid(means, budgets))
    several = np.array(recurrences or [np.nan])
    budget, mean = np.repeat(budget, len(several)), np.repeat(mean, len(several))
    models = COST.columns(budget, mean)
    at = np.tile(several, 24) if recurrences else mean
    loss = noisy(UnifiedLaw().loss(UNIFIED, {**models, "recurrence": at}))
    table = pd.DataFrame({"mu": mean.astype(int), "T": at, "D": np.round(models["tokens"]), "C": budget, "loss": loss})
    if shape:
        table = table.assign(params_once=COST.effective_params_fixed, params_recurrent=COST.effective_params_per_loop)
    return table if recurrences else table.drop(columns="T")


# The tables: each writes its files to a folder and returns what the commands are given


def wandb(folder):
    """The runs table of a project: quoted, with columns of wandb's own, configuration and summary."""
    runs = dense()
    own = {"Name": [f"brisk-{row}" for row in range(len(runs))], "State": "finished", "Notes": "-", "User": "ann"}
    own |= {"Tags": "", "Created": "2026-06-10T05:44:17.000Z", "Runtime": "498", "Sweep": ""}
    mapped = {"model.n_params": "params", "data.train_tokens": "tokens", "train_flops": "flops", "val/loss": "loss"}
    frame = pd.DataFrame(own, index=runs.index).assign(**{name: runs[ours] for name, ours in mapped.items()})
    frame.assign(**{"train/loss": runs["loss"] + 0.1, "_step": 1000}).to_csv(
        folder / "wandb_export.csv", index=False, quoting=csv.QUOTE_ALL
    )
    return "wandb_export.csv", "'val/loss'"


def nanochat(folder):
    """A line of JSON per run, by depth."""
    runs = dense().rename(columns={"params": "num_params", "loss": "val_loss"}).drop(columns="budget")
    runs.insert(0, "depth", np.tile([4, 8, 12, 16, 20, 24], 5))
    runs.to_json(folder / "scaling.jsonl", orient="records", lines=True, double_precision=15)
    return "scaling.jsonl", "'num_params'"


def chinchilla(folder):
    names = {"params": "Params", "tokens": "Tokens", "flops": "FLOPs", "loss": "Loss"}
    dense().rename(columns=names)[list(names.values())].to_csv(folder / "chinchilla.csv", index=False)
    return "chinchilla.csv", "'FLOPs'"


def spreadsheet(folder):
    """What a spreadsheet exports where numbers have a decimal comma."""
    runs = dense().assign(params=lambda table: table["params"] / 1e6, tokens=lambda table: table["tokens"] / 1e9)
    names = {"params": "Params (M)", "tokens": "Tokens (B)", "loss": "Val Loss"}
    text = runs.rename(columns=names)[list(names.values())].to_csv(sep=";", decimal=",", index=False)
    (folder / "sweep.csv").write_text("\ufeff" + text, encoding="utf-8")
    return "sweep.csv", "decimal comma"


def nested(folder):
    """Configuration and metrics as structures, as frameworks write them."""
    runs = looped()
    config = [
        {"mean_recurrence": mu, "tokens": tokens, "params": {"once": once, "recurrent": recurrent}}
        for mu, tokens, once, recurrent in runs[["mu", "D", "params_once", "params_recurrent"]].itertuples(index=False)
    ]
    metrics = [{"eval": {"loss": row.loss}, "total_flops": row.C} for row in runs.itertuples()]
    names = [f"run-{row}" for row in range(len(runs))]
    parquet.write_table(pa.table({"run": names, "config": config, "metrics": metrics}), folder / "runs.parquet")
    return "runs.parquet", "mean_recurrence"


def shouted(folder):
    text = looped().rename(columns={"mu": "MU_REC", "D": "TOKENS", "C": "FLOPS", "loss": "VAL_LOSS"})
    (folder / "RUNS.TSV.gz").write_bytes(gzip.compress(text.to_csv(sep="\t", index=False).encode()))
    return "RUNS.TSV.gz", "'MU_REC'"


def near_equal_budgets(folder):
    """Budgets as achieved, within a step of those that were planned."""
    runs = dense(miss=2e-4).assign(budget=lambda table: table["flops"]).drop(columns="flops")
    runs.to_csv(folder / "isoflop.csv", index=False)
    return "isoflop.csv", "Budgets within 1% of one another are one: 30 values are 5"


def own_flops(folder):
    """Loops, tokens, FLOPs and loss: nothing is known of the architecture."""
    looped(shape=False).to_csv(folder / "loops.csv", index=False)
    return "loops.csv", "'mu'"


def long(folder):
    """A row for each run and T."""
    (folder / "long.csv").write_text("# evaluated in June\n" + looped((1, 4, 8, 12, 16)).to_csv(index=False))
    return "long.csv", "one for each T of 24 runs"


def trackio(folder):
    """A log with a row for each run and step, and the configurations beside it."""
    runs = looped()
    names = [f"run-{row}" for row in range(len(runs))]
    steps = [
        {"run_name": name, "step": step, "timestamp": "2026-06-10T05:44:17", "val/loss": loss + (20 - step) / 10}
        for name, loss in zip(names, runs["loss"], strict=True)
        for step in (0, 10, 20)
    ]
    pd.DataFrame(steps).to_parquet(folder / "mine.parquet")
    config = runs.rename(columns={"D": "train_tokens"}).drop(columns="loss")
    config.assign(run_name=names).to_parquet(folder / "mine_configs.parquet")
    return "mine.parquet", "Configurations of the runs"


def grid(folder):
    """Every size with every token count, on no common budgets."""
    params, tokens = (values.ravel() for values in np.meshgrid(np.geomspace(1e8, 6e9, 6), np.geomspace(2e9, 3e11, 6)))
    loss = noisy(ChinchillaLaw().loss(CHINCHILLA, {"params": params, "tokens": tokens}))
    pd.DataFrame({"params": params, "tokens": tokens, "loss": loss}).to_csv(folder / "grid.csv", index=False)
    return "grid.csv", "C = 6 N D"


DENSE = (wandb, nanochat, chinchilla, spreadsheet, near_equal_budgets, grid)
LOOPED = (nested, shouted, own_flops, trackio)
CHOSEN = (wandb, grid, own_flops)
"""Laws are compared on these, too: `choose` reads every table as `fit` does."""


def predicted(text):
    """Return the numbers of a prediction's report by their label."""
    return {label: float(value) for label, value in re.findall(r"^  ([a-z ]+?) {2,}(\S+)", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("write", DENSE, ids=lambda write: write.__name__)
def test_dense_models_are_fitted_by_their_path(write, tmp_path):
    path, note = write(tmp_path)
    report = isoloop("fit", path, *FEW_REFITS, cwd=tmp_path).stdout
    assert note in " ".join(report.split("\n\n")[0].split())
    fit = SweepFit.read(next(tmp_path.glob("*.fit.json")))
    assert fit.training.law == "chinchilla"
    for name, truth in zip(("E", "alpha", "beta"), CHINCHILLA[[0, 3, 4]], strict=True):
        assert fit.training.value(name) == pytest.approx(truth, abs=0.03), name
    if write is grid:
        assert "FLOPs of its 36 runs do not cluster" in " ".join(report.split())
    else:
        assert fit.isoflop.axis_law.exponent == pytest.approx(0.37 / 0.72, abs=0.015)
        assert len(fit.isoflop.included) == 5
    answers = predicted(isoloop("predict", path, "--flops", "1e21", cwd=tmp_path).stdout)
    size = (0.35 * 482 / (0.37 * 2085)) ** (1 / 0.72) * (1e21 / 6) ** (0.37 / 0.72)
    assert answers["parameters"] == pytest.approx(size, rel=0.05)
    assert answers["tokens"] == pytest.approx(1e21 / 6 / size, rel=0.05)
    best = ChinchillaLaw().loss(CHINCHILLA, {"params": np.array([size]), "tokens": np.array([1e21 / 6 / size])})
    assert answers["loss"] == pytest.approx(best.item(), rel=2e-3)
    if write in CHOSEN:
        hold_out = "row" if write is grid else "largest budget"
        ask = ["--law", "chinchilla", "--hold-out", hold_out]
        chosen = isoloop("choose", path, *ask, *FEW_REFITS, cwd=tmp_path).stdout
        assert note in chosen.split("\n\n")[0]
        assert "chinchilla: E = 1." in chosen


@pytest.mark.parametrize("write", LOOPED, ids=lambda write: write.__name__)
def test_looped_models_are_fitted_by_their_path(write, tmp_path):
    path, note = write(tmp_path)
    fit = fitted_by_path(path, note, tmp_path, chooses=write in CHOSEN)
    assert fit.training.law == ("loops" if write is own_flops else "training")
    assert fit.finished_runs == 24


def fitted_by_path(path, note, folder, *, chooses):
    """Fit, predict and maybe choose by the path alone; check it against the law of the losses, and return the fit."""
    report = isoloop("fit", path, *FEW_REFITS, cwd=folder).stdout
    assert note in " ".join(report.split("\n\n")[0].split())
    fit = SweepFit.read(next(folder.rglob("*.fit.json")))
    assert fit.accounting == "own"
    assert fit.training.value("y") == pytest.approx(UNIFIED[5], abs=0.03)
    assert len(fit.isoflop.included) >= 3
    # The best model for a budget between those that were trained
    answers = predicted(isoloop("predict", path, "--flops", "3.2e19", cwd=folder).stdout)
    best = TrainingLaw().optimum(TRAINING, COST, 3.2e19, (0.5, 24.0))
    assert answers["loss"] == pytest.approx(best.loss.item(), rel=2e-3)
    assert answers["mean recurrence"] == pytest.approx(best.at.item(), rel=0.15)
    assert answers["tokens"] == pytest.approx(best.tokens.item(), rel=0.15)
    if chooses:
        ask = ["--law", fit.training.law, "--hold-out", "largest budget"]
        chosen = isoloop("choose", path, *ask, *FEW_REFITS, cwd=folder).stdout
        assert note in chosen.split("\n\n")[0]
        assert re.search(rf"^{fit.training.law}: E = ", chosen, flags=re.MULTILINE)
    return fit


def test_a_row_for_each_run_and_T_gives_the_laws_of_test_time_loops(tmp_path):
    path, note = long(tmp_path)
    report = isoloop("fit", path, *FEW_REFITS, cwd=tmp_path).stdout
    assert note in " ".join(report.split("\n\n")[0].split())
    fit = SweepFit.read(tmp_path / "long.fit.json")
    assert fit.joint_test_time.value("z") == pytest.approx(UNIFIED[6], rel=0.1)
    assert fit.unified.value("Z") == pytest.approx(UNIFIED[3], rel=0.1)
    # Models of 2 and 6 loops were not evaluated at their own T.
    assert len(fit.test_time) == fit.finished_runs == 16
    whole = (tmp_path / "long.fit.txt").read_text()
    assert "8 runs without a loss at T = mean recurrence" in " ".join(whole.split())
    assert "diverged" not in report + whole


def test_an_mlflow_experiment_is_fitted_by_its_name(tmp_path, new_database):
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    store = TrackingStore(new_database(tmp_path / "isoloop-out" / "mlflow.db"), "looped-lm", artifacts=tmp_path)
    for row in looped().to_dict("records"):
        run = store.client.create_run(store.experiment_id).info.run_id
        shape = {name: row[name] for name in ("params_once", "params_recurrent")}
        params = {"model.mean_recurrence": int(row["mu"]), "train_tokens": int(row["D"]), "total_flops": row["C"]}
        store.send(run, params=params | shape, points=[("val/loss", 9.0, 1, 1), ("val/loss", row["loss"], 2, 2)])
        store.end(run, "FINISHED")
    assert fitted_by_path("mlflow:looped-lm", "'metrics/val/loss'", tmp_path, chooses=True).training.law == "training"
