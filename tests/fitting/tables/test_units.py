"""Implausible units are asked about with the right factor, and plausible tables are left in peace."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import check_table, simulate_table
from isoloop.fitting.tables.mapping import map_table
from isoloop.fitting.tables.reading import read_raw
from isoloop.fitting.tables.units import unit_caveats

ROOT = Path(__file__).parents[3]


def dense(**factors):
    """Return a table of dense models with C = 6 N D, each column multiplied by its factor."""
    params = np.geomspace(1e8, 4e9, 8)
    tokens = 1e20 / 6 / params
    table = pd.DataFrame({"params": params, "tokens": tokens, "budget": 1e20})
    table["loss"] = 1.8 + 480 * params**-0.35 + 2085 * tokens**-0.37
    return table.assign(**{name: table[name] * factor for name, factor in factors.items()})


def looped(**factors):
    table = simulate_table(budgets=(1e18, 4e18), mean_recurrences=(1, 2, 4))
    table = table[["mean_recurrence", "tokens", "flops", "loss"]]
    return table.assign(**{name: table[name] * factor for name, factor in factors.items()})


@pytest.mark.parametrize(
    ("table", "endings"),
    [
        (dense(tokens=1e-9), ["if it is in units of 1e9, use --columns tokens=tokens*1e9."]),
        (dense(tokens=1e-6), ["--columns tokens=tokens*1e6."]),
        (dense(params=1e-6), ["--columns params=params*1e6."]),
        (dense(params=1e-9), ["--columns params=params*1e9."]),
        (dense(params=1e-6, tokens=1e-9), ["--columns params=params*1e6.", "--columns tokens=tokens*1e9."]),
        (dense(budget=1e-18), ["--columns budget=budget*1e18."]),
        (dense(budget=1e-9), ["if only its unit differs, use --columns budget=budget*1e9."]),
        (dense(budget=1 / 3), ["if it is C = 2 N D, of the forward pass alone, use --columns budget=budget*3."]),
        (dense(budget=5), ["check the units of budget, params and tokens, and what each counts."]),
        (dense().rename(columns={"params": "tokens", "tokens": "params"}), ["--columns params=tokens,tokens=params."]),
        (dense(tokens=np.repeat([1, 1e-9], 4)), ["were units mixed? If so, bring all rows to one unit."]),
        (dense(budget=np.repeat([1, 4], 4)), ["were units mixed? If so, bring all rows to one unit."]),
        (dense(loss=1 / 2.9), ["--columns loss=loss*2.9 for 4.2 bytes per token."]),
        (dense().assign(loss=lambda table: np.exp(table["loss"] + 0.5)), ["--columns perplexity=loss."]),
        (looped(tokens=1e-9), ["--columns tokens=tokens*1e9."]),
        (looped(flops=1e-18), ["--columns flops=flops*1e18."]),
        (looped(flops=1e-18, tokens=1e-9), ["--columns tokens=tokens*1e9.", "--columns flops=flops*1e18."]),
        (looped(flops=1e-9).assign(params_once=2e8, params_recurrent=5e7), ["--columns flops=flops*1e9."]),
    ],
)
def test_another_unit_is_asked_about_with_the_factor_that_fits(table, endings):
    caveats = unit_caveats(check_table(table))
    assert len(caveats) == len(endings)
    for caveat, ending in zip(caveats, endings, strict=True):
        assert caveat.endswith(ending), caveat


def test_plausible_tables_are_left_in_peace():
    tiny = pd.DataFrame({"params": [1e5, 2e5], "tokens": [1e6, 2e6], "flops": [6e11, 2.4e12], "loss": [4.0, 3.8]})
    tiny_looped = pd.DataFrame({"mean_recurrence": [1, 2], "tokens": [1e6, 5e5], "flops": 1e10, "loss": [4.0, 3.8]})
    for table in (dense(), looped(), simulate_table(), tiny, tiny_looped):
        assert unit_caveats(check_table(table)) == []
    for path in (ROOT / "results" / "python").glob("*/runs.csv"):
        assert unit_caveats(check_table(map_table(read_raw(path)).frame)) == []


def test_published_grids_are_left_in_peace(shared):
    for _, table in read_raw(shared / "data" / "isoflops_public.csv").frame.groupby("experiment"):
        columns = table[["params", "tokens", "budget", "loss"]].astype(float)
        assert unit_caveats(check_table(columns)) == []
