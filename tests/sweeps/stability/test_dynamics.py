"""A stability study goes into two small files and comes back; a study is found where it was run or where it lies."""

import dataclasses
import json
import math
from itertools import pairwise

import pandas as pd
import pytest

from isoloop.sweeps.analysis import store_stability
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.stability.dynamics import CURVE_POINTS, load_study, read_study, write_study
from isoloop.sweeps.stability.study import LoggedCurve, StabilityRule, judge_runs
from tests.sweeps.stability.test_stability import JOURNALS, TABLE, journal, row


@pytest.fixture(scope="module")
def study():
    return judge_runs(TABLE, JOURNALS, name="made-up", variant="variant", rule=StabilityRule(within=0.45, spike=2.0))


def test_a_study_comes_back_whole(study, tmp_path):
    write_study(study, tmp_path)
    again = read_study(tmp_path)
    flat = dict.fromkeys(("curve", "losses"))
    assert [dataclasses.asdict(run) | flat for run in again.runs] == [dataclasses.asdict(r) | flat for r in study.runs]
    assert [dict(run.losses) for run in again.runs] == [dict(run.losses) for run in study.runs]
    assert dataclasses.replace(again, runs=()) == dataclasses.replace(study, runs=())
    assert again.summary().splitlines()[:-3] == study.summary().splitlines()[:-3]
    for run, before in zip(again.runs, study.runs, strict=True):
        # Sixty steps were logged, so none is left out; numbers are rounded to six digits.
        assert run.curve.steps == before.curve.steps
        for name in ("losses", "spectral_radii", "state_norms"):
            assert getattr(run.curve, name) == pytest.approx(getattr(before.curve, name), rel=1e-5)
    assert next(run for run in again.runs if run.run_id == "unlogged").curve == LoggedCurve()
    assert next(run for run in again.runs if run.run_id == "overflow").curve.state_norms[-1] == math.inf


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_study(study, tmp_path / name)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert set(one) == {"stability.csv", "dynamics.csv"}


def test_long_runs_are_thinned_and_keep_both_ends(tmp_path):
    losses = [3.0 - step / 1000 for step in range(997)]
    table = pd.DataFrame([row("long", "diagonal", 1e-3, steps=997)])
    records = journal(losses, [8.0 + step for step in range(997)], [0.5] * 997)
    write_study(judge_runs(table, {"long": records}, name="long", variant="variant"), tmp_path)
    logged = pd.read_csv(tmp_path / "dynamics.csv")
    assert list(logged) == ["run_id", "step", "spectral_radius", "state_norm", "train_loss"]
    assert len(logged) == CURVE_POINTS
    assert (logged["step"].iloc[0], logged["step"].iloc[-1]) == (1, 997)
    assert {later - before for before, later in pairwise(logged["step"])} == {16, 17}
    assert (logged["state_norm"] == 7.0 + logged["step"]).all()


def test_a_study_without_any_curve_can_be_stored(tmp_path):
    table = pd.DataFrame([row("unlogged", "addition", 1e-3, status="diverged", loss=None, steps=1)])
    write_study(judge_runs(table, {}, name="none", variant="variant"), tmp_path)
    assert read_study(tmp_path).runs[0].curve == LoggedCurve()


def test_what_is_no_stored_study_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match=r"has no stability\.csv; write them with 'isoloop stability'"):
        read_study(tmp_path)
    write_study(study, tmp_path)
    frame = pd.read_csv(tmp_path / "stability.csv")
    frame.drop(columns=["within", "outcome"]).to_csv(tmp_path / "stability.csv", index=False)
    with pytest.raises(ValueError, match="lacks outcome, within"):
        read_study(tmp_path)


@pytest.fixture
def ran(tmp_path):
    """An output folder in which the study was run."""
    folders = Folders(out=tmp_path / "out", name="stability")
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(load_sweep("stability")))
    for run_id, records in JOURNALS.items():
        folders.run(run_id).mkdir(parents=True)
        (folders.run(run_id) / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folders


def test_the_command_writes_what_can_be_read_back(ran):
    made = store_stability(load_sweep("stability"), ran, TABLE)
    again = load_study(str(ran.sweep), "nowhere")
    assert [run.outcome for run in again.runs] == [run.outcome for run in made.runs]
    assert again.variants == made.variants


def test_a_study_that_was_run_comes_before_a_stored_one(ran, study, tmp_path, run_table):
    stored = tmp_path / "stored"
    stored.mkdir()
    write_study(study, stored)
    assert load_study("made-up", tmp_path / "empty", stored=stored).name == "made-up"
    with pytest.raises(ValueError, match="has no sweep 'made_up'"):  # a slip shows nobody else's study
        load_study("made_up", tmp_path / "empty", stored=stored)
    run_table.to_csv(ran.table, index=False)
    result = load_study("stability", ran.out, stored=stored)
    assert result.name == "stability"
    assert result.rule == StabilityRule()
    assert len(result.runs[0].curve.steps) == 60
    assert load_study(str(ran.table), ran.out) == result


@pytest.fixture
def run_table():
    """The made-up runs as a whole run table."""
    per_token = {
        "flops_per_token_fixed": 1e6,
        "flops_per_token_forward_loop": 1e5,
        "flops_per_token_backward_loop": 2e5,
    }
    loops = {"forward_loops": 8.0, "backward_loops": 4.0}
    price = 1e6 + 8e5 + 8e5
    return TABLE.assign(
        simulated=False, accounting="exact", backprop_depth=4.0, tokens=153600.0, flops=153600 * price,
        effective_params_fixed=1e6, effective_params_per_loop=5e5, group=TABLE["variant"], **per_token, **loops,
    )  # fmt: skip


def test_without_a_study_it_is_said_which_sweeps_there_are(ran, tmp_path, run_table):
    with pytest.raises(ValueError, match="has no sweep 'elsewhere': there are stability"):
        load_study("elsewhere", ran.out)
    run_table.to_csv(tmp_path / "alone.csv", index=False)
    with pytest.raises(ValueError, match=r"there is no config\.yaml beside the table"):
        load_study(str(tmp_path / "alone.csv"), ran.out)
