"""Checkpoints that a thread writes beside the training: of the right step, whole, and with their errors raised."""

import os
import threading
import time
from multiprocessing import get_context

import pytest
import torch

from isoloop.trainer.config import ModelConfig, OptimizerConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.optim import make_optimizers
from isoloop.trainer.run.checkpoint import SHORTEST_INTERVAL, CheckpointWriter, checkpoints, load_checkpoint

DEVICE = "cuda"  # only its name: the tensors are the CPU's, which the thread copies as well


def small_state():
    model = build_model(ModelConfig(width=16, heads=2, context=16))
    model.initialise(0)
    optimizers = make_optimizers(model, OptimizerConfig())
    train_a_step(model, optimizers)
    return {"model": model, "optimizers": optimizers}


def train_a_step(model, optimizers):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    for optimizer in optimizers:
        optimizer.step()


def save(writer, folder, state, step, **others):
    writer.save(folder, run_id="a", step=step, counts={"seconds": 1.0}, **state, **others)


def test_what_is_saved_is_the_state_when_it_was_asked_for(tmp_path, monkeypatch):
    """The write is held up until training has gone on."""
    state, gate, write = small_state(), threading.Event(), torch.save

    def held_up(*arguments):
        gate.wait(60)
        write(*arguments)

    monkeypatch.setattr(torch, "save", held_up)
    before = {name: tensor.clone() for name, tensor in state["model"].state_dict().items()}
    momentum = next(iter(state["optimizers"][0].state.values()))["momentum_buffer"].clone()
    with CheckpointWriter(DEVICE) as writer:
        save(writer, tmp_path, state, 1)
        assert not checkpoints(tmp_path)
        for _ in range(3):
            train_a_step(**state)
        gate.set()
    assert not torch.equal(before["final_norm.weight"], state["model"].final_norm.weight)
    read = small_state()
    assert load_checkpoint(tmp_path / "00000001", run_id="a", **read).steps == 1
    for name, tensor in read["model"].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(next(iter(read["optimizers"][0].state.values()))["momentum_buffer"], momentum)


class FullDiskError(OSError):
    """The error of a write in these tests."""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A state whose first checkpoint is on the disk, and whose further ones can't be written."""
    state = small_state()
    with CheckpointWriter(DEVICE) as writer:
        save(writer, tmp_path, state, 1)

    def fail(content, file):
        file.write(b"half")
        raise FullDiskError("no space")

    monkeypatch.setattr(torch, "save", fail)
    return state


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["is_due", "save", "wait", "the end"])
def test_an_error_of_the_thread_is_raised_where_it_is_next_met_and_older_ones_stay(tmp_path, failing, where):
    def go_on():
        with CheckpointWriter(DEVICE) as writer:
            save(writer, tmp_path, failing, 2)
            until(writer._pending.done)
            if where == "save":
                save(writer, tmp_path, failing, 3)
            elif where != "the end":
                getattr(writer, where)()
            assert where == "the end"

    with pytest.raises(FullDiskError, match="no space"):
        go_on()
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert load_checkpoint(tmp_path / "00000001", run_id="a", **failing).steps == 1


def test_an_error_of_the_training_stays_and_the_threads_is_its_note(tmp_path, failing):
    def go_on():
        with CheckpointWriter(DEVICE) as writer:
            save(writer, tmp_path, failing, 2)
            raise MemoryError("of the training")

    with pytest.raises(MemoryError) as raised:
        go_on()
    assert "no space" in raised.value.__notes__[0]


def save_and_die(folder):
    """Save step 1, and be killed while the thread writes step 2."""
    state, write = small_state(), torch.save
    writer = CheckpointWriter(DEVICE)
    save(writer, folder, state, 1)
    writer.wait()

    def die(content, file):
        write(content, file)
        os.truncate(file.name, 1000)
        os._exit(9)

    torch.save = die
    save(writer, folder, state, 2)
    writer.wait()


def test_a_process_killed_while_it_writes_loses_nothing_older(tmp_path):
    process = get_context("spawn").Process(target=save_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [path.name for path in checkpoints(tmp_path)] == ["00000001"]
    assert load_checkpoint(tmp_path / "00000001", run_id="a", **small_state()).steps == 1


def test_the_interval_grows_with_the_time_that_writing_takes(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    write = torch.save

    def slow(*arguments):
        clock[0] += 14.0
        write(*arguments)

    writer, state = CheckpointWriter("cpu"), small_state()
    due_after = []
    for step in (1, 2):
        save(writer, tmp_path / "others", state, step, keep=None)  # for other runs: the interval goes on
        start = clock[0]
        while not writer.is_due():
            clock[0] += 1.0
        due_after.append(clock[0] - start)
        monkeypatch.setattr(torch, "save", slow)
        save(writer, tmp_path, state, step)
    assert due_after == [SHORTEST_INTERVAL, 453.0]  # after 14 s of writing for others; 14 s are 3% of 467 s
