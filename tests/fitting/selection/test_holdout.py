"""Holding out by budget, size and row: what is hidden stays hidden, errors and coverage are what they say."""

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    ChinchillaLaw,
    LawPredictor,
    SixParameterLaw,
    choose,
    choose_table,
    cross_validate,
    read_runs,
    simulate_table,
)
from isoloop.fitting.estimation.law_fit import fit_law
from isoloop.fitting.estimation.lbfgs import fit_by_lbfgs
from isoloop.fitting.estimation.objective import HUBER, SQUARED
from isoloop.fitting.selection.choose import Candidate
from isoloop.fitting.selection.distance import RolloutScore, rollout_scores
from isoloop.fitting.selection.holdout import rollouts, splits
from isoloop.fitting.selection.misfit import MISFIT
from isoloop.fitting.selection.preference import Criteria, preferred_law
from isoloop.fitting.tables.runs import law_data

NOISY = dataclasses.replace(PUBLISHED_TRUTH, run_noise=1e-3)
TRUTH = np.array([1.8, 480.0, 2085.0, 0.35, 0.37])


@pytest.fixture(scope="module")
def dense():
    """Six budgets of eight sizes each, noise 2e-3 relative."""
    rng = np.random.default_rng(0)
    budgets = np.repeat(1e19 * 3.0 ** np.arange(6), 8)
    params = np.sqrt(budgets / 6 / 20) * np.tile(np.geomspace(0.2, 5, 8), 6)
    data = {"params": params, "tokens": budgets / 6 / params, "budget": budgets}
    data["loss"] = ChinchillaLaw().loss(TRUTH, data) * np.exp(2e-3 * rng.standard_normal(48))
    data["run_id"] = np.array([f"run {i}" for i in range(48)])
    return data


@dataclasses.dataclass
class Spy:
    """A method that remembers what it was shown."""

    name: str = "spy"

    def __post_init__(self):
        self.seen = []

    def predict(self, shown, hidden):
        self.seen.append((set(shown["run_id"]), set(hidden["run_id"])))
        loss = np.full(len(hidden["loss"]), 3.0)
        return loss, (loss - 0.1, loss + 0.1)


@pytest.mark.parametrize(("by", "count"), [("largest budget", 1), ("budget", 6), ("size", 40), ("row", 10)])
def test_what_is_predicted_was_not_shown(dense, by, count):
    spy = Spy()
    found = cross_validate(dense, [spy], by)
    assert found.folds == len(spy.seen) == count
    everything = set(dense["run_id"])
    for shown, hidden in spy.seen:
        assert not shown & hidden
        assert shown | hidden == everything
    held = set().union(*(hidden for _, hidden in spy.seen))
    largest = set(dense["run_id"][dense["budget"] == dense["budget"].max()])
    assert held == (largest if by == "largest budget" else everything)


def test_a_rollout_predicts_all_budgets_above_each_cutoff(dense):
    budgets = np.unique(dense["budget"])
    found = rollouts(dense)
    assert [set(dense["budget"][split.held_out]) for split in found] == [set(budgets[k:]) for k in range(2, 6)]
    assert [set(dense["budget"][split.fitted]) for split in found] == [set(budgets[:k]) for k in range(2, 6)]
    spy = Spy()
    cross_validation = cross_validate(dense, [spy], "larger budgets")
    assert cross_validation.folds == 4
    assert [len(shown) for shown, _ in spy.seen] == [16, 24, 32, 40]
    assert "all budgets above a cutoff, from those below (4 cutoffs)" in cross_validation.report()
    for row in cross_validation.rows:
        assert row.fitted_to in budgets
        assert row.budget == dense["budget"][dense["run_id"] == row.run_id][0]
        assert row.beyond == row.budget / row.fitted_to > 1


def test_a_rollout_fits_12_runs_or_more_and_takes_neighbours_of_many_budgets_together(dense):
    few = {name: values[np.arange(48) % 2 == 0] for name, values in dense.items()}
    assert [split.fitted.sum() for split in rollouts(few)] == [12, 16, 20]
    many = rollouts({"budget": np.repeat(1e18 * 2.0 ** np.arange(30), 4), "loss": np.full(120, 3.0)})
    assert len(many) <= 8
    assert many[-1].fitted.sum() + many[-1].held_out.sum() == 120
    with pytest.raises(ValueError, match="needs 2 smaller ones with 12 runs or more, but there are 10 runs at 2 budg"):
        rollouts({"budget": np.repeat([1e18, 1e19], 5), "loss": np.full(10, 3.0)})


def test_errors_and_coverage_are_those_of_the_rows(dense):
    found = cross_validate(dense, [Spy()], "budget")
    measured = np.array([row.measured for row in found.rows])
    assert found.errors[0].mean_absolute_error == pytest.approx(np.mean(100 * np.abs(3.0 / measured - 1)))
    assert found.errors[0].coverage == pytest.approx(np.mean(np.abs(measured - 3.0) <= 0.1))
    assert found.errors[0].rows == 48


def test_a_true_law_predicts_to_within_the_noise_and_covers(dense):
    found = cross_validate(dense, [LawPredictor(law="chinchilla", draws=100)], "budget")
    assert found.errors[0].mean_absolute_error < 0.5
    assert found.errors[0].coverage > 0.85


def test_a_method_that_cannot_is_left_out_and_said(dense):
    found = cross_validate(dense, [LawPredictor(law="training"), LawPredictor(law="chinchilla", draws=20)])
    assert [error.method for error in found.errors] == ["chinchilla law"]
    assert found.missing[0][0] == "training law"
    assert "effective_params is missing" in found.report()


def test_runs_that_miss_their_budget_by_a_step_are_of_it(dense):
    budgets = dense["budget"] * np.random.default_rng(0).uniform(1, 1.004, 48)
    assert len(splits({**dense, "budget": budgets}, "budget")) == 6


@pytest.mark.parametrize(
    ("change", "by", "words"),
    [
        ({"budget": np.full(48, 1e19)}, "largest budget", "needs 2 different ones"),
        ({"budget": np.full(48, np.nan)}, "budget", "needs the column `budget` in every row"),
        ({}, "colour", "by one of larger budgets, largest budget, budget, size, row, but got 'colour'"),
    ],
)
def test_nothing_to_hold_out_is_refused(dense, change, by, words):
    with pytest.raises(ValueError, match=words):
        cross_validate({**dense, **change}, [Spy()], by)


def test_the_law_that_made_the_losses_is_chosen(dense):
    found = choose(dense, ["chinchilla", "six-parameter"], draws=20)
    by_name = {one.fit.law: one for one in found.candidates}
    assert by_name["chinchilla"].bic < by_name["six-parameter"].bic
    text = found.report()
    for words in ("AIC - least", "Held out: the largest budget", "Held out: each budget in turn", "chinchilla law"):
        assert words in text


def test_the_choice_begins_with_the_law_to_use_and_why(dense):
    found = choose(dense, ["chinchilla", "six-parameter"], by=["largest budget"], draws=0)
    assert found.preferred.law == "chinchilla"
    assert found.report().startswith("Use the chinchilla law: ")
    assert found.bootstrap == "rows"
    # A sixth parameter that every criterion sees
    bent = SixParameterLaw().loss(np.array([1.5, 5000.0, 20000.0, 0.5, 0.55, 0.4]), dense)
    losses = bent * np.exp(2e-4 * np.random.default_rng(0).standard_normal(48))
    found = choose({**dense, "loss": losses}, ["chinchilla", "six-parameter"], by=["largest budget"], draws=0)
    assert found.preferred.reason.startswith("Use the six-parameter law: AIC, BIC and rollouts agree on it.")
    # The only law there is departs from it
    found = choose({**dense, "loss": losses}, ["chinchilla"], by=["largest budget"], draws=0)
    assert "it is the only one that could be fitted" in found.preferred.reason
    assert any(caveat.startswith(MISFIT) for caveat in found.caveats)


@pytest.mark.parametrize(
    ("errors", "apart", "bic", "law", "words"),
    [
        (
            (1.0, 0.5),
            0.1,
            (0.0, 2.0),
            "b",
            "larger budgets best (0.5% against 1% by the A law, 0.5 ± 0.1 apart). AIC and",
        ),
        (
            (1.0, 0.5),
            0.2,
            (0.0, 2.0),
            "a",
            "BIC prefers it, and rollouts don't decide: the B law has an error of 0.5% agai",
        ),
        (
            (1.0, 0.5),
            None,
            (0.0, 2.0),
            "a",
            "rollouts don't decide: the B law has an error of 0.5% against 1% by the A law",
        ),
        ((0.8, 1.0), 0.02, (2.0, 0.0), "a", "1% by the B law, 0.2 ± 0.02 apart). AIC and BIC prefer the B law."),
        (
            (None, None),
            None,
            (0.0, 2.0),
            "a",
            "which BIC prefers by 2.0; AIC and BIC disagree: AIC prefers the B law. There",
        ),
        ((0.8, 1.0), 0.02, (0.0, 2.0), "a", "it predicts larger budgets best"),
        ((0.8, 1.0), 0.5, (0.0, 2.0), "a", "BIC prefers it, and it predicts larger budgets best, though not clearly"),
    ],
)
def test_where_criteria_disagree_it_is_said_which_one_decides(errors, apart, bic, law, words):
    def score(error):
        behind = 0.0 if error is None else error - min(errors)
        return None if error is None else RolloutScore(error=error, behind=behind, behind_error=apart, cutoffs=4)

    laws = {
        name: Criteria(name=name.upper(), aic=1.0 - place, bic=bic[place], rollouts=score(errors[place]))
        for place, name in enumerate("ab")
    }
    found = preferred_law(laws, no_rollouts="no budgets")
    assert found.law == law
    assert words in found.reason


def test_few_runs_carry_their_warning(dense):
    few = {name: values[::5] for name, values in dense.items()}
    found = choose(few, ["chinchilla", "six-parameter"], by=["row"], draws=0)
    assert "Only 10 runs are fitted: so few can hardly tell one form of a law from another." in found.caveats
    assert found.bootstrap == "parametric"
    assert "There are no rollouts" in found.preferred.reason


def test_a_law_with_too_little_freedom_is_not_chosen(dense):
    bent = np.array([1.5, 5000.0, 20000.0, 0.5, 0.55, 0.4])
    losses = SixParameterLaw().loss(bent, dense) * np.exp(2e-4 * np.random.default_rng(0).standard_normal(48))
    found = choose({**dense, "loss": losses}, ["chinchilla", "six-parameter"], by=["larger budgets"], draws=0)
    by_name = {one.fit.law: one for one in found.candidates}
    assert by_name["six-parameter"].aic < by_name["chinchilla"].aic - 10
    scores = rollout_scores(found.cross_validations[0].rows)
    assert scores["six-parameter law"].behind == 0
    assert scores["chinchilla law"].clearly_behind
    assert found.preferred.law == "six-parameter"


def test_criteria_of_squared_error_are_those_of_normal_noise(dense):
    fit = fit_law(ChinchillaLaw(), dense, draws=0, seed=0, objective=SQUARED)
    residuals = np.log(dense["loss"] / fit.loss(dense))
    variance = np.mean(residuals**2)
    by_hand = np.sum(-0.5 * np.log(2 * np.pi * variance) - residuals**2 / (2 * variance))
    found = Candidate.of(fit)
    assert found.log_likelihood == pytest.approx(by_hand)
    assert found.aic == pytest.approx(12 - 2 * by_hand)
    assert found.bic == pytest.approx(6 * np.log(48) - 2 * by_hand)


def test_the_density_behind_hubers_criteria_integrates_to_one(dense):
    fit = fit_law(ChinchillaLaw(), dense, draws=0, seed=0)
    found = Candidate.of(fit)
    residuals = np.linspace(-0.2, 0.2, 400_001)
    rho = HUBER.value(residuals[:, None])
    # The scale at the greatest likelihood, by brute force, must give the same likelihood.
    best = -np.inf
    for scale in np.geomspace(0.2, 5, 200) * fit.objective / fit.rows:
        density = np.exp(-rho / scale)
        normal = np.sum(density) * (residuals[1] - residuals[0])
        best = max(best, -fit.objective / scale - fit.rows * np.log(normal))
    assert found.log_likelihood == pytest.approx(best, rel=1e-4)


def test_choose_reads_run_tables_and_tables_of_dense_models(dense, tmp_path):
    pd.DataFrame(dense).drop(columns="run_id").to_csv(tmp_path / "points.csv", index=False)
    dense_choice = choose_table(read_runs(tmp_path / "points.csv"), by=["largest budget"], draws=0)
    assert [one.fit.law for one in dense_choice.candidates] == ["chinchilla", "six-parameter"]
    simulate_table(NOISY, recurrences=()).to_csv(tmp_path / "runs.csv", index=False)
    looped = choose_table(read_runs(tmp_path / "runs.csv"), by=["largest budget"], draws=0)
    assert [one.fit.law for one in looped.candidates] == ["training", "looped-six-parameter", "iso-depth"]
    assert [law for law, _ in looped.missing] == ["chinchilla", "six-parameter"]


def test_the_papers_way_is_a_check_of_ours(dense, monkeypatch):
    """From the 27 starts of one value of each exponent, a ninth of what it takes otherwise."""
    monkeypatch.setattr("isoloop.fitting.selection.choose.fit_by_lbfgs", partial(fit_by_lbfgs, exponents=1))
    found = choose(dense, ["chinchilla", "six-parameter"], by=["largest budget"], draws=0, check=True)
    by_name = {one.fit.law: one for one in found.candidates}
    one = by_name["chinchilla"]
    assert one.by_lbfgs == pytest.approx(one.fit.objective, rel=1e-6)
    assert one.by_lbfgs >= one.fit.objective * (1 - 1e-6)
    assert by_name["six-parameter"].by_lbfgs is None
    assert found.report().count("check: the best of many starts") == 1


def test_without_budgets_rows_are_held_out(dense):
    without = {name: values for name, values in dense.items() if name != "budget"}
    assert [one.by for one in choose(without, ["chinchilla"], draws=20).cross_validations] == ["row"]


def test_no_law_at_all_is_refused(dense):
    with pytest.raises(ValueError, match="no law could be fitted: training: the training law reads"):
        choose(dense, ["training"])


def test_sizes_of_looped_runs_are_held_out_each():
    one, other = (law_data(simulate_table(NOISY, seed=seed, recurrences=())) for seed in (1, 2))
    for name in ("params", "params_once", "params_recurrent", "effective_params"):
        other[name] = 3 * other[name]
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    found = cross_validate(both, [LawPredictor(law="training", draws=20)], "size")
    assert found.folds == 2
    assert found.errors[0].rows == 84


def test_a_table_of_several_sizes_is_compared_without_minima(tmp_path):
    small = simulate_table(NOISY, recurrences=(), seed=1)
    large = simulate_table(NOISY, recurrences=(), seed=2)
    for name in ("effective_params_fixed", "effective_params_per_loop"):
        large[name] *= 3
    both = pd.concat([small, large.assign(run_id=large["run_id"] + "-large")])
    both.to_csv(tmp_path / "both.csv", index=False)
    found = choose_table(read_runs(tmp_path / "both.csv"), laws=["training"], by=["size", "row"], draws=20)
    assert [(one.by, one.folds) for one in found.cross_validations] == [("size", 2), ("row", 10)]
    assert "There are no isoFLOP minima to compare with: a fit takes the runs of one architecture" in found.report()


def test_a_run_far_off_is_left_out_of_the_choice_and_said(tmp_path):
    table = simulate_table(NOISY, recurrences=())
    table.loc[5, "loss"] = 11.0
    table.to_csv(tmp_path / "runs.csv", index=False)
    found = choose_table(read_runs(tmp_path / "runs.csv"), laws=["training"], by=["largest budget"], draws=0)
    assert found.rows == 41
    assert (
        "Left out, with a loss above 2 times or below 1/2 of the lower quartile of its budget's losses: 1 of 42 rows."
        in found.report()
    )


def test_two_laws_of_one_name_are_refused(dense):
    with pytest.raises(
        ValueError, match="must differ in name, but there are two called 'chinchilla law'; drop or rename"
    ):
        choose(dense, ["chinchilla", "six-parameter", "chinchilla"])
    with pytest.raises(ValueError, match="there are two called 'spy'"):
        cross_validate(dense, [Spy(), Spy()])
    with pytest.raises(ValueError, match="there are two called 'chinchilla law'"):
        choose(dense, ["chinchilla"], others=[Spy(name="chinchilla law")])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"draws": 19}, "draws must be 0 or at least 20, but got 19"),
        ({"draws": -1}, "draws must be 0 or at least 20, but got -1"),
        ({"seed": -1}, "a seed must be 0 or more, but got -1"),
    ],
)
def test_too_few_draws_and_negative_seeds_are_refused(dense, asked, words):
    with pytest.raises(ValueError, match=words):
        choose(dense, ["chinchilla"], **asked)
    with pytest.raises(ValueError, match=words):
        LawPredictor(law="chinchilla", **asked)


def test_very_many_sizes_are_held_out_with_their_neighbours():
    sizes = np.repeat(1e6 * 1.05 ** np.arange(200), 2)
    data = {"params": sizes, "loss": np.full(400, 3.0)}
    found = splits(data, "size")
    assert len(found) == 40
    assert (np.sum([split.held_out for split in found], axis=0) == 1).all()
    for split in found:
        held = np.flatnonzero(split.held_out)
        assert 0 < len(held) == held.max() - held.min() + 1


def test_the_report_says_how_many_folds(dense):
    assert (
        "each size in turn (40 folds, neighbours together where there are more)"
        in cross_validate(dense, [Spy()], "size").report()
    )
    for by, words in (("largest budget", "1 fold"), ("budget", "6 folds"), ("row", "10 folds")):
        assert f"({words})" in cross_validate(dense, [Spy()], by).report()


def test_one_budget_that_runs_miss_by_a_step_falls_back_to_rows(dense):
    budgets = 1e19 * np.linspace(1, 1.001, 48)
    assert [one.by for one in choose({**dense, "budget": budgets}, ["chinchilla"], draws=20).cross_validations] == [
        "row"
    ]


@pytest.mark.parametrize("simulated", [True, False])
def test_where_the_runs_of_a_choice_come_from_is_said(tmp_path, simulated):
    simulate_table(NOISY, recurrences=()).assign(simulated=simulated).to_csv(tmp_path / "runs.csv", index=False)
    text = choose_table(read_runs(tmp_path / "runs.csv"), laws=["training"], by=["largest budget"], draws=20).report()
    assert ("Every run is simulated" in text) == simulated
    assert "Compute is counted by `exact`; under another accounting the exponents differ." in text


def test_dense_tables_say_nothing_of_accounting(dense, tmp_path):
    pd.DataFrame(dense).drop(columns="run_id").to_csv(tmp_path / "points.csv", index=False)
    found = choose_table(read_runs(tmp_path / "points.csv"), laws=["chinchilla"], by=["largest budget"], draws=20)
    assert found.caveats == ()
