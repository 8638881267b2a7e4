"""A joint fit over sizes finds the law, the sizes and the recurrences of a known truth, and says what it can't."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting import (
    PUBLISHED_TRUTH,
    SIZES_TRUTH,
    IsoDepthLaw,
    LawFit,
    SizesFit,
    SweepFit,
    answer,
    fit_sizes,
    fit_sweep,
    fit_table,
    law_data,
    law_named,
    point_estimate,
    predict_any,
    predict_sizes,
    read_fit,
    read_runs,
    simulate_sizes,
    simulate_table,
)
from isoloop.fitting.answer.device import DeviceNeeds, Held
from isoloop.fitting.answer.limits import Limits
from isoloop.fitting.cost.family import ModelFamily
from isoloop.fitting.estimation.objective import HUBER
from isoloop.fitting.selection.choose import choose_table
from isoloop.fitting.selection.mixture import law_mixture
from isoloop.fitting.simulate import published_cost_model
from isoloop.fitting.sizes.alone import alone_caveats, sizes_alone
from isoloop.fitting.sizes.fit import _rival_caveats
from isoloop.fitting.surface.quantity import Quantity
from isoloop.fitting.surface.search import minimise_on_box
from tests.fitting.answer.surfaces import known_law

BUDGETS = (1e18, 4e18, 16e18, 64e18)
LOOPS = (1.0, 2.0, 4.0, 8.0)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulate_sizes(budgets=BUDGETS, mean_recurrences=LOOPS, recurrences=(1.0, 4.0, 8.0))


@pytest.fixture(scope="module")
def fit(table: pd.DataFrame) -> SizesFit:
    return fit_sizes(table, name="sizes", draws=40)


def true_best(family: ModelFamily, budget: float) -> tuple[float, float, float]:
    """Size, mean recurrence and loss of the best model by the true law."""
    at = np.array([getattr(SIZES_TRUTH, name) for name in ("E", "X", "Y", "x", "y", "phi")])

    def loss(logs: np.ndarray) -> np.ndarray:
        size, loops = np.moveaxis(np.exp(logs), -1, 0)
        return IsoDepthLaw().loss(at, family.columns(size, loops, family.tokens_for(budget, size, loops)))

    best, least = minimise_on_box(loss, [(np.log(3e6), np.log(5e9)), (0.0, np.log(50.0))])
    size, loops = np.exp(best)
    return float(size), float(loops), float(least)


def test_a_joint_fit_finds_the_worth_of_a_loop_and_the_best_models(fit: SizesFit) -> None:
    law = fit.laws.laws[0]
    phi = next(parameter for parameter in law.parameters if parameter.name == "phi")
    assert phi.interval is not None
    assert phi.interval[0] < SIZES_TRUTH.phi < phi.interval[1]
    assert np.diff(phi.interval) < 0.1
    assert [size.label for size in fit.sizes] == ["140m", "370m", "770m"]
    for point in fit.frontier[1:5]:
        size, loops, loss = true_best(fit.family, point.budget)
        assert point.params.value == pytest.approx(size, rel=0.15)
        assert point.params.interval is not None
        assert point.params.interval[0] / 1.1 < size < point.params.interval[1] * 1.1
        assert point.mean_recurrence.value == pytest.approx(loops, rel=0.1)
        assert point.loss.value == pytest.approx(loss, rel=2e-3)


@pytest.mark.parametrize(
    ("law", "parameters"),
    [
        ("iso-depth-truncated", (1.9, 90.0, 190.0, 0.29, 0.26, 0.6, 0.35)),
        ("loop-term", (1.7, 90.0, 0.12, 190.0, 0.29, 0.8, 0.26)),
    ],
)
def test_a_truth_of_another_form_is_found_by_the_weights_of_the_laws(law: str, parameters: tuple[float, ...]) -> None:
    runs = simulate_sizes(budgets=BUDGETS, mean_recurrences=(*LOOPS, 12.0))
    form, at = law_named(law), np.array(parameters)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(runs))
    runs = runs.assign(loss=form.loss(at, law_data(runs)) * np.exp(noise))
    fit = fit_sizes(runs, name="other", draws=40, through_budgets=False)
    assert fit.laws.best.form.name == law
    # The iso-depth law alone would put mu* elsewhere
    own, alone = fit.point(256e18), dataclasses.replace(fit, laws=law_mixture(fit.laws.laws[:1])).point(256e18)
    family = fit.family

    def loss(logs: np.ndarray) -> np.ndarray:
        size, loops = np.moveaxis(np.exp(logs), -1, 0)
        return form.loss(at, family.columns(size, loops, family.tokens_for(256e18, size, loops)))

    loops = float(np.exp(minimise_on_box(loss, [(np.log(3e6), np.log(5e10)), (0.0, np.log(50.0))])[0])[1])
    assert own.mean_recurrence.interval is not None
    assert own.mean_recurrence.interval[0] <= loops * 1.00001
    assert own.mean_recurrence.interval[1] >= loops / 1.00001
    assert abs(np.log(alone.mean_recurrence.value / loops)) > 0.15
    assert (fit.phi is None) == (law == "loop-term")


def test_a_law_whose_parameters_the_losses_do_not_tell_apart_is_not_weighed() -> None:
    """Two sizes give A N^-alpha two values, which any alpha fits; its refits would all stay at one of them."""
    runs = simulate_sizes(sizes=("140m", "770m"), budgets=BUDGETS, mean_recurrences=(*LOOPS, 12.0))
    form = law_named("loop-term")
    noise = 1e-3 * np.random.default_rng(1).standard_normal(len(runs))
    loss = form.loss(np.array([1.7, 90.0, 0.12, 190.0, 0.29, 0.8, 0.26]), law_data(runs)) * np.exp(noise)
    fit = fit_sizes(runs.assign(loss=loss), name="two", draws=40, through_budgets=False)
    assert "loop-term" not in {law.form.name for law in fit.laws.laws}
    assert any("depart from the iso-depth law" in caveat for caveat in fit.caveats)
    assert "; others are left out: the loop-term law needs 3 sizes or more" in fit.laws.reason
    with pytest.raises(ValueError, match="the loop-term law needs 3 sizes or more"):
        point_estimate(form, law_data(runs))


def test_each_measured_size_has_its_best_model_and_a_chance(fit: SizesFit) -> None:
    point = fit.point(16e18)
    assert sum(size.chance or 0.0 for size in point.sizes) == pytest.approx(1)
    best = min(point.sizes, key=lambda size: size.loss.value)
    assert best.extra_loss.value == 0
    assert all(size.extra_loss.value >= 0 for size in point.sizes)
    # One size alone: the best split of the law of that size
    cost, small = published_cost_model("140m"), point.sizes[0]
    columns = cost.columns(16e18, np.array([small.mean_recurrence.value]))
    assert small.tokens.value == pytest.approx(columns["tokens"][0], rel=1e-6)
    alone = fit.laws.optimum(cost, 16e18)
    assert small.loss.value == pytest.approx(float(alone.best.loss), rel=1e-6)


def test_the_frontier_grows_and_goes_beyond_the_runs(fit: SizesFit) -> None:
    assert [point.budget for point in fit.frontier] == [*BUDGETS, 128e18, 640e18]
    sizes = [point.params.value for point in fit.frontier]
    assert sizes == sorted(sizes)
    assert fit.growth is not None
    assert fit.growth.params.value == pytest.approx(0.5, abs=0.1)
    assert fit.growth.params.interval is not None


def _renamed(law: LawFit) -> LawFit:
    """The fit of a law that predicts held-out runs far worse, as far as caveats read it."""
    return dataclasses.replace(law, law="training")


def test_rivals_with_another_form_predict_held_out_runs_worse(fit: SizesFit) -> None:
    for comparison in fit.comparisons:
        errors = {error.method: error.mean_absolute_error for error in comparison.errors}
        assert errors["iso-depth law"] < 0.5 * errors["training law"]
        assert errors["iso-depth law"] < 0.5 * errors["chinchilla law"]
    assert [comparison.by for comparison in fit.comparisons] == ["largest budget", "size"]
    worse = dataclasses.replace(
        fit, laws=dataclasses.replace(fit.laws, laws=(_renamed(fit.laws.laws[0]),), weights=(1.0,))
    )
    assert any("iso-depth law predicts losses to" in caveat for caveat in _rival_caveats(worse))
    # A law of the mixture that the losses give no weight is a rival, too
    both = dataclasses.replace(fit.laws, laws=(_renamed(fit.laws.laws[0]), fit.laws.laws[0]), weights=(1.0, 0.0))
    unused = dataclasses.replace(fit, laws=both)
    assert any("iso-depth law predicts losses to" in caveat for caveat in _rival_caveats(unused))


def test_a_fit_is_equal_after_a_round_trip(fit: SizesFit, tmp_path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(fit.to_json())
    assert read_fit(path) == fit
    with pytest.raises(ValueError, match="isoloop-fit/4"):
        SweepFit.read(path)
    broken = fit.to_json().replace('"iso-depth"', '"iso-width"')
    with pytest.raises(ValueError, match="iso-width"):
        SizesFit.from_json(broken)


def test_a_table_in_a_file_keeps_the_names_of_its_sizes(table: pd.DataFrame, tmp_path) -> None:
    table.to_csv(tmp_path / "runs.csv", index=False)
    family = ModelFamily.from_table(read_runs(tmp_path / "runs.csv").frame)
    assert [member.label for member in family.members] == ["140m", "370m", "770m"]


def test_both_texts_have_the_answer(fit: SizesFit) -> None:
    screen = fit.summary(lines=40)
    assert len(screen.splitlines()) <= 40
    assert max(map(len, screen.splitlines())) <= 80
    for text in (screen, fit.report()):
        assert "iso-depth law: L = E + A (N_once + r^phi N_rec)^-alpha" in text
        assert "Best model" in text
        assert "(simulated)" in text
    assert "holding out each size in turn" in fit.report()


def test_a_screen_of_many_budgets_leaves_out_some_of_them_and_keeps_a_caveat(fit: SizesFit) -> None:
    many = [dataclasses.replace(fit.frontier[place // 4], budget=10.0 ** (18 + place / 8)) for place in range(24)]
    screen = dataclasses.replace(fit, frontier=tuple(many), name="a-sweep-with-quite-a-long-name").summary(lines=37)
    lines = screen.splitlines()
    assert lines[:2] == [
        "Joint fit of a-sweep-with-quite-a-long-name (simulated)",
        "  48 runs of 3 sizes, 1e+18 to 6.4e+19 FLOPs, exact accounting",
    ]
    assert len(lines) <= 37
    place = next(place for place, line in enumerate(lines) if line.startswith("Best models through ")) + 2
    shown = [line.split()[0] for line in lines[place : lines.index("", place)]]
    assert 3 <= len(shown) < 24
    assert lines[place - 2] == f"Best models through {len(shown)} of 24 budgets, with 95% intervals"
    assert (shown[0], shown[-1]) == ("1e+18", f"{many[-1].budget:.3g}")
    assert "  - " in screen.split("What to doubt")[1]


def test_each_size_is_fitted_alone_and_agrees_where_the_joint_law_is_true(table: pd.DataFrame, fit: SizesFit) -> None:
    assert [(own.label, own.runs, own.budget) for own in fit.alone] == [(size.label, 16, 64e18) for size in fit.sizes]
    text = fit.report()
    for own in fit.alone:
        single = fit_sweep(table[table["model.size"] == own.label], name="one", draws=40)
        best = predict_any(single, flops=64e18)
        assert own.mean_recurrence.value == pytest.approx(best.mean_recurrence, rel=1e-4)
        assert own.loss.value == pytest.approx(best.loss, rel=1e-6)
        joint = fit.at_size(own.label, own.budget)
        assert own.loss.value == pytest.approx(joint.loss.value, rel=0.003)
        assert f"  {own.label:<10}{own.runs:>5}  {own.mean_recurrence.text()}" in text
    assert alone_caveats(fit) == []


def test_the_worth_of_a_loop_names_the_weight_of_its_laws_and_stays_within_their_bounds(fit: SizesFit) -> None:
    first, other = fit.laws.laws[0], known_law("loop-term", np.array([1.7, 90.0, 0.12, 190.0, 0.29, 0.8, 0.26]))
    wide = dataclasses.replace(first, widening=1e3)
    mixed = dataclasses.replace(fit, laws=dataclasses.replace(fit.laws, laws=(wide, other), weights=(0.75, 0.25)))
    assert mixed.phi_weight == 0.75
    assert mixed.phi is not None
    assert mixed.phi.value == pytest.approx(first.value("phi"))
    assert mixed.phi.interval == (-1.0, 3.0)
    assert "phi by the laws that have one (75% of the weight): 0.4" in " ".join(mixed.summary(lines=60).split())


def test_sizes_alone_are_refitted_by_the_same_bootstrap(table: pd.DataFrame, fit: SizesFit) -> None:
    shares: list[float] = []
    settings = {"draws": 20, "seed": 0, "objective": HUBER, "progress": shares.append}
    by_rows, _ = sizes_alone(table, fit.family, 64e18, kind="rows", **settings)
    by_default, _ = sizes_alone(table, fit.family, 64e18, **settings)
    assert by_rows[0].loss.value == by_default[0].loss.value
    assert by_rows[0].loss.interval != by_default[0].loss.interval
    assert shares == pytest.approx([0, 1 / 3, 2 / 3] * 2)


def test_a_size_that_is_best_elsewhere_by_its_own_runs_is_named(fit: SizesFit) -> None:
    first, *others = fit.alone
    elsewhere = dataclasses.replace(first, mean_recurrence=Quantity(value=9.0, interval=(8.5, 9.5)))
    (caveat,) = alone_caveats(dataclasses.replace(fit, alone=(elsewhere, *others)))
    assert caveat.startswith("At 6.4e+19 FLOPs the runs of 140m alone put its best mean recurrence at 9 (8.5 to 9.5),")
    near = dataclasses.replace(first, mean_recurrence=fit.at_size(first.label, first.budget).mean_recurrence)
    assert alone_caveats(dataclasses.replace(fit, alone=(near, *others))) == []


def test_a_size_of_few_runs_has_no_fit_of_its_own_and_the_report_says_why(table: pd.DataFrame) -> None:
    few = pd.concat([table[table["model.size"] != "370m"], table[table["model.size"] == "370m"].iloc[::6]])
    fit = fit_sizes(few.reset_index(drop=True), name="few", draws=0)
    assert [own.label for own in fit.alone] == ["140m", "770m"]
    assert "  370m alone: " in fit.report()


def test_memory_pins_down_a_size_that_the_budget_leaves_open(fit: SizesFit) -> None:
    held = tuple(Held(weights=size.params, activations=1e3) for size in fit.sizes)
    needs = DeviceNeeds(sizes=tuple(size.params for size in fit.sizes), held=held)
    assert "the best size is at the end of the search" in answer(fit, 1e25).sentences[0]
    small = answer(fit, 1e25, limits=Limits(memory=6e8, needs=needs))
    assert small.verdict.answer == ()
    assert small.verdict.caveats == ("The best mean recurrence, 10.8, is beyond the measured 8.",)
    assert small.sentences[0].startswith("The best model for 1e+25 FLOPs in 0.6 GB at 2048 tokens of context has 298M")
    large = answer(fit, 1e25, limits=Limits(memory=6e12, needs=needs))
    assert large.limited is not None
    assert large.limited.best.at_bound == ("params",)
    assert "at 1e+25 training FLOPs in 6e+03 GB" in large.sentences[0]


def test_a_prediction_for_a_budget_is_the_frontiers_point(fit: SizesFit) -> None:
    best, point = predict_sizes(fit, flops=128e18), fit.point(128e18)
    assert best.optimal
    assert best.params == point.params.value
    assert best.params_interval == point.params.interval
    assert best.loss == pytest.approx(point.loss.value)
    assert best.flops == pytest.approx(128e18)
    assert "parameters" in best.report()
    assert any("beyond the largest fitted compute" in note for note in best.notes)


def test_given_numbers_of_a_model_stay(fit: SizesFit) -> None:
    of_size = predict_any(fit, size="370m", flops=16e18)
    assert of_size.params == fit.sizes[1].params
    assert of_size.params_interval is None
    assert of_size.mean_recurrence_interval is not None
    looped = predict_sizes(fit, mean_recurrence=8.0, flops=16e18)
    assert looped.mean_recurrence == 8
    assert looped.params is not None
    assert looped.params < predict_sizes(fit, flops=16e18).params
    whole = predict_sizes(fit, size="370m", mean_recurrence=4.0, tokens=1e10)
    cost = published_cost_model("370m")
    assert whole.flops == pytest.approx(float(cost.flops_for(1e10, 4.0)))
    truth = dataclasses.replace(
        SIZES_TRUTH,
        effective_params_fixed=cost.effective_params_fixed,
        effective_params_per_loop=cost.effective_params_per_loop,
    )
    assert whole.loss == pytest.approx(truth.loss(4.0, 1e10, 4.0), rel=1e-3)
    assert whole.loss_interval is not None
    assert whole.loss_interval[0] < truth.loss(4.0, 1e10, 4.0) < whole.loss_interval[1]
    few = predict_sizes(fit, size="370m", mean_recurrence=4.0, tokens=1e10, recurrence=2.0)
    assert few.loss == pytest.approx(truth.loss(4.0, 1e10, 2.0), rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes either tokens or flops, but got neither"),
        ({"flops": 1e18, "tokens": 1e9}, "takes either tokens or flops, but got both"),
        ({"tokens": 1e9, "size": "370m"}, "with tokens, the size and the mean recurrence must be given"),
        ({"flops": 1e18, "size": "13b"}, "a size must be one of 140m, 370m, 770m, but got '13b'"),
        ({"flops": 1e18, "size": "370m", "params": 1e8}, "one of size and params must be given"),
        ({"flops": 1e18, "mean_recurrence": 0.5}, "mean_recurrence must be at least 1"),
        ({"flops": -1.0}, "flops must be positive"),
        ({"flops": 1e18, "unique_tokens": 1e9}, "unique_tokens need a law of repeated text"),
        ({"flops": 1e18, "loss_at_mean": 3.0}, "loss_at_mean needs the size"),
    ],
)
def test_impossible_questions_are_refused(fit: SizesFit, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_sizes(fit, **arguments)


def test_a_fit_of_few_runs_determines_nothing() -> None:
    few = simulate_sizes(sizes=("140m", "370m"), budgets=(1e18, 4e18), mean_recurrences=(1.0, 4.0))
    fit = fit_sizes(few, name="few", draws=20, through_budgets=False)
    assert any("degrees of freedom" in each.reason for each in fit.verdict().answer)
    assert any("There are 2 sizes" in caveat for caveat in fit.caveats)
    assert "Not determined by these runs" in fit.summary()


def test_runs_of_the_largest_budget_are_predicted_without_them(table: pd.DataFrame) -> None:
    fit = fit_sizes(table, name="sizes", draws=20, hold_out_largest_budget=True)
    assert fit.held_out is not None
    assert fit.held_out.runs == 12
    assert fit.held_out.errors[0].mean_absolute_error < 0.3
    assert fit.fitted.flops[1] == pytest.approx(16e18, rel=1e-3)


def test_one_size_is_fitted_as_ever_and_several_together(table: pd.DataFrame) -> None:
    one = simulate_table(budgets=(1e18, 4e18, 16e18), mean_recurrences=LOOPS, recurrences=())
    alone = fit_sweep(one, name="one", draws=20)
    assert fit_table(one, name="one", draws=20) == alone
    assert isinstance(fit_table(table, name="sizes", draws=0, hold_out_largest_budget=True), SizesFit)
    with pytest.raises(ValueError, match="has several sizes"):
        fit_table(table, name="sizes", draws=0, independent=True)
    with pytest.raises(ValueError, match="is a fit of one architecture"):
        predict_any(alone, size="140m", flops=1e18)


def test_tables_without_sizes_are_refused_with_advice(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="those of 'one' have one; fit that size alone"):
        fit_sizes(table[table["model.size"] == "140m"], name="one")
    shape = [name for name in table if name.startswith(("effective", "flops_per", "forward", "backward"))]
    with pytest.raises(ValueError, match="needs the columns effective_params_fixed and effective_params_per_loop"):
        fit_sizes(table.drop(columns=shape), name="lost")
    with pytest.raises(ValueError, match="'unlooped' holds dense ones; use fit_sweep"):
        fit_sizes(table[table["mean_recurrence"] == 1], name="unlooped")


def test_sizes_that_all_loop_once_are_fitted_as_dense_models(table: pd.DataFrame) -> None:
    fit = fit_table(table[table["mean_recurrence"] == 1], name="unlooped", draws=0)
    assert isinstance(fit, SweepFit)
    assert fit.training is not None
    assert fit.training.law == "chinchilla"


def test_without_a_cost_model_a_table_is_fitted_by_its_own_flops(table: pd.DataFrame, fit: SizesFit) -> None:
    own = [name for name in table if name.startswith(("flops_per", "forward", "backward_loops"))]
    bare = table.drop(columns=own).assign(accounting="own")
    measured = fit_sizes(bare, name="bare", draws=0, through_budgets=False)
    assert measured.laws.laws[0].value("phi") == pytest.approx(fit.laws.laws[0].value("phi"), abs=1e-6)
    assert measured.point(16e18).params.value == pytest.approx(fit.point(16e18).params.value, rel=0.05)


def test_choose_prefers_the_law_of_the_truth_over_sizes(table: pd.DataFrame) -> None:
    laws = ("iso-depth", "loop-term", "training")
    choice = choose_table(table, laws=laws, by=("larger budgets", "size"), draws=0)
    assert choice.preferred.law == "iso-depth"
    assert [one.by for one in choice.cross_validations] == ["larger budgets", "size"]


def test_the_truncated_law_tells_loops_with_gradient_from_those_without(table: pd.DataFrame) -> None:
    data, law = law_data(table), law_named("iso-depth-truncated")
    truth = np.array([1.9, 90.0, 190.0, 0.29, 0.26, 0.6, 0.2])
    noise = np.exp(2e-4 * np.random.default_rng(0).standard_normal(len(data["loss"])))
    data["loss"] = law.loss(truth, data) * noise
    found = point_estimate(law, data)
    np.testing.assert_allclose(found.parameters[5:], truth[5:], atol=0.03)
    with pytest.raises(ValueError, match="all loops carry gradient; use the iso-depth law"):
        point_estimate(law, data | {"backprop_depth": data["mean_recurrence"]})
    with pytest.raises(ValueError, match="backprop_depth is missing"):
        point_estimate(law, {name: values for name, values in data.items() if name != "backprop_depth"})


def test_a_family_has_the_backprop_depths_of_its_runs(table: pd.DataFrame) -> None:
    family = ModelFamily.from_table(table)
    depths = family.columns(family.sizes[1], np.array([1.0, 2.0, 3.0, 4.0, 8.0, 16.0]), 1e9)["backprop_depth"]
    np.testing.assert_allclose(depths, [1, 1, 1.5, 2, 4, 8])


def test_a_truth_without_a_worth_of_loops_draws_as_ever() -> None:
    assert SIZES_TRUTH.phi == 0.46
    assert dataclasses.replace(PUBLISHED_TRUTH, phi=1.0).loss(4, 1e9, 4) == PUBLISHED_TRUTH.loss(4, 1e9, 4)
    assert simulate_table(seed=3).equals(simulate_table(dataclasses.replace(PUBLISHED_TRUTH, phi=None), seed=3))


def test_a_joint_fit_has_rollouts_as_a_single_one(table: pd.DataFrame) -> None:
    fit = fit_table(table, name="sizes", draws=0, rollouts=True)
    assert isinstance(fit, SizesFit)
    assert fit.rollouts is not None
    assert {row.method for row in fit.rollouts.rows} == {
        "iso-depth, iso-depth-six-parameter, iso-depth-truncated and loop-term laws"
    }
    assert "How far the laws after training can be trusted" in fit.report()
    assert SizesFit.from_json(fit.to_json()) == fit


def test_a_size_without_a_finished_run_is_left_out(table: pd.DataFrame) -> None:
    largest = table["effective_params_per_loop"] == table["effective_params_per_loop"].max()
    unfinished = table.assign(status=table["status"].where(~largest, "diverged"))
    unfinished.loc[largest, "loss"] = np.nan
    without = fit_sizes(table[~largest].reset_index(drop=True), name="two", draws=0)
    fit = fit_sizes(unfinished, name="three", draws=0)
    assert fit.laws.best.vector == pytest.approx(without.laws.best.vector)
    assert fit.family.sizes == without.family.sizes
    one = unfinished["effective_params_per_loop"] != unfinished["effective_params_per_loop"].min()
    with pytest.raises(ValueError, match="finished runs of several sizes, but those of 'one' have one"):
        fit_sizes(unfinished[one].reset_index(drop=True), name="one", draws=0)
