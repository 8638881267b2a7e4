"""Runs on packed documents: resumed equals uninterrupted, and they count what they saw and what was dropped."""

import pytest
import torch

from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.batches import batch_reader, tokens_per_pass
from isoloop.trainer.loop import train
from isoloop.trainer.run.checkpoint import checkpoints
from tests.trainer.test_loop import metrics, stop_after, without_clock


@pytest.fixture(scope="module")
def packed(spec):
    return spec.model_copy(update={"data": DataConfig(packing="best-fit", unique_tokens=400)})


@pytest.fixture(scope="module")
def uninterrupted(packed, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return folder, train(packed, corpus, folder)


def test_resumed_equals_uninterrupted(packed, corpus, uninterrupted, tmp_path):
    whole_folder, whole = uninterrupted
    for steps in (1, 3, 4):
        assert train(packed, corpus, tmp_path, should_stop=stop_after(steps)) is None
    assert without_clock(train(packed, corpus, tmp_path)) == without_clock(whole)
    assert metrics(tmp_path) == metrics(whole_folder)


def test_a_checkpoint_without_a_position_goes_on_with_the_same_rows(packed, corpus, uninterrupted, tmp_path):
    assert train(packed, corpus, tmp_path, should_stop=stop_after(5)) is None
    file = checkpoints(tmp_path / "checkpoints")[-1] / "state.pt"
    state = torch.load(file, weights_only=True)
    assert state["position"]["rows"] == 5 * packed.batch
    torch.save(state | {"position": None}, file)
    assert without_clock(train(packed, corpus, tmp_path)) == without_clock(uninterrupted[1])


def test_a_run_counts_what_it_dropped_and_the_text_it_saw(packed, corpus, uninterrupted):
    folder, result = uninterrupted
    reader = batch_reader(packed, corpus.first(400))
    for step in range(packed.steps):
        reader.read(step, range(packed.batch))
        assert metrics(folder)[step][1]["dropped_tokens"] == reader.dropped
    assert result.dropped_tokens == reader.dropped > 0
    assert result.unique_tokens == tokens_per_pass(corpus.first(400).train, "best-fit", 16) < 400
    assert result.epochs == result.tokens / result.unique_tokens > 1
    assert result.best_loss is not None  # since it saw text again


def test_packing_is_part_of_what_is_trained(spec, corpus, tmp_path):
    packed = spec.model_copy(update={"data": DataConfig(packing="best-fit")})
    assert train(packed, corpus, tmp_path / "a").loss != train(spec, corpus, tmp_path / "b").loss
