"""Tables as people have them, through every command that takes runs: files of any kind, MLflow, wandb and trackio."""

import csv
import gzip
import json
import math
import os

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import SweepFit
from isoloop.sweeps.runs import TableOptions, load_table
from isoloop.trainer.accounting import count_parameters, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, RecurrenceConfig
from tests.commands import isoloop

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
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


def fit_of(folder, name):
    return SweepFit.read(folder / f"{name}.fit.json")


def best_recurrences(fit):
    """The best mean recurrence of each budget."""
    return [minimum.mean_recurrence for minimum in fit.isoflop.included]


@pytest.fixture(scope="module")
def expected(runs, tmp_path_factory):
    """The best recurrences of the plain table."""
    folder = tmp_path_factory.mktemp("plain")
    runs.to_csv(folder / "plain.csv", index=False)
    isoloop("fit", "plain.csv", "--draws", 20, cwd=folder)
    fit = fit_of(folder, "plain")
    assert (fit.accounting, len(best_recurrences(fit))) == ("own", len(BUDGETS))
    return pytest.approx(best_recurrences(fit), rel=1e-6)


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
def test_any_file_is_fitted_by_its_path(name, runs, expected, tmp_path):
    KINDS[name](runs, tmp_path / name)
    table = load_table(str(tmp_path / name), tmp_path)
    assert list(table.frame["mean_recurrence"]) == list(runs["mean_recurrence"])
    for column in ("tokens", "flops", "loss"):
        assert table.frame[column].to_numpy() == pytest.approx(runs[column].to_numpy(), rel=1e-12), column
    if name not in ("b.csv.gz", "wandb_export.csv"):
        return
    out = isoloop("fit", name, "--draws", 20, cwd=tmp_path).stdout
    fit = fit_of(tmp_path, name.split(".")[0])
    assert best_recurrences(fit) == expected
    assert out.splitlines()[0] == "How the table was read"
    assert fit.reading[: len(table.notes)] == table.notes


def test_what_was_guessed_stands_on_top_of_every_answer(runs, tmp_path):
    table = runs.rename(columns={"tokens": "train_tokens"}).assign(D_billions=runs["tokens"] / 1e9)
    table.to_csv(tmp_path / "mine.csv", index=False)
    commands = {
        "predict": ["predict", "mine.csv", "--flops", "1e19"],
        "choose": ["choose", "mine.csv", "--draws", 20],
        "figure": ["figure", "mine.csv"],
        "compare": ["compare", "mine.csv", "mine.csv", "--draws", 20],
    }
    answers = {name: isoloop(*command, cwd=tmp_path).stdout for name, command in commands.items()}
    for name, answer in answers.items():
        reading = answer.split("\n\n")[1 if name == "predict" else 0]
        assert "How the table" in reading, name
        assert "train_tokens" in reading, name
    assert "No fit of mine.csv was stored: it was fitted now" in answers["predict"]
    compared = tmp_path / "isoloop-out" / "compared" / "mine-to-mine"
    assert "train_tokens" in (compared / "compare.txt").read_text().split("\n\n")[0]
    stored = json.loads((compared / "compare.json").read_text())["reading"]
    assert [any("train_tokens" in note for note in side) for side in stored] == [True, True]
    assert "train_tokens" in (tmp_path / "mine.fit.txt").read_text().split("\n\n")[0]


def test_columns_may_be_given(runs, expected, tmp_path):
    units = runs.assign(D_billions=runs["tokens"] / 1e9, quality=runs["loss"])[
        ["mean_recurrence", "D_billions", "flops", "quality"]
    ]
    units.to_csv(tmp_path / "units.csv", index=False)
    given = ["--columns", "tokens=D_billions*1e9,loss=quality"]
    assert "lacks loss" in isoloop("fit", "units.csv", cwd=tmp_path, check=2).stderr
    isoloop("fit", "units.csv", *given, "--draws", 20, cwd=tmp_path)
    fit = fit_of(tmp_path, "units")
    assert best_recurrences(fit) == expected
    # The stored fit is taken as it is, or if the table is read in the same way, and never for another way.
    predict = ["predict", "units.csv", "--flops", "1e19"]
    answers = [isoloop(*predict, *options, cwd=tmp_path).stdout for options in ([], given)]
    assert answers[0] == answers[1]
    assert "D_billions" in answers[0]
    other = isoloop(*predict, "--columns", "tokens=D_billions*1e6,loss=quality", cwd=tmp_path, check=2).stderr
    assert "read in another way" in other
    assert "isoloop fit units.csv --columns" in other


def test_a_stored_fit_older_than_its_table_is_refused(runs, tmp_path):
    runs.to_csv(tmp_path / "mine.csv", index=False)
    isoloop("fit", "mine.csv", "--draws", 20, cwd=tmp_path)
    os.utime(tmp_path / "mine.csv", (2e9, 2e9))
    for command in (["predict", "mine.csv", "--flops", "1e19"], ["figure", "mine.csv"]):
        message = isoloop(*command, cwd=tmp_path, check=2).stderr
        assert "mine.csv changed after mine.fit.json was made; fit it again with: isoloop fit mine.csv" in message
    assert "Prediction" in isoloop("predict", "mine.fit.json", "--flops", "1e19", cwd=tmp_path).stdout


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
    write_map(tmp_path, "model: 140m")
    isoloop("fit", "mine.csv", "--map", "map.yaml", "--draws", 20, cwd=tmp_path)
    fit = fit_of(tmp_path, "mine")
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
