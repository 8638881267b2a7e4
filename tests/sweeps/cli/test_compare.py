"""What `isoloop compare` takes for a sweep: a name, a group, a table, a fit; and what it was measured on."""

import pytest

from isoloop.fitting import PUBLISHED_TRUTH, SizesFit, fit_sizes, fit_sweep, simulate_sizes, simulate_table
from isoloop.sweeps.cli.figures import _compared_side, _validation_text, compare
from isoloop.sweeps.cli.options import file_name
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.runs import TableOptions
from isoloop.trainer.config import EvaluationConfig, ModelConfig, RunSpec
from tests.commands import only_svg


@pytest.fixture
def table():
    return simulate_table(PUBLISHED_TRUTH, budgets=(1e18, 2e18), mean_recurrences=(1, 2, 4), recurrences=())


def stored(folders, table):
    folders.sweep.mkdir(parents=True)
    table.to_csv(folders.table, index=False)
    return folders


def test_a_sweep_of_several_groups_must_say_which(table, tmp_path):
    sweep = stored(Folders(out=tmp_path, name="sizes"), table)
    for group in ("b", "a"):
        stored(sweep.group(group), table)
    with pytest.raises(ValueError, match="'sizes' has several; name one of: sizes/groups/a, sizes/groups/b"):
        _compared_side("sizes", tmp_path, 20, TableOptions(), [], Progress())[0]
    assert _compared_side("sizes/groups/a", tmp_path, 20, TableOptions(), [], Progress())[0].name == "sizes/groups/a"


def test_a_sweep_whose_groups_are_sizes_is_one_side_by_its_joint_fit(tmp_path):
    table = simulate_sizes(sizes=("140m", "370m"), budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4))
    sweep = stored(Folders(out=tmp_path, name="sizes"), table.assign(group="model.size = " + table["model.size"]))
    for size, part in table.groupby("model.size"):
        stored(sweep.group(f"model.size={size}"), part)
    fit = fit_sizes(table, name="sizes", draws=0, through_budgets=False)
    sweep.fit(hold_out=False).write_text(fit.to_json())
    side = _compared_side("sizes", tmp_path, 20, TableOptions(), [], Progress())[0]
    assert (side.fit, side.runs, side.sizes) == (fit, 18, ("140m", "370m"))
    alone = _compared_side(str(sweep.fit(hold_out=False)), tmp_path, 20, TableOptions(), [], Progress())[0]
    assert (alone.fit, alone.table) == (fit, None)
    fitted = []
    table.to_csv(tmp_path / "runs.csv", index=False)
    new = _compared_side(str(tmp_path / "runs.csv"), tmp_path, 20, TableOptions(), fitted, Progress())[0]
    assert isinstance(new.fit, SizesFit)
    assert fitted == [str(tmp_path / "runs.csv")]
    # An exported table of all groups is one side, too, and several that no law takes are refused before a fit
    exported = _compared_side(str(sweep.table), tmp_path, 20, TableOptions(), fitted, Progress())[0]
    assert (exported.sizes, exported.runs) == (("140m", "370m"), 18)
    table.assign(group=["a", "b"] * 9).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match="has several; keep the rows of one in a file of their own"):
        _compared_side(str(tmp_path / "runs.csv"), tmp_path, 20, TableOptions(), fitted, Progress())
    assert len(fitted) == 2
    with only_svg():
        compare("sizes", "sizes/groups/model.size=140m", out=tmp_path, flops=16e18, draws=20)
    text = (tmp_path / "compared" / "sizes-to-sizes-groups-model.size=140m" / "compare.txt").read_text()
    assert "A  sizes: 18 runs of 2 sizes (140m, 370m)" in text
    assert "Compute multiplier: FLOPs that A needs" in text


def test_the_stored_fit_is_taken_and_else_the_table_is_fitted(table, tmp_path):
    folders = stored(Folders(out=tmp_path, name="plain"), table)
    fitted = []
    side = _compared_side("plain", tmp_path, 20, TableOptions(), fitted, Progress())[0]
    assert fitted == ["plain"]
    assert len(side.fit.isoflop.included) > 0
    fit = fit_sweep(table, name="kept", draws=0)
    folders.fit(hold_out=False).write_text(fit.to_json())
    assert _compared_side("plain", tmp_path, 20, TableOptions(), fitted, Progress())[0].fit == fit
    assert fitted == ["plain"]
    with pytest.raises(ValueError, match="--draws is for a side that is fitted here, but plain and plain have stored"):
        compare("plain", "plain", out=tmp_path, draws=20)
    stored_fit = str(folders.fit(hold_out=False))
    assert _compared_side(stored_fit, tmp_path, 20, TableOptions(), [], Progress())[0].table is None
    small = stored(Folders(out=tmp_path, name="small"), table[table["mean_recurrence"] == 1])
    side = _compared_side(str(small.table), tmp_path, 20, TableOptions(), [], Progress())[0]
    assert (side.fit, side.name) == (None, "runs")
    assert "allows none" in side.why_no_fit


def test_what_losses_were_measured_on_comes_from_the_runs(table, tmp_path):
    folders = Folders(out=tmp_path, name="real")
    real = table.assign(simulated=False)
    assert _validation_text(table, folders) is None  # simulated: on nothing
    assert _validation_text(real, folders) is None  # the runs aren't here
    for run_id in real["run_id"]:
        spec = RunSpec(
            model=ModelConfig(context=32), data_fingerprint="abc", evaluation=EvaluationConfig(sequences=8), steps=1
        )
        folders.run(run_id).mkdir(parents=True)
        (folders.run(run_id) / "spec.json").write_text(spec.model_dump_json())
    assert _validation_text(real, folders) == "8 sequences of 32 tokens of the corpus abc"


def test_a_folder_is_named_after_a_sweep():
    assert file_name("sizes/groups/injection=concat") == "sizes-groups-injection=concat"
    assert file_name("///") == "sweep"
