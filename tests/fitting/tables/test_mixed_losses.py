"""Losses in two units are asked about by the rows that have the other one and the factor, and no run is left out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import ChinchillaLaw, check_table, choose_table, fit_sweep, simulate_table
from isoloop.fitting.tables.mixed_losses import TWO_UNITS, loss_mixture
from isoloop.fitting.tables.runs import finished_rows, read_runs
from isoloop.fitting.tables.units import unit_caveats

TRUTH = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
PUBLIC = Path(__file__).parents[4] / "shared" / "data"


def isoflops(noise=2e-3, runs=8):
    """Five budgets of eight sizes."""
    budgets = np.repeat(1e19 * 3.0 ** np.arange(5), runs)
    params = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.25, 4, runs), 5)
    return losses_of(params, budgets / 6 / params, noise).assign(budget=budgets)


def wide(rows, seed=0, noise=1e-2):
    """Models from 1M to 1B parameters at 5 to 200 tokens each, without budgets."""
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(1e6), np.log(1e9), rows))
    return losses_of(params, params * np.exp(rng.uniform(np.log(5), np.log(200), rows)), noise, seed)


def losses_of(params, tokens, noise, seed=0):
    model = {"params": params, "tokens": tokens}
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(params)))
    return pd.DataFrame({**model, "loss": ChinchillaLaw().loss(TRUTH, model) * scatter})


def in_bits(loss):
    return loss / np.log(2)


def in_bits_per_byte(loss):
    return loss / np.log(2) / 4.2


INTERLEAVED = np.arange(40) % 2 == 1
LARGE = np.arange(40) >= 24


@pytest.mark.parametrize(
    ("unit", "group", "words"),
    [
        (in_bits, INTERLEAVED, "those of the 20 runs in every second row from row 2 on are 1.4"),
        (in_bits, INTERLEAVED, "if so, multiply them by ln 2 = 0.693."),
        (in_bits, np.arange(40) < 20, "those of the 20 runs in rows 1 to 20 are"),
        (in_bits, LARGE, "those of the 16 runs with budget 2.7e+20, 8.1e+20 are"),
        (in_bits_per_byte, INTERLEAVED, "as nats per token are of bits per byte (ln 2 x 4.2 bytes per token)"),
        (in_bits_per_byte, INTERLEAVED, "those of the 20 runs in every second row from row 1 on are 2.9"),
        (
            np.exp,
            INTERLEAVED,
            "2 on are perplexities, since their logarithms lie on the trend of the other 20",
        ),
    ],
)
def test_runs_in_another_unit_are_named_with_the_factor(unit, group, words):
    table = isoflops()
    mixed = check_table(table.assign(loss=np.where(group, unit(table["loss"]), table["loss"])))
    caveat = unit_caveats(mixed)[0]
    assert caveat.startswith(TWO_UNITS)
    assert words in caveat
    assert len(finished_rows(mixed)) == 40


def test_a_label_that_tells_the_units_apart_is_named():
    table = isoflops().assign(tracker=np.where(np.random.default_rng(0).random(40) < 0.4, "wandb", "ours"))
    theirs = (table["tracker"] == "wandb").to_numpy()
    mixed = check_table(table.assign(loss=np.where(theirs, in_bits(table["loss"]), table["loss"])))
    found = loss_mixture(mixed)
    assert (found.other == theirs).all()
    assert np.log(found.losses / table["loss"]).abs().max() < 0.01
    assert f"those of the {theirs.sum()} runs with tracker 'wandb' are" in found.caveat


def test_looped_runs_in_bits_and_a_diverged_one_among_them():
    table = simulate_table(recurrences=(), seed=3)
    clean = table["loss"].to_numpy()
    table["loss"] = np.where(np.arange(42) % 2, in_bits(clean), clean)
    table.loc[10, "loss"] = 11.0
    fit = fit_sweep(table, name="bits", draws=0)
    assert fit.caveats[0].startswith(TWO_UNITS)
    assert fit.finished_runs == 41
    assert choose_table(table, laws=["training"], by=["largest budget"], draws=0).caveats[0].startswith(TWO_UNITS)


def test_bits_beside_bits_per_byte():
    table = isoflops()
    loss = np.where(INTERLEAVED, in_bits_per_byte(table["loss"]), in_bits(table["loss"]))
    caveat = loss_mixture(check_table(table.assign(loss=loss))).caveat
    assert "as bits per token are of bits per byte (4.2 bytes per token)" in caveat
    assert "and the losses of the other 20 by 2.9" in caveat


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rows", [15, 91])
def test_no_small_model_is_left_out_and_no_unit_asked_about(rows, seed):
    table = wide(rows, seed)
    assert table["loss"].max() > 2 * table["loss"].quantile(0.25)
    checked = check_table(table)
    assert unit_caveats(checked) == []
    assert len(finished_rows(checked)) == rows
    # Runs that diverged, at sizes where others learnt
    rng = np.random.default_rng(seed)
    few = rng.choice(np.flatnonzero(table["params"] > 3e7), max(2, rows // 10), replace=False)
    table.loc[few, "loss"] = rng.uniform(10.0, 11.0, len(few))
    checked = check_table(table)
    assert unit_caveats(checked) == []
    assert set(checked["run_id"]) - set(finished_rows(checked)["run_id"]) == set(checked["run_id"].iloc[few])


def test_perplexities_below_12_are_asked_about():
    large = losses_of(np.geomspace(2e9, 5e10, 12), np.geomspace(4e11, 1e12, 12), 1e-3)
    assert unit_caveats(check_table(large)) == []
    text = " ".join(unit_caveats(check_table(large.assign(loss=np.exp(large["loss"])))))
    assert np.exp(large["loss"]).median() < 12
    assert "more than nats per token of models like these, which have about 2." in text
    assert "use --columns perplexity=loss." in text


def test_losses_whose_unit_is_stated_are_believed():
    table = isoflops()
    mixed = table.assign(loss=np.where(INTERLEAVED, in_bits(table["loss"]), table["loss"]), loss_unit="nats per token")
    assert loss_mixture(check_table(mixed)) is None


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public tables are not here")
def test_public_tables_are_in_one_unit():
    tables = [read_runs(PUBLIC / f"{name}_train.csv").frame for name in ("farseer", "data_constrained")]
    names = pd.read_csv(PUBLIC / "isoflops_public.csv")["experiment"].unique()
    tables += [read_runs(PUBLIC / "isoflops_public.csv", experiment=name).frame for name in names]
    assert [loss_mixture(table) for table in tables] == [None] * 6
    assert [len(finished_rows(table)) for table in tables] == [404, 161, 123, 85, 85, 88]
