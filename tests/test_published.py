"""results/published: well-formed, sourced, and in line with the accounting, the presets and the simulated truth."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from isoloop.fitting.simulate import (
    PUBLISHED_BUDGETS,
    PUBLISHED_RECURRENCES,
    PUBLISHED_TRUTH,
    published_cost_model,
)
from isoloop.trainer.accounting import count_parameters, flops_per_token
from isoloop.trainer.config import SIZES, ModelConfig, OptimizerConfig, RecurrenceConfig, ScheduleConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "published"
FILES = sorted(FOLDER.glob("*.csv"))
UNITS = {
    "1",
    "%",
    "FLOP",
    "MFLOP per token",
    "channels",
    "heads",
    "layers",
    "loops",
    "nats per token",
    "parameters",
    "perplexity",
    "score",
    "sequences",
    "tokens",
}
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def published(name):
    return pd.read_csv(FOLDER / f"{name}.csv", dtype={"unit": str})


def values(name, **where):
    """The `value` column of the rows where every named column has the named value."""
    table = published(name)
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert len(table), f"no row of {name}.csv has {where}"
    return table.value.tolist()


def value(name, **where):
    (only,) = values(name, **where)
    return only


@EACH_FILE
def test_every_row_has_a_finite_value_a_known_unit_and_a_source(path):
    table = published(path.stem)
    assert {"quantity", "value", "unit", "source"} <= set(table.columns)
    assert set(table.unit) <= UNITS
    assert table.source.str.contains(r"20\d\d, arXiv:\d{4}\.\d{5}").all()
    diverged = table.outcome == "diverged" if "outcome" in table else pd.Series(False, table.index)
    assert np.isfinite(table.value[~diverged]).all()
    assert table.value[diverged].isna().all()


@EACH_FILE
def test_no_row_stands_twice(path):
    table = published(path.stem)
    about = table.columns.difference(["source", "remark", "value"] if path.stem != "grid" else ["source"])
    assert not table.duplicated(list(about)).any()


def test_the_readme_names_every_file():
    text = (FOLDER / "README.md").read_text()
    assert FILES
    assert [path.name for path in FILES if f"`{path.name}`" not in text] == []


def test_accounting_counts_as_the_release_does():
    for row in published("flops_per_token").itertuples():
        model = SIZES[row.size]
        assert model.context == row.context
        counted = flops_per_token(model, RecurrenceConfig(mean=row.mean_recurrence), row.accounting)
        assert round(counted / 1e6) == row.value


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_trainers(size):
    model, parts = SIZES[size], count_parameters(SIZES[size])
    own = {
        "width": model.width,
        "heads": model.heads,
        "channels per head": model.width // model.heads,
        "prelude layers": model.prelude_layers,
        "core layers": model.core_layers,
        "coda layers": model.coda_layers,
        "context": model.context,
        "vocabulary": model.vocabulary,
        "parameters": parts.total,
        "parameters of the token table": parts.token_table,
        "parameters of the value-embedding tables": parts.value_tables,
    }
    table = published("sizes")
    printed = table[table["size"] == size].set_index("quantity").value
    assert {name: printed[name] for name in own if name in printed} == {
        name: own[name] for name in own if name in printed
    }
    assert set(printed.index) - set(own) == {"mean recurrence", "tokens trained"}


def test_training_settings_are_the_defaults():
    optimizer, model = OptimizerConfig(), ModelConfig()
    own = {
        "AdamW beta 1": optimizer.adam_betas[0],
        "AdamW beta 2": optimizer.adam_betas[1],
        "AdamW eps": optimizer.adam_eps,
        "Muon momentum": optimizer.muon_momentum,
        "Muon weight decay at the start": optimizer.muon_weight_decay,
        "gradient clip": optimizer.gradient_clip,
        "decaying fraction of the schedule": ScheduleConfig().decay_fraction,
        "rotary base": model.rotary_base,
        "norm eps": model.norm_eps,
    }
    assert {name: value("training", quantity=name) for name in own} == own
    assert set(values("training", quantity="learning rate")) == {optimizer.learning_rate}


@pytest.mark.parametrize("size", ["140m", "370m"])
def test_presets_are_the_published_grid(size):
    preset = yaml.safe_load((ROOT / "sweeps" / "config" / "presets" / f"parcae-{size}.yaml").read_text())
    # YAML 1.1 reads 1e18, without a dot, as text.
    assert [float(budget) for budget in preset["budgets"]] == values("grid", size=size, quantity="budget")
    assert preset["mean_recurrences"] == values("grid", size=size, quantity="mean recurrence")
    assert preset["batch"] == value("training", quantity="batch")


def test_optima_are_points_of_the_grid():
    for row in published("optimal_recurrence").itertuples():
        assert row.value in values("grid", size=row.size, quantity="mean recurrence")
        assert row.flops in values("grid", size=row.size, quantity="budget")


def test_the_exponent_is_that_of_the_optima():
    """A line through optima that are rounded to the grid, so only roughly."""
    table = published("optimal_recurrence").query("size == '140m'")
    slope = np.polyfit(np.log(table.flops), np.log(table.value), 1)[0]
    assert slope == pytest.approx(value("exponents", exponent="gamma_mu"), abs=0.05)


def test_the_simulated_truth_has_the_published_losses():
    """Every one of a 140m model with mu = 8 at T = 1, 4, 8, to the digits that were published."""
    tokens = value("sizes", size="140m", quantity="tokens trained")
    printed = published("stability").query("model == '+ prelude norm'").set_index("recurrence").value
    assert {T: round(PUBLISHED_TRUTH.loss(8, tokens, T), 2) for T in printed.index} == printed.to_dict()


def test_the_simulated_truth_has_its_optima_where_they_were_published():
    """To the next point of the grid, on the grid."""
    assert values("grid", size="140m", quantity="mean recurrence") == list(PUBLISHED_RECURRENCES)
    assert values("grid", size="140m", quantity="budget") == list(PUBLISHED_BUDGETS)
    cost = published_cost_model()
    for budget in PUBLISHED_BUDGETS:
        losses = [PUBLISHED_TRUTH.loss(mu, float(cost.tokens_for(budget, mu)), mu) for mu in PUBLISHED_RECURRENCES]
        wanted = value("optimal_recurrence", size="140m", flops=budget)
        assert abs(int(np.argmin(losses)) - PUBLISHED_RECURRENCES.index(wanted)) <= 1, budget


def test_loss_and_perplexity_agree():
    """The 140m model of the ablation's last row and of the results by size, at T = 8."""
    perplexity = value("perplexity", size="140m", model="Parcae", quantity="validation perplexity")
    assert round(math.log(perplexity), 2) == value("stability", model="+ prelude norm", recurrence=8)


def test_the_docs_have_the_published_core_at_equal_flops():
    """docs/quality.md prints core_at_equal_flops.csv as a table: each row of it, and nothing else."""
    published = pd.read_csv(FOLDER / "core_at_equal_flops.csv", dtype=str)
    text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    rows = text.partition("| size | FLOPs | looped | fixed depth |\n| --- | --- | --- | --- |\n")[2].partition("\n\n")[
        0
    ]
    printed = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
    values = {
        (size, flops, model): value
        for size, flops, looped, fixed in printed
        for model, value in (("looped", looped), ("fixed depth", fixed))
    }
    assert values == published.set_index(["size", "flops", "model"])["value"].to_dict()
    assert len(published) == 2 * len(printed)
