"""Errors of rollouts by distance: bins, bias and coverage are what they say, and so are rankings and sentences."""

import dataclasses

import numpy as np
import pytest

from isoloop.fitting import PUBLISHED_TRUTH, cross_validate, fit_sweep, simulate_table
from isoloop.fitting.selection.distance import distance_table, errors_by_distance, rollout_scores, trust_sentences
from isoloop.fitting.selection.mixture import MixturePredictor
from isoloop.fitting.tables.runs import law_data

BUDGETS = 1e18 * 2.0 ** np.arange(6)


@dataclasses.dataclass(frozen=True)
class Drifting:
    """A method whose predictions are off by a known share for each doubling beyond the fitted compute."""

    name: str
    drift: float = 0.0
    noise: float = 0.0
    half: float = 0.004

    def predict(self, fitted, held_out):
        octaves = np.log2(held_out["budget"] / fitted["budget"].max())
        rng = np.random.default_rng(len(fitted["loss"]))
        off = self.drift * octaves + self.noise * rng.standard_normal(len(octaves))
        loss = held_out["loss"] * (1 + off)
        return loss, (loss * (1 - self.half), loss * (1 + self.half))


@pytest.fixture(scope="module")
def data():
    budgets = np.repeat(BUDGETS, 6) * np.random.default_rng(0).uniform(0.995, 1.005, 36)
    return {
        "budget": budgets,
        "tokens": budgets / 6e8,
        "loss": 3.0 + 1e18 / budgets,
        "run_id": np.arange(36).astype(str),
    }


def rollouts(data, *methods):
    return cross_validate(data, methods, "larger budgets").rows


def test_errors_are_signed_and_by_distance(data):
    rows = rollouts(data, Drifting("low", drift=-0.002))
    found = errors_by_distance(rows)
    assert [round(error.high) for error in found] == [2, 4, 8, 16]
    assert [error.rows for error in found] == [24, 18, 12, 6]
    assert [error.cutoffs for error in found] == [4, 3, 2, 1]
    for octave, error in enumerate(found, start=1):
        assert error.bias == pytest.approx(-0.2 * octave, abs=0.01)
        assert error.mean_absolute_error == pytest.approx(0.2 * octave, abs=0.01)
        assert error.largest == pytest.approx(0.2 * octave, abs=0.01)
    # An interval of .4% on either side holds an error of .2%, and not one of .6% or .8%.
    assert found[0].coverage == 1.0
    assert [error.coverage for error in found][2:] == [0.0, 0.0]
    assert len(distance_table(rows)) == 5


def test_budgets_that_grow_otherwise_keep_their_distances(data):
    tenfold = {**data, "budget": np.repeat(1e17 * 10.0 ** np.arange(6), 6)}
    found = errors_by_distance(rollouts(tenfold, Drifting("any")))
    assert [error.distance for error in found] == ["10x", "100x", "1e+03x", "1e+04x"]
    fine = {**data, "budget": np.repeat(1e17 * 1.5 ** np.arange(6), 6)}
    assert [error.distance for error in errors_by_distance(rollouts(fine, Drifting("any")))] == [
        "1.5x",
        "2.25 to 3.38x",
        "5.06x",
    ]


def test_how_far_it_can_be_trusted_is_said(data):
    near, far = trust_sentences(rollouts(data, Drifting("law", drift=0.0015)))
    assert near.startswith("Rollouts: up to 4.0")
    assert "bias +0.21%), and 95% intervals held 100% of 42." in near
    assert far.startswith("From 7.9")
    assert far.endswith("95% intervals held 0% of 18: too few, so don't trust the intervals there.")
    (only,) = trust_sentences(rollouts(data, Drifting("law", drift=0.0005)))
    assert only.startswith("Rollouts: up to 16")
    (never,) = trust_sentences(rollouts(data, Drifting("law", drift=0.01)))
    assert never.startswith("Rollouts: from 1.9")
    assert trust_sentences([]) == []


def test_laws_are_ranked_on_the_same_runs_with_an_error(data):
    worse, better = Drifting("worse", drift=0.004, noise=1e-4), Drifting("better", drift=0.002, noise=1e-4)
    found = rollout_scores(rollouts(data, worse, better))
    # Each distance counts the same: .2, .4, .6, .8% on average.
    assert found["better"].error == pytest.approx(0.5, abs=0.02)
    assert found["worse"].behind == pytest.approx(0.5, abs=0.02)
    assert found["worse"].clearly_behind
    assert not found["better"].clearly_behind
    # Two methods that differ by luck alone are a tie.
    rows = rollouts(data, Drifting("a", noise=0.004), dataclasses.replace(Drifting("b"), noise=0.0041))
    scores = rollout_scores(rows)
    assert scores["b"].behind == pytest.approx(0.025 * scores["a"].error, rel=0.01)
    one_cutoff = [row for row in rollouts(data, worse, better) if row.fitted_to > 1.1e19]
    assert rollout_scores(one_cutoff)["worse"].behind_error is None
    assert not rollout_scores(one_cutoff)["worse"].clearly_behind
    assert rollout_scores([]) == {}


def test_the_standard_error_is_that_of_leaving_out_cutoffs(data):
    rows = rollouts(data, Drifting("worse", drift=0.004, noise=2e-3), Drifting("better", noise=1e-3))

    def lead(kept):
        by_method = rollout_scores([row for row in rows if row.fitted_to in kept])
        return by_method["worse"].error - by_method["better"].error

    cutoffs = sorted({row.fitted_to for row in rows})
    left_out = np.array([lead([each for each in cutoffs if each != cutoff]) for cutoff in cutoffs])
    expected = np.sqrt(3 / 4 * np.sum((left_out - left_out.mean()) ** 2))
    assert rollout_scores(rows)["worse"].behind_error == pytest.approx(expected)


def test_a_fit_has_the_rollouts_of_its_laws():
    """With the true law, errors are those of the noise: no bias, and intervals hold."""
    truth = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3)
    grid = {"budgets": tuple(1e18 * 2.0**k for k in range(5)), "mean_recurrences": (1, 2, 4, 8, 16)}
    table = simulate_table(truth, recurrences=(), seed=3, **grid)
    fit = fit_sweep(table, name="sweep", draws=200, rollouts=True)
    assert fit.rollouts.folds == 2  # of 3 cutoffs, 2 have 12 runs
    first, second = errors_by_distance(fit.rollouts.rows)
    assert (first.rows, second.rows) == (10, 5)
    assert first.mean_absolute_error < 0.4
    assert first.coverage > 0.7
    assert type(fit).from_json(fit.to_json()) == fit
    for text in (fit.report(), fit.summary()):
        assert "Rollouts: up to " in " ".join(text.split())
    # The rows are what the laws predict that are fitted below the cutoff.
    row = next(row for row in fit.rollouts.rows if row.fitted_to == 8e18)
    data = law_data(table)
    below, above = ({k: v[mask] for k, v in data.items()} for mask in (data["budget"] < 1e19, data["budget"] > 1e19))
    predicted, _ = MixturePredictor(law="training", draws=0).predict(below, above)
    assert row.predicted == pytest.approx(predicted[list(above["run_id"]).index(row.run_id)])


def test_a_fit_without_rollouts_says_why():
    table = simulate_table(budgets=(1e18, 2e18), mean_recurrences=(1, 2, 4), recurrences=())
    few = fit_sweep(table, name="few", draws=0, rollouts=True)
    assert few.rollouts is None
    assert few.why_missing("rollouts").startswith(
        "holding out larger budgets needs 2 smaller ones with 12 runs or more"
    )
    assert "without rollouts" in fit_sweep(table, name="few", draws=0).why_missing("rollouts")
