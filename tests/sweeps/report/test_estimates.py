"""The table of exponents and parameters on a page: the numbers and the words of the terminal's screen."""

from isoloop.fitting import fit_sweep
from isoloop.fitting.report.estimates import correlations
from isoloop.sweeps.report.tables import correlation_text, estimates_table
from tests.run_tables import dense_table, own_flops_table


def test_a_page_and_a_screen_show_the_same_estimates():
    for table, best in ((dense_table(), "N* ~ C^"), (own_flops_table(), "µ* ~ C^")):
        fit = fit_sweep(table, name="mine", draws=20)
        screen = " ".join(fit.summary().split()).replace("mu", "µ")
        rows = estimates_table(fit).rows
        law = fit.laws_after_training.best
        assert [row[0].text for row in rows] == [best, "D* ~ C^"] * 2 + [each.name for each in law.parameters]
        assert all(f"{name.text} {number.text} {number.under} " in screen for name, number, _ in rows)
        assert [row[2].text for row in rows[:4]] == ["isoFLOP power laws"] * 2 + ["without the parabola's bias"] * 2
        assert all(str(pair) in correlation_text(fit) for pair in correlations(law))
