"""The benchmarks of fitting write what they measured, notice what is wrong, and go on where they were stopped."""

import dataclasses
import functools
from functools import partial

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.fitting import coverage, held_out, intervals, next_sizes, optimum, quality, sizes, speed, worlds
from benchmarks.fitting.__main__ import app
from benchmarks.fitting.cases import Case
from benchmarks.fitting.cpu_time import cpu_time
from benchmarks.fitting.peers import scipy_many_starts
from benchmarks.fitting.results import write_section
from benchmarks.fitting.tables import FILE, public_tables, simulated_points, table_of_123
from isoloop.fitting import HUBER, TrainingLaw, point_estimate, simulate_table
from isoloop.fitting.tables.runs import law_data

CASE = Case(run_noise=1e-3, budgets=4)
SLOW_PEERS = {"chinchilla": "left out of the tests", "lmfit": "left out of the tests"}
QUICK_BRUTE = partial(scipy_many_starts, starts=1)
"""Stands in for brute force, whose zooms take seconds and which test_peers.py holds against the others."""


@pytest.fixture
def public(tmp_path):
    """A folder with a table of the public ones' form: one experiment, a few of its rows marked as outliers."""
    points = simulated_points(63)
    frame = pd.DataFrame({name: values for name, values in points.items() if name != "run_id"})
    frame.assign(experiment="nobody__simulated__dense", outlier=frame.index < 3).to_csv(tmp_path / FILE, index=False)
    return tmp_path


def cells(text, first):
    """The cells of the first line of a table that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_speed_finds_our_refits_at_the_minima_and_the_trap_away_from_them(tmp_path, monkeypatch):
    less = {"_HOFFMANN_STARTS": 3, "_SLOW_ONES": 1, "_REPEATS": 1, "_FITS": 1, "_MANY_STARTS": 3, "_CAREFUL_STARTS": 3}
    for name, value in less.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "brute_grid", QUICK_BRUTE)
    monkeypatch.setattr(speed, "missing", lambda: SLOW_PEERS)
    text = speed.run(tmp_path, resamples=4, careful=1)
    assert "a simulated table, since the public one is not here" in text
    assert cells(text, "`point_estimate` and `refit`")[1:2] == ["4"]
    assert cells(text, "`point_estimate` and `refit`")[5] == "4 (100.0%)"
    assert cells(text, "one L-BFGS from the whole table's fit, scipy's tolerances")[5] == "0 (0.0%)"
    assert "chinchilla is left out" in text
    for law in ("chinchilla", "six-parameter", "training", "unified", "iso-depth", "test-time", "joint-test-time"):
        assert float(cells(text, law)[3].split()[0]) > 0


def test_optimum_says_whether_any_peer_is_lower(public, monkeypatch):
    monkeypatch.setattr(optimum, "missing", lambda: SLOW_PEERS)
    monkeypatch.setattr(optimum, "_HOFFMANN_STARTS", 1)
    monkeypatch.setattr(optimum, "_SIX_STARTS", 1)
    monkeypatch.setattr(optimum, "brute_grid", QUICK_BRUTE)
    monkeypatch.setattr(optimum, "scipy_many_starts", partial(scipy_many_starts, starts=3))
    text = optimum.run(public)
    assert ": reached" in text
    assert cells(text, "simulated")[1] == "63"
    assert cells(text, "simulated, no outliers")[1] == "60"

    def worse(*arguments):
        estimate = point_estimate(*arguments)
        return dataclasses.replace(estimate, parameters=estimate.parameters * 1.0001)

    monkeypatch.setattr(optimum, "point_estimate", worse)
    monkeypatch.setattr(optimum, "_OBJECTIVES", (HUBER,))
    monkeypatch.setattr(optimum, "public_tables", partial(public_tables, without_outliers=False))
    assert "**missed**" in optimum.run(public)


def test_held_out_compares_laws_with_minima(public):
    text = held_out.run(public, draws=40)
    header = cells(text, "table")
    assert [name.split(",")[0] for name in header[2:]] == [
        "chinchilla law",
        "six-parameter law",
        "chinchilla law",
        *2 * ["isoFLOP minima"],
    ]
    assert cells(text, "simulated")[1] == "7 of 63 at 3e+21"
    each = [float(cells(text, name)[2].split()[0]) for name in ("simulated", "simulated, no outliers")]
    assert float(cells(text, "**on average**")[2].split("**")[1]) == pytest.approx(np.mean(each), abs=1e-3)


def test_coverage_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Each sweep's intervals are found once, whatever the draws: what is tested is which are asked for again."""
    real = functools.cache(partial(intervals.intervals, draws=20))
    monkeypatch.setattr(intervals, "intervals", lambda case, number, draws: real(case, number))
    whole = coverage.run(tmp_path / "whole", sweeps=2, draws=40, of=[CASE])
    done = []

    def stopped(case, number, draws):
        if done:
            raise KeyboardInterrupt
        done.append(number)
        return intervals.intervals(case, number, draws)

    original = intervals.intervals
    with monkeypatch.context() as patch:
        patch.setattr(coverage, "intervals", type("Stopped", (), {"intervals": staticmethod(stopped)}))
        patch.setattr(coverage, "fingerprint", lambda module: "code")
        with pytest.raises(KeyboardInterrupt):
            coverage.run(tmp_path / "parts", sweeps=2, draws=40, of=[CASE])
    assert done == [0]
    monkeypatch.setattr(coverage, "fingerprint", lambda module: "code")
    numbers = []
    monkeypatch.setattr(
        intervals, "intervals", lambda case, number, draws: numbers.append(number) or original(case, number, draws)
    )
    again = coverage.run(tmp_path / "parts", sweeps=2, draws=40, of=[CASE])
    assert numbers == [1]
    assert again[again.index("Wanted") :] == whole[whole.index("Wanted") :]
    coverage.run(tmp_path / "parts", sweeps=2, draws=40, of=[CASE])
    assert numbers == [1]
    # Other draws, or other code, and nothing that is kept counts.
    coverage.run(tmp_path / "parts", sweeps=1, draws=41, of=[CASE])
    monkeypatch.setattr(coverage, "fingerprint", lambda module: "other code")
    coverage.run(tmp_path / "parts", sweeps=1, draws=41, of=[CASE])
    assert numbers == [1, 0, 0]


def test_the_fingerprint_is_of_the_code_that_intervals_come_from(monkeypatch, tmp_path):
    before = coverage.fingerprint(intervals)
    assert coverage.fingerprint(intervals) == before
    other = tmp_path / "intervals.py"
    other.write_text("from isoloop.fitting.estimation.bootstrap import refit\n")
    monkeypatch.setattr(intervals, "__file__", str(other))
    assert coverage.fingerprint(intervals) != before


def test_worlds_tell_true_exponents_and_what_held_them():
    world = worlds.World(name="even")
    # The exponents of the exact optima of E, X, Y, x, y, which parabolas read as less.
    assert world.exponents == pytest.approx((0.463, 0.797), abs=2e-3)
    assert world.parabola_exponents == pytest.approx((0.420, 0.811), abs=2e-3)
    uneven = worlds.World(name="grows", noise=(5e-4, 1e-2))
    assert uneven.sd(np.array([1e18, 16e18])) == pytest.approx((5e-4, 1e-2))
    section = worlds.section({world: [worlds.held(world, number, 40) for number in range(2)]}, 2, 40, 1.0)
    shares = next(line for line in section.splitlines() if line.startswith("| even")).split("|")
    assert len(shares) == len(worlds.QUANTITIES) + 3
    half = [{"L beyond": (0.0, 1.0, 0.5, truth)} for truth in (0.5, 2.0)]
    assert worlds.coverage_of(half, "L beyond").share == 0.5
    assert worlds.coverage_of(half, "L beyond").error == pytest.approx(np.sqrt(1.5**2 / 2))


def test_shares_outside_what_is_wanted_are_marked():
    def records(inside):
        return [{"way": {"E": [0.0, 1.0, 0.5 if number < inside else 2.0], "x": None}} for number in range(20)]

    assert coverage._share(records(19), "way", "E") == (0.95, "95.0 ± 4.9", False)
    assert coverage._share(records(17), "way", "E") == (0.85, "**85.0 ± 8.0**", True)
    assert coverage._share(records(19), "way", "x")[1:] == ("", False)
    half = records(19) + [{"way": {"E": None}}] * 20
    assert coverage._share(half, "way", "E")[1] == "95.0 ± 4.9 (20)"
    assert coverage._width(records(19), "way", "E") == "200"
    found = {
        Case(run_noise=noise): [{"way": {"E": [0, width, 1], "x": [0, 1, 1]}}] for noise, width in ((1, 1), (2, 3))
    }
    assert coverage._growth(found, "way", ["E"]) == "; each step of noise widens every one"
    assert coverage._growth(found, "way", ["E", "x"]) == "; more noise does not always widen x"


def test_a_case_is_as_noisy_as_it_says():
    data = law_data(CASE.noiseless)
    np.testing.assert_allclose(TrainingLaw().loss(CASE.training, data), data["loss"], rtol=1e-12)
    assert len(np.unique(data["budget"])) == 4
    outlying = Case(run_noise=1e-3, outliers=0.3)
    pd.testing.assert_frame_equal(outlying.sweep(0), outlying.sweep(0))
    truth = outlying.noiseless["loss"]
    luck = np.concatenate([np.log(outlying.sweep(number)["loss"] / truth) for number in range(20)])
    without = [simulate_table(outlying.truth, seed=outlying.seed(number))["loss"] for number in range(20)]
    plain = np.concatenate([np.log(losses / truth) for losses in without])
    changed = luck != plain
    assert np.mean(changed) == pytest.approx(0.3, abs=0.05)
    assert np.std(luck[changed]) == pytest.approx(1e-2, rel=0.15)
    assert np.std(plain) == pytest.approx(1e-3, rel=0.1)
    assert outlying.seed(0) != Case(run_noise=1e-3).seed(0)
    # At every T the same luck.
    table = outlying.sweep(0)
    at_8 = np.log(table["loss_T8"] / outlying.noiseless["loss_T8"])
    np.testing.assert_allclose(at_8, np.log(table["loss"] / truth), atol=5e-5)
    beyond = [np.log(CASE.measured_beyond(number) / CASE.optimum.loss) for number in range(200)]
    assert np.std(beyond) == pytest.approx(1e-3, rel=0.15)


def test_a_section_is_written_into_its_place(tmp_path):
    path = tmp_path / "RESULTS.md"
    write_section(path, "held-out", "held")
    write_section(path, "speed", "slow\n\n### More\n\nof it")
    write_section(path, "speed", "fast\n\n### More\n\nof it")
    text = path.read_text()
    assert text.count("## Speed") == text.count("## Held-out") == 1
    assert text.index("fast") < text.index("### More") < text.index("## Held-out") < text.index("held")
    assert "slow" not in text
    assert "by `python -m benchmarks.fitting held-out`" in text


def test_the_command_writes_its_section_and_skips_what_is_not_there(public, tmp_path):
    results, cache = tmp_path / "RESULTS.md", tmp_path / "cache"
    gone = CliRunner().invoke(app, ["held-out", "--data", str(tmp_path / "gone"), "--results", str(results)])
    assert gone.exit_code == 0
    assert "held-out is skipped: the public tables are not at" in gone.output
    assert not results.exists()
    there = CliRunner().invoke(app, ["held-out", "--data", str(public), "--results", str(results), "--draws", "40"])
    assert there.exit_code == 0, there.output
    assert "## Held-out" in results.read_text()
    assert not cache.exists()


def test_tables_are_public_or_simulated(public, tmp_path):
    assert {name: len(data["loss"]) for name, data in public_tables(public).items()} == {
        "simulated": 63,
        "simulated, no outliers": 60,
    }
    name, data = table_of_123(tmp_path / "gone")
    assert "simulated" in name
    assert len(data["loss"]) == 123
    np.testing.assert_array_equal(data["loss"], simulated_points()["loss"])


def test_cpu_time_is_of_the_calls_that_count():
    calls = []
    took = cpu_time(lambda: calls.append(sum(range(10_000))), repeats=3, warm_up=2)
    assert len(calls) == 5
    assert 0 < took.least <= took.median <= took.most
    assert took.repeats == 3


def test_designs_over_sizes_are_held_against_further_budgets(tmp_path, monkeypatch):
    monkeypatch.setattr(next_sizes, "WORLDS", next_sizes.WORLDS[:1])
    text = next_sizes.run(tmp_path, sweeps=2, draws=40)
    grid = cells(text, "iso-depth: 2 sweeps")
    assert grid[1:3] == ["grid", "24"]
    assert "| iso-depth: 2 sweeps | design |" in text
    assert next_sizes.run(tmp_path, sweeps=2, draws=40).split("CPU")[1] == text.split("CPU")[1]  # from the cache


def test_sizes_says_how_often_a_joint_fit_holds_the_truth(tmp_path, monkeypatch):
    world = sizes.SizesWorld(name="quiet", sizes=sizes.TWO, noise=(1e-4, 1e-4))
    monkeypatch.setattr(sizes, "WORLDS", (world,))
    text = coverage.run_sizes(tmp_path, sweeps=2, draws=40)
    assert cells(text, "quiet")[0] == "quiet"
    found = sizes.held(world, 0, 40)
    low, high, estimate, truth = found["phi"]
    assert truth == 0.46
    assert low < estimate < high
    assert estimate == pytest.approx(truth, abs=0.01)
    assert found["N* beyond"][2] == pytest.approx(world.best["params"], rel=0.1)
    assert world.measured_beyond(0) == pytest.approx(world.best["loss"], rel=1e-3)


def test_quality_says_how_often_scores_of_new_models_are_inside(monkeypatch):
    names = ("task, ceiling 1", "mean of 22 tasks", "task, all models answer the same items")
    monkeypatch.setattr(quality, "WORLDS", tuple(world for world in quality.WORLDS if world.name in names))
    text = quality.run(sweeps=3, draws=40)
    for name in names:
        assert cells(text, name)[1] == "100"
        assert float(cells(text, name)[2].strip("*").split()[0].strip("*")) >= 66
    assert float(cells(text, "with standard errors")[1]) == 100
    # The items that all models share correlate their answers, and keep the share of right ones.
    world = quality.QualityWorld(name="same", same_items=True, items=20_000)
    accuracy = np.full(2, 0.7)
    right = world._right(accuracy, np.random.default_rng(0))
    assert right == pytest.approx(0.7, abs=0.02)
