"""Tables as people have them, through every command that takes runs: files of any kind, MLflow, wandb and trackio."""

import gzip
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import SweepFit
from isoloop.sweeps.runs import TableOptions, load_table
from isoloop.trainer.accounting import count_parameters, expected_loops, loop_cost
from isoloop.trainer.config import SIZES, RecurrenceConfig
from tests.commands import isoloop

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
BUDGETS, RECURRENCES = (1e18, 2e18, 4e18), (1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def runs():
    """Losses of looped models of 140m by a law in effective parameters and tokens, with FLOPs counted by `exact`."""
    rows, noise = [], np.random.default_rng(0)
    parameters, cost = count_parameters(SIZES["140m"]), loop_cost(SIZES["140m"], "exact")
    for budget in BUDGETS:
        for mean in RECURRENCES:
            tokens = budget / cost.flops_per_token(*expected_loops(RecurrenceConfig(mean=mean), "exact"))
            n = parameters.effective(mean)
            loss = 1.8 + 400 * n**-0.34 + 2000 * tokens**-0.37 + noise.normal(0, 1e-3)
            rows.append({"mean_recurrence": mean, "tokens": tokens, "flops": budget, "loss": loss})
    return pd.DataFrame(rows)


def fit_of(path):
    return SweepFit.read(Path(path).with_name(Path(path).name.split(".")[0] + ".fit.json"))


def same_fit(a, b):
    """The same isoFLOP minima, to the precision of text."""
    minima = [[curve.minimum for curve in fit.isoflop.curves] for fit in (a, b)]
    assert minima[0] == pytest.approx(minima[1], rel=1e-6)


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    """The four columns under our names, and their fit."""
    folder = tmp_path_factory.mktemp("plain")
    runs.to_csv(folder / "plain.csv", index=False)
    isoloop("fit", "plain.csv", "--draws", 20, cwd=folder)
    return fit_of(folder / "plain.csv")


def test_own_flops_are_enough(plain):
    assert plain.accounting == "own"
    assert plain.isoflop is not None
    assert len(plain.isoflop.included) == len(BUDGETS)
