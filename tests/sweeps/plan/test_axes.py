"""Expansion of a grid: axes, points, exclusions, and grids around an optimum."""

import json

import pytest

from isoloop.sweeps.config.loading import load_sweep, parse_yaml, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.axes import RESERVED, grid_points, with_centres
from isoloop.sweeps.plan.grid import plan_sweep, planned_columns, simulated_corpus
from tests.sweeps.conftest import SIMULATED

GRID = {**SIMULATED, "name": "grid", "budgets": [1e10, 2e10], "mean_recurrences": [1, 2]}
VARIANTS = [
    {"name": "diagonal", "model.injection": "diagonal"},
    {"name": "rdm", "model.injection": "concat", "model.prelude_norm": False},
]


def sweep(**changes):
    return validate_sweep({**GRID, **changes}, source="test")


def sizes_and_means(config):
    return [(point.budget, point.mean_recurrence, *point.axes.values()) for point in grid_points(config)]


def test_axes_multiply():
    config = sweep(axes={"seed": [0, 1], "optimizer.learning_rate": [1e-3, 2e-3], "variant": VARIANTS})
    points = grid_points(config)
    assert len(points) == 4 * 2 * 2 * 2
    last = points[-1]
    assert last.axes == {"seed": 1, "optimizer.learning_rate": 2e-3, "variant": "rdm"}
    assert (last.settings.seed, last.settings.optimizer.learning_rate) == (1, 2e-3)
    assert (last.settings.model.injection, last.settings.model.prelude_norm) == ("concat", False)
    assert last.settings.model.width == config.model.width
    planned = plan_sweep(config, simulated_corpus)
    assert len({cell.run_id for cell in planned.cells}) == len(planned.cells) == len(points)
    assert set(planned.groups) == {
        f"optimizer.learning_rate = {rate}, variant = {name}" for rate in (1e-3, 2e-3) for name in ("diagonal", "rdm")
    }
    columns = planned_columns(planned, planned.cells[0])
    assert columns["group"] == planned.cells[0].group
    assert {"variant", "optimizer.learning_rate", "seed"} <= set(columns)


def test_seeds_alone_are_one_group():
    planned = plan_sweep(sweep(axes={"seed": [0, 1]}), simulated_corpus)
    assert planned.groups == ["all"]
    assert "group" not in planned_columns(planned, planned.cells[0])


def test_sizes_have_costs_of_their_own():
    axes = {"model.size": ["140m", "370m"]}
    planned = plan_sweep(sweep(budgets=[1e18], model="140m", batch=256, axes=axes), simulated_corpus)
    fixed = {cell.axes["model.size"]: planned_columns(planned, cell)["flops_per_token_fixed"] for cell in planned.cells}
    assert fixed["370m"] > 2 * fixed["140m"]
    assert {cell.spec.model.width for cell in planned.cells} == {768, 1024}


def test_points_stand_beside_the_product():
    config = sweep(
        points=[{"budget": 4e10, "mean_recurrence": 3, "seed": 7}, {"tokens": 64_000, "mean_recurrence": 2}],
        axes={"batch": [4, 8]},
    )
    assert sizes_and_means(config)[-4:] == [
        (4e10, 3, 4, 7), (4e10, 3, 8, 7), (None, 2, 4, 0), (None, 2, 8, 0),
    ]  # fmt: skip
    alone = validate_sweep(
        {key: value for key, value in GRID.items() if key not in ("budgets", "mean_recurrences")}
        | {"points": [{"budget": 2e10, "mean_recurrence": 2}]},
        source="test",
    )
    assert sizes_and_means(alone) == [(2e10, 2)]


def test_a_point_of_another_size_is_of_another_group():
    config = sweep(
        budgets=[1e18], model="140m", batch=256,
        points=[{"budget": 1e18, "mean_recurrence": 2, "model.size": "370m"}],
    )  # fmt: skip
    assert set(plan_sweep(config, simulated_corpus).groups) == {"model.size = 140m", "model.size = 370m"}


def test_what_a_run_is_given_makes_no_group():
    config = sweep(points=[{"budget": 4e10, "mean_recurrence": 2, "resources.processes": 2}])
    planned = plan_sweep(config, simulated_corpus)
    assert planned.groups == ["all"]
    assert {cell.resources.processes for cell in planned.cells} == {1, 2}


def test_exclusions_match_every_key():
    config = sweep(
        axes={"variant": VARIANTS, "seed": [0, 1]},
        exclude=[{"variant": "rdm", "budget": [1e10, 3e10]}, {"model.injection": "diagonal", "seed": 1}],
    )
    assert sizes_and_means(config) == [
        (1e10, 1, 0, "diagonal"), (1e10, 2, 0, "diagonal"),
        (2e10, 1, 0, "diagonal"), (2e10, 1, 0, "rdm"), (2e10, 1, 1, "rdm"),
        (2e10, 2, 0, "diagonal"), (2e10, 2, 0, "rdm"), (2e10, 2, 1, "rdm"),
    ]  # fmt: skip


def test_two_sweeps_share_what_they_have_in_common():
    one = plan_sweep(sweep(axes={"seed": [0, 1]}), simulated_corpus)
    other = sweep(
        name="other", axes={"seed": [1, 2]}, tracking={"experiment": "x"}, resources={"cpus": 2, "retries": 0},
        cluster={"nodes": 3}, storage="/somewhere", accounting="exact",
    )  # fmt: skip
    shared = {cell.run_id for cell in one.cells} & {cell.run_id for cell in plan_sweep(other, simulated_corpus).cells}
    assert shared == {cell.run_id for cell in one.cells if cell.spec.seed == 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": {"optimizer.learning_rat": [1]}}, "did you mean 'optimizer.learning_rate'"),
        (
            {"axes": {"variant": [{"model.injection": "addition"}]}},
            "a named axis must have a name",
        ),
        (
            {"axes": {"variant": [{"name": "x", "model.nothing": 1}]}},
            "must be settings, but axes.variant has 'model.nothing'",
        ),
        ({"axes": {"budget": [1e9]}}, "at the top level, but got axes.budget"),
        ({"axes": {"loss": VARIANTS}}, "that isn't a column of the run table, but got axes.loss"),
        ({"axes": {"my axis!": VARIANTS}}, "must have a name of letters"),
        ({"axes": {"resources.cpus": [1, 2]}}, "don't change a run's result"),
        ({"points": [{"budget": 1e10, "mean_recurrence": 2, "model": "140m"}]}, "name model.size or others"),
        ({"axes": {"seed": [1, 1]}}, "axes.seed has [1, 1]"),
        ({"axes": {"batch": [0]}}, "at batch = 0 breaks batch: input should be greater than or equal to 1, but got 0"),
        ({"axes": {"model.heads": [3]}}, "even multiple of heads"),
        ({"axes": {"seed": [1], "x": [{"name": "a", "seed": 2}]}}, "seed is on several"),
        ({"axes": {"model.injection": ["none"]}}, "breaks the configuration: a fixed-depth Transformer"),
        ({"points": [{"budget": 1e10}]}, "a point must have a mean_recurrence"),
        ({"points": [{"budget": 1e10, "mean_recurrence": 2, "sede": 1}]}, "did you mean 'seed'"),
        ({"points": [{"budget": 1e10, "mean_recurrence": 2, "seed": 1}], "axes": {"seed": [0]}}, "drop it there"),
        ({"exclude": [{"seed": 5}]}, "but got 'seed'; choose from budget"),
        ({"exclude": [{"budget": 3e10}]}, "must exclude a cell, but {'budget': 30000000000.0} matches none"),
    ],
)
def test_what_cannot_be_meant_is_named(changes, expected):
    with pytest.raises(ValueError, match=r"\w") as caught:
        plan_sweep(sweep(**changes), simulated_corpus)
    assert expected in str(caught.value)


def test_the_run_tables_own_columns_are_known():
    from isoloop.fitting.tables.contract import COLUMNS
    from isoloop.sweeps.tracking.schema import EXTRA_COLUMNS, RARE_COLUMNS

    assert {column.name for column in COLUMNS} <= RESERVED
    assert {*EXTRA_COLUMNS, *RARE_COLUMNS, "flops_trained"} <= RESERVED


def test_the_configuration_says_it_all(tmp_path):
    config = sweep(
        axes={"optimizer.muon_learning_rate": [None, 0.02], "variant": VARIANTS},
        points=[{"budget": 4e10, "mean_recurrence": 3}],
        exclude=[{"variant": "rdm", "mean_recurrence": 1}],
    )
    assert validate_sweep(parse_yaml(config_text(config)), source="stored") == config


def test_a_sweep_extends_another(tmp_path):
    (tmp_path / "tuned.yaml").write_text("optimizer: {learning_rate: 0.5, muon_momentum: 0.9}\nbatch: 16\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/base.yaml").write_text("extends: demo\nmodel: {core_layers: 2}\naxes: {seed: [0, 1]}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nextends: more/base.yaml\noptimizer: {learning_rate: 0.25}\naxes: {batch: [8]}\n")
    config = load_sweep(str(file))
    demo = load_sweep("demo")
    assert (config.name, config.budgets, config.model.core_layers) == ("mine", demo.budgets, 2)
    assert config.model.width == demo.model.width
    assert (config.optimizer.learning_rate, config.optimizer.muon_learning_rate) == (0.25, 0.04)
    assert config.axes == {"batch": (8,)}
    file.write_text("name: mine\nextends: tuned.yaml\ntokens: [1000]\nmean_recurrences: [1]\n")
    assert (load_sweep(str(file)).optimizer.muon_momentum, load_sweep(str(file)).batch) == (0.9, 16)
    file.write_text("name: mine\nextends: demo\ntokens: [100000]\nmodel: 140m\n")
    assert (load_sweep(str(file)).budgets, load_sweep(str(file)).model.width) == (None, 768)
    for text, expected in (
        ("extends: mine.yaml", "extends"),
        ("extends: [1]", "must name"),
        ("extends: no.yaml", "no file"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_sweep(str(file))


def test_axes_can_be_set_from_the_command_line():
    config = load_sweep("demo", ["axes.seed=[0, 1]", "axes.optimizer.learning_rate=[0.01, 0.02]"])
    assert config.axes == {"seed": (0, 1), "optimizer.learning_rate": (0.01, 0.02)}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """An output folder with a fit of simulated runs whose optimum is known."""
    from isoloop.fitting import fit_sweep
    from isoloop.fitting.simulate import simulate_table

    out = tmp_path_factory.mktemp("around")
    folders = Folders(out=out, name="published")
    folders.sweep.mkdir(parents=True)
    fit = fit_sweep(simulate_table(recurrences=()), name="published", draws=20)
    folders.fit(hold_out=False).write_text(fit.to_json())
    return out


class TestAround:
    """A grid centred on what a stored fit predicts."""

    @staticmethod
    def around(**changes):
        around = {"fit": "published", "width": 3.0, "count": 5, **changes}
        content = {key: value for key, value in GRID.items() if key != "mean_recurrences"}
        return validate_sweep(
            {**content, "budgets": [4e18, 64e18, 256e18], "model": "140m", "batch": 256, "around": around},
            source="test",
        )

    def test_recurrences_follow_the_predicted_optimum(self, out):
        config = with_centres(self.around(), Folders(out=out, name="grid"))
        centres = dict(config.around.centres)
        assert centres[64e18] / centres[4e18] == pytest.approx(16**0.40, rel=0.1)
        by_budget = {}
        for point in grid_points(config):
            by_budget.setdefault(point.budget, []).append(point.mean_recurrence)
        for budget, means in by_budget.items():
            assert len(means) == len(set(means)) == 5
            assert means[0] == pytest.approx(centres[budget] / 3, abs=0.51)
            if centres[budget] > 3:
                assert means[-1] == pytest.approx(centres[budget] * 3, abs=0.51)
        again = validate_sweep(parse_yaml(config_text(config)), source="stored")
        assert with_centres(again, Folders(out=out / "gone", name="grid")) == again == config

    def test_centres_stay_and_another_law_finds_its_own(self, out):
        folders = Folders(out=out, name="grid")
        config = with_centres(self.around(), folders)
        other = config.model_copy(update={"around": config.around.model_copy(update={"law": "training"})})
        assert with_centres(other, folders).around.centres != config.around.centres
        moved = ((4e18, 9.0), *config.around.centres[1:])
        wider = config.model_copy(
            update={
                "budgets": (*config.budgets, 512e18),
                "around": config.around.model_copy(update={"centres": moved}),
            }
        )
        assert with_centres(wider, folders).around.centres[:3] == moved
        assert with_centres(wider, folders).around.centres[3][0] == 512e18

    def test_the_training_laws_optimum_can_be_asked_for(self, out):
        isoflop, law = (
            dict(with_centres(self.around(law=law), Folders(out=out, name="g")).around.centres)
            for law in ("isoflop", "training")
        )
        assert law.keys() == isoflop.keys()
        assert law != isoflop

    def test_small_centres_get_all_their_recurrences(self, out):
        config = self.around(centres=[[4e18, 1.2], [64e18, 1.2], [256e18, 1.2]], width=1.5)
        assert [point.mean_recurrence for point in grid_points(config)][:5] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [({"fit": "absent"}, "there is no"), ({"fit": "published", "law": "guess"}, "isoflop' or 'training'")],
    )
    def test_what_is_missing_is_named(self, out, change, expected):
        with pytest.raises(ValueError, match=expected):
            with_centres(self.around(**change), Folders(out=out, name="grid"))

    def test_the_accounting_must_be_the_fits(self, out):
        config = self.around().model_copy(update={"accounting": "parcae-release"})
        with pytest.raises(ValueError, match="set accounting to exact"):
            with_centres(config, Folders(out=out, name="grid"))


def test_labels_are_plain(tmp_path):
    config = sweep(axes={"evaluation.recurrences": [[1, 2], [1, 2, 4]]})
    assert {json.loads(point.axes["evaluation.recurrences"])[-1] for point in grid_points(config)} == {2, 4}
