import pandas as pd
import pytest

from isoloop.fitting.tables.repetition import REPEATED_TEXT, repetition_caveats


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
    assert first.startswith(f"{REPEATED_TEXT}: 2 of 3 finished runs saw their training text 2 to 11 times")
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
