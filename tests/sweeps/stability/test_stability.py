"""The stability study: its rule on small made-up journals, its table and figure, its presets."""

import json
import math
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isoloop.fitting import simulate_table
from isoloop.fitting.figures.style import STYLE
from isoloop.sweeps.analysis import store_stability
from isoloop.sweeps.config.loading import load_sweep, validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep
from isoloop.sweeps.stability.figure import draw_stability
from isoloop.sweeps.stability.study import StabilityRule, is_study, judge_runs, largest_rise, read_curve, variant_axis
from tests.sweeps.conftest import SIMULATION

PUBLISHED = Path(__file__).parents[3] / "results" / "published"
AXES = {"optimizer.learning_rate": [1e-3], "model.injection": ["diagonal", "concat"]}
LEARNING = [3.0 * 0.97**step for step in range(60)]
STEADY = [8.0] * 60


def journal(losses, norms=STEADY, radii=(0.5,) * 60):
    metrics = [
        {
            "kind": "metrics",
            "step": step,
            "values": {"train_loss": loss, "state_norm": norm, "spectral_radius": radius},
        }
        for step, (loss, norm, radius) in enumerate(zip(losses, norms, radii, strict=False), start=1)
    ]
    return [{"kind": "journal", "id": "0"}, {"kind": "event", "name": "started"}, *metrics]


def row(run_id, variant, rate, *, seed=0, status="finished", loss=2.0, steps=60):
    losses = {"loss": loss, "loss_T1": loss, "loss_T8": loss, "loss_T16": loss}
    axes = {"seed": seed, "variant": variant, "optimizer.learning_rate": rate, "mean_recurrence": 8}
    return {"run_id": run_id, "status": status, "steps": steps, **axes, **losses}


SPIKE = [*LEARNING[:30], 4.0, 4.0, *LEARNING[32:]]
GROWING = [0.7 * 1.05**step for step in range(60)]
CASES = {  # run id -> (row, journal)
    "good": (row("good", "diagonal", 1e-3), journal(LEARNING)),
    "spiky": (row("spiky", "diagonal", 2e-3, loss=2.4), journal(SPIKE)),
    "slow": (row("slow", "concat", 1e-3, loss=2.5), journal(LEARNING)),
    "lost": (row("lost", "concat", 2e-3, loss=2.51), journal(LEARNING, radii=GROWING)),
    "overflow": (row("overflow", "concat", 2e-3, seed=1), journal(LEARNING, [*STEADY[:-1], math.inf])),
    "early": (row("early", "concat", 1e-3, seed=1, status="diverged", loss=None, steps=9), journal(LEARNING[:8])),
    "unlogged": (row("unlogged", "addition", 1e-3, status="diverged", loss=None, steps=1), []),
    "crashed": (row("crashed", "addition", 2e-3, status="failed", loss=None, steps=None), []),
}
TABLE = pd.DataFrame([row for row, _ in CASES.values()])
JOURNALS = {run_id: records for run_id, (_, records) in CASES.items()}


@pytest.fixture(scope="module")
def study():
    return judge_runs(TABLE, JOURNALS, name="made-up", variant="variant")


@pytest.mark.parametrize(
    ("run_id", "outcome", "reason"),
    [
        ("good", "converges", ""),
        ("spiky", "spikes", "rose by 2.7"),
        ("slow", "converges", ""),
        ("lost", "diverges", "ended 0.51 nats above the best"),
        ("overflow", "diverges", "‖h_T‖ overflowed"),
        ("early", "diverges", "loss not finite, or exploded, in step 9"),
        ("unlogged", "diverges", "loss not finite, or exploded, in step 1"),
        ("crashed", "failed", "no result"),
    ],
)
def test_each_outcome(study, run_id, outcome, reason):
    run = next(run for run in study.runs if run.run_id == run_id)
    assert run.outcome == outcome
    assert reason in run.reason
    assert bool(reason) == bool(run.reason)


def test_the_rule_is_what_its_numbers_say():
    strict = judge_runs(TABLE, JOURNALS, name="made-up", variant="variant", rule=StabilityRule(within=0.3, spike=5.0))
    outcomes = {run.run_id: run.outcome for run in strict.runs}
    assert (outcomes["slow"], outcomes["spiky"], outcomes["good"]) == ("diverges", "diverges", "converges")
    assert "more than 0.3 nats" in strict.summary()
    assert "Any limit from 0.00 to 0.40 nats gives the same outcomes, instead of 0.3." in strict.summary()


def test_one_logged_step_and_the_start_are_no_spike():
    single = [*LEARNING[:30], 9.0, *LEARNING[31:]]
    assert largest_rise(single) == largest_rise(LEARNING) == 0
    assert largest_rise([2.0, 2.0, 2.0, 9.0, 9.0, *LEARNING[5:]]) == pytest.approx(LEARNING[6] - 2.0, abs=0.1)
    assert largest_rise(SPIKE) == pytest.approx(4.0 - min(LEARNING[:30]), abs=0.1)
    assert largest_rise([]) == largest_rise([1.0, 9.0]) == 0


def test_what_a_run_logged_is_kept(study):
    run = next(run for run in study.runs if run.run_id == "lost")
    assert run.spectral_radius == run.max_spectral_radius == GROWING[-1]
    assert run.norm_growth == 1
    assert (run.curve.steps[0], len(run.curve.steps)) == (1, 60)
    assert next(run for run in study.runs if run.run_id == "overflow").norm_growth == math.inf
    nothing = next(run for run in study.runs if run.run_id == "unlogged")
    assert (nothing.spectral_radius, nothing.norm_growth, nothing.spike, nothing.losses) == (None, None, None, {})
    assert read_curve([{"kind": "metrics", "step": 1, "values": {"train_loss": 2.0}}]).steps == ()


def test_table_has_variants_by_learning_rates(study):
    assert study.variants == ("diagonal", "concat", "addition")
    assert [study.cell_text(variant, 1e-3) for variant in study.variants] == ["converges", "1 of 2", "diverges"]
    assert [study.cell_text(variant, 2e-3) for variant in study.variants] == ["spikes", "diverges", "failed"]
    assert study.cell_text("diagonal", 4e-3) == "-"
    assert [study.converges_up_to(variant) for variant in study.variants] == [1e-3, None, None]
    lines = study.summary().splitlines()
    assert lines[2].split() == ["learning", "rate", "0.001", "0.002"]
    assert lines[4].split() == ["concat", "1", "of", "2", "diverges"]
    assert (
        "concat: converges at no learning rate from the smallest on; ρ(Ā) reached 1 in 1 of 3 runs" in study.summary()
    )
    assert "diagonal: converges up to 0.001; ρ(Ā) is 0.5 throughout" in study.summary()
    assert len(study.report().splitlines()) == len(lines) + 4 + len(TABLE)


def test_frame_has_a_row_per_run_and_keeps_missing_missing(study):
    frame = study.frame().set_index("run_id")
    assert list(frame.loc["lost", ["loss_T1", "loss_T8", "loss_T16"]]) == [2.51] * 3
    assert frame.loc["early", ["loss", "loss_T8"]].isna().all()
    assert frame.loc["unlogged", ["spectral_radius", "state_norm_growth", "spike"]].isna().all()


def test_figure_marks_what_diverged_and_spiked(study):
    figure = Figure(figsize=(8, 5), layout="constrained")
    with mpl.rc_context(STYLE):
        draw_stability(figure, study)
    figure.canvas.draw()
    axes = figure.axes
    assert [one.get_title(loc="left") for one in axes[:3]] == ["diagonal", "concat", "addition"]
    marks = [[line.get_marker() for line in one.lines] for one in axes[:3]]
    assert [(here.count("x"), here.count("o")) for here in marks] == [(0, 1), (3, 0), (0, 0)]
    top = axes[4].get_ylim()[1]  # ‖h_T‖ of concat: what overflows ends at the edge
    assert top in [line.get_ydata()[-1] for line in axes[4].lines]


@pytest.fixture(scope="module")
def preset():
    return load_sweep("stability")


def test_preset_is_a_study_of_minutes(preset):
    plan = plan_sweep(preset, lambda _: PlannedCorpus("0" * 12, 10_000_000))
    axes = preset.axes
    assert len(plan.cells) == len(axes["variant"]) * len(axes["optimizer.learning_rate"]) * len(axes["seed"])
    assert plan.flops / preset.resources.flops_per_second / 2 < 6 * 60
    assert {cell.axes["variant"] for cell in plan.cells} == {"diagonal", "concat", "concat+norm", "addition"}
    assert all(cell.spec.optimizer.matrix_learning_rate == cell.axes["optimizer.learning_rate"] for cell in plan.cells)
    assert variant_axis(preset) == "variant"


def test_published_study_spans_the_published_rates():
    sweep = load_sweep("parcae-140m-stability")
    published = pd.read_csv(PUBLISHED / "convergence.csv").set_index(["model", "quantity"])["value"].astype(float)
    rates = sweep.axes["optimizer.learning_rate"]
    assert rates[0] == published["Parcae", "lowest learning rate that converged"]
    assert rates[-1] == published["Parcae", "highest learning rate that converged"]
    assert published["RDM with residual norm", "highest learning rate that converged"] in rates
    assert is_study(sweep)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"axes": {"seed": [0, 1]}}, "must have an axis optimizer.learning_rate and one that sets model.injection"),
        ({"tokens": [153600, 307200], "axes": AXES}, "also differ in tokens, mean recurrence or single points"),
        ({"axes": {**AXES, "batch": [8, 16]}}, "also differ in batch"),
        ({"axes": AXES, "simulation": SIMULATION}, "draws its losses from a law"),
    ],
)
def test_what_is_no_study_is_refused(preset, changed, expected):
    content = json.loads(preset.model_dump_json(exclude_none=True, exclude={"axes"})) | changed
    sweep = validate_sweep(content, source="test")
    assert not is_study(sweep)
    with pytest.raises(ValueError, match=expected):
        variant_axis(sweep)


def test_a_table_without_the_axes_is_refused():
    with pytest.raises(ValueError, match=r"must have optimizer\.learning_rate, variant"):
        judge_runs(simulate_table(), {}, name="plain", variant="variant")
    with pytest.raises(ValueError, match="one mean recurrence"):
        judge_runs(TABLE.assign(mean_recurrence=[*range(1, 9)]), {}, name="mixed", variant="variant")


def test_results_lie_beside_the_sweeps_others(preset, tmp_path):
    folders = Folders(out=tmp_path, name=preset.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(preset))
    for run_id, records in JOURNALS.items():
        folders.run(run_id).mkdir(parents=True)
        lines = [json.dumps(record) + "\n" for record in records]
        (folders.run(run_id) / "journal.jsonl").write_text("".join(lines))
    kept = load_sweep(str(folders.config))
    result = store_stability(kept, folders, TABLE[::-1])
    assert result.variants == ("diagonal", "concat", "addition")  # as the configuration has them
    assert folders.stability.read_text() == result.report()
    assert list(pd.read_csv(folders.sweep / "stability.csv")["outcome"]) == [run.outcome for run in result.runs]
    assert {path.name for path in folders.figures.iterdir()} == {"stability.png", "stability.svg", "stability.pdf"}
    assert "<dc:date>" not in (folders.figures / "stability.svg").read_text()
    assert b"CreationDate" not in (folders.figures / "stability.pdf").read_bytes()
