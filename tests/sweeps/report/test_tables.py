"""The table of runs on a page."""

from isoloop.fitting import fit_table, simulate_table
from isoloop.sweeps.report.tables import quality_table, runs_table


def test_runs_whose_loss_rose_after_their_best_step_are_marked():
    table = simulate_table(budgets=(1e18,), mean_recurrences=(1, 2, 4), recurrences=(), seed=0)
    table = table.assign(epochs=[2.0, 2.0, 0.5], best_step=100.0, best_loss=table["loss"] * [0.9, 1.0, 0.9])
    page = runs_table(table)
    labels = [heading.label for heading in page.columns]
    place = next(index for index, label in enumerate(labels) if label.startswith("loss"))
    assert labels[place + 1] == f"lowest {labels[place].removesuffix(', nats/token')}"
    marked = {row[0].text: row[place].under for row in page.rows if row[place].kind == "bad"}
    assert marked == {table["run_id"][0]: "rose after step 100"}


def test_quality_at_equal_flops_is_of_the_least_loss_and_of_one_loop():
    table = simulate_table(budgets=(1e18, 4e18, 16e18, 64e18), mean_recurrences=(1, 2, 4, 8), recurrences=(), seed=0)
    loss = table["loss"]
    table = table.assign(core=20 - 10 * (loss - loss.min()), core_se=0.5, core_baselines="v2")
    page = quality_table(table, fit_table(table, name="any", draws=20))
    assert [heading.label for heading in page.columns][2:] == [
        "Core (baselines v2), best µ",
        "Core (baselines v2), one loop",
    ]
    for row, (budget, runs) in zip(page.rows, table.groupby("budget"), strict=True):
        best, once = runs.loc[runs["loss"].idxmin()], runs[runs["mean_recurrence"] == 1].iloc[0]
        assert [cell.value for cell in row] == [budget, best["mean_recurrence"], best["core"], once["core"]]
        assert row[2].under == "± 0.5"
    without = table.drop(columns=["core", "core_se", "core_baselines"])
    assert quality_table(without, fit_table(without, name="any", draws=20)) is None


def test_the_headline_of_an_own_suite_is_its_mean():
    """The tasks stand before it in the table, by their names."""
    table = simulate_table(budgets=(1e18, 4e18, 16e18, 64e18), mean_recurrences=(1, 2, 4, 8), recurrences=(), seed=0)
    mean = 20 - 10 * (table["loss"] - table["loss"].min())
    table = table.assign(choose_accuracy=mean / 100, choose_accuracy_se=0.01, words_mean=mean, words_mean_se=0.5)
    page = quality_table(table, fit_table(table, name="any", draws=20))
    assert [heading.label for heading in page.columns][2:] == ["words_mean, best µ", "words_mean, one loop"]
