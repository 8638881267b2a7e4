"""Tables as people have them, through every command that takes runs: files of any kind, MLflow, wandb and trackio."""

import csv
import dataclasses
import gzip
import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import SweepFit, fit_sweep, read_runs
from isoloop.sweeps.runs import TableOptions, load_table
from isoloop.trainer.accounting import count_parameters, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, RecurrenceConfig
from tests.commands import isoloop, quick_figures

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
GIVEN = ["--columns", "tokens=D_billions*1e9,loss=quality"]
BUDGETS, RECURRENCES = (1e18, 2e18, 4e18), (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def runs():
    """Losses of looped models of 140m by a law in effective parameters and tokens, with FLOPs counted by `exact`."""
    rows, noise = [], np.random.default_rng(0)
    parameters, cost = count_parameters(SIZES["140m"]), loop_cost(SIZES["140m"], "exact")
    for budget in BUDGETS:
        for mean in RECURRENCES:
            tokens = budget / cost.flops_per_token(*expected_loops(RecurrenceConfig(mean=mean), "exact"))
            n = parameters.effective(mean)
            loss = 1.8 + 250 * n**-0.34 + 2000 * tokens**-0.37 + noise.normal(0, 1e-3)
            rows.append({"mean_recurrence": mean, "tokens": tokens, "flops": budget, "loss": loss})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def stored(runs, tmp_path_factory):
    """A folder with units.csv, whose tokens are in billions and whose loss has no usual name, and its stored fit."""
    folder = tmp_path_factory.mktemp("stored")
    units = runs.assign(D_billions=runs["tokens"] / 1e9, quality=runs["loss"]).drop(columns=["tokens", "loss"])
    units.to_csv(folder / "units.csv", index=False)
    isoloop("fit", "units.csv", *GIVEN, "--draws", 20, cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("loops", "words"), [(1, "The number of loops is 1 in all runs"), (None, "No run has its loops")]
)
def test_models_that_differ_in_params_alone_are_dense_for_commands_and_python(loops, words, tmp_path):
    dense = pd.DataFrame(
        {"mean_recurrence": loops, "params": [1e8, 2e8, 4e8], "tokens": [4e9, 2e9, 1e9], "loss": [3.3, 3.1, 3.2]}
    )
    dense.assign(flops=2.4e18).to_csv(tmp_path / "dense.csv", index=False)
    table = load_table(str(tmp_path / "dense.csv"), tmp_path)
    assert "mean_recurrence" not in table.frame
    assert f"{words}, and params differ: the models are taken for dense ones." in table.notes
    assert table.notes == read_runs(tmp_path / "dense.csv").notes


# Files of every kind, by the path alone


def write_gzip(table, path):
    path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))


def write_wandb(table, path):
    """Write what the runs table of a wandb project exports: everything quoted, its own columns, config, summary."""
    own = {"Name": [f"brisk-{row}" for row in range(len(table))], "State": "finished", "Notes": "", "User": "ann"}
    own |= {"Tags": "looped", "Created": "2026-06-10T05:44:17.000Z", "Runtime": "498", "Sweep": ""}
    mapped = {"model.mu": "mean_recurrence", "data.train_tokens": "tokens", "flops": "flops", "val/loss": "loss"}
    frame = pd.DataFrame(own, index=table.index)
    frame = frame.assign(lr=0.004, **{theirs: table[ours] for theirs, ours in mapped.items()}, _step=100)
    frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL)


KINDS = {
    "A.CSV": lambda table, path: table.rename(columns=str.upper).to_csv(path, index=False),
    "b.csv.gz": write_gzip,
    "c.json": lambda table, path: table.to_json(path, orient="records", double_precision=15),
    "d.jsonl": lambda table, path: table.to_json(path, orient="records", lines=True, double_precision=15),
    "e.parquet": lambda table, path: table.to_parquet(path),
    "f.tsv": lambda table, path: table.to_csv(path, sep="\t", index=False),
    "g.csv": lambda table, path: table.to_csv(path, sep=";", decimal=",", index=False),
    "wandb_export.csv": write_wandb,
}


@pytest.mark.parametrize("name", KINDS)
def test_any_file_is_read_by_its_path(name, runs, tmp_path):
    KINDS[name](runs, tmp_path / name)
    frame = load_table(str(tmp_path / name), tmp_path).frame
    assert list(frame["mean_recurrence"]) == list(runs["mean_recurrence"])
    for column in ("tokens", "flops", "loss"):
        assert frame[column].to_numpy() == pytest.approx(runs[column].to_numpy(), rel=1e-12), column
    assert set(frame["accounting"]) == {"own"}


def test_a_table_that_is_compressed_json_is_predicted_without_a_stored_fit(runs, tmp_path):
    """The fit lies beside the table under the name without suffixes; what was guessed stands on top and is stored."""
    table = runs.rename(columns={"tokens": "train_tokens"})
    (tmp_path / "mine.json.gz").write_bytes(gzip.compress(table.to_json(orient="records").encode()))
    first = isoloop("predict", "mine.json.gz", "--flops", "1e19", cwd=tmp_path).stdout
    assert first.startswith("No fit of mine.json.gz was stored: it was fitted now")
    assert "'train_tokens'" in first.split("\n\n")[1]
    second = isoloop("predict", "mine.json.gz", "--flops", "1e19", cwd=tmp_path).stdout
    assert first.endswith(second)
    assert "'train_tokens'" in (tmp_path / "mine.fit.txt").read_text().split("\n\n")[0]
    fit = SweepFit.read(tmp_path / "mine.fit.json")
    assert (fit.accounting, len(fit.isoflop.included)) == ("own", len(BUDGETS))


def test_what_was_guessed_stands_on_top_of_every_answer(stored):
    commands = {
        "predict": ["predict", "units.csv", "--flops", "1e19"],
        "choose": ["choose", "units.csv", *GIVEN, "--draws", 20],
        "figure": ["figure", "units.csv", "isoflop_curves", "--to", "curves.svg", *GIVEN],
        "compare": ["compare", "units.csv", "units.csv", *GIVEN, "--draws", 20],
        "export": ["export", "units.csv", *GIVEN, "--to", "runs.csv"],
    }
    for name, command in commands.items():
        with quick_figures():
            top = isoloop(*command, cwd=stored).stdout.split("\n\n")[0]
        assert "How the table" in top, name
        assert "'D_billions' x 1e9" in top, name
    compared = stored / "isoloop-out" / "compared" / "units-to-units"
    assert "D_billions" in (compared / "compare.txt").read_text().split("\n\n")[0]
    notes = json.loads((compared / "compare.json").read_text())["reading"]
    assert [any("D_billions" in note for note in side) for side in notes] == [True, True]


def test_a_stored_fit_is_used_for_the_same_reading_alone(stored, runs):
    fit = SweepFit.read(stored / "units.fit.json")
    assert fit.fitted.tokens[0] == pytest.approx(runs["tokens"].min())
    predict = ["predict", "units.csv", "--flops", "1e19"]
    answers = [isoloop(*predict, *options, cwd=stored).stdout for options in ([], GIVEN)]
    assert answers[0] == answers[1]
    other = isoloop(*predict, "--columns", "tokens=D_billions*1e6,loss=quality", cwd=stored, check=2).stderr
    assert "read in another way" in other
    assert "isoloop fit units.csv --columns" in other
    assert "--columns loss=NAME" in isoloop("fit", "units.csv", cwd=stored, check=2).stderr


def test_a_fit_stored_by_python_is_refused_if_it_is_older_than_its_table(stored, tmp_path):
    """It has no digest of a file, which one of the command has (test_stored_fits.py)."""
    shutil.copy(stored / "units.csv", tmp_path)
    fit = dataclasses.replace(SweepFit.read(stored / "units.fit.json"), file=None)
    (tmp_path / "units.fit.json").write_text(fit.to_json())
    assert "Best model for" in isoloop("predict", "units.csv", "--flops", "1e19", cwd=tmp_path).stdout
    os.utime(tmp_path / "units.csv", (2e9, 2e9))
    for command in (["predict", "units.csv", "--flops", "1e19"], ["figure", "units.csv"]):
        message = isoloop(*command, cwd=tmp_path, check=2).stderr
        assert "units.csv changed after units.fit.json was made; fit it again with: isoloop fit units.csv" in message
    assert "Best model for" in isoloop("predict", "units.fit.json", "--flops", "1e19", cwd=tmp_path).stdout


# Mappings of files


def write_map(folder, text):
    (folder / "map.yaml").write_text(text, encoding="utf-8")
    return TableOptions(mapping=folder / "map.yaml")


def test_a_model_gives_files_their_cost(runs, tmp_path):
    runs.drop(columns="flops").to_csv(tmp_path / "mine.csv", index=False)
    options = write_map(tmp_path, "model: 140m\ncolumns:\n  seed: {value: 3}\n")
    table = load_table(str(tmp_path / "mine.csv"), tmp_path, options)
    parameters, cost = count_parameters(SIZES["140m"]), loop_cost(SIZES["140m"], "exact")
    assert set(table.frame["accounting"]) == {"exact"}
    assert table.frame["flops"].to_numpy() == pytest.approx(runs["flops"].to_numpy())
    assert set(table.frame["effective_params_per_loop"]) == {parameters.effective_per_loop}
    assert set(table.frame["flops_per_token_forward_loop"]) == {cost.per_forward_loop}
    assert list(table.frame["backprop_depth"]) == [math.ceil(mean / 2) for mean in runs["mean_recurrence"]]
    assert "FLOPs are counted from the model (exact)." in table.notes
    assert set(table.frame["seed"]) == {3}


def test_a_model_gives_runs_with_a_fraction_of_loops_their_cost(runs, tmp_path):
    runs.drop(columns="flops").replace({"mean_recurrence": {2: 1.5}}).to_csv(tmp_path / "mine.csv", index=False)
    frame = load_table(str(tmp_path / "mine.csv"), tmp_path, write_map(tmp_path, "model: 140m\n")).frame
    (forward,) = frame.loc[frame["mean_recurrence"] == 1.5, "forward_loops"].unique()
    assert forward == pytest.approx(1.5 + math.exp(-1.5))
    for wrong in (0.5, math.inf):
        runs.replace({"mean_recurrence": {2: wrong}}).to_csv(tmp_path / "mine.csv", index=False)
        with pytest.raises(ValueError, match="`mean_recurrence` must be"):
            load_table(str(tmp_path / "mine.csv"), tmp_path, write_map(tmp_path, "model: 140m\n"))


@pytest.mark.parametrize(
    ("factor", "mapping", "accounting", "note"),
    [
        (1.0005, "model: 140m", "exact", "agree with the model's count"),
        (1.1, "model: 140m", "own", "1.1 to 1.1 times the model's count"),
        (1.0, "model: 140m\naccounting: own", "own", "1 to 1 times the model's count"),
        (1.1, "model: 140m\ncolumns: {flops: null}", "exact", "FLOPs are counted from the model"),
        (1.1, "columns: {loss: loss}", "own", None),
    ],
)
def test_flops_of_the_table_are_never_replaced_without_a_word(runs, tmp_path, factor, mapping, accounting, note):
    runs.assign(flops=runs["flops"] * factor).to_csv(tmp_path / "mine.csv", index=False)
    table = load_table(str(tmp_path / "mine.csv"), tmp_path, write_map(tmp_path, mapping))
    kept = "null" not in mapping
    assert table.frame["flops"].to_numpy() == pytest.approx(runs["flops"].to_numpy() * (factor if kept else 1))
    assert set(table.frame["accounting"]) == {accounting}
    assert ("flops_per_token_fixed" in table.frame) == (accounting == "exact")
    assert ("effective_params_fixed" in table.frame) == ("model" in mapping)
    assert note is None or any(note in each for each in table.notes)


def test_the_training_law_is_fitted_with_the_models_parameters_and_own_flops(runs, tmp_path):
    runs.assign(flops=runs["flops"] * 1.1).to_csv(tmp_path / "mine.csv", index=False)
    table = load_table(str(tmp_path / "mine.csv"), tmp_path, write_map(tmp_path, "model: 140m"))
    fit = fit_sweep(table.frame, name="mine", draws=0, reading=table.notes)
    assert (fit.accounting, fit.training.law) == ("own", "training")


def test_sources_of_a_mapping(runs, tmp_path):
    """Text for a column, factors, losses at T, values of each run for the model, a backprop depth that costs."""
    theirs = pd.DataFrame({
        "loops": runs["mean_recurrence"], "D_billions": runs["tokens"] / 1e9, "entry": "diagonal", "grad": 1,
        **{f"vl@{t}": runs["loss"] + (t == 16) for t in RECURRENCES},
    })  # fmt: skip
    theirs.to_csv(tmp_path / "mine.csv", index=False)
    options = write_map(
        tmp_path,
        "model: {size: 140m, injection: {column: entry}}\nlosses: vl@{T}\n"
        "columns:\n  tokens: D_billions*1e9\n  backprop_depth: {column: grad}\n",
    )
    frame = load_table(str(tmp_path / "mine.csv"), tmp_path, options).frame
    assert frame["tokens"].to_numpy() == pytest.approx(runs["tokens"].to_numpy())
    assert list(frame["loss"] - runs["loss"]) == pytest.approx([1.0 * (mean == 16) for mean in runs["mean_recurrence"]])
    assert set(frame["backward_loops"]) == {1}
    cost = loop_cost(SIZES["140m"], "exact")
    forward, _ = expected_loops(RecurrenceConfig(mean=16, backprop_depth=1), "exact")
    assert frame["flops"].iloc[4] == pytest.approx(frame["tokens"].iloc[4] * cost.flops_per_token(forward, 1))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            "columns: {loss: los}",
            "`loss` must be in the table, .* no column 'los'; did you mean 'loss'",
        ),
        ("columns: {loss: {metric: loss}}", "a metric is of an MLflow run, .* for a file; write it as column: loss"),
        ("columns: {loss: {column: loss, value: 3}}", "columns.loss: one of column, param, .*but got column and value"),
        ("experiment: mine", "experiment and filter of a mapping are for MLflow, .*name mlflow:mine instead"),
        ("model: 140m\naccounting: own\ncolumns: {flops: null}", "accounting: own keeps the table's FLOPs"),
        ("model: 141m", "a size must be one of 140m"),
        ("model: {size: 140m, width: {column: flops}}", "the model of row 1 breaks a rule: .*but got width=1"),
        ("losses: val{T}", "nothing matches 'val{T}'"),
        ("accounting: mine", "accounting: .*'own'"),
    ],
)
def test_what_is_wrong_with_a_mapping_of_a_file_is_named(runs, tmp_path, mapping, message):
    runs.to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=message):
        load_table(str(tmp_path / "mine.csv"), tmp_path, write_map(tmp_path, mapping))


# Trackers


@pytest.fixture(scope="module")
def experiment(runs, tmp_path_factory, new_database):
    """An output folder whose default store has somebody's experiment: the runs, one that diverged, one not over yet."""
    from isoloop.sweeps.tracking.mlflow_store import TrackingStore

    out = tmp_path_factory.mktemp("mlflow")
    store = TrackingStore(new_database(out / "mlflow.db"), "looped/lm", artifacts=out)
    rows = [*runs.to_dict("records"), {**runs.iloc[0], "loss": math.nan}]
    for number, row in enumerate(rows):
        run = store.client.create_run(store.experiment_id, run_name=f"run {number}").info.run_id
        params = {"model.mu": int(row["mean_recurrence"]), "train_tokens": row["tokens"], "C": row["flops"], "lr": 4e-3}
        store.send(run, params=params, points=[("val/loss", 9.0, 1, 1)])
        store.client.log_metric(run, "val/loss", row["loss"], timestamp=2, step=2)  # ours would leave out a NaN
        store.end(run, "FINISHED")
    running = store.client.create_run(store.experiment_id, run_name="running").info.run_id
    store.send(running, params={"model.mu": 2}, points=[("val/loss", 5.0, 1, 1)])
    return out


def test_an_mlflow_experiment_needs_no_option(experiment, runs, tmp_path):
    answer = isoloop("fit", "mlflow:looped/lm", "--out", experiment, "--draws", 20, cwd=tmp_path).stdout
    fit = SweepFit.read(experiment / "mlflow" / "looped-lm.fit.json")
    assert answer.startswith("How the table was read")
    assert (fit.finished_runs, len(fit.isoflop.included)) == (len(runs), len(BUDGETS))
    assert fit.fitted.tokens[1] == pytest.approx(runs["tokens"].max())
    reading = " ".join(fit.reading)
    columns = ("'metrics/val/loss'", "'params/train_tokens'", "'params/C'")
    for guess in (*columns, "1 run still running", "1 finished run without a finite loss counts as diverged"):
        assert guess in reading
    # The stored fit serves the other commands while the experiment is as it was.
    out = ["--out", experiment]
    assert "Best model for" in isoloop("predict", "mlflow:looped/lm", "--flops", "1e19", *out, cwd=tmp_path).stdout
    with quick_figures():
        figure = isoloop(
            "figure", "mlflow:looped/lm", "isoflop_curves", "--to", "isoflop_curves.svg", *out, cwd=tmp_path
        )
    assert "isoflop_curves" in figure.stdout
    copy = experiment / "mlflow" / "looped-lm.csv"
    copy.write_text(copy.read_text().replace("finished", "failed", 1))
    changed = isoloop("predict", "mlflow:looped/lm", "--flops", "1e19", *out, cwd=tmp_path, check=2).stderr
    assert "is of other runs" in changed


def test_plain_names_stand_for_what_mlflow_has_of_them(experiment, runs, tmp_path):
    options = TableOptions(columns="loss=val/loss*2,tokens=train_tokens/2")
    frame = load_table("mlflow:looped/lm", experiment, options).frame
    finished = frame[frame["status"] == "finished"].sort_values(["flops", "mean_recurrence"])
    assert finished["loss"].to_numpy() == pytest.approx(runs["loss"].to_numpy() * 2)
    assert finished["tokens"].to_numpy() == pytest.approx(runs["tokens"].to_numpy() / 2)
    with pytest.raises(ValueError, match="`tokens` must be in the table, but no run has column 'trained_tokens'"):
        load_table("mlflow:looped/lm", experiment, TableOptions(columns="tokens=trained_tokens"))


@pytest.mark.parametrize("layout", ["mine.parquet mine_configs.parquet", "metrics.parquet aux/configs.parquet"])
def test_a_trackio_export_has_its_configurations_beside_it(layout, runs, tmp_path):
    """A row per run and step, metrics in columns; the configurations are another file."""
    metrics, configs = layout.split()
    names = [f"run-{row}" for row in range(len(runs))]
    steps = [
        {"run_name": name, "step": step, "train/loss": loss + 1, "val/loss": None if step % 2 else loss + (20 - step)}
        for name, loss in zip(names, runs["loss"], strict=True)
        for step in range(0, 21, 5)
    ]
    log = pd.DataFrame(steps).rename_axis("id").reset_index().assign(timestamp="2026-06-10T05:44:17", log_id="x")
    log.to_parquet(tmp_path / metrics)
    config = runs.rename(columns={"mean_recurrence": "mu", "tokens": "train_tokens"}).drop(columns="loss")
    (tmp_path / configs).parent.mkdir(exist_ok=True)
    config.assign(run_name=names, id=range(len(runs)), created_at="2026-06-10").to_parquet(tmp_path / configs)
    table = load_table(str(tmp_path / metrics), tmp_path)
    assert list(table.frame["run_id"]) == names
    for column in runs:
        assert table.frame[column].to_numpy() == pytest.approx(runs[column].to_numpy()), column
    assert any("Configurations of the runs" in note for note in table.notes)


# Wrong targets


CHART = "Step,run-a - val/loss,run-a - val/loss__MIN,run-a - val/loss__MAX\n0,3,3,3\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit runs.xlsx", "runs.xlsx is a spreadsheet; save it as .csv"),
        ("fit none.xlsx", "there is no file none.xlsx"),
        ("fit none.csv.gz", "there is none at none.csv.gz"),
        ("choose none.jsonl", "there is none at none.jsonl"),
        ("predict none.csv --flops 1e19", "there is none at none.csv"),
        ("figure none.tsv", "there is none at none.tsv"),
        ("compare none.csv none.csv", "there is none at none.csv"),
        ("fit model.pkl", "model.pkl is another kind of file"),
        ("status plain.csv", "needs a sweep that was run, but plain.csv is a table"),
        (
            "fit plain.csv --tracking-uri sqlite:///x.db",
            "--tracking-uri is for an MLflow experiment, but got 'plain.csv'",
        ),
        ("fit chart.csv", "chart.csv is a chart of wandb, with a column for each run; export the table of runs"),
        ("fit plain.csv --map chart.csv", "a mapping must have keys with values, but chart.csv is a single text"),
        ("predict plain.csv", "a prediction needs --flops"),
        ("fit MLFLOW:x", "has no sweep 'MLFLOW:x'"),
        ("fit mlflow:", "an MLflow experiment must have its name"),
        ("fit mlflow:mine", "there is no isoloop-out/mlflow.db; give its URI with --tracking-uri"),
        ("fit plain.csv --map none.yaml", "there is none at none.yaml"),
        ("fit plain.csv --columns tokens", "tokens=NAME"),
        ("fit plain.csv --columns tokens=tokns", "did you mean 'tokens'"),
        ("fit plain.csv --experiment a", "the table has no such column"),
        ("fit plain.csv --no-outliers", "needs the column `outlier`"),
        ("fit plain.csv --budget-tolerance 0.7", "must be from 0 to 0.5"),
        ("compare plain.csv plain.csv --to x.xlsx", "--to must be a folder"),
        ("export plain.csv --to x.xlsx", "must end in .csv or .parquet"),
        ("fit table.json", "lacks"),
        ("fit stored.fit.json", "a fit requires a run table, but stored.fit.json is a fit"),
        ("compare stored.fit.json stored.fit.json --columns loss=a", "neither stored.fit.json nor"),
        ("predict stored.fit.json --flops 1e19 --columns loss=a", "say how a table is read"),
    ],
)
def test_wrong_targets_get_one_message(command, message, runs, tmp_path):
    runs.to_csv(tmp_path / "plain.csv", index=False)
    for name, text in (
        ("runs.xlsx", "PK"),
        ("model.pkl", "x"),
        ("table.json", '[{"format": 1}]'),
        ("chart.csv", CHART),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "stored.fit.json").write_text('{\n "format": "isoloop-fit/4"}')
    done = isoloop(*command.split(), cwd=tmp_path, check=2)
    assert message in done.stderr
    assert "isoloop run" not in done.stderr
    assert done.stderr.count("\n") == 1
