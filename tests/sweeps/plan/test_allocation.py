"""What a plan will cost: speed, memory, price, resources by size."""

import re

import pandas as pd
import pytest
from rich.console import Console

from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.resources import DEVICES, Resources
from isoloop.sweeps.plan import allocation
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep, simulated_corpus
from isoloop.sweeps.plan.summary import PlanSummary, plan_rows, print_plan, slowdown
from isoloop.trainer.memory import estimate_memory
from isoloop.trainer.run.result import RunResult
from tests.sweeps.conftest import SIMULATED

PAPER = {
    **SIMULATED, "name": "paper", "budgets": [1e18, 64e18], "mean_recurrences": [1, 8], "model": "140m", "batch": 256,
    "precision": "bfloat16", "resources": {"gpus": 1, "cpus": 8, "micro_batch": 16, "utilisation": 0.5},
    "cluster": {"nodes": 2, "gpus": 8, "cpus": 64, "device": "H100", "price_per_hour": 2.0},
}  # fmt: skip


def plan(**changes):
    content = {**PAPER, **changes}
    for name in ("resources", "cluster"):
        content[name] = {**PAPER[name], **changes.get(name, {})}
        content[name] = {key: value for key, value in content[name].items() if value is not None}
    return plan_sweep(validate_sweep(content, source="test"), simulated_corpus)


def printed(planned, done=(), every_run=False):
    console = Console(record=True, width=200, highlight=False, soft_wrap=True)
    with console.capture() as output:
        print_plan(console, planned, dict(done), every_run=every_run)
    return output.get()


def test_time_and_price_follow_from_device_and_utilisation():
    planned = plan()
    for cell in planned.cells:
        assert cell.seconds == pytest.approx(cell.flops / (0.5 * DEVICES["H100"].bfloat16))
    hours = sum(cell.seconds for cell in planned.cells) / 3600
    assert planned.price() == pytest.approx(2.0 * hours)
    summary = PlanSummary.of(planned, {})
    assert summary.makespan == summary.bound == pytest.approx(max(cell.seconds for cell in planned.cells))
    output = printed(planned)
    assert "50% of the 9.89e+14 FLOPs per second of H100's data sheet" in output
    assert "(a default share, not measured)" in printed(plan(resources={"utilisation": None}))
    assert f"{planned.price():,.2f} in all at 2 an hour for each GPU" in output


def test_a_large_grid_is_short_on_the_screen_and_what_is_left_out_is_said():
    planned = plan(budgets=[1e18 * 1.05**i for i in range(100)])
    lines = printed(planned).splitlines()
    rows = [line for line in lines if re.match(r"\s*\d\S*e\+\d+ ", line)]
    assert len(rows) == 40
    assert len(lines) < 60
    assert any(line.startswith("the first and the last 20 rows, 60 between them are not shown; ") for line in lines)
    assert [float(row.split()[0]) for row in (rows[0], rows[-1])] == [1e18, float(f"{1e18 * 1.05**99:.3g}")]
    assert len(printed(planned, every_run=True).splitlines()) > len(planned.cells)


def test_a_stated_speed_goes_first():
    planned = plan(resources={"flops_per_second": 1e15})
    assert planned.cells[0].seconds == pytest.approx(planned.cells[0].flops / 1e15)
    assert "the stated 1e+15 FLOPs per second of a run" in printed(planned)


def test_memory_is_checked_before_anything_starts():
    planned = plan()
    for cell in planned.cells:
        assert (
            cell.memory
            == estimate_memory(
                cell.spec.model, cell.spec.recurrence, sequences=16, precision="bfloat16", device="cuda"
            ).total
        )
    with pytest.raises(ValueError, match=r"needs about \d+ GB and 10% to spare, more than the 80 GB of 1 GPU; set "):
        plan(resources={"micro_batch": 256})
    few = plan(resources={"micro_batch": 64}, budgets=[1e18], mean_recurrences=[1, 12])
    (out,) = few.left_out
    assert "µ = 12" in out.label
    advised = int(out.reason.rpartition("resources.micro_batch to ")[2])
    assert not plan(resources={"micro_batch": advised}, budgets=[1e18], mean_recurrences=[12]).left_out
    with pytest.raises(ValueError, match=r"set resources\.micro_batch to"):
        plan(resources={"micro_batch": advised + 1}, budgets=[1e18], mean_recurrences=[12])


def test_resources_follow_from_the_size():
    """Small runs share a GPU, larger ones have one, long ones several."""
    tiny = plan(model={"width": 64, "heads": 2, "context": 128}, budgets=[1e16, 1e17], resources={"gpus": "auto"})
    assert {cell.resources.gpus for cell in tiny.cells} == {0.125}
    by_size = plan(axes={"model.size": ["140m", "770m"]}, budgets=[64e18], resources={"gpus": "auto", "micro_batch": 8})
    shares = {cell.axes["model.size"]: cell.resources.gpus for cell in by_size.cells if cell.mean_recurrence == 8}
    assert shares["140m"] < shares["770m"] == 1
    long = plan(budgets=[1e18, 64e18], resources={"gpus": "auto", "longest_hours": 6})
    assert all(cell.seconds <= 6 * 3600 for cell in long.cells)
    assert {cell.resources.processes for cell in long.cells if cell.budget == 64e18} == {8}
    assert {cell.resources.processes for cell in long.cells if cell.budget == 1e18} == {1}
    for cell in long.cells:  # what was chosen is a configuration in its own right
        assert Resources.model_validate_json(cell.resources.model_dump_json()) == cell.resources


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resources": {"gpus": "auto"}, "cluster": {"device": None}}, "but cluster.device isn't set"),
        (
            {"resources": {"gpus": "auto", "flops_per_second": 1e15}},
            "a run's speed must follow from cluster.device",
        ),
        ({"cluster": {"device": None}}, "cluster.device isn't set"),
        ({"resources": {"gpus": 0}}, "utilisation applies to GPUs only"),
        ({"resources": {"longest_hours": 2}}, "but got gpus=1"),
        ({"resources": {"gpus": "some"}}, "must be a number or 'auto', but got 'some'"),
        ({"resources": {"gpus": 2}}, "less than or equal to 1"),
        ({"cluster": {"device": "TPU"}}, "device must be one of A100-40GB"),
    ],
)
def test_what_does_not_go_together_is_named(changes, expected):
    with pytest.raises(ValueError, match=expected):
        plan(**changes)


def test_a_machines_own_memory_holds_for_runs_without_a_gpu(simulated):
    trained = simulated.model_copy(update={"simulation": None, "budgets": (1e10,)})
    cluster = trained.cluster.model_copy(update={"node_memory": 100e6})
    with pytest.raises(ValueError, match=r"GB of a machine \(cluster.node_memory\)"):
        plan_sweep(trained.model_copy(update={"cluster": cluster}), lambda _: PlannedCorpus("f", 10**12))
    assert plan_sweep(trained, lambda _: PlannedCorpus("f", 10**12)).cells


def test_processes_stay_on_one_machine_where_runs_lie_in_a_storage():
    long = plan(budgets=[64e18], resources={"gpus": "auto", "longest_hours": 1}, storage="/somewhere")
    assert {cell.resources.processes for cell in long.cells} == {8}
    with pytest.raises(ValueError, match="which must be on one machine"):
        plan(budgets=[64e18], resources={"processes": 16}, storage="/somewhere")


def test_more_text_than_there_is(simulated):
    sweep = simulated.model_copy(update={"budgets": (1e10,), "maximum_epochs": 1.5})
    tokens = {cell.mean_recurrence: cell.spec.tokens for cell in plan_sweep(sweep, simulated_corpus).cells}
    train_tokens = int(tokens[4] / 1.45)
    planned = plan_sweep(sweep, lambda _: PlannedCorpus("f", train_tokens))
    assert {cell.mean_recurrence for cell in planned.cells} == {
        mean for mean in tokens if tokens[mean] <= 1.5 * train_tokens
    }
    most = max(cell.spec.tokens for cell in planned.cells) / train_tokens
    repeated = sum(cell.spec.tokens > train_tokens for cell in planned.cells)
    said = f"{repeated} of {len(planned.cells)} runs see text again, up to {most:.3g} times"
    assert f"\nepochs      {said}; 15 evaluations during each keep its best loss\n" in printed(planned)
    assert repeated >= 1
    assert "see text again" not in printed(plan_sweep(sweep, lambda _: PlannedCorpus("f", 10**12)))
    assert "µ = 1" in planned.left_out[0].label
    assert "maximum_epochs is 1.5; lower the budget by a factor of" in planned.left_out[0].reason


def result(cell, seconds):
    return RunResult(
        run_id=cell.run_id, status="finished", simulated=False, steps=1, tokens=1, forward_loops=1, backward_loops=1,
        flops_exact=1, flops_parcae_release=1, loss=1.0, losses={1: 1.0}, bits_per_byte=None, spectral_radius=None,
        seconds=seconds,
    )  # fmt: skip


def test_finished_runs_correct_the_time():
    planned = plan()
    done = {cell.run_id: result(cell, 3 * cell.seconds) for cell in planned.cells[:2]}
    assert slowdown(planned, done) == pytest.approx(3)
    assert "finished runs took 3 times their expected time" in printed(planned, done.items())
    assert slowdown(planned, {}) is None


def test_a_cluster_too_small_is_said():
    assert "unknown: a run needs more than 1 node(s) of 4 cores" in printed(
        plan(cluster={"nodes": 1, "gpus": 0, "cpus": 4})
    )


def test_many_runs_are_summed_up():
    planned = plan(budgets=[1e18, 2e18], axes={"seed": list(range(20)), "optimizer.learning_rate": [1e-3, 2e-3]})
    output = printed(planned)
    assert len(planned.cells) == 160
    assert len(output.splitlines()) < 20
    assert "optimizer.learning_rate = 0.002" in output
    assert len(printed(planned, every_run=True).splitlines()) > 160
    table = pd.DataFrame(plan_rows(planned))
    assert len(table) == 160
    assert table["flops"].sum() == pytest.approx(planned.flops)
    assert table["price"].sum() == pytest.approx(planned.price())


def test_processes_of_a_run_multiply_its_work():
    planned = plan(resources={"processes": 8}, budgets=[64e18], mean_recurrences=[8])
    (cell,) = planned.cells
    assert cell.seconds == pytest.approx(cell.flops / (8 * 0.5 * DEVICES["H100"].bfloat16))
    assert allocation.needs(cell.resources).busy_units == 8
    assert planned.price() == pytest.approx(cell.seconds / 3600 * 8 * 2.0)


def test_memory_advice_is_right_for_a_share_of_a_gpu():
    with pytest.raises(ValueError, match=r"GB of 0\.125 GPU; raise resources\.gpus, up to 1, or use a smaller model"):
        plan(resources={"gpus": 0.125}, cluster={"device": "L4"})
