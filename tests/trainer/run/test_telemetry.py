import math
import time

import pytest

from isoloop.trainer.accounting import LoopCost
from isoloop.trainer.config import ExecutionConfig
from isoloop.trainer.run import telemetry
from isoloop.trainer.run.telemetry import SpeedMeter, SystemMeter, matrix_rate, peak_memory, resident_memory


def test_speed_and_utilisation_are_of_the_loops_that_ran(spec, monkeypatch):
    clock = iter([100.0, 110.0, 110.0, 112.0, 112.0])
    monkeypatch.setattr("isoloop.trainer.run.telemetry.time.monotonic", lambda: next(clock))
    cost = LoopCost(fixed=10.0, per_forward_loop=2.0, per_backward_loop=4.0)
    meter = SpeedMeter(spec, cost, ExecutionConfig(peak_flops=1000.0), processes=2)
    meter.count(4, forward_loops=12, backward_loops=8)
    meter.count(4, forward_loops=20, backward_loops=8)
    readings = meter.read()
    tokens = 8 * spec.model.context
    assert readings["tokens_per_second"] == pytest.approx(tokens / 10)
    assert readings["model_flop_utilisation"] == pytest.approx(tokens * (10 + 2 * 4 + 4 * 2) / 10 / 2000)
    assert readings["peak_memory"] > 50e6
    meter.count(4, forward_loops=4, backward_loops=4)  # only what came since
    assert meter.read()["tokens_per_second"] == pytest.approx(4 * spec.model.context / 2)


def test_a_pause_is_no_training_time(spec, monkeypatch):
    clock = iter([100.0, 104.0, 107.0, 112.0, 112.0])
    monkeypatch.setattr("isoloop.trainer.run.telemetry.time.monotonic", lambda: next(clock))
    cost = LoopCost(fixed=1.0, per_forward_loop=0.0, per_backward_loop=0.0)
    meter = SpeedMeter(spec, cost, ExecutionConfig(peak_flops=1.0), processes=1)
    meter.count(9, forward_loops=9, backward_loops=9)
    with meter.paused():
        pass
    assert meter.read()["tokens_per_second"] == pytest.approx(9 * spec.model.context / (12 - 3))


def test_system_metrics_go_by_mlflows_names_and_are_of_this_process():
    """Names as in mlflow/system_metrics; percent of the threads that the run is given."""
    meter = SystemMeter(ExecutionConfig(cpu_threads=2))
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    readings = meter.read()
    assert readings.keys() == {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert (
        1 < readings["system/cpu_utilization_percentage"] < 55
    )  # one of two threads, on a machine that others use too
    assert readings["system/system_memory_usage_megabytes"] == pytest.approx(resident_memory() / 1e6, rel=0.1)
    assert 50e6 < resident_memory() <= 1.01 * peak_memory("cpu")
    meter.wall, meter.busy = time.monotonic() - 10, time.process_time()  # ten idle seconds
    assert meter.read()["system/cpu_utilization_percentage"] < 1


def test_the_matrix_rate_is_measured_once():
    import torch

    rate = matrix_rate("cpu", torch.float32)
    assert 1e8 < rate < 1e14
    assert matrix_rate("cpu", torch.float32) == rate


def test_peak_memory_is_in_bytes_and_grows():
    before = peak_memory("cpu")
    block = bytearray(round(before) + 100_000_000)  # more than ever before, and written to
    block[::4096] = b"x" * len(block[::4096])
    assert before + 100e6 < peak_memory("cpu") < 4 * before + 400e6


def test_memory_of_a_container_is_below_its_limit(tmp_path, monkeypatch):
    """Files that are only kept in memory give way, so they don't count as used."""
    assert telemetry._container_memory(tmp_path) == math.inf
    for name, content in {"max": "1000", "current": "700", "stat": "anon 500\ninactive_file 150"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{content}\n")
    assert telemetry._container_memory(tmp_path) == 450
    monkeypatch.setattr(telemetry, "_container_memory", lambda: 450.0)
    assert telemetry.free_memory("cpu") == 450
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.undo()
    assert telemetry._container_memory(tmp_path) == math.inf
    assert telemetry.free_memory("cpu") > 0
