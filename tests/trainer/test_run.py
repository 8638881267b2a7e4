"""One run from spec to result: resumed equals uninterrupted, divergence, journal, checkpoints."""

import json
import os

import pytest
import torch

from trainer.batches import validation_windows
from trainer.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from trainer.config import OptimizerConfig
from trainer.evaluate import bits_per_byte, evaluate
from trainer.journal import Journal, journal_id, read_journal
from trainer.lock import FolderBusyError, sole_owner
from trainer.loop import train
from trainer.optim import make_optimizers
from trainer.parcae import Parcae
from trainer.result import RunResult, read_result


def stop_after(steps):
    """A stop signal that comes true at the given step."""
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= steps


def without_clock(result: RunResult) -> dict:
    return result.model_dump(exclude={"seconds"})


def metrics(folder):
    records, _ = read_journal(folder / "journal.jsonl")
    return [(r["step"], r["values"]) for r in records if r["kind"] == "metrics"]


@pytest.fixture(scope="module")
def uninterrupted(spec, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(spec, corpus, folder)


def test_a_run_records_what_it_did(spec, uninterrupted):
    folder, result = uninterrupted
    assert result == read_result(folder)
    assert result.run_id == spec.run_id
    assert result.status == "finished"
    assert not result.simulated
    assert (result.steps, result.tokens) == (12, 12 * 4 * 16)
    assert set(result.losses) == {1, 2, 3, 4}  # those asked for, and the mean recurrence
    assert result.loss == result.losses[3]
    assert result.bits_per_byte == pytest.approx(result.loss / 0.6931471805599453)
    assert 0 < result.spectral_radius < 1
    assert result.backward_loops <= 2
    assert [step for step, _ in metrics(folder)] == list(range(1, 13))
    assert metrics(folder)[0][1].keys() == {
        "train_loss", "gradient_norm", "spectral_radius", "learning_rate", "tokens",
    }  # fmt: skip
    weights = torch.load(folder / "weights.pt", weights_only=True)
    assert weights.keys() == Parcae(spec.model).state_dict().keys()
    assert not checkpoints(folder / "checkpoints")  # a finished run needs none
    assert metrics(folder)[-1][1]["train_loss"] < metrics(folder)[0][1]["train_loss"]


def test_the_same_spec_gives_the_same_numbers(spec, corpus, uninterrupted, tmp_path):
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])


@pytest.mark.parametrize("stops", [[1], [5], [3, 4]])
def test_resumed_equals_uninterrupted(spec, corpus, uninterrupted, tmp_path, stops):
    whole_folder, whole = uninterrupted
    for steps in stops:
        assert train(spec, corpus, tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_crash_goes_on_from_the_last_checkpoint(spec, corpus, uninterrupted, tmp_path):
    """Steps behind the checkpoint run again, to the same numbers, and stand in the journal once."""

    def crash():
        if not checkpoints(tmp_path / "checkpoints"):
            return True
        raise MemoryError("a crash")

    assert train(spec, corpus, tmp_path, should_stop=crash) is None
    with pytest.raises(MemoryError):
        train(spec, corpus, tmp_path, should_stop=crash)
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])
    assert metrics(tmp_path) == metrics(uninterrupted[0])


def test_a_torn_checkpoint_gives_way_to_the_one_before(spec, corpus, uninterrupted, tmp_path):
    for steps in (3, 4):
        assert train(spec, corpus, tmp_path, should_stop=stop_after(steps)) is None
    older, newest = checkpoints(tmp_path / "checkpoints")
    os.truncate(newest / "state.pt", 1000)
    (tmp_path / "checkpoints" / ".building-left-by-a-kill").mkdir()
    assert without_clock(train(spec, corpus, tmp_path)) == without_clock(uninterrupted[1])
    assert metrics(tmp_path) == metrics(uninterrupted[0])
    events = [r["name"] for r in read_journal(tmp_path / "journal.jsonl")[0] if r["kind"] == "event"]
    assert "checkpoint refused" in events
    assert not list((tmp_path / "checkpoints").iterdir())
    assert older.name < newest.name


def test_torn_checkpoints_alone_are_refused_by_name(spec, corpus, tmp_path):
    assert train(spec, corpus, tmp_path, should_stop=stop_after(3)) is None
    (only,) = checkpoints(tmp_path / "checkpoints")
    os.truncate(only / "state.pt", 1000)
    with pytest.raises(ValueError, match=r"00000003/state.pt can't be read"):
        train(spec, corpus, tmp_path)


def test_a_finished_run_is_not_trained_again(spec, corpus, uninterrupted):
    folder, result = uninterrupted
    before = (folder / "journal.jsonl").read_bytes()
    assert train(spec, corpus, folder) == result
    assert (folder / "journal.jsonl").read_bytes() == before


def test_a_diverged_run_is_a_result(spec, corpus, tmp_path):
    wild = spec.model_copy(update={"optimizer": OptimizerConfig(learning_rate=1e6, gradient_clip=1e9)})
    result = train(wild, corpus, tmp_path)
    assert result.status == "diverged"
    assert result.loss is None
    assert result.losses == {}
    assert "training loss" in result.reason
    assert result.steps < spec.steps
    assert result.flops_exact > 0


def test_bfloat16_trains(spec, corpus, tmp_path, uninterrupted):
    half = spec.model_copy(update={"precision": "bfloat16"})
    assert half.run_id != spec.run_id
    assert train(half, corpus, tmp_path).loss == pytest.approx(uninterrupted[1].loss, rel=0.02)


def test_one_writer_a_run(spec, corpus, tmp_path):
    with sole_owner(tmp_path), pytest.raises(FolderBusyError, match="another is at work"):
        train(spec, corpus, tmp_path)


def test_a_corpus_that_was_not_planned_is_refused(spec, corpus, tmp_path):
    with pytest.raises(ValueError, match="the corpus must be the one the run was planned with"):
        train(spec.model_copy(update={"data_fingerprint": "0" * 12}), corpus, tmp_path)


def test_evaluation_at_many_recurrences_is_that_at_each(spec, corpus):
    model = Parcae(spec.model)
    model.initialise(1)
    windows = validation_windows(corpus, context=16, sequences=70)
    together = evaluate(model, windows, [4, 1, 2])
    assert list(together) == [1, 2, 4]
    for recurrence, loss in together.items():
        assert evaluate(model, windows, [recurrence])[recurrence] == loss
    assert bits_per_byte(together[1], 1.0) == pytest.approx(together[1] / 0.6931471805599453)


class TestJournal:
    def test_goes_on_behind_a_torn_line(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        journal = Journal(path)
        journal.metrics(1, {"a": 1.0})
        journal.close()
        with path.open("ab") as file:
            file.write(b'{"kind": "metr')
        assert [r["kind"] for r in read_journal(path)[0]] == ["journal", "metrics"]
        identity = journal_id(path)
        journal = Journal(path)
        journal.metrics(1, {"a": 9.0})  # known from before the restart
        journal.metrics(2, {"a": 2.0})
        journal.close()
        assert [r["values"]["a"] for r in read_journal(path)[0][1:]] == [1.0, 2.0]
        assert journal_id(path) == identity
        path.unlink()
        assert journal_id(path) is None
        Journal(path).close()
        assert journal_id(path) != identity

    def test_reads_from_an_offset(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        assert read_journal(path) == ([], 0)
        journal = Journal(path)
        journal.event("started", step=0)
        _, offset = read_journal(path)
        journal.metrics(5, {"a": 1.0})
        records, end = read_journal(path, offset)
        assert [r["step"] for r in records] == [5]
        assert end == path.stat().st_size
        journal.close()


class TestCheckpoint:
    @pytest.fixture
    def state(self, spec):
        model = Parcae(spec.model)
        model.initialise(0)
        return {"model": model, "optimizers": make_optimizers(model, spec.optimizer)}

    def save(self, folder, state, step, run_id="a"):
        return save_checkpoint(folder, run_id=run_id, step=step, counts={}, **state)

    def test_keeps_the_newest(self, tmp_path, state):
        for step in (1, 2, 10):
            self.save(tmp_path, state, step)
        assert [path.name for path in checkpoints(tmp_path)] == ["00000002", "00000010"]
        assert load_checkpoint(checkpoints(tmp_path)[-1], run_id="a", **state)[0] == 10

    def test_a_torn_one_is_refused_by_name(self, tmp_path, state):
        file = self.save(tmp_path, state, 1) / "state.pt"
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(ValueError, match=r"00000001/state.pt can't be read"):
            load_checkpoint(tmp_path / "00000001", run_id="a", **state)

    def test_a_foreign_one_is_refused_by_name(self, tmp_path, state):
        checkpoint = self.save(tmp_path, state, 1, run_id="b")
        with pytest.raises(ValueError, match=r"must belong to run a, but .* is of b"):
            load_checkpoint(checkpoint, run_id="a", **state)

    def test_an_unsafe_pickle_is_refused(self, tmp_path, state):
        folder = tmp_path / "00000001"
        folder.mkdir()
        torch.save({"format": os.system}, folder / "state.pt")
        with pytest.raises(ValueError, match="can't be read"):
            load_checkpoint(folder, run_id="a", **state)


def test_a_foreign_result_is_refused(tmp_path):
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(json.dumps({"loss": 1}))
    with pytest.raises(ValueError, match="must be a run's result"):
        read_result(tmp_path)
