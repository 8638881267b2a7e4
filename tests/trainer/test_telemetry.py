import pytest

from trainer.accounting import LoopCost
from trainer.config import ExecutionConfig
from trainer.telemetry import SpeedMeter, matrix_rate, peak_memory


def test_speed_and_utilisation_are_of_the_loops_that_ran(spec, monkeypatch):
    clock = iter([100.0, 110.0, 110.0, 112.0, 112.0])
    monkeypatch.setattr("trainer.telemetry.time.monotonic", lambda: next(clock))
    cost = LoopCost(fixed=10.0, per_forward_loop=2.0, per_backward_loop=4.0)
    meter = SpeedMeter(spec, cost, ExecutionConfig(peak_flops=1000.0), processes=2)
    meter.count(4, forward_loops=12, backward_loops=8)
    meter.count(4, forward_loops=20, backward_loops=8)
    told = meter.read()
    tokens = 8 * spec.model.context
    assert told["tokens_per_second"] == pytest.approx(tokens / 10)
    assert told["model_flop_utilisation"] == pytest.approx(tokens * (10 + 2 * 4 + 4 * 2) / 10 / 2000)
    assert told["peak_memory"] > 50e6
    meter.count(4, forward_loops=4, backward_loops=4)  # only what came since
    assert meter.read()["tokens_per_second"] == pytest.approx(4 * spec.model.context / 2)


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
