import json
from pathlib import Path

import pandas as pd
import pytest

from isoloop.fitting import SweepFit, fit_sweep, predict
from isoloop.fitting.selection.choose import choose_table
from isoloop.fitting.tables.repetition import REPEATED_TEXT, epochs_range, epochs_text, repetition_caveats
from isoloop.fitting.tables.runs import finished_rows, read_runs
from tests.run_tables import dense_table

DATA_CONSTRAINED = Path(__file__).resolve().parents[4] / "shared" / "data" / "data_constrained_train.csv"


def table(epochs, **more):
    n = len(epochs)
    return pd.DataFrame({"status": ["finished"] * n, "tokens": [1e6] * n, "epochs": epochs, **more})


@pytest.mark.parametrize(
    "columns", [{"epochs": [0.5, 1.0]}, {"unique_tokens": [1e6, 2e6]}, {"epochs": [None, None]}, {}]
)
def test_new_text_has_no_caveat(columns):
    assert repetition_caveats(pd.DataFrame({"status": ["finished"] * 2, "tokens": [1e6, 1e6], **columns})) == []


def test_the_caveat_counts_runs_and_gives_their_epochs():
    first, mixed = repetition_caveats(table([0.5, 2.0, 11.0]))
    assert first.startswith(f"{REPEATED_TEXT}: 2 of 3 fitted runs saw their training text 2 to 11 times")
    assert "beyond about 4 epochs" in first
    assert mixed.startswith("1 of them saw each token at most once and 2 saw some more often")


def test_epochs_follow_from_unique_tokens():
    runs = table([None, 3.0], unique_tokens=[2e5, 1.0])
    assert "training text 3 to 5 times" in repetition_caveats(runs)[0]


def test_a_run_that_did_not_finish_does_not_count():
    runs = table([9.0, 0.5])
    runs.loc[0, "status"] = "diverged"
    assert repetition_caveats(runs) == []


def test_epochs_that_differ_within_a_budget_are_named():
    assert "At 1 budget the epochs differ" in repetition_caveats(table([1.5, 3.0, 4.0, 4.0], budget=[1, 1, 2, 2]))[1]
    assert len(repetition_caveats(table([3.0, 3.0], budget=[1, 1]))) == 1


def test_epochs_range_is_that_of_runs_that_know_it():
    assert epochs_range(table([0.25, None, 11.0])) == (0.25, 11.0)
    assert epochs_range(table([0.25, None, 1.0])) is None
    assert epochs_range(pd.DataFrame({"tokens": [1.0]})) is None
    assert [epochs_text(epochs) for epochs in (0.25, 11.04, 999.4, 2999.7)] == ["0.25", "11", "999", "3,000"]


def test_the_fit_of_a_table_with_unique_tokens_alone_says_so_everywhere():
    runs = dense_table()
    fit = fit_sweep(runs.assign(unique_tokens=runs["tokens"].max() / 11), name="repeated", draws=0)
    low = 11 * runs["tokens"].min() / runs["tokens"].max()
    assert fit.fitted.epochs == pytest.approx((low, 11))
    assert f"\n  epochs         {low:.3g} to 11 (see caveats)\n" in fit.report()
    assert any(caveat.startswith(REPEATED_TEXT) for caveat in fit.caveats)
    best = predict(fit, params=1e9, tokens=1e10)
    assert "this is for a text of 4.6e+09 tokens, which is seen 2.17 times" in best.notes
    by_other_law = fit_sweep(
        runs.assign(unique_tokens=runs["tokens"].max() / 11), name="L(N, D)", law="chinchilla", draws=0
    )
    note = "fitted to runs that saw their text up to 11 times (see the fit's caveats)"
    fit = by_other_law
    assert note in predict(fit, flops=1e20).notes
    assert f"  Note: {note}.\n" in predict(fit, params=1e9, tokens=1e10).report()
    assert SweepFit.from_json(fit.to_json()) == fit

    # A fit of text that was seen once, as older versions stored it too
    once = fit_sweep(runs, name="once", draws=0)
    assert once.fitted.epochs is None
    assert "epochs" not in once.report()
    stored = json.loads(once.to_json())
    del stored["fitted"]["epochs"]
    assert SweepFit.from_json(json.dumps(stored)) == once
    assert not [note for note in predict(once, flops=1e20).notes if "saw their text" in note]


@pytest.mark.skipif(not DATA_CONSTRAINED.exists(), reason="the published table is not there")
def test_published_runs_on_repeated_text_are_named():
    """Muennighoff et al. 2023: up to 3,000 passes; the small models that lose 2 times the usual are fitted, too."""
    runs = read_runs(DATA_CONSTRAINED).frame
    assert (len(runs), len(finished_rows(runs))) == (161, 161)
    assert epochs_range(finished_rows(runs)) == (1, 3000)
    few = {"laws": ["chinchilla"], "by": ["row"], "draws": 0}
    for caveats in (fit_sweep(runs, name="published", draws=0).caveats, choose_table(runs, **few).caveats):
        assert any(
            text.startswith(f"{REPEATED_TEXT}: 134 of 161 fitted runs saw their training text 1.8 to 3,000 times")
            for text in caveats
        )
