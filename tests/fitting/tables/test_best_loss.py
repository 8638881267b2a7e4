"""The loss that fits read of a run whose loss rose after its best step."""

import numpy as np
import pytest

from isoloop.fitting import check_table, fit_sweep, simulate_table
from isoloop.fitting.selection.choose import choose_table
from isoloop.fitting.tables.best_loss import best_loss_notes, overfitted_rows, with_best_losses
from isoloop.fitting.tables.mapping import map_table, parse_columns
from isoloop.fitting.tables.reading import read_raw
from isoloop.fitting.tables.runs import finished_rows, law_data, read_runs, test_time_law_data

OVERFITTED = [3, 7, 12]


@pytest.fixture(scope="module")
def truth():
    """Losses before any rise, on text that was repeated a little."""
    return simulate_table(
        budgets=(1e18, 2e18, 4e18, 8e18), mean_recurrences=(1, 2, 4, 8), recurrences=(1, 4, 8), seed=0
    )


def text_of(table):
    """Unique tokens that every run sees twice or more."""
    return table["tokens"].min() / 2


@pytest.fixture(scope="module")
def risen(truth):
    """The same runs, of which three lost 5% after their best step."""
    names = ["loss", "loss_T1", "loss_T4", "loss_T8"]
    table = truth.assign(
        unique_tokens=text_of(truth), best_step=100.0, **{f"best_{name}": truth[name] for name in names}
    )
    table.loc[OVERFITTED, names] *= 1.05
    return table


def test_the_best_loss_is_read_at_every_recurrence_where_text_was_repeated(truth, risen):
    assert np.flatnonzero(overfitted_rows(risen)).tolist() == OVERFITTED
    read = finished_rows(check_table(risen))
    for name in ("loss", "loss_T1", "loss_T8"):
        assert read[name].tolist() == truth[name].tolist()
    assert law_data(check_table(risen))["loss"].tolist() == truth["loss"].tolist()
    ours, theirs = test_time_law_data(check_table(risen)), test_time_law_data(truth)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("loss", "loss_at_mean", "recurrence"))
    assert with_best_losses(with_best_losses(risen)).equals(with_best_losses(risen))
    assert check_table(risen)["loss"].tolist() == risen["loss"].tolist()  # the table keeps the last one


def test_a_fit_is_that_of_the_best_losses_and_says_so(truth, risen):
    note = "Losses of 3 of 16 runs are those of their best step, because their loss rose after it."
    without = truth.assign(unique_tokens=text_of(truth))
    fit, expected = (fit_sweep(table, name="n", law="training", draws=0) for table in (risen, without))
    assert fit.laws_after_training.best.vector.tolist() == expected.laws_after_training.best.vector.tolist()
    assert fit.isoflop.minima == expected.isoflop.minima
    assert fit.reading[0].startswith(note)
    assert expected.reading == ()
    assert any(caveat.startswith(note) for caveat in choose_table(risen, laws=["training", "loops"], draws=0).caveats)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"unique_tokens": 1e30}, None),
        ({"unique_tokens": np.nan}, "are those of the last step although `best_loss` is lower"),
        ({"best_loss": np.nan}, None),
        ({"status": "diverged"}, None),
    ],
    ids=["new text", "epochs unknown", "not recorded", "diverged"],
)
def test_every_other_run_is_read_at_its_last_step(risen, changes, note):
    table = check_table(risen.assign(**changes))
    assert with_best_losses(table) is table
    notes = best_loss_notes(table)
    assert notes == [] if note is None else note in notes[0]


def test_where_the_best_step_was_not_evaluated_a_loss_is_missing(risen):
    read = with_best_losses(risen.drop(columns="best_loss_T4"))
    assert np.flatnonzero(read["loss_T4"].isna()).tolist() == OVERFITTED


def test_a_file_has_them_too(risen, tmp_path):
    risen.to_csv(tmp_path / "runs.csv", index=False)
    table = read_runs(tmp_path / "runs.csv").frame
    assert finished_rows(table)["loss_T4"].tolist() == pytest.approx(finished_rows(risen)["loss_T4"].tolist())
    foreign = risen[["mean_recurrence", "tokens", "flops", "loss", "best_loss", "unique_tokens"]]
    foreign.rename(columns={"loss": "val_loss", "best_loss": "lowest"}).to_csv(tmp_path / "theirs.csv", index=False)
    mapped = map_table(read_raw(tmp_path / "theirs.csv"), parse_columns("best_loss=lowest")).frame
    assert np.flatnonzero(overfitted_rows(check_table(mapped))).tolist() == OVERFITTED


def test_a_best_loss_must_be_a_loss(risen):
    with pytest.raises(ValueError, match="`best_loss` must be finite and greater than 0"):
        check_table(risen.assign(best_loss=-1.0))
