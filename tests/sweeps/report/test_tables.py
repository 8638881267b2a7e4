"""The table of runs on a page."""

from isoloop.fitting import simulate_table
from isoloop.sweeps.report.tables import runs_table


def test_runs_whose_loss_rose_after_their_best_step_are_marked():
    table = simulate_table(budgets=(1e18,), mean_recurrences=(1, 2, 4), recurrences=(), seed=0)
    table = table.assign(epochs=[2.0, 2.0, 0.5], best_step=100.0, best_loss=table["loss"] * [0.9, 1.0, 0.9])
    page = runs_table(table)
    labels = [heading.label for heading in page.columns]
    place = next(index for index, label in enumerate(labels) if label.startswith("loss"))
    assert labels[place + 1] == f"lowest {labels[place].removesuffix(', nats/token')}"
    marked = {row[0].text: row[place].under for row in page.rows if row[place].kind == "bad"}
    assert marked == {table["run_id"][0]: "rose after step 100"}
