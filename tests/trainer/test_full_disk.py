"""A disk that is full for a while: nothing half-written stays in the way, and the run ends as if nothing had been."""

import os
import resource
import subprocess
from contextlib import contextmanager

import pytest
import torch

from isoloop.trainer.config import ExecutionConfig, OptimizerConfig
from isoloop.trainer.files import write_atomically
from isoloop.trainer.loop import train
from isoloop.trainer.model.parcae import Parcae
from isoloop.trainer.model.pretrained import load_published, save_published
from isoloop.trainer.optim import make_optimizers
from isoloop.trainer.run.checkpoint import CheckpointWriter, checkpoints, load_checkpoint
from isoloop.trainer.run.journal import Journal, read_journal

FULL = "No space left on device|File too large"


@contextmanager
def files_end_at(size):
    """The kernel takes no byte beyond `size` of any file: a part of a write first, then none. As on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs can't be mounted here ({error})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def stop_after(steps):
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps


def outcome(result):
    return result.model_dump(exclude={"seconds"})


def losses_by_step(folder):
    records = read_journal(folder / "journal.jsonl")[0]
    return [(r["step"], r["values"]["train_loss"]) for r in records if r["kind"] == "metrics"]


def partial_files(folder):
    return [path.name for path in folder.rglob(".*")]


@pytest.fixture(scope="module")
def undisturbed(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return outcome(train(spec, corpus, folder)), losses_by_step(folder)


class TestJournal:
    @pytest.mark.parametrize("room", [0, 1, 40])
    def test_a_line_is_whole_or_absent(self, tmp_path, room):
        path = tmp_path / "journal.jsonl"
        journal = Journal(path)
        journal.metrics(1, {"a": 1.0})
        before = path.read_bytes()
        for _ in range(2):
            with files_end_at(len(before) + room), pytest.raises(OSError, match=FULL):
                journal.metrics(2, {"a": 2.0})
            assert path.read_bytes() == before
        journal.metrics(2, {"a": 3.0})
        journal.close()
        assert [r["values"]["a"] for r in read_journal(path)[0][1:]] == [1.0, 3.0]

    def test_a_write_that_takes_a_part_is_gone_on_with(self, tmp_path, monkeypatch):
        write = os.write
        monkeypatch.setattr("isoloop.trainer.run.journal.os.write", lambda file, content: write(file, content[:7]))
        journal = Journal(tmp_path / "journal.jsonl")
        journal.event("started", step=0)
        journal.close()
        assert [r["kind"] for r in read_journal(tmp_path / "journal.jsonl")[0]] == ["journal", "event"]

    def test_a_journal_that_could_not_begin_begins_later(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        with files_end_at(10), pytest.raises(OSError, match=FULL):
            Journal(path)
        assert read_journal(path) == ([], 0)
        Journal(path).close()
        assert [r["kind"] for r in read_journal(path)[0]] == ["journal"]


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "before")
    with files_end_at(1000), pytest.raises(OSError, match=FULL):
        write_atomically(path, "after" * 1000)
    assert path.read_text() == "before"
    assert partial_files(tmp_path) == []


def test_a_checkpoint_is_whole_or_absent(spec, tmp_path):
    model = Parcae(spec.model)
    model.initialise(0)
    state = {"model": model, "optimizers": make_optimizers(model, OptimizerConfig())}
    CheckpointWriter("cpu").save(tmp_path, run_id="a", step=1, counts={}, **state)
    for step in (1, 2):  # also where there is one of that step
        with files_end_at(30_000), pytest.raises(OSError, match=FULL):
            CheckpointWriter("cpu").save(tmp_path, run_id="a", step=step, counts={}, **state)
        assert [path.name for path in checkpoints(tmp_path)] == ["00000001"]
        assert partial_files(tmp_path) == []
        assert load_checkpoint(tmp_path / "00000001", run_id="a", **state)[0] == 1


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_model_is_whole_or_what_it_was(spec, tmp_path, form):
    model = Parcae(spec.model)
    model.initialise(0)
    save_published(tmp_path, model, spec.recurrence)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with files_end_at(30_000), pytest.raises((OSError, RuntimeError)):
        save_published(tmp_path, model, spec.recurrence, form=form)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert torch.equal(load_published(tmp_path)[0].embedding.weight, model.embedding.weight)


@pytest.mark.parametrize(
    ("limit", "every", "where"),
    [(5_000, 1e9, "_write"), (30_000, 1e-6, "_save_checkpoint"), (30_000, 1e9, "save_published")],
    ids=["in the journal", "in a checkpoint", "in the model at the end"],
)
def test_a_run_resumes_once_the_disk_has_room(spec, corpus, undisturbed, tmp_path, limit, every, where):
    assert train(spec, corpus, tmp_path, should_stop=stop_after(4)) is None
    execution = ExecutionConfig(checkpoint_seconds=every)
    for _ in range(2):
        with files_end_at(limit), pytest.raises(OSError, match=FULL) as raised:
            train(spec, corpus, tmp_path, execution=execution)
        assert where in [entry.name for entry in raised.traceback]
        assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["00000004"]
        assert partial_files(tmp_path) == []
    assert outcome(train(spec, corpus, tmp_path)) == undisturbed[0]
    assert losses_by_step(tmp_path) == undisturbed[1]


@pytest.mark.parametrize("left", [0, 100_000])
def test_a_run_resumes_once_the_disk_has_room_on_a_real_disk(spec, corpus, undisturbed, small_disk, left):
    """The disk fills up at step 5, but for `left` bytes; checkpoints are due in every step."""
    folder, filler = small_disk / "run", small_disk / "filler"
    calls = iter(range(10**9))

    def fill():
        if next(calls) == 4:
            free = os.statvfs(small_disk)
            filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - left))
        return False

    always = ExecutionConfig(checkpoint_seconds=1e-6)
    with pytest.raises(OSError, match=FULL):
        train(spec, corpus, folder, execution=always, should_stop=fill)
    assert partial_files(folder) == []
    assert checkpoints(folder / "checkpoints")
    filler.unlink()
    assert outcome(train(spec, corpus, folder)) == undisturbed[0]
    assert losses_by_step(folder) == undisturbed[1]
