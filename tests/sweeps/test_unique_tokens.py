"""Sweeps whose runs see prefixes of one text: one corpus and validation split, their plan, their table, its fits."""

import re
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from isoloop.fitting import check_table, simulate_table
from isoloop.fitting.tables.repetition import epochs_of
from isoloop.sweeps.analysis import fit_and_report
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders, SweepResults
from isoloop.sweeps.pipeline import prepare
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_cells, plan_sweep, simulated_corpus
from isoloop.sweeps.plan.summary import print_plan
from isoloop.sweeps.runs import joint_runs, load_runs
from isoloop.sweeps.tracking.schema import OUTCOME, RUN_ID, cell_tags, loss_tags, parameters, result_metrics, run_table
from isoloop.trainer.loop import train
from tests.commands import quick_pages
from tests.parquet import write_parquet

UNIQUE = [200, 2000]
CORPUS = PlannedCorpus("f", 10_000)


def config(corpus="stdlib", unique=UNIQUE, **more):
    return {
        "name": "text",
        "budgets": [6.4e7, 1.28e8],
        "mean_recurrences": [2],
        "axes": {"data.unique_tokens": unique},
        "model": {"width": 16, "heads": 2, "context": 16},
        "data": {"corpus": str(corpus)},
        "depth": {"sampling": "fixed"},
        "evaluation": {"sequences": 4, "recurrences": [1, 2]},
        "optimizer": {"learning_rate": 0.02},
        "batch": 4,
        "minimum_steps": 5,
        "maximum_epochs": 100,
        **more,
    }


@pytest.fixture(scope="module")
def trained(text_folder, tmp_path_factory):
    """The sweep from its configuration to its run table, without Ray and MLflow."""
    folders = Folders(out=tmp_path_factory.mktemp("out"), name="text")
    prepared = prepare(validate_sweep(config(text_folder), source="test"), folders)
    rows = []
    for cell in prepared.plan.cells:
        result = train(cell.spec, prepared.corpora[cell.spec.data_fingerprint], folders.run(cell.run_id))
        tags = {**cell_tags(prepared.plan, cell), **loss_tags(result), RUN_ID: cell.run_id, OUTCOME: result.status}
        metrics = {name: value for name, value in result_metrics(result).items() if "loss_T" not in name}
        rows.append((tags, metrics))
    return folders, prepared, check_table(run_table(rows))


def test_runs_on_packed_documents_are_planned_and_recorded_as_they_are_trained(tmp_path):
    """The plan's epochs are those of the result, what a pass trains on counts; the driver indexes the documents."""
    write_parquet(tmp_path / "text" / "a.parquet", [f"{i} is " + "abcd"[i % 4] * (i % 9) for i in range(600)])
    content = config(tmp_path / "text", [500, 2000], evaluation={"sequences": 4, "recurrences": [1], "documents": 5})
    content["data"]["packing"] = "best-fit"
    folders = Folders(out=tmp_path / "out", name="packed")
    prepared = prepare(validate_sweep(content, source="test"), folders)
    (corpus,) = prepared.corpora.values()
    assert {path.name for path in corpus.folder.glob("*.npy")} >= {"train-documents.npy", "validation-documents.npy"}
    rows = []
    for cell in prepared.plan.cells:
        result = train(cell.spec, corpus, folders.run(cell.run_id))
        unique = cell.spec.data.unique_tokens
        assert 0.6 * unique < result.unique_tokens < 0.95 * unique
        assert cell.epochs == result.epochs == result.tokens / result.unique_tokens
        tags = {**cell_tags(prepared.plan, cell), **loss_tags(result), RUN_ID: cell.run_id, OUTCOME: result.status}
        rows.append((tags, {name: value for name, value in result_metrics(result).items() if "loss_T" not in name}))
        logged = parameters(cell)
        assert (logged["data.packing"], logged["data.document_mask"]) == ("best-fit", False)
        assert (logged["optimizer.muon"], logged["recurrence.distribution"]) == ("torch", "poisson")
    table = check_table(run_table(rows))
    assert (table["dropped_tokens"] > 0).all()
    assert (table["perplexity"] > 1).all()
    np.testing.assert_allclose(table["document_bits_per_byte"], np.log2(table["perplexity"]))  # bytes are the tokens


def test_a_plan_says_that_packed_rows_leave_too_little_text(text_folder, tmp_path):
    content = {**config(text_folder, [2000]), "maximum_epochs": 1}
    content["data"]["packing"] = "best-fit"
    with pytest.raises(
        ValueError, match=r"that best-fit rows keep of the training text, .*packing to contiguous, which"
    ):
        prepare(validate_sweep(content, source="test"), Folders(out=tmp_path, name="packed"))


def test_all_runs_share_one_corpus(trained):
    folders, prepared, _ = trained
    assert len(prepared.corpora) == 1
    assert len([path for path in folders.corpora.iterdir() if path.name != "requests"]) == 1
    assert len({cell.run_id for cell in prepared.plan.cells}) == 4


def test_the_plan_and_the_table_have_the_epochs_of_each_run(trained):
    _, prepared, table = trained
    assert sorted(set(table["unique_tokens"])) == UNIQUE
    assert table["epochs"].tolist() == (table["tokens"] / table["unique_tokens"]).tolist()
    planned = {cell.run_id: cell.epochs for cell in prepared.plan.cells}
    assert {run: planned[run] for run in table["run_id"]} == dict(zip(table["run_id"], table["epochs"], strict=True))
    assert (table["data.unique_tokens"] == table["unique_tokens"]).all()
    assert table.groupby("budget")["flops"].nunique().tolist() == [1, 1]  # the price of a run is the same


def test_the_table_has_the_best_loss_of_the_runs_that_saw_text_again(trained):
    _, _, table = trained
    again = epochs_of(table) > 1
    assert again.any()
    assert table["best_loss"].notna().to_numpy().tolist() == again.tolist()
    best = table[again]
    assert (best["best_loss"] <= best["loss"]).all()
    assert best["best_loss"].tolist() == best["best_loss_T2"].tolist()
    assert ((best["best_step"] >= 1) & (best["best_step"] <= best["steps"])).all()
    assert table["loss"].tolist() == table["loss_T2"].tolist()


@pytest.mark.parametrize(
    ("changes", "rule", "reason"),
    [
        ({"axes": {"data.unique_tokens": [64]}}, "unique_tokens", "64 unique tokens are less than one batch .* to 65"),
        ({"maximum_epochs": 1.5}, "maximum_epochs", "raise data.unique_tokens, or raise maximum_epochs"),
    ],
)
def test_a_cell_with_too_little_text_is_left_out_with_advice(changes, rule, reason):
    sweep = validate_sweep(config(**changes), source="test")
    _, left_out = plan_cells(sweep, lambda data: CORPUS._replace(train_tokens=data.unique_tokens))
    assert left_out[0].rule == rule
    assert re.search(reason, left_out[0].reason)


@pytest.mark.parametrize("unique", [[0], [-5], [1.5], ["many"]])
def test_a_number_of_unique_tokens_is_a_count(unique):
    with pytest.raises(ValueError, match="unique_tokens"):
        plan_sweep(validate_sweep(config(unique=unique), source="test"), lambda _: CORPUS)


def test_more_than_the_corpus_has_is_refused_before_anything_is_trained(text_folder, tmp_path):
    sweep = validate_sweep(config(text_folder, unique=[200, 10**9, None]), source="test")
    with pytest.raises(ValueError, match=r"must be below the \d+ training tokens .* got 1000000000; lower it"):
        prepare(sweep, Folders(out=tmp_path, name="text"))


def test_simulated_losses_have_no_text_to_run_out(simulated):
    sweep = simulated.model_copy(update={"axes": {"data.unique_tokens": [10_000, None]}})
    with pytest.raises(ValueError, match="simulated losses are those of new text"):
        plan_sweep(sweep, simulated_corpus)


def test_unique_tokens_are_counted_in_one_tokenizer():
    words = [
        {"name": "bytes", "data.tokenizer": "bytes"},
        {"name": "bpe", "data.tokenizer": "bpe", "data.tokenizer_vocabulary": 300, "model.vocabulary": 300},
    ]
    sweep = validate_sweep(config(axes={"data.unique_tokens": UNIQUE, "words": words}), source="test")
    with pytest.raises(ValueError, match=r"counts tokens of one tokenizer, .* have 2 \(bpe, bytes\)"):
        plan_sweep(sweep, lambda _: CORPUS)


def text_sizes(budgets=(1e18, 2e18, 4e18, 8e18)):
    """Runs of two text sizes, whose tokens are worth 1 - exp(-R / 15) of new ones."""
    table = simulate_table(budgets=budgets, mean_recurrences=(1, 2, 4, 8), recurrences=(), seed=0)
    parts = []
    for unique in (2e8, 8e8):
        part = table.assign(
            run_id=table["run_id"] + f"-{unique:g}",
            unique_tokens=unique,
            epochs=table["tokens"] / unique,
            group=f"data.unique_tokens = {unique:g}",
        )
        part["data.unique_tokens"] = unique
        part["loss"] *= 1 + 1e-3 * np.log1p(part["epochs"])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_groups_that_differ_in_their_text_alone_are_fitted_together_too(tmp_path, monkeypatch):
    table, folders, fitted = text_sizes(), Folders(out=tmp_path, name="text"), {}
    folders.sweep.mkdir(parents=True)
    sweep = validate_sweep(config(), source="test")
    folders.config.write_text(config_text(sweep))

    def record(places, runs, **settings):
        fitted[places.sweep.name] = len(runs)
        assert "group" not in runs
        assert settings["law"] is None  # the fit chooses a law with a term for the text
        return SweepResults(fit=None, hold_out=None, why_no_fit="a", why_no_hold_out="b", report=places.report)

    monkeypatch.setattr("isoloop.sweeps.analysis._fits", record)
    with quick_pages():
        results = fit_and_report(sweep, folders, table, command="x")
    half = len(table) // 2
    assert fitted == {"data.unique-tokens=2e+08": half, "data.unique-tokens=8e+08": half, "text": len(table)}
    assert len(results.groups) == 2
    table.to_csv(tmp_path / "runs.csv", index=False)
    runs = load_runs(str(tmp_path / "runs.csv"), tmp_path)
    assert len(runs.table) == len(table)
    assert not any("data.unique_tokens" in note for note in runs.notes)


def test_the_plan_shows_the_epochs_of_each_run_or_budget(text_folder, tmp_path):
    sweep = validate_sweep(config(text_folder, unique=[200, None]), source="test")
    plan = prepare(sweep, Folders(out=tmp_path, name="text")).plan
    console = Console(width=200, record=True, file=StringIO())
    print_plan(console, plan, {}, every_run=False)
    printed = console.export_text()
    assert "null" in printed
    assert all(f"{cell.epochs:.2f}" in printed for cell in plan.cells)
    assert "2 of 4 runs see text again, up to 6.4 times" in printed


def test_groups_that_differ_in_more_than_their_text_stay_apart():
    table = text_sizes()
    other = table.assign(run_id=table["run_id"] + "-b", group=table["group"] + ", batch = 8")
    assert joint_runs(pd.concat([table, other])) is None
    assert joint_runs(table.drop(columns="data.unique_tokens")) is None


def test_groups_that_differ_in_two_things_at_once_stay_apart():
    table = text_sizes()
    both = table.assign(group=table["group"] + ", batch = " + (table["data.unique_tokens"] / 1e8).astype(str))
    assert joint_runs(both) is None
