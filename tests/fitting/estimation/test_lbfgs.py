"""The papers' way, and the public tables: no peer finds a better objective than ours."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    HUBER,
    SQUARED,
    ChinchillaLaw,
    SixParameterLaw,
    TestTimeLaw,
    check_table,
    law_data,
    point_estimate,
)
from isoloop.fitting.estimation.lbfgs import fit_by_lbfgs

PUBLIC = Path(os.environ.get("ISOLOOP_SHARED", Path(__file__).parents[4] / "shared")) / "data" / "isoflops_public.csv"


def test_the_papers_way_finds_a_known_truth():
    rng = np.random.default_rng(0)
    data = {"params": 10 ** rng.uniform(8, 10, 40), "tokens": 10 ** rng.uniform(9, 11, 40)}
    truth = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])
    data["loss"] = ChinchillaLaw().loss(truth, data)
    found = fit_by_lbfgs(ChinchillaLaw(), data, exponents=2)
    np.testing.assert_allclose(found.parameters, truth, rtol=1e-2)
    assert found.objective < 1e-10
    assert len(found.objectives) == 27 * 4


def test_laws_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"needs a law that is a sum of terms .*, but the six-parameter law is not"):
        fit_by_lbfgs(SixParameterLaw(), {})
    data = {"recurrence": np.arange(1.0, 9.0), "loss": 3 + np.exp(-np.arange(1.0, 9.0))}
    assert fit_by_lbfgs(TestTimeLaw(), data).objective == pytest.approx(
        point_estimate(TestTimeLaw(), data).objective, abs=1e-9
    )


def public(experiment, *, outliers):
    if not PUBLIC.is_file():
        pytest.skip("the public tables are not beside this repository")
    table = pd.read_csv(PUBLIC)
    rows = table[table["experiment"] == experiment]
    return law_data(check_table(rows if outliers else rows[~rows["outlier"].astype(bool)]))


@pytest.mark.parametrize(
    ("data_set", "objective", "outliers"),
    [
        ("epochai_chinchilla__massivetext__chinchilla", HUBER, True),
        ("marin_202603__comma__llama_2", SQUARED, False),
    ],
    ids=["chinchilla-huber-all", "comma-squared-kept"],
)
def test_the_papers_way_finds_nothing_better_on_public_tables(data_set, objective, outliers):
    data = public(data_set, outliers=outliers)
    ours, theirs = (
        point_estimate(ChinchillaLaw(), data, objective),
        fit_by_lbfgs(ChinchillaLaw(), data, objective, exponents=2),
    )
    assert ours.objective <= theirs.objective * (1 + 1e-6)
    assert np.mean(theirs.objectives <= theirs.objective * (1 + 1e-6)) > 0.5
    assert ours.converged


def test_besiroglus_points_give_about_their_parameters():
    """Besiroglu et al. 2024 fitted 240 points, of which the table holds the isoFLOP half."""
    published = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
    data = public("epochai_chinchilla__massivetext__chinchilla", outliers=False)
    ours = point_estimate(ChinchillaLaw(), data)
    assert ours.parameters[0] == pytest.approx(published[0], abs=0.05)
    assert ours.parameters[3] == pytest.approx(published[3], abs=0.05)
    theirs = ChinchillaLaw().loss(published, data)
    assert np.mean(np.abs(theirs / data["loss"] - 1)) < 0.01
